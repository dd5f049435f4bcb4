//! What a reload changes, for people.
//!
//! An index says nothing once uplinks, policies or sets have come or gone: compared are those that are meant, by name.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::ruling::Ruling;
use crate::config::{Config, Forward, Member, Policy};

/// What differs between two configurations, a line each.
pub fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for uplink in &new.uplinks {
        match old.uplinks.iter().find(|u| u.name == uplink.name) {
            None => lines.push(format!("uplink {} added", uplink.name)),
            Some(before) if before != uplink => lines.push(format!("uplink {} changed", uplink.name)),
            Some(_) => {}
        }
    }
    for uplink in old.uplinks.iter().filter(|u| new.uplink_index(&u.name).is_none()) {
        lines.push(format!("uplink {} removed", uplink.name));
    }
    by_name(&mut lines, "policy", &policies(old), &policies(new));
    by_name(&mut lines, "set", &sets(old), &sets(new));
    let mut changed = |what: &str, differs: bool| {
        if differs {
            lines.push(format!("{what} changed"));
        }
    };
    changed("lan", old.lan != new.lan);
    changed("datapath", old.datapath != new.datapath);
    let forwards = |config: &Config| -> Vec<(BTreeSet<String>, Forward)> {
        let on = |forward: &Forward| {
            forward.uplinks.iter().filter_map(|i| Some(config.uplinks.get(*i)?.name.clone())).collect()
        };
        config
            .forwards
            .iter()
            .map(|forward| (on(forward), Forward { uplinks: Vec::new(), ..forward.clone() }))
            .collect()
    };
    changed("forward", forwards(old) != forwards(new));
    changed("rules", Ruling::new(old).rules != Ruling::new(new).rules);
    changed("nat", old.nat != new.nat);
    changed("limits", old.limits != new.limits);
    changed("timeouts", old.timeouts != new.timeouts);
    changed("hooks", old.hooks != new.hooks);
    lines
}

/// Policies by name, with the names of what they point to.
fn policies(config: &Config) -> BTreeMap<&str, impl PartialEq> {
    let name = |member: &Member| Some((config.uplinks.get(member.uplink)?.name.as_str(), member.weight));
    let tier = |members: &Vec<Member>| members.iter().filter_map(name).collect::<Vec<_>>();
    let content =
        |policy: &Policy| (policy.tiers.iter().map(tier).collect::<Vec<_>>(), policy.hash, policy.sticky, policy.spill);
    config.policies.iter().map(|policy| (policy.name.as_str(), content(policy))).collect()
}

fn sets(config: &Config) -> BTreeMap<&str, &[Ipv4Net]> {
    config.sets.iter().map(|set| (set.name.as_str(), &*set.prefixes)).collect()
}

/// What was added, changed and removed.
fn by_name<T: PartialEq>(lines: &mut Vec<String>, what: &str, old: &BTreeMap<&str, T>, new: &BTreeMap<&str, T>) {
    for (name, content) in new {
        match old.get(name) {
            None => lines.push(format!("{what} {name} added")),
            Some(before) if before != content => lines.push(format!("{what} {name} changed")),
            Some(_) => {}
        }
    }
    let removed = old.keys().filter(|name| !new.contains_key(*name));
    lines.extend(removed.map(|name| format!("{what} {name} removed")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const CONFIG: &str = r#"
        lan = ["lan0"]
        [uplink.isp1]
        interface = "wan1"
        address = ["198.51.100.2", "198.51.100.8/30"]
        [uplink.isp2]
        interface = "wan2"
        [nat]
        filtering = "endpoint-independent"
        [limits]
        bindings_per_source = 100
        [policy.calm]
        hash = "source"
        [set.banks]
        prefixes = ["203.0.113.0/24"]
        [[rule]]
        to = ["set:banks"]
        use = "policy:calm"
        [[forward]]
        uplinks = ["isp2"]
        protocol = "tcp"
        port = "8443"
        to = "192.168.1.20:443"
    "#;

    fn changed(new: &str) -> Vec<String> {
        differences(&config::parse(CONFIG).unwrap().config, &config::parse(new).unwrap().config)
    }

    #[test]
    fn differences_name_the_sections_that_changed() {
        assert_eq!(changed(CONFIG), [""; 0]);
        for (from, to, expected) in [
            ("198.51.100.8/30", "198.51.100.12/30", "uplink isp1 changed"),
            ("\"endpoint-independent\"", "\"address-dependent\"", "nat changed"),
            ("= 100", "= 101", "limits changed"),
            ("= 100", "= 100\nnew_flows_per_source = 0", "limits changed"),
            ("8443", "8444", "forward changed"),
            ("20:443", "20:444", "forward changed"),
            ("[nat]", "[hooks]\ntimeout = \"1s\"\n[nat]", "hooks changed"),
            ("20:443", "21:443", "forward changed"),
            ("\"source\"", "\"source\"\nsticky = \"60s\"", "policy calm changed"),
            ("113.0/24", "113.0/25", "set banks changed"),
            ("to = [\"set:banks\"]", "from = [\"set:banks\"]", "rules changed"),
            ("use = \"policy:calm\"", "use = \"uplink:isp2\"", "rules changed"),
            ("[[forward]]", "[set.more]\nprefixes = [\"192.0.2.1\"]\n[[forward]]", "set more added"),
            ("\"tcp\"", "[\"tcp\", \"udp\"]", "forward changed"),
            ("uplinks = [\"isp2\"]", "", "forward changed"),
        ] {
            assert!(CONFIG.contains(from), "{from}");
            assert_eq!(changed(&CONFIG.replace(from, to)), [expected], "{from} -> {to}");
        }
    }

    #[test]
    fn a_forward_follows_its_uplink_and_not_its_place() {
        let added = CONFIG.replace("[uplink.isp1]", "[uplink.isp0]\ninterface = \"wan0\"\n[uplink.isp1]");
        assert_eq!(changed(&added), ["uplink isp0 added", "policy calm changed", "policy default changed"]);
    }

    #[test]
    fn a_rule_follows_what_it_names_and_not_its_place() {
        let more = "[policy.calm]\nhash";
        let other = CONFIG.replace("[policy.calm]\n        hash", "[policy.busy]\n[policy.calm]\nhash");
        assert!(other.contains(more));
        assert_eq!(changed(&other), ["policy busy added"]);
    }
}

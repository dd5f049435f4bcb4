//! What differs between two configurations, for people.
//!
//! Sections refer to each other by index, which says nothing once something has come or gone: compared is what they mean, by name.

use std::collections::BTreeSet;

use super::ruling::Ruling;
use crate::config::{Config, Forward, Member, Policy};

/// What differs between two configurations, a line each.
pub fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    by_name(&mut lines, "uplink", &old.uplinks, &new.uplinks, |uplink| &uplink.name, |a, b| a == b);
    let same = |a: &Policy, b: &Policy| meant_policy(a, old) == meant_policy(b, new);
    by_name(&mut lines, "policy", &old.policies, &new.policies, |policy| &policy.name, same);
    by_name(&mut lines, "set", &old.sets, &new.sets, |set| &set.name, |a, b| a == b);
    let mut changed = |what: &str, differs: bool| {
        if differs {
            lines.push(format!("{what} changed"));
        }
    };
    changed("lan", old.lan != new.lan);
    changed("datapath", old.datapath != new.datapath);
    changed("rules", Ruling::new(old).rules != Ruling::new(new).rules);
    let forwards = |config: &Config| config.forwards.iter().map(|it| meant_forward(it, config)).collect::<Vec<_>>();
    changed("forward", forwards(old) != forwards(new));
    changed("nat", old.nat != new.nat);
    changed("limits", old.limits != new.limits);
    changed("timeouts", old.timeouts != new.timeouts);
    changed("hooks", old.hooks != new.hooks);
    lines
}

/// What has come, changed and gone among things that have names.
fn by_name<T>(
    lines: &mut Vec<String>,
    what: &str,
    old: &[T],
    new: &[T],
    name: fn(&T) -> &String,
    same: impl Fn(&T, &T) -> bool,
) {
    for thing in new {
        match old.iter().find(|other| name(other) == name(thing)) {
            None => lines.push(format!("{what} {} added", name(thing))),
            Some(before) if !same(before, thing) => lines.push(format!("{what} {} changed", name(thing))),
            Some(_) => {}
        }
    }
    for thing in old.iter().filter(|thing| new.iter().all(|other| name(other) != name(thing))) {
        lines.push(format!("{what} {} removed", name(thing)));
    }
}

fn uplink_name(config: &Config, uplink: usize) -> String {
    config.uplinks.get(uplink).map_or_else(String::new, |uplink| uplink.name.clone())
}

/// A policy, with the names of its uplinks in place of their indices.
fn meant_policy(policy: &Policy, config: &Config) -> (Policy, Vec<String>) {
    let mut meant = policy.clone();
    let mut names = Vec::new();
    for member in meant.tiers.iter_mut().flatten() {
        names.push(uplink_name(config, member.uplink));
        *member = Member { uplink: 0, ..*member };
    }
    (meant, names)
}

/// A forward, with the names of its uplinks in place of their indices.
fn meant_forward(forward: &Forward, config: &Config) -> (Forward, BTreeSet<String>) {
    let names = forward.uplinks.iter().map(|uplink| uplink_name(config, *uplink)).collect();
    (Forward { uplinks: Vec::new(), ..forward.clone() }, names)
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
            ("\"tcp\"", "[\"tcp\", \"udp\"]", "forward changed"),
            ("uplinks = [\"isp2\"]", "", "forward changed"),
        ] {
            assert!(CONFIG.contains(from), "{from}");
            assert_eq!(changed(&CONFIG.replace(from, to)), [expected], "{from} -> {to}");
        }
    }

    #[test]
    fn policies_rules_and_sets_are_compared_by_what_they_name() {
        const POLICIES: &str = "
            [policy.a]
            tiers = [{ isp1 = 1 }]
            [set.s]
            prefixes = [\"10.0.0.0/8\"]
            [[rule]]
            to = [\"set:s\"]
            use = \"policy:a\"
        ";
        let text = format!("{CONFIG}{POLICIES}");
        let changed =
            |new: &str| differences(&config::parse(&text).unwrap().config, &config::parse(new).unwrap().config);
        for (from, to, expected) in [
            ("[policy.a]", "[policy.z]\n[policy.a]", vec!["policy z added"]),
            ("{ isp1 = 1 }", "{ isp2 = 1 }", vec!["policy a changed"]),
            ("[policy.a]", "[policy.a]\nsticky = \"1m\"\nhash = \"source\"", vec!["policy a changed"]),
            ("10.0.0.0/8", "10.0.0.0/9", vec!["set s changed"]),
            ("[set.s]", "[set.r]\nprefixes = [\"10.0.0.0/8\"]\n[set.s]", vec!["set r added"]),
            ("policy:a", "policy:default", vec!["rules changed"]),
            ("policy:a\"", "policy:a\"\nprotocol = \"tcp\"", vec!["rules changed"]),
        ] {
            assert!(text.contains(from), "{from}");
            assert_eq!(changed(&text.replace(from, to)), expected, "{from} -> {to}");
        }
        assert_eq!(changed(CONFIG), ["policy a removed", "set s removed", "rules changed"]);
    }

    #[test]
    fn a_forward_follows_its_uplink_and_not_its_place() {
        let added = CONFIG.replace("[uplink.isp1]", "[uplink.isp0]\ninterface = \"wan0\"\n[uplink.isp1]");
        assert_eq!(changed(&added), ["uplink isp0 added", "policy default changed"]);
    }
}

//! Rules, policies and sets in force, as people see them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use mh_common::rules::{MAX_RULES, NO_RULE_COUNTER};

use crate::{
    config::{self, Addresses, Config, DEFAULT_POLICY, Share, Use, Weight},
    control::api::{self, ByCapacity, ControlError, Member, MemberWeight, SetsRequest, UplinkState},
    core::{Desired, PolicyView},
};

/// What of it the configuration alone decides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ruling {
    /// The rules, without hits; the last one stands for what no rule matches.
    pub rules: Vec<api::Rule>,
    sets: Vec<(api::Set, Arc<[Ipv4Net]>)>,
}

impl Ruling {
    /// That of a configuration.
    pub fn new(config: &Config) -> Self {
        let numbered = (1..).zip(config.rules.iter().take(MAX_RULES));
        let mut rules: Vec<api::Rule> = numbered.map(|(index, rule)| document(index, rule, config)).collect();
        rules.push(api::Rule { action: format!("policy:{DEFAULT_POLICY}"), ..api::Rule::default() });
        let mut ruling = Self { rules, sets: Vec::new() };
        ruling.sets = config.sets.iter().map(|set| (ruling.set(set), set.prefixes.clone())).collect();
        ruling
    }

    fn set(&self, set: &config::Set) -> api::Set {
        let word = set_word(&set.name);
        api::Set {
            name: set.name.clone(),
            prefixes: set.prefixes.len() as u64,
            file: set.file.as_ref().map(|path| path.display().to_string()),
            rules: self.labels(|rule| rule.from.contains(&word) || rule.to.contains(&word)),
            prefix: None,
        }
    }

    /// The names of the rules that are meant.
    fn labels(&self, meant: impl Fn(&api::Rule) -> bool) -> Vec<String> {
        self.rules.iter().filter(|rule| meant(rule)).filter_map(api::Rule::label).collect()
    }

    /// The rules with their hits, in the same order.
    pub fn counted(&self, hits: &[u64]) -> Vec<api::Rule> {
        let counted = self.rules.iter().zip(hits);
        counted.map(|(rule, &hits)| api::Rule { hits, ..rule.clone() }).collect()
    }

    /// The sets that a request is about.
    pub fn sets(&self, request: SetsRequest) -> Result<Vec<api::Set>, ControlError> {
        let address = match request.contains {
            None => return Ok(self.sets.iter().map(|(set, _)| set.clone()).collect()),
            Some(IpAddr::V4(address)) => address,
            Some(IpAddr::V6(address)) => {
                let reason = format!("sets have no IPv6 addresses such as {address} in this version; give an IPv4 one");
                return Err(ControlError::Invalid(reason));
            }
        };
        let longest = |prefixes: &[Ipv4Net]| {
            let containing = prefixes.iter().filter(|prefix| prefix.contains(&address));
            containing.max_by_key(|prefix| prefix.prefix_len()).copied()
        };
        let found = self.sets.iter().filter_map(|(set, prefixes)| {
            Some(api::Set { prefix: Some(IpNet::V4(longest(prefixes)?)), ..set.clone() })
        });
        Ok(found.collect())
    }
}

/// The datapath's counters of the rules in force, and of what no rule matches, in their order.
pub fn counters(desired: &Desired, rules: usize) -> Vec<u16> {
    let list = desired.rules.list.rules.iter().take(rules.min(MAX_RULES));
    list.map(|rule| rule.counter).chain([NO_RULE_COUNTER]).collect()
}

/// The policies in force by index, but for the sources that keep their uplink.
pub fn policies(desired: &Desired, ruling: &Ruling) -> Vec<(u8, api::Policy)> {
    let states: BTreeMap<&str, UplinkState> =
        desired.views.iter().map(|view| (view.name.as_str(), view.state)).collect();
    let policy = |view: &PolicyView| {
        let mut tiers: Vec<Vec<Member>> = Vec::new();
        for member in &view.members {
            let state = states.get(member.uplink.as_str()).copied().unwrap_or(UplinkState::Down);
            let state = match state {
                UplinkState::Up | UplinkState::Disabled if member.weight == Weight::Fixed(0) => UplinkState::Disabled,
                UplinkState::Disabled => UplinkState::Up,
                state => state,
            };
            tiers.resize(tiers.len().max(member.tier + 1), Vec::new());
            tiers[member.tier].push(Member {
                uplink: member.uplink.clone(),
                weight: match member.weight {
                    Weight::Fixed(weight) => MemberWeight::Fixed(weight),
                    Weight::Capacity => MemberWeight::ByCapacity(ByCapacity::Capacity),
                },
                effective_weight: u32::from(member.effective_weight),
                share: member.share,
                state,
            });
        }
        let active = tiers.iter().position(|tier| tier.iter().any(|member| member.share > 0.0));
        let word = format!("policy:{}", view.name);
        let document = api::Policy {
            name: view.name.clone(),
            default: view.name == DEFAULT_POLICY,
            hash: view.hash.to_string(),
            sticky_s: view.sticky_s,
            spill: view.spill.map(|spill| f64::from(spill.basis_points()) / f64::from(Share::WHOLE)),
            active_tier: active.and_then(|tier| u32::try_from(tier).ok()),
            fill: view.tiers.iter().map(|tier| tier.fill).collect(),
            tiers,
            rules: ruling.labels(|rule| rule.action == word),
            sources: 0,
        };
        (view.index, document)
    };
    desired.policy_views.iter().map(policy).collect()
}

/// How a condition names a set.
pub fn set_word(name: &str) -> String {
    format!("set:{name}")
}

fn document(index: u32, rule: &config::Rule, config: &Config) -> api::Rule {
    let addresses = |addresses: &Addresses| -> Vec<String> {
        let sets = addresses.sets.iter().filter_map(|set| Some(set_word(&config.sets.get(*set)?.name)));
        addresses.prefixes.iter().map(prefix).chain(sets).collect()
    };
    let name = |name: Option<&String>| name.map_or("?", String::as_str).to_owned();
    let words = |list: &[config::PortRange]| list.iter().map(ToString::to_string).collect();
    api::Rule {
        index: Some(index),
        name: rule.name.clone(),
        from: addresses(&rule.from),
        to: addresses(&rule.to),
        protocol: rule.protocols.iter().map(|protocol| api::protocol_name(*protocol)).collect(),
        from_port: words(&rule.from_ports),
        to_port: words(&rule.to_ports),
        interface: rule.interfaces.iter().map(ToString::to_string).collect(),
        dscp: rule.dscp.clone(),
        action: match rule.action {
            Use::Policy(index) => format!("policy:{}", name(config.policies.get(index).map(|policy| &policy.name))),
            Use::Uplink(index) => format!("uplink:{}", name(config.uplinks.get(index).map(|uplink| &uplink.name))),
            Use::Direct => "direct".to_owned(),
            Use::Reject => "reject".to_owned(),
            Use::Drop => "drop".to_owned(),
        },
        hits: 0,
    }
}

/// A prefix as people write it: of one address, the address alone.
pub fn prefix(prefix: &Ipv4Net) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() { prefix.addr().to_string() } else { prefix.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        lan = ["lan0"]
        [uplink.isp1]
        interface = "wan1"
        [uplink.isp2]
        interface = "wan2"
        [policy.one-source]
        hash = "source"
        [set.banks]
        prefixes = ["203.0.113.0/24", "203.0.113.7", "192.0.2.0/25"]
        [set.guests]
        prefixes = ["198.18.0.1"]
        [[rule]]
        name = "bank"
        from = ["192.168.1.0/24", "10.0.0.1", "set:guests"]
        to = ["set:banks"]
        protocol = ["tcp", 47]
        to_port = ["443", "8000-8999"]
        interface = "lan*"
        dscp = 46
        use = "policy:one-source"
        [[rule]]
        to = ["set:banks"]
        use = "uplink:isp2"
        [[rule]]
        use = "reject"
    "#;

    fn ruling() -> Ruling {
        Ruling::new(&config::parse(CONFIG).unwrap().config)
    }

    #[test]
    fn rules_are_as_configured_and_what_none_matches_is_last() {
        let rules = ruling().counted(&[5, 6, 7, 8]);
        let first = serde_json::to_value(&rules[0]).unwrap();
        let expected = serde_json::json!({
            "index": 1, "name": "bank", "from": ["10.0.0.1", "192.168.1.0/24", "set:guests"], "to": ["set:banks"],
            "protocol": ["tcp", "47"], "from_port": [], "to_port": ["443", "8000-8999"], "interface": ["lan*"],
            "dscp": [46], "use": "policy:one-source", "hits": 5,
        });
        let sorted = |mut value: serde_json::Value| {
            value["from"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
            value
        };
        assert_eq!(sorted(first), sorted(expected));
        let brief: Vec<_> =
            rules[1..].iter().map(|rule| (rule.index, rule.label(), rule.action.as_str(), rule.hits)).collect();
        assert_eq!(
            brief,
            [
                (Some(2), Some("rule 2".to_owned()), "uplink:isp2", 6),
                (Some(3), Some("rule 3".to_owned()), "reject", 7),
                (None, None, "policy:default", 8),
            ]
        );
    }

    #[test]
    fn sets_tell_their_rules_and_the_longest_prefix_that_contains_an_address() {
        let sets = |address: Option<&str>| {
            let contains = address.map(|address| address.parse().unwrap());
            ruling().sets(SetsRequest { contains })
        };
        let all = sets(None).unwrap();
        let brief: Vec<_> = all.iter().map(|set| (set.name.as_str(), set.prefixes, set.rules.join(" "))).collect();
        assert_eq!(brief, [("banks", 3, "bank rule 2".to_owned()), ("guests", 1, "bank".to_owned())]);
        let prefix = |address| sets(Some(address)).unwrap().first().map(|set| set.prefix.unwrap().to_string());
        assert_eq!(prefix("203.0.113.7").unwrap(), "203.0.113.7/32");
        assert_eq!(prefix("203.0.113.8").unwrap(), "203.0.113.0/24");
        assert_eq!(prefix("192.0.2.200"), None);
        assert!(sets(Some("2001:db8::1")).unwrap_err().to_string().contains("2001:db8::1"));
    }
}

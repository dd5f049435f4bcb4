//! Random policies, rules and sets that are valid, and how a person would write them: for the properties of whole configs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::{
    Addresses, Capacity, Config, DEFAULT_POLICY, HashMode, InterfacePattern, Member, Policy, PortRange, Rule, Set,
    Share, Uplink, Use, Weight,
};

/// What says who leaves where.
#[derive(Debug, Clone)]
pub(super) struct Steering {
    pub(super) policies: Vec<Policy>,
    pub(super) rules: Vec<Rule>,
    pub(super) sets: Vec<Set>,
}

/// Policies, rules and sets before the uplinks are known that they name.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    policies: Vec<(String, DraftPolicy)>,
    rules: Vec<(Rule, DraftUse, Vec<Index>, Vec<Index>)>,
    names: BTreeSet<String>,
    sets: Vec<Set>,
}

#[derive(Debug, Clone)]
struct DraftPolicy {
    /// Uplinks with weight and tier, and which tiers go by capacity; `None`: no tiers.
    members: Option<(Vec<DraftMember>, [bool; 3])>,
    hash: HashMode,
    sticky_ms: u64,
    spill: Option<Share>,
}

/// An uplink, its weight and its tier.
type DraftMember = (Index, u16, usize);

#[derive(Debug, Clone)]
enum DraftUse {
    Policy(Index),
    Uplink(Index),
    Word(Use),
}

pub(super) fn weight(weight: Weight) -> String {
    match weight {
        Weight::Fixed(weight) => weight.to_string(),
        Weight::Capacity => "\"capacity\"".to_owned(),
    }
}

pub(super) fn capacity(capacity: Capacity) -> String {
    let rate = |rate: u64| match rate {
        rate if rate % 1_000_000_000 == 0 => format!("{}gbit", rate / 1_000_000_000),
        rate if rate % 2 == 0 => format!("{}.{:06}mbit", rate / 1_000_000, rate % 1_000_000),
        rate => format!("{rate}bit"),
    };
    if capacity.down == capacity.up {
        rate(capacity.down)
    } else {
        format!("{}/{}", rate(capacity.down), rate(capacity.up))
    }
}

/// One value as it is, several as a list.
fn list(elements: &[String]) -> String {
    if let [element] = elements { element.clone() } else { format!("[{}]", elements.join(", ")) }
}

fn ports(range: PortRange) -> String {
    if range.first == range.last && range.first.is_multiple_of(2) { range.to_string() } else { format!("\"{range}\"") }
}

/// The sections of policies, rules and sets.
pub(super) fn render(config: &Config) -> String {
    let mut text = String::new();
    for policy in &config.policies {
        let member = |member: &Member| format!("{} = {}", config.uplinks[member.uplink].name, weight(member.weight));
        let tier = |members: &Vec<Member>| members.iter().map(member).collect::<Vec<_>>().join(", ");
        let tiers: Vec<String> = policy.tiers.iter().map(|members| format!("{{ {} }}", tier(members))).collect();
        writeln!(text, "[policy.{}]\nhash = \"{}\"", policy.name, policy.hash).unwrap();
        if !policy.own_weights {
            writeln!(text, "tiers = [{}]", tiers.join(", ")).unwrap();
        }
        if !policy.sticky.is_zero() {
            writeln!(text, "sticky = \"{}ms\"", policy.sticky.as_millis()).unwrap();
        }
        if let Some(spill) = policy.spill {
            writeln!(text, "spill = \"{spill}\"").unwrap();
        }
    }
    for rule in &config.rules {
        text += "[[rule]]\n";
        if let Some(name) = &rule.name {
            writeln!(text, "name = \"{name}\"").unwrap();
        }
        let addresses = |addresses: &Addresses| -> Vec<String> {
            let prefix = |net: &Ipv4Net| {
                if net.prefix_len() == 32 { format!("\"{}\"", net.addr()) } else { format!("\"{net}\"") }
            };
            let sets = addresses.sets.iter().map(|index| format!("\"set:{}\"", config.sets[*index].name));
            addresses.prefixes.iter().map(prefix).chain(sets).collect()
        };
        let protocol = |protocol: &u8| match protocol {
            1 => "\"icmp\"".to_owned(),
            6 => "\"tcp\"".to_owned(),
            17 => "\"udp\"".to_owned(),
            number => number.to_string(),
        };
        let from_ports = rule.from_ports.iter().copied().map(ports).collect();
        let to_ports = rule.to_ports.iter().copied().map(ports).collect();
        for (key, elements) in [
            ("to", addresses(&rule.to)),
            ("from", addresses(&rule.from)),
            ("protocol", rule.protocols.iter().map(protocol).collect()),
            ("from_port", from_ports),
            ("to_port", to_ports),
            ("interface", rule.interfaces.iter().map(|pattern| format!("\"{pattern}\"")).collect()),
            ("dscp", rule.dscp.iter().map(ToString::to_string).collect()),
        ] {
            if !elements.is_empty() {
                writeln!(text, "{key} = {}", list(&elements)).unwrap();
            }
        }
        let action = match rule.action {
            Use::Policy(index) => format!("policy:{}", config.policies[index].name),
            Use::Uplink(index) => format!("uplink:{}", config.uplinks[index].name),
            Use::Direct => "direct".to_owned(),
            Use::Reject => "reject".to_owned(),
            Use::Drop => "drop".to_owned(),
        };
        writeln!(text, "use = \"{action}\"").unwrap();
    }
    for set in &config.sets {
        let prefixes: Vec<String> = set.prefixes.iter().rev().map(|prefix| format!("\"{prefix}\"")).collect();
        writeln!(text, "[set.{}]\nprefixes = [{}]", set.name, prefixes.join(", ")).unwrap();
    }
    text
}

fn prefixes() -> impl Strategy<Value = Ipv4Net> {
    (any::<u32>(), 0_u8..=32)
        .prop_map(|(address, length)| Ipv4Net::new(Ipv4Addr::from_bits(address), length).unwrap().trunc())
}

/// Without what is there twice.
fn once<T: PartialEq>(elements: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut all = Vec::new();
    for element in elements {
        if !all.contains(&element) {
            all.push(element);
        }
    }
    all
}

pub(super) fn port_range() -> impl Strategy<Value = PortRange> {
    (1..=u16::MAX, 1..=u16::MAX).prop_map(|(one, other)| PortRange { first: one.min(other), last: one.max(other) })
}

fn policy() -> impl Strategy<Value = DraftPolicy> {
    let members = (vec((any::<Index>(), any::<u16>(), 0..3_usize), 1..8), any::<[bool; 3]>());
    let spill = (1_u32..=10_000).prop_map(|share| format!("{}.{:02}%", share / 100, share % 100).parse().unwrap());
    (option::of(members), select(HashMode::ALL), prop_oneof![Just(0), 1..=604_800_000_u64], option::of(spill))
        .prop_map(|(members, hash, sticky_ms, spill)| DraftPolicy { members, hash, sticky_ms, spill })
}

fn rule() -> impl Strategy<Value = (Rule, DraftUse, Vec<Index>, Vec<Index>)> {
    let addresses = || (vec(prefixes(), 0..4), vec(any::<Index>(), 0..3));
    let protocol = prop_oneof![select(vec![1_u8, 6, 17]), any::<u8>()];
    let ranges =
        || vec(prop_oneof![port_range(), (1..=u16::MAX).prop_map(|port| PortRange { first: port, last: port })], 0..3);
    let word = select(vec![Use::Direct, Use::Reject, Use::Drop]).prop_map(DraftUse::Word);
    let action =
        prop_oneof![any::<Index>().prop_map(DraftUse::Policy), any::<Index>().prop_map(DraftUse::Uplink), word];
    let interface = "(l[a-km-z0-9._-]{1,13}|vlan\\*|x[a-z]{0,10}\\*)"
        .prop_filter("loopback", |name| name != "lo")
        .prop_map(|name| name.parse::<InterfacePattern>().unwrap());
    (
        addresses(),
        addresses(),
        vec(protocol, 0..3),
        ranges(),
        ranges(),
        vec(interface, 0..3),
        vec(0..=63_u8, 0..3),
        action,
    )
        .prop_map(
            |((from, from_sets), (to, to_sets), mut protocols, from_ports, to_ports, interfaces, dscp, action)| {
                let has_ports = !(from_ports.is_empty() && to_ports.is_empty());
                if has_ports && !protocols.is_empty() && !protocols.iter().any(|protocol| [6, 17].contains(protocol)) {
                    protocols.push(17);
                }
                let addresses = |prefixes| Addresses { prefixes: once(prefixes), sets: vec![] };
                let rule = Rule {
                    name: None,
                    from: addresses(from),
                    to: addresses(to),
                    protocols: once(protocols),
                    from_ports: once(from_ports),
                    to_ports: once(to_ports),
                    interfaces: once(interfaces),
                    dscp: once(dscp),
                    action: Use::Drop,
                };
                (rule, action, from_sets, to_sets)
            },
        )
}

/// Policies, rules and sets for any uplinks.
pub(super) fn drafts() -> impl Strategy<Value = Draft> {
    let names = |most| btree_set("[a-zA-Z0-9_-]{1,32}", 0..most);
    let policies = names(4).prop_flat_map(|mut names| {
        names.remove(DEFAULT_POLICY);
        let named = names.into_iter().map(|name| (Just(name), policy())).collect::<Vec<_>>();
        ((Just(DEFAULT_POLICY.to_owned()), policy()), named.prop_shuffle()).prop_map(|(default, mut named)| {
            named.insert(0, default);
            named
        })
    });
    let sets = names(4).prop_flat_map(|names| {
        let set = |name| {
            btree_set(prefixes(), 1..6).prop_map(move |prefixes| Set {
                name: String::clone(&name),
                prefixes: prefixes.into_iter().collect(),
                file: None,
            })
        };
        names.into_iter().map(set).collect::<Vec<_>>().prop_shuffle()
    });
    (policies, vec(rule(), 0..6), names(6), sets).prop_map(|(policies, rules, names, sets)| Draft {
        policies,
        rules,
        names,
        sets,
    })
}

impl Draft {
    /// The draft with these uplinks.
    pub(super) fn on(self, uplinks: &[Uplink]) -> Steering {
        let policies: Vec<Policy> = self.policies.into_iter().map(|(name, draft)| draft.on(name, uplinks)).collect();
        let mut names = self.names.into_iter();
        let sets = self.sets;
        let indices = |drawn: Vec<Index>| match sets.len() {
            0 => Vec::new(),
            count => once(drawn.into_iter().map(|index| index.index(count))),
        };
        let rule = |(mut rule, action, from, to): (Rule, DraftUse, Vec<Index>, Vec<Index>)| {
            rule.name = names.next();
            rule.from.sets = indices(from);
            rule.to.sets = indices(to);
            rule.action = match action {
                DraftUse::Policy(index) => Use::Policy(index.index(policies.len())),
                DraftUse::Uplink(index) => Use::Uplink(index.index(uplinks.len())),
                DraftUse::Word(word) => word,
            };
            rule
        };
        let rules = self.rules.into_iter().map(rule).collect();
        Steering { policies, rules, sets }
    }
}

impl DraftPolicy {
    fn on(self, name: String, uplinks: &[Uplink]) -> Policy {
        let by_capacity = |uplink: &&Uplink| uplink.weight == Weight::Capacity;
        let mixed = ![0, uplinks.len()].contains(&uplinks.iter().filter(by_capacity).count());
        let mut tiers: Vec<Vec<Member>> = vec![Vec::new(); 3];
        let own_weights = self.members.is_none() && !mixed;
        match self.members {
            Some((members, by_capacity)) => {
                for (index, weight, tier) in members {
                    let uplink = index.index(uplinks.len());
                    let member = match by_capacity[tier] {
                        true if uplinks[uplink].capacity.is_none() => continue,
                        true => Member { uplink, weight: Weight::Capacity },
                        false => Member { uplink, weight: Weight::Fixed(weight) },
                    };
                    if !tiers.iter().flatten().any(|member| member.uplink == uplink) {
                        tiers[tier].push(member);
                    }
                }
            }
            None => {
                let weight = |uplink: &Uplink| if own_weights { uplink.weight } else { Weight::Fixed(3) };
                let member = |(index, uplink)| Member { uplink: index, weight: weight(uplink) };
                tiers[0] = uplinks.iter().enumerate().map(member).collect();
            }
        }
        tiers.retain(|members| !members.is_empty());
        if tiers.is_empty() {
            tiers.push(vec![Member { uplink: 0, weight: Weight::Fixed(1) }]);
        }
        let measured = &tiers[..tiers.len() - 1];
        let spills = measured.iter().flatten().all(|member| uplinks[member.uplink].capacity.is_some());
        Policy {
            name,
            spill: self.spill.filter(|_| spills),
            tiers,
            own_weights,
            hash: self.hash,
            sticky: Duration::from_millis(self.sticky_ms),
        }
    }
}

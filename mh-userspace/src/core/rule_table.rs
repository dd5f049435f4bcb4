//! From the configuration's rules to the datapath's tables: see [`mh_common::rules`].
//!
//! Pure. What depends on the configuration alone is a [`RuleTable`]; which rules each interface agrees with depends on the interfaces
//! that there are, too, and is worked out for itself ([`RuleTable::of_interface`]).

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use mh_common::{
    policy,
    rules::{self, Action, Classifier, MAX_RULES, PORT_CLASSES, Rule, RuleList, RuleSet, Side},
    wire,
};

use super::Indices;
use crate::config::{self, Addresses, Config, InterfacePattern, PortRange, Use};

/// The rules as the datapath has them, but for its interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTable {
    /// What they do.
    pub list: Box<RuleList>,
    /// What they ask for, but for addresses and interfaces.
    pub classifier: Box<Classifier>,
    /// [`rules::HAS_RULES`] and what is asked for.
    pub flags: u32,
    /// The rules that agree with the addresses of a prefix, none of which is like that of the next longer one that contains it.
    pub prefixes: Vec<(Side, Ipv4Net, RuleSet)>,
    /// The interfaces that each rule asks for, if it asks for any.
    interfaces: Vec<Vec<InterfacePattern>>,
}

impl RuleTable {
    /// The table for a configuration. `indices` must have been [`Indices::assign`]ed for it.
    pub fn new(config: &Config, indices: &Indices) -> Self {
        let list = config.rules.get(..MAX_RULES).unwrap_or(&config.rules);
        let (rules, classifier) = (Box::new(RuleList::EMPTY), bytemuck::zeroed_box());
        let mut table = Self { list: rules, classifier, flags: 0, prefixes: Vec::new(), interfaces: Vec::new() };
        for ((number, rule), identity) in list.iter().enumerate().zip(identities(config)) {
            table.enter(number, rule, identity, config, indices);
        }
        let classifier = &mut table.classifier;
        let ports = |select: fn(&config::Rule) -> &Vec<PortRange>| list.iter().map(select).collect::<Vec<_>>();
        classify(&ports(|rule| &rule.from_ports), &mut classifier.from_classes, &mut classifier.from_ports);
        classify(&ports(|rule| &rule.to_ports), &mut classifier.to_classes, &mut classifier.to_ports);
        for (side, select, any) in [
            (Side::From, (|rule| &rule.from) as fn(&config::Rule) -> &Addresses, table.classifier.any_from),
            (Side::To, |rule| &rule.to, table.classifier.any_to),
        ] {
            let asked: Vec<&Addresses> = list.iter().map(select).collect();
            let prefixes = prefixes(&asked, &config.sets, &any);
            table.prefixes.extend(prefixes.into_iter().map(|(prefix, set)| (side, prefix, set)));
        }
        table.interfaces = list.iter().map(|rule| rule.interfaces.clone()).collect();
        table
    }

    /// Enters a rule by everything but addresses and ports.
    fn enter(&mut self, number: usize, rule: &config::Rule, identity: u64, config: &Config, indices: &Indices) {
        let policy_of = |policy: usize| config.policies.get(policy).and_then(|policy| indices.policy(&policy.name));
        let uplink_of = |uplink: usize| {
            let index = config.uplinks.get(uplink).and_then(|uplink| indices.get(&uplink.name));
            index.and_then(|index| u8::try_from(policy::of_uplink(index)).ok())
        };
        let (action, policy) = match rule.action {
            Use::Policy(policy) => (Action::Policy, policy_of(policy)),
            Use::Uplink(uplink) => (Action::Policy, uplink_of(uplink)),
            Use::Direct => (Action::Direct, None),
            Use::Reject => (Action::Reject, None),
            Use::Drop => (Action::Drop, None),
        };
        self.list.rules[number] = Rule {
            action: action as u8,
            policy: policy.unwrap_or_default(),
            counter: indices.counter(identity).unwrap_or(rules::NO_RULE_COUNTER),
            number: u16::try_from(number).unwrap_or(rules::NO_RULE),
            reserved: 0,
        };
        self.list.identities[number] = identity;
        self.flags |= rules::HAS_RULES;
        let classifier = &mut self.classifier;
        let mut any = |asks: bool, set: &mut RuleSet, flag: u32| match asks {
            true => self.flags |= flag,
            false => set.insert(number),
        };
        let asks_ports = !rule.from_ports.is_empty() || !rule.to_ports.is_empty();
        any(!rule.from.is_any(), &mut classifier.any_from, rules::ASKS_FROM);
        any(!rule.to.is_any(), &mut classifier.any_to, rules::ASKS_TO);
        any(!rule.interfaces.is_empty(), &mut classifier.any_interface, rules::ASKS_INTERFACE);
        any(asks_ports, &mut classifier.any_ports, 0);
        let ported = [wire::PROTOCOL_TCP, wire::PROTOCOL_UDP];
        for (protocol, set) in (0..=u8::MAX).zip(&mut classifier.protocols) {
            let asked = rule.protocols.is_empty() || rule.protocols.contains(&protocol);
            if asked && (!asks_ports || ported.contains(&protocol)) {
                set.insert(number);
            }
        }
        for (dscp, set) in (0..=u8::MAX).zip(&mut classifier.dscp) {
            if rule.dscp.is_empty() || rule.dscp.contains(&dscp) {
                set.insert(number);
            }
        }
    }

    /// The rules that agree with an interface; `None`: those that ask for none.
    pub fn of_interface(&self, name: &str) -> Option<RuleSet> {
        let mut set = self.classifier.any_interface;
        let asking = self.interfaces.iter().enumerate();
        for (number, _) in asking.filter(|(_, patterns)| patterns.iter().any(|pattern| pattern.matches(name))) {
            set.insert(number);
        }
        (set != self.classifier.any_interface).then_some(set)
    }
}

/// By which each rule's counter is known: a hash of its name or, without one, of what it says, in which everything goes by name. Rules that
/// are alike are told apart by their order. Never zero.
pub fn identities(config: &Config) -> Vec<u64> {
    let mut alike: HashMap<String, u32> = HashMap::new();
    let identity = |rule: &config::Rule| {
        let said = rule.name.as_ref().map_or_else(|| description(rule, config), |name| format!("name {name}"));
        let nth = alike.entry(said.clone()).or_default();
        *nth += 1;
        let mut hasher = DefaultHasher::new();
        (said, *nth).hash(&mut hasher);
        hasher.finish().max(1)
    };
    config.rules.iter().take(MAX_RULES).map(identity).collect()
}

/// What a rule says, in a form of its own.
fn description(rule: &config::Rule, config: &Config) -> String {
    let mut text = String::new();
    let set = |index: &usize| config.sets.get(*index).map_or("", |set| set.name.as_str());
    for (which, addresses) in [("from", &rule.from), ("to", &rule.to)] {
        let sets: Vec<&str> = addresses.sets.iter().map(set).collect();
        let _ = write!(text, "{which} {:?} {sets:?} ", addresses.prefixes);
    }
    let _ = write!(text, "{:?} {:?} {:?} ", rule.protocols, rule.from_ports, rule.to_ports);
    let _ = write!(text, "{:?} {:?} ", rule.interfaces, rule.dscp);
    let _ = match rule.action {
        Use::Policy(index) => write!(text, "policy {:?}", config.policies.get(index).map(|policy| &policy.name)),
        Use::Uplink(index) => write!(text, "uplink {:?}", config.uplinks.get(index).map(|uplink| &uplink.name)),
        other => write!(text, "{other:?}"),
    };
    text
}

/// Sorts ports into classes: those that the same rules ask for. `asked`: the ports that each rule asks for; none: any.
fn classify(asked: &[&Vec<PortRange>], classes: &mut [u16; 1 << 16], sets: &mut [RuleSet; PORT_CLASSES]) {
    let mut starts = vec![0u32];
    for range in asked.iter().copied().flatten() {
        starts.extend([u32::from(range.first), u32::from(range.last) + 1]);
    }
    starts.retain(|start| *start <= u32::from(u16::MAX));
    starts.sort_unstable();
    starts.dedup();
    let mut known: HashMap<RuleSet, u16> = HashMap::new();
    for (at, &start) in starts.iter().enumerate() {
        let port = u16::try_from(start).unwrap_or(u16::MAX);
        let mut set = RuleSet::NONE;
        for (number, ranges) in asked.iter().enumerate() {
            if ranges.is_empty() || ranges.iter().any(|range| range.contains(port)) {
                set.insert(number);
            }
        }
        let next = u16::try_from(known.len()).unwrap_or(u16::MAX);
        let class = *known.entry(set).or_insert(next);
        if let Some(place) = sets.get_mut(usize::from(class)) {
            *place = set;
        }
        let end = starts.get(at + 1).map_or(1 << 16, |next| *next as usize);
        classes[start as usize..end].fill(class);
    }
}

/// The rules that agree with the addresses of each prefix that any rule asks for. `any`: those that ask for no address.
fn prefixes(asked: &[&Addresses], sets: &[config::Set], any: &RuleSet) -> Vec<(Ipv4Net, RuleSet)> {
    let mut own: BTreeMap<(Ipv4Addr, u8), RuleSet> = BTreeMap::new();
    let mut enter = |prefix: &Ipv4Net, rules: &RuleSet| {
        let set = own.entry((prefix.network(), prefix.prefix_len())).or_insert(RuleSet::NONE);
        *set = set.or(rules);
    };
    let mut of_sets: BTreeMap<usize, RuleSet> = BTreeMap::new();
    for (number, addresses) in asked.iter().enumerate() {
        let mut rule = RuleSet::NONE;
        rule.insert(number);
        addresses.prefixes.iter().for_each(|prefix| enter(prefix, &rule));
        for &set in &addresses.sets {
            of_sets.entry(set).or_insert(RuleSet::NONE).insert(number);
        }
    }
    for (set, rules) in of_sets {
        sets.get(set).into_iter().flat_map(|set| set.prefixes.iter()).for_each(|prefix| enter(prefix, &rules));
    }
    // In this order a prefix follows those that contain it, the longest last.
    let mut containing: Vec<(Ipv4Net, RuleSet)> = Vec::new();
    let mut found = Vec::with_capacity(own.len());
    for ((address, len), rules) in own {
        let Ok(prefix) = Ipv4Net::new(address, len) else { continue };
        while containing.last().is_some_and(|(outer, _)| !outer.contains(&prefix)) {
            containing.pop();
        }
        let outer = containing.last().map_or(any, |(_, set)| set);
        let set = rules.or(outer);
        if set != *outer {
            found.push((prefix, set));
            containing.push((prefix, set));
        }
    }
    found
}

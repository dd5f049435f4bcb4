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
        table.list.fingerprint = table.fingerprint();
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
        for (protocol, set) in (0..=u8::MAX).zip(&mut classifier.protocols) {
            let asked = rule.protocols.is_empty() || rule.protocols.contains(&protocol);
            if asked && (!asks_ports || wire::is_tcp_or_udp(protocol)) {
                set.insert(number);
            }
        }
        for (dscp, set) in (0..=u8::MAX).zip(&mut classifier.dscp) {
            if rule.dscp.is_empty() || rule.dscp.contains(&dscp) {
                set.insert(number);
            }
        }
    }

    /// A hash of it all.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytemuck::bytes_of(self.list.as_ref()));
        hasher.write(bytemuck::bytes_of(self.classifier.as_ref()));
        hasher.write_u32(self.flags);
        for (side, prefix, set) in &self.prefixes {
            (*side as u32, prefix, set).hash(&mut hasher);
        }
        hasher.finish()
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
        let end = starts.get(at + 1).map_or(1 << 16, |next| *next);
        (start..end).for_each(|port| classes[usize::from(port_index(port))] = class);
    }
}

/// Where a port's class is.
fn port_index(port: u32) -> u16 {
    u16::try_from(port).unwrap_or_default().to_be()
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

#[cfg(test)]
mod tests {
    use mh_common::rules::Fields;
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::config::{Set, parse};

    const CONFIG: &str = "
        lan = [\"lan*\"]
        [policy.other]
        [policy.third]
        [uplink.a]
        interface = \"wan0\"
        [uplink.b]
        interface = \"wan1\"
    ";

    #[derive(Debug, Clone)]
    struct Flow {
        src: Ipv4Addr,
        dst: Ipv4Addr,
        protocol: u8,
        dscp: u8,
        sport: u16,
        dport: u16,
        interface: &'static str,
    }

    /// What the rules say, read as people read them.
    fn first_by_reading(config: &Config, flow: &Flow) -> usize {
        let agrees = |rule: &config::Rule| {
            let has = |addresses: &Addresses, address: Ipv4Addr| {
                let sets = addresses.sets.iter().flat_map(|set| config.sets[*set].prefixes.iter());
                addresses.is_any() || addresses.prefixes.iter().chain(sets).any(|prefix| prefix.contains(&address))
            };
            let ports = |ranges: &[PortRange], port: u16| {
                ranges.is_empty() || [6, 17].contains(&flow.protocol) && ranges.iter().any(|range| range.contains(port))
            };
            has(&rule.from, flow.src)
                && has(&rule.to, flow.dst)
                && (rule.protocols.is_empty() || rule.protocols.contains(&flow.protocol))
                && (rule.dscp.is_empty() || rule.dscp.contains(&flow.dscp))
                && (rule.interfaces.is_empty() || rule.interfaces.iter().any(|pattern| pattern.matches(flow.interface)))
                && ports(&rule.from_ports, flow.sport)
                && ports(&rule.to_ports, flow.dport)
        };
        config.rules.iter().position(agrees).unwrap_or(MAX_RULES)
    }

    /// What the tables say, looked up as the datapath does.
    fn first_by_tables(table: &RuleTable, flow: &Flow) -> usize {
        let classifier = &table.classifier;
        let longest = |side: Side, address: Ipv4Addr, any: RuleSet| {
            let of_side = table.prefixes.iter().filter(|(s, prefix, _)| *s == side && prefix.contains(&address));
            of_side.max_by_key(|(_, prefix, _)| prefix.prefix_len()).map_or(any, |(_, _, set)| *set)
        };
        let interface = table.of_interface(flow.interface).unwrap_or(classifier.any_interface);
        let from = longest(Side::From, flow.src, classifier.any_from);
        let to = longest(Side::To, flow.dst, classifier.any_to);
        let (sport, dport) = (flow.sport.to_be(), flow.dport.to_be());
        let fields = Fields { protocol: flow.protocol, tos: flow.dscp << 2, sport, dport };
        classifier.first(&fields, &interface, &from, &to)
    }

    fn prefix() -> impl Strategy<Value = Ipv4Net> {
        // Few bits differ, so that prefixes contain each other and addresses fall into them.
        (
            select(&[0u32, 0x0a00_0000, 0x0a01_0000, 0x0a01_0100, 0x0a01_0101, 0xc000_0201]),
            select(&[0, 7, 8, 15, 16, 24, 31, 32]),
        )
            .prop_map(|(address, len)| Ipv4Net::new(Ipv4Addr::from_bits(address), len).unwrap().trunc())
    }

    fn addresses() -> impl Strategy<Value = Addresses> {
        let prefixes = prop::collection::vec(prefix(), 0..3);
        (prefixes, prop::collection::vec(0..3usize, 0..2)).prop_map(|(prefixes, sets)| Addresses { prefixes, sets })
    }

    fn ports() -> impl Strategy<Value = Vec<PortRange>> {
        let range = (1..12u16, 0..5u16).prop_map(|(first, more)| PortRange { first, last: first + more });
        prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(range, 1..3), 1 => Just(vec![PortRange { first: 1, last: 65535 }])]
    }

    fn rule() -> impl Strategy<Value = config::Rule> {
        const PROTOCOLS: &[&[u8]] = &[&[], &[6], &[17], &[6, 17], &[1], &[47]];
        const INTERFACES: &[&[&str]] = &[&[], &["lan0"], &["lan*"], &["lan1", "lan2"]];
        const DSCP: &[&[u8]] = &[&[], &[], &[46], &[0, 8]];
        let (protocols, interfaces, dscp) = (select(PROTOCOLS), select(INTERFACES), select(DSCP));
        let action = prop_oneof![
            (0..3usize).prop_map(Use::Policy),
            (0..2usize).prop_map(Use::Uplink),
            Just(Use::Direct),
            Just(Use::Drop)
        ];
        (addresses(), addresses(), protocols, (ports(), ports()), interfaces, dscp, action).prop_map(
            |(from, to, protocols, (from_ports, to_ports), interfaces, dscp, action)| config::Rule {
                name: None,
                from,
                to,
                protocols: protocols.to_vec(),
                from_ports,
                to_ports,
                interfaces: interfaces.iter().map(|name| name.parse().unwrap()).collect(),
                dscp: dscp.to_vec(),
                action,
            },
        )
    }

    fn configs() -> impl Strategy<Value = Config> {
        let sets = prop::collection::vec(prop::collection::vec(prefix(), 0..4), 3);
        (prop::collection::vec(rule(), 0..80), sets).prop_map(|(rules, sets)| {
            let mut config = parse(CONFIG).unwrap().config;
            config.rules = rules;
            let named = |(number, prefixes): (usize, Vec<Ipv4Net>)| Set {
                name: format!("s{number}"),
                prefixes: prefixes.into(),
                file: None,
            };
            config.sets = sets.into_iter().enumerate().map(named).collect();
            config
        })
    }

    fn flow() -> impl Strategy<Value = Flow> {
        let address = || {
            select(&[0x0a00_0001u32, 0x0a01_0001, 0x0a01_0101, 0x0a01_0100, 0x0b00_0000, 0xc000_0201, 0xffff_ffff])
                .prop_map(Ipv4Addr::from_bits)
        };
        let port = || prop_oneof![0..18u16, Just(65535u16)];
        let interface = select(&["lan0", "lan1", "lan2", "lan9", "wan0"]);
        (address(), address(), select(&[6u8, 17, 1, 47, 255]), select(&[0u8, 8, 46, 63]), port(), port(), interface)
            .prop_map(|(src, dst, protocol, dscp, sport, dport, interface)| Flow {
                src,
                dst,
                protocol,
                dscp,
                sport,
                dport,
                interface,
            })
    }

    fn table(config: &Config) -> RuleTable {
        let mut indices = Indices::default();
        indices.assign(config);
        RuleTable::new(config, &indices)
    }

    proptest! {
        #[test]
        fn tables_say_what_the_rules_say(config in configs(), flows in prop::collection::vec(flow(), 100)) {
            let table = table(&config);
            for flow in flows {
                prop_assert_eq!(first_by_tables(&table, &flow), first_by_reading(&config, &flow), "{:?}", flow);
            }
        }

        #[test]
        fn rules_that_stay_keep_their_counters(before in configs(), after in configs()) {
            let mut indices = Indices::default();
            indices.assign(&before);
            let counters = |config: &Config, indices: &Indices| -> BTreeMap<u64, u16> {
                identities(config).into_iter().map(|identity| (identity, indices.counter(identity).unwrap())).collect()
            };
            let was = counters(&before, &indices);
            prop_assert_eq!(was.len(), before.rules.len());
            prop_assert_eq!(was.values().collect::<std::collections::BTreeSet<_>>().len(), was.len());
            // As another controller does that adopts them.
            let adopted = Indices::adopt([], [], Some(&RuleTable::new(&before, &indices).list));
            prop_assert_eq!(counters(&before, &adopted), was.clone());
            let mut config = after;
            config.rules.extend(before.rules.into_iter().rev());
            config.rules.truncate(MAX_RULES);
            config.sets = before.sets;
            indices.assign(&config);
            let is = counters(&config, &indices);
            prop_assert!(was.iter().all(|(identity, counter)| is.get(identity).is_none_or(|is| is == counter)));
        }
    }

    #[test]
    fn a_rules_record_says_what_becomes_of_its_flows() {
        let text = format!(
            "{CONFIG}\n[[rule]]\nuse = \"policy:third\"\n[[rule]]\nuse = \"uplink:b\"\n[[rule]]\nuse = \"direct\"\n[[rule]]\nuse = \"reject\"\n\
             [[rule]]\nuse = \"drop\"\n"
        );
        let table = table(&parse(&text).unwrap().config);
        let records = table.list.rules.map(|rule| (rule.action, rule.policy, rule.number));
        assert_eq!(records[..5], [(0, 2, 0), (0, 65, 1), (1, 0, 2), (2, 0, 3), (3, 0, 4)]);
        assert!(table.list.rules[5..].iter().all(|rule| *rule == Rule::NONE));
        assert_eq!(table.flags, rules::HAS_RULES);
    }

    #[test]
    fn what_no_prefix_adds_is_left_out() {
        let mut config = parse(CONFIG).unwrap().config;
        let text =
            format!("{CONFIG}\n[[rule]]\nto = [\"10.0.0.0/8\", \"10.1.0.0/16\", \"0.0.0.0/0\"]\nuse = \"drop\"\n");
        config.rules = parse(&text).unwrap().config.rules;
        assert_eq!(table(&config).prefixes.len(), 1);
    }
}

//! From what is in force and what should be to an ordered list of actions.
//!
//! Pure: `plan(in force, desired)` yields the least set of actions, in an order in which every prefix of them leaves a working
//! datapath: an uplink that can't be used loses its health bit first, tables are filled before interfaces are attached, an
//! interface is detached before its record goes, and what can't be taken back comes last.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use mh_common::{abi, rules::RuleSet};

use crate::core::{Desired, ForwardedPort, InsidePort, ManagedInterface, PolicyRecord, Routing, RuleTable};

/// One step. Each is idempotent.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write health bits and neighbour epoch.
    SetLive {
        /// One bit per uplink that can be used.
        healthy: u64,
        /// The neighbour epoch.
        neighbour_epoch: u32,
    },
    /// Write the settings; version and seed stay as they are.
    SetSettings(abi::Settings),
    /// Write an uplink's outside addresses.
    SetPool(u8, abi::Pool),
    /// Note an outside address, and the uplinks that have it, one bit each.
    SetOutside(Ipv4Addr, u32),
    /// Forget it.
    RemoveOutside(Ipv4Addr),
    /// Forward a port to an inside host.
    SetForward(ForwardedPort, InsidePort),
    /// Forward it no more.
    RemoveForward(ForwardedPort),
    /// Have the kernel know a gateway's Ethernet address, on this interface.
    KeepGateway(u32, Ipv4Addr),
    /// Let the kernel forget it, if nobody else needs it.
    LeaveGateway(u32, Ipv4Addr),
    /// Have the kernel's routing act on mh's marks.
    SetRouting(Routing),
    /// Write an uplink.
    SetUplink(u8, abi::Uplink),
    /// Free an index.
    RemoveUplink(u8),
    /// Fill a policy's slots anew and put them in force.
    SetPolicy(u8, PolicyRecord),
    /// Free an index of a policy.
    RemovePolicy(u8),
    /// Put these rules in force in place of all others.
    SetRules {
        /// The rules.
        rules: Arc<RuleTable>,
        /// Those that agree with each interface that any asks for.
        interfaces: BTreeMap<u32, RuleSet>,
    },
    /// Have an interface agree with these rules; `None`: with those that ask for none.
    SetRuleInterface(u32, Option<RuleSet>),
    /// Note an own or broadcast address.
    AddLocal(Ipv4Addr),
    /// Forget it.
    RemoveLocal(Ipv4Addr),
    /// Write an interface's record and run the programs on it.
    Attach(u32, ManagedInterface),
    /// Stop the programs on an interface and remove its record.
    Detach(u32),
}

/// The actions that lead from `in_force` (`None`: nothing is known to be in force) to `desired`.
pub fn plan(in_force: Option<&Desired>, desired: &Desired) -> Vec<Action> {
    let mut actions = Vec::new();
    let live = |d: &Desired| Action::SetLive { healthy: d.healthy, neighbour_epoch: d.neighbour_epoch };
    let settings = |d: &Desired| Action::SetSettings(d.settings);
    // By index: those that have to be written still.
    let mut policies: BTreeMap<u8, &PolicyRecord> =
        desired.policies.iter().map(|(index, policy)| (*index, policy)).collect();
    policies.retain(|index, policy| in_force.and_then(|d| d.policies.get(index)) != Some(policy));

    // Indices that serve another uplink than before: the flows, bindings and forwards of the former one go.
    let renamed: u64 = in_force.map_or(0, |before| {
        let is_another = |(index, uplink): &(&u8, &abi::Uplink)| {
            desired.uplinks.get(index).is_some_and(|now| now.name != uplink.name)
        };
        before.uplinks.iter().filter(is_another).map(|(index, _)| 1 << index).sum()
    });
    let is_renamed = |index: u8| renamed >> index & 1 != 0;

    // Health that is lost comes first of all, health that is gained after what it needs.
    let mut live_now = in_force.map(live);
    if let Some(before) = in_force {
        let healthy = before.healthy & desired.healthy & !renamed;
        // When a tier is lost as a whole the next one must not come after a gap in which there is none.
        policies.retain(|&index, policy| {
            let members = before.policies.get(&index).map_or(0, |policy| u64::from(policy.members));
            let lost = members & before.healthy != 0 && members & healthy == 0;
            let next_tier = lost && u64::from(policy.members) & healthy != 0;
            if next_tier {
                actions.push(Action::SetPolicy(index, (*policy).clone()));
            }
            !next_tier
        });
        if healthy != before.healthy {
            live_now = Some(Action::SetLive { healthy, neighbour_epoch: before.neighbour_epoch });
            actions.extend(live_now.clone());
        }
        for &ifindex in before.interfaces.keys().filter(|i| !desired.interfaces.contains_key(i)) {
            actions.push(Action::Detach(ifindex));
        }
    }
    for (&index, uplink) in &desired.uplinks {
        let before = in_force.and_then(|d| d.uplinks.get(&index));
        if is_renamed(index) {
            actions.push(Action::RemoveUplink(index));
        }
        if before != Some(uplink) {
            actions.push(Action::SetUplink(index, *uplink));
        }
    }
    for (&index, pool) in &desired.pools {
        if is_renamed(index) || in_force.and_then(|d| d.pools.get(&index)) != Some(pool) {
            actions.push(Action::SetPool(index, *pool));
        }
    }
    if in_force.map(settings) != Some(settings(desired)) {
        actions.push(settings(desired));
    }
    if in_force.map(|d| &d.routing) != Some(&desired.routing) {
        actions.push(Action::SetRouting(desired.routing.clone()));
    }
    for &(ifindex, gateway) in in_force.iter().flat_map(|d| &d.gateways).filter(|g| !desired.gateways.contains(g)) {
        actions.push(Action::LeaveGateway(ifindex, gateway));
    }
    for &(ifindex, gateway) in &desired.gateways {
        let which = (ifindex, gateway);
        let newly_sought = desired.sought.contains(&which) && !in_force.is_some_and(|d| d.sought.contains(&which));
        if newly_sought || !in_force.is_some_and(|d| d.gateways.contains(&which)) {
            actions.push(Action::KeepGateway(ifindex, gateway));
        }
    }
    for &port in in_force.iter().flat_map(|d| d.forwards.keys()).filter(|p| !desired.forwards.contains_key(p)) {
        actions.push(Action::RemoveForward(port));
    }
    for (&port, &to) in &desired.forwards {
        let before = in_force.and_then(|d| d.forwards.get(&port)).filter(|_| !is_renamed(port.uplink));
        if before.is_some_and(|before| *before != to) {
            actions.push(Action::RemoveForward(port));
        }
        if before != Some(&to) {
            actions.push(Action::SetForward(port, to));
        }
    }
    for (&address, &uplinks) in &desired.outside {
        if in_force.and_then(|d| d.outside.get(&address)) != Some(&uplinks) {
            actions.push(Action::SetOutside(address, uplinks));
        }
    }
    for &address in in_force.iter().flat_map(|d| d.outside.keys()).filter(|a| !desired.outside.contains_key(a)) {
        actions.push(Action::RemoveOutside(address));
    }
    for &address in &desired.local {
        if !in_force.is_some_and(|d| d.local.contains(&address)) {
            actions.push(Action::AddLocal(address));
        }
    }
    for &address in in_force.iter().flat_map(|d| &d.local).filter(|a| !desired.local.contains(a)) {
        actions.push(Action::RemoveLocal(address));
    }
    actions.extend(policies.into_iter().map(|(index, policy)| Action::SetPolicy(index, policy.clone())));
    if in_force.is_none_or(|d| d.rules != desired.rules) {
        let (rules, interfaces) = (desired.rules.clone(), desired.rule_interfaces.clone());
        actions.push(Action::SetRules { rules, interfaces });
    } else if let Some(before) = in_force {
        let both: BTreeSet<u32> =
            before.rule_interfaces.keys().chain(desired.rule_interfaces.keys()).copied().collect();
        for ifindex in both {
            let rules = desired.rule_interfaces.get(&ifindex);
            if before.rule_interfaces.get(&ifindex) != rules {
                actions.push(Action::SetRuleInterface(ifindex, rules.copied()));
            }
        }
    }
    if live_now != Some(live(desired)) {
        actions.push(live(desired));
    }
    for (&ifindex, interface) in &desired.interfaces {
        if in_force.and_then(|d| d.interfaces.get(&ifindex)) != Some(interface) {
            actions.push(Action::Attach(ifindex, interface.clone()));
        }
    }
    // Last, since it can't be taken back: flows go with the uplink, and with the policy the sources that keep theirs.
    for &index in in_force.iter().flat_map(|d| d.policies.keys()).filter(|i| !desired.policies.contains_key(i)) {
        actions.push(Action::RemovePolicy(index));
    }
    for &index in in_force.iter().flat_map(|d| d.uplinks.keys()).filter(|i| !desired.uplinks.contains_key(i)) {
        actions.push(Action::RemoveUplink(index));
    }
    actions
}

/// The actions that lead back to `in_force` after some of those of [`plan`], `done`, towards `desired`.
pub fn back(in_force: &Desired, desired: &Desired, done: &[Action]) -> Vec<Action> {
    // Flows of an uplink whose index was to serve another one, and does not yet, stay.
    let lost = |index: &u8| !in_force.uplinks.contains_key(index) || done.contains(&Action::RemoveUplink(*index));
    let mut actions = plan(Some(desired), in_force);
    actions.retain(|action| !matches!(action, Action::RemoveUplink(index) if !lost(index)));
    actions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config,
        core::{Hook, Indices, Way},
    };
    use mh_common::rules::{NO_RULE, Rule};

    /// What the kernel would hold after actions.
    #[derive(Debug, Default, PartialEq)]
    struct Model {
        healthy: u64,
        neighbour_epoch: u32,
        settings: abi::Settings,
        pools: BTreeMap<u8, abi::Pool>,
        outside: BTreeMap<Ipv4Addr, u32>,
        forwards: BTreeMap<ForwardedPort, InsidePort>,
        routing: Option<Routing>,
        uplinks: BTreeMap<u8, abi::Uplink>,
        policies: BTreeMap<u8, PolicyRecord>,
        rules: Option<Arc<RuleTable>>,
        rule_interfaces: BTreeMap<u32, RuleSet>,
        local: BTreeSet<Ipv4Addr>,
        gateways: BTreeSet<(u32, Ipv4Addr)>,
        interfaces: BTreeMap<u32, ManagedInterface>,
    }

    impl Model {
        fn apply(&mut self, action: &Action) {
            match action.clone() {
                Action::SetLive { healthy, neighbour_epoch } => {
                    (self.healthy, self.neighbour_epoch) = (healthy, neighbour_epoch);
                }
                Action::SetSettings(settings) => self.settings = settings,
                Action::SetPool(index, pool) => drop(self.pools.insert(index, pool)),
                Action::SetOutside(address, uplinks) => drop(self.outside.insert(address, uplinks)),
                Action::RemoveOutside(address) => drop(self.outside.remove(&address)),
                Action::SetForward(port, to) => drop(self.forwards.insert(port, to)),
                Action::RemoveForward(port) => drop(self.forwards.remove(&port)),
                Action::SetRouting(routing) => self.routing = Some(routing),
                Action::KeepGateway(ifindex, gateway) => drop(self.gateways.insert((ifindex, gateway))),
                Action::LeaveGateway(ifindex, gateway) => drop(self.gateways.remove(&(ifindex, gateway))),
                Action::SetUplink(index, uplink) => drop(self.uplinks.insert(index, uplink)),
                Action::RemoveUplink(index) => {
                    self.uplinks.remove(&index);
                    self.pools.remove(&index);
                    self.forwards.retain(|port, _| port.uplink != index);
                }
                Action::SetPolicy(index, policy) => drop(self.policies.insert(index, policy)),
                Action::RemovePolicy(index) => drop(self.policies.remove(&index)),
                Action::SetRules { rules, interfaces } => {
                    self.rule_interfaces = interfaces;
                    self.rules = Some(rules);
                }
                Action::SetRuleInterface(ifindex, Some(rules)) => drop(self.rule_interfaces.insert(ifindex, rules)),
                Action::SetRuleInterface(ifindex, None) => drop(self.rule_interfaces.remove(&ifindex)),
                Action::AddLocal(address) => drop(self.local.insert(address)),
                Action::RemoveLocal(address) => drop(self.local.remove(&address)),
                Action::Attach(ifindex, interface) => drop(self.interfaces.insert(ifindex, interface)),
                Action::Detach(ifindex) => drop(self.interfaces.remove(&ifindex)),
            }
            // At every step a usable uplink has a record.
            let recorded: u64 = self.uplinks.keys().map(|index| 1 << index).sum();
            assert_eq!(self.healthy & !recorded, 0, "after {action:?}");
            // And every policy that a rule names is there.
            for rule in self.rules.iter().flat_map(|rules| &rules.list.rules).filter(|rule| rule.number != NO_RULE) {
                assert!(self.policies.contains_key(&rule.policy), "after {action:?}");
            }
        }

        fn of(desired: &Desired) -> Self {
            let mut model = Self::default();
            plan(None, desired).iter().for_each(|action| model.apply(action));
            model
        }
    }

    const CONFIG: &str = "lan = [\"lan0\"]\n[uplink.a]\ninterface = \"wan0\"\n";

    fn record() -> PolicyRecord {
        PolicyRecord {
            name: [0; 32],
            weights: [0; abi::MAX_UPLINKS],
            members: 0,
            eligible: 0,
            hash_mode: mh_common::hash::HashMode::Flow,
            sticky: 0,
        }
    }

    fn members(desired: &Desired, policy: u8) -> u64 {
        desired.policies.get(&policy).map_or(0, |policy| u64::from(policy.members))
    }

    fn desired() -> impl Strategy<Value = Desired> {
        let uplinks = prop::collection::btree_map(0u8..4, (1u32..4, any::<bool>(), 0u32..3, 1..3_u8), 0..4);
        let interfaces = prop::collection::btree_map(1u32..6, any::<bool>(), 0..5);
        let local = prop::collection::btree_set((0u8..4).prop_map(|n| Ipv4Addr::new(192, 0, 2, n)), 0..4);
        let policies = prop::collection::btree_map(1u8..4, any::<u32>(), 0..3);
        let rule_interfaces = prop::collection::btree_map(1u32..4, 1u64..3, 0..3);
        let rest = (policies, rule_interfaces, 0u32..3);
        (uplinks, interfaces, local, rest).prop_map(
            |(uplinks, interfaces, local, (policies, rule_interfaces, epoch))| {
                let mut rules = RuleTable::new(&config::parse(CONFIG).unwrap().config, &Indices::default());
                for (number, policy) in policies.keys().enumerate() {
                    let number_of = u16::try_from(number).unwrap();
                    rules.list.rules[number] = Rule { policy: *policy, number: number_of, ..Rule::NONE };
                }
                let mut desired = Desired {
                    uplinks: BTreeMap::new(),
                    views: Vec::new(),
                    policies: policies
                        .into_iter()
                        .map(|(index, seed)| (index, PolicyRecord { sticky: seed, ..record() }))
                        .collect(),
                    policy_views: Vec::new(),
                    rules: Arc::new(rules),
                    rule_interfaces: rule_interfaces
                        .into_iter()
                        .map(|(i, bits)| (i, RuleSet([bits, 0, 0, 0])))
                        .collect(),
                    healthy: 0,
                    settings: abi::Settings::default(),
                    pools: BTreeMap::new(),
                    outside: BTreeMap::new(),
                    forwards: BTreeMap::new(),
                    routing: Routing { mark_mask: 0xff, uplinks: BTreeMap::new(), spare: None },
                    interfaces: BTreeMap::new(),
                    local,
                    gateways: BTreeSet::new(),
                    sought: BTreeSet::new(),
                    neighbour_epoch: epoch,
                };
                let mut default = record();
                for (index, (ifindex, healthy, weight, name)) in uplinks {
                    desired.uplinks.insert(index, abi::Uplink { ifindex, name: [name; 32], ..abi::Uplink::default() });
                    desired.healthy |= u64::from(healthy) << index;
                    default.members |= u32::from(healthy && weight > 0) << index;
                    default.weights[usize::from(index)] = weight;
                    let address = Ipv4Addr::new(198, 51, 100, u8::try_from(weight).unwrap());
                    desired.pools.insert(index, abi::Pool { total: weight, ..abi::Pool::default() });
                    *desired.outside.entry(address).or_default() |= 1 << index;
                    let port = ForwardedPort { uplink: index, protocol: 6, address, port: 80 };
                    desired.forwards.insert(port, InsidePort { address, port: u16::try_from(ifindex).unwrap() });
                    desired.settings.uplinks = u32::from(index) + 1;
                    desired.routing.uplinks.insert(index, Way { ifindex, gateway: None });
                    desired.gateways.insert((ifindex, address));
                }
                desired.policies.insert(0, default);
                for (ifindex, lan) in interfaces {
                    let role = if lan { abi::ROLE_LAN } else { abi::ROLE_UPLINK };
                    let interface = abi::Interface { role, ..abi::Interface::default() };
                    let managed = ManagedInterface { name: format!("if{ifindex}"), interface, hook: Hook::Tc };
                    desired.interfaces.insert(ifindex, managed);
                }
                desired
            },
        )
    }

    proptest! {
        #[test]
        fn a_plan_leads_from_anything_to_what_is_desired(steps in prop::collection::vec(desired(), 1..5)) {
            let mut model = Model::of(&steps[0]);
            for pair in steps.windows(2) {
                plan(Some(&pair[0]), &pair[1]).iter().for_each(|action| model.apply(action));
                prop_assert_eq!(&model, &Model::of(&pair[1]));
            }
        }

        #[test]
        fn nothing_is_done_twice(desired in desired()) {
            prop_assert_eq!(plan(Some(&desired), &desired), []);
        }

        #[test]
        fn lost_health_comes_first(before in desired(), after in desired()) {
            let lost = before.healthy & !after.healthy;
            let mut actions = plan(Some(&before), &after).into_iter();
            if lost != 0 {
                let mut first = actions.next();
                // But for the policy, if without it no uplink would be left for new flows meanwhile.
                while matches!(first, Some(Action::SetPolicy(index, _)) if members(&before, index) & after.healthy == 0) {
                    first = actions.next();
                }
                let cleared = matches!(first, Some(Action::SetLive { healthy, .. }) if healthy & lost == 0);
                prop_assert!(cleared);
            }
        }

        #[test]
        fn new_flows_find_an_uplink_at_every_step(before in desired(), after in desired()) {
            let mut model = Model::of(&before);
            // Those that are what they were, and well before and after.
            let same = |index: &u8| before.uplinks.get(index).map(|u| u.name) == after.uplinks.get(index).map(|u| u.name);
            let stay: u64 = after.uplinks.keys().filter(|index| same(index)).map(|index| 1 << index).sum();
            let stay = stay & before.healthy & after.healthy;
            let takes = |model: &Model| u64::from(model.policies[&0].members) & model.healthy != 0;
            if takes(&model) && members(&after, 0) & stay != 0 {
                for action in plan(Some(&before), &after) {
                    model.apply(&action);
                    prop_assert!(takes(&model), "after {:?}", action);
                }
            }
        }

        #[test]
        fn what_was_put_in_force_can_be_taken_back_half_way(before in desired(), after in desired(), done in 0..20_usize) {
            let mut model = Model::of(&before);
            let mut actions = plan(Some(&before), &after);
            actions.truncate(done);
            actions.iter().for_each(|action| model.apply(action));
            let back = back(&before, &after, &actions);
            back.iter().for_each(|action| model.apply(action));
            prop_assert_eq!(model, Model::of(&before));
            // No flow of an uplink that stays is lost on the way back.
            let lost = |action: &&Action| matches!(action, Action::RemoveUplink(index) if before.uplinks.contains_key(index));
            prop_assert!(back.iter().filter(lost).all(|action| actions.contains(action)));
        }
    }
}

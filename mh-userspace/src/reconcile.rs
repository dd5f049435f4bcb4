//! From what is in force and what should be to an ordered list of actions.
//!
//! Pure: `plan(in force, desired)` yields the least set of actions, in an order in which every prefix of them leaves a working
//! datapath: an uplink that can't be used loses its health bit first, tables are filled before interfaces are attached, an
//! interface is detached before its record goes, and what can't be taken back comes last.

use std::net::Ipv4Addr;

use mh_common::abi;

use crate::core::{Desired, ForwardedPort, InsidePort, ManagedInterface, Routing};

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
    /// Fill the default policy's slots anew and put them in force.
    SetPolicy {
        /// Weights by uplink.
        weights: [u32; abi::MAX_UPLINKS],
        /// One bit per uplink that may take flows.
        members: u64,
        /// [`mh_common::hash::HashMode`] as a number.
        hash_mode: u32,
    },
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
    let policy =
        |d: &Desired| Action::SetPolicy { weights: d.weights, members: d.members, hash_mode: d.hash_mode as u32 };
    let settings = |d: &Desired| Action::SetSettings(d.settings);
    let new_policy = in_force.map(policy) != Some(policy(desired));

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
    let mut next_tier = false;
    if let Some(before) = in_force {
        let healthy = before.healthy & desired.healthy & !renamed;
        // When a tier is lost as a whole the next one must not come after a gap in which there is none.
        next_tier = before.members & healthy == 0 && desired.members & healthy != 0;
        if next_tier {
            actions.push(policy(desired));
        }
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
    if new_policy && !next_tier {
        actions.push(policy(desired));
    }
    if live_now != Some(live(desired)) {
        actions.push(live(desired));
    }
    for (&ifindex, interface) in &desired.interfaces {
        if in_force.and_then(|d| d.interfaces.get(&ifindex)) != Some(interface) {
            actions.push(Action::Attach(ifindex, interface.clone()));
        }
    }
    // Last, since it can't be taken back: flows go with the uplink.
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
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::core::{Hook, Way};

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
        policy: Option<([u32; abi::MAX_UPLINKS], u64, u32)>,
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
                Action::SetPolicy { weights, members, hash_mode } => self.policy = Some((weights, members, hash_mode)),
                Action::AddLocal(address) => drop(self.local.insert(address)),
                Action::RemoveLocal(address) => drop(self.local.remove(&address)),
                Action::Attach(ifindex, interface) => drop(self.interfaces.insert(ifindex, interface)),
                Action::Detach(ifindex) => drop(self.interfaces.remove(&ifindex)),
            }
            // At every step a usable uplink has a record.
            let recorded: u64 = self.uplinks.keys().map(|index| 1 << index).sum();
            assert_eq!(self.healthy & !recorded, 0, "after {action:?}");
        }

        fn of(desired: &Desired) -> Self {
            let mut model = Self::default();
            plan(None, desired).iter().for_each(|action| model.apply(action));
            model
        }
    }

    fn desired() -> impl Strategy<Value = Desired> {
        let uplinks = prop::collection::btree_map(0u8..4, (1u32..4, any::<bool>(), 0u32..3, 1..3_u8), 0..4);
        let interfaces = prop::collection::btree_map(1u32..6, any::<bool>(), 0..5);
        let local = prop::collection::btree_set((0u8..4).prop_map(|n| Ipv4Addr::new(192, 0, 2, n)), 0..4);
        (uplinks, interfaces, local, 0u32..3).prop_map(|(uplinks, interfaces, local, neighbour_epoch)| {
            let mut desired = Desired {
                uplinks: BTreeMap::new(),
                views: Vec::new(),
                weights: [0; abi::MAX_UPLINKS],
                members: 0,
                healthy: 0,
                hash_mode: mh_common::hash::HashMode::Flow,
                settings: abi::Settings::default(),
                pools: BTreeMap::new(),
                outside: BTreeMap::new(),
                forwards: BTreeMap::new(),
                routing: Routing { mark_mask: 0xff, uplinks: BTreeMap::new(), spare: None },
                interfaces: BTreeMap::new(),
                local,
                gateways: BTreeSet::new(),
                sought: BTreeSet::new(),
                neighbour_epoch,
            };
            for (index, (ifindex, healthy, weight, name)) in uplinks {
                desired.uplinks.insert(index, abi::Uplink { ifindex, name: [name; 32], ..abi::Uplink::default() });
                desired.healthy |= u64::from(healthy) << index;
                desired.members |= u64::from(healthy && weight > 0) << index;
                desired.weights[usize::from(index)] = weight;
                let address = Ipv4Addr::new(198, 51, 100, u8::try_from(weight).unwrap());
                desired.pools.insert(index, abi::Pool { total: weight, ..abi::Pool::default() });
                *desired.outside.entry(address).or_default() |= 1 << index;
                let port = ForwardedPort { uplink: index, protocol: 6, address, port: 80 };
                desired.forwards.insert(port, InsidePort { address, port: u16::try_from(ifindex).unwrap() });
                desired.settings.uplinks = u32::from(index) + 1;
                desired.routing.uplinks.insert(index, Way { ifindex, gateway: None });
                desired.gateways.insert((ifindex, address));
            }
            for (ifindex, lan) in interfaces {
                let role = if lan { abi::ROLE_LAN } else { abi::ROLE_UPLINK };
                let interface = abi::Interface { role, ..abi::Interface::default() };
                let managed = ManagedInterface { name: format!("if{ifindex}"), interface, hook: Hook::Tc };
                desired.interfaces.insert(ifindex, managed);
            }
            desired
        })
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
                if before.members & after.healthy == 0 && matches!(first, Some(Action::SetPolicy { .. })) {
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
            let takes = |model: &Model| model.policy.is_some_and(|(_, members, _)| members & model.healthy != 0);
            if takes(&model) && after.members & stay != 0 {
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

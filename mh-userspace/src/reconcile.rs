//! From what is in force and what should be to an ordered list of actions.
//!
//! Pure: `plan(in force, desired)` yields the least set of actions, in an order in which every prefix of them leaves a working
//! datapath: an uplink that can't be used loses its health bit first, tables are filled before interfaces are attached, and an
//! interface is detached before its record goes.

use std::net::Ipv4Addr;

use mh_common::abi;

use crate::{
    core::{Desired, ForwardedPort, InsidePort, ManagedInterface},
    datapath::routing::Routing,
};

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
    /// Have the kernel look for a gateway's Ethernet address, on this interface.
    Resolve(u32, Ipv4Addr),
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

    // Health that is lost comes first of all, health that is gained after what it needs.
    if let Some(before) = in_force {
        let lost = before.healthy & !desired.healthy;
        if lost != 0 {
            let healthy = before.healthy & desired.healthy;
            actions.push(Action::SetLive { healthy, neighbour_epoch: desired.neighbour_epoch });
        }
        for &ifindex in before.interfaces.keys().filter(|i| !desired.interfaces.contains_key(i)) {
            actions.push(Action::Detach(ifindex));
        }
    }
    for &index in in_force.iter().flat_map(|d| d.uplinks.keys()).filter(|i| !desired.uplinks.contains_key(i)) {
        actions.push(Action::RemoveUplink(index));
    }
    for (&index, uplink) in &desired.uplinks {
        if in_force.and_then(|d| d.uplinks.get(&index)) != Some(uplink) {
            actions.push(Action::SetUplink(index, *uplink));
        }
    }
    for (&index, pool) in &desired.pools {
        if in_force.and_then(|d| d.pools.get(&index)) != Some(pool) {
            actions.push(Action::SetPool(index, *pool));
        }
    }
    if in_force.map(settings) != Some(settings(desired)) {
        actions.push(settings(desired));
    }
    if in_force.map(|d| &d.routing) != Some(&desired.routing) {
        actions.push(Action::SetRouting(desired.routing.clone()));
    }
    for &(ifindex, gateway) in &desired.unresolved {
        if !in_force.is_some_and(|d| d.unresolved.contains(&(ifindex, gateway))) {
            actions.push(Action::Resolve(ifindex, gateway));
        }
    }
    for &port in in_force.iter().flat_map(|d| d.forwards.keys()).filter(|p| !desired.forwards.contains_key(p)) {
        actions.push(Action::RemoveForward(port));
    }
    for (&port, &to) in &desired.forwards {
        let before = in_force.and_then(|d| d.forwards.get(&port));
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
    if in_force.map(policy) != Some(policy(desired)) {
        actions.push(policy(desired));
    }
    if in_force.map(live) != Some(live(desired)) && actions.last() != Some(&live(desired)) {
        actions.push(live(desired));
    }
    for (&ifindex, interface) in &desired.interfaces {
        if in_force.and_then(|d| d.interfaces.get(&ifindex)) != Some(interface) {
            actions.push(Action::Attach(ifindex, interface.clone()));
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::{core::Hook, datapath::routing::Way};

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
                Action::Resolve(..) => {}
                Action::SetUplink(index, uplink) => drop(self.uplinks.insert(index, uplink)),
                Action::RemoveUplink(index) => {
                    self.uplinks.remove(&index);
                    self.pools.remove(&index);
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
        let uplinks = prop::collection::btree_map(0u8..4, (1u32..4, any::<bool>(), 0u32..3), 0..4);
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
                unresolved: BTreeSet::new(),
                neighbour_epoch,
            };
            for (index, (ifindex, healthy, weight)) in uplinks {
                desired.uplinks.insert(index, abi::Uplink { ifindex, ..abi::Uplink::default() });
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
            if lost != 0 {
                let first = plan(Some(&before), &after).swap_remove(0);
                let cleared = matches!(first, Action::SetLive { healthy, .. } if healthy & lost == 0);
                prop_assert!(cleared);
            }
        }
    }
}

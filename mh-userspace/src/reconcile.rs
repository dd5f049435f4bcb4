//! From what is in force and what should be to an ordered list of actions.
//!
//! Pure: `plan(in force, desired)` yields the least set of actions, in an order in which every prefix of them leaves a working
//! datapath: an uplink that can't be used loses its health bit first, tables are filled before interfaces are attached, and an
//! interface is detached before its record goes.

use std::net::Ipv4Addr;

use mh_common::abi;

use crate::core::{Desired, ManagedInterface};

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
    /// Write number of uplinks and timeouts.
    SetSettings {
        /// How many uplinks there are.
        uplinks: u32,
        /// Idle timeouts.
        timeouts: abi::Timeouts,
    },
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
    let settings = |d: &Desired| Action::SetSettings {
        uplinks: d.uplinks.last_key_value().map_or(0, |(index, _)| u32::from(*index) + 1),
        timeouts: d.timeouts,
    };

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
    if in_force.map(settings) != Some(settings(desired)) {
        actions.push(settings(desired));
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

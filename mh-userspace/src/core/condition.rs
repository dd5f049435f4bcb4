//! Whether an uplink can be used, and why not: what was ordered by hand, its link, its gateway and its probes, in this order.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{HealthOverride, Link, Observed, Overrides};
use crate::{
    config::{self, AddressRange},
    health::Health,
};

const CARRIER_LOST: &str = "carrier lost";

/// What holds of one uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The index of its interface; zero if that does not exist.
    pub ifindex: u32,
    /// Its source addresses, configured or learned.
    pub addresses: Vec<AddressRange>,
    /// Its gateway, configured or learned.
    pub gateway: Option<Ipv4Addr>,
    /// It can be used.
    pub usable: bool,
    /// Why, or why not.
    pub reason: String,
    /// What does not keep it from being used, but people should know.
    pub warning: Option<String>,
    /// A person has decided.
    pub by_hand: bool,
}

/// What keeps an uplink from being used.
enum Trouble {
    /// Something without which no packet can be sent is missing.
    Unusable(String),
    /// It looks dead, which may be overruled by hand.
    Dead(String),
}

impl Condition {
    /// Looks at one uplink. `unreachable`: gateways (interface, address) that are not there any more; `health`: what its probes say, if it has any.
    pub fn of(
        uplink: &config::Uplink,
        overrides: &Overrides,
        observed: &Observed,
        unreachable: &BTreeSet<(u32, Ipv4Addr)>,
        health: Option<&Health>,
    ) -> Self {
        let link = observed.link_named(&uplink.interface);
        let ifindex = link.map_or(0, |link| link.ifindex);
        let mut addresses = uplink.addresses.clone();
        if addresses.is_empty() {
            let learned = observed.primary_address(ifindex);
            addresses.extend(learned.map(|first| AddressRange { first, count: 1 }));
        }
        let gateway = uplink.gateway.or_else(|| observed.default_gateway(ifindex));
        let missing = missing(uplink, link, addresses.is_empty(), gateway, observed);
        let trouble = missing.map(Trouble::Unusable).or_else(|| {
            let silent = gateway.filter(|gateway| unreachable.contains(&(ifindex, *gateway)));
            dead(link, silent, health).map(Trouble::Dead)
        });
        let by_hand = overrides.health.get(&uplink.name);
        let hand = || "by hand".to_owned();
        let (usable, reason) = match (by_hand, trouble) {
            (Some(HealthOverride::Down), _) => (false, hand()),
            (Some(HealthOverride::Up), None | Some(Trouble::Dead(_))) => (true, hand()),
            (_, Some(Trouble::Dead(reason) | Trouble::Unusable(reason))) => (false, reason),
            (_, None) => (true, health.map_or_else(|| "link up".to_owned(), |health| health.reason.clone())),
        };
        let warning = health.and_then(|health| health.warning.clone());
        Self { ifindex, addresses, gateway, usable, reason, warning, by_hand: by_hand.is_some() }
    }

    /// The address that it sends from.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.addresses.first().map(|range| range.first)
    }
}

/// What is missing, without which no packet can be sent.
fn missing(
    uplink: &config::Uplink,
    link: Option<&Link>,
    lacks_address: bool,
    gateway: Option<Ipv4Addr>,
    observed: &Observed,
) -> Option<String> {
    let interface = uplink.interface.as_str();
    let Some(link) = link else {
        return Some(format!("interface {interface} does not exist"));
    };
    if let Some(master) = link.master {
        let master = observed.link(master).map_or("another interface", |master| &master.name);
        return Some(format!("interface {interface} is enslaved to {master}"));
    }
    if !link.up {
        return Some(format!("interface {interface} is set down"));
    }
    // Without Ethernet there are no neighbours to choose between.
    let lacks_gateway = gateway.is_none() && link.mac.is_some();
    let lacks_address = uplink.nat && lacks_address;
    if !link.carrier && (lacks_address || lacks_gateway) {
        // What was learned goes with the carrier.
        return Some(CARRIER_LOST.to_owned());
    }
    if lacks_address {
        return Some(format!("no address on {interface}"));
    }
    lacks_gateway.then(|| format!("no gateway: none configured and no default route by {interface}"))
}

/// Why the uplink looks dead, though nothing is missing. `silent`: its gateway, if that does not answer.
fn dead(link: Option<&Link>, silent: Option<Ipv4Addr>, health: Option<&Health>) -> Option<String> {
    if link.is_some_and(|link| !link.carrier) {
        return Some(CARRIER_LOST.to_owned());
    }
    if let Some(gateway) = silent {
        return Some(format!("gateway {gateway} not reachable"));
    }
    health.filter(|health| !health.up).map(|health| health.reason.clone())
}

//! What is known of the machine: links, addresses, default routes, neighbours.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use mh_common::wire::Mac;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index; an interface that is deleted and made again has a new one.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` for devices without Ethernet header.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Has carrier.
    pub carrier: bool,
}

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// Its metric: the lowest is preferred.
    pub metric: u32,
    /// The interface that it leaves by.
    pub ifindex: u32,
    /// Its gateway; `None` if destinations are on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// A fact that begins or ceases to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The link is there, like this.
    Link(Link),
    /// The link is gone.
    LinkGone(u32),
    /// The interface has the address; primary ones come before secondary ones.
    Address {
        /// The interface.
        ifindex: u32,
        /// The address.
        address: Ipv4Addr,
        /// It is a secondary address of its subnet.
        secondary: bool,
    },
    /// The interface has the address no more.
    AddressGone(u32, Ipv4Addr),
    /// The main table has the default route.
    DefaultRoute(DefaultRoute),
    /// The main table has the default route no more.
    DefaultRouteGone(DefaultRoute),
    /// The address is the machine's own, or a broadcast address.
    Local(Ipv4Addr),
    /// The address is that no more.
    LocalGone(Ipv4Addr),
    /// The neighbour has the Ethernet address.
    Neighbour(u32, Ipv4Addr, Mac),
    /// The neighbour's Ethernet address is not known any more.
    NeighbourGone(u32, Ipv4Addr),
}

/// Everything that is known of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, Vec<(bool, Ipv4Addr)>>,
    routes: BTreeSet<DefaultRoute>,
    local: BTreeSet<Ipv4Addr>,
    neighbours: HashMap<(u32, Ipv4Addr), Mac>,
    neighbour_epoch: u32,
}

impl Observed {
    /// Takes in a fact. Returns whether it changed anything.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Link(link) => {
                if !link.up {
                    // The kernel removes an interface's IPv4 routes when it is set down, without a word about them.
                    self.routes.retain(|route| route.ifindex != link.ifindex);
                }
                self.links.insert(link.ifindex, link.clone()).as_ref() != Some(&link)
            }
            Event::LinkGone(ifindex) => {
                // The kernel announces the end of addresses and routes too, but not in a fixed order.
                self.addresses.remove(&ifindex);
                self.routes.retain(|route| route.ifindex != ifindex);
                self.neighbours.retain(|(i, _), _| *i != ifindex);
                self.links.remove(&ifindex).is_some()
            }
            Event::Address { ifindex, address, secondary } => {
                let list = self.addresses.entry(ifindex).or_default();
                if list.contains(&(secondary, address)) {
                    return false;
                }
                list.retain(|(_, a)| *a != address);
                list.push((secondary, address));
                // A stable sort: among primary addresses the kernel's order, which is the order of arrival, stays.
                list.sort_by_key(|(secondary, _)| *secondary);
                true
            }
            Event::AddressGone(ifindex, address) => {
                let Some(list) = self.addresses.get_mut(&ifindex) else { return false };
                let before = list.len();
                list.retain(|(_, a)| *a != address);
                list.len() != before
            }
            Event::DefaultRoute(route) => self.routes.insert(route),
            Event::DefaultRouteGone(route) => self.routes.remove(&route),
            Event::Local(address) => self.local.insert(address),
            Event::LocalGone(address) => self.local.remove(&address),
            Event::Neighbour(ifindex, address, mac) => {
                let before = self.neighbours.insert((ifindex, address), mac);
                let moved = before.is_some_and(|old| old != mac);
                self.neighbour_epoch = self.neighbour_epoch.wrapping_add(u32::from(moved));
                before != Some(mac)
            }
            Event::NeighbourGone(ifindex, address) => {
                let changed = self.neighbours.remove(&(ifindex, address)).is_some();
                self.neighbour_epoch = self.neighbour_epoch.wrapping_add(u32::from(changed));
                changed
            }
        }
    }

    /// The link of this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The interface's primary address.
    pub fn primary_address(&self, ifindex: u32) -> Option<Ipv4Addr> {
        self.addresses.get(&ifindex)?.first().map(|(_, address)| *address)
    }

    /// The gateway of the interface's preferred default route.
    pub fn default_gateway(&self, ifindex: u32) -> Option<Ipv4Addr> {
        self.routes.iter().filter(|route| route.ifindex == ifindex).find_map(|route| route.gateway)
    }

    /// The interfaces of all default routes, the preferred ones first, each with its metric.
    pub fn default_routes(&self) -> impl Iterator<Item = (u32, u32)> {
        self.routes.iter().map(|route| (route.ifindex, route.metric))
    }

    /// Whether the neighbour's Ethernet address is known.
    pub fn has_neighbour(&self, ifindex: u32, address: Ipv4Addr) -> bool {
        self.neighbours.contains_key(&(ifindex, address))
    }

    /// The machine's own and broadcast addresses.
    pub const fn local(&self) -> &BTreeSet<Ipv4Addr> {
        &self.local
    }

    /// A number that changes when a neighbour's Ethernet address does.
    pub const fn neighbour_epoch(&self) -> u32 {
        self.neighbour_epoch
    }

    /// Goes on counting neighbour epochs from where a former controller left off, so that no stale entry looks fresh.
    pub const fn continue_epoch(&mut self, epoch: u32) {
        self.neighbour_epoch = epoch.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, last)
    }

    #[test]
    fn the_primary_address_is_the_first_that_is_not_secondary() {
        let mut observed = Observed::default();
        observed.apply(Event::Address { ifindex: 3, address: a(9), secondary: true });
        observed.apply(Event::Address { ifindex: 3, address: a(2), secondary: false });
        observed.apply(Event::Address { ifindex: 3, address: a(1), secondary: false });
        assert_eq!(observed.primary_address(3), Some(a(2)));
        observed.apply(Event::AddressGone(3, a(2)));
        assert_eq!(observed.primary_address(3), Some(a(1)));
    }

    #[test]
    fn the_gateway_is_that_of_the_lowest_metric() {
        let mut observed = Observed::default();
        let route = |metric, last| DefaultRoute { metric, ifindex: 3, gateway: Some(a(last)) };
        observed.apply(Event::DefaultRoute(route(200, 2)));
        observed.apply(Event::DefaultRoute(route(100, 1)));
        assert_eq!(observed.default_gateway(3), Some(a(1)));
        assert_eq!(observed.default_gateway(4), None);
        observed.apply(Event::DefaultRouteGone(route(100, 1)));
        assert_eq!(observed.default_gateway(3), Some(a(2)));
    }

    #[test]
    fn a_link_takes_all_that_hangs_on_it_along() {
        let mut observed = Observed::default();
        let link = Link { ifindex: 3, name: "wan1".into(), mac: None, mtu: 1500, up: true, carrier: true };
        assert!(observed.apply(Event::Link(link.clone())));
        assert!(!observed.apply(Event::Link(link)), "nothing new");
        observed.apply(Event::Address { ifindex: 3, address: a(2), secondary: false });
        observed.apply(Event::DefaultRoute(DefaultRoute { metric: 0, ifindex: 3, gateway: Some(a(1)) }));
        assert!(observed.apply(Event::LinkGone(3)));
        assert_eq!(observed, Observed::default());
    }

    #[test]
    fn only_a_changed_or_lost_neighbour_starts_a_new_epoch() {
        let mut observed = Observed::default();
        assert!(observed.apply(Event::Neighbour(3, a(1), [1; 6])));
        assert!(!observed.apply(Event::Neighbour(3, a(1), [1; 6])));
        assert_eq!(observed.neighbour_epoch(), 0);
        assert!(observed.apply(Event::Neighbour(3, a(1), [2; 6])));
        assert!(observed.apply(Event::NeighbourGone(3, a(1))));
        assert!(!observed.apply(Event::NeighbourGone(3, a(1))));
        assert_eq!(observed.neighbour_epoch(), 2);
    }
}

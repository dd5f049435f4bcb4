//! What is known of the machine: links, addresses, default routes, neighbours.
//!
//! Invariant: what is known depends on which facts hold, not on the order in which events of different objects came.

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
    /// The index of the bridge, bond or VRF that it is enslaved to.
    pub master: Option<u32>,
}

/// A way that a default route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// The interface.
    pub ifindex: u32,
    /// The gateway; `None` if destinations are on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// Its metric: the lowest is preferred.
    pub metric: u32,
    /// Its ways: several for a multipath route.
    pub hops: Vec<Hop>,
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
    DefaultRoute {
        /// The route.
        route: DefaultRoute,
        /// It takes the place of one with the same metric.
        replaces: bool,
    },
    /// The main table has the default route no more.
    DefaultRouteGone(DefaultRoute),
    /// The address is the machine's own, or a broadcast address.
    Local(Ipv4Addr),
    /// The address is that no more.
    LocalGone(Ipv4Addr),
    /// The neighbour's Ethernet address is known.
    Neighbour {
        /// The interface.
        ifindex: u32,
        /// The neighbour's address.
        address: Ipv4Addr,
        /// Its Ethernet address.
        mac: Mac,
        /// Somebody has set it: the kernel does not look for itself.
        fixed: bool,
    },
    /// The neighbour has not answered.
    NeighbourFailed(u32, Ipv4Addr),
    /// Nothing is known of the neighbour any more.
    NeighbourGone(u32, Ipv4Addr),
}

/// What is known of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// It has this Ethernet address.
    Known {
        /// The address.
        mac: Mac,
        /// Somebody has set it.
        fixed: bool,
    },
    /// It has not answered.
    Failed,
}

impl Neighbour {
    const fn mac(self) -> Option<Mac> {
        match self {
            Self::Known { mac, .. } => Some(mac),
            Self::Failed => None,
        }
    }
}

/// Everything that is known of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, Vec<(bool, Ipv4Addr)>>,
    routes: BTreeSet<DefaultRoute>,
    local: BTreeSet<Ipv4Addr>,
    neighbours: HashMap<(u32, Ipv4Addr), Neighbour>,
    neighbour_epoch: u32,
}

impl Observed {
    /// Takes in a fact. Returns whether it changed anything.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Link(link) => {
                if !link.up {
                    // The kernel removes an interface's IPv4 routes when it is set down, without a word about them.
                    self.remove_routes_by(link.ifindex);
                }
                self.links.insert(link.ifindex, link.clone()).as_ref() != Some(&link)
            }
            Event::LinkGone(ifindex) => {
                // The kernel announces the end of addresses and routes too, but not in a fixed order.
                self.addresses.remove(&ifindex);
                self.remove_routes_by(ifindex);
                let lost = self.neighbours.extract_if(|(i, _), _| *i == ifindex).filter_map(|(_, n)| n.mac()).count();
                self.neighbour_epoch = self.neighbour_epoch.wrapping_add(u32::from(lost > 0));
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
                let changed = list.len() != before;
                if list.is_empty() {
                    self.addresses.remove(&ifindex);
                }
                changed
            }
            Event::DefaultRoute { route, replaces } => {
                if replaces && !self.routes.contains(&route) {
                    let former = self.routes.iter().find(|former| former.metric == route.metric).cloned();
                    former.map(|former| self.routes.remove(&former));
                }
                self.routes.insert(route)
            }
            Event::DefaultRouteGone(route) => self.routes.remove(&route),
            Event::Local(address) => self.local.insert(address),
            Event::LocalGone(address) => self.local.remove(&address),
            Event::Neighbour { ifindex, address, mac, fixed } => {
                self.set_neighbour((ifindex, address), Some(Neighbour::Known { mac, fixed }))
            }
            Event::NeighbourFailed(ifindex, address) => self.set_neighbour((ifindex, address), Some(Neighbour::Failed)),
            Event::NeighbourGone(ifindex, address) => self.set_neighbour((ifindex, address), None),
        }
    }

    fn remove_routes_by(&mut self, ifindex: u32) {
        let routes = std::mem::take(&mut self.routes).into_iter().filter_map(|mut route| {
            route.hops.retain(|hop| hop.ifindex != ifindex);
            (!route.hops.is_empty()).then_some(route)
        });
        self.routes = routes.collect();
    }

    fn set_neighbour(&mut self, which: (u32, Ipv4Addr), now: Option<Neighbour>) -> bool {
        let before = match now {
            Some(neighbour) => self.neighbours.insert(which, neighbour),
            None => self.neighbours.remove(&which),
        };
        let mac = before.and_then(Neighbour::mac);
        let moved = mac.is_some() && mac != now.and_then(Neighbour::mac);
        self.neighbour_epoch = self.neighbour_epoch.wrapping_add(u32::from(moved));
        before != now
    }

    /// Takes in all facts that hold now, in place of what was known. Returns whether that changed anything.
    pub fn replace(&mut self, facts: Vec<Event>) -> bool {
        let mut now = Self::default();
        for fact in facts {
            now.apply(fact);
        }
        let moved = self.neighbours.iter().any(|(which, former)| {
            former.mac().is_some() && former.mac() != now.neighbours.get(which).and_then(|n| n.mac())
        });
        now.neighbour_epoch = self.neighbour_epoch.wrapping_add(u32::from(moved));
        let changed = now != *self;
        *self = now;
        changed
    }

    /// The link of this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The link with this index.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
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
        let hops = self.routes.iter().flat_map(|route| &route.hops);
        hops.filter(|hop| hop.ifindex == ifindex).find_map(|hop| hop.gateway)
    }

    /// The default routes, the preferred ones first.
    pub const fn default_routes(&self) -> &BTreeSet<DefaultRoute> {
        &self.routes
    }

    /// What is known of a neighbour.
    pub fn neighbour(&self, ifindex: u32, address: Ipv4Addr) -> Option<Neighbour> {
        self.neighbours.get(&(ifindex, address)).copied()
    }

    /// The machine's own and broadcast addresses.
    pub const fn local(&self) -> &BTreeSet<Ipv4Addr> {
        &self.local
    }

    /// A number that changes when a neighbour's Ethernet address does.
    pub const fn neighbour_epoch(&self) -> u32 {
        self.neighbour_epoch
    }

    /// Begins a new neighbour epoch, so that every half of a flow is looked at again with its next packet.
    pub const fn begin_epoch(&mut self) {
        self.neighbour_epoch = self.neighbour_epoch.wrapping_add(1);
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

    fn route(metric: u32, hops: &[(u32, u8)]) -> DefaultRoute {
        DefaultRoute {
            metric,
            hops: hops.iter().map(|&(ifindex, last)| Hop { ifindex, gateway: Some(a(last)) }).collect(),
        }
    }

    fn new_route(metric: u32, hops: &[(u32, u8)], replaces: bool) -> Event {
        Event::DefaultRoute { route: route(metric, hops), replaces }
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
        observed.apply(new_route(200, &[(3, 2)], false));
        observed.apply(new_route(100, &[(3, 1)], false));
        assert_eq!(observed.default_gateway(3), Some(a(1)));
        assert_eq!(observed.default_gateway(4), None);
        observed.apply(Event::DefaultRouteGone(route(100, &[(3, 1)])));
        assert_eq!(observed.default_gateway(3), Some(a(2)));
    }

    #[test]
    fn a_route_that_replaces_another_leaves_nothing_of_it() {
        let mut observed = Observed::default();
        observed.apply(new_route(20, &[(3, 1), (4, 9)], false));
        assert_eq!((observed.default_gateway(3), observed.default_gateway(4)), (Some(a(1)), Some(a(9))));
        // One of two announcements is withdrawn.
        assert!(observed.apply(new_route(20, &[(4, 9)], true)));
        assert_eq!((observed.default_gateway(3), observed.default_gateway(4)), (None, Some(a(9))));
        // Without replacing, it is one more.
        observed.apply(new_route(20, &[(3, 1)], false));
        assert_eq!((observed.default_gateway(3), observed.default_gateway(4)), (Some(a(1)), Some(a(9))));
    }

    #[test]
    fn a_link_set_down_loses_its_part_of_a_multipath_route() {
        let mut observed = Observed::default();
        observed.apply(new_route(20, &[(3, 1), (4, 9)], false));
        let link =
            Link { ifindex: 3, name: "wan1".into(), mac: None, mtu: 1500, up: false, carrier: false, master: None };
        observed.apply(Event::Link(link));
        assert_eq!((observed.default_gateway(3), observed.default_gateway(4)), (None, Some(a(9))));
    }

    #[test]
    fn a_link_takes_all_that_hangs_on_it_along() {
        let mut observed = Observed::default();
        let link =
            Link { ifindex: 3, name: "wan1".into(), mac: None, mtu: 1500, up: true, carrier: true, master: None };
        assert!(observed.apply(Event::Link(link.clone())));
        assert!(!observed.apply(Event::Link(link)), "nothing new");
        observed.apply(Event::Address { ifindex: 3, address: a(2), secondary: false });
        observed.apply(new_route(0, &[(3, 1)], false));
        observed.apply(known(1, [1; 6]));
        assert!(observed.apply(Event::LinkGone(3)));
        assert_eq!(observed, Observed { neighbour_epoch: 1, ..Observed::default() });
    }

    fn known(last: u8, mac: Mac) -> Event {
        Event::Neighbour { ifindex: 3, address: a(last), mac, fixed: false }
    }

    #[test]
    fn only_a_changed_or_lost_neighbour_starts_a_new_epoch() {
        let mut observed = Observed::default();
        assert!(observed.apply(known(1, [1; 6])));
        assert!(!observed.apply(known(1, [1; 6])));
        assert_eq!(observed.neighbour_epoch(), 0);
        assert!(observed.apply(known(1, [2; 6])));
        assert!(observed.apply(Event::NeighbourFailed(3, a(1))));
        assert_eq!(observed.neighbour(3, a(1)), Some(Neighbour::Failed));
        assert!(observed.apply(Event::NeighbourGone(3, a(1))));
        assert!(!observed.apply(Event::NeighbourGone(3, a(1))));
        assert_eq!(observed.neighbour_epoch(), 2);
    }

    #[test]
    fn all_facts_anew_forget_what_was_missed() {
        let mut observed = Observed::default();
        observed.apply(known(1, [1; 6]));
        observed.apply(Event::Local(a(7)));
        observed.apply(new_route(0, &[(3, 1)], false));
        let facts = vec![known(1, [1; 6]), new_route(0, &[(3, 1)], false)];
        assert!(observed.replace(facts.clone()));
        assert!(observed.local().is_empty());
        assert!(!observed.replace(facts), "nothing new");
        assert_eq!(observed.neighbour_epoch(), 0);
        assert!(observed.replace(Vec::new()));
        assert_eq!(observed.neighbour_epoch(), 1, "a neighbour was lost meanwhile");
    }
}

//! What the datapath should hold, and why each uplink is in the state that it is in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use mh_common::{
    abi::{self, MAX_UPLINKS},
    hash,
};

use super::{Link, Observed, records};
use crate::{
    config::{AddressRange, Config, HashMode, Mode, OnDown},
    control::api::{HealthOverride, UplinkState},
    datapath::routing::{Routing, Way},
};

/// What was ordered by hand, by uplink name. Survives a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Weights in place of the configured ones.
    pub weights: BTreeMap<String, u16>,
    /// Uplinks that take no new flows.
    pub drained: BTreeSet<String>,
    /// Uplinks whose health is set.
    pub health: BTreeMap<String, HealthOverride>,
}

/// Which uplink has which index in the datapath. An uplink keeps its index as long as it is configured, across reloads and restarts,
/// since its flows know it by the index alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indices {
    by_name: BTreeMap<String, u8>,
}

impl Indices {
    /// The indices that the datapath's uplink records tell of.
    pub fn adopt(uplinks: impl IntoIterator<Item = (u8, abi::Uplink)>) -> Self {
        let by_name = uplinks.into_iter().filter_map(|(index, uplink)| Some((name_of(&uplink)?, index))).collect();
        Self { by_name }
    }

    /// Gives every configured uplink an index: its own if it has one, else the lowest that is free. Returns the indices of uplinks
    /// that are configured no more: their flows have to go before the index may serve another uplink.
    pub fn assign(&mut self, config: &Config) -> Vec<u8> {
        let mut gone = Vec::new();
        self.by_name.retain(|name, index| {
            let stays = config.uplink_index(name).is_some();
            if !stays {
                gone.push(*index);
            }
            stays
        });
        for uplink in &config.uplinks {
            if !self.by_name.contains_key(&uplink.name) {
                let taken: BTreeSet<u8> = self.by_name.values().copied().collect();
                let free = (0u8..).take(MAX_UPLINKS).find(|index| !taken.contains(index));
                self.by_name.extend(free.map(|index| (uplink.name.clone(), index)));
            }
        }
        gone
    }

    /// The index of an uplink.
    pub fn get(&self, name: &str) -> Option<u8> {
        self.by_name.get(name).copied()
    }

    /// The name of the uplink with this index.
    pub fn name(&self, index: u8) -> Option<&str> {
        self.by_name.iter().find(|(_, i)| **i == index).map(|(name, _)| name.as_str())
    }
}

fn name_of(uplink: &abi::Uplink) -> Option<String> {
    let len = uplink.name.iter().position(|b| *b == 0).unwrap_or(uplink.name.len());
    (len > 0).then(|| String::from_utf8_lossy(&uplink.name[..len]).into_owned())
}

/// Where on an interface the programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// TC alone.
    Tc,
    /// XDP in front of TC; it has to work.
    Xdp,
    /// XDP in front of TC if the driver does it natively and sums up in hardware safely, else TC alone.
    Auto,
}

/// An interface that the programs run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedInterface {
    /// Its name.
    pub name: String,
    /// What the datapath knows of it; [`abi::INTERFACE_XDP`] is added by whoever attaches.
    pub interface: abi::Interface,
    /// Where the programs run.
    pub hook: Hook,
}

/// An uplink as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkView {
    /// Its index in the datapath.
    pub index: u8,
    /// Its name.
    pub name: String,
    /// Its interface's name.
    pub interface: String,
    /// Whether it takes flows.
    pub state: UplinkState,
    /// Why.
    pub reason: String,
    /// Its source addresses.
    pub addresses: Vec<AddressRange>,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Its weight in the configuration's default policy.
    pub configured_weight: u16,
    /// Its weight, configured or by hand.
    pub weight: u16,
    /// Its weight as in force.
    pub effective_weight: u16,
}

impl UplinkView {
    /// The part of new flows that this uplink gets among these, from 0 to 1.
    pub fn share(&self, among: &[Self]) -> f64 {
        let total: u32 = among.iter().map(|u| u32::from(u.effective_weight)).sum();
        if total == 0 { 0.0 } else { f64::from(self.effective_weight) / f64::from(total) }
    }
}

/// A port of an outside address that is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardedPort {
    /// The uplink's index.
    pub uplink: u8,
    /// The IP protocol.
    pub protocol: u8,
    /// The outside address.
    pub address: Ipv4Addr,
    /// The outside port.
    pub port: u16,
}

/// A port of an inside host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InsidePort {
    /// The inside host.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
}

/// What the datapath should hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The uplinks by index.
    pub uplinks: BTreeMap<u8, abi::Uplink>,
    /// The same as people see them, in the order of the configuration.
    pub views: Vec<UplinkView>,
    /// Weights as in force, by index.
    pub weights: [u32; MAX_UPLINKS],
    /// One bit per uplink that may take new flows by policy.
    pub members: u64,
    /// One bit per uplink that can be used.
    pub healthy: u64,
    /// What of a packet decides its uplink.
    pub hash_mode: hash::HashMode,
    /// The settings, but for version and seed.
    pub settings: abi::Settings,
    /// Outside addresses by uplink index.
    pub pools: BTreeMap<u8, abi::Pool>,
    /// All outside addresses, with one bit per uplink that has them.
    pub outside: BTreeMap<Ipv4Addr, u32>,
    /// Forwarded ports, and where they lead.
    pub forwards: BTreeMap<ForwardedPort, InsidePort>,
    /// What the kernel's routing should do.
    pub routing: Routing,
    /// Managed interfaces by index.
    pub interfaces: BTreeMap<u32, ManagedInterface>,
    /// The machine's own and broadcast addresses.
    pub local: BTreeSet<Ipv4Addr>,
    /// Gateways (interface, address) whose Ethernet address the kernel should look for.
    pub unresolved: BTreeSet<(u32, Ipv4Addr)>,
    /// The neighbour epoch.
    pub neighbour_epoch: u32,
}

impl Desired {
    /// Works it out. `indices` must have been [`Indices::assign`]ed for this configuration; an uplink without an index is left out.
    pub fn new(config: &Config, indices: &Indices, overrides: &Overrides, observed: &Observed) -> Self {
        let mut desired = Self {
            uplinks: BTreeMap::new(),
            views: Vec::with_capacity(config.uplinks.len()),
            weights: [0; MAX_UPLINKS],
            members: 0,
            healthy: 0,
            hash_mode: match config.default_policy.hash {
                HashMode::Flow => hash::HashMode::Flow,
                HashMode::Source => hash::HashMode::Source,
                HashMode::SourceDestination => hash::HashMode::SourceDestination,
            },
            settings: records::settings(config),
            pools: BTreeMap::new(),
            outside: BTreeMap::new(),
            forwards: BTreeMap::new(),
            routing: Routing { mark_mask: config.datapath.mark_mask, uplinks: BTreeMap::new(), spare: None },
            interfaces: BTreeMap::new(),
            local: observed.local().clone(),
            unresolved: BTreeSet::new(),
            neighbour_epoch: observed.neighbour_epoch(),
        };
        let hook = match config.datapath.mode {
            Mode::Auto => Hook::Auto,
            Mode::Xdp => Hook::Xdp,
            Mode::Tc => Hook::Tc,
        };
        for (position, uplink) in config.uplinks.iter().enumerate() {
            let Some(index) = indices.get(&uplink.name) else { continue };
            let link = observed.link_named(&uplink.interface);
            let ifindex = link.map_or(0, |link| link.ifindex);
            let mut addresses = uplink.addresses.clone();
            if addresses.is_empty() {
                let learned = observed.primary_address(ifindex);
                addresses.extend(learned.map(|first| AddressRange { first, count: 1 }));
            }
            let address = addresses.first().map(|range| range.first);
            let gateway = uplink.gateway.or_else(|| observed.default_gateway(ifindex));
            let configured_weight =
                config.default_policy.members.iter().find(|(i, _)| *i == position).map_or(0, |(_, weight)| *weight);
            let weight = overrides.weights.get(&uplink.name).copied().unwrap_or(configured_weight);

            let trouble = trouble(&uplink.interface, link, uplink.nat, address, gateway);
            let by_hand = overrides.health.get(&uplink.name);
            let (usable, reason) = match (by_hand, trouble) {
                (Some(HealthOverride::Down), _) => (false, "by hand".to_owned()),
                (Some(HealthOverride::Up), Trouble::None | Trouble::Carrier(_)) => (true, "by hand".to_owned()),
                (_, Trouble::None) => (true, "link up".to_owned()),
                (_, Trouble::Carrier(reason) | Trouble::Unusable(reason)) => (false, reason),
            };
            let (state, reason) = if !usable {
                (UplinkState::Down, reason)
            } else if overrides.drained.contains(&uplink.name) {
                (UplinkState::Draining, "by hand".to_owned())
            } else if weight == 0 {
                (UplinkState::Disabled, "weight 0".to_owned())
            } else {
                (UplinkState::Up, reason)
            };
            let takes_flows = state == UplinkState::Up;
            let effective_weight = if takes_flows { weight } else { 0 };
            desired.healthy |= u64::from(usable) << index;
            desired.members |= u64::from(takes_flows) << index;
            if let Some(slot) = desired.weights.get_mut(usize::from(index)) {
                *slot = u32::from(effective_weight);
            }
            let on_down = match uplink.on_down {
                OnDown::Reset => 0,
                OnDown::Hold => abi::UPLINK_HOLD,
                OnDown::Repin => abi::UPLINK_REPIN,
            };
            let record = abi::Uplink {
                ifindex,
                flags: on_down | if uplink.nat { abi::UPLINK_NAT } else { 0 },
                mtu: link.map_or(0, |link| link.mtu),
                first_port: uplink.ports.first,
                last_port: uplink.ports.last,
                mss: records::mss(uplink.mss_clamp, link.map_or(0, |link| link.mtu)),
                reserved: 0,
                v4: abi::Route {
                    address: address.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
                    gateway: gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
                },
                v6: abi::Route::default(),
                name: records::padded(&uplink.name),
            };
            desired.uplinks.insert(index, record);
            desired.pools.insert(index, records::pool(&addresses));
            for address in addresses.iter().flat_map(|range| range.addresses()) {
                *desired.outside.entry(address).or_default() |= 1 << index;
            }
            if link.is_some_and(|link| link.up) {
                desired.routing.uplinks.insert(index, Way { ifindex, gateway });
            }
            if let Some(gateway) = gateway
                && link.is_some_and(|link| link.up && link.carrier && link.mac.is_some())
                && !observed.has_neighbour(ifindex, gateway)
            {
                desired.unresolved.insert((ifindex, gateway));
            }
            for forward in config.forwards.iter().filter(|forward| forward.uplinks.contains(&position)) {
                desired.forwards.extend(records::forward(forward, index, &addresses));
            }
            desired.views.push(UplinkView {
                index,
                name: uplink.name.clone(),
                interface: uplink.interface.clone(),
                state,
                reason,
                addresses,
                gateway,
                configured_weight,
                weight,
                effective_weight,
            });
            if let Some(link) = link {
                desired.manage(link, abi::ROLE_UPLINK, index, hook);
            }
        }
        desired.settings.uplinks = desired.uplinks.last_key_value().map_or(0, |(index, _)| u32::from(*index) + 1);
        for link in observed.links().filter(|link| config.is_lan(&link.name)) {
            if !desired.interfaces.contains_key(&link.ifindex) {
                desired.manage(link, abi::ROLE_LAN, 0, hook);
            }
        }
        if config.datapath.host_traffic {
            desired.routing.spare = desired.spare(observed);
        }
        desired
    }

    /// The uplink to stand in for the kernel's preferred default route, if that leads by an uplink that is down: of those that are not,
    /// the one whose default route comes next.
    fn spare(&self, observed: &Observed) -> Option<u8> {
        let by = |ifindex: u32| {
            let found = self.routing.uplinks.iter().find(|(_, way)| way.ifindex == ifindex);
            found.map(|(&index, _)| index)
        };
        let usable = |index: u8| self.healthy >> index & 1 != 0;
        let (_, preferred) = observed.default_routes().next()?;
        let mut best = observed.default_routes().take_while(|&(_, metric)| metric == preferred);
        if best.all(|(ifindex, _)| by(ifindex).is_none_or(usable)) {
            return None;
        }
        let routed = observed.default_routes().filter_map(|(ifindex, _)| by(ifindex));
        routed.chain(self.routing.uplinks.keys().copied()).find(|&index| usable(index))
    }

    fn manage(&mut self, link: &Link, role: u8, uplink: u8, hook: Hook) {
        let flags = if link.mac.is_none() { abi::INTERFACE_L3 } else { 0 };
        let mac = link.mac.unwrap_or_default();
        let interface = abi::Interface { role, uplink, flags, mac, mtu: link.mtu, ..abi::Interface::default() };
        if role == abi::ROLE_LAN {
            self.settings.lan_mtu = self.settings.lan_mtu.min(link.mtu);
        }
        self.interfaces.insert(link.ifindex, ManagedInterface { name: link.name.clone(), interface, hook });
    }
}

/// What keeps an uplink from being used.
enum Trouble {
    None,
    /// The link says that it is down, which may be overruled by hand.
    Carrier(String),
    /// Something without which no packet can be sent is missing.
    Unusable(String),
}

fn trouble(
    interface: &str,
    link: Option<&Link>,
    nat: bool,
    address: Option<Ipv4Addr>,
    gateway: Option<Ipv4Addr>,
) -> Trouble {
    let Some(link) = link else {
        return Trouble::Unusable(format!("interface {interface} does not exist"));
    };
    if !link.up {
        return Trouble::Unusable(format!("interface {interface} is set down"));
    }
    if nat && address.is_none() {
        return Trouble::Unusable(format!("no address on {interface}"));
    }
    // Without Ethernet there are no neighbours to choose between.
    if gateway.is_none() && link.mac.is_some() {
        return Trouble::Unusable(format!("no gateway: none configured and no default route by {interface}"));
    }
    if !link.carrier {
        return Trouble::Carrier("carrier lost".to_owned());
    }
    Trouble::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        core::{DefaultRoute, Event},
    };

    const CONFIG: &str = r#"
        lan = ["lan*"]
        [uplink.isp1]
        interface = "wan1"
        weight = 2
        [uplink.isp2]
        interface = "wan2"
        gateway = "203.0.113.1"
        address = "203.0.113.2"
    "#;

    fn link(ifindex: u32, name: &str) -> Link {
        Link { ifindex, name: name.into(), mac: Some([2, 0, 0, 0, 0, 1]), mtu: 1500, up: true, carrier: true }
    }

    fn observed() -> Observed {
        let mut observed = Observed::default();
        for (ifindex, name) in [(1, "lan0"), (2, "wan1"), (3, "wan2"), (4, "other")] {
            observed.apply(Event::Link(link(ifindex, name)));
        }
        observed.apply(Event::Address { ifindex: 2, address: Ipv4Addr::new(198, 51, 100, 2), secondary: false });
        observed.apply(Event::DefaultRoute(DefaultRoute {
            metric: 100,
            ifindex: 2,
            gateway: Some(Ipv4Addr::new(198, 51, 100, 1)),
        }));
        observed
    }

    fn desired(overrides: &Overrides, observed: &Observed) -> Desired {
        let config = config::parse(CONFIG).unwrap().config;
        let mut indices = Indices::default();
        assert!(indices.assign(&config).is_empty());
        Desired::new(&config, &indices, overrides, observed)
    }

    #[test]
    fn an_uplink_keeps_its_index_across_configurations_and_restarts() {
        let config = |names: &[&str]| {
            let uplinks: String = names.iter().map(|n| format!("[uplink.{n}]\ninterface = \"{n}\"\n")).collect();
            config::parse(&format!("lan = [\"lan0\"]\n{uplinks}")).unwrap().config
        };
        let mut indices = Indices::default();
        indices.assign(&config(&["a", "b", "c"]));
        assert_eq!(indices.assign(&config(&["c", "d", "b"])), [0]);
        assert_eq!((indices.get("b"), indices.get("c"), indices.get("d")), (Some(1), Some(2), Some(0)));
        let desired = Desired::new(&config(&["c", "d", "b"]), &indices, &Overrides::default(), &Observed::default());
        assert_eq!(Indices::adopt(desired.uplinks), indices);
    }

    #[test]
    fn another_uplink_stands_in_for_a_default_route_that_is_dead() {
        let mut observed = observed();
        let spare = |observed: &Observed, down: &[&str]| {
            let health = down.iter().map(|name| ((*name).to_owned(), HealthOverride::Down)).collect();
            desired(&Overrides { health, ..Overrides::default() }, observed).routing.spare
        };
        assert_eq!(spare(&observed, &[]), None);
        assert_eq!(spare(&observed, &["isp2"]), None, "the default route is not by that one");
        assert_eq!(spare(&observed, &["isp1"]), Some(1));
        assert_eq!(spare(&observed, &["isp1", "isp2"]), None);
        // What is preferred is no uplink's: that is somebody else's to decide.
        observed.apply(Event::DefaultRoute(DefaultRoute { metric: 1, ifindex: 4, gateway: None }));
        assert_eq!(spare(&observed, &["isp1"]), None);
    }

    #[test]
    fn learns_what_the_configuration_leaves_out() {
        let desired = desired(&Overrides::default(), &observed());
        assert_eq!(desired.views[0].addresses, [AddressRange { first: Ipv4Addr::new(198, 51, 100, 2), count: 1 }]);
        assert_eq!(desired.views[0].gateway, Some(Ipv4Addr::new(198, 51, 100, 1)));
        assert_eq!(desired.healthy, 0b11);
        assert_eq!(desired.members, 0b11);
        assert_eq!(desired.weights[..2], [2, 1]);
        assert_eq!(desired.interfaces.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert!((desired.views[0].share(&desired.views) - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn every_trouble_has_its_reason() {
        let reason = |change: &dyn Fn(&mut Observed)| {
            let mut observed = observed();
            change(&mut observed);
            let view = desired(&Overrides::default(), &observed).views[0].clone();
            assert_eq!(view.state, UplinkState::Down);
            assert_eq!(view.effective_weight, 0);
            view.reason
        };
        assert_eq!(
            reason(&|o| {
                o.apply(Event::LinkGone(2));
            }),
            "interface wan1 does not exist"
        );
        assert_eq!(
            reason(&|o| {
                o.apply(Event::Link(Link { carrier: false, ..link(2, "wan1") }));
            }),
            "carrier lost"
        );
        assert_eq!(
            reason(&|o| {
                o.apply(Event::Link(Link { up: false, ..link(2, "wan1") }));
            }),
            "interface wan1 is set down"
        );
        assert_eq!(
            reason(&|o| {
                o.apply(Event::AddressGone(2, Ipv4Addr::new(198, 51, 100, 2)));
            }),
            "no address on wan1"
        );
        assert_eq!(
            reason(&|o| {
                o.apply(Event::DefaultRouteGone(DefaultRoute {
                    metric: 100,
                    ifindex: 2,
                    gateway: Some(Ipv4Addr::new(198, 51, 100, 1)),
                }));
            }),
            "no gateway: none configured and no default route by wan1"
        );
    }

    #[test]
    fn a_drained_uplink_keeps_its_flows_and_gets_no_new_ones() {
        let overrides = Overrides { drained: ["isp1".to_owned()].into(), ..Overrides::default() };
        let desired = desired(&overrides, &observed());
        assert_eq!(desired.views[0].state, UplinkState::Draining);
        assert_eq!((desired.healthy, desired.members), (0b11, 0b10));
        assert_eq!(desired.weights[..2], [0, 1]);
    }

    #[test]
    fn weights_and_health_by_hand() {
        let overrides = Overrides {
            weights: [("isp1".to_owned(), 0), ("isp2".to_owned(), 7)].into(),
            health: [("isp2".to_owned(), HealthOverride::Down)].into(),
            ..Overrides::default()
        };
        let desired = desired(&overrides, &observed());
        assert_eq!(desired.views[0].state, UplinkState::Disabled);
        assert_eq!((desired.views[1].state, desired.views[1].reason.as_str()), (UplinkState::Down, "by hand"));
        assert_eq!((desired.views[1].weight, desired.views[1].effective_weight), (7, 0));
        assert_eq!((desired.healthy, desired.members), (0b01, 0));
    }

    #[test]
    fn up_by_hand_overrules_the_carrier_but_not_a_missing_interface() {
        let overrides = Overrides { health: [("isp1".to_owned(), HealthOverride::Up)].into(), ..Overrides::default() };
        let mut seen = observed();
        seen.apply(Event::Link(Link { carrier: false, ..link(2, "wan1") }));
        assert_eq!(desired(&overrides, &seen).views[0].state, UplinkState::Up);
        seen.apply(Event::LinkGone(2));
        assert_eq!(desired(&overrides, &seen).views[0].state, UplinkState::Down);
    }
}

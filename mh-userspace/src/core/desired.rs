//! What the datapath should hold, and why each uplink is in the state that it is in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use mh_common::{abi, policy, rules::RuleSet};

use super::{
    Condition, HealthOverride, Indices, Link, MemberView, Neighbour, Observed, PolicyRecord, PolicyView, Routing,
    RuleTable, UplinkState, Way, policies, records,
};
use crate::{
    config::{AddressRange, Capacity, Config, Mode, OnDown, Uplink, Use, Weight},
    load::Spread,
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

/// Where on an interface the programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Nowhere: the interface is enslaved. That it is an uplink's is known all the same, so that what the kernel would send by it is steered.
    None,
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
#[derive(Debug, Clone, PartialEq)]
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
    /// What does not keep it from taking flows, but people should know.
    pub warning: Option<String>,
    /// Its tier in the default policy; `None` if it is no member.
    pub tier: Option<usize>,
    /// Its source addresses.
    pub addresses: Vec<AddressRange>,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Its weight in the configuration's default policy; if it goes by capacity: that from the uplink, in Mbit/s.
    pub configured_weight: u16,
    /// It goes by capacity there.
    pub configured_by_capacity: bool,
    /// Its weight, configured or by hand; if it goes by capacity: that from the uplink, in Mbit/s.
    pub weight: u16,
    /// It goes by capacity.
    pub by_capacity: bool,
    /// Its weight as in force; if it goes by capacity: what is left, in Mbit/s.
    pub effective_weight: u16,
    /// The part of new flows that it gets under the default policy, from 0 to 1.
    pub share: f64,
    /// How much it can carry.
    pub capacity: Option<Capacity>,
}

impl UplinkView {
    /// The reason, and the warning if there is one.
    pub fn told(&self) -> String {
        self.warning.as_ref().map_or_else(|| self.reason.clone(), |warning| format!("{}; {warning}", self.reason))
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
    /// The policies by index.
    pub policies: BTreeMap<u8, PolicyRecord>,
    /// Those that have a name as people see them, in the order of the configuration.
    pub policy_views: Vec<PolicyView>,
    /// The rules.
    pub rules: Arc<RuleTable>,
    /// The rules that agree with each managed interface that any rule asks for.
    pub rule_interfaces: BTreeMap<u32, RuleSet>,
    /// One bit per uplink that can be used.
    pub healthy: u64,
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
    /// Gateways (interface, address) whose Ethernet address the kernel should know.
    pub gateways: BTreeSet<(u32, Ipv4Addr)>,
    /// Those of them that have fallen silent and should be looked for.
    pub sought: BTreeSet<(u32, Ipv4Addr)>,
    /// The neighbour epoch.
    pub neighbour_epoch: u32,
}

impl Desired {
    /// Works it out. `indices` must have been [`Indices::assign`]ed for this configuration; an uplink without an index is left out.
    /// `conditions`: of each uplink, in the order of the configuration. `spreads`: of each policy, by its name.
    pub fn new(
        config: &Config,
        rules: &Arc<RuleTable>,
        indices: &Indices,
        overrides: &Overrides,
        observed: &Observed,
        conditions: &[Condition],
        spreads: &BTreeMap<String, Spread>,
    ) -> Self {
        let (policies, policy_views) = policies::policies(config, indices, overrides, spreads);
        let mut desired = Self {
            uplinks: BTreeMap::new(),
            views: Vec::with_capacity(config.uplinks.len()),
            policies,
            policy_views,
            rules: rules.clone(),
            rule_interfaces: BTreeMap::new(),
            healthy: 0,
            settings: records::settings(config),
            pools: BTreeMap::new(),
            outside: BTreeMap::new(),
            forwards: BTreeMap::new(),
            routing: Routing { mark_mask: config.datapath.mark_mask, uplinks: BTreeMap::new(), spare: None },
            interfaces: BTreeMap::new(),
            local: observed.local().clone(),
            gateways: BTreeSet::new(),
            sought: BTreeSet::new(),
            neighbour_epoch: observed.neighbour_epoch(),
        };
        let hook = match config.datapath.mode {
            Mode::Auto => Hook::Auto,
            Mode::Xdp => Hook::Xdp,
            Mode::Tc => Hook::Tc,
        };
        for (position, (uplink, condition)) in config.uplinks.iter().zip(conditions).enumerate() {
            let Some(index) = indices.get(&uplink.name) else { continue };
            let link = observed.link(condition.ifindex);
            desired.place(index, uplink, condition, link);
            if let Some(gateway) = condition.gateway {
                desired.look_after(gateway, link, observed);
            }
            for forward in config.forwards.iter().filter(|forward| forward.uplinks.contains(&position)) {
                desired.forwards.extend(records::forward(forward, index, &condition.addresses));
            }
            let default = desired.policy_views.first().and_then(|policy| policy.member(&uplink.name));
            desired.views.push(view(
                index,
                uplink,
                condition,
                config.default_policy().and_then(|policy| policy.place(position)),
                is_chosen(config, position),
                default,
                overrides,
            ));
            if let Some(link) = link {
                let hook = if link.master.is_some() { Hook::None } else { hook };
                desired.manage(link, abi::ROLE_UPLINK, index, hook);
            }
        }
        desired.settings.uplinks = desired.uplinks.last_key_value().map_or(0, |(index, _)| u32::from(*index) + 1);
        for link in observed.links().filter(|link| config.is_lan(&link.name) && link.master.is_none()) {
            if !desired.interfaces.contains_key(&link.ifindex) {
                desired.manage(link, abi::ROLE_LAN, 0, hook);
            }
        }
        if config.datapath.host_traffic {
            desired.routing.spare = desired.spare(observed);
        }
        desired
    }

    /// Notes an uplink for the datapath.
    fn place(&mut self, index: u8, uplink: &Uplink, condition: &Condition, link: Option<&Link>) {
        self.healthy |= u64::from(condition.usable) << index;
        let on_down = match uplink.on_down {
            OnDown::Reset => 0,
            OnDown::Hold => abi::UPLINK_HOLD,
            OnDown::Repin => abi::UPLINK_REPIN,
        };
        let mtu = link.map_or(0, |link| link.mtu);
        let record = abi::Uplink {
            ifindex: condition.ifindex,
            flags: on_down | if uplink.nat { abi::UPLINK_NAT } else { 0 },
            mtu,
            first_port: uplink.ports.first,
            last_port: uplink.ports.last,
            mss: records::mss(uplink.mss_clamp, mtu),
            reserved: 0,
            v4: abi::Route {
                address: condition.address().unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
                gateway: condition.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            },
            v6: abi::Route::default(),
            name: records::padded(&uplink.name),
        };
        self.uplinks.insert(index, record);
        self.pools.insert(index, records::pool(&condition.addresses));
        for address in condition.addresses.iter().flat_map(|range| range.addresses()) {
            *self.outside.entry(address).or_default() |= 1 << index;
        }
        // By Ethernet without a gateway there is no way out.
        if link.is_some_and(|link| link.up && (condition.gateway.is_some() || link.mac.is_none())) {
            self.routing.uplinks.insert(index, Way { ifindex: condition.ifindex, gateway: condition.gateway });
        }
    }

    /// Has the kernel know a gateway, unless somebody has told it.
    fn look_after(&mut self, gateway: Ipv4Addr, link: Option<&Link>, observed: &Observed) {
        if let Some(link) = link.filter(|link| link.up && link.carrier && link.mac.is_some())
            && !matches!(observed.neighbour(link.ifindex, gateway), Some(Neighbour::Known { fixed: true, .. }))
        {
            self.gateways.insert((link.ifindex, gateway));
        }
    }

    /// Whether new flows find an uplink under any policy that has a name.
    pub fn takes_flows(&self) -> bool {
        let mut named = self.policies.iter().filter(|(index, _)| policy::uplink_of(**index).is_none());
        named.any(|(_, policy)| u64::from(policy.members) & self.healthy != 0)
    }

    /// Whether flows have to leave otherwise than before: an uplink has another interface, gateway or address.
    pub fn leads_elsewhere_than(&self, before: &Self) -> bool {
        let way = |uplink: &abi::Uplink| (uplink.ifindex, uplink.v4);
        let ways =
            |desired: &Self| desired.uplinks.iter().map(|(index, uplink)| (*index, way(uplink))).collect::<Vec<_>>();
        ways(self) != ways(before) || self.outside != before.outside
    }

    /// The uplink to stand in for the kernel's preferred default route, if that leads by an uplink that is down: of those that are not,
    /// the one whose default route comes next.
    fn spare(&self, observed: &Observed) -> Option<u8> {
        let by = |ifindex: u32| {
            let found = self.routing.uplinks.iter().find(|(_, way)| way.ifindex == ifindex);
            found.map(|(&index, _)| index)
        };
        let usable = |index: u8| self.healthy >> index & 1 != 0;
        let routes = observed.default_routes();
        let preferred = routes.first()?.metric;
        let mut best = routes.iter().take_while(|route| route.metric == preferred).flat_map(|route| &route.hops);
        if best.all(|hop| by(hop.ifindex).is_none_or(usable)) {
            return None;
        }
        let routed = routes.iter().flat_map(|route| &route.hops).filter_map(|hop| by(hop.ifindex));
        routed.chain(self.routing.uplinks.keys().copied()).find(|&index| usable(index))
    }

    fn manage(&mut self, link: &Link, role: u8, uplink: u8, hook: Hook) {
        let flags = if link.mac.is_none() { abi::INTERFACE_L3 } else { 0 };
        let mac = link.mac.unwrap_or_default();
        let interface = abi::Interface { role, uplink, flags, mac, mtu: link.mtu, ..abi::Interface::default() };
        if role == abi::ROLE_LAN {
            self.settings.lan_mtu = self.settings.lan_mtu.min(link.mtu);
        }
        if let Some(rules) = self.rules.of_interface(&link.name) {
            self.rule_interfaces.insert(link.ifindex, rules);
        }
        self.interfaces.insert(link.ifindex, ManagedInterface { name: link.name.clone(), interface, hook });
    }
}

/// Whether a rule has flows use an uplink, on its own or by a policy.
fn is_chosen(config: &Config, uplink: usize) -> bool {
    config.rules.iter().any(|rule| match rule.action {
        Use::Uplink(index) => index == uplink,
        Use::Policy(index) => {
            let place = config.policies.get(index).filter(|_| index > 0).and_then(|policy| policy.place(uplink));
            place.is_some_and(|(_, weight)| weight != Weight::Fixed(0))
        }
        Use::Direct | Use::Reject | Use::Drop => false,
    })
}

/// An uplink as people see it. `configured`, `member`: its place in the default policy, as configured and as it is; `chosen`: rules have
/// flows use it all the same.
fn view(
    index: u8,
    uplink: &Uplink,
    condition: &Condition,
    configured: Option<(usize, Weight)>,
    chosen: bool,
    member: Option<&MemberView>,
    overrides: &Overrides,
) -> UplinkView {
    let of_capacity = uplink.nominal_weight();
    let number = |weight: Weight| match weight {
        Weight::Fixed(weight) => weight,
        Weight::Capacity => of_capacity,
    };
    let configured_weight = configured.map_or(0, |(_, weight)| number(weight));
    let weight = member.map_or(0, |member| number(member.weight));
    let (state, reason) = if !condition.usable {
        (UplinkState::Down, condition.reason.clone())
    } else if overrides.drained.contains(&uplink.name) {
        (UplinkState::Draining, "by hand".to_owned())
    } else if weight == 0 && !chosen {
        (UplinkState::Disabled, "weight 0".to_owned())
    } else {
        (UplinkState::Up, condition.reason.clone())
    };
    UplinkView {
        index,
        name: uplink.name.clone(),
        interface: uplink.interface.clone(),
        state,
        reason,
        warning: condition.warning.clone(),
        tier: member.map(|member| member.tier),
        addresses: condition.addresses.clone(),
        gateway: condition.gateway,
        configured_weight,
        configured_by_capacity: configured.is_some_and(|(_, weight)| weight == Weight::Capacity),
        weight,
        by_capacity: member.is_some_and(|member| member.weight == Weight::Capacity),
        effective_weight: member.map_or(0, |member| member.effective_weight),
        share: member.map_or(0.0, |member| member.share),
        capacity: uplink.capacity,
    }
}

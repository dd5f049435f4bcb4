//! The kernel's routing on mh's behalf: rules that act on marks (see [`mh_common::abi::mark`]), and one table per uplink.
//!
//! A packet that is too large for its uplink goes to the kernel with that uplink's mark; a rule sends it to the uplink's own table, and
//! the kernel fragments it, or answers with ICMP, as for any packet that it forwards. Packets that are to be refused carry a mark whose
//! rule refuses them. Everything stays in force without the controller.
//!
//! The machine's own traffic meets mh on its way out of an uplink's device, and never gets there if the kernel's default route leads
//! to a gateway that doesn't answer ARP any more. While that route's uplink is down, two rules put another uplink's table before it;
//! only for what the machine itself sends, and only for destinations that no better route of the main table knows.
//!
//! Ownership: rules and routes carry [`PROTOCOL`]; nothing else is looked at, and nothing of it is left by [`remove`].

use std::net::Ipv4Addr;

use mh_common::abi::{self, mark};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{DatapathError, requests::Requests};
use crate::{
    core::{Routing, Way},
    netlink::is_fixed,
};

/// Who made a rule or a route (`RTPROT_*`): a number that nobody else has (`/etc/iproute2/rt_protos`).
pub const PROTOCOL: u8 = 109;
/// The rules' priority: before those that people write, which mh's marks would not match anyway.
const PRIORITY: u32 = 109;
/// The table of uplink 0; those of the others follow ("mh", 0).
const FIRST_TABLE: u32 = 0x6d68_0000;

/// The priority of the rule by which the main table's routes, but for default routes, come first for what the machine itself sends;
/// right before that of the main table. The rule for the uplink that stands in follows it.
const SPARE_PRIORITY: u32 = 32_764;
/// What the machine itself sends comes from this interface.
const ITSELF: &str = "lo";

impl Routing {
    /// The rules: mark, and table or refusal; and those for a spare.
    fn rules(&self) -> Vec<RuleMessage> {
        let marked = |value, action, table: Option<u32>| {
            let marks = [RuleAttribute::FwMark(mark::of(value, self.mark_mask)), RuleAttribute::FwMask(self.mark_mask)];
            rule(PRIORITY, action, marks.into_iter().chain(table.map(RuleAttribute::Table)))
        };
        let itself = |priority, table, more: Option<RuleAttribute>| {
            let which = [RuleAttribute::Iifname(ITSELF.to_owned()), RuleAttribute::Table(table)];
            rule(priority, RuleAction::ToTable, which.into_iter().chain(more))
        };
        let uplinks = self.uplinks.keys().map(|&index| {
            marked(mark::FIRST_UPLINK + u32::from(index), RuleAction::ToTable, Some(FIRST_TABLE + u32::from(index)))
        });
        let refusals = [(mark::PROHIBIT, RuleAction::Prohibit), (mark::UNREACHABLE, RuleAction::Unreachable)];
        let refusals = refusals.map(|(value, action)| marked(value, action, None));
        let spare = self.spare.into_iter().flat_map(|index| {
            let no_default = RuleAttribute::SuppressPrefixLen(0);
            let table = FIRST_TABLE + u32::from(index);
            [
                itself(SPARE_PRIORITY, libc::RT_TABLE_MAIN.into(), Some(no_default)),
                itself(SPARE_PRIORITY + 1, table, None),
            ]
        });
        uplinks.chain(refusals).chain(spare).collect()
    }

    fn routes(&self) -> Vec<RouteMessage> {
        let route = |(&index, way): (&u8, &Way)| {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .table_id(FIRST_TABLE + u32::from(index))
                .protocol(RouteProtocol::from(PROTOCOL))
                .output_interface(way.ifindex);
            match way.gateway {
                // The gateway need not be within a network of the interface.
                Some(gateway) => builder.gateway(gateway).onlink().build(),
                None => builder.scope(RouteScope::Link).build(),
            }
        };
        self.uplinks.iter().map(route).collect()
    }
}

/// A rule of mh's.
fn rule(priority: u32, action: RuleAction, attributes: impl IntoIterator<Item = RuleAttribute>) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.action = action;
    rule.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL))];
    rule.attributes.extend(attributes);
    rule
}

/// Makes the kernel's rules and routes with [`PROTOCOL`] those of `wanted`.
///
/// # Errors
/// If the kernel refuses; what was done until then stays.
pub fn apply(wanted: &Routing) -> Result<(), DatapathError> {
    let mut socket = Requests::open()?;
    // What is as it should be is not touched: changes wait for a lock that the whole system shares.
    let mut rules = wanted.rules();
    for rule in own_rules(&mut socket)? {
        match rules.iter().position(|wanted| is_same(wanted, &rule)) {
            Some(there) => drop(rules.swap_remove(there)),
            None => socket.request("remove a routing rule", RouteNetlinkMessage::DelRule(rule), 0, &[libc::ENOENT])?,
        }
    }
    for rule in rules {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        socket.request("add a routing rule", RouteNetlinkMessage::NewRule(rule), flags, &[libc::EEXIST])?;
    }
    let mut routes = wanted.routes();
    for route in own_routes(&mut socket)? {
        match routes.iter().position(|wanted| table_of(wanted) == table_of(&route)) {
            Some(there) if is_same_way(&routes[there], &route) => drop(routes.swap_remove(there)),
            // Replaced below.
            Some(_) => {}
            None => socket.request("remove a route", RouteNetlinkMessage::DelRoute(route), 0, &[libc::ESRCH])?,
        }
    }
    for route in routes {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        // An interface that is down or gone has no routes; its uplink takes no packets either.
        let absent = &[libc::ENETDOWN, libc::ENODEV, libc::ENETUNREACH, libc::EINVAL];
        socket.request("set an uplink's route", RouteNetlinkMessage::NewRoute(route), flags, absent)?;
    }
    Ok(())
}

/// Has the kernel know a gateway's Ethernet address and keep knowing it (`NTF_EXT_MANAGED`, 5.16; before, `NTF_USE` has it look once): packets
/// that mh redirects can't wait for it. Not for one that somebody has set: a permanent entry would be forgotten.
///
/// # Errors
/// If the kernel refuses.
pub fn keep_gateway(ifindex: u32, gateway: Ipv4Addr) -> Result<(), DatapathError> {
    let mut socket = Requests::open()?;
    // Somebody may just have set it.
    if is_fixed_gateway(&mut socket, ifindex, gateway) { Ok(()) } else { keep(&mut socket, ifindex, gateway) }
}

fn keep(socket: &mut Requests, ifindex: u32, gateway: Ipv4Addr) -> Result<(), DatapathError> {
    let mut neighbour = neighbour(ifindex, gateway, NeighbourFlags::Use);
    neighbour.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    let message = RouteNetlinkMessage::NewNeighbour(neighbour);
    socket.request("keep a gateway's Ethernet address", message, NLM_F_CREATE, ABSENT)
}

/// Has the kernel ask a gateway that it knows whether it is still there, as it does by itself only for what it routes: three ARP requests
/// within three seconds by default; if none is answered, the neighbour has failed.
///
/// # Errors
/// If the kernel refuses.
pub fn check_gateway(ifindex: u32, gateway: Ipv4Addr) -> Result<(), DatapathError> {
    let mut socket = Requests::open()?;
    if is_fixed_gateway(&mut socket, ifindex, gateway) {
        return Ok(());
    }
    let mut neighbour = neighbour(ifindex, gateway, NeighbourFlags::empty());
    neighbour.header.state = NeighbourState::Probe;
    let message = RouteNetlinkMessage::NewNeighbour(neighbour);
    // It may have been lost meanwhile.
    let tolerated = [ABSENT, &[libc::ENOENT]].concat();
    socket.request("check a gateway", message, 0, &tolerated)?;
    keep(&mut socket, ifindex, gateway)
}

/// Leaves a gateway to the kernel again.
///
/// # Errors
/// If the kernel refuses.
pub fn leave_gateway(ifindex: u32, gateway: Ipv4Addr) -> Result<(), DatapathError> {
    let mut socket = Requests::open()?;
    let Some(found) = find_gateway(&mut socket, ifindex, gateway).filter(|found| !is_fixed(found)) else {
        return Ok(());
    };
    let managed = |attribute: &NeighbourAttribute| matches!(attribute, NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::Managed));
    if found.attributes.iter().any(managed) {
        // Without the flag, it is cleared; the entry's state stays.
        let message = RouteNetlinkMessage::NewNeighbour(neighbour(ifindex, gateway, NeighbourFlags::Use));
        socket.request("leave a gateway", message, 0, ABSENT)?;
    }
    Ok(())
}

/// What the kernel knows of a gateway; nothing if it does not know it, or the interface is gone.
fn find_gateway(socket: &mut Requests, ifindex: u32, gateway: Ipv4Addr) -> Option<NeighbourMessage> {
    let wanted = RouteNetlinkMessage::GetNeighbour(neighbour(ifindex, gateway, NeighbourFlags::empty()));
    match socket.get("a gateway", wanted) {
        Ok(Some(RouteNetlinkMessage::NewNeighbour(found))) => Some(found),
        _ => None,
    }
}

fn is_fixed_gateway(socket: &mut Requests, ifindex: u32, gateway: Ipv4Addr) -> bool {
    find_gateway(socket, ifindex, gateway).is_some_and(|found| is_fixed(&found))
}

/// What the kernel answers about an interface that is down or gone.
const ABSENT: &[i32] = &[libc::ENETDOWN, libc::ENODEV, libc::ENXIO, libc::EINVAL];

fn neighbour(ifindex: u32, address: Ipv4Addr, flags: NeighbourFlags) -> NeighbourMessage {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    neighbour.header.ifindex = ifindex;
    neighbour.header.flags = flags;
    neighbour.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    neighbour
}

/// A packet that the machine itself would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Its source address; `None`: the kernel's choice.
    pub src: Option<Ipv4Addr>,
    /// Its destination address.
    pub dst: Ipv4Addr,
    /// IP protocol, source and destination port, where it has ports.
    pub transport: Option<(u8, u16, u16)>,
    /// The TOS byte.
    pub tos: u8,
}

/// The interface by which the kernel would send a packet; `None`: there is no route. To the machine itself, that is the loopback interface.
///
/// # Errors
/// If the kernel does not answer.
pub fn leaves_by(packet: &Sent) -> Result<Option<u32>, DatapathError> {
    let prefix_len = u8::try_from(Ipv4Addr::BITS).unwrap_or(u8::MAX);
    let mut query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(packet.dst, prefix_len).tos(packet.tos);
    if let Some(src) = packet.src {
        query = query.source_prefix(src, prefix_len);
    }
    if let Some((protocol, sport, dport)) = packet.transport {
        query = query.ip_protocol(protocol).sport(sport).dport(dport);
    }
    let mut query = query.build();
    // What a request may not name.
    (query.header.protocol, query.header.scope) = (RouteProtocol::Unspec, RouteScope::Universe);
    (query.header.kind, query.header.table) = (RouteType::Unspec, RouteHeader::RT_TABLE_UNSPEC);
    let answer = Requests::open()?.get("a route", RouteNetlinkMessage::GetRoute(query));
    let route = match answer {
        Ok(Some(RouteNetlinkMessage::NewRoute(route))) => route,
        Ok(_) => return Ok(None),
        Err(DatapathError::Io { source, .. }) if source.raw_os_error().is_some_and(|code| NO_ROUTE.contains(&code)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    }))
}

/// What the kernel answers where no route leads, or one that refuses, or where the source can't be.
const NO_ROUTE: &[i32] = &[libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::ENETDOWN];

/// Removes all rules and routes with [`PROTOCOL`].
///
/// # Errors
/// If the kernel refuses.
pub fn remove() -> Result<(), DatapathError> {
    let mut socket = Requests::open()?;
    for rule in own_rules(&mut socket)? {
        socket.request("remove a routing rule", RouteNetlinkMessage::DelRule(rule), 0, &[libc::ENOENT])?;
    }
    for route in own_routes(&mut socket)? {
        socket.request("remove a route", RouteNetlinkMessage::DelRoute(route), 0, &[libc::ESRCH])?;
    }
    Ok(())
}

/// Whether a rule of the kernel's is the one that is wanted.
fn is_same(wanted: &RuleMessage, found: &RuleMessage) -> bool {
    wanted.header.action == found.header.action
        && wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute))
}

/// Whether a route of the kernel's leads where the one that is wanted does.
fn is_same_way(wanted: &RouteMessage, found: &RouteMessage) -> bool {
    let leads = |attribute: &&RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Oif(_));
    let count = |route: &RouteMessage| route.attributes.iter().filter(leads).count();
    wanted.attributes.iter().filter(leads).all(|attribute| found.attributes.contains(attribute))
        && count(wanted) == count(found)
}

fn is_own(attributes: &[RuleAttribute]) -> bool {
    attributes.contains(&RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)))
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(u32::from(route.header.table))
}

fn own_rules(socket: &mut Requests) -> Result<Vec<RuleMessage>, DatapathError> {
    let mut all = RuleMessage::default();
    all.header.family = AddressFamily::Inet;
    let answers = socket.list("the routing rules", RouteNetlinkMessage::GetRule(all))?;
    let rules = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRule(rule) if is_own(&rule.attributes) => Some(rule),
        _ => None,
    });
    Ok(rules.collect())
}

/// Those in mh's tables alone: the main table may be long.
fn own_routes(socket: &mut Requests) -> Result<Vec<RouteMessage>, DatapathError> {
    let mut routes = Vec::new();
    for table in (FIRST_TABLE..).take(abi::MAX_UPLINKS) {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = AddressFamily::Inet;
        wanted.header.protocol = RouteProtocol::from(PROTOCOL);
        wanted.attributes.push(RouteAttribute::Table(table));
        let answers = socket.list("an uplink's routes", RouteNetlinkMessage::GetRoute(wanted))?;
        routes.extend(answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) if route.header.protocol == RouteProtocol::from(PROTOCOL) => {
                Some(route)
            }
            _ => None,
        }));
    }
    Ok(routes)
}

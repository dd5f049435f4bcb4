//! rtnetlink messages as events. Messages that say nothing to the core become none.

use std::net::IpAddr;

use rtnetlink::{
    packet_core::NLM_F_REPLACE,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use crate::core::{DefaultRoute, Event, Hop, Link};

/// The events that a message stands for. `flags`: those of its header.
pub fn events(message: &RouteNetlinkMessage, flags: u16) -> Vec<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => link(message).into_iter().collect(),
        // A bridge announces in its own family that a port leaves it.
        RouteNetlinkMessage::DelLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            vec![Event::LinkGone(message.header.index)]
        }
        RouteNetlinkMessage::NewAddress(message) => address(message, true).into_iter().collect(),
        RouteNetlinkMessage::DelAddress(message) => address(message, false).into_iter().collect(),
        RouteNetlinkMessage::NewRoute(message) => route(message, Some(flags)).into_iter().collect(),
        RouteNetlinkMessage::DelRoute(message) => route(message, None).into_iter().collect(),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message, true).into_iter().collect(),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(message, false).into_iter().collect(),
        _ => Vec::new(),
    }
}

pub fn link(message: &LinkMessage) -> Option<Event> {
    // Bridges announce their ports in a family of their own, with fewer attributes.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp) && flags.contains(LinkFlags::Running),
        master: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(master) => link.master = Some(*master).filter(|master| *master != 0),
            LinkAttribute::Address(mac) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = mac.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(Event::Link(link))
}

pub fn address(message: &AddressMessage, there: bool) -> Option<Event> {
    // One of the link alone (169.254.0.0/16, RFC 3927) is no address to send to others with.
    if there && !matches!(message.header.scope, AddressScope::Universe | AddressScope::Site) {
        return None;
    }
    let ifindex = message.header.index;
    let secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
    // On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is the interface's own.
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    Some(if there { Event::Address { ifindex, address, secondary } } else { Event::AddressGone(ifindex, address) })
}

/// `new`: the header's flags of the message by which the route begins; `None`: it ends.
pub fn route(message: &RouteMessage, new: Option<u16>) -> Option<Event> {
    if message.header.address_family != AddressFamily::Inet {
        return None;
    }
    let mut table = u32::from(message.header.table);
    let mut destination = None;
    let mut metric = 0;
    let mut ifindex = None;
    let mut gateway = None;
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::MultiPath(paths) => hops.extend(paths.iter().map(|path| {
                let gateway = path.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                });
                Hop { ifindex: path.interface_index, gateway }
            })),
            _ => {}
        }
    }
    let kind = message.header.kind;
    if table == u32::from(libc::RT_TABLE_LOCAL) {
        let own = matches!(kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast);
        // 127.0.0.0/8 is a route too; no router forwards it, so whole addresses are all that is needed.
        let address = destination.filter(|_| own && message.header.destination_prefix_length == 32)?;
        return Some(if new.is_some() { Event::Local(address) } else { Event::LocalGone(address) });
    }
    let is_default = table == u32::from(libc::RT_TABLE_MAIN)
        && message.header.destination_prefix_length == 0
        && kind == RouteType::Unicast;
    hops.extend(ifindex.map(|ifindex| Hop { ifindex, gateway }));
    if !is_default || hops.is_empty() {
        return None;
    }
    let route = DefaultRoute { metric, hops };
    Some(match new {
        Some(flags) => Event::DefaultRoute { route, replaces: flags & NLM_F_REPLACE != 0 },
        None => Event::DefaultRouteGone(route),
    })
}

pub fn neighbour(message: &NeighbourMessage, there: bool) -> Option<Event> {
    // Bridges and tunnels announce what they learn in a family of their own.
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let ifindex = message.header.ifindex;
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => address = Some(*inet),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let address = address?;
    let state = message.header.state;
    Some(match (there, state, mac) {
        (true, NeighbourState::Failed, _) => Event::NeighbourFailed(ifindex, address),
        (true, NeighbourState::Incomplete | NeighbourState::None, _) | (true, _, None) | (false, ..) => {
            Event::NeighbourGone(ifindex, address)
        }
        (true, _, Some(mac)) => Event::Neighbour { ifindex, address, mac, fixed: is_fixed(message) },
    })
}

/// Whether somebody has set a neighbour, and the kernel does not look for itself.
pub fn is_fixed(neighbour: &NeighbourMessage) -> bool {
    let header = &neighbour.header;
    header.flags.contains(NeighbourFlags::ExtLearned)
        || matches!(header.state, NeighbourState::Permanent | NeighbourState::Noarp)
}

//! The kernel's side of [`crate::core`]: netlink messages become events.
//!
//! Events have a socket of their own, which is subscribed before anything is dumped, so that nothing falls between. Dumps go
//! through a second one. Messages that say nothing to the core, or that don't parse, become no event.

use std::net::{IpAddr, Ipv4Addr};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use crate::core::{DefaultRoute, Event, Link};

/// The routing table that holds all but local and broadcast addresses (`RT_TABLE_MAIN`).
const RT_TABLE_MAIN: u32 = 254;
/// The routing table of local and broadcast addresses (`RT_TABLE_LOCAL`).
const RT_TABLE_LOCAL: u32 = 255;

/// Why netlink does not answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] std::io::Error),
    /// A dump failed.
    #[error("cannot list {what}: {source}")]
    Dump {
        /// What was to be listed.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
}

/// Subscribes, then dumps: the facts that hold now, and a stream of the changes since the subscription.
pub async fn open() -> Result<(Vec<Event>, impl Stream<Item = Vec<Event>> + Unpin), NetlinkError> {
    let (connection, _, messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Neigh,
    ])?;
    tokio::spawn(connection);
    let (connection, handle, _) = new_connection()?;
    let requests = tokio::spawn(connection);
    let facts = dump(&handle).await;
    requests.abort();
    let changes = messages.map(|(message, _)| match message.payload {
        NetlinkPayload::InnerMessage(message) => events(&message),
        _ => Vec::new(),
    });
    Ok((facts?, changes))
}

async fn dump(handle: &Handle) -> Result<Vec<Event>, NetlinkError> {
    let failed = |what| move |source| NetlinkError::Dump { what, source };
    let mut facts = Vec::new();
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
    facts.extend(links.iter().flat_map(link));
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    facts.extend(addresses.iter().flat_map(|message| address(message, true)));
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<_> = handle.route().get(all).execute().try_collect().await.map_err(failed("routes"))?;
    facts.extend(routes.iter().flat_map(|message| route(message, true)));
    let neighbours: Vec<_> = handle.neighbours().get().execute().try_collect().await.map_err(failed("neighbours"))?;
    facts.extend(neighbours.iter().flat_map(|message| neighbour(message, true)));
    Ok(facts)
}

/// All events of a stream that are ready now, in one batch; so a burst of changes is one reconciliation.
pub async fn next_batch(changes: &mut (impl Stream<Item = Vec<Event>> + Unpin)) -> Option<Vec<Event>> {
    let mut batch = changes.next().await?;
    while let Some(Some(more)) = futures::FutureExt::now_or_never(changes.next()) {
        batch.extend(more);
    }
    Some(batch)
}

fn events(message: &RouteNetlinkMessage) -> Vec<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => link(message).into_iter().collect(),
        RouteNetlinkMessage::DelLink(message) => vec![Event::LinkGone(message.header.index)],
        RouteNetlinkMessage::NewAddress(message) => address(message, true).into_iter().collect(),
        RouteNetlinkMessage::DelAddress(message) => address(message, false).into_iter().collect(),
        RouteNetlinkMessage::NewRoute(message) => route(message, true),
        RouteNetlinkMessage::DelRoute(message) => route(message, false),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message, true).into_iter().collect(),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(message, false).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn link(message: &LinkMessage) -> Option<Event> {
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
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = mac.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(Event::Link(link))
}

fn address(message: &AddressMessage, there: bool) -> Option<Event> {
    let ifindex = message.header.index;
    let secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
    // On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is the interface's own.
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    Some(if there { Event::Address { ifindex, address, secondary } } else { Event::AddressGone(ifindex, address) })
}

fn route(message: &RouteMessage, there: bool) -> Vec<Event> {
    if message.header.address_family != AddressFamily::Inet {
        return Vec::new();
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
                (path.interface_index, gateway)
            })),
            _ => {}
        }
    }
    let kind = message.header.kind;
    if table == RT_TABLE_LOCAL {
        let own = matches!(kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast);
        // 127.0.0.0/8 is a route too; no router forwards it, so whole addresses are all that is needed.
        return match destination {
            Some(address) if own && message.header.destination_prefix_length == 32 => {
                vec![if there { Event::Local(address) } else { Event::LocalGone(address) }]
            }
            _ => Vec::new(),
        };
    }
    let is_default =
        table == RT_TABLE_MAIN && message.header.destination_prefix_length == 0 && kind == RouteType::Unicast;
    if !is_default {
        return Vec::new();
    }
    hops.extend(ifindex.map(|ifindex| (ifindex, gateway)));
    hops.into_iter()
        .map(|(ifindex, gateway)| DefaultRoute { metric, ifindex, gateway })
        .map(if there { Event::DefaultRoute } else { Event::DefaultRouteGone })
        .collect()
}

fn neighbour(message: &NeighbourMessage, there: bool) -> Option<Event> {
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
    let lost = matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete);
    match (there && !lost, mac) {
        (true, Some(mac)) => Some(Event::Neighbour(ifindex, address?, mac)),
        _ => Some(Event::NeighbourGone(ifindex, address?)),
    }
}

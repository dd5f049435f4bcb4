//! The kernel's side of [`crate::core`]: netlink messages become events.
//!
//! Events have a socket of their own, which is subscribed before anything is dumped, so that nothing falls between; dumps go through a
//! second one. A task reads the events, so that a slow consumer costs memory of this process and not of the socket, up to a bound.
//!
//! The kernel doesn't tell everything: routes go without a word when a link is set down, when an address goes that they need, or with a
//! nexthop object. And it drops events when the socket's buffer is full (`ENOBUFS`). So after such an event, after an overrun, and every
//! minute, everything is dumped again, and what holds then replaces what was known.
//!
//! Failure behaviour: messages that don't parse are left out, and reported in the log; the next dump makes up for them. A dump that fails is
//! tried again. A socket that fails is opened anew.

mod message;

use std::{io, net::Ipv4Addr, os::fd::AsRawFd as _, time::Duration};

use futures::TryStreamExt as _;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

pub(crate) use message::is_fixed;

use crate::core::Event;

/// What the event socket buffers at the most, in bytes: some 20,000 messages.
const EVENT_BUFFER_LEN: usize = 8 << 20;
/// Changes that wait for the consumer at the most.
const CHANGE_QUEUE: usize = 256;
/// Datagrams that make up one batch of events at the most.
const BATCH: usize = 1024;
/// How long after an event that says too little a dump begins: what comes with it is in the same dump.
const SETTLE_TIME: Duration = Duration::from_millis(20);
/// How often everything is looked at again anyway.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);
/// A dump of a big routing table takes long: this many times as long nothing is dumped after it, and at least [`LEAST_REST`].
const REST_FACTOR: u32 = 4;
const LEAST_REST: Duration = Duration::from_millis(100);
/// How long after a failure of a socket the next one is tried.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// Groups of events: `RTMGRP_*` bits, one less than the `RTNLGRP_*` number, of links, neighbours, IPv4 addresses, routes and rules, and
/// nexthop objects (5.3).
const GROUPS: u32 = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31;

/// Message types (`RTM_*`) that are looked at before parsing.
mod kind {
    pub const NEWLINK: u16 = 16;
    pub const DELLINK: u16 = 17;
    pub const DELADDR: u16 = 21;
    pub const NEWROUTE: u16 = 24;
    pub const DELROUTE: u16 = 25;
    pub const DELRULE: u16 = 33;
    pub const NEWNEXTHOP: u16 = 104;
    pub const DELNEXTHOP: u16 = 105;
}

/// Why netlink does not answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] io::Error),
    /// A dump failed.
    #[error("cannot list {what}: {source}")]
    Dump {
        /// What was to be listed.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
}

/// What has become of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This has changed.
    Events(Vec<Event>),
    /// This is all that holds now.
    All(Vec<Event>),
}

/// Subscribes, then dumps: the facts that hold now, and the changes since the subscription. They end with the receiver.
pub async fn open() -> Result<(Vec<Event>, mpsc::Receiver<Change>), NetlinkError> {
    let socket = subscribe()?;
    let facts = dump().await?;
    let (changes, inbox) = mpsc::channel(CHANGE_QUEUE);
    tokio::spawn(follow(socket, changes));
    Ok((facts, inbox))
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    inner.bind(&SocketAddr::new(0, GROUPS))?;
    // SAFETY: the descriptor lives as long as the socket.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(inner.as_raw_fd()) };
    // Beyond the system's limit, which CAP_NET_ADMIN may; else up to it.
    if setsockopt(&fd, sockopt::RcvBufForce, &EVENT_BUFFER_LEN).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &EVENT_BUFFER_LEN)?;
    }
    Ok(socket)
}

/// What one read of the event socket brings.
#[derive(Debug, Default)]
struct Batch {
    events: Vec<Event>,
    /// The kernel did not say all that follows from these events.
    incomplete: bool,
    /// Events were lost.
    lost: bool,
}

impl Batch {
    /// Takes in a datagram of messages.
    fn read(&mut self, datagram: &[u8]) {
        let mut rest = datagram;
        // The header is 16 bytes: length, type, flags.
        while let [a, b, c, d, e, f, g, h, ..] = *rest {
            let (len, kind) = (u32::from_ne_bytes([a, b, c, d]) as usize, u16::from_ne_bytes([e, f]));
            let flags = u16::from_ne_bytes([g, h]);
            let Some(message) = rest.get(..len).filter(|message| message.len() >= 16) else { break };
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            if !is_of_interest(kind, message) {
                continue;
            }
            match kind {
                kind::NEWNEXTHOP | kind::DELNEXTHOP | kind::DELRULE => {
                    self.incomplete = true;
                    continue;
                }
                kind::NEWLINK | kind::DELLINK | kind::DELADDR | kind::DELROUTE => self.incomplete = true,
                // Which one it replaces is not said.
                kind::NEWROUTE => {
                    self.incomplete |= flags & NLM_F_REPLACE != 0 && message.get(20) == Some(&libc::RT_TABLE_MAIN)
                }
                _ => {}
            }
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
                Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(inner), .. }) => {
                    self.events.extend(message::events(&inner, flags));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("a netlink message of type {kind} can't be read: {error}");
                    self.incomplete = true;
                }
            }
        }
    }
}

/// Whether a message is worth parsing: of a full routing table, only default routes and local addresses are.
fn is_of_interest(kind: u16, message: &[u8]) -> bool {
    match (kind, message.get(16..24)) {
        (kind::NEWROUTE | kind::DELROUTE, Some(&[_, prefix_len, _, _, table, ..])) => {
            prefix_len == 0 || table == libc::RT_TABLE_LOCAL
        }
        _ => true,
    }
}

/// Waits for events, and takes all that are there.
async fn next_batch(socket: &TokioSocket) -> io::Result<Batch> {
    let mut batch = Batch::default();
    let mut datagram = socket.recv_from_full().await;
    for _ in 0..BATCH {
        match datagram {
            Ok((bytes, _)) => batch.read(&bytes),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => batch.lost = true,
            Err(error) => return Err(error),
        }
        match futures::FutureExt::now_or_never(socket.recv_from_full()) {
            Some(more) => datagram = more,
            None => break,
        }
    }
    Ok(batch)
}

/// Passes on what changes, until nobody listens. Events go on while everything is being listed: those are told again after the list, since it
/// may be older.
async fn follow(mut socket: TokioSocket, changes: mpsc::Sender<Change>) {
    let mut resync = Instant::now() + RESYNC_INTERVAL;
    // Nothing is dumped before.
    let mut rest = Instant::now();
    let mut listing: Option<JoinHandle<Result<Vec<Event>, NetlinkError>>> = None;
    let mut begun = Instant::now();
    let mut meanwhile = Vec::new();
    loop {
        let idle = listing.is_none();
        let change = tokio::select! {
            biased;
            batch = next_batch(&socket) => match batch {
                Ok(batch) => {
                    if batch.lost {
                        tracing::warn!("the kernel lost network events, for they came too fast; looking at everything anew");
                    }
                    if batch.incomplete || batch.lost {
                        resync = resync.min((Instant::now() + SETTLE_TIME).max(rest));
                    }
                    if !idle {
                        meanwhile.extend_from_slice(&batch.events);
                    }
                    Change::Events(batch.events)
                }
                Err(error) => {
                    tracing::error!("the netlink socket failed, opening another one: {error}");
                    socket = match subscribe() {
                        Ok(socket) => socket,
                        Err(error) => {
                            tracing::error!("cannot open a netlink socket: {error}");
                            tokio::time::sleep(RETRY_TIME).await;
                            continue;
                        }
                    };
                    resync = rest;
                    continue;
                }
            },
            listed = ended(&mut listing) => {
                listing = None;
                match listed {
                    Ok(mut facts) => {
                        rest = Instant::now() + (begun.elapsed() * REST_FACTOR).max(LEAST_REST);
                        resync = resync.max(rest);
                        facts.append(&mut meanwhile);
                        Change::All(facts)
                    }
                    Err(error) => {
                        tracing::error!("{error}");
                        meanwhile.clear();
                        resync = Instant::now() + RETRY_TIME;
                        continue;
                    }
                }
            }
            () = sleep_until(resync), if idle => {
                begun = Instant::now();
                resync = begun + RESYNC_INTERVAL;
                listing = Some(tokio::spawn(dump()));
                continue;
            }
            () = changes.closed() => return,
        };
        if change != Change::Events(Vec::new()) && changes.send(change).await.is_err() {
            return;
        }
    }
}

/// What a task comes to; without one, never.
async fn ended<T>(task: &mut Option<JoinHandle<Result<T, NetlinkError>>>) -> Result<T, NetlinkError> {
    match task {
        Some(task) => task.await.map_err(|error| NetlinkError::Open(io::Error::other(error)))?,
        None => std::future::pending().await,
    }
}

async fn dump() -> Result<Vec<Event>, NetlinkError> {
    let (connection, handle, _) = new_connection()?;
    let requests = tokio::spawn(connection);
    let facts = list(&handle).await;
    requests.abort();
    facts
}

async fn list(handle: &Handle) -> Result<Vec<Event>, NetlinkError> {
    let failed = |what| move |source| NetlinkError::Dump { what, source };
    let mut facts = Vec::new();
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
    facts.extend(links.iter().filter_map(message::link));
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    facts.extend(addresses.iter().filter_map(|address| message::address(address, true)));
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = handle.route().get(all).execute();
    while let Some(route) = routes.try_next().await.map_err(failed("routes"))? {
        facts.extend(message::route(&route, Some(0)));
    }
    let neighbours: Vec<_> = handle.neighbours().get().execute().try_collect().await.map_err(failed("neighbours"))?;
    facts.extend(neighbours.iter().filter_map(|neighbour| message::neighbour(neighbour, true)));
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type with this body.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(16 + body.len()).unwrap();
        [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat()
    }

    /// `struct rtmsg` of a unicast route.
    fn route(prefix_len: u8, table: u8) -> Vec<u8> {
        vec![2, prefix_len, 0, 0, table, 0, 0, 1, 0, 0, 0, 0]
    }

    fn read(datagram: &[u8]) -> Batch {
        let mut batch = Batch::default();
        batch.read(datagram);
        batch
    }

    #[test]
    fn a_default_route_is_an_event_and_others_are_skipped() {
        // RTA_OIF 3, RTA_GATEWAY 192.0.2.1
        let attributes = [8, 0, 4, 0, 3, 0, 0, 0, 8, 0, 5, 0, 192, 0, 2, 1];
        let of = |prefix_len| message(kind::NEWROUTE, &[&route(prefix_len, 254)[..], &attributes].concat());
        let both = read(&[of(24), of(0)].concat());
        assert_eq!(both.events.len(), 1);
        assert!(
            matches!(&both.events[0], Event::DefaultRoute { route, replaces: false } if route.hops[0].ifindex == 3)
        );
        assert!(!both.incomplete);
    }

    #[test]
    fn what_takes_more_along_than_it_says_asks_for_a_dump() {
        assert!(read(&message(kind::DELNEXTHOP, &[0; 8])).incomplete);
        assert!(read(&message(kind::DELROUTE, &route(0, 254))).incomplete);
        assert!(!read(&message(kind::DELROUTE, &route(16, 254))).incomplete);
    }

    #[test]
    fn what_is_cut_or_absurd_is_no_event_and_no_panic() {
        let whole = message(kind::NEWROUTE, &route(0, 254));
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).events.is_empty());
        }
        for len in [0, 1, 15, u32::MAX] {
            let mut message = whole.clone();
            message[..4].copy_from_slice(&len.to_ne_bytes());
            assert!(read(&message).events.is_empty());
        }
        assert!(read(&message(kind::NEWLINK, &[1; 3])).incomplete, "can't be read, so it may have said anything");
    }
}

//! Nudging clients that only wait: on a flow that is lost, the datapath answers a client's next segment with a RST, but a client that
//! reads, and has nothing to send, sends none. So each gets a segment, in its peer's name, that makes it send.
//!
//! A SYN with ACK on a connection that is established is answered with an ACK, whatever its numbers (RFC 5961 section 4.2, RFC 9293
//! section 3.10.7.4), and that ACK meets the datapath, which resets the connection with the exact number that it carries. A stack from before
//! RFC 5961 answers likewise if the number is out of its window, and else resets the connection itself. A bare ACK that is out of the window
//! is answered by fewer stacks and dropped by stateful filters, and numbers that fit nobody here knows. The segment has a timestamp, as
//! without one a peer that has agreed on timestamps may drop it (RFC 7323 section 3.2).
//!
//! The segments leave by the kernel's own routing: to the LANs, where no program of mh's sees them, or by the loopback device to the
//! machine itself.
//!
//! Limits: [`PER_ROUND`] segments in [`ROUND`], over a list of flows that is as long as the conntrack's tables at most. Failure
//! behaviour: a segment that the kernel refuses is left out; its client notices by its own timeouts.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use mh_common::{
    address::{Address as _, Ipv4},
    checksum::fold,
    flow::{self, State},
    wire,
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

use super::{
    DatapathError,
    flows::{Filter, Flow},
    tables::Tables,
};

/// How many segments are sent at once.
pub const PER_ROUND: usize = 256;
/// How long a round takes: with [`PER_ROUND`], 51,200 segments a second.
pub const ROUND: Duration = Duration::from_millis(5);

/// TCP option: timestamps, ten bytes long (RFC 7323 section 3.2).
const TCP_OPTION_TIMESTAMPS: u8 = 8;
/// Length of the TCP header with timestamps and padding.
const TCP_HEADER_LEN: usize = wire::TCP_LEN + 12;
/// Length of a segment.
const SEGMENT_LEN: usize = wire::IPV4_LEN + TCP_HEADER_LEN;

/// Whose clients are nudged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Those of the flows on the uplink with this index.
    Uplink(u8),
    /// Those of its flows that have one of these addresses outside.
    Addresses(u8, BTreeSet<Ipv4Addr>),
}

impl Which {
    /// Whether the datapath answers the client's next segment on this flow with a RST.
    fn takes(&self, flow: &Flow) -> bool {
        let forward = &flow.forward;
        let lost = match self {
            // What the remote end began waits for its uplink.
            Self::Uplink(_) => forward.flags & flow::ASKED == 0,
            Self::Addresses(_, addresses) => {
                forward.src != flow.key.src && addresses.contains(&Ipv4Addr::from(forward.src))
            }
        };
        let waits = matches!(flow.state(), State::Established | State::HalfClosed);
        lost && waits && forward.flags & flow::HAIRPIN == 0
    }

    fn filter(&self) -> Filter {
        let (Self::Uplink(uplink) | Self::Addresses(uplink, _)) = self;
        Filter { uplink: Some(*uplink), protocol: Some(wire::PROTOCOL_TCP), ..Filter::default() }
    }
}

/// Nudges the clients of all TCP connections that are meant, by the maps pinned in `dir`, and returns how many. Takes its time, so it is for
/// a thread of its own; ends early, without an error, once `goes_on` says no.
///
/// # Errors
/// If the maps can't be read, or a raw socket can't be had (CAP_NET_RAW).
pub fn nudge(dir: &Path, which: &Which, goes_on: impl Fn() -> bool) -> Result<u64, DatapathError> {
    let mut ends = Vec::new();
    Tables::open(dir)?.each_flow(&which.filter(), |flow| {
        if which.takes(&flow) {
            ends.push((end(flow.key.dst, flow.key.dport), end(flow.key.src, flow.key.sport)));
        }
        true
    })?;
    if ends.is_empty() {
        return Ok(0);
    }
    let socket = raw_socket().map_err(|errno| DatapathError::Io {
        what: "open a raw socket, to have clients of a lost uplink connect anew; give mhd CAP_NET_RAW".to_owned(),
        source: errno.into(),
    })?;
    // Numbers that nobody can foresee, so that nobody can tell these segments from others.
    let random = RandomState::new();
    let mut sent = 0;
    for (number, round) in ends.chunks(PER_ROUND).enumerate() {
        if !goes_on() {
            break;
        }
        if number > 0 {
            std::thread::sleep(ROUND);
        }
        for (remote, client) in round {
            let segment =
                segment(*remote, *client, [random.hash_one((remote, client, 0)), random.hash_one((remote, client, 1))]);
            let to = SockaddrIn::from(SocketAddrV4::new(*client.ip(), 0));
            sent += u64::from(sendto(socket.as_raw_fd(), &segment, &to, MsgFlags::MSG_DONTWAIT).is_ok());
        }
    }
    Ok(sent)
}

fn end(address: Ipv4, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address.into(), u16::from_be(port))
}

/// A socket that sends IP packets as they are.
fn raw_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
}

/// The segment, from `remote` to `client`, with these random numbers in it. The kernel fills in the IP header's checksum.
fn segment(remote: SocketAddrV4, client: SocketAddrV4, numbers: [u64; 2]) -> [u8; SEGMENT_LEN] {
    let mut tcp = [0u8; TCP_HEADER_LEN];
    tcp[..2].copy_from_slice(&remote.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&client.port().to_be_bytes());
    // Sequence and acknowledgement number.
    tcp[4..12].copy_from_slice(&numbers[0].to_be_bytes());
    tcp[12] = TCP_HEADER_WORDS << 4;
    tcp[13] = wire::TCP_SYN | wire::TCP_ACK;
    tcp[20..24].copy_from_slice(&[wire::TCP_OPTION_NOP, wire::TCP_OPTION_NOP, TCP_OPTION_TIMESTAMPS, 10]);
    tcp[24..].copy_from_slice(&numbers[1].to_be_bytes());
    let (src, dst) = (Ipv4::from(*remote.ip()), Ipv4::from(*client.ip()));
    let words = tcp.chunks_exact(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])));
    let length = u32::from(TCP_HEADER_BYTES.to_be());
    let sum = words.sum::<u32>() + src.sum() + dst.sum() + u32::from(u16::from(wire::PROTOCOL_TCP).to_be()) + length;
    tcp[wire::TCP_CHECKSUM..wire::TCP_CHECKSUM + 2].copy_from_slice(&(!fold(sum)).to_ne_bytes());

    let mut segment = [0; SEGMENT_LEN];
    segment[0] = wire::IPV4_VERSION_LEN;
    segment[2..4].copy_from_slice(&SEGMENT_BYTES.to_be_bytes());
    segment[wire::IPV4_FRAGMENT..wire::IPV4_FRAGMENT + 2].copy_from_slice(&wire::IPV4_DONT_FRAGMENT.to_be_bytes());
    segment[wire::IPV4_TTL] = wire::DEFAULT_TTL;
    segment[wire::IPV4_TTL + 1] = wire::PROTOCOL_TCP;
    segment[wire::IPV4_SRC..wire::IPV4_DST].copy_from_slice(&remote.ip().octets());
    segment[wire::IPV4_DST..wire::IPV4_LEN].copy_from_slice(&client.ip().octets());
    segment[wire::IPV4_LEN..].copy_from_slice(&tcp);
    segment
}

#[allow(clippy::cast_possible_truncation, reason = "constants below 256")]
const TCP_HEADER_WORDS: u8 = (TCP_HEADER_LEN / 4) as u8;
#[allow(clippy::cast_possible_truncation, reason = "constants below 256")]
const TCP_HEADER_BYTES: u16 = TCP_HEADER_LEN as u16;
#[allow(clippy::cast_possible_truncation, reason = "constants below 256")]
const SEGMENT_BYTES: u16 = SEGMENT_LEN as u16;

#[cfg(test)]
mod tests {
    use mh_common::flow::{Entry, Key};

    use super::*;

    fn key(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Key<Ipv4> {
        let address = |octets: [u8; 4]| Ipv4::from(Ipv4Addr::from(octets));
        Key::new(address(src), address(dst), sport.to_be(), dport.to_be(), wire::PROTOCOL_TCP)
    }

    /// An established connection of 192.168.1.10 by 198.51.100.2.
    fn flow(flags: u8) -> Flow {
        let inside = key([192, 168, 1, 10], 40001, [192, 0, 2, 10], 443);
        let sent = key([198, 51, 100, 2], 40001, [192, 0, 2, 10], 443);
        let half = |flags| Entry { tcp: wire::TCP_ACK, packets: 1, ..Entry::translating(&inside, &sent, 0, flags, 0) };
        Flow { key: inside, forward: half(flags), reply: Some(half(flags | flow::REPLY)) }
    }

    #[test]
    fn a_segment_is_whole() {
        let (remote, client) = ("192.0.2.10:443".parse().unwrap(), "192.168.1.10:40001".parse().unwrap());
        let segment = segment(remote, client, [0x0123_4567_89ab_cdef, 0xfeed_beef_dead_babe]);
        let tcp = &segment[20..];
        assert_eq!(segment[..4], [0x45, 0, 0, 52]);
        assert_eq!(segment[8..10], [64, 6]);
        assert_eq!(segment[12..20], [192, 0, 2, 10, 192, 168, 1, 10]);
        assert_eq!(tcp[..4], [443u16.to_be_bytes(), 40001u16.to_be_bytes()].concat());
        assert_eq!(tcp[4..12], 0x0123_4567_89ab_cdef_u64.to_be_bytes());
        assert_eq!(tcp[12..14], [0x80, 0x12]);
        // With its checksum, all of it and the pseudo-header sum to nothing (RFC 9293 section 3.1).
        let pseudo = [&segment[12..20], &[0, 6, 0, 32], tcp].concat();
        let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!(fold(sum), 0xffff);
    }

    #[test]
    fn who_is_nudged() {
        let addresses = |last| Which::Addresses(0, [[198, 51, 100, last].into()].into());
        let (uplink, address) = (Which::Uplink(0), addresses(2));
        for which in [&uplink, &address] {
            assert!(which.takes(&flow(0)));
            assert!(which.takes(&flow(flow::HOST)), "the machine's own");
            assert!(!which.takes(&flow(flow::HAIRPIN)));
            assert!(!which.takes(&Flow { reply: None, ..flow(0) }), "no connection yet");
            let mut reset = flow(0);
            reset.forward.tcp |= wire::TCP_RST;
            assert!(!which.takes(&reset));
        }
        assert!(!uplink.takes(&flow(flow::ASKED)) && address.takes(&flow(flow::ASKED)));
        assert!(!addresses(3).takes(&flow(0)));
        let mut plain = flow(0);
        plain.key.src = plain.forward.src;
        assert!(uplink.takes(&plain) && !address.takes(&plain), "an address that is not translated");
    }
}

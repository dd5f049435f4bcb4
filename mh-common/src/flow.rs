//! Flows: the conntrack's keys and entries.
//!
//! A flow has two halves, one entry per direction, each under the key that its packets carry on arrival: the forward half
//! under (inside, remote), the reply half under (remote, outside). A half holds everything that one of its packets needs, worked
//! out once: new addresses and ports, checksum deltas, egress interface, Ethernet addresses. One lookup per packet.
//!
//! Invariants:
//! - An entry is one cache line for IPv4 (64 bytes), 88 bytes for IPv6.
//! - Nothing depends on an entry being there: both tables are LRU caches. The binding is the truth about NAT.
//! - A half is written by its own direction only, so no state is shared between CPUs that handle opposite directions. What the
//!   flow as a whole is doing follows from both halves ([`state`]).
//! - Per-flow counters are plain additions: one direction of one flow arrives on one queue and so on one CPU.

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::Timeouts,
    address::Address,
    checksum::Delta,
    time::Tick,
    wire::{self, Mac},
};

/// A packet's addresses and ports as they arrive: 16 bytes for IPv4, 40 for IPv6. For an ICMP echo request the identifier is the
/// source port, for a reply the destination port; the other one is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, big-endian in memory.
    pub sport: u16,
    /// Destination port, big-endian in memory.
    pub dport: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// One half of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<A> {
    /// The source address that the packet leaves with.
    pub src: A,
    /// The destination address that it leaves with.
    pub dst: A,
    /// The source port (or identifier of an echo request) that it leaves with, big-endian in memory.
    pub sport: u16,
    /// The destination port (or identifier of an echo reply) that it leaves with, big-endian in memory.
    pub dport: u16,
    /// What the change of addresses does to the IP header's checksum and to a pseudo-header.
    pub address_delta: Delta,
    /// What the change of ports does to the transport checksum, on top.
    pub port_delta: Delta,
    /// The interface that it leaves by; zero in a reply half of which no packet has come yet.
    pub ifindex: u32,
    /// The next hop's Ethernet address; meaningful with [`RESOLVED`].
    pub dst_mac: Mac,
    /// The egress interface's Ethernet address; meaningful with [`RESOLVED`].
    pub src_mac: Mac,
    /// When the half was last maintained: see [`crate::time::MAINTENANCE_TICKS`].
    pub maintained: Tick,
    /// When the last packet of this direction came, to [`crate::time::SEEN_GRANULARITY_TICKS`].
    pub last_seen: Tick,
    /// When the flow began.
    pub created: Tick,
    /// The uplink's index.
    pub uplink: u8,
    /// [`REPLY`], [`RESOLVED`], [`XDP`], [`HOST`], [`HAIRPIN`].
    pub flags: u8,
    /// TCP flags seen so far in this direction: any of FIN, SYN, RST, ACK of [`crate::wire`].
    pub tcp: u8,
    /// The low byte of the neighbour epoch in which the Ethernet addresses were resolved.
    pub epoch: u8,
    /// Packets of this direction; a packet that carries several segments (GRO) counts as that many.
    pub packets: u64,
    /// Bytes of this direction, from the IP header on.
    pub bytes: u64,
}

/// The half is the reply's: it takes packets from its uplink only. Without this flag it takes packets from inside only.
pub const REPLY: u8 = 1 << 0;
/// The Ethernet addresses are known.
pub const RESOLVED: u8 = 1 << 1;
/// The egress interface can be the target of an XDP redirect.
pub const XDP: u8 = 1 << 2;
/// The inside end is the machine itself: the forward half takes what it sends, the reply half delivers to it.
pub const HOST: u8 = 1 << 3;
/// Both ends are inside and meet by outside addresses (RFC 4787 REQ-9): both halves take packets from inside and lead there.
pub const HAIRPIN: u8 = 1 << 4;
/// The remote end began the flow. With [`HOST`] and without translation: by the very address and port that the machine answers from.
pub const ASKED: u8 = 1 << 5;

// SAFETY: repr(C) of an address of 4 or 16 bytes aligned to 4 and of fields that fill up whole words: no padding, and every
// bit pattern is a value. The sizes are asserted in `abi`.
unsafe impl<A: Address> Zeroable for Key<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for Key<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Zeroable for Entry<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for Entry<A> {}

impl<A: Address> Key<A> {
    /// A key from its parts; ports as in memory.
    #[inline(always)]
    pub const fn new(src: A, dst: A, sport: u16, dport: u16, protocol: u8) -> Self {
        Self { src, dst, sport, dport, protocol, reserved: [0; 3] }
    }
}

impl<A: Address> Entry<A> {
    /// A half that turns packets of `from` into packets of `to`, for the given uplink, as of `now`.
    #[inline(always)]
    pub fn translating(from: &Key<A>, to: &Key<A>, uplink: u8, flags: u8, now: Tick) -> Self {
        let mut entry = Self {
            src: from.src,
            dst: from.dst,
            sport: from.sport,
            dport: from.dport,
            address_delta: Delta::NONE,
            port_delta: Delta::NONE,
            ifindex: 0,
            dst_mac: [0; 6],
            src_mac: [0; 6],
            maintained: now,
            last_seen: now,
            created: now,
            uplink,
            flags,
            tcp: 0,
            epoch: 0,
            packets: 0,
            bytes: 0,
        };
        entry.translate(from, to);
        entry
    }

    /// Has it turn packets of `from` into packets of `to`.
    #[inline(always)]
    pub fn translate(&mut self, from: &Key<A>, to: &Key<A>) {
        (self.src, self.dst, self.sport, self.dport) = (to.src, to.dst, to.sport, to.dport);
        self.address_delta = Delta::address(from.src, to.src).and(Delta::address(from.dst, to.dst));
        self.port_delta = Delta::word(from.sport, to.sport).and(Delta::word(from.dport, to.dport));
    }

    /// The key of the other half: a packet that answers what this half sends out arrives under it.
    #[inline(always)]
    pub const fn other_key(&self, protocol: u8) -> Key<A> {
        Key::new(self.dst, self.src, self.dport, self.sport, protocol)
    }

    /// Whether this is the reply's half.
    #[inline(always)]
    pub const fn is_reply(&self) -> bool {
        self.flags & REPLY != 0
    }

    /// Whether its packets leave by an uplink.
    #[inline(always)]
    pub const fn leads_outside(&self) -> bool {
        self.flags & (REPLY | HAIRPIN) == 0
    }

    /// Whether nothing but Ethernet addresses and TTL changes.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        self.address_delta.is_none() && self.port_delta.is_none()
    }
}

/// What a flow as a whole is doing. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No reply yet; in TCP: the handshake is not complete.
    New,
    /// Packets have gone both ways; in TCP: SYN or data both ways.
    Established,
    /// TCP: one side has sent a FIN. The other may go on sending as long as it likes (RFC 6146 section 3.5.2).
    HalfClosed,
    /// TCP: both sides have sent a FIN.
    Closing,
    /// TCP: a RST was seen.
    Reset,
}

impl State {
    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::HalfClosed => "half_closed",
            Self::Closing => "closing",
            Self::Reset => "reset",
        }
    }

    /// How long a flow may be idle in this state, in ticks (RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2; the state machine's
    /// choice between the two TCP timers is that of RFC 6146 section 3.5.2.2).
    #[inline(always)]
    pub const fn timeout(self, protocol: u8, timeouts: &Timeouts) -> u32 {
        match protocol {
            wire::PROTOCOL_TCP => match self {
                Self::Established | Self::HalfClosed => timeouts.tcp_established,
                Self::New | Self::Closing | Self::Reset => timeouts.tcp_transitory,
            },
            wire::PROTOCOL_ICMP | wire::PROTOCOL_ICMPV6 => timeouts.icmp,
            _ => timeouts.udp,
        }
    }
}

/// What one half contributes to the flow's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether any packet came in this direction.
    pub any: bool,
    /// The TCP flags seen in this direction.
    pub tcp: u8,
}

impl<A> From<&Entry<A>> for Seen {
    #[inline(always)]
    fn from(entry: &Entry<A>) -> Self {
        Self { any: entry.packets > 0, tcp: entry.tcp }
    }
}

/// The state of a flow, from what its forward and its reply half have seen (a half that is missing has seen nothing).
#[inline(always)]
pub const fn state(protocol: u8, forward: Seen, reply: Seen) -> State {
    if protocol == wire::PROTOCOL_TCP {
        if (forward.tcp | reply.tcp) & wire::TCP_RST != 0 {
            return State::Reset;
        }
        if forward.tcp & reply.tcp & wire::TCP_FIN != 0 {
            return State::Closing;
        }
        // After its SYN a side sends only segments with ACK: an ACK in both directions ends the handshake.
        if forward.tcp & reply.tcp & wire::TCP_ACK == 0 {
            return State::New;
        }
        if (forward.tcp | reply.tcp) & wire::TCP_FIN != 0 {
            return State::HalfClosed;
        }
        return State::Established;
    }
    if forward.any && reply.any { State::Established } else { State::New }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::Ipv4,
        wire::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    };
    use proptest::prelude::*;

    fn seen(tcp: u8) -> Seen {
        Seen { any: tcp != 0, tcp }
    }

    #[test]
    fn tcp_states() {
        let state = |f, r| state(PROTOCOL_TCP, seen(f), seen(r));
        assert_eq!(state(TCP_SYN, 0), State::New);
        assert_eq!(state(TCP_SYN, TCP_SYN | TCP_ACK), State::New);
        assert_eq!(state(TCP_SYN | TCP_ACK, TCP_SYN | TCP_ACK), State::Established);
        assert_eq!(state(TCP_ACK, TCP_ACK), State::Established, "picked up in the middle");
        assert_eq!(state(TCP_SYN | TCP_ACK | TCP_FIN, TCP_SYN | TCP_ACK), State::HalfClosed);
        assert_eq!(state(TCP_SYN | TCP_ACK, TCP_SYN | TCP_ACK | TCP_FIN), State::HalfClosed);
        assert_eq!(state(TCP_ACK | TCP_FIN, TCP_ACK | TCP_FIN), State::Closing);
        assert_eq!(state(TCP_SYN, TCP_RST), State::Reset);
        assert_eq!(state(TCP_SYN | TCP_ACK | TCP_RST, TCP_SYN | TCP_ACK), State::Reset);
    }

    #[test]
    fn other_protocols_are_established_by_a_reply() {
        let yes = Seen { any: true, tcp: 0 };
        assert_eq!(state(PROTOCOL_UDP, yes, Seen::default()), State::New);
        assert_eq!(state(PROTOCOL_UDP, yes, yes), State::Established);
        assert_eq!(state(PROTOCOL_ICMP, yes, yes), State::Established);
    }

    #[test]
    fn timeouts_follow_protocol_and_state() {
        let timeouts = Timeouts { udp: 1, tcp_established: 2, tcp_transitory: 3, icmp: 4 };
        assert_eq!(State::Established.timeout(PROTOCOL_UDP, &timeouts), 1);
        assert_eq!(State::Established.timeout(PROTOCOL_TCP, &timeouts), 2);
        assert_eq!(State::HalfClosed.timeout(PROTOCOL_TCP, &timeouts), 2);
        for state in [State::New, State::Closing, State::Reset] {
            assert_eq!(state.timeout(PROTOCOL_TCP, &timeouts), 3);
        }
        assert_eq!(State::New.timeout(PROTOCOL_ICMP, &timeouts), 4);
    }

    proptest! {
        #[test]
        fn the_halves_find_each_other(src: u32, dst: u32, outside: u32, sport: u16, dport: u16, port: u16) {
            let a = Ipv4::from_be;
            let forward_key = Key::new(a(src), a(dst), sport, dport, PROTOCOL_UDP);
            let sent = Key::new(a(outside), a(dst), port, dport, PROTOCOL_UDP);
            let forward = Entry::translating(&forward_key, &sent, 0, 0, 7);
            let reply_key = forward.other_key(PROTOCOL_UDP);
            prop_assert_eq!(reply_key, Key::new(a(dst), a(outside), dport, port, PROTOCOL_UDP));
            let answer = Key::new(a(dst), a(src), dport, sport, PROTOCOL_UDP);
            let reply = Entry::translating(&reply_key, &answer, 0, REPLY, 7);
            prop_assert_eq!(reply.other_key(PROTOCOL_UDP), forward_key);
        }
    }
}

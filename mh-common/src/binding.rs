//! NAT bindings: which outside address and port belong to which inside address and port.
//!
//! Endpoint-independent and per uplink (RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1): the remote side is no part of a binding.
//! Each is kept twice, by its inside and by its outside end, in two hash maps that refuse what does not fit: a binding is never
//! thrown out to make room (RFC 6888 REQ-11).
//!
//! Invariant: `by outside` is inserted first and with `BPF_NOEXIST`, so a port belongs to at most one inside end; whoever fails
//! to insert `by inside` after that takes its own `by outside` back. An embryonic flow's stays, and ends when its time is over.
//!
//! Lifetime: `expires` is moved on by the flows that use the binding (see [`crate::time::MAINTENANCE_TICKS`]) and pulled in
//! when a TCP flow closes. The controller removes a binding once `expires` has passed and no conntrack entry uses it; its outside end
//! rests for [`REST_TICKS`] before it serves another inside host (RFC 6888 REQ-8).
//!
//! A port forward is a binding that the controller makes, marked [`STATIC`]: it never expires, and the filter lets everybody in.
//!
//! An embryonic flow is one of which a single packet has been seen. Most that begin never get any further: scans, floods, what is filtered. It has no
//! conntrack entries yet, but stands in the binding that was made for it, until a second packet comes, in whatever direction: see [`Inside::embryo`].
//! Nor is that binding entered by its inside end before: its port is one of few that follow from the inside end ([`crate::ports::KEYED`]), and is
//! looked for there.
//!
//! Protocols without ports (GRE, ESP, SCTP) are translated by address alone, so one inside host at a time has a remote address on an
//! uplink: both ends of such a binding are kept under the remote address, with a port of zero.

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::Timeouts,
    address::Address,
    flow::{self, Entry, Key, State},
    time::{self, Tick, ticks_for},
    wire,
};

/// One end of a binding, as the key of either map: 8 bytes for IPv4, 20 for IPv6. All fields are as on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End<A> {
    /// The inside or outside address.
    pub address: A,
    /// The port or ICMP identifier, big-endian in memory.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// The uplink's index.
    pub uplink: u8,
}

/// The value of the map by inside end: 16 bytes for IPv4, 28 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside<A> {
    /// The outside address.
    pub address: A,
    /// The outside port or ICMP identifier, big-endian in memory.
    pub port: u16,
    /// The uplink's index, as in the key.
    pub uplink: u8,
    /// [`STATIC`].
    pub flags: u8,
    /// When it was made.
    pub created: Tick,
    /// From when on it may be removed if no conntrack entry uses it.
    pub expires: Tick,
}

impl<A: Address> Outside<A> {
    /// A binding to this outside end.
    #[inline(always)]
    pub const fn to(end: &End<A>, flags: u8, created: Tick, expires: Tick) -> Self {
        let &End { address, port, uplink, .. } = end;
        Self { address, port, uplink, flags, created, expires }
    }

    /// Whether it is to this outside end, which is of its uplink and protocol.
    #[inline(always)]
    pub fn is_to(&self, end: &End<A>) -> bool {
        self.address == end.address && self.port == end.port
    }
}

/// A port forward: made by the controller, does not expire.
pub const STATIC: u8 = 1 << 0;

/// How long an outside port rests after its binding has ended, before it serves another inside host: 120 s (RFC 6888 REQ-8).
pub const REST_TICKS: u32 = ticks_for(120_000_000_000);

/// The value of the map by outside end: 24 bytes for IPv4, 48 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside<A> {
    /// The inside address.
    pub address: A,
    /// The inside port or ICMP identifier, big-endian in memory.
    pub port: u16,
    /// [`STATIC`].
    pub flags: u16,
    /// Zero while the binding is in use; else when it ended, and the port began to rest.
    pub released: Tick,
    /// When the binding was made.
    pub created: Tick,
    /// The remote address of the packet that it was made for, and of the embryonic flow.
    pub remote: A,
    /// Their remote port, big-endian in memory.
    pub remote_port: u16,
    /// The length of its one packet in bytes, from the IP header on; zero: there is no embryonic flow.
    pub embryo: u16,
}

impl<A: Address> Inside<A> {
    /// A binding of this inside address and port that is in use, with no embryonic flow.
    #[inline(always)]
    pub fn of(address: A, port: u16, flags: u16) -> Self {
        Self { address, port, flags, released: 0, created: 0, remote: A::zeroed(), remote_port: 0, embryo: 0 }
    }

    /// The inside end of the binding with this outside end, of a protocol with ports.
    #[inline(always)]
    pub const fn end(&self, outside: &End<A>) -> End<A> {
        let &End { protocol, uplink, .. } = outside;
        End { address: self.address, port: self.port, protocol, uplink }
    }

    /// Whether it has an embryonic flow with this remote end.
    #[inline(always)]
    pub fn is_embryonic(&self, remote: A, remote_port: u16) -> bool {
        self.has_embryo() && self.remote == remote && self.remote_port == remote_port
    }

    /// The key of the forward half of the embryonic flow of the binding that has this outside end.
    #[inline(always)]
    pub const fn embryo_key(&self, outside: &End<A>) -> Key<A> {
        Key::new(self.address, self.remote, self.port, self.remote_port, outside.protocol)
    }

    /// That half. Of TCP, its packet was a SYN.
    #[inline(always)]
    pub fn embryo_forward(&self, outside: &End<A>) -> Entry<A> {
        let protocol = outside.protocol;
        let sent = Key::new(outside.address, self.remote, outside.port, self.remote_port, protocol);
        Entry {
            packets: 1,
            bytes: self.embryo as u64,
            tcp: if protocol == wire::PROTOCOL_TCP { wire::TCP_SYN } else { 0 },
            ..Entry::translating(&self.embryo_key(outside), &sent, outside.uplink, 0, self.created)
        }
    }

    /// The key of its reply half.
    #[inline(always)]
    pub const fn embryo_reply_key(&self, outside: &End<A>) -> Key<A> {
        Key::new(self.remote, outside.address, self.remote_port, outside.port, outside.protocol)
    }

    /// Its reply half.
    #[inline(always)]
    pub fn embryo_reply(&self, outside: &End<A>) -> Entry<A> {
        let answer = Key::new(self.remote, self.address, self.remote_port, self.port, outside.protocol);
        Entry::translating(&self.embryo_reply_key(outside), &answer, outside.uplink, flow::REPLY, self.created)
    }

    /// What the binding with the embryonic flow is by its inside end, where it has not been entered yet.
    #[inline(always)]
    pub fn embryo_binding(&self, outside: &End<A>, timeouts: &Timeouts) -> Outside<A> {
        let expires = self.created.wrapping_add(State::New.timeout(outside.protocol, timeouts));
        Outside::to(outside, 0, self.created, expires)
    }
}

impl<A> Inside<A> {
    /// Whether it is known by this end only, since its one flow is embryonic.
    #[inline(always)]
    pub const fn has_embryo(&self) -> bool {
        self.embryo != 0
    }

    /// Whether the binding is in use (and its port not resting).
    #[inline(always)]
    pub const fn in_use(&self) -> bool {
        self.released == 0
    }

    /// Whether a resting port may serve anybody again.
    #[inline(always)]
    pub const fn rested(&self, now: Tick) -> bool {
        self.released != 0 && time::since(now, self.released) >= REST_TICKS
    }
}

/// What a program asks for an outside port for, and the port that it gets. 44 bytes for IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRequest<A> {
    /// What is to be entered; its port is the first candidate, its remote end that of the first packet, and it is made now. It keeps the embryonic flow only
    /// where that can be found from inside: see [`crate::ports::KEYED`].
    pub inside: Inside<A>,
    /// The outside end; its port does not matter.
    pub outside: End<A>,
    /// The secret number of the inside host: see [`crate::ports::Candidates::new`].
    pub host: u32,
    /// The lowest port that will do, in host byte order.
    pub first_port: u16,
    /// The highest.
    pub last_port: u16,
    /// The port that was found, big-endian in memory.
    pub port: u16,
    /// Which transport, in the programs' own numbers.
    pub transport: u8,
    /// Not zero: the inside end is a socket of the machine itself on the very outside address, and has its port already.
    pub own: u8,
}

/// A remote address that may send to a binding, with address-dependent filtering: 12 bytes for IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer<A> {
    /// The remote address.
    pub remote: A,
    /// The binding's outside end.
    pub outside: End<A>,
}

// SAFETY: repr(C) of an address of 4 or 16 bytes aligned to 4 and of fields that fill up whole words: no padding, and every
// bit pattern is a value. The sizes are asserted in `abi`.
unsafe impl<A: Address> Zeroable for End<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for End<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Zeroable for Outside<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for Outside<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Zeroable for Inside<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for Inside<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Zeroable for Peer<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for Peer<A> {}

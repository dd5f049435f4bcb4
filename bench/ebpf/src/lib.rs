//! What the benchmark and its BPF programs share: names, layouts and the form of a frame.
//!
//! ```text
//!          far side                router                far side
//!  generator ─► port LAN ── lan0 ┌────────┐ wan1 ── port WAN1 ─► sink or reflector
//!                                │        │ wan2 ── port WAN2
//!                                └────────┘
//! ```
//!
//! A frame, in bytes: Ethernet 0 to 14, IPv4 14 to 34, UDP 34 to 42, [`MAGIC`] 42 to 44, the flow's number 44 to 48, payload. The
//! programs write and read the first [`HEAD_LEN`] bytes; those behind them stay as they were given to the generator.

#![no_std]

pub mod case;

use bytemuck::{Pod, Zeroable};

/// The inside of the router.
pub const LAN: u32 = 0;
/// The far end of the first uplink.
pub const WAN1: u32 = 1;
/// The far end of the second uplink.
pub const WAN2: u32 = 2;
/// How many ports the far side has, and the router.
pub const PORTS: usize = 3;
/// Where [`program::DROP`] counts: behind the far side's ports.
pub const DROPPED: u32 = 3;

/// Flows of one inside host: its source ports.
pub const PORTS_PER_HOST: u32 = 63;
/// So much of a frame is written anew each time: what the receiver changed lies within.
pub const HEAD_LEN: usize = 56;
/// Where the flow's number is, in the machine's byte order.
pub const FLOW_OFFSET: usize = 44;
/// Where [`MAGIC`] is.
pub const MAGIC_OFFSET: usize = 42;
/// Tells frames of the benchmark from others: a palindrome, so that byte order does not matter.
pub const MAGIC: u16 = 0x4d4d;

/// Names of the maps.
pub mod map {
    /// Array, [`super::FORWARD`] or [`super::REVERSE`] to [`super::Traffic`].
    pub const TRAFFIC: &str = "bench_traffic";
    /// Array, port of the far side to [`super::Port`].
    pub const PORTS: &str = "bench_ports";
    /// Per-CPU array, port of the far side or [`super::DROPPED`] to [`super::Seen`].
    pub const SEEN: &str = "bench_seen";
    /// Array, flow number to [`super::Learned`].
    pub const LEARNED: &str = "bench_learned";
    /// Array, port of the router to the interface by which [`super::program::BLIND`] sends on what came in there.
    pub const ROUTES: &str = "bench_routes";
}

/// Names of the programs.
pub mod program {
    /// Sends frames into [`super::LAN`], flow by flow.
    pub const GENERATE_FORWARD: &str = "generate_forward";
    /// Sends frames to the translated end of each flow, into the uplink's port where it was learned.
    pub const GENERATE_REVERSE: &str = "generate_reverse";
    /// What the far side's ports do, by port: see [`super::mode`].
    pub const FAR: [&str; super::PORTS] = ["far_lan", "far_wan1", "far_wan2"];
    /// In the router's place: drops.
    pub const DROP: &str = "router_drop";
    /// On the router's interfaces: passes everything, so that the kernel polls them as it does real interfaces.
    pub const PASS: &str = "router_pass";
    /// In the router's place, by port: redirects without a look.
    pub const BLIND: [&str; super::PORTS] = ["blind_lan", "blind_wan1", "blind_wan2"];
}

/// What a port of the far side does with the frames that it receives.
pub mod mode {
    /// Counts and drops them.
    pub const SINK: u32 = 0;
    /// Looks closely, notes where the flow came from, and sends the frame back.
    pub const REFLECT: u32 = 1;
    /// Looks closely, and notes that the flow's answer is back where it began.
    pub const VERIFY: u32 = 2;
}

/// Index of the [`Traffic`] from inside.
pub const FORWARD: u32 = 0;
/// Index of the [`Traffic`] to the inside.
pub const REVERSE: u32 = 1;

/// What a generator sends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Traffic {
    /// The frame's head, with zeros for addresses and ports that change, and for the checksums.
    pub template: [u64; HEAD_LEN / 8],
    /// The first eight bytes by the port that it is sent into: the router's Ethernet address there, and the beginning of the sender's.
    pub lead: [u64; PORTS],
    /// How many frames were sent.
    pub sent: u64,
    /// The interfaces of the far side's ports.
    pub ifindex: [u32; PORTS],
    /// The sum of the IP header's words as in memory, without the address that changes.
    pub ip_sum: u32,
    /// The sum of the words that the UDP checksum covers as in memory, without address, port and flow number that change.
    pub udp_sum: u32,
    /// The first of the flows that are visited in turn.
    pub first: u32,
    /// One behind the last of them.
    pub end: u32,
    /// The flow that is next.
    pub next: u32,
    /// The first inside host's address.
    pub first_address: u32,
    /// The first port of each inside host.
    pub first_port: u32,
    /// Which [`Learned`] are to be used.
    pub generation: u32,
    /// Always zero.
    pub reserved: u32,
}

/// What a port of the far side expects.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Port {
    /// One of [`mode`].
    pub mode: u32,
    /// The source address under `source_mask`, as in memory.
    pub source: u32,
    /// Which bits of the source address are looked at, as in memory.
    pub source_mask: u32,
    /// The generation of what is learned there: see [`Learned::new`].
    pub generation: u32,
    /// The first eight bytes of a frame, with zero in the last two: its destination Ethernet address.
    pub to: u64,
    /// Which bits of them are looked at.
    pub to_mask: u64,
    /// The sum of the payload's words as in memory, without the flow number.
    pub payload_sum: u32,
    /// The first inside host's address.
    pub first_address: u32,
    /// The first port of each inside host.
    pub first_port: u32,
    /// Its interface.
    pub ifindex: u32,
}

/// What a port of the far side has received, on one core.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Seen {
    /// The benchmark's frames.
    pub packets: u64,
    /// Those of them whose source address and destination Ethernet address were as expected.
    pub expected: u64,
    /// Those that were looked at closely and were wrong: checksums, or the inside end of the flow.
    pub wrong: u64,
    /// Flows seen for the first time in this generation.
    pub flows: u64,
    /// Whatever else came in.
    pub others: u64,
}

impl Seen {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            expected: self.expected + other.expected,
            wrong: self.wrong + other.wrong,
            flows: self.flows + other.flows,
            others: self.others + other.others,
        }
    }

    /// What came since an earlier look.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            expected: self.expected - earlier.expected,
            wrong: self.wrong - earlier.wrong,
            flows: self.flows - earlier.flows,
            others: self.others - earlier.others,
        }
    }
}

/// Where a flow came from as the far side saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Learned {
    /// Source address, as in memory.
    pub address: u32,
    /// Source port, as in memory.
    pub port: u16,
    /// See [`Learned::new`].
    pub marks: u16,
}

impl Learned {
    /// The most generations before the first is taken for the last.
    pub const GENERATIONS: u16 = 1 << 14;
    const ANSWERED: u16 = 1 << 14;
    const WAN2: u16 = 1 << 15;

    /// Learned at a port in a generation.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: u32, port: u16, at: u32, generation: u16) -> Self {
        let wan = if at == WAN2 { Self::WAN2 } else { 0 };
        Self { address, port, marks: wan | generation & (Self::GENERATIONS - 1) }
    }

    /// The port where it was learned.
    #[must_use]
    #[inline(always)]
    pub const fn at(&self) -> u32 {
        if self.marks & Self::WAN2 == 0 { WAN1 } else { WAN2 }
    }

    /// Whether it was learned in that generation.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(&self, generation: u16) -> bool {
        (self.marks ^ generation) & (Self::GENERATIONS - 1) == 0
    }

    /// Whether an answer has been back.
    #[must_use]
    #[inline(always)]
    pub const fn is_answered(&self) -> bool {
        self.marks & Self::ANSWERED != 0
    }

    /// An answer is back.
    #[inline(always)]
    pub const fn set_answered(&mut self) {
        self.marks |= Self::ANSWERED;
    }
}

// SAFETY: made of integers without padding, as bytemuck has checked.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Traffic {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Port {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Seen {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Learned {}

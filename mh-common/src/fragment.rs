//! Fragments of IPv4 datagrams (RFC 791 section 3.2): only the first one has ports.
//!
//! The first fragment finds its flow and leaves a copy of the flow's half under the datagram's [`Key`]; later fragments are
//! translated by that copy. Those that come before the first are held, byte for byte, and released into the interface again when the
//! first has come (RFC 4787 REQ-14).
//!
//! Limits against floods (REQ-14a): [`MAX_HELD`] fragments are held in all and [`MAX_HELD_PER_DATAGRAM`] of one datagram, none for
//! longer than [`LIFETIME_TICKS`]. A flood of stray fragments displaces held ones only: what comes in order never waits.

use bytemuck::{Pod, Zeroable};

use crate::{
    address::Address,
    time::{Tick, ticks_for},
};

/// How long a datagram's fragments belong together: 8 s. Identifiers come round in less time than the 15 s of RFC 791 at a few
/// thousand datagrams a second (RFC 4963).
pub const LIFETIME_TICKS: u32 = ticks_for(8_000_000_000);

/// How many datagrams with a first fragment are remembered.
pub const MAX_DATAGRAMS: u32 = 16_384;
/// How many datagrams wait for their first fragment.
pub const MAX_WAITING: u32 = 1024;
/// How many fragments are held.
pub const MAX_HELD: u32 = 512;
/// How many fragments of one datagram are held: 64 KiB at an MTU of 1280 make 52.
pub const MAX_HELD_PER_DATAGRAM: u32 = 52;
/// The longest frame that is held, in bytes: a power of two.
pub const MAX_HELD_LEN: usize = 2048;

/// What fragments of one datagram have in common, as they arrive. 12 bytes for IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The identification field, as in memory.
    pub id: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// The index of the uplink on which the datagram arrives; 0xff: it comes from inside.
    pub uplink: u8,
}

/// A datagram whose first fragment has not come yet. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Waiting {
    /// How many fragments are held.
    pub held: u32,
    /// When the first of them came.
    pub since: Tick,
}

/// A held fragment: of which datagram, and the how-manieth. 16 bytes for IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldKey<A> {
    /// The datagram.
    pub datagram: Key<A>,
    /// Counted from zero in order of arrival.
    pub number: u32,
}

/// A frame as it came. 2052 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Held {
    /// Its length in bytes.
    pub len: u32,
    /// Its bytes.
    pub frame: [u8; MAX_HELD_LEN],
}

// SAFETY: repr(C) of addresses aligned to 4 and of fields that fill up whole words: no padding, and every bit pattern is a value.
unsafe impl<A: Address> Zeroable for Key<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for Key<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Zeroable for HeldKey<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for HeldKey<A> {}

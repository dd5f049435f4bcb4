//! Known sources: whether a port may have a flow or a binding.
//!
//! Whether a packet begins a flow is a question to both tables of flows, and to the bindings on each uplink; whether an outside port is free of what a former flow
//! left, to both tables again. Of what begins, all of them know nothing, and to say so takes each of them a miss of all caches. Here one byte tells it, of a few
//! MiB that the processor keeps near: as many as the conntrack has use for, see [`lines`].
//!
//! Shape: an array of [`Line`]s, of one byte for each of [`PORTS`] consecutive ports of an address, inside or outside. Several sources may share a byte.
//!
//! Invariants:
//! - An inside source that has a binding, or a flow that packets from it belong to, is not unknown, and neither is an outside one that has a flow's answers: the
//!   byte is set once any of these is entered. Who asks between begins a flow at the same time, as two CPUs may without it.
//! - Only the controller clears bytes, in two steps, and only by what was there at the beginning: see [`OLD`]. So whoever enters something meanwhile is not forgotten.
//! - A source that is known for no reason costs time and nothing else.

use bytemuck::{Pod, Zeroable};

use crate::{
    address::Ipv4,
    hash::{self, Seed},
};

/// The fewest lines that there are: 256 KiB.
pub const LEAST_LINES: u32 = 1 << 12;
/// How many bytes there are for an entry of the conntrack.
const BYTES_PER_ENTRY: u32 = 8;
/// How many consecutive ports have their bytes in a line.
pub const PORTS: usize = 64;

/// Nothing is known of the source.
pub const UNKNOWN: u8 = 0;
/// Something was, when the controller began its last round; if it finds nothing, it clears the byte.
pub const OLD: u8 = 1;
/// Something is known.
pub const FRESH: u8 = 2;

/// One byte each for consecutive ports of a host. 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Line {
    /// [`UNKNOWN`], [`OLD`] or [`FRESH`].
    pub ports: [u8; PORTS],
}

/// How many lines there are for a conntrack of so many entries, so that few sources share a byte when it is full: each flow has two sources, inside and outside.
pub const fn lines(entries: u32) -> u32 {
    let lines = (entries / (PORTS as u32 / BYTES_PER_ENTRY)).next_power_of_two();
    if lines < LEAST_LINES { LEAST_LINES } else { lines }
}

/// Where a source's byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line, below their number.
    pub line: u32,
    /// The byte in the line, below [`PORTS`].
    pub byte: usize,
}

impl Place {
    /// Of a port, as it stands in memory. `seed`: [`crate::abi::Settings::seed`], so that nobody else knows who shares a byte. `lines`: how many there are, a power
    /// of two.
    #[inline(always)]
    pub const fn of(seed: Seed, lines: u32, address: Ipv4, port: u16, protocol: u8) -> Self {
        let port = u16::from_be(port);
        let block = (port / PORTS as u16) as u64;
        let hash = hash::place(seed, address.to_be() as u64 | block << 32 | (protocol as u64) << 48, 0);
        Self { line: (hash >> 32) as u32 & lines.wrapping_sub(1), byte: port as usize % PORTS }
    }

    /// The number of the byte among all.
    pub const fn number(self) -> usize {
        self.line as usize * PORTS + self.byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{PROTOCOL_TCP, PROTOCOL_UDP};
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn a_place_is_there(seed: [u64; 2], entries: u32, address: u32, port: u16, protocol: u8) {
            let lines = lines(entries);
            prop_assert!(lines.is_power_of_two());
            let place = Place::of(seed, lines, Ipv4::from_be(address), port, protocol);
            prop_assert!(place.line < lines && place.byte < PORTS);
            prop_assert!(place.number() < lines as usize * PORTS);
        }
    }

    #[test]
    fn a_hosts_consecutive_ports_share_a_line_and_no_byte() {
        let of = |port: u16, protocol| Place::of([7, 9], LEAST_LINES, Ipv4::from_be(1), port.to_be(), protocol);
        let block: HashSet<_> = (640..704).map(|port| of(port, PROTOCOL_UDP).byte).collect();
        assert_eq!(block.len(), PORTS);
        assert!((640..704).all(|port| of(port, PROTOCOL_UDP).line == of(640, PROTOCOL_UDP).line));
        assert_ne!(of(640, PROTOCOL_UDP).line, of(704, PROTOCOL_UDP).line);
        assert_ne!(of(640, PROTOCOL_UDP).line, of(640, PROTOCOL_TCP).line);
    }

    /// A quarter of the lines in use: who is new shares one of them in a quarter of cases, and so a byte in fewer.
    #[test]
    fn lines_are_used_evenly() {
        let lines = lines(1 << 20);
        let hosts = lines / 4;
        let distinct: HashSet<_> =
            (0..hosts).map(|host| Place::of([3, 4], lines, Ipv4::from_be(host), 0, 17).line).collect();
        let expected = f64::from(lines) * (1.0 - (-0.25f64).exp());
        let used = f64::from(u32::try_from(distinct.len()).unwrap());
        assert!((used / expected - 1.0).abs() < 0.02, "{used} of {expected}");
    }
}

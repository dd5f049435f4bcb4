//! What a CPU has last learned of the kernel's routing: is a destination for an uplink.
//!
//! A host that begins several flows to the same destination asks the same again and again. An answer holds for one tick of the datapath's clock, and ends at
//! once with what the controller has seen to change: the epoch is part of it. Only new flows ask, and those that exist don't care for routes.

use bytemuck::{Pod, Zeroable};

use crate::time::Tick;

/// How many answers a CPU remembers.
pub const ANSWERS: u32 = 256;

/// A question, as far as the kernel's routing looks at it: addresses as they stand in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Question {
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// The interface that the packet came in by.
    pub ifindex: u32,
    /// When it is asked.
    pub tick: Tick,
    /// The neighbour epoch.
    pub epoch: u16,
    /// The TOS.
    pub tos: u8,
    /// The IP protocol.
    pub protocol: u8,
}

/// A question and its answer. 24 bytes; all zero: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Answer {
    /// The question.
    pub question: Question,
    /// Not zero: to an uplink, or nowhere at all.
    pub by_uplink: u8,
    /// The uplink whose own link the destination is on, in the programs' terms.
    pub on_link: u8,
    /// Zero.
    pub reserved: u16,
}

impl Question {
    /// Where its answer is remembered, below [`ANSWERS`].
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        let x = (self.src ^ self.dst.rotate_left(16)).wrapping_mul(0x9e37_79b1);
        (x >> 24) % ANSWERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_network_have_places_of_their_own() {
        let place = |host: u32| {
            Question { src: u32::from_ne_bytes([10, 0, 0, 1]) + host.to_be(), dst: 7, ..Question::default() }.place()
        };
        let places: std::collections::HashSet<_> = (0..64).map(place).collect();
        assert!(places.len() > 40, "{} of 64", places.len());
        assert!(places.iter().all(|place| *place < ANSWERS));
    }

    #[test]
    fn nothing_is_remembered_of_what_was_never_asked() {
        let asked = Question { src: 1, dst: 2, ifindex: 3, tick: 4, epoch: 5, tos: 6, protocol: 17 };
        assert_ne!(Answer::default().question, asked);
        for other in [
            Question { src: 9, ..asked },
            Question { dst: 9, ..asked },
            Question { ifindex: 9, ..asked },
            Question { tick: 9, ..asked },
            Question { epoch: 9, ..asked },
            Question { tos: 9, ..asked },
            Question { protocol: 9, ..asked },
        ] {
            assert_ne!(asked, other);
        }
    }
}

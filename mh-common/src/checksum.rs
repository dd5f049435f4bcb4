//! Incremental Internet checksums (RFC 1624).
//!
//! A [`Delta`] is what a change of header words adds to the one's complement sum that a checksum covers. It is worked out once
//! per flow and kept in the conntrack entry; per packet only [`Delta::apply`] runs. Words are taken as they stand in memory:
//! one's complement addition does not care for byte order (RFC 1071 section 2(B)), so nothing is swapped.
//!
//! Invariant: for any header whose checksum is right, changing words from `old` to `new` and applying
//! `Delta::between(old, new)` leaves the checksum right; a wrong checksum stays wrong by the same amount.

use crate::address::Address;

/// The checksum effect of a change: the one's complement sum of `new - old`, folded to 16 bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Delta(u16);

/// Folds a sum of 16-bit words into 16 bits with end-around carry.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    twice as u16
}

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// One 16-bit word (as in memory) replaced by another: `~old + new` (RFC 1624 section 3, eqn. 3).
    #[inline(always)]
    pub const fn word(old: u16, new: u16) -> Self {
        Self(fold(!old as u32 + new as u32))
    }

    /// One address replaced by another.
    #[inline(always)]
    pub fn address<A: Address>(old: A, new: A) -> Self {
        Self(fold(!fold(old.sum()) as u32 + fold(new.sum()) as u32))
    }

    /// As a number, for [`Delta::from_bits`].
    #[inline(always)]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// From [`Delta::to_bits`].
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0 as u32 + other.0 as u32))
    }

    /// Whether applying it changes nothing: one's complement has two zeros.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0 || self.0 == 0xffff
    }

    /// The delta as the 32-bit sum that `bpf_l4_csum_replace` takes with a size of zero.
    #[inline(always)]
    pub const fn to_sum(self) -> u64 {
        self.0 as u64
    }

    /// The checksum field (as in memory) after the change: `~(~checksum + delta)`.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(!checksum as u32 + self.0 as u32)
    }

    /// The same for UDP over IPv4, where zero means "no checksum" and stays, and a computed zero is sent as 0xffff (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply(checksum) {
            0 => 0xffff,
            updated => updated,
        }
    }
}

/// The change of an IPv4 header's checksum when its TTL goes down by one: the word (TTL, protocol) loses 0x0100 in wire order.
pub const TTL_DECREMENT: Delta = Delta(u16::from_be(!0x0100));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Ipv4;
    use proptest::prelude::*;

    /// The checksum over 16-bit words, from first principles (RFC 1071).
    fn full(words: &[u16]) -> u16 {
        let mut sum: u64 = words.iter().map(|&w| u64::from(w)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    /// Equal as one's complement numbers: 0 and 0xffff are both zero.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    #[test]
    fn rfc1624_example() {
        // RFC 1624 section 4: checksum 0xDD2F, word 0x5555 becomes 0x3285, the result is 0x0000 and not 0xFFFF.
        assert_eq!(Delta::word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn udp_zero_means_none() {
        assert_eq!(Delta::word(1, 2).apply_udp(0), 0);
        assert_eq!(Delta::word(0x5555, 0x3285).apply_udp(0xdd2f), 0xffff);
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut words in prop::collection::vec(any::<u16>(), 2..32), at in any::<prop::sample::Index>(), new: u16) {
            let before = full(&words);
            let at = at.index(words.len());
            let delta = Delta::word(words[at], new);
            words[at] = new;
            prop_assert!(same(delta.apply(before), full(&words)));
        }

        #[test]
        fn addresses_and_ports_together(old: u32, new: u32, port_old: u16, port_new: u16, rest: Vec<u16>) {
            let halves = |w: u32| [(w & 0xffff) as u16, (w >> 16) as u16];
            let build = |a: u32, p: u16| { let mut v = halves(a).to_vec(); v.push(p); v.extend(&rest); v };
            let delta = Delta::address(Ipv4::from_be(old), Ipv4::from_be(new)).and(Delta::word(port_old, port_new));
            prop_assert!(same(delta.apply(full(&build(old, port_old))), full(&build(new, port_new))));
        }

        #[test]
        fn there_and_back_is_nothing(checksum: u16, old: u16, new: u16) {
            let there = Delta::word(old, new);
            let back = Delta::word(new, old);
            prop_assert!(same(there.and(back).apply(checksum), checksum));
        }

        #[test]
        fn ttl(ttl in 1u8.., protocol: u8, rest: Vec<u16>) {
            let build = |t: u8| { let mut v = vec![u16::from_ne_bytes([t, protocol])]; v.extend(&rest); v };
            prop_assert!(same(TTL_DECREMENT.apply(full(&build(ttl))), full(&build(ttl - 1))));
        }
    }
}

//! Which outside ports a new binding may try, and in which order.
//!
//! RFC 4787 REQ-3 (no overloading: the caller takes a port only if nobody has it), REQ-3a (well-known ports stay well-known, the
//! rest stays the rest, where the uplink's range has such ports), REQ-4 (parity is kept where possible); RFC 6056 and RFC 6888
//! REQ-15 (otherwise not to be guessed). The first candidate is the source port itself. The second is the source port moved by a secret
//! number of its host, over the whole class: what lies together inside lies together outside, so that what is kept of a host's connections
//! is found near each other. To whoever knows the number, from one port inside and outside, it tells what the first candidate tells anybody: the
//! inside port. The next two are by the same number and the source port, hashed. So these four are the same whenever that source asks. All others are
//! random.
//!
//! Tries are bounded by [`MAX_TRIES`]: with half of the ports in use, 1 in 4 billion new flows finds none, with 90 % 1 in 29.

use crate::hash::again;

/// The most candidates that are tried for one binding.
pub const MAX_TRIES: u32 = 32;

/// Of these, so many follow from the source and its secret number alone: where its binding is looked for while its one flow is embryonic.
pub const KEYED: u32 = 4;

/// Of these, so many keep the source port's parity; after that any port of its class will do.
const PARITY_TRIES: u32 = 16;

/// Ports below this one are well-known (RFC 6335 section 6).
const FIRST_UNPRIVILEGED: u16 = 1024;

/// A range of ports, both ends included, in host byte order. For ICMP: of identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lowest.
    pub first: u16,
    /// The highest; never below `first`.
    pub last: u16,
}

impl Range {
    /// Every ICMP identifier but zero, which is that of the pings by which mh probes its uplinks: bound for an inside host, it would take
    /// their replies.
    pub const IDENTIFIERS: Self = Self { first: 1, last: u16::MAX };

    /// Whether the port lies within.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The part of the range that is of the same class as `port`, or the whole range if there is no such part.
    #[inline(always)]
    const fn same_class(self, port: u16) -> Self {
        if port < FIRST_UNPRIVILEGED {
            if self.first < FIRST_UNPRIVILEGED {
                let last = if self.last < FIRST_UNPRIVILEGED { self.last } else { FIRST_UNPRIVILEGED - 1 };
                return Self { first: self.first, last };
            }
        } else if self.last >= FIRST_UNPRIVILEGED {
            let first = if self.first < FIRST_UNPRIVILEGED { FIRST_UNPRIVILEGED } else { self.first };
            return Self { first, last: self.last };
        }
        self
    }
}

/// The candidates for one binding.
#[derive(Clone, Copy, Debug)]
pub struct Candidates {
    wanted: u16,
    range: Range,
    class: Range,
    host: u32,
    /// What the next candidate is drawn with.
    lot: u64,
    random: u64,
    /// Whether identifiers are handed out, which have neither class nor parity.
    plain: bool,
}

impl Candidates {
    /// Candidates for the source port (or identifier) `wanted` within `range`, by the secret number `host` of the inside host and the random
    /// number `random`. `plain` is for ICMP identifiers, which have neither class nor parity.
    #[inline(always)]
    pub const fn new(wanted: u16, range: Range, host: u32, random: u64, plain: bool) -> Self {
        let class = if plain { range } else { range.same_class(wanted) };
        Self { wanted, range, class, host, lot: (host as u64) << u16::BITS | wanted as u64, random, plain }
    }

    /// The candidate of try number `n`, in host byte order; tries are made in turn, from 0 to [`MAX_TRIES`] - 1. It always lies within the range.
    #[inline(always)]
    pub fn get(&mut self, n: u32) -> u16 {
        if n == KEYED {
            self.lot = self.random;
        }
        self.lot = again(self.lot);
        let size = (self.class.last - self.class.first) as u64 + 1;
        let offset = if n == 1 {
            ((self.wanted as u64 + self.host as u64) % size) as u16
        } else {
            // A number below `size` by multiplication, not division (Lemire, 2019); the bias is below 2^-16.
            (((self.lot >> 32) * size) >> 32) as u16
        };
        let port = self.class.first + offset;
        let keep_parity = (!self.plain && n < PARITY_TRIES) as u16;
        let same_parity = port ^ ((port ^ self.wanted) & keep_parity);
        let port = if self.class.contains(same_parity) { same_parity } else { port };
        if n == 0 && self.range.contains(self.wanted) { self.wanted } else { port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = Range> {
        (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Range { first: a.min(b), last: a.max(b) })
    }

    proptest! {
        #[test]
        fn candidates_lie_within(wanted: u16, range in range(), host: u32, random: u64, plain: bool) {
            let mut candidates = Candidates::new(wanted, range, host, random, plain);
            for n in 0..MAX_TRIES {
                prop_assert!(range.contains(candidates.get(n)));
            }
        }

        #[test]
        fn an_identifier_is_never_that_of_probes(wanted in prop_oneof![Just(0), any::<u16>()], host: u32, random: u64) {
            let mut candidates = Candidates::new(wanted, Range::IDENTIFIERS, host, random, true);
            for n in 0..MAX_TRIES {
                prop_assert_ne!(candidates.get(n), 0);
            }
        }

        #[test]
        fn the_source_port_comes_first(range in range(), host: u32, random: u64, plain: bool, at in any::<prop::sample::Index>()) {
            let wanted = range.first + u16::try_from(at.index(usize::from(range.last - range.first) + 1)).unwrap();
            prop_assert_eq!(Candidates::new(wanted, range, host, random, plain).get(0), wanted);
        }

        #[test]
        fn the_first_follow_from_the_source(wanted: u16, range in range(), host: u32, lots: [u64; 2], plain: bool) {
            let [mut one, mut other] = lots.map(|random| Candidates::new(wanted, range, host, random, plain));
            for n in 0..KEYED {
                prop_assert_eq!(one.get(n), other.get(n));
            }
        }

        #[test]
        fn class_and_parity_are_kept(wanted: u16, host: u32, random: u64) {
            let mut candidates = Candidates::new(wanted, Range { first: 2, last: u16::MAX }, host, random, false);
            for n in 0..PARITY_TRIES {
                let port = candidates.get(n);
                prop_assert_eq!(port & 1, wanted & 1);
                prop_assert_eq!(port < 1024, wanted < 1024);
            }
        }

        #[test]
        fn without_such_a_class_the_range_serves(wanted in 0u16..1024, host: u32, random: u64) {
            let range = Range { first: 1024, last: 65535 };
            let mut candidates = Candidates::new(wanted, range, host, random, false);
            prop_assert!((0..MAX_TRIES).all(|n| range.contains(candidates.get(n))));
        }
    }

    #[test]
    fn ports_of_a_host_stay_together_and_apart() {
        let range = Range { first: 1024, last: 65535 };
        for host in [0, 7, 5_000_000_001u64 as u32, u32::MAX] {
            let mut taken: Vec<u16> =
                (4096..4160).map(|port| Candidates::new(port, range, host, 0, false).get(1)).collect();
            taken.sort_unstable();
            taken.dedup();
            assert_eq!(taken.len(), 64, "{host}: no two of them are the same");
            assert!(taken[63] - taken[0] <= 65 || taken[63] - taken[0] > 64_000, "{host}: {taken:?}");
        }
        let of = |host| Candidates::new(4096, range, host, 0, false).get(1);
        assert_ne!(of(1000), of(2000), "other hosts' ports are elsewhere");
    }

    #[test]
    fn ports_are_spread_over_the_range() {
        let range = Range { first: 1024, last: 65535 };
        let mut buckets = [0u32; 16];
        for seed in 0..16_000u64 {
            let mut candidates = Candidates::new(80, range, 0, again(seed), true);
            let last = (0..=KEYED).map(|n| candidates.get(n)).last().unwrap();
            buckets[usize::from((last - 1024) / 4032)] += 1;
        }
        // 1000 expected, standard deviation 31
        assert!(buckets.iter().all(|&b| (845..1155).contains(&b)), "{buckets:?}");
    }
}

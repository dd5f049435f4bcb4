//! The keyed hash that turns a flow into a slot.
//!
//! SipHash (Aumasson and Bernstein, 2012) in its 1-3 form: keyed with a seed that the controller draws at random when it makes
//! the maps, so that nobody outside can pick addresses and ports that all fall on one uplink. It runs once per new flow.

use crate::address::Address;

/// The key of the hash: 128 random bits.
pub type Seed = [u64; 2];

/// What of a packet decides its uplink. The discriminants cross the kernel boundary.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashMode {
    /// Addresses, ports and protocol: each flow on its own.
    Flow = 0,
    /// The source address: all flows of a host together.
    Source = 1,
    /// Source and destination address: all flows between two hosts together.
    SourceDestination = 2,
}

impl HashMode {
    /// From the number in a map; anything unknown is [`HashMode::Flow`].
    #[inline(always)]
    pub const fn from_u32(mode: u32) -> Self {
        match mode {
            1 => Self::Source,
            2 => Self::SourceDestination,
            _ => Self::Flow,
        }
    }
}

/// Two words mixed with a seed, for places in tables: two multiplications, strong enough that nobody who doesn't know the seed finds what shares a place, and
/// cheap enough for every packet. Not for what decides an uplink.
#[inline(always)]
pub const fn place(seed: Seed, first: u64, second: u64) -> u64 {
    let [a, b] = seed;
    let x = (first ^ a).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 32) ^ second ^ b).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

/// SipHash with `C` rounds per word and `D` at the end.
struct Sip<const C: usize, const D: usize> {
    v: [u64; 4],
    bytes: u64,
}

impl<const C: usize, const D: usize> Sip<C, D> {
    #[inline(always)]
    fn new(seed: Seed) -> Self {
        let [k0, k1] = seed;
        let v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        Self { v, bytes: 0 }
    }

    #[inline(always)]
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.v = [a, b, c, d];
    }

    #[inline(always)]
    fn compress(&mut self, word: u64) {
        self.v[3] ^= word;
        for _ in 0..C {
            self.round();
        }
        self.v[0] ^= word;
    }

    #[inline(always)]
    fn write(&mut self, word: u64) {
        self.bytes += 8;
        self.compress(word);
    }

    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.compress(self.bytes << 56);
        self.v[2] ^= 0xff;
        for _ in 0..D {
            self.round();
        }
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }
}

/// Hashes what `mode` names of a flow. Ports are as in memory.
#[inline(always)]
pub fn flow<A: Address>(seed: Seed, mode: HashMode, src: A, dst: A, sport: u16, dport: u16, protocol: u8) -> u64 {
    let mut sip = Sip::<1, 3>::new(seed);
    let mut address = |a: A| {
        let [high, low] = a.hash_words();
        sip.write(high);
        if A::HASH_WORDS == 2 {
            sip.write(low);
        }
    };
    address(src);
    if !matches!(mode, HashMode::Source) {
        address(dst);
    }
    if matches!(mode, HashMode::Flow) {
        sip.write((sport as u64) << 32 | (dport as u64) << 16 | protocol as u64);
    }
    sip.finish()
}

/// Hashes an inside host, as by [`HashMode::Source`].
#[inline(always)]
pub fn host<A: Address>(seed: Seed, address: A) -> u64 {
    flow(seed, HashMode::Source, address, address, 0, 0, 0)
}

/// Another hash from a hash, for the next try: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
#[inline(always)]
pub const fn again(hash: u64) -> u64 {
    let z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Ipv4;

    #[test]
    fn siphash_2_4_reference_vectors() {
        // The reference implementation's vectors for key 00..0f and messages 00.. of length 0, 8 and 16.
        let seed = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let hash = |words: &[u64]| {
            let mut sip = Sip::<2, 4>::new(seed);
            words.iter().for_each(|&w| sip.write(w));
            sip.finish()
        };
        assert_eq!(hash(&[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(hash(&[0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
        assert_eq!(hash(&[0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]), 0x3f2a_cc7f_57c2_9bdb);
    }

    #[test]
    fn modes_look_at_what_they_name() {
        let a = |n: u32| Ipv4::from_be(n);
        let h = |mode, src, dst, sport| flow([1, 2], mode, a(src), a(dst), sport, 80, 6);
        assert_eq!(h(HashMode::Source, 1, 2, 3), h(HashMode::Source, 1, 9, 9));
        assert_ne!(h(HashMode::Source, 1, 2, 3), h(HashMode::Source, 2, 2, 3));
        assert_eq!(h(HashMode::SourceDestination, 1, 2, 3), h(HashMode::SourceDestination, 1, 2, 9));
        assert_ne!(h(HashMode::SourceDestination, 1, 2, 3), h(HashMode::SourceDestination, 1, 3, 3));
        assert_ne!(h(HashMode::Flow, 1, 2, 3), h(HashMode::Flow, 1, 2, 4));
    }

    #[test]
    fn the_seed_matters() {
        let h = |seed| flow(seed, HashMode::Flow, Ipv4::from_be(1), Ipv4::from_be(2), 3, 4, 6);
        assert_ne!(h([1, 2]), h([1, 3]));
        assert_ne!(h([1, 2]), h([2, 2]));
    }
}

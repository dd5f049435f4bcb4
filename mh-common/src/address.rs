//! Address families.
//!
//! An [`Address`] is kept as it stands on the wire (big-endian) and in words, so that the datapath loads, compares and stores it
//! in one instruction per word. [`Family`] binds an address type to its EtherType and to the constants of its header.

use core::net::{Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

use crate::wire;

/// An IPv4 address in network byte order. 4 bytes, aligned to 4.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Ipv4(u32);

/// An IPv6 address in network byte order. 16 bytes, aligned to 4.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Ipv6([u32; 4]);

impl Ipv4 {
    /// The unspecified address, 0.0.0.0.
    pub const UNSPECIFIED: Self = Self(0);

    /// From the word as it was loaded from a packet (big-endian in memory).
    #[inline(always)]
    pub const fn from_be(word: u32) -> Self {
        Self(word)
    }

    /// The word as it is stored to a packet (big-endian in memory).
    #[inline(always)]
    pub const fn to_be(self) -> u32 {
        self.0
    }

    /// The four bytes in wire order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl From<Ipv4Addr> for Ipv4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Ipv4> for Ipv4Addr {
    fn from(address: Ipv4) -> Self {
        Self::from(address.octets())
    }
}

impl From<Ipv6Addr> for Ipv6 {
    fn from(address: Ipv6Addr) -> Self {
        let o = address.octets();
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Ipv6> for Ipv6Addr {
    fn from(address: Ipv6) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self::from(octets)
    }
}

/// What the datapath needs to know of an address, whatever its length.
pub trait Address: Pod + Eq + core::fmt::Debug {
    /// How many 64-bit words [`Address::hash_words`] fills.
    const HASH_WORDS: usize;

    /// The address as one or two 64-bit words; the second is zero for IPv4.
    fn hash_words(self) -> [u64; 2];

    /// The one's complement sum of the address's 16-bit words in wire order, not folded (at most 8 * 0xffff).
    fn sum(self) -> u32;

    /// Whether a router may forward from or to this address: not unspecified, loopback, link-local, multicast, reserved
    /// or limited broadcast (RFC 1812 section 5.3.7, RFC 3927 section 2.7, RFC 4291 section 2).
    fn is_forwardable(self) -> bool;
}

impl Address for Ipv4 {
    const HASH_WORDS: usize = 1;

    #[inline(always)]
    fn hash_words(self) -> [u64; 2] {
        [self.0 as u64, 0]
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        (self.0 & 0xffff) + (self.0 >> 16)
    }

    #[inline(always)]
    fn is_forwardable(self) -> bool {
        let host = u32::from_be(self.0);
        let first = host >> 24;
        // 0/8, 127/8, 224/4 with 240/4 and the limited broadcast, 169.254/16
        first != 0 && first != 127 && first < 224 && host >> 16 != 0xa9fe
    }
}

impl Address for Ipv6 {
    const HASH_WORDS: usize = 2;

    #[inline(always)]
    fn hash_words(self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        [(a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64]
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        let [a, b, c, d] = self.0;
        let word = |w: u32| (w & 0xffff) + (w >> 16);
        word(a) + word(b) + word(c) + word(d)
    }

    #[inline(always)]
    fn is_forwardable(self) -> bool {
        let [a, b, c, d] = self.0;
        let top = u32::from_be(a);
        let low = a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1;
        !low && top >> 24 != 0xff && top >> 22 != 0xfe80 >> 6
    }
}

/// An address family.
pub trait Family: Copy + 'static {
    /// Its addresses.
    type Address: Address;
    /// Its EtherType, in host byte order.
    const ETHERTYPE: u16;
    /// Its number in socket calls and `bpf_fib_lookup` (AF_INET, AF_INET6 on Linux).
    const AF: u8;
    /// The protocol number of its ICMP.
    const ICMP: u8;
    /// ICMP type of an echo request.
    const ECHO_REQUEST: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;
    /// Whether ICMP's checksum covers the pseudo-header (RFC 4443 section 2.3: yes in IPv6; RFC 792: no in IPv4).
    const ICMP_PSEUDO_HEADER: bool;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Address = Ipv4;
    const ETHERTYPE: u16 = wire::ETHERTYPE_IPV4;
    const AF: u8 = 2;
    const ICMP: u8 = wire::PROTOCOL_ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const ICMP_PSEUDO_HEADER: bool = false;
}

impl Family for V6 {
    type Address = Ipv6;
    const ETHERTYPE: u16 = wire::ETHERTYPE_IPV6;
    const AF: u8 = 10;
    const ICMP: u8 = wire::PROTOCOL_ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const ICMP_PSEUDO_HEADER: bool = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> Ipv4 {
        text.parse::<Ipv4Addr>().unwrap().into()
    }

    #[test]
    fn addresses_keep_their_wire_order() {
        let address = v4("192.0.2.1");
        assert_eq!(address.octets(), [192, 0, 2, 1]);
        assert_eq!(Ipv4Addr::from(address).to_string(), "192.0.2.1");
        let six: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        assert_eq!(Ipv6Addr::from(Ipv6::from(six)), six);
    }

    #[test]
    fn what_no_router_forwards_is_not_forwardable() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!v4(text).is_forwardable(), "{text}");
        }
        for text in
            ["1.0.0.1", "10.0.0.1", "126.255.255.255", "128.0.0.1", "169.253.255.255", "169.255.0.0", "223.255.255.255"]
        {
            assert!(v4(text).is_forwardable(), "{text}");
        }
        let v6 = |text: &str| Ipv6::from(text.parse::<Ipv6Addr>().unwrap()).is_forwardable();
        for text in ["::", "::1", "fe80::1", "febf::1", "ff02::1"] {
            assert!(!v6(text), "{text}");
        }
        for text in ["2001:db8::1", "fd00::1", "fec0::1", "64:ff9b::1"] {
            assert!(v6(text), "{text}");
        }
    }
}

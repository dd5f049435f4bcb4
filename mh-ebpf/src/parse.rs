//! From bytes to a flow key: Ethernet, IP and transport headers, every length checked.
//!
//! IPv4: RFC 791 and the forwarding rules of RFC 1812 section 5.3; transports: RFC 9293, RFC 768, RFC 792. A packet that
//! contradicts itself, or that is not understood, is left to the kernel with a verdict that says why; nothing is written here.

use mh_common::{
    abi::Interface,
    address::{Address as _, Family, Ipv4, V4},
    checksum::{Delta, TTL_DECREMENT},
    flow::Key,
    verdict::Verdict,
    wire::{self, Mac},
};

use crate::access::{Frame, L4Checksum};

/// Which transport a packet carries, as far as translation is concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// An ICMP echo request: its identifier is the source port.
    EchoRequest,
    /// An ICMP echo reply: its identifier is the destination port.
    EchoReply,
}

/// What the datapath knows of a packet once it is parsed.
pub struct Packet<A> {
    /// Its addresses and ports.
    pub key: Key<A>,
    /// Its transport.
    pub transport: Transport,
    /// Offset of the transport header from the start of the frame.
    pub l4: usize,
    /// Length of the packet in bytes, from the IP header on.
    pub len: u32,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// TCP flags; zero for other transports.
    pub tcp: u8,
}

/// The header of an address family.
pub trait Header: Family {
    /// Parses the packet behind an untagged Ethernet header.
    fn parse<F: Frame>(frame: &mut F) -> Result<Packet<Self::Address>, Verdict>;

    /// Writes addresses, TTL less one, and the header's checksum, if it has one.
    fn rewrite<F: Frame>(frame: &mut F, src: Self::Address, dst: Self::Address, address_delta: Delta)
    -> Result<(), ()>;

    /// An address as words for helpers, the unused ones zero.
    fn words(address: Self::Address) -> [u32; 4];
}

/// The EtherType (host byte order) of a frame that is for the interface's own address.
#[inline(always)]
pub fn ethertype<F: Frame>(frame: &F, interface: &Interface) -> Result<u16, Verdict> {
    let dst: Mac = frame.read(0).ok_or(Verdict::Malformed)?;
    let ethertype: u16 = frame.read(wire::ETHERNET_TYPE).ok_or(Verdict::Malformed)?;
    if dst != interface.mac {
        return Err(Verdict::NotUnicast);
    }
    if frame.has_vlan_tag() {
        return Err(Verdict::Vlan);
    }
    Ok(u16::from_be(ethertype))
}

/// The verdict on frames that carry another EtherType than the families that mh translates.
#[inline(always)]
pub const fn not_translated(ethertype: u16) -> Verdict {
    match ethertype {
        wire::ETHERTYPE_IPV6 => Verdict::Ipv6,
        wire::ETHERTYPE_VLAN | wire::ETHERTYPE_QINQ => Verdict::Vlan,
        _ => Verdict::NotIp,
    }
}

impl Header for V4 {
    #[inline(always)]
    fn parse<F: Frame>(frame: &mut F) -> Result<Packet<Ipv4>, Verdict> {
        const IP: usize = wire::ETHERNET_LEN;
        let version_ihl: u8 = frame.read(IP).ok_or(Verdict::Malformed)?;
        let header_len = (version_ihl & 0x0f) as usize * 4;
        if version_ihl >> 4 != 4 || header_len < wire::IPV4_LEN {
            return Err(Verdict::Malformed);
        }
        if header_len != wire::IPV4_LEN && !F::COMPLETE {
            return Err(Verdict::ToTc);
        }
        let word = |frame: &F, offset: usize| frame.read::<u16>(IP + offset).ok_or(Verdict::Malformed);
        let tos: u8 = frame.read(IP + 1).ok_or(Verdict::Malformed)?;
        let total_len = u16::from_be(word(frame, 2)?) as u32;
        let fragment = u16::from_be(word(frame, wire::IPV4_FRAGMENT)?);
        let ttl: u8 = frame.read(IP + wire::IPV4_TTL).ok_or(Verdict::Malformed)?;
        let protocol: u8 = frame.read(IP + wire::IPV4_TTL + 1).ok_or(Verdict::Malformed)?;
        let src = Ipv4::from_be(frame.read(IP + wire::IPV4_SRC).ok_or(Verdict::Malformed)?);
        let dst = Ipv4::from_be(frame.read(IP + wire::IPV4_DST).ok_or(Verdict::Malformed)?);
        let available = frame.len() - IP as u32;
        // A GRO packet of more than 64 KiB (BIG TCP, 6.3) has a total length of zero.
        let len = if total_len == 0 && frame.segments() > 1 { available } else { total_len };
        if (len as usize) < header_len || len > available {
            return Err(Verdict::Malformed);
        }
        if fragment & wire::IPV4_FRAGMENT_MASK != 0 {
            return Err(Verdict::Fragment);
        }
        if !src.is_forwardable() || !dst.is_forwardable() {
            return Err(Verdict::Scope);
        }
        let l4 = IP + header_len;
        let l4_len = len as usize - header_len;
        transport::<F, Self>(frame, protocol, l4, l4_len).map(|(transport, sport, dport, tcp)| Packet {
            key: Key::new(src, dst, sport, dport, protocol),
            transport,
            l4,
            len,
            ttl,
            tos,
            tcp,
        })
    }

    #[inline(always)]
    fn rewrite<F: Frame>(frame: &mut F, src: Ipv4, dst: Ipv4, delta: Delta) -> Result<(), ()> {
        const IP: usize = wire::ETHERNET_LEN;
        let ttl: u8 = frame.read(IP + wire::IPV4_TTL).ok_or(())?;
        let checksum: u16 = frame.read(IP + wire::IPV4_CHECKSUM).ok_or(())?;
        frame.write(IP + wire::IPV4_TTL, ttl.wrapping_sub(1))?;
        frame.write(IP + wire::IPV4_CHECKSUM, delta.and(TTL_DECREMENT).apply(checksum))?;
        frame.write(IP + wire::IPV4_SRC, src.to_be())?;
        frame.write(IP + wire::IPV4_DST, dst.to_be())
    }

    #[inline(always)]
    fn words(address: Ipv4) -> [u32; 4] {
        [address.to_be(), 0, 0, 0]
    }
}

/// Transport, ports (as in memory) and TCP flags of a packet whose transport header lies at `l4`, with `len` bytes from there on.
#[inline(always)]
fn transport<F: Frame, Fam: Family>(
    frame: &F,
    protocol: u8,
    l4: usize,
    len: usize,
) -> Result<(Transport, u16, u16, u8), Verdict> {
    let at = |offset: usize| frame.read::<u16>(l4 + offset).ok_or(Verdict::Malformed);
    match protocol {
        wire::PROTOCOL_TCP => {
            // The last field that is used, the checksum, lies within the first 18 bytes.
            let (sport, dport, offset_flags) = (at(0)?, at(2)?, u16::from_be(at(wire::TCP_OFFSET_FLAGS)?));
            at(wire::TCP_LEN - 2)?;
            let header_len = (offset_flags >> 12) as usize * 4;
            if header_len < wire::TCP_LEN || header_len > len {
                return Err(Verdict::Malformed);
            }
            Ok((Transport::Tcp, sport, dport, offset_flags as u8))
        }
        wire::PROTOCOL_UDP => {
            let (sport, dport, udp_len) = (at(0)?, at(2)?, u16::from_be(at(4)?) as usize);
            at(wire::UDP_CHECKSUM)?;
            if len < wire::UDP_LEN || (udp_len != 0 && (udp_len < wire::UDP_LEN || udp_len > len)) {
                return Err(Verdict::Malformed);
            }
            Ok((Transport::Udp, sport, dport, 0))
        }
        _ if protocol == Fam::ICMP => {
            if len < wire::ICMP_LEN {
                return Err(Verdict::Malformed);
            }
            let kind = at(0)?.to_ne_bytes();
            let id = at(wire::ICMP_ID)?;
            at(wire::ICMP_LEN - 2)?;
            if kind == [Fam::ECHO_REQUEST, 0] {
                Ok((Transport::EchoRequest, id, 0, 0))
            } else if kind == [Fam::ECHO_REPLY, 0] {
                Ok((Transport::EchoReply, 0, id, 0))
            } else {
                Err(Verdict::Protocol)
            }
        }
        _ => Err(Verdict::Protocol),
    }
}

impl Transport {
    /// Offset of the checksum in the transport header.
    #[inline(always)]
    pub const fn checksum(self) -> usize {
        match self {
            Self::Tcp => wire::TCP_CHECKSUM,
            Self::Udp => wire::UDP_CHECKSUM,
            Self::EchoRequest | Self::EchoReply => wire::ICMP_CHECKSUM,
        }
    }

    /// Where the checksum is and what a translation does to it.
    #[inline(always)]
    pub fn checksum_update<Fam: Family>(self, l4: usize, address_delta: Delta, port_delta: Delta) -> L4Checksum {
        let echo = matches!(self, Self::EchoRequest | Self::EchoReply);
        let covers_addresses = !echo || Fam::ICMP_PSEUDO_HEADER;
        L4Checksum {
            offset: l4 + self.checksum(),
            optional: self == Self::Udp,
            address_delta: if covers_addresses { address_delta } else { Delta::NONE },
            port_delta,
        }
    }
}

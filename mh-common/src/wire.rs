//! Header layouts: offsets, lengths and numbers, with the bounds that the datapath relies on.
//!
//! Sources: IEEE 802.3 (Ethernet), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP), RFC 792 and RFC 4443 (ICMP).
//! Offsets are in bytes from the start of the header that they belong to.

use core::mem::offset_of;

use network_types::{
    eth::{EthHdr, EtherType},
    icmp::Icmpv4Hdr,
    ip::{IpProto, Ipv4Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = (EtherType::Ipv4 as u16).to_be();
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = (EtherType::Ipv6 as u16).to_be();
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = (EtherType::Ieee8021q as u16).to_be();
/// EtherType of an 802.1ad tag.
pub const ETHERTYPE_QINQ: u16 = (EtherType::Ieee8021ad as u16).to_be();

/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = IpProto::Icmp as u8;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = IpProto::Tcp as u8;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = IpProto::Udp as u8;
/// Protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = IpProto::Ipv6Icmp as u8;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = EthHdr::LEN;
/// Offset of the source address in an Ethernet header.
pub const ETHERNET_SRC: usize = offset_of!(EthHdr, src_addr);
/// Offset of the EtherType.
pub const ETHERNET_TYPE: usize = offset_of!(EthHdr, ether_type);

/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = Ipv4Hdr::LEN;
/// Length of the longest IPv4 header.
pub const IPV4_MAX_LEN: usize = 60;
/// The first byte of an IPv4 header without options: version and length.
pub const IPV4_VERSION_LEN: u8 = 0x45;
/// The bits of TOS or traffic class that are for congestion notification (RFC 3168 section 5).
pub const TOS_ECN: u8 = 0x03;
/// The TTL of what mh sends by itself (RFC 1700).
pub const DEFAULT_TTL: u8 = 64;
/// Offset of the fragment flags and offset in an IPv4 header.
pub const IPV4_FRAGMENT: usize = offset_of!(Ipv4Hdr, frags);
/// Offset of the TTL.
pub const IPV4_TTL: usize = offset_of!(Ipv4Hdr, ttl);
/// Offset of the header checksum.
pub const IPV4_CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
/// Offset of the source address.
pub const IPV4_SRC: usize = offset_of!(Ipv4Hdr, src_addr);
/// Offset of the destination address.
pub const IPV4_DST: usize = offset_of!(Ipv4Hdr, dst_addr);
/// Offset of the identification field.
pub const IPV4_ID: usize = offset_of!(Ipv4Hdr, id);
/// The fragment offset in units of eight bytes, in host byte order.
pub const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
/// More-fragments bit and fragment offset, in host byte order: a packet is whole if all are zero.
pub const IPV4_FRAGMENT_MASK: u16 = 0x3fff;
/// The don't-fragment bit, in host byte order.
pub const IPV4_DONT_FRAGMENT: u16 = 0x4000;

/// Length of a TCP header without options.
pub const TCP_LEN: usize = TcpHdr::LEN;
/// Offset of the sequence number in a TCP header.
pub const TCP_SEQ: usize = offset_of!(TcpHdr, seq);
/// Offset of the acknowledgement number.
pub const TCP_ACK_SEQ: usize = offset_of!(TcpHdr, ack_seq);
/// Offset of the data offset and flags in a TCP header.
pub const TCP_OFFSET_FLAGS: usize = offset_of!(TcpHdr, _bitfield_1);
/// Offset of the checksum.
pub const TCP_CHECKSUM: usize = offset_of!(TcpHdr, check);
/// FIN.
pub const TCP_FIN: u8 = 0x01;
/// SYN.
pub const TCP_SYN: u8 = 0x02;
/// RST.
pub const TCP_RST: u8 = 0x04;
/// ACK.
pub const TCP_ACK: u8 = 0x10;

/// Length of a UDP header.
pub const UDP_LEN: usize = UdpHdr::LEN;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = offset_of!(UdpHdr, check);

/// Length of an ICMP echo header.
pub const ICMP_LEN: usize = Icmpv4Hdr::LEN;
/// Offset of the checksum in an ICMP header.
pub const ICMP_CHECKSUM: usize = offset_of!(Icmpv4Hdr, check);
/// Offset of the identifier of an echo message.
pub const ICMP_ID: usize = offset_of!(Icmpv4Hdr, data);

/// ICMP type: destination unreachable (RFC 792).
pub const ICMP_UNREACHABLE: u8 = 3;
/// ICMP type: source quench (RFC 792; deprecated by RFC 6633).
pub const ICMP_SOURCE_QUENCH: u8 = 4;
/// ICMP type: time exceeded.
pub const ICMP_TIME_EXCEEDED: u8 = 11;
/// ICMP type: parameter problem.
pub const ICMP_PARAMETER_PROBLEM: u8 = 12;
/// How many bytes of the offending packet's transport header an ICMP error has to quote (RFC 792).
pub const ICMP_QUOTED_LEN: usize = 8;

/// Protocol number of DCCP, whose checksum covers addresses.
pub const PROTOCOL_DCCP: u8 = IpProto::Dccp as u8;
/// Protocol number of AH, which signs addresses.
pub const PROTOCOL_AH: u8 = IpProto::Ah as u8;
/// Protocol number of UDP-Lite, whose checksum covers addresses.
pub const PROTOCOL_UDPLITE: u8 = IpProto::UdpLite as u8;
/// The port that DHCP clients send from (RFC 2131 section 4.1), big-endian in memory.
pub const DHCP_CLIENT_PORT: u16 = 68u16.to_be();

/// TCP option: end of the list (RFC 9293 section 3.1).
pub const TCP_OPTION_END: u8 = 0;
/// TCP option: padding of one byte.
pub const TCP_OPTION_NOP: u8 = 1;
/// TCP option: maximum segment size, four bytes long.
pub const TCP_OPTION_MSS: u8 = 2;
/// The longest TCP options.
pub const TCP_OPTIONS_MAX_LEN: usize = 40;

/// The longest run of headers that the datapath looks at: Ethernet, IPv4 with all options, TCP without.
pub const MAX_HEADERS_LEN: usize = ETHERNET_LEN + IPV4_MAX_LEN + TCP_LEN;
/// The same for an ICMP error with the headers that it quotes.
pub const MAX_ERROR_HEADERS_LEN: usize = ETHERNET_LEN + IPV4_MAX_LEN + ICMP_LEN + IPV4_MAX_LEN + TCP_LEN;

/// Whether the protocol has ports or identifiers to translate; the others are translated by address alone.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMP | PROTOCOL_ICMPV6)
}

/// Whether the protocol is one whose ports rules and sockets know.
#[inline(always)]
pub const fn is_tcp_or_udp(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP)
}

/// An Ethernet address.
pub type Mac = [u8; 6];

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets come from network-types; these are the RFCs'.
    #[test]
    fn layouts_are_those_of_the_standards() {
        assert_eq!((ETHERNET_LEN, ETHERNET_SRC, ETHERNET_TYPE), (14, 6, 12));
        assert_eq!((IPV4_LEN, IPV4_FRAGMENT, IPV4_TTL, IPV4_CHECKSUM, IPV4_SRC, IPV4_DST), (20, 6, 8, 10, 12, 16));
        assert_eq!((TCP_LEN, TCP_SEQ, TCP_ACK_SEQ, TCP_OFFSET_FLAGS, TCP_CHECKSUM), (20, 4, 8, 12, 16));
        assert_eq!((UDP_LEN, UDP_CHECKSUM), (8, 6));
        assert_eq!((ICMP_LEN, ICMP_CHECKSUM, ICMP_ID), (8, 2, 4));
        assert_eq!((ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, ETHERTYPE_QINQ), (0x0800, 0x86dd, 0x8100, 0x88a8));
        assert_eq!((PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMPV6), (1, 6, 17, 58));
    }
}

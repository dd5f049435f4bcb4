//! Header layouts: offsets, lengths and numbers, with the bounds that the datapath relies on.
//!
//! Sources: IEEE 802.3 (Ethernet), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP), RFC 792 and RFC 4443 (ICMP).
//! Offsets are in bytes from the start of the header that they belong to.

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Offset of the source address in an Ethernet header.
pub const ETHERNET_SRC: usize = 6;
/// Offset of the EtherType.
pub const ETHERNET_TYPE: usize = 12;

/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of the longest IPv4 header.
pub const IPV4_MAX_LEN: usize = 60;
/// Offset of the fragment flags and offset in an IPv4 header.
pub const IPV4_FRAGMENT: usize = 6;
/// Offset of the TTL.
pub const IPV4_TTL: usize = 8;
/// Offset of the header checksum.
pub const IPV4_CHECKSUM: usize = 10;
/// Offset of the source address.
pub const IPV4_SRC: usize = 12;
/// Offset of the destination address.
pub const IPV4_DST: usize = 16;
/// More-fragments bit and fragment offset, in host byte order: a packet is whole if all are zero.
pub const IPV4_FRAGMENT_MASK: u16 = 0x3fff;
/// The don't-fragment bit, in host byte order.
pub const IPV4_DONT_FRAGMENT: u16 = 0x4000;

/// Length of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Offset of the data offset and flags in a TCP header.
pub const TCP_OFFSET_FLAGS: usize = 12;
/// Offset of the checksum.
pub const TCP_CHECKSUM: usize = 16;
/// FIN.
pub const TCP_FIN: u8 = 0x01;
/// SYN.
pub const TCP_SYN: u8 = 0x02;
/// RST.
pub const TCP_RST: u8 = 0x04;
/// ACK.
pub const TCP_ACK: u8 = 0x10;

/// Length of a UDP header.
pub const UDP_LEN: usize = 8;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;

/// Length of an ICMP echo header.
pub const ICMP_LEN: usize = 8;
/// Offset of the checksum in an ICMP header.
pub const ICMP_CHECKSUM: usize = 2;
/// Offset of the identifier of an echo message.
pub const ICMP_ID: usize = 4;

/// The longest run of headers that the datapath looks at: Ethernet, IPv4 with all options, TCP without.
pub const MAX_HEADERS_LEN: usize = ETHERNET_LEN + IPV4_MAX_LEN + TCP_LEN;

/// An Ethernet address.
pub type Mac = [u8; 6];

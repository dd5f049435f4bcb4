//! From bytes to a flow key: Ethernet, IP and transport headers, every length checked.
//!
//! IPv4: RFC 791 and the forwarding rules of RFC 1812 section 5.3; transports: RFC 9293, RFC 768, RFC 792. A packet that
//! contradicts itself, or that is not understood, is left to the kernel with a verdict that says why; nothing is written here.

use mh_common::{
    abi::{self, Interface},
    address::{Address, Family, Ipv4, V4},
    checksum::{Delta, TTL_DECREMENT, fold},
    flow::Key,
    fragment,
    verdict::Verdict,
    wire::{self, Mac},
};

use crate::access::{Frame, L4Checksum, TcFrame};

/// Which transport a packet carries, as far as translation is concerned.
// VERIFIER: a number and not an enum, so that `forget_choice` can be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Transport(u8);

impl Transport {
    /// TCP.
    pub const TCP: Self = Self(0);
    /// UDP.
    pub const UDP: Self = Self(1);
    /// An ICMP echo request: its identifier is the source port.
    pub const ECHO_REQUEST: Self = Self(2);
    /// An ICMP echo reply: its identifier is the destination port.
    pub const ECHO_REPLY: Self = Self(3);
    /// Another protocol, translated by address alone: both ports are zero.
    pub const OTHER: Self = Self(4);

    /// Its number, for [`Transport::from_number`].
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The transport of this number; of another one: one that is none of the above.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        Self(number)
    }
}

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment.
    First,
    /// Another fragment, which has no transport header.
    Later,
}

/// What the datapath knows of a packet's IP header.
#[derive(Clone, Copy)]
pub struct Ip<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The IP protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Fragment flags and offset, in host byte order: see [`Ip::part`] and [`Ip::dont_fragment`].
    pub fragment: u16,
    /// The identification field, as in memory.
    pub id: u16,
    /// Length of the packet in bytes, from the IP header on.
    pub len: u32,
    /// See [`Ip::l4`].
    l4: u8,
}

/// What the datapath knows of a packet once it is parsed.
pub struct Packet<A> {
    /// Its IP header.
    pub ip: Ip<A>,
    /// Its addresses and ports.
    pub key: Key<A>,
    /// Its transport.
    pub transport: Transport,
    /// See [`Packet::l4_len`].
    l4_len: u8,
    /// TCP flags; zero for other transports.
    pub tcp: u8,
}

impl<A: Copy> Ip<A> {
    /// Offset of what follows the IP header, from the start of the frame.
    // VERIFIER: kept in a byte: a word may be copied in halves, and then its bounds are forgotten.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.l4 as usize
    }

    /// Which part of a datagram it is.
    // VERIFIER: worked out where it is asked for: a value that parsing had chosen would be a state of its own from there on.
    #[inline(always)]
    pub const fn part(&self) -> Part {
        if self.fragment & wire::IPV4_FRAGMENT_MASK == 0 {
            Part::Whole
        } else if self.fragment & wire::IPV4_FRAGMENT_OFFSET == 0 {
            Part::First
        } else {
            Part::Later
        }
    }

    /// Whether it is to be kept whole.
    #[inline(always)]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment & wire::IPV4_DONT_FRAGMENT != 0
    }

    /// What its datagram's fragments have in common. `uplink`: on which it arrives, or [`FROM_INSIDE`].
    #[inline(always)]
    pub const fn datagram(&self, uplink: u8) -> fragment::Key<A> {
        fragment::Key { src: self.src, dst: self.dst, id: self.id, protocol: self.protocol, uplink }
    }
}

/// In place of an uplink's index: from inside, or from the machine itself.
pub const FROM_INSIDE: u8 = 0xff;

/// The uplink's index for packets that arrive by this interface, or [`FROM_INSIDE`].
#[inline(always)]
pub const fn arrival(interface: &Interface, egress: bool) -> u8 {
    if interface.role == abi::ROLE_UPLINK && !egress { interface.uplink } else { FROM_INSIDE }
}

/// The header of an address family.
pub trait Header: Family {
    /// Its length without options.
    const HEADER_LEN: usize;

    /// Parses the IP header.
    fn parse<F: Frame>(frame: &F) -> Result<Ip<Self::Address>, Verdict>;

    /// Writes addresses, TTL less one if `forwarded`, and the header's checksum, if it has one.
    fn rewrite<F: Frame>(
        frame: &mut F,
        src: Self::Address,
        dst: Self::Address,
        address_delta: Delta,
        forwarded: bool,
    ) -> Result<(), ()>;

    /// Source and destination address of the IP header at `l3`.
    fn addresses<F: Frame>(frame: &F, l3: usize) -> Option<(Self::Address, Self::Address)>;

    /// Makes the header at the beginning of a frame that of a TCP segment of `len` bytes that answers the packet. Returns the sum of the
    /// pseudo-header. Pointers are invalid afterwards.
    fn answer<const EGRESS: bool>(frame: &mut TcFrame<EGRESS>, ip: &Ip<Self::Address>, len: u16) -> Result<u16, ()>;

    /// An address as words for helpers, the unused ones zero.
    fn words(address: Self::Address) -> [u32; 4];

    /// Whether the ICMP type is that of an error.
    fn is_error(kind: u8) -> bool;
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

/// The EtherType of a packet at TC, whatever the device.
#[inline(always)]
pub fn network_protocol<const EGRESS: bool>(frame: &TcFrame<EGRESS>, interface: &Interface) -> Result<u16, Verdict> {
    if interface.flags & abi::INTERFACE_L3 != 0 {
        return Ok(frame.protocol());
    }
    if EGRESS {
        return if frame.has_vlan_tag() { Err(Verdict::Vlan) } else { Ok(frame.protocol()) };
    }
    ethertype(frame, interface)
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

/// Two bytes.
#[inline(always)]
pub fn pair<F: Frame>(frame: &F, offset: usize) -> Option<[u8; 2]> {
    frame.read::<u16>(offset).map(u16::to_ne_bytes)
}

impl Header for V4 {
    const HEADER_LEN: usize = wire::IPV4_LEN;

    #[inline(always)]
    fn parse<F: Frame>(frame: &F) -> Result<Ip<Ipv4>, Verdict> {
        let l3 = frame.l3();
        let [version_ihl, tos] = pair(frame, l3).ok_or(Verdict::Malformed)?;
        let header_len = (version_ihl & 0x0f) as usize * 4;
        if version_ihl >> 4 != 4 || header_len < wire::IPV4_LEN {
            return Err(Verdict::Malformed);
        }
        if header_len != wire::IPV4_LEN && !F::COMPLETE {
            return Err(Verdict::ToTc);
        }
        let word = |offset: usize| frame.read::<u16>(l3 + offset).ok_or(Verdict::Malformed);
        let total_len = u16::from_be(word(2)?) as u32;
        let id = word(wire::IPV4_ID)?;
        let fragment = u16::from_be(word(wire::IPV4_FRAGMENT)?);
        let ttl: u8 = frame.read(l3 + wire::IPV4_TTL).ok_or(Verdict::Malformed)?;
        let protocol: u8 = frame.read(l3 + wire::IPV4_TTL + 1).ok_or(Verdict::Malformed)?;
        let (src, dst) = Self::addresses(frame, l3).ok_or(Verdict::Malformed)?;
        let available = frame.len() - l3 as u32;
        // A GRO packet of more than 64 KiB (BIG TCP, 6.3) has a total length of zero.
        let len = if total_len == 0 && frame.segments() > 1 { available } else { total_len };
        if (len as usize) < header_len || len > available {
            return Err(Verdict::Malformed);
        }
        if !src.is_forwardable() || !dst.is_forwardable() {
            return Err(Verdict::Scope);
        }
        Ok(Ip { src, dst, protocol, ttl, tos, fragment, id, len, l4: (l3 + header_len) as u8 })
    }

    #[inline(always)]
    fn rewrite<F: Frame>(frame: &mut F, src: Ipv4, dst: Ipv4, delta: Delta, forwarded: bool) -> Result<(), ()> {
        let l3 = frame.l3();
        let checksum: u16 = frame.read(l3 + wire::IPV4_CHECKSUM).ok_or(())?;
        let ttl: u8 = frame.read(l3 + wire::IPV4_TTL).ok_or(())?;
        frame.write(l3 + wire::IPV4_TTL, ttl.wrapping_sub(forwarded as u8))?;
        let delta = delta.and(if forwarded { TTL_DECREMENT } else { Delta::NONE });
        frame.write(l3 + wire::IPV4_CHECKSUM, delta.apply(checksum))?;
        frame.write(l3 + wire::IPV4_SRC, src.to_be())?;
        frame.write(l3 + wire::IPV4_DST, dst.to_be())
    }

    #[inline(always)]
    fn addresses<F: Frame>(frame: &F, l3: usize) -> Option<(Ipv4, Ipv4)> {
        let src = Ipv4::from_be(frame.read(l3 + wire::IPV4_SRC)?);
        let dst = Ipv4::from_be(frame.read(l3 + wire::IPV4_DST)?);
        Some((src, dst))
    }

    #[inline(always)]
    fn answer<const EGRESS: bool>(frame: &mut TcFrame<EGRESS>, ip: &Ip<Ipv4>, len: u16) -> Result<u16, ()> {
        let (src, dst) = (ip.dst.to_be(), ip.src.to_be());
        // The same class of service, and no congestion to tell of.
        let tos = ip.tos & !wire::TOS_ECN;
        let mut header = [
            u16::from_ne_bytes([wire::IPV4_VERSION_LEN, tos]),
            (wire::IPV4_LEN as u16 + len).to_be(),
            // An identification is of no use to what is never fragmented (RFC 6864 section 4.1).
            0,
            wire::IPV4_DONT_FRAGMENT.to_be(),
            u16::from_ne_bytes([wire::DEFAULT_TTL, wire::PROTOCOL_TCP]),
            0,
            src as u16,
            (src >> 16) as u16,
            dst as u16,
            (dst >> 16) as u16,
        ];
        let mut sum = 0;
        for word in header {
            sum += word as u32;
        }
        header[wire::IPV4_CHECKSUM / 2] = !fold(sum);
        frame.replace(frame.l3(), &header)?;
        Ok(fold(ip.src.sum() + ip.dst.sum() + (wire::PROTOCOL_TCP as u16).to_be() as u32 + len.to_be() as u32))
    }

    #[inline(always)]
    fn words(address: Ipv4) -> [u32; 4] {
        [address.to_be(), 0, 0, 0]
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(
            kind,
            wire::ICMP_UNREACHABLE | wire::ICMP_SOURCE_QUENCH | wire::ICMP_TIME_EXCEEDED | wire::ICMP_PARAMETER_PROBLEM
        )
    }
}

/// Whether the packet is an ICMP error. Of one in fragments, the first fragment counts: it has all that is translated.
#[inline(always)]
pub fn is_icmp_error<Fam: Header, F: Frame>(frame: &F, ip: &Ip<Fam::Address>) -> bool {
    ip.protocol == Fam::ICMP && pair(frame, ip.l4()).is_some_and(|[kind, _]| Fam::is_error(kind))
}

/// Whether mh translates the protocol: what signs or sums up addresses by means that it doesn't know would arrive broken.
#[inline(always)]
pub const fn is_translated(protocol: u8) -> bool {
    !matches!(protocol, wire::PROTOCOL_DCCP | wire::PROTOCOL_UDPLITE | wire::PROTOCOL_AH)
}

/// Parses the transport header of a packet that has one.
#[inline(always)]
pub fn transport<Fam: Header, F: Frame>(frame: &F, ip: Ip<Fam::Address>) -> Result<Packet<Fam::Address>, Verdict> {
    let len = ip.len as usize - (ip.l4() - frame.l3());
    let at = |offset: usize| frame.read::<u16>(ip.l4() + offset).ok_or(Verdict::Malformed);
    let (transport, sport, dport, l4_len, tcp) = match ip.protocol {
        wire::PROTOCOL_TCP => {
            // The last field that is used, the checksum, lies within the first 18 bytes.
            let (sport, dport, offset_flags) = (at(0)?, at(2)?, u16::from_be(at(wire::TCP_OFFSET_FLAGS)?));
            at(wire::TCP_LEN - 2)?;
            let header_len = (offset_flags >> 12) as usize * 4;
            if header_len < wire::TCP_LEN || (header_len > len && ip.part() == Part::Whole) {
                return Err(Verdict::Malformed);
            }
            (Transport::TCP, sport, dport, header_len, offset_flags as u8)
        }
        wire::PROTOCOL_UDP => {
            let (sport, dport, udp_len) = (at(0)?, at(2)?, u16::from_be(at(4)?) as usize);
            at(wire::UDP_CHECKSUM)?;
            // Of a datagram in fragments, the length is that of the whole.
            let fits = udp_len <= len || ip.part() != Part::Whole;
            if len < wire::UDP_LEN || (udp_len != 0 && (udp_len < wire::UDP_LEN || !fits)) {
                return Err(Verdict::Malformed);
            }
            (Transport::UDP, sport, dport, wire::UDP_LEN, 0)
        }
        protocol if protocol == Fam::ICMP => {
            if len < wire::ICMP_LEN {
                return Err(Verdict::Malformed);
            }
            let kind = at(0)?.to_ne_bytes();
            let id = at(wire::ICMP_ID)?;
            at(wire::ICMP_LEN - 2)?;
            if kind == [Fam::ECHO_REQUEST, 0] {
                (Transport::ECHO_REQUEST, id, 0, wire::ICMP_LEN, 0)
            } else if kind == [Fam::ECHO_REPLY, 0] {
                (Transport::ECHO_REPLY, 0, id, wire::ICMP_LEN, 0)
            } else {
                return Err(Verdict::Protocol);
            }
        }
        protocol if !is_translated(protocol) => return Err(Verdict::Protocol),
        _ => (Transport::OTHER, 0, 0, 0, 0),
    };
    let key = Key::new(ip.src, ip.dst, sport, dport, ip.protocol);
    Ok(Packet { ip, key, transport, l4_len: l4_len as u8, tcp })
}

impl<A: Copy> Packet<A> {
    /// A later fragment, of which nothing but the IP header is known.
    #[inline(always)]
    pub const fn without_transport(ip: Ip<A>) -> Self
    where
        A: Address,
    {
        Self { ip, key: Key::new(ip.src, ip.dst, 0, 0, ip.protocol), transport: Transport::OTHER, l4_len: 0, tcp: 0 }
    }

    /// The same packet. `zero`: zero, from memory.
    // VERIFIER: parsing chose the transport and the length of its header in one branch or another; to the verifier they are constants,
    // and everything that follows a state of its own for each. A number from memory added makes them numbers like any other
    // (6.18: 40 % of the instructions processed).
    #[inline(always)]
    pub const fn forget_choice(mut self, zero: u32) -> Self {
        self.transport.0 |= zero as u8;
        self.l4_len |= zero as u8;
        self.tcp |= zero as u8;
        self
    }

    /// Length of the transport header in bytes.
    #[inline(always)]
    pub const fn l4_len(&self) -> usize {
        self.l4_len as usize
    }

    /// The length in bytes, from the IP header on, of the longest packet on the wire that this one stands for.
    #[inline(always)]
    pub fn size_on_wire<F: Frame>(&self, frame: &F) -> u32 {
        match frame.segment_payload() {
            0 => self.ip.len,
            payload => payload + (self.ip.l4() - frame.l3() + self.l4_len()) as u32,
        }
    }
}

impl Transport {
    /// Offset of the checksum in the transport header.
    #[inline(always)]
    pub const fn checksum(self) -> usize {
        match self {
            Self::TCP => wire::TCP_CHECKSUM,
            Self::UDP => wire::UDP_CHECKSUM,
            _ => wire::ICMP_CHECKSUM,
        }
    }

    /// Where the checksum is and what a translation does to it.
    #[inline(always)]
    pub fn checksum_update<Fam: Family>(self, l4: usize, address_delta: Delta, port_delta: Delta) -> L4Checksum {
        let echo = matches!(self, Self::ECHO_REQUEST | Self::ECHO_REPLY);
        let covers_addresses = !echo || Fam::ICMP_PSEUDO_HEADER;
        L4Checksum {
            offset: l4 + self.checksum(),
            optional: matches!(self, Self::UDP),
            address_delta: if covers_addresses { address_delta } else { Delta::NONE },
            port_delta,
        }
    }
}

//! Datagrams as the model sees them: what they say, not where it stands. [`Frame::build`] works every checksum out anew.

use std::fmt;
use std::net::Ipv4Addr;

use crate::packet::{Mac, checksum};

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const PSH: u8 = 0x08;
/// TCP flag.
pub const ACK: u8 = 0x10;

/// IP protocol.
pub const ICMP: u8 = 1;
/// IP protocol.
pub const TCP: u8 = 6;
/// IP protocol.
pub const UDP: u8 = 17;

/// IP protocol, with checksums over addresses that are not updated.
pub const DCCP: u8 = 33;
/// IP protocol, with signed addresses.
pub const AH: u8 = 51;
/// IP protocol, like DCCP.
pub const UDPLITE: u8 = 136;

/// Addresses and ports of a packet, as it carries them; an echo's identifier is the port on the requester's side, the other one is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IP protocol.
    pub protocol: u8,
}

impl Key {
    /// What an answer carries.
    #[must_use]
    pub const fn swapped(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, protocol: self.protocol }
    }
}

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// TCP.
    Tcp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Flags.
        flags: u8,
        /// The MSS option, if there is one.
        mss: Option<u16>,
    },
    /// A TCP RST that belongs to the segment that it answers, with a window of zero.
    Reset {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Sequence number.
        seq: u32,
        /// What it acknowledges, if anything.
        ack: Option<u32>,
    },
    /// UDP.
    Udp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Whether there is a checksum.
        summed: bool,
    },
    /// An ICMP echo request or reply.
    Echo {
        /// Which.
        request: bool,
        /// Identifier.
        id: u16,
    },
    /// An ICMP error.
    Error {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// The datagram it is about.
        about: Box<Datagram>,
        /// How many bytes of it are quoted behind its IP header.
        quoted: usize,
    },
    /// A protocol that mh translates by address alone.
    Other(u8),
}

/// An IPv4 datagram.
#[derive(Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// What follows.
    pub body: Body,
    /// What that carries.
    pub payload: Vec<u8>,
}

/// How much of its datagram a frame carries; offsets are multiples of eight, from behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// All up to here, more to come.
    First(usize),
    /// All from here.
    Later(usize),
}

/// An Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination.
    pub to: Mac,
    /// Source.
    pub from: Mac,
    /// The datagram.
    pub datagram: Datagram,
    /// Which part of it.
    pub part: Part,
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { src, dst, ttl, id, df, body, payload } = self;
        write!(f, "{src} > {dst} ttl {ttl} id {id} df {df} {body:?}, {} bytes", payload.len())
    }
}

impl Datagram {
    /// Addresses and ports; `None` for an ICMP error, which is told by what it quotes, and for what can't be translated.
    #[must_use]
    pub const fn key(&self) -> Option<Key> {
        let (sport, dport) = match self.body {
            Body::Tcp { sport, dport, .. } | Body::Reset { sport, dport, .. } | Body::Udp { sport, dport, .. } => {
                (sport, dport)
            }
            Body::Echo { request: true, id } => (id, 0),
            Body::Echo { request: false, id } => (0, id),
            Body::Error { .. } | Body::Other(DCCP | AH | UDPLITE) => return None,
            Body::Other(_) => (0, 0),
        };
        Some(Key { src: self.src, dst: self.dst, sport, dport, protocol: self.protocol() })
    }

    /// The same with other addresses and ports.
    #[must_use]
    pub fn with(&self, key: &Key) -> Self {
        let mut new = Self { src: key.src, dst: key.dst, ..self.clone() };
        match &mut new.body {
            Body::Tcp { sport, dport, .. } | Body::Reset { sport, dport, .. } | Body::Udp { sport, dport, .. } => {
                (*sport, *dport) = (key.sport, key.dport);
            }
            Body::Echo { request: true, id } => *id = key.sport,
            Body::Echo { request: false, id } => *id = key.dport,
            Body::Other(_) | Body::Error { .. } => {}
        }
        new
    }

    /// The IP protocol.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp { .. } | Body::Reset { .. } => TCP,
            Body::Udp { .. } => UDP,
            Body::Echo { .. } | Body::Error { .. } => ICMP,
            Body::Other(protocol) => protocol,
        }
    }

    /// TCP flags; zero for other protocols.
    #[must_use]
    pub const fn tcp_flags(&self) -> u8 {
        match self.body {
            Body::Tcp { flags, .. } => flags,
            Body::Reset { .. } => RST,
            _ => 0,
        }
    }

    /// Whether a router may forward it (RFC 1812 section 5.3.7, RFC 3927 section 2.7).
    #[must_use]
    pub fn is_forwardable(&self) -> bool {
        [self.src, self.dst].iter().all(|address| {
            let [first, ..] = address.octets();
            !address.is_loopback() && !address.is_link_local() && first != 0 && first < 224
        })
    }

    /// All that follows the IP header.
    #[must_use]
    pub fn transport(&self) -> Vec<u8> {
        let (mut bytes, at, pseudo) = match &self.body {
            Body::Tcp { sport, dport, flags, mss } => {
                // Sequence number 1, of which 2 is acknowledged.
                let options = mss.map_or(Vec::new(), |mss| [&[2, 4][..], &mss.to_be_bytes()].concat());
                let offset = if options.is_empty() { 0x50 } else { 0x60 };
                let rest = [0, 0, 0, 1, 0, 0, 0, 2, offset, *flags, 0x20, 0, 0, 0, 0, 0];
                ([&sport.to_be_bytes()[..], &dport.to_be_bytes(), &rest, &options].concat(), Some(16), true)
            }
            Body::Reset { sport, dport, seq, ack } => {
                let flags = if ack.is_some() { RST | ACK } else { RST };
                let numbers = [seq.to_be_bytes(), ack.unwrap_or(0).to_be_bytes()].concat();
                let ports = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
                ([&ports[..], &numbers, &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat(), Some(16), true)
            }
            Body::Udp { sport, dport, summed } => {
                let len = length(8 + self.payload.len());
                let header = [sport.to_be_bytes(), dport.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
                (header, summed.then_some(6), true)
            }
            Body::Echo { request, id } => {
                let kind = if *request { 8 } else { 0 };
                ([&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1]].concat(), Some(2), false)
            }
            Body::Error { kind, code, about, quoted } => {
                let mut bytes = vec![*kind, *code, 0, 0, 0, 0, 5, 0];
                let inner = about.transport();
                bytes.extend(about.header(inner.len(), Part::Whole));
                bytes.extend(&inner[..inner.len().min(*quoted)]);
                (bytes, Some(2), false)
            }
            Body::Other(_) => (vec![0, 0, 8, 0], None, false),
        };
        bytes.extend(&self.payload);
        let Some(at) = at else { return bytes };
        let len = length(bytes.len()).to_be_bytes();
        let pseudo_header = [&self.src.octets()[..], &self.dst.octets(), &[0, self.protocol()], &len].concat();
        let mut sum = if pseudo { checksum(&[&pseudo_header, &bytes]) } else { checksum(&[&bytes]) };
        if sum == 0 && self.protocol() == UDP {
            sum = 0xffff;
        }
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn header(&self, len: usize, part: Part) -> Vec<u8> {
        let fragment = match part {
            Part::Whole => 0,
            Part::First(_) => 0x2000,
            Part::Later(from) => length(from / 8),
        };
        let fragment = fragment | if self.df { 0x4000 } else { 0 };
        let mut ip = [
            &[0x45, 0][..],
            &length(20 + len).to_be_bytes(),
            &self.id.to_be_bytes(),
            &fragment.to_be_bytes(),
            &[self.ttl, self.protocol(), 0, 0],
            &self.src.octets(),
            &self.dst.octets(),
        ]
        .concat();
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    }
}

impl Frame {
    /// What the frame carries behind the IP header.
    fn carried(&self) -> Vec<u8> {
        let transport = self.datagram.transport();
        match self.part {
            Part::Whole => transport,
            Part::First(end) => transport[..end].to_vec(),
            Part::Later(from) => transport[from..].to_vec(),
        }
    }

    /// Length in bytes, from the IP header on.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::from(length(20 + self.carried().len()))
    }

    /// Never: there is a header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Its bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let carried = self.carried();
        let header = self.datagram.header(carried.len(), self.part);
        [&self.to[..], &self.from, &[0x08, 0x00], &header, &carried].concat()
    }
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

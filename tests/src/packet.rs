//! Ethernet frames with IPv4 in them, built from first principles: every checksum is worked out over the whole packet, so that what
//! the datapath did incrementally can be compared byte for byte.

use std::net::{Ipv4Addr, SocketAddrV4};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The transport of a [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these flags.
    Tcp(u8),
    /// UDP.
    Udp,
    /// UDP whose checksum is zero.
    UdpUnsummed,
    /// An ICMP echo request; the identifier is the source port.
    EchoRequest,
    /// An ICMP echo reply; the identifier is the destination port.
    EchoReply,
}

/// A packet to build.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination Ethernet address.
    pub to: Mac,
    /// Source Ethernet address.
    pub from: Mac,
    /// Source address and port.
    pub src: SocketAddrV4,
    /// Destination address and port.
    pub dst: SocketAddrV4,
    /// Time to live.
    pub ttl: u8,
    /// Type of service: the code point in its upper six bits.
    pub tos: u8,
    /// Transport.
    pub transport: Transport,
    /// IP options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// TCP options; a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// What the transport carries.
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet with a TTL of 64, no options and a few bytes of payload.
    ///
    /// # Panics
    /// If an address and port don't parse.
    #[must_use]
    #[allow(clippy::panic, reason = "a test's own text is wrong")]
    pub fn new(to: Mac, from: Mac, src: &str, dst: &str, transport: Transport) -> Self {
        let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} is no address and port"));
        let (src, dst) = (parse(src), parse(dst));
        let payload = b"payload of odd length".to_vec();
        Self { to, from, src, dst, ttl: 64, tos: 0, transport, options: Vec::new(), tcp_options: Vec::new(), payload }
    }

    /// The frame.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let transport = self.build_transport();
        let header_len = 20 + self.options.len();
        let mut ip = vec![0u8; 20];
        ip[0] = 0x40 | u8::try_from(header_len / 4).unwrap_or(15);
        let total = u16::try_from(header_len + transport.len()).unwrap_or(u16::MAX);
        ip[1] = self.tos;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[4..6].copy_from_slice(&[0x12, 0x34]);
        ip[6] = 0x40; // don't fragment
        ip[8] = self.ttl;
        ip[9] = self.protocol();
        ip[12..16].copy_from_slice(&self.src.ip().octets());
        ip[16..20].copy_from_slice(&self.dst.ip().octets());
        ip.extend(&self.options);
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&self.to[..], &self.from, &[0x08, 0x00], &ip, &transport].concat()
    }

    const fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp(_) => 6,
            Transport::Udp | Transport::UdpUnsummed => 17,
            Transport::EchoRequest | Transport::EchoReply => 1,
        }
    }

    fn build_transport(&self) -> Vec<u8> {
        let (sport, dport) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let (mut header, at) = match self.transport {
            Transport::Tcp(flags) => {
                let offset = u8::try_from(5 + self.tcp_options.len() / 4).unwrap_or(15) << 4;
                let rest = [0, 0, 0, 1, 0, 0, 0, 2, offset, flags, 0x20, 0, 0, 0, 0, 0];
                ([&sport[..], &dport, &rest, &self.tcp_options].concat(), 16)
            }
            Transport::Udp | Transport::UdpUnsummed => {
                let len = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX).to_be_bytes();
                ([&sport[..], &dport, &len, &[0, 0]].concat(), 6)
            }
            Transport::EchoRequest => ([&[8, 0, 0, 0][..], &sport, &[0, 1]].concat(), 2),
            Transport::EchoReply => ([&[0, 0, 0, 0][..], &dport, &[0, 1]].concat(), 2),
        };
        header.extend(&self.payload);
        let len = u16::try_from(header.len()).unwrap_or(u16::MAX).to_be_bytes();
        let pseudo = [&self.src.ip().octets()[..], &self.dst.ip().octets(), &[0, self.protocol()], &len].concat();
        let sum = match self.transport {
            Transport::Tcp(_) => checksum(&[&pseudo, &header]),
            // RFC 768: a computed zero is sent as all ones.
            Transport::Udp => match checksum(&[&pseudo, &header]) {
                0 => 0xffff,
                sum => sum,
            },
            Transport::UdpUnsummed => 0,
            Transport::EchoRequest | Transport::EchoReply => checksum(&[&header]),
        };
        header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        header
    }
}

/// The frame with another word of fragment flags and offset, and the header checksum that goes with it.
#[must_use]
pub fn with_fragment(frame: &[u8], fragment: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let end = 14 + usize::from(frame[14] & 0x0f) * 4;
    frame[20..22].copy_from_slice(&fragment.to_be_bytes());
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..end]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A frame with an ICMP error: type and code, the second word of its header, and what it quotes.
///
/// # Panics
/// If an address doesn't parse.
#[must_use]
#[allow(clippy::panic, clippy::too_many_arguments, reason = "a test's own text is wrong; a header has so many fields")]
pub fn icmp_error(
    to: Mac,
    from: Mac,
    src: &str,
    dst: &str,
    ttl: u8,
    kind: [u8; 2],
    word: u32,
    quoted: &[u8],
) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv4Addr>().unwrap_or_else(|_| panic!("{text:?} is no address")).octets();
    let mut icmp = [&kind[..], &[0, 0], &word.to_be_bytes(), quoted].concat();
    let sum = checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let total = u16::try_from(20 + icmp.len()).unwrap_or(u16::MAX).to_be_bytes();
    let ip = [&[0x45, 0xc0][..], &total, &[0x43, 0x21, 0, 0, ttl, 1, 0, 0], &address(src), &address(dst)].concat();
    // The checksum, and no fragment.
    with_fragment(&[&to[..], &from, &[0x08, 0x00], &ip, &icmp].concat(), 0)
}

/// The Internet checksum (RFC 1071) over parts, of which all but the last have an even length.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_to_zero() {
        let frame = Packet::new([1; 6], [2; 6], "192.0.2.1:1", "192.0.2.2:2", Transport::Udp).build();
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        // The example of RFC 1071 section 3.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }
}

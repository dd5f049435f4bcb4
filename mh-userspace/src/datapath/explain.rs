//! Asking the datapath what would become of a packet: the program behind it is `mh_explain` of mh-ebpf.
//!
//! The packet is made here and run through the program by `BPF_PROG_TEST_RUN`; nothing is sent, counted or changed. It has an Ethernet
//! header to the interface's own address, whatever the interface, an IPv4 header without options (RFC 791), and the first words of its
//! protocol: a TCP SYN (RFC 9293), an empty UDP datagram (RFC 768), an ICMP echo request (RFC 792), or nothing. Behind its end is room for
//! the answer.
//!
//! Failure behaviour: an interface that the datapath does not know, or a kernel that refuses the run, is an error.

use std::{net::Ipv4Addr, slice::Chunks, time::Duration};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use mh_common::{
    abi::program,
    checksum::fold,
    policy::{EXPLAIN_HOST, EXPLANATION_AT, Explanation},
    wire,
};

use super::{DatapathError, apply::Datapath, load::program_of};

/// Size of the kernel's `struct __sk_buff`.
const SK_BUFF: usize = 192;
/// Where the interface is in it.
const IFINDEX: usize = 40;
/// Where the control buffer is in it.
const CONTROL_BUFFER: usize = 48;

/// Length of the packet with the answer.
const PACKET_LEN: usize = EXPLANATION_AT + size_of::<Explanation>();
/// Where the transport's header begins.
const TRANSPORT_AT: usize = wire::ETHERNET_LEN + wire::IPV4_LEN;
/// The window that a SYN announces: any but zero.
const TCP_WINDOW: u16 = 64_240;
/// The data offset of a TCP header without options, in its byte.
const TCP_OFFSET: u8 = 5 << 4;
/// ICMP type: echo request.
const ICMP_ECHO_REQUEST: u8 = 8;

const _: () = assert!(EXPLANATION_AT >= TRANSPORT_AT + wire::TCP_LEN);

/// A packet of which somebody wants to know what would become of it: a flow's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The managed interface that it comes in by; for the machine's own, that it leaves by.
    pub ifindex: u32,
    /// The machine itself sends it.
    pub by_host: bool,
    /// The IP protocol.
    pub protocol: u8,
    /// The source address.
    pub src: Ipv4Addr,
    /// The source port; for ICMP, the identifier; for protocols without ports, nothing.
    pub sport: u16,
    /// The destination address.
    pub dst: Ipv4Addr,
    /// The destination port of TCP and UDP.
    pub dport: u16,
    /// The differentiated services code point, 0 to 63.
    pub dscp: u8,
}

impl Question {
    /// The packet, for an interface with this Ethernet address.
    fn packet(&self, mac: wire::Mac) -> [u8; PACKET_LEN] {
        let mut packet = [0; PACKET_LEN];
        packet[..wire::ETHERNET_SRC].copy_from_slice(&mac);
        packet[wire::ETHERNET_TYPE..wire::ETHERNET_LEN].copy_from_slice(&wire::ETHERTYPE_IPV4.to_be_bytes());
        let (sport, dport) = (self.sport.to_be_bytes(), self.dport.to_be_bytes());
        let transport = &mut packet[TRANSPORT_AT..];
        // Where the checksum is, if one is needed and covers the addresses or does not.
        let (len, checksum) = match self.protocol {
            wire::PROTOCOL_TCP => {
                transport[wire::TCP_OFFSET_FLAGS..][..2].copy_from_slice(&[TCP_OFFSET, wire::TCP_SYN]);
                transport[wire::TCP_OFFSET_FLAGS + 2..][..2].copy_from_slice(&TCP_WINDOW.to_be_bytes());
                (wire::TCP_LEN, Some((wire::TCP_CHECKSUM, true)))
            }
            wire::PROTOCOL_UDP => {
                transport[wire::UDP_CHECKSUM - 2..wire::UDP_CHECKSUM].copy_from_slice(&length(wire::UDP_LEN));
                (wire::UDP_LEN, Some((wire::UDP_CHECKSUM, true)))
            }
            wire::PROTOCOL_ICMP => {
                transport[0] = ICMP_ECHO_REQUEST;
                transport[wire::ICMP_ID..][..2].copy_from_slice(&sport);
                (wire::ICMP_LEN, Some((wire::ICMP_CHECKSUM, false)))
            }
            _ => (0, None),
        };
        if wire::is_tcp_or_udp(self.protocol) {
            transport[..2].copy_from_slice(&sport);
            transport[2..4].copy_from_slice(&dport);
        }
        let mut addresses = [0; 8];
        addresses[..4].copy_from_slice(&self.src.octets());
        addresses[4..].copy_from_slice(&self.dst.octets());
        if let Some((at, covers_addresses)) = checksum {
            let pseudo = [&addresses[..], &[0, self.protocol], &length(len)].concat();
            let covered = if covers_addresses { &pseudo[..] } else { &[] };
            let sum = sum_of([covered.chunks(2), transport[..len].chunks(2)]);
            transport[at..at + 2].copy_from_slice(&sum);
        }
        let ip = &mut packet[wire::ETHERNET_LEN..TRANSPORT_AT];
        ip[0] = wire::IPV4_VERSION_LEN;
        ip[1] = self.dscp << 2;
        ip[2..4].copy_from_slice(&length(wire::IPV4_LEN + len));
        ip[wire::IPV4_FRAGMENT..][..2].copy_from_slice(&wire::IPV4_DONT_FRAGMENT.to_be_bytes());
        ip[wire::IPV4_TTL] = wire::DEFAULT_TTL;
        ip[wire::IPV4_TTL + 1] = self.protocol;
        ip[wire::IPV4_SRC..].copy_from_slice(&addresses);
        let sum = sum_of([ip.chunks(2)]);
        ip[wire::IPV4_CHECKSUM..][..2].copy_from_slice(&sum);
        packet
    }
}

/// A length field.
fn length(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes()
}

/// The checksum of these words (RFC 1071), of which there are even numbers of bytes.
fn sum_of<const N: usize>(parts: [Chunks<'_, u8>; N]) -> [u8; 2] {
    let words = parts.into_iter().flatten().map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    (!fold(words.sum())).to_be_bytes()
}

impl Datapath {
    /// What would become of a packet now, and what decides that.
    ///
    /// # Errors
    /// If the interface is not managed, or the kernel does not run the program.
    pub fn explain(&mut self, question: &Question) -> Result<Explanation, DatapathError> {
        self.decide(question, 1).map(|(answer, _)| answer)
    }

    /// The same `repeat` times over, with the mean time that a run took.
    ///
    /// # Errors
    /// As [`Self::explain`].
    pub fn decide(&mut self, question: &Question, repeat: u32) -> Result<(Explanation, Duration), DatapathError> {
        let interface = self.interface(question.ifindex)?;
        let packet = question.packet(interface.mac);
        let mut context = [0; SK_BUFF];
        context[IFINDEX..][..4].copy_from_slice(&question.ifindex.to_ne_bytes());
        let note = if question.by_host { EXPLAIN_HOST } else { 0 };
        context[CONTROL_BUFFER..][..4].copy_from_slice(&note.to_ne_bytes());
        let mut answer = [0; PACKET_LEN];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut answer),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let program: &mut SchedClassifier = program_of(self.ebpf(), program::EXPLAIN)?;
        let result = program.test_run(options).map_err(|source| DatapathError::Attach {
            what: "have a packet explained",
            interface: format!("interface {}", question.ifindex),
            source: Box::new(source),
        })?;
        Ok((bytemuck::pod_read_unaligned(&answer[EXPLANATION_AT..]), result.duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(protocol: u8) -> Question {
        let (src, dst) = (Ipv4Addr::new(192, 168, 1, 10), Ipv4Addr::new(192, 0, 2, 10));
        Question { ifindex: 1, by_host: false, protocol, src, sport: 40_001, dst, dport: 443, dscp: 46 }
    }

    /// The one's complement sum over everything, which is nothing with a right checksum (RFC 1071).
    fn sum(parts: &[&[u8]]) -> u16 {
        fold(parts.concat().chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum())
    }

    #[test]
    fn packets_are_whole() {
        for (protocol, len) in [(6, 20usize), (17, 8), (1, 8), (47, 0)] {
            let packet = question(protocol).packet([2, 0, 0, 0, 0, 1]);
            assert_eq!(packet[..14], [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 8, 0]);
            let (ip, transport) = (&packet[14..34], &packet[34..34 + len]);
            assert_eq!(ip[..4], [0x45, 46 << 2, 0, u8::try_from(20 + len).unwrap()]);
            assert_eq!((ip[9], &ip[12..]), (protocol, &[192, 168, 1, 10, 192, 0, 2, 10][..]));
            assert_eq!(sum(&[ip]), 0xffff);
            let pseudo = [&ip[12..], &[0, protocol, 0, u8::try_from(len).unwrap()]].concat();
            match protocol {
                1 => assert_eq!(
                    (sum(&[transport]), &transport[..2], &transport[4..6]),
                    (0xffff, &[8, 0][..], &[0x9c, 0x41][..])
                ),
                6 | 17 => {
                    assert_eq!(sum(&[&pseudo, transport]), 0xffff, "{protocol}");
                    assert_eq!(transport[..4], [0x9c, 0x41, 1, 187]);
                }
                _ => assert_eq!(packet[34..], [0; PACKET_LEN - 34]),
            }
            assert!(packet[34 + len..].iter().all(|byte| *byte == 0));
        }
        assert_eq!(question(6).packet([0; 6])[46..48], [0x50, wire::TCP_SYN]);
        assert_eq!(question(17).packet([0; 6])[38..40], [0, 8]);
    }
}

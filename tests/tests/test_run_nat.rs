//! What is rare, packet by packet: ICMP errors, fragments, forwards, hairpins, the machine's own traffic, odd protocols and SYNs. Return code,
//! every byte, and exactly which counters moved. The rig is drawn in `mh_tests::rig`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeMap;

use anyhow::Result;
use mh_common::abi::mark;
use mh_tests::model::wire::{ACK, RST, SYN};
use mh_tests::packet::{Packet, Transport, icmp_error, with_fragment};
use mh_tests::rig::conversation::{
    INSIDE, OUTSIDE, REMOTE, assert_done, back, back_sent, flows, on_rig, on_rig_with, out, out_sent, states,
};
use mh_tests::rig::{GATEWAY1, GATEWAY2, HOST, HOST2, LAN, Rig, TC_DROP, TC_NEXT, TC_REDIRECT, WAN1, WAN2};

const MORE_FRAGMENTS: u16 = 0x2000;

/// The IP packet of a frame, cut after so many bytes of its transport header.
fn quote(frame: &[u8], transport_len: usize) -> Vec<u8> {
    let header_len = usize::from(frame[14] & 0x0f) * 4;
    frame[14..(14 + header_len + transport_len).min(frame.len())].to_vec()
}

/// An error from a router on the way, about what the inside host sent: outer destination and quoted source become the inside host's.
#[test]
fn errors_from_outside_are_turned_back() {
    on_rig(|rig| {
        let kinds = [Transport::Udp, Transport::UdpUnsummed, Transport::Tcp(SYN), Transport::EchoRequest];
        for (kind, quoted_len) in kinds.into_iter().flat_map(|kind| [(kind, 8), (kind, 20), (kind, 200)]) {
            for options in [vec![], vec![0x94, 0x04, 0x00, 0x00]] {
                let remote = if kind == Transport::EchoRequest { "192.0.2.10:0" } else { REMOTE };
                let sent = Packet { dst: remote.parse()?, options: options.clone(), ..out_sent(kind) }.build();
                let original = Packet { dst: remote.parse()?, options, ttl: 63, ..out(kind) }.build();
                rig.tc("lan0", &Packet { dst: remote.parse()?, ..out(kind) }.build())?;
                // Fragmentation needed, next-hop MTU 1280: a router somewhere on the way says so.
                let error = |to, from, dst: &str, ttl, quoted: &[u8]| {
                    icmp_error(to, from, "203.0.113.77", dst, ttl, [3, 4], 1280, quoted)
                };
                let arrives = error(WAN1, GATEWAY1, "198.51.100.2", 60, &quote(&sent, quoted_len));
                let leaves = error(HOST, LAN, "192.168.1.10", 59, &quote(&original, quoted_len));
                let outcome = rig.tc("wan1", &arrives)?;
                // The kernel writes the Ethernet addresses after the redirect.
                assert_eq!(outcome.packet[14..], leaves[14..], "{kind:?}, {quoted_len} bytes quoted");
                assert_eq!((outcome.code, outcome.counted), (TC_REDIRECT, [("icmp_error", 1)].into()));
            }
        }
        Ok(())
    });
}

/// An error from an inside host about what it received: it leaves with outside addresses, outside and inside.
#[test]
fn errors_from_inside_are_turned_back() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Udp).build())?;
        rig.tc("wan1", &back(Transport::Udp).build())?;
        let received = quote(&back_sent(Transport::Udp).build(), 8);
        let sent = quote(&Packet { ttl: 63, ..back(Transport::Udp) }.build(), 8);
        // From the host itself, and from a router in front of it: that one has no outside address of its own.
        for source in ["192.168.1.10", "192.168.1.11"] {
            let arrives = icmp_error(LAN, HOST, source, "192.0.2.10", 64, [3, 3], 0, &received);
            let leaves = icmp_error(GATEWAY1, WAN1, "198.51.100.2", "192.0.2.10", 63, [3, 3], 0, &sent);
            let outcome = rig.tc("lan0", &arrives)?;
            assert_eq!(outcome.packet[14..], leaves[14..]);
            assert_eq!((outcome.code, outcome.counted), (TC_REDIRECT, [("icmp_error", 1)].into()));
        }
        // About nothing that mh knows: it would carry inside addresses out.
        let stray = quote(&Packet::new(HOST, LAN, "192.0.2.99:1", INSIDE, Transport::Udp).build(), 8);
        let stray = icmp_error(LAN, HOST, "192.168.1.10", "192.0.2.99", 64, [3, 3], 0, &stray);
        assert_done(&rig.tc("lan0", &stray)?, TC_DROP, &stray, "icmp_stray");
        Ok(())
    });
}

#[test]
fn errors_about_nothing_are_the_kernels() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Udp).build())?;
        let sent = out_sent(Transport::Udp).build();
        let error = |dst: &str, quoted: &[u8]| icmp_error(WAN1, GATEWAY1, "203.0.113.77", dst, 60, [11, 0], 0, quoted);
        let mut later = quote(&sent, 8);
        later[7] = 1; // a fragment offset
        let cases = [
            // Another port; quoted too short for its ports; a later fragment; not addressed to who sent what it quotes.
            error(
                "198.51.100.2",
                &quote(&Packet { src: "198.51.100.2:40009".parse()?, ..out_sent(Transport::Udp) }.build(), 8),
            ),
            error("198.51.100.2", &quote(&sent, 2)),
            error("198.51.100.2", &later),
            error("198.51.100.3", &quote(&sent, 8)),
        ];
        for packet in cases {
            assert_done(&rig.tc("wan1", &packet)?, TC_NEXT, &packet, "pass_no_flow");
        }
        Ok(())
    });
}

/// Errors neither refresh nor end anything (RFC 5508 REQ-6).
#[test]
fn errors_leave_flows_as_they_are() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        rig.tc("wan1", &back(Transport::Tcp(SYN | ACK)).build())?;
        let before = (rig.tables.bindings()?, all_flows(rig)?);
        let quoted = quote(&out_sent(Transport::Tcp(ACK)).build(), 8);
        for kind in [[3, 0], [3, 1], [3, 2], [3, 3], [11, 0], [12, 0], [4, 0]] {
            rig.tc("wan1", &icmp_error(WAN1, GATEWAY1, "203.0.113.77", "198.51.100.2", 60, kind, 0, &quoted))?;
        }
        assert_eq!((rig.tables.bindings()?, all_flows(rig)?), before);
        Ok(())
    });
}

fn all_flows(rig: &Rig) -> Result<Vec<String>> {
    Ok(flows(rig)?.iter().map(|flow| format!("{flow:?}")).collect())
}

#[test]
fn fragments_follow_the_first() {
    on_rig(|rig| {
        let whole = Packet { payload: vec![9; 64], ..out(Transport::Udp) };
        let sent = Packet { payload: vec![9; 64], ..out_sent(Transport::Udp) };
        let first = |packet: &Packet| with_fragment(&packet.build(), MORE_FRAGMENTS);
        // Any bytes but the first eight of the datagram: no ports in there.
        let later = |packet: &Packet| with_fragment(&packet.build(), 9);
        assert_done(&rig.tc("lan0", &first(&whole))?, TC_REDIRECT, &first(&sent), "new");
        let outcome = rig.tc("lan0", &later(&whole))?;
        assert_eq!(outcome.counted, [("fragment", 1)].into());
        // The IP header is translated; what follows, the transport header of another packet to all appearances, is not.
        assert_eq!(outcome.packet[14..34], later(&sent)[14..34]);
        assert_eq!(outcome.packet[34..], whole.build()[34..]);
        // Another datagram's, of which no first fragment has come: it waits.
        let mut other = later(&whole);
        other[18] = 0x77;
        let other = with_fragment(&other, 9);
        assert_done(&rig.tc("lan0", &other)?, TC_DROP, &other, "fragment_held");
        Ok(())
    });
}

#[test]
fn a_forward_lets_in_and_answers_from_its_port() {
    let forward = "[[forward]]\nuplinks = [\"isp1\"]\nprotocol = \"tcp\"\nport = 8443\nto = \"192.168.1.10:443\"\n\
                   [nat]\nfiltering = \"address-dependent\"\n";
    on_rig_with(forward, [1, 0], |rig| {
        let request = |kind| Packet::new(WAN1, GATEWAY1, "192.0.2.77:5555", "198.51.100.2:8443", kind);
        let inside = |kind| Packet { ttl: 63, ..Packet::new(HOST, LAN, "192.0.2.77:5555", "192.168.1.10:443", kind) };
        let syn = Transport::Tcp(SYN);
        assert_done(&rig.tc("wan1", &request(syn).build())?, TC_REDIRECT, &inside(syn).build(), "inbound");
        let answer = Transport::Tcp(SYN | ACK);
        let packet = Packet::new(LAN, HOST, "192.168.1.10:443", "192.0.2.77:5555", answer).build();
        let sent =
            Packet { ttl: 63, ..Packet::new(GATEWAY1, WAN1, "198.51.100.2:8443", "192.0.2.77:5555", answer) }.build();
        assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &sent, "forward");
        // On the other uplink it is a port that nobody has.
        let other = Packet::new(WAN2, GATEWAY2, "192.0.2.77:5555", "203.0.113.2:8443", syn).build();
        assert_done(&rig.tc("wan2", &other)?, TC_DROP, &other, "unsolicited_syn");
        Ok(())
    });
}

#[test]
fn a_hairpin_shows_outside_addresses_only() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Udp).build())?;
        let packet = Packet::new(LAN, HOST2, "192.168.1.11:50001", OUTSIDE, Transport::Udp).build();
        let sent = Packet { ttl: 63, ..Packet::new(HOST, LAN, "198.51.100.2:50001", INSIDE, Transport::Udp) }.build();
        assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &sent, "hairpin");
        let answer = Packet::new(LAN, HOST, INSIDE, "198.51.100.2:50001", Transport::Udp).build();
        let sent = Packet { ttl: 63, ..Packet::new(HOST2, LAN, OUTSIDE, "192.168.1.11:50001", Transport::Udp) }.build();
        assert_done(&rig.tc("lan0", &answer)?, TC_REDIRECT, &sent, "hairpin");
        // The error about the answer, from the host that has closed its socket meanwhile (RFC 5508 REQ-7).
        let received = quote(&sent, 8);
        let error = icmp_error(LAN, HOST2, "192.168.1.11", "198.51.100.2", 64, [3, 3], 0, &received);
        let answer = Packet { ttl: 63, ..Packet::new(LAN, HOST, INSIDE, "198.51.100.2:50001", Transport::Udp) };
        let turned = icmp_error(HOST, LAN, "198.51.100.2", "192.168.1.10", 63, [3, 3], 0, &quote(&answer.build(), 8));
        let outcome = rig.tc("lan0", &error)?;
        assert_eq!(outcome.packet[14..], turned[14..]);
        assert_eq!(outcome.counted, [("icmp_error", 1)].into());
        Ok(())
    });
}

/// GRE: by address alone, and one inside host per remote.
#[test]
fn a_protocol_without_ports_belongs_to_one_host() {
    on_rig(|rig| {
        let gre = |packet: Packet| with_protocol(&packet.build(), 47);
        let first = gre(out(Transport::Udp));
        let outcome = rig.tc("lan0", &first)?;
        assert_eq!(outcome.counted, [("new", 1)].into());
        assert_eq!(outcome.packet[14..34], gre(out_sent(Transport::Udp))[14..34]);
        assert_eq!(outcome.packet[34..], first[34..], "what GRE carries is nobody's business");
        let second = gre(Packet::new(LAN, HOST2, "192.168.1.11:1", REMOTE, Transport::Udp));
        let refused = rig.tc("lan0", &second)?;
        assert_done(&refused, TC_NEXT, &second, "protocol_in_use");
        assert_eq!(refused.mark, mark::PROHIBIT << 16);
        let answer = gre(back(Transport::Udp));
        let outcome = rig.tc("wan1", &answer)?;
        assert_eq!(outcome.packet[14..34], gre(back_sent(Transport::Udp))[14..34]);
        assert_eq!(outcome.counted, [("reply", 1)].into());
        Ok(())
    });
}

/// The frame with another IP protocol, and the header checksum that goes with it.
fn with_protocol(frame: &[u8], protocol: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[23] = protocol;
    with_fragment(&frame, 0x4000)
}

/// The MSS option lowered wherever it stands, at even and odd offsets, and the checksum with it.
#[test]
fn the_mss_of_a_syn_is_clamped() {
    let syn = |mss: u16, nops: usize, packet: Packet| {
        let mut options = vec![1; nops];
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
        options.resize(8, 1);
        Packet { tcp_options: options, payload: Vec::new(), ..packet }.build()
    };
    on_rig(|rig| {
        for (nops, port) in (0..4).zip(41_000..) {
            let flow = |packet: Packet, side: u8| Packet {
                src: std::net::SocketAddrV4::new(*packet.src.ip(), if side == 0 { port } else { packet.src.port() }),
                ..packet
            };
            let packet = syn(9000, nops, flow(out(Transport::Tcp(SYN)), 0));
            let sent = syn(1460, nops, flow(out_sent(Transport::Tcp(SYN)), 0));
            assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &sent, "new");
            // What fits already stays.
            let packet = syn(1200, nops, flow(out(Transport::Tcp(SYN)), 0));
            let sent = syn(1200, nops, flow(out_sent(Transport::Tcp(SYN)), 0));
            assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &sent, "forward");
        }
        Ok(())
    });
}

/// A RST is not the end if its sender goes on (RFC 6146 section 3.5.2.2).
#[test]
fn a_forged_reset_does_not_shorten_a_connection() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        rig.tc("wan1", &back(Transport::Tcp(SYN | ACK)).build())?;
        rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?;
        assert_eq!(states(rig)?, ["established"]);
        rig.tc("wan1", &back(Transport::Tcp(RST)).build())?;
        assert_eq!(states(rig)?, ["reset"]);
        rig.tc("wan1", &back(Transport::Tcp(ACK)).build())?;
        assert_eq!(states(rig)?, ["established"]);
        Ok(())
    });
}

/// What the machine itself is asked by isp2 is answered by isp2, though the kernel would send it by isp1.
#[test]
fn the_machine_answers_by_the_uplink_of_the_question() {
    on_rig(|rig| {
        let question = Packet::new(WAN2, GATEWAY2, "192.0.2.10:5353", "203.0.113.2:53", Transport::Udp).build();
        assert_done(&rig.tc("wan2", &question)?, TC_NEXT, &question, "host");
        let answer = Packet::new(GATEWAY1, WAN1, "203.0.113.2:53", "192.0.2.10:5353", Transport::Udp).build();
        let outcome = rig.egress("wan1", 0, &answer)?;
        assert_done(&outcome, TC_REDIRECT, &answer, "host");
        assert_eq!(outcome.mark, mark::DONE << 16);
        // There it is seen once more, and passes.
        let outcome = rig.egress("wan2", mark::DONE << 16, &answer)?;
        assert_eq!((outcome.code, outcome.counted), (TC_NEXT, BTreeMap::new()));
        // By its source address alone, if the flow is forgotten.
        let stray = Packet::new(GATEWAY1, WAN1, "203.0.113.2:22", "192.0.2.10:9", Transport::Tcp(RST)).build();
        assert_done(&rig.egress("wan1", 0, &stray)?, TC_REDIRECT, &stray, "host");
        Ok(())
    });
}

/// What the kernel was to send by another uplink, or to refuse, leaves by none.
#[test]
fn marked_packets_leave_by_their_uplink_only() {
    on_rig(|rig| {
        let packet = Packet { to: GATEWAY1, from: WAN1, ..out(Transport::Udp) }.build();
        for value in [mark::FIRST_UPLINK + 1, mark::PROHIBIT, mark::UNREACHABLE] {
            assert_done(&rig.egress_forwarded("wan1", value << 16, &packet)?, TC_DROP, &packet, "misrouted");
            assert_done(&rig.egress("wan1", value << 16, &packet)?, TC_DROP, &packet, "misrouted");
        }
        // Its own, of a flow that mh knows: translated, and the TTL is the kernel's affair.
        rig.tc("lan0", &out(Transport::Udp).build())?;
        rig.tc("lan0", &out(Transport::Udp).build())?;
        let sent = Packet { ttl: 64, ..out_sent(Transport::Udp) }.build();
        let own = mark::FIRST_UPLINK << 16;
        assert_done(&rig.egress_forwarded("wan1", own, &packet)?, TC_NEXT, &sent, "forward");
        Ok(())
    });
}

/// A socket with an uplink's mark sends by that uplink, up or down; its packets are no flow of mh's.
#[test]
fn probes_of_an_uplink_pass_untouched() {
    on_rig(|rig| {
        for healthy in [0b11, 0b10, 0] {
            rig.set_healthy(healthy)?;
            for transport in [Transport::Tcp(SYN), Transport::Tcp(ACK), Transport::Udp, Transport::EchoRequest] {
                let remote = if transport == Transport::EchoRequest { "192.0.2.10:0" } else { REMOTE };
                let probe = Packet::new(GATEWAY1, WAN1, OUTSIDE, remote, transport).build();
                let outcome = rig.egress("wan1", mark::FIRST_UPLINK << 16, &probe)?;
                assert_done(&outcome, TC_NEXT, &probe, "pass_host");
                let fragment = with_fragment(&probe, 0x2000);
                assert_done(&rig.egress("wan1", mark::FIRST_UPLINK << 16, &fragment)?, TC_NEXT, &fragment, "pass_host");
                let later = with_fragment(&probe, 0x0001);
                assert_done(&rig.egress("wan1", mark::FIRST_UPLINK << 16, &later)?, TC_NEXT, &later, "pass_host");
            }
        }
        assert_eq!(states(rig)?, Vec::<&str>::new());
        assert_eq!(rig.tables.bindings()?, []);
        Ok(())
    });
}

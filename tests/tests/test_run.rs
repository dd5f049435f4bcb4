//! Both programs, packet by packet: return code, every byte, and exactly which counters moved. The rig is drawn in `mh_tests::rig`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use mh_common::{
    abi::{self, mark},
    time,
};
use mh_tests::model::wire::{ACK, FIN, RST, SYN};
use mh_tests::packet::{Packet, Transport};
use mh_tests::rig::conversation::{
    INSIDE, OUTSIDE, REMOTE, assert_done, back, back_sent, counted, flows, on_rig, on_rig_with, out, out_sent,
};
use mh_tests::rig::{GATEWAY1, HOST, HOST2, LAN, Rig, TC_DROP, TC_NEXT, TC_REDIRECT, WAN1, XDP_PASS, XDP_REDIRECT};
use mh_userspace::datapath::{flows::now, sweep};

/// New flow in XDP or, if that passes it, in TC; hit, reply in TC; then hit and reply in XDP.
fn conversation(at_xdp: bool, first: Transport, more: Transport, answer: Transport, answers: Transport) {
    on_rig(|rig| {
        let packet = out(first).build();
        let early = rig.xdp("lan0", &packet)?;
        if at_xdp {
            assert_done(&early, XDP_REDIRECT, &out_sent(first).build(), "new");
        } else {
            assert_done(&early, XDP_PASS, &packet, "xdp_to_tc");
            assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &out_sent(first).build(), "new");
        }
        assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &out_sent(first).build(), "forward");
        assert_done(&rig.tc("wan1", &back(answer).build())?, TC_REDIRECT, &back_sent(answer).build(), "reply");
        assert_done(&rig.xdp("lan0", &out(more).build())?, XDP_REDIRECT, &out_sent(more).build(), "forward");
        assert_done(&rig.xdp("wan1", &back(answers).build())?, XDP_REDIRECT, &back_sent(answers).build(), "reply");

        let stats = rig.tables.uplink_stats(0)?;
        assert_eq!((stats.new_flows, stats.tx_packets, stats.rx_packets), (1, 3, 2));
        let bytes = |t: Transport| (out(t).build().len() - 14) as u64;
        assert_eq!(stats.tx_bytes, 2 * bytes(first) + bytes(more));
        assert_eq!(rig.tables.uplink_stats(1)?.tx_packets, 0);
        Ok(())
    });
}

#[test]
fn tcp() {
    conversation(true, Transport::Tcp(SYN), Transport::Tcp(ACK), Transport::Tcp(SYN | ACK), Transport::Tcp(ACK));
}

#[test]
fn udp() {
    conversation(true, Transport::Udp, Transport::Udp, Transport::Udp, Transport::Udp);
}

#[test]
fn udp_without_checksum_stays_without() {
    conversation(true, Transport::UdpUnsummed, Transport::UdpUnsummed, Transport::UdpUnsummed, Transport::UdpUnsummed);
}

#[test]
fn ping() {
    // An echo reply's source port and a request's destination port do not exist.
    on_rig(|rig| {
        let request = |to, from, src: &str, ttl| Packet {
            ttl,
            ..Packet::new(to, from, &format!("{src}:7"), "192.0.2.10:0", Transport::EchoRequest)
        };
        let reply = |to, from, dst: &str, ttl| Packet {
            ttl,
            ..Packet::new(to, from, "192.0.2.10:0", &format!("{dst}:7"), Transport::EchoReply)
        };
        let packet = request(LAN, HOST, "192.168.1.10", 64).build();
        let sent = request(GATEWAY1, WAN1, "198.51.100.2", 63).build();
        assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &sent, "new");
        let answer = reply(WAN1, GATEWAY1, "198.51.100.2", 64).build();
        let answer_sent = reply(HOST, LAN, "192.168.1.10", 63).build();
        assert_done(&rig.tc("wan1", &answer)?, TC_REDIRECT, &answer_sent, "reply");
        assert_done(&rig.xdp("lan0", &packet)?, XDP_REDIRECT, &sent, "forward");
        assert_done(&rig.xdp("wan1", &answer)?, XDP_REDIRECT, &answer_sent, "reply");
        Ok(())
    });
}

#[test]
fn what_is_not_for_an_uplink_is_left_alone() {
    on_rig(|rig| {
        let udp = |to: &str| Packet::new(LAN, HOST, INSIDE, to, Transport::Udp).build();
        let edited = |at: usize, value: u8| {
            let mut frame = out(Transport::Udp).build();
            frame[at] = value;
            frame
        };
        let mut arp = edited(12, 0x08);
        arp[13] = 0x06;
        let mut ipv6 = edited(12, 0x86);
        ipv6[13] = 0xdd;
        let mut vlan = edited(12, 0x81);
        vlan[13] = 0x00;
        let mut broadcast = out(Transport::Udp).build();
        broadcast[..6].fill(0xff);
        let cases = [
            (arp, "pass_not_ip"),
            (ipv6, "pass_ipv6"),
            (vlan, "pass_vlan"),
            (broadcast, "pass_not_unicast"),
            (Packet { to: HOST2, ..out(Transport::Udp) }.build(), "pass_not_unicast"),
            (udp("192.168.1.11:5000"), "pass_not_for_uplink"),
            (udp("192.168.1.1:53"), "pass_not_for_uplink"),
            (udp("192.168.1.255:137"), "pass_not_for_uplink"),
            (udp("203.0.113.2:53"), "pass_not_for_uplink"),
            (udp("224.0.0.251:5353"), "pass_scope"),
            (udp("255.255.255.255:67"), "pass_scope"),
            (udp("169.254.1.1:80"), "pass_scope"),
            (Packet::new(LAN, HOST, "0.0.0.0:68", REMOTE, Transport::Udp).build(), "pass_scope"),
            // DCCP, whose checksum covers addresses; a version that is none; a header too short.
            (edited(23, 33), "pass_protocol"),
            (edited(14, 0x65), "pass_malformed"),
            (edited(14, 0x44), "pass_malformed"),
            (Packet { ttl: 1, ..out(Transport::Udp) }.build(), "pass_ttl_expired"),
            (Packet::new(LAN, HOST, "192.168.1.10:0", "192.0.2.10:9", Transport::EchoReply).build(), "pass_protocol"),
        ];
        for (packet, counter) in cases {
            assert_done(&rig.tc("lan0", &packet)?, TC_NEXT, &packet, counter);
            assert_done(&rig.xdp("lan0", &packet)?, XDP_PASS, &packet, "xdp_to_tc");
        }
        assert_eq!(rig.tables.bindings()?, []);
        Ok(())
    });
}

#[test]
fn a_destination_without_a_route_is_for_an_uplink() {
    on_rig(|rig| {
        let status = std::process::Command::new("ip").args(["route", "del", "default"]).status()?;
        assert!(status.success());
        let packet = out(Transport::Udp).build();
        assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &out_sent(Transport::Udp).build(), "new");
        Ok(())
    });
}

#[test]
fn outsiders_find_no_flow() {
    on_rig_with("[nat]\nfiltering = \"address-dependent\"\n", [1, 0], |rig| {
        rig.tc("lan0", &out(Transport::Udp).build())?;
        rig.tc("wan1", &back(Transport::Udp).build())?;
        // Another port, which is the machine's own; another remote; inside addresses forged from outside.
        let other_port = Packet::new(WAN1, GATEWAY1, REMOTE, "198.51.100.2:40002", Transport::Udp).build();
        let other_remote = Packet::new(WAN1, GATEWAY1, "192.0.2.66:443", OUTSIDE, Transport::Udp).build();
        let forged = Packet { to: WAN1, ..out(Transport::Udp) }.build();
        let cases =
            [(other_port, TC_NEXT, "host"), (other_remote, TC_DROP, "filtered"), (forged, TC_NEXT, "pass_no_flow")];
        for (packet, code, counter) in cases {
            assert_done(&rig.tc("wan1", &packet)?, code, &packet, counter);
            assert_done(&rig.xdp("wan1", &packet)?, XDP_PASS, &packet, "xdp_to_tc");
        }
        // The reply by the wrong uplink.
        let wrong = Packet { to: mh_tests::rig::WAN2, ..back(Transport::Udp) }.build();
        assert_done(&rig.xdp("wan2", &wrong)?, XDP_PASS, &wrong, "xdp_to_tc");
        assert_done(&rig.tc("wan2", &wrong)?, TC_NEXT, &wrong, "pass_no_flow");
        // A reply from another port of the same remote.
        let same_remote = Packet::new(WAN1, GATEWAY1, "192.0.2.10:9999", OUTSIDE, Transport::Udp).build();
        assert_eq!(rig.tc("wan1", &same_remote)?.counted, counted("inbound"));
        Ok(())
    });
}

/// Cut at every length, with and without a flow that the whole packet would belong to: never sent, never touched, never dropped.
#[test]
fn truncated_at_every_length() {
    on_rig(|rig| {
        for transport in [Transport::Tcp(SYN), Transport::Tcp(ACK), Transport::Udp, Transport::EchoRequest] {
            let dst = if transport == Transport::EchoRequest { "192.0.2.10:0" } else { REMOTE };
            let whole = Packet { dst: dst.parse()?, ..out(transport) }.build();
            for flow_exists in [false, true] {
                for len in 14..whole.len() {
                    let cut = &whole[..len];
                    // The kernel makes no socket buffer for a test run of less than an IPv4 header.
                    if len >= 34 {
                        assert_done(&rig.tc("lan0", cut)?, TC_NEXT, cut, "pass_malformed");
                    }
                    assert_done(&rig.xdp("lan0", cut)?, XDP_PASS, cut, "xdp_to_tc");
                }
                if !flow_exists {
                    assert_eq!(rig.tc("lan0", &whole)?.code, TC_REDIRECT);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn ip_options_are_kept() {
    on_rig(|rig| {
        let options = vec![0x94, 0x04, 0x00, 0x00]; // router alert
        let packet = Packet { options: options.clone(), ..out(Transport::Udp) }.build();
        let sent = Packet { options, ttl: 63, ..Packet::new(GATEWAY1, WAN1, OUTSIDE, REMOTE, Transport::Udp) }.build();
        assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &sent, "new");
        assert_done(&rig.xdp("lan0", &packet)?, XDP_PASS, &packet, "xdp_to_tc");
        Ok(())
    });
}

#[test]
fn a_taken_port_gives_another_of_the_same_parity() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Udp).build())?;
        let second = Packet::new(LAN, HOST2, "192.168.1.11:40001", REMOTE, Transport::Udp).build();
        let outcome = rig.tc("lan0", &second)?;
        assert_eq!(outcome.counted, counted("new"));
        let port = u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]);
        assert_ne!(port, 40001);
        assert_eq!((port % 2, port >= 1024), (1, true));
        let src = format!("198.51.100.2:{port}");
        let sent = Packet { ttl: 63, ..Packet::new(GATEWAY1, WAN1, &src, REMOTE, Transport::Udp) }.build();
        assert_eq!(outcome.packet, sent);
        // Endpoint-independent: the same source to another remote keeps the port (RFC 4787 REQ-1).
        let third = Packet::new(LAN, HOST2, "192.168.1.11:40001", "192.0.2.99:53", Transport::Udp).build();
        let outcome = rig.tc("lan0", &third)?;
        assert_eq!(outcome.packet[34..36], port.to_be_bytes());
        Ok(())
    });
}

#[test]
fn a_port_of_a_local_socket_is_not_used() {
    on_rig(|rig| {
        let _socket = std::net::UdpSocket::bind("0.0.0.0:40001")?;
        let outcome = rig.tc("lan0", &out(Transport::Udp).build())?;
        assert_eq!(outcome.counted, counted("new"));
        assert_ne!(outcome.packet[34..36], 40001u16.to_be_bytes());
        Ok(())
    });
}

#[test]
fn an_evicted_half_is_restored_with_its_port() {
    on_rig(|rig| {
        let syn = out(Transport::Tcp(SYN)).build();
        rig.tc("lan0", &syn)?;
        rig.tc("wan1", &back(Transport::Tcp(SYN | ACK)).build())?;
        let flows = flows(rig)?;
        let [flow] = flows[..] else { panic!("one flow, not {flows:?}") };
        let (forward, reply) = (flow.key, flow.forward.other_key(flow.key.protocol));

        // The forward half, restored from the reply half.
        rig.evict(&forward)?;
        let ack = out(Transport::Tcp(ACK)).build();
        assert_done(&rig.tc("lan0", &ack)?, TC_REDIRECT, &out_sent(Transport::Tcp(ACK)).build(), "restored");
        // It is where its other half is, among the flows that XDP sees.
        assert_done(&rig.xdp("lan0", &ack)?, XDP_REDIRECT, &out_sent(Transport::Tcp(ACK)).build(), "forward");
        // The reply half, restored from the forward half.
        rig.evict(&reply)?;
        let answer = back(Transport::Tcp(ACK)).build();
        assert_done(&rig.tc("wan1", &answer)?, TC_REDIRECT, &back_sent(Transport::Tcp(ACK)).build(), "restored");
        // Both, restored from the binding, though new flows would go elsewhere.
        rig.evict(&forward)?;
        rig.evict(&reply)?;
        assert_done(&rig.tc("lan0", &ack)?, TC_REDIRECT, &out_sent(Transport::Tcp(ACK)).build(), "restored");
        Ok(())
    });
}

#[test]
fn a_ping_from_outside_is_for_the_machine_itself() {
    on_rig(|rig| {
        // An inside host has the identifier zero, and a ping has no destination port.
        let inside = Packet::new(LAN, HOST, "192.168.1.10:0", "192.0.2.10:0", Transport::EchoRequest).build();
        assert_eq!(rig.tc("lan0", &inside)?.counted, counted("new"));
        let ping = Packet::new(WAN1, GATEWAY1, "192.0.2.66:9", "198.51.100.2:0", Transport::EchoRequest).build();
        assert_done(&rig.tc("wan1", &ping)?, TC_NEXT, &ping, "host");
        Ok(())
    });
}

#[test]
fn a_packet_to_a_port_that_a_socket_has_taken_is_not_translated() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Udp).build())?;
        let _socket = std::net::UdpSocket::bind("198.51.100.2:40001")?;
        let packet = Packet::new(WAN1, GATEWAY1, "192.0.2.66:443", OUTSIDE, Transport::Udp).build();
        assert_done(&rig.tc("wan1", &packet)?, TC_NEXT, &packet, "host");
        Ok(())
    });
}

#[test]
fn a_syn_after_the_end_begins_a_new_flow() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        rig.tc("wan1", &back(Transport::Tcp(SYN | ACK)).build())?;
        let again = rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        assert_eq!(again.counted, counted("forward"), "a retransmitted SYN is no new flow");
        rig.tc("lan0", &out(Transport::Tcp(FIN | ACK)).build())?;
        rig.tc("wan1", &back(Transport::Tcp(FIN | ACK)).build())?;
        let again = rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        assert_done(&again, TC_REDIRECT, &out_sent(Transport::Tcp(SYN)).build(), "new");
        Ok(())
    });
}

#[test]
fn every_drop_has_its_reason() {
    on_rig(|rig| {
        for flags in [RST, FIN | ACK] {
            let stray = out(Transport::Tcp(flags)).build();
            assert_done(&rig.tc("lan0", &stray)?, TC_DROP, &stray, "tcp_stray");
        }
        let mut big = out(Transport::Udp);
        big.payload = vec![0; 1500];
        // What the kernel is to refuse goes there untouched, with a mark.
        let refused = rig.tc("lan0", &big.build())?;
        assert_done(&refused, TC_NEXT, &big.build(), "too_big");
        assert_eq!(refused.mark, mark::FIRST_UPLINK << 16);
        rig.set_healthy(0)?;
        let packet = Packet::new(LAN, HOST, "192.168.1.10:40003", REMOTE, Transport::Udp).build();
        let refused = rig.tc("lan0", &packet)?;
        assert_done(&refused, TC_NEXT, &packet, "no_uplink");
        assert_eq!(refused.mark, mark::UNREACHABLE << 16);
        Ok(())
    });
}

#[test]
fn ports_run_out_without_hurting_anybody() {
    on_rig_with("ports = \"50000-50000\"", [0, 1], |rig| {
        let packet = |host: &str| Packet::new(LAN, HOST, &format!("{host}:40001"), REMOTE, Transport::Udp).build();
        assert_eq!(rig.tc("lan0", &packet("192.168.1.10"))?.counted, counted("new"));
        let packet_refused = packet("192.168.1.11");
        let refused = rig.tc("lan0", &packet_refused)?;
        assert_done(&refused, TC_NEXT, &packet_refused, "ports_exhausted");
        assert_eq!(refused.mark, mark::PROHIBIT << 16);
        assert_eq!(rig.tc("lan0", &packet("192.168.1.10"))?.counted, counted("forward"));
        Ok(())
    });
}

#[test]
fn udp_flows_leave_an_uplink_that_dies() {
    on_rig_with("", [65535, 1], |rig| {
        rig.tc("lan0", &out(Transport::Udp).build())?;
        rig.set_healthy(0b10)?;
        let moved = rig.tc("lan0", &out(Transport::Udp).build())?;
        assert_eq!(moved.counted, counted("new"));
        assert_eq!(moved.packet[26..30], [203, 0, 113, 2]);
        Ok(())
    });
}

/// Expiry looks at a clock that the test sets: what has been idle too long goes, with its binding; what has not stays.
#[test]
fn idle_flows_and_unused_bindings_expire() {
    on_rig(|rig| {
        let seconds = |s: u64| time::ticks_for(s * 1_000_000_000);
        let timeouts = abi::Timeouts {
            udp: seconds(300),
            tcp_established: seconds(7440),
            tcp_transitory: seconds(240),
            icmp: seconds(60),
        };
        for (first, answer) in [(Transport::Udp, Transport::Udp), (Transport::Tcp(SYN), Transport::Tcp(SYN | ACK))] {
            rig.tc("lan0", &out(first).build())?;
            rig.tc("wan1", &back(answer).build())?;
        }
        rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?;
        let half_open = Packet::new(LAN, HOST, "192.168.1.10:40009", REMOTE, Transport::Tcp(SYN));
        rig.tc("lan0", &half_open.build())?;

        let now = now();
        let swept = |rig: &mut Rig, after: u64| {
            let swept = sweep::sweep(&mut rig.tables, &timeouts, now + seconds(after))?;
            anyhow::Ok((swept.flows, swept.bindings))
        };
        assert_eq!(swept(rig, 200)?, (0, 0));
        assert_eq!(swept(rig, 250)?, (1, 1), "the handshake that never ended");
        assert_eq!(swept(rig, 350)?, (1, 1), "the UDP flow");
        assert_eq!(swept(rig, 7000)?, (0, 0), "an established connection holds its flow and its binding");
        assert_eq!(swept(rig, 7500)?, (1, 1));
        assert_eq!(rig.tables.totals()?.0 + rig.tables.totals()?.1, 0);
        assert_eq!(rig.tables.bindings()?, []);
        // The port of the last binding rests for two minutes more.
        assert_eq!(swept(rig, 7600)?, (0, 0));
        assert_eq!(rig.tables.usage()?.iter().map(|(_, usage)| usage.used).sum::<u64>(), 1);
        assert_eq!(swept(rig, 7625)?, (0, 0));
        assert_eq!(rig.tables.usage()?.iter().map(|(_, usage)| usage.used).sum::<u64>(), 0);
        Ok(())
    });
}

/// Packets go on while a sweep takes its time: what they begin stays, and how many bindings a host has is right afterwards.
#[test]
fn flows_that_begin_during_a_sweep_are_not_touched() {
    on_rig(|rig| {
        let from =
            |port: u16, transport| Packet::new(LAN, HOST, &format!("192.168.1.10:{port}"), REMOTE, transport).build();
        rig.tc("lan0", &from(40_002, Transport::Udp))?;
        rig.tc("lan0", &from(40_003, Transport::Tcp(SYN)))?;
        // The handshake's time is over, the datagram's is not.
        rig.age(time::ticks_for(250_000_000_000))?;
        let timeouts = rig.tables.settings.get(&0, 0)?.timeouts;
        let mut tables = rig.open_tables()?;
        let mut steps = 0_u16;
        let swept = sweep::sweep_by_steps(&mut tables, &timeouts, &mut || {
            steps += 1;
            if steps == 1 {
                // The sweep began a while ago.
                return Some(now() - 8);
            }
            rig.tc("lan0", &from(41_000 + steps, Transport::Udp)).unwrap();
            Some(now())
        })?;
        assert!(steps > 4, "{steps} steps");
        assert_eq!(swept, Some(sweep::Swept { flows: 1, bindings: 1, rested: 0 }));
        let held = |rig: &Rig| -> anyhow::Result<u32> {
            let host = mh_common::address::Ipv4::from(std::net::Ipv4Addr::new(192, 168, 1, 10));
            let got = rig.tables.sources4.get(&host, 0)?.bindings;
            Ok(got.wrapping_sub(rig.tables.ended4.get(&host, 0)?))
        };
        let begun = u32::from(steps) - 1;
        assert_eq!((rig.tables.bindings()?.len(), held(rig)?), (usize::try_from(begun)? + 1, begun + 1));

        // One that is stopped leaves all that it has not come to.
        assert_eq!(sweep::sweep_by_steps(&mut tables, &timeouts, &mut || None)?, None);
        rig.age(time::ticks_for(400_000_000_000))?;
        steps = 0;
        let stopped = sweep::sweep_by_steps(&mut tables, &timeouts, &mut || {
            steps += 1;
            (steps < 3).then(now)
        })?;
        assert_eq!((stopped, rig.tables.bindings()?.len()), (None, usize::try_from(begun)? + 1));
        sweep::sweep(&mut tables, &timeouts, now())?;
        assert_eq!((rig.tables.bindings()?.len(), held(rig)?), (0, 0));
        Ok(())
    });
}

/// The end of a connection frees its port after the transitory timeout, not after hours.
#[test]
fn a_closed_connection_gives_its_port_back() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        rig.tc("wan1", &back(Transport::Tcp(SYN | ACK)).build())?;
        let left = |rig: &Rig| anyhow::Ok(time::since(rig.tables.bindings()?[0].1.expires, now()));
        rig.tc("lan0", &out(Transport::Tcp(FIN | ACK)).build())?;
        rig.tc("wan1", &back(Transport::Tcp(FIN | ACK)).build())?;
        let transitory = time::ticks_for(240_000_000_000);
        assert!(left(rig)? <= transitory, "{}", left(rig)?);
        Ok(())
    });
}

//! What becomes of flows whose uplink is down or has lost their address, packet by packet: every byte, and which counters moved. The rig
//! is drawn in `mh_tests::rig`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use mh_common::{abi::mark, time};
use mh_tests::model::wire::{ACK, Body, Datagram, FIN, Frame, PSH, Part, RST, SYN};
use mh_tests::packet::{Mac, Packet, Transport, with_fragment};
use mh_tests::rig::conversation::{INSIDE, REMOTE, assert_done, counted, on_rig_with, out, states};
use mh_tests::rig::{
    GATEWAY1, GATEWAY2, HOST, LAN, Outcome, Rig, TC_NEXT, TC_REDIRECT, WAN1, WAN2, XDP_PASS, XDP_REDIRECT,
};
use mh_userspace::datapath::flows;

const ADDRESS1: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const ADDRESS2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// What isp2 is renumbered to.
const RENUMBERED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// The sequence number of a [`Packet`]; it acknowledges 2.
const SEQ: u32 = 1;

const ISP1: u64 = 0b01;
const ISP2: u64 = 0b10;

/// Runs a test with the flows of isp2 (all but one in 65536), which has `on_down` as given.
fn on_isp2(on_down: &str, work: impl FnOnce(&mut Rig) -> Result<()> + Send) {
    on_rig_with(&format!("on_down = \"{on_down}\""), [1, 65535], work);
}

/// The source address of a frame.
fn source(outcome: &Outcome) -> Ipv4Addr {
    <[u8; 4]>::try_from(&outcome.packet[26..30]).unwrap().into()
}

/// A connection of the inside host by isp2, established.
fn connect(rig: &mut Rig) -> Result<()> {
    let sent = rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
    assert_eq!((sent.counted.clone(), source(&sent)), (counted("new"), ADDRESS2));
    let answer = Packet::new(WAN2, GATEWAY2, REMOTE, "203.0.113.2:40001", Transport::Tcp(SYN | ACK)).build();
    assert_eq!(rig.tc("wan2", &answer)?.counted, counted("reply"));
    assert_eq!(rig.xdp("lan0", &out(Transport::Tcp(ACK)).build())?.code, XDP_REDIRECT);
    Ok(())
}

/// A RST on its own, as a remote end sends it that knows nothing of the connection.
fn rst(to: Mac, from: Mac, src: &str, dst: &str, seq: u32, ack: Option<u32>) -> Vec<u8> {
    let (src, dst): (SocketAddrV4, SocketAddrV4) = (src.parse().unwrap(), dst.parse().unwrap());
    let body = Body::Reset { sport: src.port(), dport: dst.port(), seq, ack };
    let datagram = Datagram { src: *src.ip(), dst: *dst.ip(), ttl: 64, id: 0, df: true, body, payload: Vec::new() };
    Frame { to, from, datagram, part: Part::Whole }.build()
}

#[track_caller]
fn assert_reset(outcome: &Outcome, expected: &[u8]) {
    assert_done(outcome, TC_REDIRECT, expected, "reset");
}

/// RFC 9293 section 3.10.7.1: with the number that the segment acknowledges or, if it acknowledges none, acknowledging all of it.
#[test]
fn segments_in_mid_stream_are_answered_with_a_reset() {
    on_isp2("reset", |rig| {
        connect(rig)?;
        let before = rig.tables.uplink_stats(1)?;
        rig.set_healthy(ISP1)?;
        let exact = rst(HOST, LAN, REMOTE, INSIDE, 2, None);
        let payload = u32::try_from(out(Transport::Udp).payload.len())?;
        let all = |fin: u32| rst(HOST, LAN, REMOTE, INSIDE, 0, Some(SEQ + payload + fin));
        for (flags, expected) in [
            (ACK, exact.clone()),
            (ACK | PSH, exact.clone()),
            (ACK | FIN, exact.clone()),
            (0, all(0)),
            (PSH, all(0)),
            (FIN, all(1)),
        ] {
            let packet = out(Transport::Tcp(flags)).build();
            assert_eq!(rig.xdp("lan0", &packet)?.code, XDP_PASS, "left to TC");
            let outcome = rig.tc("lan0", &packet)?;
            assert_reset(&outcome, &expected);
            assert_eq!(outcome.mark, mark::NONE);
        }
        // Whatever its length and its options.
        for (payload, options) in [(0, 0), (1, 12), (1400, 40)] {
            let payload = vec![7; payload];
            let packet = Packet { payload, tcp_options: vec![1; options], ..out(Transport::Tcp(ACK)) };
            assert_reset(&rig.tc("lan0", &packet.build())?, &exact);
        }
        assert_eq!(states(rig)?, ["reset"]);
        let left = time::since(rig.tables.bindings()?[0].1.expires, flows::now());
        assert!(left <= time::ticks_for(240_000_000_000), "the binding ends with the flow: {left}");
        let after = rig.tables.uplink_stats(1)?;
        assert_eq!(before.tx_packets, after.tx_packets, "nothing left by the dead uplink");
        Ok(())
    });
}

#[test]
fn a_checksum_is_right_whatever_the_addresses() {
    on_isp2("reset", |rig| {
        for n in 0..200u16 {
            let remote = format!("192.{}.{}.{}:{}", n % 256, 251 * n % 256, 17 * n % 256, 65535 - 7 * n);
            let inside = format!("192.168.1.10:{}", 1024 + 311 * n);
            let packet = |flags| Packet::new(LAN, HOST, &inside, &remote, Transport::Tcp(flags)).build();
            rig.set_healthy(ISP2)?;
            let begun = rig.tc("lan0", &packet(SYN))?;
            if begun.counted != counted("new") {
                // The LAN's own.
                continue;
            }
            rig.set_healthy(ISP1)?;
            assert_reset(&rig.tc("lan0", &packet(ACK))?, &rst(HOST, LAN, &remote, &inside, 2, None));
        }
        Ok(())
    });
}

#[test]
fn resets_fragments_and_ip_options_are_not_answered() {
    on_isp2("reset", |rig| {
        connect(rig)?;
        rig.set_healthy(ISP1)?;
        let whole = out(Transport::Tcp(ACK)).build();
        let with_options = Packet { options: vec![1; 4], ..out(Transport::Tcp(ACK)) }.build();
        for packet in [
            with_options,
            with_fragment(&whole, 0x2000),
            out(Transport::Tcp(SYN | ACK)).build(),
            out(Transport::Tcp(RST)).build(),
            out(Transport::Tcp(RST | ACK)).build(),
        ] {
            let outcome = rig.tc("lan0", &packet)?;
            assert_eq!((outcome.counted.clone(), source(&outcome)), (counted("forward"), ADDRESS2));
        }
        assert_eq!(rig.tc("lan0", &with_fragment(&whole, 0x0003))?.counted, counted("fragment"));
        Ok(())
    });
}

/// Its client tries again from the same port.
#[test]
fn a_reset_connection_begins_anew_by_another_uplink() {
    on_isp2("reset", |rig| {
        connect(rig)?;
        rig.set_healthy(ISP1)?;
        assert_eq!(rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?.counted, counted("reset"));
        let again = rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        assert_eq!((again.counted.clone(), source(&again)), (counted("new"), ADDRESS1));
        let answer = Packet::new(WAN1, GATEWAY1, REMOTE, "198.51.100.2:40001", Transport::Tcp(SYN | ACK)).build();
        assert_eq!(rig.tc("wan1", &answer)?.counted, counted("reply"));
        assert_eq!(rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?.counted, counted("forward"));
        Ok(())
    });
}

#[test]
fn a_reset_that_was_lost_does_no_harm_once_the_uplink_is_back() {
    on_isp2("reset", |rig| {
        connect(rig)?;
        rig.set_healthy(ISP1)?;
        assert_eq!(rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?.counted, counted("reset"));
        assert_eq!(states(rig)?, ["reset"]);
        rig.set_healthy(ISP1 | ISP2)?;
        assert_eq!(states(rig)?, ["reset"]);
        let more = rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?;
        assert_eq!((more.counted.clone(), source(&more)), (counted("forward"), ADDRESS2));
        assert_eq!(states(rig)?, ["established"]);
        Ok(())
    });
}

#[test]
fn hold_and_repin_reset_nothing() {
    for (on_down, address, name) in [("hold", ADDRESS2, "forward"), ("repin", ADDRESS1, "new")] {
        on_isp2(on_down, |rig| {
            connect(rig)?;
            rig.tc("lan0", &out(Transport::Udp).build())?;
            rig.set_healthy(ISP1)?;
            for transport in [Transport::Tcp(ACK), Transport::Udp] {
                let sent = rig.tc("lan0", &out(transport).build())?;
                assert_eq!((sent.counted.clone(), source(&sent)), (counted(name), address), "{on_down}");
            }
            Ok(())
        });
    }
}

/// Where new flows would find no uplink, nothing is given up: none is up, or none that has a weight.
#[test]
fn flows_stay_if_there_is_nowhere_to_go() {
    for on_down in ["reset", "repin"] {
        on_isp2(on_down, |rig| {
            connect(rig)?;
            rig.tc("lan0", &out(Transport::Udp).build())?;
            rig.set_weights([0, 1])?;
            for healthy in [0, ISP1] {
                rig.set_healthy(healthy)?;
                for transport in [Transport::Tcp(ACK), Transport::Udp] {
                    let sent = rig.tc("lan0", &out(transport).build())?;
                    assert_eq!((sent.counted.clone(), source(&sent)), (counted("forward"), ADDRESS2));
                }
            }
            rig.set_weights([1, 1])?;
            let udp = rig.tc("lan0", &out(Transport::Udp).build())?;
            assert_eq!((udp.counted.clone(), source(&udp)), (counted("new"), ADDRESS1));
            Ok(())
        });
    }
}

/// The machine's own connection by isp2, though the kernel would send by isp1: its socket is told in the terms that it knows.
#[test]
fn the_machines_own_connections_are_reset_too() {
    on_isp2("reset", |rig| {
        let own = |flags| Packet::new(GATEWAY1, WAN1, "198.51.100.2:40001", REMOTE, Transport::Tcp(flags));
        let sent = rig.egress("wan1", 0, &own(SYN).build())?;
        assert_eq!((sent.counted.clone(), source(&sent)), (counted("new"), ADDRESS2));
        let answer = Packet::new(WAN2, GATEWAY2, REMOTE, "203.0.113.2:40001", Transport::Tcp(SYN | ACK)).build();
        assert_eq!(rig.tc("wan2", &answer)?.counted, counted("host"));
        assert_eq!(rig.egress("wan1", 0, &own(ACK).build())?.counted, counted("host"));
        rig.set_healthy(ISP1)?;
        let expected = rst(WAN1, GATEWAY1, REMOTE, "198.51.100.2:40001", 2, None);
        let outcome = rig.egress("wan1", 0, &own(ACK).build())?;
        assert_reset(&outcome, &expected);
        assert_eq!(outcome.mark, mark::DONE << 16);
        assert_eq!(states(rig)?, ["reset"]);
        // It comes in by the same interface, and is for the socket.
        let received = rig.tc_marked("wan1", mark::DONE << 16, &expected)?;
        assert_eq!((received.code, received.counted, received.mark), (TC_NEXT, counted("pass_host"), mark::NONE));
        assert_eq!(received.packet, expected);
        // By the wire it would be the kernel's: of no flow.
        assert_eq!(rig.tc("wan1", &expected)?.counted, counted("pass_no_flow"));
        let again = rig.egress("wan1", 0, &own(SYN).build())?;
        assert_eq!((again.code, again.counted.clone(), source(&again)), (TC_NEXT, counted("new"), ADDRESS1));
        Ok(())
    });
}

/// A connection that the remote end began can only come back by the same uplink; what it began here is not given up, unless the address
/// is gone.
#[test]
fn connections_from_outside_wait_for_their_uplink() {
    let forward = "on_down = \"reset\"\n[[forward]]\nuplinks = [\"isp2\"]\nprotocol = \"tcp\"\nport = 8443\n\
                   to = \"192.168.1.10:443\"";
    on_rig_with(forward, [1, 1], |rig| {
        let question = Packet::new(WAN2, GATEWAY2, "192.0.2.10:5555", "203.0.113.2:8443", Transport::Tcp(SYN)).build();
        assert_eq!(rig.tc("wan2", &question)?.counted, counted("inbound"));
        let answer = |flags| Packet::new(LAN, HOST, "192.168.1.10:443", "192.0.2.10:5555", Transport::Tcp(flags));
        rig.tc("lan0", &answer(SYN | ACK).build())?;
        rig.set_healthy(ISP1)?;
        let held = rig.tc("lan0", &answer(ACK).build())?;
        assert_eq!((held.counted.clone(), source(&held)), (counted("forward"), ADDRESS2));
        // The machine itself, asked.
        let question = Packet::new(WAN2, GATEWAY2, "192.0.2.10:6666", "203.0.113.2:22", Transport::Tcp(SYN)).build();
        assert_eq!(rig.tc("wan2", &question)?.counted, counted("host"));
        let own = Packet::new(GATEWAY2, WAN2, "203.0.113.2:22", "192.0.2.10:6666", Transport::Tcp(ACK)).build();
        assert_eq!(rig.egress("wan2", 0, &own)?.counted, counted("host"));
        rig.renumber(1, RENUMBERED, ISP1)?;
        let outcome = rig.tc("lan0", &answer(ACK).build())?;
        assert_reset(&outcome, &rst(HOST, LAN, "192.0.2.10:5555", "192.168.1.10:443", 2, None));
        Ok(())
    });
}

/// isp2 has another address: what has the old one outside ends as `on_down` says, though isp2 is up.
#[test]
fn flows_with_an_address_that_is_gone_end() {
    for (on_down, tcp, udp) in [
        ("reset", ("reset", None), ("new", RENUMBERED)),
        ("repin", ("new", Some(RENUMBERED)), ("new", RENUMBERED)),
        ("hold", ("forward", Some(ADDRESS2)), ("forward", ADDRESS2)),
    ] {
        on_isp2(on_down, |rig| {
            connect(rig)?;
            let datagram = out(Transport::Udp).build();
            rig.tc("lan0", &datagram)?;
            rig.set_weights([0, 1])?;
            rig.renumber(1, RENUMBERED, ISP1 | ISP2)?;
            let segment = out(Transport::Tcp(ACK)).build();
            assert_eq!(rig.xdp("lan0", &segment)?.code, XDP_PASS, "due");
            for _ in 0..2 {
                let outcome = rig.tc("lan0", &segment)?;
                if tcp.0 == "reset" {
                    assert_reset(&outcome, &rst(HOST, LAN, REMOTE, INSIDE, 2, None));
                    continue;
                }
                assert_eq!(Some(source(&outcome)), tcp.1);
            }
            let outcome = rig.tc("lan0", &datagram)?;
            assert_eq!((outcome.counted.clone(), source(&outcome)), (counted(udp.0), udp.1), "{on_down}");
            let again = rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
            let anew = if on_down == "hold" { ADDRESS2 } else { RENUMBERED };
            assert_eq!(source(&again), anew, "{on_down}");
            Ok(())
        });
    }
}

/// isp2's interface was deleted and made again, as by PPPoE: what exists goes by the new one.
#[test]
fn flows_follow_their_uplink_to_its_new_interface() {
    on_isp2("reset", |rig| {
        connect(rig)?;
        let index = |name: &str| nix::net::if_::if_nametoindex(name);
        let halves = |rig: &Rig| -> Result<Vec<(bool, u32)>> {
            let mut halves = Vec::new();
            rig.tables.flows4.walk(|_, half| halves.push((half.is_reply(), half.ifindex)))?;
            halves.sort_unstable();
            Ok(halves)
        };
        assert_eq!(halves(rig)?, [(false, index("wan2")?), (true, index("lan0")?)]);
        std::process::Command::new("ip").args("link add wan9 type veth peer name far9".split(' ')).status()?;
        std::process::Command::new("ip").args("link set wan9 up".split(' ')).status()?;
        let new = index("wan9")?;
        let record = rig.tables.uplinks.get(&1, 0)?;
        rig.tables.uplinks.set(1, mh_common::abi::Uplink { ifindex: new, ..record }, 0)?;
        let interface = rig.tables.interfaces.get(&index("wan2")?, 0)?;
        rig.tables.interfaces.insert(new, interface, 0)?;
        rig.tables.interfaces.forget(&index("wan2")?)?;
        rig.next_neighbour_epoch(ISP1 | ISP2)?;
        let segment = out(Transport::Tcp(ACK)).build();
        assert_eq!(rig.xdp("lan0", &segment)?.code, XDP_PASS, "due");
        let sent = rig.tc("lan0", &segment)?;
        assert_eq!((sent.counted, sent.code), (counted("forward"), TC_REDIRECT));
        assert_eq!(halves(rig)?, [(false, new), (true, index("lan0")?)]);
        Ok(())
    });
}

/// A binding to an address that is gone restores nothing.
#[test]
fn nothing_is_restored_with_an_address_that_is_gone() {
    on_isp2("reset", |rig| {
        connect(rig)?;
        rig.set_weights([0, 1])?;
        rig.renumber(1, RENUMBERED, ISP2)?;
        let mut halves = Vec::new();
        rig.tables.flows4.walk(|key, _| halves.push(key))?;
        halves.iter().try_for_each(|key| rig.evict(key))?;
        let more = rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?;
        assert_eq!((more.counted.clone(), source(&more)), (counted("new"), RENUMBERED));
        Ok(())
    });
}

/// Identifier zero is left to probes of the machine itself.
#[test]
fn no_inside_host_gets_identifier_zero() {
    on_isp2("reset", |rig| {
        let request = Packet::new(LAN, HOST, "192.168.1.10:0", "192.0.2.10:0", Transport::EchoRequest).build();
        let sent = rig.tc("lan0", &request)?;
        assert_eq!(sent.counted, counted("new"));
        let id = u16::from_be_bytes(sent.packet[38..40].try_into()?);
        assert_ne!(id, 0);
        let reply = Packet::new(WAN2, GATEWAY2, "192.0.2.10:0", "203.0.113.2:0", Transport::EchoReply).build();
        let outcome = rig.tc("wan2", &reply)?;
        assert_eq!((outcome.code, outcome.counted), (TC_NEXT, counted("pass_no_flow")));
        Ok(())
    });
}

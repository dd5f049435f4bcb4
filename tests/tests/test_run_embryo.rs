//! Embryonic flows: of one packet there is a binding and nothing else, and nobody can tell by what becomes of the second. The rig is drawn in
//! `mh_tests::rig`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use anyhow::Result;
use mh_common::{
    address::Ipv4,
    binding::{End, Outside},
    flow::Key,
    time,
};
use mh_tests::model::wire::{ACK, FIN, SYN};
use mh_tests::packet::{Packet, Transport};
use mh_tests::rig::conversation::{assert_done, back, back_sent, counted, flows, on_rig, on_rig_with, out, out_sent};
use mh_tests::rig::{GATEWAY2, HOST2, LAN, Rig, TC_NEXT, TC_REDIRECT, WAN2, XDP_PASS, XDP_REDIRECT};
use mh_userspace::datapath::{flows::now, sweep};
use mh_userspace::reconcile::Action;

/// How many entries the two tables of the conntrack have: established, and new.
fn entries(rig: &Rig) -> Result<(usize, usize)> {
    let mut counts = [0; 2];
    for (table, count) in [&rig.tables.flows4, &rig.tables.new_flows4].into_iter().zip(&mut counts) {
        table.walk(|_, _| *count += 1)?;
    }
    Ok(counts.into())
}

/// Sends the first packet of a flow, and looks at what is known of it.
fn begin(rig: &mut Rig, first: Transport) -> Result<()> {
    let packet = out(first).build();
    assert_done(&rig.tc("lan0", &packet)?, TC_REDIRECT, &out_sent(first).build(), "new");
    assert_eq!(entries(rig)?, (0, 0), "{first:?}");
    let flows = flows(rig)?;
    let [flow] = flows[..] else { panic!("one flow, not {flows:?}") };
    let bytes = packet.len() as u64 - 14;
    assert_eq!((flow.forward.packets, flow.forward.bytes, flow.reply.unwrap().packets), (1, bytes, 0));
    assert_eq!(rig.tables.totals()?.1, 1);
    assert_eq!(rig.tables.half(&flow.key), Some(flow.forward));
    assert_eq!(rig.tables.half(&flow.forward.other_key(flow.key.protocol)), flow.reply);
    Ok(())
}

#[test]
fn an_answer_establishes_the_flow() {
    for (first, answer, more) in [
        (Transport::Udp, Transport::Udp, Transport::Udp),
        (Transport::Tcp(SYN), Transport::Tcp(SYN | ACK), Transport::Tcp(ACK)),
    ] {
        on_rig(|rig| {
            begin(rig, first)?;
            assert_done(&rig.tc("wan1", &back(answer).build())?, TC_REDIRECT, &back_sent(answer).build(), "reply");
            assert_eq!(entries(rig)?, (2, 0));
            assert_done(&rig.tc("lan0", &out(more).build())?, TC_REDIRECT, &out_sent(more).build(), "forward");
            let [flow] = flows(rig)?[..] else { panic!("one flow") };
            assert_eq!((flow.forward.packets, flow.reply.unwrap().packets), (2, 1));
            assert_eq!(rig.tables.uplink_stats(0)?.new_flows, 1);
            Ok(())
        });
    }
}

#[test]
fn a_second_packet_from_inside_is_of_the_same_flow() {
    for first in [Transport::Udp, Transport::Tcp(SYN)] {
        on_rig(|rig| {
            begin(rig, first)?;
            // Rules are for what begins, and new flows would go elsewhere.
            rig.set_rules(&Rig::rules_of("[[rule]]\nuse = \"drop\"\n")?)?;
            assert_done(&rig.tc("lan0", &out(first).build())?, TC_REDIRECT, &out_sent(first).build(), "forward");
            assert_eq!(entries(rig)?, (0, 2));
            let [flow] = flows(rig)?[..] else { panic!("one flow") };
            assert_eq!((flow.forward.packets, rig.tables.uplink_stats(0)?.new_flows), (2, 1));
            Ok(())
        });
    }
}

/// Only what may have an entry that tells less: TCP in mid-stream has more to remember, and other flows of a binding have none of their own.
#[test]
fn others_have_entries_at_once() {
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?;
        assert_eq!(entries(rig)?, (0, 2));
        begin_beside(rig)
    });
}

fn begin_beside(rig: &mut Rig) -> Result<()> {
    rig.tc("lan0", &out(Transport::Udp).build())?;
    assert_eq!(entries(rig)?, (0, 2));
    let other = Packet { dst: "192.0.2.11:443".parse()?, ..out(Transport::Udp) };
    assert_eq!(rig.tc("lan0", &other.build())?.counted, counted("new"));
    // What was embryonic has hatched, since its binding has another flow.
    assert_eq!((entries(rig)?, rig.tables.bindings()?.len()), ((0, 6), 2));
    assert_eq!(flows(rig)?.len(), 3);
    // Of bindings that have been entered, and one that has not.
    rig.tc("lan0", &Packet { src: "192.168.1.10:40077".parse()?, ..out(Transport::Udp) }.build())?;
    assert_eq!((entries(rig)?, rig.tables.binding_usage()?.used), ((0, 6), 3));
    assert_eq!(rig.tables.totals()?.1, 4, "flows without a reply are another number");
    Ok(())
}

/// What comes by another uplink, or from elsewhere, is no answer, and does not stand in the way of it.
#[test]
fn only_its_answer_is_one() {
    on_rig(|rig| {
        begin(rig, Transport::Udp)?;
        let answer = back(Transport::Udp);
        let elsewhere = Packet { to: WAN2, from: GATEWAY2, ..answer.clone() }.build();
        assert_done(&rig.tc("wan2", &elsewhere)?, TC_NEXT, &elsewhere, "pass_no_flow");
        // Anybody may send to the binding: a flow of its own.
        let stranger = Packet { src: "192.0.2.99:5".parse()?, ..answer.clone() }.build();
        assert_eq!(rig.tc("wan1", &stranger)?.counted, counted("inbound"));
        assert_eq!(entries(rig)?, (0, 4));
        assert_done(&rig.tc("wan1", &answer.build())?, TC_REDIRECT, &back_sent(Transport::Udp).build(), "reply");
        assert_eq!(entries(rig)?, (2, 2));
        Ok(())
    });
}

#[test]
fn one_whose_uplink_fails_begins_anew_elsewhere() {
    on_rig_with("", [1, 0], |rig| {
        begin(rig, Transport::Tcp(SYN))?;
        rig.set_weights([1, 1])?;
        rig.set_healthy(0b10)?;
        let again = rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        assert_eq!(again.counted, counted("new"));
        assert_eq!(rig.tables.uplink_stats(1)?.new_flows, 1);
        assert_eq!(flows(rig)?.len(), 1, "the one on the uplink that failed is over");
        Ok(())
    });
}

#[test]
fn it_ends_when_its_time_is_over() {
    on_rig(|rig| {
        begin(rig, Transport::Udp)?;
        let timeouts = rig.tables.settings.get(&0, 0)?.timeouts;
        rig.age(timeouts.udp - 8)?;
        assert_eq!(sweep::sweep(&mut rig.tables, &timeouts, now())?, sweep::Swept::default());
        rig.age(16)?;
        let swept = sweep::sweep(&mut rig.tables, &timeouts, now())?;
        assert_eq!((swept.flows, swept.bindings), (1, 1));
        assert_eq!((flows(rig)?.len(), rig.tables.bindings()?.len()), (0, 0));
        Ok(())
    });
}

/// Though the binding goes on with another flow.
#[test]
fn it_ends_before_its_binding() {
    on_rig(|rig| {
        begin(rig, Transport::Udp)?;
        let timeouts = rig.tables.settings.get(&0, 0)?.timeouts;
        rig.age(timeouts.udp / 2)?;
        let other = Packet { dst: "192.0.2.11:443".parse()?, ..out(Transport::Udp) }.build();
        rig.tc("lan0", &other)?;
        rig.age(timeouts.udp / 2 + time::MAINTENANCE_TICKS)?;
        rig.tc("lan0", &other)?;
        let swept = sweep::sweep(&mut rig.tables, &timeouts, now())?;
        assert_eq!((swept.flows, swept.bindings), (1, 0));
        let [flow] = flows(rig)?[..] else { panic!("one flow") };
        assert_eq!(flow.forward.packets, 2);
        // Its answer would be a stranger's now.
        assert_eq!(rig.tc("wan1", &back(Transport::Udp).build())?.counted, counted("inbound"));
        Ok(())
    });
}

#[test]
fn a_flush_ends_it_and_not_its_binding() {
    on_rig(|rig| {
        begin(rig, Transport::Tcp(SYN))?;
        let flow = flows(rig)?[0];
        rig.tables.remove_flow(&flow)?;
        assert_eq!((flows(rig)?.len(), rig.tables.bindings()?.len()), (0, 1));
        let fin = back(Transport::Tcp(FIN | ACK)).build();
        assert_eq!(rig.tc("wan1", &fin)?.counted, counted("tcp_stray"));
        Ok(())
    });
}

/// Two CPUs at the same time may give a source two bindings: the port of the one that nobody finds from inside is not lost.
#[test]
fn a_second_binding_of_its_source_lets_its_port_rest() {
    on_rig(|rig| {
        begin(rig, Transport::Udp)?;
        let flow = flows(rig)?[0];
        let [(inside, outside)] = rig.tables.bindings()?[..] else { panic!("one binding") };
        rig.tables.by_inside4.insert(inside, Outside { port: 2222u16.to_be(), ..outside }, 0)?;
        let again = rig.tc("lan0", &out(Transport::Udp).build())?;
        assert_eq!(again.counted, counted("new"), "by the other one");
        rig.tables.remove_flow(&flow)?;
        let end = End { address: outside.address, port: outside.port, ..inside };
        assert!(!rig.tables.by_outside4.get(&end, 0)?.in_use());
        Ok(())
    });
}

/// It would not be found from inside any more, and has entries instead.
#[test]
fn it_goes_on_when_addresses_change() {
    on_rig(|rig| {
        begin(rig, Transport::Udp)?;
        let mut pool = rig.tables.pools.get(&0, 0)?;
        rig.apply(&Action::SetPool(0, pool))?;
        assert_eq!(entries(rig)?, (0, 0), "nothing has changed");
        let address = std::net::Ipv4Addr::new(198, 51, 100, 77);
        rig.apply(&Action::SetOutside(address, 1))?;
        pool.ranges[0].first = address.into();
        rig.apply(&Action::SetPool(0, pool))?;
        assert_eq!((entries(rig)?, flows(rig)?.len(), rig.tables.bindings()?.len()), ((0, 2), 1, 1));
        let again = rig.tc("lan0", &out(Transport::Udp).build())?;
        assert_done(&again, TC_REDIRECT, &out_sent(Transport::Udp).build(), "forward");
        assert_done(
            &rig.tc("wan1", &back(Transport::Udp).build())?,
            TC_REDIRECT,
            &back_sent(Transport::Udp).build(),
            "reply",
        );
        Ok(())
    });
}

/// XDP takes the next of the ports that follow from the source, and the complete path finds the flow there.
#[test]
fn a_port_of_which_something_is_known_is_passed_over() {
    on_rig(|rig| {
        let (seed, packet) = (rig.tables.seed()?, out(Transport::Udp).build());
        let address = std::net::Ipv4Addr::new(198, 51, 100, 2).into();
        let end = |port: u16| End { address, port: port.to_be(), protocol: 17, uplink: 0 };
        rig.tables.known.note(seed, &end(40001));
        assert_eq!(rig.xdp("lan0", &packet)?.counted, counted("new"));
        let [(_, outside)] = rig.tables.bindings()?[..] else { panic!("one binding") };
        assert_ne!(outside.port, end(40001).port);
        let again = rig.tc("lan0", &packet)?;
        assert_eq!((again.counted, entries(rig)?, flows(rig)?.len()), (counted("forward"), (0, 2), 1));
        Ok(())
    });
}

/// Two hosts, each with a flow to the same remote end, don't get each other's answers.
#[test]
fn each_gets_its_own_answer() {
    on_rig(|rig| {
        begin(rig, Transport::Udp)?;
        let other = Packet { from: HOST2, src: "192.168.1.11:40002".parse()?, ..out(Transport::Udp) };
        rig.tc("lan0", &other.build())?;
        assert_eq!(entries(rig)?, (0, 0));
        let answer = Packet { dst: "198.51.100.2:40002".parse()?, ..back(Transport::Udp) };
        let sent = Packet { to: HOST2, from: LAN, dst: "192.168.1.11:40002".parse()?, ..back_sent(Transport::Udp) };
        assert_done(&rig.tc("wan1", &answer.build())?, TC_REDIRECT, &sent.build(), "reply");
        assert_done(
            &rig.tc("wan1", &back(Transport::Udp).build())?,
            TC_REDIRECT,
            &back_sent(Transport::Udp).build(),
            "reply",
        );
        assert_eq!(entries(rig)?, (4, 0));
        Ok(())
    });
}

/// XDP begins flows of sources of which nothing is known; when nothing is left of one, the second sweep forgets it.
#[test]
fn a_source_is_forgotten_when_nothing_is_left_of_it() {
    on_rig(|rig| {
        let (seed, packet) = (rig.tables.seed()?, out(Transport::Udp).build());
        assert_done(&rig.xdp("lan0", &packet)?, XDP_REDIRECT, &out_sent(Transport::Udp).build(), "new");
        let key = flows(rig)?[0].key;
        assert!(!rig.tables.known.is_unknown(seed, &key));
        // A known source's flow is the complete path's, be it another one.
        let other = Packet { dst: "192.0.2.11:443".parse()?, ..out(Transport::Udp) }.build();
        assert_done(&rig.xdp("lan0", &other)?, XDP_PASS, &other, "xdp_to_tc");
        let timeouts = rig.tables.settings.get(&0, 0)?.timeouts;
        let sweep = |rig: &mut Rig| sweep::sweep(&mut rig.tables, &timeouts, now());
        sweep(rig)?;
        sweep(rig)?;
        assert!(!rig.tables.known.is_unknown(seed, &key), "it has a flow");
        rig.age(timeouts.udp + 8)?;
        sweep(rig)?;
        sweep(rig)?;
        assert!(rig.tables.known.is_unknown(seed, &key));
        assert!(!rig.tables.known.is_unknown(seed, &flows_answered_at(&key)), "its port rests");
        Ok(())
    });
}

/// The outside end that the rig's flow had, as a source.
fn flows_answered_at(key: &Key<Ipv4>) -> Key<Ipv4> {
    Key { src: std::net::Ipv4Addr::new(198, 51, 100, 2).into(), ..*key }
}

/// What XDP refuses, for it has no room, it leaves to the complete path; and does not try again at once.
#[test]
fn without_room_the_complete_path_refuses() {
    on_rig_with("ports = \"2000-2003\"", [0, 1], |rig| {
        let packet = |port: u16| {
            Packet { src: std::net::SocketAddrV4::new([192, 168, 1, 10].into(), port), ..out(Transport::Udp) }.build()
        };
        let mut begun = 0;
        for port in 3000..3032 {
            let counted = rig.xdp("lan0", &packet(port))?.counted;
            begun += u32::from(counted == self::counted("new"));
        }
        assert!((1..=4).contains(&begun), "{begun} of four ports");
        let last = rig.tc("lan0", &packet(3031))?;
        assert!([counted("ports_exhausted"), counted("new")].contains(&last.counted), "{:?}", last.counted);
        assert_eq!(rig.tables.totals()?.1, rig.tables.bindings()?.len() as u64);
        Ok(())
    });
}

//! The flow cache, packet by packet: what copies send, what ends them, and that nothing they have counted is lost. The rig is drawn in
//! `mh_tests::rig`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::time::Duration;

use anyhow::Result;
use mh_common::{cache, flow::Key};
use mh_tests::lab::wait_until;
use mh_tests::packet::{Packet, Transport};
use mh_tests::rig::conversation::{assert_done, back, back_sent, counted, flows, on_rig, out, out_sent};
use mh_tests::rig::{GATEWAY1, HOST, HOST2, LAN, Rig, TC_REDIRECT, WAN1, XDP_PASS, XDP_REDIRECT};
use mh_userspace::datapath::{flows::now, shares::LEAST_SETS};

const UDP: Transport = Transport::Udp;

/// A flow that has seen a reply, with copies of both halves. Returns the key of its forward half.
fn established(rig: &mut Rig) -> Result<Key<mh_common::address::Ipv4>> {
    rig.tc("lan0", &out(UDP).build())?;
    rig.tc("wan1", &back(UDP).build())?;
    for _ in 0..2 {
        assert_done(&rig.xdp("lan0", &out(UDP).build())?, XDP_REDIRECT, &out_sent(UDP).build(), "forward");
        assert_done(&rig.xdp("wan1", &back(UDP).build())?, XDP_REDIRECT, &back_sent(UDP).build(), "reply");
    }
    Ok(flows(rig)?[0].key)
}

/// Packets that the conntrack itself knows of.
fn known(rig: &Rig, key: &Key<mh_common::address::Ipv4>) -> u64 {
    rig.tables.flows4.get(key, 0).unwrap().packets
}

#[test]
fn copies_send_and_count_without_the_conntrack() {
    on_rig(|rig| {
        let key = established(rig)?;
        let before = known(rig, &key);
        let len = u64::try_from(out(UDP).build().len() - 14)?;
        for _ in 0..100 {
            rig.xdp("lan0", &out(UDP).build())?;
            rig.tc("lan0", &out(UDP).build())?;
        }
        assert_eq!(known(rig, &key), before, "what a copy sends, the conntrack does not hear of");
        let flow = flows(rig)?[0];
        assert_eq!((flow.forward.packets, flow.forward.bytes), (203, 203 * len));
        // What is not for a copy has the conntrack told.
        rig.next_neighbour_epoch(0b11)?;
        rig.xdp("lan0", &out(UDP).build())?;
        assert_eq!(known(rig, &key), 204);
        assert_eq!(rig.tables.uplink_stats(0)?.tx_packets, 204);
        Ok(())
    });
}

#[test]
fn an_evicted_half_goes_on_by_its_copy() {
    on_rig(|rig| {
        let key = established(rig)?;
        rig.tables.remove_half(&key)?;
        assert_done(&rig.xdp("lan0", &out(UDP).build())?, XDP_REDIRECT, &out_sent(UDP).build(), "forward");
        // Until the copy's time is over: then it is restored.
        rig.next_neighbour_epoch(0b11)?;
        assert_eq!(rig.xdp("lan0", &out(UDP).build())?.code, XDP_PASS);
        assert_done(&rig.tc("lan0", &out(UDP).build())?, TC_REDIRECT, &out_sent(UDP).build(), "restored");
        Ok(())
    });
}

#[test]
fn a_copy_is_for_its_own_interface_and_address_only() {
    on_rig(|rig| {
        established(rig)?;
        // An outsider who forges the inside host's address, and a frame that is for another station.
        let packet = out(UDP).build();
        assert_eq!(rig.xdp("wan1", &packet)?.code, XDP_PASS);
        let other = Packet { to: HOST2, ..out(UDP) }.build();
        assert_eq!(rig.xdp("lan0", &other)?.code, XDP_PASS);
        // The answers come by the flow's own uplink.
        let answer = Packet { to: [2, 0, 0, 0, 0, 3], ..back(UDP) }.build();
        assert_eq!(rig.xdp("wan2", &answer)?.code, XDP_PASS);
        Ok(())
    });
}

#[test]
fn what_needs_attention_is_not_for_a_copy() {
    on_rig(|rig| {
        established(rig)?;
        let pass = |rig: &mut Rig, packet: Vec<u8>| {
            let outcome = rig.xdp("lan0", &packet).unwrap();
            assert_done(&outcome, XDP_PASS, &packet, "xdp_to_tc");
        };
        pass(rig, Packet { ttl: 1, ..out(UDP) }.build());
        pass(rig, mh_tests::packet::with_fragment(&out(UDP).build(), 0x2000));
        // Longer than the frame, and shorter than its headers.
        for len in [u16::MAX, 27] {
            let mut packet = out(UDP).build();
            packet[16..18].copy_from_slice(&len.to_be_bytes());
            pass(rig, packet);
        }
        for len in 0..out(UDP).build().len() {
            let outcome =
                rig.xdp("lan0", &[&out(UDP).build()[..len], &[0; 14][..14usize.saturating_sub(len)]].concat())?;
            assert_eq!(outcome.code, XDP_PASS, "cut to {len} bytes");
        }
        // A dead uplink, with the next packet.
        rig.set_healthy(0b10)?;
        assert_eq!(rig.xdp("lan0", &out(UDP).build())?.code, XDP_PASS);
        Ok(())
    });
}

#[test]
fn tcp_events_end_copies() {
    const ACK: Transport = Transport::Tcp(0x10);
    on_rig(|rig| {
        rig.tc("lan0", &out(Transport::Tcp(0x02)).build())?;
        rig.tc("wan1", &back(Transport::Tcp(0x12)).build())?;
        for _ in 0..2 {
            assert_eq!(rig.xdp("lan0", &out(ACK).build())?.code, XDP_REDIRECT);
        }
        // A RST: whether it was the end is for the conntrack to find out with the next segment.
        rig.tc("lan0", &out(Transport::Tcp(0x04)).build())?;
        assert_eq!(rig.xdp("lan0", &out(ACK).build())?.code, XDP_PASS);
        assert_eq!(rig.tc("lan0", &out(ACK).build())?.counted, counted("forward"));
        assert_eq!(flows(rig)?[0].forward.packets, 5);
        Ok(())
    });
}

#[test]
fn what_a_killed_controller_left_is_not_lost() {
    on_rig(|rig| {
        let key = established(rig)?;
        for _ in 0..10 {
            rig.xdp("lan0", &out(UDP).build())?;
        }
        let before = known(rig, &key);
        rig.abandon_parts()?;
        // Without a part packets go by the conntrack.
        assert_done(&rig.xdp("lan0", &out(UDP).build())?, XDP_REDIRECT, &out_sent(UDP).build(), "forward");
        assert_eq!(known(rig, &key), before + 1);
        assert!(rig.keeper()?.look(false, now())?);
        assert_eq!(known(rig, &key), 3 + 10 + 1, "the first look gives it to the half");
        assert!(!rig.keeper()?.look(false, now())?, "and all is as it should be");
        Ok(())
    });
}

#[test]
fn copies_of_flows_that_are_over_serve_others() {
    copies_serve_others(2, 2);
}

#[test]
fn good_copies_of_flows_that_are_idle_serve_others() {
    copies_serve_others(32, 8);
}

/// Copies are good for so many ticks, and serve others after a `pause`.
fn copies_serve_others(window: u32, pause: u32) {
    on_rig(|rig| {
        // Room for 64 copies.
        let sets = 32;
        rig.cut_parts(sets, window)?;
        let rounds: Vec<Vec<Vec<u8>>> = (0..4)
            .map(|round| {
                let inside = |n| format!("192.168.1.{}:{}", 10 + round, 40_000 + n);
                (0..48).map(|n| Packet::new(LAN, HOST, &inside(n), "192.0.2.10:443", UDP).build()).collect()
            })
            .collect();
        for out in rounds.iter().flatten() {
            let begun = rig.tc("lan0", out)?;
            let outside = format!("198.51.100.2:{}", u16::from_be_bytes([begun.packet[34], begun.packet[35]]));
            rig.tc("wan1", &Packet::new(WAN1, GATEWAY1, "192.0.2.10:443", &outside, UDP).build())?;
        }
        let told = |rig: &Rig| flows(rig).unwrap().iter().map(|flow| known(rig, &flow.key)).sum::<u64>();
        for round in &rounds {
            // The copies of the round before are not in use any more.
            let before = now();
            wait_until("the pause to pass", Duration::from_secs(5), || Ok(now().wrapping_sub(before) > pause))?;
            let begun = now();
            for out in round {
                assert_eq!(rig.xdp("lan0", out)?.code, XDP_REDIRECT);
            }
            let first = told(rig);
            for out in round {
                assert_eq!(rig.xdp("lan0", out)?.code, XDP_REDIRECT);
            }
            let late = now().wrapping_sub(begun) >= pause;
            assert!(told(rig) == first || late, "what has a copy, the conntrack does not hear of");
        }
        assert!(rig.told_copies()? <= (sets * cache::COPIES_PER_SET) as usize, "{} told", rig.told_copies()?);
        assert!(flows(rig)?.iter().all(|flow| flow.forward.packets == 3), "{:?}", flows(rig)?);
        Ok(())
    });
}

#[test]
fn the_cache_grows_and_nothing_is_lost() {
    on_rig(|rig| {
        // More flows than the least part has places for.
        let number = 3 * LEAST_SETS;
        let packets: Vec<Vec<u8>> = (0..number)
            .map(|n| {
                // Not too many at once from one host.
                let inside = format!("192.168.1.{}:{}", 10 + n / 512, 40_000 + n % 512);
                Packet::new(LAN, HOST, &inside, "192.0.2.10:443", UDP).build()
            })
            .collect();
        let parts = |rig: &Rig| rig.part_sizes().unwrap();
        let mut keeper = rig.keeper()?;
        keeper.look(false, now())?;
        assert!(parts(rig).iter().all(|sets| *sets == LEAST_SETS), "{:?}", parts(rig));
        for out in &packets {
            let begun = rig.tc("lan0", out)?;
            assert_eq!(begun.counted, counted("new"));
            let outside = format!("198.51.100.2:{}", u16::from_be_bytes([begun.packet[34], begun.packet[35]]));
            let back = Packet::new(WAN1, GATEWAY1, "192.0.2.10:443", &outside, UDP).build();
            assert_eq!(rig.tc("wan1", &back)?.counted, counted("reply"));
        }
        for out in packets.iter().chain(&packets) {
            assert_eq!(rig.xdp("lan0", out)?.code, XDP_REDIRECT);
        }
        assert!(keeper.look(false, now())?, "{:?}", parts(rig));
        rig.tables.copies.look()?;
        assert!(parts(rig).iter().any(|sets| *sets > LEAST_SETS), "{:?}", parts(rig));
        let all = flows(rig)?;
        assert_eq!(all.len(), number as usize);
        assert!(all.iter().all(|flow| (flow.forward.packets, flow.reply.unwrap().packets) == (3, 1)));
        // Settled, so the conntrack itself knows.
        assert!(all.iter().all(|flow| known(rig, &flow.key) == 3));
        // Nothing is in use that is good for ever: in the end the parts are small again.
        for out in packets.iter().chain(&packets) {
            assert_eq!(rig.xdp("lan0", out)?.code, XDP_REDIRECT);
        }
        // What found no room since is not seen a second time.
        keeper.look(false, now())?;
        rig.tables.copies.look()?;
        rig.end_copies()?;
        assert!(keeper.look(true, now())?);
        assert!(parts(rig).iter().all(|sets| *sets == LEAST_SETS), "{:?}", parts(rig));
        assert!(flows(rig)?.iter().all(|flow| flow.forward.packets == 5));
        Ok(())
    });
}

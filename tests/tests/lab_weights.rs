//! Which uplink a new flow gets, and that it keeps it.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! The uplink is told by the source address that the server saw. Counts are judged by the binomial distribution: within 4
//! standard deviations, which chance misses once in 16,000 times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Sniffer, Split, TcpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{Scene, wait_until};

in_both_modes!(
    weights_2_to_1,
    weights_1_to_1,
    weights_9_to_1,
    zero_weight,
    flows_stay_when_weights_change,
    retransmitted_syn_keeps_uplink_and_source,
    bad_weights_change_nothing,
);

/// Flows per client and protocol; two clients.
const FLOWS: usize = 200;

/// Opens TCP and UDP flows from two clients and counts the sources.
fn sources(scene: &Scene) -> Result<(Split, Split)> {
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for client in [&scene.lab.client1, &scene.lab.client2] {
        tcp.extend(tcp_flows(client, scene.tcp.address(), FLOWS)?.iter().map(|flow| flow.seen));
        udp.extend(udp_flows(client, scene.udp.address(), FLOWS)?.iter().map(|flow| flow.seen));
    }
    Ok((Split::of(tcp), Split::of(udp)))
}

fn addresses(scene: &Scene) -> Result<(Ipv4Addr, Ipv4Addr)> {
    Ok((scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address))
}

fn check_weights(scene: &Scene, isp1: u32, isp2: u32) -> Result<()> {
    scene.set_weights(isp1, isp2)?;
    // A client may pick a source port that an earlier batch used; such a flow would rightly stay where it was.
    scene.mhd.ctl(&["flows", "flush"])?;
    let (address1, address2) = addresses(scene)?;
    let (tcp, udp) = sources(scene)?;
    println!("{isp1}:{isp2}: tcp {tcp}; udp {udp}");
    tcp.check(&[(address1, isp1), (address2, isp2)]).context("tcp")?;
    udp.check(&[(address1, isp1), (address2, isp2)]).context("udp")?;
    for (name, weight) in [("isp1", isp1), ("isp2", isp2)] {
        let uplink = scene.mhd.uplink(name)?;
        assert_eq!(uplink["weight"], weight, "{uplink}");
        assert_eq!(uplink["effective_weight"], weight, "{uplink}");
        let share = f64::from(weight) / f64::from(isp1 + isp2);
        assert!(uplink["share"].as_f64().is_some_and(|shown| (shown - share).abs() < 0.01), "{uplink}");
    }
    Ok(())
}

fn weights_2_to_1(scene: &mut Scene) -> Result<()> {
    check_weights(scene, 2, 1)
}

fn weights_1_to_1(scene: &mut Scene) -> Result<()> {
    check_weights(scene, 1, 1)
}

fn weights_9_to_1(scene: &mut Scene) -> Result<()> {
    check_weights(scene, 9, 1)
}

fn zero_weight(scene: &mut Scene) -> Result<()> {
    check_weights(scene, 1, 0)?;
    check_weights(scene, 0, 1)
}

fn flows_stay_when_weights_change(scene: &mut Scene) -> Result<()> {
    let (address1, address2) = addresses(scene)?;
    let mut tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), 60)?;
    let udp = udp_flows(&scene.lab.client2, scene.udp.address(), 60)?;
    let before = Split::of(tcp.iter().map(|flow| flow.seen).chain(udp.iter().map(|flow| flow.seen)));
    assert!(before.count(address1) > 0 && before.count(address2) > 0, "{before}");
    // Sockets that are open keep their ports to themselves: a new flow from one that was closed would be the former one's.
    let mut others = Vec::new();
    for (isp1, isp2, only) in [(0, 1, address2), (1, 0, address1)] {
        scene.set_weights(isp1, isp2)?;
        let new = udp_flows(&scene.lab.client1, scene.udp.address(), 20)?;
        Split::of(new.iter().map(|flow| flow.seen)).check(&[(only, 1)])?;
        others.extend(new);
        // A TCP connection whose source changed would be no connection any more.
        tcp.iter_mut().try_for_each(TcpFlow::echo)?;
        for flow in &udp {
            assert_eq!(flow.ask()?, flow.seen);
        }
    }
    Ok(())
}

/// The server drops SYNs for a while, and the weights turn round between retransmits: all SYNs of a connection must arrive
/// with one source, and the connection that comes of them has it.
fn retransmitted_syn_keeps_uplink_and_source(scene: &mut Scene) -> Result<()> {
    const CONNECTIONS: usize = 16;
    let timeout = Duration::from_secs(30);
    let to = scene.tcp.address();
    scene.set_weights(1, 1)?;
    scene
        .lab
        .server
        .nft("table ip t { chain c { type filter hook prerouting priority -300; tcp dport 7000 drop; }; }")?;
    let sniffer = Sniffer::start(&scene.lab.server, "tcp dst port 7000 and tcp[tcpflags] & tcp-syn != 0")?;
    let syns = || {
        let mut counts = BTreeMap::<SocketAddrV4, usize>::new();
        for segment in sniffer.segments() {
            *counts.entry(segment.source).or_default() += 1;
        }
        counts
    };
    let client = &scene.lab.client1;
    let flows = thread::scope(|scope| -> Result<Vec<TcpFlow>> {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| TcpFlow::connect(client, to, timeout))).collect();
        // Each has been tried once, at least; now isp1 gets no more new flows.
        wait_until("the first SYNs", timeout, || Ok(syns().len() >= CONNECTIONS))?;
        scene.set_weights(0, 1)?;
        wait_until("retransmitted SYNs", timeout, || Ok(syns().values().all(|count| *count >= 3)))?;
        scene.lab.server.nft("delete table ip t")?;
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("panicked"))?).collect()
    })?;
    let sources = syns();
    assert_eq!(sources.len(), CONNECTIONS, "more sources than connections: {sources:?}");
    for mut flow in flows {
        assert!(sources.contains_key(&flow.seen), "{} among {sources:?}", flow.seen);
        flow.echo()?;
    }
    Ok(())
}

fn bad_weights_change_nothing(scene: &mut Scene) -> Result<()> {
    scene.set_weights(3, 2)?;
    for (arguments, word) in
        [(["isp1=7", "isp9=1"], "isp9"), (["isp1=7", "isp2=many"], "many"), (["isp1=7", "isp2=65536"], "65536")]
    {
        let output = scene.mhd.ctl_output(&[&["weights"][..], &arguments].concat())?;
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {output:?}");
        assert!(output.stderr.contains(word), "{arguments:?}: {output:?}");
        for (name, weight) in [("isp1", 3), ("isp2", 2)] {
            assert_eq!(scene.mhd.uplink(name)?["weight"], weight, "{arguments:?}");
        }
    }
    Ok(())
}

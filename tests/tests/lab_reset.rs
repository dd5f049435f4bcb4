//! TCP clients on an uplink that goes down, or loses its address, as `on_down` has it.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! Uplinks are set down by hand and carry on: what arrives at a client that is said to be on a dead uplink shows that it was left alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::{Direction, OpenTransfer, Sniffer, Split, TcpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{CLIENT1, Host, Mode, Options, Scene, TwoIsps, run_scene, wait_until};

/// How long a client may take to learn that its connection is lost.
const SOON: Duration = Duration::from_secs(2);
/// What isp1 is renumbered to.
const RENUMBERED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

macro_rules! with_on_down {
    ($($on_down:literal: $($name:ident),+;)+) => {
        mod tc {
            $($(#[test]
            fn $name() -> anyhow::Result<()> {
                super::run($crate::Mode::Tc, $on_down, super::$name)
            })+)+
        }
        mod xdp {
            $($(#[test]
            fn $name() -> anyhow::Result<()> {
                super::run($crate::Mode::Xdp, $on_down, super::$name)
            })+)+
        }
    };
}

with_on_down! {
    "reset": clients_that_wait_are_reset, clients_that_send_are_reset, transfers_are_reset, own_connections_are_reset,
        checksums_of_resets_are_right, nothing_is_reset_if_there_is_nowhere_to_go, connections_on_a_lost_address_are_reset;
    "hold": held_connections_go_on;
    "repin": repinned_flows_move;
}

fn run(mode: Mode, on_down: &str, test: fn(&mut Scene) -> Result<()>) -> Result<()> {
    let build = || {
        let options = Options::new(mode);
        let lab = mh_tests::lab::Lab::two_isps(&options)?;
        let config = with(&lab, on_down);
        Scene::start(lab, &config).with_context(|| format!("laboratory in {} mode", mode.name()))
    };
    run_scene(build, test)
}

/// The config with `on_down` for both uplinks.
fn with(lab: &TwoIsps, on_down: &str) -> String {
    lab.config(&[1, 1]).replace("weight = 1\n", &format!("weight = 1\non_down = \"{on_down}\"\n"))
}

fn set_health(scene: &Scene, uplink: &str, health: &str) -> Result<()> {
    scene.mhd.ctl(&["health", uplink, health]).map(drop)
}

/// Connections from `host`, those by isp1 and those by isp2, some of each.
fn connect(scene: &Scene, host: &Host) -> Result<[Vec<TcpFlow>; 2]> {
    let address1 = scene.lab.uplink(0)?.address;
    let flows = tcp_flows(host, scene.tcp.address(), 30)?;
    let (one, two): (Vec<_>, Vec<_>) = flows.into_iter().partition(|flow| *flow.seen.ip() == address1);
    assert!(one.len() > 3 && two.len() > 3, "both uplinks take part: {} and {}", one.len(), two.len());
    Ok([one, two])
}

/// New connections of `host` are all by the uplink with this address.
fn assert_new_flows(scene: &Scene, host: &Host, address: Ipv4Addr) -> Result<()> {
    let flows = tcp_flows(host, scene.tcp.address(), 20)?;
    Split::of(flows.iter().map(|flow| flow.seen)).check(&[(address, 1)])
}

fn wait_for_resets(flows: &mut [TcpFlow]) -> Result<()> {
    let mut longest = Duration::ZERO;
    for flow in flows.iter_mut() {
        longest = longest.max(flow.wait_for_reset(SOON)?);
    }
    println!("{} connections were reset, the last one {longest:?} after it was waited for", flows.len());
    Ok(())
}

/// Waits until nobody has anything to say any more: acknowledgements are delayed by up to 200 ms.
fn wait_for_silence(scene: &Scene) -> Result<()> {
    const SILENCE: Duration = Duration::from_millis(300);
    let (mut last, mut since) = ([0; 2], Instant::now());
    wait_until("silence", Duration::from_secs(5), || {
        let mut sent = [0; 2];
        for (count, name) in sent.iter_mut().zip(["isp1", "isp2"]) {
            *count = scene.mhd.uplink(name)?["tx_packets"].as_u64().context("tx_packets")?;
        }
        if sent != last {
            (last, since) = (sent, Instant::now());
        }
        Ok(since.elapsed() >= SILENCE)
    })
    .map(drop)
}

/// What keeps all from the host but what belongs to its own connections.
fn stateful_filter(host: &Host) -> Result<()> {
    host.nft(
        "table ip stateful {\n  chain input {\n    type filter hook input priority 0; policy drop;\n    \
         ct state invalid drop\n    ct state established,related accept\n    icmp type echo-request accept\n  }\n}\n",
    )
}

/// A client that reads, and has nothing to say; one of two behind a stateful filter.
fn clients_that_wait_are_reset(scene: &mut Scene) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    stateful_filter(&scene.lab.client3)?;
    for host in [&scene.lab.client1, &scene.lab.client3] {
        let [mut lost, mut kept] = connect(scene, host)?;
        lost.iter_mut().chain(&mut kept).try_for_each(TcpFlow::echo)?;
        wait_for_silence(scene)?;
        set_health(scene, "isp1", "down")?;
        wait_for_resets(&mut lost)?;
        kept.iter_mut().try_for_each(TcpFlow::echo)?;
        assert_new_flows(scene, host, address2)?;
        set_health(scene, "isp1", "auto")?;
        scene.mhd.wait_for_state("isp1", "up")?;
        // What moved, and what did not have to, stays where it is.
        kept.iter_mut().try_for_each(TcpFlow::echo)?;
    }
    let states = scene.mhd.flows(&["--uplink", "isp1"])?;
    assert!(states.iter().any(|flow| flow["state"] == "reset"), "{states:?}");
    assert_eq!(scene.count_of("rewrite_failed")?, 0);
    Ok(())
}

/// A client whose next segment comes before it is nudged: its connection is not even open on both sides when the uplink goes down.
fn clients_that_send_are_reset(scene: &mut Scene) -> Result<()> {
    let before = scene.count_of("reset")?;
    let [mut lost, mut kept] = connect(scene, &scene.lab.client1)?;
    set_health(scene, "isp1", "down")?;
    for flow in &mut lost {
        flow.set_timeout(SOON)?;
        let error = flow.echo().expect_err("the uplink is down");
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let lost = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
        assert!(kind.is_some_and(|kind| lost.contains(&kind)), "{error:?}");
    }
    kept.iter_mut().try_for_each(TcpFlow::echo)?;
    assert!(scene.count_of("reset")? >= before + lost.len() as u64);
    assert_new_flows(scene, &scene.lab.client1, scene.lab.uplink(1)?.address)
}

/// Segmentation offload, and many segments on their way.
fn transfers_are_reset(scene: &mut Scene) -> Result<()> {
    scene.set_weights(1, 0)?;
    for direction in [Direction::Upload, Direction::Download] {
        for host in [&scene.lab.client1, &scene.lab.router] {
            let transfer = OpenTransfer::start(host, &scene.tcp, direction)?;
            transfer.advance(20_000_000)?;
            scene.set_weights(1, 1)?;
            set_health(scene, "isp1", "down")?;
            let error = transfer.finish().expect_err("the uplink is down");
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{direction:?}: {error:?}");
            set_health(scene, "isp1", "auto")?;
            scene.mhd.wait_for_state("isp1", "up")?;
            scene.set_weights(1, 0)?;
        }
    }
    Ok(())
}

/// The machine's own connections, with whatever source address its kernel gives them, and with strict filters.
fn own_connections_are_reset(scene: &mut Scene) -> Result<()> {
    let router = &scene.lab.router;
    router.sysctl("ipv4/conf/lo/rp_filter", "1")?;
    stateful_filter(router)?;
    let (address1, address2) = (scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address);
    for (down, left) in [("isp1", address2), ("isp2", address1)] {
        let [one, two] = connect(scene, router)?;
        let (mut lost, mut kept) = if down == "isp1" { (one, two) } else { (two, one) };
        lost.iter_mut().chain(&mut kept).try_for_each(TcpFlow::echo)?;
        wait_for_silence(scene)?;
        set_health(scene, down, "down")?;
        wait_for_resets(&mut lost)?;
        kept.iter_mut().try_for_each(TcpFlow::echo)?;
        assert_new_flows(scene, router, left)?;
        set_health(scene, down, "auto")?;
        scene.mhd.wait_for_state(down, "up")?;
    }
    Ok(())
}

/// Whether the client leaves its checksums to the device or not; on the wire they are right.
fn checksums_of_resets_are_right(scene: &mut Scene) -> Result<()> {
    let host = &scene.lab.client3;
    // The router's device takes no checksum for granted, so what is seen behind it is what any device would send.
    scene.lab.router.features("lan1", &["tx", "off"])?;
    // XDP cannot have what is not complete yet.
    let offloads: &[&str] = if scene.lab.options.mode == Mode::Tc { &["on", "off"] } else { &["off"] };
    for offload in offloads {
        host.features("eth0", &["tx", offload])?;
        let sniffer = Sniffer::start_verbose(host, "tcp[tcpflags] & tcp-rst != 0")?;
        let [mut lost, _kept] = connect(scene, host)?;
        set_health(scene, "isp1", "down")?;
        wait_for_resets(&mut lost)?;
        wait_until("the resets", SOON, || Ok(sniffer.text().matches("Flags [R]").count() >= lost.len()))?;
        let text = sniffer.text();
        assert_eq!(text.matches("(correct)").count(), text.matches("Flags [R]").count(), "tx {offload}: {text}");
        assert!(!text.contains("bad cksum") && !text.contains("incorrect"), "tx {offload}: {text}");
        set_health(scene, "isp1", "auto")?;
        scene.mhd.wait_for_state("isp1", "up")?;
    }
    Ok(())
}

fn nothing_is_reset_if_there_is_nowhere_to_go(scene: &mut Scene) -> Result<()> {
    let host = &scene.lab.client1;
    let [mut one, mut two] = connect(scene, host)?;
    let udp = udp_flows(&scene.lab.client2, scene.udp.address(), 20)?;
    let check = |flows: &mut Vec<TcpFlow>| {
        flows.iter_mut().try_for_each(TcpFlow::echo)?;
        assert!(udp.iter().all(|flow| flow.ask().is_ok_and(|seen| seen == flow.seen)));
        assert_eq!(scene.count_of("reset")?, 0);
        anyhow::Ok(())
    };
    // The other one is up, but takes no new flows.
    scene.mhd.ctl(&["drain", "isp2"])?;
    set_health(scene, "isp1", "down")?;
    check(&mut one)?;
    set_health(scene, "isp2", "down")?;
    check(&mut one)?;
    check(&mut two)?;
    // LAN and router go on.
    assert_eq!(host.ping(mh_tests::lab::ROUTER_LAN0, 2)?, 2);
    set_health(scene, "isp1", "auto")?;
    set_health(scene, "isp2", "auto")?;
    scene.mhd.wait_for_state("isp1", "up")?;
    check(&mut one)?;
    check(&mut two)
}

fn held_connections_go_on(scene: &mut Scene) -> Result<()> {
    let [mut one, mut two] = connect(scene, &scene.lab.client1)?;
    let udp = udp_flows(&scene.lab.client2, scene.udp.address(), 20)?;
    set_health(scene, "isp1", "down")?;
    assert_new_flows(scene, &scene.lab.client1, scene.lab.uplink(1)?.address)?;
    one.iter_mut().chain(&mut two).try_for_each(TcpFlow::echo)?;
    for flow in &udp {
        assert_eq!(flow.ask()?, flow.seen);
    }
    assert_eq!(scene.count_of("reset")?, 0);
    Ok(())
}

/// The server does not know the connection by its new address, and says so.
fn repinned_flows_move(scene: &mut Scene) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    let [mut one, mut two] = connect(scene, &scene.lab.client1)?;
    let udp = udp_flows(&scene.lab.client2, scene.udp.address(), 20)?;
    set_health(scene, "isp1", "down")?;
    for flow in &mut one {
        flow.set_timeout(SOON)?;
        let error = flow.echo().expect_err("another source");
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{error:?}");
    }
    two.iter_mut().try_for_each(TcpFlow::echo)?;
    for flow in &udp {
        assert_eq!(*flow.ask()?.ip(), address2);
    }
    assert_eq!(scene.count_of("reset")?, 0, "by the server, not by mh");
    assert_new_flows(scene, &scene.lab.client1, address2)
}

/// As by DHCP: isp1's interface gets another address, and loses the one that it had.
fn connections_on_a_lost_address_are_reset(scene: &mut Scene) -> Result<()> {
    let address1 = scene.lab.uplink(0)?.address;
    let learned = with(&scene.lab, "reset").replace(&format!("address = \"{address1}\"\n"), "");
    scene.configure(&learned)?;
    let host = &scene.lab.client1;
    let [mut lost, mut kept] = connect(scene, host)?;
    let udp = udp_flows(host, scene.udp.address(), 20)?;
    lost.iter_mut().chain(&mut kept).try_for_each(TcpFlow::echo)?;
    wait_for_silence(scene)?;
    let router = &scene.lab.router;
    router.sysctl("ipv4/conf/wan1/promote_secondaries", "1")?;
    router.ip(&[format!("addr add {RENUMBERED}/24 dev wan1"), format!("addr del {address1}/24 dev wan1")])?;
    wait_for_resets(&mut lost)?;
    kept.iter_mut().try_for_each(TcpFlow::echo)?;
    wait_until("the new address", SOON, || {
        let status = scene.mhd.uplink("isp1")?;
        Ok(status["address"].to_string().contains(&RENUMBERED.to_string()) && status["state"] == "up")
    })?;
    let seen = tcp_flows(host, scene.tcp.address(), 30)?;
    let split = Split::of(seen.iter().map(|flow| flow.seen));
    split.check(&[(RENUMBERED, 1), (scene.lab.uplink(1)?.address, 1)])?;
    for flow in &udp {
        let moved = *flow.seen.ip() == address1;
        assert_ne!(*flow.ask()?.ip(), address1, "{flow:?}");
        assert!(moved || flow.ask()? == flow.seen, "{flow:?}");
    }
    let left: Vec<_> = scene.mhd.flows(&["--uplink", "isp1", "--src", &CLIENT1.to_string(), "--proto", "udp"])?;
    assert!(left.iter().all(|flow| flow["nat_src"] != address1.to_string()), "{left:?}");
    Ok(())
}

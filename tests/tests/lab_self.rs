//! The laboratory itself works: the standard topology with the kernel as the router, no mh.
//!
//! ```text
//!  client1, client2 ── switch ── lan0 ┌────────┐ wan1 ── isp1 ──┐
//!                                     │ router │                ├── server 192.0.2.10
//!  client3 ──────────────────── lan1  └────────┘ wan2 ── isp2 ──┘
//! ```
//!
//! The router forwards and masquerades in its kernel. What fails here is the laboratory's or the traffic helpers' fault.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Result;
use mh_tests::lab::traffic::{
    Direction, OpenTransfer, Sniffer, Split, TcpFlow, TcpServer, UdpServer, tcp_flows, transfer, udp_flows,
};
use mh_tests::lab::{
    CLIENT1, CLIENT3, Host, Lab, Mode, Options, ROUTER_LAN0, SERVER, TwoIsps, in_lab, skipped, wait_until,
};

const MEGABYTE: u64 = 1_000_000;

fn kernel_routes(lab: &TwoIsps) -> Result<()> {
    lab.masquerade()?;
    let isp1 = lab.uplink(0)?.address;
    let isp2 = lab.uplink(1)?.address;
    let tcp = TcpServer::start(&lab.server, lab.server_at(7000))?;
    let udp = UdpServer::start(&lab.server, lab.server_at(7000))?;

    for client in [&lab.client1, &lab.client2, &lab.client3] {
        assert_eq!(client.ping(SERVER, 3)?, 3);
    }
    for direction in [Direction::Upload, Direction::Download] {
        let transferred = transfer(&lab.client1, tcp.address(), direction, 100 * MEGABYTE)?;
        println!("{direction:?}: {} MB/s", 100.0 / transferred.elapsed.as_secs_f64());
        assert_eq!(*transferred.seen.ip(), isp1);
    }

    // The default route decides; what began before stays where it was.
    let mut before = tcp_flows(&lab.client1, tcp.address(), 20)?;
    let udp_before = udp_flows(&lab.client2, udp.address(), 20)?;
    lab.router.ip(&["route del default dev wan1"])?;
    let after = tcp_flows(&lab.client1, tcp.address(), 20)?;
    Split::of(before.iter().map(|flow| flow.seen)).check(&[(isp1, 1)])?;
    Split::of(after.iter().map(|flow| flow.seen)).check(&[(isp2, 1)])?;
    Split::of(udp_before.iter().map(|flow| flow.seen)).check(&[(isp1, 1)])?;
    lab.restore_default_route(0)?;
    before.iter_mut().try_for_each(TcpFlow::echo)?;
    for flow in &udp_before {
        assert_eq!(flow.ask()?, flow.seen);
    }
    let seen = tcp.seen();
    assert!(before.iter().chain(&after).all(|flow| seen.contains(&flow.seen)));
    Ok(())
}

#[test]
fn kernel_routes_with_tc_links() -> Result<()> {
    in_lab(&Options::new(Mode::Tc), kernel_routes)
}

#[test]
fn kernel_routes_with_xdp_links() -> Result<()> {
    in_lab(&Options::new(Mode::Xdp), kernel_routes)
}

#[test]
fn isps_drop_foreign_sources() -> Result<()> {
    in_lab(&Options::new(Mode::Tc), |lab| {
        // Nobody translates: the ISP must drop the client's private address.
        assert_eq!(lab.client1.ping(SERVER, 3)?, 0);
        lab.masquerade()?;
        assert_eq!(lab.client1.ping(SERVER, 3)?, 3);
        Ok(())
    })
}

#[test]
fn local_traffic_needs_no_uplink() -> Result<()> {
    in_lab(&Options::new(Mode::Tc), |lab| {
        let address = SocketAddrV4::new(CLIENT3, 7001);
        let server = TcpServer::start(&lab.client3, address)?;
        let mut flow = TcpFlow::connect(&lab.client1, address, Duration::from_secs(5))?;
        flow.echo()?;
        assert_eq!(*flow.seen.ip(), CLIENT1);
        assert_eq!(lab.client1.ping(ROUTER_LAN0, 3)?, 3);
        drop(server);
        Ok(())
    })
}

#[test]
fn three_uplinks() -> Result<()> {
    in_lab(&Options { uplinks: 3, ..Options::new(Mode::Tc) }, |lab| {
        for uplink in &lab.uplinks {
            assert_eq!(lab.router.ping(uplink.gateway, 2)?, 2, "{}", uplink.name);
            assert_eq!(lab.uplink_of(uplink.address), Some(uplink.name.as_str()));
        }
        lab.config(&[3, 2, 1]).parse::<toml::Table>()?;
        Ok(())
    })
}

#[test]
fn open_transfers_run_until_told() -> Result<()> {
    in_lab(&Options::new(Mode::Tc), |lab| {
        lab.masquerade()?;
        let server = TcpServer::start(&lab.server, lab.server_at(7000))?;
        for direction in [Direction::Upload, Direction::Download] {
            let transfer = OpenTransfer::start(&lab.client1, &server, direction)?;
            transfer.advance(30 * MEGABYTE)?;
            let transferred = transfer.finish()?;
            assert!(transferred.bytes >= 30 * MEGABYTE, "{transferred:?}");
        }
        assert!(server.received_bytes() >= 30 * MEGABYTE);
        Ok(())
    })
}

#[test]
fn sniffer_sees_what_the_filter_drops() -> Result<()> {
    in_lab(&Options::new(Mode::Tc), |lab| {
        lab.masquerade()?;
        lab.server
            .nft("table ip t { chain c { type filter hook prerouting priority -300; tcp dport 7777 drop; }; }")?;
        let sniffer = Sniffer::start(&lab.server, "tcp dst port 7777")?;
        TcpFlow::connect(&lab.client1, lab.server_at(7777), Duration::from_millis(200)).unwrap_err();
        wait_until("a captured SYN", Duration::from_secs(5), || Ok(!sniffer.segments().is_empty()))?;
        assert_eq!(*sniffer.segments()[0].source.ip(), lab.uplink(0)?.address);
        Ok(())
    })
}

#[test]
fn processes_end_with_their_guard() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let host: Host = lab.host("host")?;
    let mut child = host.spawn("cat", &["sh", "-c", "echo hello; exec tail -f /dev/null"])?;
    let (line, _) = child.wait_for_line("hello", Duration::from_secs(5))?;
    assert_eq!(line, "hello");
    assert!(child.is_running());
    let file = format!("/proc/{}", child.pid());
    assert!(std::path::Path::new(&file).exists());
    drop(child);
    assert!(!std::path::Path::new(&file).exists());

    let error = host.spawn("nothing", &["no-such-program"]).unwrap_err().to_string();
    assert!(error.contains("cargo xtask setup"), "{error}");
    let mut failing = host.spawn("false", &["sh", "-c", "echo trouble >&2; exit 3"])?;
    let error = format!("{:#}", failing.wait_for_line("ready", Duration::from_secs(5)).unwrap_err());
    assert!(error.contains("trouble") && error.contains("ended first"), "{error}");

    // The host's own bpffs outlives the process that made something in it, and is no one else's.
    host.run(&["mkdir", "/sys/fs/bpf/mh"])?;
    host.run(&["test", "-d", "/sys/fs/bpf/mh"])?;
    lab.host("other")?.run(&["test", "-d", "/sys/fs/bpf/mh"]).unwrap_err();
    Ok(())
}

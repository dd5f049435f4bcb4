//! ICMP errors about flows that no inside host has begun, or that mh has forgotten: bindings and port forwards tell where they go.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1                                     nobody is 192.0.2.77
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Datagrams, Sniffer};
use mh_tests::lab::{CLIENT1, Mode, Options, SERVER, Scene, TwoIsps, run_configured, wait_until};
use nix::errno::Errno;

in_both_modes!(error_about_a_flow_that_was_forgotten);

#[test]
fn closed_port_behind_a_forward_tc() -> Result<()> {
    closed_port_behind_a_forward(Mode::Tc)
}

#[test]
fn closed_port_behind_a_forward_xdp() -> Result<()> {
    closed_port_behind_a_forward(Mode::Xdp)
}

/// Waits until all of it was captured, with right checksums.
fn expect_shown(sniffer: &Sniffer, all: &[&str]) -> Result<()> {
    let shown = wait_until("errors on the wire", Duration::from_secs(5), || {
        let text = sniffer.text();
        Ok(all.iter().all(|part| text.contains(part)))
    });
    let text = sniffer.text();
    assert!(!text.contains("bad cksum") && !text.contains("wrong icmp cksum"), "{text}");
    shown.map(drop).with_context(|| format!("{all:#?} in what was captured:\n{text}"))
}

fn error_about_a_flow_that_was_forgotten(scene: &mut Scene) -> Result<()> {
    let nobody = Ipv4Addr::new(192, 0, 2, 77);
    let client = &scene.lab.client1;
    let errors = Sniffer::start_verbose(client, "icmp")?;
    for (index, (isp1, isp2)) in [(1, 0), (0, 1)].into_iter().enumerate() {
        scene.set_weights(isp1, isp2)?;
        let uplink = scene.lab.uplink(index)?;
        // The ISP asks for the neighbour three times before it gives up: time enough to forget.
        uplink.isp.ip(&[format!("route add {nobody}/32 dev eth1")])?;
        let socket = Datagrams::connected(client, SocketAddrV4::new(nobody, 9001))?;
        socket.send(b"anybody?")?;
        let count = |scene: &Scene| scene.mhd.flows(&["--dst", &nobody.to_string()]).map(|flows| flows.len());
        wait_until("the flow", Duration::from_secs(2), || Ok(count(scene)? == 1))?;
        scene.mhd.ctl(&["flows", "flush"])?;
        assert_eq!(count(scene)?, 0);
        let translated = scene.count_of("icmp_error")?;
        assert_eq!(socket.error()?, Errno::EHOSTUNREACH);
        assert_eq!(scene.count_of("icmp_error")?, translated + 1);
        assert_eq!(count(scene)?, 0, "an error makes no flow");
        let told = format!("{} > {CLIENT1}: ICMP host {nobody} unreachable", uplink.gateway);
        let quoted = format!("{CLIENT1}.{} > {nobody}.9001: UDP", socket.local.port());
        expect_shown(&errors, &[&told, &quoted])?;
    }
    Ok(())
}

fn closed_port_behind_a_forward(mode: Mode) -> Result<()> {
    let forward = format!("\n[[forward]]\nprotocol = \"udp\"\nport = 5300\nto = \"{CLIENT1}:9053\"\n");
    run_configured(
        &Options::new(mode),
        |lab: &TwoIsps| lab.config(&[1, 1]) + &forward,
        |scene| {
            let errors = Sniffer::start_verbose(&scene.lab.server, "icmp")?;
            for uplink in &scene.lab.uplinks {
                let outside = SocketAddrV4::new(uplink.address, 5300);
                let socket = Datagrams::connected(&scene.lab.server, outside)?;
                for _ in 0..2 {
                    let translated = scene.count_of("icmp_error")?;
                    socket.send(b"anybody?")?;
                    assert_eq!(socket.error()?, Errno::ECONNREFUSED);
                    assert_eq!(scene.count_of("icmp_error")?, translated + 1);
                }
                let told = format!("{} > {SERVER}: ICMP {} udp port 5300 unreachable", outside.ip(), outside.ip());
                let quoted = format!("{SERVER}.{} > {}.5300: UDP", socket.local.port(), outside.ip());
                expect_shown(&errors, &[&told, &quoted])?;

                // Somebody listens now: what was said before holds nothing up.
                let service = Datagrams::bind(&scene.lab.client1, CLIENT1, 9053)?;
                socket.send(b"hello")?;
                assert_eq!(service.receive()?, (b"hello".to_vec(), socket.local));
                service.send_to(b"good day", socket.local)?;
                assert_eq!(socket.receive()?, (b"good day".to_vec(), outside));
            }
            assert!(!errors.text().contains("192.168."), "inside addresses are out:\n{}", errors.text());
            Ok(())
        },
    )
}

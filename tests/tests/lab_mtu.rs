//! Small links: fragments that the driver hands over many at a time, and an MTU that changes under a connection.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │             MTU 1400        ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1                              MTU 1300
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::traffic::{Datagrams, Direction, OpenTransfer};
use mh_tests::lab::{Mode, Options, SERVER, Scene, run_configured, wait_until};

mod tc {
    #[test]
    fn fragments_that_come_in_one_batch() -> anyhow::Result<()> {
        super::fragments_that_come_in_one_batch(super::Mode::Tc)
    }

    #[test]
    fn a_connection_outlives_a_smaller_mtu() -> anyhow::Result<()> {
        super::a_connection_outlives_a_smaller_mtu(super::Mode::Tc)
    }
}

mod xdp {
    #[test]
    fn fragments_that_come_in_one_batch() -> anyhow::Result<()> {
        super::fragments_that_come_in_one_batch(super::Mode::Xdp)
    }

    #[test]
    fn a_connection_outlives_a_smaller_mtu() -> anyhow::Result<()> {
        super::a_connection_outlives_a_smaller_mtu(super::Mode::Xdp)
    }
}

fn with_small_uplinks(mode: Mode, line: &str, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let options = Options { uplink_mtus: vec![1400, 1300], ..Options::new(mode) };
    run_configured(&options, |lab| lab.config(&[1, 1]).replace("\nweight = ", &format!("\n{line}\nweight = ")), test)
}

/// A driver that polls hands its packets over many at a time. Each passes mh before the first of them goes on in the kernel: what is
/// known of a datagram must be known when its first fragment was there, though the kernel is to fragment that further.
fn fragments_that_come_in_one_batch(mode: Mode) -> Result<()> {
    with_small_uplinks(mode, "", |scene| {
        let router = &scene.lab.router;
        router.features("lan1", &["gro", "on"])?;
        // Polled by a thread, so that what a sender sends in one go comes in one go.
        router.run(&["sh", "-c", "echo 1 > /sys/class/net/lan1/threaded"])?;
        let server = Datagrams::bind(&scene.lab.server, SERVER, 9001)?;
        for (index, weights) in [(1, 0), (0, 1)].into_iter().enumerate() {
            scene.set_weights(weights.0, weights.1)?;
            // A socket may get the port of one before.
            scene.mhd.ctl(&["flows", "flush"])?;
            for round in 0..30 {
                let socket = Datagrams::connected(&scene.lab.client3, server.local)?;
                socket.keep_whole(false)?;
                let sent = vec![round; 12_000];
                socket.send(&sent)?;
                let (received, source) = server.receive().with_context(|| format!("datagram {round}"))?;
                ensure!(received == sent, "datagram {round} came with {} bytes, or others", received.len());
                assert_eq!(*source.ip(), scene.lab.uplink(index)?.address);
            }
        }
        Ok(())
    })
}

fn a_connection_outlives_a_smaller_mtu(mode: Mode) -> Result<()> {
    with_small_uplinks(mode, "mss_clamp = \"auto\"", |scene| {
        scene.set_weights(1, 0)?;
        let uplink = scene.lab.uplink(0)?;
        let transfers = [Direction::Upload, Direction::Download]
            .map(|direction| OpenTransfer::start(&scene.lab.client1, &scene.tcp, direction));
        let transfers = transfers.into_iter().collect::<Result<Vec<_>>>()?;
        for transfer in &transfers {
            transfer.advance(5_000_000)?;
        }
        assert_eq!(scene.count_of("too_big")?, 0);
        // The MSS was agreed on for 1400: from here on, ICMP has to tell.
        uplink.isp.ip(&["link set eth0 mtu 1280"])?;
        scene.lab.router.ip(&[format!("link set {} mtu 1280", uplink.interface)])?;
        wait_until(
            "mh to refuse what is too large now",
            Duration::from_secs(5),
            || Ok(scene.count_of("too_big")? > 0),
        )?;
        for transfer in &transfers {
            // More than the sockets' buffers took already.
            transfer.advance(30_000_000)?;
        }
        for transfer in transfers {
            assert_eq!(*transfer.finish()?.seen.ip(), uplink.address);
        }
        let path = scene.lab.client1.run(&["ip", "-4", "route", "get", "192.0.2.10"])?;
        assert!(path.contains("mtu 1280"), "{path}");
        Ok(())
    })
}

//! Sockets with an uplink's mark, as probes have: they send by that uplink, up or down, and hear the answers.
//!
//! ```text
//!  client1 .11 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                             .1 │ router: mh │                             ├── server 192.0.2.10
//!                                └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//! ```
//!
//! The kernel's default route leads to isp1.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use anyhow::Result;
use mh_common::abi::mark;
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Bound, TcpFlow};
use mh_tests::lab::{SERVER, Scene};

in_both_modes!(marked_sockets_use_their_uplink, pings_with_identifier_zero_are_answered);

/// The lowest of mh's bits in a mark, by default.
const SHIFT: u32 = 16;

fn marked(scene: &Scene, index: usize) -> Result<Bound<'_>> {
    let uplink = scene.lab.uplink(index)?;
    let mark = (mark::FIRST_UPLINK + u32::try_from(index)?) << SHIFT;
    Ok(Bound::Marked { device: &uplink.interface, address: uplink.address, mark })
}

/// Runs the check with either uplink down, and with both.
fn whatever_is_down(scene: &Scene, check: impl Fn() -> Result<()>) -> Result<()> {
    for (isp1, isp2) in [("auto", "auto"), ("down", "auto"), ("down", "down"), ("auto", "down")] {
        scene.mhd.ctl(&["health", "isp1", isp1])?;
        scene.mhd.ctl(&["health", "isp2", isp2])?;
        check()?;
    }
    Ok(())
}

fn marked_sockets_use_their_uplink(scene: &mut Scene) -> Result<()> {
    let router = &scene.lab.router;
    let mut held: Vec<TcpFlow> = Vec::new();
    for index in 0..2 {
        held.push(marked(scene, index)?.tcp(router, scene.tcp.address())?);
    }
    whatever_is_down(scene, || {
        for index in 0..2 {
            let address = scene.lab.uplink(index)?.address;
            let mut tcp = marked(scene, index)?.tcp(router, scene.tcp.address())?;
            assert_eq!((*tcp.seen.ip(), tcp.seen), (address, tcp.local));
            tcp.echo()?;
            let udp = marked(scene, index)?.udp(router, scene.udp.address())?;
            assert_eq!((*udp.seen.ip(), udp.seen), (address, udp.local));
            assert_eq!(udp.ask()?, udp.seen);
        }
        Ok(())
    })?;
    // They are none of mh's business: nothing resets them.
    held.iter_mut().try_for_each(TcpFlow::echo)?;
    assert_eq!(scene.count_of("misrouted")?, 0);
    assert_eq!(scene.count_of("reset")?, 0);
    assert!(scene.bindings()?.is_empty());
    Ok(())
}

/// Though inside hosts ping the same target, one of them with the same identifier.
fn pings_with_identifier_zero_are_answered(scene: &mut Scene) -> Result<()> {
    let server = SERVER.to_string();
    let ping = |host: &mh_tests::lab::Host, options: &[&str]| -> Result<()> {
        let arguments = [&["ping", "-n", "-c", "3", "-i", "0.05", "-W", "1", "-e", "0"], options, &[&server]].concat();
        host.run(&arguments).map(drop)
    };
    ping(&scene.lab.client1, &[])?;
    whatever_is_down(scene, || {
        for index in 0..2 {
            let uplink = scene.lab.uplink(index)?;
            let mark = ((mark::FIRST_UPLINK + u32::try_from(index)?) << SHIFT).to_string();
            ping(&scene.lab.router, &["-m", &mark, "-I", &uplink.interface])?;
        }
        Ok(())
    })?;
    scene.mhd.ctl(&["health", "isp2", "auto"])?;
    scene.mhd.wait_for_state("isp2", "up")?;
    ping(&scene.lab.client1, &[])
}

//! Uplinks that go down and come back, by their link, by hand, and by draining.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::time::Instant;

use anyhow::Result;
use mh_tests::in_both_modes;
use mh_tests::lab::Scene;
use mh_tests::lab::traffic::Flows;

in_both_modes!(
    link_set_down,
    carrier_lost,
    udp_flows_leave_a_dead_uplink,
    health_by_hand,
    drain,
    no_uplink_left_and_back
);

/// isp1 fails by `cut`, and comes back by `mend`.
fn isp1_fails(scene: &mut Scene, cut: fn(&Scene) -> Result<()>, mend: fn(&Scene) -> Result<()>) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    let mut before = Flows::open_by_both(scene, 40)?;
    let begun = Instant::now();
    cut(scene)?;
    scene.mhd.wait_for_state("isp1", "down")?;
    println!("isp1 is down {:?} after the cut began", begun.elapsed());
    assert_eq!(scene.mhd.uplink("isp1")?["effective_weight"], 0);
    Flows::open(scene, 30)?.split().check(&[(address2, 1)])?;
    before.check(address2)?;

    let begun = Instant::now();
    mend(scene)?;
    scene.mhd.wait_for_state("isp1", "up")?;
    println!("isp1 is up {:?} after mending began", begun.elapsed());
    let split = Flows::open(scene, 30)?.split();
    assert_eq!(split.iter().count(), 2, "new flows use both again: {split}");
    before.check(address2)
}

fn link_set_down(scene: &mut Scene) -> Result<()> {
    isp1_fails(
        scene,
        |scene| scene.lab.router.ip(&["link set wan1 down"]),
        |scene| {
            scene.lab.router.ip(&["link set wan1 up"])?;
            scene.lab.restore_default_route(0)
        },
    )
}

fn carrier_lost(scene: &mut Scene) -> Result<()> {
    isp1_fails(
        scene,
        |scene| scene.lab.uplink(0)?.isp.ip(&["link set eth0 down"]),
        |scene| scene.lab.uplink(0)?.isp.ip(&["link set eth0 up"]),
    )
}

/// A UDP flow on the dead uplink is bound anew on the other one with its next packet, and stays there when the dead one is back.
fn udp_flows_leave_a_dead_uplink(scene: &mut Scene) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    let before = Flows::open_by_both(scene, 40)?;
    scene.lab.uplink(0)?.isp.ip(&["link set eth0 down"])?;
    scene.mhd.wait_for_state("isp1", "down")?;
    for flow in &before.udp {
        assert_eq!(*flow.ask()?.ip(), address2, "{flow:?}");
    }
    scene.lab.uplink(0)?.isp.ip(&["link set eth0 up"])?;
    scene.mhd.wait_for_state("isp1", "up")?;
    for flow in &before.udp {
        assert_eq!(*flow.ask()?.ip(), address2, "{flow:?}");
    }
    Ok(())
}

fn health_by_hand(scene: &mut Scene) -> Result<()> {
    isp1_fails(
        scene,
        |scene| scene.mhd.ctl(&["health", "isp1", "down"]).map(drop),
        |scene| scene.mhd.ctl(&["health", "isp1", "auto"]).map(drop),
    )?;
    // `up` by hand holds as well.
    scene.mhd.ctl(&["health", "isp1", "up"])?;
    scene.mhd.wait_for_state("isp1", "up")?;
    let output = scene.mhd.ctl_output(&["health", "isp9", "down"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("isp9"), "{output:?}");
    Ok(())
}

fn drain(scene: &mut Scene) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    let mut before = Flows::open_by_both(scene, 40)?;
    scene.mhd.ctl(&["drain", "isp1"])?;
    assert_eq!(scene.mhd.uplink("isp1")?["state"], "draining");
    Flows::open(scene, 30)?.split().check(&[(address2, 1)])?;
    before.check_all()?;
    scene.mhd.ctl(&["undrain", "isp1"])?;
    assert_eq!(scene.mhd.uplink("isp1")?["state"], "up");
    let split = Flows::open(scene, 30)?.split();
    assert_eq!(split.iter().count(), 2, "new flows use both again: {split}");
    before.check_all()
}

fn no_uplink_left_and_back(scene: &mut Scene) -> Result<()> {
    for index in 0..2 {
        scene.lab.uplink(index)?.isp.ip(&["link set eth0 down"])?;
    }
    scene.mhd.wait_for_state("isp1", "down")?;
    scene.mhd.wait_for_state("isp2", "down")?;
    scene.lab.uplink(1)?.isp.ip(&["link set eth0 up"])?;
    scene.mhd.wait_for_state("isp2", "up")?;
    Flows::open(scene, 30)?.split().check(&[(scene.lab.uplink(1)?.address, 1)])
}

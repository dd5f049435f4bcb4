//! VLANs: devices of tagged traffic are managed like any other, and tagged frames on the interface below them are left alone.
//!
//! ```text
//!  client3 ── eth0.10 ── lan1.10 ┌────────────┐ wan1 ───── eth0 isp1 ─────┐
//!             192.168.10.0/24 .1 │ router: mh │                           ├── server 192.0.2.10
//!             eth0 ────── lan1   └────────────┘ wan2.20 ── eth0.20 isp2 ──┘
//!             192.168.2.0/24
//! ```
//!
//! TC alone: there is no native XDP on VLAN devices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io::Write as _;

use anyhow::Result;
use mh_tests::lab::traffic::{Direction, Split, transfer, udp_flows};
use mh_tests::lab::{Lab, Mode, Options, SERVER, Scene, run_scene, skipped};

/// Whether the kernel has VLAN devices; says so if not.
fn without_vlan() -> Result<bool> {
    let host = Lab::new()?.host("probe")?;
    host.ip(&["link add base type veth peer name other"])?;
    let answer = host.output(&["ip", "link", "add", "link", "base", "name", "base.10", "type", "vlan", "id", "10"])?;
    if !answer.status.success() {
        // Past the harness's capture: what it prints of passing tests is thrown away.
        let _ = writeln!(std::io::stderr(), "skipped: the kernel has no VLAN devices (CONFIG_VLAN_8021Q)");
    }
    Ok(!answer.status.success())
}

fn scene() -> Result<Scene> {
    let lab = Lab::two_isps(&Options::new(Mode::Tc))?;
    lab.router.ip(&[
        "link add link lan1 name lan1.10 type vlan id 10",
        "link set lan1.10 up",
        "address add 192.168.10.1/24 dev lan1.10",
        "link add link wan2 name wan2.20 type vlan id 20",
        "link set wan2.20 up",
        "address del 203.0.113.2/24 dev wan2",
        "address add 203.0.113.2/24 dev wan2.20",
    ])?;
    lab.client3.ip(&[
        "link add link eth0 name eth0.10 type vlan id 10",
        "link set eth0.10 up",
        "address add 192.168.10.13/24 dev eth0.10",
        "route replace default via 192.168.10.1",
    ])?;
    lab.uplinks[1].isp.ip(&[
        "link add link eth0 name eth0.20 type vlan id 20",
        "link set eth0.20 up",
        "address del 203.0.113.1/24 dev eth0",
        "address add 203.0.113.1/24 dev eth0.20",
    ])?;
    lab.uplinks[1].isp.sysctl("ipv4/conf/eth0.20/rp_filter", "1")?;
    let config = lab.config(&[1, 1]).replace("\"lan1\"]", "\"lan1\", \"lan1.10\"]").replace("\"wan2\"", "\"wan2.20\"");
    Scene::start(lab, &config)
}

#[test]
fn vlan_devices_are_managed_like_any_other() -> Result<()> {
    if skipped() || without_vlan()? {
        return Ok(());
    }
    run_scene(scene, |scene| {
        let client = &scene.lab.client3;
        let flows = udp_flows(client, scene.udp.address(), 60)?;
        let addresses = scene.lab.uplinks.iter().map(|uplink| (uplink.address, 1)).collect::<Vec<_>>();
        Split::of(flows.iter().map(|flow| flow.seen)).check(&addresses)?;
        for direction in [Direction::Upload, Direction::Download] {
            transfer(client, scene.tcp.address(), direction, 5_000_000)?;
        }
        assert_eq!(client.ping(SERVER, 5)?, 5);
        // The same frames, tagged, on the interface below: not mh's, and not mangled.
        let stats = scene.mhd.ctl_json(&["stats"])?;
        assert!(stats["verdicts"]["pass_vlan"].as_u64() > Some(60), "{stats}");
        Ok(())
    })
}

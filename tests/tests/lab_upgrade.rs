//! mhd takes over pins of other versions: older ones as far as their layouts are the same, newer ones not at all.
//!
//! Pins of another version are made of this version's own: by another number in the settings, and by maps of other sizes.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_common::abi::{LAYOUTS, VERSION, map};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Flows, Split, TcpFlow, tcp_flows};
use mh_tests::lab::{Mode, Scene, run, wait_until};
use serde_json::Value;

in_both_modes!(
    flows_outlive_an_upgrade,
    bindings_of_version_7_go_on,
    bindings_of_version_8_go_on,
    a_map_of_another_layout_is_made_anew_and_flows_go_on,
    flows_end_with_the_layout_of_bindings,
    an_interrupted_upgrade_is_taken_up_again,
    a_newer_version_is_refused_and_nothing_is_touched,
);

const TIMEOUT: Duration = Duration::from_secs(90);
/// Flows of each kind that are open meanwhile.
const COUNT: usize = 20;

fn pin(scene: &Scene, name: &str) -> String {
    format!("{}/{name}", scene.mhd.bpffs())
}

/// The settings as bytes.
fn settings(scene: &Scene) -> Result<Vec<u8>> {
    let path = pin(scene, map::SETTINGS);
    let json = scene.lab.router.run(&["bpftool", "-j", "map", "lookup", "pinned", &path, "key", "0", "0", "0", "0"])?;
    let entry: Value = serde_json::from_str(&json)?;
    let bytes = entry["value"].as_array().context("no value")?.iter().map(|byte| byte.as_str().context("no byte"));
    bytes.map(|byte| Ok(u8::from_str_radix(byte?.trim_start_matches("0x"), 16)?)).collect()
}

fn version(scene: &Scene) -> Result<u32> {
    Ok(u32::from_ne_bytes(*settings(scene)?.first_chunk().context("too short")?))
}

fn set_version(scene: &Scene, version: u32) -> Result<()> {
    let mut bytes = settings(scene)?;
    bytes[..4].copy_from_slice(&version.to_ne_bytes());
    let bytes: Vec<String> = bytes.iter().map(ToString::to_string).collect();
    let path = pin(scene, map::SETTINGS);
    let mut line = vec!["bpftool", "map", "update", "pinned", &path, "key", "0", "0", "0", "0", "value"];
    line.extend(bytes.iter().map(String::as_str));
    scene.lab.router.run(&line).map(drop)
}

/// Puts a map of another layout in a map's place.
fn change_layout(scene: &Scene, name: &str, kind: &str, key: &str, value: &str) -> Result<()> {
    let (other, path) = (pin(scene, "other"), pin(scene, name));
    let line =
        ["bpftool", "map", "create", &other, "type", kind, "key", key, "value", value, "entries", "64", "name", "x"];
    scene.lab.router.run(&line)?;
    scene.lab.router.run(&["mv", &other, &path]).map(drop)
}

/// What is pinned, with what it is.
fn pinned(scene: &Scene) -> Result<String> {
    scene.lab.router.run(&["find", scene.mhd.bpffs(), "-printf", "%p %i\n"])
}

/// The sizes of what is pinned, and no trace of an upgrade.
fn check_upgraded(scene: &Scene) -> Result<()> {
    assert_eq!(version(scene)?, VERSION);
    let pins = pinned(scene)?;
    assert!(!pins.contains("upgrade"), "{pins}");
    for layout in LAYOUTS {
        let json = scene.lab.router.run(&["bpftool", "-j", "map", "show", "pinned", &pin(scene, layout.map)])?;
        let shown: Value = serde_json::from_str(&json)?;
        let sizes = (shown["bytes_key"].as_u64(), shown["bytes_value"].as_u64());
        assert_eq!(sizes, (Some(layout.key as u64), Some(layout.value as u64)), "{}", layout.map);
    }
    Ok(())
}

/// Flows go on as they were, and new ones come by both uplinks.
fn check(flows: &mut Flows, scene: &Scene) -> Result<()> {
    flows.check_all()?;
    check_new(scene)
}

fn check_new(scene: &Scene) -> Result<()> {
    let flows = tcp_flows(&scene.lab.client1, scene.tcp.address(), 30)?;
    let split = Split::of(flows.iter().map(|flow| flow.seen));
    assert_eq!(split.iter().count(), 2, "new flows: {split}");
    Ok(())
}

fn stop(scene: &mut Scene) -> Result<()> {
    assert_eq!(scene.mhd.sigterm()?.code(), Some(0));
    Ok(())
}

fn flows_outlive_an_upgrade(scene: &mut Scene) -> Result<()> {
    let mut flows = Flows::open(scene, COUNT)?;
    stop(scene)?;
    set_version(scene, VERSION - 1)?;
    check(&mut flows, scene)?;
    scene.mhd.start_again()?;
    let log = scene.mhd.log();
    assert!(log.contains("flows go on"), "{log}");
    check_upgraded(scene)?;
    check(&mut flows, scene)?;
    // There is nothing left to do.
    scene.mhd.restart()?;
    assert_eq!(scene.mhd.log().matches("are brought from").count(), 1);
    check(&mut flows, scene)
}

fn bindings_of_version_7_go_on(scene: &mut Scene) -> Result<()> {
    bindings_go_on(scene, 7, [(map::BY_INSIDE4, 16), (map::BY_OUTSIDE4, 12)])
}

fn bindings_of_version_8_go_on(scene: &mut Scene) -> Result<()> {
    bindings_go_on(scene, 8, [(map::BY_INSIDE4, 24), (map::BY_OUTSIDE4, 12)])
}

/// Bindings whose values had these lengths.
fn bindings_go_on(scene: &mut Scene, version: u32, lengths: [(&str, usize); 2]) -> Result<()> {
    let mut flows = Flows::open(scene, COUNT)?;
    let before = scene.mhd.ctl_json(&["bindings"])?;
    assert!(before.as_array().is_some_and(|bindings| bindings.len() >= COUNT), "{before}");
    stop(scene)?;
    let kept = lengths.into_iter().map(|(name, length)| refit(scene, name, length)).collect::<Result<Vec<_>>>()?;
    set_version(scene, version)?;
    scene.mhd.start_again()?;
    for path in &kept {
        scene.lab.router.run(&["rm", path])?;
    }
    let log = scene.mhd.log();
    assert!(log.contains("flows go on"), "{log}");
    check_upgraded(scene)?;
    check(&mut flows, scene)?;
    let after = scene.mhd.ctl_json(&["bindings"])?;
    let ends = |bindings: &Value| -> Vec<String> {
        let fields = ["protocol", "inside", "inside_port", "outside", "outside_port", "uplink"];
        let of = |binding: &Value| fields.map(|field| binding[field].to_string()).join(" ");
        bindings.as_array().into_iter().flatten().map(of).collect()
    };
    let (before, after) = (ends(&before), ends(&after));
    assert!(before.iter().all(|binding| after.contains(binding)), "{before:?}\n{after:?}");
    Ok(())
}

/// Puts a map in a map's place that has the same entries with values of another length, cut or with zeros behind. Returns where the map is then.
fn refit(scene: &Scene, name: &str, length: usize) -> Result<String> {
    let (path, kept, other) = (pin(scene, name), pin(scene, &format!("kept_{name}")), pin(scene, "other"));
    let dump: Value = serde_json::from_str(&scene.lab.router.run(&["bpftool", "-j", "map", "dump", "pinned", &path])?)?;
    let value = length.to_string();
    let make = [
        "bpftool", "map", "create", &other, "type", "hash", "key", "8", "value", &value, "entries", "4096", "name", "x",
    ];
    scene.lab.router.run(&make)?;
    for entry in dump.as_array().context("no entries")? {
        let bytes = |of: &str| -> Result<Vec<String>> {
            let bytes = entry[of].as_array().context("no bytes")?.iter();
            bytes.map(|byte| Ok(byte.as_str().context("no byte")?.to_owned())).collect()
        };
        let (key, mut value) = (bytes("key")?, bytes("value")?);
        value.resize(length, "0".to_owned());
        let mut line = vec!["bpftool", "map", "update", "pinned", &other, "key"];
        line.extend(key.iter().map(String::as_str));
        line.push("value");
        line.extend(value.iter().map(String::as_str));
        scene.lab.router.run(&line)?;
    }
    scene.lab.router.run(&["mv", &path, &kept])?;
    scene.lab.router.run(&["mv", &other, &path])?;
    Ok(kept)
}

fn a_map_of_another_layout_is_made_anew_and_flows_go_on(scene: &mut Scene) -> Result<()> {
    let mut flows = Flows::open(scene, COUNT)?;
    stop(scene)?;
    set_version(scene, VERSION - 1)?;
    change_layout(scene, map::POOLS, "array", "4", "200")?;
    change_layout(scene, map::OUTSIDE4, "hash", "4", "8")?;
    change_layout(scene, map::SETTINGS, "array", "4", "96")?;
    let path = pin(scene, map::SETTINGS);
    let value: Vec<String> = (0..96).map(|at| if at == 0 { VERSION - 1 } else { 0 }.to_string()).collect();
    let mut line = vec!["bpftool", "map", "update", "pinned", &path, "key", "0", "0", "0", "0", "value"];
    line.extend(value.iter().map(String::as_str));
    scene.lab.router.run(&line)?;
    check(&mut flows, scene)?;
    scene.mhd.start_again()?;
    check_upgraded(scene)?;
    check(&mut flows, scene)
}

fn flows_end_with_the_layout_of_bindings(scene: &mut Scene) -> Result<()> {
    let flows = Flows::open(scene, COUNT)?;
    assert!(!scene.mhd.flows(&[])?.is_empty());
    stop(scene)?;
    drop(flows);
    set_version(scene, VERSION - 1)?;
    change_layout(scene, map::BY_OUTSIDE4, "hash", "8", "16")?;
    scene.mhd.start_again()?;
    let log = scene.mhd.log();
    assert!(log.contains("flows had to end"), "{log}");
    check_upgraded(scene)?;
    assert_eq!(scene.mhd.ctl_json(&["bindings"])?, Value::Array(Vec::new()));
    check(&mut Flows::open(scene, COUNT)?, scene)
}

fn an_interrupted_upgrade_is_taken_up_again(scene: &mut Scene) -> Result<()> {
    let mut flows = Flows::open(scene, COUNT)?;
    stop(scene)?;
    set_version(scene, VERSION - 1)?;
    change_layout(scene, map::POOLS, "array", "4", "200")?;
    let upgrade = pin(scene, &format!("upgrade-{VERSION}"));
    // Killed when the first new map is there, when the first old one is moved aside, and as soon as it is seen to run.
    for sign in [format!("{upgrade}/new/{}", map::STAGES), format!("{upgrade}/old/{}", map::STAGES), upgrade.clone()] {
        let line = scene.mhd.arguments()?;
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut mhd = scene.lab.router.spawn("killed-mhd", &line)?;
        wait_until(&sign, TIMEOUT, || {
            let seen = scene.lab.router.output(&["test", "-e", &sign])?.status.success();
            // It may be faster than the eye.
            Ok(seen || mhd.stderr().contains("ready"))
        })?;
        mhd.kill();
        if version(scene)? == VERSION {
            set_version(scene, VERSION - 1)?;
        }
        flows.tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    }
    // The worst place: the old map is moved aside and the new one is not there.
    scene.lab.router.run(&["mkdir", "-p", &format!("{upgrade}/old")])?;
    let (place, old) = (pin(scene, map::STAGES), format!("{upgrade}/old/{}", map::STAGES));
    if scene.lab.router.output(&["test", "-e", &old])?.status.success() {
        scene.lab.router.run(&["rm", "-f", &place])?;
    } else {
        scene.lab.router.run(&["mv", &place, &old])?;
    }
    scene.mhd.start_again()?;
    check_upgraded(scene)?;
    check(&mut flows, scene)
}

fn a_newer_version_is_refused_and_nothing_is_touched(scene: &mut Scene) -> Result<()> {
    let mut flows = Flows::open(scene, COUNT)?;
    stop(scene)?;
    set_version(scene, VERSION + 1)?;
    let (pins, value) = (pinned(scene)?, settings(scene)?);
    let line = scene.mhd.arguments()?;
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let mut mhd = scene.lab.router.spawn("older-mhd", &line)?;
    let status = mhd.wait(TIMEOUT)?;
    let said = mhd.stderr();
    assert_eq!(status.code(), Some(1), "{said}");
    for word in [format!("version {}", VERSION + 1), "--detach".to_owned(), "a newer one".to_owned()] {
        assert!(said.contains(&word), "{word}: {said}");
    }
    assert_eq!((pinned(scene)?, settings(scene)?), (pins, value));
    check(&mut flows, scene)?;
    // What it says does mend it.
    scene.mhd.detach()?;
    scene.mhd.start_again()?;
    check_new(scene)
}

/// A first start that was interrupted leaves maps that nothing uses.
#[test]
fn an_unfinished_set_is_made_anew() -> Result<()> {
    run(Mode::Tc, |scene| {
        stop(scene)?;
        scene.mhd.detach()?;
        scene.lab.router.run(&["mkdir", scene.mhd.bpffs()])?;
        change_layout(scene, map::SETTINGS, "array", "4", "64")?;
        change_layout(scene, map::BY_INSIDE4, "hash", "4", "4")?;
        scene.mhd.start_again()?;
        check_upgraded(scene)?;
        check_new(scene)
    })
}

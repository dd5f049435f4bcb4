//! mhd as an ordinary user with a few capabilities.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::os::unix::fs::chown;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Split, TcpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{Mode, Scene, run};

in_both_modes!(an_ordinary_user_runs_it_all);

/// Nobody.
const USER: u32 = 65534;
/// What docs/operations.md says is needed.
const CAPABILITIES: [&str; 4] = ["bpf", "net_admin", "net_raw", "perfmon"];

/// The command that runs another one as [`USER`] with these capabilities, and no way to more.
fn setpriv(capabilities: &[&str]) -> Vec<String> {
    let some: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let user = USER.to_string();
    let some = format!("-all{some}");
    let words =
        ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs", "--inh-caps", &some];
    let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    words.extend(["--ambient-caps".to_owned(), some.clone(), "--bounding-set".to_owned(), some]);
    words
}

/// Ends the scene's mhd with all its traces, and prepares what a service manager would: directories of the user's own. The bpffs itself
/// can't be written to.
fn prepare(scene: &mut Scene, capabilities: &[&str]) -> Result<()> {
    assert_eq!(scene.mhd.sigterm()?.code(), Some(0));
    scene.mhd.detach()?;
    let router = &scene.lab.router;
    router.run(&["chmod", "0711", "/sys/fs/bpf"])?;
    router.run(&["mkdir", "--mode", "0700", scene.mhd.bpffs()])?;
    router.run(&["chown", &format!("{USER}:{USER}"), scene.mhd.bpffs()])?;
    chown(scene.lab.lab().directory(), Some(USER), Some(USER))?;
    let words = setpriv(capabilities);
    scene.mhd.start_under(&words.iter().map(String::as_str).collect::<Vec<_>>());
    Ok(())
}

fn an_ordinary_user_runs_it_all(scene: &mut Scene) -> Result<()> {
    prepare(scene, &CAPABILITIES)?;
    scene.mhd.start_again()?;
    let status = scene.lab.router.run(&["ps", "-C", "mhd", "-o", "uid="])?;
    assert!(status.split_whitespace().any(|uid| uid == USER.to_string()), "{status}");

    let mut flows = tcp_flows(&scene.lab.client1, scene.tcp.address(), 30)?;
    assert_eq!(Split::of(flows.iter().map(|flow| flow.seen)).iter().count(), 2);
    let datagrams = udp_flows(&scene.lab.client2, scene.udp.address(), 30)?;
    // Everything that mhctl asks.
    for command in [&["status"][..], &["flows"], &["bindings"], &["stats"], &["reload"], &["events"]] {
        scene.mhd.ctl(command)?;
    }
    scene.mhd.ctl(&["drain", "isp2", "--save"])?;
    scene.lab.uplink(0)?.isp.ip(&["link set eth0 down"])?;
    scene.mhd.wait_for_state("isp1", "down")?;
    scene.lab.uplink(0)?.isp.ip(&["link set eth0 up"])?;
    scene.mhd.wait_for_state("isp1", "up")?;
    scene.lab.router.wait_for_link("wan1")?;

    for _ in 0..2 {
        scene.mhd.restart()?;
        flows.iter_mut().try_for_each(TcpFlow::echo)?;
        datagrams.iter().try_for_each(|flow| flow.ask().map(drop))?;
    }
    assert_eq!(scene.mhd.uplink("isp2")?["state"], "draining");
    let log = scene.mhd.log();
    assert!(!log.contains("ERROR") && !log.contains("ermission") && !log.contains("not permitted"), "{log}");

    scene.mhd.ctl(&["detach"])?;
    // The directory itself is not the user's to remove.
    let left = scene.lab.router.run(&["find", "/sys/fs/bpf", "-mindepth", "2"])?;
    assert_eq!(left, "", "pins are left");
    let programs = scene.lab.router.run(&["bpftool", "net", "show"])?;
    assert!(!programs.contains("mh_"), "{programs}");
    // And again, with the programs stopped first.
    scene.mhd.start_again()?;
    assert_eq!(scene.mhd.sigterm()?.code(), Some(0));
    scene.mhd.detach()?;
    assert_eq!(scene.lab.router.run(&["find", "/sys/fs/bpf", "-mindepth", "2"])?, "");
    Ok(())
}

/// What is missing is named.
#[test]
fn a_capability_that_is_missing_is_named() -> Result<()> {
    run(Mode::Xdp, |scene| {
        prepare(scene, &CAPABILITIES)?;
        for missing in CAPABILITIES {
            let others: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
            let words = setpriv(&others);
            scene.mhd.start_under(&words.iter().map(String::as_str).collect::<Vec<_>>());
            let line = scene.mhd.arguments()?;
            let line: Vec<&str> = line.iter().map(String::as_str).collect();
            let mut mhd = scene.lab.router.spawn("weak-mhd", &line)?;
            let status = mhd.wait(Duration::from_secs(30)).with_context(|| format!("without {missing}"))?;
            let named = format!("CAP_{}", missing.to_uppercase());
            assert!(!status.success() && mhd.stderr().contains(&named), "without {missing}: {status} {}", mhd.stderr());
            let left = scene.lab.router.run(&["find", "/sys/fs/bpf", "-mindepth", "2"])?;
            assert_eq!(left, "", "without {missing}");
        }
        Ok(())
    })
}

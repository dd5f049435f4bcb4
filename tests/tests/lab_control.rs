//! The daemon's and the command line's contract, seen from outside: status, reload, check, detach, the socket.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Split, TcpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{SERVER, Scene, binary, programs_on, wait_until};
use nix::sys::signal::Signal;

in_both_modes!(
    status_has_every_field,
    gateway_and_address_are_learned,
    reload_of_a_bad_config_changes_nothing,
    reload_changes_weights,
    detach_after_the_end_leaves_no_trace,
    detach_while_running_leaves_no_trace,
    socket_is_private_and_speaks_http,
    second_daemon_is_refused,
    command_line_exit_codes,
);

/// Interfaces that mh attaches to in the config of these tests.
const INTERFACES: [&str; 4] = ["lan0", "lan1", "wan1", "wan2"];

fn status_has_every_field(scene: &mut Scene) -> Result<()> {
    tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)?;
    let status = scene.mhd.ctl_json(&["status"])?;
    assert!(status["version"].is_string(), "{status}");
    assert_eq!(status["mode"], scene.lab.options.mode.name());
    for uplink in &scene.lab.uplinks {
        let shown = scene.mhd.uplink(&uplink.name)?;
        assert_eq!(shown["interface"], uplink.interface, "{shown}");
        assert_eq!(shown["state"], "up", "{shown}");
        assert!(shown["reason"].is_string(), "{shown}");
        assert_eq!(shown["address"], serde_json::json!([uplink.address.to_string()]), "{shown}");
        assert_eq!(shown["gateway"], uplink.gateway.to_string(), "{shown}");
        assert_eq!(shown["tier"], 0, "{shown}");
        assert_eq!(shown["share"], 0.5, "{shown}");
        for counter in ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "flows"] {
            assert!(shown[counter].as_u64() > Some(0), "{counter}: {shown}");
        }
        for field in ["rtt_ms", "loss"] {
            assert!(shown.get(field).is_some(), "{field}: {shown}");
        }
    }
    for field in ["established", "embryonic", "capacity"] {
        assert!(status["flows"][field].is_u64(), "flows/{field}: {status}");
    }
    assert_eq!(status["flows"]["capacity"], 65_536, "{status}");
    let table = scene.mhd.ctl(&["status"])?;
    for word in ["isp1", "isp2", "wan1", "198.51.100.2", "203.0.113.1"] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
    assert!(!table.contains('\u{1b}'), "coloured, though this is no terminal:\n{table}");
    Ok(())
}

fn gateway_and_address_are_learned(scene: &mut Scene) -> Result<()> {
    let config = scene.lab.config(&[1, 1]);
    let config: String = config
        .lines()
        .filter(|line| !line.starts_with("gateway") && !line.starts_with("address"))
        .flat_map(|line| [line, "\n"])
        .collect();
    scene.mhd.write_config(&config)?;
    scene.mhd.restart()?;
    for uplink in &scene.lab.uplinks {
        scene.mhd.wait_for_state(&uplink.name, "up")?;
        let shown = scene.mhd.uplink(&uplink.name)?;
        assert_eq!(shown["address"], serde_json::json!([uplink.address.to_string()]), "{shown}");
        assert_eq!(shown["gateway"], uplink.gateway.to_string(), "{shown}");
    }
    let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 40)?;
    let split = Split::of(flows.iter().map(|flow| flow.seen));
    assert_eq!(split.iter().count(), 2, "{split}");
    Ok(())
}

fn reload_of_a_bad_config_changes_nothing(scene: &mut Scene) -> Result<()> {
    let before = scene.mhd.ctl_json(&["status"])?;
    let mut flow = TcpFlow::connect(&scene.lab.client1, scene.tcp.address(), Duration::from_secs(5))?;
    let good = scene.lab.config(&[5, 1]);
    for (bad, word) in [
        (good.replace("weight = 5", "weight = 5\nwieght = 3"), "wieght"),
        (good.replace("weight = 5", "weight = 70000"), "70000"),
        (good.replace("[uplink.isp1]", "[uplink.isp1"), ":"),
    ] {
        scene.mhd.write_config(&bad)?;
        let output = scene.mhd.ctl_output(&["reload"])?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.contains(word), "{output:?}");
        // The same by signal: it logs, and lives on.
        let logged = scene.mhd.log().len();
        scene.mhd.signal(Signal::SIGHUP)?;
        wait_until("word about the bad config in the log", Duration::from_secs(5), || {
            Ok(scene.mhd.log().len() > logged)
        })?;
        assert!(scene.mhd.is_running());
        let after = scene.mhd.ctl_json(&["status"])?;
        for (before, after) in
            [(&before["uplinks"][0], &after["uplinks"][0]), (&before["uplinks"][1], &after["uplinks"][1])]
        {
            for field in ["name", "interface", "weight", "effective_weight", "state", "address", "gateway", "share"] {
                assert_eq!(before[field], after[field], "{field}");
            }
        }
        flow.echo()?;
    }
    Ok(())
}

fn reload_changes_weights(scene: &mut Scene) -> Result<()> {
    let mut flows = tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)?;
    scene.mhd.write_config(&scene.lab.config(&[1, 0]))?;
    scene.mhd.ctl(&["reload"])?;
    assert_eq!(scene.mhd.uplink("isp2")?["weight"], 0);
    let new = udp_flows(&scene.lab.client1, scene.udp.address(), 30)?;
    Split::of(new.iter().map(|flow| flow.seen)).check(&[(scene.lab.uplink(0)?.address, 1)])?;
    scene.mhd.write_config(&scene.lab.config(&[0, 1]))?;
    scene.mhd.signal(Signal::SIGHUP)?;
    wait_until("the reload by signal", Duration::from_secs(5), || Ok(scene.mhd.uplink("isp2")?["weight"] == 1))?;
    let new = udp_flows(&scene.lab.client1, scene.udp.address(), 30)?;
    Split::of(new.iter().map(|flow| flow.seen)).check(&[(scene.lab.uplink(1)?.address, 1)])?;
    flows.iter_mut().try_for_each(TcpFlow::echo)
}

fn check_no_trace(scene: &Scene) -> Result<()> {
    let pins = scene.lab.router.output(&["ls", "-A", scene.mhd.bpffs()])?;
    assert!(pins.stdout.is_empty(), "pins are left: {}", pins.stdout);
    for interface in INTERFACES {
        assert_eq!(programs_on(&scene.lab.router, interface)?, 0, "programs are left on {interface}");
        let qdiscs = scene.lab.router.run(&["tc", "qdisc", "show", "dev", interface])?;
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    }
    let rules = scene.lab.router.run(&["ip", "rule", "show"])?;
    assert!(!rules.contains("fwmark"), "routing rules are left: {rules}");
    let routes = scene.lab.router.run(&["ip", "route", "show", "table", "all", "proto", "109"])?;
    assert_eq!(routes, "", "routes are left");
    // The kernel's turn: it translates, and its default route says isp1.
    scene.lab.masquerade()?;
    let flows = tcp_flows(&scene.lab.client1, scene.tcp.address(), 30)?;
    Split::of(flows.iter().map(|flow| flow.seen)).check(&[(scene.lab.uplink(0)?.address, 1)])?;
    let rules = scene.lab.router.run(&["nft", "list", "ruleset"])?;
    assert!(rules.contains("counter packets") && !rules.contains("counter packets 0 "), "{rules}");
    assert_eq!(scene.lab.client1.ping(SERVER, 3)?, 3);
    Ok(())
}

fn detach_after_the_end_leaves_no_trace(scene: &mut Scene) -> Result<()> {
    tcp_flows(&scene.lab.client1, scene.tcp.address(), 10)?;
    assert_eq!(scene.mhd.sigterm()?.code(), Some(0));
    for interface in INTERFACES {
        assert!(programs_on(&scene.lab.router, interface)? > 0, "nothing is attached to {interface} after SIGTERM");
    }
    scene.mhd.detach()?;
    check_no_trace(scene)?;
    // Nothing to remove is no fault, and mhd starts afresh.
    scene.mhd.detach()?;
    scene.lab.router.nft("flush ruleset")?;
    scene.mhd.start_again()?;
    let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 40)?;
    assert_eq!(Split::of(flows.iter().map(|flow| flow.seen)).iter().count(), 2);
    Ok(())
}

fn detach_while_running_leaves_no_trace(scene: &mut Scene) -> Result<()> {
    tcp_flows(&scene.lab.client1, scene.tcp.address(), 10)?;
    scene.mhd.ctl(&["detach"])?;
    check_no_trace(scene)
}

fn socket_is_private_and_speaks_http(scene: &mut Scene) -> Result<()> {
    let data = scene.mhd.socket().metadata()?;
    assert!(data.file_type().is_socket());
    assert_eq!(data.permissions().mode() & 0o777, 0o660);
    let socket = scene.mhd.socket().display().to_string();
    let body = scene.lab.router.run(&["curl", "-sS", "--fail", "--unix-socket", &socket, "http://mh/v1/status"])?;
    let status: serde_json::Value = serde_json::from_str(&body).context(body)?;
    assert_eq!(status["uplinks"].as_array().map(Vec::len), Some(2), "{status}");
    Ok(())
}

fn second_daemon_is_refused(scene: &mut Scene) -> Result<()> {
    let arguments = scene.mhd.arguments()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut second = scene.lab.router.spawn("second-mhd", &arguments)?;
    let status = second.wait(Duration::from_secs(10))?;
    assert!(!status.success(), "{status}");
    assert!(second.stderr().contains("mhd.sock"), "{}", second.stderr());
    assert!(scene.mhd.is_running());
    scene.mhd.ctl(&["status"])?;
    TcpFlow::connect(&scene.lab.client1, scene.tcp.address(), Duration::from_secs(5))?.echo()
}

fn command_line_exit_codes(scene: &mut Scene) -> Result<()> {
    for (arguments, code) in [
        (&["version"][..], 0),
        (&["weights"], 0),
        (&["drain", "isp9"], 1),
        (&["undrain", "isp9"], 1),
        (&["flows", "list", "--uplink", "isp9"], 1),
        (&["frobnicate"], 2),
        (&["flows", "list", "--limit", "many"], 2),
        (&["health", "isp1", "sideways"], 2),
        (&[], 2),
    ] {
        let output = scene.mhd.ctl_output(arguments)?;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        if code == 1 {
            assert_eq!(output.stderr.trim().lines().count(), 1, "{arguments:?}: {output:?}");
        }
    }
    // Nobody listens.
    let program = binary("mhctl")?;
    let output = scene.lab.router.output(&[&program, "--socket", "/nonexistent/mhd.sock", "status"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stderr.trim().lines().count(), 1, "{output:?}");
    assert!(output.stderr.contains("/nonexistent/mhd.sock"), "{output:?}");
    Ok(())
}

/// Needs neither root nor a laboratory: `mhd check` touches nothing.
#[test]
fn check_names_key_line_column_and_the_nearest_known_key() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("mh.toml");
    let check = |config: &str| -> Result<(Option<i32>, String)> {
        std::fs::write(&file, config)?;
        let output = std::process::Command::new(binary("mhd")?).arg("check").arg(&file).output()?;
        let printed = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(printed)?))
    };
    let good = "lan = [\"lan0\"]\n\n[uplink.isp1]\ninterface = \"wan1\"\nweight = 2\n";
    let (code, printed) = check(good)?;
    assert_eq!(code, Some(0), "{printed}");

    let (code, printed) = check(&good.replace("weight", "wieght"))?;
    assert_eq!(code, Some(1), "{printed}");
    let place = format!("{}:5:1: ", file.display());
    let line =
        printed.lines().find(|line| line.starts_with(&place)).with_context(|| format!("{place} in {printed}"))?;
    assert!(line.contains("wieght") && line.replace("wieght", "").contains("weight"), "{line}");

    // Every fault, not only the first.
    let (code, printed) = check(&good.replace("weight = 2", "weight = 70000\ngatewy = \"198.51.100.1\""))?;
    assert_eq!(code, Some(1), "{printed}");
    for (line, word) in [(5, "70000"), (6, "gatewy")] {
        let place = format!("{}:{line}:", file.display());
        assert!(
            printed.lines().any(|line| line.starts_with(&place) && line.contains(word)),
            "{place} {word}:\n{printed}"
        );
    }
    Ok(())
}

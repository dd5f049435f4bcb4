//! What mhd tells of: events, listed and followed, and hooks that are run for them.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::{Mode, Scene, binary, run, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The events about an uplink, as `(previous state, state, reason)`.
fn of_uplink(events: &[Value], uplink: &str) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let about = events.iter().filter(|event| event["uplink"] == uplink);
    about.map(|event| (text(&event["previous_state"]), text(&event["state"]), text(&event["reason"]))).collect()
}

fn listed(scene: &Scene, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut line = vec!["events"];
    line.extend(arguments);
    Ok(scene.mhd.ctl_json(&line)?.as_array().context("no array")?.clone())
}

#[test]
fn every_change_is_kept_with_time_and_reason() -> Result<()> {
    run(Mode::Tc, |scene| {
        let start = listed(scene, &[])?;
        assert_eq!(of_uplink(&start, "isp1"), [(String::new(), "up".to_owned(), "link up".to_owned())]);
        let last = start.last().unwrap();
        assert_eq!((&last["kind"], &last["uplink"], &last["state"]), (&"start".into(), &Value::Null, &Value::Null));
        let since = last["seq"].as_u64().unwrap();

        scene.lab.uplink(0)?.isp.ip(&["link set eth0 down"])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        let reason = scene.mhd.uplink("isp1")?["reason"].as_str().unwrap().to_owned();
        // The reason alone.
        scene.mhd.ctl(&["health", "isp1", "down"])?;
        scene.lab.uplink(0)?.isp.ip(&["link set eth0 up"])?;
        scene.mhd.ctl(&["health", "isp1", "auto"])?;
        scene.mhd.wait_for_state("isp1", "up")?;
        scene.mhd.ctl(&["drain", "isp2"])?;

        let events = listed(scene, &["--since", &since.to_string()])?;
        let (up, down) = ("up".to_owned(), "down".to_owned());
        let isp1 = of_uplink(&events, "isp1");
        assert_eq!(isp1[..2], [(up.clone(), down.clone(), reason), (down.clone(), down.clone(), "by hand".into())]);
        let (_, state, reason) = isp1.last().unwrap();
        assert_eq!((state.as_str(), reason.as_str()), ("up", "link up"));
        assert_eq!(of_uplink(&events, "isp2"), [(up, "draining".to_owned(), "by hand".to_owned())]);
        for pair in events.windows(2) {
            assert_eq!(pair[0]["seq"].as_u64().unwrap() + 1, pair[1]["seq"].as_u64().unwrap());
            assert!(pair[0]["time"].as_str() <= pair[1]["time"].as_str(), "{pair:?}");
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
        let time = events[0]["time_s"].as_f64().unwrap();
        assert!((now - 60.0..=now).contains(&time), "{time} and it is {now}");
        let table = scene.mhd.ctl(&["events"])?;
        assert!(table.starts_with("TIME ") && table.contains("draining"), "{table}");
        Ok(())
    })
}

#[test]
fn a_follower_sees_changes_reloads_and_the_end() -> Result<()> {
    run(Mode::Tc, |scene| {
        let (program, socket) = (binary("mhctl")?, scene.mhd.socket().display().to_string());
        let mut json =
            scene.lab.router.spawn("follower", &[&program, "--socket", &socket, "--json", "events", "--follow"])?;
        let mut human = scene.lab.router.spawn("reader", &[&program, "--socket", &socket, "events", "-f"])?;
        json.wait_for_line("\"start\"", TIMEOUT)?;
        human.wait_for_line("start", TIMEOUT)?;
        scene.lab.uplink(1)?.isp.ip(&["link set eth0 down"])?;
        let (line, _) = json.wait_for_line("\"down\"", TIMEOUT)?;
        let event: Value = serde_json::from_str(&line)?;
        assert_eq!((&event["uplink"], &event["previous_state"]), (&"isp2".into(), &"up".into()), "{event}");
        human.wait_for_line("down", TIMEOUT)?;

        let config = fs::read_to_string(scene.mhd.config())?;
        scene.mhd.write_config("lan = 3\n")?;
        scene.mhd.signal(Signal::SIGHUP)?;
        json.wait_for_line("refused", TIMEOUT)?;
        scene.mhd.write_config(&config.replace("weight = 1", "weight = 5"))?;
        scene.mhd.signal(Signal::SIGHUP)?;
        json.wait_for_line("configuration was read", TIMEOUT)?;

        assert_eq!(scene.mhd.sigterm()?.code(), Some(0));
        for follower in [&mut json, &mut human] {
            assert!(follower.wait(TIMEOUT)?.success(), "{}", follower.stderr());
        }
        let last = json.stdout().lines().last().unwrap().to_owned();
        assert_eq!(serde_json::from_str::<Value>(&last)?["kind"], "stop");
        Ok(())
    })
}

/// A hook in the laboratory's directory.
fn script(directory: &Path, name: &str, body: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn with_hook(config: &str, hook: &Path) -> String {
    format!("{config}\n[hooks]\non_change = \"{}\"\ntimeout = \"5m\"\n", hook.display())
}

#[test]
fn hooks_are_told_of_changes_and_hold_up_nothing() -> Result<()> {
    run(Mode::Tc, |scene| {
        let directory = scene.lab.lab().directory().to_owned();
        let told = directory.join("told");
        let body =
            format!("echo $MH_UPLINK $MH_PREVIOUS_STATE $MH_STATE $MH_REASON >> {}\necho some output", told.display());
        let first = script(&directory, "first-hook", &body)?;
        let plain = fs::read_to_string(scene.mhd.config())?;
        scene.mhd.write_config(&with_hook(&plain, &first))?;
        assert!(scene.mhd.ctl(&["reload"])?.contains("hooks changed"));
        scene.mhd.ctl(&["health", "isp1", "down"])?;
        scene.mhd.ctl(&["health", "isp1", "auto"])?;
        let expected = "isp1 up down by hand\nisp1 down up link up\n";
        wait_until("both changes", TIMEOUT, || Ok(fs::read_to_string(&told).unwrap_or_default() == expected))?;
        wait_until("its output", TIMEOUT, || Ok(scene.mhd.log().contains("first-hook: some output")))?;

        // One that never ends: mhd goes on, and takes it along when it ends.
        let ids = directory.join("ids");
        let body = format!("sleep 1000 &\necho $! $$ > {0}.new\nmv {0}.new {0}\nwait", ids.display());
        scene.mhd.write_config(&with_hook(&plain, &script(&directory, "second-hook", &body)?))?;
        scene.mhd.ctl(&["reload"])?;
        scene.lab.uplink(0)?.isp.ip(&["link set eth0 down"])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        wait_until("the second hook", TIMEOUT, || Ok(ids.exists()))?;
        scene.lab.uplink(0)?.isp.ip(&["link set eth0 up"])?;
        scene.mhd.wait_for_state("isp1", "up")?;
        assert_eq!(scene.mhd.sigterm()?.code(), Some(0));
        for id in fs::read_to_string(&ids)?.split_whitespace() {
            let stat = format!("/proc/{id}/stat");
            wait_until("the hook's end", TIMEOUT, || {
                Ok(fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z ")))
            })?;
        }

        // One that is not there is a warning, and no more.
        scene.mhd.write_config(&with_hook(&plain, Path::new("/nonexistent/hook")))?;
        scene.mhd.start_again()?;
        scene.mhd.ctl(&["drain", "isp2"])?;
        wait_until("a warning", TIMEOUT, || {
            let events = listed(scene, &[])?;
            Ok(events
                .iter()
                .any(|e| e["kind"] == "warning" && e["reason"].as_str().unwrap().contains("/nonexistent/hook")))
        })?;
        assert_eq!(fs::read_to_string(&told)?, expected);
        Ok(())
    })
}

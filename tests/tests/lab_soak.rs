//! mhd in the long run: uplinks that come and go hundreds of times, and a kernel that tells more than anyone can read.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1   other0
//! ```
//!
//! `MH_SOAK_FLAPS` sets how often an uplink loses its carrier; 1000 take some minutes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::traffic::{Flows, Split, TcpFlow, udp_flows};
use mh_tests::lab::{Lab, Mode, Options, SERVER, Scene, run_scene, wait_until};
use nix::sys::signal::Signal;

/// How often an uplink loses its carrier, if `MH_SOAK_FLAPS` says nothing.
const FLAPS: usize = 200;
/// How much mhd's memory may grow between a tenth of the flaps and the last.
const GROWTH_KIB: u64 = 4 * 1024;
/// What memory is counted: mhd's own, and not the maps that it shares with the kernel, which each of its readers has mapped.
const MEMORY: &str = "RssAnon";
/// How much of it mhd may have.
const MEMORY_KIB: u64 = 64 * 1024;
/// When flows and bindings are gone: their timeouts, and the intervals at which they are looked for.
const EXPIRY: Duration = Duration::from_secs(60);
/// The same of ports that rest for two minutes before they are used again.
const REST: Duration = Duration::from_secs(180);
/// Routes that come and go in the flood: each makes two messages. Some 20,000 fill what mhd lets the kernel keep for it.
const FLOOD: usize = 30_000;
/// How long mhd may take to be right again after the flood.
const RECOVERY: Duration = Duration::from_secs(10);

/// Flows end soon, no uplink is held down for its flapping.
const SECTIONS: &str = "[timeouts]\nudp = \"1s\"\ntcp_established = \"2s\"\ntcp_transitory = \"1s\"\nicmp = \"1s\"\n";

/// Runs a test with two uplinks that may flap.
fn with_flapping(mode: Mode, test: fn(&mut Scene) -> Result<()>) -> Result<()> {
    let build = || {
        let lab = Lab::two_isps(&Options::new(mode))?;
        let config = lab.config(&[1, 1]).replace("weight = 1\n", "weight = 1\ndamping = { losses = 0 }\n");
        Scene::start(lab, &(config + "\n" + SECTIONS))
    };
    run_scene(build, test)
}

/// What mhd holds.
struct Held {
    /// Open descriptors by kind: a path, or `socket`, `anon_inode:…`.
    descriptors: BTreeMap<String, usize>,
    rules: String,
    routes: String,
    pins: String,
    programs: String,
    /// Entries of the maps that don't grow with traffic.
    entries: BTreeMap<String, usize>,
}

impl Held {
    fn of(scene: &Scene) -> Result<Self> {
        let router = &scene.lab.router;
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(process(scene)?.join("fd"))? {
            // One may be closed in between: that of a question just answered.
            let Ok(target) = fs::read_link(entry?.path()) else { continue };
            let target = target.display().to_string();
            let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind).to_owned();
            *descriptors.entry(kind).or_default() += 1;
        }
        let mut programs = String::new();
        for interface in ["lan0", "lan1", "wan1", "wan2"] {
            programs += &router.run(&["tc", "qdisc", "show", "dev", interface])?;
        }
        let directory = scene.mhd.bpffs();
        let pins = router.run(&["find", directory, "-mindepth", "1"])?;
        let mut lines: Vec<&str> = pins.lines().collect();
        lines.sort_unstable();
        let mut entries = BTreeMap::new();
        for map in ["mh_interfaces", "mh_local4", "mh_outside4"] {
            entries.insert(map.to_owned(), map_entries(scene, map)?);
        }
        Ok(Self {
            descriptors,
            rules: router.run(&["ip", "rule", "show"])?,
            routes: router.run(&["ip", "-4", "route", "show", "table", "all"])?,
            pins: lines.join("\n"),
            programs,
            entries,
        })
    }

    /// What is more than, or other than, what was held at first; of descriptors only what is more, since that of a
    /// question just answered may have been among the first.
    fn differences(&self, first: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (kind, &count) in &self.descriptors {
            let before = first.descriptors.get(kind).copied().unwrap_or_default();
            if count > before {
                differences.push(format!("{count} descriptors of {kind}, {before} at first"));
            }
        }
        let texts = [
            ("rules", &self.rules, &first.rules),
            ("routes", &self.routes, &first.routes),
            ("pins", &self.pins, &first.pins),
            ("programs", &self.programs, &first.programs),
        ];
        for (what, now, before) in texts.into_iter().filter(|(_, now, before)| now != before) {
            differences.push(format!("{what} at first:\n{before}\nnow:\n{now}"));
        }
        if self.entries != first.entries {
            differences.push(format!("entries {:?}, {:?} at first", self.entries, first.entries));
        }
        differences
    }
}

/// mhd's directory below /proc.
fn process(scene: &Scene) -> Result<PathBuf> {
    Ok(PathBuf::from(format!("/proc/{}", scene.mhd.pid()?)))
}

/// A number of mhd's /proc/PID/status.
fn status_of(scene: &Scene, field: &str) -> Result<u64> {
    let status = fs::read_to_string(process(scene)?.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| status.clone())?;
    let number = line.trim_start_matches(':').split_whitespace().next().context("a number")?;
    Ok(number.parse()?)
}

fn map_entries(scene: &Scene, map: &str) -> Result<usize> {
    let pin = format!("{}/{map}", scene.mhd.bpffs());
    let printed = scene.lab.router.run(&["bpftool", "-j", "map", "dump", "pinned", &pin])?;
    let document: serde_json::Value = serde_json::from_str(&printed).with_context(|| format!("{map}: {printed:?}"))?;
    document.as_array().map(Vec::len).with_context(|| format!("{map}: {document}"))
}

/// Waits until nothing is left in these maps.
fn all_expired(scene: &Scene, maps: &[&'static str], timeout: Duration) -> Result<()> {
    let mut left = Vec::new();
    let waited = wait_until("flows and bindings to end", timeout, || {
        left = maps.iter().map(|&map| Ok((map, map_entries(scene, map)?))).collect::<Result<Vec<_>>>()?;
        Ok(left.iter().all(|(_, entries)| *entries == 0))
    });
    waited.with_context(|| format!("{left:?}")).map(drop)
}

/// New flows work by both uplinks.
fn both_used(scene: &Scene) -> Result<()> {
    Flows::open_by_both(scene, 20)?;
    assert_eq!(scene.lab.client1.ping(SERVER, 2)?, 2);
    Ok(())
}

/// Loses an uplink's carrier and gives it back; each time mhd has to see it.
fn flap(scene: &Scene, index: usize) -> Result<()> {
    let uplink = scene.lab.uplink(index)?;
    uplink.isp.ip(&["link set eth0 down"])?;
    scene.mhd.wait_for_state(&uplink.name, "down")?;
    uplink.isp.ip(&["link set eth0 up"])?;
    scene.mhd.wait_for_state(&uplink.name, "up")?;
    Ok(())
}

/// Carriers come and go while clients ask: none of them goes without an answer, and nothing is left behind.
fn flaps_leave_nothing_behind(scene: &mut Scene) -> Result<()> {
    let flaps = std::env::var("MH_SOAK_FLAPS").map_or(Ok(FLAPS), |text| text.parse()).context("MH_SOAK_FLAPS")?;
    for index in 0..2 {
        flap(scene, index)?;
    }
    let first = Held::of(scene)?;
    let mut memory = None;
    let threads = status_of(scene, "Threads")?;

    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let flapped = thread::scope(|scope| -> Result<Duration> {
        let clients = [&scene.lab.client1, &scene.lab.client3].map(|client| {
            let (stop, asked, scene) = (&stop, &asked, &*scene);
            scope.spawn(move || -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    for flow in udp_flows(client, scene.udp.address(), 5)? {
                        flow.ask()?;
                    }
                    // A connection may be cut in the middle; the next one must not be refused.
                    let opened = TcpFlow::connect(client, scene.tcp.address(), Duration::from_secs(5));
                    let _ = opened
                        .or_else(|_| TcpFlow::connect(client, scene.tcp.address(), Duration::from_secs(5)))?
                        .echo();
                    asked.fetch_add(6, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let mut outcome = Ok(());
        for number in 0..flaps {
            outcome = flap(scene, number % 2).with_context(|| format!("flap {number} of {flaps}"));
            if outcome.is_err() {
                break;
            }
            if number == flaps / 10 {
                memory = Some(status_of(scene, MEMORY)?);
            }
        }
        let elapsed = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let ended = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            outcome = outcome.and(ended.context("a client during the flaps"));
        }
        outcome.map(|()| elapsed)
    })?;
    let asked = asked.load(Ordering::Relaxed);
    println!("{flaps} flaps in {flapped:?}, {asked} flows meanwhile");
    ensure!(asked > 0, "no traffic");

    both_used(scene)?;
    scene.mhd.ctl(&["flows", "flush"])?;
    all_expired(scene, &["mh_flows4", "mh_new_flows4", "mh_by_inside4"], EXPIRY)?;
    if flaps > FLAPS {
        all_expired(scene, &["mh_by_outside4"], REST)?;
    }
    // What answered the last questions is closed a moment later.
    let mut left = Vec::new();
    let nothing = wait_until("nothing to be left of the flaps", Duration::from_secs(10), || {
        left = Held::of(scene)?.differences(&first);
        Ok(left.is_empty())
    });
    nothing.with_context(|| left.join("\n"))?;
    let grown = (status_of(scene, "Threads")?, threads);
    // Threads for blocking work come with demand and go by themselves.
    ensure!(grown.0 <= grown.1 + 4, "threads: {grown:?}");
    let (before, now) = (memory.context("at least one flap")?, status_of(scene, MEMORY)?);
    println!(
        "memory: {before} KiB after a tenth, {now} KiB at the end; threads: {} at first, {} at the end",
        grown.1, grown.0
    );
    ensure!(now < MEMORY_KIB && now < before + GROWTH_KIB, "memory grew from {before} to {now} KiB");
    both_used(scene)
}

/// Messages that the kernel could not deliver to mhd.
fn lost_messages(scene: &Scene) -> Result<u64> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(process(scene)?.join("fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.display().to_string();
        sockets.extend(target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
    }
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let table = scene.lab.router.run(&["cat", "/proc/net/netlink"])?;
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = rows.filter(|row| row.get(9).is_some_and(|inode| sockets.iter().any(|socket| socket == inode)));
    Ok(own.filter_map(|row| row.get(8)?.parse::<u64>().ok()).sum())
}

/// Makes and removes thousands of routes.
fn flood(scene: &Scene, number: usize) -> Result<()> {
    let file = scene.lab.lab().directory().join(format!("flood-{number}"));
    let lines = |verb: &str| -> String {
        (0..FLOOD)
            .map(|n| format!("route {verb} 10.{}.{}.{}/32 dev other0\n", 64 + n / 65_536, n / 256 % 256, n % 256))
            .collect()
    };
    fs::write(&file, lines("add") + &lines("del"))?;
    let file = file.display().to_string();
    scene.lab.router.run(&["ip", "-batch", &file]).map(drop)
}

/// More messages than anyone can read, and among them some that matter: mhd looks again, and is right in the end.
fn lost_messages_are_made_up_for(scene: &mut Scene) -> Result<()> {
    let router = scene.lab.router.clone();
    router.ip(&["link add other0 type bridge", "link set other0 up", "addr add 10.63.0.1/24 dev other0"])?;
    let config = scene.lab.config(&[1, 1]).replace("weight = 1\n", "weight = 1\ndamping = { losses = 0 }\n");
    let told = |line: &&str| !line.starts_with("gateway") && !line.starts_with("address");
    let config: String = config.lines().filter(told).flat_map(|line| [line, "\n"]).collect();
    scene.configure(&config)?;
    // While it reads: flaps in between are seen.
    thread::scope(|scope| -> Result<()> {
        let flooding = scope.spawn(|| flood(scene, 0));
        while !flooding.is_finished() {
            flap(scene, 0)?;
            flap(scene, 1)?;
        }
        flooding.join().map_err(|_| anyhow::anyhow!("the flooding thread panicked"))?
    })?;
    println!("{} messages lost while mhd read", lost_messages(scene)?);
    both_used(scene)?;

    // While it doesn't: whatever comes after the flood is lost for sure.
    for round in 1..=2 {
        let before = lost_messages(scene)?;
        scene.mhd.signal(Signal::SIGSTOP)?;
        flood(scene, round)?;
        let (isp1, isp2) = (&scene.lab.uplink(0)?.isp, &scene.lab.uplink(1)?.isp);
        isp2.ip(&["link set eth0 down"])?;
        isp1.ip(&["addr add 198.51.100.9/24 dev eth0"])?;
        router.ip(&[
            "addr del 198.51.100.2/24 dev wan1",
            "addr add 198.51.100.5/24 dev wan1",
            "route replace default via 198.51.100.9 dev wan1 metric 100",
        ])?;
        let lost = lost_messages(scene)? - before;
        assert!(lost > 0, "the kernel kept them all");
        scene.mhd.signal(Signal::SIGCONT)?;
        let begun = Instant::now();
        let mut last = (serde_json::Value::Null, serde_json::Value::Null);
        let right = wait_until("the right view", RECOVERY, || {
            last = (scene.mhd.uplink("isp1")?, scene.mhd.uplink("isp2")?);
            let address = serde_json::json!(["198.51.100.5"]);
            let isp1 = last.0["state"] == "up" && last.0["gateway"] == "198.51.100.9" && last.0["address"] == address;
            Ok(isp1 && last.1["state"] == "down")
        });
        right.with_context(|| format!("{lost} messages lost; last seen: {last:?}"))?;
        println!("{lost} messages lost, right again after {:?}", begun.elapsed());
        let seen = udp_flows(&scene.lab.client1, scene.udp.address(), 20)?;
        Split::of(seen.iter().map(|flow| flow.seen)).check(&[("198.51.100.5".parse()?, 1)])?;

        isp2.ip(&["link set eth0 up"])?;
        router.ip(&["addr flush dev wan1", "addr add 198.51.100.2/24 dev wan1"])?;
        scene.lab.restore_default_route(0)?;
        wait_until("isp2 and the first gateway", RECOVERY, || {
            let (one, two) = (scene.mhd.uplink("isp1")?, scene.mhd.uplink("isp2")?);
            Ok(one["gateway"] == "198.51.100.1" && one["state"] == "up" && two["state"] == "up")
        })?;
        isp1.ip(&["addr del 198.51.100.9/24 dev eth0"])?;
        both_used(scene)?;
    }
    Ok(())
}

#[test]
fn flaps_leave_nothing_behind_tc() -> Result<()> {
    with_flapping(Mode::Tc, flaps_leave_nothing_behind)
}

#[test]
fn lost_messages_are_made_up_for_tc() -> Result<()> {
    with_flapping(Mode::Tc, lost_messages_are_made_up_for)
}

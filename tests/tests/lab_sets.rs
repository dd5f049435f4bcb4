//! Sets of 120,000 prefixes: how long they take, and that a reload swaps them in one step while new flows are begun without end.
//!
//! ```text
//!                                             ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!  client1 .11, client2 .12 ── switch ── lan0 │            │                             │
//!                        192.168.1.0/24    .1 │ router: mh │ wan2 203.0.113.2 ─── isp2 ──┼── server 100.64.0.0/10
//!  client3 .13 ───────────────────────── lan1 │            │                             │
//!                        192.168.2.0/24    .1 └────────────┘ wan3 198.18.3.2 ──── isp3 ──┘
//! ```
//!
//! `set:odd` goes to isp2, `set:even` to isp3, and what is in neither to isp1. Each reload swaps the contents of the two files, so every
//! watched prefix goes from one of isp2 and isp3 to the other, all with one step: never by isp1, never back, no two prefixes apart.
//! What makes these tests fail: prefixes that are written in place, a generation in force before it is whole, a file that is read in part.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use mh_tests::lab::traffic::{UdpFlow, UdpServer};
use mh_tests::lab::{Host, Mode, Options, Scene, TwoIsps, run_configured, wait_until};

/// Prefixes of each file that nobody asks for.
const FILLERS: u32 = 120_000;
/// Prefixes that flows go to: 100.64.0.0/24, 100.64.1.0/24 and so on. The even ones are together in one file, the odd ones in the other.
const WATCHED: u32 = 64;
/// Where the server listens, on all addresses.
const PORT: u16 = 7100;
/// How many times the files' contents are swapped.
const RELOADS: u64 = 4;
/// How long a flow's answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a change of 240,000 prefixes may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where a file is: beside mhd's config.
fn file(lab: &TwoIsps, name: &str) -> PathBuf {
    lab.lab().directory().join(format!("{name}.txt"))
}

/// The watched prefixes with this parity, among many others.
fn prefixes(parity: u32) -> String {
    let mut text = String::from("# one prefix a line\n");
    let watched = (0..WATCHED).filter(|number| number % 2 == parity);
    let mut watched = watched.map(|number| format!("100.64.{number}.0/24"));
    for filler in 0..FILLERS {
        // Of all lengths, and the two files' side by side.
        let length = 32 - filler % 5;
        let address = Ipv4Addr::from(0x6480_0000 + (filler * 2 + parity) * 16 & u32::MAX << (32 - length));
        let _ = writeln!(text, "{address}/{length}");
        if filler % (FILLERS / WATCHED) == 0
            && let Some(prefix) = watched.next()
        {
            let _ = writeln!(text, "{prefix} # watched");
        }
    }
    text
}

fn write(lab: &TwoIsps, odd: &str, even: &str) -> Result<()> {
    for (name, text) in [("odd", odd), ("even", even)] {
        // In one step, as whoever cares about readers does.
        let (path, new) = (file(lab, name), file(lab, "new"));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn config(lab: &TwoIsps) -> String {
    // Both files' prefixes, in the one in force and the next.
    lab.config(&[1, 0, 0]).replace("bindings = 16384", "bindings = 65536")
        + r#"
[limits]
new_flows_per_source = 1000000
[set.odd]
file = "odd.txt"
[set.even]
file = "even.txt"
prefixes = ["100.127.0.0/16"]
[[rule]]
name = "odd"
to = ["set:odd"]
use = "uplink:isp2"
[[rule]]
name = "even"
to = ["set:even"]
use = "uplink:isp3"
"#
}

/// Runs a test with the files written, and a server on all addresses of 100.64.0.0/10.
fn on_sets(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let options = Options { uplinks: 3, ..Options::new(Mode::Tc) };
    let text = |lab: &TwoIsps| {
        write(lab, &prefixes(1), &prefixes(0)).expect("set files");
        config(lab)
    };
    run_configured(&options, text, |scene| {
        scene.lab.server.ip(&["route add local 100.64.0.0/10 dev lo"])?;
        let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let _server = UdpServer::start_with_packet_info(&scene.lab.server, at)?;
        test(scene)
    })
}

/// The uplink that a new flow to this address goes by.
fn uplink_to(scene: &Scene, to: Ipv4Addr) -> Result<String> {
    let flow = UdpFlow::open(&scene.lab.client1, SocketAddrV4::new(to, PORT))?;
    Ok(scene.lab.uplink_of(*flow.seen.ip()).with_context(|| format!("seen as {}", flow.seen))?.to_owned())
}

/// Kilobytes of mhd's memory: now, and at the most.
fn memory(scene: &Scene) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{}/status", scene.mhd.pid()?))?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        line.trim().trim_end_matches(" kB").trim().parse().with_context(|| format!("{name}{line}"))
    };
    Ok((of("VmRSS:")?, of("VmHWM:")?))
}

#[test]
fn large_sets_decide_and_bad_files_change_nothing() -> Result<()> {
    on_sets(|scene| {
        let (now, most) = memory(scene)?;
        println!(
            "{} prefixes: ready after {:?}, {now} KiB in use, {most} KiB at the most",
            2 * FILLERS + WATCHED,
            scene.mhd.ready_after()
        );
        let answers = |what: &str, even: &str, odd: &str| -> Result<()> {
            scene.mhd.ctl(&["flows", "flush"])?;
            for number in [0, 1, 2, 31, 62, 63_u8] {
                let wanted = if number % 2 == 0 { even } else { odd };
                let uplink = uplink_to(scene, Ipv4Addr::new(100, 64, number, 200))?;
                assert_eq!(uplink, wanted, "100.64.{number}.200, {what}");
            }
            assert_eq!(uplink_to(scene, Ipv4Addr::new(100, 64, 64, 1))?, "isp1", "in no set, {what}");
            assert_eq!(uplink_to(scene, Ipv4Addr::new(100, 127, 3, 4))?, "isp3", "in the config itself, {what}");
            Ok(())
        };
        answers("at first", "isp3", "isp2")?;

        let begun = Instant::now();
        scene.mhd.ctl(&["reload"])?;
        println!("a reload with the same files: {:?}", begun.elapsed());
        let swapped = (prefixes(0), prefixes(1));
        write(&scene.lab, &swapped.0, &swapped.1)?;
        let begun = Instant::now();
        scene.mhd.ctl(&["reload"])?;
        println!("a reload with other files: {:?}, memory {:?} KiB", begun.elapsed(), memory(scene)?);
        answers("swapped", "isp2", "isp3")?;

        for (what, odd, named) in [
            ("a line that is no prefix", format!("{}\n192.0.2.0/33\n", swapped.0), "odd.txt:"),
            ("IPv6", "2001:db8::/32\n".to_owned(), "odd.txt:1"),
            ("host bits", "192.0.2.1/24\n".to_owned(), "odd.txt:1"),
        ] {
            write(&scene.lab, &odd, &prefixes(0))?;
            let output = scene.mhd.ctl_output(&["reload"])?;
            println!("{what}: {}", output.stderr.trim());
            assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
            assert!(output.stderr.contains(named), "{what}: {output:?}");
            answers(what, "isp2", "isp3")?;
        }
        fs::remove_file(file(&scene.lab, "odd"))?;
        let output = scene.mhd.ctl_output(&["reload"])?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        answers("without the file", "isp2", "isp3")?;

        // What is mended is in force.
        write(&scene.lab, &prefixes(1), &prefixes(0))?;
        scene.mhd.ctl(&["reload"])?;
        answers("mended", "isp3", "isp2")
    })
}

/// What one client saw: for each flow, whether its uplink is the one that the files at first say; in order.
fn hammer(scene: &Scene, host: &Host, told: &AtomicBool, rounds: &AtomicU64) -> Result<Vec<(u32, bool)>> {
    let [_, isp2, isp3] = [0, 1, 2].map(|index| scene.lab.uplinks[index].address);
    host.enter(|| {
        let mut answers = Vec::new();
        let mut buffer = [0; 256];
        // Each flow has a remote address of its own; with the 256 of each prefix used up, another port of its own.
        'ports: loop {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(ANSWER))?;
            for last in 0..=255 {
                for number in 0..WATCHED {
                    if told.load(Ordering::Relaxed) {
                        break 'ports;
                    }
                    let to = SocketAddrV4::new(Ipv4Addr::new(100, 64, u8::try_from(number)?, last), PORT);
                    socket.send_to(b"new", to)?;
                    let (length, from) = socket.recv_from(&mut buffer).with_context(|| format!("answer from {to}"))?;
                    ensure!(from == to.into(), "{from} answered for {to}");
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    let seen = text.split(' ').next().and_then(|seen| seen.parse::<SocketAddrV4>().ok());
                    let seen = *seen.with_context(|| format!("the server said {text:?}"))?.ip();
                    ensure!(seen == isp2 || seen == isp3, "100.64.{number}.0/24 was in neither set: seen as {seen}");
                    answers.push((number, (seen == isp3) == (number % 2 == 0)));
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(answers)
    })?
}

#[test]
fn a_reload_is_one_step() -> Result<()> {
    on_sets(|scene| {
        let (told, rounds) = (AtomicBool::new(false), [0; 3].map(AtomicU64::new));
        let hosts = [&scene.lab.client1, &scene.lab.client2, &scene.lab.client3];
        let ((one, other), mut swapped) = ((prefixes(1), prefixes(0)), false);
        let mut times = Vec::new();
        let seen = thread::scope(|scope| -> Result<Vec<Vec<(u32, bool)>>> {
            let scene = &*scene;
            let told = &told;
            let hammers: Vec<_> = hosts
                .into_iter()
                .zip(&rounds)
                .map(|(host, rounds)| scope.spawn(move || hammer(scene, host, told, rounds)))
                .collect();
            let outcome = (|| {
                for _ in 0..RELOADS {
                    // All have looked at all prefixes since the last one.
                    let before = rounds.each_ref().map(|rounds| rounds.load(Ordering::Relaxed));
                    wait_until("new flows to all prefixes", DEADLINE, || {
                        ensure!(hammers.iter().all(|hammer| !hammer.is_finished()), "new flows have ended");
                        Ok(rounds.iter().zip(before).all(|(now, before)| now.load(Ordering::Relaxed) > before + 1))
                    })?;
                    swapped = !swapped;
                    let (odd, even) = if swapped { (&other, &one) } else { (&one, &other) };
                    write(&scene.lab, odd, even)?;
                    let begun = Instant::now();
                    scene.mhd.ctl(&["reload"])?;
                    times.push(begun.elapsed());
                }
                let before = rounds.each_ref().map(|rounds| rounds.load(Ordering::Relaxed));
                wait_until("new flows to all prefixes", DEADLINE, || {
                    Ok(rounds.iter().zip(before).all(|(now, before)| now.load(Ordering::Relaxed) > before + 1))
                })
            })();
            told.store(true, Ordering::Relaxed);
            let seen = hammers.into_iter().map(|hammer| hammer.join().map_err(|_| anyhow!("panicked"))?);
            let seen = seen.collect::<Result<Vec<_>>>();
            // What a client saw says more than that it stopped.
            let seen = seen?;
            outcome.map(|_| seen)
        })?;
        for (host, answers) in hosts.iter().zip(&seen) {
            // One client begins one flow after the other: with each reload all that it sees turns round, once.
            let turns: Vec<usize> = (1..answers.len()).filter(|at| answers[*at].1 != answers[at - 1].1).collect();
            println!("{}: {} flows, turns at {turns:?}", host.name(), answers.len());
            assert_eq!(turns.len() as u64, RELOADS, "{}: turns at {turns:?}", host.name());
            assert!(answers[0].1, "{}: the first flow by the wrong set", host.name());
        }
        println!("reloads took {times:?}; memory {:?} KiB", memory(scene)?);
        assert_eq!(scene.count_of("no_uplink")?, 0);
        Ok(())
    })
}

//! What mhd's sweep takes while it runs, and what a request and its answer take meanwhile.
//!
//! mhd names the thread of its sweep; it is looked for a hundred times a second, and how much processor time it has got is what the kernel
//! says of that very thread. Requests go back and forth all the time, and are told apart by whether a sweep ran when they were sent.
//!
//! Who asks and who answers would be other machines, on which no sweep runs: they come before other programs on the cores that they share
//! with the router here. What the sweep costs them is what it costs packets.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::machine;
use crate::site::{SERVER, Site};

/// The port of the server that answers.
const PORT: u16 = 9;
/// How often it is looked for a sweep.
const LOOK: Duration = Duration::from_millis(10);
/// How much longer than asked for it is waited for a sweep.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a request may take.
const LONGEST: Duration = Duration::from_secs(2);
/// The kernel's unit of processor time in `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

/// How long no sweep must have run to tell what requests take then.
const CALM: Duration = Duration::from_secs(2);

/// A sweep.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// It was seen from its beginning to its end.
    pub whole: bool,
    /// When.
    pub from: Instant,
    /// Until when.
    pub to: Instant,
    /// The processor time that it got.
    pub cpu: Duration,
}

/// What was seen in some time.
#[derive(Debug)]
pub struct Watched {
    /// The sweeps.
    pub sweeps: Vec<Seen>,
    /// The processor time of mhd as a whole in each second.
    pub mhd_share: f64,
    /// When each request was sent, and how long its answer took in microseconds.
    pub requests: Vec<(Instant, f64)>,
}

impl Watched {
    /// What requests took, in microseconds and sorted: those that were sent while a sweep ran, or those that were not.
    pub fn latencies(&self, swept: bool) -> Vec<f64> {
        let during = |at: &Instant| self.sweeps.iter().any(|sweep| (sweep.from..=sweep.to).contains(at));
        let mut chosen: Vec<f64> =
            self.requests.iter().filter(|(at, _)| during(at) == swept).map(|(_, took)| *took).collect();
        chosen.sort_by(f64::total_cmp);
        chosen
    }
}

/// Watches mhd for so long, and until a sweep was seen from its beginning to its end and none for some time, with requests going through the router.
pub fn watch(site: &Site, pid: u32, duration: Duration) -> Result<Watched> {
    let _turn = machine::Turn::wait(machine::Shared::Core)?;
    let end = Instant::now() + duration;
    let (done, complete) = (AtomicBool::new(false), AtomicBool::new(false));
    let before = cpu_seconds(pid)?;
    let begun = Instant::now();
    let (sweeps, requests) = thread::scope(|scope| {
        let looking = scope.spawn(|| look(pid, &done, &complete));
        let requests =
            ask(site, || Instant::now() < end || !complete.load(Ordering::Relaxed) && Instant::now() < end + PATIENCE);
        done.store(true, Ordering::Relaxed);
        let sweeps = looking.join().map_err(|_| anyhow::anyhow!("who looks for sweeps panicked"));
        anyhow::Ok((sweeps??, requests?))
    })?;
    let mhd_share = (cpu_seconds(pid)? - before) / begun.elapsed().as_secs_f64();
    Ok(Watched { sweeps, mhd_share, requests })
}

/// Looks for sweeps until told otherwise; tells when it has seen enough.
fn look(pid: u32, done: &AtomicBool, complete: &AtomicBool) -> Result<Vec<Seen>> {
    let mut threads: BTreeMap<String, Seen> = BTreeMap::new();
    let mut first: Option<Vec<String>> = None;
    let mut running = Vec::new();
    let (mut calm, mut last) = (Duration::ZERO, Instant::now());
    while !done.load(Ordering::Relaxed) {
        running.clear();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).context("mhd's threads")? {
            let path = entry?.path();
            // A thread may end at any time.
            let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
            if name.trim() != "sweep" {
                continue;
            }
            let Ok(schedule) = fs::read_to_string(path.join("schedstat")) else { continue };
            let ns = schedule.split_whitespace().next().and_then(|ns| ns.parse().ok());
            let cpu = Duration::from_nanos(ns.context("schedstat without numbers")?);
            let thread = path.display().to_string();
            let now = Instant::now();
            let seen = threads.entry(thread.clone()).or_insert(Seen { whole: false, from: now, to: now, cpu });
            (seen.to, seen.cpu) = (now, cpu);
            running.push(thread);
        }
        let first = first.get_or_insert_with(|| running.clone());
        for (thread, seen) in &mut threads {
            seen.whole = !running.contains(thread) && !first.contains(thread);
        }
        let now = Instant::now();
        if running.is_empty() {
            calm += now - last;
        }
        last = now;
        complete.store(calm >= CALM && threads.values().any(|seen| seen.whole), Ordering::Relaxed);
        // At this rate, and not as a way to wait for something.
        thread::sleep(LOOK);
    }
    Ok(threads.into_values().collect())
}

/// Sends a request whenever the one before was answered, for as long as told.
fn ask(site: &Site, go_on: impl Fn() -> bool + Sync) -> Result<Vec<(Instant, f64)>> {
    let server = site.server.enter(|| UdpSocket::bind(SocketAddrV4::new(SERVER, PORT)))??;
    server.set_read_timeout(Some(LONGEST))?;
    let client = site.client.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    client.connect(SocketAddrV4::new(SERVER, PORT))?;
    client.set_read_timeout(Some(LONGEST))?;
    let core = machine::core()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let answering = scope.spawn(|| -> Result<()> {
            machine::pin(0)?;
            machine::come_first()?;
            let mut buffer = [0; 64];
            while !done.load(Ordering::Relaxed) {
                match server.recv_from(&mut buffer) {
                    Ok((length, from)) => server.send_to(&buffer[..length], from).map(drop)?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("answer"),
                }
            }
            Ok(())
        });
        let asking = scope.spawn(|| -> Result<Vec<(Instant, f64)>> {
            machine::pin(core)?;
            machine::come_first()?;
            let mut requests = Vec::new();
            let mut buffer = [0; 64];
            while go_on() {
                let sent = Instant::now();
                client.send(&[0; 32]).context("ask")?;
                let length = client.recv(&mut buffer).context("a request was not answered")?;
                ensure!(length == 32, "an answer of {length} bytes");
                requests.push((sent, sent.elapsed().as_secs_f64() * 1e6));
            }
            Ok(requests)
        });
        let requests = asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        done.store(true, Ordering::Relaxed);
        answering.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        requests
    })
}

/// The processor time that a process has got, in seconds, its threads that have ended included.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("mhd's processor time")?;
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| -> Result<f64> { Ok(fields.get(field).context("a short line")?.parse()?) };
    // The line's fields 14 and 15, in user mode and in the kernel; the first three are before the bracket or in it.
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

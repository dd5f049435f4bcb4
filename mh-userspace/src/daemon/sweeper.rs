//! When the sweep runs, and how fast.
//!
//! A sweep has a thread of its own, which works in short slices and rests between them, so that it takes an eighth of a core at the most
//! for as long as it takes, and packets and other programs never wait for it long. A sweep over a million flows takes some seconds; what
//! has expired has been over for the datapath before. Only where sources stick to uplinks for seconds, it hurries when its time is up:
//! they are kept there by sweeps alone.
//!
//! Invariants: one sweep at a time. None outlives its [`Sweeper`], whose drop stops it and waits for the slice at hand.
//!
//! Failure behaviour: a sweep that fails is logged; the next one is due as if it had not.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mh_common::{abi::Timeouts, time::Tick};

use crate::datapath::{flows, sweep, tables::Tables};

/// How long a sweep works without a rest.
const SLICE: Duration = Duration::from_millis(1);
/// How many times as long as the work the rest is.
const REST: u32 = 7;
/// The longest rest: a slice may have taken long only for it was not given the processor.
const LONGEST_REST: Duration = Duration::from_millis(50);
/// How much less than others a sweep is worth to the scheduler.
const NICE: libc::c_int = 10;

/// Runs sweeps, one at a time.
pub struct Sweeper {
    dir: PathBuf,
    running: Option<Running>,
    /// When the last one began.
    began: Option<Instant>,
}

struct Running {
    thread: JoinHandle<()>,
    stop: Arc<Stop>,
}

/// Tells a sweep to stop, also while it rests.
#[derive(Default)]
struct Stop {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for so long, or until it is told. Returns whether it is.
    fn wait(&self, rest: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, rest, |told| !*told);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A sweep's pace.
struct Pace {
    stop: Arc<Stop>,
    /// When it came back from its last rest.
    resumed: Instant,
    /// From then on it does not rest any more.
    hurry_at: Option<Instant>,
}

impl Pace {
    /// Rests if it is time to, and tells what time it is; `None`: the sweep is to stop.
    fn step(&mut self) -> Option<Tick> {
        let worked = self.resumed.elapsed();
        let hurries = self.hurry_at.is_some_and(|at| Instant::now() >= at);
        let rests = worked >= SLICE && !hurries;
        if self.stop.wait(if rests { (worked * REST).min(LONGEST_REST) } else { Duration::ZERO }) {
            return None;
        }
        if rests {
            self.resumed = Instant::now();
        }
        Some(flows::now())
    }
}

impl Sweeper {
    /// For the maps in this directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), running: None, began: None }
    }

    /// When the next sweep is due.
    pub fn due(&self, interval: Duration) -> Instant {
        self.began.map_or_else(Instant::now, |began| began + interval)
    }

    /// Begins a sweep, unless the one before is still running. `hurry_after`: after this time it rests no more.
    pub fn begin(&mut self, timeouts: Timeouts, hurry_after: Option<Duration>) {
        let now = Instant::now();
        self.began = Some(now);
        if self.running.as_ref().is_some_and(|running| !running.thread.is_finished()) {
            return;
        }
        let (dir, stop) = (self.dir.clone(), Arc::new(Stop::default()));
        let pace = Pace { stop: stop.clone(), resumed: now, hurry_at: hurry_after.map(|time| now + time) };
        match thread::Builder::new().name("sweep".into()).spawn(move || run(&dir, &timeouts, pace)) {
            Ok(thread) => self.running = Some(Running { thread, stop }),
            Err(error) => tracing::error!("cannot expire idle flows: no thread: {error}"),
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(Running { thread, stop }) = self.running.take() {
            stop.tell();
            // Its panic, if that was its end, is on stderr already.
            let _ = thread.join();
        }
    }
}

fn run(dir: &Path, timeouts: &Timeouts, mut pace: Pace) {
    // SAFETY: a plain system call; 0 is the calling thread. If it is refused, the sweep is worth as much as others.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    let swept =
        Tables::open(dir).and_then(|mut tables| sweep::sweep_by_steps(&mut tables, timeouts, &mut || pace.step()));
    match swept {
        Ok(None) => {}
        Ok(Some(swept)) if swept == sweep::Swept::default() => {}
        Ok(Some(swept)) => tracing::debug!("expired {} flows and {} bindings", swept.flows, swept.bindings),
        Err(error) => tracing::error!("cannot expire idle flows: {error}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may")]

    use super::*;

    fn pace(hurry_at: Option<Instant>) -> Pace {
        Pace { stop: Arc::default(), resumed: Instant::now(), hurry_at }
    }

    #[test]
    fn work_is_followed_by_rest() {
        let mut pace = pace(None);
        pace.resumed = Instant::now().checked_sub(SLICE * 2).unwrap();
        let begun = Instant::now();
        assert!(pace.step().is_some());
        assert!(begun.elapsed() >= SLICE * 2 * REST);
        assert!(pace.resumed >= begun);
    }

    #[test]
    fn whoever_hurries_does_not_rest() {
        let mut pace = pace(Some(Instant::now()));
        let resumed = Instant::now().checked_sub(SLICE * 2).unwrap();
        pace.resumed = resumed;
        assert!(pace.step().is_some());
        assert_eq!(pace.resumed, resumed, "there was no rest");
    }

    #[test]
    fn a_rest_ends_when_it_is_told_to_stop() {
        let stop = Arc::new(Stop::default());
        let waits = stop.clone();
        let resting = thread::spawn(move || waits.wait(Duration::from_secs(3600)));
        stop.tell();
        assert!(resting.join().unwrap());
        assert!(Pace { stop, ..pace(None) }.step().is_none());
    }
}

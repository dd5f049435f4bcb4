//! When the sweep runs, and how fast.
//!
//! A sweep has a thread of its own, which works in short slices and rests between them, so that it takes an eighth of a core at the most
//! for as long as it takes, and packets and other programs never wait for it long. A sweep over a million flows takes some seconds; what
//! has expired has been over for the datapath before. Only where sources stick to uplinks for seconds, it hurries when its time is up:
//! they are kept there by sweeps alone.
//!
//! Invariants: one sweep at a time. None outlives its [`Sweeper`].
//!
//! Failure behaviour: a sweep that fails is logged; the next one is due as if it had not.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use mh_common::{abi::Timeouts, time::Tick};
use nix::time::{ClockId, clock_gettime};

use super::worker::{Stop, Worker};
use crate::datapath::{flows, sweep, tables::Tables};

/// How much processor time a sweep takes without a rest.
const SLICE: Duration = Duration::from_millis(1);
/// How many times as long as the work the rest is.
const REST: u32 = 7;
/// How much less than others a sweep is worth to the scheduler.
const NICE: libc::c_int = 10;

/// Runs sweeps, one at a time.
pub struct Sweeper {
    dir: PathBuf,
    running: Option<Worker>,
    /// When the last one began.
    began: Option<Instant>,
}

/// A sweep's pace. It belongs to the sweep's thread.
struct Pace {
    stop: Arc<Stop>,
    /// When it came back from its last rest, and what processor time its thread had got then.
    resumed: (Instant, Duration),
    /// From then on it does not rest any more.
    hurry_at: Option<Instant>,
}

impl Pace {
    /// Begins now, on this thread.
    fn new(stop: Arc<Stop>, hurry_after: Option<Duration>) -> Self {
        let now = Instant::now();
        Self { stop, resumed: (now, processor_time()), hurry_at: hurry_after.map(|time| now + time) }
    }

    /// Rests if it is time to, and tells what time it is; `None`: the sweep is to stop.
    fn step(&mut self) -> Option<Tick> {
        let rest = self.rest();
        if self.stop.wait(rest) {
            return None;
        }
        if !rest.is_zero() {
            self.resumed = (Instant::now(), processor_time());
        }
        Some(flows::now())
    }

    /// How long it is to rest now. Only time that it was given the processor for counts as work: where others want it, a sweep takes longer
    /// as it is.
    fn rest(&self) -> Duration {
        let (at, before) = self.resumed;
        // The first of these costs less than the last.
        if at.elapsed() < SLICE || self.hurry_at.is_some_and(|at| Instant::now() >= at) {
            return Duration::ZERO;
        }
        let worked = processor_time().saturating_sub(before);
        if worked >= SLICE { worked * REST } else { Duration::ZERO }
    }
}

/// The processor time that this thread has got; zero if the kernel does not tell, and the sweep then never rests.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Into::into)
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
        self.began = Some(Instant::now());
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let dir = self.dir.clone();
        match Worker::begin("sweep", move |stop| run(&dir, &timeouts, Pace::new(stop, hurry_after))) {
            Ok(running) => self.running = Some(running),
            Err(error) => tracing::error!("cannot expire idle flows: no thread: {error}"),
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

    use std::sync::mpsc::channel;

    use super::*;

    /// Takes processor time until it has been a slice.
    fn work() {
        let before = processor_time();
        while processor_time() - before <= SLICE {}
    }

    #[test]
    fn work_is_followed_by_rest() {
        let mut pace = Pace::new(Arc::default(), None);
        assert_eq!(pace.rest(), Duration::ZERO);
        work();
        assert!(pace.rest() >= SLICE * REST);
        let begun = Instant::now();
        assert!(pace.step().is_some());
        assert!(begun.elapsed() >= SLICE * REST);
        assert_eq!(pace.rest(), Duration::ZERO);
    }

    #[test]
    fn time_without_the_processor_is_no_work() {
        let mut pace = Pace::new(Arc::default(), None);
        pace.resumed.0 = Instant::now().checked_sub(SLICE * 100).unwrap();
        assert_eq!(pace.rest(), Duration::ZERO);
    }

    #[test]
    fn whoever_hurries_does_not_rest() {
        let mut pace = Pace::new(Arc::default(), Some(Duration::ZERO));
        work();
        assert_eq!(pace.rest(), Duration::ZERO);
        assert!(pace.step().is_some());
    }

    #[test]
    fn it_stops_where_it_is_told_to() {
        let (stepped, steps) = channel();
        let worker = Worker::begin("test", move |stop| {
            let mut pace = Pace::new(stop, None);
            stepped.send(()).unwrap();
            while pace.step().is_some() {}
            stepped.send(()).unwrap();
        });
        steps.recv().unwrap();
        drop(worker.unwrap());
        steps.try_recv().unwrap();
    }
}

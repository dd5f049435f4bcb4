//! From the outcomes of rounds to the health of an uplink.

use std::fmt::Write as _;
use std::time::Duration;

use super::outcome::{Failure, Outcome};
use super::window::{Latch, Window};
use crate::config::{DEFAULT_WINDOW, Limit, Probe, Share};

/// How many targets a reason or a warning names.
const MAX_NAMED: usize = 3;
/// The characters of a target that a reason or a warning shows.
const MAX_URL: usize = 80;
/// The share that a new answer has in the smoothed round-trip time is one of this many (RFC 6298 section 2.3).
const SMOOTHING: u32 = 8;

const PENDING: &str = "probes pending";
const ANSWERED: &str = "probes answered";

/// What is known of an uplink before its first round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing: it is up until probes say otherwise.
    Up,
    /// It was down when it was last looked at: it is down until probes say otherwise.
    Down,
}

/// What the probes of an uplink say.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// Whether the uplink can be used.
    pub up: bool,
    /// Why it is up or down: it stays the same as long as that does, but for the one that probes are pending.
    pub reason: String,
    /// What is near its limit while the uplink is up. It names levels, not values, so that it stays the same for a while.
    pub warning: Option<String>,
    /// The smoothed round-trip time of the target that decides: the slowest of the quickest `quorum`. `None` if fewer answered of late.
    pub rtt: Option<Duration>,
    /// The loss of the target that decides, 0 to 1, over the window of `loss` or the last 40 rounds. `None` before the first.
    pub loss: Option<f64>,
}

/// The health of an uplink.
#[derive(Debug)]
pub struct Monitor {
    quorum: usize,
    rounds_down: u32,
    rounds_up: u32,
    loss: Option<Limit<Share>>,
    latency: Option<Limit<Duration>>,
    targets: Vec<Target>,
    up: bool,
    reason: String,
    failed_in_a_row: u32,
    good_in_a_row: u32,
}

impl Monitor {
    /// The health of an uplink that is probed by `probe`.
    #[must_use]
    pub fn new(probe: &Probe, start: Start) -> Self {
        Self {
            quorum: probe.quorum,
            rounds_down: probe.down,
            rounds_up: probe.up,
            loss: probe.loss,
            latency: probe.latency,
            targets: probe.targets.iter().map(|target| Target::new(target.to_string(), probe)).collect(),
            up: start == Start::Up,
            reason: PENDING.to_owned(),
            failed_in_a_row: 0,
            good_in_a_row: 0,
        }
    }

    /// Takes the outcomes of a round, one for each target in their order. A target without one did not answer.
    pub fn round(&mut self, outcomes: &[Outcome]) {
        const LOST: Outcome = Outcome::Failed(Failure::Timeout);
        let mut answered = 0;
        for (index, target) in self.targets.iter_mut().enumerate() {
            let outcome = outcomes.get(index).unwrap_or(&LOST);
            answered += usize::from(matches!(outcome, Outcome::Answered(_)));
            target.take(outcome, self.loss.as_ref(), self.latency.as_ref());
        }
        if answered >= self.quorum {
            self.good_in_a_row = self.good_in_a_row.saturating_add(1);
            self.failed_in_a_row = 0;
        } else {
            self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
            self.good_in_a_row = 0;
        }
        self.decide();
    }

    fn decide(&mut self) {
        let pending = self.reason == PENDING;
        let failed = self.failed_in_a_row >= self.rounds_down;
        let counting = self.targets.iter().filter(|target| !target.is_beyond()).count();
        let enough = counting >= self.quorum;
        if failed || !enough {
            if self.up || pending {
                self.up = false;
                self.reason = if failed { self.failures() } else { self.excesses() };
            }
        } else if self.good_in_a_row >= self.rounds_up {
            if !self.up || pending {
                self.up = true;
                self.reason = ANSWERED.to_owned();
            }
        } else if self.up && pending && self.good_in_a_row > 0 {
            self.reason = ANSWERED.to_owned();
        }
    }

    /// What the probes say now.
    #[must_use]
    pub fn health(&self) -> Health {
        let deciding = self.quorum.saturating_sub(1);
        let mut rtts: Vec<Duration> = self.targets.iter().filter_map(Target::current_rtt).collect();
        rtts.sort_unstable();
        let mut losses: Vec<f64> = self.targets.iter().filter_map(|target| target.loss.loss()).collect();
        losses.sort_unstable_by(f64::total_cmp);
        Health {
            up: self.up,
            reason: self.reason.clone(),
            warning: if self.up { self.warning() } else { None },
            rtt: rtts.get(deciding).copied(),
            loss: losses.get(deciding).copied(),
        }
    }

    /// The targets that failed in the rounds that took the uplink down, those that failed most first.
    fn failures(&self) -> String {
        let mut failing: Vec<&Target> = self.targets.iter().filter(|target| target.recent.lost() > 0).collect();
        failing.sort_by_key(|target| std::cmp::Reverse(target.recent.lost()));
        listed(failing.iter().map(|target| {
            let (lost, of) = (target.recent.lost(), self.rounds_down);
            let why = target.failure.as_ref().unwrap_or(&Failure::Timeout);
            format!("{} {lost}/{of} {why}", target.shown())
        }))
    }

    /// The targets that do not count, with the values that took them there.
    fn excesses(&self) -> String {
        listed(self.targets.iter().filter(|target| target.is_beyond()).map(|target| {
            let mut text = target.shown();
            if target.beyond_loss.is_set()
                && let Some(level) = self.loss.and_then(|limit| limit.down)
            {
                let loss = target.loss.loss().unwrap_or_default();
                let _ = write!(text, " loss {:.0}% (limit {level})", loss * 100.0);
            }
            if target.beyond_latency.is_set()
                && let Some(level) = self.latency.and_then(|limit| limit.down)
            {
                match target.latency.latency() {
                    Some(latency) => write!(text, " latency {} ms (limit {level:?})", latency.as_millis()),
                    None => write!(text, " latency above {level:?}"),
                }
                .unwrap_or_default();
            }
            text
        }))
    }

    /// The targets that are near or beyond a limit, and which one.
    fn warning(&self) -> Option<String> {
        let (loss, latency) = (self.loss, self.latency);
        let texts: Vec<String> = self
            .targets
            .iter()
            .filter_map(|target| {
                let level_of_loss = reached(target.beyond_loss, target.near_loss, loss);
                let level_of_latency = reached(target.beyond_latency, target.near_latency, latency);
                let loss = level_of_loss.map(|level| format!("loss above {level}"));
                let latency = level_of_latency.map(|level| format!("latency above {level:?}"));
                let both: Vec<String> = loss.into_iter().chain(latency).collect();
                (!both.is_empty()).then(|| format!("{} {}", target.shown(), both.join(" and ")))
            })
            .collect();
        (!texts.is_empty()).then(|| listed(texts.into_iter()))
    }
}

/// The level of `limit` that a target is held to have reached.
fn reached<T>(beyond: Latch, near: Latch, limit: Option<Limit<T>>) -> Option<T> {
    let limit = limit?;
    if beyond.is_set() {
        limit.down
    } else if near.is_set() {
        limit.warn
    } else {
        None
    }
}

/// `probe A, B, C and 2 more`.
fn listed(mut texts: impl Iterator<Item = String>) -> String {
    let named: Vec<String> = texts.by_ref().take(MAX_NAMED).collect();
    let more = texts.count();
    let mut text = format!("probe {}", named.join(", "));
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// What is known of a target.
#[derive(Debug)]
struct Target {
    url: String,
    /// As many rounds as it takes for the uplink to be down.
    recent: Window,
    loss: Window,
    latency: Window,
    /// At `down`, until `back`.
    beyond_loss: Latch,
    beyond_latency: Latch,
    /// At `warn`, until `clear`.
    near_loss: Latch,
    near_latency: Latch,
    /// Why it failed last.
    failure: Option<Failure>,
    /// Smoothed.
    rtt: Option<Duration>,
}

impl Target {
    fn new(url: String, probe: &Probe) -> Self {
        Self {
            url,
            recent: Window::new(probe.down),
            loss: Window::new(probe.loss.map_or(DEFAULT_WINDOW, |limit| limit.window)),
            latency: Window::new(probe.latency.map_or(DEFAULT_WINDOW, |limit| limit.window)),
            beyond_loss: Latch::default(),
            beyond_latency: Latch::default(),
            near_loss: Latch::default(),
            near_latency: Latch::default(),
            failure: None,
            rtt: None,
        }
    }

    fn take(&mut self, outcome: &Outcome, loss: Option<&Limit<Share>>, latency: Option<&Limit<Duration>>) {
        let answer = match outcome {
            Outcome::Answered(rtt) => {
                self.rtt = Some(self.rtt.map_or(*rtt, |old| old - old / SMOOTHING + *rtt / SMOOTHING));
                Some(*rtt)
            }
            Outcome::Failed(failure) => {
                self.failure = Some(failure.clone());
                None
            }
        };
        for window in [&mut self.recent, &mut self.loss, &mut self.latency] {
            window.push(answer);
        }
        if let Some(limit) = loss {
            let standing = self.loss.compare_loss(limit);
            self.beyond_loss.update(standing.down, standing.back);
            self.near_loss.update(standing.warn, standing.clear);
        }
        if let Some(limit) = latency {
            let standing = self.latency.compare_latency(limit);
            self.beyond_latency.update(standing.down, standing.back);
            self.near_latency.update(standing.warn, standing.clear);
        }
    }

    /// Is it beyond a limit, so that it does not count?
    fn is_beyond(&self) -> bool {
        self.beyond_loss.is_set() || self.beyond_latency.is_set()
    }

    /// Its smoothed round-trip time, if it answered in one of the recent rounds.
    fn current_rtt(&self) -> Option<Duration> {
        if self.recent.is_all_lost() { None } else { self.rtt }
    }

    fn shown(&self) -> String {
        match self.url.char_indices().nth(MAX_URL) {
            Some((end, _)) => format!("{}...", &self.url[..end]),
            None => self.url.clone(),
        }
    }
}

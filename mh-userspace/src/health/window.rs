//! The outcomes of a target's last rounds, with their sums kept up to date.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{Limit, Share};

/// The last rounds of a target, at most `size`.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    /// The times of answers, oldest first; `None`: the round was lost.
    rounds: VecDeque<Option<Duration>>,
    lost: usize,
    /// Of all answers.
    sum: Duration,
}

impl Window {
    pub(super) fn new(size: u32) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        Self { size, rounds: VecDeque::new(), lost: 0, sum: Duration::ZERO }
    }

    /// Adds a round; the oldest goes if there are too many.
    pub(super) fn push(&mut self, round: Option<Duration>) {
        if self.rounds.len() >= self.size {
            match self.rounds.pop_front() {
                Some(Some(rtt)) => self.sum = self.sum.saturating_sub(rtt),
                Some(None) => self.lost -= 1,
                None => {}
            }
        }
        match round {
            Some(rtt) => self.sum = self.sum.saturating_add(rtt),
            None => self.lost += 1,
        }
        self.rounds.push_back(round);
    }

    /// How many rounds were lost.
    pub(super) fn lost(&self) -> usize {
        self.lost
    }

    /// Was no round answered?
    pub(super) fn is_all_lost(&self) -> bool {
        self.lost == self.rounds.len()
    }

    /// The share of the rounds so far that were lost, 0 to 1.
    pub(super) fn loss(&self) -> Option<f64> {
        // At most 1000 each.
        (!self.rounds.is_empty()).then(|| self.lost as f64 / self.rounds.len() as f64)
    }

    /// Lost rounds in hundredths of a percent of a full window, where rounds to come count as answered, times the window's size.
    ///
    /// So a level is reached as soon as nothing can prevent it any more.
    fn scaled_loss(&self) -> u64 {
        self.lost as u64 * u64::from(Share::WHOLE)
    }

    /// The mean of the answers in a full window.
    pub(super) fn latency(&self) -> Option<Duration> {
        let answered = u32::try_from(self.rounds.len() - self.lost).ok()?;
        (self.rounds.len() == self.size && answered > 0).then(|| self.sum / answered)
    }

    /// How the loss stands to `limit`.
    pub(super) fn compare_loss(&self, limit: &Limit<Share>) -> Standing {
        let scaled = |share: Share| u64::from(share.basis_points()) * self.size as u64;
        Standing::of(Some(self.scaled_loss()), limit.warn.map(scaled), limit.down.map(scaled))
    }

    /// How the latency stands to `limit`.
    pub(super) fn compare_latency(&self, limit: &Limit<Duration>) -> Standing {
        // A minute is 6e10 ns, so that factors of 5 fit.
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 8);
        Standing::of(self.latency().map(ns), limit.warn.map(ns), limit.down.map(ns))
    }
}

/// How a measure stands to the levels of a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// It is at `down` or above.
    pub(super) down: bool,
    /// It is below `warn`, or four fifths of `down` where there is none.
    pub(super) back: bool,
    /// It is at `warn` or above.
    pub(super) warn: bool,
    /// It is below four fifths of `warn`.
    pub(super) clear: bool,
}

impl Standing {
    fn of(measure: Option<u64>, warn: Option<u64>, down: Option<u64>) -> Self {
        let Some(measure) = measure else { return Self::default() };
        let reaches = |level: Option<u64>| level.is_some_and(|level| measure >= level);
        let is_well_below = |level: Option<u64>| level.is_some_and(|level| measure * 5 < level * 4);
        Self {
            down: reaches(down),
            back: warn.map_or_else(|| is_well_below(down), |warn| measure < warn),
            warn: reaches(warn),
            clear: is_well_below(warn),
        }
    }
}

/// What is on once it is set, until it is cleared.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Latch(bool);

impl Latch {
    pub(super) fn update(&mut self, set: bool, clear: bool) {
        self.0 = set || (self.0 && !clear);
    }

    pub(super) fn is_set(self) -> bool {
        self.0
    }
}

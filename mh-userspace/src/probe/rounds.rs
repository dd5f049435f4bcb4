//! The rounds that are not reported yet. Sans-IO.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::MAX_OVERLAP;
use crate::health::{Failure, Outcome};

/// How many rounds are kept: those that may be open at a time, and as many again that wait to be taken.
const MAX_KEPT: usize = 2 * (MAX_OVERLAP as usize + 1);

/// Rounds in their order; an outcome is for a round by its number, and late ones find none.
#[derive(Debug)]
pub(super) struct Rounds {
    targets: usize,
    /// The number of the first of `kept`.
    first: u64,
    kept: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    deadline: Duration,
    outcomes: Vec<Option<Outcome>>,
}

impl Kept {
    fn is_decided(&self) -> bool {
        self.outcomes.iter().all(Option::is_some)
    }
}

impl Rounds {
    /// No rounds yet, of so many targets.
    pub(super) fn new(targets: usize) -> Self {
        Self { targets, first: 0, kept: VecDeque::new() }
    }

    /// Begins a round and gives its number. The oldest round goes if there are too many.
    pub(super) fn begin(&mut self, deadline: Duration) -> u64 {
        if self.kept.len() >= MAX_KEPT {
            self.kept.pop_front();
            self.first += 1;
        }
        self.kept.push_back(Kept { deadline, outcomes: vec![None; self.targets] });
        self.first + self.kept.len() as u64 - 1
    }

    /// What became of a target, unless that is known already.
    pub(super) fn set(&mut self, round: u64, target: usize, outcome: Outcome) {
        let place = round
            .checked_sub(self.first)
            .and_then(|index| self.kept.get_mut(usize::try_from(index).ok()?))
            .and_then(|kept| kept.outcomes.get_mut(target));
        if let Some(place @ None) = place {
            *place = Some(outcome);
        }
    }

    /// Targets that have not answered by their deadline will not any more.
    pub(super) fn expire(&mut self, now: Duration) {
        for kept in self.kept.iter_mut().filter(|kept| kept.deadline <= now) {
            for outcome in kept.outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
                *outcome = Some(Outcome::Failed(Failure::Timeout));
            }
        }
    }

    /// When the next round has to be decided.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.kept.iter().filter(|kept| !kept.is_decided()).map(|kept| kept.deadline).min()
    }

    /// Is the first round decided?
    pub(super) fn is_ready(&self) -> bool {
        self.kept.front().is_some_and(Kept::is_decided)
    }

    /// The outcomes of the first round, once it is decided.
    pub(super) fn take(&mut self) -> Option<Vec<Outcome>> {
        let kept = self.kept.pop_front_if(|kept| kept.is_decided())?;
        self.first += 1;
        Some(kept.outcomes.into_iter().flatten().collect())
    }

    /// Forgets all rounds; outcomes that are still to come are for none.
    pub(super) fn clear(&mut self) {
        self.first += self.kept.len() as u64;
        self.kept.clear();
    }
}

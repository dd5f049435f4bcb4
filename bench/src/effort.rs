//! How much to measure: what every part of the benchmark is told.
//!
//! A part measures all its contenders once per round, in turn, and keeps each sample. `--quick` is for a first look: all parts together in
//! two minutes.

use clap::Args;

/// Rounds of a full and of a quick run, if nothing else is asked for.
const ROUNDS: usize = 9;
const QUICK_ROUNDS: usize = 1;
/// So many rounds keep even the longest part within a working day.
const MAX_ROUNDS: u64 = 1000;

/// The options.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// How often every contender is measured; the median counts [default: 9, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_ROUNDS), value_name = "N")]
    rounds: Option<u64>,

    /// Measures for two minutes in all: fewer rounds, shorter samples, the ends of each scale.
    #[arg(long)]
    quick: bool,

    /// Measures only contenders with this in their name, and what they are compared with (more than once: any of them).
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

impl Flags {
    /// What they ask for.
    #[must_use]
    pub fn effort(&self) -> Effort {
        let usual = if self.quick { QUICK_ROUNDS } else { ROUNDS };
        let rounds = self.rounds.and_then(|rounds| usize::try_from(rounds).ok()).unwrap_or(usual);
        Effort { rounds, quick: self.quick, only: self.only.iter().map(|name| name.to_lowercase()).collect() }
    }
}

/// How much to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effort {
    /// How often every contender is measured; at least once.
    pub rounds: usize,
    /// Whether all parts together have two minutes: some 17 s each, set-up included.
    pub quick: bool,
    /// In lower case: parts of names of the contenders to measure; empty for all.
    pub only: Vec<String>,
}

impl Effort {
    /// Whether a contender is to be measured. The one that others are compared with always is: don't ask for it.
    #[must_use]
    pub fn wants(&self, contender: &str) -> bool {
        let contender = contender.to_lowercase();
        self.only.is_empty() || self.only.iter().any(|part| contender.contains(part.as_str()))
    }

    /// One of two, by whether the run is quick.
    #[must_use]
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether all contenders are measured in full, so that the results are worth keeping.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.quick && self.only.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_picked_by_parts_of_their_names_in_any_case() {
        let flags = Flags { rounds: None, quick: true, only: vec!["MH".to_owned(), "nft".to_owned()] };
        let effort = flags.effort();
        assert_eq!(effort.rounds, QUICK_ROUNDS);
        assert!(effort.wants("mh, XDP") && effort.wants("nft: jhash"));
        assert!(!effort.wants("kernel forwarding"));
        assert!(!effort.is_full());
        let all = Flags { rounds: Some(2), quick: false, only: Vec::new() }.effort();
        assert!(all.wants("anyone") && all.is_full());
        assert_eq!((all.rounds, all.pick(7, 1)), (2, 7));
    }
}

//! How much to measure: what every part of the benchmark is told.
//!
//! A part measures all its contenders once per round, in turn, and keeps each sample. `--quick` is for a first look: all parts together in
//! two minutes.

use clap::Args;

use crate::growth;

/// Rounds of a full and of a quick run, if nothing else is asked for.
const ROUNDS: usize = 9;
const QUICK_ROUNDS: usize = 1;
/// So many rounds keep even the longest part within a working day.
const MAX_ROUNDS: u64 = 1000;
/// As many as `growth` ends with.
const MAX_FLOWS: i64 = 1 << growth::MOST_BITS;

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

    /// Measures `forward` with so many flows only (more than once: with each of them).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_FLOWS), value_name = "N")]
    flows: Vec<u32>,
}

impl Flags {
    /// What they ask for.
    #[must_use]
    pub fn effort(&self) -> Effort {
        let usual = if self.quick { QUICK_ROUNDS } else { ROUNDS };
        let rounds = self.rounds.and_then(|rounds| usize::try_from(rounds).ok()).unwrap_or(usual);
        let only = self.only.iter().map(|name| name.to_lowercase()).collect();
        Effort { rounds, quick: self.quick, only, flows: self.flows.clone() }
    }
}

/// How much to measure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// How often every contender is measured; at least once.
    pub rounds: usize,
    /// Whether all parts together have two minutes: some 17 s each, set-up included.
    pub quick: bool,
    /// In lower case: parts of names of the contenders to measure; empty for all.
    pub only: Vec<String>,
    /// Numbers of flows to measure with; empty for the usual ones.
    pub flows: Vec<u32>,
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

    /// The numbers of flows to measure with, where these are usual.
    #[must_use]
    pub fn flows<'a>(&'a self, full: &'a [u32], quick: &'a [u32]) -> &'a [u32] {
        if self.flows.is_empty() { self.pick(full, quick) } else { &self.flows }
    }

    /// Whether all contenders are measured in full, so that the results are worth keeping.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.quick && self.only.is_empty() && self.flows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_picked_by_parts_of_their_names_in_any_case() {
        let flags = Flags { quick: true, only: vec!["MH".to_owned(), "nft".to_owned()], ..Flags::default() };
        let effort = flags.effort();
        assert_eq!(effort.rounds, QUICK_ROUNDS);
        assert!(effort.wants("mh, XDP") && effort.wants("nft: jhash"));
        assert!(!effort.wants("kernel forwarding"));
        assert!(!effort.is_full());
        let all = Flags { rounds: Some(2), ..Flags::default() }.effort();
        assert!(all.wants("anyone") && all.is_full());
        assert_eq!(all.flows(&[1, 2], &[1]), [1, 2]);
        let some = Flags { flows: vec![7], ..Flags::default() }.effort();
        assert_eq!(some.flows(&[1, 2], &[1]), [7]);
        assert!(!some.is_full());
        assert_eq!((all.rounds, all.pick(7, 1)), (2, 7));
    }
}

//! Rounds come out decided and in order, and late outcomes find none.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::rounds::Rounds;
use crate::health::{Failure, Outcome};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn answered(rtt: u64) -> Outcome {
    Outcome::Answered(ms(rtt))
}

const LOST: Outcome = Outcome::Failed(Failure::Timeout);

#[test]
fn a_round_waits_for_those_before_it() {
    let mut rounds = Rounds::new(2);
    let (first, second) = (rounds.begin(ms(400)), rounds.begin(ms(500)));
    rounds.set(second, 0, answered(1));
    rounds.set(second, 1, answered(2));
    assert!(!rounds.is_ready() && rounds.take().is_none());
    assert_eq!(rounds.deadline(), Some(ms(400)));
    rounds.set(first, 1, answered(3));
    rounds.expire(ms(399));
    assert!(!rounds.is_ready());
    rounds.expire(ms(400));
    assert_eq!(rounds.take(), Some(vec![LOST, answered(3)]));
    // Too late, and for a round that is gone.
    rounds.set(first, 0, answered(401));
    assert_eq!(rounds.take(), Some(vec![answered(1), answered(2)]));
    assert_eq!((rounds.take(), rounds.deadline()), (None, None));
}

#[test]
fn the_first_word_counts() {
    let mut rounds = Rounds::new(1);
    let round = rounds.begin(ms(1));
    rounds.set(round, 0, answered(1));
    rounds.set(round, 0, LOST);
    rounds.set(round, 1, LOST);
    assert_eq!(rounds.take(), Some(vec![answered(1)]));
}

#[test]
fn what_is_cleared_stays_away() {
    let mut rounds = Rounds::new(1);
    let old = rounds.begin(ms(10));
    rounds.clear();
    assert_eq!(rounds.deadline(), None);
    let new = rounds.begin(ms(20));
    rounds.set(old, 0, LOST);
    assert!(!rounds.is_ready());
    rounds.set(new, 0, answered(1));
    assert_eq!(rounds.take(), Some(vec![answered(1)]));
}

#[test]
fn if_nobody_takes_them_the_oldest_go() {
    let mut rounds = Rounds::new(1);
    for n in 0..1000 {
        let round = rounds.begin(ms(n));
        rounds.set(round, 0, answered(n));
    }
    let kept: Vec<_> = std::iter::from_fn(|| rounds.take()).collect();
    assert_eq!(kept.len(), 34);
    assert_eq!(kept.last(), Some(&vec![answered(999)]));
    assert!(kept.is_sorted_by_key(|outcomes| match outcomes[0] {
        Outcome::Answered(rtt) => rtt,
        Outcome::Failed(_) => panic!("{outcomes:?}"),
    }));
}

proptest! {
    /// Rounds of an interval of 100 ms whose answers take any time: each comes out once, in order, at its deadline at the latest.
    #[test]
    fn overlapping_rounds_come_out_in_order(
        timeout in 1_u64..=1600,
        delays in vec(vec(0_u64..2000, 3), 1..60),
    ) {
        let mut rounds = Rounds::new(3);
        let mut out = Vec::new();
        let mut numbers = Vec::new();
        for now in 0..(delays.len() as u64 * 100 + 2000) {
            if now % 100 == 0 && numbers.len() < delays.len() {
                numbers.push(rounds.begin(ms(now + timeout)));
            }
            for (index, number) in numbers.iter().enumerate() {
                for (target, delay) in delays[index].iter().enumerate() {
                    if index as u64 * 100 + delay == now {
                        rounds.set(*number, target, answered(*delay));
                    }
                }
            }
            rounds.expire(ms(now));
            prop_assert!(rounds.deadline().is_none_or(|deadline| deadline > ms(now)));
            while let Some(outcomes) = rounds.take() {
                out.push(outcomes);
            }
        }
        let expected: Vec<Vec<Outcome>> = delays
            .iter()
            .map(|round| round.iter().map(|delay| if *delay <= timeout { answered(*delay) } else { LOST }).collect())
            .collect();
        prop_assert_eq!(out, expected);
    }
}

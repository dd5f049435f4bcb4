//! The dead band.

use super::super::{Published, Situation, Spread, spread};
use super::{by_capacity, by_number, carrying, megabits, percent};

/// Two equal uplinks by capacity, the first of which carries this much of its 100 Mbit/s.
fn loaded(megabits_down: f64) -> Spread {
    let capacity = megabits(100, 100);
    spread(&by_capacity(&[&[0, 1]]), None, &[carrying(capacity, megabits_down, 0.0), carrying(capacity, 20.0, 0.0)])
}

/// An uplink at this fill, in percent, and one to spill over to.
fn spilling(fill: f64) -> Spread {
    let situations = [carrying(megabits(100, 100), fill, 0.0), carrying(megabits(100, 100), 0.0, 0.0)];
    spread(&by_number(&[&[(0, 1)], &[(1, 1)]]), percent(80), &situations)
}

#[test]
fn small_moves_are_held_back_until_they_add_up() {
    let mut published = Published::default();
    assert!(published.offer(loaded(20.0)), "the first");
    assert!(!published.offer(loaded(20.0)));
    assert!(!published.offer(loaded(23.0)), "one point");
    let shares = |spread: &Spread| spread.members.iter().map(|member| member.share).collect::<Vec<_>>();
    assert_eq!(shares(published.spread().unwrap()), shares(&loaded(20.0)));
    assert!(published.offer(loaded(27.0)), "more than two points");
    assert_eq!(published.spread(), Some(&loaded(27.0)));
}

#[test]
fn a_tier_begins_with_more_than_the_dead_band_and_ends_with_nothing() {
    let mut published = Published::default();
    assert!(published.offer(spilling(70.0)));
    let little = spilling(84.0);
    assert!(little.tiers[1].share > 0.0 && little.tiers[1].share < 0.02, "{little:?}");
    assert!(!published.offer(little.clone()));
    assert!(published.offer(spilling(95.0)));
    assert!(published.offer(little.clone()));
    assert!(!published.offer(spilling(83.0)), "still something");
    assert!(published.offer(spilling(80.0)));
    assert_eq!(published.spread().unwrap().tiers[1].share, 0.0);
}

#[test]
fn what_is_shown_is_not_held_back() {
    let alone =
        |megabits_down| spread(&by_capacity(&[&[0]]), percent(80), &[carrying(megabits(100, 100), megabits_down, 0.0)]);
    let mut published = Published::default();
    assert!(published.offer(alone(0.0)));
    assert!(!published.offer(alone(75.0)), "all the same, it gets all");
    assert_eq!(published.spread(), Some(&alone(75.0)));

    // A tier that is to get less than the dead band gets nothing, and its uplink has no weight.
    assert!(published.offer(spilling(70.0)));
    assert!(!published.offer(spilling(84.0)));
    let shown = published.spread().unwrap();
    assert_eq!(shown.tiers[0].fill, spilling(84.0).tiers[0].fill);
    assert_eq!(
        shown.members.iter().map(|member| (member.share, member.effective)).collect::<Vec<_>>(),
        [(1.0, 1), (0.0, 0)]
    );
}

#[test]
fn what_is_ordered_is_published_at_once() {
    let weights = |first, second| {
        let up = Situation { takes: true, ..Situation::default() };
        spread(&by_number(&[&[(0, first), (1, second)]]), None, &[up, up])
    };
    let mut published = Published::default();
    assert!(published.offer(weights(1000, 1000)));
    assert!(!published.offer(weights(1000, 1000)));
    assert!(published.offer(weights(1001, 1000)), "a number");
    assert!(published.offer(weights(1001, 0)), "who takes flows");
    let mut down = loaded(20.0);
    assert!(published.offer(down.clone()));
    down.members[1].takes = false;
    assert!(published.offer(down), "who takes flows, whatever the shares");
}

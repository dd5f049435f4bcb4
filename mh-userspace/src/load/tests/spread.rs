//! The pure function: examples, and properties of any situation.

use proptest::prelude::*;

use super::super::{LEAST_RAMP, MemberSpread, Situation, Spread, WEIGHT_SCALE, spread};
use super::{by_capacity, by_number, carrying, megabits, percent};
use crate::config::{Capacity, Member, Share, Weight};

const UP: Situation =
    Situation { takes: true, by_hand: None, capacity: None, rates: super::Rates { down: 0.0, up: 0.0 } };
const DOWN: Situation = Situation { takes: false, ..UP };

fn shares(spread: &Spread) -> Vec<f64> {
    spread.members.iter().map(|member| (member.share * 1e4).round() / 1e4).collect()
}

fn effective(spread: &Spread) -> Vec<u16> {
    spread.members.iter().map(|member| member.effective).collect()
}

fn by_hand(situation: Situation, weight: u16) -> Situation {
    Situation { by_hand: Some(weight), ..situation }
}

#[test]
fn numbers_share_as_they_stand() {
    let spread = spread(&by_number(&[&[(0, 2), (1, 1), (2, 0)]]), None, &[UP, UP, UP]);
    assert_eq!(shares(&spread), [0.6667, 0.3333, 0.0]);
    assert_eq!(spread.weights().collect::<Vec<_>>(), [(0, 2), (1, 1), (2, 0)]);
    assert_eq!(effective(&spread), [2, 1, 0]);
    assert!(!spread.members[2].takes, "weight 0");
}

#[test]
fn the_first_tier_that_takes_flows_gets_all() {
    let tiers = by_number(&[&[(0, 1), (1, 1)], &[(2, 7)]]);
    assert_eq!(shares(&spread(&tiers, None, &[UP, UP, UP])), [0.5, 0.5, 0.0]);
    assert_eq!(shares(&spread(&tiers, None, &[DOWN, UP, UP])), [0.0, 1.0, 0.0]);
    assert_eq!(shares(&spread(&tiers, None, &[DOWN, by_hand(UP, 0), UP])), [0.0, 0.0, 1.0]);
    let none = spread(&tiers, None, &[DOWN, DOWN, DOWN]);
    assert_eq!(shares(&none), [0.0, 0.0, 0.0]);
    assert!(none.weights().all(|(_, weight)| weight == 0));
    assert_eq!(shares(&spread(&tiers, None, &[])), [0.0, 0.0, 0.0], "unknown uplinks take none");
}

#[test]
fn capacity_weights_are_what_is_left() {
    let tiers = by_capacity(&[&[0, 1]]);
    let idle = [carrying(megabits(100, 20), 0.0, 0.0), carrying(megabits(50, 10), 0.0, 0.0)];
    let spread_idle = spread(&tiers, None, &idle);
    assert_eq!((shares(&spread_idle), effective(&spread_idle)), (vec![0.6667, 0.3333], vec![100, 50]));
    assert_eq!(spread_idle.weights().collect::<Vec<_>>(), [(0, 666_667), (1, 333_333)]);

    let uneven = [carrying(megabits(100, 20), 60.0, 1.0), carrying(megabits(50, 10), 10.0, 0.2)];
    assert_eq!(effective(&spread(&tiers, None, &uneven)), [40, 40]);

    let full = [carrying(megabits(100, 20), 100.0, 1.0), carrying(megabits(50, 10), 10.0, 0.2)];
    assert_eq!(effective(&spread(&tiers, None, &full)), [15, 40], "a full uplink counts as a little less than full");
    let both = [carrying(megabits(100, 20), 100.0, 1.0), carrying(megabits(50, 10), 50.0, 0.2)];
    assert_eq!(shares(&spread(&tiers, None, &both)), [0.6667, 0.3333], "full ones share by capacity");
}

#[test]
fn the_scarcer_direction_of_the_traffic_counts() {
    // Uploads: of the first, 10 Mbit/s are left, of the second 40.
    let uploads = [carrying(megabits(100, 10), 0.0, 0.0), carrying(megabits(40, 40), 0.0, 0.0)];
    let uploading = [uploads[0], carrying(megabits(40, 40), 1.0, 20.0)];
    let spread_up = spread(&by_capacity(&[&[0, 1]]), None, &uploading);
    assert_eq!((shares(&spread_up), effective(&spread_up)), (vec![0.3333, 0.6667], vec![10, 20]));
    let downloading = [carrying(megabits(100, 10), 20.0, 0.5), uploads[1]];
    assert_eq!(effective(&spread(&by_capacity(&[&[0, 1]]), None, &downloading)), [80, 40]);
}

#[test]
fn a_number_by_hand_makes_the_tier_one_of_numbers() {
    let tiers = by_capacity(&[&[0, 1, 2], &[3]]);
    let idle = |down| carrying(megabits(down, down), 0.0, 0.0);
    let small = Situation { capacity: Some(Capacity { down: 300_000, up: 300_000 }), ..UP };
    let situations = [by_hand(idle(100), 30), carrying(megabits(50, 50), 49.0, 0.0), small, idle(10)];
    let spread_by_hand = spread(&tiers, None, &situations);
    assert_eq!(spread_by_hand.weights().collect::<Vec<_>>(), [(0, 30), (1, 50), (2, 1), (3, 0)]);
    assert_eq!(spread_by_hand.members[3].number, None, "other tiers stay as they are");

    let out = spread(&tiers, None, &[by_hand(idle(100), 0), idle(50), small, idle(10)]);
    assert_eq!((out.members[0].takes, out.members[0].number), (false, Some(0)));
    assert_eq!((out.members[1].number, out.members[1].effective), (None, 50));
}

/// An uplink of 100 Mbit/s that is this full, and one behind it that carries this much.
fn spilling(fill: f64, passed_on: f64, threshold: u32) -> Vec<f64> {
    let situations = [carrying(megabits(100, 100), fill, 0.0), carrying(megabits(1000, 10), passed_on, 0.1)];
    let spread = spread(&by_number(&[&[(0, 1)], &[(1, 1)]]), percent(threshold), &situations);
    assert!((spread.tiers[0].fill.unwrap() - fill / 100.0).abs() < 1e-9);
    shares(&spread)
}

#[test]
fn what_does_not_fit_spills_over() {
    assert_eq!(spilling(0.0, 50.0, 80), [1.0, 0.0]);
    assert_eq!(spilling(80.0, 50.0, 80), [1.0, 0.0], "nothing at the threshold");
    assert_eq!(spilling(100.0, 0.0, 80), [0.8, 0.2], "a full one is brought back to the threshold");
    assert_eq!(spilling(100.0, 100.0, 80), [0.4, 0.6]);
    assert_eq!(spilling(120.0, 0.0, 80), [0.6667, 0.3333], "more than the capacity that was configured");
    let half = spilling(90.0, 0.0, 80);
    assert!(half[1] > 0.05 && half[1] < 0.12, "{half:?}");
    assert_eq!(spilling(95.0, 0.0, 100), [1.0, 0.0], "100% counts as 95%");
    assert_eq!(spilling(100.0, 0.0, 100), [0.95, 0.05]);
}

#[test]
fn tiers_in_a_row_pass_on() {
    let full = carrying(megabits(100, 100), 100.0, 1.0);
    let tiers = by_number(&[&[(0, 1)], &[(1, 1)], &[(2, 1)]]);
    let spread_full = spread(&tiers, percent(50), &[full, full, full]);
    assert_eq!(shares(&spread_full), [0.1667, 0.2083, 0.625], "of 3 the first keeps a half, the second of 2 a half");
    assert_eq!(spread_full.weights().map(|(_, weight)| weight).sum::<u32>(), WEIGHT_SCALE);
    assert_eq!(shares(&spread(&tiers, percent(50), &[full, full, DOWN])), [0.25, 0.75, 0.0], "the last one that is up");
    assert_eq!(shares(&spread(&tiers, percent(50), &[full, DOWN, DOWN])), [1.0, 0.0, 0.0]);
    assert_eq!(shares(&spread(&tiers, None, &[full, full, full])), [1.0, 0.0, 0.0], "not without a threshold");
    assert_eq!(shares(&spread(&tiers, percent(50), &[UP, full, full])), [1.0, 0.0, 0.0], "not without capacity");
}

#[test]
fn the_fuller_direction_counts() {
    let situations = [carrying(megabits(100, 10), 10.0, 10.0), carrying(megabits(100, 100), 90.0, 0.0)];
    let spread = spread(&by_number(&[&[(0, 1)], &[(1, 1)]]), percent(80), &situations);
    assert_eq!(shares(&spread), [0.8, 0.2], "it is full upwards, and what the second carries downwards is not of that");
}

fn situations() -> impl Strategy<Value = Vec<Situation>> {
    let capacity = (1_u64..10_000_000_000, 1_u64..10_000_000_000).prop_map(|(down, up)| Capacity { down, up });
    let one = (
        prop::bool::weighted(0.8),
        prop::option::weighted(0.1, 0_u16..1000),
        prop::option::weighted(0.9, capacity),
        (0.0..1.5_f64, 0.0..1.5_f64),
    );
    let one = one.prop_map(|(takes, by_hand, capacity, (down, up))| {
        let Capacity { down: most_down, up: most_up } = capacity.unwrap_or(Capacity { down: 1_000_000, up: 1_000_000 });
        let rates = super::Rates { down: down * most_down as f64, up: up * most_up as f64 };
        Situation { takes, by_hand, capacity, rates }
    });
    prop::collection::vec(one, 6)
}

fn tiers() -> impl Strategy<Value = Vec<Vec<Member>>> {
    let kinds = prop::collection::vec(prop::option::of(0_u16..100), 3);
    kinds.prop_map(|kinds| {
        let tier = |(tier, kind): (usize, Option<u16>)| {
            let weight = |uplink: usize| kind.map_or(Weight::Capacity, |n| Weight::Fixed(n * (uplink % 3) as u16));
            (2 * tier..2 * tier + 2).map(|uplink| Member { uplink, weight: weight(uplink) }).collect()
        };
        kinds.into_iter().enumerate().map(tier).collect()
    })
}

fn thresholds() -> impl Strategy<Value = Option<Share>> {
    prop::option::of(1_u32..=100).prop_map(|share| share.and_then(percent))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_spread_is_sound(tiers in tiers(), spill in thresholds(), situations in situations()) {
        let spread = spread(&tiers, spill, &situations);
        let takes = |member: &MemberSpread| {
            let zero = situations[member.uplink].by_hand.or(member.number) == Some(0);
            situations[member.uplink].takes && !zero
        };
        let total: f64 = spread.members.iter().map(|member| member.share).sum();
        let any = spread.members.iter().any(takes);
        prop_assert!((total - f64::from(u8::from(any))).abs() < 1e-9, "{}", total);
        let weights: Vec<(usize, u32)> = spread.weights().collect();
        let sum: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
        for (member, (uplink, weight)) in spread.members.iter().zip(weights) {
            prop_assert_eq!(member.uplink, uplink);
            prop_assert_eq!(member.takes, takes(member));
            prop_assert!(member.share >= 0.0 && member.share.is_finite());
            prop_assert!(member.share == 0.0 || member.takes);
            prop_assert_eq!(member.share > 0.0, weight > 0);
            prop_assert_eq!(member.share > 0.0, member.effective > 0);
            prop_assert!(sum == 0.0 || (f64::from(weight) / sum - member.share).abs() < 1e-5);
        }
        // What reaches a tier and is not passed on; only tiers at the threshold or above pass anything on.
        let first = spread.tiers.iter().position(|tier| tier.share > 0.0);
        if let Some(first) = first {
            let tier = &spread.tiers[first];
            let threshold = spill.map_or(f64::MAX, |share| f64::from(share.basis_points()) / 1e4).min(1.0 - LEAST_RAMP);
            prop_assert!(tier.share > 1.0 - 1e-9 || (spill.is_some() && tier.fill.is_some_and(|fill| fill > threshold)));
        }
    }

    /// The fuller an uplink is, the less it gets, and never nothing.
    #[test]
    fn fuller_uplinks_get_less(situations in situations(), more in 0.0..1.0_f64) {
        let tiers = by_capacity(&[&[0, 1]]);
        let capacity = |situation: &Situation| situation.capacity.unwrap_or(megabits(10, 10));
        let mut situations: Vec<Situation> =
            situations.iter().map(|s| Situation { takes: true, by_hand: None, capacity: Some(capacity(s)), ..*s }).collect();
        let before = spread(&tiers, None, &situations);
        // In proportion to the mix, so that the mix stays, but for what is assumed of it.
        let mix = situations[0].rates.down + situations[1].rates.down;
        let other = situations[0].rates.up + situations[1].rates.up;
        situations[0].rates.down += more * mix;
        situations[0].rates.up += more * other;
        let after = spread(&tiers, None, &situations);
        prop_assert!(after.members[0].share <= before.members[0].share * 1.05 + 1e-9);
        prop_assert!(after.members[0].share > 0.0);
    }

    /// Between tiers, more fill never makes the tier keep more, as long as what is passed on is the same.
    #[test]
    fn fuller_tiers_keep_less(fill in 0.0..130.0_f64, more in 0.0..20.0_f64, passed_on in 0.0..500.0_f64, threshold in 1_u32..=100) {
        let (less_full, fuller) = (spilling(fill, passed_on, threshold), spilling(fill + more, passed_on, threshold));
        prop_assert!(fuller[0] <= less_full[0] && fuller[0] > 0.0, "{:?} {:?}", less_full, fuller);
    }
}

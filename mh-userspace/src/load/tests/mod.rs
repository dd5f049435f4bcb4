//! Tests of load: the meter and the spread by themselves, and the closed loop with simulated traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod meter;
mod plant;
mod published;
mod simulation;
mod spread;

use super::{Rates, Situation};
use crate::config::{Capacity, Member, Share, Weight};

fn percent(percent: u32) -> Option<Share> {
    Some(format!("{percent}%").parse().unwrap())
}

/// Tiers of members that go by capacity.
fn by_capacity(tiers: &[&[usize]]) -> Vec<Vec<Member>> {
    let member = |&uplink: &usize| Member { uplink, weight: Weight::Capacity };
    tiers.iter().map(|tier| tier.iter().map(member).collect()).collect()
}

/// Tiers of members with numbers.
fn by_number(tiers: &[&[(usize, u16)]]) -> Vec<Vec<Member>> {
    let member = |&(uplink, weight): &(usize, u16)| Member { uplink, weight: Weight::Fixed(weight) };
    tiers.iter().map(|tier| tier.iter().map(member).collect()).collect()
}

fn megabits(down: u64, up: u64) -> Capacity {
    Capacity { down: down * 1_000_000, up: up * 1_000_000 }
}

/// An uplink that takes flows and carries this, in Mbit/s.
fn carrying(capacity: Capacity, down: f64, up: f64) -> Situation {
    let rates = Rates { down: down * 1e6, up: up * 1e6 };
    Situation { takes: true, by_hand: None, capacity: Some(capacity), rates }
}

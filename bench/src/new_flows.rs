//! `cargo xtask bench new-flows`: how many flows a second begin, on one core, and what becomes of established ones when there are too many.
//!
//! Each frame of 64 bytes is the first of its flow and nobody answers. Contenders are those that translate: each flow takes a port.
//!
//! - Within capacity: tables and ports have room for all; of mh's tables, the part for flows without an answer. All flows must come out.
//! - Beyond capacity: some flows are established and used; then several times as many as there is room for try to begin. What counts is how
//!   many are tried a second, how many of them come out, and whether the established ones still get through, both ways and translated as
//!   they were. A NAT that throws out what is new for what is newer lets all of them out, and forgets most; one that refuses lets out as many
//!   as there is room for (RFC 6888 REQ-11). The established ones have been used for longer than the two seconds after which the kernel counts a connection as assured.
//!
//! Failure behaviour: a contender that loses flows within capacity ends the measurement.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mh_common::abi::NEW_FLOWS_DIVISOR;

use crate::{
    bed::Bed,
    effort::Effort,
    far::are_nearly_all,
    forward::{chosen, empty_rows},
    names::{self, table},
    report::Table,
    router::{Contender, capacity, room_for_connections},
};

/// Who is measured, the baseline first.
const CONTENDERS: [Contender; 4] = [Contender::Iptables, Contender::Nft, Contender::MhXdp, Contender::MhTc];
/// New flows of a sample where there is room for all: see [`room_for_new`].
const FLOWS: u32 = 1 << 17;
const QUICK_FLOWS: u32 = 1 << 15;
/// Room for flows when it is to be too little, before [`capacity`] adds some.
const TIGHT: u32 = 1 << 16;
const QUICK_TIGHT: u32 = 1 << 14;
/// Longer than the two seconds in which the kernel takes a UDP flow for one that may be over.
const ASSURED: Duration = Duration::from_millis(2200);

/// What was seen of one contender.
struct Sample {
    within: f64,
    tried: f64,
    begun: f64,
    alive: f64,
}

/// Measures.
///
/// # Errors
/// If a laboratory can't be built, or a contender does not do its work.
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    let chosen = chosen(&CONTENDERS, effort);
    let (flows, tight) = effort.pick((FLOWS, TIGHT), (QUICK_FLOWS, QUICK_TIGHT));
    let rows = |columns| empty_rows(&chosen, columns);
    let (mut within, mut beyond, mut survivors) = (rows(1), rows(2), rows(1));
    for _ in 0..effort.rounds {
        for (at, contender) in chosen.iter().enumerate() {
            let sample = sample(*contender, flows, tight).with_context(|| contender.name())?;
            within[at].samples[0].push(sample.within / 1e3);
            for (samples, rate) in beyond[at].samples.iter_mut().zip([sample.tried, sample.begun]) {
                samples.push(rate / 1e3);
            }
            survivors[at].samples[0].push(sample.alive * 100.0);
        }
    }
    let made = |name, title: &str, unit, columns: &[&str], rows| Table {
        name,
        title: title.into(),
        unit,
        more_is_better: true,
        columns: columns.iter().copied().map(str::to_owned).collect(),
        rows,
        baseline: 0,
    };
    let room = format!("{} within capacity", names::flows(flows.into()));
    let thousands = "thousands per second";
    Ok(vec![
        made(table::NEW_FLOWS, "new flows, one core", thousands, &[&room], within),
        made(table::NEW_FLOWS_BEYOND, "new flows beyond capacity, one core", thousands, &["tried", "begun"], beyond),
        made(table::SURVIVORS, "established flows that outlive too many new ones", "%", &["alive"], survivors),
    ])
}

/// For how many flows tables have to be made so that this many find room without an answer: mh keeps those in a part of its own. Everybody gets
/// the same.
#[must_use]
pub const fn room_for_new(flows: u32) -> u32 {
    flows * NEW_FLOWS_DIVISOR
}

fn sample(contender: Contender, flows: u32, tight: u32) -> Result<Sample> {
    let room = room_for_connections(room_for_new(flows))?;
    let mut bed = Bed::with_room(contender, room_for_new(flows), flows)?;
    let within = bed.far.begin(0, flows, &bed.expected)?;
    bed.stop()?;
    drop(room);
    ensure!(are_nearly_all(within.accepted, flows), "of {flows} flows, {} came out", within.accepted);

    let _room = room_for_connections(tight)?;
    let (established, too_many) = (tight / 2, capacity(tight) * 4);
    // The far side knows all of them.
    let mut bed = Bed::with_room(contender, tight, established + too_many)?;
    let Bed { far, expected, .. } = &mut bed;
    far.establish(established, expected)?;
    far.keep(established, expected, ASSURED)?;
    let beyond = far.begin(established, too_many, expected)?;
    let alive = far.alive(established, expected)?;
    bed.stop()?;
    #[allow(clippy::cast_precision_loss, reason = "counts of flows are far below 2^52")]
    let alive = alive as f64 / f64::from(established);
    Ok(Sample { within: within.rate.received, tried: beyond.rate.sent, begun: beyond.rate.received, alive })
}

//! `cargo xtask bench new-flows`: how many flows a second begin, on one core, and what becomes of established ones when there are too many.
//!
//! Each frame of 64 bytes is the first of its flow and nobody answers. Contenders are those that translate: each flow takes a port.
//!
//! - Within capacity: tables and ports have room for all. All flows must come out.
//! - Beyond capacity: some flows are established and used; then several times as many as there is room for try to begin. What counts is how
//!   many are handled a second, how many of them come out, and whether the established ones still get through, both ways and translated as
//!   they were. The established ones have been used for longer than the two seconds after which the kernel counts a connection as assured.
//!
//! Failure behaviour: a contender that loses flows within capacity ends the measurement.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    bed::Bed,
    forward::{Chosen, empty_row},
    report::{Row, Table},
    router::{Contender, capacity, room_for_connections},
};

/// Who is measured, the baseline first.
const CONTENDERS: [Contender; 4] = [Contender::Iptables, Contender::Nft, Contender::MhXdp, Contender::MhTc];
/// Room for flows when it is to be too little, before [`capacity`] adds some.
const TIGHT: u32 = 1 << 16;
/// Of these, established ones.
const ESTABLISHED: u32 = 1 << 15;
/// Longer than the two seconds in which the kernel takes a UDP flow for one that may be over.
const ASSURED: Duration = Duration::from_millis(2200);

/// What `cargo xtask bench new-flows` takes.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// How often each figure is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Fewer flows, one round.
    #[arg(long)]
    quick: bool,

    /// How many flows begin in each sample.
    #[arg(long, default_value_t = 1 << 19)]
    flows: u32,

    #[command(flatten)]
    chosen: Chosen,
}

/// What was seen of one contender.
struct Sample {
    within: f64,
    handled: f64,
    begun: f64,
    alive: f64,
}

/// Measures.
///
/// # Errors
/// If a laboratory can't be built, or a contender does not do its work.
pub fn measure(arguments: &Arguments) -> Result<Vec<Table>> {
    let chosen = arguments.chosen.of(&CONTENDERS);
    let (rounds, flows) = if arguments.quick { (1, 1 << 17) } else { (arguments.rounds, arguments.flows) };
    let mut rates: Vec<Row> = chosen.iter().map(|contender| empty_row(*contender, 3)).collect();
    let mut alive: Vec<Row> = chosen.iter().map(|contender| empty_row(*contender, 1)).collect();
    for _ in 0..rounds {
        for ((contender, rates), alive) in chosen.iter().zip(&mut rates).zip(&mut alive) {
            let sample = sample(*contender, flows).with_context(|| contender.name())?;
            for (samples, figure) in rates.samples.iter_mut().zip([sample.within, sample.handled, sample.begun]) {
                samples.push(figure / 1e3);
            }
            alive.samples[0].push(sample.alive * 100.0);
        }
    }
    let columns = ["within capacity", "beyond capacity: tried", "beyond capacity: begun"];
    Ok(vec![
        Table {
            name: "new-flows",
            title: "new flows, one core".into(),
            unit: "thousands a second",
            more_is_better: true,
            columns: columns.map(str::to_owned).to_vec(),
            rows: rates,
            baseline: 0,
        },
        Table {
            name: "new-flows-survivors",
            title: "established flows that still get through".into(),
            unit: "%",
            more_is_better: true,
            columns: vec!["beyond capacity".into()],
            rows: alive,
            baseline: 0,
        },
    ])
}

fn sample(contender: Contender, flows: u32) -> Result<Sample> {
    let room = room_for_connections(flows)?;
    let mut bed = Bed::new(contender, flows)?;
    let within = bed.far.begin(0, flows, &bed.expected)?;
    bed.stop()?;
    drop(room);
    ensure!(within.accepted == u64::from(flows), "of {flows} flows, {} came out", within.accepted);

    let _room = room_for_connections(TIGHT)?;
    let too_many = capacity(TIGHT) * 4;
    // The far side knows all of them.
    let mut bed = Bed::with_room(contender, TIGHT, ESTABLISHED + too_many)?;
    let Bed { far, expected, .. } = &mut bed;
    far.establish(ESTABLISHED, expected)?;
    far.keep(ESTABLISHED, expected, ASSURED)?;
    let beyond = far.begin(ESTABLISHED, too_many, expected)?;
    let alive = far.alive(ESTABLISHED, expected)?;
    bed.stop()?;
    #[allow(clippy::cast_precision_loss, reason = "counts of flows are far below 2^52")]
    let alive = alive as f64 / f64::from(ESTABLISHED);
    Ok(Sample { within: within.rate.received, handled: beyond.rate.sent, begun: beyond.rate.received, alive })
}

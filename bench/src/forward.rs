//! `cargo xtask bench forward`: packets per second through a router, on one core.
//!
//! What is measured: UDP frames of flows that are established, visited in turn, from inside to outside and back, at the rate at which the
//! sinks receive them (not at which they are sent). Generator, router and sinks share a core; see [`crate::far`]. 64 bytes are on the wire,
//! check sequence included: 60 in memory.
//!
//! What a router costs by itself: with `t(x) = 1 s / rate(x)`, `t(contender) - t(XDP drop at the router)` is what it takes to route a packet,
//! to put it on a link, and to receive it at the other end; `t(contender) - t(blind redirect)` is what it does with a packet besides moving it.
//!
//! Failure behaviour: a contender that translates or routes wrongly, or lets not all flows through, ends the measurement.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    bed::Bed,
    far::{Direction, FrameLen, Load, Rate},
    report::{Row, Table},
    router::{Contender, room_for_connections},
};

/// Who is measured, in the order of the report.
const CONTENDERS: [Contender; 8] = [
    Contender::BlindRedirect,
    Contender::MhXdp,
    Contender::MhTc,
    Contender::Kernel,
    Contender::Ecmp,
    Contender::Iptables,
    Contender::Nft,
    Contender::XdpDrop,
];

/// What `cargo xtask bench forward` takes.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// How often each figure is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// Fewer flows, one round, short samples.
    #[arg(long)]
    quick: bool,

    /// Milliseconds of each sample.
    #[arg(long, default_value_t = 700)]
    window_ms: u64,

    /// Numbers of flows.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1 << 10, 1 << 16, 1 << 20])]
    flows: Vec<u32>,

    #[command(flatten)]
    chosen: Chosen,
}

/// Which contenders are measured.
#[derive(clap::Args, Debug)]
pub struct Chosen {
    /// Contenders whose name contains one of these; left out: all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

impl Chosen {
    /// Those of a list that were chosen.
    #[must_use]
    pub fn of(&self, contenders: &[Contender]) -> Vec<Contender> {
        let is_chosen = |name: &str| self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()));
        contenders.iter().copied().filter(|contender| is_chosen(contender.name())).collect()
    }
}

/// What is measured of one contender at one number of flows.
const CASES: [(Direction, FrameLen); 4] = [
    (Direction::Forward, FrameLen::SMALL),
    (Direction::Reverse, FrameLen::SMALL),
    (Direction::Forward, FrameLen::MIDDLE),
    (Direction::Reverse, FrameLen::MIDDLE),
];

/// Measures.
///
/// # Errors
/// If a laboratory can't be built, or a contender does not do its work.
pub fn measure(arguments: &Arguments) -> Result<Vec<Table>> {
    let chosen = arguments.chosen.of(&CONTENDERS);
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    let _room = room_for_connections(arguments.flows.iter().copied().max().unwrap_or(1))?;
    let columns = arguments.flows.iter().flat_map(|flows| {
        CASES.map(|(direction, FrameLen(len))| format!("{len} B, {}, {}", flow_count(*flows), direction.name()))
    });
    let columns: Vec<String> = columns.collect();
    let mut rows: Vec<Row> = chosen.iter().map(|contender| empty_row(*contender, columns.len())).collect();
    for _ in 0..rounds {
        for (at, flows) in arguments.flows.iter().enumerate() {
            for (contender, row) in chosen.iter().zip(&mut rows) {
                let rates = rates(*contender, *flows, &CASES, Duration::from_millis(arguments.window_ms))
                    .with_context(|| format!("{} with {flows} flows", contender.name()))?;
                for (case, rate) in rates.iter().enumerate() {
                    row.samples[at * CASES.len() + case].push(rate.received / 1e6);
                }
            }
        }
    }
    let forward = Table {
        name: "forward",
        title: "packets forwarded, one core".into(),
        unit: "Mpps",
        more_is_better: true,
        columns,
        rows,
        baseline: 0,
    };
    let above = |limit, name, title| cost_above(&forward, &chosen, limit, name, title);
    let costs = [
        above(Contender::XdpDrop, "forward-cost", "a router's own cost: time per packet above XDP drop"),
        above(Contender::BlindRedirect, "forward-work", "what is done with a packet: time above a blind redirect"),
    ];
    Ok([Some(forward)].into_iter().chain(costs).flatten().collect())
}

/// A contender's row without samples.
#[must_use]
pub fn empty_row(contender: Contender, columns: usize) -> Row {
    Row { name: contender.name().into(), samples: vec![Vec::new(); columns] }
}

/// Time per packet of all contenders above that of `limit`, sample by sample; none if that was not measured.
fn cost_above(
    rates: &Table,
    contenders: &[Contender],
    limit: Contender,
    name: &'static str,
    title: &str,
) -> Option<Table> {
    let at = contenders.iter().position(|contender| *contender == limit)?;
    let of_limit = &rates.rows.get(at)?.samples;
    // A limit of the limit is below zero.
    let limits = |contender: &Contender| *contender == limit || *contender == Contender::XdpDrop;
    let rows = contenders.iter().zip(&rates.rows).filter(|(contender, _)| !limits(contender));
    let rows: Vec<Row> = rows
        .map(|(_, row)| {
            let above = |(own, limit): (&Vec<f64>, &Vec<f64>)| {
                own.iter().zip(limit).map(|(own, limit)| nanoseconds(*own) - nanoseconds(*limit)).collect()
            };
            Row { name: row.name.clone(), samples: row.samples.iter().zip(of_limit).map(above).collect() }
        })
        .collect();
    let columns = rates.columns.clone();
    (!rows.is_empty()).then(|| Table {
        name,
        title: title.into(),
        unit: "ns",
        more_is_better: false,
        columns,
        rows,
        baseline: 0,
    })
}

/// Time per packet at so many millions a second.
#[must_use]
pub fn nanoseconds(mpps: f64) -> f64 {
    1e3 / mpps
}

/// The rates of one contender at one number of flows.
///
/// # Errors
/// If it does not do its work.
pub fn rates(contender: Contender, flows: u32, cases: &[(Direction, FrameLen)], window: Duration) -> Result<Vec<Rate>> {
    let mut bed = Bed::with_flows(contender, flows, flows)?;
    let rates = cases
        .iter()
        .map(|(direction, frame)| bed.rate(Load { direction: *direction, frame: *frame, first: 0, flows }, window));
    let rates = rates.collect::<Result<_>>()?;
    bed.stop()?;
    Ok(rates)
}

/// A number of flows for people: `64 Ki flows`.
#[must_use]
pub fn flow_count(flows: u32) -> String {
    match flows {
        1 => "1 flow".into(),
        few if few % (1 << 10) != 0 => format!("{few} flows"),
        many if many % (1 << 20) != 0 => format!("{} Ki flows", many >> 10),
        many => format!("{} Mi flows", many >> 20),
    }
}

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
use mh_common::time;

use crate::{
    bed::Bed,
    effort::Effort,
    far::{Direction, FrameLen, Load, Rate},
    names::{self, table},
    report::{Row, Table},
    router::{Contender, room_for_connections},
};

/// Who is measured, in the order of the report; last the one that forwards nothing.
pub const CONTENDERS: [Contender; 8] = [
    Contender::BlindRedirect,
    Contender::MhXdp,
    Contender::MhTc,
    Contender::Kernel,
    Contender::Ecmp,
    Contender::Iptables,
    Contender::Nft,
    Contender::XdpDrop,
];

/// Numbers of flows.
const FLOWS: [u32; 4] = [1, 1 << 10, 1 << 16, 1 << 20];
const QUICK_FLOWS: [u32; 2] = [1 << 10, 1 << 16];
/// How long a sample is.
const WINDOW: Duration = Duration::from_millis(500);
/// From so many flows on, a sample of small frames takes longer, and with mh as long as it takes to maintain each flow once. They began together, and so
/// are due together: a short sample would see all of that or nothing.
const MAINTAINED: u32 = 1 << 18;
const MAINTENANCE: Duration = Duration::from_nanos(time::MAINTENANCE_TICKS as u64 * time::TICK_NS);
const LONG_WINDOW: Duration = Duration::from_secs(5);
const QUICK_WINDOW: Duration = Duration::from_millis(100);

/// Those of a list that are to be measured; always the first, which others are compared with.
#[must_use]
pub fn chosen(contenders: &[Contender], effort: &Effort) -> Vec<Contender> {
    let chosen = contenders.iter().enumerate().filter(|(at, contender)| *at == 0 || effort.wants(contender.name()));
    chosen.map(|(_, contender)| *contender).collect()
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
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    let chosen = chosen(&CONTENDERS, effort);
    let counts = effort.flows(&FLOWS, &QUICK_FLOWS);
    let columns = counts.iter().flat_map(|count| {
        CASES.map(|(direction, FrameLen(len))| {
            format!("{len} B, {}, {}", names::flows(u64::from(*count)), direction.name())
        })
    });
    let columns: Vec<String> = columns.collect();
    let mut rows = empty_rows(&chosen, columns.len());
    for _ in 0..effort.rounds {
        for (at, flows) in counts.iter().enumerate() {
            let _room = room_for_connections(*flows)?;
            for (contender, row) in chosen.iter().zip(&mut rows) {
                let rates = rates(*contender, *flows, effort)
                    .with_context(|| format!("{} with {flows} flows", contender.name()))?;
                for (case, rate) in rates.iter().enumerate() {
                    row.samples[at * CASES.len() + case].push(rate.received / 1e6);
                }
            }
        }
    }
    let forward = Table {
        name: table::FORWARD,
        title: "packets forwarded, one core".into(),
        unit: "Mpps",
        more_is_better: true,
        columns,
        rows,
        baseline: 0,
    };
    let above = |limit, name, title| cost_above(&forward, &chosen, limit, name, title);
    let costs = [
        above(Contender::XdpDrop, table::ROUTER_COST, "a router's own cost: time per packet above XDP drop"),
        above(Contender::BlindRedirect, table::ROUTER_WORK, "work on a packet: time above a blind redirect"),
    ];
    Ok([Some(forward)].into_iter().chain(costs).flatten().collect())
}

/// The contenders' rows, without samples.
#[must_use]
pub fn empty_rows(contenders: &[Contender], columns: usize) -> Vec<Row> {
    let row = |contender: &Contender| Row { name: contender.name().into(), samples: vec![Vec::new(); columns] };
    contenders.iter().map(row).collect()
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

/// The rates of one contender at one number of flows, by [`CASES`].
fn rates(contender: Contender, flows: u32, effort: &Effort) -> Result<Vec<Rate>> {
    let mut bed = Bed::with_flows(contender, flows, flows)?;
    let mut rates = Vec::new();
    let mut warm = None;
    for (direction, frame) in CASES {
        let load = Load { direction, frame, first: 0, flows };
        if warm != Some(direction) {
            bed.warm_up(load, effort)?;
            warm = Some(direction);
        }
        let window = match contender {
            _ if flows < MAINTAINED || frame != FrameLen::SMALL => WINDOW,
            Contender::MhXdp | Contender::MhTc => MAINTENANCE,
            _ => LONG_WINDOW,
        };
        let window = effort.pick(window, QUICK_WINDOW);
        rates.push(bed.rate(load, window)?);
    }
    bed.stop()?;
    Ok(rates)
}

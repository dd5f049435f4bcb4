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

mod bed;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    far::{Direction, FrameLen, Rate},
    report::{Row, Table},
    router::{Contender, room_for_connections},
};
use bed::Bed;

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

    /// Contenders whose name contains one of these; left out: all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
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
    let chosen: Vec<Contender> = CONTENDERS
        .into_iter()
        .filter(|contender| {
            arguments.only.is_empty() || arguments.only.iter().any(|part| contender.name().contains(part))
        })
        .collect();
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    let _room = room_for_connections(arguments.flows.iter().copied().max().unwrap_or(1))?;
    let columns = arguments.flows.iter().flat_map(|flows| {
        CASES.map(|(direction, FrameLen(len))| format!("{len} B, {}, {}", flow_count(*flows), direction.name()))
    });
    let columns: Vec<String> = columns.collect();
    let empty = |contender: &Contender| Row { name: contender.name().into(), samples: vec![Vec::new(); columns.len()] };
    let mut rows: Vec<Row> = chosen.iter().map(empty).collect();
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
    Ok(vec![Table {
        name: "forward",
        title: "packets forwarded, one core".into(),
        unit: "Mpps",
        more_is_better: true,
        columns,
        rows,
        baseline: 0,
    }])
}

/// The rates of one contender at one number of flows.
///
/// # Errors
/// If it does not do its work.
pub fn rates(contender: Contender, flows: u32, cases: &[(Direction, FrameLen)], window: Duration) -> Result<Vec<Rate>> {
    // What drops everything can't establish flows: a blind redirect does it first.
    let drops = contender == Contender::XdpDrop;
    let mut bed = Bed::new(if drops { Contender::BlindRedirect } else { contender }, flows)?;
    bed.far.establish(flows, &bed.expected)?;
    if drops {
        bed = bed.replace(contender, flows)?;
    }
    let mut rates = Vec::new();
    for (direction, frame) in cases {
        let Bed { far, expected, running, .. } = &mut bed;
        rates.push(if drops {
            far.rate_of_drops(*direction, *frame, flows, expected, window, || running.dropped())?
        } else {
            far.rate(*direction, *frame, flows, expected, window)?
        });
    }
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

//! `cargo xtask bench growth`: how packets and new flows per second change with the number of flows that exist.
//!
//! For each number of flows, these are established; then frames of 64 bytes of all of them are sent in turn, as [`crate::forward`] does, and
//! after that new flows begin beside them, as [`crate::new_flows`] does.
//!
//! A contender's slope is what each doubling of flows adds to the time per packet, in ns: least squares of that time over the logarithm
//! (base 2) of the number of flows, round by round.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    bed::Bed,
    effort::Effort,
    far::{Direction, FrameLen, Load},
    forward::{self, chosen, empty_rows, nanoseconds},
    names::{self, table},
    new_flows::room_for_new,
    report::{Row, Table},
    router::{Contender, room_for_connections},
};

/// Who is measured, the baseline first: who forwards anything.
const CONTENDERS: &[Contender] = forward::CONTENDERS.split_at(forward::CONTENDERS.len() - 1).0;
const _: () = assert!(matches!(forward::CONTENDERS[CONTENDERS.len()], Contender::XdpDrop));
/// New flows of a sample.
const NEW: u32 = 1 << 16;
const QUICK_NEW: u32 = 1 << 15;

/// The greatest number of flows, as a power of two, and the step from one to the next.
pub const MOST_BITS: u32 = 22;
const STEP_BITS: usize = 2;
const QUICK_MOST_BITS: u32 = 16;
const QUICK_STEP_BITS: usize = 16;
/// How long a sample of packets is.
const WINDOW: Duration = Duration::from_millis(300);
const QUICK_WINDOW: Duration = Duration::from_millis(100);
/// A curve has many points, and each is a laboratory: one round for so many of the other parts.
const ROUNDS_DIVISOR: usize = 9;

/// Measures.
///
/// # Errors
/// If a laboratory can't be built, or a contender does not do its work.
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    let chosen = chosen(CONTENDERS, effort);
    let (most, step) = effort.pick((MOST_BITS, STEP_BITS), (QUICK_MOST_BITS, QUICK_STEP_BITS));
    let counts: Vec<u32> = (0..=most).step_by(step).map(|bits| 1 << bits).collect();
    let rows = || empty_rows(&chosen, counts.len());
    let (mut packets, mut new_flows) = (rows(), rows());
    for _ in 0..effort.rounds.div_ceil(ROUNDS_DIVISOR) {
        for (at, flows) in counts.iter().enumerate() {
            let _room = room_for_connections(flows + room_for_new(effort.pick(NEW, QUICK_NEW)))?;
            for (number, contender) in chosen.iter().enumerate() {
                let (mpps, begun) = sample(*contender, *flows, effort)
                    .with_context(|| format!("{} with {flows} flows", contender.name()))?;
                packets[number].samples[at].push(mpps);
                new_flows[number].samples[at].extend(begun);
            }
        }
    }
    // Who has no state has no new flows either.
    let slopes = |rows: &[Row], to_ns: fn(f64) -> f64| -> Vec<Vec<f64>> {
        rows.iter().map(|row| slopes_of(row, &counts, to_ns)).collect()
    };
    let (of_packets, of_new) = (slopes(&packets, nanoseconds), slopes(&new_flows, |thousands| 1e6 / thousands));
    let slopes = chosen.iter().zip(of_packets).zip(of_new).map(|((contender, packets), new_flows)| Row {
        name: contender.name().into(),
        samples: vec![packets, new_flows],
    });
    let slopes: Vec<Row> = slopes.collect();
    let columns: Vec<String> = counts.iter().map(|count| names::flows(u64::from(*count))).collect();
    // Whom people use is compared with, where it was measured.
    let compared = |rows: &[Row]| {
        rows.iter().position(|row| row.name == Contender::Iptables.name()).unwrap_or(rows.len().saturating_sub(1))
    };
    let translating = |row: &Row| row.samples.iter().any(|samples| !samples.is_empty());
    let new_flows: Vec<Row> = new_flows.into_iter().filter(translating).collect();
    Ok(vec![
        Table {
            name: table::GROWTH_FORWARD,
            title: "packets forwarded by number of flows, 64 B, one core".into(),
            unit: "Mpps",
            more_is_better: true,
            columns: columns.clone(),
            rows: packets,
            baseline: 0,
        },
        Table {
            name: table::GROWTH_NEW_FLOWS,
            title: "new flows beside so many others, one core".into(),
            unit: "thousands per second",
            more_is_better: true,
            columns,
            baseline: compared(&new_flows),
            rows: new_flows,
        },
        Table {
            name: table::GROWTH_SLOPES,
            title: "what each doubling of flows adds to the time per packet".into(),
            unit: "ns",
            more_is_better: false,
            columns: vec!["established flows".into(), "new flows".into()],
            baseline: compared(&slopes),
            rows: slopes,
        },
    ])
}

/// Millions of packets, and thousands of new flows, a second.
fn sample(contender: Contender, flows: u32, effort: &Effort) -> Result<(f64, Option<f64>)> {
    let window = effort.pick(WINDOW, QUICK_WINDOW);
    let new = effort.pick(NEW, QUICK_NEW);
    let mut bed = Bed::with_flows(contender, flows, flows + room_for_new(new))?;
    let load = Load { direction: Direction::Forward, frame: FrameLen::SMALL, first: 0, flows };
    bed.warm_up(load, effort)?;
    let mpps = bed.rate(load, window)?.received / 1e6;
    let begun =
        if contender.translates() { Some(bed.far.begin(flows, new, &bed.expected)?.rate.received / 1e3) } else { None };
    bed.stop()?;
    Ok((mpps, begun))
}

/// The slope of a row in each round: time over the logarithm of the number of flows.
fn slopes_of(row: &Row, counts: &[u32], to_ns: fn(f64) -> f64) -> Vec<f64> {
    let rounds = row.samples.iter().map(Vec::len).min().unwrap_or(0);
    let of_round = |round: usize| {
        let points = counts.iter().zip(&row.samples);
        let points: Vec<(f64, f64)> =
            points.map(|(count, samples)| (f64::from(*count).log2(), to_ns(samples[round]))).collect();
        slope(&points)
    };
    (0..rounds).filter_map(of_round).collect()
}

/// The slope of the line with the least squares through some points; none through fewer than two different places.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "a few points")]
    let number = points.len() as f64;
    let (x_mean, y_mean) =
        (points.iter().map(|(x, _)| x).sum::<f64>() / number, points.iter().map(|(_, y)| y).sum::<f64>() / number);
    let spread: f64 = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    let product: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    (spread > 0.0).then(|| product / spread)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may")]

    use super::*;

    #[test]
    fn a_slope_is_what_a_doubling_adds() {
        let row = Row { name: "a".into(), samples: vec![vec![10.0, 5.0], vec![5.0, 5.0], vec![10.0 / 3.0, 5.0]] };
        // 100, 200, 300 ns at 1, 4, 16 flows: 50 ns a doubling; and in the second round none.
        let slopes = slopes_of(&row, &[1, 4, 16], nanoseconds);
        assert!((slopes[0] - 50.0).abs() < 1e-9 && slopes[1].abs() < 1e-9, "{slopes:?}");
        assert!(slope(&[(1.0, 3.0)]).is_none());
        assert!((slope(&[(0.0, 1.0), (1.0, 2.0), (2.0, 6.0)]).unwrap() - 2.5).abs() < 1e-9);
    }
}

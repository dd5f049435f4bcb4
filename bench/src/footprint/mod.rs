//! `cargo xtask bench footprint`: what a million flows take: kernel memory, time to get there, time to start, and the controller's time
//! for looking after them.
//!
//! Topology and routers: see [`site`](crate::site). All flows are there at the same time, each with a binding of its own, made by the
//! datapath itself from packets that go both ways ([`fill`]).
//!
//! What counts as memory:
//! - Of *one flow*: the entries that there are because of it, with their share of the tables' buckets. For mh that is two halves in the
//!   conntrack and the two ends of its binding; for nf_conntrack what the kernel allocates for it.
//! - Of *all tables*: whatever is allocated, for the number of flows that fit: for mh all maps, also those for flows without a reply, for
//!   resting ports, for copies of flows and for fragments; for nf_conntrack its hash tables, too.
//!
//! mh allocates its tables when it starts, nf_conntrack each flow when it comes.

mod fill;
mod memory;
mod sweeps;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mh_common::abi::map;
use mh_tests::lab::{Mhd, wait_until};
use mh_userspace::datapath::tables::Tables;

use self::memory::{Slabs, Taken};
use crate::effort::Effort;
use crate::http::quantile;
use crate::names::{footprint as named, table};
use crate::report::{NO_BASELINE, Row, Table};
use crate::router::{Contender, room_for_connections};
use crate::site::{Needs, READY, Site};

/// Flows at a time.
const FLOWS: u32 = 1 << 20;
/// The same of a quick run.
const QUICK_FLOWS: u32 = 1 << 16;
/// A round here takes as long as several of other parts.
const ROUNDS_DIVISOR: usize = 3;
/// Nothing limits the inside hosts, and no flow ends meanwhile.
const SECTIONS: &str = "\n[limits]\nbindings_per_source = 0\nnew_flows_per_source = 0\n\n[timeouts]\nudp = \"1h\"\n";
/// How long sweeps are watched: one begins every 10 seconds, and is to be seen from its beginning to its end.
const WATCH: Duration = Duration::from_secs(25);
/// The same with few flows.
const QUICK_WATCH: Duration = Duration::from_secs(12);
/// A map that takes a smaller share is not listed by itself.
const LISTED_SHARE: f64 = 0.01;
const MIB: f64 = 1024.0 * 1024.0;

/// Tables of which the rows are not to be compared.
const PARTS_OF_A_WHOLE: [&str; 3] = [table::FOOTPRINT_MAPS, table::FOOTPRINT_CONTROLLER, table::FOOTPRINT_SWEEP];

/// The shares of requests that take no longer than is shown.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// All samples of mh.
#[derive(Default)]
struct Samples {
    first_starts: Vec<f64>,
    restarts: Vec<f64>,
    full_restarts: Vec<f64>,
    fills: Vec<f64>,
    sweep_shares: Vec<f64>,
    mhd_shares: Vec<f64>,
    sweep_seconds: Vec<f64>,
    sweep_cpu_seconds: Vec<f64>,
    /// Without and with a sweep: by quantile.
    latencies: [[Vec<f64>; QUANTILES.len()]; 2],
    maps: Vec<Taken>,
}

/// What was measured of the kernel's own connection tracking.
struct Tracked {
    contender: Contender,
    fills: Vec<f64>,
    bytes: f64,
    with_table: f64,
}

/// Measures.
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    let (rounds, flows) = (effort.rounds.div_ceil(ROUNDS_DIVISOR), effort.pick(FLOWS, QUICK_FLOWS));
    let _room = room_for_connections(flows)?;
    let needs = Needs { flows, pools: true, sections: SECTIONS };
    let watch = effort.pick(WATCH, QUICK_WATCH);
    let samples = mh(&needs, rounds, watch).context("mh")?;
    let peers = [Contender::Iptables, Contender::Nft].into_iter().filter(|contender| effort.wants(contender.name()));
    let peers = peers.map(|contender| tracked(contender, &needs, rounds).context(contender.name()));
    Ok(tables(flows, samples, peers.collect::<Result<_>>()?))
}

fn mh(needs: &Needs<'_>, rounds: usize, watch: Duration) -> Result<Samples> {
    let mut site = Site::build(Contender::MhTc, needs)?;
    let mut mhd = site.mhd.take().context("mhd does not run")?;
    let mut samples = Samples::default();
    let ms = |mhd: &Mhd| mhd.ready_after().as_secs_f64() * 1e3;
    for _ in 0..rounds {
        mhd.ctl(&["detach"])?;
        wait_until("mhd to end", READY, || Ok(!mhd.is_running()))?;
        mhd.start_again()?;
        samples.first_starts.push(ms(&mhd));
        mhd.restart()?;
        samples.restarts.push(ms(&mhd));
        samples.fills.push(fill::fill(&site, needs.flows)?.as_secs_f64());
        let pins = pins(&mhd)?;
        let (established, new, _) = Tables::open(&pins)?.totals()?;
        let least = f64::from(needs.flows) * 0.99;
        ensure!(established as f64 >= least, "{established} established flows and {new} others of {}", needs.flows);
        if samples.maps.is_empty() {
            samples.maps = memory::of_maps(&pins)?;
        }
        let watched = sweeps::watch(&site, mhd.pid()?, watch)?;
        samples.mhd_shares.push(watched.mhd_share * 100.0);
        let sweeps = || watched.sweeps.iter().filter(|sweep| sweep.whole);
        ensure!(sweeps().next().is_some(), "no sweep was seen from its beginning to its end");
        let count = sweeps().count() as f64;
        let took: f64 = sweeps().map(|sweep| (sweep.to - sweep.from).as_secs_f64()).sum();
        let cpu: f64 = sweeps().map(|sweep| sweep.cpu.as_secs_f64()).sum();
        samples.sweep_seconds.push(took / count);
        samples.sweep_cpu_seconds.push(cpu / count);
        samples.sweep_shares.push(cpu / took.max(cpu) * 100.0);
        for swept in [false, true] {
            let latencies = watched.latencies(swept);
            for ((_, share), samples) in QUANTILES.iter().zip(&mut samples.latencies[usize::from(swept)]) {
                samples.push(quantile(&latencies, *share).context("no request with a sweep, or none without")?);
            }
        }
        mhd.restart()?;
        samples.full_restarts.push(ms(&mhd));
    }
    Ok(samples)
}

/// mhd's pins, as seen from here.
fn pins(mhd: &Mhd) -> Result<PathBuf> {
    Ok(PathBuf::from(format!("/proc/{}/root{}", mhd.pid()?, mhd.bpffs())))
}

fn tracked(contender: Contender, needs: &Needs<'_>, rounds: usize) -> Result<Tracked> {
    let site = Site::build(contender, needs)?;
    let mut tracked = Tracked { contender, fills: Vec::new(), bytes: 0.0, with_table: 0.0 };
    for round in 0..rounds {
        site.machine.run(&["conntrack", "-F"])?;
        let before = Slabs::look()?;
        tracked.fills.push(fill::fill(&site, needs.flows)?.as_secs_f64());
        let after = Slabs::look()?;
        let count: f64 = site.machine.run(&["conntrack", "-C"])?.trim().parse().context("conntrack -C")?;
        ensure!(count >= f64::from(needs.flows) * 0.99, "{count} connections of {}", needs.flows);
        // What the first round has freed comes back in those after, which makes them no good for this.
        if round == 0 {
            tracked.bytes = after.grown_since(&before, count) / count;
            tracked.with_table = tracked.bytes + memory::of_connection_table()? / f64::from(needs.flows);
        }
    }
    Ok(tracked)
}

/// Of all tables: the bytes for one flow, and those of everything for each flow that fits.
fn per_flow(maps: &[Taken]) -> Option<(f64, f64)> {
    let find = |name| maps.iter().find(|taken| taken.name == name);
    let entry = |name| find(name).map(|taken| taken.bytes as f64 / taken.entries as f64);
    let one = 2.0 * entry(map::FLOWS4)? + entry(map::BY_INSIDE4)? + entry(map::BY_OUTSIDE4)?;
    let fit = (find(map::FLOWS4)?.entries / 2).min(find(map::BY_INSIDE4)?.entries);
    Some((one, maps.iter().map(|taken| taken.bytes as f64).sum::<f64>() / fit as f64))
}

fn tables(flows: u32, samples: Samples, peers: Vec<Tracked>) -> Vec<Table> {
    let with = format!("{flows} flows");
    let one = |value: f64| vec![vec![value]];
    let row = |name: &str, samples: Vec<Vec<f64>>| Row { name: name.to_owned(), samples };
    let (for_one, of_all) = per_flow(&samples.maps).unwrap_or_default();
    let total: f64 = samples.maps.iter().map(|taken| taken.bytes as f64).sum();
    let mut listed: Vec<_> =
        samples.maps.iter().filter(|taken| taken.bytes as f64 >= total * LISTED_SHARE).copied().collect();
    listed.sort_by_key(|taken| std::cmp::Reverse(taken.bytes));
    let mut maps = vec![row("all", one(total / MIB))];
    maps.extend(listed.iter().map(|taken| row(taken.name, one(taken.bytes as f64 / MIB))));
    let (mut memory, mut fills) = (Vec::new(), Vec::new());
    for Tracked { contender, fills: took, bytes, with_table } in peers {
        // Of the first: what comes after finds the memory that it has freed, and shows nothing.
        if memory.is_empty() {
            memory.push(row("nf_conntrack with NAT", vec![vec![bytes], vec![with_table]]));
        }
        fills.push(row(contender.name(), vec![took]));
    }
    memory.push(row(named::MH, vec![vec![for_one], vec![of_all]]));
    fills.push(row(Contender::MhTc.name(), vec![samples.fills]));
    let [calm, swept] = samples.latencies.map(|quantiles| quantiles.to_vec());
    let made = |name, title: &str, unit, columns: Vec<String>, rows| Table {
        name,
        title: title.to_owned(),
        unit,
        more_is_better: false,
        columns,
        rows,
        // Of these, the rows are parts of a whole, or different things.
        baseline: if PARTS_OF_A_WHOLE.contains(&name) { NO_BASELINE } else { 0 },
    };
    vec![
        made(
            table::FOOTPRINT_MEMORY,
            "Kernel memory per established flow with its NAT binding",
            "bytes",
            vec![named::ONE_FLOW.into(), "all tables, for each flow that fits".into()],
            memory,
        ),
        made(
            table::FOOTPRINT_MAPS,
            "Kernel memory of mh's maps",
            "MiB",
            vec![format!("room for {with} and half as many")],
            maps,
        ),
        made(
            "footprint-start",
            "Time until mhd is ready",
            "ms",
            vec!["from its start".into()],
            vec![
                row("first start: makes maps, loads, attaches", vec![samples.first_starts]),
                row("restart: adopts maps", vec![samples.restarts]),
                row(&format!("restart: adopts maps with {with}"), vec![samples.full_restarts]),
            ],
        ),
        made(
            "footprint-fill",
            "Time to have all flows in the tables, by a packet each way through packet sockets",
            "s",
            vec![with.clone()],
            fills,
        ),
        made(
            table::FOOTPRINT_CONTROLLER,
            "Processor time of the controller",
            "% of a core",
            vec![with.clone()],
            vec![
                row(named::SWEEP, vec![samples.sweep_shares]),
                row("mhd as a whole, sweeps and rests together", vec![samples.mhd_shares]),
            ],
        ),
        made(
            table::FOOTPRINT_SWEEP,
            "An expiry sweep",
            "s",
            vec![with.clone()],
            vec![
                row("from beginning to end", vec![samples.sweep_seconds]),
                row("its processor time", vec![samples.sweep_cpu_seconds]),
            ],
        ),
        made(
            table::FOOTPRINT_LATENCY,
            &format!("A request and its answer through the router (UDP), with {with} in its tables"),
            "µs",
            QUANTILES.map(|(name, _)| name.to_owned()).to_vec(),
            vec![row(named::CALM, calm), row(named::SWEPT, swept)],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_per_flow() {
        let taken = |name, bytes, entries| Taken { name, bytes, entries };
        let maps = [
            taken(map::FLOWS4, 2000, 20),
            taken(map::BY_INSIDE4, 640, 8),
            taken(map::BY_OUTSIDE4, 1600, 16),
            taken(map::SETTINGS, 160, 1),
        ];
        let (one, all) = per_flow(&maps).unwrap_or_default();
        assert!((one - (200.0 + 80.0 + 100.0)).abs() < 1e-9, "{one}");
        assert!((all - 4400.0 / 8.0).abs() < 1e-9, "{all}");
    }
}

//! `cargo xtask bench tcp`: how fast TCP gets through each router, by iperf3 over veth with segmentation offload.
//!
//! Topology and routers: see [`site`](crate::site). Routers take turns within each setting of each round, in another order each round.
//!
//! What is measured is the machine as a whole: sender, router and receiver share its cores, and with segmentation offload the router
//! handles one packet of up to 64 KiB where the wire would have 45. mh's XDP is measured for completeness and is not comparable: a veth
//! device whose peer has an XDP program does without segmentation offload, and checksums are computed in software, so that every
//! segment of 1448 bytes goes through the stacks by itself. That is what `mode = "auto"` spares veth devices.

use std::thread::available_parallelism;

use anyhow::{Context as _, Result};

use crate::effort::Effort;
use crate::machine;
use crate::report::{Row, Table};
use crate::router::Contender;
use crate::site::{Needs, READY, SERVER, Site, chosen};

/// Seconds per measurement.
const SECONDS: u32 = 2;
/// The same of a quick run.
const QUICK_SECONDS: u32 = 1;
/// Settings of a quick run: the first.
const QUICK_SETTINGS: usize = 2;

/// How the connections are made.
struct Setting {
    streams: u32,
    /// From the server to the client.
    down: bool,
}

/// All of them.
const SETTINGS: [Setting; 4] = [
    Setting { streams: 1, down: false },
    Setting { streams: 1, down: true },
    Setting { streams: 8, down: false },
    Setting { streams: 8, down: true },
];

/// Measures.
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    let seconds = effort.pick(SECONDS, QUICK_SECONDS);
    let settings = &SETTINGS[..effort.pick(SETTINGS.len(), QUICK_SETTINGS)];
    let needs = Needs { flows: 0, pools: false, sections: "" };
    let sites = chosen(effort).map(|contender| Site::build(contender, &needs)).collect::<Result<Vec<_>>>()?;
    let mut servers = Vec::new();
    for site in &sites {
        let server = ["iperf3", "-s", "-B", &SERVER.to_string(), "--forceflush"];
        let mut server = site.server.spawn("iperf3", &server)?;
        server.wait_for_line("Server listening", READY)?;
        servers.push(server);
    }
    let mut samples = vec![vec![Vec::new(); settings.len()]; sites.len()];
    for round in 0..effort.rounds {
        for (column, setting) in settings.iter().enumerate() {
            for turn in 0..sites.len() {
                let row = (turn + round) % sites.len();
                let site = &sites[row];
                let gigabits = gigabits(site, setting, seconds).with_context(|| site.contender.name())?;
                samples[row][column].push(gigabits);
            }
        }
    }
    let columns = settings.iter().map(|Setting { streams, down }| {
        let direction = if *down { "from the server" } else { "to the server" };
        format!("{streams} {}, {direction}", if *streams == 1 { "stream" } else { "streams" })
    });
    let rows = sites.iter().zip(samples).map(|(site, samples)| {
        let note = if site.contender == Contender::MhXdp { " (no segmentation offload)" } else { "" };
        Row { name: format!("{}{note}", site.contender.name()), samples }
    });
    Ok(vec![Table {
        name: "tcp",
        title: "TCP throughput over veth; XDP on veth switches segmentation offload off, so that all segments go one by one".into(),
        unit: "Gbit/s",
        more_is_better: true,
        columns: columns.collect(),
        rows: rows.collect(),
        baseline: 0,
    }])
}

fn gigabits(site: &Site, setting: &Setting, seconds: u32) -> Result<f64> {
    let (server, seconds, streams) = (SERVER.to_string(), seconds.to_string(), setting.streams.to_string());
    let mut line = vec!["iperf3", "-c", &server, "-t", &seconds, "-P", &streams, "-J", "--connect-timeout", "3000"];
    // Sender and receiver each on a core of their own, always the same: where the scheduler puts them would decide otherwise.
    if available_parallelism()?.get() > 1 {
        line.extend(["-A", "0,1"]);
    }
    if setting.down {
        line.push("-R");
    }
    let _turn = machine::Turn::wait(machine::Shared::Core)?;
    let printed = site.client.run(&line)?;
    let report: serde_json::Value = serde_json::from_str(&printed).context("iperf3's JSON")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3's throughput")?;
    anyhow::ensure!(bits > 0.0, "nothing came through");
    Ok(bits / 1e9)
}

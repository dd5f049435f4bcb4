//! `cargo xtask bench http`: short HTTP connections through each router, from a client behind it to nginx: how many, and how long each takes.
//!
//! Topology and routers: see [`site`](crate::site). Each request has a connection of its own (`Connection: close`), so that each is a new
//! flow: a decision, a binding, a handshake, a few packets, an end. The client opens the next connection when one has ended, with one or
//! with many at a time. A request takes from the call that connects to the end of the stream: the handshake is in it, and there is where a
//! router's way of beginning a flow shows. (Generators such as wrk start the clock when the connection is there.)
//!
//! The client's ports come around after some 55,000 connections, which then are flows that begin again where others have ended a while
//! ago. nginx answers with the address that it sees, and every answer is checked: what is not translated as it must be, or is lost, is
//! an error and not a figure.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::Ipv4Net;
use mh_tests::lab::{Process, require_tools, wait_until};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::effort::Effort;
use crate::machine;
use crate::names::table;
use crate::report::{Row, Table};
use crate::site::{Needs, READY, SERVER, Site, chosen};

/// How long a measurement takes.
const DURATION: Duration = Duration::from_secs(3);
/// The same of a quick run.
const QUICK_DURATION: Duration = Duration::from_millis(500);
/// Connections at a time.
const AT_A_TIME: [usize; 2] = [1, 16];
/// The shares of requests that take no longer than is shown.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
/// How long a request may take: longer than TCP takes to send a lost SYN again, twice.
const LONGEST: Duration = Duration::from_secs(5);
/// What is asked.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 192.0.2.10\r\nConnection: close\r\n\r\n";
/// What an answer has no more bytes than.
const ANSWER: usize = 1024;
/// The client's ports.
const PORTS: &str = "10000 65535";
/// All of the client's ports, on one uplink or the other.
const FLOWS: u32 = 2 * 65_536;
/// One client may use all of them.
const SECTIONS: &str = "\n[limits]\nbindings_per_source = 0\nnew_flows_per_source = 0\n";
/// The port of the web server.
const PORT: u16 = 80;

/// What became of a measurement.
struct Requests {
    per_second: f64,
    /// Microseconds, sorted.
    latencies: Vec<f64>,
}

/// Measures.
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    let duration = effort.pick(DURATION, QUICK_DURATION);
    require_tools(&["nginx", "taskset"])?;
    let needs = Needs { flows: FLOWS, pools: false, sections: SECTIONS };
    let sites = chosen(effort).map(|contender| Site::build(contender, &needs)).collect::<Result<Vec<_>>>()?;
    let mut servers = Vec::new();
    for site in &sites {
        site.client.sysctl("ipv4/ip_local_port_range", PORTS)?;
        // Whoever ends a connection keeps its port for a minute otherwise.
        site.client.sysctl("ipv4/tcp_tw_reuse", "1")?;
        servers.push(serve(site)?);
    }
    let mut rates = vec![vec![Vec::new(); AT_A_TIME.len()]; sites.len()];
    let mut latencies = vec![vec![Vec::new(); AT_A_TIME.len() * QUANTILES.len()]; sites.len()];
    for round in 0..effort.rounds {
        for (column, at_a_time) in AT_A_TIME.into_iter().enumerate() {
            for turn in 0..sites.len() {
                let row = (turn + round) % sites.len();
                let site = &sites[row];
                let requests = ask(site, at_a_time, duration)
                    .with_context(|| format!("{}, {at_a_time} at a time", site.contender.name()))?;
                rates[row][column].push(requests.per_second);
                for (number, (_, share)) in QUANTILES.into_iter().enumerate() {
                    let latency = quantile(&requests.latencies, share).context("no request was answered")?;
                    latencies[row][column * QUANTILES.len() + number].push(latency);
                }
            }
        }
    }
    let named = |samples: Vec<Vec<Vec<f64>>>| -> Vec<Row> {
        let rows = sites.iter().zip(samples);
        rows.map(|(site, samples)| Row { name: site.contender.name().to_owned(), samples }).collect()
    };
    let columns = AT_A_TIME.map(|at_a_time| format!("{at_a_time} at a time"));
    let quantiles =
        columns.iter().flat_map(|column| QUANTILES.map(|(name, _)| format!("{column}, {name}"))).collect::<Vec<_>>();
    Ok(vec![
        Table {
            name: "http",
            title: "HTTP requests, each with a connection of its own".into(),
            unit: "requests/s",
            more_is_better: true,
            columns: columns.to_vec(),
            rows: named(rates),
            baseline: 0,
        },
        Table {
            name: table::HTTP_LATENCY,
            title: "HTTP requests, each with a connection of its own: from connecting to the end of the answer".into(),
            unit: "µs",
            more_is_better: false,
            columns: quantiles,
            rows: named(latencies),
            baseline: 0,
        },
    ])
}

/// The value that a share of the sorted samples does not exceed.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the number of samples")]
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().checked_sub(1)?)).copied()
}

/// The core for the client, and that for the server: others if there are others.
fn cores() -> Result<(usize, usize)> {
    Ok((0, available_parallelism()?.get().min(2) - 1))
}

/// Starts nginx on the server.
fn serve(site: &Site) -> Result<Process> {
    let directory = site.lab().directory().display().to_string();
    let config = site.lab().directory().join("nginx.conf");
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("  {what}_temp_path {directory}/nginx-{what};\n"))
        .concat();
    fs::write(
        &config,
        format!(
            "daemon off;\nmaster_process off;\nuser root;\npid {directory}/nginx.pid;\nerror_log stderr;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n{temporary}  access_log off;\n  \
             server {{ listen {SERVER}:{PORT} backlog=4096; location / {{ return 200 \"$remote_addr\\n\"; }} }}\n}}\n"
        ),
    )
    .with_context(|| config.display().to_string())?;
    let (core, config) = (cores()?.1.to_string(), config.display().to_string());
    let line = ["taskset", "--cpu-list", &core, "nginx", "-p", &directory, "-c", &config, "-e", "stderr"];
    let mut nginx = site.server.spawn("nginx", &line)?;
    wait_until("nginx to answer", READY, || {
        ensure!(nginx.is_running(), "nginx ended: {}", nginx.stderr());
        Ok(ask(site, 1, Duration::from_millis(1)).is_ok())
    })?;
    Ok(nginx)
}

/// Asks for as long as told, with so many connections at a time.
fn ask(site: &Site, at_a_time: usize, duration: Duration) -> Result<Requests> {
    let outside = site.outside();
    let core = cores()?.0;
    let _turn = machine::Turn::wait(machine::Shared::Core)?;
    site.client.enter(move || -> Result<Requests> {
        let mut only = CpuSet::new();
        only.set(core)?;
        sched_setaffinity(Pid::from_raw(0), &only)?;
        let begun = Instant::now();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let mut latencies = runtime.block_on(async {
            let mut clients = JoinSet::new();
            for _ in 0..at_a_time {
                let outside = outside.clone();
                clients.spawn(async move {
                    let mut latencies = Vec::new();
                    while begun.elapsed() < duration {
                        let asked = Instant::now();
                        timeout(LONGEST, request(&outside)).await.context("a request was not answered in time")??;
                        latencies.push(asked.elapsed().as_secs_f64() * 1e6);
                    }
                    anyhow::Ok(latencies)
                });
            }
            let mut all = Vec::new();
            while let Some(latencies) = clients.join_next().await {
                all.extend(latencies??);
            }
            anyhow::Ok(all)
        })?;
        let per_second = latencies.len() as f64 / begun.elapsed().as_secs_f64();
        latencies.sort_by(f64::total_cmp);
        Ok(Requests { per_second, latencies })
    })?
}

/// One request; its answer must be one of these addresses.
async fn request(outside: &[Ipv4Net]) -> Result<()> {
    let mut stream = TcpStream::connect(SocketAddrV4::new(SERVER, PORT)).await.context("connect")?;
    stream.write_all(REQUEST).await.context("ask")?;
    let mut answer = [0; ANSWER];
    let mut length = 0;
    loop {
        match stream.read(&mut answer[length..]).await.context("read the answer")? {
            0 => break,
            more => length += more,
        }
    }
    let text = String::from_utf8_lossy(&answer[..length]);
    let source = text.lines().last().and_then(|line| line.parse().ok());
    let source: Ipv4Addr = source.with_context(|| format!("no address in the answer {text:?}"))?;
    ensure!(outside.iter().any(|net| net.contains(&source)), "the server saw {source}, which is none of {outside:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles() {
        let sorted: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(quantile(&sorted, 0.5), Some(501.0));
        assert_eq!(quantile(&sorted, 0.999), Some(1000.0));
        assert_eq!(quantile(&sorted, 1.0), Some(1000.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.99), None);
    }
}

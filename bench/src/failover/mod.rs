//! `cargo xtask bench failover`: how long a failed uplink is felt, with mh and with the classic set-up in the same router's place.
//!
//! ```text
//!  client1 ── switch ── lan0 ┌────────┐ wan1 ── isp1 ──┐
//!   new UDP flows,           │ router │                ├── server: tells by which ISP they came, answers
//!   one TCP connection       └────────┘ wan2 ── isp2 ──┘
//! ```
//!
//! Nearly all flows go by isp1, which fails in one of two ways: its link loses the carrier, or it forwards nothing any more while its link
//! stays up and its own address answers. Each measurement is repeated, with both uplinks well in between. All clocks are this machine's
//! one monotonic clock.

mod classic;
mod report;
mod round;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::{TcpServer, UdpServer};
use mh_tests::lab::{Lab, Mhd, Mode, Options, SERVER, TwoIsps, wait_until};

use self::classic::Classic;
use self::report::Row;
use self::round::{Cut, Sources};

/// Measures failover times.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// How often each measurement is repeated.
    #[arg(long, default_value_t = 20)]
    rounds: u32,

    /// Measures only what has this in its name.
    #[arg(long)]
    only: Option<String>,

    /// Where the results go as JSON.
    #[arg(long, default_value = "bench/results/failover.json")]
    json: PathBuf,
}

/// How the failure of an uplink is found out beyond its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Between the beginnings of two probes.
    pub interval: Duration,
    /// When a probe counts as lost.
    pub timeout: Duration,
}

impl Probe {
    /// mh's default.
    const DEFAULT: Self = Self { interval: Duration::from_millis(500), timeout: Duration::from_millis(400) };
    const FAST: Self = Self { interval: Duration::from_millis(100), timeout: Duration::from_millis(90) };
    /// Lost in a row until the uplink is down; mh's default.
    pub const DOWN: u32 = 3;
    /// Answered in a row until it is up again; mh's default.
    pub const UP: u32 = 5;
}

/// Who routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Router {
    Mh { on_down: &'static str, probe: Option<Probe> },
    Classic(Probe),
}

/// A measurement.
#[derive(Clone, Copy, Debug)]
struct Case {
    router: Router,
    cut: Cut,
}

impl Case {
    fn all() -> Vec<Self> {
        let mh = |on_down, probe| Router::Mh { on_down, probe };
        let case = |cut, router| Self { router, cut };
        vec![
            case(Cut::Carrier, mh("reset", None)),
            case(Cut::Carrier, mh("hold", None)),
            case(Cut::Carrier, Router::Classic(Probe::DEFAULT)),
            case(Cut::Carrier, Router::Classic(Probe::FAST)),
            case(Cut::BlackHole, mh("reset", Some(Probe::DEFAULT))),
            case(Cut::BlackHole, Router::Classic(Probe::DEFAULT)),
            case(Cut::BlackHole, mh("reset", Some(Probe::FAST))),
            case(Cut::BlackHole, Router::Classic(Probe::FAST)),
        ]
    }

    fn name(&self) -> String {
        let router = match self.router {
            Router::Mh { on_down, probe: None } => format!("mh, {on_down}"),
            Router::Mh { on_down, probe: Some(probe) } => format!("mh, {on_down}, probe every {:?}", probe.interval),
            Router::Classic(probe) => format!("iptables, ping every {:?}", probe.interval),
        };
        format!("{}: {router}", self.cut.name())
    }
}

/// What routes now.
enum Running {
    Mh(Mhd),
    Classic(Classic),
}

impl Running {
    fn start(lab: &TwoIsps, router: Router) -> Result<Self> {
        match router {
            Router::Mh { on_down, probe } => {
                let mhd = Mhd::start(lab.lab(), &lab.router, &config(lab, on_down, probe))?;
                Ok(Self::Mh(mhd))
            }
            Router::Classic(probe) => Classic::start(lab, probe).map(Self::Classic),
        }
    }

    /// Waits until isp1 is in use again.
    fn wait_until_well(&mut self) -> Result<()> {
        match self {
            Self::Mh(mhd) => mhd.wait_for_state("isp1", "up").map(drop),
            Self::Classic(classic) => classic.wait_until_well(),
        }
    }

    /// Forgets the flows of the round before.
    fn forget_flows(&self, lab: &TwoIsps) -> Result<()> {
        match self {
            Self::Mh(mhd) => mhd.ctl(&["flows", "flush"]).map(drop),
            Self::Classic(_) => lab.router.run(&["conntrack", "-F"]).map(drop),
        }
    }

    fn stop(self, lab: &TwoIsps) -> Result<()> {
        match self {
            Self::Mh(mhd) => mhd.ctl(&["detach"]).map(drop),
            Self::Classic(classic) => classic.stop(lab),
        }
    }
}

/// mhd's config: nearly all flows by isp1.
fn config(lab: &TwoIsps, on_down: &str, probe: Option<Probe>) -> String {
    let mut more = format!("on_down = \"{on_down}\"\ndamping = {{ losses = 0 }}\n");
    if let Some(Probe { interval, timeout }) = probe {
        more += &format!("probe = {{ targets = [\"icmp://{SERVER}\"]");
        if probe != Some(Probe::DEFAULT) {
            more += &format!(", interval = \"{interval:?}\", timeout = \"{timeout:?}\"");
        }
        more += " }\n";
    }
    // One client begins the flows of many.
    let limits = "\n[limits]\nbindings_per_source = 0\nnew_flows_per_source = 0\n";
    let config = lab.config(&[65_535, 1]).replace("weight = ", &format!("{more}weight = "));
    config.replace("conntrack_entries = 65536\nbindings = 16384", "conntrack_entries = 262144\nbindings = 131072")
        + limits
}

/// Measures all cases, prints the table and writes the results.
///
/// # Errors
/// If a laboratory can't be built, or a round doesn't end.
pub fn measure(arguments: &Arguments) -> Result<()> {
    let lab = Lab::two_isps(&Options::new(Mode::Tc))?;
    let tcp = TcpServer::start(&lab.server, lab.server_at(7000))?;
    let udp = UdpServer::start(&lab.server, lab.server_at(7000))?;
    let wanted = |case: &Case| arguments.only.as_ref().is_none_or(|part| case.name().contains(part.as_str()));
    let mut sources = Sources::new();
    let mut rows = Vec::new();
    for case in Case::all().into_iter().filter(wanted) {
        let mut running = Running::start(&lab, case.router).with_context(|| case.name())?;
        let mut row = Row::new(case.name());
        for number in 1..=arguments.rounds {
            running.wait_until_well()?;
            settle(&lab, &udp)?;
            running.forget_flows(&lab)?;
            let times = round::measure(&lab, tcp.address(), case.cut, number, &mut sources);
            case.cut.mend(&lab)?;
            let times = times.with_context(|| format!("{}, round {number}", case.name()))?;
            eprintln!("{}, round {number}: {times:?}", case.name());
            row.add(&times);
        }
        running.stop(&lab)?;
        rows.push(row);
    }
    println!("{}", report::table(&rows));
    report::write(&arguments.json, arguments.rounds, &rows)
}

/// Waits until a new flow goes through: what the kernel and the ISPs take after a link came back is not this measurement's.
fn settle(lab: &TwoIsps, udp: &UdpServer) -> Result<()> {
    let isp1 = lab.uplink(0)?;
    wait_until("isp1's link", Duration::from_secs(5), || {
        Ok(lab.router.ping(isp1.gateway, 1)? == 1 && lab.client1.ping(*udp.address().ip(), 1)? == 1)
    })
    .map(drop)
}

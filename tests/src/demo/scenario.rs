//! What happens in the demonstration, step by step.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::failover;
use super::report::{Report, Terminal, milliseconds};
use super::services::Services;
use crate::lab::traffic::{Split, TcpFlow, TcpServer, UdpFlow, UdpServer, tcp_flows, udp_flows};
use crate::lab::{Lab, Mhd, Mode, Options, SERVER, TwoIsps};

/// Flows per protocol and round, over both clients.
const FLOWS: usize = 300;
/// The port of the internet host's servers that tell which source they saw.
const PORT: u16 = 7000;
/// The longest time that new connections may go unanswered when an uplink's link is cut.
const FAILOVER_LIMIT: Duration = Duration::from_secs(1);

/// The laboratory with everything running in it.
#[derive(Debug)]
pub(super) struct Scenario {
    terminal: Terminal,
    tcp: TcpServer,
    udp: UdpServer,
    services: Services,
    pub(super) mhd: Mhd,
    pub(super) lab: TwoIsps,
}

/// Flows of one round, kept open.
#[derive(Debug)]
struct Round {
    tcp: Vec<TcpFlow>,
    udp: Vec<UdpFlow>,
}

impl Scenario {
    /// Builds the laboratory and starts the servers and mhd.
    pub(super) fn new(mode: Mode, config: &str, terminal: Terminal) -> Result<Self> {
        terminal.heading("Laboratory: two clients, the router, two ISPs, the internet behind them");
        let begun = Instant::now();
        let lab = Lab::two_isps(&Options::new(mode))?;
        let address = SocketAddrV4::new(SERVER, PORT);
        let tcp = TcpServer::start(&lab.server, address)?;
        let udp = UdpServer::start(&lab.server, address)?;
        let services = Services::start(lab.lab(), &lab.server)?;
        for line in [
            "client1 ─┐                    ┌ wan1 198.51.100.2 ── isp1 ─┐",
            "         ├─ lan0 ─── router ──┤                            ├─ server 192.0.2.10",
            "client2 ─┘   192.168.1.0/24   └ wan2 203.0.113.2  ── isp2 ─┘   (nginx, iperf3, tcp, udp)",
        ] {
            terminal.note(line);
        }
        terminal.note(&format!("built in {}", milliseconds(begun.elapsed())));
        let mhd = Mhd::start(lab.lab(), &lab.router, config).context("start mhd in the router")?;
        Ok(Self { terminal, tcp, udp, services, mhd, lab })
    }

    /// Runs all steps.
    pub(super) fn run(&mut self, report: &mut Report) {
        let ready = self.mhd.ready_after();
        report.add("mhd ready after", "under 1 s", Ok((ready < Duration::from_secs(1), milliseconds(ready))));
        self.terminal.heading("mhd runs in the router");
        self.show(&["status"]);
        self.first_traffic(report);

        self.terminal.heading(&format!("{FLOWS} TCP connections and {FLOWS} UDP flows at weights 2:1"));
        let before = self.round(report, [2, 1]);
        self.conntrack(report, &before);

        self.terminal.heading("Weights 1:1, at once, for new flows");
        let change = self.show(&["weights", "isp1=1", "isp2=1"]);
        if !change {
            report.add("mhctl weights", "exit status 0", Ok((false, "refused".into())));
        }
        let mut after = self.round(report, [1, 1]);
        self.pinned(report, before);
        self.throughput(report);
        self.failover(report, &mut after.tcp);
        self.terminal.heading("In the end");
        self.show(&["status"]);
    }

    /// The outside address of an uplink.
    fn source(&self, index: usize) -> Ipv4Addr {
        self.lab.uplink(index).map_or(Ipv4Addr::UNSPECIFIED, |uplink| uplink.address)
    }

    /// Quotes an mhctl command; false if it failed.
    fn show(&self, arguments: &[&str]) -> bool {
        let command = format!("mhctl {}", arguments.join(" "));
        match self.mhd.ctl(arguments) {
            Ok(printed) => self.terminal.command(&command, &printed),
            Err(error) => {
                self.terminal.command(&command, &format!("{error:#}"));
                return false;
            }
        }
        true
    }

    fn first_traffic(&self, report: &mut Report) {
        self.terminal.heading("Ping and HTTP");
        for client in [&self.lab.client1, &self.lab.client2] {
            let outcome = client.ping_timed(SERVER, 10);
            let outcome = outcome.map(|(replies, average)| {
                (replies == 10, format!("{replies} replies, {:.2} ms", average.as_secs_f64() * 1e3))
            });
            if let Ok((_, measured)) = &outcome {
                self.terminal.note(&format!("{}$ ping {SERVER}: {measured}", client.name()));
            }
            report.add(&format!("ping from {}", client.name()), "10 of 10", outcome);
        }
        let outcome = [&self.lab.client1, &self.lab.client2].into_iter().try_fold(0, |fetched, client| {
            let sources = self.services.fetch(client, 10)?;
            self.terminal
                .note(&format!("{}$ curl http://{SERVER}/page.txt, 10 times: nginx saw {sources}", client.name()));
            let known = sources.iter().filter(|(source, _)| self.lab.uplink_of(*source).is_some());
            anyhow::Ok(fetched + known.map(|(_, count)| count).sum::<usize>())
        });
        let outcome = outcome.map(|fetched| (fetched == 20, format!("{fetched} pages of 1 MB")));
        report.add("curl from nginx", "20, byte for byte, from the uplinks' addresses", outcome);
    }

    /// Opens the flows of a round and judges their split.
    fn round(&self, report: &mut Report, weights: [u32; 2]) -> Round {
        let [weight1, weight2] = weights;
        let tcp = self.flows(|client, count| tcp_flows(client, self.tcp.address(), count));
        let udp = self.flows(|client, count| udp_flows(client, self.udp.address(), count));
        let tcp_split = tcp.as_ref().map(|flows| Split::of(flows.iter().map(|flow| flow.seen)));
        let udp_split = udp.as_ref().map(|flows| Split::of(flows.iter().map(|flow| flow.seen)));
        for (protocol, split) in [("tcp", tcp_split), ("udp", udp_split)] {
            let outcome = match split {
                Ok(split) => {
                    self.terminal.note(&format!("{protocol}: the server saw {split}"));
                    let expected = [(self.source(0), weight1), (self.source(1), weight2)];
                    let share = f64::from(weight1) / f64::from(weight1 + weight2);
                    let counts = (split.count(self.source(0)), split.count(self.source(1)));
                    let sigmas = split.sigmas(self.source(0), share);
                    let good = split.total() == FLOWS && split.check(&expected).is_ok();
                    Ok((good, format!("{} : {} ({sigmas:.1} sigma)", counts.0, counts.1)))
                }
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            let name = format!("{FLOWS} {protocol} flows at {weight1}:{weight2}");
            let ideal = (f64::from(weight1) * FLOWS as f64 / f64::from(weight1 + weight2)).round();
            let criterion = format!("{ideal} : {} within 4 sigma, no other source", FLOWS as f64 - ideal);
            report.add(&name, &criterion, outcome);
        }
        Round { tcp: tcp.unwrap_or_default(), udp: udp.unwrap_or_default() }
    }

    /// Half of a round's flows from each client.
    fn flows<T>(&self, open: impl Fn(&crate::lab::Host, usize) -> Result<Vec<T>>) -> Result<Vec<T>> {
        let mut flows = open(&self.lab.client1, FLOWS / 2)?;
        flows.extend(open(&self.lab.client2, FLOWS - FLOWS / 2)?);
        Ok(flows)
    }

    /// Compares the conntrack with what the server saw.
    fn conntrack(&self, report: &mut Report, round: &Round) {
        self.terminal.heading("The conntrack, both tuples");
        self.show(&["flows", "list", "--proto", "tcp", "--limit", "6"]);
        self.show(&["flows", "list", "--proto", "udp", "--limit", "3"]);
        let outcome = self.mhd.flows(&[]).map(|list| {
            let known: std::collections::HashSet<_> = list
                .iter()
                .map(|flow| {
                    let text = |field: &str| flow[field].as_str().unwrap_or_default().to_owned();
                    let port = |field: &str| flow[field].as_u64().unwrap_or_default();
                    (text("protocol"), text("src"), port("sport"), text("nat_src"), port("nat_sport"))
                })
                .collect();
            let shown = |protocol: &str, local: SocketAddrV4, seen: SocketAddrV4| {
                let tuple = (
                    protocol.to_owned(),
                    local.ip().to_string(),
                    u64::from(local.port()),
                    seen.ip().to_string(),
                    u64::from(seen.port()),
                );
                known.contains(&tuple)
            };
            let tcp = round.tcp.iter().filter(|flow| shown("tcp", flow.local, flow.seen)).count();
            let udp = round.udp.iter().filter(|flow| shown("udp", flow.local, flow.seen)).count();
            (tcp == FLOWS && udp == FLOWS, format!("{tcp} tcp, {udp} udp"))
        });
        let criterion = format!("all {FLOWS} + {FLOWS}, as the server saw them");
        report.add("flows in the conntrack", &criterion, outcome);
    }

    /// Flows begun before the weights changed must be where they were.
    fn pinned(&self, report: &mut Report, before: Round) {
        let Round { mut tcp, udp } = before;
        let tcp_alive = tcp.iter_mut().filter_map(|flow| flow.echo().ok()).count();
        let udp_same = udp.iter().filter(|flow| flow.ask().is_ok_and(|seen| seen == flow.seen)).count();
        self.terminal.note(&format!(
            "begun before: {tcp_alive} tcp connections still answer, {udp_same} udp flows still have their source"
        ));
        let good = tcp_alive == FLOWS && udp_same == FLOWS;
        let criterion = format!("all {FLOWS} + {FLOWS}, same source");
        report.add("flows begun before stayed", &criterion, Ok((good, format!("{tcp_alive} tcp, {udp_same} udp"))));
    }

    fn throughput(&mut self, report: &mut Report) {
        self.terminal.heading("Throughput");
        for (reverse, name) in [(false, "iperf3 up"), (true, "iperf3 down")] {
            let outcome = self.services.throughput_bps(&self.lab.client1, reverse);
            let outcome = outcome.map(|bps| (bps > 1e8, format!("{:.2} Gbit/s", bps / 1e9)));
            if let Ok((_, measured)) = &outcome {
                self.terminal.note(&format!("client1$ {name}: {measured}"));
            }
            report.add(name, "over 0.1 Gbit/s", outcome);
        }
    }

    /// Cuts isp1's link, and mends it.
    fn failover(&self, report: &mut Report, connections: &mut [TcpFlow]) {
        self.terminal.heading("isp1's link is cut");
        let outcome = self.cut();
        match outcome {
            Ok(failover) => {
                let (tried, through) = failover.before;
                self.terminal.note(&format!("before: {through} of {tried} new connections through isp1"));
                let (tried, lost) = failover.after;
                self.terminal.note(&format!("after: {tried} new connections, {lost} of them never answered"));
                self.show(&["status"]);
                let first = failover.first_answer;
                let criterion = format!("under {}", milliseconds(FAILOVER_LIMIT));
                let measured = milliseconds(first);
                report.add("cut to first answered connection", &criterion, Ok((first < FAILOVER_LIMIT, measured)));
                let last = failover.last_unanswered;
                let measured = format!("{} ({lost} of {tried} lost)", milliseconds(last));
                report.add("cut to all answered", &criterion, Ok((last < FAILOVER_LIMIT, measured)));
            }
            Err(error) => report.add("cut to first answered connection", "answered", Err(error)),
        }
        let isp2 = self.source(1);
        let survivors = connections.iter_mut().filter(|flow| *flow.seen.ip() == isp2);
        let survived: Vec<bool> = survivors.map(|flow| flow.echo().is_ok()).collect();
        let alive = survived.iter().filter(|alive| **alive).count();
        let good = !survived.is_empty() && alive == survived.len();
        report.add("connections on isp2 survived the cut", "all", Ok((good, format!("{alive} of {}", survived.len()))));
        report.add("isp1 is used again when mended", "new flows on both", self.mend());
    }

    fn cut(&self) -> Result<failover::Failover> {
        // Nearly everything on the uplink that is going to be cut, so that an answer afterwards says something.
        ensure!(self.show(&["weights", "isp1=4095", "isp2=1"]), "mhctl weights was refused");
        let isp = &self.lab.uplink(0)?.isp;
        let measured = failover::measure(&self.lab.client1, self.tcp.address(), self.source(0), || {
            isp.ip(&["link set eth0 down"])
        })?;
        self.mhd.wait_for_state("isp1", "down")?;
        Ok(measured)
    }

    fn mend(&self) -> Result<(bool, String)> {
        self.lab.uplink(0)?.isp.ip(&["link set eth0 up"])?;
        let up_after = self.mhd.wait_for_state("isp1", "up")?;
        ensure!(self.show(&["weights", "isp1=1", "isp2=1"]), "mhctl weights was refused");
        let flows = udp_flows(&self.lab.client1, self.udp.address(), 40)?;
        let split = Split::of(flows.iter().map(|flow| flow.seen));
        let (first, second) = (split.count(self.source(0)), split.count(self.source(1)));
        Ok((first > 0 && second > 0, format!("{first} : {second}, up after {}", milliseconds(up_after))))
    }
}

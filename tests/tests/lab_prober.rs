//! Probers against real hosts: what each kind of target answers, by which way, and that targets that hang disturb no others.
//!
//! ```text
//!         ┌────────┐ up0 10.0.0.2 ─── 10.0.0.1 eth0 ┌─────┐
//!         │ router │                                │ far │ 192.0.2.0/24: itself; 198.51.100.0/24: lost; 198.51.101.0/24: unreachable
//!         └────────┘ up1 10.0.1.2 ─── 10.0.1.1 eth1 └─────┘
//!  mark 1: by 10.0.0.1; mark 2 and the main table: by 10.0.1.1
//! ```
//!
//! There is no mhd: probers are started as its controller does. The hosts answer ARP for the address of the link only, so that whoever
//! takes no gateway gets nowhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::time::Duration;

use anyhow::Result;
use mh_tests::lab::traffic::Asked;
use mh_tests::lab::{Host, Lab, skipped, wait_until};
use mh_userspace::config::{self, Probe};
use mh_userspace::health::{Failure, Outcome};
use mh_userspace::probe::{Path, Prober, Round};
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

const HTTP: u16 = 80;
const CLOSED: u16 = 81;
const MUTE: u16 = 8080;
const DNS: u16 = 53;

/// The hosts, and what listens on the far one.
struct Scene {
    router: Host,
    far: Host,
    /// The far one's HTTP and DNS.
    asked: Asked,
    _lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let (router, far) = (lab.host("router")?, lab.host("far")?);
        for host in [&router, &far] {
            host.sysctl("ipv4/conf/all/rp_filter", "0")?;
            host.sysctl("ipv4/conf/default/rp_filter", "0")?;
            host.sysctl("ipv4/conf/all/arp_ignore", "1")?;
        }
        far.sysctl("ipv4/ip_forward", "1")?;
        // Two kinds of refusal go to one address at a time.
        far.sysctl("ipv4/icmp_ratelimit", "0")?;
        far.ip(&[
            "route add local 192.0.2.0/24 dev lo",
            "route add blackhole 198.51.100.0/24",
            "route add unreachable 198.51.101.0/24",
        ])?;
        let asked = Asked::start(
            &far,
            SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, HTTP),
            SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 3), DNS),
        )?;
        let scene = Self { router, far, asked, _lab: lab };
        scene.wire(0)?;
        scene.wire(1)?;
        scene.router.ip(&["route add default via 10.0.1.1"])?;
        Ok(scene)
    }

    /// Lays the line of an uplink.
    fn wire(&self, uplink: u8) -> Result<()> {
        let (near, remote) = (format!("up{uplink}"), format!("eth{uplink}"));
        self.router.connect(&near, &self.far, &remote)?;
        self.far.ip(&[format!("address add 10.0.{uplink}.1/24 dev {remote}")])?;
        self.router.ip(&[
            format!("address add 10.0.{uplink}.2/24 dev {near}"),
            format!("route add default via 10.0.{uplink}.1 table {}", 100 + uplink),
            format!("rule add fwmark {} table {}", mark(uplink), 100 + uplink),
        ])?;
        self.router.wait_for_link(&near)
    }

    /// Runs a test in the router, at most for a minute, while the far host serves.
    fn run<T: Send>(&self, test: impl AsyncFnOnce() -> T + Send) -> Result<T> {
        let mute = self.far.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, MUTE)).unwrap())?;
        self.router.enter(|| {
            // Its threads are in the router's namespace, as this one is.
            let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let result = timeout(Duration::from_secs(60), test()).await.expect("the test takes a minute");
                // Connections to it stay in its queue, until that is full.
                drop(mute);
                result
            })
        })
    }

    /// The sockets in the router's namespace other than netlink's, one a line.
    fn sockets(&self) -> Result<String> {
        self.router.enter(|| {
            let lines = ["tcp", "udp", "raw"].map(|protocol| {
                let text = std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}")).unwrap();
                text.lines().skip(1).map(|line| format!("{protocol}{line}\n")).collect::<String>()
            });
            lines.concat()
        })
    }
}

/// The mark of an uplink's packets.
fn mark(uplink: u8) -> u32 {
    (u32::from(uplink) + 1) << 16
}

fn path(uplink: u8) -> Path {
    Path { interface: format!("up{uplink}"), source: Ipv4Addr::new(10, 0, uplink, 2), mark: mark(uplink) }
}

/// The probe of a config with these targets and lines.
fn probe(targets: &[String], lines: &str) -> Probe {
    let text = format!(
        "lan = [\"lan0\"]\n[uplink.isp1]\ninterface = \"up0\"\n[uplink.isp1.probe]\ntargets = {targets:?}\n{lines}\n"
    );
    let loaded = config::parse(&text).unwrap_or_else(|faults| panic!("{text}\n{faults}"));
    loaded.config.uplinks[0].probe.clone().unwrap()
}

/// A prober and the ends of its channels.
struct Probing {
    _prober: Prober,
    path: watch::Sender<Option<Path>>,
    rounds: mpsc::Receiver<Round>,
}

impl Probing {
    fn start(probe: Probe, path: Option<Path>) -> Self {
        let (path, follow) = watch::channel(path);
        let (reports, rounds) = mpsc::channel(16);
        Self { _prober: Prober::start("isp1".to_owned(), probe, follow, reports), path, rounds }
    }

    async fn next(&mut self) -> Vec<Outcome> {
        self.rounds.recv().await.expect("the prober goes on").outcomes
    }

    /// The outcome of the first target in the next round that has one for which this holds.
    async fn until(&mut self, mut holds: impl FnMut(&Outcome) -> bool) -> Outcome {
        loop {
            let outcome = self.next().await.remove(0);
            if holds(&outcome) {
                return outcome;
            }
        }
    }
}

fn is_answered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered(_))
}

fn targets(urls: &[&str]) -> Vec<String> {
    urls.iter().map(|url| (*url).to_owned()).collect()
}

#[test]
fn each_kind_of_target() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let expected: [(&str, Result<(), Failure>); 13] = [
        ("icmp://192.0.2.1", Ok(())),
        ("icmp://198.51.100.1", Err(Failure::Timeout)),
        ("tcp://192.0.2.2:80", Ok(())),
        (&format!("tcp://192.0.2.2:{CLOSED}"), Err(Failure::Refused)),
        ("tcp://198.51.100.1:80", Err(Failure::Timeout)),
        ("tcp://198.51.101.1:80", Err(Failure::Unreachable)),
        ("http://192.0.2.2/good", Ok(())),
        ("http://192.0.2.2/bad", Err(Failure::Status(503))),
        (&format!("http://192.0.2.2:{MUTE}/"), Err(Failure::Timeout)),
        (&format!("https://192.0.2.2:{CLOSED}/"), Err(Failure::Refused)),
        ("dns://192.0.2.3/www.example", Ok(())),
        ("dns://192.0.2.3/fail.example", Err(Failure::Dns(2))),
        ("dns://192.0.2.2/www.example", Err(Failure::Refused)),
    ];
    let urls: Vec<&str> = expected.iter().map(|(url, _)| *url).collect();
    // Longer than until the second SYN: the kernel misses an ICMP error that is back before connect() has sent the first.
    let probe = probe(&targets(&urls), "interval = \"1500ms\"\ntimeout = \"1400ms\"");
    let scene = Scene::new()?;
    scene.run(async || {
        for uplink in [0, 1] {
            let mut probing = Probing::start(probe.clone(), Some(path(uplink)));
            for _ in 0..2 {
                let outcomes = probing.next().await;
                for ((url, expected), outcome) in expected.iter().zip(&outcomes) {
                    match (expected, outcome) {
                        (Ok(()), Outcome::Answered(rtt)) => {
                            assert!(*rtt < Duration::from_millis(800), "{url}: {rtt:?}")
                        }
                        (Err(failure), Outcome::Failed(found)) => assert_eq!(found, failure, "{url}"),
                        _ => panic!("{url}: {outcome:?}"),
                    }
                }
            }
        }
    })?;
    // Each uplink's connections came from its own address.
    let peers = scene.asked.peers();
    for uplink in [0, 1] {
        assert!(peers.contains(&path(uplink).source.into()), "{peers:?}");
    }
    assert_eq!(scene.sockets()?, "");
    Ok(())
}

#[test]
fn an_uplink_that_is_cut_is_told_from_the_other() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let probe = probe(
        &targets(&["icmp://192.0.2.1", "tcp://192.0.2.2:80", "dns://192.0.2.3/www.example"]),
        "interval = \"100ms\"",
    );
    scene.run(async || {
        let mut probings = [0, 1].map(|uplink| Probing::start(probe.clone(), Some(path(uplink))));
        for probing in &mut probings {
            probing.until(is_answered).await;
        }
        // The main table's default route is the other uplink's, so that nothing of this goes by that.
        scene.far.ip(&["link set eth0 down"]).unwrap();
        probings[0].until(|outcome| !is_answered(outcome)).await;
        for _ in 0..5 {
            let [cut, other] = &mut probings;
            let (cut, other) = (cut.next().await, other.next().await);
            assert!(!cut.iter().any(is_answered), "{cut:?}");
            assert!(other.iter().all(is_answered), "{other:?}");
        }
        scene.far.ip(&["link set eth0 up"]).unwrap();
        probings[0].until(is_answered).await;
    })
}

#[test]
fn a_path_comes_goes_and_changes() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let probe = probe(&targets(&["icmp://192.0.2.1", "tcp://192.0.2.2:80"]), "interval = \"50ms\"");
    scene.run(async || {
        let mut probing = Probing::start(probe, None);
        let none = Outcome::Failed(Failure::NoAddress);
        // Nothing is asked, and nothing reported, before there is a way.
        assert!(timeout(Duration::from_millis(300), probing.next()).await.is_err());
        probing.path.send(Some(path(0))).unwrap();
        probing.until(is_answered).await;
        // An address that is not there.
        let elsewhere = Path { source: Ipv4Addr::new(10, 0, 0, 3), ..path(0) };
        probing.path.send(Some(elsewhere.clone())).unwrap();
        probing.until(|outcome| *outcome == none).await;
        // It need not be told anew when the address is there.
        scene.router.ip(&["address add 10.0.0.3/24 dev up0"]).unwrap();
        probing.until(is_answered).await;
        probing.path.send(None).unwrap();
        // But for what was on its way.
        while timeout(Duration::from_millis(300), probing.next()).await.is_ok() {}
        probing.path.send(Some(path(0))).unwrap();
        probing.until(is_answered).await;
        // The interface is deleted, and made again by the same name.
        scene.router.ip(&["link delete up0"]).unwrap();
        let gone = probing.until(|outcome| !is_answered(outcome)).await;
        assert!(matches!(gone, Outcome::Failed(_)));
        probing.until(|outcome| *outcome == Outcome::Failed(Failure::error("no such interface"))).await;
        scene.router.ip(&["rule delete table 100"]).unwrap();
        scene.wire(0).unwrap();
        probing.until(is_answered).await;
        let both = probing.next().await;
        assert!(both.iter().all(is_answered), "{both:?}");
    })
}

/// The targets of one of five probers: of 64, 49 that answer.
fn mixture(uplink: usize) -> (Vec<String>, usize) {
    let mut urls: Vec<String> = (1..=40).map(|last| format!("icmp://192.0.2.{last}")).collect();
    urls.extend((1..=8).map(|last| format!("tcp://192.0.2.{last}:{HTTP}")));
    urls.push(format!("dns://192.0.2.3/www{uplink}.example"));
    let answering = urls.len();
    urls.extend((1..=10).map(|last| format!("icmp://198.51.100.{last}")));
    urls.extend([
        "tcp://198.51.100.1:80".to_owned(),
        "tcp://198.51.100.2:80".to_owned(),
        format!("http://192.0.2.2:{MUTE}/"),
        format!("http://192.0.2.3:{MUTE}/"),
        "dns://198.51.100.3/www.example".to_owned(),
    ]);
    assert_eq!(urls.len(), 64);
    (urls, answering)
}

/// The median of where in a tenth of a second these times lie, seen from `from`.
fn phase(times: &[Instant], from: Instant) -> Duration {
    let mut phases: Vec<Duration> = times
        .iter()
        .map(|time| Duration::from_nanos(u64::try_from((*time - from).as_nanos() % 100_000_000).unwrap()))
        .collect();
    phases.sort();
    phases[phases.len() / 2]
}

#[test]
fn hundreds_of_targets_every_tenth_of_a_second() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    const SECONDS: u64 = 8;
    let scene = Scene::new()?;
    scene.run(async || {
        let (reports, mut rounds) = mpsc::channel(64);
        let begun = Instant::now();
        let probers: Vec<(watch::Sender<Option<Path>>, Prober)> = (0..5)
            .map(|uplink| {
                let (keep, follow) = watch::channel(Some(path(u8::try_from(uplink % 2).unwrap())));
                let probe = probe(&mixture(uplink).0, "interval = \"100ms\"\ntimeout = \"80ms\"");
                (keep, Prober::start(format!("isp{uplink}"), probe, follow, reports.clone()))
            })
            .collect();
        let mut seen: Vec<Vec<(Instant, Vec<Outcome>)>> = vec![Vec::new(); probers.len()];
        while begun.elapsed() < Duration::from_secs(SECONDS) {
            let round = rounds.recv().await.unwrap();
            let uplink: usize = round.uplink.strip_prefix("isp").unwrap().parse().unwrap();
            seen[uplink].push((Instant::now(), round.outcomes));
        }
        for (uplink, seen) in seen.iter().enumerate() {
            let answering = mixture(uplink).1;
            let expected = usize::try_from(SECONDS * 10).unwrap();
            assert!((expected * 9 / 10..=expected + 1).contains(&seen.len()), "isp{uplink}: {} rounds", seen.len());
            let answered: usize =
                seen.iter().map(|(_, outcomes)| outcomes[..answering].iter().filter(|o| is_answered(o)).count()).sum();
            assert!(
                answered * 100 >= answering * seen.len() * 95,
                "isp{uplink}: {answered} of {answering} * {}",
                seen.len()
            );
            assert!(seen.iter().all(|(_, outcomes)| !outcomes[answering..].iter().any(is_answered)), "isp{uplink}");
            // Each round has targets that do not answer, so all are reported at their timeout: no later at the end than at the start.
            let times: Vec<Instant> = seen.iter().map(|(time, _)| *time).collect();
            let from = times[0] - Duration::from_millis(50);
            let (first, last) = (phase(&times[..20], from), phase(&times[times.len() - 20..], from));
            assert!(first.abs_diff(last) < Duration::from_millis(10), "isp{uplink}: {first:?}, then {last:?}");
        }
        drop(probers);
    })?;
    let mut sockets = String::new();
    wait_until("the sockets to be closed", Duration::from_secs(2), || {
        sockets = scene.sockets()?;
        Ok(sockets.is_empty())
    })
    .unwrap_or_else(|error| panic!("{error}\n{sockets}"));
    Ok(())
}

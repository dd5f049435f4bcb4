//! Three uplinks in two tiers: the second tier is for when none of the first is left, and only as long.
//!
//! ```text
//!                                             ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!  client1 .11, client2 .12 ── switch ── lan0 │            │                             │
//!                        192.168.1.0/24    .1 │ router: mh │ wan2 203.0.113.2 ─── isp2 ──┼── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 │            │                             │
//!                        192.168.2.0/24    .1 └────────────┘ wan3 198.18.3.2 ──── lte ───┘
//!
//!  tiers = [ { isp1 = 2, isp2 = 1 }, { lte = 1 } ]
//! ```
//!
//! What makes these tests fail: a tier that is taken before its turn or too late, weights across tiers, health that is lost before the
//! next tier is in force, flows that move back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use mh_tests::lab::traffic::{Flows, Split, TcpFlow, UdpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{Host, Mode, Options, Scene, TwoIsps, run_configured, wait_until};

/// Flows of each kind at a time.
const FLOWS: usize = 40;
/// How long a new flow waits for its answer before it counts as lost, where none should be.
const PATIENT: Duration = Duration::from_secs(5);
/// The same where some will be.
const HASTY: Duration = Duration::from_millis(200);
/// How long it may take until flows are answered again.
const DEADLINE: Duration = Duration::from_secs(20);

const TIERS: &str = "\n[policy.default]\ntiers = [ { isp1 = 2, isp2 = 1 }, { lte = 1 } ]\n";

fn config(lab: &TwoIsps) -> String {
    lab.config(&[1, 1, 1]).replace("uplink.isp3", "uplink.lte") + TIERS
}

mod tc {
    use super::*;

    #[test]
    fn tiers_by_turns() -> Result<()> {
        run_configured(&Options { uplinks: 3, ..Options::new(Mode::Tc) }, config, super::tiers_by_turns)
    }

    #[test]
    fn no_flow_is_refused_between_tiers() -> Result<()> {
        run_configured(
            &Options { uplinks: 3, ..Options::new(Mode::Tc) },
            config,
            super::no_flow_is_refused_between_tiers,
        )
    }
}

mod xdp {
    use super::*;

    #[test]
    fn tiers_by_turns() -> Result<()> {
        run_configured(&Options { uplinks: 3, ..Options::new(Mode::Xdp) }, config, super::tiers_by_turns)
    }
}

/// isp1's, isp2's and lte's.
fn addresses(scene: &Scene) -> [Ipv4Addr; 3] {
    [0, 1, 2].map(|index| scene.lab.uplinks[index].address)
}

fn set_link(scene: &Scene, index: usize, up: bool) -> Result<()> {
    scene.lab.uplink(index)?.isp.set_link("eth0", up)
}

fn wait_for(scene: &Scene, name: &str, state: &str) -> Result<()> {
    scene.mhd.wait_for_state(name, state).map(drop)
}

/// New flows, of which each uplink gets its part.
fn expect(scene: &Scene, parts: [u32; 3]) -> Result<Flows> {
    let flows = Flows::open(scene, FLOWS)?;
    let [isp1, isp2, lte] = addresses(scene);
    flows.split().check(&[(isp1, parts[0]), (isp2, parts[1]), (lte, parts[2])])?;
    Ok(flows)
}

/// What `mhctl status` says of isp1, isp2 and lte: its share of new flows, and its tier.
fn shares(scene: &Scene) -> Result<Vec<(f64, u64)>> {
    let of = |name| {
        let uplink = scene.mhd.uplink(name)?;
        let share = uplink["share"].as_f64().with_context(|| format!("no share: {uplink}"))?;
        anyhow::Ok((
            (share * 1e3).round() / 1e3,
            uplink["tier"].as_u64().with_context(|| format!("no tier: {uplink}"))?,
        ))
    };
    ["isp1", "isp2", "lte"].into_iter().map(of).collect()
}

fn tiers_by_turns(scene: &mut Scene) -> Result<()> {
    assert_eq!(shares(scene)?, [(0.667, 0), (0.333, 0), (0.0, 1)]);
    // All stay open to the end: a new flow with the port of an earlier one would rightly be where that was.
    let first = expect(scene, [2, 1, 0])?;
    assert_eq!(first.split().iter().count(), 2, "both uplinks of the first tier: {}", first.split());

    set_link(scene, 0, false)?;
    wait_for(scene, "isp1", "down")?;
    assert_eq!(shares(scene)?, [(0.0, 0), (1.0, 0), (0.0, 1)]);
    let on_isp2 = expect(scene, [0, 1, 0])?;

    set_link(scene, 1, false)?;
    wait_for(scene, "isp2", "down")?;
    assert_eq!(shares(scene)?, [(0.0, 0), (0.0, 0), (1.0, 1)]);
    let mut on_lte = expect(scene, [0, 0, 1])?;

    set_link(scene, 0, true)?;
    wait_for(scene, "isp1", "up")?;
    assert_eq!(shares(scene)?, [(1.0, 0), (0.0, 0), (0.0, 1)]);
    let on_isp1 = expect(scene, [1, 0, 0])?;
    on_lte.check_all().context("flows that began on lte stay there")?;

    set_link(scene, 1, true)?;
    wait_for(scene, "isp2", "up")?;
    assert_eq!(shares(scene)?, [(0.667, 0), (0.333, 0), (0.0, 1)]);
    let mut both = expect(scene, [2, 1, 0])?;
    on_lte.check_all().context("flows that began on lte stay there")?;

    // A tier whose uplinks take no flows for another reason is none either: drained, or without weight.
    scene.mhd.ctl(&["drain", "isp1"])?;
    scene.mhd.ctl(&["weights", "isp2=0"])?;
    let drained = expect(scene, [0, 0, 1])?;
    both.check_all().context("flows of uplinks that are drained or have no weight stay")?;
    on_lte.check_all()?;
    scene.mhd.ctl(&["undrain", "isp1"])?;
    expect(scene, [1, 0, 0])?;
    assert_eq!(scene.count_of("no_uplink")?, 0);
    drop((first, on_isp2, on_isp1, drained));
    Ok(())
}

/// A new flow and what became of it.
#[derive(Clone, Copy, Debug)]
struct Try {
    begun: Instant,
    /// The address that the server saw; `None`: no answer.
    seen: Option<Ipv4Addr>,
}

/// Begins one flow after the other in `host` until told: each datagram from a socket, and so a port, of its own.
fn keep_beginning(host: &Host, to: SocketAddrV4, told: &AtomicBool, answer: Duration) -> Result<Vec<Try>> {
    let begin = || -> Result<Try> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(answer))?;
        let begun = Instant::now();
        socket.send(b"new")?;
        let mut buffer = [0; 64];
        let seen = match socket.recv(&mut buffer) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let seen = text.split(' ').next().and_then(|seen| seen.parse::<SocketAddrV4>().ok());
                Some(*seen.with_context(|| format!("the server said {text:?}"))?.ip())
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => None,
            Err(error) => return Err(error).context("a new flow was refused"),
        };
        Ok(Try { begun, seen })
    };
    host.enter(|| {
        let mut tries = Vec::new();
        while !told.load(Ordering::Relaxed) {
            tries.push(begin()?);
        }
        Ok(tries)
    })?
}

/// New flows go on while `change` is made and until they are answered by lte; gives the tries in order.
fn during(scene: &Scene, answer: Duration, change: impl FnOnce() -> Result<()>) -> Result<Vec<Try>> {
    let lte = addresses(scene)[2];
    // A new flow with the port of an earlier one would rightly be where that was.
    scene.mhd.ctl(&["flows", "flush"])?;
    let told = AtomicBool::new(false);
    let to = scene.udp.address();
    let mut tries = thread::scope(|scope| -> Result<Vec<Try>> {
        let hammers: Vec<_> = [&scene.lab.client1, &scene.lab.client3]
            .map(|host| scope.spawn(|| keep_beginning(host, to, &told, answer)))
            .into_iter()
            .collect();
        let of = |address: Ipv4Addr| scene.udp.seen().iter().filter(|seen| *seen.ip() == address).count();
        let outcome = (|| {
            let begun = of(addresses(scene)[1]);
            wait_until("new flows by isp2", DEADLINE, || Ok(of(addresses(scene)[1]) > begun + FLOWS))?;
            let before = of(lte);
            change()?;
            wait_until("new flows by lte", DEADLINE, || Ok(of(lte) > before + FLOWS))
        })();
        told.store(true, Ordering::Relaxed);
        let mut tries = Vec::new();
        for hammer in hammers {
            tries.extend(hammer.join().map_err(|_| anyhow!("panicked"))??);
        }
        outcome.map(|_| tries)
    })?;
    tries.sort_by_key(|one| one.begun);
    Ok(tries)
}

/// From the begin of the last flow that isp2 answered to that of the first that lte did, and how many in between were lost.
fn gap(scene: &Scene, tries: &[Try]) -> Result<(Duration, usize)> {
    let [_, isp2, lte] = addresses(scene);
    let first = tries.iter().position(|one| one.seen == Some(lte)).context("no flow by lte")?;
    let last = tries.iter().rposition(|one| one.seen == Some(isp2)).context("no flow by isp2")?;
    // Two clients at a time: one may still have been answered by isp2 when the other was by lte.
    let [first, last] = [first, last].map(|index| tries[index].begun);
    Ok((first.saturating_duration_since(last), tries.iter().filter(|one| one.seen.is_none()).count()))
}

/// New flows are begun without end while the last uplink of the first tier goes: none is refused, and the gap is that of the failure's
/// detection alone.
fn no_flow_is_refused_between_tiers(scene: &mut Scene) -> Result<()> {
    let [_, isp2, lte] = addresses(scene);
    scene.mhd.ctl(&["health", "isp1", "down"])?;
    wait_for(scene, "isp1", "down")?;
    expect(scene, [0, 1, 0])?;

    // By hand there is nothing to detect: not one flow may be lost.
    for round in 0..5 {
        let tries = during(scene, PATIENT, || scene.mhd.ctl(&["health", "isp2", "down"]).map(drop))?;
        let (gap, lost) = gap(scene, &tries)?;
        println!("by hand, round {round}: {} new flows, {lost} lost, gap {gap:?}", tries.len());
        ensure!(tries.iter().all(|one| one.seen.is_none_or(|seen| seen == isp2 || seen == lte)), "by another uplink");
        assert_eq!(lost, 0, "new flows without an answer");
        scene.mhd.ctl(&["health", "isp2", "auto"])?;
        wait_for(scene, "isp2", "up")?;
    }
    assert_eq!(scene.count_of("no_uplink")?, 0);

    // The carrier: what was sent before the kernel told is lost.
    let tries = during(scene, HASTY, || set_link(scene, 1, false))?;
    let (gap, lost) = gap(scene, &tries)?;
    println!("carrier: {} new flows, {lost} lost, gap {gap:?}", tries.len());
    assert_eq!(scene.count_of("no_uplink")?, 0);
    ensure!(gap < Duration::from_secs(5), "no new flow was answered for {gap:?}");

    // Back: lte keeps what it has and gets no more.
    scene.mhd.ctl(&["flows", "flush"])?;
    let mut tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), 5)?;
    let udp = udp_flows(&scene.lab.client1, scene.udp.address(), 5)?;
    Split::of(tcp.iter().map(|flow| flow.seen).chain(udp.iter().map(|flow| flow.seen))).check(&[(lte, 1)])?;
    set_link(scene, 1, true)?;
    wait_for(scene, "isp2", "up")?;
    expect(scene, [0, 1, 0])?;
    tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    assert!(udp.iter().map(UdpFlow::ask).collect::<Result<Vec<_>>>()?.iter().all(|seen| *seen.ip() == lte));
    Ok(())
}

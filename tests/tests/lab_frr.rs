//! Default routes from two BGP speakers (FRR), watched over by BFD: mhd learns its gateways, and when not to use them, from the
//! kernel's routes alone.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌─────────────┐ wan1 198.51.100.2 ──── .1 isp1: FRR, AS 65001 ──┐
//!                        192.168.1.0/24    .1 │ router: mh, │    BGP: 0.0.0.0/0, BFD                          ├── server
//!  client3 .13 ───────────────────────── lan1 │ FRR, 65000  │ wan2 203.0.113.2 ───── .1 isp2: FRR, AS 65002 ──┘  192.0.2.10
//!                        192.168.2.0/24    .1 └─────────────┘    BGP: 0.0.0.0/0, BFD
//! ```
//!
//! The router's FRR puts both defaults into the kernel as one route with two next hops.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::Flows;
use mh_tests::lab::{Frr, Lab, Mode, Options, Scene, TwoIsps, run_scene, wait_until};

/// BFD: a packet every so many milliseconds, and how many may be lost.
const BFD_INTERVAL_MS: u32 = 150;
const BFD_MULTIPLIER: u32 = 3;
/// The time that BFD takes to see that nothing comes any more.
const BFD_DETECTION: Duration = Duration::from_millis((BFD_INTERVAL_MS * BFD_MULTIPLIER) as u64);
/// What FRR, the kernel and mhd may take on top, on a busy machine. BGP by itself takes at least two seconds.
const SLACK: Duration = Duration::from_millis(1400);
/// How long sessions may take to be there.
const SESSIONS: Duration = Duration::from_secs(60);

/// The FRRs of a laboratory.
struct Routing {
    isps: [Frr; 2],
    router: Frr,
}

impl Routing {
    /// Starts them, and waits until both default routes are in the kernel and BFD watches both.
    fn start(lab: &TwoIsps) -> Result<Self> {
        let mut peers = String::new();
        let mut isps = Vec::new();
        for (number, uplink) in lab.uplinks.iter().enumerate() {
            let asn = 65001 + number;
            peers += &peer(&uplink.gateway.to_string(), asn);
            let default = format!(
                "address-family ipv4 unicast\nneighbor {} default-originate\nexit-address-family\n",
                uplink.address
            );
            let own = peer(&uplink.address.to_string(), 65000) + &default;
            isps.push(Frr::start(lab.lab(), &uplink.isp, &speaker(asn, uplink.gateway.to_string(), &own))?);
        }
        let multipath =
            "bgp bestpath as-path multipath-relax\naddress-family ipv4 unicast\nmaximum-paths 2\nexit-address-family\n";
        let router = Frr::start(
            lab.lab(),
            &lab.router,
            &speaker(65000, lab.uplink(0)?.address.to_string(), &(peers + multipath)),
        )?;
        let routing = Self { isps: isps.try_into().ok().context("two ISPs")?, router };
        let both = wait_until("both default routes and BFD sessions", SESSIONS, || {
            let route = lab.router.run(&["ip", "route", "show", "default"])?;
            let sessions = routing.router.show("bfd peers")?;
            let up = sessions
                .as_array()
                .is_some_and(|peers| peers.iter().filter(|peer| peer["status"] == "up").count() == 2);
            Ok(up && route.contains("dev wan1") && route.contains("dev wan2"))
        });
        let both = both.with_context(|| format!("FRR's log:\n{}", routing.router.log()))?;
        println!("BGP and BFD were there after {both:?}: {}", lab.router.run(&["ip", "route", "show", "default"])?);
        Ok(routing)
    }

    /// What all of them logged.
    fn log(&self) -> String {
        self.isps.iter().chain([&self.router]).map(Frr::log).collect()
    }
}

/// Lines about a neighbour.
fn peer(address: &str, asn: usize) -> String {
    format!(
        "neighbor {address} remote-as {asn}\nneighbor {address} timers 1 3\nneighbor {address} timers connect 1\n\
         neighbor {address} advertisement-interval 0\nneighbor {address} bfd {BFD_MULTIPLIER} {BFD_INTERVAL_MS} {BFD_INTERVAL_MS}\n"
    )
}

/// A speaker's configuration.
fn speaker(asn: usize, id: String, neighbours: &str) -> String {
    format!(
        "router bgp {asn}\nbgp router-id {id}\nno bgp ebgp-requires-policy\nbgp log-neighbor-changes\nno bgp network import-check\n\
         timers bgp 1 3\n{neighbours}exit\n"
    )
}

/// Runs a test with an mhd that was told of no gateway and no address, and has learned both from FRR.
fn with_routing(mode: Mode, test: fn(&mut Scene, &Routing) -> Result<()>) -> Result<()> {
    let build = || {
        let lab = Lab::two_isps(&Options::new(mode))?;
        lab.router.ip(&["route del default dev wan1", "route del default dev wan2"])?;
        // What comes and goes here does so on purpose.
        let config = lab.config(&[1, 1]).replace("weight = 1\n", "weight = 1\ndamping = { losses = 0 }\n");
        let told = |line: &&str| !line.starts_with("gateway") && !line.starts_with("address");
        let config: String = config.lines().filter(told).flat_map(|line| [line, "\n"]).collect();
        Scene::start(lab, &config)
    };
    run_scene(build, |scene| {
        for name in ["isp1", "isp2"] {
            let uplink = scene.mhd.uplink(name)?;
            assert_eq!(uplink["state"], "down", "without any route: {uplink}");
        }
        let monitor = scene.lab.router.spawn("monitor", &["ip", "-ts", "monitor", "route", "nexthop"])?;
        let routing = Routing::start(&scene.lab)?;
        for (index, name) in ["isp1", "isp2"].into_iter().enumerate() {
            scene.mhd.wait_for_state(name, "up")?;
            assert_eq!(scene.mhd.uplink(name)?["gateway"], scene.lab.uplink(index)?.gateway.to_string(), "learned");
        }
        let tested = test(scene, &routing);
        tested.with_context(|| format!("FRR's log:\n{}\nnetlink:\n{}", routing.log(), monitor.stdout()))
    })
}

/// Waits until an uplink has a state; gives how long after `begun` that was.
fn wait_for_state(scene: &Scene, name: &str, state: &str, begun: Instant) -> Result<Duration> {
    scene.mhd.wait_for_state(name, state)?;
    Ok(begun.elapsed())
}

/// Each ISP in turn withdraws its default route, and announces it again.
fn withdrawn_and_announced_again(scene: &mut Scene, routing: &Routing) -> Result<()> {
    for (index, other) in [(0, 1), (1, 0), (0, 1)] {
        let uplink = scene.lab.uplink(index)?.clone();
        let mut before = Flows::open_by_both(scene, 30)?;
        let default = format!("neighbor {} default-originate", uplink.address);
        let process = format!("router bgp {}", 65001 + index);
        let isp = &routing.isps[index];
        let begun = Instant::now();
        isp.configure(&[&process, "address-family ipv4 unicast", &format!("no {default}")])?;
        let down = wait_for_state(scene, &uplink.name, "down", begun)?;
        let view = scene.mhd.uplink(&uplink.name)?;
        println!("{}: withdrawn, down after {down:?}: {}", uplink.name, view["reason"]);
        let reason = view["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("gateway") || reason.contains("route"), "{reason}");
        Flows::open(scene, 20)?.split().check(&[(scene.lab.uplink(other)?.address, 1)])?;
        before.check(scene.lab.uplink(other)?.address)?;

        let begun = Instant::now();
        isp.configure(&[&process, "address-family ipv4 unicast", &default])?;
        let up = wait_for_state(scene, &uplink.name, "up", begun)?;
        println!("{}: announced again, up after {up:?}", uplink.name);
        assert_eq!(scene.mhd.uplink(&uplink.name)?["gateway"], uplink.gateway.to_string());
        Flows::open_by_both(scene, 20)?;
        before.check(scene.lab.uplink(other)?.address)?;
    }
    Ok(())
}

/// An ISP that loses all packets while its link stays up is found out by BFD.
fn found_out_by_bfd(scene: &mut Scene, routing: &Routing) -> Result<()> {
    for (index, other) in [(0, 1), (1, 0)] {
        let uplink = scene.lab.uplink(index)?.clone();
        let mut before = Flows::open_by_both(scene, 30)?;
        let begun = Instant::now();
        // Neighbours go on being found: nothing but what travels over IP tells.
        uplink.isp.nft(
            "table ip hole {\n  chain in {\n    type filter hook prerouting priority -300;\n    iifname eth0 drop\n  }\n  \
             chain out {\n    type filter hook postrouting priority -300;\n    oifname eth0 drop\n  }\n}\n",
        )?;
        let cut = begun.elapsed();
        let down = wait_for_state(scene, &uplink.name, "down", begun)?;
        println!("{}: black hole (made within {cut:?}), down after {down:?}", uplink.name);
        assert!(down < BFD_DETECTION + SLACK, "{down:?}");
        Flows::open(scene, 20)?.split().check(&[(scene.lab.uplink(other)?.address, 1)])?;
        before.check(scene.lab.uplink(other)?.address)?;

        let begun = Instant::now();
        uplink.isp.nft("delete table ip hole")?;
        wait_until(&format!("{}'s route", uplink.name), SESSIONS, || {
            Ok(scene.lab.router.run(&["ip", "route", "show", "default"])?.contains(&uplink.interface))
        })?;
        let route = begun.elapsed();
        let up = wait_for_state(scene, &uplink.name, "up", begun)?;
        println!("{}: the hole is gone, its route back after {route:?}, up after {up:?}", uplink.name);
        Flows::open_by_both(scene, 20)?;
        before.check(scene.lab.uplink(other)?.address)?;
        let sessions = routing.router.show("bfd peers")?;
        println!("{sessions}");
    }
    Ok(())
}

#[test]
fn withdrawn_and_announced_again_tc() -> Result<()> {
    with_routing(Mode::Tc, withdrawn_and_announced_again)
}

#[test]
fn found_out_by_bfd_tc() -> Result<()> {
    with_routing(Mode::Tc, found_out_by_bfd)
}

#[test]
fn found_out_by_bfd_xdp() -> Result<()> {
    with_routing(Mode::Xdp, found_out_by_bfd)
}

//! The router under measurement, with its far side: new for each measurement, so that nothing of one contender is left for the next.
//!
//! ```text
//!  inside hosts 10.0.0.1 and on        ┌────────┐ wan1 198.51.100.2 ── 198.51.100.1 ┐
//!  behind 192.168.0.2 ─── 192.168.0.1  │ router │                                   ├─ 192.0.2.10:4433
//!                                lan0  └────────┘ wan2 203.0.113.2 ─── 203.0.113.1  ┘
//!                                        pools: 198.51.100.128/25, 203.0.113.128/25
//! ```
//!
//! Neighbours are permanent, since nobody answers ARP. Contenders without XDP programs of their own get one that passes everything, so that
//! the kernel polls the router's interfaces (NAPI) as it does real ones. It makes them faster than GRO would, which sums up each packet.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use ipnet::Ipv4Net;
use mh_bench_ebpf::program;
use mh_tests::{
    lab::{Host, Lab, require_tools},
    packet::Mac,
};

use crate::{
    effort::Effort,
    far::{Expected, FAR_INTERFACES, FAR_MACS, FIRST_HOST, Far, Load, ROUTER_MACS, Rate, are_nearly_all},
    programs::Programs,
    router::{Contender, Running, Site, Uplink},
};

/// Bits of the prefix that all inside hosts are in.
const INSIDE_BITS: u8 = 8;
/// The next hop to the inside hosts.
const INSIDE_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
/// The uplinks' networks: the gateway is .1, the router .2, the pool the upper half.
const NETWORKS: [[u8; 3]; 2] = [[198, 51, 100], [203, 0, 113]];
/// How long flows go on before they are measured, by how many they are at least: as long as it takes mh to find out how much room they need,
/// giving them more twice a second.
const WARM_UP: [(u32, Duration); 3] =
    [(1 << 18, Duration::from_secs(8)), (1 << 14, Duration::from_millis(2500)), (1 << 9, Duration::from_millis(500))];
/// In a quick run, one in so many of that.
const QUICK_WARM_UP: u32 = 4;
/// From so many flows on, chance does not leave an uplink with less than one in [`UNEVEN`]: that would be seven standard deviations.
const MANY: u32 = 512;
const UNEVEN: u64 = 3;
/// The router's interfaces.
const INTERFACES: [&str; 3] = ["lan0", "wan1", "wan2"];

/// A router with a contender at work, and its far side.
#[derive(Debug)]
pub struct Bed {
    contender: Contender,
    /// The far side.
    pub far: Far,
    /// What it is to see.
    pub expected: Expected,
    /// The contender.
    pub running: Running,
    /// What makes the kernel poll the router's interfaces.
    _polled: Option<Programs>,
    router: Host,
    // Last: its directory goes after all that writes into it.
    lab: Lab,
}

impl Bed {
    /// Builds all and starts the contender, with tables for so many flows.
    ///
    /// # Errors
    /// Without root or tools, or if the kernel refuses a part.
    pub fn new(contender: Contender, flows: u32) -> Result<Self> {
        Self::with_room(contender, flows, flows)
    }

    /// The same with a far side that knows more flows than the tables fit.
    ///
    /// # Errors
    /// As [`Bed::new`].
    pub fn with_room(contender: Contender, flows: u32, known: u32) -> Result<Self> {
        require_tools(&["ip"])?;
        let lab = Lab::new()?;
        let (router, far) = (lab.host("router")?, lab.host("far")?);
        wire(&router, &far)?;
        let far = Far::new(&far, known)?;
        let inside = inside()?;
        let polled = if contender.has_xdp() { None } else { Some(polled(&router)?) };
        let running = contender.start(&site(&lab, &router, inside, flows)?)?;
        let pools = [pool(NETWORKS[0])?, pool(NETWORKS[1])?];
        let sources = if contender.translates() { pools } else { [inside; 2] };
        let expected = Expected { sources, routed: contender.routes() };
        Ok(Self { contender, far, expected, running, _polled: polled, router, lab })
    }

    /// The same with flows established, `flows` of the `capacity`, and used once more: caches are then as they are later.
    ///
    /// # Errors
    /// As [`Bed::new`], or if flows are not answered, or not spread over the uplinks as the contender is to do.
    pub fn with_flows(contender: Contender, flows: u32, capacity: u32) -> Result<Self> {
        // What drops everything can't establish flows: a blind redirect does it first.
        let first = if contender == Contender::XdpDrop { Contender::BlindRedirect } else { contender };
        let mut bed = Self::new(first, capacity)?;
        let shares = bed.far.establish(flows, &bed.expected)?;
        let least = if contender.balances() && flows >= MANY { u64::from(flows) / UNEVEN } else { 0 };
        ensure!(shares.iter().all(|share| *share >= least), "flows by uplink: {shares:?}, not half and half");
        let alive = bed.far.alive(flows, &bed.expected)?;
        ensure!(are_nearly_all(alive, flows), "of {flows} flows that were established, {alive} got through again");
        if first != contender {
            bed.running.stop()?;
            bed.running = contender.start(&site(&bed.lab, &bed.router, inside()?, capacity)?)?;
        }
        bed.contender = contender;
        Ok(bed)
    }

    /// How many frames a second get through; for [`Contender::XdpDrop`]: are dropped.
    ///
    /// # Errors
    /// If none is, or what gets through is not as expected.
    pub fn rate(&mut self, load: Load, window: Duration) -> Result<Rate> {
        let Self { contender, far, expected, running, .. } = self;
        if *contender == Contender::XdpDrop {
            far.rate_of_drops(load, expected, window, || running.dropped())
        } else {
            far.rate(load, expected, window)
        }
    }

    /// Lets the flows go on for a while before they are measured, if they are many: mh gives them room as they come, and all caches take
    /// what they will hold. Every contender has the same time.
    ///
    /// # Errors
    /// As [`Self::rate`].
    pub fn warm_up(&mut self, load: Load, effort: &Effort) -> Result<()> {
        match WARM_UP.into_iter().find(|(flows, _)| load.flows >= *flows) {
            Some((_, time)) => self.rate(load, time / effort.pick(1, QUICK_WARM_UP)).map(drop),
            None => Ok(()),
        }
    }

    /// Takes all away. Connections that are left to a namespace's end would be cleared away while the next is measured.
    ///
    /// # Errors
    /// If the contender refuses to go.
    pub fn stop(self) -> Result<()> {
        self.running.stop()
    }
}

fn inside() -> Result<Ipv4Net> {
    Ok(Ipv4Net::new(FIRST_HOST, INSIDE_BITS)?.trunc())
}

fn pool([a, b, c]: [u8; 3]) -> Result<Ipv4Net> {
    Ok(Ipv4Net::new(Ipv4Addr::new(a, b, c, 128), 25)?)
}

fn site<'a>(lab: &'a Lab, router: &'a Host, inside: Ipv4Net, flows: u32) -> Result<Site<'a>> {
    let uplink = |interface: &str, network: [u8; 3]| {
        let [a, b, c] = network;
        anyhow::Ok(Uplink { interface: interface.into(), gateway: Ipv4Addr::new(a, b, c, 1), pool: pool(network)? })
    };
    let uplinks = [uplink(INTERFACES[1], NETWORKS[0])?, uplink(INTERFACES[2], NETWORKS[1])?];
    Ok(Site { lab, router, lan: INTERFACES[0], inside, uplinks, flows })
}

/// Attaches to the router's interfaces what passes everything.
fn polled(router: &Host) -> Result<Programs> {
    let mut programs = Programs::load(0)?;
    INTERFACES.into_iter().try_for_each(|interface| programs.attach(program::PASS, router, interface))?;
    Ok(programs)
}

/// Links, addresses, neighbours and the route to the inside.
fn wire(router: &Host, far: &Host) -> Result<()> {
    let text = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    router.sysctl("ipv4/ip_forward", "1")?;
    for scope in ["all", "default"] {
        router.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        // Nobody is there to answer or to be told.
        router.sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
        far.sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
    }
    let networks = [[192, 168, 0], NETWORKS[0], NETWORKS[1]];
    for (((((own, other), mac), far_mac), network), own_host) in
        INTERFACES.into_iter().zip(FAR_INTERFACES).zip(ROUTER_MACS).zip(FAR_MACS).zip(networks).zip([1, 2, 2])
    {
        router.connect(own, far, other)?;
        far.ip(&[format!("link set {other} address {}", text(far_mac))])?;
        let [a, b, c] = network;
        let next_hop = 3 - own_host;
        router.ip(&[
            format!("link set {own} address {}", text(mac)),
            format!("address add {a}.{b}.{c}.{own_host}/24 dev {own}"),
            format!("neighbour replace {a}.{b}.{c}.{next_hop} lladdr {} dev {own} nud permanent", text(far_mac)),
        ])?;
    }
    router.ip(&[format!("route add {} via {INSIDE_ROUTER}", inside()?)])?;
    INTERFACES.into_iter().try_for_each(|interface| router.wait_for_link(interface))
}

#[cfg(test)]
mod laboratory {
    #![allow(clippy::unwrap_used, reason = "tests may")]

    use mh_tests::lab::skipped;

    use super::*;
    use crate::far::{Direction, FrameLen};

    const ALL: [Contender; 7] = [
        Contender::MhXdp,
        Contender::MhTc,
        Contender::BlindRedirect,
        Contender::Kernel,
        Contender::Ecmp,
        Contender::Iptables,
        Contender::Nft,
    ];
    const FLOWS: u32 = 512;
    const WINDOW: Duration = Duration::from_millis(20);

    #[test]
    fn every_contender_does_its_work_in_both_directions() {
        if skipped() {
            return;
        }
        for contender in ALL {
            let mut bed = Bed::with_flows(contender, FLOWS, FLOWS).unwrap();
            for direction in [Direction::Forward, Direction::Reverse] {
                let load = Load { direction, frame: FrameLen::MIDDLE, first: 0, flows: FLOWS };
                assert!(bed.rate(load, WINDOW).unwrap().received > 0.0, "{contender:?}");
            }
            bed.stop().unwrap();
        }
    }

    #[test]
    fn what_is_dropped_is_counted() {
        if skipped() {
            return;
        }
        let mut bed = Bed::with_flows(Contender::XdpDrop, FLOWS, FLOWS).unwrap();
        let load = Load { direction: Direction::Forward, frame: FrameLen::SMALL, first: 0, flows: FLOWS };
        assert!(bed.rate(load, WINDOW).unwrap().received > 0.0);
        // Nothing gets through.
        assert!(bed.far.establish(1, &bed.expected).is_err());
        bed.stop().unwrap();
    }

    #[test]
    fn a_router_that_does_not_translate_is_found_out() {
        if skipped() {
            return;
        }
        let mut bed = Bed::new(Contender::Kernel, FLOWS).unwrap();
        let expected = Expected { sources: NETWORKS.map(|network| pool(network).unwrap()), routed: true };
        let error = bed.far.establish(FLOWS, &expected).unwrap_err();
        assert!(format!("{error}").contains("unexpected addresses"), "{error}");
        // Nor is one taken for a router that sends frames on as they were.
        let mut bed = Bed::new(Contender::BlindRedirect, FLOWS).unwrap();
        let expected = Expected { sources: [inside().unwrap(); 2], routed: true };
        assert!(bed.far.establish(FLOWS, &expected).is_err());
    }
}

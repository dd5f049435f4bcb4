//! mhd touches what it owns and nothing else: two instances side by side, and what others have made on the same machine.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! Two instances: two of these, with the same names and addresses. What others have made: rules, routes (also in tables that mh uses),
//! permanent neighbours, classic filters on the interfaces that mh runs on, an XDP program on one of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::traffic::{Flows, TcpFlow, tcp_flows};
use mh_tests::lab::{Host, Lab, Mode, Options, Scene, TwoIsps, run_scene, skipped, wait_until};
use nix::errno::Errno;
use nix::libc;

/// The interfaces that mhd runs on.
const INTERFACES: [&str; 4] = ["lan0", "lan1", "wan1", "wan2"];
/// The table of mhd's first uplink, in which others may have routes, too.
const MH_TABLE: &str = "1835532288";
/// The priority of mhd's rules.
const MH_PRIORITY: &str = "109";

/// What is in a host, a fact a line.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Rules, IPv4 routes, permanent neighbours, queueing disciplines and filters, XDP programs, the firewall's rules, and settings.
    fn take(host: &Host) -> Result<Self> {
        let mut facts = BTreeSet::new();
        let mut add = |what: &str, text: &str| {
            // Of a route without carrier.
            let text = text.replace(" linkdown", "");
            facts.extend(
                text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("{what}: {line}")),
            );
        };
        for what in [
            &["ip", "-4", "rule", "show"][..],
            &["ip", "-6", "rule", "show"],
            &["ip", "-4", "route", "show", "table", "all"],
            &["ip", "-4", "neigh", "show", "nud", "permanent"],
            &["tc", "qdisc", "show"],
            &["nft", "list", "ruleset"],
        ] {
            add(&what.join(" "), &host.run(what)?);
        }
        for interface in INTERFACES.into_iter().chain(["other0"]) {
            for direction in ["ingress", "egress"] {
                // Without a clsact qdisc, tc complains instead of listing nothing.
                let listed = host.output(&["tc", "filter", "show", "dev", interface, direction])?.stdout;
                add(&format!("{interface} {direction}"), &listed);
            }
            let link = host.output(&["ip", "-d", "link", "show", "dev", interface])?.stdout;
            let xdp: Vec<&str> = link.lines().filter(|line| line.contains("prog/xdp")).collect();
            add(&format!("{interface} xdp"), &xdp.join("\n"));
            for setting in ["rp_filter", "forwarding", "arp_ignore", "accept_local", "route_localnet", "send_redirects"]
            {
                let file = format!("/proc/sys/net/ipv4/conf/{interface}/{setting}");
                if let Ok(value) = host.enter(|| fs::read_to_string(&file))? {
                    add(&file, &value);
                }
            }
        }
        Ok(Self(facts))
    }

    /// What is in this one and not in the other.
    fn without(&self, other: &Self) -> Vec<String> {
        self.0.difference(&other.0).cloned().collect()
    }
}

/// Loads a program that lets everything pass, and pins it.
fn pin_foreign_program(path: &str) -> Result<()> {
    const LOAD: libc::c_int = 5;
    const PIN: libc::c_int = 6;
    const XDP: u32 = 6;
    // r0 = 2 (XDP_PASS); exit
    let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
    let license = c"GPL";
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 12],
    }
    #[repr(C)]
    struct Pin {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    let load = Load {
        kind: XDP,
        count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        rest: [0; 12],
    };
    // SAFETY: the kernel reads as many bytes as it is told, of structures that live through the call.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw const load, size_of::<Load>()) };
    let descriptor = i32::try_from(Errno::result(descriptor).context("load a program")?)?;
    let path = std::ffi::CString::new(path)?;
    let pin = Pin { path: path.as_ptr() as u64, descriptor: u32::try_from(descriptor)?, flags: 0 };
    // SAFETY: as above; the descriptor is this function's own.
    unsafe {
        let pinned = libc::syscall(libc::SYS_bpf, PIN, &raw const pin, size_of::<Pin>());
        let pinned = Errno::result(pinned);
        libc::close(descriptor);
        pinned.context("pin a program")?;
    }
    Ok(())
}

/// A program in the router's bpffs, through this process' own view of it: a host's mounts are seen under its processes' roots.
fn foreign_program(lab: &TwoIsps) -> Result<&'static str> {
    let path = "/sys/fs/bpf/foreign";
    let keeper = lab.router.spawn("keeper", &["sleep", "infinity"])?;
    let outside = format!("/proc/{}/root{path}", keeper.pid());
    // The child is in its namespaces once it runs its program.
    let comm = format!("/proc/{}/comm", keeper.pid());
    wait_until("the keeper", Duration::from_secs(5), || Ok(fs::read_to_string(&comm)?.trim() == "sleep"))?;
    pin_foreign_program(&outside)?;
    Ok(path)
}

/// Makes what a machine may have besides mh.
fn furnish(lab: &TwoIsps) -> Result<()> {
    let router = &lab.router;
    let program = foreign_program(lab)?;
    router.ip(&[
        "link add other0 type bridge".to_owned(),
        "link set other0 up".to_owned(),
        "addr add 10.77.0.1/24 dev other0".to_owned(),
        format!("link set dev other0 xdpgeneric pinned {program}"),
        format!("link set dev lan1 xdpgeneric pinned {program}"),
        "rule add priority 100 fwmark 0x1/0xff lookup 100".to_owned(),
        "rule add priority 200 from 192.168.1.50 lookup 100".to_owned(),
        format!("rule add priority {MH_PRIORITY} fwmark 0x5/0xff lookup 100"),
        "rule add priority 32764 from 192.168.1.51 lookup 100".to_owned(),
        "route add default via 203.0.113.1 dev wan2 table 100".to_owned(),
        "route add 10.5.0.0/16 via 198.51.100.1 dev wan1 proto static".to_owned(),
        "route add 10.6.0.0/16 dev other0".to_owned(),
        format!("route add 10.8.0.0/16 via 198.51.100.1 dev wan1 proto static table {MH_TABLE}"),
        format!("route add default via 198.51.100.1 dev wan1 metric 900 proto static table {MH_TABLE}"),
        "route add unreachable 10.7.0.0/16".to_owned(),
        "neigh add 198.51.100.77 lladdr 02:00:00:00:00:77 dev wan1 nud permanent".to_owned(),
        "neigh add 192.168.1.77 lladdr 02:00:00:00:00:78 dev lan0 nud permanent".to_owned(),
    ])?;
    // A gateway's, too.
    let uplink = lab.uplink(1)?;
    let mac = uplink.isp.run(&["cat", "/sys/class/net/eth0/address"])?;
    router.ip(&[format!("neigh replace {} lladdr {} dev wan2 nud permanent", uplink.gateway, mac.trim())])?;
    // Filters that let everything pass, on both ends of an uplink and of a LAN; lan1 has the queueing discipline alone.
    for interface in ["wan1", "lan0", "lan1"] {
        router.run(&["tc", "qdisc", "add", "dev", interface, "clsact"])?;
    }
    for (interface, direction) in [("wan1", "ingress"), ("wan1", "egress"), ("lan0", "ingress")] {
        // Returns 0: no match.
        let filter = ["bpf", "bytecode", "1,6 0 0 0"];
        let place = ["tc", "filter", "add", "dev", interface, direction, "prio", "7", "protocol", "all"];
        router.run(&[&place[..], &filter[..]].concat())?;
    }
    router.nft("table ip others {\n  chain forward {\n    type filter hook forward priority 5;\n    ip daddr 10.99.99.99 drop\n  }\n}\n")
}

/// Whatever mhd does, what others made stays; and what it made itself is gone in the end.
#[test]
fn what_others_made_stays() -> Result<()> {
    let before = OnceCell::new();
    let build = || {
        let lab = Lab::two_isps(&Options::new(Mode::Tc))?;
        furnish(&lab)?;
        let snapshot = Snapshot::take(&lab.router)?;
        let _ = before.set(snapshot);
        let config = lab.config(&[1, 1]);
        Scene::start(lab, &config)
    };
    let test = |scene: &mut Scene| {
        let router = scene.lab.router.clone();
        let stays = |before: &Snapshot, after: &str| -> Result<()> {
            let now = Snapshot::take(&router)?;
            let lost = before.without(&now);
            ensure!(lost.is_empty(), "{after}, lost: {lost:#?}");
            Ok(())
        };
        let gone_again = |before: &Snapshot, after: &str| -> Result<()> {
            stays(before, after)?;
            let now = Snapshot::take(&router)?;
            let left = now.without(before);
            ensure!(left.is_empty(), "{after}, left: {left:#?}");
            let neighbours = router.run(&["ip", "-d", "neigh", "show"])?;
            ensure!(!neighbours.contains("managed"), "{after}: neighbours are kept alive for nobody: {neighbours}");
            Ok(())
        };
        let before = before.get().context("a snapshot")?;
        stays(before, "started")?;
        Flows::open_by_both(scene, 20)?;
        for (index, name) in ["isp1", "isp2"].into_iter().enumerate() {
            let isp = &scene.lab.uplink(index)?.isp;
            isp.ip(&["link set eth0 down"])?;
            scene.mhd.wait_for_state(name, "down")?;
            stays(before, &format!("{name} is down"))?;
            isp.ip(&["link set eth0 up"])?;
            scene.mhd.wait_for_state(name, "up")?;
            stays(before, &format!("{name} is up"))?;
        }
        // One uplink and one LAN less, and back.
        let config = scene.lab.config(&[1, 1]);
        let less = config.replace("\"lan0\", \"lan1\"", "\"lan0\"");
        let less = less.split("\n[uplink.isp2]").next().context("config")?.to_owned();
        for config in [&less, &config] {
            scene.configure(config)?;
            stays(before, "reloaded")?;
        }
        Flows::open_by_both(scene, 20)?;
        scene.mhd.sigkill()?;
        stays(before, "killed")?;
        scene.mhd.start_again()?;
        stays(before, "adopted")?;
        Flows::open_by_both(scene, 20)?;
        assert!(scene.mhd.sigterm()?.success());
        stays(before, "ended")?;
        scene.mhd.detach()?;
        gone_again(before, "detached")?;
        // Once more, with the running daemon asked to.
        scene.mhd.start_again()?;
        Flows::open_by_both(scene, 20)?;
        scene.mhd.ctl(&["detach"])?;
        gone_again(before, "detached again")
    };
    run_scene(build, test)
}

/// Files below the directory of pins.
fn pins(scene: &Scene) -> Result<String> {
    scene.lab.router.run(&["find", scene.mhd.bpffs(), "-mindepth", "1"])
}

/// What one instance does is nothing to the other.
#[test]
fn two_instances_side_by_side() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut one = Scene::new(Mode::Tc)?;
    run_scene(
        || Scene::new(Mode::Tc),
        |two| {
            let mut flows_of_one = tcp_flows(&one.lab.client1, one.tcp.address(), 20)?;
            let mut flows_of_two = tcp_flows(&two.lab.client1, two.tcp.address(), 20)?;
            let before = (Snapshot::take(&two.lab.router)?, pins(two)?);
            let untouched = |two: &Scene, flows: &mut [TcpFlow], after: &str| -> Result<()> {
                let now = (Snapshot::take(&two.lab.router)?, pins(two)?);
                ensure!(now == before, "{after}: {:#?}, {:#?}", now.0.without(&before.0), before.0.without(&now.0));
                flows.iter_mut().try_for_each(TcpFlow::echo).with_context(|| after.to_owned())?;
                Flows::open_by_both(two, 20).map(drop).with_context(|| after.to_owned())
            };
            untouched(two, &mut flows_of_two, "nothing")?;
            one.set_weights(1, 0)?;
            assert_eq!(two.mhd.uplink("isp2")?["weight"], 1);
            let isp = &one.lab.uplink(1)?.isp;
            isp.ip(&["link set eth0 down"])?;
            one.mhd.wait_for_state("isp2", "down")?;
            assert_eq!(two.mhd.uplink("isp2")?["state"], "up");
            untouched(two, &mut flows_of_two, "the other lost an uplink")?;
            isp.ip(&["link set eth0 up"])?;
            one.mhd.wait_for_state("isp2", "disabled")?;
            one.mhd.sigkill()?;
            untouched(two, &mut flows_of_two, "the other was killed")?;
            one.mhd.start_again()?;
            untouched(two, &mut flows_of_two, "the other started")?;
            one.mhd.ctl(&["flows", "flush"])?;
            untouched(two, &mut flows_of_two, "the other flushed its flows")?;
            one.mhd.ctl(&["detach"])?;
            untouched(two, &mut flows_of_two, "the other detached")?;
            one.mhd.start_again()?;
            two.mhd.ctl(&["detach"])?;
            // Its turn; the flows that were flushed are gone.
            flows_of_one.clear();
            Flows::open_by_both(&one, 20).map(drop).context("the other one detached")
        },
    )
}

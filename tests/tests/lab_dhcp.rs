//! An uplink whose address, prefix and gateway come by DHCP, and change: dnsmasq leases them, udhcpc asks for them.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌─────────────┐ wan1 by DHCP ─────── .1 isp1: dnsmasq ──┐
//!                        192.168.1.0/24    .1 │ router: mh, │                                         ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 │ udhcpc      │ wan2 203.0.113.2 ── .1 isp2 ────────────┘
//!                        192.168.2.0/24    .1 └─────────────┘
//! ```
//!
//! mhd is told neither isp1's address nor its gateway.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::{Flows, TcpFlow};
use mh_tests::lab::{Lab, Mode, Options, Process, SERVER, Scene, require_tools, run_scene, wait_for, wait_until};
use nix::sys::signal::Signal;

/// What isp1 leases at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    address: Ipv4Addr,
    gateway: Ipv4Addr,
}

const FIRST: Plan = Plan { address: Ipv4Addr::new(198, 51, 100, 20), gateway: Ipv4Addr::new(198, 51, 100, 1) };
/// Another address of the same network.
const SAME_NETWORK: Plan = Plan { address: Ipv4Addr::new(198, 51, 100, 30), gateway: FIRST.gateway };
/// Another network, with another gateway.
const OTHER_NETWORK: Plan = Plan { address: Ipv4Addr::new(198, 18, 7, 40), gateway: Ipv4Addr::new(198, 18, 7, 9) };

/// How long a client may take to get a lease.
const LEASE: Duration = Duration::from_secs(20);
/// How long mhd may take to follow once the interface has the address: far longer than it should.
const SOON: Duration = Duration::from_secs(3);
/// How long a TCP client may take to notice that its connection is over.
const NOTICE: Duration = Duration::from_secs(5);
/// Idle flows are looked for at intervals of ten seconds.
const SWEEP: Duration = Duration::from_secs(40);

/// What a DHCP client has its script do; `LIST` stands for where it notes events.
const SCRIPT: &str = r#"#!/bin/sh
echo "$1 $ip $router" >> LIST
case "$1" in
deconfig)
    ip address flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    ip -4 address show dev "$interface" | grep -q "inet $ip/$mask " || {
        ip address flush dev "$interface"
        ip address add "$ip/$mask" dev "$interface"
    }
    ip route replace default via "$router" dev "$interface" metric 100
    ;;
esac
"#;

/// A DHCP server and a client.
struct Dhcp {
    server: Option<Process>,
    client: Process,
    plan: Plan,
}

impl Dhcp {
    /// Starts both, and waits until wan1 has its address and route.
    fn start(scene: &Scene, plan: Plan) -> Result<Self> {
        require_tools(&["dnsmasq", "udhcpc"])?;
        let (router, directory) = (&scene.lab.router, scene.lab.lab().directory());
        scene.lab.uplink(0)?.isp.ip(&["addr flush dev eth0"])?;
        let server = Self::serve(scene, plan)?;
        let script = directory.join("dhcp-script");
        let list = directory.join("dhcp-events").display().to_string();
        fs::write(&script, SCRIPT.replace("LIST", &list))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let script = script.display().to_string();
        let client =
            router.spawn("udhcpc", &["udhcpc", "-f", "-i", "wan1", "-s", &script, "-t", "20", "-T", "1", "-A", "1"])?;
        let dhcp = Self { server: Some(server), client, plan };
        dhcp.wait_for_lease(scene)?;
        Ok(dhcp)
    }

    /// isp1 has this plan's gateway address, and leases its address.
    fn serve(scene: &Scene, plan: Plan) -> Result<Process> {
        let isp = &scene.lab.uplink(0)?.isp;
        let Plan { address, gateway } = plan;
        isp.ip(&[format!("addr add {gateway}/24 dev eth0")])?;
        let [a, b, c, _] = gateway.octets();
        scene.lab.server.ip(&[format!("route replace {a}.{b}.{c}.0/24 via 10.99.1.1 src {SERVER}")])?;
        let leases = scene.lab.lab().directory().join(format!("leases-{address}")).display().to_string();
        let mut server = isp.spawn(
            "dnsmasq",
            &[
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--user=root",
                "--port=0",
                "--interface=eth0",
                "--bind-interfaces",
                "--dhcp-authoritative",
                "--no-ping",
                "--log-dhcp",
                "--log-facility=-",
                "--pid-file",
                &format!("--dhcp-leasefile={leases}"),
                &format!("--dhcp-range={address},{address},255.255.255.0,120s"),
                &format!("--dhcp-option=option:router,{gateway}"),
            ],
        )?;
        server.wait_for_line("sockets bound exclusively to interface eth0", SOON).context("dnsmasq")?;
        Ok(server)
    }

    fn wait_for_lease(&self, scene: &Scene) -> Result<()> {
        let Plan { address, gateway } = self.plan;
        let router = &scene.lab.router;
        let leased = wait_until(&format!("wan1 to get {address}"), LEASE, || {
            let addresses = router.run(&["ip", "-4", "addr", "show", "dev", "wan1"])?;
            let routes = router.run(&["ip", "route", "show", "default", "dev", "wan1"])?;
            Ok(addresses.contains(&format!("inet {address}/")) && routes.contains(&format!("via {gateway} ")))
        });
        let log =
            || format!("{}\n{}", self.client.stderr(), self.server.as_ref().map(Process::stderr).unwrap_or_default());
        let elapsed = leased.with_context(log)?;
        println!("leased {address} after {elapsed:?}");
        Ok(())
    }

    /// The provider has another plan from now on, and the client's lease is to be renewed. Returns when wan1 has its new address.
    fn renumber(&mut self, scene: &Scene, plan: Plan) -> Result<()> {
        self.server = None;
        scene.lab.uplink(0)?.isp.ip(&["addr flush dev eth0"])?;
        self.plan = plan;
        self.server = Some(Self::serve(scene, plan)?);
        // What happens by itself after half the lease's time.
        self.client.signal(Signal::SIGUSR1)?;
        self.wait_for_lease(scene)
    }
}

/// Waits until mhd has what the plan says, and gives how long that took.
fn learned(scene: &Scene, plan: Plan) -> Result<()> {
    let mut last = serde_json::Value::Null;
    let waited = wait_for(&format!("isp1 to be up with {plan:?}"), SOON, || {
        last = scene.mhd.uplink("isp1")?;
        let fits = last["state"] == "up"
            && last["gateway"] == plan.gateway.to_string()
            && last["address"] == serde_json::json!([plan.address.to_string()]);
        Ok(fits.then_some(()))
    });
    let ((), elapsed) = waited.with_context(|| format!("last seen: {last}"))?;
    println!("mhd has {} {elapsed:?} after the interface", plan.address);
    Ok(())
}

/// New flows use isp1 with this address, and isp2.
fn new_flows(scene: &Scene, plan: Plan) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    Flows::open(scene, 20)?.split().check(&[(plan.address, 1), (address2, 1)])
}

/// Runs a test with isp1's address by DHCP, and with this `on_down`.
fn with_dhcp(mode: Mode, on_down: &str, test: impl FnOnce(&mut Scene, &mut Dhcp) -> Result<()>) -> Result<()> {
    let build = || {
        let lab = Lab::two_isps(&Options::new(mode))?;
        lab.router.ip(&["addr flush dev wan1"])?;
        let uplink = lab.uplink(0)?;
        let told = format!("gateway = \"{}\"\naddress = \"{}\"\n", uplink.gateway, uplink.address);
        let config =
            lab.config(&[1, 1]).replace(&told, &format!("on_down = \"{on_down}\"\ndamping = {{ losses = 0 }}\n"));
        Scene::start(lab, &config)
    };
    run_scene(build, |scene| {
        assert_eq!(scene.mhd.uplink("isp1")?["state"], "down");
        let mut dhcp = Dhcp::start(scene, FIRST)?;
        learned(scene, FIRST)?;
        new_flows(scene, FIRST)?;
        test(scene, &mut dhcp)
    })
}

/// Nothing is left in the NAT table that belongs to an address.
fn no_bindings_of(scene: &Scene, address: Ipv4Addr) -> Result<()> {
    let mut left = Vec::new();
    let waited = wait_until(&format!("the bindings of {address} to go"), SWEEP, || {
        left = scene.bindings()?;
        left.retain(|binding| binding.to_string().contains(&format!("\"{address}\"")));
        Ok(left.is_empty())
    });
    let waited = waited.with_context(|| format!("{} left, as {:?}", left.len(), left.first()))?;
    println!("no bindings of {address} {waited:?} later");
    Ok(())
}

/// The provider renumbers: new flows use the new address at once, UDP flows move to one that works, TCP clients are told.
fn reset(scene: &mut Scene, dhcp: &mut Dhcp) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    for plan in [SAME_NETWORK, OTHER_NETWORK, FIRST] {
        let old = dhcp.plan.address;
        let mut before = Flows::open(scene, 30)?;
        assert!(before.tcp_of(old).count() > 0 && before.udp_of(old).count() > 0);
        dhcp.renumber(scene, plan)?;
        learned(scene, plan)?;
        new_flows(scene, plan)?;
        for flow in before.udp_of(old) {
            let seen = *flow.ask()?.ip();
            assert!(seen == plan.address || seen == address2, "{flow:?} is seen as {seen} now");
        }
        for flow in before.tcp_of(old) {
            flow.set_timeout(NOTICE)?;
            let error = flow.echo().expect_err("a connection outlived its address");
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{error:#}");
        }
        before.tcp_of(address2).try_for_each(TcpFlow::echo)?;
        drop(before);
        no_bindings_of(scene, old)?;
    }
    Ok(())
}

/// Flows are held, and go on once their address is there again.
fn hold(scene: &mut Scene, dhcp: &mut Dhcp) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    let mut before = Flows::open(scene, 30)?;
    dhcp.renumber(scene, OTHER_NETWORK)?;
    learned(scene, OTHER_NETWORK)?;
    new_flows(scene, OTHER_NETWORK)?;
    before.tcp_of(address2).try_for_each(TcpFlow::echo)?;
    dhcp.renumber(scene, FIRST)?;
    learned(scene, FIRST)?;
    new_flows(scene, FIRST)?;
    for flow in before.tcp_of(FIRST.address) {
        flow.echo().context("held")?;
    }
    for flow in before.udp_of(FIRST.address) {
        assert_eq!(flow.ask()?, flow.seen, "held");
    }
    Ok(())
}

/// UDP flows are bound anew.
fn repin(scene: &mut Scene, dhcp: &mut Dhcp) -> Result<()> {
    let address2 = scene.lab.uplink(1)?.address;
    let mut before = Flows::open(scene, 30)?;
    dhcp.renumber(scene, OTHER_NETWORK)?;
    learned(scene, OTHER_NETWORK)?;
    new_flows(scene, OTHER_NETWORK)?;
    for flow in before.udp_of(FIRST.address) {
        let seen = *flow.ask()?.ip();
        assert!(seen == OTHER_NETWORK.address || seen == address2, "{flow:?} is seen as {seen} now");
    }
    before.tcp_of(address2).try_for_each(TcpFlow::echo)
}

#[test]
fn renumbered_with_reset_tc() -> Result<()> {
    with_dhcp(Mode::Tc, "reset", reset)
}

#[test]
fn renumbered_with_reset_xdp() -> Result<()> {
    with_dhcp(Mode::Xdp, "reset", reset)
}

#[test]
fn renumbered_with_hold() -> Result<()> {
    with_dhcp(Mode::Tc, "hold", hold)
}

#[test]
fn renumbered_with_repin() -> Result<()> {
    with_dhcp(Mode::Tc, "repin", repin)
}

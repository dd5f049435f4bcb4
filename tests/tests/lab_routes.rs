//! Gateways and addresses that mhd learns, and follows however they change: replaced without a word about the old one, by next-hop
//! objects, flushed by the kernel in silence.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── .1 eth0 isp1 ──┐
//!                        192.168.1.0/24    .1 │            │                    .254 gw2  │      │
//!                                             │ router: mh │                                     ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 │            │ wan2 203.0.113.2 ──── .1 isp2 ──────┘
//!                        192.168.2.0/24    .1 └────────────┘
//! ```
//!
//! isp1 has a second gateway with an Ethernet address of its own (gw2, a macvlan beside eth0). mhd is told neither gateways nor addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::{Split, udp_flows};
use mh_tests::lab::{Lab, Mode, Options, Scene, TwoIsps, run_scene, wait_for};

/// isp1's first gateway.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// isp1's second gateway.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// isp2's gateway.
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// How long mhd may take to follow: far longer than it should.
const SOON: Duration = Duration::from_secs(5);

/// Gives isp1 its second gateway.
fn second_gateway(lab: &TwoIsps) -> Result<()> {
    let isp = &lab.uplink(0)?.isp;
    isp.sysctl("ipv4/conf/all/arp_ignore", "1")?;
    isp.ip(&["link add gw2 link eth0 type macvlan mode bridge", "link set gw2 up"])?;
    isp.ip(&[format!("addr add {SECOND}/32 dev gw2")])
}

/// Runs a test with an mhd that is told the lines of the usual config but for those that begin with one of `left_out`.
fn with_config(left_out: &[&str], test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let build = || {
        let lab = Lab::two_isps(&Options::new(Mode::Tc))?;
        second_gateway(&lab)?;
        // What comes and goes here does so on purpose.
        let config = lab.config(&[1, 1]).replace("weight = 1\n", "weight = 1\ndamping = { losses = 0 }\n");
        let told = |line: &&str| !left_out.iter().any(|word| line.starts_with(word));
        let config: String = config.lines().filter(told).flat_map(|line| [line, "\n"]).collect();
        Scene::start(lab, &config)
    };
    run_scene(build, |scene| {
        let commands = ["ip", "-ts", "monitor", "link", "address", "route", "nexthop"];
        let monitor = scene.lab.router.spawn("monitor", &commands)?;
        test(scene).with_context(|| format!("netlink:\n{}", monitor.stdout()))
    })
}

/// Runs a test with learned gateways and addresses.
fn learned(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    with_config(&["gateway", "address"], test)
}

/// Waits until isp1 is up with this gateway, or down if there is none, and checks that new flows do as it says: whether they use isp1, and
/// its second gateway.
fn expect(scene: &Scene, what: &str, gateway: Option<Ipv4Addr>) -> Result<()> {
    let mut last = serde_json::Value::Null;
    let wanted = match gateway {
        Some(gateway) => ("up", serde_json::Value::from(gateway.to_string())),
        None => ("down", serde_json::Value::Null),
    };
    let waited = wait_for(what, SOON, || {
        last = scene.mhd.uplink("isp1")?;
        let fits = last["state"] == wanted.0 && (gateway.is_none() || last["gateway"] == wanted.1);
        Ok(fits.then_some(()))
    });
    let ((), elapsed) = waited.with_context(|| format!("wanted {wanted:?}, last seen: {last}"))?;
    println!("{what}: {} with {} after {elapsed:?}: {}", last["state"], last["gateway"], last["reason"]);

    let [address1, address2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
    let before = arrived_at_second(scene)?;
    let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 30)?;
    let split = Split::of(flows.iter().map(|flow| flow.seen));
    let arrived = arrived_at_second(scene)? - before;
    match gateway {
        None => split.check(&[(address2, 1)])?,
        Some(_) => split.check(&[(address1, 1), (address2, 1)])?,
    }
    if gateway == Some(SECOND) {
        assert_eq!(arrived, split.count(address1), "{what}: all by the second gateway");
    } else {
        assert_eq!(arrived, 0, "{what}: none by the second gateway");
    }
    Ok(())
}

/// UDP datagrams from the LAN's hosts that isp1 got at its second gateway so far.
fn arrived_at_second(scene: &Scene) -> Result<usize> {
    let isp = &scene.lab.uplink(0)?.isp;
    let list = |isp: &mh_tests::lab::Host| isp.run(&["nft", "list", "counter", "ip", "second", "datagrams"]);
    if list(isp).is_err() {
        isp.nft(
            "table ip second {\n  counter datagrams {}\n  chain in {\n    type filter hook prerouting priority -300;\n    \
             iifname gw2 udp dport 7000 counter name datagrams\n  }\n}\n",
        )?;
    }
    let printed = list(isp)?;
    let number = printed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok());
    number.with_context(|| printed.clone())
}

/// `ip route replace`: the kernel announces the new route and says nothing about the old one.
#[test]
fn a_replaced_gateway_is_used() -> Result<()> {
    learned(|scene| {
        let router = &scene.lab.router;
        expect(scene, "at first", Some(FIRST))?;
        for (what, gateway) in [("replaced", SECOND), ("replaced again", FIRST), ("and again", SECOND)] {
            router.ip(&[format!("route replace default via {gateway} dev wan1 metric 100")])?;
            expect(scene, what, Some(gateway))?;
        }
        // `replace` may change the interface, too: the route that isp1 had is no more.
        router.ip(&[format!("route replace default via {OTHER} dev wan2 metric 100")])?;
        expect(scene, "replaced by isp2's", None)?;
        router.ip(&[format!("route replace default via {FIRST} dev wan1 metric 100")])?;
        expect(scene, "replaced back", Some(FIRST))
    })
}

#[test]
fn the_lowest_metric_decides() -> Result<()> {
    learned(|scene| {
        let router = &scene.lab.router;
        expect(scene, "at first", Some(FIRST))?;
        router.ip(&[format!("route add default via {SECOND} dev wan1 metric 50")])?;
        expect(scene, "a better route", Some(SECOND))?;
        router.ip(&[format!("route add default via {FIRST} dev wan1 metric 20")])?;
        expect(scene, "a better one still", Some(FIRST))?;
        router.ip(&["route del default dev wan1 metric 20"])?;
        expect(scene, "and gone", Some(SECOND))?;
        router.ip(&["route del default dev wan1 metric 50"])?;
        expect(scene, "all but the first gone", Some(FIRST))?;
        // Routes of one metric: the kernel uses the one that was there first.
        router.ip(&[format!("route append default via {SECOND} dev wan1 metric 100")])?;
        expect(scene, "appended", Some(FIRST))?;
        router.ip(&[format!("route del default via {FIRST} dev wan1 metric 100")])?;
        expect(scene, "the first deleted", Some(SECOND))?;
        router.ip(&["route del default dev wan1 metric 100"])?;
        expect(scene, "none left", None)?;
        scene.lab.restore_default_route(0)?;
        expect(scene, "added", Some(FIRST))
    })
}

#[test]
fn multipath_routes_count_for_each_interface() -> Result<()> {
    learned(|scene| {
        let router = &scene.lab.router;
        router.ip(&["route del default dev wan1", "route del default dev wan2"])?;
        scene.mhd.wait_for_state("isp2", "down")?;
        let both = |first: Ipv4Addr| {
            router.ip(&[format!(
                "route replace default metric 50 nexthop via {first} dev wan1 nexthop via {OTHER} dev wan2 weight 3"
            )])
        };
        both(FIRST)?;
        scene.mhd.wait_for_state("isp2", "up")?;
        expect(scene, "two hops", Some(FIRST))?;
        both(SECOND)?;
        expect(scene, "another two", Some(SECOND))?;
        router.ip(&[format!("route replace default via {OTHER} dev wan2 metric 50")])?;
        expect(scene, "one hop", None)?;
        both(FIRST)?;
        expect(scene, "two hops again", Some(FIRST))?;
        router.ip(&["route del default metric 50"])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        scene.mhd.wait_for_state("isp2", "down")?;
        both(SECOND)?;
        scene.mhd.wait_for_state("isp2", "up")?;
        expect(scene, "and again", Some(SECOND))
    })
}

/// Routes by next-hop objects, which change and go without a word about the routes.
#[test]
fn nexthop_objects_are_followed() -> Result<()> {
    learned(|scene| {
        let router = &scene.lab.router;
        router.ip(&["route del default dev wan1"])?;
        // With the same gateway as before, nothing would tell that mhd has seen the new route.
        scene.mhd.wait_for_state("isp1", "down")?;
        router.ip(&[
            format!("nexthop add id 10 via {FIRST} dev wan1"),
            "route add default nhid 10 metric 100".to_owned(),
        ])?;
        expect(scene, "by a next-hop object", Some(FIRST))?;
        router.ip(&[format!("nexthop replace id 10 via {SECOND} dev wan1")])?;
        expect(scene, "which is replaced", Some(SECOND))?;
        router.ip(&["nexthop del id 10"])?;
        expect(scene, "and deleted", None)?;

        router.ip(&[
            "route del default dev wan2".to_owned(),
            format!("nexthop add id 11 via {FIRST} dev wan1"),
            format!("nexthop add id 12 via {SECOND} dev wan1"),
            format!("nexthop add id 20 via {OTHER} dev wan2"),
            "nexthop add id 30 group 11/20".to_owned(),
            "route add default nhid 30 metric 100".to_owned(),
        ])?;
        scene.mhd.wait_for_state("isp2", "up")?;
        expect(scene, "by a group", Some(FIRST))?;
        router.ip(&["nexthop replace id 30 group 12/20"])?;
        expect(scene, "the group is replaced", Some(SECOND))?;
        router.ip(&[format!("nexthop replace id 12 via {FIRST} dev wan1")])?;
        expect(scene, "a member is replaced", Some(FIRST))?;
        router.ip(&["nexthop del id 12"])?;
        expect(scene, "a member is deleted", None)?;
        router.ip(&["nexthop replace id 30 group 11/20"])?;
        expect(scene, "the group has it again", Some(FIRST))?;
        router.ip(&["nexthop del id 30"])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        scene.mhd.wait_for_state("isp2", "down")?;
        scene.lab.restore_default_route(0)?;
        scene.lab.restore_default_route(1)?;
        scene.mhd.wait_for_state("isp2", "up")?;
        expect(scene, "without objects", Some(FIRST))
    })
}

/// With an interface's last address go its routes, without a word.
#[test]
fn an_address_takes_its_routes_along() -> Result<()> {
    let test = |scene: &mut Scene| {
        let (router, address) = (&scene.lab.router, scene.lab.uplink(0)?.address);
        expect(scene, "at first", Some(FIRST))?;
        for _ in 0..2 {
            router.ip(&[format!("addr del {address}/24 dev wan1")])?;
            expect(scene, "without an address", None)?;
            router.ip(&[format!("addr add {address}/24 dev wan1")])?;
            expect(scene, "without a route", None)?;
            scene.lab.restore_default_route(0)?;
            expect(scene, "with both", Some(FIRST))?;
        }
        router.ip(&["addr flush dev wan1"])?;
        expect(scene, "flushed", None)?;
        router.ip(&[format!("addr add {address}/24 dev wan1")])?;
        router.ip(&[format!("route replace default via {SECOND} dev wan1 metric 100")])?;
        expect(scene, "by the second gateway", Some(SECOND))
    };
    learned(test)?;
    // The address comes from the configuration: only the route tells.
    with_config(&["gateway"], test)
}

/// A preferred source that is deleted takes the routes that name it along, the interface's other routes stay.
#[test]
fn an_address_takes_along_the_routes_that_prefer_it() -> Result<()> {
    with_config(&["gateway"], |scene| {
        let (router, uplink) = (&scene.lab.router, scene.lab.uplink(0)?);
        let second: Ipv4Addr = "198.51.100.77".parse()?;
        router.ip(&[
            format!("addr add {second}/24 dev wan1"),
            format!("route add default via {SECOND} dev wan1 metric 50 src {second}"),
        ])?;
        expect(scene, "a better route with a source", Some(SECOND))?;
        router.ip(&[format!("addr del {second}/24 dev wan1")])?;
        expect(scene, "its source is gone", Some(FIRST))?;
        assert_eq!(scene.mhd.uplink("isp1")?["address"][0], uplink.address.to_string());
        Ok(())
    })
}

/// A link that is set down loses its routes without a word, one that loses its carrier keeps them.
#[test]
fn a_link_set_down_loses_its_routes() -> Result<()> {
    learned(|scene| {
        let (router, isp) = (&scene.lab.router, &scene.lab.uplink(0)?.isp);
        expect(scene, "at first", Some(FIRST))?;
        for _ in 0..2 {
            router.ip(&["link set wan1 down"])?;
            expect(scene, "set down", None)?;
            router.ip(&["link set wan1 up"])?;
            router.wait_for_link("wan1")?;
            expect(scene, "set up without a route", None)?;
            router.ip(&[format!("route replace default via {SECOND} dev wan1 metric 100")])?;
            expect(scene, "with another route", Some(SECOND))?;
            isp.ip(&["link set eth0 down"])?;
            expect(scene, "without carrier", None)?;
            isp.ip(&["link set eth0 up", "link set gw2 up"])?;
            expect(scene, "with its carrier and its old route", Some(SECOND))?;
            router.ip(&[format!("route replace default via {FIRST} dev wan1 metric 100")])?;
            expect(scene, "with its first route", Some(FIRST))?;
        }
        // Down and up in one go: the events may be one.
        router.ip(&["link set wan1 down", "link set wan1 up"])?;
        expect(scene, "down and up without a route", None)?;
        scene.lab.restore_default_route(0)?;
        expect(scene, "with a route", Some(FIRST))
    })
}

/// An interface that is deleted and made again, renamed away and back.
#[test]
fn an_interface_comes_and_goes() -> Result<()> {
    learned(|scene| {
        let (router, uplink) = (&scene.lab.router, scene.lab.uplink(0)?.clone());
        expect(scene, "at first", Some(FIRST))?;
        router.ip(&["link set wan1 down", "link set wan1 name spare0", "link set spare0 up"])?;
        router.ip(&[format!("route replace default via {FIRST} dev spare0 metric 100")])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        router.ip(&["link set spare0 down", "link set spare0 name wan1", "link set wan1 up"])?;
        scene.lab.restore_default_route(0)?;
        expect(scene, "renamed back", Some(FIRST))?;

        router.ip(&["link del wan1"])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        router.connect("wan1", &uplink.isp, "eth0")?;
        router.ip(&[format!("addr add {}/24 dev wan1", uplink.address)])?;
        uplink.isp.ip(&[format!("addr add {FIRST}/24 dev eth0")])?;
        scene.lab.restore_default_route(0)?;
        expect(scene, "made again", Some(FIRST))
    })
}

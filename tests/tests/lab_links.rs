//! Interfaces that are renamed, enslaved, or deleted and made again; gateways that fall silent or get other hardware; uplinks that flap; tiers;
//! reloads that can't be done.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── .1 eth0 isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                                     ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── .1 eth0 isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::{Split, UdpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{Host, Mode, Options, Scene, programs_on, run_configured, run_with, wait_for};

/// How long mhd may take to see something: far longer than it should.
const SOON: Duration = Duration::from_secs(5);

/// Where new flows go.
fn split(scene: &Scene) -> Result<Split> {
    let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 30)?;
    Ok(Split::of(flows.iter().map(|flow| flow.seen)))
}

/// New flows leave by these uplinks and no others.
fn expect_split(scene: &Scene, indices: &[usize]) -> Result<()> {
    let addresses =
        indices.iter().map(|&index| Ok((scene.lab.uplink(index)?.address, 1))).collect::<Result<Vec<_>>>()?;
    split(scene)?.check(&addresses)
}

/// The laboratory with both uplinks' ways left to learn, and no damping.
fn undamped(config: &str) -> String {
    config.replace("weight = 1\n", "weight = 1\ndamping = { losses = 0 }\n")
}

fn without_damping(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    run_configured(&Options::new(Mode::Tc), |lab| undamped(&lab.config(&[1, 1])), test)
}

/// Brings wan1 back as it was.
fn furnish_wan1(scene: &Scene) -> Result<()> {
    let uplink = scene.lab.uplink(0)?;
    scene.lab.router.ip(&[format!("addr add {}/24 dev wan1", uplink.address), "link set wan1 up".to_owned()])
}

#[test]
fn an_interface_is_found_by_its_name() -> Result<()> {
    without_damping(|scene| {
        let router = &scene.lab.router;
        // Renamed away, and back.
        router.ip(&["link set wan1 down", "link set wan1 name other", "link set other up"])?;
        scene.mhd.wait_for_reason("isp1", "down", "interface wan1 does not exist", SOON)?;
        expect_split(scene, &[1])?;
        router.ip(&["link set other down", "link set other name wan1", "link set wan1 up"])?;
        scene.mhd.wait_for_reason("isp1", "up", "link up", SOON)?;
        expect_split(scene, &[0, 1])
    })
}

#[test]
fn an_interface_that_is_enslaved_is_none_of_mhs() -> Result<()> {
    without_damping(|scene| {
        let router = &scene.lab.router;
        router.ip(&["link add br0 type bridge", "link set br0 up", "link set wan1 master br0"])?;
        scene.mhd.wait_for_reason("isp1", "down", "interface wan1 is enslaved to br0", SOON)?;
        expect_split(scene, &[1])?;
        assert_eq!(programs_on(router, "wan1")?, 0, "no program runs on a port of a bridge");
        router.ip(&["link set wan1 nomaster"])?;
        scene.mhd.wait_for_reason("isp1", "up", "link up", SOON)?;
        assert_eq!(programs_on(router, "wan1")?, 2);
        expect_split(scene, &[0, 1])
    })
}

#[test]
fn an_interface_that_is_made_again_takes_its_flows_back() -> Result<()> {
    without_damping(|scene| {
        let isp = &scene.lab.uplink(0)?.isp;
        let mut flows: Vec<UdpFlow> = udp_flows(&scene.lab.client1, scene.udp.address(), 20)?;
        scene.lab.router.ip(&["link del wan1"])?;
        scene.mhd.wait_for_reason("isp1", "down", "interface wan1 does not exist", SOON)?;
        expect_split(scene, &[1])?;
        // The other end of the pair has gone with it.
        let gateway = scene.lab.uplink(0)?.gateway;
        scene.lab.router.connect("wan1", isp, "eth0")?;
        isp.ip(&[format!("addr add {gateway}/24 dev eth0"), "link set eth0 up".to_owned()])?;
        furnish_wan1(scene)?;
        scene.mhd.wait_for_reason("isp1", "up", "link up", SOON)?;
        expect_split(scene, &[0, 1])?;
        // Datagrams of flows that were on either uplink arrive.
        for flow in &mut flows {
            flow.ask()?;
        }
        Ok(())
    })
}

#[test]
fn a_gateway_with_other_hardware_is_followed() -> Result<()> {
    run_with(&Options::new(Mode::Xdp), |scene| {
        let isp = &scene.lab.uplink(0)?.isp;
        let mut flows = tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)?;
        // And announced, as a router does that takes over an address.
        isp.sysctl("ipv4/conf/eth0/arp_notify", "1")?;
        isp.ip(&["link set eth0 address 02:00:00:00:aa:01"])?;
        flows.iter_mut().try_for_each(|flow| flow.echo())?;
        expect_split(scene, &[0, 1])
    })
}

#[test]
fn a_silent_gateway_is_found_out_without_probes() -> Result<()> {
    without_damping(|scene| {
        let uplink = scene.lab.uplink(0)?;
        uplink
            .isp
            .nft("table arp silent {\n  chain in { type filter hook input priority 0; iifname eth0 drop; }\n}\n")?;
        // Asked every 3 s, three times a second apart; and some slack.
        let reason = format!("gateway {} not reachable", uplink.gateway);
        scene.mhd.wait_for_reason("isp1", "down", &reason, Duration::from_secs(15))?;
        expect_split(scene, &[1])?;
        uplink.isp.run(&["nft", "delete", "table", "arp", "silent"])?;
        scene.mhd.wait_for_reason("isp1", "up", "link up", Duration::from_secs(15))?;
        expect_split(scene, &[0, 1])
    })
}

#[test]
fn a_gateway_that_somebody_has_set_stays_as_it_is() -> Result<()> {
    without_damping(|scene| {
        let uplink = scene.lab.uplink(0)?;
        let (router, isp) = (&scene.lab.router, &uplink.isp);
        let gateway = uplink.gateway;
        let mac = |host: &Host, interface: &str| host.run(&["cat", &format!("/sys/class/net/{interface}/address")]);
        let neighbour = |address, mac: &str, interface| {
            format!("neigh replace {address} lladdr {} dev {interface} nud permanent", mac.trim())
        };
        router.ip(&[neighbour(gateway, &mac(isp, "eth0")?, "wan1")])?;
        isp.ip(&[neighbour(uplink.address, &mac(router, "wan1")?, "eth0")])?;
        uplink
            .isp
            .nft("table arp silent {\n  chain in { type filter hook input priority 0; iifname eth0 drop; }\n}\n")?;
        // Longer than it would take to find it out.
        let until = Instant::now() + Duration::from_secs(8);
        let ((), _) = wait_for("some checks of the gateways", Duration::from_secs(20), || {
            Ok((Instant::now() > until).then_some(()))
        })?;
        let entry = router.run(&["ip", "neigh", "show", &gateway.to_string(), "dev", "wan1"])?;
        assert!(entry.contains("PERMANENT"), "{entry}");
        expect_split(scene, &[0, 1])
    })
}

#[test]
fn an_uplink_that_flaps_is_held_until_it_is_well() -> Result<()> {
    let damped = |config: &str| {
        config.replacen("weight = 1\n", "weight = 1\ndamping = { losses = 3, within = \"60s\", hold = \"2s\" }\n", 1)
    };
    run_configured(
        &Options::new(Mode::Tc),
        |lab| damped(&lab.config(&[1, 1])),
        |scene| {
            let isp = &scene.lab.uplink(0)?.isp;
            for round in 0..3 {
                isp.set_link("eth0", false)?;
                scene.mhd.wait_for_reason("isp1", "down", "carrier lost", SOON)?;
                isp.set_link("eth0", true)?;
                if round < 2 {
                    scene.mhd.wait_for_reason("isp1", "up", "link up", SOON)?;
                }
            }
            scene.mhd.wait_for_reason("isp1", "down", "flapping: lost 3 times within 60s", SOON)?;
            expect_split(scene, &[1])?;
            let held = scene.mhd.wait_for_reason("isp1", "up", "link up", SOON)?;
            assert!(held > Duration::from_secs(1), "held for {held:?}");
            expect_split(scene, &[0, 1])
        },
    )
}

#[test]
fn a_tier_takes_over_when_the_one_before_is_lost() -> Result<()> {
    let tiered =
        |config: &str| format!("{config}[policy.default]\ntiers = [{{ isp1 = 1, isp2 = 1 }}, {{ isp3 = 1 }}]\n");
    let options = Options { uplinks: 3, ..Options::new(Mode::Xdp) };
    run_configured(
        &options,
        |lab| undamped(&tiered(&lab.config(&[1, 1, 1]))),
        |scene| {
            let tiers = || -> Result<Vec<_>> {
                let status = scene.mhd.ctl_json(&["status"])?;
                let uplinks = status["uplinks"].as_array().context("uplinks")?.clone();
                Ok(uplinks.iter().map(|u| (u["tier"].as_u64(), u["effective_weight"].as_u64())).collect())
            };
            assert_eq!(tiers()?, [(Some(0), Some(1)), (Some(0), Some(1)), (Some(1), Some(0))]);
            expect_split(scene, &[0, 1])?;
            let cut = |index: usize, up: bool| scene.lab.uplink(index)?.isp.set_link("eth0", up);
            let wait = |name: &str, state: &str| scene.mhd.wait_for_state(name, state);
            cut(0, false)?;
            wait("isp1", "down")?;
            expect_split(scene, &[1])?;
            let mut kept = tcp_flows(&scene.lab.client2, scene.tcp.address(), 10)?;
            // The last of the first tier: not one new flow is refused, neither before nor after.
            cut(1, false)?;
            wait("isp2", "down")?;
            expect_split(scene, &[2])?;
            assert_eq!(tiers()?, [(Some(0), Some(0)), (Some(0), Some(0)), (Some(1), Some(1))]);
            let mut spare = tcp_flows(&scene.lab.client2, scene.tcp.address(), 10)?;
            // Back: new flows leave the spare uplink, those that exist stay on it.
            cut(0, true)?;
            wait("isp1", "up")?;
            expect_split(scene, &[0])?;
            spare.iter_mut().try_for_each(|flow| flow.echo())?;
            assert!(kept.iter_mut().all(|flow| flow.echo().is_err()), "they were on isp2, and reset");
            Ok(())
        },
    )
}

#[test]
fn a_reload_that_can_not_be_done_is_taken_back() -> Result<()> {
    without_damping(|scene| {
        let router = &scene.lab.router;
        // A device that has no native XDP.
        router.ip(&["link add wan9 type bridge", "addr add 203.0.113.130/25 dev wan9", "link set wan9 up"])?;
        let before = std::fs::read_to_string(scene.mhd.config())?;
        let more = before.replace("mode = \"tc\"", "mode = \"xdp\"").replace("isp1 = 1", "isp1 = 3")
            + "[uplink.isp9]\ninterface = \"wan9\"\ngateway = \"203.0.113.129\"\nweight = 5\n";
        let rules = || router.run(&["ip", "rule"]);
        let routes = || router.run(&["ip", "route", "show", "table", "all", "proto", "109"]);
        let attached = || ["lan0", "lan1", "wan1", "wan2", "wan9"].map(|interface| programs_on(router, interface).ok());
        let weights = || scene.mhd.ctl_json(&["weights"]);
        let was = (rules()?, routes()?, weights()?);
        let programs = attached();
        assert_eq!(programs, [1, 1, 2, 2, 0].map(Some));
        let mut flows = tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)?;

        scene.mhd.write_config(&more)?;
        let refused = scene.mhd.ctl_output(&["reload"])?;
        let told = refused.stderr;
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("wan9") && told.contains("stays"), "{told}");
        assert_eq!((rules()?, routes()?, weights()?), was);
        assert_eq!(attached(), programs);
        flows.iter_mut().try_for_each(|flow| flow.echo())?;
        expect_split(scene, &[0, 1])?;

        // Without what could not be done, it can.
        scene.mhd.write_config(&more.replace("mode = \"xdp\"", "mode = \"tc\""))?;
        scene.mhd.ctl(&["reload"])?;
        assert_eq!(scene.mhd.uplink("isp9")?["interface"], "wan9");
        flows.iter_mut().try_for_each(|flow| flow.echo())?;
        scene.mhd.write_config(&before)?;
        scene.mhd.ctl(&["reload"])?;
        assert_eq!((rules()?, routes()?, weights()?), was);
        flows.iter_mut().try_for_each(|flow| flow.echo())
    })
}

#[test]
fn rules_and_routes_that_somebody_removed_come_back() -> Result<()> {
    without_damping(|scene| {
        let router = &scene.lab.router;
        let ours = || -> Result<(String, String)> {
            Ok((router.run(&["ip", "rule"])?, router.run(&["ip", "route", "show", "table", "all", "proto", "109"])?))
        };
        let before = ours()?;
        router.run(&["ip", "rule", "flush", "protocol", "109"])?;
        wait_for("the rules to be back", SOON, || Ok((ours()? == before).then_some(())))?;
        // With the last address go all routes by an interface, in silence.
        let address: Ipv4Addr = scene.lab.uplink(0)?.address;
        router.ip(&[format!("addr del {address}/24 dev wan1"), format!("addr add {address}/24 dev wan1")])?;
        wait_for("the routes to be back", SOON, || Ok((ours()? == before).then_some(())))?;
        Ok(())
    })
}

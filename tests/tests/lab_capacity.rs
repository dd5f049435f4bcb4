//! New flows by what is left of capacities: the running controller measures what uplinks carry, and spreads new flows by it.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ────────┐
//!                        192.168.1.0/24    .1 │ router: mh │                                   ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 │            │ wan2 203.0.113.2 ─── isp2 or lte ─┘
//!                        192.168.2.0/24    .1 └────────────┘
//!
//!  by capacity:  tiers = [ { isp1 = "capacity", isp2 = "capacity" } ], isp1 20 Mbit/s, isp2 10 Mbit/s
//!  spill:        tiers = [ { isp1 = "capacity" }, { lte = 1 } ], isp1 10 Mbit/s, spill = "80%"
//! ```
//!
//! Capacities are numbers in the config: no link is shaped. Load is a paced UDP flow of client3 that stays where it is; new flows are
//! those of client1 and client2, and their uplink is told by the source address that the server saw. They are judged by the shares that mhd
//! shows just before and just after them, so that a machine with little time makes the tests slow and not wrong. All flows stay open to the
//! end of a test: a new flow with the port of an earlier one would rightly be where that was.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mh_tests::lab::traffic::{Direction, PacedFlow, Split, UdpFlow, udp_flows};
use mh_tests::lab::{Mode, Options, SERVER, Scene, TwoIsps, run_configured, wait_until};
use serde_json::Value;

/// New flows of each of two clients at a time.
const FLOWS: usize = 150;
/// How long a share may take to follow a load: some six times the time constant of the smoothing.
const DEADLINE: Duration = Duration::from_secs(50);
/// How far a count may be from its share, in standard deviations: chance is further off once in 16,000 times.
const SIGMAS: f64 = 4.0;
/// The slots of a table, and so the grain of shares.
const SLOTS: f64 = 4096.0;
/// How often something is begun anew that goes by chance: load until it is on the uplink that is wanted.
const TRIES: u32 = 64;
const MBIT: f64 = 1e6;

fn by_capacity(lab: &TwoIsps, isp1: &str, isp2: &str) -> String {
    with_capacities(lab, &[("isp1", Some(isp1)), ("isp2", Some(isp2))])
}

/// A config whose uplinks have these names, and weights by capacity if there is one.
fn with_capacities(lab: &TwoIsps, uplinks: &[(&str, Option<&str>)]) -> String {
    let mut config = lab.config(&[1, 1]);
    for ((name, capacity), uplink) in uplinks.iter().zip(&lab.uplinks) {
        config = config.replace(&format!("uplink.{}]", uplink.name), &format!("uplink.{name}]"));
        if let Some(capacity) = capacity {
            config = config.replacen("weight = 1", &format!("weight = \"capacity\"\ncapacity = \"{capacity}\""), 1);
        }
    }
    config
}

fn one_tier(lab: &TwoIsps) -> String {
    by_capacity(lab, "20mbit/20mbit", "10mbit/10mbit")
}

fn two_tiers(lab: &TwoIsps) -> String {
    let policy = "\n[policy.default]\ntiers = [ { isp1 = \"capacity\" }, { lte = 1 } ]\nspill = \"80%\"\n";
    with_capacities(lab, &[("isp1", Some("10mbit")), ("lte", None)]) + policy
}

#[test]
fn tc_new_flows_follow_what_is_left() -> Result<()> {
    run_configured(&Options::new(Mode::Tc), one_tier, |scene| new_flows_follow_what_is_left(scene, Direction::Download))
}

#[test]
fn xdp_new_flows_follow_what_is_left() -> Result<()> {
    run_configured(&Options::new(Mode::Xdp), one_tier, |scene| new_flows_follow_what_is_left(scene, Direction::Upload))
}

#[test]
fn xdp_a_full_tier_spills_over() -> Result<()> {
    run_configured(&Options::new(Mode::Xdp), two_tiers, a_full_tier_spills_over)
}

#[test]
fn tc_rates_are_those_of_the_traffic() -> Result<()> {
    run_configured(&Options::new(Mode::Tc), one_tier, rates_are_those_of_the_traffic)
}

#[test]
fn tc_capacities_by_reload_and_weights_by_hand_are_in_force_at_once() -> Result<()> {
    run_configured(&Options::new(Mode::Tc), one_tier, changes_are_in_force_at_once)
}

fn number(value: &Value, field: &str) -> Result<f64> {
    value[field].as_f64().with_context(|| format!("no {field} in {value}"))
}

/// What `mhctl status` says of an uplink.
fn status(scene: &Scene, uplink: &str, field: &str) -> Result<f64> {
    number(&scene.mhd.uplink(uplink)?, field)
}

/// An uplink's share of new flows: the same by `mhctl status` and by `mhctl policies`, as is its weight.
fn share(scene: &Scene, uplink: &str) -> Result<f64> {
    let of =
        |value: &Value| anyhow::Ok([number(value, "share")?, number(value, "effective_weight")?].map(f64::to_bits));
    for _ in 0..TRIES {
        let before = of(&scene.mhd.uplink(uplink)?)?;
        let policies = scene.mhd.ctl_json(&["policies"])?;
        let after = of(&scene.mhd.uplink(uplink)?)?;
        // What changed in between says nothing.
        if before != after {
            continue;
        }
        let members = policies[0]["tiers"].as_array().into_iter().flatten().flat_map(|tier| tier.as_array());
        let member = members.flatten().find(|member| member["uplink"] == uplink);
        let in_policy = of(member.with_context(|| format!("no {uplink} in {policies}"))?)?;
        assert_eq!(in_policy, before, "{uplink}, unlike its status: {policies}");
        return Ok(f64::from_bits(before[0]));
    }
    bail!("the share of {uplink} was never the same twice")
}

/// Load on an uplink, by a flow of client3 that was chosen to be there.
fn load(scene: &Scene, uplink: usize, direction: Direction, bps: f64) -> Result<PacedFlow> {
    let wanted = scene.lab.uplink(uplink)?.address;
    for _ in 0..TRIES {
        let flow = PacedFlow::start(&scene.lab.client3, &scene.lab.server, SERVER, direction, bps)?;
        if *flow.seen.ip() == wanted {
            return Ok(flow);
        }
    }
    bail!("none of {TRIES} flows came from {wanted}")
}

/// Opens new flows and checks that those by an uplink are as many as its share says.
fn expect_shares(scene: &Scene, open: &mut Vec<UdpFlow>, uplink: &str, address: Ipv4Addr) -> Result<Split> {
    let before = share(scene, uplink)?;
    let mut flows = Vec::new();
    for client in [&scene.lab.client1, &scene.lab.client2] {
        flows.extend(udp_flows(client, scene.udp.address(), FLOWS)?);
    }
    let after = share(scene, uplink)?;
    let split = Split::of(flows.iter().map(|flow| flow.seen));
    open.extend(flows);
    println!("{uplink} has {before:.3} to {after:.3} of new flows: {split}");
    let (low, high) = (before.min(after) - 1.0 / SLOTS, before.max(after) + 1.0 / SLOTS);
    let seen = split.count(address) as f64 / split.total() as f64;
    let is_within = (low..=high).contains(&seen);
    let nearest = seen.clamp(low, high).clamp(1.0 / SLOTS, 1.0 - 1.0 / SLOTS);
    // Nothing at all may come by an uplink whose share is none.
    let sigmas = if before == 0.0 && after == 0.0 { f64::INFINITY } else { split.sigmas(address, nearest) };
    ensure!(
        is_within || sigmas <= SIGMAS,
        "{seen:.3} of the flows by {uplink}, {sigmas:.1} sigma from {low:.3} to {high:.3}: {split}"
    );
    Ok(split)
}

/// Waits until an uplink's share is as wanted.
fn wait_for_share(scene: &Scene, uplink: &str, what: &str, holds: impl Fn(f64) -> bool) -> Result<()> {
    let waited = scene.mhd.wait_for_uplink(uplink, &format!("to have {what}"), DEADLINE, |seen| {
        seen["share"].as_f64().is_some_and(&holds)
    })?;
    println!("{uplink} has {what} after {waited:?}");
    Ok(())
}

fn new_flows_follow_what_is_left(scene: &mut Scene, direction: Direction) -> Result<()> {
    let (isp1, mut open) = (scene.lab.uplink(0)?.address, Vec::new());
    let (weight1, weight2) = (status(scene, "isp1", "effective_weight")?, status(scene, "isp2", "effective_weight")?);
    assert_eq!((weight1, weight2), (20.0, 10.0), "nothing is carried, all is left");
    assert!((share(scene, "isp1")? - 2.0 / 3.0).abs() < 0.01);
    expect_shares(scene, &mut open, "isp1", isp1)?;

    // Less is left of isp1 than of isp2 from 10 Mbit/s on.
    let load = load(scene, 0, direction, 15.0 * MBIT)?;
    wait_for_share(scene, "isp1", "less than 0.44", |share| share < 0.44)?;
    let split = expect_shares(scene, &mut open, "isp1", isp1)?;
    assert!(split.count(isp1) * 2 < split.total(), "more by the uplink that has less left: {split}");
    let (loaded1, loaded2) = (status(scene, "isp1", "effective_weight")?, status(scene, "isp2", "effective_weight")?);
    assert!(loaded1 < weight1 / 2.0 && (loaded2 - weight2).abs() <= 1.0, "{loaded1} and {loaded2} Mbit/s are left");
    println!("the load was {:.1} Mbit/s", load.bps() / MBIT);

    drop(load);
    wait_for_share(scene, "isp1", "more than 0.6", |share| share > 0.6)?;
    let split = expect_shares(scene, &mut open, "isp1", isp1)?;
    assert!(split.count(isp1) * 2 > split.total(), "less by the uplink that has more left: {split}");
    for flow in open.iter().step_by(10) {
        assert_eq!(flow.ask()?, flow.seen, "a flow that exists stays where it is");
    }
    Ok(())
}

fn a_full_tier_spills_over(scene: &mut Scene) -> Result<()> {
    let (lte, mut open) = (scene.lab.uplink(1)?.address, Vec::new());
    assert_eq!(share(scene, "lte")?, 0.0);
    assert_eq!(expect_shares(scene, &mut open, "lte", lte)?.count(lte), 0);

    // Six tenths of what isp1 can carry, then half as much again as it can.
    let below = load(scene, 0, Direction::Upload, 6.0 * MBIT)?;
    let carries = |bps: f64| move |uplink: &Value| uplink["tx_bps"].as_f64().is_some_and(|seen| seen > bps);
    scene.mhd.wait_for_uplink("isp1", "to carry 4 Mbit/s", DEADLINE, carries(4.0 * MBIT))?;
    assert_eq!(expect_shares(scene, &mut open, "lte", lte)?.count(lte), 0, "the first tier is not full");
    let above = load(scene, 0, Direction::Upload, 9.0 * MBIT)?;
    wait_for_share(scene, "lte", "more than 0.25", |share| share > 0.25)?;
    let first = status(scene, "isp1", "tx_bps")? / (10.0 * MBIT);
    let policies = scene.mhd.ctl_json(&["policies"])?;
    let last = status(scene, "isp1", "tx_bps")? / (10.0 * MBIT);
    let fill = policies[0]["fill"][0].as_f64().with_context(|| format!("no fill in {policies}"))?;
    assert!(fill > 0.8 && (first.min(last) - 0.01..first.max(last) + 0.01).contains(&fill), "{fill} full: {policies}");
    assert_eq!((number(&policies[0], "spill")?, number(&policies[0], "active_tier")?), (0.8, 0.0), "{policies}");
    let explained = scene.mhd.ctl(&["explain", "udp", "192.168.1.11:9", "192.0.2.10:9"])?;
    assert!(explained.contains("% full, and some spill over"), "{explained}");
    for command in ["status", "policies"] {
        println!("{}", scene.mhd.ctl(&[command])?);
    }
    let split = expect_shares(scene, &mut open, "lte", lte)?;
    assert!(split.count(lte) > 0 && split.count(lte) < split.total(), "{split}");

    drop((below, above));
    wait_for_share(scene, "lte", "none", |share| share == 0.0)?;
    assert_eq!(expect_shares(scene, &mut open, "lte", lte)?.count(lte), 0, "the load is over");
    Ok(())
}

/// How far `seen` is from `is`, as a part of that.
fn error(seen: f64, is: f64) -> f64 {
    (seen - is).abs() / is
}

fn rates_are_those_of_the_traffic(scene: &mut Scene) -> Result<()> {
    let down = load(scene, 0, Direction::Download, 8.0 * MBIT)?;
    let up = load(scene, 0, Direction::Upload, 2.0 * MBIT)?;
    let mut seen = Value::Null;
    let near = wait_until("the rates of the traffic", DEADLINE, || {
        seen = scene.mhd.uplink("isp1")?;
        let (rx, tx) = (number(&seen, "rx_bps")?, number(&seen, "tx_bps")?);
        Ok(error(rx, down.bps()) < 0.15 && error(tx, up.bps()) < 0.15)
    });
    let waited = near.with_context(|| format!("{} down and {} up are {seen}", down.bps(), up.bps()))?;
    println!("{} and {} bit/s after {waited:?}: {seen}", down.bps(), up.bps());
    let other = scene.mhd.uplink("isp2")?;
    assert!(number(&other, "rx_bps")? < MBIT && number(&other, "tx_bps")? < MBIT, "{other}");
    let screen = scene.mhd.ctl(&["status"])?;
    println!("{screen}");
    let row = screen.lines().find(|row| row.starts_with("isp1")).context("isp1 has no row")?;
    assert_eq!(row.matches(" of 20 Mbit/s").count(), 3, "its weight and what it sends and receives: {screen}");
    for command in ["policies", "weights"] {
        println!("{}", scene.mhd.ctl(&[command])?);
    }
    Ok(())
}

fn changes_are_in_force_at_once(scene: &mut Scene) -> Result<()> {
    let (isp1, mut open) = (scene.lab.uplink(0)?.address, Vec::new());
    let is = |share: f64, wanted: f64| assert!((share - wanted).abs() < 0.01, "{share}, not {wanted}");
    is(share(scene, "isp1")?, 20.0 / 30.0);

    scene.mhd.write_config(&by_capacity(&scene.lab, "20mbit", "60mbit"))?;
    let reloaded = scene.mhd.ctl(&["reload"])?;
    assert!(reloaded.contains("isp2"), "{reloaded}");
    is(share(scene, "isp1")?, 20.0 / 80.0);
    assert_eq!(scene.mhd.uplink("isp2")?["capacity"]["up_bps"], 60_000_000);
    expect_shares(scene, &mut open, "isp1", isp1)?;

    // A number by hand makes numbers of the others' capacities.
    scene.mhd.ctl(&["weights", "isp1=3"])?;
    is(share(scene, "isp1")?, 3.0 / 63.0);
    assert_eq!(status(scene, "isp1", "effective_weight")?, 3.0);
    assert_eq!(status(scene, "isp2", "effective_weight")?, 60.0);
    let policies = scene.mhd.ctl_json(&["policies"])?;
    let weights = policies[0]["tiers"][0].as_array().unwrap().iter().map(|member| member["weight"].as_f64());
    assert_eq!(weights.collect::<Vec<_>>(), [Some(3.0), Some(60.0)], "{policies}");
    let weights = scene.mhd.ctl_json(&["weights"])?;
    assert_eq!((&weights[0]["configured_by_capacity"], &weights[0]["by_capacity"]), (&true.into(), &false.into()));
    expect_shares(scene, &mut open, "isp1", isp1)?;

    // Zero by hand only takes one out.
    scene.mhd.ctl(&["weights", "isp1=0"])?;
    is(share(scene, "isp1")?, 0.0);
    let (isp1_now, isp2_now) = (scene.mhd.uplink("isp1")?, scene.mhd.uplink("isp2")?);
    assert_eq!((&isp1_now["state"], &isp1_now["weight"]), (&"disabled".into(), &0.into()), "{isp1_now}");
    assert_eq!((&isp2_now["by_capacity"], &isp2_now["share"]), (&true.into(), &1.0.into()), "{isp2_now}");

    scene.mhd.ctl(&["weights", "isp1=auto"])?;
    is(share(scene, "isp1")?, 20.0 / 80.0);
    assert_eq!(scene.mhd.uplink("isp1")?["by_capacity"], true);
    expect_shares(scene, &mut open, "isp1", isp1)?;
    Ok(())
}

//! The shares of new flows, by Pearson's chi-square test of what the program does with 100,000 flows under each of five weight vectors.
//!
//! The key of the hash is fixed, so that each run counts the same. The limit is the critical value at p = 0.001. What makes these tests
//! fail: a hash that is not uniform in its low bits, that leaves out a field, or whose slots another policy shares; slots that are not in
//! proportion to the weights. That a wrong weight would be seen is asserted, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use anyhow::{Context as _, Result};
use mh_common::abi::Settings;
use mh_common::slots::SLOTS;
use mh_tests::lab::skipped;
use mh_tests::packet::{Packet, Transport};
use mh_tests::rig::{HOST, LAN, Rig};

/// Uplinks of the rig.
const UPLINKS: u8 = 5;
/// New flows of each vector.
const FLOWS: u32 = 100_000;
/// The weights of isp1, isp2 and so on.
const VECTORS: [&[u16]; 5] = [&[1, 1], &[2, 1], &[5, 3, 2], &[1, 1, 1, 1, 1], &[100, 50, 10, 1]];
/// The key of the hash: any number will do.
const SEED: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];

/// A policy for each vector, of those that come from 10.N.0.0/16.
fn config(hash: &str) -> String {
    let mut text = "lan = [\"lan0\"]\n[datapath]\nconntrack_entries = 65536\nbindings = 262144\n".to_owned();
    for number in 1..=UPLINKS {
        let network = match number {
            1 => "198.51.100".to_owned(),
            2 => "203.0.113".to_owned(),
            more => format!("198.18.{more}"),
        };
        let _ = write!(
            text,
            "[uplink.isp{number}]\ninterface = \"wan{number}\"\ngateway = \"{network}.1\"\naddress = \"{network}.2\"\n"
        );
    }
    for (number, weights) in VECTORS.iter().enumerate() {
        let tier: Vec<String> = (1..).zip(*weights).map(|(uplink, weight)| format!("isp{uplink} = {weight}")).collect();
        let tier = tier.join(", ");
        let _ = write!(
            text,
            "[policy.v{number}]\nhash = \"{hash}\"\ntiers = [{{ {tier} }}]\n[[rule]]\nfrom = \"10.{number}.0.0/16\"\nuse = \"policy:v{number}\"\n"
        );
    }
    text
}

/// Pearson's statistic of these counts for these weights.
fn chi_square(counts: &[u64], weights: &[u16]) -> f64 {
    let (flows, sum) =
        (counts.iter().sum::<u64>() as f64, weights.iter().map(|weight| f64::from(*weight)).sum::<f64>());
    let expected = weights.iter().map(|weight| flows * f64::from(*weight) / sum);
    counts.iter().zip(expected).map(|(count, expected)| (*count as f64 - expected).powi(2) / expected).sum()
}

/// The value that the statistic exceeds once in a thousand times.
fn critical(weights: &[u16]) -> f64 {
    [10.828, 13.816, 16.266, 18.467][weights.len() - 2]
}

/// New flows by each uplink so far.
fn counts(rig: &Rig) -> Result<Vec<u64>> {
    (0..UPLINKS).map(|index| Ok(rig.tables.uplink_stats(index)?.new_flows)).collect()
}

/// Begins these flows, and judges where they went.
fn judge(rig: &mut Rig, weights: &[u16], ends: impl Iterator<Item = (SocketAddrV4, SocketAddrV4)>) -> Result<()> {
    let (before, begun) = (counts(rig)?, Instant::now());
    let mut packet = Packet::new(LAN, HOST, "10.0.0.1:1", "192.0.2.10:1", Transport::UdpUnsummed);
    let mut fed = 0;
    for (src, dst) in ends {
        (packet.src, packet.dst) = (src, dst);
        rig.feed("lan0", &packet.build())?;
        fed += 1;
    }
    let elapsed = begun.elapsed();
    let counts: Vec<u64> = counts(rig)?.iter().zip(before).map(|(after, before)| after - before).collect();
    let (members, others) = counts.split_at(weights.len());
    assert_eq!(members.iter().sum::<u64>(), fed, "each is a new flow, by an uplink of its policy: {counts:?}");
    assert!(others.iter().all(|count| *count == 0), "{counts:?}");
    let (found, most) = (chi_square(members, weights), critical(weights));
    println!("{weights:?}: {members:?}, chi-square {found:.2} of {most} at most, {elapsed:?}");
    assert!(found < most, "{weights:?}: {members:?}: {found} is over {most}");
    Ok(())
}

fn on_rig(hash: &str, work: impl FnOnce(&mut Rig) -> Result<()> + Send) -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Rig::run_config(&config(hash), |rig| {
        let settings: Settings = rig.tables.settings.get(&0, 0)?;
        rig.tables.settings.set(0, Settings { seed: SEED, ..settings }, 0)?;
        work(rig)
    })
}

#[test]
fn flows_are_shared_by_weight() -> Result<()> {
    on_rig("flow", |rig| {
        for (number, weights) in (0..).zip(VECTORS) {
            // Five ends in each of 200 hosts, each with flows to 100 ports: each flow's own are fewer than the outside ports that there are.
            let ends = (0..FLOWS).map(|flow| {
                let (end, port) = (flow / 100, flow % 100);
                let source = Ipv4Addr::from(Ipv4Addr::new(10, number, 1, 0).to_bits() + end / 5);
                (source, 20_000 + end % 5, 1000 + port)
            });
            let at = |address, port: u32| SocketAddrV4::new(address, u16::try_from(port).unwrap());
            let server = Ipv4Addr::new(192, 0, 2, 10);
            judge(rig, weights, ends.map(|(source, sport, dport)| (at(source, sport), at(server, dport))))?;
        }
        Ok(())
    })
}

#[test]
fn sources_are_shared_by_weight() -> Result<()> {
    on_rig("source", |rig| {
        for (number, weights) in (0..).zip(VECTORS) {
            let first = Ipv4Addr::new(10, number, 0, 1).to_bits();
            let ends = (0..8000).map(|source| {
                let end = |address: u32| SocketAddrV4::new(Ipv4Addr::from(address), 20_000);
                (end(first + source), end(Ipv4Addr::new(192, 0, 2, 10).to_bits()))
            });
            judge(rig, weights, ends)?;
        }
        Ok(())
    })
}

/// What a slot is worth: 1/4096.
#[test]
fn slots_are_exact() -> Result<()> {
    on_rig("flow", |rig| {
        let policies = rig.tables.policies()?;
        for (number, weights) in VECTORS.iter().enumerate() {
            let name = format!("v{number}");
            let named = policies.iter().find(|(_, policy)| policy.name.starts_with(format!("{name}\0").as_bytes()));
            let (_, policy) = named.with_context(|| format!("no policy {name}"))?;
            let table = rig.tables.slots.get(&policy.table, 0)?;
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            let slots = |uplink: usize| table.iter().filter(|slot| usize::from(**slot) == uplink).count();
            for (uplink, weight) in weights.iter().enumerate() {
                let exact = f64::from(*weight) / f64::from(sum) * SLOTS as f64;
                let found = slots(uplink);
                assert!(
                    (found as f64 - exact).abs() < 1.0,
                    "{weights:?}: uplink {uplink} has {found} slots of {exact}"
                );
            }
            assert_eq!((0..weights.len()).map(slots).sum::<usize>(), SLOTS, "{weights:?}");
        }
        Ok(())
    })
}

/// The test would see shares that are off by less than one in a hundred.
#[test]
fn wrong_shares_are_seen() {
    let off = |counts: &[u64], weights: &[u16]| chi_square(counts, weights) > critical(weights);
    assert!(!off(&[66_667, 33_333], &[2, 1]));
    assert!(!off(&[66_400, 33_600], &[2, 1]), "1.8 standard deviations");
    assert!(off(&[66_100, 33_900], &[2, 1]), "3.8 standard deviations");
    assert!(off(&[50_000, 30_800, 19_200], &[5, 3, 2]));
    assert!(!off(&[20_000, 20_000, 20_000, 20_400, 19_600], &[1, 1, 1, 1, 1]));
    assert!(off(&[20_000, 20_000, 20_000, 20_500, 19_500], &[1, 1, 1, 1, 1]));
    assert!(off(&[61_950, 31_100, 6200, 750], &[100, 50, 10, 1]));
}

//! Sources that stick to their uplink: for a time after their last flow, whatever becomes of the weights, but not to a dead one.
//!
//! ```text
//!  client1 .11, .101 to .132 ┐                ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!  client2 .12, .151 to .182 ┴ switch ── lan0 │ router: mh │                             ├── server 192.0.2.10
//!                        192.168.1.0/24    .1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//! ```
//!
//! Each inside address is a source of its own. The weights begin with 1:1; with 1:60000 nearly every source's hash says isp2, so what goes
//! by isp1 then was kept there. What makes these tests fail: stickiness that is forgotten with the slots, that does not end, that ends
//! while a flow lives, that follows the policy's hash when the uplink is back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::traffic::UdpFlow;
use mh_tests::lab::{Host, Mode, Options, Scene, run_configured, wait_until};

/// Sources of each client's host.
const SOURCES: u8 = 32;
/// How long a source keeps its uplink in these tests.
const STICKY: Duration = Duration::from_secs(5);
/// What the clocks of the datapath and of the test may differ by, and a new flow's answer may take.
const SLACK: Duration = Duration::from_secs(1);

/// A source and its host.
#[derive(Clone)]
struct Source {
    host: Host,
    address: Ipv4Addr,
}

/// Runs a test with many sources, and a default policy by which they stick for so long.
fn on_sources(sticky: Duration, test: impl FnOnce(&mut Scene, &[Source]) -> Result<()>) -> Result<()> {
    let policy = format!("\n[policy.default]\nhash = \"source\"\nsticky = \"{}s\"\n", sticky.as_secs());
    run_configured(
        &Options::new(Mode::Tc),
        |lab| lab.config(&[1, 1]) + &policy,
        |scene| {
            let mut sources = Vec::new();
            for (host, first) in [(&scene.lab.client1, 101), (&scene.lab.client2, 151)] {
                let addresses = (first..first + SOURCES).map(|last| Ipv4Addr::new(192, 168, 1, last));
                let lines: Vec<String> =
                    addresses.clone().map(|address| format!("addr add {address}/24 dev eth0")).collect();
                host.ip(&lines)?;
                sources.extend(addresses.map(|address| Source { host: host.clone(), address }));
            }
            test(scene, &sources)
        },
    )
}

impl Source {
    /// Begins a flow.
    fn begin(&self, scene: &Scene) -> Result<UdpFlow> {
        UdpFlow::open_bound(&self.host, SocketAddrV4::new(self.address, 0), scene.udp.address())
    }

    /// The outside address of a new flow.
    fn seen(&self, scene: &Scene) -> Result<Ipv4Addr> {
        Ok(*self.begin(scene)?.seen.ip())
    }
}

/// isp1's and isp2's.
fn addresses(scene: &Scene) -> [Ipv4Addr; 2] {
    [0, 1].map(|index| scene.lab.uplinks[index].address)
}

/// Those of the sources whose flows, which stay open, go by isp1.
fn on_isp1(scene: &Scene, sources: &[Source]) -> Result<Vec<(Source, UdpFlow)>> {
    let [isp1, _] = addresses(scene);
    let mut found = Vec::new();
    for source in sources {
        let flow = source.begin(scene)?;
        if *flow.seen.ip() == isp1 {
            found.push((source.clone(), flow));
        }
    }
    ensure!(found.len() > 8, "{} of {} sources by isp1", found.len(), sources.len());
    Ok(found)
}

/// Time itself is what is waited for.
fn let_pass(since: Instant, time: Duration) -> Result<()> {
    wait_until("time to pass", time + SLACK, || Ok(since.elapsed() >= time)).map(drop)
}

#[test]
fn weights_change_and_sources_stay_for_their_time() -> Result<()> {
    on_sources(STICKY, |scene, sources| {
        let [isp1, isp2] = addresses(scene);
        // Some whose first flow comes when the weights are others.
        let (known, new) = sources.split_at(sources.len() - 8);
        let kept = on_isp1(scene, known)?;
        scene.set_weights(1, 60_000)?;
        let mut last = BTreeMap::new();
        for (source, _) in &kept {
            last.insert(source.address, Instant::now());
            assert_eq!(source.seen(scene)?, isp1, "{} moved with the weights", source.address);
        }
        let by_isp2 = new.iter().map(|source| source.seen(scene)).collect::<Result<Vec<_>>>()?;
        let by_isp2 = by_isp2.iter().filter(|seen| **seen == isp2).count();
        assert!(by_isp2 > 5, "{by_isp2} of {} new sources by the uplink with nearly all slots", new.len());

        // Half of them begin another flow when most of the time is over, which begins it anew; of the others it ends.
        let (first, second) = kept.split_at(kept.len() / 2);
        let_pass(last[&first[0].0.address], STICKY * 3 / 5)?;
        for (source, _) in first {
            let since = last[&source.address].elapsed();
            ensure!(since < STICKY - SLACK / 2, "the machine is too slow for this test: {since:?}");
            last.insert(source.address, Instant::now());
            assert_eq!(source.seen(scene)?, isp1, "{} moved after {since:?}", source.address);
        }
        let_pass(last[&second[second.len() - 1].0.address], STICKY + SLACK)?;
        let moved = second.iter().map(|(source, _)| source.seen(scene)).collect::<Result<Vec<_>>>()?;
        let moved = moved.iter().filter(|seen| **seen == isp2).count();
        assert!(moved + 2 > second.len(), "{moved} of {} sources moved after {STICKY:?} without a flow", second.len());
        for (source, _) in first {
            let since = last[&source.address].elapsed();
            ensure!(since < STICKY, "the machine is too slow for this test: {since:?}");
            assert_eq!(source.seen(scene)?, isp1, "{} moved {since:?} after its second flow", source.address);
        }
        Ok(())
    })
}

/// A flow that lives keeps its source where it is, however long ago it began.
#[test]
fn a_long_flow_holds_its_source() -> Result<()> {
    on_sources(STICKY, |scene, sources| {
        let [isp1, isp2] = addresses(scene);
        let kept = on_isp1(scene, sources)?;
        scene.set_weights(1, 60_000)?;
        let begun = Instant::now();
        let (idle, alive) = kept.split_at(3);
        // One source after the other begins a second flow, from when the first flow's time would be over to three times that.
        let steps = u32::try_from(alive.len())?;
        for (step, (source, _)) in (1..).zip(alive) {
            let until = STICKY + SLACK + 2 * STICKY * step / steps;
            while begun.elapsed() < until {
                for (_, flow) in alive {
                    assert_eq!(*flow.ask()?.ip(), isp1);
                }
            }
            let seen = source.seen(scene)?;
            assert_eq!(seen, isp1, "{} moved after {:?} though its flow lives", source.address, begun.elapsed());
        }
        let moved = idle.iter().map(|(source, _)| source.seen(scene)).collect::<Result<Vec<_>>>()?;
        assert!(moved.contains(&isp2), "sources without a flow for long stay, too: {moved:?}");
        Ok(())
    })
}

#[test]
fn a_dead_uplink_keeps_nobody() -> Result<()> {
    on_sources(Duration::from_secs(300), |scene, sources| {
        let [isp1, isp2] = addresses(scene);
        let kept = on_isp1(scene, sources)?;
        for round in 0..2 {
            match round {
                0 => scene.lab.uplink(0)?.isp.set_link("eth0", false)?,
                _ => drop(scene.mhd.ctl(&["drain", "isp1"])?),
            }
            scene.mhd.wait_for_state("isp1", if round == 0 { "down" } else { "draining" })?;
            for (source, _) in &kept {
                assert_eq!(source.seen(scene)?, isp2, "{}: isp1 takes no flows", source.address);
            }
            match round {
                0 => scene.lab.uplink(0)?.isp.set_link("eth0", true)?,
                _ => drop(scene.mhd.ctl(&["undrain", "isp1"])?),
            }
            scene.mhd.wait_for_state("isp1", "up")?;
            // By the hash they would go back; they stick to isp2 now.
            for (source, _) in &kept {
                assert_eq!(source.seen(scene)?, isp2, "{} moved back", source.address);
            }
            // Whoever is new is where the hash says.
            let fresh = (190..215).map(|last| Source {
                host: scene.lab.client1.clone(),
                address: Ipv4Addr::new(192, 168, 1, last + 25 * round),
            });
            let mut by_isp1 = 0;
            for source in fresh {
                source.host.ip(&[format!("addr replace {}/24 dev eth0", source.address)])?;
                by_isp1 += usize::from(source.seen(scene)? == isp1);
            }
            ensure!(by_isp1 > 0, "isp1 takes no flows of new sources");
            // Begin again on isp1.
            if round == 0 {
                scene.set_weights(1, 0)?;
                for (source, _) in &kept {
                    assert_eq!(source.seen(scene).context("by an uplink with a weight")?, isp1);
                }
                scene.set_weights(1, 1)?;
            }
        }
        Ok(())
    })
}

//! mhd ends, is killed and comes back while traffic flows: forwarding goes on, and nothing is lost.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use anyhow::Result;
use mh_common::{abi::map, known};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Direction, OpenTransfer, Split, TcpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{Mode, SERVER, Scene, run};

in_both_modes!(
    sigterm_and_start_in_the_middle_of_transfers,
    sigkill_and_start_in_the_middle_of_transfers,
    runtime_changes_and_flows_are_adopted,
    tables_keep_their_sizes,
);

#[test]
fn orders_by_hand_survive_as_far_as_they_were_saved() -> Result<()> {
    run(Mode::Tc, |scene| {
        let states = |scene: &Scene| -> Result<[String; 2]> {
            let state = |name| Ok::<_, anyhow::Error>(scene.mhd.uplink(name)?["state"].as_str().unwrap().to_owned());
            Ok([state("isp1")?, state("isp2")?])
        };
        scene.mhd.ctl(&["weights", "isp1=7", "--save"])?;
        scene.mhd.ctl(&["drain", "isp2", "--save"])?;
        scene.mhd.ctl(&["health", "isp1", "down"])?;
        assert_eq!(states(scene)?, ["down", "draining"]);
        scene.mhd.ctl(&["reload"])?;
        assert_eq!(states(scene)?, ["down", "draining"], "a reload forgets nothing");

        scene.mhd.restart()?;
        assert_eq!(states(scene)?, ["up", "draining"], "health was not saved");
        assert_eq!(scene.mhd.uplink("isp1")?["weight"], 7);
        let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 20)?;
        Split::of(flows.iter().map(|flow| flow.seen)).check(&[(scene.lab.uplink(0)?.address, 1)])?;

        // Each kind for itself: saving health saves no drain that is by hand alone.
        scene.mhd.ctl(&["undrain", "isp2"])?;
        scene.mhd.ctl(&["health", "isp1", "down", "--save"])?;
        scene.mhd.sigkill()?;
        scene.mhd.start_again()?;
        assert_eq!(states(scene)?, ["down", "draining"]);

        // What is saved of an uplink that is configured no more is said, and there when it is again.
        let config = std::fs::read_to_string(scene.mhd.config())?;
        scene.mhd.write_config(&config.replace("isp1", "other"))?;
        scene.mhd.restart()?;
        assert!(scene.mhd.log().contains("saved for isp1 is not used"), "{}", scene.mhd.log());
        scene.mhd.ctl(&["undrain", "isp2", "--save"])?;
        scene.mhd.write_config(&config)?;
        scene.mhd.restart()?;
        assert_eq!(states(scene)?, ["down", "up"]);
        assert_eq!(scene.mhd.uplink("isp1")?["weight"], 7);
        scene.mhd.ctl(&["health", "isp1", "auto", "--save"])?;
        scene.mhd.restart()?;
        assert_eq!(states(scene)?, ["up", "up"]);
        Ok(())
    })
}

/// More than all the sockets' buffers along the way take.
const BYTES: u64 = 50_000_000;

fn end_in_the_middle_of_transfers(scene: &mut Scene, end: fn(&mut Scene) -> Result<()>) -> Result<()> {
    let mut tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)?;
    let udp = udp_flows(&scene.lab.client2, scene.udp.address(), 20)?;
    let transfers = [
        OpenTransfer::start(&scene.lab.client1, &scene.tcp, Direction::Upload)?,
        OpenTransfer::start(&scene.lab.client2, &scene.tcp, Direction::Download)?,
    ];
    let advance = || transfers.iter().try_for_each(|transfer| transfer.advance(BYTES));
    advance()?;

    end(scene)?;
    // Nobody there: old flows go on, and new ones are steered and translated all the same.
    advance()?;
    let flows = tcp_flows(&scene.lab.client1, scene.tcp.address(), 30)?;
    let split = Split::of(flows.iter().map(|flow| flow.seen));
    assert_eq!(split.iter().count(), 2, "new flows without mhd: {split}");
    assert_eq!(scene.lab.client1.ping(SERVER, 5)?, 5);
    tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    tcp.extend(flows);

    scene.mhd.start_again()?;
    println!("ready again after {:?}", scene.mhd.ready_after());
    advance()?;
    tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    for flow in &udp {
        assert_eq!(flow.ask()?, flow.seen);
    }
    // The new daemon knows the flows that began before it.
    let known = scene.mhd.flows(&["--proto", "tcp"])?;
    for flow in &tcp {
        let found = known
            .iter()
            .find(|entry| entry["src"] == flow.local.ip().to_string() && entry["sport"] == flow.local.port());
        assert!(found.is_some_and(|entry| entry["nat_sport"] == flow.seen.port()), "{} in {known:?}", flow.local);
    }
    for transfer in transfers {
        let transferred = transfer.finish()?;
        assert!(transferred.bytes >= 3 * BYTES);
    }
    Ok(())
}

fn sigterm_and_start_in_the_middle_of_transfers(scene: &mut Scene) -> Result<()> {
    end_in_the_middle_of_transfers(scene, |scene| {
        let status = scene.mhd.sigterm()?;
        assert_eq!(status.code(), Some(0));
        Ok(())
    })
}

fn sigkill_and_start_in_the_middle_of_transfers(scene: &mut Scene) -> Result<()> {
    end_in_the_middle_of_transfers(scene, |scene| scene.mhd.sigkill())
}

/// Other sizes in the configuration are for tables that are made anew: those that are there stay, and programs and mhd find in them what they had.
fn tables_keep_their_sizes(scene: &mut Scene) -> Result<()> {
    let size = |scene: &Scene| -> Result<Option<u64>> {
        let path = format!("{}/{}", scene.mhd.bpffs(), map::KNOWN4);
        let json = scene.lab.router.run(&["bpftool", "-j", "map", "show", "pinned", &path])?;
        Ok(serde_json::from_str::<serde_json::Value>(&json)?["max_entries"].as_u64())
    };
    // How many packets of new flows XDP could not finish.
    let passed_on = |scene: &Scene| -> Result<u64> {
        let before = scene.count_of("xdp_to_tc")?;
        drop(udp_flows(&scene.lab.client1, scene.udp.address(), 30)?);
        Ok(scene.count_of("xdp_to_tc")? - before)
    };
    let mut tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)?;
    let (made, at_first) = (size(scene)?, passed_on(scene)?);
    assert_eq!(made, Some(u64::from(known::lines(65_536))));
    let config = std::fs::read_to_string(scene.mhd.config())?;
    assert!(config.contains("conntrack_entries = 65536"), "{config}");
    scene.mhd.write_config(&config.replace("conntrack_entries = 65536", "conntrack_entries = 1048576"))?;
    scene.mhd.restart()?;
    assert!(scene.mhd.log().contains("the conntrack keeps the 65536 entries"), "{}", scene.mhd.log());
    assert_eq!(size(scene)?, made);
    tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    let now = passed_on(scene)?;
    assert!(now < at_first + 15, "{now} packets of 30 flows were passed on, and {at_first} before");
    Ok(())
}

/// Several restarts in a row, a link that goes down while nobody looks, and flows that outlive it all.
fn runtime_changes_and_flows_are_adopted(scene: &mut Scene) -> Result<()> {
    let mut tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), 30)?;
    for _ in 0..3 {
        scene.mhd.restart()?;
        tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    }
    scene.mhd.sigkill()?;
    scene.lab.uplink(0)?.isp.ip(&["link set eth0 down"])?;
    scene.mhd.start_again()?;
    scene.mhd.wait_for_state("isp1", "down")?;
    let address2 = scene.lab.uplink(1)?.address;
    let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 30)?;
    Split::of(flows.iter().map(|flow| flow.seen)).check(&[(address2, 1)])?;
    tcp.iter_mut().filter(|flow| *flow.seen.ip() == address2).try_for_each(TcpFlow::echo)
}

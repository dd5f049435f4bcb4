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
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Direction, OpenTransfer, Split, TcpFlow, tcp_flows, udp_flows};
use mh_tests::lab::{SERVER, Scene};

in_both_modes!(
    sigterm_and_start_in_the_middle_of_transfers,
    sigkill_and_start_in_the_middle_of_transfers,
    runtime_changes_and_flows_are_adopted,
);

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

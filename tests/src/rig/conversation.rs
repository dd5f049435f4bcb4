//! What tests on the rig are made of: how they begin, one conversation as it is on each link, and what a program did with a packet.
//!
//! An inside host (`INSIDE`) talks to a host of the internet (`REMOTE`) by isp1, where it keeps its port (`OUTSIDE`).

use std::collections::BTreeMap;

use anyhow::Result;
use mh_userspace::datapath::flows::{Filter, Flow};

use super::{GATEWAY1, HOST, LAN, Outcome, Rig, WAN1};
use crate::lab::skipped;
use crate::packet::{Packet, Transport};

/// The inside host's end.
pub const INSIDE: &str = "192.168.1.10:40001";
/// The inside host's end as the internet knows it by isp1.
pub const OUTSIDE: &str = "198.51.100.2:40001";
/// The other end.
pub const REMOTE: &str = "192.0.2.10:443";

/// Runs a test on a rig whose flows all go by isp1; skips without root.
///
/// # Panics
/// If the rig can't be made or the test fails.
pub fn on_rig(work: impl FnOnce(&mut Rig) -> Result<()> + Send) {
    on_rig_with("", [1, 0], work);
}

/// The same with lines at the end of the configuration (see [`Rig::run_with_isp2`]), and the weights of isp1 and isp2.
///
/// # Panics
/// As [`on_rig`].
#[allow(clippy::unwrap_used, reason = "so a test fails")]
pub fn on_rig_with(lines: &str, weights: [u16; 2], work: impl FnOnce(&mut Rig) -> Result<()> + Send) {
    if !skipped() {
        Rig::run_with_isp2(lines, weights, work).unwrap();
    }
}

/// What the inside host sends.
#[must_use]
pub fn out(transport: Transport) -> Packet {
    Packet::new(LAN, HOST, INSIDE, REMOTE, transport)
}

/// The same on the wire of isp1.
#[must_use]
pub fn out_sent(transport: Transport) -> Packet {
    Packet { ttl: 63, ..Packet::new(GATEWAY1, WAN1, OUTSIDE, REMOTE, transport) }
}

/// What the other end answers, on the wire of isp1.
#[must_use]
pub fn back(transport: Transport) -> Packet {
    Packet::new(WAN1, GATEWAY1, REMOTE, OUTSIDE, transport)
}

/// The same as the inside host gets it.
#[must_use]
pub fn back_sent(transport: Transport) -> Packet {
    Packet { ttl: 63, ..Packet::new(HOST, LAN, REMOTE, INSIDE, transport) }
}

/// The counters of one packet that was counted as `name`.
#[must_use]
pub fn counted(name: &'static str) -> BTreeMap<&'static str, u64> {
    [(name, 1)].into()
}

/// The packet was counted once, as this; it was given this return code; and it left the program like this.
///
/// # Panics
/// If not.
#[track_caller]
pub fn assert_done(outcome: &Outcome, code: i32, packet: &[u8], counter: &'static str) {
    assert_eq!(outcome.counted, counted(counter));
    assert_eq!(outcome.code, code);
    assert_eq!(outcome.packet, packet);
}

/// All flows.
///
/// # Errors
/// If the tables can't be read.
pub fn flows(rig: &Rig) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    rig.tables.each_flow(&Filter::default(), |flow| {
        flows.push(flow);
        true
    })?;
    Ok(flows)
}

/// What all flows are doing.
///
/// # Errors
/// If the tables can't be read.
pub fn states(rig: &Rig) -> Result<Vec<&'static str>> {
    Ok(flows(rig)?.iter().map(|flow| flow.state().name()).collect())
}

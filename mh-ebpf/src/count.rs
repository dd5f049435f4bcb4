//! Counters, and the one place where a verdict becomes a return code.

use mh_common::{
    abi::mark,
    rules::Rule,
    verdict::{Group, Verdict},
};

use crate::{access::Frame, maps};

/// A packet that was rewritten and handed to an egress interface.
pub struct Sent {
    /// What it was.
    pub verdict: Verdict,
    /// The hook's return code, from the redirect.
    pub code: i32,
}

/// Counts how a packet ended and returns the hook's return code.
///
/// What the fast path passes is counted there as [`Verdict::ToTc`] only: the complete path sees it again and knows why.
///
/// What is refused at TC ingress is left to the kernel with a mark, by which the controller's rules make it answer with ICMP. At egress
/// the kernel has routed already: there it is dropped.
#[inline(always)]
pub fn finish<F: Frame>(frame: &mut F, outcome: Result<Sent, Verdict>) -> i32 {
    let (verdict, code) = match outcome {
        Ok(sent) => (sent.verdict, sent.code),
        Err(verdict) => match verdict.group() {
            Group::Drop => (verdict, F::DROP),
            Group::Refuse if F::EGRESS => (verdict, F::DROP),
            Group::Refuse if F::COMPLETE => {
                let mark = if matches!(verdict, Verdict::NoUplink) { mark::UNREACHABLE } else { mark::PROHIBIT };
                match maps::settings() {
                    Some(settings) => {
                        frame.set_mark(settings, mark);
                        (verdict, F::PASS)
                    }
                    None => (verdict, F::DROP),
                }
            }
            _ if F::COMPLETE => (verdict, F::PASS),
            _ => (Verdict::ToTc, F::PASS),
        },
    };
    if let Some(counter) = maps::verdict_counter(verdict as u32) {
        // SAFETY: a per-CPU value; programs on one CPU don't interrupt each other here (softirq).
        unsafe { *counter += 1 };
    }
    code
}

/// Counts a packet of an uplink's flow. `reply`: received from the uplink; else sent to it.
#[inline(always)]
pub fn uplink(index: u8, reply: bool, packets: u64, bytes: u64) {
    if let Some(counters) = maps::uplink_counters(index) {
        // SAFETY: as in `finish`.
        let counters = unsafe { &mut *counters };
        if reply {
            counters.rx_packets += packets;
            counters.rx_bytes += bytes;
        } else {
            counters.tx_packets += packets;
            counters.tx_bytes += bytes;
        }
    }
}

/// Counts a flow, or a packet that is to begin none, that a rule matched.
#[inline(always)]
pub fn rule(rule: &Rule) {
    if let Some(counter) = maps::rule_hits(rule.counter) {
        // SAFETY: as in `finish`.
        unsafe { *counter += 1 };
    }
}

/// Counts a new flow of an uplink.
#[inline(always)]
pub fn new_flow(index: u8) {
    if let Some(counters) = maps::uplink_counters(index) {
        // SAFETY: as in `finish`.
        unsafe { (*counters).new_flows += 1 };
    }
}

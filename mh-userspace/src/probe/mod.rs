//! The probes' input and output: asks the targets of an uplink round after round, and says what they answered.
//!
//! Every socket is bound to the uplink's interface and its address, and carries a mark by which the kernel's rules take the uplink's
//! own gateway; the datapath leaves packets with that mark alone. So a probe tells of this uplink whatever the routes are.
//!
//! [`Prober`] is a task per uplink. It begins rounds at fixed times ([`Schedule`](crate::health::Schedule)); each target of a round
//! is asked at once, and independent of the others, by one ICMP socket or a task of its own, until the round's timeout. Rounds may
//! overlap. They are reported in their order, each when all its targets have answered or failed, at the latest at its timeout.
//!
//! Failure behaviour: nothing ends a prober but its drop, or the other ends of its channels. What cannot be done (no such interface,
//! no address, no buffer, no certificate of a root) is a failed probe with the reason, and tried again in the next round. If nobody
//! takes the reports, the oldest go. Limits are those of [`config::Probe`](crate::config::Probe): at most 64 targets times 16 rounds
//! are being asked at a time.

mod dns;
mod http;
mod icmp;
mod prober;
mod rounds;
mod socket;
#[cfg(test)]
mod tests;
mod tls;

use std::net::Ipv4Addr;
use std::sync::Arc;

pub use prober::Prober;

use crate::config::Probe;
use crate::health::Outcome;

/// The way that an uplink's probes take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The uplink's interface.
    pub interface: String,
    /// The uplink's address.
    pub source: Ipv4Addr,
    /// The mark of the packets, whole as `SO_MARK` takes it; 0: none.
    pub mark: u32,
}

/// A round that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// The uplink's name.
    pub uplink: String,
    /// What the prober was started with.
    pub probe: Arc<Probe>,
    /// What became of each target, in the config's order.
    pub outcomes: Vec<Outcome>,
}

//! The terms in which the core says what should be.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

/// Whether an uplink takes flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkState {
    /// Takes new flows.
    Up,
    /// Can't be used; the reason says why.
    Down,
    /// Takes no new flows, by hand; pinned ones stay.
    Draining,
    /// Its weight is zero.
    Disabled,
}

impl fmt::Display for UplinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        })
    }
}

/// Health by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthOverride {
    /// Up, whatever is observed.
    Up,
    /// Down, whatever is observed.
    Down,
    /// As observed.
    Auto,
}

/// What the kernel's routing should do for mh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// The bits of packets' marks that are mh's.
    pub mark_mask: u32,
    /// Per uplink that is there: where its packets go.
    pub uplinks: BTreeMap<u8, Way>,
    /// The uplink that what the machine itself sends leaves by, in place of the kernel's default route; one of `uplinks`.
    pub spare: Option<u8>,
}

/// The way out by an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Its interface.
    pub ifindex: u32,
    /// Its gateway; `None` if destinations are on the link.
    pub gateway: Option<Ipv4Addr>,
}

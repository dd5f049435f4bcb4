//! The typed part of the config that says who leaves where: policies, rules and sets.
//!
//! Invariants of what comes out of [`parse`](super::parse), beyond those of [`Config`](super::Config): the first policy is
//! [`DEFAULT_POLICY`], names of policies, sets and (where there are any) rules are unique, and every index is one of the list that it points
//! into. There are at most [`MAX_POLICIES`] policies and [`MAX_RULES`] rules; all rules together have at most [`MAX_PORT_RANGES`] ranges
//! of source ports, as many of destination ports, and, with those of sets, at most [`MAX_PREFIXES`] prefixes for each direction. An uplink
//! whose weight is [`Weight::Capacity`] in any policy has a capacity, and so have those of all tiers but the last in policies that
//! [spill](Policy::spill). The sets of rules count once for each direction in which a rule uses them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::model::{HashMode, InterfacePattern, PortRange};
use super::probe::Share;

/// How many policies a config may have, the default one included.
pub const MAX_POLICIES: usize = 64;

/// How many rules a config may have.
pub const MAX_RULES: usize = 256;

/// How many port ranges all rules together may have, for source and destination ports each.
pub const MAX_PORT_RANGES: usize = 1000;

/// How many prefixes all rules together may have, with those of their sets, for sources and destinations each.
pub const MAX_PREFIXES: usize = 1 << 20;

/// How many sets a config may have.
pub const MAX_SETS: usize = 1024;

/// The least capacity of an uplink in bits per second.
pub const MIN_CAPACITY: u64 = 1000;

/// The largest capacity of an uplink in bits per second.
pub const MAX_CAPACITY: u64 = 10_000_000_000_000;

/// The longest name of a policy, rule or set in bytes.
pub const MAX_NAME: usize = 32;

/// The longest time for which a source may keep its uplink.
pub const MAX_STICKY: Duration = Duration::from_secs(7 * 86_400);

/// The name of the policy for what no rule matches.
pub const DEFAULT_POLICY: &str = "default";

/// What decides an uplink's share among those of its tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// This number; 0: no new flows.
    Fixed(u16),
    /// What is left of its [`Capacity`].
    Capacity,
}

/// How much an uplink can carry, in bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// From the uplink.
    pub down: u64,
    /// To the uplink.
    pub up: u64,
}

/// An uplink's place in a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The index of the uplink.
    pub uplink: usize,
    /// Its weight. All members of a tier have numbers, or none has.
    pub weight: Weight,
}

/// How new flows are spread over uplinks: `[policy.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name: 1 to [`MAX_NAME`] ASCII letters, digits, `_` and `-`.
    pub name: String,
    /// Its tiers, each uplink in one of them at most. New flows go to the first tier of which an uplink is up; those with weight 0 get none.
    pub tiers: Vec<Vec<Member>>,
    /// The tiers were left out: all uplinks are in one, with their own weights.
    pub own_weights: bool,
    /// What the choice depends on.
    pub hash: HashMode,
    /// How long a source keeps its uplink after its last flow; zero: not at all.
    pub sticky: Duration,
    /// How full the uplinks of a tier are, of their capacity, when new flows begin to spill over to the next; `None`: when none is up.
    pub spill: Option<Share>,
}

impl Policy {
    /// The tier of an uplink, and its weight in it; `None` if it is no member.
    #[must_use]
    pub fn place(&self, uplink: usize) -> Option<(usize, Weight)> {
        self.tiers.iter().enumerate().find_map(|(tier, members)| {
            members.iter().find(|member| member.uplink == uplink).map(|member| (tier, member.weight))
        })
    }

    /// Has any uplink a weight above 0?
    #[must_use]
    pub fn gives_flows(&self) -> bool {
        self.tiers.iter().flatten().any(|member| member.weight != Weight::Fixed(0))
    }
}

/// Addresses that a rule is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Prefixes.
    pub prefixes: Vec<Ipv4Net>,
    /// Indices of sets, which may be empty: those match nothing.
    pub sets: Vec<usize>,
}

impl Addresses {
    /// Does the rule not look at the address at all?
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.prefixes.is_empty() && self.sets.is_empty()
    }
}

/// What becomes of new flows that match a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// They leave as the policy with this index says.
    Policy(usize),
    /// They leave by the uplink with this index, and by no other.
    Uplink(usize),
    /// They are left to the kernel.
    Direct,
    /// They are refused, and the sender is told by ICMP.
    Reject,
    /// They are dropped.
    Drop,
}

/// A rule: `[[rule]]`. Conditions that are empty hold for all; of each list, one element has to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name: 1 to [`MAX_NAME`] ASCII letters, digits, `_` and `-`.
    pub name: Option<String>,
    /// The source address.
    pub from: Addresses,
    /// The destination address.
    pub to: Addresses,
    /// IP protocols.
    pub protocols: Vec<u8>,
    /// The source port. A rule with ports, of either kind, matches TCP and UDP only, whatever other protocols it names.
    pub from_ports: Vec<PortRange>,
    /// The destination port.
    pub to_ports: Vec<PortRange>,
    /// The interface that the packet came in by. What the machine itself sends came in by none.
    pub interfaces: Vec<InterfacePattern>,
    /// Differentiated services code points (RFC 2474), 0 to 63.
    pub dscp: Vec<u8>,
    /// What becomes of what matches.
    pub action: Use,
}

/// Prefixes under a name: `[set.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name: 1 to [`MAX_NAME`] ASCII letters, digits, `_` and `-`.
    pub name: String,
    /// Its prefixes, in order and without duplicates, those of the file included.
    pub prefixes: Arc<[Ipv4Net]>,
    /// The file that some of them are from: the path as it was read, from the config's directory where it was written relative.
    pub file: Option<PathBuf>,
}

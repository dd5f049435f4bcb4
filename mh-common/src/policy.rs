//! Policies: which uplink a new flow gets.
//!
//! A policy has tiers of uplinks with weights. Of the tier whose turn it is, each uplink has its share of the policy's
//! [`slots`], and a hash of the flow, or of its source, picks the slot. A source that sticks keeps the uplink that it got,
//! whatever becomes of the slots.
//!
//! Invariants: an uplink that is not among [`Policy::eligible`], or is not healthy, gets no new flow; so does one that is not among
//! [`Policy::members`], unless a source sticks to it.

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::MAX_UPLINKS,
    address::{Address, Ipv4},
    hash,
    rules::Rule,
    slots::{self, SlotTable},
    time::Tick,
};

/// The most policies that have a name.
pub const MAX_POLICIES: usize = 64;
/// All policies: those with a name, and behind them one for each uplink, of this uplink alone ([`of_uplink`]).
pub const POLICIES: u32 = (MAX_POLICIES + MAX_UPLINKS) as u32;
/// Slot tables: two for each policy that has a name, one in force and one to build the next in.
pub const SLOT_TABLES: u32 = 2 * MAX_POLICIES as u32;
/// The policy for packets that no rule matches.
pub const DEFAULT: u32 = 0;
/// How many sources keep their uplink at a time, each counted for every policy; of more, those that were not seen for longest don't.
pub const MAX_STICKY: u32 = 65_536;

/// The policy of one uplink alone.
pub const fn of_uplink(uplink: u8) -> u32 {
    MAX_POLICIES as u32 + uplink as u32
}

/// The uplink whose policy it is alone; `None`: it is one that has a name.
#[inline(always)]
pub const fn uplink_of(policy: u8) -> Option<u8> {
    if (policy as usize) < MAX_POLICIES { None } else { Some(policy - MAX_POLICIES as u8) }
}

/// A policy. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Policy {
    /// One bit per uplink that may take flows under this policy (weight above zero, not drained) and whose turn it is (its tier).
    pub members: u32,
    /// One bit per uplink that may take flows under this policy, whether it is its turn or not.
    pub eligible: u32,
    /// The slot table in force.
    pub table: u32,
    /// [`crate::hash::HashMode`].
    pub hash_mode: u32,
    /// How long a source keeps its uplink after its last flow, in ticks of [`crate::time::TICK_NS`]; zero: not at all.
    pub sticky: u32,
    /// What tells it from others that had, or will have, the same index.
    pub id: u32,
    /// Its name, padded with zeros; all zero: the index is free, or the policy is an uplink's own.
    pub name: [u8; 32],
}

/// A source under a policy. 8 bytes for IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StickyKey<A> {
    /// The source.
    pub source: A,
    /// [`Policy::id`].
    pub policy: u32,
}

// SAFETY: an address that is aligned to a word and a word: no padding, and every bit pattern is a value.
unsafe impl<A: Address> Zeroable for StickyKey<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for StickyKey<A> {}

/// The uplink that a source keeps. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sticky {
    /// When it last began a flow, or had one.
    pub last: Tick,
    /// The uplink's index.
    pub uplink: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What would become of a packet: the answer of [`crate::abi::program::EXPLAIN`], which it writes into the packet at [`EXPLANATION_AT`].
/// 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Explanation {
    /// [`crate::verdict::Verdict`].
    pub verdict: u32,
    /// The slot that decided; [`NO_SLOT`]: none did.
    pub slot: u32,
    /// The rule, with [`explained::RULE`].
    pub rule: Rule,
    /// The source address that the packet would leave with, big-endian in memory (of IPv4: the first word); zero if it would not.
    pub address: [u32; 4],
    /// The source port that it would leave with, likewise; zero if that is open yet.
    pub port: u16,
    /// The uplink; [`NO_UPLINK`]: none.
    pub uplink: u8,
    /// What decided: bits of [`explained`].
    pub flags: u8,
    /// The uplink of the hash's own slot, if it could not take the flow and another slot was asked; else [`NO_UPLINK`].
    pub passed_over: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

impl Explanation {
    /// Nothing is known yet.
    pub const UNKNOWN: Self = Self {
        verdict: 0,
        slot: NO_SLOT,
        rule: Rule::NONE,
        address: [0; 4],
        port: 0,
        uplink: NO_UPLINK,
        flags: 0,
        passed_over: NO_UPLINK,
        reserved: [0; 3],
    };
}

/// What decided about a packet that was explained.
pub mod explained {
    /// The rules were asked.
    pub const RULE: u8 = 1 << 0;
    /// The flow exists.
    pub const FLOW: u8 = 1 << 1;
    /// A binding exists for the source port.
    pub const BINDING: u8 = 1 << 2;
    /// The source keeps the uplink.
    pub const STICKY: u8 = 1 << 3;
    /// The destination is on the uplink's own link.
    pub const ON_LINK: u8 = 1 << 4;
    /// What is left of the flow: its binding, or one half.
    pub const RESTORED: u8 = 1 << 5;
    /// The machine's own source address, which is the uplink's.
    pub const SOURCE: u8 = 1 << 6;
}

/// Where in a packet that is to be explained, from its Ethernet header on, the answer goes: behind the headers.
pub const EXPLANATION_AT: usize = 64;
/// No slot.
pub const NO_SLOT: u32 = u32::MAX;
/// No uplink.
pub const NO_UPLINK: u8 = 0xff;
/// What stands in the first word of the control buffer of a packet that is to be explained as one that the machine itself sends.
pub const EXPLAIN_HOST: u32 = 1;

const _: () = {
    assert!(size_of::<Policy>() == 56);
    assert!(size_of::<StickyKey<Ipv4>>() == 8);
    assert!(size_of::<Sticky>() == 8);
    assert!(size_of::<Explanation>() == 40);
};

/// How often a slot that names an uplink which is down is answered by another slot, before any uplink that is up will do. The
/// controller rebuilds the table within milliseconds; until then the shares of the uplinks that are left stay nearly right.
const REHASHES: u32 = 8;

/// An uplink that was chosen, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its index.
    pub uplink: u8,
    /// The uplink of the hash's own slot, if it could not take the flow; else [`NO_UPLINK`].
    pub passed_over: u8,
    /// The slot that decided; [`NO_SLOT`]: none did.
    pub slot: u32,
}

/// One of these uplinks, of which there has to be one: the one that the slot of the hash names, if it is among them; else another one that is.
#[inline(always)]
pub fn choose(table: &SlotTable, candidates: u32, hash: u64) -> Choice {
    let mut value = hash;
    let mut choice = Choice { uplink: 0, passed_over: NO_UPLINK, slot: NO_SLOT };
    for _ in 0..=REHASHES {
        let slot = slots::slot(value);
        let uplink = table[slot];
        if (uplink as usize) < MAX_UPLINKS && candidates >> uplink & 1 != 0 {
            choice.uplink = uplink;
            choice.slot = slot as u32;
            return choice;
        }
        if choice.passed_over == NO_UPLINK {
            choice.passed_over = uplink;
        }
        value = hash::again(value);
    }
    // VERIFIER: the index is computed and not counted; a loop that breaks with its counter multiplies everything that follows
    // by the number of uplinks (6.18: more than a million instructions processed).
    let mut left = candidates;
    let nth = (value >> 32) as u32 % candidates.count_ones();
    for n in 0..MAX_UPLINKS as u32 {
        if n == nth {
            break;
        }
        left &= left - 1;
    }
    choice.uplink = left.trailing_zeros() as u8;
    choice
}

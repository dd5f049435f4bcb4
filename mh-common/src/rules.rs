//! Rules: which policy a new flow gets, and whether it is mh's business at all.
//!
//! Bit-vector classification (Lakshman and Stiliadis, 1998): of every field of the packet a table tells, as one bit per rule, which rules
//! agree with it; the intersection of these sets has the rules that match, and its lowest bit is the first of them. So a packet costs the
//! same few lookups whether there is one rule or [`MAX_RULES`], and a rule that does not match costs nothing.
//!
//! Addresses are looked up in a trie of prefixes, interfaces in a hash table; everything else is in a [`Classifier`]. All three are tagged
//! with a generation ([`Head`]): the controller fills in the next one beside the one in force, and puts it in force with one write.
//!
//! Invariants: a prefix's set holds the rules of all prefixes that contain it, since a trie finds the longest only, and those that ask for no
//! address at all. A packet without ports (neither TCP nor UDP) agrees with no rule that asks for one.

use bytemuck::{Pod, Zeroable};

use crate::{
    address::{Address, Ipv4},
    wire,
};

/// The most rules.
pub const MAX_RULES: usize = 256;
/// The most different sets of rules that the ports of one direction tell apart; a power of two.
pub const PORT_CLASSES: usize = 2048;
/// How many values a differentiated services code point has (RFC 2474).
pub const DSCP_VALUES: usize = 64;
/// Counters of rules: enough for those of two generations, so that rules that stay keep theirs, and one for flows that no rule matched.
pub const HIT_COUNTERS: u32 = 2 * MAX_RULES as u32 + 1;
/// The counter of flows that no rule matched.
pub const NO_RULE_COUNTER: u16 = 2 * MAX_RULES as u16;
/// The number of no rule.
pub const NO_RULE: u16 = 0xffff;

const WORDS: usize = MAX_RULES / 64;

/// A set of rules, one bit each; the lowest bit is the first rule. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct RuleSet(pub [u64; WORDS]);

impl RuleSet {
    /// No rule.
    pub const NONE: Self = Self([0; WORDS]);

    /// The rules that are in either.
    #[must_use]
    pub const fn or(mut self, other: &Self) -> Self {
        let mut i = 0;
        while i < WORDS {
            self.0[i] |= other.0[i];
            i += 1;
        }
        self
    }

    /// Adds a rule; those beyond [`MAX_RULES`] are not added.
    pub const fn insert(&mut self, rule: usize) {
        if rule < MAX_RULES {
            self.0[rule / 64] |= 1 << (rule % 64);
        }
    }

    /// Whether a rule is in it.
    #[must_use]
    pub const fn contains(&self, rule: usize) -> bool {
        rule < MAX_RULES && self.0[rule / 64] >> (rule % 64) & 1 != 0
    }

    /// Whether no rule is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        let mut i = 0;
        while i < WORDS {
            if self.0[i] != 0 {
                return false;
            }
            i += 1;
        }
        true
    }
}

/// What becomes of flows that a rule matches. The discriminants cross the kernel boundary.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A policy chooses an uplink.
    Policy = 0,
    /// They are left to the kernel.
    Direct = 1,
    /// They are refused: ICMP type 3 code 13, communication administratively prohibited.
    Reject = 2,
    /// They are dropped.
    Drop = 3,
}

/// A rule, but for its conditions. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Rule {
    /// [`Action`].
    pub action: u8,
    /// The index of the policy, with [`Action::Policy`].
    pub policy: u8,
    /// The index of its counter.
    pub counter: u16,
    /// Its number, from 0; [`NO_RULE`]: there is none, and this is what becomes of flows that no rule matches.
    pub number: u16,
    /// Zero.
    pub reserved: u16,
}

impl Rule {
    /// What becomes of flows that no rule matches.
    pub const NONE: Self =
        Self { action: Action::Policy as u8, policy: 0, counter: NO_RULE_COUNTER, number: NO_RULE, reserved: 0 };

    /// Whether a policy chooses an uplink.
    #[inline(always)]
    pub const fn is_policy(&self) -> bool {
        self.action == Action::Policy as u8
    }
}

/// Which rules there are now. 8 bytes, written at once.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// The generation in force.
    pub generation: u32,
    /// [`HAS_RULES`], [`ASKS_FROM`], [`ASKS_TO`], [`ASKS_INTERFACE`].
    pub flags: u32,
}

/// There are rules.
pub const HAS_RULES: u32 = 1 << 0;
/// A rule asks for source addresses.
pub const ASKS_FROM: u32 = 1 << 1;
/// A rule asks for destination addresses.
pub const ASKS_TO: u32 = 1 << 2;
/// A rule asks for interfaces.
pub const ASKS_INTERFACE: u32 = 1 << 3;

/// How many generations' classifiers there is room for.
pub const GENERATIONS: u32 = 2;

/// The most prefixes of both sides and of both generations together.
pub const MAX_PREFIXES: u32 = 1 << 22;

/// Which addresses a prefix is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sources.
    From = 0,
    /// Destinations.
    To = 1,
}

/// What stands before the address in a key of the trie of prefixes, and is compared as a whole: 32 bits.
pub const PREFIX_TAG_BITS: u32 = 32;

/// The key of a prefix, after its length, which counts [`PREFIX_TAG_BITS`] more. 8 bytes for IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixKey<A> {
    /// Generation and side.
    pub tag: u32,
    /// The address.
    pub address: A,
}

// SAFETY: a word and an address that is aligned to one: no padding, and every bit pattern is a value.
unsafe impl<A: Address> Zeroable for PrefixKey<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for PrefixKey<A> {}

impl<A> PrefixKey<A> {
    /// A key of this generation.
    #[inline(always)]
    pub const fn new(generation: u32, side: Side, address: A) -> Self {
        Self { tag: generation << 1 | side as u32, address }
    }

    /// Whether the key is of this generation.
    pub const fn is_of(&self, generation: u32) -> bool {
        self.tag >> 1 == generation & (u32::MAX >> 1)
    }
}

/// The key of an interface's rules. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct InterfaceKey {
    /// The generation.
    pub generation: u32,
    /// The interface.
    pub ifindex: u32,
}

/// What of a packet a [`Classifier`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The IP protocol.
    pub protocol: u8,
    /// The TOS byte, of which the upper six bits are the code point.
    pub tos: u8,
    /// Source port, big-endian in memory; no port unless the protocol is TCP or UDP.
    pub sport: u16,
    /// Destination port, likewise.
    pub dport: u16,
}

/// What one generation's rules do, and by what the controller knows them. 4112 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleList {
    /// The rules; one behind the last possible one is what becomes of flows that none matches.
    pub rules: [Rule; MAX_RULES + 1],
    /// By which the controller knows each rule: a hash of its name or, without one, of what it says; zero: there is no such rule.
    pub identities: [u64; MAX_RULES],
    /// A hash of all that the generation is made of, by which a controller that adopts it knows whether it is the one that it wants.
    pub fingerprint: u64,
}

// SAFETY: repr(C) of words and records of 8 bytes: no padding, and every bit pattern is a value.
unsafe impl Zeroable for RuleList {}
// SAFETY: as above.
unsafe impl Pod for RuleList {}

impl RuleList {
    /// No rules.
    pub const EMPTY: Self = Self { rules: [Rule::NONE; MAX_RULES + 1], identities: [0; MAX_RULES], fingerprint: 0 };
}

/// What one generation's rules ask for, but for addresses and interfaces. 400 KiB.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classifier {
    /// The rules that ask for no source address.
    pub any_from: RuleSet,
    /// The rules that ask for no destination address.
    pub any_to: RuleSet,
    /// The rules that ask for no interface.
    pub any_interface: RuleSet,
    /// The rules that ask for no port.
    pub any_ports: RuleSet,
    /// By IP protocol.
    pub protocols: [RuleSet; 256],
    /// By differentiated services code point.
    pub dscp: [RuleSet; DSCP_VALUES],
    /// By class of source port.
    pub from_ports: [RuleSet; PORT_CLASSES],
    /// By class of destination port.
    pub to_ports: [RuleSet; PORT_CLASSES],
    /// The class of each source port. The index is the port, big-endian in memory.
    pub from_classes: [u16; 1 << 16],
    /// The class of each destination port, likewise.
    pub to_classes: [u16; 1 << 16],
}

// SAFETY: repr(C) of sets of 32 bytes and then of words of 2 bytes whose counts fill up whole words (asserted below): no padding, and every bit pattern is
// a value.
unsafe impl Zeroable for Classifier {}
// SAFETY: as above.
unsafe impl Pod for Classifier {}

const _: () = {
    assert!(size_of::<Rule>() == 8);
    assert!(size_of::<Head>() == 8);
    assert!(size_of::<PrefixKey<Ipv4>>() == 8);
    assert!(size_of::<RuleList>() == 8 * (2 * MAX_RULES + 2));
    assert!(size_of::<Classifier>() == size_of::<RuleSet>() * (4 + 256 + DSCP_VALUES + 2 * PORT_CLASSES) + (4 << 16));
    assert!(PORT_CLASSES.is_power_of_two());
};

impl Classifier {
    /// The number of the first rule that agrees with these fields, and that each of these sets has; [`MAX_RULES`] if there is none.
    #[inline(always)]
    pub fn first(&self, fields: &Fields, interface: &RuleSet, from: &RuleSet, to: &RuleSet) -> usize {
        let (mut sport, mut dport) = (&self.any_ports, &self.any_ports);
        if wire::is_tcp_or_udp(fields.protocol) {
            let class = |classes: &[u16; 1 << 16], port: u16| classes[port as usize] as usize % PORT_CLASSES;
            sport = &self.from_ports[class(&self.from_classes, fields.sport)];
            dport = &self.to_ports[class(&self.to_classes, fields.dport)];
        }
        let protocol = &self.protocols[fields.protocol as usize];
        let dscp = &self.dscp[(fields.tos >> 2) as usize];
        // Word by word: a whole set is more than the stack of a BPF program has room for beside its caller's.
        let mut rule = MAX_RULES;
        let mut i = WORDS;
        while i > 0 {
            i -= 1;
            let word = protocol.0[i] & dscp.0[i] & sport.0[i] & dport.0[i] & interface.0[i] & from.0[i] & to.0[i];
            if word != 0 {
                rule = i * 64 + word.trailing_zeros() as usize;
            }
        }
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let mut set = RuleSet::NONE;
        for rule in [255, 200, 128, 64, 63, 1, 0] {
            set.insert(rule);
            assert!(set.contains(rule));
        }
        set.insert(MAX_RULES);
        assert!(!set.contains(MAX_RULES) && !set.contains(2));
        assert_eq!(set.0.iter().map(|word| word.count_ones()).sum::<u32>(), 7);
    }

    #[test]
    fn sets_of_rules_are_sets() {
        let of = |rules: &[usize]| {
            let mut set = RuleSet::NONE;
            rules.iter().for_each(|rule| set.insert(*rule));
            set
        };
        assert_eq!(of(&[1, 70]).or(&of(&[0, 70, 255])), of(&[0, 1, 70, 255]));
        assert!(of(&[]).is_empty() && !of(&[255]).is_empty());
    }

    #[test]
    fn a_generations_keys_are_told_apart() {
        let a = Ipv4::from_be(1);
        assert!(PrefixKey::new(7, Side::From, a).is_of(7) && PrefixKey::new(7, Side::To, a).is_of(7));
        assert!(!PrefixKey::new(8, Side::From, a).is_of(7));
        assert!(PrefixKey::new(u32::MAX, Side::To, a).is_of(u32::MAX));
        assert_ne!(PrefixKey::new(7, Side::From, a).tag, PrefixKey::new(7, Side::To, a).tag);
    }
}

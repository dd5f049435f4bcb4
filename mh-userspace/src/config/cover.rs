//! Which rules can never match, because those before them take all that they would.
//!
//! A rule is a product of sets, one for each dimension of a packet: protocol, code point, interface, ports, addresses. Within a dimension,
//! values that the same rules match form a class, and a class is known by its rules alone; there are few, however long sets are. A rule is
//! reached if there is a cell, a class of each dimension, that it matches and no rule before it does. The search for one goes down the
//! dimensions, keeps the rules before it that match so far, and stops where none is left. It gives up on a dimension where one of those that
//! are left takes all that remains of the rule, and on what it has seen before.
//!
//! The answer is exact, with two exceptions on the safe side, which say that a rule is reached: beyond [`MAX_STEPS`], and where rules name
//! every possible continuation of a name of an interface.

use std::collections::HashSet;

use ipnet::Ipv4Net;
use mh_common::wire;

use super::model::{InterfacePattern, MAX_INTERFACE_NAME, PortRange};
use super::policy::{Addresses, MAX_RULES, Rule, Set};

/// How many classes are looked at, for all rules together.
const MAX_STEPS: usize = 2_000_000;

/// One more than there may be, for what no rule matches.
const WORDS: usize = (MAX_RULES + 1).div_ceil(64);

/// Some of the rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Rules([u64; WORDS]);

impl Rules {
    const ALL: Self = Self([u64::MAX; WORDS]);

    /// Those before the rule `index`.
    fn before(index: usize) -> Self {
        let mut rules = Self::default();
        (0..index).for_each(|index| rules.insert(index));
        rules
    }

    fn insert(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    fn contains(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    fn and(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        self
    }

    fn or(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
        self
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    fn is_subset(&self, other: &Self) -> bool {
        self.and(other) == *self
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    fn first(&self) -> Option<usize> {
        let (index, word) = self.0.iter().enumerate().find(|(_, word)| **word != 0)?;
        usize::try_from(word.trailing_zeros()).ok().map(|bit| index * 64 + bit)
    }
}

/// Whether a rule can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cover {
    /// Something reaches it, as far as is known.
    Reached,
    /// It matches nothing, whatever is before it: its set is empty, or its interface none of `lan`.
    Nothing,
    /// The rule with this index takes all that it matches.
    By(usize),
    /// Those before it together do, and none alone.
    Together,
}

/// For each rule, whether it can match packets that come in by an interface of `lan`, or, with `host_traffic`, from this machine.
pub(super) fn covers(lan: &[InterfacePattern], host_traffic: bool, rules: &[&Rule], sets: &[&Set]) -> Vec<Cover> {
    // A single rule, and the first of several, is only asked whether it matches anything; that needs all dimensions all the same.
    let dimensions = [
        protocols(rules),
        code_points(rules),
        interfaces(lan, host_traffic, rules),
        ports(rules, |rule| &rule.from_ports),
        ports(rules, |rule| &rule.to_ports),
        addresses(rules, sets, |rule| &rule.from),
        addresses(rules, sets, |rule| &rule.to),
    ];
    let mut steps = MAX_STEPS;
    (0..rules.len()).map(|index| Search::cover(index, &dimensions, &mut steps).unwrap_or(Cover::Reached)).collect()
}

/// The search for a cell that reaches one rule.
struct Search<'s> {
    /// For each dimension, the rules before this one in each of its classes. Of classes one of which has all the rules of the other, only that other is
    /// needed.
    classes: Vec<Vec<Rules>>,
    /// For each dimension, and one beyond the last, the rules before this one that take all of it in this dimension and all that follow.
    rest: Vec<Rules>,
    /// Dimensions and rules that are left there for which there is no cell.
    taken: HashSet<(usize, Rules)>,
    steps: &'s mut usize,
}

impl Search<'_> {
    /// `None` if it would take too long.
    fn cover(index: usize, dimensions: &[Vec<Rules>], steps: &mut usize) -> Option<Cover> {
        let before = Rules::before(index);
        let mut classes = Vec::with_capacity(dimensions.len());
        for dimension in dimensions {
            spend(steps, dimension.len())?;
            let mut own: Vec<Rules> =
                dimension.iter().filter(|class| class.contains(index)).map(|class| class.and(&before)).collect();
            if own.is_empty() {
                return Some(Cover::Nothing);
            }
            own.sort_unstable_by_key(Rules::count);
            classes.push(own);
        }
        let mut rest = vec![Rules::ALL];
        for own in classes.iter().rev() {
            let here = own.iter().fold(before, |all, class| all.and(class));
            let after = rest.last().copied().unwrap_or(Rules::ALL);
            rest.push(here.and(&after));
        }
        rest.reverse();
        if let Some(other) = rest.first().and_then(|all| all.and(&before).first()) {
            return Some(Cover::By(other));
        }
        for own in &mut classes {
            let mut least: Vec<Rules> = Vec::new();
            for class in own.iter() {
                spend(steps, least.len())?;
                if !least.iter().any(|other| other.is_subset(class)) {
                    least.push(*class);
                }
            }
            *own = least;
        }
        let mut search = Search { classes, rest, taken: HashSet::new(), steps };
        Some(if search.reaches(0, before)? { Cover::Reached } else { Cover::Together })
    }

    /// Is there a cell from this dimension on that none of the rules that are `left` takes?
    fn reaches(&mut self, dimension: usize, left: Rules) -> Option<bool> {
        if left.is_empty() {
            return Some(true);
        }
        if !self.rest.get(dimension)?.and(&left).is_empty() || self.taken.contains(&(dimension, left)) {
            return Some(false);
        }
        for class in 0..self.classes.get(dimension)?.len() {
            spend(self.steps, 1)?;
            let class = *self.classes.get(dimension)?.get(class)?;
            if self.reaches(dimension + 1, left.and(&class))? {
                return Some(true);
            }
        }
        self.taken.insert((dimension, left));
        Some(false)
    }
}

fn spend(steps: &mut usize, count: usize) -> Option<()> {
    *steps = steps.checked_sub(count)?;
    Some(())
}

/// The classes of a dimension from those of its values, which may have some in common.
fn distinct(classes: impl IntoIterator<Item = Rules>) -> Vec<Rules> {
    let mut seen = HashSet::new();
    classes.into_iter().filter(|class| seen.insert(*class)).collect()
}

/// The rules that match a value.
fn matching<'r>(rules: &[&'r Rule], matches: impl Fn(&'r Rule) -> bool) -> Rules {
    let mut all = Rules::default();
    rules.iter().enumerate().filter(|(_, rule)| matches(rule)).for_each(|(index, _)| all.insert(index));
    all
}

/// The classes of IP protocols. A rule with ports matches those that have ports only, so that what it says of the ports of others does not matter.
fn protocols(rules: &[&Rule]) -> Vec<Rules> {
    distinct((0..=u8::MAX).map(|protocol| {
        matching(rules, |rule| {
            let with_ports = !(rule.from_ports.is_empty() && rule.to_ports.is_empty());
            (rule.protocols.is_empty() || rule.protocols.contains(&protocol))
                && (!with_ports || wire::is_tcp_or_udp(protocol))
        })
    }))
}

fn code_points(rules: &[&Rule]) -> Vec<Rules> {
    distinct((0..64).map(|dscp| matching(rules, |rule| rule.dscp.is_empty() || rule.dscp.contains(&dscp))))
}

/// Where a packet may come from.
#[derive(Clone, Copy)]
enum Origin<'n> {
    /// This machine.
    Host,
    /// The interface of this name.
    Interface(&'n str),
    /// An interface whose name begins with this, and goes on as no pattern has it.
    Continued(&'n str),
}

impl Origin<'_> {
    fn matches(self, pattern: &InterfacePattern) -> bool {
        match self {
            Self::Host => false,
            Self::Interface(name) => pattern.matches(name),
            Self::Continued(stem) => pattern.is_open() && stem.starts_with(pattern.stem()),
        }
    }
}

fn interfaces(lan: &[InterfacePattern], host_traffic: bool, rules: &[&Rule]) -> Vec<Rules> {
    let patterns = || lan.iter().chain(rules.iter().flat_map(|rule| &rule.interfaces));
    let named = patterns().map(|pattern| Origin::Interface(pattern.stem()));
    let continued = patterns()
        .filter(|pattern| pattern.is_open() && pattern.stem().len() < MAX_INTERFACE_NAME)
        .map(|pattern| Origin::Continued(pattern.stem()));
    let steered = named.chain(continued).filter(|origin| lan.iter().any(|pattern| origin.matches(pattern)));
    let host = host_traffic.then_some(Origin::Host);
    distinct(host.into_iter().chain(steered).map(|origin| {
        matching(rules, |rule| {
            rule.interfaces.is_empty() || rule.interfaces.iter().any(|pattern| origin.matches(pattern))
        })
    }))
}

/// The classes of ports, 0 included, which no rule with ports matches.
fn ports<'r>(rules: &[&'r Rule], ranges: impl Fn(&'r Rule) -> &'r [PortRange]) -> Vec<Rules> {
    // A class begins where a range does, or behind its end.
    let mut begins: Vec<u16> = rules
        .iter()
        .flat_map(|rule| ranges(rule))
        .flat_map(|range| [Some(range.first), range.last.checked_add(1)])
        .flatten()
        .chain([0])
        .collect();
    begins.sort_unstable();
    begins.dedup();
    distinct(begins.into_iter().map(|port| {
        matching(rules, |rule| {
            let ranges = ranges(rule);
            ranges.is_empty() || ranges.iter().any(|range| range.contains(port))
        })
    }))
}

/// The classes of addresses, in one pass over all prefixes in order.
fn addresses<'r>(rules: &[&'r Rule], sets: &[&Set], side: impl Fn(&'r Rule) -> &'r Addresses) -> Vec<Rules> {
    // Each set that is used, and the own prefixes of each rule, with the rules that match them.
    let mut lists: Vec<(Vec<Ipv4Net>, Rules)> = Vec::new();
    let mut users: Vec<Rules> = vec![Rules::default(); sets.len()];
    for (index, rule) in rules.iter().enumerate() {
        let addresses = side(rule);
        for set in &addresses.sets {
            if let Some(users) = users.get_mut(*set) {
                users.insert(index);
            }
        }
        if !addresses.prefixes.is_empty() {
            let mut own = addresses.prefixes.clone();
            own.sort_unstable();
            let mut rules = Rules::default();
            rules.insert(index);
            lists.push((own, rules));
        }
    }
    let used = users.into_iter().zip(sets).filter(|(users, _)| !users.is_empty());
    lists.extend(used.map(|(users, set)| (set.prefixes.to_vec(), users)));

    // Each list begins or ends at these addresses, with its index: one number sorts fast.
    const LIST_BITS: u32 = 16;
    let mut turns: Vec<u64> = Vec::new();
    for (index, (prefixes, _)) in (0_u64..).zip(&lists) {
        for (first, end) in disjoint(prefixes) {
            turns.extend([first << LIST_BITS | index, end << LIST_BITS | index]);
        }
    }
    turns.sort_unstable();

    let anywhere = matching(rules, |rule| side(rule).is_any());
    let mut inside = vec![0_u64; lists.len().div_ceil(64)];
    let mut seen: HashSet<Vec<u64>> = HashSet::new();
    let mut turns = turns.into_iter().peekable();
    if turns.peek().is_none_or(|first| first >> LIST_BITS > 0) {
        seen.insert(inside.clone());
    }
    while let Some(turn) = turns.next() {
        let index = usize::try_from(turn & ((1 << LIST_BITS) - 1)).unwrap_or(usize::MAX);
        if let Some(word) = inside.get_mut(index / 64) {
            *word ^= 1 << (index % 64);
        }
        let at = turn >> LIST_BITS;
        let is_last = turns.peek().is_none_or(|next| next >> LIST_BITS != at);
        // What ends behind the last address is followed by none.
        if is_last && at <= u64::from(u32::MAX) && !seen.contains(inside.as_slice()) {
            seen.insert(inside.clone());
        }
    }
    distinct(seen.into_iter().map(|inside| {
        let is_inside = |index: usize| inside.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0);
        let within = lists.iter().enumerate().filter(|(index, _)| is_inside(*index));
        within.fold(anywhere, |all, (_, (_, rules))| all.or(rules))
    }))
}

/// The first address of each prefix that is in no other one of the list, which is sorted, and the first behind it.
fn disjoint(prefixes: &[Ipv4Net]) -> impl Iterator<Item = (u64, u64)> {
    let mut end = 0_u64;
    prefixes.iter().filter_map(move |prefix| {
        let first = u64::from(prefix.network().to_bits());
        if first < end {
            return None;
        }
        end = u64::from(prefix.broadcast().to_bits()) + 1;
        Some((first, end))
    })
}

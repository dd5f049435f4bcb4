//! Which uplink, which policy and which rule has which number in the datapath.

use std::collections::{BTreeMap, BTreeSet};

use mh_common::{
    abi::{self, MAX_UPLINKS},
    policy::{MAX_POLICIES, Policy},
    rules::{MAX_RULES, NO_RULE_COUNTER, RuleList},
};

use super::rule_table;
use crate::config::{Config, DEFAULT_POLICY};

/// The numbers of what is configured. Each keeps its number as long as it is configured, across reloads and restarts: flows know their
/// uplink by its index alone, counters and sources that stick belong to numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indices {
    uplinks: BTreeMap<String, u8>,
    policies: BTreeMap<String, u8>,
    /// Counters by the identities of rules.
    counters: BTreeMap<u64, u16>,
}

impl Indices {
    /// The numbers that the datapath's records tell of.
    pub fn adopt(
        uplinks: impl IntoIterator<Item = (u8, abi::Uplink)>,
        policies: impl IntoIterator<Item = (u8, Policy)>,
        rules: Option<&RuleList>,
    ) -> Self {
        let uplinks = uplinks.into_iter().filter_map(|(index, uplink)| Some((name_of(&uplink.name)?, index)));
        let policies = policies.into_iter().filter_map(|(index, policy)| Some((name_of(&policy.name)?, index)));
        let rules = rules.into_iter().flat_map(|rules| rules.identities.iter().zip(&rules.rules));
        let counters = rules.filter(|(_, rule)| rule.counter < NO_RULE_COUNTER).map(|(id, rule)| (*id, rule.counter));
        // An identity of zero is none.
        let counters = counters.filter(|(identity, _)| *identity != 0);
        Self { uplinks: uplinks.collect(), policies: policies.collect(), counters: counters.collect() }
    }

    /// Gives everything that is configured its number: its own if it has one, else the lowest that is free, if possible not one that has just
    /// come free. Returns the indices of uplinks that are configured no more: their flows have to go before the index may serve another
    /// uplink.
    pub fn assign(&mut self, config: &Config) -> Vec<u8> {
        let highest = |count: usize| u8::try_from(count - 1).unwrap_or(u8::MAX);
        let names = config.uplinks.iter().map(|uplink| uplink.name.clone());
        let gone = assign(&mut self.uplinks, names.collect(), 0..=highest(MAX_UPLINKS));
        // The default policy's number is not a matter of chance.
        self.policies.retain(|name, index| (name == DEFAULT_POLICY) == (*index == 0));
        self.policies.insert(DEFAULT_POLICY.to_owned(), 0);
        let names = config.policies.iter().map(|policy| policy.name.clone());
        assign(&mut self.policies, names.collect(), 0..=highest(MAX_POLICIES));
        assign(&mut self.counters, rule_table::identities(config), 0..=2 * u16::try_from(MAX_RULES).unwrap_or(0) - 1);
        gone
    }

    /// The index of an uplink.
    pub fn get(&self, name: &str) -> Option<u8> {
        self.uplinks.get(name).copied()
    }

    /// The index of a policy.
    pub fn policy(&self, name: &str) -> Option<u8> {
        self.policies.get(name).copied()
    }

    /// The counter of the rule with this identity.
    pub fn counter(&self, identity: u64) -> Option<u16> {
        self.counters.get(&identity).copied()
    }
}

/// Gives each of `wanted` a number. Returns the numbers that were in use, and are by none of `wanted`.
fn assign<K: Ord, N: Ord + Copy>(
    numbers: &mut BTreeMap<K, N>,
    wanted: Vec<K>,
    all: impl Iterator<Item = N> + Clone,
) -> Vec<N> {
    let mut gone = Vec::new();
    numbers.retain(|key, number| {
        let stays = wanted.contains(key);
        if !stays {
            gone.push(*number);
        }
        stays
    });
    for key in wanted {
        if !numbers.contains_key(&key) {
            let taken: BTreeSet<N> = numbers.values().copied().collect();
            let free = all.clone().filter(|number| !taken.contains(number));
            let free = free.min_by_key(|number| (gone.contains(number), *number));
            numbers.extend(free.map(|number| (key, number)));
        }
    }
    gone
}

/// A name that is padded with zeros; `None`: it is empty.
fn name_of(name: &[u8]) -> Option<String> {
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    (len > 0).then(|| String::from_utf8_lossy(&name[..len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, core::records};

    #[test]
    fn an_uplink_keeps_its_index_across_configurations_and_restarts() {
        let config = |names: &[&str]| {
            let uplinks: String = names.iter().map(|n| format!("[uplink.{n}]\ninterface = \"{n}\"\n")).collect();
            config::parse(&format!("lan = [\"lan0\"]\n{uplinks}")).unwrap().config
        };
        let mut indices = Indices::default();
        indices.assign(&config(&["a", "b", "c"]));
        // The index that comes free is not given away as long as there are others.
        assert_eq!(indices.assign(&config(&["c", "d", "b"])), [0]);
        assert_eq!((indices.get("b"), indices.get("c"), indices.get("d")), (Some(1), Some(2), Some(3)));
        let record = |name: &str| abi::Uplink { name: records::padded(name), ..abi::Uplink::default() };
        let uplinks = ["", "b", "c", "d"].map(record);
        let default = Policy { name: records::padded(DEFAULT_POLICY), ..Policy::default() };
        assert_eq!(Indices::adopt((0..).zip(uplinks), [(0, default)], None), indices);
    }

    #[test]
    fn an_index_is_given_away_when_there_is_no_other() {
        let config = |from: usize| {
            let uplinks: String =
                (from..from + MAX_UPLINKS).map(|n| format!("[uplink.u{n}]\ninterface = \"w{n}\"\n")).collect();
            config::parse(&format!("lan = [\"lan0\"]\n{uplinks}")).unwrap().config
        };
        let mut indices = Indices::default();
        indices.assign(&config(0));
        assert_eq!(indices.assign(&config(1)), [0]);
        assert_eq!(indices.get("u32"), Some(0));
    }
}

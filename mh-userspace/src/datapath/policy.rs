//! Policies and rules in the maps.
//!
//! What decides about new flows is written beside what is in force, and then put in force with one write: a policy's slots by the number
//! of its slot table, the rules (classifier, prefixes, interfaces) by their generation. So a packet sees the old or the new, and what
//! fails half-way changes nothing. What is not in force any more stays until the next time, since a program may be reading it.

use std::collections::{BTreeMap, HashMap};

use aya::maps::{MapError, PerCpuValues, lpm_trie::Key};
use ipnet::Ipv4Net;
use mh_common::{
    address::Ipv4,
    policy::{self, POLICIES, Policy},
    rules::{
        GENERATIONS, HAS_RULES, Head, InterfaceKey, NO_RULE_COUNTER, PREFIX_TAG_BITS, PrefixKey, RuleList, RuleSet,
        Side,
    },
    slots,
    time::{self, Tick},
};

use super::{DatapathError, tables::Tables};
use crate::core::{PolicyRecord, RuleTable};

/// From the id of a policy to that of the next one with the same index; more than there are indices.
const NEXT_ID: u32 = 1 << 8;
const _: () = assert!(POLICIES <= NEXT_ID);

fn key(generation: u32, side: Side, prefix: &Ipv4Net) -> Key<PrefixKey<Ipv4>> {
    let len = PREFIX_TAG_BITS + u32::from(prefix.prefix_len());
    Key::new(len, PrefixKey::new(generation, side, Ipv4::from(prefix.network())))
}

/// Rules that are in the maps, and not in force yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared {
    generation: u32,
    flags: u32,
}

impl Tables {
    /// Fills the policy's slot table that is not in force, and then puts it in force with one write.
    pub fn set_policy(&mut self, index: u8, wanted: &PolicyRecord) -> Result<(), DatapathError> {
        let number = u32::from(index);
        let found: Policy = self.policies.get(&number, 0).map_err(DatapathError::map("read a policy"))?;
        let same = found.name == wanted.name && found.id != 0;
        let mut record = Policy {
            members: wanted.members,
            eligible: wanted.eligible,
            table: 0,
            hash_mode: wanted.hash_mode as u32,
            sticky: wanted.sticky,
            // Unlike that of any policy before it with the same index, and of those with others.
            id: if same { found.id } else { found.id.wrapping_add(NEXT_ID).max(number + NEXT_ID) },
            name: wanted.name,
        };
        if policy::uplink_of(index).is_none() {
            let mut table = if same {
                self.slots.get(&found.table, 0).map_err(DatapathError::map("read the slots"))?
            } else {
                slots::EMPTY
            };
            let moved = slots::fill(&mut table, &wanted.weights);
            record.table = 2 * number + u32::from(found.table == 2 * number);
            self.slots.set(record.table, table, 0).map_err(DatapathError::map("write the slots"))?;
            tracing::debug!("policy {index}: {moved} of {} slots moved", slots::SLOTS);
        }
        self.policies.set(number, record, 0).map_err(DatapathError::map("write a policy"))
    }

    /// Frees an index.
    pub fn remove_policy(&mut self, index: u8) -> Result<(), DatapathError> {
        let number = u32::from(index);
        let found: Policy = self.policies.get(&number, 0).map_err(DatapathError::map("read a policy"))?;
        let free = Policy { id: found.id, table: found.table, ..Policy::default() };
        self.policies.set(number, free, 0).map_err(DatapathError::map("write a policy"))
    }

    fn rule_head(&self) -> Result<Head, DatapathError> {
        self.rule_head.get(&0, 0).map_err(DatapathError::map("read which rules are in force"))
    }

    fn rule_list(&self, generation: u32) -> Result<RuleList, DatapathError> {
        self.rules.get(&(generation % GENERATIONS), 0).map_err(DatapathError::map("read the rules"))
    }

    /// The rules in force, if there are any.
    pub fn rules_in_force(&self) -> Result<Option<RuleList>, DatapathError> {
        let head = self.rule_head()?;
        if head.flags & HAS_RULES == 0 { Ok(None) } else { self.rule_list(head.generation).map(Some) }
    }

    /// Writes rules beside those in force. What was prepared before, and is not in force, goes.
    pub fn prepare_rules(&mut self, rules: &RuleTable) -> Result<Prepared, DatapathError> {
        let head = self.rule_head()?;
        self.remove_rules_but(head.generation)?;
        let prepared = Prepared { generation: head.generation.wrapping_add(1), flags: rules.flags };
        self.write_rules(rules, prepared.generation).inspect_err(|_| {
            // Room is what may be lacking.
            if let Err(error) = self.remove_rules_but(head.generation) {
                tracing::warn!("{error}");
            }
        })?;
        Ok(prepared)
    }

    fn write_rules(&mut self, rules: &RuleTable, generation: u32) -> Result<(), DatapathError> {
        self.start_counters(rules)?;
        let place = generation % GENERATIONS;
        self.rules.set(place, rules.list.as_ref(), 0).map_err(DatapathError::map("write the rules"))?;
        self.classifiers
            .set(place, rules.classifier.as_ref(), 0)
            .map_err(DatapathError::map("write what the rules ask for"))?;
        for (side, prefix, set) in &rules.prefixes {
            let key = key(generation, *side, prefix);
            self.prefixes4.insert(&key, set, 0).map_err(DatapathError::map("write a rule's prefix"))?;
        }
        Ok(())
    }

    /// Puts rules in force that were prepared since the last ones were put in force. `false`: they were not.
    pub fn switch_rules(
        &mut self,
        prepared: Prepared,
        interfaces: &BTreeMap<u32, RuleSet>,
    ) -> Result<bool, DatapathError> {
        let Prepared { generation, flags } = prepared;
        if generation != self.rule_head()?.generation.wrapping_add(1) {
            return Ok(false);
        }
        for (&ifindex, set) in interfaces {
            let key = InterfaceKey { generation, ifindex };
            self.rule_interfaces.insert(key, set, 0).map_err(DatapathError::map("write an interface's rules"))?;
        }
        let head = Head { generation, flags };
        self.rule_head.set(0, head, 0).map_err(DatapathError::map("put the rules in force"))?;
        Ok(true)
    }

    /// Whether the rules in force are these.
    pub fn has_rules(&self, rules: &RuleTable) -> Result<bool, DatapathError> {
        let head = self.rule_head()?;
        Ok(head.flags == rules.flags && self.rule_list(head.generation)?.fingerprint == rules.list.fingerprint)
    }

    /// Has the interfaces, and no others, agree with these rules of those in force.
    pub fn set_rule_interfaces(&mut self, interfaces: &BTreeMap<u32, RuleSet>) -> Result<(), DatapathError> {
        let generation = self.rule_head()?.generation;
        let mut gone = Vec::new();
        self.rule_interfaces.walk(|key, _| {
            if key.generation == generation && !interfaces.contains_key(&key.ifindex) {
                gone.push(key.ifindex);
            }
        })?;
        gone.into_iter().try_for_each(|ifindex| self.set_rule_interface(ifindex, None))?;
        interfaces.iter().try_for_each(|(&ifindex, rules)| self.set_rule_interface(ifindex, Some(rules)))
    }

    /// Has an interface agree with other rules of those in force; `None`: with those that ask for none.
    pub fn set_rule_interface(&mut self, ifindex: u32, rules: Option<&RuleSet>) -> Result<(), DatapathError> {
        let key = InterfaceKey { generation: self.rule_head()?.generation, ifindex };
        match rules {
            Some(rules) => {
                self.rule_interfaces.insert(key, rules, 0).map_err(DatapathError::map("write an interface's rules"))
            }
            None => self.rule_interfaces.forget(&key),
        }
    }

    /// Removes prefixes and interfaces of all generations but one.
    pub fn remove_rules_but(&mut self, generation: u32) -> Result<(), DatapathError> {
        let failed = || DatapathError::map("remove a prefix that no rule has any more");
        let old: Vec<_> = self
            .prefixes4
            .keys()
            .filter(|key| key.as_ref().map_or(true, |key| !key.data().is_of(generation)))
            .collect::<Result<_, MapError>>()
            .map_err(failed())?;
        for key in &old {
            self.prefixes4.remove(key).map_err(failed())?;
        }
        let mut interfaces = Vec::new();
        self.rule_interfaces.walk(|key, _| interfaces.push(key))?;
        interfaces.retain(|key| key.generation != generation);
        interfaces.iter().try_for_each(|key| self.rule_interfaces.forget(key))
    }

    /// Counters that are another rule's now start from zero; not those of a rule that comes back from the generation before.
    fn start_counters(&mut self, rules: &RuleTable) -> Result<(), DatapathError> {
        let counters = |list: &RuleList| -> HashMap<u16, u64> {
            let counters = list.rules.iter().map(|rule| rule.counter).zip(list.identities);
            counters.filter(|(counter, identity)| *counter < NO_RULE_COUNTER && *identity != 0).collect()
        };
        let generation = self.rule_head()?.generation;
        let now = counters(&self.rule_list(generation)?);
        let mut held = counters(&self.rule_list(generation.wrapping_sub(1))?);
        held.extend(now);
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, source)| DatapathError::Io { what: format!("count processors ({what})"), source })?;
        for (counter, identity) in counters(&rules.list) {
            if held.get(&counter) != Some(&identity) {
                const WHAT: &str = "start a rule's counter";
                let zeros = PerCpuValues::try_from(vec![0u64; cpus]).map_err(DatapathError::io(WHAT))?;
                self.rule_hits.set(u32::from(counter), zeros, 0).map_err(DatapathError::map(WHAT))?;
            }
        }
        Ok(())
    }

    /// How many sources keep an uplink now, by the policy's index.
    pub fn sources_kept(&self, now: Tick) -> Result<HashMap<u8, u64>, DatapathError> {
        let sticky = self.policies()?.into_iter().filter(|(_, policy)| policy.sticky != 0);
        let by_id: HashMap<u32, (u8, u32)> =
            sticky.map(|(index, policy)| (policy.id, (index, policy.sticky))).collect();
        let mut sources = HashMap::new();
        if by_id.is_empty() {
            return Ok(sources);
        }
        self.sticky4.walk(|key, kept| {
            if let Some(&(index, lasts)) = by_id.get(&key.policy)
                && time::since(now, kept.last) <= lasts
            {
                *sources.entry(index).or_default() += 1;
            }
        })?;
        Ok(sources)
    }

    /// Removes all prefixes: a trie of many is freed more gently so than as a whole.
    pub fn remove_all_rules(&mut self) -> Result<(), DatapathError> {
        let generation = self.rule_head()?.generation;
        self.rule_head
            .set(0, Head { generation, flags: 0 }, 0)
            .map_err(DatapathError::map("put the rules out of force"))?;
        self.remove_rules_but(generation.wrapping_add(1))
    }

    /// How many flows each of these counters has counted.
    pub fn rule_hits(&self, counters: impl IntoIterator<Item = u16>) -> Result<Vec<u64>, DatapathError> {
        let hits = |counter: u16| Ok(self.rule_hits.get(&u32::from(counter), 0)?.iter().sum());
        counters.into_iter().map(hits).collect::<Result<_, _>>().map_err(DatapathError::map("read a rule's counter"))
    }
}

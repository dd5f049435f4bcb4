//! Which uplinks new flows get under each policy, and in which parts.

use std::collections::BTreeMap;

use mh_common::{abi::MAX_UPLINKS, hash, policy, time};

use super::{Indices, Overrides, records};
use crate::{
    config::{self, Config, HashMode, Member, Share, Weight},
    load::{self, MemberSpread, Situation, Spread, TierSpread},
};

/// A policy as the datapath should have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Its name, padded with zeros; all zero: an uplink's own.
    pub name: [u8; 32],
    /// Parts of new flows by uplink index, in proportion.
    pub weights: [u32; MAX_UPLINKS],
    /// One bit per uplink that gets new flows.
    pub members: u32,
    /// One bit per uplink that may get new flows, as soon as it is healthy and its turn.
    pub eligible: u32,
    /// What of a packet decides its uplink.
    pub hash_mode: hash::HashMode,
    /// How long a source keeps its uplink after its last flow, in ticks; zero: not at all.
    pub sticky: u32,
}

/// An uplink's place in a policy, as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberView {
    /// The uplink.
    pub uplink: String,
    /// Its tier.
    pub tier: usize,
    /// Its weight, configured or by hand.
    pub weight: Weight,
    /// Its weight as in force; of one that goes by capacity: what is left, in Mbit/s. Zero: it gets no new flows.
    pub effective_weight: u16,
    /// Its part of new flows, from 0 to 1.
    pub share: f64,
}

/// A policy as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyView {
    /// Its index in the datapath.
    pub index: u8,
    /// Its name.
    pub name: String,
    /// What the choice of an uplink depends on.
    pub hash: HashMode,
    /// How long a source keeps its uplink after its last flow, in seconds.
    pub sticky_s: f64,
    /// How full a tier is when new flows begin to spill over to the next.
    pub spill: Option<Share>,
    /// How new flows are spread over its tiers, and how full these are if the policy goes by that.
    pub tiers: Vec<TierSpread>,
    /// Its uplinks, tier by tier.
    pub members: Vec<MemberView>,
}

impl PolicyView {
    /// The place of an uplink.
    pub fn member(&self, uplink: &str) -> Option<&MemberView> {
        self.members.iter().find(|member| member.uplink == uplink)
    }
}

/// All policies by index: those that are configured, spread as given by name, and one for each uplink alone.
pub fn policies(
    config: &Config,
    indices: &Indices,
    overrides: &Overrides,
    spreads: &BTreeMap<String, Spread>,
) -> (BTreeMap<u8, PolicyRecord>, Vec<PolicyView>) {
    let mut records = BTreeMap::new();
    let mut views = Vec::with_capacity(config.policies.len());
    for policy in &config.policies {
        let (Some(index), Some(spread)) = (indices.policy(&policy.name), spreads.get(&policy.name)) else { continue };
        records.insert(index, record(policy, spread, config, indices, overrides));
        views.push(view(policy, index, spread, config));
    }
    for uplink in &config.uplinks {
        let Some(index) = indices.get(&uplink.name) else { continue };
        let Ok(policy) = u8::try_from(policy::of_uplink(index)) else { continue };
        let alone = if overrides.drained.contains(&uplink.name) { 0 } else { 1 << index };
        let record = PolicyRecord {
            name: [0; 32],
            weights: [0; MAX_UPLINKS],
            members: alone,
            eligible: alone,
            hash_mode: hash::HashMode::Flow,
            sticky: 0,
        };
        records.insert(policy, record);
    }
    (records, views)
}

/// How a policy's new flows are spread now. `situations`: of the uplinks, in the order of the configuration.
pub fn spread(policy: &config::Policy, config: &Config, overrides: &Overrides, situations: &[Situation]) -> Spread {
    let by_hand = |uplink: &config::Uplink| {
        takes_weights_by_hand(policy).then(|| overrides.weights.get(&uplink.name).copied())?
    };
    let numbers: Vec<Option<u16>> = config.uplinks.iter().map(by_hand).collect();
    let mut tiers = policy.tiers.clone();
    // Who gives a weight by hand to an uplink that is in no tier wants it used.
    let strangers =
        (0..).zip(&numbers).filter(|(uplink, number)| number.is_some_and(|n| n > 0) && policy.place(*uplink).is_none());
    let strangers: Vec<Member> = strangers
        .map(|(uplink, number)| Member { uplink, weight: Weight::Fixed(number.unwrap_or_default()) })
        .collect();
    if !strangers.is_empty() {
        tiers.resize(tiers.len().max(1), Vec::new());
        tiers[0].extend(strangers);
    }
    let situations: Vec<Situation> =
        situations.iter().zip(numbers).map(|(situation, by_hand)| Situation { by_hand, ..*situation }).collect();
    load::spread(&tiers, policy.spill, &situations)
}

/// Weights by hand are those of the default policy, and of policies in which uplinks have their own.
fn takes_weights_by_hand(policy: &config::Policy) -> bool {
    policy.own_weights || policy.name == config::DEFAULT_POLICY
}

/// Whether a policy goes by what uplinks carry.
pub fn goes_by_load(policy: &config::Policy) -> bool {
    policy.spill.is_some() || policy.tiers.iter().flatten().any(|member| member.weight == Weight::Capacity)
}

fn record(
    policy: &config::Policy,
    spread: &Spread,
    config: &Config,
    indices: &Indices,
    overrides: &Overrides,
) -> PolicyRecord {
    let mut record = PolicyRecord {
        name: records::padded(&policy.name),
        weights: [0; MAX_UPLINKS],
        members: 0,
        eligible: 0,
        hash_mode: match policy.hash {
            HashMode::Flow => hash::HashMode::Flow,
            HashMode::Source => hash::HashMode::Source,
            HashMode::SourceDestination => hash::HashMode::SourceDestination,
        },
        sticky: time::ticks_for(u64::try_from(policy.sticky.as_nanos()).unwrap_or(u64::MAX)),
    };
    let index_of = |uplink: usize| {
        let uplink = config.uplinks.get(uplink)?;
        Some((usize::from(indices.get(&uplink.name)?), !overrides.drained.contains(&uplink.name)))
    };
    for ((uplink, weight), member) in spread.weights().zip(&spread.members) {
        let Some((index, serves)) = index_of(uplink) else { continue };
        record.weights[index] = weight;
        record.members |= u32::from(weight > 0) << index;
        record.eligible |= u32::from(serves && member.number != Some(0)) << index;
    }
    record
}

fn view(policy: &config::Policy, index: u8, spread: &Spread, config: &Config) -> PolicyView {
    let member = |member: &MemberSpread| {
        let uplink = config.uplinks.get(member.uplink)?.name.clone();
        let weight = member.number.map_or(Weight::Capacity, Weight::Fixed);
        Some(MemberView { uplink, tier: member.tier, weight, effective_weight: member.effective, share: member.share })
    };
    // Of other policies it would be what it was when something else was last decided.
    let fill = |tier: &TierSpread| tier.fill.filter(|_| goes_by_load(policy));
    PolicyView {
        index,
        name: policy.name.clone(),
        hash: policy.hash,
        sticky_s: policy.sticky.as_secs_f64(),
        spill: policy.spill,
        tiers: spread.tiers.iter().map(|tier| TierSpread { fill: fill(tier), ..*tier }).collect(),
        members: spread.members.iter().filter_map(member).collect(),
    }
}

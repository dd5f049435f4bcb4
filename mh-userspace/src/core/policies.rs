//! Which uplinks new flows get under each policy, and in which parts.

use std::collections::BTreeMap;

use mh_common::{abi::MAX_UPLINKS, hash, policy, time};

use super::{Condition, Indices, Overrides, records};
use crate::config::{self, Config, HashMode, Share, Weight};

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
    /// Its uplinks, tier by tier.
    pub members: Vec<MemberView>,
}

/// Under a policy, what an uplink is good for.
struct Candidate {
    index: u8,
    tier: usize,
    weight: u16,
    /// It has a weight and is not drained.
    eligible: bool,
    /// And it can be used.
    takes: bool,
}

/// All policies by index: those that are configured, and one for each uplink alone.
pub fn policies(
    config: &Config,
    indices: &Indices,
    overrides: &Overrides,
    conditions: &[Condition],
) -> (BTreeMap<u8, PolicyRecord>, Vec<PolicyView>) {
    let mut records = BTreeMap::new();
    let mut views = Vec::with_capacity(config.policies.len());
    for policy in &config.policies {
        let Some(index) = indices.policy(&policy.name) else { continue };
        let (record, view) = configured(policy, index, config, indices, overrides, conditions);
        records.insert(index, record);
        views.push(view);
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

fn configured(
    policy: &config::Policy,
    index: u8,
    config: &Config,
    indices: &Indices,
    overrides: &Overrides,
    conditions: &[Condition],
) -> (PolicyRecord, PolicyView) {
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
    let mut view = PolicyView {
        index,
        name: policy.name.clone(),
        hash: policy.hash,
        sticky_s: policy.sticky.as_secs_f64(),
        spill: policy.spill,
        members: Vec::new(),
    };
    let mut candidates = Vec::new();
    for (position, (uplink, condition)) in config.uplinks.iter().zip(conditions).enumerate() {
        let Some(index) = indices.get(&uplink.name) else { continue };
        let Some((tier, weight)) = place(policy, position, &uplink.name, overrides) else { continue };
        let number = match weight {
            Weight::Fixed(weight) => weight,
            Weight::Capacity => 1,
        };
        let eligible = number > 0 && !overrides.drained.contains(&uplink.name);
        candidates.push(Candidate { index, tier, weight: number, eligible, takes: eligible && condition.usable });
        view.members.push(MemberView { uplink: uplink.name.clone(), tier, weight, share: 0.0 });
    }
    let turn = candidates.iter().filter(|candidate| candidate.takes).map(|candidate| candidate.tier).min();
    let total: u32 = candidates
        .iter()
        .filter(|candidate| candidate.takes && Some(candidate.tier) == turn)
        .map(|candidate| u32::from(candidate.weight))
        .sum();
    for (candidate, member) in candidates.iter().zip(&mut view.members) {
        record.eligible |= u32::from(candidate.eligible) << candidate.index;
        if candidate.takes && Some(candidate.tier) == turn {
            record.members |= 1 << candidate.index;
            record.weights[usize::from(candidate.index)] = u32::from(candidate.weight);
            member.share = f64::from(candidate.weight) / f64::from(total);
        }
    }
    view.members.sort_by_key(|member| member.tier);
    (record, view)
}

/// The tier of an uplink under a policy, and its weight there. Weights by hand are those of the default policy, and of policies in which
/// uplinks have their own.
fn place(policy: &config::Policy, uplink: usize, name: &str, overrides: &Overrides) -> Option<(usize, Weight)> {
    let by_hand = overrides.weights.get(name).filter(|_| policy.own_weights || policy.name == config::DEFAULT_POLICY);
    match (policy.place(uplink), by_hand) {
        (Some((tier, _)), Some(&weight)) => Some((tier, Weight::Fixed(weight))),
        (place, None) => place,
        // Who gives a weight by hand to an uplink that is in no tier wants it used.
        (None, Some(&weight)) => (weight > 0).then_some((0, Weight::Fixed(weight))),
    }
}

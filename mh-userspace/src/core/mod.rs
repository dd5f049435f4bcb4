//! The controller's core: from what is configured, ordered by hand, observed and probed to what the datapath should hold.
//!
//! Sans-IO: nothing in here knows of tokio, aya, netlink or the clock. [`Observed`] takes [`Event`]s in any order and ends in the
//! same state for the same set of facts; [`Core`] adds what takes time; [`Desired::new`] is a pure function; [`crate::reconcile`] turns two of
//! its results into actions. So all of it is tested without a kernel.

mod condition;
mod damping;
mod desired;
mod events;
mod indices;
mod observed;
mod policies;
mod records;
mod rule_table;
mod terms;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

pub use condition::Condition;
pub use desired::{Desired, ForwardedPort, Hook, InsidePort, ManagedInterface, Overrides, UplinkView};
pub use events::{Change, changes};
pub use indices::Indices;
pub use observed::{DefaultRoute, Event, Hop, Link, Neighbour, Observed};
pub use policies::{MemberView, PolicyRecord, PolicyView};
pub use rule_table::RuleTable;
pub use terms::{HealthOverride, Routing, UplinkState, Way};

use self::damping::Damper;
use crate::{
    config::{self, Config},
    health::Health,
    load::{Meter, Published, Rates, Situation, Spread},
};

/// How long a gateway that does not answer is looked for by broadcasts before it counts as gone.
const SEARCH_TIME: Duration = Duration::from_secs(1);

/// Everything that decides about what should be. Times are since an arbitrary start.
#[derive(Debug, Clone)]
pub struct Core {
    config: Config,
    /// The rules of the configuration.
    rules: Arc<RuleTable>,
    indices: Indices,
    overrides: Overrides,
    observed: Observed,
    /// What the probes of uplinks say, by name.
    health: BTreeMap<String, Health>,
    dampers: BTreeMap<String, Damper>,
    /// What uplinks carry.
    meter: Meter,
    /// How the new flows of policies that go by that are spread, by name.
    spreads: BTreeMap<String, Published>,
    /// Uplinks' gateways (interface, address) that have not answered, and have not been heard of since, with the time of the first silence.
    silent: BTreeMap<(u32, Ipv4Addr), Duration>,
    /// What came out last.
    last: Option<Desired>,
    /// When something else will come out, if nothing happens until then.
    wake: Option<Duration>,
}

impl Core {
    /// Nothing is observed yet. `indices` must have been [`Indices::assign`]ed for this configuration; `epoch`: the neighbour epoch of a former
    /// controller.
    pub fn new(config: Config, indices: Indices, overrides: Overrides, epoch: u32) -> Self {
        let mut observed = Observed::default();
        observed.continue_epoch(epoch);
        Self {
            rules: Arc::new(RuleTable::new(&config, &indices)),
            config,
            indices,
            overrides,
            observed,
            health: BTreeMap::new(),
            dampers: BTreeMap::new(),
            meter: Meter::default(),
            spreads: BTreeMap::new(),
            silent: BTreeMap::new(),
            last: None,
            wake: None,
        }
    }

    /// Takes in what has changed. Returns whether anything that matters did: of neighbours, there may be thousands.
    pub fn observe(&mut self, events: Vec<Event>) -> bool {
        let epoch = self.observed.neighbour_epoch();
        let mut changed = false;
        for event in events {
            let matters = self.matters(&event);
            changed |= self.observed.apply(event) && matters;
        }
        changed || self.observed.neighbour_epoch() != epoch
    }

    fn matters(&self, event: &Event) -> bool {
        match *event {
            Event::Neighbour { ifindex, address, .. }
            | Event::NeighbourFailed(ifindex, address)
            | Event::NeighbourGone(ifindex, address) => self.last.as_ref().is_none_or(|last| {
                last.uplinks.values().any(|u| u.ifindex == ifindex && u.v4.gateway == address.into())
            }),
            _ => true,
        }
    }

    /// Takes in all that holds now, in place of what was known. Returns whether anything changed.
    pub fn observe_anew(&mut self, facts: Vec<Event>) -> bool {
        self.observed.replace(facts)
    }

    /// Takes in what an uplink's probes say; `None`: it has none. Returns whether that decides anything anew.
    pub fn set_health(&mut self, uplink: &str, health: Option<Health>) -> bool {
        let decisive = |health: &Health| (health.up, health.reason.clone(), health.warning.clone());
        let before = self.health.get(uplink).map(decisive);
        let changed = before != health.as_ref().map(decisive);
        match health {
            Some(health) => drop(self.health.insert(uplink.to_owned(), health)),
            None => drop(self.health.remove(uplink)),
        }
        changed
    }

    /// What an uplink's probes say.
    pub fn health(&self, uplink: &str) -> Option<&Health> {
        self.health.get(uplink)
    }

    /// Puts another configuration in place, with its rules, for which [`Self::indices`] must have been [`Indices::assign`]ed. Uplinks keep their
    /// indices.
    pub fn configure(&mut self, config: Config, rules: Arc<RuleTable>) {
        self.indices.assign(&config);
        let damping = |config: &Config, name: &str| config.uplinks.iter().find(|u| u.name == name).map(|u| u.damping);
        self.health.retain(|name, _| config.uplink_index(name).is_some());
        self.meter.retain(|name| config.uplink_index(name).is_some());
        self.spreads.clear();
        // A hold is that of the damping that imposed it.
        self.dampers.retain(|name, _| damping(&config, name) == damping(&self.config, name));
        self.rules = rules;
        self.config = config;
    }

    /// The numbers that are given out.
    pub const fn indices(&self) -> &Indices {
        &self.indices
    }

    /// The rules of the configuration.
    pub const fn rules(&self) -> &Arc<RuleTable> {
        &self.rules
    }

    /// The configuration.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What was ordered by hand.
    pub const fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// What was ordered by hand, for more orders.
    pub const fn overrides_mut(&mut self) -> &mut Overrides {
        &mut self.overrides
    }

    /// What is known of the machine.
    pub const fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What should be, as of `now`.
    pub fn desired(&mut self, now: Duration) -> Desired {
        self.follow_gateways(now);
        let unreachable = self.unreachable(now);
        let mut conditions: Vec<Condition> =
            self.config.uplinks.iter().map(|uplink| self.condition(uplink, &unreachable)).collect();
        self.damp(&mut conditions, now);
        let spreads = self.spread(&conditions);
        let mut desired = Desired::new(
            &self.config,
            &self.rules,
            &self.indices,
            &self.overrides,
            &self.observed,
            &conditions,
            &spreads,
        );
        desired.sought.extend(self.silent.keys().filter(|gateway| desired.gateways.contains(gateway)));
        if self.last.as_ref().is_some_and(|last| desired.leads_elsewhere_than(last)) {
            self.observed.begin_epoch();
            desired.neighbour_epoch = self.observed.neighbour_epoch();
        }
        self.last = Some(desired.clone());
        let held = self.dampers.values().filter_map(|damper| damper.held_until(now));
        let sought = self.silent.values().map(|since| *since + SEARCH_TIME).filter(|until| *until > now);
        self.wake = held.chain(sought).min();
        desired
    }

    /// How the new flows of each policy are spread, by name.
    fn spread(&mut self, conditions: &[Condition]) -> BTreeMap<String, Spread> {
        let situation = |(uplink, condition): (&config::Uplink, &Condition)| Situation {
            takes: condition.usable && !self.overrides.drained.contains(&uplink.name),
            by_hand: None,
            capacity: uplink.capacity,
            rates: self.meter.rates(&uplink.name),
        };
        let situations: Vec<Situation> = self.config.uplinks.iter().zip(conditions).map(situation).collect();
        let mut spreads = BTreeMap::new();
        for policy in &self.config.policies {
            let mut spread = policies::spread(policy, &self.config, &self.overrides, &situations);
            if policies::goes_by_load(policy) {
                let published = self.spreads.entry(policy.name.clone()).or_default();
                published.offer(spread.clone());
                spread = published.spread().cloned().unwrap_or(spread);
            }
            spreads.insert(policy.name.clone(), spread);
        }
        spreads
    }

    /// Whether it matters what uplinks carry.
    pub fn goes_by_load(&self) -> bool {
        self.config.policies.iter().any(policies::goes_by_load)
    }

    /// Takes in how many bytes an uplink has carried so far.
    pub fn count(&mut self, uplink: &str, now: Duration, tx_bytes: u64, rx_bytes: u64) {
        self.meter.count(uplink, now, tx_bytes, rx_bytes);
    }

    /// What an uplink carries, smoothed.
    pub fn rates(&self, uplink: &str) -> Rates {
        self.meter.rates(uplink)
    }

    /// Holds back uplinks that come and go; but not all that are left, since that protects nothing.
    fn damp(&mut self, conditions: &mut [Condition], now: Duration) {
        let mut held = Vec::with_capacity(conditions.len());
        for (condition, uplink) in conditions.iter().zip(&self.config.uplinks) {
            let damper = self.dampers.entry(uplink.name.clone()).or_default();
            if condition.by_hand {
                *damper = Damper::default();
            } else {
                damper.note(condition.usable, &uplink.damping, now);
            }
            held.push(damper.held_until(now).is_some());
        }
        if !conditions.iter().zip(&held).any(|(condition, held)| condition.usable && !held) {
            return;
        }
        for ((condition, uplink), _) in
            conditions.iter_mut().zip(&self.config.uplinks).zip(held).filter(|(_, held)| *held)
        {
            let damping = &uplink.damping;
            condition.usable = false;
            condition.reason = format!(
                "flapping: lost {} times within {}s, used again when well for {}s",
                damping.losses,
                damping.within.as_secs(),
                damping.hold.as_secs()
            );
        }
    }

    fn condition(&self, uplink: &config::Uplink, unreachable: &BTreeSet<(u32, Ipv4Addr)>) -> Condition {
        let health = self.health.get(&uplink.name);
        Condition::of(uplink, &self.overrides, &self.observed, unreachable, health)
    }

    /// Keeps a gateway that has not answered in mind until it is heard of, even if the kernel forgets it and looks for it anew.
    fn follow_gateways(&mut self, now: Duration) {
        let observed = &self.observed;
        let former = std::mem::take(&mut self.silent);
        for uplink in &self.config.uplinks {
            let Some(link) = observed.link_named(&uplink.interface).filter(|link| link.carrier) else { continue };
            let Some(gateway) = uplink.gateway.or_else(|| observed.default_gateway(link.ifindex)) else { continue };
            let which = (link.ifindex, gateway);
            let since = former.get(&which).copied();
            let since = match observed.neighbour(link.ifindex, gateway) {
                Some(Neighbour::Failed) => Some(since.unwrap_or(now)),
                Some(Neighbour::Known { .. }) => None,
                None => since,
            };
            self.silent.extend(since.map(|since| (which, since)));
        }
    }

    /// The gateways that are not there any more. One that has just fallen silent may have other hardware, and answer a broadcast: it is
    /// sought first.
    fn unreachable(&self, now: Duration) -> BTreeSet<(u32, Ipv4Addr)> {
        self.silent.iter().filter(|(_, since)| **since + SEARCH_TIME <= now).map(|(which, _)| *which).collect()
    }

    /// When [`Self::desired`] will come to something else by itself than it last did: an uplink's hold ends, or the search for a gateway.
    pub const fn wake(&self) -> Option<Duration> {
        self.wake
    }

    /// Counts neighbour epochs on from those of another state of the same core, which may have been in force.
    pub const fn skip_epochs_of(&mut self, other: &Self) {
        self.observed.continue_epoch(other.observed.neighbour_epoch());
    }
}

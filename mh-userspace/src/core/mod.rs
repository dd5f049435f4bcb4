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
mod records;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

pub use condition::Condition;
pub use desired::{Desired, ForwardedPort, Hook, InsidePort, ManagedInterface, Overrides, UplinkView};
pub use events::{Change, changes};
pub use indices::Indices;
pub use observed::{DefaultRoute, Event, Hop, Link, Neighbour, Observed};

use self::damping::Damper;
use crate::{config::Config, health::Health};

/// Everything that decides about what should be. Times are since an arbitrary start.
#[derive(Debug, Clone)]
pub struct Core {
    config: Config,
    indices: Indices,
    overrides: Overrides,
    observed: Observed,
    /// What the probes of uplinks say, by name.
    health: BTreeMap<String, Health>,
    dampers: BTreeMap<String, Damper>,
    /// Uplinks' gateways (interface, address) that have not answered, and have not been heard of since.
    unreachable: BTreeSet<(u32, Ipv4Addr)>,
    /// What came out last.
    last: Option<Desired>,
}

impl Core {
    /// Nothing is observed yet. `indices` must have been [`Indices::assign`]ed for this configuration; `epoch`: the neighbour epoch of a former
    /// controller.
    pub fn new(config: Config, indices: Indices, overrides: Overrides, epoch: u32) -> Self {
        let mut observed = Observed::default();
        observed.continue_epoch(epoch);
        Self {
            config,
            indices,
            overrides,
            observed,
            health: BTreeMap::new(),
            dampers: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            last: None,
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

    /// Puts another configuration in place. Uplinks keep their indices.
    pub fn configure(&mut self, config: Config) {
        self.indices.assign(&config);
        let is_configured = |name: &str| config.uplink_index(name).is_some();
        self.health.retain(|name, _| is_configured(name));
        self.dampers.retain(|name, _| is_configured(name));
        self.config = config;
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
        self.follow_gateways();
        let conditions: Vec<Condition> = self.config.uplinks.iter().map(|uplink| self.condition(uplink)).collect();
        let conditions: Vec<Condition> = conditions
            .into_iter()
            .zip(&self.config.uplinks)
            .map(|(mut condition, uplink)| {
                let damper = self.dampers.entry(uplink.name.clone()).or_default();
                if condition.by_hand {
                    *damper = Damper::default();
                    return condition;
                }
                damper.note(condition.usable, &uplink.damping, now);
                if damper.held_until(now).is_some() {
                    let damping = &uplink.damping;
                    condition.usable = false;
                    condition.reason = format!(
                        "flapping: lost {} times within {}s, used again when well for {}s",
                        damping.losses,
                        damping.within.as_secs(),
                        damping.hold.as_secs()
                    );
                }
                condition
            })
            .collect();
        let new =
            |observed: &Observed| Desired::new(&self.config, &self.indices, &self.overrides, observed, &conditions);
        let mut desired = new(&self.observed);
        if self.last.as_ref().is_some_and(|last| desired.leads_elsewhere_than(last)) {
            self.observed.begin_epoch();
            desired = new(&self.observed);
        }
        self.last = Some(desired.clone());
        desired
    }

    fn condition(&self, uplink: &crate::config::Uplink) -> Condition {
        let health = self.health.get(&uplink.name);
        Condition::of(uplink, &self.overrides, &self.observed, &self.unreachable, health)
    }

    /// Keeps a gateway that has not answered in mind until it is heard of, even if the kernel forgets it and looks for it anew.
    fn follow_gateways(&mut self) {
        let observed = &self.observed;
        let former = std::mem::take(&mut self.unreachable);
        for uplink in &self.config.uplinks {
            let Some(link) = observed.link_named(&uplink.interface).filter(|link| link.carrier) else { continue };
            let Some(gateway) = uplink.gateway.or_else(|| observed.default_gateway(link.ifindex)) else { continue };
            let which = (link.ifindex, gateway);
            let unreachable = match observed.neighbour(link.ifindex, gateway) {
                Some(Neighbour::Failed) => true,
                Some(Neighbour::Known { .. }) => false,
                None => former.contains(&which),
            };
            if unreachable {
                self.unreachable.insert(which);
            }
        }
    }

    /// When [`Self::desired`] will come to something else by itself: an uplink's hold ends.
    pub fn wake(&self, now: Duration) -> Option<Duration> {
        self.dampers.values().filter_map(|damper| damper.held_until(now)).min()
    }
}

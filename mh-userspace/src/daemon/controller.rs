//! The state of the loop: configuration, orders by hand, observations, and what is in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use aya::Ebpf;
use mh_common::abi::Timeouts;
use tokio::sync::oneshot;

use super::{
    Options,
    backend::{Command, Views},
    saved::{self, Saved},
};
use crate::{
    config::{self, Config, Forward, Hooks},
    control::{
        api::{ControlError, EventKind, HealthOverride, Reloaded, UplinkState, WeightsRequest},
        events::{EventLog, Happening},
    },
    core::{Desired, Event, Indices, Observed, Overrides, changes},
    datapath::{DatapathError, apply::Datapath},
    reconcile,
};

/// The highest weight.
const MAX_WEIGHT: u32 = 65_535;

/// The controller.
pub struct Controller {
    config_path: PathBuf,
    state_dir: PathBuf,
    config: Config,
    overrides: Overrides,
    /// What of that outlasts mhd.
    saved: Saved,
    observed: Observed,
    indices: Indices,
    datapath: Datapath,
    in_force: Option<Desired>,
    events: EventLog,
    /// An action failed: what is in force is not what is recorded.
    dirty: bool,
}

impl Controller {
    /// Loads the datapath; puts nothing in force yet.
    pub fn new(options: &Options, config: Config) -> Result<Self, DatapathError> {
        let (mut datapath, notes) = Datapath::open(&options.bpffs, &config.datapath, options.debug)?;
        let events = EventLog::default();
        notes.iter().for_each(|note| warn(&events, note));
        let mut indices = datapath.indices()?;
        for gone in indices.assign(&config) {
            datapath.apply(&reconcile::Action::RemoveUplink(gone))?;
        }
        let mut observed = Observed::default();
        observed.continue_epoch(datapath.neighbour_epoch()?);
        let saved = saved::load(&options.state, &options.config).unwrap_or_else(|error| {
            let dir = options.state.display();
            warn(&events, &format!("what was saved in {dir} can't be read and is not used: {error}"));
            Saved::default()
        });
        for name in saved.strangers(&config) {
            warn(&events, &format!("what was saved for {name} is not used: there is no such uplink; it is kept"));
        }
        Ok(Self {
            config_path: options.config.clone(),
            state_dir: options.state.clone(),
            config,
            overrides: saved.overrides(),
            saved,
            observed,
            indices,
            datapath,
            in_force: None,
            events,
            dirty: false,
        })
    }

    /// Takes in events; returns whether anything changed.
    pub fn observe(&mut self, events: Vec<Event>) -> bool {
        let mut changed = false;
        for event in events {
            changed |= self.observed.apply(event);
        }
        changed
    }

    /// The first reconciliation: also removes what a former controller left and nobody wants. Fails if anything can't be put in force.
    pub fn start(&mut self) -> Result<(), DatapathError> {
        let desired = self.desired();
        for action in reconcile::plan(None, &desired) {
            self.datapath.apply(&action)?;
        }
        self.datapath.remove_leftovers(&desired)?;
        self.tell_changes(&desired);
        self.in_force = Some(desired);
        Ok(())
    }

    fn desired(&self) -> Desired {
        Desired::new(&self.config, &self.indices, &self.overrides, &self.observed)
    }

    /// Puts in force what should be.
    pub fn reconcile(&mut self) {
        let desired = self.desired();
        let before = if self.dirty { None } else { self.in_force.as_ref() };
        let actions = reconcile::plan(before, &desired);
        self.dirty = false;
        for action in &actions {
            if let Err(error) = self.datapath.apply(action) {
                self.failed(&error);
                self.dirty = true;
            }
        }
        self.tell_changes(&desired);
        self.in_force = Some(desired);
    }

    /// Has the kernel look again for gateways that it has not found, or has given up.
    pub fn look_for_gateways(&mut self) {
        let unresolved = self.in_force.iter().flat_map(|d| d.unresolved.clone()).collect::<Vec<_>>();
        for (ifindex, gateway) in unresolved {
            if let Err(error) = self.datapath.apply(&reconcile::Action::Resolve(ifindex, gateway)) {
                tracing::warn!("{error}");
            }
        }
    }

    fn tell_changes(&self, desired: &Desired) {
        let before = self.in_force.as_ref().map(|d| d.views.as_slice()).unwrap_or_default();
        for change in changes(before, &desired.views) {
            match change.state {
                Some(state) => tracing::info!("uplink {} is {state}: {}", change.uplink, change.reason),
                None => tracing::info!("uplink {}: {}", change.uplink, change.reason),
            }
            self.events.push(change);
        }
    }

    fn failed(&self, error: &DatapathError) {
        tracing::error!("{error}");
        self.events.push(Happening::new(EventKind::Warning, error.to_string()));
    }

    /// A reload that changes nothing.
    fn refused(&self, reason: &str) -> ControlError {
        self.events.push(Happening::new(EventKind::Reload, format!("refused, nothing changed: {reason}")));
        ControlError::Invalid(reason.to_owned())
    }

    /// What happens, for those who want to know.
    pub const fn events(&self) -> &EventLog {
        &self.events
    }

    /// Reads the configuration again and puts the difference in force. An error changes nothing.
    pub fn reload(&mut self) -> Result<Reloaded, ControlError> {
        let loaded = config::load(&self.config_path).map_err(|error| self.refused(&one_line(&error.to_string())))?;
        let changed = differences(&self.config, &loaded.config);
        let warnings = loaded.warnings.iter().map(|w| format!("line {}: {}", w.line, w.message)).collect();
        self.config = loaded.config;
        let gone = self.indices.assign(&self.config);
        // The records of uplinks that are gone are freed, and their flows removed, before an index serves a new one.
        if let Some(in_force) = &mut self.in_force {
            for index in gone {
                in_force.uplinks.remove(&index);
                if let Err(error) = self.datapath.apply(&reconcile::Action::RemoveUplink(index)) {
                    tracing::error!("{error}");
                    self.events.push(Happening::new(EventKind::Warning, error.to_string()));
                }
            }
        }
        self.reconcile();
        let count = changed.len();
        self.events.push(Happening::new(EventKind::Reload, format!("the configuration was read: {count} changes")));
        Ok(Reloaded { changed, warnings })
    }

    /// Executes a command and answers it.
    pub fn execute(&mut self, command: Command) {
        /// Who asked may have gone meanwhile.
        fn answer<T>(reply: oneshot::Sender<T>, value: T) {
            let _ = reply.send(value);
        }
        match command {
            Command::SetWeights(request, reply) => {
                let result = self.set_weights(&request);
                answer(reply, result.map(|()| self.views()));
            }
            Command::SetDrain(name, drain, request, reply) => {
                let mut overrides = self.overrides.clone();
                let result = self.known(&name).and_then(|()| {
                    if drain {
                        overrides.drained.insert(name)
                    } else {
                        overrides.drained.remove(&name)
                    };
                    let saved = Saved { drained: overrides.drained.clone(), ..self.saved.clone() };
                    self.order(overrides, request.save.then_some(saved))
                });
                answer(reply, result);
            }
            Command::SetHealth(name, request, reply) => {
                let mut overrides = self.overrides.clone();
                let result = self.known(&name).and_then(|()| {
                    match request.health {
                        HealthOverride::Auto => overrides.health.remove(&name),
                        by_hand => overrides.health.insert(name, by_hand),
                    };
                    let saved = Saved { health: overrides.health.clone(), ..self.saved.clone() };
                    self.order(overrides, request.save.then_some(saved))
                });
                answer(reply, result);
            }
            Command::Reload(reply) => {
                let result = self.reload();
                answer(reply, result);
            }
            Command::Detach(reply) => {
                answer(reply, Err(ControlError::Internal("the daemon's loop does not detach".to_owned())));
            }
        }
    }

    fn set_weights(&mut self, request: &WeightsRequest) -> Result<(), ControlError> {
        let mut weights = self.overrides.weights.clone();
        for (name, &weight) in &request.weights {
            self.known(name)?;
            let weight = u16::try_from(weight).map_err(|_| {
                ControlError::Invalid(format!("weight {weight} of {name} is too large; give 0 to {MAX_WEIGHT}"))
            })?;
            weights.insert(name.clone(), weight);
        }
        let saved = Saved { weights: weights.clone(), ..self.saved.clone() };
        self.order(Overrides { weights, ..self.overrides.clone() }, request.save.then_some(saved))
    }

    /// Puts orders by hand in force, when what is to be saved of them is saved.
    fn order(&mut self, overrides: Overrides, saved: Option<Saved>) -> Result<(), ControlError> {
        if let Some(saved) = saved {
            saved::store(&self.state_dir, &self.config_path, &saved).map_err(|error| {
                ControlError::Internal(format!("cannot save in {}: {error}; nothing changed", self.state_dir.display()))
            })?;
            self.saved = saved;
        }
        self.overrides = overrides;
        self.reconcile();
        Ok(())
    }

    fn known(&self, name: &str) -> Result<(), ControlError> {
        if self.config.uplink_index(name).is_some() {
            return Ok(());
        }
        let names: Vec<&str> = self.config.uplinks.iter().map(|u| u.name.as_str()).collect();
        Err(ControlError::NotFound(format!("there is no uplink {name:?}; the uplinks are {}", names.join(", "))))
    }

    /// What commands that only read are answered from.
    pub fn views(&self) -> Views {
        let hook = |ifindex| match self.datapath.hook(ifindex) {
            Some(true) => "xdp",
            Some(false) => "tc",
            None => "none",
        };
        let uplinks = self.in_force.as_ref().map(|d| d.views.clone()).unwrap_or_default();
        let hooks: BTreeMap<String, &'static str> = uplinks
            .iter()
            .map(|view| {
                let ifindex = self.observed.link_named(&view.interface).map_or(0, |link| link.ifindex);
                (view.name.clone(), hook(ifindex))
            })
            .collect();
        Views { mode: self.config.datapath.mode.as_str(), uplinks, hooks }
    }

    /// A few words about the uplinks: `1 of 2 uplinks up`.
    pub fn state(&self) -> String {
        let views = self.in_force.as_ref().map(|d| d.views.as_slice()).unwrap_or_default();
        let up = views.iter().filter(|v| v.state == UplinkState::Up).count();
        format!("{up} of {} uplinks up", views.len())
    }

    /// One line about what is in force.
    pub fn summary(&self) -> String {
        format!("{}, pinned in {}", self.state(), self.datapath.dir().display())
    }

    /// The idle timeouts in force.
    pub fn timeouts(&self) -> Timeouts {
        self.in_force.as_ref().map(|d| d.settings.timeouts).unwrap_or_default()
    }

    /// The hooks in force.
    pub const fn hooks(&self) -> &Hooks {
        &self.config.hooks
    }

    /// The BPF object, for its log.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        self.datapath.ebpf()
    }
}

/// Something that the user should know.
fn warn(events: &EventLog, text: &str) {
    tracing::warn!("{text}");
    events.push(Happening::new(EventKind::Warning, text));
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}

/// What differs between two configurations, a line each.
fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for uplink in &new.uplinks {
        match old.uplinks.iter().find(|u| u.name == uplink.name) {
            None => lines.push(format!("uplink {} added", uplink.name)),
            Some(before) if before != uplink => lines.push(format!("uplink {} changed", uplink.name)),
            Some(_) => {}
        }
    }
    for uplink in old.uplinks.iter().filter(|u| new.uplink_index(&u.name).is_none()) {
        lines.push(format!("uplink {} removed", uplink.name));
    }
    let mut changed = |what: &str, differs: bool| {
        if differs {
            lines.push(format!("{what} changed"));
        }
    };
    changed("lan", old.lan != new.lan);
    changed("datapath", old.datapath != new.datapath);
    let named = |config: &Config| {
        let names = config.default_policy.members.iter();
        let names = names.filter_map(|(i, weight)| Some((config.uplinks.get(*i)?.name.clone(), *weight)));
        (names.collect::<BTreeMap<_, _>>(), config.default_policy.hash)
    };
    changed("policy default", named(old) != named(new));
    // An index says nothing once uplinks have come or gone: compared are the uplinks that are meant.
    let forwards = |config: &Config| -> Vec<(BTreeSet<String>, Forward)> {
        let on = |forward: &Forward| {
            forward.uplinks.iter().filter_map(|i| Some(config.uplinks.get(*i)?.name.clone())).collect()
        };
        config
            .forwards
            .iter()
            .map(|forward| (on(forward), Forward { uplinks: Vec::new(), ..forward.clone() }))
            .collect()
    };
    changed("forward", forwards(old) != forwards(new));
    changed("nat", old.nat != new.nat);
    changed("limits", old.limits != new.limits);
    changed("timeouts", old.timeouts != new.timeouts);
    changed("hooks", old.hooks != new.hooks);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        lan = ["lan0"]
        [uplink.isp1]
        interface = "wan1"
        address = ["198.51.100.2", "198.51.100.8/30"]
        [uplink.isp2]
        interface = "wan2"
        [nat]
        filtering = "endpoint-independent"
        [limits]
        bindings_per_source = 100
        [[forward]]
        uplinks = ["isp2"]
        protocol = "tcp"
        port = "8443"
        to = "192.168.1.20:443"
    "#;

    fn changed(new: &str) -> Vec<String> {
        differences(&config::parse(CONFIG).unwrap().config, &config::parse(new).unwrap().config)
    }

    #[test]
    fn differences_name_the_sections_that_changed() {
        assert_eq!(changed(CONFIG), [""; 0]);
        for (from, to, expected) in [
            ("198.51.100.8/30", "198.51.100.12/30", "uplink isp1 changed"),
            ("\"endpoint-independent\"", "\"address-dependent\"", "nat changed"),
            ("= 100", "= 101", "limits changed"),
            ("= 100", "= 100\nnew_flows_per_source = 0", "limits changed"),
            ("8443", "8444", "forward changed"),
            ("20:443", "20:444", "forward changed"),
            ("[nat]", "[hooks]\ntimeout = \"1s\"\n[nat]", "hooks changed"),
            ("20:443", "21:443", "forward changed"),
            ("\"tcp\"", "[\"tcp\", \"udp\"]", "forward changed"),
            ("uplinks = [\"isp2\"]", "", "forward changed"),
        ] {
            assert!(CONFIG.contains(from), "{from}");
            assert_eq!(changed(&CONFIG.replace(from, to)), [expected], "{from} -> {to}");
        }
    }

    #[test]
    fn a_forward_follows_its_uplink_and_not_its_place() {
        let added = CONFIG.replace("[uplink.isp1]", "[uplink.isp0]\ninterface = \"wan0\"\n[uplink.isp1]");
        assert_eq!(changed(&added), ["uplink isp0 added", "policy default changed"]);
    }
}

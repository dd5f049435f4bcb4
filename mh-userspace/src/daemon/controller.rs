//! The state of the loop: configuration, orders by hand, observations, and what is in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::Ebpf;
use mh_common::abi::{Timeouts, mark};
use tokio::sync::oneshot;

use super::{
    Options,
    backend::{self, Command, Views},
    differences::differences,
    explain,
    nudges::Nudges,
    probes::Probes,
    reload::{self, Draft, one_line},
    ruling::{self, Ruling},
    saved::{self, Saved},
};
use crate::{
    config::{Config, Hooks},
    control::{
        api::{self, ControlError, EventKind, HealthOverride, Reloaded, UplinkState, WeightsRequest},
        events::{EventLog, Happening},
    },
    core::{Core, Desired, Event, Neighbour, Overrides, changes},
    datapath::{DatapathError, apply::Datapath, cache::Keeper},
    health::Start,
    netlink,
    probe::{Path, Round},
    reconcile::{self, Action},
};

/// How often idle flows and unused bindings are looked for.
const LONGEST_SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The same where sources stick for seconds only.
const SHORTEST_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How many sweeps there are in the time that a source sticks.
const SWEEPS_PER_STICKY: u32 = 4;

/// The highest weight.
const MAX_WEIGHT: u32 = 65_535;

/// How long after a failed action everything is put in force again; doubled with each failure, up to [`MAX_RETRY_PAUSE`].
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(1);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(60);

/// The controller.
pub struct Controller {
    config_path: PathBuf,
    state_dir: PathBuf,
    core: Core,
    /// What of the orders by hand outlasts mhd.
    saved: Saved,
    datapath: Datapath,
    in_force: Option<Desired>,
    ruling: Arc<Ruling>,
    /// The policies in force, as people see them.
    policies: Arc<Vec<(u8, api::Policy)>>,
    /// The counters of the rules in force.
    counters: Arc<[u16]>,
    events: EventLog,
    probes: Probes,
    before: Before,
    nudges: Nudges,
    /// An action failed: what is in force is not what is recorded.
    retry: Option<Retry>,
    clock: Instant,
}

/// What a former controller left, until this one has started.
#[derive(Debug, Default)]
struct Before {
    /// Uplinks that were down.
    down: BTreeSet<String>,
    /// Indices of uplinks that are configured no more.
    gone: Vec<u8>,
    /// Gateways (interface, address) of all uplinks.
    gateways: Vec<(u32, Ipv4Addr)>,
    /// One bit per uplink that could be used.
    healthy: u64,
}

/// When everything is put in force again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    /// By the controller's clock.
    at: Duration,
    /// How long after the failure that is.
    pause: Duration,
}

impl Controller {
    /// Loads the datapath; puts nothing in force yet.
    pub fn new(options: &Options, config: Config, probes: Probes) -> Result<Self, DatapathError> {
        let (datapath, notes) = Datapath::open(&options.bpffs, &config.datapath, options.debug)?;
        let events = EventLog::default();
        notes.into_iter().for_each(|note| events.warn(note));
        let mut indices = datapath.indices()?;
        let live = datapath.live()?;
        let was_down = |name: &str| indices.get(name).is_some_and(|index| !live.is_healthy(index));
        let names = config.uplinks.iter().map(|uplink| uplink.name.clone());
        let down_before = names.filter(|name| was_down(name)).collect();
        let gone = indices.assign(&config);
        let gateways_before = datapath.gateways()?;
        let saved = saved::load(&options.state, &options.config).unwrap_or_else(|error| {
            let dir = options.state.display();
            events.warn(format!("what was saved in {dir} can't be read and is not used: {error}"));
            Saved::default()
        });
        for name in saved.strangers(&config) {
            events.warn(format!("what was saved for {name} is not used: there is no such uplink; it is kept"));
        }
        let ruling = Arc::new(Ruling::new(&config));
        let core = Core::new(config, indices, saved.overrides(), u32::from(live.neighbour_epoch));
        Ok(Self {
            ruling,
            policies: Arc::default(),
            counters: Arc::default(),
            config_path: options.config.clone(),
            state_dir: options.state.clone(),
            core,
            saved,
            datapath,
            in_force: None,
            probes,
            before: Before { down: down_before, gone, gateways: gateways_before, healthy: live.healthy },
            retry: None,
            clock: Instant::now(),
            nudges: Nudges::default(),
            events,
        })
    }

    fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Takes in what has become of the machine, and puts in force what follows.
    pub fn follow(&mut self, change: netlink::Change) {
        match change {
            netlink::Change::Events(events) => {
                if self.core.observe(events) {
                    self.reconcile();
                }
            }
            netlink::Change::All(facts) => {
                if self.core.observe_anew(facts) {
                    self.reconcile();
                }
                self.restore_routing();
            }
        }
    }

    /// Rules and routes may have gone without a word: with an interface's last address, or by somebody's flush.
    fn restore_routing(&mut self) {
        let Some(routing) = self.in_force.as_ref().map(|desired| desired.routing.clone()) else { return };
        if let Err(error) = self.datapath.apply(&Action::SetRouting(routing)) {
            self.failed(&error);
        }
    }

    /// The first reconciliation: also removes what a former controller left and nobody wants. Fails if anything can't be put in force.
    pub fn start(&mut self, facts: Vec<Event>) -> Result<(), DatapathError> {
        self.core.observe_anew(facts);
        self.configure_probes();
        let before = std::mem::take(&mut self.before);
        let desired = self.core.desired(self.now());
        // What is in force takes flows until it is replaced: none may go to an uplink that is down, or is no more.
        let healthy = before.healthy & desired.healthy;
        let neighbour_epoch = u32::from(self.datapath.live()?.neighbour_epoch);
        self.datapath.apply(&Action::SetLive { healthy, neighbour_epoch })?;
        let (reused, gone): (Vec<u8>, Vec<u8>) =
            before.gone.into_iter().partition(|index| desired.uplinks.contains_key(index));
        for index in reused {
            self.datapath.apply(&Action::RemoveUplink(index))?;
        }
        for (ifindex, gateway) in before.gateways.into_iter().filter(|gateway| !desired.gateways.contains(gateway)) {
            self.datapath.apply(&Action::LeaveGateway(ifindex, gateway))?;
        }
        for action in reconcile::plan(None, &desired) {
            match self.datapath.apply(&action) {
                // It was there when everything was listed.
                Err(error) if matches!(&action, Action::Attach(ifindex, _) if !exists(*ifindex)) => self.failed(&error),
                outcome => outcome?,
            }
        }
        for index in gone {
            self.datapath.apply(&Action::RemoveUplink(index))?;
        }
        self.datapath.remove_leftovers(&desired)?;
        self.datapath.finish_upgrade()?;
        self.put_on_record(desired);
        Ok(())
    }

    /// Puts in force what should be. An action that fails is reported and does not keep the others from being done.
    pub fn reconcile(&mut self) {
        let desired = self.core.desired(self.now());
        if self.in_force.as_ref() == Some(&desired) {
            return;
        }
        for action in reconcile::plan(self.in_force.as_ref(), &desired) {
            if let Err(error) = self.datapath.apply(&action) {
                self.failed(&error);
            }
        }
        self.put_on_record(desired);
    }

    /// Puts everything in force again, whatever is on record.
    fn reconcile_anew(&mut self, pause: Duration) {
        let desired = self.core.desired(self.now());
        self.retry = None;
        let outcomes = reconcile::plan(None, &desired).into_iter().map(|action| self.datapath.apply(&action));
        let errors: Vec<_> = outcomes.filter_map(Result::err).collect();
        let leftovers = self.datapath.remove_leftovers(&desired).err();
        errors.iter().chain(&leftovers).for_each(|error| self.report(error));
        if !errors.is_empty() || leftovers.is_some() {
            self.retry_after((2 * pause).min(MAX_RETRY_PAUSE));
        }
        self.put_on_record(desired);
    }

    fn failed(&mut self, error: &DatapathError) {
        self.report(error);
        if self.retry.is_none() {
            self.retry_after(MIN_RETRY_PAUSE);
        }
    }

    fn report(&self, error: &DatapathError) {
        tracing::error!("{error}");
        self.events.push(Happening::new(EventKind::Warning, error.to_string()));
    }

    fn retry_after(&mut self, pause: Duration) {
        self.retry = Some(Retry { at: self.now() + pause, pause });
    }

    /// When [`Self::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let at = self.core.wake().into_iter().chain(self.retry.map(|retry| retry.at)).min();
        at.map(|at| self.clock + at)
    }

    /// Does what was to be done at this time.
    pub fn wake(&mut self) {
        match self.retry {
            Some(retry) if retry.at <= self.now() => self.reconcile_anew(retry.pause),
            _ => self.reconcile(),
        }
    }

    /// Measures what uplinks carry, and spreads new flows by that.
    pub fn measure(&mut self) {
        let now = self.now();
        for (index, name) in self.in_force.iter().flat_map(|d| &d.views).map(|view| (view.index, &view.name)) {
            match self.datapath.uplink_stats(index) {
                Ok(stats) => self.core.count(name, now, stats.tx_bytes, stats.rx_bytes),
                Err(error) => return tracing::warn!("{error}"),
            }
        }
        if self.core.goes_by_load() {
            self.reconcile();
        }
    }

    /// The gateways (interface, address) that should be there, and whether the kernel knows them.
    pub fn gateways(&self) -> Vec<(u32, Ipv4Addr, bool)> {
        let known = |ifindex, gateway| {
            matches!(self.core.observed().neighbour(ifindex, gateway), Some(Neighbour::Known { .. }))
        };
        let gateways = self.in_force.iter().flat_map(|desired| &desired.gateways);
        gateways.map(|&(ifindex, gateway)| (ifindex, gateway, known(ifindex, gateway))).collect()
    }

    /// Notes what is in force now, and tells what has changed for people.
    fn put_on_record(&mut self, desired: Desired) {
        let before = self.in_force.as_ref().map(|d| d.views.as_slice()).unwrap_or_default();
        for change in changes(before, &desired.views) {
            match change.state {
                Some(state) => tracing::info!("uplink {} is {state}: {}", change.uplink, change.reason),
                None => tracing::info!("uplink {}: {}", change.uplink, change.reason),
            }
            self.events.push(change);
        }
        self.nudges.follow(self.datapath.dir(), self.in_force.as_ref(), &desired);
        self.policies = Arc::new(ruling::policies(&desired, &self.ruling));
        self.counters = ruling::counters(&desired, self.core.config().rules.len()).into();
        self.in_force = Some(desired);
        self.set_paths();
    }

    /// Probes what the configuration says. Returns whether that decides anything anew.
    fn configure_probes(&mut self) -> bool {
        let uplinks = self.core.config().uplinks.clone();
        self.probes.retain(|name| uplinks.iter().any(|uplink| uplink.name == name));
        let mut changed = false;
        for uplink in &uplinks {
            // What was before says nothing about a probe that is configured later.
            let start = if self.before.down.contains(&uplink.name) { Start::Down } else { Start::Up };
            if let Some(health) = self.probes.configure(&uplink.name, uplink.probe.as_ref(), start) {
                changed |= self.core.set_health(&uplink.name, health);
            }
        }
        self.set_paths();
        changed
    }

    /// Has the probes take the uplinks' ways.
    fn set_paths(&self) {
        let observed = self.core.observed();
        for view in self.in_force.iter().flat_map(|desired| &desired.views) {
            let mark = mark::of_uplink(view.index, self.core.config().datapath.mark_mask);
            // Addresses that are routed here without being the machine's own are none to send from.
            let mut own = view.addresses.iter().flat_map(|range| range.addresses());
            let own = own.find(|address| observed.local().contains(address));
            let primary = || observed.primary_address(observed.link_named(&view.interface)?.ifindex);
            let path = own.or_else(primary).map(|source| Path { interface: view.interface.clone(), source, mark });
            self.probes.set_path(&view.name, path);
        }
    }

    /// Takes in what became of a round of probes.
    pub fn take(&mut self, round: &Round) {
        if let Some(health) = self.probes.take(round)
            && self.core.set_health(&round.uplink, Some(health))
        {
            self.reconcile();
        }
    }

    /// A reload that changes nothing.
    fn refused(&self, reason: &str) {
        self.events.push(Happening::new(EventKind::Reload, format!("refused, nothing changed: {reason}")));
    }

    /// What happens, for those who want to know.
    pub const fn events(&self) -> &EventLog {
        &self.events
    }

    /// What is to be done beside the loop when the configuration is to be read again.
    pub fn reload_job(&self) -> reload::Job {
        reload::Job {
            config: self.config_path.clone(),
            dir: self.datapath.dir().to_owned(),
            indices: self.core.indices().clone(),
            rules: self.core.rules().clone(),
        }
    }

    /// Puts the difference to a configuration that was read again in force. An error changes nothing: what was done until then is taken back.
    pub fn reload(&mut self, draft: Result<Draft, ControlError>) -> Result<Reloaded, ControlError> {
        let Draft { loaded, rules, prepared } = draft.inspect_err(|error| self.refused(&error.to_string()))?;
        if let Some(prepared) = prepared {
            self.datapath.take_prepared(rules.clone(), prepared);
        }
        let changed = differences(self.core.config(), &loaded.config);
        let mut warnings: Vec<String> =
            loaded.warnings.iter().map(|w| format!("line {}: {}", w.line, w.message)).collect();
        let sizes = |config: &Config| (config.datapath.conntrack_entries, config.datapath.bindings);
        if sizes(self.core.config()) != sizes(&loaded.config) {
            warnings
                .push("conntrack_entries and bindings take effect with the next start after mhd --detach".to_owned());
        }
        let former = self.core.clone();
        self.core.configure(loaded.config, rules);
        let desired = self.core.desired(self.now());
        let actions = reconcile::plan(self.in_force.as_ref(), &desired);
        let mut done = 0;
        let outcome = actions.iter().try_for_each(|action| {
            done += 1;
            self.datapath.apply(action)
        });
        if let Err(error) = outcome {
            let tried = std::mem::replace(&mut self.core, former);
            self.core.skip_epochs_of(&tried);
            if let Some(before) = &self.in_force {
                for action in reconcile::back(before, &desired, &actions[..done]) {
                    if let Err(error) = self.datapath.apply(&action) {
                        self.report(&error);
                        self.retry = Some(Retry { at: self.now(), pause: MIN_RETRY_PAUSE });
                    }
                }
            }
            let reason = one_line(&error.to_string());
            self.refused(&reason);
            return Err(ControlError::Internal(format!("{reason}; the configuration that was in force stays")));
        }
        self.ruling = Arc::new(Ruling::new(self.core.config()));
        self.put_on_record(desired);
        // Not before: a reload that is refused leaves the probes as they are.
        if self.configure_probes() {
            self.reconcile();
        }
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
                let mut overrides = self.core.overrides().clone();
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
                let mut overrides = self.core.overrides().clone();
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
            Command::Explain(request, reply) => {
                let result = match &self.in_force {
                    Some(desired) => {
                        explain::explain(&self.core, desired, &self.policies, &mut self.datapath, &request)
                    }
                    None => Err(backend::starting()),
                };
                answer(reply, result);
            }
            // The loop's own business.
            Command::Reload(reply) => {
                answer(reply, Err(ControlError::Internal("the daemon's loop reloads beside itself".to_owned())))
            }
            Command::Detach(reply) => {
                answer(reply, Err(ControlError::Internal("the daemon's loop does not detach".to_owned())));
            }
        }
    }

    fn set_weights(&mut self, request: &WeightsRequest) -> Result<(), ControlError> {
        let mut weights = self.core.overrides().weights.clone();
        for (name, &weight) in &request.weights {
            self.known(name)?;
            let Some(weight) = weight else {
                weights.remove(name);
                continue;
            };
            let weight = u16::try_from(weight).map_err(|_| {
                ControlError::Invalid(format!("weight {weight} of {name} is too large; give 0 to {MAX_WEIGHT}"))
            })?;
            weights.insert(name.clone(), weight);
        }
        let saved = Saved { weights: weights.clone(), ..self.saved.clone() };
        self.order(Overrides { weights, ..self.core.overrides().clone() }, request.save.then_some(saved))
    }

    /// Puts orders by hand in force, when what is to be saved of them is saved.
    fn order(&mut self, overrides: Overrides, saved: Option<Saved>) -> Result<(), ControlError> {
        if let Some(saved) = saved {
            saved::store(&self.state_dir, &self.config_path, &saved).map_err(|error| {
                ControlError::Internal(format!("cannot save in {}: {error}; nothing changed", self.state_dir.display()))
            })?;
            self.saved = saved;
        }
        *self.core.overrides_mut() = overrides;
        self.reconcile();
        Ok(())
    }

    fn known(&self, name: &str) -> Result<(), ControlError> {
        if self.core.config().uplink_index(name).is_some() {
            return Ok(());
        }
        let names: Vec<&str> = self.core.config().uplinks.iter().map(|u| u.name.as_str()).collect();
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
                let ifindex = self.core.observed().link_named(&view.interface).map_or(0, |link| link.ifindex);
                (view.name.clone(), hook(ifindex))
            })
            .collect();
        let health = |name: &String| Some((name.clone(), self.core.health(name)?.clone()));
        let health = uplinks.iter().filter_map(|view| health(&view.name)).collect();
        let rates = uplinks.iter().map(|view| (view.name.clone(), self.core.rates(&view.name))).collect();
        let (policies, counters) = (self.policies.clone(), self.counters.clone());
        let (mode, ruling) = (self.core.config().datapath.mode.as_str(), self.ruling.clone());
        Views { rates, health, mode, uplinks, hooks, policies, ruling, counters }
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

    /// How long after a sweep's beginning the next one is due. A source that sticks to its uplink is kept there by its flows through sweeps
    /// alone, so that there have to be several in the time that it sticks.
    pub fn sweep_interval(&self) -> Duration {
        self.shortest_stick().map_or(LONGEST_SWEEP_INTERVAL, |shortest| {
            (shortest / SWEEPS_PER_STICKY).clamp(SHORTEST_SWEEP_INTERVAL, LONGEST_SWEEP_INTERVAL)
        })
    }

    /// After how long a sweep has to hurry: half of the interval where sources stick; else it may take its time.
    pub fn sweep_hurry(&self) -> Option<Duration> {
        self.shortest_stick().map(|_| self.sweep_interval() / 2)
    }

    /// The shortest time that sources stick to their uplink, if they do.
    fn shortest_stick(&self) -> Option<Duration> {
        self.core.config().policies.iter().map(|policy| policy.sticky).filter(|time| !time.is_zero()).min()
    }

    /// The hooks in force.
    pub const fn hooks(&self) -> &Hooks {
        &self.core.config().hooks
    }

    /// Who shares the flow cache out.
    pub fn keeper(&mut self) -> Result<Keeper, DatapathError> {
        self.datapath.keeper()
    }

    /// The BPF object, for its log.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        self.datapath.ebpf()
    }
}

/// Whether there is an interface with this index.
fn exists(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

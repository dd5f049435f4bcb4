//! The probes of all uplinks: who is probed, by which way, and what follows.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{mpsc, watch};

use crate::{
    config,
    health::{Health, Monitor, Start},
    probe::{Path, Prober, Round},
};

/// Rounds that wait for the loop at the most; probers wait with further ones.
const ROUND_QUEUE: usize = 256;

/// Everything that probes.
pub struct Probes {
    running: BTreeMap<String, Running>,
    rounds: mpsc::Sender<Round>,
}

/// The probes of one uplink.
struct Running {
    config: Arc<config::Probe>,
    monitor: Monitor,
    path: watch::Sender<Option<Path>>,
    /// Probing ends with it.
    _prober: Prober,
}

impl Probes {
    /// Nobody is probed yet. The second part is where the outcomes of rounds come out.
    pub fn new() -> (Self, mpsc::Receiver<Round>) {
        let (rounds, outcomes) = mpsc::channel(ROUND_QUEUE);
        (Self { running: BTreeMap::new(), rounds }, outcomes)
    }

    /// Has an uplink probed like this; `None`: not at all. `start`: what is known of it, if it was not probed before. Returns its health, if that
    /// is news.
    pub fn configure(&mut self, uplink: &str, config: Option<&config::Probe>, start: Start) -> Option<Option<Health>> {
        let Some(config) = config else {
            return self.running.remove(uplink).map(|_| None);
        };
        let former = self.running.get(uplink);
        if former.is_some_and(|former| *former.config == *config) {
            return None;
        }
        let start = match former.map(|former| former.monitor.health().up) {
            Some(true) => Start::Up,
            Some(false) => Start::Down,
            None => start,
        };
        let (path, latest) = watch::channel(former.and_then(|former| former.path.borrow().clone()));
        let monitor = Monitor::new(config, start);
        let config = Arc::new(config.clone());
        let health = monitor.health();
        let prober = Prober::start(uplink.to_owned(), Arc::clone(&config), latest, self.rounds.clone());
        let running = Running { config, monitor, path, _prober: prober };
        self.running.insert(uplink.to_owned(), running);
        Some(Some(health))
    }

    /// Probes no uplinks but these.
    pub fn retain(&mut self, uplinks: impl Fn(&str) -> bool) {
        self.running.retain(|name, _| uplinks(name));
    }

    /// Has an uplink probed by this way; `None`: there is none.
    pub fn set_path(&self, uplink: &str, path: Option<Path>) {
        if let Some(running) = self.running.get(uplink) {
            running.path.send_if_modified(|former| {
                let changed = *former != path;
                *former = path;
                changed
            });
        }
    }

    /// Takes in a round. Returns the uplink's health after it; `None` if it is not probed any more.
    pub fn take(&mut self, round: &Round) -> Option<Health> {
        let running = self.running.get_mut(&round.uplink)?;
        // A former prober's last words may be about other targets.
        if !Arc::ptr_eq(&round.probe, &running.config) {
            return None;
        }
        running.monitor.round(&round.outcomes);
        Some(running.monitor.health())
    }
}

//! Reading the configuration anew, beside the loop: files of a hundred thousand prefixes take a while to be read and written to the maps, and an
//! uplink that fails meanwhile must not wait. What is written is not in force before the loop says so.

use std::{path::PathBuf, sync::Arc};

use tokio::{
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
};

use super::controller::Controller;
use crate::{
    config,
    control::api::{ControlError, Reloaded},
    core::{Indices, RuleTable},
    datapath::{policy::Prepared, tables::Tables},
};

/// What is to be read.
pub struct Job {
    /// The configuration file.
    pub config: PathBuf,
    /// Where everything is pinned.
    pub dir: PathBuf,
    /// The numbers that are given out.
    pub indices: Indices,
    /// The rules in force.
    pub rules: Arc<RuleTable>,
}

/// What was read.
pub struct Draft {
    /// The configuration.
    pub loaded: config::Loaded,
    /// Its rules; the very same as before, if they say the same.
    pub rules: Arc<RuleTable>,
    /// They are in the maps.
    pub prepared: Option<Prepared>,
}

impl Job {
    /// Reads it, and writes rules that are new beside those in force.
    ///
    /// # Errors
    /// If the configuration has faults, or the maps have no room. Nothing has changed then.
    pub fn run(self) -> Result<Draft, ControlError> {
        let loaded = config::load(&self.config).map_err(|error| ControlError::Invalid(one_line(&error.to_string())))?;
        let mut indices = self.indices;
        indices.assign(&loaded.config);
        let rules = RuleTable::new(&loaded.config, &indices);
        if rules == *self.rules {
            return Ok(Draft { loaded, rules: self.rules, prepared: None });
        }
        let rules = Arc::new(rules);
        let prepared = Tables::open(&self.dir).and_then(|mut tables| tables.prepare_rules(&rules));
        let prepared = prepared.map_err(|error| {
            let reason = one_line(&error.to_string());
            ControlError::Internal(format!("{reason}; the configuration that was in force stays"))
        })?;
        Ok(Draft { loaded, rules, prepared: Some(prepared) })
    }
}

/// Who asked for a reload: over the socket, or by a signal.
type Asker = Option<oneshot::Sender<Result<Reloaded, ControlError>>>;

/// Reloads, one at a time.
#[derive(Default)]
pub struct Reload {
    running: Option<JoinHandle<Result<Draft, ControlError>>>,
    /// Those for whom it runs.
    askers: Vec<Asker>,
    /// Those who have asked since it began: what it read may be older than what they mean.
    later: Vec<Asker>,
}

impl Reload {
    /// Begins to read, now or when what runs has ended.
    pub fn ask(&mut self, asker: Asker, controller: &Controller) {
        if self.running.is_some() {
            self.later.push(asker);
        } else {
            self.askers.push(asker);
            self.start(controller);
        }
    }

    fn start(&mut self, controller: &Controller) {
        let job = controller.reload_job();
        self.running = Some(spawn_blocking(move || job.run()));
    }

    /// Waits until what runs has ended; without anything that runs, for ever.
    pub async fn draft(&mut self) -> Result<Draft, ControlError> {
        match &mut self.running {
            Some(running) => running.await.unwrap_or_else(|error| {
                Err(ControlError::Internal(format!("reading the configuration failed: {error}")))
            }),
            None => std::future::pending().await,
        }
    }

    /// Tells everybody what became of it. Returns whether nobody has asked since.
    pub fn answer(&mut self, outcome: &Result<Reloaded, ControlError>, controller: &Controller) -> bool {
        self.running = None;
        for asker in self.askers.drain(..) {
            match (asker, outcome) {
                // Who asked may have gone meanwhile.
                (Some(reply), outcome) => drop(reply.send(outcome.clone())),
                (None, Ok(reloaded)) => {
                    reloaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    tracing::info!("reloaded: {} changes", reloaded.changed.len());
                }
                (None, Err(error)) => tracing::error!("reload refused, nothing changed: {error}"),
            }
        }
        self.askers = std::mem::take(&mut self.later);
        if !self.askers.is_empty() {
            self.start(controller);
        }
        self.askers.is_empty()
    }
}

/// The lines of a text, in one.
pub fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}

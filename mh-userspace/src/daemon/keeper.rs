//! When the flow cache is shared out anew.
//!
//! A thread of its own looks twice a second, since what it does may take a while, and stops with its [`CacheKeeper`].
//!
//! Failure behaviour: a look that fails is logged once, until one succeeds; without a share packets go by the conntrack.

use std::time::Duration;

use super::worker::Worker;
use crate::datapath::{cache::Keeper, flows};

/// How often it looks whether parts are full.
const INTERVAL: Duration = Duration::from_millis(500);
/// Every so many looks it counts what is in use.
const THOROUGH: u32 = 60;

/// Looks after the flow cache as long as it lives.
pub struct CacheKeeper {
    _worker: Worker,
}

impl CacheKeeper {
    /// Begins to look after it.
    pub fn new(mut keeper: Keeper) -> std::io::Result<Self> {
        let worker = Worker::begin("cache", move |stop| {
            let mut failing = false;
            for number in 0u32.. {
                match keeper.look(number % THOROUGH == THOROUGH - 1, flows::now()) {
                    Ok(changed) => {
                        failing = false;
                        if changed {
                            tracing::debug!("the flow cache is shared out anew");
                        }
                    }
                    Err(error) if !failing => {
                        failing = true;
                        tracing::warn!("{error}; packets of flows that exist may take longer");
                    }
                    Err(_) => {}
                }
                if stop.wait(INTERVAL) {
                    break;
                }
            }
        })?;
        Ok(Self { _worker: worker })
    }
}

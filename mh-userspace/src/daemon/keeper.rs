//! When the flow cache is shared out anew.
//!
//! A thread of its own looks twice a second, since what it does may take a while, and stops with its [`CacheKeeper`].
//!
//! Failure behaviour: a look that fails is logged once, until one succeeds; without a share packets go by the conntrack.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::datapath::{cache::Keeper, flows};

/// How often it looks whether parts are full.
const INTERVAL: Duration = Duration::from_millis(500);
/// Every so many looks it counts what is in use.
const THOROUGH: u32 = 60;

/// Looks after the flow cache as long as it lives.
pub struct CacheKeeper {
    /// Dropped first, which ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl CacheKeeper {
    /// Begins to look after it.
    pub fn new(mut keeper: Keeper) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let thread = thread::Builder::new().name("cache".into()).spawn(move || {
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
                if stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for CacheKeeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

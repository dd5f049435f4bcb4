//! A thread that can be told to stop, also while it rests.
//!
//! Invariant: it does not outlive its [`Worker`], whose drop tells it to stop and waits for what it has in hand.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

/// A thread at work.
pub struct Worker {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// Tells a thread to stop.
#[derive(Default)]
pub struct Stop {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for so long, or until it is told. Returns whether it is.
    pub fn wait(&self, rest: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, rest, |told| !*told);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Worker {
    /// Begins work that looks whether it is to stop.
    pub fn begin(name: &str, work: impl FnOnce(Arc<Stop>) + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let told = stop.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || work(told))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Whether the work has come to its end.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.tell();
        if let Some(thread) = self.thread.take() {
            // Its panic, if that was its end, is on stderr already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may")]

    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_rest_ends_when_the_worker_is_dropped() {
        let (ended, end) = channel();
        let worker = Worker::begin("test", move |stop| {
            assert!(stop.wait(Duration::from_secs(3600)));
            ended.send(()).unwrap();
        });
        drop(worker.unwrap());
        // Without a wait: the drop waited.
        end.try_recv().unwrap();
    }

    #[test]
    fn whoever_is_not_told_goes_on() {
        let stop = Stop::default();
        assert!(!stop.wait(Duration::ZERO));
        stop.tell();
        assert!(stop.wait(Duration::ZERO));
    }
}

//! What mhd tells the service manager (systemd's notification protocol, sd_notify(3)): ready, reloading, stopping, a status line, and that
//! its loop is alive.
//!
//! The watchdog is fed by the loop itself, at half of the time that the service manager allows: a loop that is wedged is noticed. Without a
//! service manager nothing is sent. That it can't be told is no failure of mhd's.

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service manager's side of mhd.
pub struct Supervisor {
    /// What it was told last.
    status: String,
    /// When it has to be told that the loop is alive; `None`: it does not ask.
    watchdog: Option<Interval>,
}

impl Supervisor {
    /// Learns what the service manager wants from the environment.
    pub fn new() -> Self {
        let watchdog = sd_notify::watchdog_enabled().filter(|allowed| !allowed.is_zero()).map(|allowed| {
            let mut interval = interval(allowed / 2);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Self { status: String::new(), watchdog }
    }

    /// mhd is ready, or has read its configuration again.
    pub fn ready(&mut self, status: &str) {
        status.clone_into(&mut self.status);
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The status is this; told if it is news.
    pub fn status(&mut self, status: &str) {
        if self.status != status {
            status.clone_into(&mut self.status);
            tell(&[NotifyState::Status(status)]);
        }
    }

    /// mhd reads its configuration again, and will say when it is ready.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!("the service manager is not told of the reload: {error}"),
        }
    }

    /// mhd ends.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("ending; forwarding goes on")]);
    }

    /// Ends when the service manager has to be told that the loop is alive.
    pub async fn watchdog_due(&mut self) {
        match &mut self.watchdog {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// The loop is alive.
    pub fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager is not told: {error}");
    }
}

//! When rounds begin: at fixed times, however late the one before was noticed.

use std::time::Duration;

/// The times at which rounds begin: `first + n * interval`.
///
/// A caller that is late gets one round at once and the next at its own time; rounds whose time has passed meanwhile are left out.
/// So there is no drift, and no burst after a pause.
#[derive(Debug, Clone)]
pub struct Schedule {
    next: Duration,
    interval: Duration,
}

impl Schedule {
    /// Rounds from `first` on, every `interval` (at least 1 ns).
    #[must_use]
    pub fn new(first: Duration, interval: Duration) -> Self {
        Self { next: first, interval: interval.max(Duration::from_nanos(1)) }
    }

    /// When the next round begins.
    #[must_use]
    pub fn due(&self) -> Duration {
        self.next
    }

    /// Whether a round is due at `now`; if so, the next one is the first after `now`.
    pub fn take(&mut self, now: Duration) -> bool {
        if now < self.next {
            return false;
        }
        let interval = self.interval.as_nanos();
        let passed = (now - self.next).as_nanos() % interval;
        // Less than an interval, which is at most an hour.
        let rest = u64::try_from(interval - passed).unwrap_or(u64::MAX);
        self.next = now.saturating_add(Duration::from_nanos(rest));
        true
    }
}

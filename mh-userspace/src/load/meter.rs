//! From byte counters to smoothed rates.

use std::{collections::BTreeMap, time::Duration};

/// The time constant of the smoothing: a change shows to 63% after this time.
pub const TIME_CONSTANT: Duration = Duration::from_secs(8);

/// Counters are not looked at more often than this.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// What an uplink carries, in bits per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// From the uplink.
    pub down: f64,
    /// To the uplink.
    pub up: f64,
}

/// The rates of uplinks, by name. Times are since an arbitrary start.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    uplinks: BTreeMap<String, Measured>,
}

/// An uplink's counters when they were last looked at, and its rates.
#[derive(Debug, Clone)]
struct Measured {
    since: Duration,
    at: Duration,
    tx_bytes: u64,
    rx_bytes: u64,
    rates: Rates,
}

impl Meter {
    /// Takes an uplink's counters as of `now`. The first call for an uplink notes them only. If one runs backwards, counting has begun anew:
    /// the rates stay until the next call.
    pub fn count(&mut self, uplink: &str, now: Duration, tx_bytes: u64, rx_bytes: u64) {
        let Some(measured) = self.uplinks.get_mut(uplink) else {
            let measured = Measured { since: now, at: now, tx_bytes, rx_bytes, rates: Rates::default() };
            self.uplinks.insert(uplink.to_owned(), measured);
            return;
        };
        measured.count(now, tx_bytes, rx_bytes);
    }

    /// What an uplink carries; zero if that is not known yet.
    #[must_use]
    pub fn rates(&self, uplink: &str) -> Rates {
        self.uplinks.get(uplink).map_or_else(Rates::default, |measured| measured.rates)
    }

    /// Forgets uplinks that are not known any more.
    pub fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        self.uplinks.retain(|name, _| is_known(name));
    }
}

impl Measured {
    fn count(&mut self, now: Duration, tx_bytes: u64, rx_bytes: u64) {
        let interval = now.saturating_sub(self.at);
        let deltas = tx_bytes.checked_sub(self.tx_bytes).zip(rx_bytes.checked_sub(self.rx_bytes));
        if deltas.is_some() && interval < LEAST_INTERVAL {
            return;
        }
        (self.at, self.tx_bytes, self.rx_bytes) = (now, tx_bytes, rx_bytes);
        let Some((tx, rx)) = deltas else {
            self.since = now;
            return;
        };
        let seconds = interval.as_secs_f64();
        let smoothing = 1.0 - (-seconds / TIME_CONSTANT.as_secs_f64()).exp();
        // At first all that was seen counts equally: nothing says that the rate was zero before.
        let known = now.saturating_sub(self.since).as_secs_f64();
        let weight = smoothing.max(seconds / known);
        self.rates.up += weight * (tx as f64 * 8.0 / seconds - self.rates.up);
        self.rates.down += weight * (rx as f64 * 8.0 / seconds - self.rates.down);
    }
}

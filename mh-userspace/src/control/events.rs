//! The events that mhd keeps and tells: a bounded history, and followers of it.
//!
//! Invariants: writing never waits for a reader. The history holds the latest [`HISTORY`] events, whether anybody reads them or not.
//! A [`Follower`] reads the history at its own pace; one that falls behind further than the history reaches is told how many events
//! it missed, and goes on with the oldest that is kept. Nothing is stored per follower, and there are [`MAX_FOLLOWERS`] at most.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::api::{ControlError, Event, EventKind};
use crate::core::Change;

/// How many events are kept.
pub const HISTORY: usize = 1024;
/// How many clients may follow at a time.
pub const MAX_FOLLOWERS: usize = 16;
/// How many events a follower is given at a time.
const CHUNK: usize = 64;

/// What happened, before it has a number and a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    kind: EventKind,
    change: Option<Change>,
    text: String,
}

impl Happening {
    /// Something that is not about one uplink.
    pub fn new(kind: EventKind, text: impl Into<String>) -> Self {
        Self { kind, change: None, text: text.into() }
    }
}

impl From<Change> for Happening {
    fn from(change: Change) -> Self {
        Self { kind: EventKind::Uplink, text: change.reason.clone(), change: Some(change) }
    }
}

/// The latest events, the oldest first.
#[derive(Debug)]
struct History {
    events: VecDeque<Event>,
    /// The number of the latest event; zero before the first.
    latest: u64,
}

impl History {
    fn push(&mut self, happening: Happening, now: Duration) -> u64 {
        self.latest += 1;
        if self.events.len() >= HISTORY {
            self.events.pop_front();
        }
        let Happening { kind, change, text } = happening;
        let (uplink, interface, previous_state, state) = match change {
            Some(change) => (Some(change.uplink), Some(change.interface), change.previous, change.state),
            None => (None, None, None, None),
        };
        self.events.push_back(Event {
            seq: self.latest,
            time: rfc3339(now),
            time_s: seconds(now),
            kind,
            uplink,
            interface,
            previous_state,
            state,
            reason: text,
        });
        self.latest
    }

    /// At most `limit` events after number `after`, and before them a note if some are not kept any more. A number that was not
    /// given out yet is of a former mhd: all events are newer.
    fn after(&self, after: u64, limit: usize, now: Duration) -> Vec<Event> {
        let after = if after > self.latest { 0 } else { after };
        let Some(oldest) = self.events.front().map(|event| event.seq) else { return Vec::new() };
        let missed = oldest.saturating_sub(after + 1);
        let note = (missed > 0).then(|| Event {
            seq: oldest - 1,
            time: rfc3339(now),
            time_s: seconds(now),
            kind: EventKind::Skipped,
            uplink: None,
            interface: None,
            previous_state: None,
            state: None,
            reason: format!("{missed} events before this are not kept any more"),
        });
        note.into_iter().chain(self.events.iter().filter(|event| event.seq > after).take(limit).cloned()).collect()
    }
}

/// How far the history goes, for those who wait.
#[derive(Debug, Clone, Copy)]
struct Latest {
    seq: u64,
    /// Nothing follows.
    closed: bool,
}

/// The events of a running mhd. Clones are the same log.
#[derive(Debug, Clone)]
pub struct EventLog {
    history: Arc<Mutex<History>>,
    latest: Arc<watch::Sender<Latest>>,
    places: Arc<Semaphore>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            history: Arc::new(Mutex::new(History { events: VecDeque::new(), latest: 0 })),
            latest: Arc::new(watch::Sender::new(Latest { seq: 0, closed: false })),
            places: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
        }
    }
}

impl EventLog {
    /// Keeps an event and wakes the followers.
    pub fn push(&self, happening: impl Into<Happening>) {
        let seq = self.history().push(happening.into(), now());
        self.latest.send_modify(|latest| latest.seq = seq);
    }

    /// Keeps something that the user should know, and writes it to mhd's own log.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::warn!("{text}");
        self.push(Happening::new(EventKind::Warning, text));
    }

    /// Nothing follows: followers end when they have been given all that is there.
    pub fn close(&self) {
        self.latest.send_modify(|latest| latest.closed = true);
    }

    /// The events that are kept; with `since`, only those after that number.
    pub fn list(&self, since: Option<u64>) -> Vec<Event> {
        let history = self.history();
        match since {
            Some(since) => history.after(since, HISTORY, now()),
            None => history.events.iter().cloned().collect(),
        }
    }

    /// Begins to follow: with all events that are kept, or with those after number `since`.
    pub fn follow(&self, since: Option<u64>) -> Result<Follower, ControlError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            ControlError::Conflict(format!("{MAX_FOLLOWERS} clients follow the events already; end one of them"))
        })?;
        Ok(self.follower(since, Some(place)))
    }

    /// Follows from within mhd: takes no client's place.
    pub fn follow_inside(&self) -> Follower {
        self.follower(None, None)
    }

    fn follower(&self, since: Option<u64>, place: Option<OwnedSemaphorePermit>) -> Follower {
        let history = self.history();
        let oldest = history.events.front().map_or(1, |event| event.seq);
        let after = since.map_or(oldest - 1, |since| if since > history.latest { 0 } else { since });
        drop(history);
        Follower { log: self.clone(), latest: self.latest.subscribe(), after, _place: place }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        // Whoever panicked with the lock left whole events.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who is told of events as they happen.
#[derive(Debug)]
pub struct Follower {
    log: EventLog,
    latest: watch::Receiver<Latest>,
    after: u64,
    _place: Option<OwnedSemaphorePermit>,
}

impl Follower {
    /// The next events, at least one; `None` if there will be none any more. Dropped while waiting, it loses none.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        let after = self.after;
        // The log holds the sender, so waiting can't fail.
        let closed = self.latest.wait_for(|latest| latest.seq > after || latest.closed).await.is_ok_and(|l| l.closed);
        let events = self.log.history().after(self.after, CHUNK, now());
        match events.last() {
            Some(last) if last.seq > self.after => self.after = last.seq,
            _ if closed => return None,
            _ => {}
        }
        Some(events)
    }
}

/// The time since 1970; zero if the clock is before that.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit into 53 bits")]
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1e3
}

/// A time since 1970 as RFC 3339 has it, in UTC, to the millisecond.
fn rfc3339(time: Duration) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(n: usize) -> Happening {
        Happening::new(EventKind::Warning, format!("warning {n}"))
    }

    fn numbers(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn times_are_in_utc_and_have_milliseconds() {
        assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Duration::from_millis(1_709_251_199_034)), "2024-02-29T23:59:59.034Z");
    }

    #[test]
    fn the_history_is_bounded_and_says_what_it_dropped() {
        let log = EventLog::default();
        assert_eq!(log.list(None), []);
        (0..HISTORY + 10).for_each(|n| log.push(warning(n)));
        let all = log.list(None);
        assert_eq!((all.len(), all[0].seq), (HISTORY, 11));
        let latest = all.last().unwrap().seq;
        assert_eq!(numbers(&log.list(Some(latest - 2))), [latest - 1, latest]);
        assert_eq!(log.list(Some(latest)), []);
        let after_a_gap = log.list(Some(4));
        assert_eq!(after_a_gap[0].kind, EventKind::Skipped);
        assert!(after_a_gap[0].reason.starts_with("6 events"), "{:?}", after_a_gap[0]);
        assert_eq!(numbers(&after_a_gap[1..]), numbers(&all));
        // A number of a former mhd.
        assert_eq!(log.list(Some(latest + 100)).len(), HISTORY + 1);
    }

    #[tokio::test]
    async fn a_follower_is_given_what_was_and_what_comes() {
        let log = EventLog::default();
        log.push(warning(1));
        let mut follower = log.follow(None).unwrap();
        assert_eq!(numbers(&follower.next().await.unwrap()), [1]);
        assert!(futures::FutureExt::now_or_never(follower.next()).is_none(), "nothing has happened");
        log.push(Change {
            uplink: "isp1".to_owned(),
            interface: "wan1".to_owned(),
            previous: None,
            state: None,
            reason: "why".to_owned(),
        });
        let events = follower.next().await.unwrap();
        assert_eq!(numbers(&events), [2]);
        assert_eq!((events[0].uplink.as_deref(), events[0].reason.as_str()), (Some("isp1"), "why"));
        log.push(warning(3));
        log.close();
        assert_eq!(numbers(&follower.next().await.unwrap()), [3]);
        assert_eq!(follower.next().await, None);
        let mut late = log.follow(Some(2)).unwrap();
        assert_eq!(numbers(&late.next().await.unwrap()), [3]);
        assert_eq!(late.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_follower_holds_up_nobody_and_is_told() {
        let log = EventLog::default();
        log.push(warning(0));
        let mut follower = log.follow(None).unwrap();
        follower.next().await.unwrap();
        (0..3 * HISTORY).for_each(|n| log.push(warning(n)));
        let events = follower.next().await.unwrap();
        assert_eq!(events[0].kind, EventKind::Skipped);
        assert!(events[0].reason.starts_with(&format!("{} events", 2 * HISTORY)), "{}", events[0].reason);
        assert_eq!(events.len(), 1 + CHUNK);
        let mut seen = events.len() - 1;
        while seen < HISTORY {
            let more = follower.next().await.unwrap();
            assert!(more.iter().all(|event| event.kind == EventKind::Warning), "told once");
            seen += more.len();
        }
        assert_eq!(seen, HISTORY);
    }

    #[test]
    fn followers_are_bounded() {
        let log = EventLog::default();
        let mut followers: Vec<_> = (0..MAX_FOLLOWERS).map(|_| log.follow(None).unwrap()).collect();
        assert!(matches!(log.follow(None), Err(ControlError::Conflict(_))));
        let _inside = log.follow_inside();
        followers.pop();
        log.follow(None).unwrap();
    }
}

//! How long new connections go unanswered when an uplink is cut.
//!
//! A client begins a short connection every two milliseconds, before the cut and after it, whatever came of the ones before.
//! With nearly all weight on the uplink that is cut, the first connection begun after the cut and answered through another one
//! tells how long it took until new flows go elsewhere; the last that was begun and never answered, from when on all is well.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::lab::Host;
use crate::lab::traffic::TcpFlow;

/// Between the beginnings of two connections.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long is tried before the cut.
const BEFORE: Duration = Duration::from_millis(300);
/// How long is tried after the cut.
const AFTER: Duration = Duration::from_millis(1500);
/// An answer that takes longer is none: shorter than a SYN's retransmission, which would go the new way.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// A short connection.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    begun: Instant,
    answered: Option<(Instant, SocketAddrV4)>,
}

/// What was measured; times count from right before the cut was ordered.
#[derive(Clone, Debug)]
pub(super) struct Failover {
    /// Connections begun before the cut, and how many of them went through the uplink that was cut.
    pub(super) before: (usize, usize),
    /// Connections begun after the cut, and how many of them were never answered.
    pub(super) after: (usize, usize),
    /// When the first connection that was begun after the cut, and went elsewhere, had its answer.
    pub(super) first_answer: Duration,
    /// When the last connection that was never answered was begun; zero if all were answered.
    pub(super) last_unanswered: Duration,
}

/// Measures it: `cut` cuts the uplink whose outside address is `source`.
pub(super) fn measure(
    client: &Host,
    to: SocketAddrV4,
    source: Ipv4Addr,
    cut: impl FnOnce() -> Result<()> + Send,
) -> Result<Failover> {
    let attempts = Mutex::new(Vec::new());
    let begun = Instant::now();
    let cut_at = thread::scope(|scope| -> Result<Instant> {
        let cutter = scope.spawn(|| {
            // Let connections flow first; what is measured begins here.
            thread::sleep(BEFORE);
            let now = Instant::now();
            cut().map(|()| now)
        });
        client.enter(|| {
            // Threads begun in here are in the client's namespace, too.
            thread::scope(|scope| {
                let mut next = begun;
                while next < begun + BEFORE + AFTER {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += INTERVAL;
                    scope.spawn(|| {
                        let begun = Instant::now();
                        let flow = TcpFlow::connect_here(to, ANSWER_TIMEOUT).ok();
                        let answered = flow.map(|flow| (Instant::now(), flow.seen));
                        if let Ok(mut attempts) = attempts.lock() {
                            attempts.push(Attempt { begun, answered });
                        }
                    });
                }
            });
        })?;
        cutter.join().map_err(|_| anyhow::anyhow!("the cutting thread panicked"))?
    })?;
    let attempts = attempts.into_inner().context("attempts")?;
    evaluate(&attempts, cut_at, source)
}

fn evaluate(attempts: &[Attempt], cut_at: Instant, source: Ipv4Addr) -> Result<Failover> {
    let (before, after): (Vec<&Attempt>, Vec<&Attempt>) = attempts.iter().partition(|attempt| attempt.begun < cut_at);
    let through = |attempt: &&&Attempt| attempt.answered.is_some_and(|(_, seen)| *seen.ip() == source);
    // The order to cut takes some milliseconds to carry out: what still went through says nothing.
    let elsewhere = |(at, seen): (Instant, SocketAddrV4)| (*seen.ip() != source).then_some(at);
    let first = after.iter().filter_map(|attempt| attempt.answered.and_then(elsewhere)).min();
    let unanswered = || after.iter().filter(|attempt| attempt.answered.is_none());
    let last = unanswered().map(|attempt| attempt.begun).max();
    ensure!(!before.is_empty() && !after.is_empty(), "no connections were tried");
    Ok(Failover {
        before: (before.len(), before.iter().filter(through).count()),
        after: (after.len(), unanswered().count()),
        first_answer: first.context("no connection begun after the cut was answered through another uplink")? - cut_at,
        last_unanswered: last.map_or(Duration::ZERO, |last| last - cut_at),
    })
}

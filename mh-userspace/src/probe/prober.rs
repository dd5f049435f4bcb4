//! The task that asks an uplink's targets.

use std::future::pending;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::icmp::{Pinger, Request};
use super::rounds::Rounds;
use super::tls::Tls;
use super::{Path, Round, dns, http, socket};
use crate::config::{Check, Probe};
use crate::health::{Failure, Outcome, Schedule};

/// The first rounds of uplinks that start together are spread over this long, or an interval.
const MAX_STAGGER: Duration = Duration::from_millis(100);

/// A running prober. It ends when this is dropped, with all its sockets.
#[derive(Debug)]
pub struct Prober {
    task: JoinHandle<()>,
}

impl Prober {
    /// Starts probing in the runtime that this is called in.
    ///
    /// While `path` has none, there are no rounds. When it changes, rounds that are not over are dropped, and sockets are opened anew. The prober also ends when the other end of `path` or `rounds` is gone.
    #[must_use]
    pub fn start(
        uplink: String,
        probe: impl Into<Arc<Probe>>,
        path: watch::Receiver<Option<Path>>,
        rounds: mpsc::Sender<Round>,
    ) -> Self {
        Self { task: tokio::spawn(Task::new(uplink, probe.into(), path).run(rounds)) }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The state of the task. Times are since `begun`.
struct Task {
    uplink: String,
    probe: Arc<Probe>,
    follow: watch::Receiver<Option<Path>>,
    path: Option<Arc<Path>>,
    begun: Instant,
    schedule: Schedule,
    rounds: Rounds,
    /// Of all targets but those that are pinged: round, target and outcome.
    asking: JoinSet<(u64, usize, Outcome)>,
    pinger: Option<Pinger>,
    tls: Arc<Tls>,
}

impl Task {
    fn new(uplink: String, probe: Arc<Probe>, mut follow: watch::Receiver<Option<Path>>) -> Self {
        let path = follow.borrow_and_update().clone().map(Arc::new);
        let tls = Arc::<Tls>::default();
        if probe.targets.iter().any(|target| matches!(target.check(), Check::Http(http) if http.tls)) {
            // Begun here, since a probe that reads certificates for longer than its timeout would begin anew each time.
            let tls = Arc::clone(&tls);
            tokio::spawn(async move { tls.config().await.map(drop) });
        }
        Self {
            schedule: Schedule::new(stagger(&uplink, probe.interval), probe.interval),
            rounds: Rounds::new(probe.targets.len()),
            uplink,
            probe,
            follow,
            path,
            begun: Instant::now(),
            asking: JoinSet::new(),
            pinger: None,
            tls,
        }
    }

    /// Waits for whatever comes first, and then looks at everything, so that nothing that comes often keeps the rest from its turn.
    async fn run(mut self, reports: mpsc::Sender<Round>) {
        loop {
            let due = self.schedule.due();
            let wake = self.begun + self.rounds.deadline().map_or(due, |deadline| deadline.min(due));
            tokio::select! {
                changed = self.follow.changed() => match changed {
                    Ok(()) => self.take_path(),
                    Err(_) => return,
                },
                permit = reports.reserve(), if self.rounds.is_ready() => match permit {
                    Ok(permit) => if let Some(outcomes) = self.rounds.take() {
                        permit.send(Round { uplink: self.uplink.clone(), probe: Arc::clone(&self.probe), outcomes });
                    },
                    Err(_) => return,
                },
                Some(done) = self.asking.join_next() => if let Ok((round, target, outcome)) = done {
                    self.rounds.set(round, target, outcome);
                },
                _ = readable(self.pinger.as_ref()) => {}
                () = sleep_until(wake) => {}
            }
            self.look();
        }
    }

    fn look(&mut self) {
        // What was answered in time counts, also if this comes late to see it.
        while let Some(done) = self.asking.try_join_next() {
            if let Ok((round, target, outcome)) = done {
                self.rounds.set(round, target, outcome);
            }
        }
        self.receive();
        let now = self.begun.elapsed();
        self.rounds.expire(now);
        if self.schedule.take(now) {
            self.begin_round(now);
        }
    }

    fn take_path(&mut self) {
        let path = self.follow.borrow_and_update().clone();
        if path.as_ref() == self.path.as_deref() {
            return;
        }
        self.path = path.map(Arc::new);
        self.rounds.clear();
        self.asking = JoinSet::new();
        self.pinger = None;
    }

    fn receive(&mut self) {
        let Some(pinger) = &mut self.pinger else { return };
        let (now, rounds, timeout) = (self.begun.elapsed(), &mut self.rounds, self.probe.timeout);
        let received = pinger.receive(|request| {
            // Read late is not answered late.
            let rtt = now.saturating_sub(request.sent).min(timeout);
            rounds.set(request.round, request.target, Outcome::Answered(rtt));
        });
        if let Err(error) = received {
            tracing::debug!(uplink = self.uplink, %error, "ICMP socket ended");
            self.pinger = None;
        }
    }

    fn begin_round(&mut self, now: Duration) {
        // Without a way there is nothing to find out.
        let Some(path) = self.path.clone() else { return };
        let round = self.rounds.begin(now + self.probe.timeout);
        if let Some(pinger) = &mut self.pinger {
            pinger.forget_before(now.saturating_sub(self.probe.timeout));
        }
        let probe = Arc::clone(&self.probe);
        let mut no_socket: Option<Failure> = None;
        for (index, target) in probe.targets.iter().enumerate() {
            let Check::Icmp { address } = *target.check() else {
                let (path, probe, tls) = (Arc::clone(&path), Arc::clone(&probe), Arc::clone(&self.tls));
                self.asking.spawn(async move { (round, index, ask(&path, &probe, index, &tls).await) });
                continue;
            };
            let sent = match no_socket.clone() {
                Some(failure) => Err(failure),
                None => {
                    let request = Request { round, target: index, address, sent: self.begun.elapsed() };
                    self.ping(&path, request).map_err(|error| socket::failure(&error))
                }
            };
            if let Err(failure) = sent {
                if self.pinger.is_none() {
                    no_socket = Some(failure.clone());
                }
                self.rounds.set(round, index, Outcome::Failed(failure));
            }
        }
    }

    /// Sends an echo request, by a new socket if the one that there is has lost its interface.
    fn ping(&mut self, path: &Path, request: Request) -> io::Result<()> {
        if let Some(pinger) = &mut self.pinger {
            match pinger.send(request) {
                Err(_) if !pinger.is_on(path) => self.pinger = None,
                sent => return sent,
            }
        }
        self.pinger.insert(Pinger::open(path)?).send(request)
    }
}

/// Waits until there may be replies, for ever without a socket.
async fn readable(pinger: Option<&Pinger>) -> io::Result<()> {
    match pinger {
        Some(pinger) => pinger.readable().await,
        None => pending().await,
    }
}

/// Asks a target that is not pinged; at most for the timeout.
async fn ask(path: &Path, probe: &Probe, target: usize, tls: &Tls) -> Outcome {
    let begun = Instant::now();
    let asked = async {
        match probe.targets.get(target).map(|target| target.check()) {
            Some(Check::Tcp { address, port }) => {
                socket::connect(path, *address, *port).await.map(drop).map_err(|error| socket::failure(&error))
            }
            Some(Check::Http(http)) => http::get(path, http, tls).await,
            Some(Check::Dns { address, port, name }) => dns::ask(path, *address, *port, name).await,
            // Pinged by the task itself.
            Some(Check::Icmp { .. }) | None => pending().await,
        }
    };
    match timeout_at(begun + probe.timeout, asked).await {
        Ok(Ok(())) => Outcome::Answered(begun.elapsed().min(probe.timeout)),
        Ok(Err(failure)) => Outcome::Failed(failure),
        Err(_) => Outcome::Failed(Failure::Timeout),
    }
}

/// When the first round of an uplink begins: uplinks differ, so that not all of them probe in the same moment.
fn stagger(uplink: &str, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    uplink.hash(&mut hasher);
    let most = interval.min(MAX_STAGGER);
    most.mul_f64((hasher.finish() >> 32) as f64 / f64::from(u32::MAX))
}

//! One failure, measured: new flows at a constant rate, and a client that asks again and again over TCP.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use mh_tests::lab::traffic::TcpFlow;
use mh_tests::lab::{SERVER, TwoIsps, wait_until};

/// Where the server counts new flows.
const COUNTER: SocketAddrV4 = SocketAddrV4::new(SERVER, 7100);
/// The source ports of new flows, one after the other.
const PORTS: std::ops::Range<u16> = 20_000..60_000;
/// How long all is well before the cut, at the least; and how much longer in each round than in the one before, up to the longest interval of
/// probes: so that cuts come at all times between two probes.
const BEFORE: Duration = Duration::from_millis(300);
const STEP: Duration = Duration::from_millis(25);
const STEPS: u32 = 20;
/// How long is measured after all is well again.
const AFTER: Duration = Duration::from_millis(200);
/// When a round is given up.
const GIVE_UP: Duration = Duration::from_secs(30);
/// So many new flows in a row have to come by the other ISP: one alone may have gone there anyway.
const IN_A_ROW: usize = 5;
/// How long the TCP client waits for an answer before it connects anew by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between an answer and the next question.
const THINKING: Duration = Duration::from_millis(2);

/// How isp1 fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its link has no carrier.
    Carrier,
    /// It forwards nothing any more.
    BlackHole,
}

impl Cut {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Carrier => "carrier lost",
            Self::BlackHole => "black hole",
        }
    }

    /// Between two new flows. What takes longer is measured with fewer.
    const fn interval(self) -> Duration {
        match self {
            Self::Carrier => Duration::from_micros(500),
            Self::BlackHole => Duration::from_millis(2),
        }
    }

    fn make(self, lab: &TwoIsps) -> Result<()> {
        self.set(lab, false)
    }

    /// Undoes it.
    pub fn mend(self, lab: &TwoIsps) -> Result<()> {
        self.set(lab, true)
    }

    fn set(self, lab: &TwoIsps, well: bool) -> Result<()> {
        let isp = &lab.uplink(0)?.isp;
        match self {
            Self::Carrier => isp.set_link("eth0", well),
            // Where forwarding is off, the kernel may answer with ICMP; this says nothing.
            Self::BlackHole if well => isp.nft("delete table ip hole"),
            Self::BlackHole => isp.nft(
                "table ip hole {\n  chain forward {\n    type filter hook forward priority -300;\n    drop\n  }\n}\n",
            ),
        }
    }
}

/// The next source port, over all rounds.
#[derive(Debug)]
pub struct Sources(u16);

impl Sources {
    /// From the first on.
    pub const fn new() -> Self {
        Self(PORTS.start)
    }

    const fn next(&mut self) -> u16 {
        let port = self.0;
        self.0 = if port + 1 < PORTS.end { port + 1 } else { PORTS.start };
        port
    }
}

/// How long things took from right before the cut.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Until the first new flow arrived by the other ISP.
    pub first_packet: Duration,
    /// Until the last new flow that got lost was begun; zero if none was.
    pub last_lost: Duration,
    /// Until the TCP client had an answer over a new connection.
    pub served: Duration,
}

/// A new flow: when it was begun, and, if it arrived, by which source address and when.
#[derive(Clone, Copy, Debug)]
struct Flow {
    begun: Instant,
    arrived: Option<(Ipv4Addr, Instant)>,
}

/// What the threads of a round share.
struct Shared {
    flows: Mutex<Vec<Flow>>,
    /// Answers over each connection: its number, and when.
    answers: Mutex<Vec<(usize, Instant)>>,
    /// No more flows are begun.
    enough: AtomicBool,
    stop: AtomicBool,
}

/// Measures one failure, the `number`th. Afterwards isp1 is still cut.
pub fn measure(lab: &TwoIsps, tcp: SocketAddrV4, cut: Cut, number: u32, sources: &mut Sources) -> Result<Times> {
    let before = BEFORE + STEP * (number % STEPS);
    let shared = Shared {
        flows: Mutex::default(),
        answers: Mutex::default(),
        enough: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    };
    let counter = lab.server.enter(|| UdpSocket::bind(COUNTER))?.context("bind the counter")?;
    counter.set_read_timeout(Some(Duration::from_millis(50)))?;
    let other = lab.uplink(1)?.address;
    let cut_at = thread::scope(|scope| -> Result<Instant> {
        let shared = &shared;
        let counting = scope.spawn(move || count(&counter, shared));
        let sending = scope.spawn(move || lab.client1.enter(|| send(shared, cut.interval(), sources))?);
        let asking = scope.spawn(move || lab.client1.enter(|| ask(shared, tcp))?);
        let outcome = (|| {
            wait_until("the first answers", GIVE_UP, || Ok(answers(shared)?.len() > 10))?;
            let begun = Instant::now();
            wait_until("the time of the cut", GIVE_UP, || Ok(begun.elapsed() >= before))?;
            let cut_at = Instant::now();
            cut.make(lab)?;
            wait_until("flows by the other ISP", GIVE_UP, || {
                Ok(first_packet(&flows(shared)?, cut_at, other).is_some())
            })?;
            let begun = Instant::now();
            wait_until("the end", GIVE_UP, || Ok(begun.elapsed() >= AFTER))?;
            shared.enough.store(true, Ordering::Relaxed);
            wait_until("an answer over a new connection", GIVE_UP, || Ok(served(&answers(shared)?, cut_at).is_some()))?;
            anyhow::Ok(cut_at)
        })();
        shared.stop.store(true, Ordering::Relaxed);
        for (what, thread) in [("sending", sending), ("asking", asking)] {
            let ended = thread.join().map_err(|_| anyhow!("the thread that was {what} panicked"))?;
            ended.context(what)?;
        }
        counting.join().map_err(|_| anyhow!("the counting thread panicked"))??;
        outcome
    })?;
    let (flows, answers) = (flows(&shared)?, answers(&shared)?);
    let all_well = flows.iter().filter(|flow| flow.begun < cut_at);
    let lost_before = all_well.clone().filter(|flow| flow.arrived.is_none()).count();
    // The last ones before the cut may be on their way.
    ensure!(lost_before * 10 < all_well.count(), "{lost_before} new flows were lost before the cut");
    // What was sent in the last moments has not arrived yet.
    let end = flows.last().context("no flows")?.begun - AFTER / 2;
    let lost = flows.iter().filter(|flow| flow.begun >= cut_at && flow.begun < end && flow.arrived.is_none());
    Ok(Times {
        first_packet: first_packet(&flows, cut_at, other).context("no flow by the other ISP")? - cut_at,
        last_lost: lost.map(|flow| flow.begun - cut_at).max().unwrap_or_default(),
        served: served(&answers, cut_at).context("no answer")? - cut_at,
    })
}

fn flows(shared: &Shared) -> Result<Vec<Flow>> {
    Ok(shared.flows.lock().map_err(|_| anyhow!("a thread panicked"))?.clone())
}

fn answers(shared: &Shared) -> Result<Vec<(usize, Instant)>> {
    Ok(shared.answers.lock().map_err(|_| anyhow!("a thread panicked"))?.clone())
}

/// When the first of some flows in a row that were begun after the cut arrived by the other ISP.
fn first_packet(flows: &[Flow], cut_at: Instant, other: Ipv4Addr) -> Option<Instant> {
    let after: Vec<&Flow> = flows.iter().filter(|flow| flow.begun >= cut_at).collect();
    let by_other = |flow: &&Flow| flow.arrived.is_some_and(|(source, _)| source == other);
    let row = after.windows(IN_A_ROW).find(|row| row.iter().all(by_other))?;
    row.first()?.arrived.map(|(_, at)| at)
}

/// When the first answer came over a connection that was not there at the cut.
fn served(answers: &[(usize, Instant)], cut_at: Instant) -> Option<Instant> {
    let last_before = answers.iter().filter(|(_, at)| *at < cut_at).map(|(number, _)| *number).max()?;
    answers.iter().find(|(number, at)| *number > last_before && *at >= cut_at).map(|(_, at)| *at)
}

/// Begins a flow at each interval, from a port of its own.
fn send(shared: &Shared, interval: Duration, sources: &mut Sources) -> Result<()> {
    let mut next = Instant::now();
    while !shared.enough.load(Ordering::Relaxed) && !shared.stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next += interval;
        let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, sources.next())) else { continue };
        let number = {
            let mut flows = shared.flows.lock().map_err(|_| anyhow!("a thread panicked"))?;
            flows.push(Flow { begun: Instant::now(), arrived: None });
            flows.len() - 1
        };
        // An error that came back for an earlier one is no fault.
        let _ = socket.send_to(&number.to_be_bytes(), COUNTER);
    }
    Ok(())
}

/// Notes which flows arrive.
fn count(counter: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut buffer = [0; size_of::<usize>()];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((length, SocketAddr::V4(source))) = counter.recv_from(&mut buffer) else { continue };
        let now = Instant::now();
        let mut flows = shared.flows.lock().map_err(|_| anyhow!("a thread panicked"))?;
        if length == buffer.len()
            && let Some(flow) = flows.get_mut(usize::from_be_bytes(buffer))
        {
            flow.arrived.get_or_insert((*source.ip(), now));
        }
    }
    Ok(())
}

/// Asks again and again over one connection, and connects anew when that fails.
fn ask(shared: &Shared, to: SocketAddrV4) -> Result<()> {
    let stopped = || shared.stop.load(Ordering::Relaxed);
    let mut number = 0;
    while !stopped() {
        number += 1;
        let Ok(mut flow) = TcpFlow::connect_here(to, PATIENCE) else { continue };
        while !stopped() && flow.echo().is_ok() {
            shared.answers.lock().map_err(|_| anyhow!("a thread panicked"))?.push((number, Instant::now()));
            thread::sleep(THINKING);
        }
    }
    Ok(())
}

//! A UDP flow that carries a steady rate one way: load for what measures it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Direction;
use super::udp::bind;
use crate::lab::Host;

/// What a datagram carries, and how long its IP packet is.
const PAYLOAD_BYTES: usize = 1372;
const PACKET_BYTES: u64 = 1400;
/// How often datagrams are sent.
const TICK: Duration = Duration::from_millis(5);
/// A sender that was kept from running makes up for so much time and no more: what it sends at once stays small.
const MOST_OWED: Duration = Duration::from_millis(200);
/// How often the flow is begun, and how long an answer is waited for each time.
const TRIES: u32 = 20;
const TRY_TIMEOUT: Duration = Duration::from_millis(300);

/// An established UDP flow between a client and the internet host that carries a rate until it is dropped.
///
/// The far end reads nothing: the kernel throws away what its socket has no room for, and no processor time is spent on it.
#[derive(Debug)]
pub struct PacedFlow {
    /// The client's address and port as the server saw them.
    pub seen: SocketAddrV4,
    begun: Instant,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Open as long as the flow lives, or ICMP errors would come back.
    _receiver: UdpSocket,
}

impl PacedFlow {
    /// Opens a flow from `client` to a port of its own on `server`, and sends `bps` bits per second that way, IP headers counted.
    ///
    /// # Errors
    /// If `server` doesn't have the address, or nothing comes through.
    pub fn start(client: &Host, server: &Host, address: Ipv4Addr, direction: Direction, bps: f64) -> Result<Self> {
        let far = server.enter(|| bind(SocketAddrV4::new(address, 0)))?;
        let far = far.with_context(|| format!("{}: bind {address}", server.name()))?;
        let SocketAddr::V4(to) = far.local_addr()? else { bail!("no IPv4 socket") };
        let near = client.enter(|| {
            let socket = bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            std::io::Result::Ok(socket)
        })?;
        let near = near.with_context(|| format!("{} to udp {to}", client.name()))?;
        let seen = greet(&near, &far).with_context(|| format!("{} to udp {to}", client.name()))?;
        far.connect(seen)?;
        let (sender, receiver) = match direction {
            Direction::Upload => (near, far),
            Direction::Download => (far, near),
        };
        let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (sent, told, begun) = (Arc::clone(&bytes), Arc::clone(&stop), Instant::now());
        let send = move || send_until(&told, &sender, bps, &sent);
        let thread = Some(thread::Builder::new().name("paced flow".into()).spawn(send)?);
        Ok(Self { seen, begun, bytes, stop, thread, _receiver: receiver })
    }

    /// What it has carried since its start, in bits per second: less than was asked for where the machine has no time for it.
    #[must_use]
    pub fn bps(&self) -> f64 {
        self.bytes.load(Ordering::Relaxed) as f64 * 8.0 / self.begun.elapsed().as_secs_f64()
    }
}

impl Drop for PacedFlow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nothing to do about a panic in there.
            let _ = thread.join();
        }
    }
}

/// A datagram each way; gives the client as the server saw it.
fn greet(near: &UdpSocket, far: &UdpSocket) -> Result<SocketAddrV4> {
    near.set_read_timeout(Some(TRY_TIMEOUT))?;
    far.set_read_timeout(Some(TRY_TIMEOUT))?;
    for _ in 0..TRIES {
        // An error that came back for an earlier try is told once: the next one decides.
        let _ = near.send(b"?");
        let Ok((_, SocketAddr::V4(peer))) = far.recv_from(&mut [0; 1]) else { continue };
        far.send_to(b"!", peer).context("answer")?;
        if near.recv(&mut [0; 1]).is_ok() {
            return Ok(peer);
        }
    }
    bail!("no answer to {TRIES} datagrams")
}

/// Sends datagrams at a rate, and counts the bytes of their packets, until told to stop.
fn send_until(told: &AtomicBool, socket: &UdpSocket, bps: f64, sent: &AtomicU64) {
    let payload = [0; PAYLOAD_BYTES];
    let bytes_per_second = bps / 8.0;
    let (mut last, mut owed) = (Instant::now(), 0.0);
    while !told.load(Ordering::Relaxed) {
        let now = Instant::now();
        owed += now.duration_since(last).as_secs_f64() * bytes_per_second;
        owed = owed.min(MOST_OWED.as_secs_f64() * bytes_per_second);
        last = now;
        while owed >= PACKET_BYTES as f64 {
            owed -= PACKET_BYTES as f64;
            // What the kernel had no room for was not carried.
            if socket.send(&payload).is_ok() {
                sent.fetch_add(PACKET_BYTES, Ordering::Relaxed);
            }
        }
        // This is the pace itself; nobody waits for it.
        thread::sleep(TICK);
    }
}

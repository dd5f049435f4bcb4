//! UDP: a server that answers each datagram with the source that it saw, and flows that ask it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use nix::{cmsg_space, libc};

use crate::lab::Host;

/// How often a question is asked, and how long an answer is waited for each time.
const TRIES: u32 = 10;
const TRY_TIMEOUT: Duration = Duration::from_millis(300);

/// Binds in this thread's namespace. A socket that was closed just now may have its port for a moment still: whatever process is being
/// started at that time has it open until it runs its program.
pub(super) fn bind(local: SocketAddrV4) -> io::Result<UdpSocket> {
    let begun = Instant::now();
    loop {
        match UdpSocket::bind(local) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < TRY_TIMEOUT => {
                thread::yield_now()
            }
            bound => return bound,
        }
    }
}

/// Receives a datagram: its length, its source and, if the socket tells, the address that it was sent to.
type Receive = fn(&UdpSocket, &mut [u8]) -> Option<(usize, SocketAddrV4, Option<libc::in_addr>)>;

/// A UDP server in a host; runs on a thread until dropped.
#[derive(Debug)]
pub struct UdpServer {
    address: SocketAddrV4,
    seen: Arc<Mutex<Vec<SocketAddrV4>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Binds in `host`. The answer to `QUESTION` is `ADDRESS:PORT QUESTION`.
    ///
    /// # Errors
    /// If the address isn't the host's, or is taken.
    pub fn start(host: &Host, address: SocketAddrV4) -> Result<Self> {
        Self::start_with(host, address, |socket, buffer| {
            let (length, peer) = socket.recv_from(buffer).ok()?;
            let SocketAddr::V4(peer) = peer else { return None };
            Some((length, peer, None))
        })
    }

    /// The same, but it answers from the address that it was asked at, as servers on machines with several addresses do: by
    /// `IP_PKTINFO`, and not from whatever address the kernel's routing prefers.
    ///
    /// # Errors
    /// As [`UdpServer::start`].
    pub fn start_with_packet_info(host: &Host, address: SocketAddrV4) -> Result<Self> {
        Self::start_with(host, address, |socket, buffer| {
            let mut control = cmsg_space!(libc::in_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::empty();
            let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
            let peer = message.address?.into();
            let asked = message.cmsgs().ok()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr),
                _ => None,
            })?;
            Some((message.bytes, peer, Some(asked)))
        })
    }

    fn start_with(host: &Host, address: SocketAddrV4, receive: Receive) -> Result<Self> {
        let socket = host.enter(|| bind(address))?;
        let socket = socket.with_context(|| format!("{}: bind {address}", host.name()))?;
        // Only so that the thread looks at `stop` now and then.
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("udp server".into()).spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    // Nothing: a timeout, or an ICMP error for an answer sent before.
                    let Some((length, peer, asked)) = receive(&socket, &mut buffer) else { continue };
                    if let Ok(mut seen) = seen.lock() {
                        seen.push(peer);
                    }
                    let mut answer = format!("{peer} ").into_bytes();
                    answer.extend_from_slice(&buffer[..length]);
                    // A lost answer is asked for again.
                    let Some(asked) = asked else {
                        let _ = socket.send_to(&answer, peer);
                        continue;
                    };
                    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: asked, ipi_addr: asked };
                    let (parts, control) = ([IoSlice::new(&answer)], [ControlMessage::Ipv4PacketInfo(&info)]);
                    let peer = SockaddrIn::from(peer);
                    let _ = sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&peer));
                }
            }
        })?;
        Ok(Self { address, seen, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The source of every datagram received so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<SocketAddrV4> {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nothing to do about a panic in there.
            let _ = thread.join();
        }
    }
}

/// A UDP flow: a client's socket connected to a [`UdpServer`].
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
    questions: AtomicU64,
    /// The client's own address and port.
    pub local: SocketAddrV4,
    /// The server's address and port.
    pub remote: SocketAddrV4,
    /// The client's address and port as the server saw them in the first datagram.
    pub seen: SocketAddrV4,
}

impl UdpFlow {
    /// Opens a flow from `host` and learns what the server saw.
    ///
    /// # Errors
    /// If no answer comes.
    pub fn open(host: &Host, to: SocketAddrV4) -> Result<Self> {
        Self::open_from(host, 0, to)
    }

    /// [`UdpFlow::open`] with a source port of choice (0: any).
    ///
    /// # Errors
    /// If the port is taken, or no answer comes.
    pub fn open_from(host: &Host, port: u16, to: SocketAddrV4) -> Result<Self> {
        Self::open_bound(host, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), to)
    }

    /// [`UdpFlow::open`] from an address and port of choice (port 0: any).
    ///
    /// # Errors
    /// If `local` is not the host's or is taken, or no answer comes.
    pub fn open_bound(host: &Host, local: SocketAddrV4, to: SocketAddrV4) -> Result<Self> {
        host.enter(|| Self::open_here(local, to))?.with_context(|| format!("{} to udp {to}", host.name()))
    }

    fn open_here(local: SocketAddrV4, to: SocketAddrV4) -> Result<Self> {
        let socket = bind(local).with_context(|| format!("bind {local}"))?;
        Self::over(socket, to)
    }

    /// A flow over a socket that isn't connected yet.
    pub(super) fn over(socket: UdpSocket, to: SocketAddrV4) -> Result<Self> {
        socket.connect(to).context("connect")?;
        let SocketAddr::V4(local) = socket.local_addr()? else { bail!("no IPv4 socket") };
        let mut flow = Self { socket, questions: AtomicU64::new(0), local, remote: to, seen: local };
        flow.seen = flow.ask()?;
        Ok(flow)
    }

    /// Asks again what the server sees now.
    ///
    /// # Errors
    /// If no answer comes to ten datagrams, 300 ms apart.
    pub fn ask(&self) -> Result<SocketAddrV4> {
        let question = format!("{}", self.questions.fetch_add(1, Ordering::Relaxed));
        for _ in 0..TRIES {
            let until = Instant::now() + TRY_TIMEOUT;
            // An ICMP error that came back is told once by the next call: the next try decides.
            let _ = self.socket.send(question.as_bytes());
            while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                self.socket.set_read_timeout(Some(left))?;
                let mut buffer = [0; 256];
                let Ok(length) = self.socket.recv(&mut buffer) else {
                    continue;
                };
                let answer = String::from_utf8_lossy(&buffer[..length]);
                // Answers to earlier questions, sent twice, are late ones.
                if let Some((source, _)) = answer.split_once(' ').filter(|(_, about)| *about == question) {
                    return source.parse().with_context(|| format!("the server's answer: {answer:?}"));
                }
            }
        }
        bail!("no answer to {TRIES} datagrams from {} to udp {}", self.local, self.remote)
    }
}

/// Ports of [`udp_flows`]: below those that the kernel hands out, so that only who asks for one of them has it.
const FLOW_PORTS: Range<u16> = 10_000..32_000;

/// Opens `count` flows from `host`, each with a port of its own, and keeps them. None has the port of an earlier flow of this process that it could
/// be taken for, even if that has been closed, until all 22,000 have been used.
///
/// # Errors
/// If one gets no answer.
pub fn udp_flows(host: &Host, to: SocketAddrV4, count: usize) -> Result<Vec<UdpFlow>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let open = |_| {
        let ports = u64::from(FLOW_PORTS.end - FLOW_PORTS.start);
        let port = FLOW_PORTS.start + u16::try_from(NEXT.fetch_add(1, Ordering::Relaxed) % ports)?;
        UdpFlow::open_here(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), to)
    };
    host.enter(|| (0..count).map(open).collect::<Result<Vec<_>>>())?
        .with_context(|| format!("{} to udp {to}", host.name()))
}

//! TCP: a server that tells each client which source it saw, and clients that keep their connections.
//!
//! On a new connection the server sends one line, the peer's address as it sees it. The client then sends one byte that says
//! what follows: `e` echo, `u` a stream from the client, `d` a stream from the server (see [`super::stream`]).

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket;

use super::stream;
use crate::lab::Host;

/// How long any one read or write may stall.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What the server's threads share.
#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Vec<SocketAddrV4>>,
    streams: Mutex<Vec<Arc<TcpStream>>>,
    received_bytes: AtomicU64,
}

/// A TCP server in a host; runs on threads until dropped, which ends its connections too.
#[derive(Debug)]
pub struct TcpServer {
    address: SocketAddrV4,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens in `host`.
    ///
    /// # Errors
    /// If the address isn't the host's, or is taken.
    pub fn start(host: &Host, address: SocketAddrV4) -> Result<Self> {
        let listener = host.enter(|| TcpListener::bind(address))?;
        let listener = Arc::new(listener.with_context(|| format!("{}: listen on {address}", host.name()))?);
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("tcp server".into()).spawn({
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            move || {
                // Ends with the error that the shutdown in drop makes.
                while let Ok((stream, peer)) = listener.accept() {
                    serve(stream, peer, &shared);
                }
            }
        })?;
        Ok(Self { address, listener, shared, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The peers of all connections accepted so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<SocketAddrV4> {
        self.shared.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }

    /// Bytes received so far in uploaded streams, all connections together.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.shared.received_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        // Wakes `accept`. Best effort, as everything in a drop.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Ok(streams) = self.shared.streams.lock() {
            for stream in streams.iter() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Takes in one connection; the rest happens on a thread of its own.
fn serve(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let SocketAddr::V4(peer) = peer else { return };
    let stream = Arc::new(stream);
    if let (Ok(mut seen), Ok(mut streams)) = (shared.seen.lock(), shared.streams.lock()) {
        seen.push(peer);
        streams.push(Arc::clone(&stream));
    }
    let shared = Arc::clone(shared);
    // An error ends the connection, and that is what the client reports.
    let _ = thread::Builder::new().name(format!("tcp {peer}")).spawn(move || {
        let _ = converse(&stream, peer, &shared);
        let _ = stream.shutdown(Shutdown::Both);
        if let Ok(mut streams) = shared.streams.lock() {
            streams.retain(|other| !Arc::ptr_eq(other, &stream));
        }
    });
}

fn converse(mut stream: &TcpStream, peer: SocketAddrV4, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{peer}\n").as_bytes())?;
    let mut command = [0];
    stream.read_exact(&mut command)?;
    match command {
        [b'e'] => {
            let mut buffer = [0; 4096];
            loop {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..length])?;
            }
        }
        [b'u'] => {
            let count = |bytes| {
                shared.received_bytes.fetch_add(bytes, Ordering::Relaxed);
            };
            let received = stream::receive(stream, count)?;
            stream.write_all(&received.hash)?;
            // The client closes first, once it has the hash.
            let _ = stream.read(&mut command);
            Ok(())
        }
        [b'd'] => {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            stream::send_until_told(stream, u64::from_be_bytes(length))
        }
        [other] => bail!("unknown command {other}"),
    }
}

/// An open connection and what is known about it.
#[derive(Debug)]
pub struct TcpFlow {
    stream: BufReader<TcpStream>,
    /// The client's own address and port.
    pub local: SocketAddrV4,
    /// The server's address and port, as dialled.
    pub remote: SocketAddrV4,
    /// The client's address and port as the server saw them.
    pub seen: SocketAddrV4,
    echoes: bool,
}

impl TcpFlow {
    /// Connects from `host` and learns what the server saw.
    ///
    /// # Errors
    /// If there is no connection, or no word from the server, within `timeout` each.
    pub fn connect(host: &Host, to: SocketAddrV4, timeout: Duration) -> Result<Self> {
        host.enter(|| Self::connect_here(to, timeout))?.with_context(|| format!("{} to tcp {to}", host.name()))
    }

    /// [`TcpFlow::connect`] from the namespace that this thread is in.
    ///
    /// # Errors
    /// As [`TcpFlow::connect`].
    pub fn connect_here(to: SocketAddrV4, timeout: Duration) -> Result<Self> {
        Self::over(TcpStream::connect_timeout(&to.into(), timeout).context("connect")?, to, timeout)
    }

    /// [`TcpFlow::connect`] from an address and port of choice (port 0: any). A port that is used this way may be listened on beside.
    ///
    /// # Errors
    /// As [`TcpFlow::connect`]; also if `local` is not the host's, or is taken.
    pub fn connect_from(host: &Host, local: SocketAddrV4, to: SocketAddrV4, timeout: Duration) -> Result<Self> {
        let connect = || Self::over(connect_bound(local, to, timeout)?, to, timeout);
        host.enter(connect)?.with_context(|| format!("{} from {local} to tcp {to}", host.name()))
    }

    /// A flow over a connection to a [`TcpServer`] that was just opened.
    pub(super) fn over(stream: TcpStream, to: SocketAddrV4, timeout: Duration) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let SocketAddr::V4(local) = stream.local_addr()? else { bail!("no IPv4 socket") };
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).context("read which source the server saw")?;
        let seen = line.trim().parse().with_context(|| format!("the server's greeting: {line:?}"))?;
        Ok(Self { stream, local, remote: to, seen, echoes: false })
    }

    /// Sends a few bytes and checks that they come back: the connection is alive in both directions.
    ///
    /// # Errors
    /// If they don't come back in time, or differently.
    pub fn echo(&mut self) -> Result<()> {
        let Self { local, remote, seen, .. } = *self;
        let mut exchange = || -> Result<()> {
            if !self.echoes {
                self.stream.get_mut().write_all(b"e")?;
                self.echoes = true;
            }
            let sent = format!("is {local} still there?\n");
            self.stream.get_mut().write_all(sent.as_bytes())?;
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            ensure!(line == sent, "sent {sent:?}, got {line:?}");
            Ok(())
        };
        exchange().with_context(|| format!("echo on {local} -> {remote}, seen as {seen}"))
    }

    /// Waits, without sending anything, until the connection is reset; tells how long that took.
    ///
    /// # Errors
    /// If it is not reset within `timeout`, or ends otherwise.
    pub fn wait_for_reset(&mut self, timeout: Duration) -> Result<Duration> {
        let begun = Instant::now();
        self.set_timeout(timeout)?;
        let Self { local, remote, seen, .. } = *self;
        match self.stream.read(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(begun.elapsed()),
            other => bail!("{local} -> {remote}, seen as {seen}, was not reset within {timeout:?}: {other:?}"),
        }
    }

    /// How long a read or a write may take from now on.
    ///
    /// # Errors
    /// If the socket refuses.
    pub fn set_timeout(&self, timeout: Duration) -> Result<()> {
        self.stream.get_ref().set_read_timeout(Some(timeout))?;
        Ok(self.stream.get_ref().set_write_timeout(Some(timeout))?)
    }

    /// The connection's stream. Nothing is buffered: the server speaks only when spoken to after its greeting.
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}

/// A stream between an address of this thread's namespace and another; the standard library binds no connecting socket.
fn connect_bound(local: SocketAddrV4, to: SocketAddrV4, timeout: Duration) -> Result<TcpStream> {
    let descriptor =
        socket::socket(socket::AddressFamily::Inet, socket::SockType::Stream, socket::SockFlag::SOCK_CLOEXEC, None)?;
    let stream = TcpStream::from(descriptor);
    socket::setsockopt(&stream, socket::sockopt::ReuseAddr, &true)?;
    socket::bind(stream.as_raw_fd(), &socket::SockaddrIn::from(local)).with_context(|| format!("bind {local}"))?;
    // Linux limits connecting as it limits writing.
    stream.set_write_timeout(Some(timeout))?;
    socket::connect(stream.as_raw_fd(), &socket::SockaddrIn::from(to)).context("connect")?;
    Ok(stream)
}

/// Opens `count` connections from `host`, one after the other, and keeps them.
///
/// # Errors
/// If one can't be opened within 5 seconds.
pub fn tcp_flows(host: &Host, to: SocketAddrV4, count: usize) -> Result<Vec<TcpFlow>> {
    let flows = host.enter(|| {
        (1..=count)
            .map(|number| {
                TcpFlow::connect_here(to, Duration::from_secs(5))
                    .with_context(|| format!("connection {number} of {count}"))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    flows.with_context(|| format!("{} to tcp {to}", host.name()))
}

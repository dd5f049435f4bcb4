//! What probes ask: an HTTP server and a DNS server that answer as they are told.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{self, Runtime};

use crate::lab::Host;

/// How much of a request is read at the most.
const MAX_REQUEST: usize = 4096;

/// The servers. They end when this is dropped.
#[derive(Debug)]
pub struct Asked {
    shared: Arc<Shared>,
    _runtime: Runtime,
}

#[derive(Debug, Default)]
struct Shared {
    /// Who connected to the HTTP server.
    peers: Mutex<Vec<IpAddr>>,
    /// How long each HTTP answer takes.
    delay_ms: AtomicU64,
}

impl Asked {
    /// Starts both in `host`.
    ///
    /// # Errors
    /// If an address is taken or isn't the host's.
    pub fn start(host: &Host, http: SocketAddrV4, dns: SocketAddrV4) -> Result<Self> {
        let (http, dns) = host
            .enter(|| {
                let (http, dns) = (TcpListener::bind(http)?, UdpSocket::bind(dns)?);
                http.set_nonblocking(true)?;
                dns.set_nonblocking(true)?;
                std::io::Result::Ok((http, dns))
            })?
            .with_context(|| format!("{}: HTTP at {http}, DNS at {dns}", host.name()))?;
        let shared = Arc::new(Shared::default());
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (http, dns) = {
            let _inside = runtime.enter();
            (tokio::net::TcpListener::from_std(http)?, tokio::net::UdpSocket::from_std(dns)?)
        };
        runtime.spawn(serve_http(http, Arc::clone(&shared)));
        runtime.spawn(serve_dns(dns));
        Ok(Self { shared, _runtime: runtime })
    }

    /// Who has connected to the HTTP server.
    #[must_use]
    pub fn peers(&self) -> Vec<IpAddr> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has each HTTP answer take so long from now on.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Answers requests for /bad with a status of 503, all others with 200.
async fn serve_http(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((mut stream, peer)) = listener.accept().await else { continue };
        shared.peers.lock().unwrap_or_else(PoisonError::into_inner).push(peer.ip());
        let delay = Duration::from_millis(shared.delay_ms.load(Ordering::Relaxed));
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n")
                && request.len() < MAX_REQUEST
                && stream.read_buf(&mut request).await.is_ok_and(|length| length > 0)
            {}
            tokio::time::sleep(delay).await;
            let status = if request.starts_with(b"GET /bad ") { "503 Unavailable" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 1000000\r\n\r\n");
            // The client may have gone.
            let _ = stream.write_all(answer.as_bytes()).await;
            request.clear();
            while stream.read_buf(&mut request).await.is_ok_and(|length| length > 0) && request.len() < MAX_REQUEST {}
        });
    }
}

/// Answers questions for fail.example with SERVFAIL, all others with no error.
async fn serve_dns(socket: tokio::net::UdpSocket) {
    let mut buffer = [0; 512];
    loop {
        let received: std::io::Result<(usize, SocketAddr)> = socket.recv_from(&mut buffer).await;
        let Ok((length, client)) = received else { continue };
        let fails = buffer[..length].windows(4).any(|window| window == b"fail");
        // A response, and its code.
        buffer[2] |= 0x80;
        buffer[3] = if fails { 2 } else { 0 };
        // The client may have gone.
        let _ = socket.send_to(&buffer[..length], client).await;
    }
}

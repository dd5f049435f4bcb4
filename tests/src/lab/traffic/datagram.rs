//! Single datagrams: what comes from whom, where [`super::UdpFlow`] would ask until it is answered.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::udp::bind;
use crate::lab::Host;

/// An unconnected UDP socket in a host.
#[derive(Debug)]
pub struct DatagramSocket {
    socket: UdpSocket,
    /// Its own address and port.
    pub local: SocketAddrV4,
}

impl DatagramSocket {
    /// Binds in `host` (port 0: any).
    ///
    /// # Errors
    /// If the address isn't the host's, or is taken.
    pub fn bind(host: &Host, local: SocketAddrV4) -> Result<Self> {
        let socket = host.enter(|| bind(local))?;
        let socket = socket.with_context(|| format!("{}: bind {local}", host.name()))?;
        let SocketAddr::V4(local) = socket.local_addr()? else { bail!("no IPv4 socket") };
        Ok(Self { socket, local })
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn send(&self, to: SocketAddrV4, text: &str) -> Result<()> {
        self.socket.send_to(text.as_bytes(), to).map(drop).with_context(|| format!("{} to udp {to}", self.local))
    }

    /// The next datagram and where it came from, if one comes within `timeout`.
    ///
    /// # Errors
    /// If the socket fails other than by time.
    pub fn receive(&self, timeout: Duration) -> Result<Option<(SocketAddrV4, String)>> {
        self.socket.set_read_timeout(Some(timeout))?;
        let mut buffer = [0; 2048];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, SocketAddr::V4(peer))) => {
                Ok(Some((peer, String::from_utf8_lossy(&buffer[..length]).into_owned())))
            }
            Ok((_, peer)) => bail!("a datagram from {peer}"),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("receive on {}", self.local)),
        }
    }

    /// Waits for the datagram `text` and tells where it came from; others before it are passed over.
    ///
    /// # Errors
    /// If it doesn't come within 3 seconds.
    pub fn expect(&self, text: &str) -> Result<SocketAddrV4> {
        let begun = Instant::now();
        loop {
            let left = Duration::from_secs(3).saturating_sub(begun.elapsed());
            ensure!(!left.is_zero(), "{text:?} did not come to {}", self.local);
            if let Some((peer, received)) = self.receive(left)?
                && received == text
            {
                return Ok(peer);
            }
        }
    }
}

//! UDP sockets that learn of ICMP errors, and say of each datagram whether routers may fragment it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::Host;

/// How long a datagram or an error may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A UDP socket in a host. Each ICMP error about what it sent is told once, by the next call.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    /// Its own address and port.
    pub local: SocketAddrV4,
}

impl Datagrams {
    /// Binds a socket in `host`: to a port of all its addresses (0: any), or to an address.
    ///
    /// # Errors
    /// If the address isn't the host's, or is taken.
    pub fn bind(host: &Host, address: Ipv4Addr, port: u16) -> Result<Self> {
        let socket = host.enter(|| UdpSocket::bind((address, port)))?;
        let socket = socket.with_context(|| format!("{}: bind {address}:{port}", host.name()))?;
        // Without this the kernel keeps what it takes for temporary (no route, no host) from UDP sockets.
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        let mut datagrams = Self { local: SocketAddrV4::new(address, port), socket };
        datagrams.learn_local()?;
        Ok(datagrams)
    }

    /// A socket in `host` with any port that is connected to `to`.
    ///
    /// # Errors
    /// If there is no way there.
    pub fn connected(host: &Host, to: SocketAddrV4) -> Result<Self> {
        let mut datagrams = Self::bind(host, Ipv4Addr::UNSPECIFIED, 0)?;
        datagrams.connect(to)?;
        Ok(datagrams)
    }

    /// Connects it: sends go there, errors about these are told.
    ///
    /// # Errors
    /// If there is no way there.
    pub fn connect(&mut self, to: SocketAddrV4) -> Result<()> {
        self.socket.connect(to).with_context(|| format!("connect to {to}"))?;
        self.learn_local()
    }

    fn learn_local(&mut self) -> Result<()> {
        let SocketAddr::V4(local) = self.socket.local_addr()? else { bail!("no IPv4 socket") };
        self.local = local;
        Ok(())
    }

    /// Whether its datagrams are kept whole (DF set, and refused by the kernel if they are larger than the path's known MTU), or may
    /// be fragmented by whoever needs to (DF clear).
    ///
    /// # Errors
    /// If the socket refuses.
    pub fn keep_whole(&self, whole: bool) -> Result<()> {
        let value = if whole { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
        let length = libc::socklen_t::try_from(size_of_val(&value))?;
        // SAFETY: the option's value is the integer that the pointer and the length describe.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                std::ptr::from_ref(&value).cast(),
                length,
            )
        };
        Errno::result(result).map(drop).context("IP_MTU_DISCOVER")
    }

    /// Sends to where it is connected to.
    ///
    /// # Errors
    /// What the kernel says, an ICMP error that has come in since the last call too.
    pub fn send(&self, payload: &[u8]) -> io::Result<()> {
        self.socket.send(payload).map(drop)
    }

    /// Sends to `to`.
    ///
    /// # Errors
    /// As [`Datagrams::send`].
    pub fn send_to(&self, payload: &[u8], to: SocketAddrV4) -> io::Result<()> {
        self.socket.send_to(payload, to).map(drop)
    }

    /// Receives a datagram and tells its source.
    ///
    /// # Errors
    /// If none comes within 5 seconds, or an ICMP error does.
    pub fn receive(&self) -> Result<(Vec<u8>, SocketAddrV4)> {
        self.socket.set_read_timeout(Some(TIMEOUT))?;
        let mut buffer = vec![0; 65_536];
        let (length, source) =
            self.socket.recv_from(&mut buffer).with_context(|| format!("receive at {}", self.local))?;
        let SocketAddr::V4(source) = source else { bail!("a datagram from {source}") };
        buffer.truncate(length);
        Ok((buffer, source))
    }

    /// Waits for the ICMP error about what was sent before.
    ///
    /// # Errors
    /// If none comes within 5 seconds, or a datagram does.
    pub fn error(&self) -> Result<Errno> {
        let until = Instant::now() + TIMEOUT;
        self.socket.set_read_timeout(Some(TIMEOUT))?;
        match self.socket.recv(&mut [0; 1]) {
            Ok(_) => bail!("a datagram came instead of an error"),
            Err(error) => {
                ensure!(Instant::now() < until, "no error came to {} within {TIMEOUT:?}", self.local);
                Ok(Errno::from_raw(error.raw_os_error().context("an error without a number")?))
            }
        }
    }
}

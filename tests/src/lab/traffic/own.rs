//! Sockets that choose their own way out: bound to an address or to a device, or raw.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::libc;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{TcpFlow, UdpFlow};
use crate::lab::Host;

/// How long a connection may take to be opened.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a socket is bound to before it is connected.
#[derive(Clone, Copy, Debug)]
pub enum Bound<'a> {
    /// A source address, any port.
    Address(Ipv4Addr),
    /// A source port, any address.
    Port(u16),
    /// An interface (`SO_BINDTODEVICE`), any address and port.
    Device(&'a str),
    /// An interface and an address, with a mark (`SO_MARK`) on all that is sent.
    Marked {
        /// The interface.
        device: &'a str,
        /// The source address.
        address: Ipv4Addr,
        /// The mark.
        mark: u32,
    },
    /// Nothing; all that is sent has this byte in the type of service field (`IP_TOS`).
    Tos(u8),
}

impl Bound<'_> {
    /// A socket of the namespace that this thread is in, bound.
    fn socket(self, kind: SockType) -> Result<OwnedFd> {
        let socket = socket::socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).context("socket")?;
        let local = match self {
            Self::Address(address) => SocketAddrV4::new(address, 0),
            Self::Port(port) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port),
            Self::Tos(tos) => {
                setsockopt(&socket, sockopt::Ipv4Tos, &tos.into())
                    .with_context(|| format!("type of service {tos:#x}"))?;
                return Ok(socket);
            }
            Self::Device(device) => {
                setsockopt(&socket, sockopt::BindToDevice, &device.into())
                    .with_context(|| format!("bind to {device}"))?;
                return Ok(socket);
            }
            Self::Marked { device, address, mark } => {
                setsockopt(&socket, sockopt::BindToDevice, &device.into())
                    .with_context(|| format!("bind to {device}"))?;
                setsockopt(&socket, sockopt::Mark, &mark).with_context(|| format!("mark {mark:#x}"))?;
                SocketAddrV4::new(address, 0)
            }
        };
        socket::bind(socket.as_raw_fd(), &SockaddrIn::from(local)).with_context(|| format!("bind to {local}"))?;
        Ok(socket)
    }

    /// Opens a TCP connection from `host`, and learns what the server saw.
    ///
    /// # Errors
    /// If the socket can't be bound, or isn't connected within 5 seconds.
    pub fn tcp(self, host: &Host, to: SocketAddrV4) -> Result<TcpFlow> {
        let open = || {
            let socket = self.socket(SockType::Stream)?;
            // Bounds `connect` too.
            let seconds = i64::try_from(CONNECT_TIMEOUT.as_secs())?;
            setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(seconds, 0))?;
            socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to)).context("connect")?;
            TcpFlow::over(TcpStream::from(socket), to, CONNECT_TIMEOUT)
        };
        host.enter(open)?.with_context(|| format!("{} to tcp {to}, bound to {self:?}", host.name()))
    }

    /// Opens a UDP flow from `host`, and learns what the server saw.
    ///
    /// # Errors
    /// If the socket can't be bound, or no answer comes.
    pub fn udp(self, host: &Host, to: SocketAddrV4) -> Result<UdpFlow> {
        let open = || UdpFlow::over(UdpSocket::from(self.socket(SockType::Datagram)?), to);
        host.enter(open)?.with_context(|| format!("{} to udp {to}, bound to {self:?}", host.name()))
    }
}

/// A raw socket of `host` for an IP protocol, bound to an address, which may be any (unspecified). What it receives begins with the IP header; what is sent gets one from the kernel. It
/// is wrapped in a [`UdpSocket`] for its `connect`, `send` and `recv`; ports mean nothing.
///
/// # Errors
/// If the kernel refuses.
pub fn raw(host: &Host, protocol: u8, address: Ipv4Addr) -> Result<UdpSocket> {
    let made = host.enter(|| {
        // SAFETY: a system call without pointers.
        match unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) } {
            -1 => Err(std::io::Error::last_os_error()),
            number => {
                // SAFETY: just made, and nobody else's.
                let socket = unsafe { OwnedFd::from_raw_fd(number) };
                socket::bind(number, &SockaddrIn::from(SocketAddrV4::new(address, 0)))?;
                Ok(socket)
            }
        }
    })?;
    made.map(UdpSocket::from).with_context(|| format!("{}: raw socket for protocol {protocol}", host.name()))
}

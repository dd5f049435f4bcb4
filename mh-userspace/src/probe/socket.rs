//! Sockets on an uplink's path, and what their errors mean.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::Path;
use crate::health::Failure;

/// An IPv4 socket that sends by `path` only, and takes only what comes that way. It does not block.
pub(super) fn open(path: &Path, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(path.interface.as_bytes()))?;
    if path.mark != 0 {
        socket.set_mark(path.mark)?;
    }
    socket.bind(&SocketAddrV4::new(path.source, 0).into())?;
    Ok(socket)
}

/// A TCP connection that ends with a RST, however it is ended.
///
/// So neither end keeps state (TIME-WAIT) of hundreds of connections a second.
pub(super) async fn connect(path: &Path, address: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let socket = open(path, Type::STREAM, Protocol::TCP)?;
    socket.set_linger(Some(Duration::ZERO))?;
    TcpSocket::from_std_stream(socket.into()).connect(SocketAddrV4::new(address, port).into()).await
}

/// A UDP socket that talks to one server alone, from a port that the kernel draws at random (RFC 6056).
pub(super) async fn datagrams(path: &Path, address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::from_std(open(path, Type::DGRAM, Protocol::UDP)?.into())?;
    socket.connect(SocketAddrV4::new(address, port)).await?;
    Ok(socket)
}

/// What an error of a socket says of the probe.
pub(super) fn failure(error: &io::Error) -> Failure {
    let Some(code) = error.raw_os_error() else { return Failure::error(&error.to_string()) };
    match Errno::from_raw(code) {
        Errno::ECONNREFUSED => Failure::Refused,
        Errno::EHOSTUNREACH | Errno::ENETUNREACH => Failure::Unreachable,
        Errno::ETIMEDOUT => Failure::Timeout,
        Errno::ENODEV | Errno::ENXIO => Failure::error("no such interface"),
        Errno::ENETDOWN => Failure::error("interface is down"),
        Errno::EADDRNOTAVAIL => Failure::NoAddress,
        Errno::EPERM | Errno::EACCES => Failure::error("not permitted"),
        // A full queue of the interface or of the socket.
        Errno::ENOBUFS | Errno::EAGAIN => Failure::error("not sent"),
        other => Failure::error(&other.desc().to_lowercase()),
    }
}

//! ICMP echo (RFC 792): one raw socket for all targets of an uplink.
//!
//! Requests have the identifier 0, which NAT gives to no inside host ([`Range::IDENTIFIERS`](mh_common::ports::Range::IDENTIFIERS)), so that no binding
//! takes the replies. They are told apart by their sequence numbers, and from those of others by a random number in the payload,
//! without which a reply is none.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Protocol, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Path, socket};

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// `SOL_RAW` and its option `ICMP_FILTER`, a set of ICMP types that are not delivered.
const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;
const COOKIE_LEN: usize = 8;
/// ICMP header and cookie.
const MESSAGE_LEN: usize = 8 + COOKIE_LEN;
/// An IPv4 header with all options, and the message.
const MAX_PACKET: usize = 60 + MESSAGE_LEN;
/// Packets that are read in one go, before others get their turn.
const BUDGET: usize = 256;

/// The socket and its requests that may still be answered.
#[derive(Debug)]
pub(super) struct Pinger {
    socket: AsyncFd<Socket>,
    cookie: [u8; COOKIE_LEN],
    sequence: u16,
    waiting: HashMap<u16, Request>,
}

/// A request that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// The number of its round.
    pub(super) round: u64,
    /// The index of its target.
    pub(super) target: usize,
    /// Where it was sent to.
    pub(super) address: Ipv4Addr,
    /// When it was sent.
    pub(super) sent: Duration,
}

impl Pinger {
    /// Opens the socket.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut cookie = [0; COOKIE_LEN];
        getrandom::fill(&mut cookie).map_err(io::Error::other)?;
        let socket = socket::open(path, Type::RAW, Protocol::ICMPV4)?;
        only_replies(&socket)?;
        // SAFETY: a socket keeps its descriptor, and closes it when it is dropped, with the `AsyncFd` that has it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, cookie, sequence: 0, waiting: HashMap::new() })
    }

    /// Sends a request.
    pub(super) fn send(&mut self, request: Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message(self.sequence, self.cookie);
        let to = SocketAddrV4::new(request.address, 0).into();
        let sent = retried(|| self.socket.get_ref().send_to(&message, &to))?;
        if sent != message.len() {
            return Err(Errno::ENOBUFS.into());
        }
        self.waiting.insert(self.sequence, request);
        Ok(())
    }

    /// Is the interface that the socket was bound to still the one at `path`? It may be gone, and another have its name.
    pub(super) fn is_on(&self, path: &Path) -> bool {
        self.socket.get_ref().device().is_ok_and(|name| name.as_deref() == Some(path.interface.as_bytes()))
    }

    /// Waits until there may be something to read.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await.map(drop)
    }

    /// Reads the replies that are there, and gives the requests that they answer. An error is the socket's end.
    pub(super) fn receive(&mut self, mut answered: impl FnMut(Request)) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); MAX_PACKET];
        for _ in 0..BUDGET {
            // First as the runtime has it, which also makes it wait for more; then as the kernel has it, which may be ahead.
            let read = self.socket.try_io(Interest::READABLE, |socket| socket.recv(&mut buffer));
            let read = match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.get_ref().recv(&mut buffer),
                read => read,
            };
            let length = match read {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let packet: Vec<u8> = buffer
                .iter()
                .take(length)
                .map(|byte| {
                    // SAFETY: the kernel has written the first `length` bytes of the buffer.
                    unsafe { byte.assume_init() }
                })
                .collect();
            if let Some(request) = self.match_reply(&packet) {
                answered(request);
            }
        }
        Ok(())
    }

    /// The request that an IPv4 packet is the reply to.
    fn match_reply(&mut self, packet: &[u8]) -> Option<Request> {
        let (from, sequence) = parse(packet, self.cookie)?;
        if self.waiting.get(&sequence)?.address != from {
            return None;
        }
        self.waiting.remove(&sequence)
    }

    /// Forgets requests that were sent before `time`.
    pub(super) fn forget_before(&mut self, time: Duration) {
        self.waiting.retain(|_, request| request.sent >= time);
    }
}

fn retried(mut send: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Has the kernel deliver echo replies alone.
fn only_replies(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let refused: u32 = !(1 << ECHO_REPLY);
    let length = u32::BITS / u8::BITS;
    // SAFETY: the option's value is the kernel's `struct icmp_filter`, 32 bits, which live through the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), SOL_RAW, ICMP_FILTER, (&raw const refused).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An echo request.
fn message(sequence: u16, cookie: [u8; COOKIE_LEN]) -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    message[0] = ECHO_REQUEST;
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message[8..].copy_from_slice(&cookie);
    let checksum = checksum(&message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// Source and sequence number of an IPv4 packet that is an echo reply with this cookie.
fn parse(packet: &[u8], cookie: [u8; COOKIE_LEN]) -> Option<(Ipv4Addr, u16)> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    // Raw sockets get packets before anyone has looked at the ICMP checksum.
    let reply = packet.get(header_len..)?;
    let sequence: [u8; 2] = reply.get(6..8)?.try_into().ok()?;
    let is_ours = reply.len() == MESSAGE_LEN
        && reply.get(..2)? == [ECHO_REPLY, 0]
        && reply.get(4..6)? == [0, 0]
        && reply.get(8..)? == cookie
        && checksum(reply) == 0;
    is_ours.then(|| (from.into(), u16::from_be_bytes(sequence)))
}

/// The checksum of RFC 1071 over an even number of bytes; 0 for a message that carries the right one.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FROM: [u8; 4] = [192, 0, 2, 1];

    /// The reply to a request, with an IPv4 header of 20 bytes and `options`.
    fn reply(mut message: [u8; MESSAGE_LEN], options: usize) -> Vec<u8> {
        message[0] = ECHO_REPLY;
        message[2..4].fill(0);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0; 20 + options * 4];
        packet[0] = 0x45 + u8::try_from(options).unwrap();
        packet[12..16].copy_from_slice(&FROM);
        packet.extend(message);
        packet
    }

    #[test]
    fn a_request_as_rfc_792_has_it() {
        let message = message(0x1234, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(message, [8, 0, 0xd5, 0xb7, 0, 0, 0x12, 0x34, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    proptest! {
        #[test]
        fn a_reply_is_known(sequence: u16, cookie: [u8; COOKIE_LEN], options in 0_usize..=10) {
            let packet = reply(message(sequence, cookie), options);
            prop_assert_eq!(parse(&packet, cookie), Some((FROM.into(), sequence)));
        }

        #[test]
        fn a_changed_reply_is_none(sequence: u16, cookie: [u8; COOKIE_LEN], at in 20_usize..36, by in 1_u8..) {
            let mut packet = reply(message(sequence, cookie), 0);
            packet[at] ^= by;
            prop_assert_eq!(parse(&packet, cookie), None);
        }

        #[test]
        fn nothing_panics(packet: Vec<u8>, cookie: [u8; COOKIE_LEN]) {
            parse(&packet, cookie);
        }
    }
}

//! Fills a router's tables through its datapath: a datagram of each flow from inside, and what answers it.
//!
//! Frames go in and out by packet sockets, so that the hosts that they are from and for need not be there. The kernel handles a frame on the
//! core that sent it, before the call that sent it returns or soon after; so one thread sends, and turns what arrived around.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::Host;
use nix::libc;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{machine, site::Site};

/// Inside hosts: 192.168.1.64 and on.
const HOSTS: u16 = 64;
const FIRST_HOST: u8 = 64;
/// The first source port of each of them.
const FIRST_PORT: u16 = 2048;
/// The most flows.
pub const MOST_FLOWS: u32 = HOSTS as u32 * (u16::MAX - FIRST_PORT) as u32;
/// Whom they talk to: nobody that the server's kernel would answer for.
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const REMOTE_PORT: u16 = 4433;
/// Frames that are sent before it is looked what arrived.
const BATCH: u32 = 64;
/// Room for frames that arrived.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Frames that may be on their way, fewer than the kernel's queues take.
const ON_THEIR_WAY: u32 = 256;
/// When frames on their way are taken for lost.
const LOST: Duration = Duration::from_millis(20);
/// How long the last frames may be on their way.
const LATE: Duration = Duration::from_millis(500);
/// The share of flows that may be missing: where tables are full to the last entry, caches evict a few.
const MISSING: f64 = 0.01;

/// A frame: Ethernet, IPv4, UDP, and 18 bytes.
const FRAME: usize = 60;
const ETHERNET: usize = 14;
const IP: usize = 20;

/// Begins `flows` flows through the router and answers each; tells how long it took.
pub fn fill(site: &Site, flows: u32) -> Result<Duration> {
    ensure!(flows <= MOST_FLOWS, "at most {MOST_FLOWS} flows");
    let client = mac(&site.client, "eth0")?;
    let router = mac(&site.machine, "lan0")?;
    let neighbours: Vec<String> = (0..HOSTS)
        .map(|host| format!("neigh replace {} lladdr {} dev lan0 nud permanent", address(host), text(client)))
        .collect();
    site.machine.ip(&neighbours)?;
    let inside = socket(&site.client, "eth0", false)?;
    let outside = [socket(&site.server, "eth1", true)?, socket(&site.server, "eth2", true)?];
    let mut frame = template(client, router);
    let _turn = machine::Turn::wait(machine::Shared::Core)?;
    let begun = Instant::now();
    let (mut sent, mut answered, mut lost) = (0, 0, 0);
    while sent < flows {
        for number in sent..flows.min(sent + BATCH) {
            aim(&mut frame, number);
            send(&inside, &frame)?;
        }
        sent = flows.min(sent + BATCH);
        // Where the machine is busy with other things, the kernel handles frames later; more than it has room for would be lost.
        let mut moved = Instant::now();
        loop {
            let more = answer(&outside)?;
            answered += more;
            if sent - answered - lost <= ON_THEIR_WAY {
                break;
            }
            if more > 0 {
                moved = Instant::now();
            } else if moved.elapsed() > LOST {
                lost = sent - answered;
            }
        }
    }
    let mut last = Instant::now();
    while answered < flows && last.elapsed() < LATE {
        let more = answer(&outside)?;
        answered += more;
        if more > 0 {
            last = Instant::now();
        }
    }
    let missing = f64::from(flows.saturating_sub(answered)) / f64::from(flows);
    ensure!(missing <= MISSING, "of {flows} flows {answered} came through");
    Ok(last.max(begun) - begun)
}

/// The address of an inside host.
fn address(host: u16) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 1, FIRST_HOST.saturating_add(u8::try_from(host).unwrap_or(u8::MAX)))
}

/// A frame of no flow in particular.
fn template(client: [u8; 6], router: [u8; 6]) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&router);
    frame[6..12].copy_from_slice(&client);
    frame[12..ETHERNET].copy_from_slice(&[8, 0]);
    let (ip, udp) = frame[ETHERNET..].split_at_mut(IP);
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    ip[..2].copy_from_slice(&[0x45, 0]);
    ip[2..4].copy_from_slice(&length(FRAME - ETHERNET));
    ip[8..10].copy_from_slice(&[64, 17]);
    ip[16..].copy_from_slice(&REMOTE.octets());
    udp[2..4].copy_from_slice(&REMOTE_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&length(FRAME - ETHERNET - IP));
    frame
}

/// Makes the frame one of flow `number`.
fn aim(frame: &mut [u8; FRAME], number: u32) {
    let hosts = u32::from(HOSTS);
    let host = u16::try_from(number % hosts).unwrap_or_default();
    let port = FIRST_PORT + u16::try_from(number / hosts).unwrap_or_default();
    let (ip, udp) = frame[ETHERNET..].split_at_mut(IP);
    ip[12..16].copy_from_slice(&address(host).octets());
    ip[10..12].fill(0);
    let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    ip[10..12].copy_from_slice(&(!mh_common::checksum::fold(sum)).to_be_bytes());
    // A checksum of zero: none.
    udp[..2].copy_from_slice(&port.to_be_bytes());
}

/// Turns around what arrived; tells how many frames that were.
fn answer(outside: &[Socket; 2]) -> Result<u32> {
    let mut answered = 0;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    for socket in outside {
        loop {
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("receive a frame"),
            };
            // SAFETY: the kernel wrote so many bytes.
            let frame = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), length) };
            let ours = length == FRAME && frame[ETHERNET + 9] == 17 && frame[ETHERNET + 16..][..4] == REMOTE.octets();
            if ours {
                swap(&mut frame[..12], 6);
                swap(&mut frame[ETHERNET + 12..ETHERNET + IP], 4);
                swap(&mut frame[ETHERNET + IP..][..4], 2);
                send(socket, frame)?;
                answered += 1;
            }
        }
    }
    Ok(answered)
}

fn swap(bytes: &mut [u8], half: usize) {
    let (left, right) = bytes.split_at_mut(half);
    left.swap_with_slice(right);
}

fn send(socket: &Socket, frame: &[u8]) -> Result<()> {
    loop {
        match socket.send(frame) {
            Ok(_) => return Ok(()),
            // The device's queue is full: what is in it goes on meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                std::thread::yield_now();
            }
            Err(error) => return Err(error).context("send a frame"),
        }
    }
}

/// A packet socket on an interface of the host; one that only sends does not take in what arrives.
fn socket(host: &Host, interface: &str, receives: bool) -> Result<Socket> {
    let protocol = if receives { u16::try_from(libc::ETH_P_IP)?.to_be() } else { 0 };
    host.enter(|| -> Result<Socket> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
        socket.set_nonblocking(true)?;
        let index = i32::try_from(if_nametoindex(interface)?)?;
        // SAFETY: the closure fills in an address of the length that it says; all zero is a value of each of its fields.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, length| {
                let link = storage.cast::<libc::sockaddr_ll>();
                (*link).sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
                (*link).sll_protocol = protocol;
                (*link).sll_ifindex = index;
                *length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
                Ok(())
            })
        }?;
        socket.bind(&address)?;
        let size = libc::c_int::try_from(RECEIVE_BUFFER)?;
        // SAFETY: the option's value is an integer that lives through the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                u32::try_from(size_of_val(&size))?,
            )
        };
        ensure!(set == 0, "receive buffer: {}", io::Error::last_os_error());
        Ok(socket)
    })?
    .with_context(|| format!("packet socket on {interface} of {}", host.name()))
}

fn mac(host: &Host, interface: &str) -> Result<[u8; 6]> {
    let file = format!("/sys/class/net/{interface}/address");
    let text = host.run(&["cat", &file])?;
    let mut mac = [0; 6];
    let mut bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16));
    for byte in &mut mac {
        *byte = bytes.next().context("a short Ethernet address")??;
    }
    Ok(mac)
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

//! A link without Ethernet: two tun devices, and a thread that carries packets from the one to the other.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Host;

/// Room for the largest packet.
const PACKET_BYTES: usize = 65_536;
/// Only so that the thread looks at `stop` now and then.
const POLL_MS: u16 = 50;

/// The link. Its devices and its thread end with it.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes `interface` in `host` and `peer_interface` in `peer`, and sets both up.
    ///
    /// # Errors
    /// If a name is taken, or the kernel has no tun devices.
    pub fn new(host: &Host, interface: &str, peer: &Host, peer_interface: &str) -> Result<Self> {
        let ends = [tun(host, interface)?, tun(peer, peer_interface)?];
        host.ip(&[format!("link set {interface} up")])?;
        peer.ip(&[format!("link set {peer_interface} up")])?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("tunnel".into()).spawn({
            let stop = Arc::clone(&stop);
            move || carry(&ends, &stop)
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nothing to do about a panic in there.
            let _ = thread.join();
        }
    }
}

/// Makes a tun device whose packets this process reads and writes.
fn tun(host: &Host, interface: &str) -> Result<File> {
    ensure!(interface.len() < libc::IFNAMSIZ, "{interface}: too long a name");
    let kind = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    let made = host.enter(|| {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: plain data, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = kind;
        // SAFETY: the structure that this request takes, alive through the call.
        match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(file),
        }
    })?;
    made.with_context(|| format!("{}: tun device {interface}", host.name()))
}

/// Carries packets until told to stop, or until a device is gone.
fn carry(ends: &[File; 2], stop: &AtomicBool) {
    let mut buffer = vec![0; PACKET_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let mut wanted = [0, 1].map(|end: usize| PollFd::new(ends[end].as_fd(), PollFlags::POLLIN));
        if poll(&mut wanted, PollTimeout::from(POLL_MS)).is_err() {
            return;
        }
        for (mut from, mut to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            // Until it would block. A device that is down takes nothing: what is sent to it is lost, as on any link.
            while let Ok(length) = from.read(&mut buffer) {
                let _ = to.write(&buffer[..length]);
            }
        }
    }
}

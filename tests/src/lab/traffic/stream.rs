//! Streams with a hash over TCP: transfers of a known size, and open-ended ones that go on until told.
//!
//! The sender makes blocks of pseudorandom bytes, each with its number in front, so that a lost, repeated, reordered or altered
//! byte changes the SHA-256 that the receiver computes. On the wire: a 4-byte length before each block, a length of 0 after the
//! last, then the sender's hash; a receiver that computes another one fails.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use sha2::{Digest as _, Sha256};

use super::tcp::{STALL_TIMEOUT, TcpFlow, TcpServer};
use crate::lab::Host;

/// Size of a block.
pub const BLOCK_BYTES: u32 = 256 * 1024;

/// Pseudorandom bytes (xorshift64*), the same in every block but for the number in front.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    });
    words.take(BLOCK_BYTES as usize / 8).flat_map(u64::to_be_bytes).collect()
});

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Upload,
    /// From the server to the client.
    Download,
}

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub enum Amount<'a> {
    /// Exactly so many bytes.
    Bytes(u64),
    /// Whole blocks until this becomes true.
    Until(&'a AtomicBool),
}

/// What was transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes of payload.
    pub bytes: u64,
    /// SHA-256 of the payload, the same at both ends.
    pub hash: [u8; 32],
    /// From the connection's first byte to the hash.
    pub elapsed: Duration,
    /// The client as the server saw it.
    pub seen: SocketAddrV4,
}

/// What one end counted.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: u64,
    pub(super) hash: [u8; 32],
}

/// Sends a stream; `progress` is told about every part that the socket took.
fn send(mut stream: &TcpStream, amount: Amount<'_>, progress: impl Fn(u64)) -> Result<Received> {
    let mut hasher = Sha256::new();
    let mut block = PATTERN.clone();
    let mut bytes = 0;
    for number in 0_u64.. {
        let length = match amount {
            Amount::Bytes(total) => u32::try_from((total - bytes).min(BLOCK_BYTES.into()))?,
            Amount::Until(told) if told.load(Ordering::Relaxed) => 0,
            Amount::Until(_) => BLOCK_BYTES,
        };
        stream.write_all(&length.to_be_bytes()).context("send")?;
        if length == 0 {
            break;
        }
        block[..8].copy_from_slice(&number.to_be_bytes());
        let part = &block[..length as usize];
        hasher.update(part);
        stream.write_all(part).context("send")?;
        bytes += u64::from(length);
        progress(length.into());
    }
    let hash: [u8; 32] = hasher.finalize().into();
    stream.write_all(&hash).context("send the hash")?;
    Ok(Received { bytes, hash })
}

/// Receives a stream to its end and checks its hash; `progress` is told about every part.
pub(super) fn receive(stream: &TcpStream, progress: impl Fn(u64)) -> Result<Received> {
    let mut stream = BufReader::with_capacity(BLOCK_BYTES as usize, stream);
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut bytes = 0;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).context("receive")?;
        let length = u32::from_be_bytes(length);
        if length == 0 {
            break;
        }
        let part = block.get_mut(..length as usize).with_context(|| format!("a block of {length} bytes"))?;
        stream.read_exact(part).context("receive")?;
        hasher.update(&*part);
        bytes += u64::from(length);
        progress(length.into());
    }
    let hash: [u8; 32] = hasher.finalize().into();
    let mut claimed = [0; 32];
    stream.read_exact(&mut claimed).context("receive the hash")?;
    ensure!(hash == claimed, "{bytes} bytes arrived with another hash than they were sent with");
    Ok(Received { bytes, hash })
}

/// The server's side of a download: `length` bytes, or for `u64::MAX` until the client says stop by closing its direction.
pub(super) fn send_until_told(stream: &TcpStream, length: u64) -> Result<()> {
    if length != u64::MAX {
        return send(stream, Amount::Bytes(length), drop).map(drop);
    }
    let told = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Nothing is sent that way: any end of the read is the word to stop.
            let mut listener = stream;
            let _ = listener.read(&mut [0]);
            told.store(true, Ordering::Relaxed);
        });
        send(stream, Amount::Until(&told), drop).map(drop)
    })
}

fn upload(flow: TcpFlow, amount: Amount<'_>, progress: impl Fn(u64)) -> Result<Transferred> {
    let seen = flow.seen;
    let begun = Instant::now();
    let mut stream = flow.into_stream();
    stream.write_all(b"u")?;
    let sent = send(&stream, amount, progress)?;
    let mut hash = [0; 32];
    stream.read_exact(&mut hash).context("receive the server's hash")?;
    ensure!(hash == sent.hash, "the server computed another hash");
    Ok(Transferred { bytes: sent.bytes, hash, elapsed: begun.elapsed(), seen })
}

fn download(flow: TcpFlow, length: u64, progress: impl Fn(&TcpStream, u64)) -> Result<Transferred> {
    let seen = flow.seen;
    let begun = Instant::now();
    let mut stream = flow.into_stream();
    stream.write_all(b"d")?;
    stream.write_all(&length.to_be_bytes())?;
    let Received { bytes, hash } = receive(&stream, |bytes| progress(&stream, bytes))?;
    Ok(Transferred { bytes, hash, elapsed: begun.elapsed(), seen })
}

/// Transfers `bytes` between `client` and a [`TcpServer`] and compares the hashes of both ends.
///
/// # Errors
/// If the connection fails, stalls for 20 seconds, or the hashes differ.
pub fn transfer(client: &Host, to: SocketAddrV4, direction: Direction, bytes: u64) -> Result<Transferred> {
    let flow = TcpFlow::connect(client, to, STALL_TIMEOUT)?;
    let transferred = match direction {
        Direction::Upload => upload(flow, Amount::Bytes(bytes), drop),
        Direction::Download => download(flow, bytes, |_, _| ()),
    };
    let transferred = transferred.with_context(|| format!("{direction:?} between {} and {to}", client.name()))?;
    ensure!(transferred.bytes == bytes, "{} bytes of {bytes} arrived", transferred.bytes);
    Ok(transferred)
}

/// A transfer that goes on until it is told to finish.
#[derive(Debug)]
pub struct OpenTransfer {
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    thread: JoinHandle<Result<Transferred>>,
}

impl OpenTransfer {
    /// Starts one between `client` and `server` on a thread of its own.
    ///
    /// # Errors
    /// If there is no connection.
    pub fn start(client: &Host, server: &TcpServer, direction: Direction) -> Result<Self> {
        let flow = TcpFlow::connect(client, server.address(), STALL_TIMEOUT)?;
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(AtomicU64::new(0));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&progress));
        let work = move || match direction {
            // What the sockets' buffers took is ahead of what has arrived by some megabytes: little beside what tests wait for.
            Direction::Upload => upload(flow, Amount::Until(&told), |bytes| {
                count.fetch_add(bytes, Ordering::Relaxed);
            }),
            Direction::Download => download(flow, u64::MAX, |stream, bytes| {
                count.fetch_add(bytes, Ordering::Relaxed);
                if told.load(Ordering::Relaxed) {
                    // Said again with every block, which does no harm; a dead connection shows in the next read.
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }),
        };
        let thread = thread::Builder::new().name("transfer".into()).spawn(work)?;
        Ok(Self { stop, progress, thread })
    }

    /// Bytes that were transferred so far.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` more have been transferred than at this call.
    ///
    /// # Errors
    /// If the transfer ends, or doesn't get there within 20 seconds.
    pub fn advance(&self, bytes: u64) -> Result<()> {
        let goal = self.progress() + bytes;
        super::super::wait_until("a transfer to advance", STALL_TIMEOUT, || {
            ensure!(!self.thread.is_finished() || self.progress() >= goal, "the transfer ended early");
            Ok(self.progress() >= goal)
        })
        .map(drop)
    }

    /// Ends the transfer in order and checks the hashes of both ends.
    ///
    /// # Errors
    /// If the connection failed or stalled at any time, or the hashes differ.
    pub fn finish(self) -> Result<Transferred> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the transfer's thread panicked"))?.context("open transfer")
    }
}

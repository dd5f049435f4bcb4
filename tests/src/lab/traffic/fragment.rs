//! Datagrams in fragments, built by hand and sent in any order, and counting packets at a host.

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

use crate::lab::Host;
use crate::packet::checksum;

/// The IP protocol UDP.
pub const UDP: u8 = 17;
const MORE_FRAGMENTS: u16 = 0x2000;

/// A UDP datagram to be sent in fragments.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Source address and port.
    pub src: SocketAddrV4,
    /// Destination address and port.
    pub dst: SocketAddrV4,
    /// The IP protocol, for what only looks like UDP; 17 else.
    pub protocol: u8,
    /// IP's identification field; not zero, or the kernel chooses one for each fragment.
    pub id: u16,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// A fragment: an IP packet, and where to.
#[derive(Clone, Debug)]
pub struct Fragment {
    dst: SocketAddrV4,
    packet: Vec<u8>,
}

impl Datagram {
    /// Its `count` fragments in order, all but the last of the same length.
    #[must_use]
    pub fn fragments(&self, count: usize) -> Vec<Fragment> {
        let (sport, dport) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let len = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX).to_be_bytes();
        let (src, dst) = (self.src.ip().octets(), self.dst.ip().octets());
        let header = [sport, dport, len].concat();
        let sum = checksum(&[&src, &dst, &[0, self.protocol], &len, &header, &[0, 0], &self.payload]);
        // RFC 768: a computed zero is sent as all ones.
        let sum = if sum == 0 { 0xffff } else { sum };
        let whole = [&header[..], &sum.to_be_bytes(), &self.payload].concat();
        // Offsets count in units of eight bytes.
        let part = whole.len().div_ceil(count).next_multiple_of(8);
        let last = whole.len().div_ceil(part) - 1;
        let parts = whole.chunks(part).enumerate();
        parts.map(|(n, bytes)| self.fragment(n * part / 8, n != last, bytes)).collect()
    }

    /// A fragment that begins at `offset`, in units of eight bytes.
    #[must_use]
    pub fn fragment(&self, offset: usize, more: bool, bytes: &[u8]) -> Fragment {
        let offset = u16::try_from(offset).unwrap_or(0) | if more { MORE_FRAGMENTS } else { 0 };
        let total = u16::try_from(20 + bytes.len()).unwrap_or(u16::MAX);
        let mut header = [0u8; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..6].copy_from_slice(&self.id.to_be_bytes());
        header[6..8].copy_from_slice(&offset.to_be_bytes());
        header[8] = 64;
        header[9] = self.protocol;
        header[12..16].copy_from_slice(&self.src.ip().octets());
        header[16..20].copy_from_slice(&self.dst.ip().octets());
        // The kernel fills in the header's checksum.
        Fragment { dst: self.dst, packet: [&header[..], bytes].concat() }
    }
}

/// A raw socket in a host that sends IP packets as they are.
#[derive(Debug)]
pub struct RawSender {
    socket: OwnedFd,
}

impl RawSender {
    /// Opens one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(host: &Host) -> Result<Self> {
        let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        Ok(Self { socket: host.enter(open)?.context("raw socket")? })
    }

    /// Sends fragments in this order.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub fn send<'a>(&self, fragments: impl IntoIterator<Item = &'a Fragment>) -> Result<()> {
        for Fragment { dst, packet } in fragments {
            sendto(self.socket.as_raw_fd(), packet, &SockaddrIn::from(*dst), MsgFlags::empty())
                .with_context(|| format!("{} bytes to {dst}", packet.len()))?;
        }
        Ok(())
    }
}

/// Counts IPv4 packets that arrive at a host, before anything is put together or filtered.
#[derive(Debug)]
pub struct ArrivalCounter {
    host: Host,
}

impl ArrivalCounter {
    /// Counts those that match an nft expression; one counter for each host.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn start(host: &Host, expression: &str) -> Result<Self> {
        host.nft(&format!(
            "table ip arrivals {{\n  counter matching {{ }}\n  chain c {{\n    type filter hook prerouting priority -500;\n    \
             {expression} counter name matching\n  }}\n}}\n"
        ))?;
        Ok(Self { host: host.clone() })
    }

    /// [`ArrivalCounter::start`] for fragments other than the first.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn later_fragments(host: &Host) -> Result<Self> {
        Self::start(host, "ip frag-off & 0x1fff != 0")
    }

    /// How many have arrived so far.
    ///
    /// # Errors
    /// If nft can't be run.
    pub fn packets(&self) -> Result<u64> {
        let printed = self.host.run(&["nft", "list", "counter", "ip", "arrivals", "matching"])?;
        let mut words = printed.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|number| number.parse().ok()).with_context(|| format!("nft printed {printed:?}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn fragments_make_up_the_datagram() {
        let (src, dst) = ("192.0.2.1:5".parse().unwrap(), "192.0.2.2:7".parse().unwrap());
        let datagram = Datagram { src, dst, protocol: UDP, id: 9, payload: vec![7; 1000] };
        let fragments = datagram.fragments(3);
        assert_eq!(fragments.len(), 3);
        let offsets: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment.packet[6..8]).collect();
        assert_eq!(offsets, [[0x20, 0], [0x20, 42], [0, 84]]);
        let bytes: usize = fragments.iter().map(|fragment| fragment.packet.len() - 20).sum();
        assert_eq!(bytes, 1008);
    }
}

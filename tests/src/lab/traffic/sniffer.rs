//! Watching what arrives at a host's interfaces, before its packet filter.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Result;

use crate::lab::{Host, Process, require_tools};

/// A TCP or UDP packet as tcpdump printed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source address and port.
    pub source: SocketAddrV4,
    /// Destination address and port.
    pub destination: SocketAddrV4,
}

/// A running capture of IPv4 packets that match a filter.
#[derive(Debug)]
pub struct Sniffer {
    tcpdump: Process,
}

impl Sniffer {
    /// Captures on all of `host`'s interfaces what comes in and matches `filter` (pcap syntax); returns once it does.
    ///
    /// # Errors
    /// If tcpdump is not installed, or doesn't like the filter.
    pub fn start(host: &Host, filter: &str) -> Result<Self> {
        Self::start_with(host, &[], filter)
    }

    /// [`Sniffer::start`] for [`Sniffer::text`] with all headers, those that ICMP errors quote too, and with their checksums judged.
    ///
    /// # Errors
    /// As [`Sniffer::start`].
    pub fn start_verbose(host: &Host, filter: &str) -> Result<Self> {
        Self::start_with(host, &["-v"], filter)
    }

    fn start_with(host: &Host, options: &[&str], filter: &str) -> Result<Self> {
        require_tools(&["tcpdump"])?;
        // With the default snapshot length a slot of the capture's ring takes 256 KiB: a burst of more than eight packets is lost.
        let mut arguments = vec!["tcpdump", "-n", "-l", "--immediate-mode", "-s", "128", "-t", "-Q", "in", "-i", "any"];
        arguments.extend(options);
        arguments.push(filter);
        let mut tcpdump = host.spawn("tcpdump", &arguments)?;
        tcpdump.wait_for_line("listening on", Duration::from_secs(10))?;
        Ok(Self { tcpdump })
    }

    /// What tcpdump printed so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.tcpdump.stdout()
    }

    /// What was captured so far, in order.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        self.tcpdump.stdout().lines().filter_map(parse).collect()
    }
}

/// Reads `eth0 In IP 1.2.3.4.56 > 5.6.7.8.90: …`.
fn parse(line: &str) -> Option<Segment> {
    let (left, right) = line.split_once(" > ")?;
    let source = left.rsplit(' ').next()?;
    let (destination, _) = right.split_once(':')?;
    Some(Segment { source: address(source)?, destination: address(destination)? })
}

/// Reads tcpdump's `ADDRESS.PORT`.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.rsplit_once('.')?;
    Some(SocketAddrV4::new(ip.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_tcpdump() {
        let line = "eth1  In  IP 198.51.100.2.40000 > 192.0.2.10.7777: Flags [S], seq 1, win 64240, length 0";
        let segment = parse(line);
        assert_eq!(
            segment.map(|segment| (segment.source.to_string(), segment.destination.to_string())),
            Some(("198.51.100.2:40000".into(), "192.0.2.10:7777".into())),
        );
        assert_eq!(parse("eth1  In  ARP, Request who-has 10.99.1.1 tell 10.99.1.2, length 28"), None);
    }
}

//! From the configuration's terms to the datapath's records.

use mh_common::{abi, time, wire};

use super::{ForwardedPort, InsidePort};
use crate::config::{AddressRange, Config, Filtering, Forward, ForwardProtocol, MssClamp, Timeouts};

/// A name, padded with zeros.
pub fn padded(name: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// The ports that a forward opens on one uplink, and where they lead.
pub fn forward(
    forward: &Forward,
    uplink: u8,
    addresses: &[AddressRange],
) -> impl Iterator<Item = (ForwardedPort, InsidePort)> {
    let protocols = forward.protocols.iter().map(|protocol| match protocol {
        ForwardProtocol::Tcp => wire::PROTOCOL_TCP,
        ForwardProtocol::Udp => wire::PROTOCOL_UDP,
    });
    protocols.flat_map(move |protocol| {
        addresses.iter().flat_map(|range| range.addresses()).flat_map(move |address| {
            (forward.ports.first..=forward.ports.last).zip(forward.to_port..=u16::MAX).map(move |(outside, inside)| {
                let port = ForwardedPort { uplink, protocol, address, port: outside };
                (port, InsidePort { address: forward.to, port: inside })
            })
        })
    })
}

/// An uplink's outside addresses.
pub fn pool(addresses: &[AddressRange]) -> abi::Pool {
    let mut pool = abi::Pool::default();
    for (slot, range) in pool.ranges.iter_mut().zip(addresses) {
        *slot = abi::PoolRange { first: range.first.to_bits(), count: range.count };
        pool.total += range.count;
        pool.used += 1;
    }
    pool
}

/// The MSS that an uplink's connections are held to; zero: none.
pub fn mss(clamp: MssClamp, mtu: u32) -> u16 {
    /// IPv4 and TCP headers without options.
    const HEADERS: u32 = 40;
    match clamp {
        MssClamp::Off => 0,
        MssClamp::Bytes(bytes) => bytes,
        MssClamp::Auto => u16::try_from(mtu.saturating_sub(HEADERS)).unwrap_or(u16::MAX),
    }
}

/// The settings, but for version, seed, number of uplinks and the LANs' MTU.
pub fn settings(config: &Config) -> abi::Settings {
    let mut flags = 0;
    if config.nat.filtering == Filtering::AddressDependent {
        flags |= abi::ADDRESS_DEPENDENT;
    }
    if config.datapath.host_traffic {
        flags |= abi::HOST_TRAFFIC;
    }
    if config.uplinks.iter().all(|uplink| uplink.nat) {
        flags |= abi::ALL_TRANSLATE;
    }
    // From a second to the window in which the datapath counts.
    let window_ns = u64::from(time::SEEN_GRANULARITY_TICKS) * time::TICK_NS;
    let per_window = (u64::from(config.limits.new_flows_per_source) * window_ns).div_ceil(1_000_000_000);
    abi::Settings {
        timeouts: timeouts(&config.timeouts),
        flags,
        mark_mask: config.datapath.mark_mask,
        mark_shift: config.datapath.mark_mask.trailing_zeros(),
        bindings_per_source: config.limits.bindings_per_source,
        new_flows_per_source: u32::try_from(per_window).unwrap_or(u32::MAX),
        lan_mtu: u32::MAX,
        ..abi::Settings::default()
    }
}

fn timeouts(timeouts: &Timeouts) -> abi::Timeouts {
    let ticks = |duration: std::time::Duration| time::ticks_for(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    abi::Timeouts {
        udp: ticks(timeouts.udp),
        tcp_established: ticks(timeouts.tcp_established),
        tcp_transitory: ticks(timeouts.tcp_transitory),
        icmp: ticks(timeouts.icmp),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::PortRange;

    fn range(first: [u8; 4], count: u32) -> AddressRange {
        AddressRange { first: first.into(), count }
    }

    #[test]
    fn a_pool_gives_out_each_of_its_addresses() {
        let pool = pool(&[range([198, 51, 100, 2], 1), range([198, 51, 100, 8], 4)]);
        assert_eq!((pool.total, pool.used), (5, 2));
        let all: Vec<Ipv4Addr> = (0..6).map(|n| pool.nth(n).unwrap().into()).collect();
        let last: Vec<u8> = all.iter().map(|address| address.octets()[3]).collect();
        assert_eq!(last, [2, 8, 9, 10, 11, 2]);
        assert_eq!(abi::Pool::default().nth(0), None);
    }

    #[test]
    fn a_forward_opens_each_port_of_each_address() {
        let config = Forward {
            uplinks: vec![0],
            protocols: vec![ForwardProtocol::Tcp, ForwardProtocol::Udp],
            ports: PortRange { first: 8000, last: 8001 },
            to: Ipv4Addr::new(192, 168, 1, 20),
            to_port: 80,
        };
        let opened: Vec<_> = forward(&config, 3, &[range([198, 51, 100, 8], 2)]).collect();
        assert_eq!(opened.len(), 8);
        let port = |protocol, last, port| ForwardedPort {
            uplink: 3,
            protocol,
            address: Ipv4Addr::new(198, 51, 100, last),
            port,
        };
        let to = |port| InsidePort { address: Ipv4Addr::new(192, 168, 1, 20), port };
        assert!(opened.contains(&(port(6, 8, 8000), to(80))));
        assert!(opened.contains(&(port(17, 9, 8001), to(81))));
    }

    #[test]
    fn the_mss_is_what_the_mtu_has_room_for() {
        assert_eq!(mss(MssClamp::Auto, 1492), 1452);
        assert_eq!(mss(MssClamp::Bytes(1300), 1492), 1300);
        assert_eq!(mss(MssClamp::Off, 1492), 0);
    }
}

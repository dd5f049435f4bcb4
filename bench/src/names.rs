//! What tables, rows and columns are called: goals and pictures find figures by these.

/// Tables: the stems of the files in `bench/results`.
pub mod table {
    /// Packets per second of established flows.
    pub const FORWARD: &str = "forward";
    /// What the router itself spends on a packet, all in all.
    pub const ROUTER_COST: &str = "router-cost";
    /// What the router itself spends on a packet besides moving it.
    pub const ROUTER_WORK: &str = "router-work";
    /// New flows per second, with room for all.
    pub const NEW_FLOWS: &str = "new-flows";
    /// New flows per second, with room for some.
    pub const NEW_FLOWS_BEYOND: &str = "new-flows-beyond";
    /// Established flows that live on when there is no room for new ones.
    pub const SURVIVORS: &str = "new-flows-survivors";
    /// The cost of a program's run.
    pub const PROGRAM: &str = "program";
    /// The sizes of the programs.
    pub const INSTRUCTIONS: &str = "instructions";
    /// TCP throughput.
    pub const TCP: &str = "tcp";
    /// Short HTTP connections: requests per second.
    pub const HTTP: &str = "http";
    /// Short HTTP connections: latency.
    pub const HTTP_LATENCY: &str = "http-latency";
    /// Kernel memory per flow.
    pub const FOOTPRINT_MEMORY: &str = "footprint-memory";
    /// Kernel memory by map.
    pub const FOOTPRINT_MAPS: &str = "footprint-maps";
    /// How long a sweep takes.
    pub const FOOTPRINT_SWEEP: &str = "footprint-sweep";
    /// The controller's processor time.
    pub const FOOTPRINT_CONTROLLER: &str = "footprint-controller";
    /// Latency with and without a sweep.
    pub const FOOTPRINT_LATENCY: &str = "footprint-latency";
    /// Packets per second by the number of flows.
    pub const GROWTH_FORWARD: &str = "growth-forward";
    /// New flows per second by the number of flows.
    pub const GROWTH_NEW_FLOWS: &str = "growth-new-flows";
    /// What each doubling of flows costs.
    pub const GROWTH_SLOPES: &str = "growth-slopes";
}

/// Rows: who is in the router's place.
pub mod contender {
    /// mh on XDP.
    pub const MH_XDP: &str = "mh, XDP";
    /// mh on TC.
    pub const MH_TC: &str = "mh, TC";
    /// Everything is dropped at the router: the generator's limit.
    pub const XDP_DROP: &str = "XDP drop";
    /// Everything is redirected without a look: the datapath's limit.
    pub const BLIND_REDIRECT: &str = "blind XDP redirect";
    /// The kernel, without translation.
    pub const KERNEL: &str = "kernel forwarding, no NAT";
    /// The kernel over two next hops, without translation.
    pub const ECMP: &str = "kernel ECMP by ports, no NAT";
    /// The classic set-up: CONNMARK, statistic nth, SNAT, ip rules.
    pub const IPTABLES: &str = "iptables: CONNMARK, nth, SNAT";
    /// The same with nft: jhash, ct mark, snat, ip rules.
    pub const NFT: &str = "nft: jhash, ct mark, snat";
}

/// Columns of [`table::PROGRAM`]: kinds of packets.
pub mod column {
    /// From inside, of an established flow.
    pub const HIT_OUT: &str = "hit, out";
    /// From an uplink, of an established flow.
    pub const HIT_BACK: &str = "hit, back";
    /// An error from an uplink, about a packet of an established flow.
    pub const ICMP_ERROR: &str = "ICMP error";
    /// To the router itself.
    pub const NOT_OURS: &str = "not ours";

    /// From inside, of a flow that begins, with so many rules that it does not agree with.
    #[must_use]
    pub fn new_flow(rules: usize) -> String {
        format!("new flow, {rules} rules")
    }
}

/// Rows and columns of the footprint's tables.
pub mod footprint {
    /// mh in the table of memory.
    pub const MH: &str = "mh";
    /// A column of the table of memory.
    pub const ONE_FLOW: &str = "one flow";
    /// A row of the table of the controller's time.
    pub const SWEEP: &str = "the expiry sweep, while it runs";
    /// A row of the table of latency.
    pub const CALM: &str = "while no sweep runs";
    /// A row of the table of latency.
    pub const SWEPT: &str = "while a sweep runs";
}

/// What a contender is, which is how it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// mh itself.
    Mh,
    /// Something that does not route: a limit to measure by.
    Limit,
    /// What people use.
    Peer,
}

impl Kind {
    /// By the contender's name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if name == footprint::MH || name.starts_with("mh, ") {
            Self::Mh
        } else if [contender::XDP_DROP, contender::BLIND_REDIRECT].contains(&name) {
            Self::Limit
        } else {
            Self::Peer
        }
    }
}

/// Powers of 1024, the greatest first.
const BINARY: [(&str, u64); 3] = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// A column: so many flows, such as `64 Ki flows`.
#[must_use]
pub fn flows(count: u64) -> String {
    let (number, unit) = BINARY
        .iter()
        .find(|(_, size)| count >= *size && count.is_multiple_of(*size))
        .map_or((count, String::new()), |(unit, size)| (count / size, format!("{unit} ")));
    format!("{number} {unit}{}", if count == 1 { "flow" } else { "flows" })
}

/// How many flows a column is about: what [`flows`] wrote, at the end of the column's name or after a comma.
#[must_use]
pub fn flows_in(column: &str) -> Option<u64> {
    column.split(", ").find_map(|part| {
        let mut words = part.strip_suffix(" flows").or_else(|| part.strip_suffix(" flow"))?.split(' ');
        let number: u64 = words.next()?.parse().ok()?;
        let unit = match words.next() {
            None => 1,
            Some(name) => BINARY.iter().find(|(unit, _)| *unit == name)?.1,
        };
        words.next().is_none().then_some(number.checked_mul(unit)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_written_and_read() {
        for (count, text) in [
            (1, "1 flow"),
            (1000, "1000 flows"),
            (1024, "1 Ki flows"),
            (65_536, "64 Ki flows"),
            (4 << 20, "4 Mi flows"),
        ] {
            assert_eq!(flows(count), text);
            assert_eq!(flows_in(text), Some(count));
            assert_eq!(flows_in(&format!("64 B, {text}, forward")), Some(count));
        }
        for other in ["one flow", "64 B", "flows", "1 Ki Ki flows", "1 x flows", ""] {
            assert_eq!(flows_in(other), None, "{other}");
        }
    }

    #[test]
    fn contenders_are_told_apart() {
        assert_eq!(Kind::of(contender::MH_TC), Kind::Mh);
        assert_eq!(Kind::of(contender::BLIND_REDIRECT), Kind::Limit);
        assert_eq!(Kind::of(contender::NFT), Kind::Peer);
        assert_eq!(Kind::of("mh_flows4"), Kind::Peer, "a map is no contender");
    }
}

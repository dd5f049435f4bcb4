//! Every way in which the datapath can be done with a packet.
//!
//! Each has one counter (its discriminant is the index in the counters map) and one stable name, which users see in
//! `mhctl stats`. Three groups: a packet was sent on by mh, it was left to the kernel untouched, or it was dropped; nothing is
//! dropped without a reason that is counted.

macro_rules! verdicts {
    ($($(#[$doc:meta])* $group:ident $variant:ident = $index:literal, $name:literal;)*) => {
        /// What became of a packet, and why. The discriminants are indices in the counters map and never change their meaning
        /// within an ABI version.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Verdict {
            $($(#[$doc])* $variant = $index,)*
        }

        impl Verdict {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable name that users see.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What happens to a packet with this verdict.
            pub const fn group(self) -> Group {
                match self { $(Self::$variant => Group::$group,)* }
            }
        }
    };
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Translated and sent out by mh.
    Send,
    /// Left to the kernel (or, from XDP, to the TC program), untouched.
    Pass,
    /// Dropped; the name is the reason.
    Drop,
}

verdicts! {
    /// From inside, on a flow that exists.
    Send Forward = 0, "forward";
    /// From inside, the first packet of a new flow.
    Send New = 1, "new";
    /// From an uplink, on a flow that exists.
    Send Reply = 2, "reply";
    /// On a flow of which one half had been evicted and was restored.
    Send Restored = 3, "restored";

    /// The interface is not managed by mh (the program outlived its place in the interface table).
    Pass Unmanaged = 8, "pass_unmanaged";
    /// Neither IPv4 nor IPv6: ARP, LLDP, PPPoE and the like.
    Pass NotIp = 9, "pass_not_ip";
    /// IPv6.
    Pass Ipv6 = 10, "pass_ipv6";
    /// VLAN-tagged.
    Pass Vlan = 11, "pass_vlan";
    /// Not for this router's own Ethernet address: broadcast, multicast, or overheard.
    Pass NotUnicast = 12, "pass_not_unicast";
    /// An address that no router forwards (loopback, link-local, multicast, broadcast, unspecified).
    Pass Scope = 13, "pass_scope";
    /// A fragment.
    Pass Fragment = 14, "pass_fragment";
    /// A protocol that is not translated, or an ICMP message that is not an echo.
    Pass Protocol = 15, "pass_protocol";
    /// Cut short, or a length or version that contradicts itself.
    Pass Malformed = 16, "pass_malformed";
    /// The TTL ends here: the kernel answers.
    Pass TtlExpired = 17, "pass_ttl_expired";
    /// For the machine itself, or routed elsewhere than to an uplink.
    Pass NotForUplink = 18, "pass_not_for_uplink";
    /// From an uplink and part of no flow.
    Pass NoFlow = 19, "pass_no_flow";
    /// From XDP to the TC program, which decides (and counts again).
    Pass ToTc = 20, "xdp_to_tc";

    /// No uplink can take a new flow.
    Drop NoUplink = 32, "no_uplink";
    /// The binding table is full.
    Drop BindingsFull = 33, "bindings_full";
    /// No free outside port was found for a new flow.
    Drop PortsExhausted = 34, "ports_exhausted";
    /// The conntrack took no entry.
    Drop ConntrackFull = 35, "conntrack_full";
    /// A TCP FIN or RST that belongs to no flow: it would make a phantom entry.
    Drop TcpStray = 36, "tcp_stray";
    /// Larger than the uplink's MTU.
    Drop TooBig = 37, "too_big";
    /// The inside host, or the router to it, can't be reached on any interface but an uplink.
    Drop NoRouteBack = 38, "no_route_back";
    /// A packet that was accepted could not be rewritten.
    Drop Rewrite = 39, "rewrite_failed";
}

/// How many counters there are; one more than the largest discriminant, rounded up.
pub const COUNTERS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_counters_are_unique_and_in_range() {
        let names: HashSet<_> = Verdict::ALL.iter().map(|v| v.name()).collect();
        let indices: HashSet<_> = Verdict::ALL.iter().map(|&v| v as u32).collect();
        assert_eq!(names.len(), Verdict::ALL.len());
        assert_eq!(indices.len(), Verdict::ALL.len());
        assert!(indices.iter().all(|&i| i < COUNTERS));
    }

    #[test]
    fn groups_have_their_own_ranges() {
        for &verdict in Verdict::ALL {
            let expected = match verdict as u32 {
                0..8 => Group::Send,
                8..32 => Group::Pass,
                _ => Group::Drop,
            };
            assert_eq!(verdict.group(), expected, "{verdict:?}");
        }
    }
}

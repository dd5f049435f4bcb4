//! Every way in which the datapath can be done with a packet.
//!
//! Each has one counter (its discriminant is the index in the counters map) and one stable name, which users see in
//! `mhctl stats`. Four groups: a packet was sent on by mh, it was left to the kernel untouched, it was dropped, or it was refused with
//! an ICMP message; nothing is dropped or refused without a reason that is counted.

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

            /// That with this discriminant.
            pub const fn from_index(index: u32) -> Option<Self> {
                match index {
                    $($index => Some(Self::$variant),)*
                    _ => None,
                }
            }

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
    /// Left to the kernel with a mark, on which it drops the packet and tells the sender why by ICMP; the name is the reason.
    Refuse,
}

verdicts! {
    /// From inside, on a flow that exists.
    Send Forward = 0, "forward";
    /// From inside or from the machine itself, the first packet of a new flow.
    Send New = 1, "new";
    /// From an uplink, on a flow that exists.
    Send Reply = 2, "reply";
    /// On a flow of which one half had been evicted and was restored.
    Send Restored = 3, "restored";
    /// From an uplink, the first packet of a flow that the remote side begins: by a port forward, or by a binding that is open to it.
    Send Inbound = 4, "inbound";
    /// From inside to inside by outside addresses.
    Send Hairpin = 5, "hairpin";
    /// An ICMP error about a packet of a flow.
    Send IcmpError = 6, "icmp_error";
    /// A later fragment of a datagram.
    Send Fragment = 7, "fragment";
    /// A later fragment that came before the first one, and waits.
    Send FragmentHeld = 8, "fragment_held";
    /// From or to the machine itself, on a flow that mh follows.
    Send Host = 9, "host";
    /// A TCP segment from inside or from the machine itself, on a flow whose uplink is down or has lost the flow's address: answered with
    /// a RST.
    Send Reset = 10, "reset";

    /// The interface is not managed by mh (the program outlived its place in the interface table).
    Pass Unmanaged = 16, "pass_unmanaged";
    /// Neither IPv4 nor IPv6: ARP, LLDP, PPPoE and the like.
    Pass NotIp = 17, "pass_not_ip";
    /// IPv6.
    Pass Ipv6 = 18, "pass_ipv6";
    /// VLAN-tagged.
    Pass Vlan = 19, "pass_vlan";
    /// Not for this router's own Ethernet address: broadcast, multicast, or overheard.
    Pass NotUnicast = 20, "pass_not_unicast";
    /// An address that no router forwards (loopback, link-local, multicast, broadcast, unspecified).
    Pass Scope = 21, "pass_scope";
    /// A protocol that is not translated, or an ICMP message that is neither an echo nor an error.
    Pass Protocol = 22, "pass_protocol";
    /// Cut short, or a length or version that contradicts itself.
    Pass Malformed = 23, "pass_malformed";
    /// The TTL ends here: the kernel answers.
    Pass TtlExpired = 24, "pass_ttl_expired";
    /// For the machine itself, or routed elsewhere than to an uplink.
    Pass NotForUplink = 25, "pass_not_for_uplink";
    /// From an uplink and part of no flow.
    Pass NoFlow = 26, "pass_no_flow";
    /// From XDP to the TC program, which decides (and counts again).
    Pass ToTc = 27, "xdp_to_tc";
    /// Larger than the next link's MTU and not to be kept whole: the kernel fragments it.
    Pass ToFragment = 28, "pass_to_fragment";
    /// Sent by the machine itself, or forwarded by the kernel, and left as it is; or a RST that mh sends to the machine itself.
    Pass HostUntouched = 29, "pass_host";
    /// A rule leaves it to the kernel.
    Pass Direct = 30, "pass_direct";

    /// The conntrack took no entry.
    Drop ConntrackFull = 40, "conntrack_full";
    /// A TCP FIN or RST that belongs to no flow: it would make a phantom entry.
    Drop TcpStray = 41, "tcp_stray";
    /// The inside host, or the router to it, can't be reached on any interface but an uplink; or nobody inside has the outside address
    /// and port, and the address is not the machine's own.
    Drop NoRouteBack = 42, "no_route_back";
    /// A packet that was accepted could not be rewritten.
    Drop Rewrite = 43, "rewrite_failed";
    /// From a remote address that the filter does not let in.
    Drop Filtered = 44, "filtered";
    /// A TCP SYN from an uplink to a port that is for inside hosts and that nobody has: never answered (RFC 5382 REQ-4).
    Drop Unsolicited = 45, "unsolicited_syn";
    /// An ICMP error from inside about a packet of no flow: it would carry inside addresses out.
    Drop IcmpStray = 46, "icmp_stray";
    /// A fragment came before the first one of its datagram, and there was no room for it to wait, or the first one was not let through.
    Drop FragmentsFull = 47, "fragments_full";
    /// A program that should have gone on with the packet is not there.
    Drop Stage = 48, "stage_missing";
    /// A packet that the kernel was to refuse, or to send by another uplink, came to this uplink: its routing rules are not in force.
    Drop Misrouted = 49, "misrouted";
    /// A rule drops it.
    Drop RuleDrop = 50, "rule_drop";

    /// No uplink can take a new flow.
    Refuse NoUplink = 56, "no_uplink";
    /// The binding table is full.
    Refuse BindingsFull = 57, "bindings_full";
    /// No free outside port was found for a new flow.
    Refuse PortsExhausted = 58, "ports_exhausted";
    /// The inside host has as many bindings as one may have.
    Refuse SourceBindings = 59, "source_bindings";
    /// The inside host begins flows faster than one may.
    Refuse SourceRate = 60, "source_rate";
    /// Another inside host talks to this remote address by this protocol, which has no ports to tell them apart.
    Refuse ProtocolInUse = 61, "protocol_in_use";
    /// Larger than the next link's MTU and to be kept whole.
    Refuse TooBig = 62, "too_big";
    /// A rule refuses it.
    Refuse RuleReject = 63, "rule_reject";
}

/// How many counters there are; one more than the largest discriminant, rounded up.
pub const COUNTERS: u32 = 80;

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
                0..16 => Group::Send,
                16..40 => Group::Pass,
                40..56 => Group::Drop,
                _ => Group::Refuse,
            };
            assert_eq!(verdict.group(), expected, "{verdict:?}");
        }
    }
}

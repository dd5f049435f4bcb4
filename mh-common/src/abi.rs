//! What crosses the kernel boundary: the names, limits and layouts of the maps.
//!
//! Maps are pinned under their names and outlive the controller. A controller adopts the maps of an older [`VERSION`] one by one: those
//! whose [`LAYOUTS`] have not changed since. So whoever changes a layout, a meaning or a name here raises the version, and writes it
//! into the layouts of the maps that it is about. The `const` assertions at the end hold the layouts fast.

use bytemuck::{Pod, Zeroable};

pub use crate::mark;

use crate::{
    address::{Address, Family, Ipv4, Ipv6, V4, V6},
    binding, cache, flow, fragment,
    hop::Hop,
    known,
    policy::{Policy, Sticky, StickyKey},
    route, rules,
    slots::SlotTable,
    wire::Mac,
};

/// The version of everything in this module. 3: two more stages; [`flow::ASKED`] in every flow that the remote end began. 4: rules, and
/// policies with names, tiers and sources that stick. 5: the flow cache and its epoch. 6: its parts move while programs run. 7: its
/// copies lie in the order in which they were made, with an index. 8: embryonic flows in bindings. 9: in
/// bindings by their outside end, and nowhere else.
pub const VERSION: u32 = 9;

/// The most uplinks; one health bit each.
pub const MAX_UPLINKS: usize = 32;
/// The most managed interfaces.
pub const MAX_INTERFACES: u32 = 1024;
/// The most local (own and broadcast) addresses of one family.
pub const MAX_LOCAL_ADDRESSES: u32 = 8192;

/// The most outside addresses of all uplinks together.
pub const MAX_OUTSIDE_ADDRESSES: u32 = 65_536;
/// The most ranges of outside addresses of one uplink.
pub const MAX_POOL_RANGES: usize = 16;
/// How many inside hosts the limits per source are kept for; of more, those that were not seen for longest start anew.
pub const MAX_SOURCES: u32 = 65_536;

/// Of the conntrack's capacity, the part for flows that have seen no reply: one in so many.
pub const NEW_FLOWS_DIVISOR: u32 = 4;

/// Names of the maps, as pinned (15 characters at most: `BPF_OBJ_NAME_LEN`).
pub mod map {
    /// LRU hash, [`crate::flow::Key`] to [`crate::flow::Entry`]: IPv4 flows that have seen a reply.
    pub const FLOWS4: &str = "mh_flows4";
    /// LRU hash, the same: IPv4 flows that have seen none. A flood of new flows stays in here.
    pub const NEW_FLOWS4: &str = "mh_new_flows4";
    /// Hash, [`crate::binding::End`] (inside) to [`crate::binding::Outside`].
    pub const BY_INSIDE4: &str = "mh_by_inside4";
    /// Hash, [`crate::binding::End`] (outside) to [`crate::binding::Inside`].
    pub const BY_OUTSIDE4: &str = "mh_by_outside4";
    /// Hash, [`crate::address::Ipv4`] to u8: own and broadcast addresses.
    pub const LOCAL4: &str = "mh_local4";
    /// Hash, [`crate::address::Ipv4`] to u32: outside addresses, with one bit per uplink that has them.
    pub const OUTSIDE4: &str = "mh_outside4";
    /// LRU hash, [`crate::binding::Peer`] to [`crate::time::Tick`]: until when a remote address may send to a binding. Filled only
    /// with [`super::ADDRESS_DEPENDENT`].
    pub const PEERS4: &str = "mh_peers4";
    /// LRU hash, [`crate::address::Ipv4`] to [`super::Source`]: what inside hosts have used of their limits; programs write it.
    pub const SOURCES4: &str = "mh_sources4";
    /// Hash, [`crate::address::Ipv4`] to u32: how many of an inside host's bindings have ended; the controller writes it.
    pub const ENDED4: &str = "mh_ended4";
    /// LRU hash, [`crate::fragment::Key`] to [`crate::flow::Entry`]: what becomes of a datagram's later fragments.
    pub const FRAGMENTS4: &str = "mh_fragments4";
    /// LRU hash, [`crate::fragment::Key`] to [`crate::fragment::Waiting`]: datagrams whose first fragment has not come yet.
    pub const WAITING4: &str = "mh_waiting4";
    /// LRU hash, [`crate::fragment::HeldKey`] to [`crate::fragment::Held`]: their fragments.
    pub const HELD4: &str = "mh_held4";
    /// Per-CPU array of one [`crate::fragment::Held`]: room to put a packet aside.
    pub const SCRATCH: &str = "mh_scratch";
    /// Per-CPU array of one [`crate::binding::PortRequest`].
    pub const PORT_REQUEST: &str = "mh_port_request";
    /// Program array, indexed by [`super::Stage`].
    pub const STAGES: &str = "mh_stages";
    /// Program array of XDP, of which [`super::program::XDP_BEGIN`] is the only one.
    pub const XDP_STAGES: &str = "mh_xdp_stages";
    /// Array of [`super::Pool`], indexed like uplinks.
    pub const POOLS: &str = "mh_pools";
    /// Array of [`super::Uplink`].
    pub const UPLINKS: &str = "mh_uplinks";
    /// Hash, ifindex (u32) to [`super::Interface`].
    pub const INTERFACES: &str = "mh_interfaces";
    /// Array of [`crate::policy::Policy`].
    pub const POLICIES: &str = "mh_policies";
    /// Array of [`crate::slots::SlotTable`].
    pub const SLOTS: &str = "mh_slots";
    /// Array of one [`super::Settings`].
    pub const SETTINGS: &str = "mh_settings";
    /// Array of one [`super::Live`].
    pub const LIVE: &str = "mh_live";
    /// Per-CPU array of u64, indexed by [`crate::verdict::Verdict`].
    pub const VERDICTS: &str = "mh_verdicts";
    /// Per-CPU array of [`super::UplinkCounters`].
    pub const UPLINK_COUNTERS: &str = "mh_uplink_count";

    /// Array of [`crate::rules::RuleList`], one for each of two generations.
    pub const RULES: &str = "mh_rules";
    /// Array of [`crate::rules::Classifier`], likewise.
    pub const CLASSIFIERS: &str = "mh_classifiers";
    /// Array of one [`crate::rules::Head`].
    pub const RULE_HEAD: &str = "mh_rule_head";
    /// Trie, [`crate::rules::PrefixKey`] to [`crate::rules::RuleSet`]: prefixes of rules, and of sets.
    pub const PREFIXES4: &str = "mh_prefixes4";
    /// Hash, [`crate::rules::InterfaceKey`] to [`crate::rules::RuleSet`].
    pub const RULE_INTERFACES: &str = "mh_rule_ifaces";
    /// Per-CPU array of u64, indexed by [`crate::rules::Rule::counter`]: flows (of rules that steer none, packets) that a rule matched.
    pub const RULE_HITS: &str = "mh_rule_hits";
    /// LRU hash, [`crate::policy::StickyKey`] to [`crate::policy::Sticky`]: sources that keep their uplink.
    pub const STICKY4: &str = "mh_sticky4";

    /// Array of [`crate::cache::Copied`], which can be mapped into memory: the flow cache of IPv4.
    pub const CACHE4: &str = "mh_cache4";
    /// Array of [`crate::cache::Set`], likewise: which copies are whose.
    pub const CACHE_INDEX4: &str = "mh_cache_index4";
    /// Per-CPU array of one [`crate::cache::Part`].
    pub const CACHE_PARTS: &str = "mh_cache_parts";
    /// Per-CPU array of one [`crate::flow::Entry`]: the forward half of the embryonic flow that this CPU is just beginning.
    pub const EMBRYO4: &str = "mh_embryo4";
    /// Per-CPU array of [`crate::route::ANSWERS`] [`crate::route::Answer`]s.
    pub const ROUTES4: &str = "mh_routes4";
    /// Array of [`crate::known::Line`]s, as many as [`crate::known::lines`] says, which processes map into their memory.
    pub const KNOWN4: &str = "mh_known4";
    /// Per-CPU array of [`crate::hop::Hop`], indexed like uplinks.
    pub const HOPS: &str = "mh_hops";

    /// All of them.
    pub const ALL: &[&str] = &[
        FLOWS4,
        NEW_FLOWS4,
        BY_INSIDE4,
        BY_OUTSIDE4,
        LOCAL4,
        OUTSIDE4,
        PEERS4,
        SOURCES4,
        ENDED4,
        FRAGMENTS4,
        WAITING4,
        HELD4,
        SCRATCH,
        PORT_REQUEST,
        STAGES,
        XDP_STAGES,
        POOLS,
        UPLINKS,
        INTERFACES,
        POLICIES,
        SLOTS,
        SETTINGS,
        LIVE,
        VERDICTS,
        UPLINK_COUNTERS,
        RULES,
        CLASSIFIERS,
        RULE_HEAD,
        PREFIXES4,
        RULE_INTERFACES,
        RULE_HITS,
        STICKY4,
        CACHE4,
        CACHE_INDEX4,
        CACHE_PARTS,
        HOPS,
        EMBRYO4,
        KNOWN4,
        ROUTES4,
    ];
}

/// The layout of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its name.
    pub map: &'static str,
    /// The [`VERSION`] since which the layout, and the meaning of what is in it, is as it is now.
    pub since: u32,
    /// The size of its keys in bytes.
    pub key: usize,
    /// The size of its values in bytes; of a per-CPU map, of one CPU's.
    pub value: usize,
}

const fn layout<K, V>(map: &'static str, since: u32) -> Layout {
    Layout { map, since, key: size_of::<K>(), value: size_of::<V>() }
}

/// The layouts of all maps, in the order of [`map::ALL`]. What was in version 1 is not told apart from what came with version 2.
pub const LAYOUTS: &[Layout] = &[
    layout::<flow::Key<Ipv4>, flow::Entry<Ipv4>>(map::FLOWS4, 2),
    layout::<flow::Key<Ipv4>, flow::Entry<Ipv4>>(map::NEW_FLOWS4, 2),
    layout::<binding::End<Ipv4>, binding::Outside<Ipv4>>(map::BY_INSIDE4, 9),
    layout::<binding::End<Ipv4>, binding::Inside<Ipv4>>(map::BY_OUTSIDE4, 9),
    layout::<Ipv4, u8>(map::LOCAL4, 2),
    layout::<Ipv4, u32>(map::OUTSIDE4, 2),
    layout::<binding::Peer<Ipv4>, crate::time::Tick>(map::PEERS4, 2),
    layout::<Ipv4, Source>(map::SOURCES4, 2),
    layout::<Ipv4, u32>(map::ENDED4, 2),
    layout::<fragment::Key<Ipv4>, flow::Entry<Ipv4>>(map::FRAGMENTS4, 2),
    layout::<fragment::Key<Ipv4>, fragment::Waiting>(map::WAITING4, 2),
    layout::<fragment::HeldKey<Ipv4>, fragment::Held>(map::HELD4, 2),
    layout::<u32, fragment::Held>(map::SCRATCH, 2),
    layout::<u32, binding::PortRequest<Ipv4>>(map::PORT_REQUEST, 9),
    layout::<u32, u32>(map::STAGES, 3),
    layout::<u32, u32>(map::XDP_STAGES, 8),
    layout::<u32, Pool>(map::POOLS, 2),
    layout::<u32, Uplink>(map::UPLINKS, 2),
    layout::<u32, Interface>(map::INTERFACES, 2),
    layout::<u32, Policy>(map::POLICIES, 4),
    layout::<u32, SlotTable>(map::SLOTS, 2),
    layout::<u32, Settings>(map::SETTINGS, 2),
    layout::<u32, Live>(map::LIVE, 2),
    layout::<u32, u64>(map::VERDICTS, 2),
    layout::<u32, UplinkCounters>(map::UPLINK_COUNTERS, 2),
    layout::<u32, rules::RuleList>(map::RULES, 4),
    layout::<u32, rules::Classifier>(map::CLASSIFIERS, 4),
    layout::<u32, rules::Head>(map::RULE_HEAD, 4),
    // The kernel's key of a trie begins with the length of the prefix.
    layout::<(u32, rules::PrefixKey<Ipv4>), rules::RuleSet>(map::PREFIXES4, 4),
    layout::<rules::InterfaceKey, rules::RuleSet>(map::RULE_INTERFACES, 4),
    layout::<u32, u64>(map::RULE_HITS, 4),
    layout::<StickyKey<Ipv4>, Sticky>(map::STICKY4, 4),
    layout::<u32, cache::Copied>(map::CACHE4, 7),
    layout::<u32, cache::Set>(map::CACHE_INDEX4, 7),
    layout::<u32, cache::Part>(map::CACHE_PARTS, 7),
    layout::<u32, Hop>(map::HOPS, 6),
    layout::<u32, flow::Entry<Ipv4>>(map::EMBRYO4, 8),
    layout::<u32, known::Line>(map::KNOWN4, 8),
    layout::<u32, route::Answer>(map::ROUTES4, 8),
];

/// Names of the programs.
pub mod program {
    /// TC ingress: packets of flows that exist; the rest goes to the stages.
    pub const TC: &str = "mh_tc";
    /// TC egress of uplinks: what the machine itself sends.
    pub const EGRESS: &str = "mh_egress";
    /// XDP: the fast path for flows that exist.
    pub const XDP: &str = "mh_xdp";
    /// XDP: flows that begin, tail-called by the former.
    pub const XDP_BEGIN: &str = "mh_xdp_begin";
    /// Attached nowhere: tells what would become of a packet, see [`crate::policy::Explanation`].
    pub const EXPLAIN: &str = "mh_explain";
    /// Attached nowhere: ends copies in the flow cache that no CPU has any more, see [`crate::cache`].
    pub const SETTLE: &str = "mh_settle";
}

/// Programs that the TC programs tail-call for what is rare: each is verified by itself, and the frequent path stays small.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A packet that the ingress program can't finish.
    Attend = 0,
    /// A packet from inside that belongs to no flow.
    Outbound = 1,
    /// A packet from an uplink that belongs to no flow.
    Inbound = 2,
    /// A packet of the machine itself that belongs to no flow.
    Host = 3,
    /// An ICMP error, at ingress.
    Error = 4,
    /// An ICMP error that the machine itself sends.
    HostError = 5,
    /// A fragment other than the first, at ingress.
    Later = 6,
    /// A first fragment for which others are waiting.
    Release = 7,
    /// A packet at egress that mh's own ingress has not sent.
    HostAttend = 8,
    /// A TCP segment of an inside host that is to be answered with a RST.
    Reset = 9,
    /// The same of the machine itself.
    HostReset = 10,
}

impl Stage {
    /// All of them, with the names of their programs.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Attend, "mh_attend"),
        (Self::Outbound, "mh_outbound"),
        (Self::Inbound, "mh_inbound"),
        (Self::Host, "mh_host"),
        (Self::Error, "mh_error"),
        (Self::HostError, "mh_host_error"),
        (Self::Later, "mh_later"),
        (Self::Release, "mh_release"),
        (Self::HostAttend, "mh_host_attend"),
        (Self::Reset, "mh_reset"),
        (Self::HostReset, "mh_host_reset"),
    ];
}

/// What is decided when the datapath is set up, and mostly read for new flows only. 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// [`VERSION`] of the set of maps; zero while it is being made. It stands first in every version.
    pub abi_version: u32,
    /// One more than the highest index of an uplink.
    pub uplinks: u32,
    /// The key of the flow hash.
    pub seed: [u64; 2],
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// [`ADDRESS_DEPENDENT`], [`HOST_TRAFFIC`], [`ALL_TRANSLATE`].
    pub flags: u32,
    /// The bits of `skb->mark` that are mh's.
    pub mark_mask: u32,
    /// The lowest of them.
    pub mark_shift: u32,
    /// The most bindings of one inside host; zero: any number.
    pub bindings_per_source: u32,
    /// The most new flows of one inside host within [`crate::time::SEEN_GRANULARITY_TICKS`]; zero: any number.
    pub new_flows_per_source: u32,
    /// The least MTU of the LAN interfaces: replies up to this size fit all of them.
    pub lan_mtu: u32,
}

/// A binding takes packets only from remote addresses that its inside end has sent to (RFC 4787 REQ-8); without this flag: from all.
pub const ADDRESS_DEPENDENT: u32 = 1 << 0;
/// Flows that the machine itself starts are steered too.
pub const HOST_TRAFFIC: u32 = 1 << 1;
/// Every uplink translates: no flow of an inside host that begins now is known outside by its own addresses. One that began before may be.
pub const ALL_TRANSLATE: u32 = 1 << 2;

/// Idle timeouts, in ticks of [`crate::time::TICK_NS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Timeouts {
    /// UDP, and protocols without a timeout of their own.
    pub udp: u32,
    /// TCP connections that are established or half closed.
    pub tcp_established: u32,
    /// TCP connections that open or close.
    pub tcp_transitory: u32,
    /// ICMP queries.
    pub icmp: u32,
}

impl Timeouts {
    /// The shortest: nothing that was seen within it has expired.
    #[inline(always)]
    pub const fn least(&self) -> u32 {
        let least = self.least_of_tcp_and_udp();
        if self.icmp < least { self.icmp } else { least }
    }

    /// The shortest of those of TCP and UDP, which alone have copies in the flow cache.
    #[inline(always)]
    pub const fn least_of_tcp_and_udp(&self) -> u32 {
        let mut least = self.udp;
        if self.tcp_established < least {
            least = self.tcp_established;
        }
        if self.tcp_transitory < least { self.tcp_transitory } else { least }
    }
}

/// What changes at any time and is read for every packet. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Live {
    /// One bit per uplink: it may take new flows. One write moves every new flow away from an uplink.
    pub healthy: u64,
    /// Raised whenever a neighbour's Ethernet address changes or a neighbour is lost: cached ones are then resolved anew.
    pub neighbour_epoch: u16,
    /// Raised whenever something changes that packets of flows that exist depend on: copies in the flow cache that were made before are
    /// not used any more. Programs raise it too, where a copy of another CPU would do harm.
    pub cache_epoch: u16,
    /// Zero, for want of which programs would not pass the verifier.
    pub zero: u32,
}

impl Live {
    /// Whether the uplink with this index may take new flows.
    #[inline(always)]
    pub const fn is_healthy(&self, uplink: u8) -> bool {
        self.healthy >> (uplink & 63) & 1 != 0
    }
}

/// An uplink. 92 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Uplink {
    /// Its interface; zero if it does not exist.
    pub ifindex: u32,
    /// [`UPLINK_NAT`], [`UPLINK_HOLD`], [`UPLINK_REPIN`].
    pub flags: u32,
    /// The interface's MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// The lowest outside port, in host byte order.
    pub first_port: u16,
    /// The highest outside port.
    pub last_port: u16,
    /// The most that a TCP segment over IPv4 may carry (MSS), in bytes; zero: as the ends like.
    pub mss: u16,
    /// Zero.
    pub reserved: u16,
    /// IPv4 source address (the first of its [`Pool`]) and gateway.
    pub v4: Route<Ipv4>,
    /// IPv6 source address and gateway.
    pub v6: Route<Ipv6>,
    /// Its name, padded with zeros; all zero: the index is free. By this a controller that adopts the maps knows which index, and so
    /// which flows, belong to which uplink.
    pub name: [u8; 32],
}

/// Translate: give flows the uplink's address.
pub const UPLINK_NAT: u32 = 1 << 0;
/// When the uplink is down, flows that are pinned to it stay on it.
pub const UPLINK_HOLD: u32 = 1 << 1;
/// When the uplink is down, TCP flows too are bound anew on another one (without this flag or [`UPLINK_HOLD`]: all but TCP, which is
/// answered with a RST).
pub const UPLINK_REPIN: u32 = 1 << 2;

/// The addresses of one family that an uplink sends with and to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route<A> {
    /// The source address; unspecified (all zero) if there is none.
    pub address: A,
    /// The next hop; unspecified if destinations are on the link itself.
    pub gateway: A,
}

// SAFETY: two addresses without padding; every bit pattern is a value.
unsafe impl<A: Address> Zeroable for Route<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Pod for Route<A> {}

/// An address family whose part of an [`Uplink`] can be named.
pub trait UplinkRoute: Family {
    /// The family's addresses of an uplink.
    fn route(uplink: &Uplink) -> &Route<Self::Address>;
}

impl UplinkRoute for V4 {
    #[inline(always)]
    fn route(uplink: &Uplink) -> &Route<Ipv4> {
        &uplink.v4
    }
}

impl UplinkRoute for V6 {
    #[inline(always)]
    fn route(uplink: &Uplink) -> &Route<Ipv6> {
        &uplink.v6
    }
}

/// The outside addresses of an uplink. 136 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Pool {
    /// How many there are in all.
    pub total: u32,
    /// How many of `ranges` are in use.
    pub used: u32,
    /// The ranges; unused ones are empty.
    pub ranges: [PoolRange; MAX_POOL_RANGES],
}

/// A range of outside IPv4 addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PoolRange {
    /// The lowest, in host byte order.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Pool {
    /// The address number `n % total`; `None` if there are none. An inside host's number is its hash, so all that it sends by this
    /// uplink comes from one address (paired pooling, RFC 4787 REQ-2).
    #[inline(always)]
    pub fn nth(&self, n: u32) -> Option<Ipv4> {
        if self.total == 0 {
            return None;
        }
        let mut left = n % self.total;
        let mut address = self.ranges[0].first;
        let mut found = false;
        // VERIFIER: no leaving the loop early: the state behind it would be verified once per range.
        for range in &self.ranges {
            if !found {
                if left < range.count {
                    address = range.first.wrapping_add(left);
                    found = true;
                } else {
                    left -= range.count;
                }
            }
        }
        Some(Ipv4::from_be(address.to_be()))
    }
}

/// What an inside host has used of its limits (RFC 6888 REQ-4). 12 bytes. Counts are additions without lock: a race loses one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Source {
    /// How many bindings it has got so far. Less those of [`map::ENDED4`]: how many it has.
    pub bindings: u32,
    /// When the window began in which its new flows are being counted.
    pub window: crate::time::Tick,
    /// New flows within the window.
    pub flows: u32,
}

/// A managed interface. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// [`ROLE_LAN`] or [`ROLE_UPLINK`].
    pub role: u8,
    /// The uplink's index, with [`ROLE_UPLINK`].
    pub uplink: u8,
    /// [`INTERFACE_XDP`], [`INTERFACE_L3`], [`INTERFACE_CLSACT`].
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
    /// Its Ethernet address: only frames to it are handled.
    pub mac: Mac,
    /// Zero.
    pub reserved2: u16,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u32,
}

/// Traffic from here is steered.
pub const ROLE_LAN: u8 = 1;
/// Steered traffic leaves here, replies come in here.
pub const ROLE_UPLINK: u8 = 2;
/// The XDP program runs here, so frames may be redirected to here from XDP.
pub const INTERFACE_XDP: u8 = 1 << 0;
/// Packets here have no Ethernet header (tun, ppp, wireguard).
pub const INTERFACE_L3: u8 = 1 << 1;
/// mh added the clsact qdisc here, and removes it with itself.
pub const INTERFACE_CLSACT: u8 = 1 << 2;

/// Counters of an uplink, per CPU. Bytes are counted from the IP header on. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct UplinkCounters {
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received and translated.
    pub rx_packets: u64,
    /// Bytes received and translated.
    pub rx_bytes: u64,
    /// Flows begun.
    pub new_flows: u64,
}

const _: () = {
    assert!(core::mem::offset_of!(Settings, abi_version) == 0);
    assert!(LAYOUTS.len() == map::ALL.len());
    assert!(MAX_UPLINKS <= u64::BITS as usize);
    assert!(size_of::<flow::Key<Ipv4>>() == 16);
    assert!(size_of::<flow::Key<Ipv6>>() == 40);
    assert!(size_of::<flow::Entry<Ipv4>>() == 64);
    assert!(size_of::<flow::Entry<Ipv6>>() == 88);
    assert!(align_of::<flow::Entry<Ipv4>>() == 8);
    assert!(size_of::<binding::End<Ipv4>>() == 8);
    assert!(size_of::<binding::End<Ipv6>>() == 20);
    assert!(size_of::<binding::Outside<Ipv4>>() == 16);
    assert!(size_of::<binding::Outside<Ipv6>>() == 28);
    assert!(size_of::<binding::Inside<Ipv4>>() == 24);
    assert!(size_of::<binding::Inside<Ipv6>>() == 48);
    assert!(size_of::<Settings>() == 64);
    assert!(size_of::<Live>() == 16);
    assert!(size_of::<cache::Copied>() == 64);
    assert!(size_of::<cache::Set>() == 16);
    assert!(size_of::<cache::Part>() == 56);
    assert!(size_of::<Uplink>() == 92);
    assert!(size_of::<Interface>() == 16);
    assert!(size_of::<Pool>() == 136);
    assert!(size_of::<Source>() == 12);
    assert!(size_of::<binding::Peer<Ipv4>>() == 12);
    assert!(size_of::<binding::PortRequest<Ipv4>>() == 44);
    assert!(size_of::<fragment::Key<Ipv4>>() == 12);
    assert!(size_of::<fragment::HeldKey<Ipv4>>() == 16);
    assert!(size_of::<fragment::Held>() == 2052);
    assert!(size_of::<(u32, rules::PrefixKey<Ipv4>)>() == 12);
    assert!(size_of::<UplinkCounters>() == 40);
    assert!(size_of::<SlotTable>() == 4096);
};

#[cfg(feature = "user")]
mod user {
    //! aya's own marker for plain old data: it follows from bytemuck's.
    #![allow(clippy::wildcard_imports)]
    use super::*;

    macro_rules! pod {
        ($($type:ty),* $(,)?) => {
            $(
                // SAFETY: the type is bytemuck::Pod, which asks for more than aya::Pod does.
                unsafe impl aya::Pod for $type {}
                const _: () = { const fn checked<T: Pod>() {} checked::<$type>() };
            )*
        };
    }
    pod!(
        Settings,
        Live,
        cache::Copied,
        cache::Set,
        cache::Part,
        Uplink,
        Interface,
        Pool,
        Source,
        Policy,
        StickyKey<Ipv4>,
        Sticky,
        UplinkCounters,
        rules::RuleList,
        rules::Classifier,
        rules::Head,
        rules::PrefixKey<Ipv4>,
        rules::InterfaceKey,
        rules::RuleSet,
        Ipv4,
        Ipv6,
        flow::Key<Ipv4>,
        flow::Key<Ipv6>,
        flow::Entry<Ipv4>,
        flow::Entry<Ipv6>,
        binding::End<Ipv4>,
        binding::End<Ipv6>,
        binding::Outside<Ipv4>,
        binding::Outside<Ipv6>,
        binding::Inside<Ipv4>,
        binding::Inside<Ipv6>,
        binding::Peer<Ipv4>,
        fragment::Key<Ipv4>,
        fragment::Waiting,
        fragment::HeldKey<Ipv4>,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_layout_of_a_version_that_there_was() {
        assert!(LAYOUTS.iter().map(|layout| &layout.map).eq(map::ALL));
        assert!(LAYOUTS.iter().all(|layout| (1..=VERSION).contains(&layout.since)));
    }
}

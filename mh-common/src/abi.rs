//! What crosses the kernel boundary: the names, limits and layouts of the maps.
//!
//! Maps are pinned under their names and outlive the controller. A controller adopts pinned maps only if [`VERSION`] is the one it
//! was built with; so whoever changes a layout, a meaning or a name here raises it. The `const` assertions at the end hold the
//! layouts fast.

use bytemuck::{Pod, Zeroable};

use crate::{
    address::{Address, Family, Ipv4, Ipv6, V4, V6},
    binding, flow,
    slots::SlotTable,
    wire::Mac,
};

/// The version of everything in this module.
pub const VERSION: u32 = 1;

/// The most uplinks; one health bit each.
pub const MAX_UPLINKS: usize = 32;
/// The most policies.
pub const MAX_POLICIES: usize = 64;
/// The most managed interfaces.
pub const MAX_INTERFACES: u32 = 1024;
/// The most local (own and broadcast) addresses of one family.
pub const MAX_LOCAL_ADDRESSES: u32 = 8192;

/// Slot tables: two for each policy, one in force and one to build the next in.
pub const SLOT_TABLES: u32 = 2 * MAX_POLICIES as u32;
/// The policy for packets that no rule matches.
pub const DEFAULT_POLICY: u32 = 0;

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
    /// Array of [`super::Uplink`].
    pub const UPLINKS: &str = "mh_uplinks";
    /// Hash, ifindex (u32) to [`super::Interface`].
    pub const INTERFACES: &str = "mh_interfaces";
    /// Array of [`super::Policy`].
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

    /// All of them.
    pub const ALL: &[&str] = &[
        FLOWS4,
        NEW_FLOWS4,
        BY_INSIDE4,
        BY_OUTSIDE4,
        LOCAL4,
        UPLINKS,
        INTERFACES,
        POLICIES,
        SLOTS,
        SETTINGS,
        LIVE,
        VERDICTS,
        UPLINK_COUNTERS,
    ];
}

/// Names of the programs.
pub mod program {
    /// TC ingress: the complete path.
    pub const TC: &str = "mh_tc";
    /// XDP: the fast path for flows that exist.
    pub const XDP: &str = "mh_xdp";
}

/// What is decided when the datapath is set up, and read for new flows only. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// [`VERSION`] of whoever made the maps.
    pub abi_version: u32,
    /// One more than the highest index of an uplink.
    pub uplinks: u32,
    /// The key of the flow hash.
    pub seed: [u64; 2],
    /// Idle timeouts.
    pub timeouts: Timeouts,
}

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

/// What changes at any time and is read for every packet. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Live {
    /// One bit per uplink: it may take new flows. One write moves every new flow away from an uplink.
    pub healthy: u64,
    /// Raised whenever a neighbour's Ethernet address changes or a neighbour is lost: cached ones are then resolved anew.
    pub neighbour_epoch: u32,
    /// Zero.
    pub reserved: u32,
}

/// An uplink. 88 bytes.
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
    /// IPv4 source address and gateway.
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
/// When the uplink is down, TCP flows too are bound anew on another one (without this flag or [`UPLINK_HOLD`]: all but TCP).
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

/// A managed interface. 12 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// [`ROLE_LAN`] or [`ROLE_UPLINK`].
    pub role: u8,
    /// The uplink's index, with [`ROLE_UPLINK`].
    pub uplink: u8,
    /// [`INTERFACE_XDP`].
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
    /// Its Ethernet address: only frames to it are handled.
    pub mac: Mac,
    /// Zero.
    pub reserved2: u16,
}

/// Traffic from here is steered.
pub const ROLE_LAN: u8 = 1;
/// Steered traffic leaves here, replies come in here.
pub const ROLE_UPLINK: u8 = 2;
/// The XDP program runs here, so frames may be redirected to here from XDP.
pub const INTERFACE_XDP: u8 = 1 << 0;

/// A policy. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Policy {
    /// One bit per uplink that may take flows under this policy (weight above zero, not drained).
    pub members: u64,
    /// The slot table in force.
    pub table: u32,
    /// [`crate::hash::HashMode`].
    pub hash_mode: u32,
}

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
    assert!(size_of::<binding::Inside<Ipv4>>() == 8);
    assert!(size_of::<binding::Inside<Ipv6>>() == 20);
    assert!(size_of::<Settings>() == 40);
    assert!(size_of::<Live>() == 16);
    assert!(size_of::<Uplink>() == 88);
    assert!(size_of::<Interface>() == 12);
    assert!(size_of::<Policy>() == 16);
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
        Uplink,
        Interface,
        Policy,
        UplinkCounters,
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
    );
}

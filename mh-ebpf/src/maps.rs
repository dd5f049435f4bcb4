//! All tables, in one place. Layouts and roles: [`mh_common::abi`].
//!
//! Sizes here are the defaults; the loader sets those of the configuration. All are pinned under their names.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use mh_common::{
    abi::{
        Interface, Live, MAX_INTERFACES, MAX_LOCAL_ADDRESSES, MAX_POLICIES, MAX_UPLINKS, NEW_FLOWS_DIVISOR, Policy,
        SLOT_TABLES, Settings, Uplink, UplinkCounters, UplinkRoute,
    },
    address::{Ipv4, V4},
    binding::{End, Inside, Outside},
    flow::{Entry, Key},
    slots::SlotTable,
    verdict::COUNTERS,
};

const FLOWS: u32 = 1 << 20;
const BINDINGS: u32 = 1 << 18;
/// Tables that are mostly empty don't take their memory in advance.
const NO_PREALLOC: u32 = aya_ebpf::bindings::BPF_F_NO_PREALLOC;

#[map(name = "mh_flows4")]
static FLOWS4: LruHashMap<Key<Ipv4>, Entry<Ipv4>> = LruHashMap::pinned(FLOWS, 0);
#[map(name = "mh_new_flows4")]
static NEW_FLOWS4: LruHashMap<Key<Ipv4>, Entry<Ipv4>> = LruHashMap::pinned(FLOWS / NEW_FLOWS_DIVISOR, 0);
#[map(name = "mh_by_inside4")]
static BY_INSIDE4: HashMap<End<Ipv4>, Outside<Ipv4>> = HashMap::pinned(BINDINGS, 0);
#[map(name = "mh_by_outside4")]
static BY_OUTSIDE4: HashMap<End<Ipv4>, Inside<Ipv4>> = HashMap::pinned(BINDINGS, 0);
#[map(name = "mh_local4")]
static LOCAL4: HashMap<Ipv4, u8> = HashMap::pinned(MAX_LOCAL_ADDRESSES, NO_PREALLOC);

#[map(name = "mh_uplinks")]
static UPLINKS: Array<Uplink> = Array::pinned(MAX_UPLINKS as u32, 0);
#[map(name = "mh_interfaces")]
static INTERFACES: HashMap<u32, Interface> = HashMap::pinned(MAX_INTERFACES, 0);
#[map(name = "mh_policies")]
static POLICIES: Array<Policy> = Array::pinned(MAX_POLICIES as u32, 0);
#[map(name = "mh_slots")]
static SLOTS: Array<SlotTable> = Array::pinned(SLOT_TABLES, 0);
#[map(name = "mh_settings")]
static SETTINGS: Array<Settings> = Array::pinned(1, 0);
#[map(name = "mh_live")]
static LIVE: Array<Live> = Array::pinned(1, 0);
#[map(name = "mh_verdicts")]
static VERDICTS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTERS, 0);
#[map(name = "mh_uplink_count")]
static UPLINK_COUNTERS: PerCpuArray<UplinkCounters> = PerCpuArray::pinned(MAX_UPLINKS as u32, 0);

/// The tables of one address family.
pub trait Tables: UplinkRoute {
    /// Flows that have seen a reply.
    fn flows() -> &'static LruHashMap<Key<Self::Address>, Entry<Self::Address>>;
    /// Flows that have seen none.
    fn new_flows() -> &'static LruHashMap<Key<Self::Address>, Entry<Self::Address>>;
    /// Bindings by their inside end.
    fn by_inside() -> &'static HashMap<End<Self::Address>, Outside<Self::Address>>;
    /// Bindings by their outside end.
    fn by_outside() -> &'static HashMap<End<Self::Address>, Inside<Self::Address>>;
    /// The machine's own and broadcast addresses.
    fn local() -> &'static HashMap<Self::Address, u8>;
}

impl Tables for V4 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<Key<Ipv4>, Entry<Ipv4>> {
        &FLOWS4
    }
    #[inline(always)]
    fn new_flows() -> &'static LruHashMap<Key<Ipv4>, Entry<Ipv4>> {
        &NEW_FLOWS4
    }
    #[inline(always)]
    fn by_inside() -> &'static HashMap<End<Ipv4>, Outside<Ipv4>> {
        &BY_INSIDE4
    }
    #[inline(always)]
    fn by_outside() -> &'static HashMap<End<Ipv4>, Inside<Ipv4>> {
        &BY_OUTSIDE4
    }
    #[inline(always)]
    fn local() -> &'static HashMap<Ipv4, u8> {
        &LOCAL4
    }
}

/// What mh knows of an interface, if it manages it.
#[inline(always)]
pub fn interface(ifindex: u32) -> Option<Interface> {
    // SAFETY: entries are only replaced as a whole by the controller; a torn read yields another valid interface record and
    // at worst sends one packet to the kernel.
    unsafe { INTERFACES.get(ifindex) }.copied()
}

/// An uplink by its index.
#[inline(always)]
pub fn uplink(index: u8) -> Option<&'static Uplink> {
    UPLINKS.get(index as u32)
}

/// A policy by its index.
#[inline(always)]
pub fn policy(index: u32) -> Option<&'static Policy> {
    POLICIES.get(index)
}

/// A slot table by its index.
#[inline(always)]
pub fn slots(index: u32) -> Option<&'static SlotTable> {
    SLOTS.get(index)
}

/// The settings.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Health and neighbour epoch.
#[inline(always)]
pub fn live() -> Option<&'static Live> {
    LIVE.get(0)
}

/// This CPU's counter of a verdict.
#[inline(always)]
pub fn verdict_counter(index: u32) -> Option<*mut u64> {
    VERDICTS.get_ptr_mut(index)
}

/// This CPU's counters of an uplink.
#[inline(always)]
pub fn uplink_counters(index: u8) -> Option<*mut UplinkCounters> {
    UPLINK_COUNTERS.get_ptr_mut(index as u32)
}

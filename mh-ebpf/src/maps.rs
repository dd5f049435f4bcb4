//! All tables, in one place. Layouts and roles: [`mh_common::abi`].
//!
//! Sizes here are the defaults; the loader sets those of the configuration. All are pinned under their names.

use aya_ebpf::{
    helpers::generated::bpf_jiffies64,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
};
use mh_common::{
    abi::{
        Interface, Live, MAX_INTERFACES, MAX_LOCAL_ADDRESSES, MAX_OUTSIDE_ADDRESSES, MAX_SOURCES, MAX_UPLINKS,
        NEW_FLOWS_DIVISOR, Pool, Settings, Source, Stage, Uplink, UplinkCounters, UplinkRoute,
    },
    address::{Ipv4, V4},
    binding::{End, Inside, Outside, Peer, PortRequest},
    cache::{COPIES_PER_SET, Copied, Part, Set},
    flow::{Entry, Key},
    fragment::{self, Held, HeldKey, Waiting},
    hop::Hop,
    known,
    policy::{MAX_STICKY, POLICIES as MAX_POLICIES, Policy, SLOT_TABLES, Sticky, StickyKey},
    route::{self, Answer},
    rules::{self, Classifier, Head, InterfaceKey, PrefixKey, Rule, RuleList, RuleSet},
    slots::SlotTable,
    time::{self, Tick},
    verdict::{COUNTERS, Verdict},
};

use crate::{
    access::{Frame, TcFrame, XdpFrame},
    cache::{self, Arrival},
    embryo,
    parse::Packet,
    policy,
    port::{self, Taken},
    track::{self, Note},
};

/// `-EEXIST`, as updates return it that ask for no entry to be there.
pub const EEXIST: i32 = -17;

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

#[map(name = "mh_outside4")]
static OUTSIDE4: HashMap<Ipv4, u32> = HashMap::pinned(MAX_OUTSIDE_ADDRESSES, NO_PREALLOC);
#[map(name = "mh_peers4")]
static PEERS4: LruHashMap<Peer<Ipv4>, Tick> = LruHashMap::pinned(BINDINGS, 0);
#[map(name = "mh_sources4")]
static SOURCES4: LruHashMap<Ipv4, Source> = LruHashMap::pinned(MAX_SOURCES, 0);
#[map(name = "mh_ended4")]
static ENDED4: HashMap<Ipv4, u32> = HashMap::pinned(MAX_SOURCES, NO_PREALLOC);
#[map(name = "mh_fragments4")]
static FRAGMENTS4: LruHashMap<fragment::Key<Ipv4>, Entry<Ipv4>> = LruHashMap::pinned(fragment::MAX_DATAGRAMS, 0);
#[map(name = "mh_waiting4")]
static WAITING4: LruHashMap<fragment::Key<Ipv4>, Waiting> = LruHashMap::pinned(fragment::MAX_WAITING, 0);
#[map(name = "mh_held4")]
static HELD4: LruHashMap<HeldKey<Ipv4>, Held> = LruHashMap::pinned(fragment::MAX_HELD, 0);
#[map(name = "mh_scratch")]
static SCRATCH: PerCpuArray<Held> = PerCpuArray::pinned(1, 0);
#[map(name = "mh_port_request")]
static PORT_REQUEST: PerCpuArray<PortRequest<Ipv4>> = PerCpuArray::pinned(1, 0);
#[map(name = "mh_stages")]
static STAGES: ProgramArray = ProgramArray::pinned(Stage::ALL.len() as u32, 0);
#[map(name = "mh_xdp_stages")]
static XDP_STAGES: ProgramArray = ProgramArray::pinned(1, 0);
#[map(name = "mh_pools")]
static POOLS: Array<Pool> = Array::pinned(MAX_UPLINKS as u32, 0);

#[map(name = "mh_uplinks")]
static UPLINKS: Array<Uplink> = Array::pinned(MAX_UPLINKS as u32, 0);
#[map(name = "mh_interfaces")]
static INTERFACES: HashMap<u32, Interface> = HashMap::pinned(MAX_INTERFACES, 0);
#[map(name = "mh_policies")]
static POLICIES: Array<Policy> = Array::pinned(MAX_POLICIES, 0);
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

#[map(name = "mh_rules")]
static RULES: Array<RuleList> = Array::pinned(rules::GENERATIONS, 0);
#[map(name = "mh_classifiers")]
static CLASSIFIERS: Array<Classifier> = Array::pinned(rules::GENERATIONS, 0);
#[map(name = "mh_rule_head")]
static RULE_HEAD: Array<u64> = Array::pinned(1, 0);
#[map(name = "mh_prefixes4")]
static PREFIXES4: LpmTrie<PrefixKey<Ipv4>, RuleSet> = LpmTrie::pinned(rules::MAX_PREFIXES, NO_PREALLOC);
#[map(name = "mh_rule_ifaces")]
static RULE_INTERFACES: HashMap<InterfaceKey, RuleSet> =
    HashMap::pinned(rules::GENERATIONS * MAX_INTERFACES, NO_PREALLOC);
#[map(name = "mh_rule_hits")]
static RULE_HITS: PerCpuArray<u64> = PerCpuArray::pinned(rules::HIT_COUNTERS, 0);
#[map(name = "mh_sticky4")]
static STICKY4: LruHashMap<StickyKey<Ipv4>, Sticky> = LruHashMap::pinned(MAX_STICKY, 0);

// Mapped memory begins on a page, so a copy is one cache line.
#[map(name = "mh_cache4")]
static CACHE4: Array<Copied> = Array::pinned(FLOWS, aya_ebpf::bindings::BPF_F_MMAPABLE);
#[map(name = "mh_cache_index4")]
static CACHE_INDEX4: Array<Set> = Array::pinned(FLOWS / COPIES_PER_SET, aya_ebpf::bindings::BPF_F_MMAPABLE);
#[map(name = "mh_cache_parts")]
static CACHE_PARTS: PerCpuArray<Part> = PerCpuArray::pinned(1, 0);

#[map(name = "mh_routes4")]
static ROUTES4: PerCpuArray<Answer> = PerCpuArray::pinned(route::ANSWERS, 0);
#[map(name = "mh_known4")]
static KNOWN4: Array<known::Line> = Array::pinned(known::LEAST_LINES, aya_ebpf::bindings::BPF_F_MMAPABLE);
/// How many lines that map has, a power of two; the loader puts the number there.
#[unsafe(no_mangle)]
static MH_KNOWN_LINES: u32 = known::LEAST_LINES;
#[map(name = "mh_embryo4")]
static EMBRYO4: PerCpuArray<Entry<Ipv4>> = PerCpuArray::pinned(1, 0);
#[map(name = "mh_hops")]
static HOPS: PerCpuArray<Hop> = PerCpuArray::pinned(MAX_UPLINKS as u32, 0);

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
    /// Outside addresses, with one bit per uplink that has them.
    fn outside() -> &'static HashMap<Self::Address, u32>;
    /// Remote addresses that may send to bindings.
    fn peers() -> &'static LruHashMap<Peer<Self::Address>, Tick>;
    /// What inside hosts have used of their limits.
    fn sources() -> &'static LruHashMap<Self::Address, Source>;
    /// How many bindings of inside hosts have ended.
    fn ended() -> &'static HashMap<Self::Address, u32>;
    /// What becomes of later fragments.
    fn fragments() -> &'static LruHashMap<fragment::Key<Self::Address>, Entry<Self::Address>>;
    /// Datagrams that wait for their first fragment.
    fn waiting() -> &'static LruHashMap<fragment::Key<Self::Address>, Waiting>;
    /// Their fragments.
    fn held() -> &'static LruHashMap<HeldKey<Self::Address>, Held>;
    /// Sources that keep their uplink.
    fn sticky() -> &'static LruHashMap<StickyKey<Self::Address>, Sticky>;
    /// The rules that agree with an address.
    fn rules_of(key: PrefixKey<Self::Address>) -> Option<&'static RuleSet>;
    /// The first rule that matches a packet that came in by the interface: see [`mod@policy`].
    fn rule(packet: &Packet<Self::Address>, ifindex: u32) -> Rule;
    /// Copies a half into the flow cache: see [`cache::keep`].
    fn copy(key: &Key<Self::Address>, entry: &mut Entry<Self::Address>, arrival: &Arrival<'_>, live: &Live, now: Tick);
    /// Ends the copy of a half: see [`cache::settle`].
    fn settle(key: &Key<Self::Address>, entry: *mut Entry<Self::Address>);
    /// The byte that tells whether something is known of a port (big-endian in memory) of an address: see [`known`].
    fn known(address: Self::Address, port: u16, protocol: u8) -> Option<*mut u8>;

    /// Whether nothing is.
    #[inline(always)]
    fn is_unknown(address: Self::Address, port: u16, protocol: u8) -> bool {
        // SAFETY: a live map value.
        Self::known(address, port, protocol).is_some_and(|byte| unsafe { byte.read_volatile() } == known::UNKNOWN)
    }

    /// Notes that something is.
    #[inline(always)]
    fn note(address: Self::Address, port: u16, protocol: u8) {
        if let Some(byte) = Self::known(address, port, protocol) {
            // SAFETY: a live map value.
            unsafe { byte.write_volatile(known::FRESH) };
        }
    }

    /// Looks for a source's binding with an embryonic flow: see [`mod@embryo`].
    fn find_embryo(host: u64, key: &Key<Self::Address>, uplink: u8) -> u32;
    /// Room on this CPU for the forward half of an embryonic flow, until its packet has been sent.
    fn embryo() -> Option<*mut Entry<Self::Address>>;
    /// The outside address number `n` of an uplink.
    fn pool(uplink: u8, n: u32) -> Option<Self::Address>;

    /// Whether the address is one of the machine's own, or a broadcast address.
    #[inline(always)]
    fn is_local(address: Self::Address) -> bool {
        // SAFETY: only whether there is an entry matters.
        unsafe { Self::local().get(address) }.is_some()
    }

    /// The uplinks that have this outside address, one bit each; none if it is no outside address.
    #[inline(always)]
    fn owners(address: Self::Address) -> u32 {
        // SAFETY: a live map value that is copied.
        unsafe { Self::outside().get(address) }.copied().unwrap_or(0)
    }

    /// Takes an outside port: see [`port`].
    fn take_port<F: Frame>(frame: &F, request: PortRequest<Self::Address>) -> Result<Taken, Verdict>;
}

/// Gives one table of a family out.
macro_rules! tables {
    ($($name:ident: $map:ident, $type:ty;)*) => {
        $(#[inline(always)]
        fn $name() -> &'static $type {
            &$map
        })*
    };
}

impl Tables for V4 {
    tables! {
        flows: FLOWS4, LruHashMap<Key<Ipv4>, Entry<Ipv4>>;
        new_flows: NEW_FLOWS4, LruHashMap<Key<Ipv4>, Entry<Ipv4>>;
        by_inside: BY_INSIDE4, HashMap<End<Ipv4>, Outside<Ipv4>>;
        by_outside: BY_OUTSIDE4, HashMap<End<Ipv4>, Inside<Ipv4>>;
        local: LOCAL4, HashMap<Ipv4, u8>;
        outside: OUTSIDE4, HashMap<Ipv4, u32>;
        peers: PEERS4, LruHashMap<Peer<Ipv4>, Tick>;
        sources: SOURCES4, LruHashMap<Ipv4, Source>;
        ended: ENDED4, HashMap<Ipv4, u32>;
        fragments: FRAGMENTS4, LruHashMap<fragment::Key<Ipv4>, Entry<Ipv4>>;
        waiting: WAITING4, LruHashMap<fragment::Key<Ipv4>, Waiting>;
        held: HELD4, LruHashMap<HeldKey<Ipv4>, Held>;
        sticky: STICKY4, LruHashMap<StickyKey<Ipv4>, Sticky>;
    }

    #[inline(always)]
    fn rules_of(key: PrefixKey<Ipv4>) -> Option<&'static RuleSet> {
        PREFIXES4.get(policy::exactly(key))
    }

    #[inline(always)]
    fn rule(packet: &Packet<Ipv4>, ifindex: u32) -> Rule {
        policy::rule4(packet, ifindex)
    }

    #[inline(always)]
    fn copy(key: &Key<Ipv4>, entry: &mut Entry<Ipv4>, arrival: &Arrival<'_>, live: &Live, now: Tick) {
        cache::keep(key, entry, arrival, live, now);
    }

    #[inline(always)]
    fn settle(key: &Key<Ipv4>, entry: *mut Entry<Ipv4>) {
        cache::settle(key, entry);
    }

    #[inline(always)]
    fn known(address: Ipv4, port: u16, protocol: u8) -> Option<*mut u8> {
        // SAFETY: a static of the object; the loader has put the value there before the program was loaded.
        let lines = unsafe { core::ptr::read_volatile(&raw const MH_KNOWN_LINES) };
        let place = known::Place::of(settings()?.seed, lines, address, port, protocol);
        let line = KNOWN4.get_ptr_mut(place.line)?;
        // SAFETY: a live map value, which has a byte of that number.
        Some(unsafe { line.cast::<u8>().add(place.byte % known::PORTS) })
    }

    #[inline(always)]
    fn find_embryo(host: u64, key: &Key<Ipv4>, uplink: u8) -> u32 {
        embryo::find4(host, key, uplink)
    }

    #[inline(always)]
    fn embryo() -> Option<*mut Entry<Ipv4>> {
        EMBRYO4.get_ptr_mut(0)
    }

    #[inline(always)]
    fn pool(uplink: u8, n: u32) -> Option<Ipv4> {
        POOLS.get(uplink as u32)?.nth(n)
    }

    #[inline(always)]
    fn take_port<F: Frame>(frame: &F, request: PortRequest<Ipv4>) -> Result<Taken, Verdict> {
        port::take4(frame, request)
    }
}

/// Goes on in another program, with a note to it. Returns only if that program is not there.
#[inline(always)]
pub fn stage<const EGRESS: bool>(frame: &mut TcFrame<EGRESS>, stage: Stage, note: Note) -> Verdict {
    frame.set_note(note as u32);
    // SAFETY: nothing on this program's stack is needed once the other one runs.
    unsafe { STAGES.tail_call(frame.tc_context(), stage as u32) };
    Verdict::Stage
}

/// Goes on in the program for flows that begin at XDP. Returns only if that is not there.
#[inline(always)]
pub fn begin_at_xdp(frame: &XdpFrame) {
    // SAFETY: as above.
    unsafe { XDP_STAGES.tail_call(frame.xdp_context(), 0) };
}

/// Room for one request for a port on this CPU.
#[inline(always)]
pub fn port_request() -> Option<&'static mut PortRequest<Ipv4>> {
    // SAFETY: a per-CPU value, and nothing else runs on this CPU between request and answer.
    PORT_REQUEST.get_ptr_mut(0).map(|request| unsafe { &mut *request })
}

/// Room to put one packet aside on this CPU.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Held> {
    // SAFETY: a per-CPU value, and nothing else runs on this CPU between two uses by the same packet.
    SCRATCH.get_ptr_mut(0).map(|held| unsafe { &mut *held })
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
pub fn policy(index: u8) -> Option<&'static Policy> {
    POLICIES.get(index as u32)
}

/// Which rules there are now.
#[inline(always)]
pub fn rule_head() -> Option<Head> {
    // SAFETY: a live map value, read at once, so that generation and flags belong together.
    RULE_HEAD.get_ptr(0).map(|head| bytemuck::cast(unsafe { head.read_volatile() }))
}

/// What the rules of a generation do.
#[inline(always)]
pub fn rules(generation: u32) -> Option<&'static RuleList> {
    RULES.get(generation % rules::GENERATIONS)
}

/// What the rules of a generation ask for.
#[inline(always)]
pub fn classifier(generation: u32) -> Option<&'static Classifier> {
    CLASSIFIERS.get(generation % rules::GENERATIONS)
}

/// The rules that agree with an interface.
#[inline(always)]
pub fn rules_of_interface(key: InterfaceKey) -> Option<&'static RuleSet> {
    // SAFETY: values of a generation that is in force don't change.
    unsafe { RULE_INTERFACES.get(key) }
}

/// This CPU's counter of a rule.
#[inline(always)]
pub fn rule_hits(counter: u16) -> Option<*mut u64> {
    RULE_HITS.get_ptr_mut(counter as u32)
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

/// A set of the flow cache.
#[inline(always)]
pub fn set(index: u32) -> Option<&'static mut Set> {
    // SAFETY: as in `copy`.
    CACHE_INDEX4.get_ptr_mut(index).map(|set| unsafe { &mut *set })
}

/// A copy in the flow cache.
#[inline(always)]
pub fn copy(line: u32) -> Option<&'static mut Copied> {
    // SAFETY: a live map value that only the CPU whose part it lies in writes.
    CACHE4.get_ptr_mut(line).map(|copy| unsafe { &mut *copy })
}

/// This CPU's part of the flow cache, and what it knows of the time.
#[inline(always)]
pub fn part() -> Option<&'static mut Part> {
    // SAFETY: a per-CPU value, and programs on one CPU don't interrupt each other here (softirq).
    CACHE_PARTS.get_ptr_mut(0).map(|part| unsafe { &mut *part })
}

/// How long a flow goes without maintenance, in ticks: see [`mh_common::cache::window`].
#[inline(always)]
pub fn maintenance() -> u32 {
    match part() {
        Some(part) if part.window != 0 => part.window,
        // mhd has not got to this CPU's part yet.
        _ => time::MAINTENANCE_TICKS,
    }
}

/// The time, in ticks. The clock is read at most once per jiffy and CPU: it costs more than all the rest of a packet's bookkeeping.
#[inline(always)]
pub fn now(part: &mut Part) -> Tick {
    // SAFETY: a helper call without arguments, which the kernel makes one load (5.6).
    let jiffies = unsafe { bpf_jiffies64() };
    if part.jiffies != jiffies {
        part.jiffies = jiffies;
        part.now = track::now();
    }
    part.now
}

/// What this CPU knows of the way to an uplink's gateway.
#[inline(always)]
pub fn hop(uplink: u8) -> Option<&'static mut Hop> {
    // SAFETY: as in `part`.
    HOPS.get_ptr_mut(uplink as u32).map(|hop| unsafe { &mut *hop })
}

/// What this CPU remembers in the place of a question to the kernel's routing.
#[inline(always)]
pub fn answer(place: u32) -> Option<&'static mut Answer> {
    // SAFETY: as in `part`.
    ROUTES4.get_ptr_mut(place).map(|answer| unsafe { &mut *answer })
}

/// Voids all copies in the flow cache, those of other CPUs too.
#[inline(always)]
pub fn void_copies() {
    if let Some(live) = LIVE.get_ptr_mut(0) {
        // SAFETY: a live map value of which one word is written. Whoever writes it at the same time raises it from the same value.
        unsafe { (*live).cache_epoch = (*live).cache_epoch.wrapping_add(1) };
    }
}

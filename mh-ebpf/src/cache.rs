//! The flow cache as the programs use it: see [`mh_common::cache`].
//!
//! [`hit`] is the shortest way through the datapath: one look at the packet, one cache line, one redirect. It takes what is most frequent
//! only (TCP and UDP, whole, without IP options, on Ethernet) and checks of a packet all that may differ between two packets of a flow; what
//! is the same for all of them was checked when the copy was made. Whatever it doesn't take, it has not touched.
//!
//! [`keep`] makes copies, [`settle`] ends them.

use mh_common::{
    abi::{self, Interface, Live},
    address::{Ipv4, V4},
    cache::{self, COPIES_PER_SET, Copied, Extent, OUTWARD, Part, Place, TRIES, Tag, XDP},
    checksum::{Delta, TTL_DECREMENT},
    flow::{self, Entry, Key},
    time::{self, Tick},
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, L4Checksum},
    count::{self, Sent},
    maps::{self, Tables as _},
    track::TCP_EVENTS,
};

/// Where things are in a frame with an Ethernet header and an IPv4 header without options.
mod at {
    use mh_common::wire;

    pub const ETHERTYPE: usize = wire::ETHERNET_TYPE;
    pub const IP: usize = wire::ETHERNET_LEN;
    pub const LEN: usize = IP + 2;
    pub const FRAGMENT: usize = IP + wire::IPV4_FRAGMENT;
    pub const TTL: usize = IP + wire::IPV4_TTL;
    pub const PROTOCOL: usize = TTL + 1;
    pub const CHECKSUM: usize = IP + wire::IPV4_CHECKSUM;
    pub const SRC: usize = IP + wire::IPV4_SRC;
    pub const DST: usize = IP + wire::IPV4_DST;
    pub const L4: usize = IP + wire::IPV4_LEN;
    pub const SPORT: usize = L4;
    pub const DPORT: usize = L4 + 2;
    pub const UDP_LEN: usize = L4 + 4;
    pub const UDP_CHECKSUM: usize = L4 + wire::UDP_CHECKSUM;
    pub const TCP_OFFSET: usize = L4 + wire::TCP_OFFSET_FLAGS;
    pub const TCP_FLAGS: usize = TCP_OFFSET + 1;
    pub const TCP_CHECKSUM: usize = L4 + wire::TCP_CHECKSUM;
    /// Up to the end of a UDP header.
    pub const UDP_END: usize = L4 + wire::UDP_LEN;
    /// Up to the end of a TCP header without options.
    pub const TCP_END: usize = L4 + wire::TCP_LEN;
}

/// Sends a packet as the copy of its half says, if this CPU has one that is good, and the packet needs no attention.
#[inline(always)]
pub fn hit<F: Frame>(frame: &mut F) -> Option<Result<Sent, Verdict>> {
    // What comes by a device without Ethernet header may look like anything here, but no copy is for such a device.
    let head = frame.head::<{ at::UDP_END }>()?;
    let ethertype: u16 = head.load::<_, { at::ETHERTYPE }>();
    let version_len: u8 = head.load::<_, { at::IP }>();
    let fragment: u16 = head.load::<_, { at::FRAGMENT }>();
    let ttl: u8 = head.load::<_, { at::TTL }>();
    if ethertype != wire::ETHERTYPE_IPV4.to_be()
        || version_len != wire::IPV4_VERSION_LEN
        || fragment & wire::IPV4_FRAGMENT_MASK.to_be() != 0
        || ttl <= 1
        || frame.has_vlan_tag()
    {
        return None;
    }
    let len = u16::from_be(head.load::<_, { at::LEN }>()) as u32;
    if len > frame.len() - wire::ETHERNET_LEN as u32 {
        return None;
    }
    let protocol: u8 = head.load::<_, { at::PROTOCOL }>();
    let tcp = protocol == wire::PROTOCOL_TCP;
    let mut l4_len = wire::UDP_LEN as u32;
    if tcp {
        let head = frame.head::<{ at::TCP_END }>()?;
        let flags: u8 = head.load::<_, { at::TCP_FLAGS }>();
        l4_len = (head.load::<u8, { at::TCP_OFFSET }>() >> 4) as u32 * 4;
        if flags & TCP_EVENTS != 0 || l4_len < wire::TCP_LEN as u32 {
            return None;
        }
    } else if protocol == wire::PROTOCOL_UDP {
        let udp_len = u16::from_be(head.load::<_, { at::UDP_LEN }>()) as u32;
        if udp_len + wire::IPV4_LEN as u32 > len || udp_len < wire::UDP_LEN as u32 {
            return None;
        }
    } else {
        return None;
    }
    if wire::IPV4_LEN as u32 + l4_len > len {
        return None;
    }
    let live = maps::live()?;
    let part = maps::part()?;
    let settings = maps::settings()?;
    let ports: u32 = head.load::<_, { at::SPORT }>();
    let tag = Tag {
        addresses: head.load::<_, { at::SRC }>(),
        ports: Tag::ports(ports, live.cache_epoch, protocol),
        arrival: Tag::arrival(head.load::<_, 0>(), head.load::<_, 4>(), frame.ifindex()),
    };
    let place = part.place(tag.addresses, ports, protocol);
    let copy = find(part.extent(), place, |found| *found == tag)?.copy;
    let now = maps::now(part);
    let packets = frame.segments();
    let size = match frame.segment_payload() {
        0 => len,
        payload => payload + wire::IPV4_LEN as u32 + l4_len,
    };
    let outward = copy.count & OUTWARD != 0;
    if !copy.is_good(now)
        || size > copy.mtu as u32
        || !copy.has_room()
        || !F::COMPLETE && copy.count & XDP == 0
        || outward && !live.is_healthy(copy.uplink())
        || packets > MOST_SEGMENTS
    {
        return None;
    }
    // Each further segment that the packet stands for repeats the headers; their payload is in `len` already.
    let bytes = (len + (packets - 1) * (wire::IPV4_LEN as u32 + l4_len)) as u64;
    copy.seen = now as u16;
    copy.count += Copied::increment(packets as u64, bytes);
    count::uplink(copy.uplink(), !outward, packets as u64, bytes);

    let address_delta = Delta::from_bits(copy.address_delta);
    head.store::<_, 0>(copy.ethernet[0]);
    head.store::<_, 4>(copy.ethernet[1]);
    head.store::<_, 8>(copy.ethernet[2]);
    let checksum: u16 = head.load::<_, { at::CHECKSUM }>();
    head.store::<_, { at::TTL }>(ttl - 1);
    head.store::<_, { at::CHECKSUM }>(address_delta.and(TTL_DECREMENT).apply(checksum));
    let verdict = if outward {
        head.store::<_, { at::SRC }>(copy.address);
        head.store::<_, { at::SPORT }>(copy.port);
        Verdict::Forward
    } else {
        head.store::<_, { at::DST }>(copy.address);
        head.store::<_, { at::DPORT }>(copy.port);
        Verdict::Reply
    };
    let ifindex = copy.ifindex as u32;
    let update = |offset, optional| L4Checksum {
        offset,
        optional,
        address_delta,
        port_delta: Delta::from_bits(copy.port_delta),
    };
    // Last, since it may move the packet.
    let updated = if tcp {
        frame.update_l4_checksum(update(at::TCP_CHECKSUM, false))
    } else {
        frame.update_l4_checksum(update(at::UDP_CHECKSUM, true))
    };
    if updated.is_err() {
        return Some(Err(Verdict::Rewrite));
    }
    frame.set_mark(settings, abi::mark::DONE);
    Some(Ok(Sent { verdict, code: frame.redirect(ifindex) }))
}

/// The most packets that one may stand for.
const MOST_SEGMENTS: u32 = 1 << 14;

/// A copy, and what says that it is there.
struct Found {
    entry: &'static mut u32,
    copy: &'static mut Copied,
}

/// The copy of a place's packets whose tag `is` what is looked for.
#[inline(always)]
fn find(extent: Extent, place: Place, is: impl Fn(&Tag) -> bool) -> Option<Found> {
    let [first, second] = extent.sets_of(place)?;
    match look(first, place, &is) {
        Some(found) => Some(found),
        None => look(second, place, &is),
    }
}

/// The same in one set.
#[inline(always)]
fn look(set: u32, place: Place, is: impl Fn(&Tag) -> bool) -> Option<Found> {
    for entry in &mut maps::set(set)?.ways {
        if let Some(line) = place.line(*entry) {
            let copy = maps::copy(line)?;
            if is(&copy.tag) {
                return Some(Found { entry, copy });
            }
        }
    }
    None
}

/// What a copy is made for.
pub struct Arrival<'a> {
    /// The interface that the half's packets come in by.
    pub interface: &'a Interface,
    /// Its index.
    pub ifindex: u32,
    /// The longest packet that may be sent, in bytes.
    pub mtu: u32,
}

/// Makes a copy of a half of which a packet has just been sent without needing attention, or makes its copy anew.
#[inline(always)]
pub fn keep(key: &Key<Ipv4>, entry: &mut Entry<Ipv4>, arrival: &Arrival<'_>, live: &Live, now: Tick) {
    let Some(part) = maps::part() else { return };
    // All segments after the first ones have an ACK: once it is remembered, a segment without an event tells nothing new.
    let steady = match key.protocol {
        wire::PROTOCOL_TCP => entry.tcp & wire::TCP_ACK != 0,
        wire::PROTOCOL_UDP => true,
        _ => false,
    };
    if !steady
        || entry.flags & (flow::RESOLVED | flow::HOST | flow::HAIRPIN) != flow::RESOLVED
        || entry.ifindex > u16::MAX as u32
        || arrival.ifindex > u16::MAX as u32
        || arrival.interface.flags & abi::INTERFACE_L3 != 0
    {
        return;
    }
    let (extent, place) = (part.extent(), part.place_of(key));
    let copy = match find(extent, place, |tag| tag.is_of(key)) {
        Some(found) => {
            found.copy.counted(entry);
            found.copy
        }
        None => match begin(part, extent, place, now) {
            Some(copy) => copy,
            None => {
                part.full += 1;
                return;
            }
        },
    };
    let outward = entry.leads_outside();
    let (address, port) = if outward { (entry.src, entry.sport) } else { (entry.dst, entry.dport) };
    let mut flags = 0;
    if outward {
        flags |= OUTWARD;
    }
    if entry.flags & flow::XDP != 0 {
        flags |= XDP;
    }
    // Not beyond the time when the half is due for maintenance.
    let left = part.window.saturating_sub(time::since(now, entry.maintained));
    *copy = Copied {
        tag: Tag::new(key, live.cache_epoch, arrival.ifindex, arrival.interface.mac),
        ethernet: ethernet(&entry.dst_mac, &entry.src_mac),
        address: address.to_be(),
        port,
        address_delta: entry.address_delta.to_bits(),
        port_delta: entry.port_delta.to_bits(),
        ifindex: entry.ifindex as u16,
        until: now.wrapping_add(left),
        seen: now as u16,
        mtu: if arrival.mtu > u16::MAX as u32 { u16::MAX } else { arrival.mtu as u16 },
        count: Copied::counting(entry.uplink, flags),
    };
}

/// Finds room for a copy of this place's packets, and enters it: in the first set, which is looked at first, unless that is nearly full and the other one has
/// more room.
#[inline(always)]
fn begin(part: &mut Part, extent: Extent, place: Place, now: Tick) -> Option<&'static mut Copied> {
    // Pointers: taking a copy from another half may change the same set.
    let mut free: Option<*mut u32> = None;
    let mut most = 0;
    for set in extent.sets_of(place)? {
        let mut way: Option<*mut u32> = None;
        let mut room = 0;
        for entry in &mut maps::set(set)?.ways {
            if *entry == 0 {
                room += 1;
                way = Some(entry);
            }
        }
        if room > most {
            most = room;
            free = way;
        }
        if most >= cache::ENOUGH_WAYS {
            break;
        }
    }
    let free = free?;
    for _ in 0..TRIES {
        let line = part.next_line(extent);
        let copy = maps::copy(line)?;
        if copy.may_be_replaced(now, part.window) {
            if copy.tag.addresses != 0 {
                give_back(copy);
                forget(part, extent, line, copy);
            }
            // SAFETY: a live map value that only this CPU writes.
            unsafe { *free = place.entry(line) };
            return Some(copy);
        }
    }
    None
}

/// Takes out of its set what tells of a copy.
#[inline(always)]
fn forget(part: &Part, extent: Extent, line: u32, copy: &Copied) {
    let place = part.place_of(&copy.key());
    let Some(sets) = extent.sets_of(place) else { return };
    for set in sets {
        let Some(set) = maps::set(set) else { return };
        for entry in &mut set.ways {
            if *entry == place.entry(line) {
                *entry = 0;
            }
        }
    }
}

/// Ends this CPU's copy of a half, if there is one, and adds what it has counted to the half; `entry` may be null.
// VERIFIER: a function of its own: inlined wherever it is called, it makes the stack of `mh_attend` and what that calls larger than 512
// bytes (6.1).
#[inline(never)]
pub fn settle(key: &Key<Ipv4>, entry: *mut Entry<Ipv4>) {
    let Some(part) = maps::part() else { return };
    let Some(Found { entry: told, copy }) = find(part.extent(), part.place_of(key), |tag| tag.is_of(key)) else {
        return;
    };
    // SAFETY: null, or as in `established_of`.
    if let Some(entry) = unsafe { entry.as_mut() } {
        copy.counted(entry);
    }
    *told = 0;
    copy.tag.addresses = 0;
    copy.count = 0;
}

/// Ends the copies of the sets that the packet names, which no CPU uses: see [`cache::SPAN_AT`].
#[inline(always)]
pub fn end<F: Frame>(frame: &F) -> i32 {
    let Some(head) = frame.head::<{ cache::SPAN_END }>() else { return F::PASS };
    let mut first: u32 = head.load::<_, { cache::SPAN_AT }>();
    let mut left: u32 = head.load::<_, { cache::SPAN_AT + 4 }>();
    for _ in 0..cache::SETS_PER_RUN {
        if left == 0 {
            break;
        }
        let Some(set) = maps::set(first) else { break };
        *set = cache::Set::default();
        for nth in 0..COPIES_PER_SET {
            let Some(copy) = maps::copy(first.wrapping_mul(COPIES_PER_SET).wrapping_add(nth)) else { break };
            give_back(copy);
            *copy = Copied::default();
        }
        first = first.wrapping_add(1);
        left -= 1;
    }
    head.store::<_, { cache::SPAN_AT }>(first);
    head.store::<_, { cache::SPAN_AT + 4 }>(left);
    F::PASS
}

/// Gives what a copy has counted to the half that it is of, if that is still there.
#[inline(always)]
fn give_back(copy: &Copied) {
    if copy.packets() != 0
        && let Some(entry) = V4::flows().get_ptr_mut(&copy.key())
    {
        // SAFETY: as in `established_of`.
        copy.counted(unsafe { &mut *entry });
    }
}

/// Destination and source address as they stand in a frame.
#[inline(always)]
const fn ethernet(dst: &wire::Mac, src: &wire::Mac) -> [u32; 3] {
    [
        u32::from_ne_bytes([dst[0], dst[1], dst[2], dst[3]]),
        u32::from_ne_bytes([dst[4], dst[5], src[0], src[1]]),
        u32::from_ne_bytes([src[2], src[3], src[4], src[5]]),
    ]
}

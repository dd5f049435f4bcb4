//! The flow cache: copies of conntrack halves, each of one cache line, in front of the conntrack.
//!
//! A hash map costs three to four cache and TLB misses per packet once flows outgrow the caches; here a packet finds all it needs in one
//! line, which an index tells that is an eighth as large.
//!
//! Shape: an array of [`Copied`] halves, of which every CPU has a [`Part`] for itself. Copies are taken in turn, so that flows that begin together
//! lie together, as closely as can be. Which one is a half's says an index of [`Set`]s: a half has two
//! sets in which its copy may be entered (two choices, as in Azar et al., 1994), so that sets overflow late.
//!
//! Invariants:
//! - A copy is used, written and replaced by its own CPU only, so there are neither locks nor torn reads. The controller reads.
//! - A copy is good for [`window`] at most and within one cache epoch; whatever the controller changes that packets depend on raises the
//!   epoch ([`crate::abi::Live::cache_epoch`]), after which nothing of before is found.
//! - A copy that is in use is not replaced: more flows than there is room for cost those that came late, and don't drive out each other.
//! - What a copy has counted is added to its half when the copy ends, or is made anew; who reads halves adds it, see [`Copied::counted`].

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::Timeouts,
    address::Ipv4,
    flow::{Entry, Key},
    hash,
    time::{self, Tick},
    wire::Mac,
};

/// How many copies a set tells.
pub const WAYS: u32 = 4;
/// With so many of its ways free, a place's first set takes another copy, whatever room the second has. (Two of a thousand copies are then in the second set
/// when an eighth of all ways are in use, and a tenth with half of them; if always the one with more room took it, a sixth and a quarter.)
pub const ENOUGH_WAYS: u32 = 2;
/// How many copies there are for each set: half as many as all sets can tell.
pub const COPIES_PER_SET: u32 = 2;
/// How many copies are looked at for one that is free.
pub const TRIES: u32 = 8;
/// A copy of which no packet has come for this part of the window (8.6 s by default) may be replaced by another half's, though it is good.
const IDLE_PART: u32 = 4;

/// Sets that one run of `mh_settle` ends.
pub const SETS_PER_RUN: u32 = 8;
/// Where the packet for `mh_settle` says which sets: two words in host byte order, the first set and how many. A run leaves there what is
/// left for the next one.
pub const SPAN_AT: usize = 16;
/// The length of that packet.
pub const SPAN_END: usize = SPAN_AT + 8;

/// The copy of a half of an IPv4 flow of TCP or UDP. 64 bytes. Addresses and ports are as in memory, that is big-endian.
///
/// Only one address and port changes: of a half that leads outside the source's, of one that leads inside the destination's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Copied {
    /// The packets that it is for; all zero: none.
    pub tag: Tag,
    /// The Ethernet addresses that the packet leaves with: destination and source.
    pub ethernet: [u32; 3],
    /// The address that changes.
    pub address: u32,
    /// The port that changes.
    pub port: u16,
    /// See [`Entry::address_delta`].
    pub address_delta: u16,
    /// See [`Entry::port_delta`].
    pub port_delta: u16,
    /// The egress interface.
    pub ifindex: u16,
    /// Good until then.
    pub until: Tick,
    /// The low bits of the tick in which the last packet came.
    pub seen: u16,
    /// The longest packet that may be sent, in bytes, without the Ethernet header.
    pub mtu: u16,
    /// What it has counted, its uplink and its flags: see [`Copied::packets`].
    pub count: u64,
}

/// What tells whether a packet is for a copy. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tag {
    /// Source and destination address.
    pub addresses: u64,
    /// From the lowest bits on: source port and destination port (together as they stand in the packet), the cache epoch,
    /// the protocol.
    pub ports: u64,
    /// From the lowest bits on: the six bytes of the Ethernet destination as they stand in the frame, the interface by which it comes.
    pub arrival: u64,
}

/// Which copies have their place here. 16 bytes. Each way tells one, see [`Place::entry`]; zero: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Set {
    /// The copies.
    pub ways: [u32; WAYS as usize],
}

/// Consecutive sets, and the copies that go with them. None: all zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The first set.
    pub first: u32,
    /// How many.
    pub sets: u32,
}

/// What one CPU has of the cache, and what it knows of the time. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Part {
    /// Its first set.
    pub first: u32,
    /// How many sets it has, a multiple of [`NEIGHBOURS`]; with fewer, none.
    pub sets: u32,
    /// How long a copy is good, in ticks: see [`window`].
    pub window: u32,
    /// The tick in which `jiffies` lie; written by the CPU itself.
    pub now: Tick,
    /// The kernel's clock when `now` was read; likewise.
    pub jiffies: u64,
    /// The key of the hash.
    pub seed: [u64; 2],
    /// Counts halves for which there was no room, or no part; likewise.
    pub full: u64,
    /// The number within the part of the copy that is looked at next for one that is free; likewise.
    pub next: u32,
    /// When the CPU last found no room for a flow that was to begin at XDP; likewise.
    pub refused: Tick,
}

/// How far the packets are shifted in [`Copied::count`]; below are the bytes.
const PACKETS_SHIFT: u32 = 32;
/// How far the uplink is shifted.
const UPLINK_SHIFT: u32 = 48;
/// Its packets leave by its uplink, which therefore has to be healthy; else they come from there.
pub const OUTWARD: u64 = 1 << 56;
/// XDP may send there.
pub const XDP: u64 = 1 << 57;
/// The most bytes and packets that are let to accumulate, with room for one more packet of any size.
const MOST_BYTES: u32 = 1 << 31;
const MOST_PACKETS: u16 = 1 << 15;

impl Copied {
    /// A copy that has counted nothing. `flags`: [`OUTWARD`], [`XDP`].
    #[inline(always)]
    pub const fn counting(uplink: u8, flags: u64) -> u64 {
        (uplink as u64) << UPLINK_SHIFT | flags
    }

    /// What `packets` packets of `bytes` bytes together add to [`Copied::count`].
    #[inline(always)]
    pub const fn increment(packets: u64, bytes: u64) -> u64 {
        packets << PACKETS_SHIFT | bytes
    }

    /// Packets counted.
    #[inline(always)]
    pub const fn packets(&self) -> u16 {
        (self.count >> PACKETS_SHIFT) as u16
    }

    /// Bytes counted.
    #[inline(always)]
    pub const fn bytes(&self) -> u32 {
        self.count as u32
    }

    /// The uplink.
    #[inline(always)]
    pub const fn uplink(&self) -> u8 {
        (self.count >> UPLINK_SHIFT) as u8
    }

    /// Whether there is room to count another packet.
    #[inline(always)]
    pub const fn has_room(&self) -> bool {
        self.packets() < MOST_PACKETS && self.bytes() < MOST_BYTES
    }

    /// When the last packet came. The window is shorter than the 16 bits of [`Copied::seen`].
    #[inline(always)]
    pub const fn last_seen(&self) -> Tick {
        let ago = (self.until as u16).wrapping_sub(self.seen);
        self.until.wrapping_sub(ago as u32)
    }

    /// Whether its time is not over.
    #[inline(always)]
    pub const fn is_good(&self, now: Tick) -> bool {
        self.until.wrapping_sub(now) as i32 > 0
    }

    /// Whether it is a half's, and its time is not over.
    #[inline(always)]
    pub const fn is_used(&self, now: Tick) -> bool {
        self.tag.addresses != 0 && self.is_good(now)
    }

    /// Whether another half may have it: it is not used, or no packet has come for a part of the [`window`].
    #[inline(always)]
    pub const fn may_be_replaced(&self, now: Tick, window: u32) -> bool {
        !self.is_used(now) || time::since(now, self.last_seen()) > window / IDLE_PART
    }

    /// Adds what it has counted to the half that it is a copy of; if it is one of an earlier half under the same key, nothing. That is so if
    /// no packet has come by this half (copies are made when one has, and the first packet of a half ends what is there), or only later.
    #[inline(always)]
    pub const fn counted(&self, entry: &mut Entry<Ipv4>) {
        let (packets, bytes) = (self.packets() as u64, self.bytes() as u64);
        if packets == 0 || entry.packets == 0 || time::since(entry.created, self.last_seen()) > 0 {
            return;
        }
        entry.packets += packets;
        entry.bytes += bytes;
        if time::since(self.last_seen(), entry.last_seen) >= time::SEEN_GRANULARITY_TICKS {
            entry.last_seen = self.last_seen();
        }
    }

    /// The key of the half that it is a copy of.
    #[inline(always)]
    pub const fn key(&self) -> Key<Ipv4> {
        let [sport, dport] = halves(self.tag.ports as u32);
        let [src, dst] = words(self.tag.addresses);
        Key::new(Ipv4::from_be(src), Ipv4::from_be(dst), sport, dport, (self.tag.ports >> 48) as u8)
    }
}

impl Tag {
    /// Of packets with these addresses and ports, by interface and Ethernet destination. The interface's index has to fit 16 bits.
    #[inline(always)]
    pub const fn new(key: &Key<Ipv4>, epoch: u16, ifindex: u32, mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self {
            addresses: addresses(key),
            ports: Self::ports(ports(key), epoch, key.protocol),
            arrival: Self::arrival(u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]), ifindex),
        }
    }

    /// [`Tag::ports`], from both ports as they stand in the packet.
    #[inline(always)]
    pub const fn ports(ports: u32, epoch: u16, protocol: u8) -> u64 {
        ports as u64 | (epoch as u64) << 32 | (protocol as u64) << 48
    }

    /// [`Tag::arrival`], from the first four and the last two bytes of the Ethernet destination.
    #[inline(always)]
    pub const fn arrival(mac_high: u32, mac_low: u16, ifindex: u32) -> u64 {
        mac_high as u64 | (mac_low as u64) << 32 | (ifindex as u64) << 48
    }

    /// Whether it is of packets with this key, in whatever epoch.
    #[inline(always)]
    pub const fn is_of(&self, key: &Key<Ipv4>) -> bool {
        const EPOCH: u64 = 0xffff << 32;
        self.addresses == addresses(key) && self.ports & !EPOCH == Self::ports(ports(key), 0, key.protocol)
    }
}

/// Both addresses as they stand in the packet.
#[inline(always)]
const fn addresses(key: &Key<Ipv4>) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (key.src.to_be().to_ne_bytes(), key.dst.to_be().to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Both ports as they stand in the packet.
#[inline(always)]
const fn ports(key: &Key<Ipv4>) -> u32 {
    let ([a, b], [c, d]) = (key.sport.to_ne_bytes(), key.dport.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[inline(always)]
const fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

#[inline(always)]
const fn words(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// How many sets lie together, with one for each value of the low bits of ports: four cache lines.
pub const NEIGHBOURS: u32 = 16;
/// The part of both ports that tells sets that lie together apart, in host byte order.
const LOW_BITS: u32 = ((NEIGHBOURS - 1) << 16) | (NEIGHBOURS - 1);
/// The part of an entry that says which copy it is, and so the number of copies that can be told.
pub const LINE: u32 = (1 << 24) - 1;

impl Part {
    /// Where packets with these addresses, ports and protocol have their place: see [`Extent::sets_of`]. Ports as they stand in the packet.
    ///
    /// The connections of a host have consecutive ports, and their packets come together: so their places lie together, where one address
    /// translation does for all of them, and processors fetch ahead. All else decides by chance which neighbourhood that is.
    ///
    /// Whoever finds flows that share a place gains what they would have without a cache.
    #[inline(always)]
    pub const fn place(&self, addresses: u64, ports: u32, protocol: u8) -> Place {
        let ports = u32::from_be(ports);
        let rest = (ports & !LOW_BITS) as u64 | (protocol as u64) << 32;
        Place {
            neighbourhoods: hash::place(self.seed, addresses, rest),
            low: (ports ^ (ports >> 16)) & (NEIGHBOURS - 1),
        }
    }

    /// Where packets with this key have their place.
    #[inline(always)]
    pub const fn place_of(&self, key: &Key<Ipv4>) -> Place {
        self.place(addresses(key), ports(key), key.protocol)
    }

    /// What it has. The controller may move the part at any time: this is where it was, or where it is.
    #[inline(always)]
    pub fn extent(&self) -> Extent {
        // One word, as the kernel copies it on an update: never the beginning of one extent with the length of another.
        // SAFETY: two words of this structure, which begins on eight bytes.
        let extent = unsafe { (&raw const self.first).cast::<u64>().read_volatile() };
        if cfg!(target_endian = "little") {
            Extent { first: extent as u32, sets: (extent >> 32) as u32 }
        } else {
            Extent { first: (extent >> 32) as u32, sets: extent as u32 }
        }
    }

    /// The copy of its extent that is to be looked at next for one that is free: all in turn.
    #[inline(always)]
    pub const fn next_line(&mut self, extent: Extent) -> u32 {
        let at = if self.next < extent.lines() { self.next } else { 0 };
        self.next = at + 1;
        extent.first_line().wrapping_add(at)
    }
}

impl Extent {
    /// So many sets from `first` on, unless there are none, or not all of them are among the first `total`.
    pub const fn within(total: u32, first: u32, sets: u32) -> Self {
        let extent = Self { first, sets };
        if sets == 0 || extent.end() > total { Self { first: 0, sets: 0 } } else { extent }
    }

    /// The set behind the last.
    pub const fn end(self) -> u32 {
        self.first.saturating_add(self.sets)
    }

    /// Its first copy.
    #[inline(always)]
    pub const fn first_line(self) -> u32 {
        self.first.wrapping_mul(COPIES_PER_SET)
    }

    /// How many copies it has.
    #[inline(always)]
    pub const fn lines(self) -> u32 {
        self.sets.wrapping_mul(COPIES_PER_SET)
    }

    /// The two sets of a place, unless there is no room for anything.
    #[inline(always)]
    pub const fn sets_of(self, place: Place) -> Option<[u32; 2]> {
        let neighbourhoods = (self.sets / NEIGHBOURS) as u64;
        if neighbourhoods == 0 {
            return None;
        }
        let [a, b] = [place.neighbourhoods as u32, (place.neighbourhoods >> 32) as u32];
        Some([self.nth(a, neighbourhoods) + place.low, self.nth(b, neighbourhoods) + place.low])
    }

    /// The first set of the neighbourhood that a number falls to, as fairly as can be (Lemire, 2019).
    #[inline(always)]
    const fn nth(self, number: u32, neighbourhoods: u64) -> u32 {
        self.first.wrapping_add(((number as u64 * neighbourhoods) >> 32) as u32 * NEIGHBOURS)
    }
}

/// See [`Part::place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// A number for each of the two neighbourhoods.
    neighbourhoods: u64,
    /// The set in both.
    low: u32,
}

impl Place {
    /// What a set says of a copy: which one it is, below [`LINE`], and above that seven bits of the hash, so that few copies are looked at
    /// in vain, and a one.
    #[inline(always)]
    pub const fn entry(self, line: u32) -> u32 {
        // The high bits choose the neighbourhood.
        ((self.neighbourhoods as u32) << 24) | 1 << 31 | line & LINE
    }

    /// The copy that an entry says, if it may be for this place's packets.
    #[inline(always)]
    pub const fn line(self, entry: u32) -> Option<u32> {
        let line = entry ^ self.entry(0);
        if line > LINE { None } else { Some(line) }
    }
}

/// How long a flow goes without maintenance, and so how long a copy may be good, in ticks: [`time::MAINTENANCE_TICKS`], but, so that flows expire in time, no
/// longer than a part of the shortest timeout of those that may have copies; and no longer than that of those that have none, whose bindings hear of them by it.
pub const fn window(timeouts: &Timeouts) -> u32 {
    let window = lag(timeouts.least_of_tcp_and_udp());
    let window = if timeouts.icmp < window { timeouts.icmp } else { window };
    if window == 0 { 1 } else { window }
}

/// How much later than its packets come, at the most, a half with this timeout hears of them, in ticks: of TCP and UDP no less than the [`window`], unless
/// that is one tick.
// VERIFIER: of this timeout alone: the window worked out from all of them takes stack that `mh_attend` does not have (6.1).
#[inline(always)]
pub const fn lag(timeout: u32) -> u32 {
    const PART: u32 = 4;
    let part = timeout / PART;
    if part > time::MAINTENANCE_TICKS { time::MAINTENANCE_TICKS } else { part }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::PROTOCOL_UDP;

    fn key(src: u32, dst: u32, sport: u16, dport: u16) -> Key<Ipv4> {
        Key::new(Ipv4::from_be(src), Ipv4::from_be(dst), sport, dport, PROTOCOL_UDP)
    }

    fn sets_of(part: &Part, key: &Key<Ipv4>) -> [u32; 2] {
        part.extent().sets_of(part.place_of(key)).unwrap()
    }

    fn part(first: u32, sets: u32, seed: [u64; 2]) -> Part {
        Part { first, sets, seed, ..Part::default() }
    }

    #[test]
    fn a_window_is_a_part_of_the_shortest_timeout() {
        let timeouts = |udp, icmp| Timeouts { udp, tcp_established: 10_000, tcp_transitory: 10_000, icmp };
        assert_eq!(window(&timeouts(1, 10_000)), 1);
        assert_eq!(window(&timeouts(400, 10_000)), 100);
        assert_eq!(window(&timeouts(400, 90)), 90);
        assert_eq!(window(&timeouts(10_000, 10_000)), time::MAINTENANCE_TICKS);
    }

    #[test]
    fn connections_of_a_host_lie_together() {
        let part = part(0, 1 << 16, [1, 2]);
        let sets: Vec<u32> =
            (0..16u16).map(|n| sets_of(&part, &key(1, 2, (4096 + n).to_be(), 443u16.to_be()))[0]).collect();
        let first = sets[0] / NEIGHBOURS;
        assert!(sets.iter().all(|set| set / NEIGHBOURS == first), "{sets:?}");
        let distinct: std::collections::BTreeSet<&u32> = sets.iter().collect();
        assert_eq!(distinct.len(), 16);
    }

    #[test]
    fn nearly_all_copies_can_be_told() {
        // As the programs do it: in the first set, unless that is nearly full and the other one has more room.
        let part = part(0, 1 << 12, [3, 4]);
        let mut used = vec![0usize; 1 << 12];
        let (mut refused, mut second_best) = (0, 0);
        for flow in 0..COPIES_PER_SET << 12 {
            let sport = u16::try_from(flow % 63).unwrap() + 1024;
            let sets = sets_of(&part, &key((flow / 63).to_be(), 7, sport.to_be(), 443u16.to_be()));
            let [first, second] = sets.map(|set| set as usize);
            let nearly_full = used[first] + ENOUGH_WAYS as usize > WAYS as usize;
            let set = if nearly_full && used[second] < used[first] { second } else { first };
            second_best += u32::from(set == second);
            if used[set] < WAYS as usize {
                used[set] += 1;
            } else {
                refused += 1;
            }
        }
        let all = COPIES_PER_SET << 12;
        assert!(refused < all / 1000, "{refused} of {all} found no room");
        assert!(second_best < all / 8, "{second_best} of {all} are in their second set");
    }

    #[test]
    fn copies_are_looked_at_in_turn() {
        let mut part = part(64, 32, [1, 2]);
        let extent = part.extent();
        let first: Vec<u32> = (0..64).map(|_| part.next_line(extent)).collect();
        assert_eq!(first, (128..192).collect::<Vec<u32>>());
        assert_eq!(part.next_line(extent), 128);
        // A part that has become smaller.
        part.next = 40;
        assert_eq!(part.next_line(Extent { first: 0, sets: 16 }), 0);
    }

    #[test]
    fn a_copy_without_packets_for_long_serves_others() {
        let (tag, window) = (Tag { addresses: 1, ..Tag::default() }, 80);
        let copy = Copied { tag, until: 1000, seen: 930, ..Copied::default() };
        assert!(!copy.may_be_replaced(950, window));
        assert!(copy.may_be_replaced(951, window) && copy.is_used(951));
        assert!(Copied { seen: 1000, ..copy }.may_be_replaced(1000, window), "its time is over");
        assert!(Copied { tag: Tag::default(), ..copy }.may_be_replaced(950, window), "nobody's");
    }

    #[test]
    fn what_an_earlier_half_counted_is_not_added() {
        let at = |n| key(1, 2, n, 4);
        let mut entry = Entry { packets: 1, bytes: 100, ..Entry::translating(&at(3), &at(5), 0, 0, 1000) };
        let copy = Copied { until: 990, seen: 980, count: Copied::increment(3, 300), ..Copied::default() };
        copy.counted(&mut entry);
        assert_eq!(entry.packets, 1);
        let copy = Copied { until: 1100, seen: 1050, ..copy };
        copy.counted(&mut entry);
        assert_eq!((entry.packets, entry.bytes, entry.last_seen), (4, 400, 1050));
        let mut untouched = Entry { packets: 0, ..entry };
        copy.counted(&mut untouched);
        assert_eq!(untouched.packets, 0);
    }

    proptest! {
        #[test]
        fn a_tag_is_its_keys(src: u32, dst: u32, sport: u16, dport: u16, epoch: u16, ifindex in 0u32..1 << 16, mac: [u8; 6]) {
            let key = key(src, dst, sport, dport);
            let copy = Copied { tag: Tag::new(&key, epoch, ifindex, mac), ..Copied::default() };
            prop_assert!(copy.tag.is_of(&key));
            prop_assert_eq!(copy.key(), key);
            let others = [
                Tag::new(&key, epoch.wrapping_add(1), ifindex, mac),
                Tag::new(&key, epoch, ifindex ^ 1, mac),
                Tag::new(&key, epoch, ifindex, [mac[0], mac[1], mac[2], mac[3], mac[4], !mac[5]]),
            ];
            prop_assert!(others.iter().all(|other| *other != copy.tag));
            let strangers = [Key { sport: !sport, ..key }, Key { protocol: 6, ..key }];
            prop_assert!(!strangers.iter().any(|stranger| copy.tag.is_of(stranger)));
        }

        #[test]
        fn places_are_within_the_part(first in 0u32..1 << 30, sets in NEIGHBOURS..1 << 20, seed: [u64; 2], src: u32, sport: u16) {
            let part = part(first, sets, seed);
            let places = sets_of(&part, &key(src, 9, sport, 5));
            prop_assert!(places.iter().all(|set| (first..first + sets).contains(set)));
        }

        #[test]
        fn entries_tell_copies(neighbourhoods: u64, low in 0..NEIGHBOURS, line in 0..=LINE) {
            let place = Place { neighbourhoods, low };
            prop_assert_eq!(place.line(place.entry(line)), Some(line));
            prop_assert_eq!(place.line(0), None);
            let other = Place { neighbourhoods: neighbourhoods ^ 1, low };
            prop_assert_eq!(other.line(place.entry(line)), None);
        }

        #[test]
        fn counts_don_t_touch_each_other(uplink in 0u8..64, packets in 0u16..MOST_PACKETS, bytes in 0u32..MOST_BYTES) {
            let mut copy = Copied { count: Copied::counting(uplink, OUTWARD | XDP), ..Copied::default() };
            copy.count += Copied::increment(u64::from(packets), u64::from(bytes));
            prop_assert!(copy.has_room());
            prop_assert_eq!((copy.packets(), copy.bytes(), copy.uplink()), (packets, bytes, uplink));
            // One more of the largest kind.
            copy.count += Copied::increment(1 << 14, 1 << 20);
            prop_assert_eq!((copy.uplink(), copy.count & (OUTWARD | XDP)), (uplink, OUTWARD | XDP));
        }

        #[test]
        fn the_last_packet_is_known_to_the_tick(until: u32, ago in 0u32..=time::MAINTENANCE_TICKS) {
            let seen = until.wrapping_sub(ago);
            #[allow(clippy::cast_possible_truncation, reason = "the low bits are what is kept")]
            let copy = Copied { until, seen: seen as u16, ..Copied::default() };
            prop_assert_eq!(copy.last_seen(), seen);
            prop_assert_eq!(copy.is_good(seen), ago > 0);
        }
    }
}

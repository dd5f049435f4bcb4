//! The conntrack as the stages use it: finding, making, removing and restoring the halves of flows.
//!
//! Invariants:
//! - The halves of a flow live in the same table. An embryonic flow has none yet, see [`crate::embryo`].
//! - A half that was evicted is restored with the uplink and the port that its flow had: from the other half, or, for TCP in
//!   mid-stream and for protocols without ports, from the binding alone.
//! - Nobody takes another flow's key.

use core::ptr::null_mut;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use mh_common::{
    abi,
    address::Address,
    binding::End,
    flow::{self, Entry, Key},
    time::Tick,
    verdict::Verdict,
    wire,
};

use crate::{
    maps::{self, Tables},
    parse::{Packet, Transport},
    track::Scene,
};

/// On how many uplinks the bindings of one inside port are looked at to restore a flow: those of the lowest indices.
const RESTORE_TRIES: u32 = 2;

/// A half of a flow, in its table.
pub struct Found<A: 'static> {
    /// The half.
    pub entry: *mut Entry<A>,
    /// It has seen no reply yet: the entry is in the table of new flows.
    pub new: bool,
}

/// A half by its key, from either table.
#[inline(always)]
pub fn find<Fam: Tables>(key: &Key<Fam::Address>) -> Option<Found<Fam::Address>> {
    if let Some(entry) = Fam::flows().get_ptr_mut(key) {
        return Some(Found { entry, new: false });
    }
    Fam::new_flows().get_ptr_mut(key).map(|entry| Found { entry, new: true })
}

/// The same for a half that has just been made: it is new, or the other half was established already.
#[inline(always)]
pub fn find_made<Fam: Tables>(key: &Key<Fam::Address>) -> Option<Found<Fam::Address>> {
    if let Some(entry) = Fam::new_flows().get_ptr_mut(key) {
        return Some(Found { entry, new: true });
    }
    Fam::flows().get_ptr_mut(key).map(|entry| Found { entry, new: false })
}

/// The key under which the answers to a packet with this key would arrive if nobody translated.
#[inline(always)]
pub const fn swapped<A: Address>(key: &Key<A>) -> Key<A> {
    Key::new(key.dst, key.src, key.dport, key.sport, key.protocol)
}

/// Removes both halves of a flow.
#[inline(always)]
pub fn forget<Fam: Tables>(key: &Key<Fam::Address>, entry: &Entry<Fam::Address>) {
    let other = entry.other_key(key.protocol);
    Fam::settle(key, null_mut());
    Fam::settle(&other, null_mut());
    // A half is in one table or the other; removing what is not there does nothing.
    let _ = Fam::flows().remove(&other);
    let _ = Fam::new_flows().remove(&other);
    let _ = Fam::flows().remove(key);
    let _ = Fam::new_flows().remove(key);
}

/// Inserts both halves of a flow whose packets arrive under `key` and leave as `sent`: the reply's first, so that no packet goes
/// out that can't be answered. `flags`: [`flow::HOST`], [`flow::HAIRPIN`], [`flow::ASKED`].
#[inline(always)]
pub fn insert<Fam: Tables>(
    key: &Key<Fam::Address>,
    sent: &Key<Fam::Address>,
    uplink: u8,
    flags: u8,
    now: Tick,
) -> Result<(), Verdict> {
    if find::<Fam>(key).is_some() {
        // A half of another kind, which took no packet from here: whoever sends this forges addresses.
        return Err(Verdict::NoFlow);
    }
    let forward = Entry::translating(key, sent, uplink, flags, now);
    let reply_key = forward.other_key(key.protocol);
    let mut table = Fam::new_flows();
    match Fam::flows().get_ptr(&reply_key) {
        // The halves of a flow live in the same table.
        Some(reply) if is_other_half(reply, key, uplink, flags) => table = Fam::flows(),
        established => {
            // What a former flow left, of which the other half was evicted, would take the answers to its inside host.
            if established.is_some() {
                let _ = Fam::flows().remove(&reply_key);
                maps::void_copies();
            }
            let answer = swapped(key);
            let reply = Entry::translating(&reply_key, &answer, uplink, flags | flow::REPLY, now);
            // Nearly always there is none, and it takes no lookup to know that.
            let mut inserted = table.insert(&reply_key, &reply, BPF_NOEXIST as u64);
            if inserted == Err(maps::EEXIST) {
                inserted = match table.get_ptr(&reply_key) {
                    Some(half) if is_other_half(half, key, uplink, flags) => Ok(()),
                    _ => table.insert(&reply_key, &reply, BPF_ANY as u64),
                };
            }
            inserted.map_err(|_| Verdict::ConntrackFull)?;
        }
    }
    table.insert(key, &forward, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)?;
    note::<Fam>(key, sent, flags);
    Ok(())
}

/// Whether nothing is known of the source of packets with this key: see [`mh_common::known`].
#[inline(always)]
pub fn is_unknown<Fam: Tables>(key: &Key<Fam::Address>) -> bool {
    Fam::is_unknown(key.src, key.sport, key.protocol)
}

/// Notes the sources of a flow: see [`mh_common::known`].
#[inline(always)]
fn note<Fam: Tables>(key: &Key<Fam::Address>, sent: &Key<Fam::Address>, flags: u8) {
    Fam::note(key.src, key.sport, key.protocol);
    Fam::note(sent.src, sent.sport, key.protocol);
    if flags & flow::HAIRPIN != 0 {
        // Its answers come from inside as well.
        Fam::note(sent.dst, sent.dport, key.protocol);
    }
}

/// Whether a half belongs with one under `key`, of a flow on this uplink with these flags.
#[inline(always)]
fn is_other_half<A: Address>(half: *const Entry<A>, key: &Key<A>, uplink: u8, flags: u8) -> bool {
    // SAFETY: as in `established_of`.
    let half = unsafe { &*half };
    half.other_key(key.protocol) == *key
        && half.uplink == uplink
        && (half.flags ^ flags) & (flow::HOST | flow::HAIRPIN) == 0
}

/// The bindings of a packet's source.
#[derive(Clone, Copy)]
pub struct Bound {
    /// The uplinks that it has one on, a bit each.
    uplinks: u64,
    /// Nothing is known of the source: see [`mh_common::known`].
    pub unknown: bool,
}

impl Bound {
    /// A source of which nothing is known has no bindings.
    pub const UNKNOWN: Self = Self { uplinks: 0, unknown: true };
    /// It may have some, for which nobody has looked.
    pub const MAYBE: Self = Self { unknown: false, ..Self::UNKNOWN };
}

/// Looks for the bindings of the source of packets with this key, but for those with an embryonic flow. `portless`: their protocol has no ports.
#[inline(always)]
pub fn bound<Fam: Tables>(key: &Key<Fam::Address>, portless: bool, scene: &Scene) -> Bound {
    let mut end = source_end(key, portless);
    let mut bound = Bound::MAYBE;
    // VERIFIER: a constant bound beside the real one: 5.15 does not accept the number from the map alone.
    while (end.uplink as usize) < abi::MAX_UPLINKS && (end.uplink as u32) < scene.settings.uplinks {
        if let Some(outside) = Fam::by_inside().get_ptr(end) {
            // VERIFIER: the index as the map value has it: from the counter, every set of bits would be a state of its own.
            // SAFETY: a live map value of which a word is read.
            bound.uplinks |= 1 << (unsafe { (*outside).uplink } & 63);
        }
        end.uplink += 1;
    }
    bound
}

/// The inside end, on uplink 0, of bindings of the source of packets with this key.
#[inline(always)]
const fn source_end<A: Address>(key: &Key<A>, portless: bool) -> End<A> {
    let address = if portless { key.dst } else { key.src };
    End { address, port: key.sport, protocol: key.protocol, uplink: 0 }
}

/// The uplink and the translated key of a flow whose forward half was evicted, if what is left tells them: its reply half, or, for a
/// TCP segment in mid-stream and for protocols without ports, its binding. Flows of an uplink that is down, or has lost their outside address, are not
/// restored. `by_binding`: the binding alone will do; if not, only the reply half. `host`: the machine itself may be the inside end, whose
/// flows are not translated if the remote began them; of others, what begins is not looked for under its own addresses if all uplinks
/// translate. `bound`: the source's bindings.
#[inline(always)]
pub fn evicted<Fam: Tables>(
    packet: &Packet<Fam::Address>,
    by_binding: bool,
    host: bool,
    bound: &Bound,
    scene: &Scene,
) -> Option<(u8, Key<Fam::Address>)> {
    let key = &packet.key;
    let portless = packet.transport == Transport::OTHER;
    let midstream = portless || packet.transport == Transport::TCP && packet.tcp & wire::TCP_SYN == 0;
    // Without translation, the reply half is known by the flow's own addresses.
    if (host || midstream || scene.settings.flags & abi::ALL_TRANSLATE == 0)
        && let Some(uplink) = reply_uplink::<Fam>(&swapped(key))
        && scene.is_healthy(uplink)
    {
        return Some((uplink, *key));
    }
    let mut end = source_end(key, portless);
    // VERIFIER: a loop of its own: leaving a long one from the middle multiplies all that follows (6.18: 400,000 more instructions processed).
    let mut bound = bound.uplinks & scene.live.healthy;
    for _ in 0..RESTORE_TRIES {
        if bound == 0 {
            break;
        }
        end.uplink = bound.trailing_zeros() as u8;
        bound &= bound - 1;
        // SAFETY: a live map value that is copied.
        let outside = unsafe { *Fam::by_inside().get_ptr(end)? };
        let sent = match packet.transport {
            Transport::ECHO_REPLY => Key::new(outside.address, key.dst, 0, outside.port, key.protocol),
            _ => Key::new(outside.address, key.dst, outside.port, key.dport, key.protocol),
        };
        // Not with an address that the uplink has lost.
        let lasts = Fam::owners(outside.address) >> (outside.uplink & 31) & 1 != 0;
        let ours = lasts && (!portless || owner::<Fam>(end).is_some_and(|owner| owner == key.src));
        if ours && (midstream && by_binding || reply_uplink::<Fam>(&swapped(&sent)) == Some(outside.uplink)) {
            return Some((outside.uplink, sent));
        }
    }
    None
}

/// The inside host that has the binding of this outside end.
#[inline(always)]
fn owner<Fam: Tables>(end: End<Fam::Address>) -> Option<Fam::Address> {
    // SAFETY: a live map value of which a word is read.
    Fam::by_outside().get_ptr(end).map(|inside| unsafe { (*inside).address })
}

/// The uplink of the reply half under this key, if there is one.
#[inline(always)]
fn reply_uplink<Fam: Tables>(key: &Key<Fam::Address>) -> Option<u8> {
    // SAFETY: as in `established_of`.
    let entry = unsafe { &*find::<Fam>(key)?.entry };
    entry.is_reply().then_some(entry.uplink)
}

//! Tracking: which flow does a packet belong to, and what has to happen to the flow.
//!
//! [`established`] is the whole of the fast path: a packet of a flow that exists and needs no attention. Everything that changes
//! more than counters happens in [`complete`]: TCP's SYN, FIN and RST, the first reply, neighbours, bindings, new flows.
//!
//! Invariants:
//! - The forward half takes packets from inside only, the reply half from its own uplink only: an outsider who forges inside
//!   addresses finds no flow.
//! - A half that was evicted is restored with the uplink and the port that its flow had: from the other half, or, for TCP in
//!   mid-stream, from the binding alone.
//! - A packet whose TTL ends here is the kernel's to answer (RFC 1812 section 5.3.1), and changes nothing.

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_ktime_get_ns};
use aya_log_ebpf::debug;
use mh_common::{
    abi::{self, Interface, Live, Settings},
    address::{Address, Family, V4},
    binding::End,
    flow::{self, Entry, Key, Seen, State},
    time::{self, Tick},
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, TcFrame},
    count::{self, Sent},
    maps::{self, Tables},
    nat,
    parse::{self, Header, Packet, Transport},
    rewrite, steer,
};

/// TCP flags that change more than counters.
const TCP_EVENTS: u8 = wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST;
/// TCP flags that an entry remembers.
const TCP_REMEMBERED: u8 = TCP_EVENTS | wire::TCP_ACK;

/// On how many uplinks the bindings of one inside port are looked at to restore a flow: those of the lowest indices.
const RESTORE_TRIES: u32 = 2;

/// A half of a flow, in its table.
struct Found<A: 'static> {
    entry: *mut Entry<A>,
    /// It has seen no reply yet: the entry is in the table of new flows.
    new: bool,
}

/// The time, in ticks.
#[inline(always)]
fn now() -> Tick {
    // SAFETY: a helper call without arguments.
    time::tick(unsafe { bpf_ktime_get_ns() })
}

#[inline(always)]
fn find<Fam: Tables>(key: &Key<Fam::Address>) -> Option<Found<Fam::Address>> {
    if let Some(entry) = Fam::flows().get_ptr_mut(key) {
        return Some(Found { entry, new: false });
    }
    Fam::new_flows().get_ptr_mut(key).map(|entry| Found { entry, new: true })
}

/// Whether a half may take packets from this interface.
#[inline(always)]
const fn takes<A: Address>(entry: &Entry<A>, interface: &Interface) -> bool {
    if entry.is_reply() {
        interface.role == abi::ROLE_UPLINK && interface.uplink == entry.uplink
    } else {
        interface.role == abi::ROLE_LAN
    }
}

/// Whether the half is due for maintenance: see [`time::MAINTENANCE_TICKS`].
#[inline(always)]
fn is_due<A>(entry: &Entry<A>, live: &Live, now: Tick) -> bool {
    entry.flags & flow::RESOLVED == 0
        || entry.epoch != live.neighbour_epoch as u8
        || time::since(now, entry.maintained) >= time::MAINTENANCE_TICKS
}

/// The fast path, for XDP.
#[inline(always)]
pub fn established<F: Frame>(frame: &mut F) -> Result<Sent, Verdict> {
    let interface = maps::interface(frame.ifindex()).ok_or(Verdict::Unmanaged)?;
    match parse::ethertype(frame, &interface)? {
        V4::ETHERTYPE => established_of::<V4, F>(frame, &interface),
        other => Err(parse::not_translated(other)),
    }
}

#[inline(always)]
fn established_of<Fam: Tables + Header, F: Frame>(frame: &mut F, interface: &Interface) -> Result<Sent, Verdict> {
    let packet = Fam::parse(frame)?;
    if packet.tcp & TCP_EVENTS != 0 || packet.ttl <= 1 {
        return Err(Verdict::ToTc);
    }
    let entry = Fam::flows().get_ptr_mut(&packet.key).ok_or(Verdict::ToTc)?;
    // SAFETY: a live map value. Another CPU may write counters and timestamps of the same half at the same time; each field
    // is read and written as one word, so the worst is a lost count.
    let entry = unsafe { &mut *entry };
    let live = maps::live().ok_or(Verdict::ToTc)?;
    let now = now();
    if !takes(entry, interface) || entry.flags & flow::XDP == 0 || is_due(entry, live, now) {
        return Err(Verdict::ToTc);
    }
    if !entry.is_reply() {
        let uplink = maps::uplink(entry.uplink).ok_or(Verdict::ToTc)?;
        if live.healthy >> (entry.uplink & 63) & 1 == 0 || packet.len > uplink.mtu {
            return Err(Verdict::ToTc);
        }
    }
    touch(entry, &packet, frame.segments(), now);
    let code = rewrite::send::<Fam, F>(frame, &packet, entry)?;
    Ok(Sent { verdict: if entry.is_reply() { Verdict::Reply } else { Verdict::Forward }, code })
}

/// The complete path, for TC ingress.
#[inline(always)]
pub fn complete(frame: &mut TcFrame) -> Result<Sent, Verdict> {
    let interface = maps::interface(frame.ifindex()).ok_or(Verdict::Unmanaged)?;
    frame.pull(wire::MAX_HEADERS_LEN);
    match parse::ethertype(frame, &interface)? {
        V4::ETHERTYPE => complete_of::<V4>(frame, &interface),
        other => Err(parse::not_translated(other)),
    }
}

#[inline(always)]
fn complete_of<Fam: Tables + Header>(frame: &mut TcFrame, interface: &Interface) -> Result<Sent, Verdict> {
    let packet = Fam::parse(frame)?;
    let live = maps::live().ok_or(Verdict::Unmanaged)?;
    let settings = maps::settings().ok_or(Verdict::Unmanaged)?;
    let now = now();
    let mut verdict = Verdict::Forward;
    let mut found = find::<Fam>(&packet.key);
    if let Some(hit) = &found {
        // SAFETY: as in `established_of`.
        let entry = unsafe { &*hit.entry };
        if !takes(entry, interface) {
            found = None;
        } else if packet.ttl <= 1 {
            return Err(Verdict::TtlExpired);
        } else if !entry.is_reply() && is_over(entry, &packet, live) {
            forget::<Fam>(&packet.key, entry);
            found = None;
        }
    }
    if found.is_none() {
        if interface.role == abi::ROLE_LAN {
            verdict = from_inside::<Fam>(frame, &packet, live, settings, now)?;
        } else {
            verdict = restore_reply::<Fam>(&packet, interface.uplink, now)?;
        }
        found = find::<Fam>(&packet.key);
    }
    let hit = found.ok_or(Verdict::ConntrackFull)?;
    // SAFETY: as in `established_of`.
    let entry = unsafe { &mut *hit.entry };
    if entry.is_reply() && verdict == Verdict::Forward {
        verdict = Verdict::Reply;
    }
    if !entry.is_reply() && frame.segments() == 1 {
        let uplink = maps::uplink(entry.uplink).ok_or(Verdict::NoUplink)?;
        if packet.len > uplink.mtu {
            return Err(Verdict::TooBig);
        }
    }
    let closing = packet.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0;
    touch(entry, &packet, frame.segments(), now);
    let due = is_due(entry, live, now);
    if due {
        rewrite::resolve::<Fam, _>(frame, &packet, entry, live, now)?;
    }
    if due || closing {
        extend_binding::<Fam>(&packet, entry, settings, now, closing);
    }
    if hit.new && entry.is_reply() {
        promote::<Fam>(&packet.key, entry);
    }
    let code = rewrite::send::<Fam, _>(frame, &packet, entry)?;
    Ok(Sent { verdict, code })
}

/// Whether a packet from inside begins a new flow under the key of an old one: a SYN after the end of a TCP connection
/// (RFC 9293 section 3.6.1), or an uplink that is down and does not hold its flows while another one is up.
#[inline(always)]
fn is_over<A>(entry: &Entry<A>, packet: &Packet<A>, live: &Live) -> bool {
    let opens = packet.tcp & (TCP_EVENTS | wire::TCP_ACK) == wire::TCP_SYN;
    if opens && entry.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0 {
        return true;
    }
    if live.healthy >> (entry.uplink & 63) & 1 == 0 && live.healthy != 0 {
        let flags = maps::uplink(entry.uplink).map_or(abi::UPLINK_HOLD, |u| u.flags);
        let rebind = packet.transport != Transport::Tcp || opens || flags & abi::UPLINK_REPIN != 0;
        return flags & abi::UPLINK_HOLD == 0 && rebind;
    }
    false
}

/// Removes both halves of a flow.
#[inline(always)]
fn forget<Fam: Tables>(key: &Key<Fam::Address>, entry: &Entry<Fam::Address>) {
    let other = entry.other_key(key.protocol);
    // A half is in one table or the other; removing what is not there does nothing.
    let _ = Fam::flows().remove(&other);
    let _ = Fam::new_flows().remove(&other);
    let _ = Fam::flows().remove(key);
    let _ = Fam::new_flows().remove(key);
}

/// Counts the packet in its half and its uplink.
#[inline(always)]
fn touch<A: Address>(entry: &mut Entry<A>, packet: &Packet<A>, segments: u32, now: Tick) {
    let packets = segments as u64;
    // Each further segment that the packet stands for repeats the headers; their payload is in `len` already.
    let headers = (packet.l4 - wire::ETHERNET_LEN + wire::TCP_LEN) as u64;
    let bytes = packet.len as u64 + (packets - 1) * headers;
    entry.packets += packets;
    entry.bytes += bytes;
    if packet.tcp & TCP_REMEMBERED & !entry.tcp != 0 {
        entry.tcp |= packet.tcp & TCP_REMEMBERED;
    }
    if time::since(now, entry.last_seen) >= time::SEEN_GRANULARITY_TICKS {
        entry.last_seen = now;
    }
    count::uplink(entry.uplink, entry.is_reply(), packets, bytes);
}

/// The first reply has come: moves both halves to the table of flows that a flood of new ones can't evict.
#[inline(always)]
fn promote<Fam: Tables>(key: &Key<Fam::Address>, reply: &Entry<Fam::Address>) {
    let forward_key = reply.other_key(key.protocol);
    if let Some(forward) = Fam::new_flows().get_ptr_mut(&forward_key) {
        // SAFETY: as in `established_of`; the entry is copied before it is removed.
        let forward = unsafe { *forward };
        let _ = Fam::flows().insert(&forward_key, &forward, BPF_ANY as u64);
        let _ = Fam::new_flows().remove(&forward_key);
    }
    let copy = *reply;
    let _ = Fam::flows().insert(key, &copy, BPF_ANY as u64);
    let _ = Fam::new_flows().remove(key);
}

/// The inside end of the binding that a flow uses.
#[inline(always)]
const fn inside_end<A: Address>(key: &Key<A>, entry: &Entry<A>) -> End<A> {
    let (address, port) = if entry.is_reply() { (entry.dst, entry.dport) } else { (key.src, key.sport) };
    End { address, port, protocol: key.protocol, uplink: entry.uplink }
}

/// Moves the end of the binding's life to when this flow, in the state it is in, may have been idle too long. `closes`: the packet
/// ends a TCP connection, so that the end may also come nearer; other flows of the binding move it away again.
#[inline(always)]
fn extend_binding<Fam: Tables>(
    packet: &Packet<Fam::Address>,
    entry: &Entry<Fam::Address>,
    settings: &Settings,
    now: Tick,
    closes: bool,
) {
    let Some(binding) = Fam::by_inside().get_ptr_mut(inside_end(&packet.key, entry)) else { return };
    let protocol = packet.key.protocol;
    let other = match find::<Fam>(&entry.other_key(protocol)) {
        // SAFETY: as in `established_of`.
        Some(other) => Seen::from(unsafe { &*other.entry }),
        None => Seen::default(),
    };
    let own = Seen::from(entry);
    let (forward, reply) = if entry.is_reply() { (other, own) } else { (own, other) };
    let state = flow::state(protocol, forward, reply);
    let expires = now.wrapping_add(state.timeout(protocol, &settings.timeouts));
    // SAFETY: a live map value; `expires` is one word.
    let binding = unsafe { &mut *binding };
    let ended = closes && matches!(state, State::Closing | State::Reset);
    binding.expires = if ended { expires } else { time::later(expires, binding.expires) };
}

/// A packet from inside that belongs to no flow: restores the flow, or begins one.
#[inline(always)]
fn from_inside<Fam: Tables + Header>(
    frame: &mut TcFrame,
    packet: &Packet<Fam::Address>,
    live: &Live,
    settings: &Settings,
    now: Tick,
) -> Result<Verdict, Verdict> {
    if packet.transport == Transport::EchoReply {
        return Err(Verdict::Protocol);
    }
    if !steer::is_for_uplink::<Fam, _>(frame, packet) {
        return Err(Verdict::NotForUplink);
    }
    if packet.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    if let Some((uplink, sent)) = evicted::<Fam>(packet, live, settings) {
        insert::<Fam>(&packet.key, &sent, uplink, now)?;
        return Ok(Verdict::Restored);
    }
    if packet.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0 {
        return Err(Verdict::TcpStray);
    }
    let index = steer::select(packet, live, settings)?;
    let uplink = maps::uplink(index).ok_or(Verdict::NoUplink)?;
    let key = &packet.key;
    let sent = if uplink.flags & abi::UPLINK_NAT == 0 {
        *key
    } else {
        let outside = nat::bind::<Fam>(frame, packet, index, uplink, settings, now)?;
        match packet.transport {
            Transport::EchoReply => Key::new(outside.address, key.dst, 0, outside.port, key.protocol),
            _ => Key::new(outside.address, key.dst, outside.port, key.dport, key.protocol),
        }
    };
    insert::<Fam>(key, &sent, index, now)?;
    count::new_flow(index);
    debug!(frame.tc_context(), "new flow: protocol {} on uplink {}", key.protocol, index);
    Ok(Verdict::New)
}

/// Inserts both halves of a flow whose packets arrive under `key` and leave as `sent`: the reply's first, so that no packet goes
/// out that can't be answered.
#[inline(always)]
fn insert<Fam: Tables>(
    key: &Key<Fam::Address>,
    sent: &Key<Fam::Address>,
    uplink: u8,
    now: Tick,
) -> Result<(), Verdict> {
    let forward = Entry::translating(key, sent, uplink, 0, now);
    let reply_key = forward.other_key(key.protocol);
    let mut table = Fam::new_flows();
    match find::<Fam>(&reply_key) {
        // The halves of a flow live in the same table.
        Some(reply) if !reply.new => table = Fam::flows(),
        Some(_) => {}
        None => {
            let answer = Key::new(key.dst, key.src, key.dport, key.sport, key.protocol);
            let reply = Entry::translating(&reply_key, &answer, uplink, flow::REPLY, now);
            table.insert(&reply_key, &reply, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)?;
        }
    }
    table.insert(key, &forward, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)
}

/// The uplink and the translated key of a flow whose forward half was evicted, if what is left tells them: its reply half, or, for a
/// TCP segment in mid-stream, its binding. Flows of an uplink that is down are not restored.
#[inline(always)]
fn evicted<Fam: Tables>(
    packet: &Packet<Fam::Address>,
    live: &Live,
    settings: &Settings,
) -> Option<(u8, Key<Fam::Address>)> {
    let key = &packet.key;
    // Without translation, the reply half is known by the flow's own addresses.
    if let Some(uplink) = reply_uplink::<Fam>(&Key::new(key.dst, key.src, key.dport, key.sport, key.protocol))
        && live.healthy >> (uplink & 63) & 1 != 0
    {
        return Some((uplink, *key));
    }
    let midstream = packet.transport == Transport::Tcp && packet.tcp & wire::TCP_SYN == 0;
    let mut end = End { address: key.src, port: key.sport, protocol: key.protocol, uplink: 0 };
    let mut bound = 0u64;
    // VERIFIER: a constant bound beside the real one (5.15 does not accept the number from the map alone), and two loops, since
    // leaving a long one from the middle multiplies all that follows (6.18: 400,000 more instructions processed).
    while (end.uplink as usize) < abi::MAX_UPLINKS && (end.uplink as u32) < settings.uplinks {
        if let Some(outside) = Fam::by_inside().get_ptr(end) {
            // VERIFIER: the index as the map value has it: from the counter, every set of bits would be a state of its own.
            // SAFETY: a live map value of which a byte is read.
            bound |= 1 << (unsafe { (*outside).uplink } & 63);
        }
        end.uplink += 1;
    }
    bound &= live.healthy;
    for _ in 0..RESTORE_TRIES {
        if bound == 0 {
            break;
        }
        end.uplink = bound.trailing_zeros() as u8;
        bound &= bound - 1;
        // SAFETY: a live map value that is copied.
        let outside = unsafe { *Fam::by_inside().get_ptr(end)? };
        let sent = Key::new(outside.address, key.dst, outside.port, key.dport, key.protocol);
        let reply_key = Key::new(sent.dst, sent.src, sent.dport, sent.sport, key.protocol);
        if midstream || reply_uplink::<Fam>(&reply_key) == Some(outside.uplink) {
            return Some((outside.uplink, sent));
        }
    }
    None
}

/// The uplink of the reply half under this key, if there is one.
#[inline(always)]
fn reply_uplink<Fam: Tables>(key: &Key<Fam::Address>) -> Option<u8> {
    // SAFETY: as in `established_of`.
    let entry = unsafe { &*find::<Fam>(key)?.entry };
    entry.is_reply().then_some(entry.uplink)
}

/// A packet from an uplink that finds no reply half: restores it, if its forward half is there.
#[inline(always)]
fn restore_reply<Fam: Tables + Header>(
    packet: &Packet<Fam::Address>,
    uplink: u8,
    now: Tick,
) -> Result<Verdict, Verdict> {
    let key = &packet.key;
    let end = End { address: key.dst, port: key.dport, protocol: key.protocol, uplink };
    let answer = match Fam::by_outside().get_ptr_mut(end) {
        Some(inside) => {
            // SAFETY: a live map value that is copied.
            let inside = unsafe { *inside };
            Key::new(key.src, inside.address, key.sport, inside.port, key.protocol)
        }
        None => *key,
    };
    let forward_key = Key::new(answer.dst, answer.src, answer.dport, answer.sport, key.protocol);
    let forward = find::<Fam>(&forward_key).ok_or(Verdict::NoFlow)?;
    // SAFETY: as in `established_of`.
    let entry = unsafe { &*forward.entry };
    if entry.is_reply() || entry.uplink != uplink || entry.other_key(key.protocol) != *key {
        return Err(Verdict::NoFlow);
    }
    if packet.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    let reply = Entry::translating(key, &answer, uplink, flow::REPLY, now);
    let table = if forward.new { Fam::new_flows() } else { Fam::flows() };
    table.insert(key, &reply, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)?;
    Ok(Verdict::Restored)
}

//! Tracking: which flow does a packet belong to, and what has to happen to the flow.
//!
//! [`established`] is the whole of the fast path: a packet of a flow that exists and needs no attention. [`attend`] is the frequent
//! part of the complete path: every packet of a flow that exists. What belongs to no flow goes on in a stage of its own:
//! [`crate::outbound`], [`crate::inbound`], [`crate::error`], [`crate::fragment`].
//!
//! Invariants:
//! - The forward half takes packets from inside only, the reply half from its own uplink only: an outsider who forges inside
//!   addresses finds no flow.
//! - A half that was evicted is restored with the uplink and the port that its flow had: from the other half, or, for TCP in
//!   mid-stream, from the binding alone.
//! - A flow that has been idle longer than its state allows is over, even if nobody has removed it yet.
//! - A packet whose TTL ends here is the kernel's to answer (RFC 1812 section 5.3.1), and changes nothing.

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_ktime_get_ns};
use mh_common::{
    abi::{self, Interface, Live, Settings, Stage, mark},
    address::{Address, Family, V4},
    binding::{End, Peer},
    flow::{self, Entry, Key, Seen, State},
    time::{self, Tick},
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, TcFrame},
    clamp,
    count::{self, Sent},
    fragment,
    maps::{self, Tables},
    parse::{self, Header, Ip, Packet, Part, Transport},
    rewrite,
};

/// TCP flags that change more than counters.
pub const TCP_EVENTS: u8 = wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST;
/// TCP flags that an entry remembers.
const TCP_REMEMBERED: u8 = TCP_EVENTS | wire::TCP_ACK;

/// On how many uplinks the bindings of one inside port are looked at to restore a flow: those of the lowest indices.
const RESTORE_TRIES: u32 = 2;

/// A half of a flow, in its table.
pub struct Found<A: 'static> {
    /// The half.
    pub entry: *mut Entry<A>,
    /// It has seen no reply yet: the entry is in the table of new flows.
    pub new: bool,
}

/// What holds for every packet of a run.
pub struct Scene {
    /// The interface that the packet came in by or, at egress, leaves by.
    pub interface: Interface,
    /// Health and neighbour epoch.
    pub live: &'static Live,
    /// The settings.
    pub settings: &'static Settings,
    /// The time.
    pub now: Tick,
}

impl Scene {
    /// Looks around. The frame learns what kind of device it is on.
    #[inline(always)]
    pub fn new<const EGRESS: bool>(frame: &mut TcFrame<EGRESS>) -> Result<Self, Verdict> {
        let interface = maps::interface(frame.ifindex()).ok_or(Verdict::Unmanaged)?;
        frame.set_device(&interface);
        let live = maps::live().ok_or(Verdict::Unmanaged)?;
        let settings = maps::settings().ok_or(Verdict::Unmanaged)?;
        Ok(Self { interface, live, settings, now: now() })
    }

    /// Whether the uplink is healthy.
    #[inline(always)]
    pub const fn is_healthy(&self, uplink: u8) -> bool {
        self.live.healthy >> (uplink & 63) & 1 != 0
    }
}

/// The time, in ticks.
#[inline(always)]
fn now() -> Tick {
    // SAFETY: a helper call without arguments.
    time::tick(unsafe { bpf_ktime_get_ns() })
}

/// A half by its key, from either table.
#[inline(always)]
pub fn find<Fam: Tables>(key: &Key<Fam::Address>) -> Option<Found<Fam::Address>> {
    if let Some(entry) = Fam::flows().get_ptr_mut(key) {
        return Some(Found { entry, new: false });
    }
    Fam::new_flows().get_ptr_mut(key).map(|entry| Found { entry, new: true })
}

/// The key under which the answers to a packet with this key would arrive if nobody translated.
#[inline(always)]
pub const fn swapped<A: Address>(key: &Key<A>) -> Key<A> {
    Key::new(key.dst, key.src, key.dport, key.sport, key.protocol)
}

/// Whether a half may take packets that come in by this interface.
#[inline(always)]
pub const fn takes<A: Address>(entry: &Entry<A>, interface: &Interface) -> bool {
    if entry.flags & flow::HAIRPIN != 0 {
        interface.role == abi::ROLE_LAN
    } else if entry.is_reply() {
        interface.role == abi::ROLE_UPLINK && interface.uplink == entry.uplink
    } else {
        interface.role == abi::ROLE_LAN && entry.flags & flow::HOST == 0
    }
}

/// Whether the half is due for maintenance: see [`time::MAINTENANCE_TICKS`].
#[inline(always)]
fn is_due<A>(entry: &Entry<A>, live: &Live, now: Tick) -> bool {
    entry.flags & (flow::RESOLVED | flow::HOST) == 0
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

/// The same at TC ingress; what it can't finish goes on in [`attend`].
#[inline(always)]
pub fn quick(frame: &mut TcFrame<false>) -> Result<Sent, Verdict> {
    let interface = maps::interface(frame.ifindex()).ok_or(Verdict::Unmanaged)?;
    frame.set_device(&interface);
    frame.pull(wire::MAX_HEADERS_LEN);
    let outcome = match parse::network_protocol(frame, &interface)? {
        V4::ETHERTYPE => established_of::<V4, _>(frame, &interface),
        other => Err(parse::not_translated(other)),
    };
    match outcome {
        Err(Verdict::ToTc) => Err(maps::stage(frame, Stage::Attend, Note::None)),
        outcome => outcome,
    }
}

#[inline(always)]
fn established_of<Fam: Tables + Header, F: Frame>(frame: &mut F, interface: &Interface) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    if ip.part() != Part::Whole || ip.ttl <= 1 {
        return Err(Verdict::ToTc);
    }
    // What is no query is an error, or nothing to translate.
    let packet = match parse::transport::<Fam, F>(frame, ip) {
        Err(Verdict::Protocol) => return Err(Verdict::ToTc),
        parsed => parsed?,
    };
    if packet.tcp & TCP_EVENTS != 0 {
        return Err(Verdict::ToTc);
    }
    let entry = Fam::flows().get_ptr_mut(&packet.key).ok_or(Verdict::ToTc)?;
    // SAFETY: a live map value. Another CPU may write counters and timestamps of the same half at the same time; each field
    // is read and written as one word, so the worst is a lost count.
    let entry = unsafe { &mut *entry };
    let live = maps::live().ok_or(Verdict::ToTc)?;
    let settings = maps::settings().ok_or(Verdict::ToTc)?;
    let now = now();
    let reachable = F::COMPLETE || entry.flags & flow::XDP != 0;
    if !takes(entry, interface)
        || !reachable
        || entry.flags & flow::HOST != 0
        || entry.tcp & wire::TCP_RST != 0
        || is_due(entry, live, now)
    {
        return Err(Verdict::ToTc);
    }
    let size = packet.size_on_wire(frame);
    if entry.leads_outside() {
        let uplink = maps::uplink(entry.uplink).ok_or(Verdict::ToTc)?;
        if live.healthy >> (entry.uplink & 63) & 1 == 0 || size > uplink.mtu {
            return Err(Verdict::ToTc);
        }
    } else if size > settings.lan_mtu {
        return Err(Verdict::ToTc);
    }
    touch(entry, &packet, frame, now);
    rewrite::translate::<Fam, F>(frame, &packet, entry, true).map_err(|()| Verdict::Rewrite)?;
    frame.set_mark(settings, mark::DONE);
    Ok(Sent { verdict: on_flow(entry), code: rewrite::redirect::<Fam, F>(frame, entry) })
}

/// What a packet on a flow that exists counts as.
#[inline(always)]
const fn on_flow<A: Address>(entry: &Entry<A>) -> Verdict {
    if entry.flags & flow::HAIRPIN != 0 {
        Verdict::Hairpin
    } else if entry.flags & flow::HOST != 0 {
        Verdict::Host
    } else if entry.is_reply() {
        Verdict::Reply
    } else {
        Verdict::Forward
    }
}

/// The program of [`Stage::Attend`]: the complete path for packets of flows that exist, or have just been made, as the note says.
#[inline(always)]
pub fn attend(frame: &mut TcFrame<false>) -> Result<Sent, Verdict> {
    let scene = Scene::new(frame)?;
    frame.pull(wire::MAX_HEADERS_LEN);
    match parse::network_protocol(frame, &scene.interface)? {
        V4::ETHERTYPE => attend_of::<V4>(frame, &scene),
        other => Err(parse::not_translated(other)),
    }
}

#[inline(always)]
fn attend_of<Fam: Tables + Header>(frame: &mut TcFrame<false>, scene: &Scene) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    if ip.part() == Part::Later {
        return Err(maps::stage(frame, Stage::Later, Note::None));
    }
    if parse::is_icmp_error::<Fam, _>(frame, &ip) {
        return Err(maps::stage(frame, Stage::Error, Note::None));
    }
    let packet = parse::transport::<Fam, _>(frame, ip)?.forget_choice(scene.live.zero);
    if packet.ip.part() == Part::First && fragment::is_awaited::<Fam>(&packet.ip, scene) {
        return Err(maps::stage(frame, Stage::Release, Note::None));
    }
    let note = frame.note();
    let from_lan = scene.interface.role == abi::ROLE_LAN;
    let miss = if from_lan { Stage::Outbound } else { Stage::Inbound };
    let Some(hit) = find::<Fam>(&packet.key) else {
        // What was inserted a moment ago is gone.
        let lost = note != Note::None as u32;
        return Err(if lost { Verdict::ConntrackFull } else { maps::stage(frame, miss, Note::None) });
    };
    // SAFETY: as in `established_of`.
    let entry = unsafe { &*hit.entry };
    if note == Note::None as u32 {
        if !takes(entry, &scene.interface) {
            return Err(maps::stage(frame, miss, Note::None));
        }
        if packet.ip.ttl <= 1 {
            return Err(Verdict::TtlExpired);
        }
        if has_expired::<Fam>(&packet.key, entry, scene) || is_over(entry, &packet, scene) {
            forget::<Fam>(&packet.key, entry);
            return Err(maps::stage(frame, miss, Note::None));
        }
    }
    forward_on::<Fam, false>(frame, &packet, &hit, note, scene)
}

/// What one program leaves in the packet's control buffer for the next one.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    None = 0,
    /// The flow has just begun.
    New = 1,
    /// It has just been restored.
    Restored = 2,
    /// It has just been begun by the remote side.
    Inbound = 3,
    /// It has just begun, from inside to inside.
    Hairpin = 4,
    /// It has just begun, to the machine itself.
    Host = 5,
}

impl Note {
    /// What a packet with this note counts as; without one: as `otherwise` says.
    #[inline(always)]
    pub const fn verdict(note: u32, otherwise: Verdict) -> Verdict {
        match note {
            1 => Verdict::New,
            2 => Verdict::Restored,
            3 => Verdict::Inbound,
            4 => Verdict::Hairpin,
            5 => Verdict::Host,
            _ => otherwise,
        }
    }
}

/// Whether a packet begins a new flow under the key of an old one: a SYN after the end of a TCP connection (RFC 9293 section 3.6.1),
/// or, from inside, an uplink that is down and does not hold its flows while another one is up.
#[inline(always)]
pub fn is_over<A: Address>(entry: &Entry<A>, packet: &Packet<A>, scene: &Scene) -> bool {
    let opens = packet.tcp & (TCP_EVENTS | wire::TCP_ACK) == wire::TCP_SYN;
    if opens && entry.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0 {
        return true;
    }
    if entry.leads_outside() && !scene.is_healthy(entry.uplink) && scene.live.healthy != 0 {
        let flags = maps::uplink(entry.uplink).map_or(abi::UPLINK_HOLD, |u| u.flags);
        let rebind = packet.transport != Transport::TCP || opens || flags & abi::UPLINK_REPIN != 0;
        return flags & abi::UPLINK_HOLD == 0 && rebind;
    }
    false
}

/// Whether the flow has been idle longer than its state allows: lazy expiry, since the controller sweeps every few seconds only (or
/// not at all, if it is dead).
#[inline(always)]
pub fn has_expired<Fam: Tables>(key: &Key<Fam::Address>, entry: &Entry<Fam::Address>, scene: &Scene) -> bool {
    let idle = time::since(scene.now, entry.last_seen);
    let timeouts = &scene.settings.timeouts;
    if idle <= timeouts.least() {
        return false;
    }
    let protocol = key.protocol;
    let other = find::<Fam>(&entry.other_key(protocol));
    let (other_idle, other_seen) = match other {
        // SAFETY: as in `established_of`.
        Some(other) => unsafe { (time::since(scene.now, (*other.entry).last_seen), Seen::from(&*other.entry)) },
        None => (u32::MAX, Seen::default()),
    };
    let own = Seen::from(entry);
    let (forward, reply) = if entry.is_reply() { (other_seen, own) } else { (own, other_seen) };
    let timeout = flow::state(protocol, forward, reply).timeout(protocol, timeouts);
    idle > timeout && other_idle > timeout
}

/// Removes both halves of a flow.
#[inline(always)]
pub fn forget<Fam: Tables>(key: &Key<Fam::Address>, entry: &Entry<Fam::Address>) {
    let other = entry.other_key(key.protocol);
    // A half is in one table or the other; removing what is not there does nothing.
    let _ = Fam::flows().remove(&other);
    let _ = Fam::new_flows().remove(&other);
    let _ = Fam::flows().remove(key);
    let _ = Fam::new_flows().remove(key);
}

/// Does with a packet what its half says: counts, maintains, translates, sends. `note`: see [`Note`].
///
/// A packet that is too large for its next link goes to the kernel, which fragments it or refuses it with ICMP: from inside with the
/// mark of its uplink and untouched, so that the ICMP message quotes what the client sent; from outside translated, so that the kernel
/// routes it to the inside host.
#[inline(always)]
pub fn forward_on<Fam: Tables + Header, const EGRESS: bool>(
    frame: &mut TcFrame<EGRESS>,
    packet: &Packet<Fam::Address>,
    hit: &Found<Fam::Address>,
    note: u32,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    let &Scene { live, settings, now, .. } = scene;
    // SAFETY: as in `established_of`.
    let entry = unsafe { &mut *hit.entry };
    let outside = entry.leads_outside();
    let host = entry.flags & flow::HOST != 0;
    let uplink = maps::uplink(entry.uplink).ok_or(Verdict::NoUplink)?;
    let size = packet.size_on_wire(frame);
    if outside && size > uplink.mtu {
        if EGRESS {
            return Err(Verdict::TooBig);
        }
        if packet.ip.part() == Part::First {
            // Not only at egress: of what a driver hands over in one batch, the rest of the datagram comes here before the kernel goes
            // on with this packet.
            fragment::remember::<Fam, _>(frame, &packet.ip, entry, scene);
        }
        frame.set_mark(settings, mark::FIRST_UPLINK + entry.uplink as u32);
        return Ok(Sent { verdict: too_big(&packet.ip), code: TcFrame::<EGRESS>::PASS });
    }
    let closing = packet.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0;
    let revived = touch(entry, packet, frame, now);
    let due = is_due(entry, live, now);
    if due && (host || EGRESS) {
        entry.maintained = now;
        entry.epoch = live.neighbour_epoch as u8;
    } else if due {
        rewrite::resolve::<Fam, _>(frame, &packet.ip, entry, live, now)?;
    }
    if due || closing || revived {
        extend_binding::<Fam>(&packet.key, entry, scene, closing);
    }
    if hit.new {
        promote::<Fam>(&packet.key, entry);
    }
    if packet.ip.part() == Part::First {
        fragment::remember::<Fam, _>(frame, &packet.ip, entry, scene);
    }
    let too_big_for_lan = !outside && !host && is_too_big_for_lan(entry, size, scene);
    // What goes up to the kernel, or comes from it, is the kernel's to forward.
    let forwarded = !EGRESS && !too_big_for_lan && (outside || !host);
    rewrite::translate::<Fam, _>(frame, packet, entry, forwarded).map_err(|()| Verdict::Rewrite)?;
    // Before the redirect, which may move the headers.
    if packet.tcp & wire::TCP_SYN != 0 && uplink.mss != 0 {
        clamp::mss(frame, packet.ip.l4(), packet.l4_len(), uplink.mss);
    }
    let mut code = TcFrame::<EGRESS>::PASS;
    if EGRESS {
        code = leave::<Fam, EGRESS>(frame, entry, uplink.ifindex, settings);
    } else if forwarded {
        // Nothing but uplinks look at it.
        frame.set_mark(settings, mark::DONE);
        code = rewrite::redirect::<Fam, _>(frame, entry);
    } else if too_big_for_lan {
        frame.set_mark(settings, mark::DONE);
    }
    let verdict = if too_big_for_lan { too_big(&packet.ip) } else { Note::verdict(note, on_flow(entry)) };
    Ok(Sent { verdict, code })
}

/// What a packet counts as that is too large for its next link.
#[inline(always)]
pub const fn too_big<A: Copy>(ip: &Ip<A>) -> Verdict {
    if ip.dont_fragment() { Verdict::TooBig } else { Verdict::ToFragment }
}

/// Whether a packet of this size is too large for the interface by which the half leads inside.
#[inline(always)]
pub fn is_too_big_for_lan<A>(entry: &Entry<A>, size: u32, scene: &Scene) -> bool {
    size > scene.settings.lan_mtu && maps::interface(entry.ifindex).is_none_or(|interface| size > interface.mtu)
}

/// Lets a translated packet leave by its uplink, from the egress hook of this or another one.
#[inline(always)]
pub fn leave<Fam: Tables + Header, const EGRESS: bool>(
    frame: &mut TcFrame<EGRESS>,
    entry: &Entry<Fam::Address>,
    ifindex: u32,
    settings: &Settings,
) -> i32 {
    if ifindex == frame.ifindex() {
        return TcFrame::<EGRESS>::PASS;
    }
    frame.set_mark(settings, mark::DONE);
    frame.redirect_neighbour(ifindex, Fam::AF, rewrite::next_hop_address::<Fam>(entry))
}

/// Counts the packet in its half and its uplink. Returns whether it shows that a RST was not the end.
#[inline(always)]
fn touch<A: Address, F: Frame>(entry: &mut Entry<A>, packet: &Packet<A>, frame: &F, now: Tick) -> bool {
    let packets = frame.segments() as u64;
    // Each further segment that the packet stands for repeats the headers; their payload is in `len` already.
    let headers = (packet.ip.l4() - frame.l3() + packet.l4_len()) as u64;
    let bytes = packet.ip.len as u64 + (packets - 1) * headers;
    entry.packets += packets;
    entry.bytes += bytes;
    let mut revived = false;
    if packet.tcp & TCP_REMEMBERED & !entry.tcp != 0 {
        entry.tcp |= packet.tcp & TCP_REMEMBERED;
    }
    // A RST may be forged: if its sender goes on, the connection lives (RFC 6146 section 3.5.2.2, state TRANS).
    if entry.tcp & wire::TCP_RST != 0 && packet.tcp & TCP_EVENTS == 0 {
        entry.tcp &= !wire::TCP_RST;
        revived = true;
    }
    if time::since(now, entry.last_seen) >= time::SEEN_GRANULARITY_TICKS {
        entry.last_seen = now;
    }
    count::uplink(entry.uplink, entry.is_reply(), packets, bytes);
    revived
}

/// If the other side has been heard of, moves both halves to the table of flows that a flood of new ones can't evict.
#[inline(always)]
fn promote<Fam: Tables>(key: &Key<Fam::Address>, entry: &Entry<Fam::Address>) {
    let other_key = entry.other_key(key.protocol);
    let Some(other) = Fam::new_flows().get_ptr_mut(&other_key) else { return };
    // SAFETY: as in `established_of`; the entries are copied before they are removed.
    let copy = unsafe { *other };
    if copy.packets == 0 {
        return;
    }
    let _ = Fam::flows().insert(&other_key, &copy, BPF_ANY as u64);
    let _ = Fam::new_flows().remove(&other_key);
    let copy = *entry;
    let _ = Fam::flows().insert(key, &copy, BPF_ANY as u64);
    let _ = Fam::new_flows().remove(key);
}

/// The inside end of the binding that a flow uses.
#[inline(always)]
const fn inside_end<A: Address>(key: &Key<A>, entry: &Entry<A>) -> End<A> {
    let (inside, remote, port) =
        if entry.is_reply() { (entry.dst, key.src, entry.dport) } else { (key.src, key.dst, key.sport) };
    let address = if wire::has_ports(key.protocol) { inside } else { remote };
    End { address, port, protocol: key.protocol, uplink: entry.uplink }
}

/// Moves the end of the binding's life to when this flow, in the state it is in, may have been idle too long. `closes`: the packet
/// ends a TCP connection, so that the end may also come nearer; other flows of the binding move it away again.
///
/// What only the remote side sends keeps no binding alive (RFC 4787 REQ-6).
#[inline(always)]
fn extend_binding<Fam: Tables>(key: &Key<Fam::Address>, entry: &Entry<Fam::Address>, scene: &Scene, closes: bool) {
    let &Scene { settings, now, .. } = scene;
    let Some(binding) = Fam::by_inside().get_ptr_mut(inside_end(key, entry)) else { return };
    let protocol = key.protocol;
    let other = match find::<Fam>(&entry.other_key(protocol)) {
        // SAFETY: as in `established_of`.
        Some(other) => Seen::from(unsafe { &*other.entry }),
        None => Seen::default(),
    };
    let own = Seen::from(entry);
    let (forward, reply) = if entry.is_reply() { (other, own) } else { (own, other) };
    if !forward.any {
        return;
    }
    let state = flow::state(protocol, forward, reply);
    let expires = now.wrapping_add(state.timeout(protocol, &settings.timeouts));
    // SAFETY: a live map value; `expires` is one word.
    let binding = unsafe { &mut *binding };
    let ended = closes && matches!(state, State::Closing | State::Reset);
    binding.expires = if ended { expires } else { time::later(expires, binding.expires) };
    if settings.flags & abi::ADDRESS_DEPENDENT != 0 && entry.leads_outside() {
        let outside = End { address: binding.address, port: binding.port, protocol, uplink: entry.uplink };
        let _ = Fam::peers().insert(Peer { remote: key.dst, outside }, expires, BPF_ANY as u64);
    }
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
    match find::<Fam>(&reply_key) {
        Some(reply) if is_other_half(reply.entry, key, uplink, flags) => {
            // The halves of a flow live in the same table.
            if !reply.new {
                table = Fam::flows();
            }
        }
        _ => {
            // What a former flow left, of which the other half was evicted, would take the answers to its inside host.
            let _ = Fam::flows().remove(&reply_key);
            let answer = swapped(key);
            let reply = Entry::translating(&reply_key, &answer, uplink, flags | flow::REPLY, now);
            table.insert(&reply_key, &reply, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)?;
        }
    }
    table.insert(key, &forward, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)
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

/// The uplink and the translated key of a flow whose forward half was evicted, if what is left tells them: its reply half, or, for a
/// TCP segment in mid-stream and for protocols without ports, its binding. Flows of an uplink that is down are not restored.
#[inline(always)]
pub fn evicted<Fam: Tables>(packet: &Packet<Fam::Address>, scene: &Scene) -> Option<(u8, Key<Fam::Address>)> {
    let key = &packet.key;
    // Without translation, the reply half is known by the flow's own addresses.
    if let Some(uplink) = reply_uplink::<Fam>(&swapped(key))
        && scene.is_healthy(uplink)
    {
        return Some((uplink, *key));
    }
    let portless = packet.transport == Transport::OTHER;
    let midstream = portless || packet.transport == Transport::TCP && packet.tcp & wire::TCP_SYN == 0;
    let address = if portless { key.dst } else { key.src };
    let mut end = End { address, port: key.sport, protocol: key.protocol, uplink: 0 };
    let mut bound = 0u64;
    // VERIFIER: a constant bound beside the real one (5.15 does not accept the number from the map alone), and two loops, since
    // leaving a long one from the middle multiplies all that follows (6.18: 400,000 more instructions processed).
    while (end.uplink as usize) < abi::MAX_UPLINKS && (end.uplink as u32) < scene.settings.uplinks {
        if let Some(outside) = Fam::by_inside().get_ptr(end) {
            // VERIFIER: the index as the map value has it: from the counter, every set of bits would be a state of its own.
            // SAFETY: a live map value of which a byte is read.
            bound |= 1 << (unsafe { (*outside).uplink } & 63);
        }
        end.uplink += 1;
    }
    bound &= scene.live.healthy;
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
        let ours = !portless || owner::<Fam>(end).is_some_and(|owner| owner == key.src);
        if ours && (midstream || reply_uplink::<Fam>(&swapped(&sent)) == Some(outside.uplink)) {
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

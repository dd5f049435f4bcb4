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

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mh_common::{
    abi::{self, Interface, Live, Settings, Stage, mark},
    address::{Address, Family, V4},
    cache,
    flow::{self, Entry, Key, Seen},
    time::{self, Tick},
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, TcFrame, XdpFrame},
    cache::Arrival,
    conntrack::{self, Found, is_unknown},
    count::{self, Sent},
    forward, fragment,
    maps::{self, Tables},
    parse::{self, Header, Packet, Part, Transport},
    policy, reset, rewrite,
};

/// TCP flags that change more than counters.
pub const TCP_EVENTS: u8 = wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST;
/// TCP flags that an entry remembers.
const TCP_REMEMBERED: u8 = TCP_EVENTS | wire::TCP_ACK;

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
        Self::at(interface)
    }

    /// What holds at an interface.
    #[inline(always)]
    pub fn at(interface: Interface) -> Result<Self, Verdict> {
        let live = maps::live().ok_or(Verdict::Unmanaged)?;
        let settings = maps::settings().ok_or(Verdict::Unmanaged)?;
        Ok(Self { interface, live, settings, now: now() })
    }

    /// Whether the uplink is healthy.
    #[inline(always)]
    pub const fn is_healthy(&self, uplink: u8) -> bool {
        self.live.is_healthy(uplink)
    }
}

/// The time, in ticks.
#[inline(always)]
pub fn now() -> Tick {
    // SAFETY: a helper call without arguments.
    time::tick(unsafe { bpf_ktime_get_ns() })
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

/// Whether the half is due for maintenance: see [`maps::maintenance`].
#[inline(always)]
pub fn is_due<A>(entry: &Entry<A>, live: &Live, now: Tick) -> bool {
    entry.flags & (flow::RESOLVED | flow::HOST) == 0
        || entry.epoch != live.neighbour_epoch as u8
        || time::since(now, entry.maintained) >= maps::maintenance()
}

/// The fast path, for XDP.
#[inline(always)]
pub fn established(frame: &mut XdpFrame) -> Result<Sent, Verdict> {
    if let Some(done) = crate::cache::hit(frame) {
        return done;
    }
    let interface = maps::interface(frame.ifindex()).ok_or(Verdict::Unmanaged)?;
    let outcome = match parse::ethertype(frame, &interface)? {
        V4::ETHERTYPE => established_of::<V4, _>(frame, &interface),
        other => Err(parse::not_translated(other)),
    };
    if let Err(BEGINS) = outcome {
        maps::begin_at_xdp(frame);
        return Err(Verdict::ToTc);
    }
    outcome
}

/// The same at TC ingress; what it can't finish goes on in [`attend`].
#[inline(always)]
pub fn quick(frame: &mut TcFrame<false>) -> Result<Sent, Verdict> {
    frame.pull(wire::MAX_HEADERS_LEN);
    if let Some(done) = crate::cache::hit(frame) {
        return done;
    }
    let interface = maps::interface(frame.ifindex()).ok_or(Verdict::Unmanaged)?;
    frame.set_device(&interface);
    let outcome = match parse::network_protocol(frame, &interface)? {
        V4::ETHERTYPE => established_of::<V4, _>(frame, &interface),
        other => Err(parse::not_translated(other)),
    };
    match outcome {
        Err(Verdict::ToTc) => Err(maps::stage(frame, Stage::Attend, Note::None)),
        Err(BEGINS) => Err(maps::stage(frame, Stage::Outbound, Note::None)),
        outcome => outcome,
    }
}

/// What [`established_of`] says of a packet that belongs to no flow and may begin one. It leaves neither [`established`] nor
/// [`quick`].
const BEGINS: Verdict = Verdict::Stage;

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
    let events = packet.tcp & TCP_EVENTS;
    if !F::COMPLETE && events != 0 && (events | packet.tcp & wire::TCP_ACK) != wire::TCP_SYN {
        return Err(Verdict::ToTc);
    }
    let from_lan = interface.role == abi::ROLE_LAN;
    if from_lan && is_unknown::<Fam>(&packet.key) {
        // What belongs to no flow needs no attention, but a new one.
        let here = F::COMPLETE || packet.transport == Transport::UDP || events != 0;
        return Err(if here { BEGINS } else { Verdict::ToTc });
    }
    let Some(entry) = Fam::flows().get_ptr_mut(&packet.key) else {
        let begins = F::COMPLETE && from_lan && Fam::new_flows().get_ptr(&packet.key).is_none();
        return Err(if begins { BEGINS } else { Verdict::ToTc });
    };
    if events != 0 {
        return Err(Verdict::ToTc);
    }
    // SAFETY: a live map value. Another CPU may write counters and timestamps of the same half at the same time; each field
    // is read and written as one word, so the worst is a lost count.
    let entry = unsafe { &mut *entry };
    let live = maps::live().ok_or(Verdict::ToTc)?;
    let settings = maps::settings().ok_or(Verdict::ToTc)?;
    let now = now();
    if !takes(entry, interface) || entry.flags & flow::HOST != 0 || entry.tcp & wire::TCP_RST != 0 {
        return Err(Verdict::ToTc);
    }
    let mut mtu = settings.lan_mtu;
    if entry.leads_outside() {
        if !live.is_healthy(entry.uplink) {
            return Err(Verdict::ToTc);
        }
        mtu = maps::uplink(entry.uplink).ok_or(Verdict::ToTc)?.mtu;
    }
    if packet.size_on_wire(frame) > mtu {
        return Err(Verdict::ToTc);
    }
    let due = is_due(entry, live, now);
    if due {
        // What is over, or has lost its address, is for the complete path.
        // When the last packet came by a copy, the half does not know yet; those that have copies have longer timeouts.
        let timeouts = &settings.timeouts;
        let ports = wire::is_tcp_or_udp(packet.key.protocol);
        let least = if ports { timeouts.least_of_tcp_and_udp() } else { timeouts.least() };
        let lasts = time::since(now, entry.last_seen) <= least;
        let orphaned = entry.leads_outside() && is_orphan::<Fam>(entry, &packet);
        if !lasts || orphaned {
            return Err(Verdict::ToTc);
        }
        rewrite::resolve::<Fam, F>(frame, &packet.ip, entry, live, now).map_err(|_| Verdict::ToTc)?;
        if !F::COMPLETE && entry.flags & flow::XDP == 0 {
            // The half stays due, for whoever sends the packet.
            entry.flags &= !flow::RESOLVED;
        }
    }
    if entry.flags & flow::RESOLVED == 0 || !F::COMPLETE && entry.flags & flow::XDP == 0 {
        return Err(Verdict::ToTc);
    }
    touch(entry, &packet, frame, now);
    if due {
        let scene = Scene { interface: *interface, live, settings, now };
        let half = Found { entry: &raw mut *entry, new: false };
        forward::extend_binding::<Fam>(&packet.key, &half, &scene, false);
    }
    Fam::copy(&packet.key, entry, &Arrival { interface, ifindex: frame.ifindex(), mtu }, live, now);
    rewrite::translate::<Fam, F>(frame, &packet, entry, true).map_err(|()| Verdict::Rewrite)?;
    frame.set_mark(settings, mark::DONE);
    Ok(Sent { verdict: on_flow(entry), code: rewrite::redirect::<Fam, F>(frame, entry) })
}

/// What a packet on a flow that exists counts as.
#[inline(always)]
pub const fn on_flow<A: Address>(entry: &Entry<A>) -> Verdict {
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
pub fn attend<Fam: Tables + Header>(frame: &mut TcFrame<false>, scene: &Scene) -> Result<Sent, Verdict> {
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
    if !from_lan && packet.tcp & wire::TCP_RST != 0 && frame.mark(scene.settings) == mark::DONE {
        // By mh itself, in the remote's name: no packet that comes by the wire has a mark. The flow has learned of it.
        frame.set_mark(scene.settings, mark::NONE);
        return Err(Verdict::HostUntouched);
    }
    let miss = if from_lan { Stage::Outbound } else { Stage::Inbound };
    let made = note != Note::None as u32;
    let hit = if note == Note::Embryo as u32 {
        Fam::embryo().map(|entry| Found { entry, new: false })
    } else if made {
        conntrack::find_made::<Fam>(&packet.key)
    } else {
        conntrack::find::<Fam>(&packet.key)
    };
    let Some(hit) = hit else {
        // What was inserted a moment ago is gone.
        return Err(if made { Verdict::ConntrackFull } else { maps::stage(frame, miss, Note::None) });
    };
    // SAFETY: as in `established_of`.
    let entry = unsafe { &mut *hit.entry };
    // What is attended to may change what its copy says; and to a half that has just been made, a former one's copy is of no use.
    Fam::settle(&packet.key, hit.entry);
    if !made {
        if !takes(entry, &scene.interface) {
            return Err(maps::stage(frame, miss, Note::None));
        }
        if packet.ip.ttl <= 1 {
            return Err(Verdict::TtlExpired);
        }
        let fate = fate::<Fam, _>(frame, entry, &packet, scene);
        if fate == Fate::OVER {
            conntrack::forget::<Fam>(&packet.key, entry);
            return Err(maps::stage(frame, miss, Note::None));
        }
        if fate == Fate::RESET {
            return Err(maps::stage(frame, Stage::Reset, Note::None));
        }
    }
    forward::forward_on::<Fam, false>(frame, &packet, &hit, note, scene)
}

/// Begins a stage: looks around and makes the first `headers` bytes readable. Fails with a verdict if the packet is not IPv4.
#[inline(always)]
pub fn staged<const EGRESS: bool>(frame: &mut TcFrame<EGRESS>, headers: usize) -> Result<Scene, Verdict> {
    let scene = Scene::new(frame)?;
    frame.pull(headers);
    match parse::network_protocol(frame, &scene.interface)? {
        V4::ETHERTYPE => Ok(scene),
        other => Err(parse::not_translated(other)),
    }
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
    /// It has just begun, and is embryonic: see [`Tables::embryo`].
    Embryo = 6,
}

impl Note {
    /// Whether the flow has just begun, from inside to outside.
    #[inline(always)]
    pub const fn begins(note: u32) -> bool {
        note == Self::New as u32 || note == Self::Embryo as u32
    }

    /// What a packet with this note counts as; without one: as `otherwise` says.
    #[inline(always)]
    pub const fn verdict(note: u32, otherwise: Verdict) -> Verdict {
        match note {
            n if Self::begins(n) => Verdict::New,
            n if n == Self::Restored as u32 => Verdict::Restored,
            n if n == Self::Inbound as u32 => Verdict::Inbound,
            n if n == Self::Hairpin as u32 => Verdict::Hairpin,
            n if n == Self::Host as u32 => Verdict::Host,
            _ => otherwise,
        }
    }
}

/// What a packet finds its flow to be.
// VERIFIER: a number, as all choices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fate(u8);

impl Fate {
    /// It goes on.
    pub const GOES_ON: Self = Self(0);
    /// It is over, and the packet begins a new one under the same key.
    pub const OVER: Self = Self(1);
    /// It is lost, and whoever sent the packet is to be told by a RST.
    pub const RESET: Self = Self(2);
}

/// What becomes of the flow of this packet, which has been idle too long, or gets a SYN after its end (RFC 9293 section 3.6.1), or whose
/// uplink is down, or has lost the address that the flow has outside. In the last two cases `on_down` decides, if a new flow of its kind
/// would find an uplink: if not, nothing is gained by giving up what is there.
#[inline(always)]
pub fn fate<Fam: Tables + Header, F: Frame>(
    frame: &F,
    entry: &Entry<Fam::Address>,
    packet: &Packet<Fam::Address>,
    scene: &Scene,
) -> Fate {
    let opens = packet.tcp & (TCP_EVENTS | wire::TCP_ACK) == wire::TCP_SYN;
    if has_expired::<Fam>(&packet.key, entry, scene) || opens && entry.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0 {
        return Fate::OVER;
    }
    if !entry.leads_outside() {
        return Fate::GOES_ON;
    }
    let orphaned = is_due(entry, scene.live, scene.now) && is_orphan::<Fam>(entry, packet);
    if !orphaned && scene.is_healthy(entry.uplink)
        || !policy::finds_uplink::<Fam, F>(frame, packet, entry.flags & flow::HOST != 0, scene)
    {
        return Fate::GOES_ON;
    }
    let flags = maps::uplink(entry.uplink).map_or(abi::UPLINK_HOLD, |u| u.flags);
    if flags & abi::UPLINK_HOLD != 0 {
        return Fate::GOES_ON;
    }
    if packet.transport != Transport::TCP || opens || flags & abi::UPLINK_REPIN != 0 {
        return Fate::OVER;
    }
    // A remote end that began the flow does not learn of a RST here, and can't be reached by another uplink: it may come back by this
    // one, but not to an address that is gone.
    let resets = orphaned || entry.flags & flow::ASKED == 0;
    if resets && reset::can_answer::<Fam, F>(frame, packet) { Fate::RESET } else { Fate::GOES_ON }
}

/// Whether the flow's outside address is none of its uplink's any more. A source that is not translated is somebody else's affair.
#[inline(always)]
fn is_orphan<Fam: Tables>(entry: &Entry<Fam::Address>, packet: &Packet<Fam::Address>) -> bool {
    entry.src != packet.key.src && Fam::owners(entry.src) >> (entry.uplink & 31) & 1 == 0
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
    let other = conntrack::find::<Fam>(&entry.other_key(protocol));
    let (other_idle, other_seen) = match other {
        // SAFETY: as in `established_of`.
        Some(other) => unsafe { (time::since(scene.now, (*other.entry).last_seen), Seen::from(&*other.entry)) },
        None => (u32::MAX, Seen::default()),
    };
    let own = Seen::from(entry);
    let (forward, reply) = if entry.is_reply() { (other_seen, own) } else { (own, other_seen) };
    let timeout = flow::state(protocol, forward, reply).timeout(protocol, timeouts);
    // What copies in the flow cache have seen is known so much later only.
    let timeout = timeout + cache::lag(timeout);
    idle > timeout && other_idle > timeout
}

/// Counts the packet in its half and its uplink. Returns whether it shows that a RST was not the end.
#[inline(always)]
pub fn touch<A: Address, F: Frame>(entry: &mut Entry<A>, packet: &Packet<A>, frame: &F, now: Tick) -> bool {
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

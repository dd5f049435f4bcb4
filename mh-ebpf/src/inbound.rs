//! A packet from an uplink that belongs to no flow: it restores one, begins one by a binding that is open to it (a port forward, or
//! an inside host's, as the filter allows), or is for the machine itself.
//!
//! What the machine itself is asked is followed too, so that its answers leave by the uplink on which the question came
//! (RFC 1122 section 3.3.4.2), see [`crate::host`].

use mh_common::{
    abi::{self, Stage},
    binding::End,
    flow::{self, Entry, Key},
    verdict::Verdict,
    wire,
};

use aya_ebpf::bindings::BPF_ANY;

use crate::{
    access::TcFrame,
    conntrack::{self, swapped},
    count::Sent,
    embryo, fragment,
    maps::{self, Tables},
    nat,
    parse::{self, Header, Packet, Part, Transport},
    steer,
    track::{self, Note, Scene, TCP_EVENTS},
};

/// The stage's program.
#[inline(always)]
pub fn run<Fam: Tables + Header>(frame: &mut TcFrame<false>, scene: &Scene) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    let packet = parse::transport::<Fam, _>(frame, ip)?.forget_choice(scene.live.zero);
    match enter::<Fam>(frame, &packet, scene) {
        Ok(note) => Err(maps::stage(frame, Stage::Attend, note)),
        Err(verdict) => {
            if packet.ip.part() == Part::First && matches!(verdict, Verdict::NoFlow) {
                fragment::leave_to_kernel::<Fam>(&packet, scene);
            }
            Err(verdict)
        }
    }
}

/// Makes the flow that the packet belongs to, if it may come in.
#[inline(always)]
fn enter<Fam: Tables + Header>(
    frame: &TcFrame<false>,
    packet: &Packet<Fam::Address>,
    scene: &Scene,
) -> Result<Note, Verdict> {
    let key = &packet.key;
    let uplink = scene.interface.uplink;
    if packet.ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    if conntrack::find::<Fam>(key).is_some() {
        // Another uplink's.
        return Err(Verdict::NoFlow);
    }
    let address = if packet.transport == Transport::OTHER { key.src } else { key.dst };
    let end = End { address, port: key.dport, protocol: key.protocol, uplink };
    // A ping is for the machine itself; that it has no destination port is no identifier of zero.
    let inside = if packet.transport == Transport::ECHO_REQUEST { None } else { nat::inside::<Fam>(end) };
    let answer = match &inside {
        Some(inside) => Key::new(key.src, inside.address, key.sport, inside.port, key.protocol),
        None => *key,
    };
    let forward_key = swapped(&answer);
    if inside.as_ref().is_some_and(|inside| inside.is_embryonic(key.src, key.sport)) {
        match embryo::hatch::<Fam>(end, true) {
            // Another CPU has done it, and the half is there to be restored, if it is not there.
            Err(Verdict::NoFlow) => {}
            done => return done.map(|()| Note::None),
        }
    }
    if let Some(forward) = conntrack::find::<Fam>(&forward_key) {
        // SAFETY: a live map value that is read.
        let entry = unsafe { &*forward.entry };
        if !entry.is_reply() && entry.uplink == uplink && entry.other_key(key.protocol) == *key {
            if !track::has_expired::<Fam>(&forward_key, entry, scene) {
                let flags = entry.flags & flow::HOST;
                let reply = Entry::translating(key, &answer, uplink, flow::REPLY | flags, scene.now);
                let table = if forward.new { Fam::new_flows() } else { Fam::flows() };
                table.insert(key, &reply, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)?;
                Fam::note(key.dst, key.dport, key.protocol);
                return Ok(Note::Restored);
            }
            conntrack::forget::<Fam>(&forward_key, entry);
        }
    }
    if let Some(inside) = inside
        && packet.transport != Transport::ECHO_REPLY
        && nat::is_open::<Fam, _>(frame, packet, &inside, end, key.dst, key.dport, key.src, key.sport, scene)
    {
        if !nat::lets_in::<Fam>(packet, &inside, end, scene) {
            return Err(Verdict::Filtered);
        }
        if packet.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0 {
            return Err(Verdict::TcpStray);
        }
        if embryo::find_any::<Fam>(&forward_key, scene).is_asked_for() {
            // The inside host has begun a flow between the same ends, by another uplink.
            return Err(Verdict::NoFlow);
        }
        embryo::make_way::<Fam>(&inside, end)?;
        let flags = flow::ASKED | if Fam::is_local(inside.address) { flow::HOST } else { 0 };
        conntrack::insert::<Fam>(&forward_key, &swapped(key), uplink, flags, scene.now)?;
        return Ok(Note::Inbound);
    }
    let outside = Fam::owners(key.dst) != 0;
    if !Fam::is_local(key.dst) {
        // An outside address that is routed here without being the machine's own: the kernel would send the packet back to where it
        // came from, until its TTL is over.
        let turned_back = outside && steer::route::<Fam, _>(frame, &packet.ip, false).by_uplink;
        return Err(if turned_back { Verdict::NoRouteBack } else { Verdict::NoFlow });
    }
    match packet.transport {
        Transport::TCP => {
            if packet.tcp & (TCP_EVENTS | wire::TCP_ACK) != wire::TCP_SYN {
                return Err(Verdict::NoFlow);
            }
            let record = maps::uplink(uplink).ok_or(Verdict::NoFlow)?;
            let port = u16::from_be(key.dport);
            if outside
                && record.flags & abi::UPLINK_NAT != 0
                && record.first_port <= port
                && port <= record.last_port
                && !nat::is_accepted::<Fam>(frame, packet)
            {
                return Err(Verdict::Unsolicited);
            }
        }
        // Each answer to a probe would be a flow of its own.
        Transport::UDP if nat::is_answered_here::<Fam>(frame, packet) => return Err(Verdict::NoFlow),
        Transport::UDP | Transport::ECHO_REQUEST => {}
        _ => return Err(Verdict::NoFlow),
    }
    if is_of_another::<Fam>(key, scene) {
        return Err(Verdict::NoFlow);
    }
    // Not the forward key: an inside host's binding may be there still, though it serves no more.
    let own = swapped(key);
    conntrack::insert::<Fam>(&own, &own, uplink, flow::HOST | flow::ASKED, scene.now)?;
    Ok(Note::Host)
}

/// Whether the packet answers to an embryonic flow, if not of this uplink, then of another one.
#[inline(always)]
fn is_of_another<Fam: Tables>(key: &Key<Fam::Address>, scene: &Scene) -> bool {
    let mut end = End { address: key.dst, port: key.dport, protocol: key.protocol, uplink: 0 };
    // VERIFIER: unknown from the beginning, and after each round again: else each round's outcome would be a state of its own.
    let mut found = scene.live.zero;
    // VERIFIER: as in `conntrack::bound`.
    while (end.uplink as usize) < abi::MAX_UPLINKS && (end.uplink as u32) < scene.settings.uplinks {
        if let Some(inside) = Fam::by_outside().get_ptr(end) {
            // SAFETY: a live map value that is read.
            let inside = unsafe { &*inside };
            found |= (inside.is_embryonic(key.src, key.sport) as u32).wrapping_mul(inside.embryo as u32);
        }
        end.uplink += 1;
    }
    found != 0
}

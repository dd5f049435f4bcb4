//! A packet from inside that belongs to no flow: it restores one, begins one, or is not for mh.
//!
//! Hairpin (RFC 4787 REQ-9, RFC 5382 REQ-8): what an inside host sends to the outside end of a binding goes to that binding's inside
//! host, with the sender's own outside end as source (REQ-9a). Filtering is for outsiders and does not apply.

use aya_log_ebpf::debug;
use mh_common::{
    abi::{self, Stage, Uplink},
    address::Address,
    binding::End,
    flow::{self, Entry, Key},
    rules::NO_RULE,
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, TcFrame},
    conntrack::{self, Bound, is_unknown, swapped},
    count::{self, Sent},
    embryo, fragment, limit,
    maps::{self, Tables},
    nat,
    parse::{self, Header, Packet, Part, Transport},
    policy, steer,
    track::{Note, Scene, TCP_EVENTS},
};

/// The stage's program.
#[inline(always)]
pub fn run<Fam: Tables + Header>(frame: &mut TcFrame<false>, scene: &Scene) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    let packet = parse::transport::<Fam, _>(frame, ip)?.forget_choice(scene.live.zero);
    let portless = packet.transport == Transport::OTHER;
    let bound = if !portless && is_unknown::<Fam>(&packet.key) {
        Bound::UNKNOWN
    } else {
        if embryo::hatch_source::<Fam>(&packet, scene)? {
            return Err(maps::stage(frame, Stage::Attend, Note::None));
        }
        conntrack::bound::<Fam>(&packet.key, portless, scene)
    };
    let route = steer::remembered_route::<Fam, _>(frame, &packet.ip, scene);
    let owners = Fam::owners(packet.key.dst);
    if owners != 0 {
        match turn_round::<Fam>(frame, &packet, owners.trailing_zeros() as u8, scene) {
            Ok(()) => return Err(maps::stage(frame, Stage::Attend, Note::Hairpin)),
            // An address that is routed here without being the machine's own: nobody has the port, which ends at the uplink.
            Err(Verdict::NotForUplink) if route.by_uplink => {}
            Err(verdict) => {
                if packet.ip.part() == Part::First && matches!(verdict, Verdict::NotForUplink) {
                    fragment::leave_to_kernel::<Fam>(&packet, scene);
                }
                return Err(verdict);
            }
        }
    }
    if !route.by_uplink {
        return Err(Verdict::NotForUplink);
    }
    if packet.transport == Transport::ECHO_REPLY {
        return Err(Verdict::Protocol);
    }
    if packet.ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    match begin::<Fam, false>(frame, &packet, route.on_link, 0, &bound, scene) {
        Ok(note) => Err(maps::stage(frame, Stage::Attend, note)),
        Err(verdict) => {
            if packet.ip.part() == Part::First && matches!(verdict, Verdict::Direct) {
                fragment::leave_to_kernel::<Fam>(&packet, scene);
            }
            Err(verdict)
        }
    }
}

/// Restores the packet's flow, or begins it as the rules say. A flow that exists goes on, whatever they say by now. `pinned`: the only uplink that will do, or [`steer::ANY`]. `flags` as for
/// [`conntrack::insert`]. `bound`: the source's bindings.
#[inline(always)]
pub fn begin<Fam: Tables + Header, const EGRESS: bool>(
    frame: &TcFrame<EGRESS>,
    packet: &Packet<Fam::Address>,
    pinned: u8,
    flags: u8,
    bound: &Bound,
    scene: &Scene,
) -> Result<Note, Verdict> {
    let rule = policy::rule::<Fam, _>(frame, packet, EGRESS);
    if let Some((uplink, sent)) = conntrack::evicted::<Fam>(packet, rule.is_policy(), EGRESS, bound, scene) {
        conntrack::insert::<Fam>(&packet.key, &sent, uplink, flags, scene.now)?;
        return Ok(Note::Restored);
    }
    policy::admit(&rule).inspect_err(|_| count::rule(&rule))?;
    if packet.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0 {
        return Err(Verdict::TcpStray);
    }
    limit::new_flow::<Fam>(packet.key.src, scene)?;
    count::rule(&rule);
    // Where no uplink is fit, the kernel's own choice for the machine's own packets is as good as any, unless a rule has one in mind.
    let unfit = if EGRESS && rule.number == NO_RULE { Verdict::Direct } else { Verdict::NoUplink };
    let index = uplink::<Fam>(packet, pinned, rule.policy, scene).map_err(|_| unfit)?;
    let uplink = maps::uplink(index).ok_or(unfit)?;
    let key = &packet.key;
    let mut embryonic = false;
    let sent = if uplink.flags & abi::UPLINK_NAT == 0 {
        *key
    } else {
        // What is there already under its key is a half of another kind.
        let alone = !EGRESS && (bound.unknown || conntrack::find::<Fam>(key).is_none());
        let first_len = if alone { embryonic_len(frame, packet, uplink) } else { 0 };
        let made = nat::bind::<Fam, _>(frame, packet, index, uplink, bound, first_len, scene);
        let outside = made.map_err(|verdict| if matches!(verdict, Verdict::NoUplink) { unfit } else { verdict })?;
        embryonic = outside.embryonic;
        Key::new(outside.address, key.dst, outside.port, key.dport, key.protocol)
    };
    let mut note = Note::New;
    if embryonic && let Some(place) = Fam::embryo() {
        // SAFETY: a per-CPU value, and nothing else runs on this CPU until the packet has been sent.
        unsafe { *place = Entry::translating(key, &sent, index, 0, scene.now) };
        note = Note::Embryo;
    } else {
        conntrack::insert::<Fam>(key, &sent, index, flags, scene.now)?;
    }
    count::new_flow(index);
    debug!(frame.tc_context(), "new flow: protocol {} on uplink {}", key.protocol, index);
    Ok(note)
}

/// The uplink of a new flow under a policy. `pinned`: the only one that will do, or [`steer::ANY`].
#[inline(always)]
pub fn uplink<Fam: Tables>(
    packet: &Packet<Fam::Address>,
    pinned: u8,
    policy: u8,
    scene: &Scene,
) -> Result<u8, Verdict> {
    if pinned == steer::ANY {
        Ok(policy::select::<Fam, true>(packet, policy, scene)?.choice.uplink)
    } else if scene.is_healthy(pinned) {
        Ok(pinned)
    } else {
        Err(Verdict::NoUplink)
    }
}

/// The length, from the IP header on, of a packet whose flow may be embryonic; zero: it may not. There is nothing more to know of such a packet, and it is
/// sent in one piece.
#[inline(always)]
pub fn embryonic_len<A: Address, F: Frame>(frame: &F, packet: &Packet<A>, uplink: &Uplink) -> u16 {
    let begins = match packet.transport {
        Transport::UDP => true,
        Transport::TCP => packet.tcp & (TCP_EVENTS | wire::TCP_ACK) == wire::TCP_SYN,
        _ => false,
    };
    let whole = packet.ip.part() == Part::Whole && frame.segments() == 1;
    if begins && whole && packet.size_on_wire(frame) <= uplink.mtu { packet.ip.len as u16 } else { 0 }
}

/// Begins a flow to another inside host by its outside end on this uplink.
#[inline(always)]
fn turn_round<Fam: Tables + Header>(
    frame: &TcFrame<false>,
    packet: &Packet<Fam::Address>,
    index: u8,
    scene: &Scene,
) -> Result<(), Verdict> {
    let key = &packet.key;
    if !matches!(packet.transport, Transport::TCP | Transport::UDP) {
        return Err(Verdict::NotForUplink);
    }
    let end = End { address: key.dst, port: key.dport, protocol: key.protocol, uplink: index };
    let inside = nat::inside::<Fam>(end).ok_or(Verdict::NotForUplink)?;
    if !nat::is_open::<Fam, _>(frame, packet, &inside, end, key.dst, key.dport, key.src, key.sport, scene) {
        return Err(Verdict::NotForUplink);
    }
    if Fam::is_local(inside.address) {
        return Err(Verdict::NotForUplink);
    }
    if packet.ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    if packet.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0 {
        return Err(Verdict::TcpStray);
    }
    limit::new_flow::<Fam>(key.src, scene)?;
    embryo::make_way::<Fam>(&inside, end)?;
    let uplink = maps::uplink(index).ok_or(Verdict::NoUplink)?;
    let outside = nat::bind::<Fam, _>(frame, packet, index, uplink, &Bound::MAYBE, 0, scene)?;
    let sent = Key::new(outside.address, inside.address, outside.port, inside.port, key.protocol);
    // The other host may have sent here itself, before there was anybody.
    let answer = swapped(&sent);
    let embryo = embryo::find_any::<Fam>(&answer, scene);
    if embryo.is_asked_for()
        && let Some(end) = embryo.end::<Fam>(&answer, scene)
    {
        let _ = embryo::hatch::<Fam>(end, false);
    }
    conntrack::insert::<Fam>(key, &sent, index, flow::HAIRPIN, scene.now)
}

//! TC egress of uplinks: what the machine itself sends, and what the kernel sends on mh's behalf.
//!
//! - Answers leave by the uplink on which the question came, whatever the kernel's routing says: they find the flow that
//!   [`crate::inbound`] made or, failing that, go by their source address (RFC 1122 section 3.3.4.2).
//!   A datagram that answers from another address than the one that was asked gets that one.
//! - What the machine begins itself is balanced and translated like what comes from a LAN, unless its socket is bound to a device or an
//!   address, or `host_traffic` is off. It keeps the source address that its socket has; the packet gets the uplink's.
//! - Packets with an uplink's mark that the machine forwards were too large for it: the kernel fragmented them, and they are translated
//!   here. Those that it makes itself are probes of that uplink, and pass untouched, whether it is healthy or not.
//! - Packets that mh's own ingress sends pass untouched ([`mark::DONE`]).

use mh_common::{
    abi::{self, Stage, mark},
    flow::{self, Key},
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, TcFrame},
    conntrack,
    count::Sent,
    embryo, forward, fragment,
    maps::{self, Tables},
    outbound,
    parse::{self, FROM_INSIDE, Header, Packet, Part, Transport},
    rewrite, socket, steer,
    track::{self, Fate, Note, Scene, TCP_EVENTS},
};

/// The egress program. Not counted: what mh's own ingress sent, which was counted there.
#[inline(always)]
pub fn enter(frame: &mut TcFrame<true>) -> Option<Verdict> {
    let settings = maps::settings()?;
    if frame.mark(settings) == mark::DONE {
        return None;
    }
    Some(maps::stage(frame, Stage::HostAttend, Note::None))
}

/// The program of [`Stage::HostAttend`].
#[inline(always)]
pub fn sent<Fam: Tables + Header>(frame: &mut TcFrame<true>, scene: &Scene) -> Result<Sent, Verdict> {
    if scene.interface.role != abi::ROLE_UPLINK {
        return Err(Verdict::Unmanaged);
    }
    let mark = frame.mark(scene.settings);
    let marked = mark != mark::NONE;
    if marked && mark != mark::FIRST_UPLINK + scene.interface.uplink as u32 {
        return Err(Verdict::Misrouted);
    }
    if marked && !frame.is_forwarded() {
        return Err(Verdict::HostUntouched);
    }
    // To be fragmented by an uplink's MTU, and back now.
    let fragmented = marked;
    let ip = Fam::parse(frame)?;
    if ip.part() == Part::Later {
        return match fragment::recall::<Fam>(&ip, FROM_INSIDE, scene) {
            Some(entry) => {
                let packet = Packet::without_transport(ip);
                rewrite::translate::<Fam, _>(frame, &packet, &entry, false).map_err(|()| Verdict::Rewrite)?;
                let ifindex = maps::uplink(entry.uplink).ok_or(Verdict::NoUplink)?.ifindex;
                let code = forward::leave::<Fam, true>(frame, &entry, ifindex, scene.settings);
                Ok(Sent { verdict: Verdict::Fragment, code })
            }
            None if fragmented => Err(Verdict::Misrouted),
            None => by_source::<Fam, true>(frame, ip.src, scene),
        };
    }
    if parse::is_icmp_error::<Fam, _>(frame, &ip) {
        return Err(maps::stage(frame, Stage::HostError, Note::None));
    }
    let packet = parse::transport::<Fam, _>(frame, ip)?.forget_choice(scene.live.zero);
    if let Some(hit) = conntrack::find::<Fam>(&packet.key) {
        // SAFETY: a live map value that is read.
        let entry = unsafe { &*hit.entry };
        if entry.leads_outside() && (fragmented || entry.flags & flow::HOST != 0) {
            let note = frame.note();
            if !fragmented && note == Note::None as u32 {
                let fate = track::fate::<Fam, _>(frame, entry, &packet, scene);
                if fate == Fate::OVER {
                    conntrack::forget::<Fam>(&packet.key, entry);
                    return Err(maps::stage(frame, Stage::Host, Note::None));
                }
                if fate == Fate::RESET {
                    return Err(maps::stage(frame, Stage::HostReset, Note::None));
                }
            }
            return forward::forward_on::<Fam, true>(frame, &packet, &hit, note, scene);
        }
    }
    if fragmented {
        return Err(Verdict::Misrouted);
    }
    if frame.is_forwarded() || frame.note() != Note::None as u32 {
        return Err(Verdict::HostUntouched);
    }
    Err(maps::stage(frame, Stage::Host, Note::None))
}

/// The program of [`Stage::Host`]: a packet of the machine itself that belongs to no flow.
#[inline(always)]
pub fn begin<Fam: Tables + Header>(frame: &mut TcFrame<true>, scene: &Scene) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    let packet = parse::transport::<Fam, _>(frame, ip)?.forget_choice(scene.live.zero);
    if packet.transport == Transport::UDP
        && let Some((uplink, sent)) = asked_by::<Fam>(&packet, scene)
        && !socket::is_bound(frame)
    {
        embryo::hatch_answered::<Fam>(&sent, uplink);
        conntrack::insert::<Fam>(&packet.key, &sent, uplink, flow::HOST, scene.now)?;
        return Err(maps::stage(frame, Stage::HostAttend, Note::Host));
    }
    let steered = scene.settings.flags & abi::HOST_TRAFFIC != 0
        && may_begin(&packet)
        && !socket::is_bound(frame)
        && is_free::<Fam, _>(frame, &packet, scene);
    if steered {
        // An inside host's, which has taken this address for its own.
        embryo::hatch_source::<Fam>(&packet, scene)?;
        let bound = conntrack::bound::<Fam>(&packet.key, packet.transport == Transport::OTHER, scene);
        match outbound::begin::<Fam, true>(frame, &packet, steer::ANY, flow::HOST, &bound, scene) {
            Ok(note) => return Err(maps::stage(frame, Stage::HostAttend, note)),
            Err(Verdict::Direct) => {}
            // The last words of a connection that began before mh did.
            Err(Verdict::TcpStray) => {}
            Err(refused) => return Err(refused),
        }
    }
    by_source::<Fam, true>(frame, packet.ip.src, scene)
}

/// The key of a packet that has the uplink's address as source, and all else as it is here.
#[inline(always)]
fn with_source_of<Fam: Tables>(key: &Key<Fam::Address>, uplink: u8) -> Option<Key<Fam::Address>> {
    let record = maps::uplink(uplink)?;
    Some(Key::new(Fam::route(record).address, key.dst, key.sport, key.dport, key.protocol))
}

/// The uplink by which the remote end has asked the port that a datagram is sent from, and the answer's key. A socket without an address of its own
/// answers from the address that the kernel would use for anything; who asked expects the one that was asked (RFC 1122 section
/// 4.1.3.5). A question may come in by another uplink than that of the address that it is for.
#[inline(always)]
fn asked_by<Fam: Tables>(packet: &Packet<Fam::Address>, scene: &Scene) -> Option<(u8, Key<Fam::Address>)> {
    let mut index = 0u8;
    let mut asked = steer::ANY;
    let mut sent = packet.key;
    // VERIFIER: as in `conntrack::evicted`: a constant bound beside the real one, and no leaving from the middle.
    while (index as usize) < abi::MAX_UPLINKS && (index as u32) < scene.settings.uplinks {
        if let Some(key) = with_source_of::<Fam>(&packet.key, index)
            && let Some(hit) = conntrack::find::<Fam>(&key)
        {
            // SAFETY: a live map value that is read.
            let entry = unsafe { &*hit.entry };
            // By an uplink that is down no answer arrives; and where both ends begin by turns, as in tunnels, it may be none.
            if asked == steer::ANY
                && entry.flags & (flow::ASKED | flow::HOST | flow::REPLY) == flow::ASKED | flow::HOST
                && entry.is_plain()
                && scene.is_healthy(entry.uplink)
                && !track::has_expired::<Fam>(&key, entry, scene)
            {
                asked = entry.uplink;
                sent.src = key.src;
            }
        }
        index += 1;
    }
    (asked != steer::ANY).then_some((asked, sent))
}

/// Whether the packet is one that mh steers, if it is free to: a connection's first or (of one whose flow was lost) middle, a datagram,
/// or a ping. A DHCP client talks to the server of its own link.
#[inline(always)]
pub const fn may_begin<A>(packet: &Packet<A>) -> bool {
    match packet.transport {
        Transport::TCP => packet.tcp & (TCP_EVENTS | wire::TCP_ACK) != (wire::TCP_SYN | wire::TCP_ACK),
        Transport::UDP => packet.key.sport != wire::DHCP_CLIENT_PORT,
        Transport::ECHO_REQUEST => true,
        _ => false,
    }
}

/// Whether the packet may go by another uplink: its source address is one that the kernel chose for this one, and its destination is
/// not on this one's link.
#[inline(always)]
pub fn is_free<Fam: Tables + Header, F: Frame>(frame: &F, packet: &Packet<Fam::Address>, scene: &Scene) -> bool {
    // An address of the LAN's side, or a service's: whoever uses it means it.
    let owners = Fam::owners(packet.ip.src);
    if owners == 0 {
        return false;
    }
    // Another uplink's address, and that uplink is up: the socket asked for it.
    if owners >> (scene.interface.uplink & 31) & 1 == 0 && owners as u64 & scene.live.healthy != 0 {
        return false;
    }
    steer::route::<Fam, _>(frame, &packet.ip, true).on_link == steer::ANY
}

/// Lets the packet leave by the uplink that its source address belongs to.
#[inline(always)]
pub fn by_source<Fam: Tables + Header, const EGRESS: bool>(
    frame: &mut TcFrame<EGRESS>,
    src: Fam::Address,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    let owners = Fam::owners(src);
    if owners == 0 || owners >> (scene.interface.uplink & 31) & 1 != 0 {
        return Err(Verdict::HostUntouched);
    }
    let uplink = maps::uplink(owners.trailing_zeros() as u8).ok_or(Verdict::HostUntouched)?;
    let gateway = Fam::words(Fam::route(uplink).gateway);
    if uplink.ifindex == 0 || gateway == [0; 4] && maps::interface(uplink.ifindex).is_none() {
        return Err(Verdict::HostUntouched);
    }
    let ifindex = uplink.ifindex;
    frame.set_mark(scene.settings, mark::DONE);
    Ok(Sent { verdict: Verdict::Host, code: frame.redirect_neighbour(ifindex, Fam::AF, gateway) })
}

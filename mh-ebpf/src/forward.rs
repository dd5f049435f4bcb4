//! What is done with a packet once its half is known: count, maintain, translate, send.
//!
//! Order: what may fail comes first, then the packet is rewritten, then it is redirected, and last the half may move to another table.

use aya_ebpf::bindings::BPF_ANY;
use mh_common::{
    abi::{self, Settings, mark},
    address::Address,
    binding::{End, Peer},
    flow::{self, Entry, Key, Seen, State},
    time,
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, TcFrame},
    clamp,
    conntrack::{self, Found},
    count::Sent,
    fragment,
    maps::{self, Tables},
    parse::{Header, Ip, Packet, Part},
    rewrite,
    track::{self, Note, Scene},
};

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
            fragment::remember::<Fam, EGRESS>(&packet.ip, entry, scene);
        }
        frame.set_mark(settings, mark::FIRST_UPLINK + entry.uplink as u32);
        return Ok(Sent { verdict: too_big(&packet.ip), code: TcFrame::<EGRESS>::PASS });
    }
    let closing = packet.tcp & (wire::TCP_FIN | wire::TCP_RST) != 0;
    let revived = track::touch(entry, packet, frame, now);
    let due = track::is_due(entry, live, now);
    if due && (host || EGRESS) {
        entry.maintained = now;
        entry.epoch = live.neighbour_epoch as u8;
    } else if due {
        rewrite::resolve::<Fam, _>(frame, &packet.ip, entry, live, now)?;
    }
    // A binding of a port that has just been made, or asked for, lasts as long as it should.
    let fresh = Note::begins(note) && wire::has_ports(packet.key.protocol);
    if due && !fresh || closing || revived {
        extend_binding::<Fam>(&packet.key, hit, scene, closing);
    }
    if packet.ip.part() == Part::First {
        fragment::remember::<Fam, EGRESS>(&packet.ip, entry, scene);
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
    let verdict = if too_big_for_lan { too_big(&packet.ip) } else { Note::verdict(note, track::on_flow(entry)) };
    if hit.new && note != Note::New as u32 {
        // Last, since the half moves: afterwards `entry` may be another flow's.
        promote::<Fam>(&packet.key, entry);
    }
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
pub fn extend_binding<Fam: Tables>(key: &Key<Fam::Address>, half: &Found<Fam::Address>, scene: &Scene, closes: bool) {
    let &Scene { settings, now, .. } = scene;
    // SAFETY: as in `established_of`.
    let entry = unsafe { &*half.entry };
    let Some(binding) = Fam::by_inside().get_ptr_mut(inside_end(key, entry)) else { return };
    let protocol = key.protocol;
    // Without the other half, if it has nothing to add: only TCP's timeouts depend on the state, and the inside has been heard of.
    let state = if protocol != wire::PROTOCOL_TCP && (!half.new || !entry.is_reply()) {
        State::Established
    } else {
        let other = match conntrack::find::<Fam>(&entry.other_key(protocol)) {
            // SAFETY: as in `established_of`.
            Some(other) => Seen::from(unsafe { &*other.entry }),
            None => Seen::default(),
        };
        let own = Seen::from(entry);
        let (forward, reply) = if entry.is_reply() { (other, own) } else { (own, other) };
        if !forward.any {
            return;
        }
        flow::state(protocol, forward, reply)
    };
    let ended = closes && matches!(state, State::Closing | State::Reset);
    let timeout = state.timeout(protocol, &settings.timeouts);
    let expires = now.wrapping_add(if ended { timeout } else { time::until_maintained(timeout) });
    // SAFETY: a live map value; `expires` is one word.
    let binding = unsafe { &mut *binding };
    binding.expires = if ended { expires } else { time::later(expires, binding.expires) };
    if settings.flags & abi::ADDRESS_DEPENDENT != 0 && entry.leads_outside() {
        let outside = End { address: binding.address, port: binding.port, protocol, uplink: entry.uplink };
        let peer = Peer { remote: key.dst, outside };
        // As long as the binding, for this remote address: another flow to it may need the permission for longer.
        let until = match Fam::peers().get_ptr(peer) {
            // SAFETY: a live map value of one word.
            Some(until) if !ended => time::later(expires, unsafe { *until }),
            _ => expires,
        };
        let _ = Fam::peers().insert(peer, until, BPF_ANY as u64);
    }
}

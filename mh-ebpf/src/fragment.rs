//! Fragments: later ones follow the first, whichever comes first. Roles, lifetimes and limits: [`mh_common::fragment`].
//!
//! The frequent path calls [`remember`] for a first fragment. [`later`] translates another one, or holds it if the first has not come
//! yet. When that comes and [`is_awaited`], [`release`] lets the held ones come in by the interface once more: by then the first has
//! left its trace, and they go the way of all later fragments.

use aya_ebpf::bindings::BPF_ANY;
use mh_common::{
    abi::{self, Stage, mark},
    flow::{self, Entry},
    fragment::{HeldKey, LIFETIME_TICKS, MAX_HELD_PER_DATAGRAM, Waiting},
    time,
    verdict::Verdict,
};

use crate::{
    access::{Frame, TcFrame},
    count::{self, Sent},
    forward,
    maps::{self, Tables},
    parse::{self, FROM_INSIDE, Header, Ip, Packet},
    rewrite, steer,
    track::{self, Note, Scene},
};

/// Notes what becomes of the rest of a datagram whose first fragment goes by this half.
#[inline(always)]
pub fn remember<Fam: Tables, const EGRESS: bool>(ip: &Ip<Fam::Address>, entry: &Entry<Fam::Address>, scene: &Scene) {
    let key = ip.datagram(parse::arrival(&scene.interface, EGRESS));
    let copy = Entry { created: scene.now, ..*entry };
    // If there is no room, later fragments are held until they are forgotten.
    let _ = Fam::fragments().insert(key, copy, BPF_ANY as u64);
}

/// Notes that the rest of a datagram, whose first fragment comes in by this interface, is the kernel's as well.
#[inline(always)]
pub fn leave_to_kernel<Fam: Tables>(packet: &Packet<Fam::Address>, scene: &Scene) {
    let key = &packet.key;
    let entry = Entry::translating(key, key, scene.interface.uplink, flow::REPLY | flow::HOST, scene.now);
    remember::<Fam, false>(&packet.ip, &entry, scene);
}

/// Whether fragments are waiting for this first one.
#[inline(always)]
pub fn is_awaited<Fam: Tables>(ip: &Ip<Fam::Address>, scene: &Scene) -> bool {
    Fam::waiting().get_ptr(ip.datagram(parse::arrival(&scene.interface, false))).is_some()
}

/// What the first fragment of the packet's datagram left.
#[inline(always)]
pub fn recall<Fam: Tables>(ip: &Ip<Fam::Address>, arrival: u8, scene: &Scene) -> Option<Entry<Fam::Address>> {
    // SAFETY: a live map value that is copied.
    let entry = unsafe { *Fam::fragments().get_ptr(ip.datagram(arrival))? };
    (time::since(scene.now, entry.created) < LIFETIME_TICKS).then_some(entry)
}

/// The program of [`Stage::Later`].
#[inline(always)]
pub fn later<Fam: Tables + Header>(frame: &mut TcFrame<false>, scene: &Scene) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    if ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    if !parse::is_translated(ip.protocol) {
        // The first fragment is the kernel's, and is not remembered.
        return Err(Verdict::Protocol);
    }
    let arrival = parse::arrival(&scene.interface, false);
    // No mark on what comes by the wire: this one was released, and must not be held again. Else each further first fragment that is
    // not let through (a duplicate, a forged one) would set all held ones in motion anew.
    let released = frame.mark(scene.settings) == mark::DONE;
    if released {
        frame.set_mark(scene.settings, mark::NONE);
    }
    let Some(mut entry) = recall::<Fam>(&ip, arrival, scene) else {
        return if released { Err(Verdict::FragmentsFull) } else { hold::<Fam>(frame, &ip, arrival, scene) };
    };
    if !track::takes(&entry, &scene.interface) {
        // From the LAN to the machine itself, by an outside address: no half takes that.
        return Err(if arrival == FROM_INSIDE { Verdict::NotForUplink } else { Verdict::NoFlow });
    }
    count::uplink(entry.uplink, entry.is_reply(), 1, ip.len as u64);
    let packet = Packet::without_transport(ip);
    if entry.leads_outside() {
        let uplink = maps::uplink(entry.uplink).ok_or(Verdict::NoUplink)?;
        if packet.ip.len > uplink.mtu {
            frame.set_mark(scene.settings, mark::FIRST_UPLINK + entry.uplink as u32);
            return Ok(Sent { verdict: forward::too_big(&packet.ip), code: TcFrame::<false>::PASS });
        }
        // A first fragment that was too large for the uplink was remembered at egress, where nothing is resolved.
        entry.ifindex = uplink.ifindex;
        frame.set_mark(scene.settings, mark::DONE);
    } else if entry.flags & flow::HOST != 0 {
        rewrite::translate::<Fam, _>(frame, &packet, &entry, false).map_err(|()| Verdict::Rewrite)?;
        return Ok(Sent { verdict: Verdict::Host, code: TcFrame::<false>::PASS });
    } else if forward::is_too_big_for_lan(&entry, packet.ip.len, scene) {
        rewrite::translate::<Fam, _>(frame, &packet, &entry, false).map_err(|()| Verdict::Rewrite)?;
        frame.set_mark(scene.settings, mark::DONE);
        return Ok(Sent { verdict: forward::too_big(&packet.ip), code: TcFrame::<false>::PASS });
    }
    let code = rewrite::send::<Fam, _>(frame, &packet, &entry)?;
    Ok(Sent { verdict: Verdict::Fragment, code })
}

/// Puts a fragment aside until the first one of its datagram comes, if it is for mh at all.
#[inline(always)]
fn hold<Fam: Tables + Header>(
    frame: &mut TcFrame<false>,
    ip: &Ip<Fam::Address>,
    arrival: u8,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    let from_lan = scene.interface.role == abi::ROLE_LAN;
    // To an outside address: by hairpin, or for the machine itself. The first fragment will tell.
    let wanted = Fam::owners(ip.dst) != 0 || from_lan && steer::route::<Fam, _>(frame, ip, false).by_uplink;
    if !wanted {
        return Err(if from_lan { Verdict::NotForUplink } else { Verdict::NoFlow });
    }
    let datagram = ip.datagram(arrival);
    let mut number = 0;
    match Fam::waiting().get_ptr_mut(datagram) {
        Some(waiting) => {
            // SAFETY: a live map value of two words; a race between CPUs loses a fragment.
            let waiting = unsafe { &mut *waiting };
            if time::since(scene.now, waiting.since) >= LIFETIME_TICKS {
                // Another datagram with the same identification.
                waiting.since = scene.now;
                waiting.held = 0;
            }
            number = waiting.held;
            if number >= MAX_HELD_PER_DATAGRAM {
                return Err(Verdict::FragmentsFull);
            }
            waiting.held = number + 1;
        }
        None => {
            let waiting = Waiting { held: 1, since: scene.now };
            Fam::waiting().insert(datagram, waiting, BPF_ANY as u64).map_err(|_| Verdict::FragmentsFull)?;
        }
    }
    let held = maps::scratch().ok_or(Verdict::FragmentsFull)?;
    held.len = frame.len();
    frame.copy_out(&mut held.frame, held.len).map_err(|()| Verdict::FragmentsFull)?;
    Fam::held().insert(HeldKey { datagram, number }, &*held, BPF_ANY as u64).map_err(|_| Verdict::FragmentsFull)?;
    Ok(Sent { verdict: Verdict::FragmentHeld, code: TcFrame::<false>::DROP })
}

/// The program of [`Stage::Release`].
#[inline(always)]
pub fn release<Fam: Tables + Header>(frame: &mut TcFrame<false>, scene: &Scene) -> Result<Sent, Verdict> {
    receive_held::<Fam>(frame, scene)?;
    Err(maps::stage(frame, Stage::Attend, Note::None))
}

/// Lets the fragments that wait for this first one come in again, and makes the frame what it was.
#[inline(always)]
fn receive_held<Fam: Tables + Header>(frame: &mut TcFrame<false>, scene: &Scene) -> Result<(), Verdict> {
    let ip = Fam::parse(frame)?;
    let datagram = ip.datagram(parse::arrival(&scene.interface, false));
    let Some(waiting) = Fam::waiting().get_ptr(datagram) else { return Ok(()) };
    // SAFETY: a live map value that is copied.
    let waiting = unsafe { *waiting };
    let _ = Fam::waiting().remove(datagram);
    let aside = maps::scratch().ok_or(Verdict::FragmentsFull)?;
    aside.len = frame.len();
    if time::since(scene.now, waiting.since) >= LIFETIME_TICKS || frame.copy_out(&mut aside.frame, aside.len).is_err() {
        return Ok(());
    }
    let ifindex = frame.ifindex();
    // Copies take the mark with them; see `later_of`.
    frame.set_mark(scene.settings, mark::DONE);
    for number in 0..MAX_HELD_PER_DATAGRAM {
        if number >= waiting.held {
            break;
        }
        let key = HeldKey { datagram, number };
        if let Some(held) = Fam::held().get_ptr(key) {
            // SAFETY: a live map value; that somebody writes it meanwhile is ruled out by its key, which this run alone takes.
            let held = unsafe { &*held };
            if frame.copy_in(&held.frame, held.len).is_ok() {
                let _ = frame.receive_copy(ifindex);
            }
            let _ = Fam::held().remove(key);
        }
    }
    frame.set_mark(scene.settings, mark::NONE);
    frame.copy_in(&aside.frame, aside.len).map_err(|()| Verdict::Rewrite)
}

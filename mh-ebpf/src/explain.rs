//! What would become of a packet, and why: the program behind `mhctl explain`.
//!
//! It is attached nowhere. The controller has it run on a packet that it made (`BPF_PROG_TEST_RUN`, with the interface that the packet is
//! to come in by, or, if the machine itself is to send it, to leave by), and reads the [`Explanation`] that it writes into the packet. It
//! asks the very functions and tables that the other programs ask, in the order in which they do, and changes and counts nothing.
//!
//! Not looked at, since they depend on more than the packet's headers: limits per source, free ports, and sockets.

use aya_ebpf::bindings::TC_ACT_OK;
use mh_common::{
    abi,
    binding::End,
    flow,
    policy::{EXPLAIN_HOST, EXPLANATION_AT, Explanation, explained},
    rules::NO_RULE,
    verdict::Verdict,
};

use crate::{
    access::TcFrame,
    conntrack, embryo, host,
    maps::{self, Tables},
    nat,
    parse::{self, Header, Packet, Transport},
    policy, steer,
    track::{self, Fate, Scene},
};

/// The program: answers, and lets the packet be.
#[inline(always)]
pub fn run<Fam: Tables + Header>(frame: &mut TcFrame<false>) -> i32 {
    let mut answer = Explanation::UNKNOWN;
    let by_host = frame.note() == EXPLAIN_HOST;
    let verdict = match Scene::new(frame) {
        Ok(mut scene) => {
            // A packet for a test run begins with an Ethernet header, whatever kind of interface it stands for.
            scene.interface.flags &= !abi::INTERFACE_L3;
            frame.set_device(&scene.interface);
            match read::<Fam>(frame, &scene) {
                Ok(packet) if by_host => sent::<Fam>(frame, &packet, &scene, &mut answer),
                Ok(packet) => received::<Fam>(frame, &packet, &scene, &mut answer),
                Err(verdict) => verdict,
            }
        }
        Err(verdict) => verdict,
    };
    answer.verdict = verdict as u32;
    // A packet that has no room for it is not the controller's.
    let _ = frame.replace::<{ size_of::<Explanation>() / 2 }>(EXPLANATION_AT, bytemuck::cast_ref(&answer));
    TC_ACT_OK
}

#[inline(always)]
fn read<Fam: Header>(frame: &TcFrame<false>, scene: &Scene) -> Result<Packet<Fam::Address>, Verdict> {
    match parse::ethertype(frame, &scene.interface)? {
        ethertype if ethertype == Fam::ETHERTYPE => {}
        other => return Err(parse::not_translated(other)),
    }
    let ip = Fam::parse(frame)?;
    Ok(parse::transport::<Fam, _>(frame, ip)?.forget_choice(scene.live.zero))
}

/// What the flow's own state says, if it exists and goes on.
#[inline(always)]
fn existing<Fam: Tables + Header>(
    frame: &TcFrame<false>,
    packet: &Packet<Fam::Address>,
    by_host: bool,
    scene: &Scene,
    answer: &mut Explanation,
) -> Option<Verdict> {
    let embryonic;
    let entry = match conntrack::find::<Fam>(&packet.key) {
        // SAFETY: a live map value that is read.
        Some(hit) => unsafe { &*hit.entry },
        None => {
            embryonic = embryo::forward::<Fam>(packet, scene)?;
            &embryonic
        }
    };
    let ours = if by_host {
        entry.leads_outside() && entry.flags & flow::HOST != 0
    } else {
        track::takes(entry, &scene.interface)
    };
    if !ours {
        return None;
    }
    let fate = track::fate::<Fam, _>(frame, entry, packet, scene);
    if fate == Fate::OVER {
        return None;
    }
    answer.uplink = entry.uplink;
    answer.flags |= explained::FLOW;
    answer.address = Fam::words(entry.src);
    answer.port = entry.sport;
    Some(if fate == Fate::RESET { Verdict::Reset } else { track::on_flow(entry) })
}

/// A packet that comes in by the scene's interface: see [`crate::outbound`].
#[inline(always)]
fn received<Fam: Tables + Header>(
    frame: &TcFrame<false>,
    packet: &Packet<Fam::Address>,
    scene: &Scene,
    answer: &mut Explanation,
) -> Verdict {
    if let Some(verdict) = existing::<Fam>(frame, packet, false, scene, answer) {
        return verdict;
    }
    if scene.interface.role != abi::ROLE_LAN {
        return Verdict::NoFlow;
    }
    let key = &packet.key;
    let route = steer::route::<Fam, _>(frame, &packet.ip, false);
    let owners = Fam::owners(key.dst);
    if owners != 0 && matches!(packet.transport, Transport::TCP | Transport::UDP) {
        let uplink = owners.trailing_zeros() as u8;
        let end = End { address: key.dst, port: key.dport, protocol: key.protocol, uplink };
        if nat::inside::<Fam>(end).is_some_and(|inside| !Fam::is_local(inside.address)) {
            answer.uplink = uplink;
            return Verdict::Hairpin;
        }
    }
    if !route.by_uplink {
        return Verdict::NotForUplink;
    }
    begin::<Fam>(frame, packet, route.on_link, false, scene, answer)
}

/// A packet that the machine itself sends by the scene's interface: see [`crate::host`].
#[inline(always)]
fn sent<Fam: Tables + Header>(
    frame: &TcFrame<false>,
    packet: &Packet<Fam::Address>,
    scene: &Scene,
    answer: &mut Explanation,
) -> Verdict {
    if let Some(verdict) = existing::<Fam>(frame, packet, true, scene, answer) {
        return verdict;
    }
    let steered = scene.settings.flags & abi::HOST_TRAFFIC != 0
        && host::may_begin(packet)
        && host::is_free::<Fam, _>(frame, packet, scene);
    if steered {
        match begin::<Fam>(frame, packet, steer::ANY, true, scene, answer) {
            Verdict::Direct => {}
            Verdict::NoUplink if answer.rule.number == NO_RULE => {}
            verdict => return verdict,
        }
    }
    let owners = Fam::owners(packet.key.src);
    if owners == 0 || owners >> (scene.interface.uplink & 31) & 1 != 0 {
        answer.uplink = scene.interface.uplink;
        return Verdict::HostUntouched;
    }
    answer.uplink = owners.trailing_zeros() as u8;
    answer.flags |= explained::SOURCE;
    Verdict::Host
}

/// A packet that begins a flow, or belongs to one that is to be restored.
#[inline(always)]
fn begin<Fam: Tables + Header>(
    frame: &TcFrame<false>,
    packet: &Packet<Fam::Address>,
    pinned: u8,
    by_host: bool,
    scene: &Scene,
    answer: &mut Explanation,
) -> Verdict {
    let key = &packet.key;
    answer.rule = policy::rule::<Fam, _>(frame, packet, by_host);
    answer.flags |= explained::RULE;
    let admitted = policy::admit(&answer.rule);
    let bound = conntrack::bound::<Fam>(&packet.key, packet.transport == Transport::OTHER, scene);
    if let Some((uplink, sent)) = conntrack::evicted::<Fam>(packet, admitted.is_ok(), by_host, &bound, scene) {
        answer.uplink = uplink;
        answer.flags |= explained::RESTORED;
        answer.address = Fam::words(sent.src);
        answer.port = sent.sport;
        return Verdict::Restored;
    }
    if let Err(verdict) = admitted {
        return verdict;
    }
    let index = if pinned == steer::ANY {
        match policy::select::<Fam, false>(packet, answer.rule.policy, scene) {
            Ok(selected) => {
                answer.slot = selected.choice.slot;
                answer.passed_over = selected.choice.passed_over;
                answer.flags |= if selected.sticky { explained::STICKY } else { 0 };
                selected.choice.uplink
            }
            Err(verdict) => return verdict,
        }
    } else {
        answer.flags |= explained::ON_LINK;
        if !scene.is_healthy(pinned) {
            return Verdict::NoUplink;
        }
        pinned
    };
    answer.uplink = index;
    let Some(uplink) = maps::uplink(index) else { return Verdict::NoUplink };
    if uplink.flags & abi::UPLINK_NAT == 0 {
        answer.address = Fam::words(key.src);
        answer.port = key.sport;
        return Verdict::New;
    }
    match nat::bound::<Fam>(packet, index, scene) {
        Some(_) if packet.transport == Transport::OTHER && !nat::is_owner::<Fam>(packet, index) => {
            return Verdict::ProtocolInUse;
        }
        Some(binding) => {
            answer.flags |= explained::BINDING;
            answer.address = Fam::words(binding.address);
            answer.port = binding.port;
        }
        None => match nat::outside_address::<Fam>(key.src, index, scene) {
            Some(address) => answer.address = Fam::words(address),
            None => return Verdict::NoUplink,
        },
    }
    Verdict::New
}

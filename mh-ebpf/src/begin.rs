//! A flow that begins at XDP: the frequent case of [`crate::outbound`], from the first look to the redirect in one program and without a socket buffer.
//!
//! That is a UDP datagram or a TCP SYN of an inside host's port of which nothing is known, to somewhere by an uplink that translates, where a rule lets it go and
//! XDP may send it: such a flow is embryonic. Whatever is different is passed, unchanged and not counted, to the complete path.
//!
//! Order: all that may say no comes before the binding, and all that counts after it.

use aya_log_ebpf::debug;
use mh_common::{
    abi,
    flow::{self, Entry, Key},
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame as _, XdpFrame},
    clamp,
    conntrack::{Bound, is_unknown},
    count::{self, Sent},
    limit,
    maps::{self, Tables},
    nat, outbound,
    parse::{self, Header, Packet},
    policy, rewrite, steer,
    track::{self, Scene},
};

/// The program.
#[inline(always)]
pub fn run<Fam: Tables + Header>(frame: &mut XdpFrame) -> Result<Sent, Verdict> {
    let interface = maps::interface(frame.ifindex()).ok_or(Verdict::Unmanaged)?;
    let scene = Scene::at(interface)?;
    match parse::ethertype(frame, &interface)? {
        ethertype if ethertype == Fam::ETHERTYPE => {}
        _ => return Err(Verdict::ToTc),
    }
    let ip = Fam::parse(frame)?;
    let packet = parse::transport::<Fam, _>(frame, ip)?.forget_choice(scene.live.zero);
    if packet.ip.ttl <= 1 {
        return Err(Verdict::ToTc);
    }
    begin::<Fam>(frame, &packet, &scene).map_err(|verdict| match verdict {
        Verdict::Rewrite => verdict,
        _ => Verdict::ToTc,
    })
}

#[inline(always)]
fn begin<Fam: Tables + Header>(
    frame: &mut XdpFrame,
    packet: &Packet<Fam::Address>,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    let key = &packet.key;
    // Where there is no room, what is tried here is done twice.
    let refused = maps::part().is_none_or(|part| part.refused == scene.now);
    if refused || !is_unknown::<Fam>(key) || Fam::owners(key.dst) != 0 {
        return Err(Verdict::ToTc);
    }
    let route = steer::remembered_route::<Fam, _>(frame, &packet.ip, scene);
    if !route.by_uplink {
        return Err(Verdict::ToTc);
    }
    let rule = policy::rule::<Fam, _>(frame, packet, false);
    policy::admit(&rule)?;
    limit::new_flow::<Fam>(key.src, scene)?;
    let sent = send::<Fam>(frame, packet, route.on_link, rule.policy, scene);
    match sent {
        Ok(_) => count::rule(&rule),
        // The complete path counts it.
        Err(_) => limit::take_back::<Fam>(key.src),
    }
    sent
}

/// Gives the flow an uplink and a binding, and sends the packet. `pinned`: the only uplink that will do, or [`steer::ANY`].
#[inline(always)]
fn send<Fam: Tables + Header>(
    frame: &mut XdpFrame,
    packet: &Packet<Fam::Address>,
    pinned: u8,
    policy: u8,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    let &Scene { live, now, .. } = scene;
    let key = &packet.key;
    let index = outbound::uplink::<Fam>(packet, pinned, policy, scene)?;
    let uplink = maps::uplink(index).ok_or(Verdict::ToTc)?;
    let len = outbound::embryonic_len(frame, packet, uplink);
    if uplink.flags & abi::UPLINK_NAT == 0 || len == 0 {
        return Err(Verdict::ToTc);
    }
    let place = Fam::embryo().ok_or(Verdict::ToTc)?;
    // SAFETY: a per-CPU value, and nothing else runs on this CPU until the packet has been sent.
    let entry = unsafe { &mut *place };
    *entry = Entry::translating(key, key, index, 0, now);
    rewrite::resolve::<Fam, _>(frame, &packet.ip, entry, live, now)?;
    if entry.flags & (flow::RESOLVED | flow::XDP) != flow::RESOLVED | flow::XDP {
        return Err(Verdict::ToTc);
    }
    let outside =
        nat::bind::<Fam, _>(frame, packet, index, uplink, &Bound::UNKNOWN, len, scene).inspect_err(|error| {
            // That no port was found tells nothing of others.
            if !matches!(error, Verdict::PortsExhausted)
                && let Some(part) = maps::part()
            {
                part.refused = now;
            }
        })?;
    if !outside.embryonic {
        return Err(Verdict::ToTc);
    }
    entry.translate(key, &Key::new(outside.address, key.dst, outside.port, key.dport, key.protocol));
    // A former flow's copy is good no more: it lasts a part of what its flow may be idle, and nothing is known of a source that long after its last flow.
    count::new_flow(index);
    track::touch(entry, packet, frame, now);
    rewrite::translate::<Fam, _>(frame, packet, entry, true).map_err(|()| Verdict::Rewrite)?;
    if packet.tcp & wire::TCP_SYN != 0 && uplink.mss != 0 {
        clamp::mss(frame, packet.ip.l4(), packet.l4_len(), uplink.mss);
    }
    debug!(frame.xdp_context(), "new flow: protocol {} on uplink {}", key.protocol, index);
    Ok(Sent { verdict: Verdict::New, code: rewrite::redirect::<Fam, _>(frame, entry) })
}

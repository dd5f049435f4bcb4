//! ICMP errors: the packet that they quote was translated by mh, so its headers are turned back for whom the error is for.
//!
//! RFC 5508 REQ-4 to REQ-7, RFC 4787 REQ-12, RFC 5382 REQ-10. An error travels against the packet that it quotes: the half that takes
//! answers to that packet says how. The quoted headers may have options, be cut after 8 bytes of transport header, or carry a UDP
//! checksum of zero; their transport checksum can't be verified, and is carried along if it is there. The ICMP checksum is
//! updated incrementally: a wrong one stays wrong, and the receiver discards it (REQ-3). An error neither refreshes nor ends anything.
//!
//! What the machine itself sends (the kernel, about a translated packet that did not fit a LAN's MTU, or about its own flows) is
//! treated alike at egress.

use mh_common::{
    abi::{self, mark},
    binding::End,
    checksum::Delta,
    flow::{self, Entry, Key},
    verdict::Verdict,
    wire,
};

use crate::{
    access::{Frame, L4Checksum, TcFrame},
    conntrack::{self, swapped},
    count::Sent,
    forward, host,
    maps::{self, Tables},
    nat,
    parse::{self, Header, Ip, Packet},
    policy, rewrite, steer,
    track::{self, Scene},
};

/// The packet that an error quotes.
struct Quoted<A> {
    /// Its addresses and ports, as they were when it was discarded.
    key: Key<A>,
    /// Offset of its IP header from the start of the frame.
    l3: usize,
    /// Offset of its transport header.
    l4: usize,
}

/// The stage's program.
#[inline(always)]
pub fn run<Fam: Tables + Header, const EGRESS: bool>(
    frame: &mut TcFrame<EGRESS>,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    let Some(quoted) = quoted::<Fam, _>(frame, ip.l4() + wire::ICMP_LEN) else {
        return unknown::<Fam, EGRESS>(frame, &ip, scene);
    };
    if quoted.key.src != ip.dst {
        // An error goes to whoever sent what it quotes.
        return unknown::<Fam, EGRESS>(frame, &ip, scene);
    }
    let key = swapped(&quoted.key);
    let entry = match conntrack::find::<Fam>(&key) {
        // SAFETY: a live map value that is copied.
        Some(hit) => unsafe { *hit.entry },
        None => match by_binding::<Fam>(&key, scene, EGRESS) {
            Some(entry) => entry,
            None if !EGRESS && is_direct::<Fam, _>(frame, ip, key, scene) => return Err(Verdict::Direct),
            None => return unknown::<Fam, EGRESS>(frame, &ip, scene),
        },
    };
    let taken = if EGRESS { entry.leads_outside() } else { track::takes(&entry, &scene.interface) };
    if !taken {
        return unknown::<Fam, EGRESS>(frame, &ip, scene);
    }
    if !EGRESS && ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    let from_inside = EGRESS || scene.interface.role == abi::ROLE_LAN;
    let src = if from_inside { entry.src } else { ip.src };
    let delivered = entry.flags & flow::HOST != 0 && !entry.leads_outside();
    let forwarded = !EGRESS && !delivered;
    turn_back::<Fam, _>(frame, &ip, &quoted, &key, &entry, src, forwarded).map_err(|()| Verdict::Rewrite)?;
    let verdict = Verdict::IcmpError;
    if delivered {
        return Ok(Sent { verdict, code: TcFrame::<EGRESS>::PASS });
    }
    if entry.leads_outside() {
        let ifindex = maps::uplink(entry.uplink).ok_or(Verdict::NoUplink)?.ifindex;
        let code = if EGRESS {
            forward::leave::<Fam, EGRESS>(frame, &entry, ifindex, scene.settings)
        } else {
            frame.set_mark(scene.settings, mark::DONE);
            // The gateway, or the error's own destination where there is none.
            let towards = Entry { dst: ip.dst, ..entry };
            frame.redirect_neighbour(ifindex, Fam::AF, rewrite::next_hop_address::<Fam>(&towards))
        };
        return Ok(Sent { verdict, code });
    }
    let query =
        steer::Query { src: Fam::words(src), dst: Fam::words(entry.dst), ..steer::Query::of::<Fam, _>(frame, &ip) };
    let hop = steer::next_hop(frame.context(), &query);
    if !hop.is_there() {
        return Err(Verdict::NoRouteBack);
    }
    if maps::interface(hop.ifindex).is_some_and(|egress| egress.role == abi::ROLE_UPLINK) {
        // It would carry inside addresses out.
        return Err(Verdict::NoRouteBack);
    }
    Ok(Sent { verdict, code: frame.redirect_neighbour(hop.ifindex, Fam::AF, [0; 4]) })
}

/// An error about a packet that mh knows nothing of: for the machine itself, or not about a flow.
#[inline(always)]
fn unknown<Fam: Tables + Header, const EGRESS: bool>(
    frame: &mut TcFrame<EGRESS>,
    ip: &Ip<Fam::Address>,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    if EGRESS {
        return host::by_source::<Fam, EGRESS>(frame, ip.src, scene);
    }
    if scene.interface.role == abi::ROLE_LAN {
        if !steer::route::<Fam, _>(frame, ip, false).by_uplink {
            return Err(Verdict::NotForUplink);
        }
        // It would carry inside addresses out.
        return Err(Verdict::IcmpStray);
    }
    Err(Verdict::NoFlow)
}

/// Whether an error from inside is about a packet of a flow that a rule leaves to the kernel. `key`: the flow's.
#[inline(always)]
fn is_direct<Fam: Tables + Header, F: Frame>(
    frame: &F,
    ip: Ip<Fam::Address>,
    key: Key<Fam::Address>,
    scene: &Scene,
) -> bool {
    let mut packet = Packet::without_transport(ip);
    packet.key = key;
    scene.interface.role == abi::ROLE_LAN
        && matches!(policy::admit(&policy::rule::<Fam, _>(frame, &packet, false)), Err(Verdict::Direct))
}

/// What the half of an evicted flow would say: the binding tells all of it.
#[inline(always)]
fn by_binding<Fam: Tables + Header>(
    key: &Key<Fam::Address>,
    scene: &Scene,
    egress: bool,
) -> Option<Entry<Fam::Address>> {
    if egress || scene.interface.role != abi::ROLE_UPLINK || !wire::has_ports(key.protocol) {
        return None;
    }
    let uplink = scene.interface.uplink;
    let inside = nat::inside::<Fam>(End { address: key.dst, port: key.dport, protocol: key.protocol, uplink })?;
    let host = if Fam::is_local(inside.address) { flow::HOST } else { 0 };
    let answer = Key::new(key.src, inside.address, key.sport, inside.port, key.protocol);
    Some(Entry::translating(key, &answer, uplink, flow::REPLY | host, scene.now))
}

/// Parses the quoted IPv4 packet at `l3`. `None`: cut too short, or a later fragment, which has no ports.
#[inline(always)]
fn quoted<Fam: Header, F: Frame>(frame: &F, l3: usize) -> Option<Quoted<Fam::Address>> {
    let [version_ihl, _] = parse::pair(frame, l3)?;
    let header_len = (version_ihl & 0x0f) as usize * 4;
    if version_ihl >> 4 != 4 || header_len < wire::IPV4_LEN {
        return None;
    }
    let fragment = u16::from_be(frame.read(l3 + wire::IPV4_FRAGMENT)?);
    if fragment & wire::IPV4_FRAGMENT_OFFSET != 0 {
        return None;
    }
    let protocol: u8 = frame.read(l3 + wire::IPV4_TTL + 1)?;
    let (src, dst) = Fam::addresses(frame, l3)?;
    let l4 = l3 + header_len;
    let (sport, dport) = match protocol {
        wire::PROTOCOL_TCP | wire::PROTOCOL_UDP => (frame.read(l4)?, frame.read(l4 + 2)?),
        wire::PROTOCOL_ICMP => {
            let [kind, _] = parse::pair(frame, l4)?;
            let id: u16 = frame.read(l4 + wire::ICMP_ID)?;
            if kind == Fam::ECHO_REQUEST {
                (id, 0)
            } else if kind == Fam::ECHO_REPLY {
                (0, id)
            } else {
                return None;
            }
        }
        _ => (0, 0),
    };
    Some(Quoted { key: Key::new(src, dst, sport, dport, protocol), l3, l4 })
}

/// Gives the quoted packet the addresses and ports that it had before mh translated it, and the error its new addresses. `key`: the
/// quoted packet's, swapped; `entry`: what that becomes.
#[inline(always)]
fn turn_back<Fam: Tables + Header, F: Frame>(
    frame: &mut F,
    ip: &Ip<Fam::Address>,
    quoted: &Quoted<Fam::Address>,
    key: &Key<Fam::Address>,
    entry: &Entry<Fam::Address>,
    src: Fam::Address,
    forwarded: bool,
) -> Result<(), ()> {
    // The quoted packet's destination is the key's source, and the other way round.
    let addresses = Delta::address(key.src, entry.src).and(Delta::address(key.dst, entry.dst));
    let ports = Delta::word(key.sport, entry.sport).and(Delta::word(key.dport, entry.dport));
    let old: u16 = frame.read(quoted.l3 + wire::IPV4_CHECKSUM).ok_or(())?;
    let new = addresses.apply(old);
    frame.write(quoted.l3 + wire::IPV4_CHECKSUM, new)?;
    frame.write(quoted.l3 + wire::IPV4_SRC, Fam::words(entry.dst)[0])?;
    frame.write(quoted.l3 + wire::IPV4_DST, Fam::words(entry.src)[0])?;
    let mut change = addresses.and(Delta::word(old, new)).and(ports);
    let end = frame.l3() + ip.len as usize;
    match key.protocol {
        wire::PROTOCOL_TCP | wire::PROTOCOL_UDP => {
            frame.write(quoted.l4, entry.dport)?;
            frame.write(quoted.l4 + 2, entry.sport)?;
            let udp = key.protocol == wire::PROTOCOL_UDP;
            let at = quoted.l4 + if udp { wire::UDP_CHECKSUM } else { wire::TCP_CHECKSUM };
            if at + 2 <= end
                && let Some(old) = frame.read::<u16>(at)
            {
                let delta = addresses.and(ports);
                let new = if udp { delta.apply_udp(old) } else { delta.apply(old) };
                frame.write(at, new)?;
                change = change.and(Delta::word(old, new));
            }
        }
        wire::PROTOCOL_ICMP => {
            // Of the two, one is the identifier (which may be zero, too) and the other zero.
            let id = entry.sport | entry.dport;
            frame.write(quoted.l4 + wire::ICMP_ID, id)?;
            let at = quoted.l4 + wire::ICMP_CHECKSUM;
            let old: u16 = frame.read(at).ok_or(())?;
            let new = ports.apply(old);
            frame.write(at, new)?;
            change = change.and(Delta::word(old, new));
        }
        _ => {}
    }
    let outer = Delta::address(ip.src, src).and(Delta::address(ip.dst, entry.dst));
    Fam::rewrite(frame, src, entry.dst, outer, forwarded)?;
    frame.update_l4_checksum(L4Checksum {
        offset: ip.l4() + wire::ICMP_CHECKSUM,
        optional: false,
        address_delta: Delta::NONE,
        port_delta: change,
    })
}

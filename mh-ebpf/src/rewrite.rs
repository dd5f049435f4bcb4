//! Translation and redirection: the packet's new headers, and its way out.
//!
//! Order: everything that is written directly comes first; the transport checksum is last, since its helper invalidates packet
//! pointers. A packet is either rewritten as a whole or, if a bound fails in between (which parsing rules out), dropped.

use mh_common::{
    abi::{self, Live},
    flow::{self, Entry},
    time::Tick,
    verdict::Verdict,
    wire,
};

use crate::{
    access::Frame,
    maps::{self, Tables},
    parse::{Header, Packet, Transport},
    steer::{self, Answer},
};

/// Resolves the half's way out anew: egress interface and, if the neighbour is known, Ethernet addresses.
#[inline(always)]
pub fn resolve<Fam: Tables + Header, F: Frame>(
    frame: &F,
    packet: &Packet<Fam::Address>,
    entry: &mut Entry<Fam::Address>,
    live: &Live,
    now: Tick,
) -> Result<(), Verdict> {
    let mut query = steer::Query {
        src: Fam::words(packet.key.src),
        dst: Fam::words(entry.dst),
        ifindex: frame.ifindex(),
        output: false,
        family: Fam::AF,
        protocol: packet.key.protocol,
        tos: packet.tos,
    };
    if !entry.is_reply() {
        entry.ifindex = maps::uplink(entry.uplink).ok_or(Verdict::NoUplink)?.ifindex;
        query.src = Fam::words(entry.src);
        query.dst = next_hop_address::<Fam>(entry);
        query.ifindex = entry.ifindex;
        query.output = true;
    }
    let hop = steer::next_hop(frame.context(), &query);
    entry.flags &= !(flow::RESOLVED | flow::XDP);
    if hop.answer != Answer::RESOLVED && hop.answer != Answer::UNRESOLVED {
        // The kernel may still find a way to the gateway by ARP; `send` asks it to.
        return if entry.is_reply() { Err(Verdict::NoRouteBack) } else { Ok(()) };
    }
    let egress = maps::interface(hop.ifindex);
    if entry.is_reply() {
        if egress.is_some_and(|e| e.role == abi::ROLE_UPLINK) {
            return Err(Verdict::NoRouteBack);
        }
        entry.ifindex = hop.ifindex;
    } else if hop.ifindex != entry.ifindex {
        return Ok(());
    }
    if hop.answer == Answer::RESOLVED {
        entry.dst_mac = hop.dst_mac;
        entry.src_mac = hop.src_mac;
        entry.maintained = now;
        entry.epoch = live.neighbour_epoch as u8;
        let xdp = egress.is_some_and(|e| e.flags & abi::INTERFACE_XDP != 0);
        entry.flags |= flow::RESOLVED | if xdp { flow::XDP } else { 0 };
    }
    Ok(())
}

/// The address to resolve for a forward half: the gateway, or the destination itself on an uplink without one.
#[inline(always)]
fn next_hop_address<Fam: Tables + Header>(entry: &Entry<Fam::Address>) -> [u32; 4] {
    let gateway = maps::uplink(entry.uplink).map_or([0; 4], |uplink| Fam::words(Fam::route(uplink).gateway));
    if gateway == [0; 4] { Fam::words(entry.dst) } else { gateway }
}

/// Rewrites the packet as its half says and sends it out. Returns the hook's return code.
#[inline(always)]
pub fn send<Fam: Tables + Header, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam::Address>,
    entry: &Entry<Fam::Address>,
) -> Result<i32, Verdict> {
    translate::<Fam, F>(frame, packet, entry).map_err(|()| Verdict::Rewrite)?;
    if entry.flags & flow::RESOLVED != 0 {
        return Ok(frame.redirect(entry.ifindex));
    }
    // On the way back a router may stand between: that is for the kernel's routing to know.
    let next = if entry.is_reply() { [0; 4] } else { next_hop_address::<Fam>(entry) };
    Ok(frame.redirect_neighbour(entry.ifindex, Fam::AF, next))
}

#[inline(always)]
fn translate<Fam: Tables + Header, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam::Address>,
    entry: &Entry<Fam::Address>,
) -> Result<(), ()> {
    if entry.flags & flow::RESOLVED != 0 {
        frame.write(0, entry.dst_mac)?;
        frame.write(wire::ETHERNET_SRC, entry.src_mac)?;
    }
    Fam::rewrite(frame, entry.src, entry.dst, entry.address_delta)?;
    match packet.transport {
        Transport::Tcp | Transport::Udp => {
            frame.write(packet.l4, entry.sport)?;
            frame.write(packet.l4 + 2, entry.dport)?;
        }
        Transport::EchoRequest => frame.write(packet.l4 + wire::ICMP_ID, entry.sport)?,
        Transport::EchoReply => frame.write(packet.l4 + wire::ICMP_ID, entry.dport)?,
    }
    let update = packet.transport.checksum_update::<Fam>(packet.l4, entry.address_delta, entry.port_delta);
    frame.update_l4_checksum(update)
}

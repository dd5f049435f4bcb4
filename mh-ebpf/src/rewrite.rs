//! Translation and redirection: the packet's new headers, and its way out.
//!
//! Order: everything that is written directly comes first; the transport checksum is last, since its helper invalidates packet
//! pointers. A packet is either rewritten as a whole or, if a bound fails in between (which parsing rules out), dropped.

use mh_common::{
    abi::{self, Live},
    flow::{self, Entry},
    hop::Hop,
    time::Tick,
    verdict::Verdict,
    wire,
};

use crate::{
    access::Frame,
    maps::{self, Tables},
    parse::{Header, Ip, Packet, Part, Transport},
    steer,
};

/// Resolves the half's way out anew: egress interface and, if the neighbour is known, Ethernet addresses.
#[inline(always)]
pub fn resolve<Fam: Tables + Header, F: Frame>(
    frame: &F,
    ip: &Ip<Fam::Address>,
    entry: &mut Entry<Fam::Address>,
    live: &Live,
    now: Tick,
) -> Result<(), Verdict> {
    let mut query = steer::Query { dst: Fam::words(entry.dst), ..steer::Query::of::<Fam, F>(frame, ip) };
    entry.flags &= !(flow::RESOLVED | flow::XDP);
    let outside = entry.leads_outside();
    if outside {
        entry.ifindex = maps::uplink(entry.uplink).ok_or(Verdict::NoUplink)?.ifindex;
        if maps::interface(entry.ifindex).is_some_and(|e| e.flags & abi::INTERFACE_L3 != 0) {
            // No neighbours and no Ethernet addresses there: the redirect takes the header off.
            settle(entry, live, now);
            return Ok(());
        }
        if take_hop::<Fam>(entry, live, now) {
            return Ok(());
        }
        query.src = Fam::words(entry.src);
        query.dst = next_hop_address::<Fam>(entry);
        query.ifindex = entry.ifindex;
        query.output = true;
    }
    let hop = steer::next_hop(frame.context(), &query);
    if !hop.is_there() {
        // The kernel may still find a way to the gateway by ARP; `send` asks it to.
        return if outside { Ok(()) } else { Err(Verdict::NoRouteBack) };
    }
    let egress = maps::interface(hop.ifindex);
    if outside {
        if hop.ifindex != entry.ifindex {
            return Ok(());
        }
    } else {
        if egress.is_some_and(|e| e.role == abi::ROLE_UPLINK) {
            return Err(Verdict::NoRouteBack);
        }
        entry.ifindex = hop.ifindex;
    }
    // Where there are no neighbours, none is missing.
    // VERIFIER: a number for what there may not be: of an option's content, the compiler may look at bits before it looks whether it is there.
    let device = egress.map_or(0, |e| e.flags);
    if hop.is_resolved() || device & abi::INTERFACE_L3 != 0 {
        entry.dst_mac = hop.dst_mac;
        entry.src_mac = hop.src_mac;
        settle(entry, live, now);
        if device & abi::INTERFACE_XDP != 0 {
            entry.flags |= flow::XDP;
        }
        if outside {
            keep_hop::<Fam>(entry, live, now);
        }
    }
    Ok(())
}

/// Gives the half the way to its uplink's gateway that this CPU knows, if it does.
#[inline(always)]
fn take_hop<Fam: Tables + Header>(entry: &mut Entry<Fam::Address>, live: &Live, now: Tick) -> bool {
    let Some(hop) = maps::hop(entry.uplink) else { return false };
    if !hop.leads_to(steer::gateway::<Fam>(entry.uplink)[0], entry.ifindex, live.neighbour_epoch, now) {
        return false;
    }
    entry.dst_mac = hop.dst_mac;
    entry.src_mac = hop.src_mac;
    entry.flags |= hop.flags as u8;
    settle(entry, live, now);
    true
}

/// Remembers the half's way out for others of its uplink.
#[inline(always)]
fn keep_hop<Fam: Tables + Header>(entry: &Entry<Fam::Address>, live: &Live, now: Tick) {
    let Some(hop) = maps::hop(entry.uplink) else { return };
    *hop = Hop {
        gateway: steer::gateway::<Fam>(entry.uplink)[0],
        ifindex: entry.ifindex,
        learned: now,
        epoch: live.neighbour_epoch,
        flags: (entry.flags & flow::XDP) as u16,
        dst_mac: entry.dst_mac,
        src_mac: entry.src_mac,
        reserved: 0,
    };
}

/// Notes that the half needs no attention for a while.
#[inline(always)]
fn settle<A>(entry: &mut Entry<A>, live: &Live, now: Tick) {
    entry.maintained = now;
    entry.epoch = live.neighbour_epoch as u8;
    entry.flags |= flow::RESOLVED;
}

/// The address to resolve for a forward half: the gateway, or the destination itself on an uplink without one.
#[inline(always)]
pub fn next_hop_address<Fam: Tables + Header>(entry: &Entry<Fam::Address>) -> [u32; 4] {
    let gateway = steer::gateway::<Fam>(entry.uplink);
    if gateway == [0; 4] { Fam::words(entry.dst) } else { gateway }
}

/// Rewrites the packet as its half says, and sends it out if it is to leave by a redirect. Returns the hook's return code.
#[inline(always)]
pub fn send<Fam: Tables + Header, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam::Address>,
    entry: &Entry<Fam::Address>,
) -> Result<i32, Verdict> {
    translate::<Fam, F>(frame, packet, entry, true).map_err(|()| Verdict::Rewrite)?;
    Ok(redirect::<Fam, F>(frame, entry))
}

/// Sends a translated packet out by its half's interface.
#[inline(always)]
pub fn redirect<Fam: Tables + Header, F: Frame>(frame: &mut F, entry: &Entry<Fam::Address>) -> i32 {
    if is_addressed(frame, entry) {
        return frame.redirect(entry.ifindex);
    }
    // On the way back a router may stand between: that is for the kernel's routing to know.
    let next = if entry.leads_outside() { next_hop_address::<Fam>(entry) } else { [0; 4] };
    frame.redirect_neighbour(entry.ifindex, Fam::AF, next)
}

/// Whether the half has the Ethernet addresses that the packet needs. One that came without an Ethernet header gets it from the kernel.
#[inline(always)]
fn is_addressed<A, F: Frame>(frame: &F, entry: &Entry<A>) -> bool {
    entry.flags & flow::RESOLVED != 0 && frame.l3() == wire::ETHERNET_LEN
}

/// Rewrites IP and transport header as the half says. `forwarded`: mh forwards it, so the TTL goes down and Ethernet addresses change.
#[inline(always)]
pub fn translate<Fam: Tables + Header, F: Frame>(
    frame: &mut F,
    packet: &Packet<Fam::Address>,
    entry: &Entry<Fam::Address>,
    forwarded: bool,
) -> Result<(), ()> {
    if forwarded && is_addressed(frame, entry) {
        frame.write(0, entry.dst_mac)?;
        frame.write(wire::ETHERNET_SRC, entry.src_mac)?;
    }
    Fam::rewrite(frame, entry.src, entry.dst, entry.address_delta, forwarded)?;
    let l4 = packet.ip.l4();
    if packet.ip.part() == Part::Later {
        return Ok(());
    }
    match packet.transport {
        Transport::TCP | Transport::UDP => {
            frame.write(l4, entry.sport)?;
            frame.write(l4 + 2, entry.dport)?;
        }
        Transport::ECHO_REQUEST => frame.write(l4 + wire::ICMP_ID, entry.sport)?,
        Transport::ECHO_REPLY => frame.write(l4 + wire::ICMP_ID, entry.dport)?,
        _ => return Ok(()),
    }
    let update = packet.transport.checksum_update::<Fam>(l4, entry.address_delta, entry.port_delta);
    frame.update_l4_checksum(update)
}

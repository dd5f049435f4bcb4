//! A TCP segment on a flow that is lost is answered with a RST in the remote's name, so that its sender connects anew, by another uplink,
//! now and not after minutes. Which flows are lost: [`crate::track::fate`].
//!
//! The segment itself is turned round: cut to its headers, with addresses and ports swapped, and sent back the way it came. It is the
//! RST that a remote end would send that knows nothing of the connection (RFC 9293 section 3.10.7.1), and is exact (RFC 5961 section 3.2):
//! its sequence number is the one that the sender says it expects.
//!
//! - To an inside host it leaves by the interface that the segment came in by.
//! - To the machine itself it comes in by the interface that the segment was to leave by, where the kernel expects answers of this remote,
//!   with [`mark::DONE`]: [`crate::track::attend`] lets it through to the socket, which knows the flow by these addresses.
//!
//! Every further segment is answered as well. The flow counts as reset from the first one on.
//!
//! Failure behaviour: what can't be turned round is dropped as [`Verdict::Rewrite`]; its sender repeats it.

use mh_common::{abi::mark, checksum::fold, verdict::Verdict, wire};

use crate::{
    access::{Frame, TcFrame},
    conntrack,
    count::Sent,
    forward,
    maps::Tables,
    parse::{self, Header, Packet, Part},
    track::Scene,
};

/// The data offset of a header without options, in its place beside the flags, in host byte order.
const OFFSET: u16 = (wire::TCP_LEN as u16 / 4) << 12;

/// Whether the packet, of a TCP flow, is a segment that is answered: whole, in mid-stream, and no RST itself. One with IP options is not:
/// they would have to be answered too (RFC 9293 section 3.9.2.1).
#[inline(always)]
pub fn can_answer<Fam: Header, F: Frame>(frame: &F, packet: &Packet<Fam::Address>) -> bool {
    packet.tcp & (wire::TCP_SYN | wire::TCP_RST) == 0
        && matches!(packet.ip.part(), Part::Whole)
        && packet.ip.l4() == frame.l3() + Fam::HEADER_LEN
}

/// The stages' programs. `EGRESS`: the machine itself has sent the segment.
#[inline(always)]
pub fn run<Fam: Tables + Header, const EGRESS: bool>(
    frame: &mut TcFrame<EGRESS>,
    scene: &Scene,
) -> Result<Sent, Verdict> {
    let ip = Fam::parse(frame)?;
    let packet = parse::transport::<Fam, _>(frame, ip)?;
    if packet.key.protocol != wire::PROTOCOL_TCP || !can_answer::<Fam, _>(frame, &packet) {
        return Err(Verdict::Rewrite);
    }
    if let Some(hit) = conntrack::find::<Fam>(&packet.key) {
        // SAFETY: a live map value, of which one byte is written.
        let entry = unsafe { &mut *hit.entry };
        if entry.tcp & wire::TCP_RST == 0 {
            entry.tcp |= wire::TCP_RST;
            forward::extend_binding::<Fam>(&packet.key, &hit, scene, true);
        }
    }
    turn_round::<Fam, EGRESS>(frame, &packet).map_err(|()| Verdict::Rewrite)?;
    let ifindex = frame.ifindex();
    let code = if EGRESS {
        frame.set_mark(scene.settings, mark::DONE);
        frame.receive(ifindex)
    } else if frame.l3() == wire::ETHERNET_LEN {
        frame.redirect(ifindex)
    } else {
        frame.redirect_neighbour(ifindex, Fam::AF, [0; 4])
    };
    Ok(Sent { verdict: Verdict::Reset, code })
}

/// Makes the segment the RST that answers it.
#[inline(always)]
fn turn_round<Fam: Header, const EGRESS: bool>(
    frame: &mut TcFrame<EGRESS>,
    packet: &Packet<Fam::Address>,
) -> Result<(), ()> {
    let (l3, l4) = (frame.l3(), frame.l3() + Fam::HEADER_LEN);
    let seq = u32::from_be(frame.read(l4 + wire::TCP_SEQ).ok_or(())?);
    let ack_seq: u32 = frame.read(l4 + wire::TCP_ACK_SEQ).ok_or(())?;
    let (seq, ack_seq, flags) = if packet.tcp & wire::TCP_ACK != 0 {
        (ack_seq, 0, wire::TCP_RST)
    } else {
        let payload = packet.ip.len - (Fam::HEADER_LEN + packet.l4_len()) as u32;
        let fin = (packet.tcp & wire::TCP_FIN != 0) as u32;
        (0, seq.wrapping_add(payload + fin).to_be(), wire::TCP_RST | wire::TCP_ACK)
    };
    frame.cut(l4 + wire::TCP_LEN)?;
    let partial = frame.is_checksum_partial(l4 + wire::TCP_CHECKSUM)?;
    let pseudo = Fam::answer(frame, &packet.ip, wire::TCP_LEN as u16)?;
    let mut header = [
        packet.key.dport,
        packet.key.sport,
        seq as u16,
        (seq >> 16) as u16,
        ack_seq as u16,
        (ack_seq >> 16) as u16,
        (OFFSET | flags as u16).to_be(),
        0,
        0,
        0,
    ];
    let mut sum = pseudo as u32;
    for word in header {
        sum += word as u32;
    }
    header[wire::TCP_CHECKSUM / 2] = if partial { pseudo } else { !fold(sum) };
    frame.replace(l4, &header)?;
    if l3 == wire::ETHERNET_LEN {
        let (to, from): (wire::Mac, wire::Mac) = (frame.read(0).ok_or(())?, frame.read(wire::ETHERNET_SRC).ok_or(())?);
        frame.write(0, from)?;
        frame.write(wire::ETHERNET_SRC, to)?;
    }
    Ok(())
}

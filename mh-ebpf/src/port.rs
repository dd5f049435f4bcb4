//! Taking an outside port for a binding: the first candidate (see [`mh_common::ports`]) that nobody has, that does not rest for another
//! host, and on which no socket of the machine itself would take the remote's packets.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST, xdp_md},
    helpers::generated::bpf_get_prandom_u32,
    programs::{TcContext, XdpContext},
};
use mh_common::{
    address::{Ipv4, V4},
    binding::{End, Inside, PortRequest},
    hash,
    ports::{Candidates, MAX_TRIES, Range},
    verdict::Verdict,
};

use crate::{
    access::{Frame, TcFrame, XdpFrame},
    maps::{self, Tables},
    nat,
    parse::{Header, Transport},
};

/// What [`mh_take_port4`] answers: a port was taken.
const TAKEN: u32 = 0;
/// No candidate was free.
const EXHAUSTED: u32 = 1;
/// The table has no room.
const FULL: u32 = 2;

/// Takes a port as the request says, and enters it by its outside end. Returns the port, big-endian in memory.
#[inline(always)]
pub fn take4<F: Frame>(frame: &F, request: PortRequest<Ipv4>) -> Result<u16, Verdict> {
    let place = maps::port_request().ok_or(Verdict::PortsExhausted)?;
    *place = request;
    let context = frame.context();
    match if F::COMPLETE { mh_take_port4(context.cast()) } else { mh_take_port4_xdp(context.cast()) } {
        TAKEN => Ok(place.port),
        FULL => Err(Verdict::BindingsFull),
        _ => Err(Verdict::PortsExhausted),
    }
}

/// [`take4`], of which request and answer are in a map.
// VERIFIER: global, so that the loop is walked once and not for every state of its callers (6.18: 300,000 instructions less); and without
// arguments but the context, as 5.10 takes no others than numbers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_take_port4(skb: *mut __sk_buff) -> u32 {
    let Some(request) = maps::port_request() else { return EXHAUSTED };
    let frame = TcFrame::<false>::new(TcContext::new(skb));
    search::<V4, _>(&frame, request)
}

/// The same at XDP.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_take_port4_xdp(xdp: *mut xdp_md) -> u32 {
    let Some(request) = maps::port_request() else { return EXHAUSTED };
    let frame = XdpFrame::new(XdpContext::new(xdp));
    search::<V4, _>(&frame, request)
}

#[inline(always)]
fn search<Fam: Tables + Header, F: Frame>(frame: &F, request: &mut PortRequest<Fam::Address>) -> u32 {
    let transport = Transport::from_number(request.transport);
    let identifiers = transport == Transport::ECHO_REQUEST;
    let range =
        if identifiers { Range::IDENTIFIERS } else { Range { first: request.first_port, last: request.last_port } };
    let own = request.own != 0;
    let wanted = request.inside.port;
    // SAFETY: a helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() } as u64;
    // The half of the host's number by which its outside address is not chosen.
    let host = maps::settings().map_or(0, |settings| hash::host(settings.seed, request.inside.address) >> 32) as u32;
    let mut candidates = Candidates::new(u16::from_be(wanted), range, host, random, identifiers);
    for n in 0..MAX_TRIES {
        let mut port = candidates.get(n).to_be();
        if own && n == 0 {
            port = wanted;
        }
        let end = End { port, ..request.outside };
        if let Some(taken) = Fam::by_outside().get_ptr(end) {
            // SAFETY: a live map value that is copied.
            let taken = unsafe { *taken };
            let free = !taken.in_use() && (taken.address == request.inside.address || taken.rested(request.now));
            // Of several CPUs that want a rested port, the one whose removal succeeds goes on.
            if !free || Fam::by_outside().remove(end).is_err() {
                continue;
            }
        }
        let (address, remote, remote_port) = (request.outside.address, request.remote, request.remote_port);
        let ours = own && n == 0;
        if !ours && nat::has_socket::<Fam, _>(frame, transport, address, port, remote, remote_port) {
            continue;
        }
        let inside: Inside<_> = request.inside;
        match Fam::by_outside().insert(end, inside, BPF_NOEXIST as u64) {
            Ok(()) => {
                request.port = port;
                return TAKEN;
            }
            Err(maps::EEXIST) => {}
            Err(_) => return FULL,
        }
    }
    EXHAUSTED
}

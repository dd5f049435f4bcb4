//! Taking an outside port for a binding: the first candidate (see [`mh_common::ports`]) that nobody has, that does not rest for another
//! host, and on which no socket of the machine itself would take the remote's packets.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST, xdp_md},
    helpers::generated::bpf_get_prandom_u32,
    programs::{TcContext, XdpContext},
};
use mh_common::{
    address::{Address, Ipv4, V4},
    binding::{End, Inside, PortRequest},
    ports::{Candidates, KEYED, MAX_TRIES, Range},
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
/// The inside end has this port already.
const OWN: u32 = 3;

/// A port that was taken.
#[derive(Clone, Copy)]
pub struct Taken {
    /// The port, big-endian in memory.
    pub port: u16,
    /// Nothing had been known of it (see [`mh_common::known`]), so no flow has left an answer's half there; and it is one of those that are
    /// [`ports::KEYED`](mh_common::ports::KEYED). It was entered with the embryonic flow that the request has.
    pub fresh: bool,
    /// The inside end had it already, by another CPU at the same time: nothing was entered.
    pub own: bool,
}

/// Takes a port as the request says, and enters it by its outside end. XDP takes only fresh ones; what else there may be is for the complete path to see.
#[inline(always)]
pub fn take4<F: Frame>(frame: &F, request: PortRequest<Ipv4>) -> Result<Taken, Verdict> {
    let place = maps::port_request().ok_or(Verdict::PortsExhausted)?;
    *place = request;
    let context = frame.context();
    // VERIFIER: two functions, each walked by itself: one loop that does both has four times the states.
    let mut fresh = true;
    let mut answer = if F::COMPLETE { mh_take_fresh4(context.cast()) } else { mh_take_fresh4_xdp(context.cast()) };
    if answer == EXHAUSTED && F::COMPLETE {
        fresh = false;
        answer = mh_take_port4(context.cast());
    }
    match answer {
        OWN if !F::COMPLETE => Err(Verdict::PortsExhausted),
        TAKEN | OWN => Ok(Taken { port: place.port, fresh: fresh && answer == TAKEN, own: answer == OWN }),
        FULL => Err(Verdict::BindingsFull),
        _ => Err(Verdict::PortsExhausted),
    }
}

/// Takes the first candidate of which nothing is known, if those before it are taken.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_take_fresh4(skb: *mut __sk_buff) -> u32 {
    let Some(request) = maps::port_request() else { return EXHAUSTED };
    fresh::<V4, _>(&TcFrame::<false>::new(TcContext::new(skb)), request)
}

/// The same at XDP.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_take_fresh4_xdp(xdp: *mut xdp_md) -> u32 {
    let Some(request) = maps::port_request() else { return EXHAUSTED };
    fresh::<V4, _>(&XdpFrame::new(XdpContext::new(xdp)), request)
}

#[inline(always)]
fn fresh<Fam: Tables + Header, F: Frame>(frame: &F, request: &mut PortRequest<Fam::Address>) -> u32 {
    if request.own != 0 {
        return EXHAUSTED;
    }
    let mut candidates = candidates(request);
    for n in 0..KEYED {
        let port = candidates.get(n).to_be();
        let end = End { port, ..request.outside };
        if Fam::is_unknown(end.address, port, end.protocol) {
            // What is known of a port may be what another CPU did for the same source a moment ago, and by now it is known of the source, too.
            if !F::COMPLETE && n > 0 && !Fam::is_unknown(request.inside.address, request.inside.port, end.protocol) {
                return EXHAUSTED;
            }
            match enter::<Fam, F>(frame, end, false, request) {
                EXHAUSTED if F::COMPLETE => {}
                done => return done,
            }
        }
        if F::COMPLETE {
            // Whether it can serve is for the other to say.
            let taken = Fam::by_outside().get_ptr(end);
            // SAFETY: a live map value that is read.
            let Some(taken) = taken.map(|taken| unsafe { &*taken }).filter(|taken| taken.in_use()) else {
                return EXHAUSTED;
            };
            if is_own(taken, request) {
                request.port = port;
                return OWN;
            }
        }
    }
    EXHAUSTED
}

/// Whether a binding is of the inside end that a port is asked for.
#[inline(always)]
fn is_own<A: Address>(taken: &Inside<A>, request: &PortRequest<A>) -> bool {
    taken.address == request.inside.address && taken.port == request.inside.port
}

/// Enters a candidate that nobody has, unless a socket of the machine itself would take the remote's packets there. `own`: that is whom it is for.
#[inline(always)]
fn enter<Fam: Tables + Header, F: Frame>(
    frame: &F,
    end: End<Fam::Address>,
    own: bool,
    request: &mut PortRequest<Fam::Address>,
) -> u32 {
    let transport = Transport::from_number(request.transport);
    let Inside { remote, remote_port, .. } = request.inside;
    if !own && nat::has_socket::<Fam, _>(frame, transport, end.address, end.port, remote, remote_port) {
        return EXHAUSTED;
    }
    match Fam::by_outside().insert(end, &request.inside, BPF_NOEXIST as u64) {
        Ok(()) => {
            request.port = end.port;
            TAKEN
        }
        Err(maps::EEXIST) => EXHAUSTED,
        Err(_) => FULL,
    }
}

#[inline(always)]
fn candidates<A: Address>(request: &PortRequest<A>) -> Candidates {
    let identifiers = Transport::from_number(request.transport) == Transport::ECHO_REQUEST;
    let range =
        if identifiers { Range::IDENTIFIERS } else { Range { first: request.first_port, last: request.last_port } };
    // SAFETY: a helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() } as u64;
    Candidates::new(u16::from_be(request.inside.port), range, request.host, random, identifiers)
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

#[inline(always)]
fn search<Fam: Tables + Header, F: Frame>(frame: &F, request: &mut PortRequest<Fam::Address>) -> u32 {
    let wanted = request.inside.port;
    // It would not be found from inside.
    request.inside.embryo = 0;
    let mut candidates = candidates(request);
    for n in 0..MAX_TRIES {
        let mut port = candidates.get(n).to_be();
        let own = request.own != 0 && n == 0;
        if own {
            port = wanted;
        }
        let end = End { port, ..request.outside };
        if let Some(taken) = Fam::by_outside().get_ptr(end) {
            // SAFETY: a live map value that is copied.
            let taken = unsafe { *taken };
            if taken.in_use() && is_own(&taken, request) {
                request.port = port;
                return OWN;
            }
            let free =
                !taken.in_use() && (taken.address == request.inside.address || taken.rested(request.inside.created));
            // Of several CPUs that want a rested port, the one whose removal succeeds goes on.
            if !free || Fam::by_outside().remove(end).is_err() {
                continue;
            }
        }
        match enter::<Fam, F>(frame, end, own, request) {
            EXHAUSTED => {}
            done => return done,
        }
    }
    EXHAUSTED
}

//! Taking an outside port for a binding: the first candidate (see [`mh_common::ports`]) that nobody has, that does not rest for another
//! host, and on which no socket of the machine itself would take the remote's packets.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST, xdp_md},
    helpers::generated::bpf_get_prandom_u32,
    programs::{TcContext, XdpContext},
};
use mh_common::{
    address::{Address, Ipv4, V4},
    binding::{End, PortRequest},
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
/// How many candidates are looked at for one of which nothing is known.
const FRESH_TRIES: u32 = 4;
/// The table has no room.
const FULL: u32 = 2;

/// A port that was taken.
#[derive(Clone, Copy)]
pub struct Taken {
    /// The port, big-endian in memory.
    pub port: u16,
    /// Nothing had been known of it (see [`mh_common::known`]): no flow has left an answer's half there.
    pub fresh: bool,
}

/// Takes a port as the request says, and enters it by its outside end.
#[inline(always)]
pub fn take4<F: Frame>(frame: &F, request: PortRequest<Ipv4>) -> Result<Taken, Verdict> {
    let place = maps::port_request().ok_or(Verdict::PortsExhausted)?;
    *place = request;
    let context = frame.context();
    // VERIFIER: two functions, each walked by itself: one loop that does both has four times the states.
    match if F::COMPLETE { mh_take_fresh4(context.cast()) } else { mh_take_fresh4_xdp(context.cast()) } {
        TAKEN => return Ok(Taken { port: place.port, fresh: true }),
        FULL => return Err(Verdict::BindingsFull),
        _ => {}
    }
    match if F::COMPLETE { mh_take_port4(context.cast()) } else { mh_take_port4_xdp(context.cast()) } {
        TAKEN => Ok(Taken { port: place.port, fresh: false }),
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
    for n in 0..FRESH_TRIES {
        let port = candidates.get(n).to_be();
        let end = End { port, ..request.outside };
        if Fam::is_unknown(end.address, port, end.protocol) {
            match enter::<Fam, F>(frame, end, false, request) {
                EXHAUSTED => continue,
                done => return done,
            }
        }
        // Whether it can serve is for the other to say.
        let taken = Fam::by_outside().get_ptr(end);
        // SAFETY: a live map value of which a word is read.
        if !taken.is_some_and(|taken| unsafe { (*taken).in_use() }) {
            return EXHAUSTED;
        }
    }
    EXHAUSTED
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
    if !own && nat::has_socket::<Fam, _>(frame, transport, end.address, end.port, request.remote, request.remote_port) {
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
    // The half of the host's number by which its outside address is not chosen.
    let host = maps::settings().map_or(0, |settings| hash::host(settings.seed, request.inside.address) >> 32) as u32;
    Candidates::new(u16::from_be(request.inside.port), range, host, random, identifiers)
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
    let wanted = request.inside.port;
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
            let free = !taken.in_use() && (taken.address == request.inside.address || taken.rested(request.now));
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

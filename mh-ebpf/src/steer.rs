//! Steering: is a new flow for an uplink at all.
//!
//! The kernel's routing decides: what it would send to something other than an uplink (a connected network,
//! another router, a tunnel) or to the machine itself is left alone. A destination without any route is for an uplink: the
//! uplinks' gateways may come from the configuration only.

use aya_ebpf::{bindings::bpf_fib_lookup as FibLookup, cty::c_void, helpers::generated::bpf_fib_lookup};
use mh_common::{
    abi,
    route::{Answer, Question},
    wire::Mac,
};

use crate::{
    access::Frame,
    maps::{self, Tables},
    parse::{Header, Ip},
    track::Scene,
};

/// `BPF_FIB_LOOKUP_OUTPUT`: look up as if the machine itself sent by the given interface.
const OUTPUT: u32 = 2;
/// `BPF_FIB_LKUP_RET_SUCCESS`.
const SUCCESS: i32 = 0;
/// `BPF_FIB_LKUP_RET_NOT_FWDED`: for the machine itself, or no route.
const NOT_FORWARDED: i32 = 4;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: the route is known, the neighbour is not.
const NO_NEIGHBOUR: i32 = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`: the route is known, the packet is larger than its MTU.
const FRAGMENTATION_NEEDED: i32 = 8;

/// Where the kernel would send a packet.
// VERIFIER: the helper's own number and no enum for it: what is chosen here in branches would be a constant in each, and everything that
// follows verified once per constant. (An enum with data in a Result, moreover, has members in BTF at offsets that every kernel refuses,
// and then the whole object's BTF is lost.)
pub struct NextHop {
    code: i32,
    /// The next hop's Ethernet address.
    pub dst_mac: Mac,
    /// The interface's Ethernet address.
    pub src_mac: Mac,
    /// The interface.
    pub ifindex: u32,
    /// The next hop's address: a gateway, or the destination itself.
    pub address: [u32; 4],
}

impl NextHop {
    /// Whether there is a next hop and its Ethernet address is known.
    #[inline(always)]
    pub const fn is_resolved(&self) -> bool {
        matches!(self.code, SUCCESS | FRAGMENTATION_NEEDED)
    }

    /// Whether there is a next hop. Without one, nothing else here means anything.
    #[inline(always)]
    pub const fn is_there(&self) -> bool {
        matches!(self.code, SUCCESS | FRAGMENTATION_NEEDED | NO_NEIGHBOUR)
    }

    /// Whether the packet is for the machine itself, or there is no route.
    #[inline(always)]
    pub const fn is_not_forwarded(&self) -> bool {
        self.code == NOT_FORWARDED
    }
}

/// A question to the kernel's routing.
pub struct Query {
    /// Source address, as words for helpers.
    pub src: [u32; 4],
    /// Destination address.
    pub dst: [u32; 4],
    /// The interface that the packet came in by, or, with [`Query::output`], is to leave by.
    pub ifindex: u32,
    /// Whether it is to leave by the interface.
    pub output: bool,
    /// AF_INET or AF_INET6.
    pub family: u8,
    /// The IP protocol.
    pub protocol: u8,
    /// The TOS; traffic class is not looked at.
    pub tos: u8,
}

impl Query {
    /// Where a packet is to go that came in by the frame's interface, as its header stands.
    #[inline(always)]
    pub fn of<Fam: Header, F: Frame>(frame: &F, ip: &Ip<Fam::Address>) -> Self {
        Self {
            src: Fam::words(ip.src),
            dst: Fam::words(ip.dst),
            ifindex: frame.ifindex(),
            output: false,
            family: Fam::AF,
            protocol: ip.protocol,
            tos: ip.tos,
        }
    }
}

/// Asks the kernel's routing.
// VERIFIER: a function of its own, since its 64 bytes of stack, inlined at each call, go past the limit of 512 on every kernel.
#[inline(never)]
pub fn next_hop(ctx: *mut c_void, query: &Query) -> NextHop {
    // SAFETY: plain integers, for which zero is a value.
    let mut fib: FibLookup = unsafe { core::mem::zeroed() };
    fib.family = query.family;
    fib.l4_protocol = query.protocol;
    fib.ifindex = query.ifindex;
    fib.__bindgen_anon_2.tos = query.tos;
    fib.__bindgen_anon_3.ipv6_src = query.src;
    fib.__bindgen_anon_4.ipv6_dst = query.dst;
    let flags = if query.output { OUTPUT } else { 0 };
    // SAFETY: the parameters have the kernel's layout and live through the call.
    let code = unsafe { bpf_fib_lookup(ctx, &raw mut fib, size_of::<FibLookup>() as i32, flags) } as i32;
    // SAFETY: integers either way; for IPv4 the first word is the address.
    let address = unsafe { fib.__bindgen_anon_4.ipv6_dst };
    NextHop { code, dst_mac: fib.dmac, src_mac: fib.smac, ifindex: fib.ifindex, address }
}

/// No uplink in particular.
pub const ANY: u8 = 0xff;

/// Where the kernel's routing would have a packet go.
#[derive(Clone, Copy)]
pub struct Route {
    /// To an uplink, or nowhere at all.
    pub by_uplink: bool,
    /// The uplink whose own link the destination is on; else [`ANY`].
    pub on_link: u8,
}

/// The address of an uplink's gateway, as words for helpers; all zero: it has none.
#[inline(always)]
pub fn gateway<Fam: Tables + Header>(uplink: u8) -> [u32; 4] {
    maps::uplink(uplink).map_or([0; 4], |uplink| Fam::words(Fam::route(uplink).gateway))
}

/// Asks where the packet should go. `output`: the machine itself sends it by the frame's interface.
#[inline(always)]
pub fn route<Fam: Tables + Header, F: Frame>(frame: &F, ip: &Ip<Fam::Address>, output: bool) -> Route {
    let dst = Fam::words(ip.dst);
    let query = Query { output, ..Query::of::<Fam, F>(frame, ip) };
    let hop = next_hop(frame.context(), &query);
    let mut route = Route { by_uplink: false, on_link: ANY };
    if hop.is_there() {
        if let Some(interface) = maps::interface(hop.ifindex)
            && interface.role == abi::ROLE_UPLINK
        {
            route.by_uplink = true;
            // Where there is neither Ethernet nor a gateway everything is on the link, and that says nothing.
            let gateway = gateway::<Fam>(interface.uplink)[0];
            let ethernet = !interface.flags & abi::INTERFACE_L3;
            if hop.address[0] == dst[0] && gateway | ethernet as u32 != 0 {
                route.on_link = interface.uplink;
            }
        }
    } else if hop.is_not_forwarded() {
        route.by_uplink = !Fam::is_local(ip.dst);
    }
    route
}

/// [`route`] of what came in by the frame's interface, unless this CPU has asked the same a moment ago.
#[inline(always)]
pub fn remembered_route<Fam: Tables + Header, F: Frame>(frame: &F, ip: &Ip<Fam::Address>, scene: &Scene) -> Route {
    let question = Question {
        src: Fam::words(ip.src)[0],
        dst: Fam::words(ip.dst)[0],
        ifindex: frame.ifindex(),
        tick: scene.now,
        epoch: scene.live.neighbour_epoch,
        tos: ip.tos,
        protocol: ip.protocol,
    };
    let Some(place) = maps::answer(question.place()) else { return route::<Fam, F>(frame, ip, false) };
    if place.question == question {
        return Route { by_uplink: place.by_uplink != 0, on_link: place.on_link };
    }
    let route = route::<Fam, F>(frame, ip, false);
    *place = Answer { question, by_uplink: route.by_uplink as u8, on_link: route.on_link, reserved: 0 };
    route
}

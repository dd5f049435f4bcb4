//! The benchmark's own BPF programs: what sends, what counts, and what is compared with mh in the router's place.
//!
//! - [`generate_forward`] and [`generate_reverse`] run by `BPF_PROG_TEST_RUN` with live frames. They write each frame's head from scratch,
//!   since frames come back with what the receiver made of them, checksums included, and redirect it out of a port.
//! - [`far_lan`], [`far_wan1`] and [`far_wan2`] receive what the router sent: they count and drop, or reflect and learn.
//! - [`router_drop`] and [`blind_lan`] and its like are the limits: of the generator, and of any datapath.
//! - The programs of [`driver`] run others on a packet that they restore, by `BPF_PROG_TEST_RUN` as well.
//!
//! Invariants: one generator at a time, on one core, and everything behind it on the same core: counters need no atomic operations.
//!
//! Failure behaviour: what a program cannot understand is counted as [`mh_bench_ebpf::Seen::others`] and dropped.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers take and return C integers; TryFrom's failure branch would be code that the verifier has to walk"
)]
#![allow(missing_docs, reason = "the entry points' macros make functions that can't be documented")]

mod driver;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_action},
    helpers::generated::bpf_redirect,
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use mh_bench_ebpf::{
    DROPPED, FLOW_OFFSET, FORWARD, HEAD_LEN, LAN, Learned, MAGIC, MAGIC_OFFSET, PORTS, PORTS_PER_HOST, Port, REVERSE,
    Seen, Traffic, WAN1, WAN2, mode,
};
use mh_common::{
    bytes::{Head, Wire},
    checksum::fold,
};

#[map(name = "bench_traffic")]
static TRAFFIC: Array<Traffic> = Array::with_max_entries(2, 0);
#[map(name = "bench_ports")]
static PORT: Array<Port> = Array::with_max_entries(PORTS as u32, 0);
#[map(name = "bench_seen")]
static SEEN: PerCpuArray<Seen> = PerCpuArray::with_max_entries(DROPPED + 1, 0);
/// The loader sets its size. Memory of its own pages, as for one that is mapped: it is large.
#[map(name = "bench_learned")]
static LEARNED: Array<Learned> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "bench_routes")]
static ROUTES: Array<u32> = Array::with_max_entries(PORTS as u32, 0);

const ETHERTYPE: usize = 12;
const IP: usize = 14;
const IP_SUM: usize = 24;
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const SOURCE_PORT: usize = 34;
const DESTINATION_PORT: usize = 36;
const UDP_LEN: usize = 38;
const UDP_SUM: usize = 40;
/// Version 4, five words of header, as in memory in front of any type of service.
const IPV4: u8 = 0x45;
/// The protocol field's value for UDP.
const UDP: u16 = 17;

/// The first bytes of what lies between two addresses, if there are as many.
#[inline(always)]
fn first<const LEN: usize>(start: usize, end: usize) -> Option<Head<LEN>> {
    // VERIFIER: the comparison must be on the pointer that is dereferenced.
    // SAFETY: the bounds are checked, and packet memory may be written.
    (start + LEN <= end).then(|| unsafe { Head::new(start) })
}

/// The first bytes of a frame.
#[derive(Clone, Copy)]
struct Frame(Head<HEAD_LEN>);

impl Frame {
    /// If the frame has as many.
    #[inline(always)]
    fn of(ctx: &XdpContext) -> Option<Self> {
        first(ctx.data(), ctx.data_end()).map(Self)
    }

    #[inline(always)]
    fn get<T: Wire, const AT: usize>(self) -> T {
        self.0.load::<T, AT>()
    }

    #[inline(always)]
    fn set<T: Wire, const AT: usize>(self, value: T) {
        self.0.store::<T, AT>(value);
    }

    /// Whether it is one of the benchmark's frames.
    #[inline(always)]
    fn is_ours(self) -> bool {
        self.get::<u16, MAGIC_OFFSET>() == MAGIC
            && self.get::<u16, ETHERTYPE>() == 0x0800u16.to_be()
            && self.get::<u8, IP>() == IPV4
    }

    /// The sum of two words.
    #[inline(always)]
    fn sum<const AT: usize>(self) -> u32 {
        halves(self.get::<u32, AT>())
    }

    /// Whether the checksums are right; `payload_sum`: see [`Port::payload_sum`].
    #[inline(always)]
    fn sums_are_right(self, payload_sum: u32) -> bool {
        let addresses = self.sum::<SOURCE>() + self.sum::<DESTINATION>();
        let ip = self.sum::<IP>() + self.sum::<{ IP + 4 }>() + self.sum::<{ IP + 8 }>() + addresses;
        // The pseudo-header has the length once more.
        let len: u16 = self.get::<_, UDP_LEN>();
        let sent: u16 = self.get::<_, UDP_SUM>();
        let header = self.sum::<SOURCE_PORT>() + self.sum::<UDP_LEN>();
        let udp = addresses + u32::from(UDP.to_be()) + u32::from(len) + header;
        let payload = payload_sum + self.sum::<FLOW_OFFSET>();
        // A UDP checksum of zero would be none.
        fold(ip) == 0xffff && sent != 0 && fold(udp + payload) == 0xffff
    }
}

/// The sum of an integer's two words.
#[inline(always)]
const fn halves(number: u32) -> u32 {
    (number & 0xffff) + (number >> 16)
}

/// The checksum as it is sent; zero would mean that there is none.
#[inline(always)]
const fn udp_checksum(sum: u32) -> u16 {
    match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The inside end of a flow: address and port in the machine's byte order.
#[inline(always)]
const fn inside(first_address: u32, first_port: u32, flow: u32) -> (u32, u16) {
    (first_address.wrapping_add(flow / PORTS_PER_HOST), (first_port + flow % PORTS_PER_HOST) as u16)
}

/// Writes the next flow's frame and sends it.
#[inline(always)]
fn generate<const INDEX: u32>(ctx: &XdpContext) -> Option<u32> {
    let frame = Frame::of(ctx)?;
    // SAFETY: only one generator runs at a time, and the benchmark writes only between runs.
    let traffic = unsafe { &mut *TRAFFIC.get_ptr_mut(INDEX)? };
    let flow = traffic.next;
    traffic.next = if flow + 1 < traffic.end { flow + 1 } else { traffic.first };
    let (port, address, l4_port) = if INDEX == FORWARD {
        let (address, port) = inside(traffic.first_address, traffic.first_port, flow);
        (LAN, address.to_be(), port.to_be())
    } else {
        let learned = LEARNED.get(flow)?;
        if !learned.is_of(traffic.generation as u16) {
            return None;
        }
        (learned.at(), learned.address, learned.port)
    };
    let (lead, ifindex) = match port {
        LAN => (traffic.lead[0], traffic.ifindex[0]),
        WAN1 => (traffic.lead[1], traffic.ifindex[1]),
        _ => (traffic.lead[2], traffic.ifindex[2]),
    };
    frame.set::<_, 0>(lead);
    frame.set::<_, 8>(traffic.template[1]);
    frame.set::<_, 16>(traffic.template[2]);
    frame.set::<_, 24>(traffic.template[3]);
    frame.set::<_, 32>(traffic.template[4]);
    frame.set::<_, 40>(traffic.template[5]);
    frame.set::<_, 48>(traffic.template[6]);
    let address_sum = halves(address);
    frame.set::<_, IP_SUM>(!fold(traffic.ip_sum + address_sum));
    if INDEX == FORWARD {
        frame.set::<_, SOURCE>(address);
        frame.set::<_, SOURCE_PORT>(l4_port);
    } else {
        frame.set::<_, DESTINATION>(address);
        frame.set::<_, DESTINATION_PORT>(l4_port);
    }
    let changed = address_sum + u32::from(l4_port) + halves(flow);
    frame.set::<_, UDP_SUM>(udp_checksum(traffic.udp_sum + changed));
    frame.set::<_, FLOW_OFFSET>(flow);
    traffic.sent += 1;
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect(ifindex, 0) } as u32)
}

#[xdp]
pub fn generate_forward(ctx: XdpContext) -> u32 {
    generate::<FORWARD>(&ctx).unwrap_or(xdp_action::XDP_DROP)
}

#[xdp]
pub fn generate_reverse(ctx: XdpContext) -> u32 {
    generate::<REVERSE>(&ctx).unwrap_or(xdp_action::XDP_DROP)
}

/// Receives a frame at a port of the far side.
#[inline(always)]
fn receive(ctx: &XdpContext, at: u32) -> Option<u32> {
    let port = PORT.get(at)?;
    // SAFETY: the entry is this core's, and XDP programs don't interrupt each other.
    let seen = unsafe { &mut *SEEN.get_ptr_mut(at)? };
    let Some(frame) = Frame::of(ctx).filter(|frame| frame.is_ours()) else {
        seen.others += 1;
        return None;
    };
    seen.packets += 1;
    let source = frame.get::<u32, SOURCE>();
    if source & port.source_mask == port.source && frame.get::<u64, 0>() & port.to_mask == port.to {
        seen.expected += 1;
    }
    if port.mode == mode::SINK {
        return None;
    }
    let flow = frame.get::<u32, FLOW_OFFSET>();
    if !frame.sums_are_right(port.payload_sum) {
        seen.wrong += 1;
        return None;
    }
    // SAFETY: one core writes the table; see the module's invariants.
    let learned = unsafe { &mut *LEARNED.get_ptr_mut(flow)? };
    let generation = port.generation as u16;
    if port.mode == mode::VERIFY {
        let (address, l4_port) = inside(port.first_address, port.first_port, flow);
        if frame.get::<u32, DESTINATION>() != address.to_be() || frame.get::<u16, DESTINATION_PORT>() != l4_port.to_be()
        {
            seen.wrong += 1;
        } else if learned.is_of(generation) && !learned.is_answered() {
            learned.set_answered();
            seen.flows += 1;
        }
        return None;
    }
    let now = Learned::new(source, frame.get::<_, SOURCE_PORT>(), at, generation);
    if !learned.is_of(generation) {
        seen.flows += 1;
        *learned = now;
    } else if (learned.address, learned.port, learned.at()) != (now.address, now.port, now.at()) {
        // A flow that changes its translation is none that was established.
        seen.wrong += 1;
    }
    let (to, from) = (frame.get::<[u8; 6], 0>(), frame.get::<[u8; 6], 6>());
    frame.set::<_, 0>(from);
    frame.set::<_, 6>(to);
    let (destination, l4_ports) = (frame.get::<u32, DESTINATION>(), frame.get::<u32, SOURCE_PORT>());
    frame.set::<_, SOURCE>(destination);
    frame.set::<_, DESTINATION>(source);
    frame.set::<_, SOURCE_PORT>(l4_ports.rotate_left(16));
    // Not XDP_TX: a veth end without an XDP program is not woken up by that.
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect(port.ifindex, 0) } as u32)
}

#[xdp]
pub fn far_lan(ctx: XdpContext) -> u32 {
    receive(&ctx, LAN).unwrap_or(xdp_action::XDP_DROP)
}

#[xdp]
pub fn far_wan1(ctx: XdpContext) -> u32 {
    receive(&ctx, WAN1).unwrap_or(xdp_action::XDP_DROP)
}

#[xdp]
pub fn far_wan2(ctx: XdpContext) -> u32 {
    receive(&ctx, WAN2).unwrap_or(xdp_action::XDP_DROP)
}

#[xdp]
pub fn router_drop(_: XdpContext) -> u32 {
    if let Some(seen) = SEEN.get_ptr_mut(DROPPED) {
        // SAFETY: the entry is this core's, and XDP programs don't interrupt each other.
        unsafe { (*seen).packets += 1 };
    }
    xdp_action::XDP_DROP
}

#[xdp]
pub fn router_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[inline(always)]
fn blind(at: u32) -> u32 {
    match ROUTES.get(at) {
        // SAFETY: a helper without pointers.
        Some(ifindex) => unsafe { bpf_redirect(*ifindex, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

#[xdp]
pub fn blind_lan(_: XdpContext) -> u32 {
    blind(LAN)
}

#[xdp]
pub fn blind_wan1(_: XdpContext) -> u32 {
    blind(WAN1)
}

#[xdp]
pub fn blind_wan2(_: XdpContext) -> u32 {
    blind(WAN2)
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

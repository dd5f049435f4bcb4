//! mh's BPF programs: three entry points over one pipeline.
//!
//! - [`mh_tc`] (TC ingress, tcx or clsact) is the complete path.
//! - [`mh_xdp`] is the fast path: it sends packets of flows that exist, or begin ([`begin`]) as most do, and passes everything else, untouched, to `mh_tc`.
//! - [`mh_egress`] (TC egress of uplinks) is for what the machine itself sends.
//!
//! The stages of the pipeline are modules, in the order in which a packet meets them: [`access`] and [`parse`] (bytes to a flow key),
//! [`track`] and [`conntrack`] (find the flow), [`forward`] and [`rewrite`] (count, translate, redirect). What is rare has programs of its own, which the TC programs
//! tail-call (see [`mh_common::abi::Stage`]): [`outbound`] and [`inbound`] (new flows, with [`steer`], [`policy`], [`nat`], [`embryo`] and [`limit`]),
//! [`host`], [`error`] (ICMP errors), [`fragment`], [`reset`]. [`explain`] tells what they would do. [`maps`] names all tables. Everything behind the entry points is generic over the
//! address family and over the hook.
//!
//! Failure behaviour: a stage that cannot go on returns a [`mh_common::verdict::Verdict`]; [`count::finish`] is the one place that
//! turns verdicts into counters and return codes.
//!
//! The crate compiles for the host as well (an empty `main`), so that clippy and rust-analyzer see it.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers take and return C integers; TryFrom's failure branch would be code that the verifier has to walk"
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key or an entry passed by value is a copy of 16 to 64 bytes on a stack of 512"
)]
#![allow(missing_docs, reason = "the entry points' macros make functions that can't be documented")]

mod access;
mod begin;
mod cache;
mod clamp;
mod conntrack;
mod count;
mod embryo;
mod error;
mod explain;
mod forward;
mod fragment;
mod host;
mod inbound;
mod limit;
mod maps;
mod nat;
mod outbound;
mod parse;
mod policy;
mod port;
mod reset;
mod rewrite;
mod socket;
mod steer;
mod track;

use access::{TcFrame, XdpFrame};
use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use mh_common::{
    address::V4,
    wire::{MAX_ERROR_HEADERS_LEN, MAX_HEADERS_LEN},
};

/// Makes the program of a stage: see [`track::staged`]. `headers`: how many bytes it looks at.
macro_rules! tc_stage {
    ($(#[$doc:meta])* $name:ident, egress: $egress:literal, headers: $headers:expr, $run:expr) => {
        $(#[$doc])*
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            let mut frame = TcFrame::<$egress>::new(ctx);
            // VERIFIER: no closure: a large one is not inlined, and no function but a program's own may make tail calls.
            let outcome = match track::staged(&mut frame, $headers) {
                Ok(scene) => $run(&mut frame, &scene),
                Err(verdict) => Err(verdict),
            };
            count::finish(&mut frame, outcome)
        }
    };
}

/// The complete path, on TC ingress of LAN interfaces and uplinks.
#[classifier]
pub fn mh_tc(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::<false>::new(ctx);
    let outcome = track::quick(&mut frame);
    count::finish(&mut frame, outcome)
}

tc_stage!(
    /// A packet that the frequent path can't finish.
    mh_attend, egress: false, headers: MAX_HEADERS_LEN, track::attend::<V4>
);
tc_stage!(
    /// A packet from inside that belongs to no flow.
    mh_outbound, egress: false, headers: MAX_HEADERS_LEN, outbound::run::<V4>
);
tc_stage!(
    /// A packet from an uplink that belongs to no flow.
    mh_inbound, egress: false, headers: MAX_HEADERS_LEN, inbound::run::<V4>
);
tc_stage!(
    /// An ICMP error.
    mh_error, egress: false, headers: MAX_ERROR_HEADERS_LEN, error::run::<V4, false>
);
tc_stage!(
    /// A fragment other than the first.
    mh_later, egress: false, headers: MAX_HEADERS_LEN, fragment::later::<V4>
);
tc_stage!(
    /// A first fragment for which others are waiting.
    mh_release, egress: false, headers: MAX_HEADERS_LEN, fragment::release::<V4>
);
tc_stage!(
    /// A TCP segment of an inside host that is to be answered with a RST.
    mh_reset, egress: false, headers: MAX_HEADERS_LEN, reset::run::<V4, false>
);
tc_stage!(
    /// A TCP segment of the machine itself that is to be answered with a RST.
    mh_host_reset, egress: true, headers: MAX_HEADERS_LEN, reset::run::<V4, true>
);
tc_stage!(
    /// A packet that mh's own ingress has not sent.
    mh_host_attend, egress: true, headers: MAX_HEADERS_LEN, host::sent::<V4>
);
tc_stage!(
    /// A packet of the machine itself that belongs to no flow.
    mh_host, egress: true, headers: MAX_HEADERS_LEN, host::begin::<V4>
);
tc_stage!(
    /// An ICMP error that the machine itself sends.
    mh_host_error, egress: true, headers: MAX_ERROR_HEADERS_LEN, error::run::<V4, true>
);

/// What the machine itself sends, on TC egress of uplinks.
#[classifier]
pub fn mh_egress(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::<true>::new(ctx);
    match host::enter(&mut frame) {
        Some(verdict) => count::finish(&mut frame, Err(verdict)),
        None => <TcFrame<true> as access::Frame>::PASS,
    }
}

/// What would become of a packet, for people who ask.
#[classifier]
pub fn mh_explain(ctx: TcContext) -> i32 {
    explain::run::<V4>(&mut TcFrame::<false>::new(ctx))
}

/// Ends copies in the flow cache, for the controller.
#[classifier]
pub fn mh_settle(ctx: TcContext) -> i32 {
    cache::end(&TcFrame::<false>::new(ctx))
}

/// The fast path, on XDP of LAN interfaces and uplinks.
#[xdp]
pub fn mh_xdp(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(ctx);
    let outcome = track::established(&mut frame);
    count::finish(&mut frame, outcome) as u32
}

/// A packet from inside that belongs to no flow.
#[xdp]
pub fn mh_xdp_begin(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(ctx);
    let outcome = begin::run::<V4>(&mut frame);
    count::finish(&mut frame, outcome) as u32
}

/// Debug and tail helpers need a GPL-compatible licence; so does nothing else here, but the kernel asks per object.
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

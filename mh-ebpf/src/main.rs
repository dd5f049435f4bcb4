//! mh's BPF programs: two entry points over one pipeline.
//!
//! - [`mh_tc`] (TC ingress, tcx or clsact) is the complete path.
//! - [`mh_xdp`] is the fast path: it sends packets of flows that exist and passes everything else, untouched, to `mh_tc`.
//!
//! The stages are modules, in the order in which a packet meets them: [`access`] and [`parse`] (bytes to a flow key), [`track`]
//! (find the flow), [`steer`] (is it for an uplink, and which), [`nat`] (a binding for it), [`rewrite`] (translate and redirect).
//! [`maps`] names all tables. Everything behind the entry points is generic over the address family and over the hook.
//!
//! Failure behaviour: a stage that cannot go on returns a [`mh_common::verdict::Verdict`]; [`count::finish`] is the one place that
//! turns verdicts into counters and return codes.
//!
//! The crate compiles for the host as well (an empty `main`), so that clippy and rust-analyzer see it.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
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
mod count;
mod maps;
mod nat;
mod parse;
mod rewrite;
mod steer;
mod track;

use access::{TcFrame, XdpFrame};
use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// The complete path, on TC ingress of LAN interfaces and uplinks.
#[classifier]
pub fn mh_tc(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(ctx);
    let outcome = track::complete(&mut frame);
    count::finish(&frame, outcome)
}

/// The fast path, on XDP of LAN interfaces and uplinks.
#[xdp]
pub fn mh_xdp(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(ctx);
    let outcome = track::established(&mut frame);
    count::finish(&frame, outcome) as u32
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

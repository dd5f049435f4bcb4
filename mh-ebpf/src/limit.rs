//! Limits per inside host (RFC 6888 REQ-4): none takes the bindings, or the time, of the others.
//!
//! Bindings in use are those that the host has got less those that have ended: the first number is written by the programs alone, the
//! second by the controller alone, so no update is lost between them. New flows are counted in windows of about a second.

use aya_ebpf::bindings::BPF_ANY;
use mh_common::{
    abi::Source,
    time::{self, SEEN_GRANULARITY_TICKS},
    verdict::Verdict,
};

use crate::{maps::Tables, track::Scene};

/// Counts a new flow of the host, or refuses it.
#[inline(always)]
pub fn new_flow<Fam: Tables>(host: Fam::Address, scene: &Scene) -> Result<(), Verdict> {
    let Some(source) = Fam::sources().get_ptr_mut(host) else {
        let source = Source { bindings: 0, window: scene.now, flows: 1 };
        // A host that finds no room here is not limited for now: better than to refuse it.
        let _ = Fam::sources().insert(host, source, BPF_ANY as u64);
        return Ok(());
    };
    // SAFETY: a live map value of words, each read and written by itself; a race between CPUs loses a count.
    let source = unsafe { &mut *source };
    if time::since(scene.now, source.window) >= SEEN_GRANULARITY_TICKS {
        source.window = scene.now;
        source.flows = 0;
    }
    let most = scene.settings.new_flows_per_source;
    if most != 0 && source.flows >= most {
        return Err(Verdict::SourceRate);
    }
    source.flows += 1;
    Ok(())
}

/// Takes back that a new flow was counted.
#[inline(always)]
pub fn take_back<Fam: Tables>(host: Fam::Address) {
    if let Some(source) = Fam::sources().get_ptr_mut(host) {
        // SAFETY: as in `new_flow`.
        unsafe { (*source).flows = (*source).flows.saturating_sub(1) };
    }
}

/// Whether the host may have another binding.
#[inline(always)]
pub fn may_bind<Fam: Tables>(host: Fam::Address, scene: &Scene) -> bool {
    let most = scene.settings.bindings_per_source;
    if most == 0 {
        return true;
    }
    // SAFETY: live map values of which a word is read.
    let (got, ended) = unsafe {
        (Fam::sources().get(host).map_or(0, |source| source.bindings), Fam::ended().get(host).copied().unwrap_or(0))
    };
    // Negative if the host's entry was displaced and began anew: the controller corrects that with its next sweep.
    (got.wrapping_sub(ended) as i32) < most as i32
}

/// Counts a binding that the host got.
#[inline(always)]
pub fn bound<Fam: Tables>(host: Fam::Address) {
    if let Some(source) = Fam::sources().get_ptr_mut(host) {
        // SAFETY: as in `new_flow`.
        unsafe { (*source).bindings = (*source).bindings.wrapping_add(1) };
    }
}

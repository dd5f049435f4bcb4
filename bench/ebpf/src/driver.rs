//! Drivers of test runs: they restore the packet and call the program under test; see [`mh_bench_ebpf::case`].
//!
//! Failure behaviour: a packet that is too short, or a slot without a program, ends as dropped or shot, which no program under test does
//! with the packets that are driven: the caller sees it in the return code.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, map, xdp},
    maps::{Array, ProgramArray},
    programs::{TcContext, XdpContext},
};
use mh_bench_ebpf::case::{
    AGAINST, Case, FIRST_HOST, FIRST_PORT, HOSTS, IDENTIFICATION, LONG, SHORT, SOURCE_LOW, SOURCE_PORT,
};

use crate::first;

/// `TC_ACT_SHOT`.
const TC_SHOT: i32 = 2;
/// `TC_ACT_OK`.
const TC_OK: i32 = 0;

#[map(name = "bench_case")]
static CASE: Array<Case> = Array::with_max_entries(1, 0);
#[map(name = "bench_xdp")]
static UNDER_TEST_XDP: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map(name = "bench_tc")]
static UNDER_TEST_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);

const _: () = assert!(SHORT == 8 * 8 && LONG == 16 * 8, "restore() names all words");

/// Writes these words of eight bytes.
macro_rules! write {
    ($frame:ident, $case:ident, $($word:literal)*) => {
        $($frame.store::<u64, { $word * 8 }>($case.head[$word]);)*
    };
}

/// Restores the packet.
#[inline(always)]
fn restore(start: usize, end: usize) -> Option<()> {
    // SAFETY: one driver runs at a time, and the benchmark writes only between runs.
    let case = unsafe { &mut *CASE.get_ptr_mut(0)? };
    let frame = first::<SHORT>(start, end)?;
    write!(frame, case, 0 1 2 3 4 5 6 7);
    if case.long != 0 {
        let frame = first::<LONG>(start, end)?;
        write!(frame, case, 8 9 10 11 12 13 14 15);
    }
    if case.vary != 0 {
        let run = case.next;
        case.next = run + 1;
        let host = ((FIRST_HOST + run % HOSTS) as u16).to_be();
        let port = ((FIRST_PORT + run) as u16).to_be();
        frame.store::<_, IDENTIFICATION>(!host);
        frame.store::<_, SOURCE_LOW>(host);
        frame.store::<_, SOURCE_PORT>(port);
        frame.store::<_, AGAINST>(!host);
        frame.store::<_, { AGAINST + 2 }>(!port);
    }
    Some(())
}

#[xdp]
pub fn drive_xdp(ctx: XdpContext) -> u32 {
    if restore(ctx.data(), ctx.data_end()).is_some() {
        // SAFETY: the map is one of programs; on failure the helper returns.
        unsafe { UNDER_TEST_XDP.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[classifier]
pub fn drive_tc(ctx: TcContext) -> i32 {
    // What the run before left on the packet besides its bytes.
    // SAFETY: the context is valid for the program's whole run, and these may be written.
    unsafe {
        (*ctx.skb.skb).mark = 0;
        (*ctx.skb.skb).cb[0] = 0;
    }
    if restore(ctx.data(), ctx.data_end()).is_some() {
        // SAFETY: the map is one of programs; on failure the helper returns.
        unsafe { UNDER_TEST_TC.tail_call(&ctx, 0) };
    }
    TC_SHOT
}

#[xdp]
pub fn nothing_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn nothing_tc(_: TcContext) -> i32 {
    TC_OK
}

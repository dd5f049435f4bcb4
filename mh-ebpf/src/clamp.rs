//! MSS clamping: what a TCP connection's ends tell each other about the size of their segments is limited to what the uplink's MTU
//! has room for (RFC 9293 section 3.7.1; RFC 4459 section 3.2). Connections then work where ICMP is filtered on the way.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::{TcContext, XdpContext},
};
use mh_common::wire;

use crate::{
    access::{Frame, TcFrame, XdpFrame},
    parse,
};

/// How many options of a SYN are looked at: 40 bytes hold 10 of the shortest that are no padding.
const MAX_OPTIONS: u32 = 16;

/// Lowers the MSS option of the SYN whose TCP header, `l4_len` bytes long, is at `l4` to `most`. A SYN without the option is left as
/// it is: its sender takes 536 (RFC 9293 section 3.7.1).
#[inline(always)]
pub fn mss<F: Frame>(frame: &F, l4: usize, l4_len: usize, most: u16) {
    let (context, l4, l4_len, most) = (frame.context(), l4 as u32, l4_len as u32, most as u32);
    if F::COMPLETE {
        mh_clamp(context.cast(), l4, l4_len, most);
    } else {
        mh_clamp_xdp(context.cast(), l4, l4_len, most);
    }
}

/// [`mss`], as a function that the verifier checks by itself.
// VERIFIER: global, since a static function is walked anew for every state of its caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_clamp(skb: *mut __sk_buff, l4: u32, l4_len: u32, most: u32) -> u32 {
    lower(&mut TcFrame::<false>::new(TcContext::new(skb)), l4, l4_len, most as u16) as u32
}

/// The same at XDP.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_clamp_xdp(xdp: *mut xdp_md, l4: u32, l4_len: u32, most: u32) -> u32 {
    lower(&mut XdpFrame::new(XdpContext::new(xdp)), l4, l4_len, most as u16) as u32
}

/// Returns whether anything was changed.
#[inline(always)]
fn lower<F: Frame>(frame: &mut F, l4: u32, l4_len: u32, most: u16) -> bool {
    // VERIFIER: masked and not compared: 6.1 forgets what a comparison said of an argument once it is widened. The headers that are looked
    // at end before byte 94, and a TCP header is at most 60 bytes long.
    let (l4, l4_len) = ((l4 & 0x7f) as usize, (l4_len & 0x3f) as usize);
    frame.pull(wire::MAX_HEADERS_LEN + wire::TCP_OPTIONS_MAX_LEN);
    let mut at = wire::TCP_LEN;
    for _ in 0..MAX_OPTIONS {
        if at + 4 > l4_len {
            break;
        }
        let Some([kind, len]) = parse::pair(frame, l4 + at) else { break };
        if kind == wire::TCP_OPTION_NOP {
            at += 1;
            continue;
        }
        if kind == wire::TCP_OPTION_END || len < 2 {
            break;
        }
        if kind == wire::TCP_OPTION_MSS {
            let Some(old) = frame.read::<u16>(l4 + at + 2) else { break };
            return len == 4 && u16::from_be(old) > most && frame.replace_in_tcp(l4, at + 2, old, most.to_be()).is_ok();
        }
        at += len as usize;
    }
    false
}

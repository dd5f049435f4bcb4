//! What the socket of a packet that the machine itself sends has been told about its way out.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

use crate::{access::TcFrame, maps};

/// Offset in bits of `sk_userlocks` (half a byte or, since 6.12, a byte) in the kernel's `struct sock`; the loader reads it from the
/// kernel's BTF. Zero: not known.
#[unsafe(no_mangle)]
static MH_SOCK_USERLOCKS: u32 = 0;

/// `SOCK_BINDADDR_LOCK`: the socket was bound to an address.
const BOUND_TO_ADDRESS: u8 = 4;
/// It is within the first so many bytes.
const MAX_OFFSET: u32 = 1536;

/// Whether the packet's socket was bound to a device or to an address, and so has chosen its uplink.
#[inline(always)]
pub fn is_bound(frame: &TcFrame<true>) -> bool {
    let Some(socket) = frame.socket() else { return false };
    // SAFETY: a whole socket, as the helper gave it.
    if unsafe { (*socket).bound_dev_if } != 0 {
        return true;
    }
    // A source without a destination is nothing but bound. Raw sockets, as ping's, show it by this alone.
    // SAFETY: as above.
    if unsafe { (*socket).dst_ip4 == 0 && (*socket).src_ip4 != 0 } {
        return true;
    }
    // SAFETY: a static of the object; the loader has put the value there before the program was loaded.
    let bits = unsafe { core::ptr::read_volatile(&raw const MH_SOCK_USERLOCKS) };
    let offset = bits / 8;
    if offset == 0 || offset >= MAX_OFFSET {
        return false;
    }
    let Some(scratch) = maps::scratch() else { return false };
    // VERIFIER: arithmetic on pointers to sockets is refused, so the kernel's structure is copied from its beginning.
    // SAFETY: the helper writes `offset + 1` bytes, which the buffer has.
    let read = unsafe { bpf_probe_read_kernel(scratch.frame.as_mut_ptr().cast(), offset + 1, socket.cast()) };
    let Some(flags) = scratch.frame.get(offset as usize) else { return false };
    read == 0 && flags >> (bits & 7) & BOUND_TO_ADDRESS != 0
}

//! Packet access: the only place that turns packet offsets into pointers, and the only one that knows the hooks apart.
//!
//! Invariant: [`Frame::at`] gives out a pointer only after comparing its end with `data_end`; offsets are bounded by
//! [`mh_common::wire::MAX_HEADERS_LEN`]. Pointers don't live longer than the next call that may move the packet
//! ([`Frame::pull`], [`Frame::update_l4_checksum`]).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, xdp_action},
    cty::c_void,
    helpers::generated::{bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_pull_data},
    programs::{TcContext, XdpContext},
};
use mh_common::checksum::Delta;

/// `bpf_l4_csum_replace`: the change is one of the pseudo-header.
const BPF_F_PSEUDO_HDR: u64 = 0x10;
/// `bpf_l4_csum_replace`: zero means no checksum (UDP).
const BPF_F_MARK_MANGLED_0: u64 = 0x20;
/// `TC_ACT_SHOT`.
const TC_DROP: i32 = 2;
/// `TC_ACT_UNSPEC`, `TCX_NEXT`: whatever else is attached, and then the kernel, gets the packet.
const TC_NEXT: i32 = -1;

/// Where the transport header's checksum is and what it covers.
#[derive(Clone, Copy)]
pub struct L4Checksum {
    /// Its offset from the start of the frame.
    pub offset: usize,
    /// Whether zero means that there is none (UDP over IPv4).
    pub optional: bool,
    /// The change of the pseudo-header, or none if it covers no pseudo-header.
    pub address_delta: Delta,
    /// The change of ports or identifier.
    pub port_delta: Delta,
}

/// A packet at a hook.
pub trait Frame {
    /// The hook is the complete path: whatever it passes goes to the kernel.
    const COMPLETE: bool;
    /// Return code: leave the packet to whoever is next.
    const PASS: i32;
    /// Return code: drop it.
    const DROP: i32;

    /// Address of the first byte (of the Ethernet header).
    fn data(&self) -> usize;
    /// Address behind the last byte that can be read.
    fn data_end(&self) -> usize;
    /// Length of the frame in bytes, including what can't be read directly.
    fn len(&self) -> u32;
    /// How many packets on the wire it stands for (GRO).
    fn segments(&self) -> u32;
    /// The interface that it arrived by.
    fn ifindex(&self) -> u32;
    /// Whether a VLAN tag was taken off by the hardware.
    fn has_vlan_tag(&self) -> bool;
    /// Makes the first `len` bytes readable, if the frame has that many.
    fn pull(&mut self, len: usize);
    /// Applies the deltas to a transport checksum whose two bytes lie within the frame. Pointers are invalid afterwards.
    fn update_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), ()>;
    /// Sends the frame out as it is; returns the hook's return code.
    fn redirect(&mut self, ifindex: u32) -> i32;
    /// Sends the packet out with the kernel finding the Ethernet addresses. `family` is AF_INET or AF_INET6; a `next_hop` of zero
    /// makes the kernel look up the route by the packet's destination.
    fn redirect_neighbour(&mut self, ifindex: u32, family: u8, next_hop: [u32; 4]) -> i32;
    /// The context for helpers.
    fn context(&self) -> *mut c_void;

    /// A pointer to a `T` at `offset` bytes from the start of the frame, if all of it can be read.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.data() + offset;
        // VERIFIER: the comparison must be on the very pointer that is dereferenced; any other form of it is "invalid access
        // to packet" on every kernel.
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        Some(start as *mut T)
    }

    /// Reads a `T` (an integer, or an array of bytes) as it stands in memory.
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked the bounds; unaligned reads are allowed for; every bit pattern is a `T`.
        self.at::<T>(offset).map(|p| unsafe { p.read_unaligned() })
    }

    /// Writes a `T` as it stands in memory.
    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Result<(), ()> {
        let p = self.at::<T>(offset).ok_or(())?;
        // SAFETY: `at` checked the bounds; packet memory is writable at both hooks.
        unsafe { p.write_unaligned(value) };
        Ok(())
    }
}

/// What can be read from and written to packets: any bit pattern is a value, and there is no padding.
pub trait Wire: Copy {}
impl Wire for u8 {}
impl Wire for u16 {}
impl Wire for u32 {}
impl Wire for [u8; 6] {}

/// A packet at TC ingress.
pub struct TcFrame {
    ctx: TcContext,
}

impl TcFrame {
    /// Wraps the hook's context.
    #[inline(always)]
    pub const fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    const fn skb(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }
}

impl Frame for TcFrame {
    const COMPLETE: bool = true;
    const PASS: i32 = TC_NEXT;
    const DROP: i32 = TC_DROP;

    #[inline(always)]
    fn data(&self) -> usize {
        self.ctx.data()
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        self.ctx.data_end()
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        let (segments, size) = unsafe { ((*self.skb()).gso_segs, (*self.skb()).gso_size) };
        match segments {
            // A guest or a tap device told the size of segments only; or it is one packet, and size is zero.
            0 => self.len().checked_div(size).map_or(1, |whole| whole + 1),
            n => n,
        }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb()).ifindex }
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb()).vlan_present != 0 }
    }

    #[inline(always)]
    fn pull(&mut self, len: usize) {
        let wanted = if (self.len() as usize) < len { self.len() as usize } else { len };
        if self.data() + wanted > self.data_end() {
            // SAFETY: a helper call on the hook's own context. On failure the bytes stay unreadable, and `at` says so.
            unsafe { bpf_skb_pull_data(self.skb(), wanted as u32) };
        }
    }

    #[inline(always)]
    fn update_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), ()> {
        // The helpers know what direct access does not: whether the field holds a whole checksum or, in a packet that a local
        // socket sent, the pseudo-header's part only (CHECKSUM_PARTIAL), and what the hardware summed up (CHECKSUM_COMPLETE).
        let optional = if checksum.optional { BPF_F_MARK_MANGLED_0 } else { 0 };
        let replace = |delta: Delta, flags: u64| {
            if delta.is_none() {
                return Ok(());
            }
            // SAFETY: a helper call on the hook's own context; the kernel checks the offset.
            match unsafe {
                bpf_l4_csum_replace(self.skb(), checksum.offset as u32, 0, delta.to_sum(), flags | optional)
            } {
                0 => Ok(()),
                _ => Err(()),
            }
        };
        replace(checksum.address_delta, BPF_F_PSEUDO_HDR)?;
        replace(checksum.port_delta, 0)
    }

    #[inline(always)]
    fn redirect(&mut self, ifindex: u32) -> i32 {
        // SAFETY: a helper call without pointers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    #[inline(always)]
    fn redirect_neighbour(&mut self, ifindex: u32, family: u8, next_hop: [u32; 4]) -> i32 {
        let mut params = RedirectNeighbour { family: family as u32, next_hop };
        let (params, len) = if next_hop == [0; 4] {
            (core::ptr::null_mut(), 0)
        } else {
            ((&raw mut params).cast(), size_of::<RedirectNeighbour>() as i32)
        };
        // SAFETY: the parameters, if any, have the layout of the kernel's bpf_redir_neigh and live through the call.
        unsafe { bpf_redirect_neigh(ifindex, params, len, 0) as i32 }
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }
}

/// The kernel's `struct bpf_redir_neigh` (5.10), without its union.
#[repr(C)]
struct RedirectNeighbour {
    family: u32,
    next_hop: [u32; 4],
}

impl TcFrame {
    /// The hook's context, for aya-log.
    #[inline(always)]
    pub const fn tc_context(&self) -> &TcContext {
        &self.ctx
    }
}

/// A packet at XDP.
pub struct XdpFrame {
    ctx: XdpContext,
}

impl XdpFrame {
    /// Wraps the hook's context.
    #[inline(always)]
    pub const fn new(ctx: XdpContext) -> Self {
        Self { ctx }
    }
}

impl Frame for XdpFrame {
    const COMPLETE: bool = false;
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    const DROP: i32 = xdp_action::XDP_DROP as i32;

    #[inline(always)]
    fn data(&self) -> usize {
        self.ctx.data()
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        self.ctx.data_end()
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        (self.ctx.data_end() - self.ctx.data()) as u32
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        false
    }

    #[inline(always)]
    fn pull(&mut self, _len: usize) {}

    #[inline(always)]
    fn update_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), ()> {
        let delta = checksum.address_delta.and(checksum.port_delta);
        let old: u16 = self.read(checksum.offset).ok_or(())?;
        let new = if checksum.optional { delta.apply_udp(old) } else { delta.apply(old) };
        self.write(checksum.offset, new)
    }

    #[inline(always)]
    fn redirect(&mut self, ifindex: u32) -> i32 {
        // SAFETY: a helper call without pointers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    #[inline(always)]
    fn redirect_neighbour(&mut self, _ifindex: u32, _family: u8, _next_hop: [u32; 4]) -> i32 {
        // There is no such helper at XDP, and the fast path does not ask for it.
        Self::PASS
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }
}

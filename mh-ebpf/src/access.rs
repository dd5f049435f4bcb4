//! Packet access: the only place that turns packet offsets into pointers (which [`mh_common::bytes`] reads and writes by), and the only one that
//! knows the hooks apart.
//!
//! Invariant: [`Frame::at`] gives out a pointer only after comparing its end with `data_end`; offsets are bounded by
//! [`mh_common::wire::MAX_HEADERS_LEN`]. Pointers don't live longer than the next call that may move the packet
//! ([`Frame::pull`], [`Frame::update_l4_checksum`]).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock, xdp_action},
    cty::c_void,
    helpers::generated::{
        bpf_clone_redirect, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_sk_fullsock,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::{TcContext, XdpContext},
};
use mh_common::{
    abi::{self, Interface, Settings},
    bytes::{Head, Wire},
    checksum::Delta,
    fragment::MAX_HELD_LEN,
    wire,
};

/// `bpf_l4_csum_replace`: the change is one of the pseudo-header.
const BPF_F_PSEUDO_HDR: u64 = 0x10;
/// `bpf_l4_csum_replace`: zero means no checksum (UDP).
const BPF_F_MARK_MANGLED_0: u64 = 0x20;
/// `bpf_clone_redirect`, `bpf_redirect`: the packet comes in by the interface.
const BPF_F_INGRESS: u64 = 1;
/// `bpf_skb_store_bytes`: keep what the hardware summed up (CHECKSUM_COMPLETE) right.
const RECOMPUTE_CHECKSUM: u64 = 1;
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

/// The same number, of which the compiler knows nothing.
// VERIFIER: else the compiler leaves out a bounds check that follows from an earlier one (which no kernel's verifier remembers for
// another pointer), or turns `start + 1 > end` into `start >= end` (from which it learns nothing).
#[inline(always)]
fn opaque(number: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let same;
        // SAFETY: a register is moved to itself: without any instruction, its line information would be refused as a duplicate.
        unsafe { core::arch::asm!("{0} = {0}", inlateout(reg) number => same, options(pure, nomem, nostack)) };
        same
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

/// A length in bytes from 1 to [`MAX_HELD_LEN`].
// VERIFIER: the lower bound by masking: a comparison with zero, the compiler merges with the upper one, and then no kernel sees it.
#[inline(always)]
const fn held_len(len: u32) -> Result<u32, ()> {
    if len > MAX_HELD_LEN as u32 {
        return Err(());
    }
    Ok((len.wrapping_sub(1) & (MAX_HELD_LEN as u32 - 1)) + 1)
}

/// A packet at a hook.
pub trait Frame {
    /// The hook is the complete path: whatever it passes goes to the kernel.
    const COMPLETE: bool;
    /// The packet is on its way out.
    const EGRESS: bool;
    /// Return code: leave the packet to whoever is next.
    const PASS: i32;
    /// Return code: drop it.
    const DROP: i32;

    /// Address of the first byte (of the Ethernet header, if there is one).
    fn data(&self) -> usize;
    /// Address behind the last byte that can be read.
    fn data_end(&self) -> usize;
    /// Length of the frame in bytes, including what can't be read directly.
    fn len(&self) -> u32;
    /// Offset of the IP header: zero on devices without Ethernet header.
    fn l3(&self) -> usize;
    /// How many packets on the wire it stands for (GRO).
    fn segments(&self) -> u32;
    /// The payload of each but the last of them in bytes; zero if it is one packet.
    fn segment_payload(&self) -> u32;
    /// The interface that it arrived by or, at egress, leaves by.
    fn ifindex(&self) -> u32;
    /// Whether a VLAN tag was taken off by the hardware.
    fn has_vlan_tag(&self) -> bool;
    /// Makes the first `len` bytes readable, if the frame has that many.
    fn pull(&mut self, len: usize);
    /// Sets the bits of the packet's mark that are mh's to one of [`mh_common::abi::mark`].
    fn set_mark(&mut self, settings: &Settings, mark: u32);
    /// Applies the deltas to a transport checksum whose two bytes lie within the frame. Pointers are invalid afterwards.
    fn update_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), ()>;
    /// Writes two bytes at `offset` as they stand in memory, after a call that has moved the packet. Pointers are invalid afterwards.
    fn store(&mut self, offset: usize, value: u16) -> Result<(), ()>;
    /// Sends the frame out as it is; returns the hook's return code.
    fn redirect(&mut self, ifindex: u32) -> i32;
    /// Sends the packet out with the kernel finding the Ethernet addresses. `family` is AF_INET or AF_INET6; a `next_hop` of zero
    /// makes the kernel look up the route by the packet's destination. The last that is done with a frame: where the headers are
    /// is not known afterwards.
    fn redirect_neighbour(&mut self, ifindex: u32, family: u8, next_hop: [u32; 4]) -> i32;
    /// The context for helpers.
    fn context(&self) -> *mut c_void;

    /// Replaces the two bytes at `offset` within the TCP header at `l4`, and mends the header's checksum. Pointers are invalid
    /// afterwards.
    #[inline(always)]
    fn replace_in_tcp(&mut self, l4: usize, offset: usize, old: u16, new: u16) -> Result<(), ()> {
        // A word at an odd offset lies across two of the words that the checksum is made of: its bytes count the other way round.
        let odd = offset & 1 != 0;
        let delta = if odd { Delta::word(old.swap_bytes(), new.swap_bytes()) } else { Delta::word(old, new) };
        self.update_l4_checksum(L4Checksum {
            offset: l4 + wire::TCP_CHECKSUM,
            optional: false,
            address_delta: Delta::NONE,
            port_delta: delta,
        })?;
        self.store(l4 + offset, new)
    }

    /// A pointer to a `T` at `offset` bytes from the start of the frame, if all of it can be read.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = opaque(self.data() + offset);
        // VERIFIER: the comparison must be on the very pointer that is dereferenced; any other form of it is "invalid access
        // to packet" on every kernel.
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        Some(start as *mut T)
    }

    /// The first `LEN` bytes, if all of them can be read.
    #[inline(always)]
    fn head<const LEN: usize>(&self) -> Option<Head<LEN>> {
        // SAFETY: `at` checked the bounds.
        self.at::<[u8; LEN]>(0).map(|start| unsafe { Head::new(start as usize) })
    }

    /// Reads a `T` as it stands in memory.
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked the bounds.
        self.at::<T>(offset).map(|p| unsafe { T::load::<0>(p as usize) })
    }

    /// Writes a `T` as it stands in memory.
    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Result<(), ()> {
        let p = self.at::<T>(offset).ok_or(())?;
        // SAFETY: `at` checked the bounds; packet memory is writable at both hooks.
        unsafe { value.store::<0>(p as usize) };
        Ok(())
    }
}

/// A packet at TC ingress or, with `EGRESS`, TC egress.
pub struct TcFrame<const EGRESS: bool> {
    ctx: TcContext,
    l3: usize,
}

impl<const EGRESS: bool> TcFrame<EGRESS> {
    /// Wraps the hook's context, as if the device had an Ethernet header.
    #[inline(always)]
    pub const fn new(ctx: TcContext) -> Self {
        Self { ctx, l3: wire::ETHERNET_LEN }
    }

    /// Takes note of whether the device has an Ethernet header.
    #[inline(always)]
    pub const fn set_device(&mut self, interface: &Interface) {
        // VERIFIER: arithmetic and not a branch, so that everything behind it is verified once.
        self.l3 = wire::ETHERNET_LEN * (1 - ((interface.flags / abi::INTERFACE_L3) & 1) as usize);
    }

    #[inline(always)]
    const fn skb(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// The hook's context.
    #[inline(always)]
    pub const fn tc_context(&self) -> &TcContext {
        &self.ctx
    }

    /// The EtherType that the kernel goes by, in host byte order.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        // SAFETY: the context is valid for the program's whole run.
        u16::from_be(unsafe { (*self.skb()).protocol } as u16)
    }

    /// The bits of the packet's mark that are mh's.
    #[inline(always)]
    pub fn mark(&self, settings: &Settings) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        (unsafe { (*self.skb()).mark } & settings.mark_mask) >> (settings.mark_shift & 31)
    }

    /// What the program before this one left in the packet's control buffer.
    #[inline(always)]
    pub fn note(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb()).cb[0] }
    }

    /// Leaves a note to the next program.
    #[inline(always)]
    pub fn set_note(&mut self, note: u32) {
        // SAFETY: as above, and the control buffer may be written.
        unsafe { (*self.skb()).cb[0] = note };
    }

    /// Whether the machine received the packet (and forwards it) and did not make it itself. For egress.
    #[inline(always)]
    pub fn is_forwarded(&self) -> bool {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb()).ingress_ifindex != 0 }
    }

    /// The socket that sends the packet, if it is a whole one (no handshake's or TIME-WAIT's). For egress.
    #[inline(always)]
    pub fn socket(&self) -> Option<*mut bpf_sock> {
        // SAFETY: the context is valid for the program's whole run; the helper takes the context's socket once it is not null.
        unsafe {
            let socket = (*self.skb()).__bindgen_anon_2.sk;
            if socket.is_null() {
                return None;
            }
            let full = bpf_sk_fullsock(socket);
            if full.is_null() { None } else { Some(full) }
        }
    }

    /// Copies the frame from its first byte on into `to`; `len` bytes.
    #[inline(always)]
    pub fn copy_out(&self, to: &mut [u8; MAX_HELD_LEN], len: u32) -> Result<(), ()> {
        let len = held_len(len)?;
        // SAFETY: the helper writes `len` bytes, which the buffer has.
        match unsafe { bpf_skb_load_bytes(self.skb().cast(), 0, to.as_mut_ptr().cast(), len) } {
            0 => Ok(()),
            _ => Err(()),
        }
    }

    /// Makes the frame what `copy_out` copied: `len` bytes. Pointers are invalid afterwards.
    #[inline(always)]
    pub fn copy_in(&mut self, from: &[u8; MAX_HELD_LEN], len: u32) -> Result<(), ()> {
        let len = held_len(len)?;
        // SAFETY: helper calls on the hook's own context; the buffer has `len` bytes.
        unsafe {
            if bpf_skb_change_tail(self.skb(), len, 0) != 0 {
                return Err(());
            }
            match bpf_skb_store_bytes(self.skb(), 0, from.as_ptr().cast(), len, RECOMPUTE_CHECKSUM) {
                0 => Ok(()),
                _ => Err(()),
            }
        }
    }

    /// Cuts the frame to its first `len` bytes; what stood for several segments is one packet afterwards. Pointers are invalid afterwards.
    #[inline(always)]
    pub fn cut(&mut self, len: usize) -> Result<(), ()> {
        // SAFETY: a helper call on the hook's own context.
        match unsafe { bpf_skb_change_tail(self.skb(), len as u32, 0) } {
            0 => Ok(()),
            _ => Err(()),
        }
    }

    /// Replaces the bytes at `offset` by words as they stand in memory. Pointers are invalid afterwards.
    #[inline(always)]
    pub fn replace<const N: usize>(&mut self, offset: usize, words: &[u16; N]) -> Result<(), ()> {
        let len = size_of::<[u16; N]>() as u32;
        // SAFETY: a helper call on the hook's own context, with `len` live bytes.
        match unsafe { bpf_skb_store_bytes(self.skb(), offset as u32, words.as_ptr().cast(), len, RECOMPUTE_CHECKSUM) }
        {
            0 => Ok(()),
            _ => Err(()),
        }
    }

    /// Whether the transport checksum at `offset` holds the sum of the pseudo-header only, and the device adds the rest
    /// (CHECKSUM_PARTIAL). Pointers are invalid afterwards.
    ///
    /// No helper tells. One that changes a checksum by something that is not in the pseudo-header leaves such a field as it is.
    #[inline(always)]
    pub fn is_checksum_partial(&mut self, offset: usize) -> Result<bool, ()> {
        let before: u16 = self.read(offset).ok_or(())?;
        // SAFETY: a helper call on the hook's own context; the kernel checks the offset.
        if unsafe { bpf_l4_csum_replace(self.skb(), offset as u32, 0, 1, 0) } != 0 {
            return Err(());
        }
        let after: u16 = self.read(offset).ok_or(())?;
        self.write(offset, before)?;
        Ok(after == before)
    }

    /// Lets the frame come in by the interface; returns the hook's return code.
    #[inline(always)]
    pub fn receive(&mut self, ifindex: u32) -> i32 {
        // SAFETY: a helper call without pointers.
        unsafe { bpf_redirect(ifindex, BPF_F_INGRESS) as i32 }
    }

    /// Lets a copy of the frame come in by the interface again. Pointers are invalid afterwards.
    #[inline(always)]
    pub fn receive_copy(&mut self, ifindex: u32) -> Result<(), ()> {
        // SAFETY: a helper call on the hook's own context.
        match unsafe { bpf_clone_redirect(self.skb(), ifindex, BPF_F_INGRESS) } {
            0 => Ok(()),
            _ => Err(()),
        }
    }
}

impl<const OUT: bool> Frame for TcFrame<OUT> {
    const COMPLETE: bool = true;
    const EGRESS: bool = OUT;
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
    fn l3(&self) -> usize {
        self.l3
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
    fn segment_payload(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb()).gso_size }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb()).ifindex }
    }

    #[inline(always)]
    fn set_mark(&mut self, settings: &Settings, mark: u32) {
        let ours = (mark << (settings.mark_shift & 31)) & settings.mark_mask;
        // SAFETY: the context is valid for the program's whole run, and the mark may be written.
        unsafe { (*self.skb()).mark = (*self.skb()).mark & !settings.mark_mask | ours };
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
    fn store(&mut self, offset: usize, value: u16) -> Result<(), ()> {
        let bytes = value.to_ne_bytes();
        // SAFETY: a helper call on the hook's own context, with two live bytes.
        match unsafe { bpf_skb_store_bytes(self.skb(), offset as u32, bytes.as_ptr().cast(), 2, 0) } {
            0 => Ok(()),
            _ => Err(()),
        }
    }

    #[inline(always)]
    fn redirect(&mut self, ifindex: u32) -> i32 {
        // SAFETY: a helper call without pointers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    #[inline(always)]
    fn redirect_neighbour(&mut self, ifindex: u32, family: u8, next_hop: [u32; 4]) -> i32 {
        // The helper takes packets with an Ethernet header only; without one the kernel would drop them.
        // SAFETY: a helper call on the hook's own context.
        if self.l3 == 0 && unsafe { bpf_skb_change_head(self.skb(), wire::ETHERNET_LEN as u32, 0) } != 0 {
            return Self::DROP;
        }
        let mut params = RedirectNeighbour { family: family as u32, next_hop };
        // VERIFIER: a length of zero stands for no parameters, and no null pointer: the compiler may choose pointer and length in two
        // branches, and 6.1 then sees a null pointer with a length.
        let len = if next_hop == [0; 4] { 0 } else { size_of::<RedirectNeighbour>() as i32 };
        let params = (&raw mut params).cast();
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

    /// The hook's context.
    #[inline(always)]
    pub const fn xdp_context(&self) -> &XdpContext {
        &self.ctx
    }
}

impl Frame for XdpFrame {
    const COMPLETE: bool = false;
    const EGRESS: bool = false;
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
    fn l3(&self) -> usize {
        wire::ETHERNET_LEN
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn set_mark(&mut self, _settings: &Settings, _mark: u32) {}

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
    fn store(&mut self, offset: usize, value: u16) -> Result<(), ()> {
        self.write(offset, value)
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

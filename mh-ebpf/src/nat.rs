//! Bindings: the outside port of an inside host's port, per uplink.
//!
//! RFC 4787 REQ-1 to REQ-4, RFC 5382 REQ-1 and REQ-7, RFC 5508 REQ-1, RFC 6888 REQ-8 and REQ-11; candidates: [`mh_common::ports`]; roles
//! and lifetime: [`mh_common::binding`]. A port on which a socket of the machine itself would take the remote's packets is not used.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use mh_common::{
    abi::{self, Uplink},
    address::Address,
    binding::{self, End, Inside, Outside, Peer, PortRequest},
    flow::State,
    hash, time,
    verdict::Verdict,
};

use crate::{
    access::{Frame, TcFrame},
    conntrack::Bound,
    embryo, limit,
    maps::{self, Tables},
    parse::{Header, Packet, Transport},
    port::Taken,
    track::Scene,
};

/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;
/// The kernel's states of sockets that are connected to nobody: TCP's that listen, and UDP's.
const TCP_LISTEN: u32 = 10;
const TCP_CLOSE: u32 = 7;

/// The outside address that all bindings of an inside host on this uplink get.
#[inline(always)]
pub fn outside_address<Fam: Tables>(host: Fam::Address, index: u8, scene: &Scene) -> Option<Fam::Address> {
    Fam::pool(index, hash::host(scene.settings.seed, host) as u32)
}

/// The binding that the packet's source has on this uplink, if it can serve a new flow.
#[inline(always)]
pub fn bound<Fam: Tables>(packet: &Packet<Fam::Address>, index: u8, scene: &Scene) -> Option<Mapping<Fam::Address>> {
    let key = &packet.key;
    let address = if packet.transport == Transport::OTHER { key.dst } else { key.src };
    let end = End { address, port: key.sport, protocol: key.protocol, uplink: index };
    let (address, port) = match Fam::by_inside().get_ptr(end) {
        // SAFETY: a live map value that is read.
        Some(binding) => unsafe { ((*binding).address, (*binding).port) },
        None => {
            let end = embryo::find::<Fam>(key, index, scene).end::<Fam>(key, scene)?;
            (end.address, end.port)
        }
    };
    (Fam::owners(address) >> (index & 31) & 1 != 0).then_some(Mapping { address, port, embryonic: false })
}

/// What a source is translated to on an uplink.
#[derive(Clone, Copy)]
pub struct Mapping<A> {
    /// The outside address.
    pub address: A,
    /// The outside port or ICMP identifier, big-endian in memory.
    pub port: u16,
    /// The binding was made with the flow that it is for, which is embryonic.
    pub embryonic: bool,
}

impl<A: Address> Mapping<A> {
    /// What the binding by its inside end says.
    #[inline(always)]
    const fn of(outside: &Outside<A>) -> Self {
        Self { address: outside.address, port: outside.port, embryonic: false }
    }
}

/// Whether a packet without ports is from the inside host that talks to its destination by this uplink.
#[inline(always)]
pub fn is_owner<Fam: Tables>(packet: &Packet<Fam::Address>, index: u8) -> bool {
    let key = &packet.key;
    let end = End { address: key.dst, port: 0, protocol: key.protocol, uplink: index };
    inside::<Fam>(end).is_none_or(|inside| inside.address == key.src)
}

/// What the packet's source is translated to on this uplink, by a binding that is made if there is none. `bound`: what is known of the source's bindings.
/// `first_len`: the length of a packet whose flow may be embryonic in a new binding; else zero. A binding that has an embryonic flow already is
/// none here, unless it is by another CPU at the same time: [`embryo::hatch_source`] comes before.
#[inline(always)]
pub fn bind<Fam: Tables + Header, F: Frame>(
    frame: &F,
    packet: &Packet<Fam::Address>,
    index: u8,
    uplink: &Uplink,
    bound: &Bound,
    first_len: u16,
    scene: &Scene,
) -> Result<Mapping<Fam::Address>, Verdict> {
    let now = scene.now;
    let key = &packet.key;
    let host = hash::host(scene.settings.seed, key.src);
    let address = Fam::pool(index, host as u32).ok_or(Verdict::NoUplink)?;
    let protocol = key.protocol;
    let expires = now.wrapping_add(State::New.timeout(protocol, &scene.settings.timeouts));
    if packet.transport == Transport::OTHER {
        return bind_remote::<Fam>(packet, index, address, expires, scene);
    }
    let inside_end = End { address: key.src, port: key.sport, protocol, uplink: index };
    if !bound.unknown
        && let Some(binding) = Fam::by_inside().get_ptr_mut(inside_end)
    {
        // SAFETY: a live map value; `expires` is one word, the rest is never written again.
        let binding = unsafe { &mut *binding };
        if Fam::owners(binding.address) >> (index & 31) & 1 != 0 {
            binding.expires = time::later(expires, binding.expires);
            permit::<Fam>(packet, binding, expires, scene);
            return Ok(Mapping::of(binding));
        }
        // The uplink has this address no more: the binding to it serves no new flow.
        let _ = Fam::by_outside().remove(End { address: binding.address, port: binding.port, protocol, uplink: index });
        let _ = Fam::by_inside().remove(inside_end);
    }
    if !limit::may_bind::<Fam>(key.src, scene) {
        return Err(Verdict::SourceBindings);
    }
    let request = PortRequest {
        inside: Inside {
            created: now,
            remote: key.dst,
            remote_port: key.dport,
            embryo: first_len,
            ..Inside::of(key.src, key.sport, 0)
        },
        outside: End { address, port: 0, protocol, uplink: index },
        // The half by which its outside address is not chosen.
        host: (host >> u32::BITS) as u32,
        first_port: uplink.first_port,
        last_port: uplink.last_port,
        transport: packet.transport.number(),
        // The machine's own socket sits on its own port, whether that is in the range or not.
        own: (F::EGRESS && address == key.src) as u8,
        port: 0,
    };
    let Taken { port, fresh, own } = Fam::take_port(frame, request)?;
    let outside_end = End { address, port, protocol, uplink: index };
    let outside = Outside::to(&outside_end, 0, now, expires);
    permit::<Fam>(packet, &outside, expires, scene);
    // The source first: who finds the port known for it finds the source known, too.
    Fam::note(key.src, key.sport, protocol);
    Fam::note(address, port, protocol);
    if fresh && first_len != 0 {
        limit::bound::<Fam>(key.src);
        return Ok(Mapping { embryonic: true, ..Mapping::of(&outside) });
    }
    if own {
        let _ = embryo::hatch::<Fam>(outside_end, false);
    }
    match Fam::by_inside().insert(inside_end, outside, BPF_NOEXIST as u64) {
        Ok(()) => {
            if !own {
                limit::bound::<Fam>(key.src);
            }
            Ok(Mapping::of(&outside))
        }
        Err(error) => {
            if !own {
                let _ = Fam::by_outside().remove(outside_end);
            }
            // Another CPU bound the same source in the meantime: its binding holds.
            match Fam::by_inside().get_ptr(inside_end) {
                // SAFETY: a live map value that is read.
                Some(binding) if error == maps::EEXIST => Ok(Mapping::of(unsafe { &*binding })),
                _ => Err(Verdict::BindingsFull),
            }
        }
    }
}

/// The binding of a protocol without ports: the remote address belongs to one inside host at a time.
#[inline(always)]
fn bind_remote<Fam: Tables + Header>(
    packet: &Packet<Fam::Address>,
    index: u8,
    address: Fam::Address,
    expires: time::Tick,
    scene: &Scene,
) -> Result<Mapping<Fam::Address>, Verdict> {
    let key = &packet.key;
    let end = End { address: key.dst, port: 0, protocol: key.protocol, uplink: index };
    if let Some(taken) = Fam::by_outside().get_ptr(end) {
        // SAFETY: a live map value that is copied.
        let taken = unsafe { *taken };
        if taken.in_use() && taken.address != key.src {
            return Err(Verdict::ProtocolInUse);
        }
    } else if !limit::may_bind::<Fam>(key.src, scene) {
        return Err(Verdict::SourceBindings);
    }
    let inside = Inside::of(key.src, 0, 0);
    let outside = Outside::to(&End { address, ..end }, 0, scene.now, expires);
    Fam::by_outside().insert(end, inside, BPF_ANY as u64).map_err(|_| Verdict::BindingsFull)?;
    if Fam::by_inside().get_ptr(end).is_none() {
        limit::bound::<Fam>(key.src);
    }
    Fam::by_inside().insert(end, outside, BPF_ANY as u64).map_err(|_| Verdict::BindingsFull)?;
    Ok(Mapping::of(&outside))
}

/// With address-dependent filtering, notes that the packet's destination may send to the binding until then, or for as long as it may
/// already.
#[inline(always)]
fn permit<Fam: Tables>(
    packet: &Packet<Fam::Address>,
    binding: &Outside<Fam::Address>,
    expires: time::Tick,
    scene: &Scene,
) {
    if scene.settings.flags & abi::ADDRESS_DEPENDENT != 0 {
        let protocol = packet.key.protocol;
        let outside = End { address: binding.address, port: binding.port, protocol, uplink: binding.uplink };
        let peer = Peer { remote: packet.key.dst, outside };
        let until = Fam::peers().get_ptr(peer).map_or(expires, |until| {
            // SAFETY: a live map value of one word.
            time::later(expires, unsafe { *until })
        });
        let _ = Fam::peers().insert(peer, until, BPF_ANY as u64);
    }
}

/// The inside end of the binding that is in use at this outside end.
#[inline(always)]
pub fn inside<Fam: Tables>(end: End<Fam::Address>) -> Option<Inside<Fam::Address>> {
    // SAFETY: a live map value that is copied.
    let inside = unsafe { *Fam::by_outside().get_ptr(end)? };
    inside.in_use().then_some(inside)
}

/// Whether a binding stands for an inside host still: it has not expired, and no socket of the machine itself, made after the binding,
/// wants packets from `remote` to its `address`. A port forward does not expire, and has precedence over sockets but those that are
/// connected to the remote: what the machine itself asked for (a probe, a name) is not answered to an inside host.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "two ends, each an address and a port, and what they are looked up in")]
pub fn is_open<Fam: Tables + Header, F: Frame>(
    frame: &F,
    packet: &Packet<Fam::Address>,
    inside: &Inside<Fam::Address>,
    end: End<Fam::Address>,
    address: Fam::Address,
    port: u16,
    remote: Fam::Address,
    remote_port: u16,
    scene: &Scene,
) -> bool {
    let forward = inside.flags & binding::STATIC as u16 != 0;
    let inside_end = if packet.transport == Transport::OTHER { end } else { inside.end(&end) };
    let expires = if inside.has_embryo() {
        Some(inside.embryo_binding(&end, &scene.settings.timeouts).expires)
    } else {
        // SAFETY: a live map value of which a word is read.
        Fam::by_inside().get_ptr(inside_end).map(|binding| unsafe { (*binding).expires })
    };
    if !forward && expires.is_none_or(|expires| time::passed(scene.now, expires)) {
        return false;
    }
    match find_socket::<Fam, _, false>(frame, packet.transport, address, port, remote, remote_port) {
        Some(socket) => forward && !socket.is_connected(),
        None => true,
    }
}

/// Whether the filter lets the packet's source send to this binding (RFC 4787 REQ-8, RFC 5382 REQ-3).
#[inline(always)]
pub fn lets_in<Fam: Tables>(
    packet: &Packet<Fam::Address>,
    inside: &Inside<Fam::Address>,
    end: End<Fam::Address>,
    scene: &Scene,
) -> bool {
    if scene.settings.flags & abi::ADDRESS_DEPENDENT == 0 || inside.flags & binding::STATIC as u16 != 0 {
        return true;
    }
    if packet.transport == Transport::OTHER {
        // The binding itself is with this remote address and no other.
        return true;
    }
    match Fam::peers().get_ptr(Peer { remote: packet.key.src, outside: end }) {
        // SAFETY: a live map value of one word.
        Some(until) => !time::passed(scene.now, unsafe { *until }),
        None => false,
    }
}

/// The kernel's `struct bpf_sock_tuple` for IPv4 (its first 12 bytes) or IPv6.
#[repr(C)]
struct SocketTuple<A> {
    remote: A,
    local: A,
    remote_port: u16,
    local_port: u16,
}

/// Whether a socket of the machine itself would take a packet from the remote to this address and port.
#[inline(always)]
pub fn has_socket<Fam: Header, F: Frame>(
    frame: &F,
    transport: Transport,
    address: Fam::Address,
    port: u16,
    remote: Fam::Address,
    remote_port: u16,
) -> bool {
    find_socket::<Fam, _, false>(frame, transport, address, port, remote, remote_port).is_some()
}

/// Whether the machine itself would take the TCP connection that the packet opens: it listens, or has a connection of the same ends in
/// TIME-WAIT, whose place a new one may take (RFC 9293 section 3.6.1) and which [`has_socket`] takes for none.
#[inline(always)]
pub fn is_accepted<Fam: Header>(frame: &TcFrame<false>, packet: &Packet<Fam::Address>) -> bool {
    let key = &packet.key;
    find_socket::<Fam, _, true>(frame, Transport::TCP, key.dst, key.dport, key.src, key.sport).is_some()
}

/// Whether what the machine itself answers to the packet leaves by the packet's interface and with the address that it came to, come what
/// may: its socket is bound to the one and connected from the other, as those of probes are.
#[inline(always)]
pub fn is_answered_here<Fam: Header>(frame: &TcFrame<false>, packet: &Packet<Fam::Address>) -> bool {
    let key = &packet.key;
    find_socket::<Fam, _, false>(frame, packet.transport, key.dst, key.dport, key.src, key.sport)
        .is_some_and(|socket| socket.is_connected() && socket.device != 0)
}

/// What is known of a socket of the machine itself.
#[derive(Clone, Copy)]
struct Socket {
    /// The kernel's number for its state.
    state: u32,
    /// The interface that it is bound to; zero: none.
    device: u32,
}

impl Socket {
    #[inline(always)]
    const fn is_connected(self) -> bool {
        self.state != TCP_LISTEN && self.state != TCP_CLOSE
    }
}

/// The socket of the machine itself that would take a packet from the remote to this address and port; with `TIME_WAIT`, a TCP connection
/// in that state counts too.
#[inline(always)]
fn find_socket<Fam: Header, F: Frame, const TIME_WAIT: bool>(
    frame: &F,
    transport: Transport,
    address: Fam::Address,
    port: u16,
    remote: Fam::Address,
    remote_port: u16,
) -> Option<Socket> {
    let mut tuple = SocketTuple { remote, local: address, remote_port, local_port: port };
    let (ctx, tuple, size) = (frame.context(), (&raw mut tuple).cast(), size_of::<SocketTuple<Fam::Address>>() as u32);
    // SAFETY: the tuple has the kernel's layout and lives through the call; a socket that is found is released at once.
    unsafe {
        let socket = match transport {
            Transport::TCP if TIME_WAIT => bpf_skc_lookup_tcp(ctx, tuple, size, CURRENT_NETNS, 0),
            Transport::TCP => bpf_sk_lookup_tcp(ctx, tuple, size, CURRENT_NETNS, 0),
            Transport::UDP => bpf_sk_lookup_udp(ctx, tuple, size, CURRENT_NETNS, 0),
            _ => return None,
        };
        if socket.is_null() {
            return None;
        }
        let found = Socket { state: (*socket).state, device: (*socket).bound_dev_if };
        bpf_sk_release(socket.cast());
        Some(found)
    }
}

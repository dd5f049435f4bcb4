//! Bindings: the outside port of an inside host's port, per uplink.
//!
//! RFC 4787 REQ-1 to REQ-4, RFC 5382 REQ-1 and REQ-7, RFC 5508 REQ-1, RFC 6888 REQ-11; candidates: [`mh_common::ports`]; roles and
//! lifetime: [`mh_common::binding`]. A port on which a socket of the machine itself would take the remote's packets is not used.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_prandom_u32, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use mh_common::{
    abi::{Settings, Uplink},
    binding::{End, Inside, Outside},
    flow::State,
    ports::{Candidates, MAX_TRIES, Range},
    time::{self, Tick},
    verdict::Verdict,
};

use crate::{
    access::{Frame, TcFrame},
    maps::Tables,
    parse::{Header, Packet, Transport},
};

/// `-EEXIST`, as map updates return it.
const EEXIST: i32 = -17;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;

/// The binding of the packet's source on this uplink; makes one if there is none.
#[inline(always)]
pub fn bind<Fam: Tables + Header>(
    frame: &TcFrame,
    packet: &Packet<Fam::Address>,
    index: u8,
    uplink: &Uplink,
    settings: &Settings,
    now: Tick,
) -> Result<Outside<Fam::Address>, Verdict> {
    let key = &packet.key;
    let address = Fam::route(uplink).address;
    let protocol = key.protocol;
    let inside_end = End { address: key.src, port: key.sport, protocol, uplink: index };
    let expires = now.wrapping_add(State::New.timeout(protocol, &settings.timeouts));
    if let Some(binding) = Fam::by_inside().get_ptr_mut(inside_end) {
        // SAFETY: a live map value; `expires` is one word, the rest is never written again.
        let binding = unsafe { &mut *binding };
        if binding.address == address {
            binding.expires = time::later(expires, binding.expires);
            return Ok(*binding);
        }
        // The uplink has a new address: the binding to the old one serves no new flow.
        let _ = Fam::by_outside().remove(End { address: binding.address, port: binding.port, protocol, uplink: index });
        let _ = Fam::by_inside().remove(inside_end);
    }
    let plain = packet.transport == Transport::EchoRequest;
    let range = if plain { Range::ALL } else { Range { first: uplink.first_port, last: uplink.last_port } };
    // SAFETY: a helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() } as u64;
    let mut candidates = Candidates::new(u16::from_be(key.sport), range, random, plain);
    let inside = Inside { address: key.src, port: key.sport, reserved: 0 };
    for n in 0..MAX_TRIES {
        let port = candidates.get(n).to_be();
        let outside_end = End { address, port, protocol, uplink: index };
        if Fam::by_outside().get_ptr(outside_end).is_some() || is_local::<Fam>(frame, packet, address, port) {
            continue;
        }
        match Fam::by_outside().insert(outside_end, inside, BPF_NOEXIST as u64) {
            Ok(()) => {}
            Err(EEXIST) => continue,
            Err(_) => return Err(Verdict::BindingsFull),
        }
        let outside = Outside { address, port, uplink: index, reserved: 0, created: now, expires };
        return match Fam::by_inside().insert(inside_end, outside, BPF_NOEXIST as u64) {
            Ok(()) => Ok(outside),
            Err(error) => {
                let _ = Fam::by_outside().remove(outside_end);
                // Another CPU bound the same source in the meantime: its binding holds.
                match Fam::by_inside().get_ptr(inside_end) {
                    // SAFETY: a live map value that is copied.
                    Some(binding) if error == EEXIST => Ok(unsafe { *binding }),
                    _ => Err(Verdict::BindingsFull),
                }
            }
        };
    }
    Err(Verdict::PortsExhausted)
}

/// The kernel's `struct bpf_sock_tuple` for IPv4 (its first 12 bytes) or IPv6.
#[repr(C)]
struct SocketTuple<A> {
    remote: A,
    local: A,
    remote_port: u16,
    local_port: u16,
}

/// Whether a socket of the machine itself would take a packet from the remote to this outside port.
#[inline(always)]
fn is_local<Fam: Header>(frame: &TcFrame, packet: &Packet<Fam::Address>, address: Fam::Address, port: u16) -> bool {
    let mut tuple =
        SocketTuple { remote: packet.key.dst, local: address, remote_port: packet.key.dport, local_port: port };
    let (ctx, tuple, size) = (frame.context(), (&raw mut tuple).cast(), size_of::<SocketTuple<Fam::Address>>() as u32);
    // SAFETY: the tuple has the kernel's layout and lives through the call; a socket that is found is released at once.
    unsafe {
        let socket = match packet.transport {
            Transport::Tcp => bpf_sk_lookup_tcp(ctx, tuple, size, CURRENT_NETNS, 0),
            Transport::Udp => bpf_sk_lookup_udp(ctx, tuple, size, CURRENT_NETNS, 0),
            Transport::EchoRequest | Transport::EchoReply => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

//! Embryonic flows: those of one packet, which stand in their binding by its outside end and nowhere else (see [`mh_common::binding`]).
//!
//! From outside, an answer finds its flow at the port that it comes to. From inside, the binding is looked for at the few ports that follow from its
//! source, of those of which something is known. Whatever needs more of the flow than its one packet hatches it first: the binding is
//! entered by its inside end too, and both halves in the conntrack.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use mh_common::{
    abi,
    address::{Ipv4, V4},
    binding::{End, Inside},
    flow::{Entry, Key},
    hash,
    ports::{self, Candidates, KEYED},
    verdict::Verdict,
};

use crate::{
    maps::{self, Tables},
    nat,
    parse::{Header as _, Packet, Transport},
    track::Scene,
};

/// How many embryonic flows of one source are hatched for one packet. More than one it has only if several of its first packets, each to another
/// remote end, went by as many uplinks.
const HATCH_TRIES: u32 = 4;

/// Where a binding with an embryonic flow is, in one number: the uplink in the lowest byte, then the port (big-endian in memory), then what it is.
#[derive(Clone, Copy)]
pub struct Embryo(u32);

impl Embryo {
    /// It is there.
    const THERE: u32 = 1 << 24;
    /// The flow is that which was asked for, not another one of the same source.
    const ASKED_FOR: u32 = 1 << 25;

    /// Whether its flow is that which was asked for.
    #[inline(always)]
    pub const fn is_asked_for(self) -> bool {
        self.0 & Self::ASKED_FOR != 0
    }

    /// The outside end of the binding, of the source of packets with this key; `None` if there is no such binding.
    #[inline(always)]
    pub fn end<Fam: Tables>(self, key: &Key<Fam::Address>, scene: &Scene) -> Option<End<Fam::Address>> {
        if self.0 & Self::THERE == 0 {
            return None;
        }
        let uplink = self.0 as u8;
        let address = nat::outside_address::<Fam>(key.src, uplink, scene)?;
        Some(End { address, port: (self.0 >> u8::BITS) as u16, protocol: key.protocol, uplink })
    }
}

/// Looks for a binding of the source of packets with this key that has an embryonic flow, on one uplink.
#[inline(always)]
pub fn find<Fam: Tables>(key: &Key<Fam::Address>, uplink: u8, scene: &Scene) -> Embryo {
    Embryo(Fam::find_embryo(hash::host(scene.settings.seed, key.src), key, uplink))
}

/// The same, on all uplinks: that with the flow that has the key itself, or else another one.
#[inline(always)]
pub fn find_any<Fam: Tables>(key: &Key<Fam::Address>, scene: &Scene) -> Embryo {
    let host = hash::host(scene.settings.seed, key.src);
    let mut uplink = 0u8;
    // VERIFIER: unknown from the beginning: else each round's outcome would be a state of its own. The bounds are as in `conntrack::bound`.
    let mut found = scene.live.zero;
    while (uplink as usize) < abi::MAX_UPLINKS && (uplink as u32) < scene.settings.uplinks {
        // A higher number tells more.
        found = found.max(Fam::find_embryo(host, key, uplink));
        uplink += 1;
    }
    Embryo(found)
}

/// [`find`] for IPv4. `host`: the source's number.
#[inline(always)]
pub fn find4(host: u64, key: &Key<Ipv4>, uplink: u8) -> u32 {
    let [src, dst] = [key.src, key.dst].map(|address| V4::words(address)[0]);
    mh_find_embryo4(
        host,
        src,
        dst,
        key.sport as u32 | (key.dport as u32) << u16::BITS,
        key.protocol as u32 | (uplink as u32) << u8::BITS,
    )
}

/// [`find4`], of which arguments and answer are numbers.
// VERIFIER: global, so that it is walked once and not for every state of its callers; with numbers as arguments, as 5.10 takes no others.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_find_embryo4(host: u64, src: u32, dst: u32, ports: u32, how: u32) -> u32 {
    let key = Key::new(Ipv4::from_be(src), Ipv4::from_be(dst), ports as u16, (ports >> u16::BITS) as u16, how as u8);
    search::<V4>(host, &key, (how >> u8::BITS) as u8).unwrap_or(0)
}

#[inline(always)]
fn search<Fam: Tables>(host: u64, key: &Key<Fam::Address>, uplink: u8) -> Option<u32> {
    let address = Fam::pool(uplink, host as u32)?;
    let record = maps::uplink(uplink)?;
    let range = ports::Range { first: record.first_port, last: record.last_port };
    let mut candidates = Candidates::new(u16::from_be(key.sport), range, (host >> u32::BITS) as u32, 0, false);
    for n in 0..KEYED {
        let port = candidates.get(n).to_be();
        if Fam::is_unknown(address, port, key.protocol) {
            continue;
        }
        let Some(inside) = Fam::by_outside().get_ptr(End { address, port, protocol: key.protocol, uplink }) else {
            continue;
        };
        // SAFETY: a live map value that is read.
        let inside = unsafe { &*inside };
        if inside.has_embryo() && inside.address == key.src && inside.port == key.sport {
            let asked_for = if inside.is_embryonic(key.dst, key.dport) { Embryo::ASKED_FOR } else { 0 };
            return Some(uplink as u32 | (port as u32) << u8::BITS | Embryo::THERE | asked_for);
        }
    }
    None
}

/// The forward half of a packet's flow if that is embryonic.
#[inline(always)]
pub fn forward<Fam: Tables>(packet: &Packet<Fam::Address>, scene: &Scene) -> Option<Entry<Fam::Address>> {
    let key = &packet.key;
    let embryo = find_any::<Fam>(key, scene);
    if !embryo.is_asked_for() {
        return None;
    }
    let end = embryo.end::<Fam>(key, scene)?;
    // SAFETY: a live map value that is read.
    Some(unsafe { &*Fam::by_outside().get_ptr(end)? }.embryo_forward(&end))
}

/// Hatches what is embryonic of the source of packets with this key. Returns whether that was the flow of the key itself. Fails if there is no room.
#[inline(always)]
pub fn hatch_source<Fam: Tables>(packet: &Packet<Fam::Address>, scene: &Scene) -> Result<bool, Verdict> {
    let key = &packet.key;
    if !matches!(packet.transport, Transport::TCP | Transport::UDP) {
        return Ok(false);
    }
    for _ in 0..HATCH_TRIES {
        let embryo = find_any::<Fam>(key, scene);
        let Some(end) = embryo.end::<Fam>(key, scene) else { break };
        match hatch::<Fam>(end, false) {
            Ok(()) if embryo.is_asked_for() => return Ok(true),
            Ok(()) => {}
            Err(full @ (Verdict::BindingsFull | Verdict::ConntrackFull)) if embryo.is_asked_for() => return Err(full),
            // Somebody else has ended it in the meantime; or there is no room for a flow that this packet is not of.
            Err(_) => break,
        }
    }
    Ok(false)
}

/// Hatches the embryonic flow whose packets would leave as `sent` by this uplink, so that another flow of which that is true finds it.
#[inline(always)]
pub fn hatch_answered<Fam: Tables>(sent: &Key<Fam::Address>, uplink: u8) {
    let end = End { address: sent.src, port: sent.sport, protocol: sent.protocol, uplink };
    if nat::inside::<Fam>(end).is_some_and(|inside| inside.is_embryonic(sent.dst, sent.dport)) {
        let _ = hatch::<Fam>(end, false);
    }
}

/// Hatches the embryonic flow of a binding that gets another one, if it has one. Fails if there is no room.
#[inline(always)]
pub fn make_way<Fam: Tables>(inside: &Inside<Fam::Address>, end: End<Fam::Address>) -> Result<(), Verdict> {
    if !inside.has_embryo() {
        return Ok(());
    }
    match hatch::<Fam>(end, false) {
        // Another CPU has done it.
        Err(Verdict::NoFlow) => Ok(()),
        done => done,
    }
}

/// Hatches the embryonic flow of the binding with this outside end; `answered` says in which table. Fails if there is no room, or with [`Verdict::NoFlow`] if
/// it is no more, or its source got another binding on that uplink: by another CPU at the same time, or since the uplink's addresses changed.
// VERIFIER: a function of its own, for its stack.
#[inline(never)]
pub fn hatch<Fam: Tables>(end: End<Fam::Address>, answered: bool) -> Result<(), Verdict> {
    let inside = Fam::by_outside().get_ptr_mut(end).ok_or(Verdict::NoFlow)?;
    // SAFETY: a live map value, of which one word is written.
    let inside = unsafe { &mut *inside };
    if !inside.has_embryo() {
        return Err(Verdict::NoFlow);
    }
    let settings = maps::settings().ok_or(Verdict::NoFlow)?;
    let inside_end = inside.end(&end);
    match Fam::by_inside().insert(inside_end, inside.embryo_binding(&end, &settings.timeouts), BPF_NOEXIST as u64) {
        Ok(()) => {}
        Err(maps::EEXIST) => {
            let other = Fam::by_inside().get_ptr(inside_end).ok_or(Verdict::NoFlow)?;
            // SAFETY: a live map value that is read.
            if !unsafe { &*other }.is_to(&end) {
                return Err(Verdict::NoFlow);
            }
        }
        Err(_) => return Err(Verdict::BindingsFull),
    }
    let table = if answered { Fam::flows() } else { Fam::new_flows() };
    // SAFETY: as in `outbound::begin`.
    let half = unsafe { &mut *Fam::embryo().ok_or(Verdict::NoFlow)? };
    // The reply's first, so that no packet goes out that can't be answered. Both sources are known for the binding.
    *half = inside.embryo_reply(&end);
    table.insert(&inside.embryo_reply_key(&end), &*half, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)?;
    *half = inside.embryo_forward(&end);
    inside.embryo = 0;
    table.insert(&inside.embryo_key(&end), &*half, BPF_ANY as u64).map_err(|_| Verdict::ConntrackFull)
}

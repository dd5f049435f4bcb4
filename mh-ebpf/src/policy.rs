//! Policy: which rule matches a flow that is to begin, and which uplink it gets by that.
//!
//! The rules themselves and the choice among an uplink's slots are in [`mh_common::rules`] and [`mh_common::policy`]; here are the lookups
//! that they need. [`crate::outbound`] and [`crate::host`] ask for flows that begin, [`crate::track::fate`] for those that may have to, and
//! [`crate::explain`] for what people want to know: it is the same code for all of them.

use aya_ebpf::{bindings::BPF_ANY, maps::lpm_trie};
use mh_common::{
    address::{Ipv4, V4},
    hash::{self, HashMode},
    policy::{self, Choice, NO_SLOT, NO_UPLINK, Policy, Sticky, StickyKey},
    rules::{self, Action, Fields, InterfaceKey, PrefixKey, Rule, Side},
    time,
    verdict::Verdict,
};

use crate::{
    access::Frame,
    maps::{self, Tables},
    parse::{Header, Packet},
    track::Scene,
};

/// The interface of a packet that the machine itself sends: none.
const NO_INTERFACE: u32 = 0;

/// The rule for a packet: the first that matches, or [`Rule::NONE`].
#[inline(always)]
pub fn rule<Fam: Tables + Header, F: Frame>(frame: &F, packet: &Packet<Fam::Address>, host: bool) -> Rule {
    let ifindex = if host { NO_INTERFACE } else { frame.ifindex() };
    Fam::rule(packet, ifindex)
}

/// [`rule`] for IPv4.
#[inline(always)]
pub fn rule4(packet: &Packet<Ipv4>, ifindex: u32) -> Rule {
    let key = &packet.key;
    let ports = key.sport as u32 | (key.dport as u32) << 16;
    let protocol_tos = key.protocol as u32 | (packet.ip.tos as u32) << 8;
    bytemuck::cast(mh_rule4(V4::words(key.src)[0], V4::words(key.dst)[0], ports, protocol_tos, ifindex))
}

/// [`rule4`], of which arguments and answer are numbers.
// VERIFIER: global, so that it is walked once and not for every state of its callers; with numbers as arguments, as 5.10 takes no others.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mh_rule4(src: u32, dst: u32, ports: u32, protocol_tos: u32, ifindex: u32) -> u64 {
    let fields = Fields {
        protocol: protocol_tos as u8,
        tos: (protocol_tos >> 8) as u8,
        sport: ports as u16,
        dport: (ports >> 16) as u16,
    };
    bytemuck::cast(search::<V4>(Ipv4::from_be(src), Ipv4::from_be(dst), &fields, ifindex))
}

#[inline(always)]
fn search<Fam: Tables>(src: Fam::Address, dst: Fam::Address, fields: &Fields, ifindex: u32) -> Rule {
    let Some(head) = maps::rule_head() else { return Rule::NONE };
    if head.flags & rules::HAS_RULES == 0 {
        return Rule::NONE;
    }
    let Some(classifier) = maps::classifier(head.generation) else { return Rule::NONE };
    let interface = if head.flags & rules::ASKS_INTERFACE == 0 {
        None
    } else {
        maps::rules_of_interface(InterfaceKey { generation: head.generation, ifindex })
    };
    let from = if head.flags & rules::ASKS_FROM == 0 {
        None
    } else {
        Fam::rules_of(PrefixKey::new(head.generation, Side::From, src))
    };
    let to = if head.flags & rules::ASKS_TO == 0 {
        None
    } else {
        Fam::rules_of(PrefixKey::new(head.generation, Side::To, dst))
    };
    let first = classifier.first(
        fields,
        interface.unwrap_or(&classifier.any_interface),
        from.unwrap_or(&classifier.any_from),
        to.unwrap_or(&classifier.any_to),
    );
    maps::rules(head.generation).map_or(Rule::NONE, |list| list.rules[first])
}

/// The key of the trie of prefixes for one address.
#[inline(always)]
pub const fn exactly<A>(key: PrefixKey<A>) -> lpm_trie::Key<PrefixKey<A>> {
    lpm_trie::Key::new(u8::BITS * size_of::<PrefixKey<A>>() as u32, key)
}

/// What a rule makes of a packet before any uplink is chosen: an error unless a policy decides.
#[inline(always)]
pub const fn admit(rule: &Rule) -> Result<(), Verdict> {
    const DIRECT: u8 = Action::Direct as u8;
    const REJECT: u8 = Action::Reject as u8;
    const DROP: u8 = Action::Drop as u8;
    match rule.action {
        DIRECT => Err(Verdict::Direct),
        REJECT => Err(Verdict::RuleReject),
        DROP => Err(Verdict::RuleDrop),
        _ => Ok(()),
    }
}

/// The uplinks that a new flow under this policy can get now; none: none.
#[inline(always)]
fn candidates(policy: &Policy, scene: &Scene) -> u32 {
    let healthy = scene.live.healthy as u32;
    match policy.members & healthy {
        // The tier is lost, and the controller has not seen to it yet.
        0 => policy.eligible & healthy,
        turn => turn,
    }
}

/// Whether a new flow like this packet's would find an uplink.
#[inline(always)]
pub fn finds_uplink<Fam: Tables + Header, F: Frame>(
    frame: &F,
    packet: &Packet<Fam::Address>,
    host: bool,
    scene: &Scene,
) -> bool {
    let rule = rule::<Fam, F>(frame, packet, host);
    admit(&rule).is_ok() && maps::policy(rule.policy).is_some_and(|policy| candidates(policy, scene) != 0)
}

/// An uplink, how it was chosen, and whether that is because the source keeps it.
#[derive(Clone, Copy)]
pub struct Selected {
    /// The choice.
    pub choice: Choice,
    /// The source keeps it.
    pub sticky: bool,
}

/// The uplink for a new flow under a policy. `FOR_GOOD`: the source keeps it, if the policy says so; else nothing is remembered.
#[inline(always)]
pub fn select<Fam: Tables, const FOR_GOOD: bool>(
    packet: &Packet<Fam::Address>,
    index: u8,
    scene: &Scene,
) -> Result<Selected, Verdict> {
    let policy = maps::policy(index).ok_or(Verdict::NoUplink)?;
    let key = &packet.key;
    let sticky_key = StickyKey { source: key.src, policy: policy.id };
    if policy.sticky != 0
        && let Some(kept) = Fam::sticky().get_ptr_mut(sticky_key)
    {
        // SAFETY: a live map value of words, each read and written by itself; whatever another CPU writes in between is as good.
        let kept = unsafe { &mut *kept };
        let lasts = time::since(scene.now, kept.last) <= policy.sticky;
        if lasts && policy.eligible & scene.live.healthy as u32 & 1 << (kept.uplink & 31) != 0 {
            if FOR_GOOD {
                kept.last = scene.now;
            }
            let choice = Choice { uplink: kept.uplink & 31, passed_over: NO_UPLINK, slot: NO_SLOT };
            return Ok(Selected { choice, sticky: true });
        }
    }
    let candidates = candidates(policy, scene);
    if candidates == 0 {
        return Err(Verdict::NoUplink);
    }
    // An uplink's own policy has no slots, and whoever is alone needs none.
    let choice = if candidates & (candidates - 1) == 0 && policy::uplink_of(index).is_some() {
        Choice { uplink: candidates.trailing_zeros() as u8, passed_over: NO_UPLINK, slot: NO_SLOT }
    } else {
        let table = maps::slots(policy.table).ok_or(Verdict::NoUplink)?;
        let mode = HashMode::from_u32(policy.hash_mode);
        let hash = hash::flow(scene.settings.seed, mode, key.src, key.dst, key.sport, key.dport, key.protocol);
        policy::choose(table, candidates, hash)
    };
    if FOR_GOOD && policy.sticky != 0 {
        let kept = Sticky { last: scene.now, uplink: choice.uplink, reserved: [0; 3] };
        // A source that finds no room here is not kept for now: better than to refuse it.
        let _ = Fam::sticky().insert(sticky_key, kept, BPF_ANY as u64);
    }
    Ok(Selected { choice, sticky: false })
}

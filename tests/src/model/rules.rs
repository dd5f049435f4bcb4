//! The rules: what becomes of a packet.

use std::net::Ipv4Addr;

use mh_common::{
    abi::mark,
    time::{Tick, passed, since},
};

use super::send::next_mac;
use super::tables::{End, Half, Kind, MAINTENANCE, Model, OnDown, Owner, has_ports, least_timeout};
use super::wire::{ACK, Body, Datagram, FIN, Frame, Key, Part, RST, SYN, TCP, UDP};
use crate::rig::{TC_DROP, TC_NEXT, TC_REDIRECT, XDP_PASS, XDP_REDIRECT};

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the LAN.
    Lan,
    /// From an uplink.
    Uplink(u8),
    /// From the machine itself, on its way out by an uplink.
    Egress(u8),
}

/// What the datapath should have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Return code.
    pub code: i32,
    /// The counter that moves.
    pub verdict: &'static str,
    /// The mark's value.
    pub mark: u32,
    /// The packet afterwards.
    pub frame: Frame,
}

/// What a packet finds its flow to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    GoesOn,
    /// It is over, and another one begins.
    Over,
    /// It is lost, and the packet is answered with a RST.
    Reset,
}

/// The machine's address on the LAN.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

/// What the model is told of lots that the datapath drew.
#[derive(Clone, Copy)]
pub struct Lot<'a> {
    /// The outside port of the binding with this inside end, and whether its flow is embryonic.
    pub drawn: &'a dyn Fn(&End) -> Option<(u16, bool)>,
    /// Whether nothing was known of the packet's own source port at the outside address of each uplink.
    pub fresh: [bool; 2],
    /// Whether the datapath takes no other ports, since this is XDP.
    pub fresh_only: bool,
}

/// A packet that is not sent: the counter, and the mark with which it goes to the kernel; `None`: dropped.
pub(super) type Refusal = (&'static str, Option<u32>);

pub(super) const fn pass<T>(verdict: &'static str) -> Result<T, Refusal> {
    Err((verdict, Some(mark::NONE)))
}

pub(super) const fn drop<T>(verdict: &'static str) -> Result<T, Refusal> {
    Err((verdict, None))
}

pub(super) const fn refuse<T>(verdict: &'static str) -> Result<T, Refusal> {
    Err((verdict, Some(mark::PROHIBIT)))
}

pub(super) const fn no_uplink<T>() -> Result<T, Refusal> {
    Err(("no_uplink", Some(mark::UNREACHABLE)))
}

impl Model {
    /// A packet at TC ingress.
    pub fn tc(&mut self, side: Side, frame: &Frame, now: Tick, lot: Lot<'_>) -> Expected {
        self.forget_touched();
        let result = if !frame.datagram.is_forwardable() {
            pass("pass_scope")
        } else if let Part::Later(_) = frame.part {
            self.later(side, frame, now)
        } else if let Body::Error { .. } = frame.datagram.body {
            self.error(side, frame, now)
        } else {
            self.packet(side, frame, now, lot)
        };
        result.unwrap_or_else(|(verdict, left)| Expected {
            code: if left.is_some() { TC_NEXT } else { TC_DROP },
            verdict,
            mark: left.unwrap_or(mark::NONE),
            frame: frame.clone(),
        })
    }

    /// A packet at XDP: only what needs no attention is sent, or begins a flow of a source of which the datapath knows nothing.
    pub fn xdp(&mut self, side: Side, frame: &Frame, now: Tick, unknown: bool, lot: Lot<'_>) -> Expected {
        self.forget_touched();
        let quick = frame.part == Part::Whole && frame.datagram.tcp_flags() & (SYN | FIN | RST) == 0;
        let key = frame.datagram.key().filter(|_| quick && frame.datagram.ttl > 1);
        let half = key.and_then(|key| self.halves.get(&key));
        let sends = half.is_some_and(|half| {
            self.takes(half, side)
                && half.answered
                && half.kind != Kind::Host
                && half.tcp & RST == 0
                && (!self.is_due(half, now) || self.can_be_maintained(half, key, now))
                && (!half.leads_outside() || self.is_up(half.uplink))
                && frame.len() <= self.mtu(half)
        });
        let refused = Expected { code: XDP_PASS, verdict: "xdp_to_tc", mark: 0, frame: frame.clone() };
        let begins = if sends || !unknown { None } else { self.begin_at_xdp(side, frame, now, lot) };
        let Some(key) = key.filter(|_| sends).or(begins) else { return refused };
        match self.send(&key, side, frame, begins.map(|_| "new"), now) {
            Ok(sent) => Expected { code: XDP_REDIRECT, mark: 0, ..sent },
            Err(_) => refused,
        }
    }

    pub(super) fn forget_touched(&mut self) {
        self.touched.clear();
        self.touched_bindings.clear();
        self.touched_owners.clear();
        self.touched_sources.clear();
        self.touched_peers.clear();
    }

    pub(super) const fn is_up(&self, uplink: u8) -> bool {
        self.healthy >> uplink & 1 != 0
    }

    /// Whether packets from this side may use the half: those of a flow's own uplink, or of an inside host.
    pub(super) fn takes(&self, half: &Half, side: Side) -> bool {
        match (half.kind, half.reply) {
            (Kind::Hairpin, _) | (Kind::Lan, false) => side == Side::Lan,
            (Kind::Host, false) => false,
            (_, true) => side == Side::Uplink(half.uplink),
        }
    }

    /// Whether the quick path can see to a half that is due.
    fn can_be_maintained(&self, half: &Half, key: Option<Key>, now: Tick) -> bool {
        let translated = half.leads_outside() && key.is_some_and(|key| half.to.src != key.src);
        let orphaned = translated && self.outside_of(half.to.src) != Some(half.uplink);
        since(now, half.last_seen) <= least_timeout(half.to.protocol) && !orphaned && next_mac(half).is_some()
    }

    pub(super) fn is_due(&self, half: &Half, now: Tick) -> bool {
        !half.resolved && half.kind != Kind::Host
            || half.epoch != self.epoch
            || since(now, half.maintained) >= MAINTENANCE
    }

    /// What the packet finds its flow to be.
    pub(super) fn fate(&self, key: &Key, half: &Half, frame: &Frame, now: Tick) -> Fate {
        let flags = frame.datagram.tcp_flags();
        let opens = flags & (SYN | ACK | FIN | RST) == SYN;
        if self.has_expired(half, now) || opens && half.tcp & (FIN | RST) != 0 {
            return Fate::Over;
        }
        let translated = half.to.src != key.src;
        let orphaned = translated && self.outside_of(half.to.src) != Some(half.uplink) && self.is_due(half, now);
        let lost = orphaned || !self.is_up(half.uplink);
        if !half.leads_outside() || !lost || self.setup.members & self.healthy == 0 {
            return Fate::GoesOn;
        }
        match self.setup.on_down[usize::from(half.uplink)] {
            OnDown::Hold => Fate::GoesOn,
            OnDown::Repin => Fate::Over,
            OnDown::Reset if half.to.protocol != TCP || opens => Fate::Over,
            // A SYN with ACK, a RST, a fragment; or a connection that the remote end began, which may come back.
            OnDown::Reset if flags & (SYN | RST) != 0 || frame.part != Part::Whole => Fate::GoesOn,
            OnDown::Reset if half.asked && !orphaned => Fate::GoesOn,
            OnDown::Reset => Fate::Reset,
        }
    }

    /// The segment is answered in the remote end's name (RFC 9293 section 3.10.7.1), and the flow is as good as reset.
    pub(super) fn reset(&mut self, key: &Key, side: Side, frame: &Frame, now: Tick) -> Expected {
        let flags = frame.datagram.tcp_flags();
        let first = self.halves.get_mut(key).is_some_and(|half| {
            let first = half.tcp & RST == 0;
            half.tcp |= RST;
            first
        });
        if first {
            self.extend_binding(key, true, now);
        }
        let fin = usize::from(flags & FIN != 0);
        let end = u32::try_from(1 + frame.datagram.payload.len() + fin).unwrap_or(0);
        let (seq, ack) = if flags & ACK != 0 { (2, None) } else { (0, Some(end)) };
        let body = Body::Reset { sport: key.dport, dport: key.sport, seq, ack };
        let datagram = Datagram { src: key.dst, dst: key.src, ttl: 64, id: 0, df: true, body, payload: Vec::new() };
        Expected {
            code: TC_REDIRECT,
            verdict: "reset",
            mark: if side == Side::Lan { mark::NONE } else { mark::DONE },
            frame: Frame { to: frame.from, from: frame.to, datagram, part: Part::Whole },
        }
    }

    pub(super) fn packet(&mut self, side: Side, frame: &Frame, now: Tick, lot: Lot<'_>) -> Result<Expected, Refusal> {
        let Some(key) = frame.datagram.key() else { return pass("pass_protocol") };
        self.touched.insert(key);
        if let Part::First(_) = frame.part {
            // Others that have come before come again behind this one, in the interface.
            self.waiting.remove(&super::send::whose(frame, side));
        }
        let half = self.halves.get(&key).filter(|half| self.takes(half, side)).cloned();
        if let Some(half) = half {
            self.touched.insert(half.to.swapped());
            if side == Side::Lan && half.embryonic {
                self.hatch_source(&key);
            }
            if frame.datagram.ttl <= 1 {
                return pass("pass_ttl_expired");
            }
            self.hatch(&key);
            match self.fate(&key, &half, frame, now) {
                Fate::GoesOn => return self.send(&key, side, frame, None, now),
                Fate::Reset => return Ok(self.reset(&key, side, frame, now)),
                Fate::Over => self.forget(&key),
            }
        }
        let verdict = match side {
            Side::Lan | Side::Egress(_) => self.outbound(&key, frame, now, lot)?,
            Side::Uplink(uplink) => {
                let entered = self.inbound(&key, uplink, frame, now);
                if let (Part::First(_), Err(("pass_no_flow", _))) = (frame.part, &entered) {
                    // The rest of the datagram is the kernel's, too.
                    let half = Half::new(key, uplink, true, Kind::Host, now);
                    self.fragments.insert(super::send::whose(frame, side), (half, now));
                }
                entered?
            }
        };
        self.send(&key, side, frame, Some(verdict), now)
    }

    /// Where the kernel would send what comes from inside: `None`: not to an uplink. The inner value is the uplink whose own link the
    /// destination is on.
    pub(super) fn route(dst: Ipv4Addr) -> Option<Option<u8>> {
        match dst.octets() {
            [192, 168, 1, _] | [198, 51, 100, 2] | [203, 0, 113, 2] => None,
            [198, 51, 100, _] => Some(Some(0)),
            [203, 0, 113, _] => Some(Some(1)),
            _ => Some(None),
        }
    }

    pub(super) fn is_own(address: Ipv4Addr) -> bool {
        matches!(address.octets(), [192, 168, 1, 1 | 255] | [198, 51, 100, 2] | [203, 0, 113, 2])
    }

    pub(super) fn outside_of(&self, address: Ipv4Addr) -> Option<u8> {
        self.setup.outside.iter().zip(0..).find(|(outside, _)| **outside == address).map(|(_, uplink)| uplink)
    }

    /// From inside, of no flow.
    pub(super) fn outbound(
        &mut self,
        key: &Key,
        frame: &Frame,
        now: Tick,
        lot: Lot<'_>,
    ) -> Result<&'static str, Refusal> {
        self.hatch_source(key);
        let route = Self::route(key.dst);
        if let Some(uplink) = self.outside_of(key.dst) {
            let turned = self.hairpin(key, frame, now, lot);
            let stays = matches!(turned, Err(("pass_not_for_uplink", _)));
            if !stays || route.is_none() {
                if let (Part::First(_), true) = (frame.part, stays) {
                    let half = Half::new(*key, uplink, true, Kind::Host, now);
                    self.fragments.insert(super::send::whose(frame, Side::Lan), (half, now));
                }
                return turned;
            }
            // An address that is routed here without being the machine's own: nobody has the port, which ends at the uplink.
        }
        let Some(on_link) = route else { return pass("pass_not_for_uplink") };
        if let Body::Echo { request: false, .. } = frame.datagram.body {
            return pass("pass_protocol");
        }
        if frame.datagram.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        self.begin(key, frame, on_link, Kind::Lan, now, lot)
    }

    /// From inside to the outside end of a binding (RFC 4787 REQ-9).
    pub(super) fn hairpin(
        &mut self,
        key: &Key,
        frame: &Frame,
        now: Tick,
        lot: Lot<'_>,
    ) -> Result<&'static str, Refusal> {
        let not_ours = pass("pass_not_for_uplink");
        let Some(uplink) = self.outside_of(key.dst) else { return not_ours };
        if !matches!(key.protocol, TCP | UDP) {
            return not_ours;
        }
        let end = End { address: key.dst, port: key.dport, protocol: key.protocol, uplink };
        let Some(owner) = self.open(&end, now) else { return not_ours };
        if Self::is_own(owner.address) {
            return not_ours;
        }
        if frame.datagram.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        if frame.datagram.tcp_flags() & (FIN | RST) != 0 {
            return drop("tcp_stray");
        }
        self.count_new(key.src, now);
        self.hatch_binding(&End { address: owner.address, port: owner.port, ..end }, &end);
        let (address, port) = self.bind(key, frame, uplink, Kind::Hairpin, now, lot)?;
        let sent = Key { src: address, sport: port, dst: owner.address, dport: owner.port, protocol: key.protocol };
        self.insert(key, &sent, uplink, Kind::Hairpin, now)?;
        Ok("hairpin")
    }

    /// Who has the outside end, if the binding lives.
    pub(super) fn open(&self, end: &End, now: Tick) -> Option<Owner> {
        let owner = self.owners.get(end).filter(|owner| owner.resting.is_none())?.clone();
        if owner.fixed {
            return Some(owner);
        }
        let inside =
            if has_ports(end.protocol) { End { address: owner.address, port: owner.port, ..*end } } else { *end };
        self.bindings.get(&inside).filter(|binding| !passed(now, binding.expires)).map(|_| owner)
    }

    /// From an uplink, of no flow.
    pub(super) fn inbound(&mut self, key: &Key, uplink: u8, frame: &Frame, now: Tick) -> Result<&'static str, Refusal> {
        if frame.datagram.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        if self.halves.get(key).is_some_and(|half| !half.embryonic) {
            return pass("pass_no_flow");
        }
        let end = Self::outside_end(key, uplink);
        let request = matches!(frame.datagram.body, Body::Echo { request: true, .. });
        // What is asked of an outside address by ping is asked of the machine.
        let owner = self.owners.get(&end).filter(|owner| owner.resting.is_none() && !request).cloned();
        let inside = owner.map_or(*key, |owner| Key { dst: owner.address, dport: owner.port, ..*key });
        let forward_key = inside.swapped();
        self.touched.extend([*key, forward_key]);
        if let Some(forward) = self.halves.get(&forward_key)
            && !forward.reply
            && forward.uplink == uplink
            && forward.to.swapped() == *key
        {
            if self.has_expired(forward, now) {
                self.forget(&forward_key);
                return self.enter(key, inside, uplink, frame, now);
            }
            let reply = Half { answered: forward.answered, ..Half::new(inside, uplink, true, forward.kind, now) };
            self.halves.insert(*key, reply);
            return Ok("restored");
        }
        self.enter(key, inside, uplink, frame, now)
    }

    /// From an uplink, and nothing to restore. `inside`: what the binding makes of it.
    fn enter(&mut self, key: &Key, inside: Key, uplink: u8, frame: &Frame, now: Tick) -> Result<&'static str, Refusal> {
        let (end, forward_key) = (Self::outside_end(key, uplink), inside.swapped());
        let request = matches!(frame.datagram.body, Body::Echo { request: true, .. });
        let answers = matches!(frame.datagram.body, Body::Echo { request: false, .. });
        if !answers && !request && self.open(&end, now).is_some() {
            if !self.lets_in(key, &end, now) {
                return drop("filtered");
            }
            if frame.datagram.tcp_flags() & (FIN | RST) != 0 {
                return drop("tcp_stray");
            }
            let kind = if Self::is_own(inside.dst) { Kind::Host } else { Kind::Lan };
            if !self.halves.get(&forward_key).is_some_and(|half| half.embryonic) {
                self.hatch_binding(&End { address: inside.dst, port: inside.dport, ..end }, &end);
            }
            self.insert(&forward_key, &key.swapped(), uplink, kind, now)?;
            self.halves.entry(forward_key).and_modify(|half| half.asked = true);
            return Ok("inbound");
        }
        if !Self::is_own(key.dst) {
            // An outside address that is routed here without being the machine's own would go back where it came from.
            let returns = self.outside_of(key.dst).is_some() && Self::route(key.dst).is_some();
            return if returns { drop("no_route_back") } else { pass("pass_no_flow") };
        }
        match frame.datagram.body {
            Body::Tcp { flags, .. } => {
                if flags & (SYN | ACK | FIN | RST) != SYN {
                    return pass("pass_no_flow");
                }
                let (first, last) = self.setup.ports[usize::from(uplink)];
                // RFC 5382 REQ-4. No socket of the machine listens here.
                if self.outside_of(key.dst).is_some() && first <= key.dport && key.dport <= last {
                    return drop("unsolicited_syn");
                }
            }
            Body::Udp { .. } | Body::Echo { request: true, .. } => {}
            _ => return pass("pass_no_flow"),
        }
        if self.halves.contains_key(key) {
            // An embryonic flow's, of another uplink.
            return pass("pass_no_flow");
        }
        let answer = key.swapped();
        self.insert(&answer, &answer, uplink, Kind::Host, now)?;
        self.halves.entry(answer).and_modify(|half| half.asked = true);
        Ok("host")
    }

    /// The outside end that a packet from an uplink is for.
    fn outside_end(key: &Key, uplink: u8) -> End {
        let address = if has_ports(key.protocol) { key.dst } else { key.src };
        End { address, port: key.dport, protocol: key.protocol, uplink }
    }

    pub(super) fn lets_in(&self, key: &Key, end: &End, now: Tick) -> bool {
        !self.setup.address_dependent
            || !has_ports(key.protocol)
            || self.owners.get(end).is_some_and(|owner| owner.fixed)
            || self.peers.get(&(key.src, *end)).is_some_and(|until| !passed(now, *until))
    }
}

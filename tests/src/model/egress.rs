//! What the machine itself sends: its own flows, answers, and what the kernel does on mh's behalf.

use mh_common::{abi::mark, time::Tick};

use super::rules::{Expected, Fate, Lot, Refusal, Side, drop, pass};
use super::send::whose;
use super::tables::{Half, Kind, Model};
use super::wire::{ACK, Body, Datagram, Frame, Key, Part, SYN, UDP};
use crate::rig::{TC_DROP, TC_NEXT, TC_REDIRECT};

/// A DHCP client's port.
const DHCP: u16 = 68;

impl Model {
    /// A packet at TC egress of an uplink, with the value of its mark. `own`: the machine has made it, and does not forward it.
    pub fn egress(&mut self, uplink: u8, with: u32, own: bool, frame: &Frame, now: Tick, lot: Lot<'_>) -> Expected {
        self.forget_touched();
        let untouched = Expected { code: TC_NEXT, verdict: "", mark: with, frame: frame.clone() };
        if with == mark::DONE {
            return untouched;
        }
        if own && with == mark::FIRST_UPLINK + u32::from(uplink) {
            return Expected { verdict: "pass_host", ..untouched };
        }
        match self.leave(uplink, with, frame, now, lot) {
            Ok(sent) => sent,
            // There is nobody to refuse any more.
            Err((verdict, Some(mark::NONE))) => Expected { verdict, ..untouched },
            Err((verdict, _)) => Expected { verdict, code: TC_DROP, ..untouched },
        }
    }

    fn leave(&mut self, uplink: u8, with: u32, frame: &Frame, now: Tick, lot: Lot<'_>) -> Result<Expected, Refusal> {
        let side = Side::Egress(uplink);
        let fragmented = with != mark::NONE;
        if fragmented && with != mark::FIRST_UPLINK + u32::from(uplink) {
            return drop("misrouted");
        }
        if !frame.datagram.is_forwardable() {
            return pass("pass_scope");
        }
        let out = |half: &Half, verdict, frame| Expected {
            code: if half.uplink == uplink { TC_NEXT } else { TC_REDIRECT },
            verdict,
            mark: if half.uplink == uplink { with } else { mark::DONE },
            frame,
        };
        if let Part::Later(_) = frame.part {
            if self.recalls(side, frame, now) {
                let half = self.fragments[&whose(frame, side)].0.clone();
                return Ok(out(&half, "fragment", self.translated(frame, &half)));
            }
            return if fragmented { drop("misrouted") } else { self.by_source(uplink, frame) };
        }
        let Some(key) = frame.datagram.key() else {
            let Body::Error { .. } = frame.datagram.body else { return pass("pass_protocol") };
            return match self.turned_back(frame) {
                Some((half, frame)) => Ok(out(&half, "icmp_error", frame)),
                None => self.by_source(uplink, frame),
            };
        };
        self.touched.insert(key);
        let half = self.halves.get(&key).filter(|half| half.leads_outside() && !half.embryonic).cloned();
        let ours = half.filter(|half| fragmented || half.kind == Kind::Host);
        let mut begun = if ours.as_ref().is_some_and(|half| half.kind == Kind::Lan) { "forward" } else { "host" };
        if fragmented && ours.is_none() {
            return drop("misrouted");
        }
        let fate = match &ours {
            Some(_) if fragmented => Fate::GoesOn,
            Some(half) => self.fate(&key, half, frame, now),
            None => Fate::Over,
        };
        if fate == Fate::Reset {
            return Ok(self.reset(&key, side, frame, now));
        }
        if fate == Fate::Over {
            if self.halves.get(&key).is_some_and(|half| half.leads_outside() && half.kind == Kind::Host) {
                self.forget(&key);
            }
            begun = if let Some((asked, sent)) = self.asked_by(&key, now) {
                self.insert(&key, &sent, asked, Kind::Host, now)?;
                "host"
            } else if !self.may_steer(uplink, frame) {
                return self.by_source(uplink, frame);
            } else {
                match self.begin(&key, frame, None, Kind::Host, now, lot) {
                    Err(("tcp_stray" | "no_uplink", _)) => return self.by_source(uplink, frame),
                    begun => begun?,
                }
            };
        }
        if self.halves.get(&key).is_some_and(|half| frame.len() > self.mtu(half)) {
            return drop("too_big");
        }
        let half = self.account(&key, side, frame, Some(begun), now)?;
        Ok(out(&half, begun, self.translated(frame, &half)))
    }

    /// The uplink by which the port that a datagram comes from was asked by its destination, and the answer with the address that was
    /// asked (RFC 1122 section 4.1.3.5): the first one whose uplink is up.
    fn asked_by(&self, key: &Key, now: Tick) -> Option<(u8, Key)> {
        let udp = self.setup.outside.iter().filter(|_| key.protocol == UDP);
        udp.map(|address| Key { src: *address, ..*key }).find_map(|answer| {
            let half = self.halves.get(&answer)?;
            (half.asked
                && half.kind == Kind::Host
                && half.to == answer
                && self.is_up(half.uplink)
                && !self.has_expired(half, now))
            .then_some((half.uplink, answer))
        })
    }

    /// Whether a packet of the machine itself may go by another uplink than the kernel's choice.
    fn may_steer(&self, uplink: u8, frame: &Frame) -> bool {
        let may_begin = match frame.datagram.body {
            Body::Tcp { flags, .. } => {
                flags & (SYN | ACK) != SYN | ACK || flags & (super::wire::FIN | super::wire::RST) != 0
            }
            Body::Udp { sport, .. } => sport != DHCP,
            Body::Echo { request, .. } => request,
            _ => false,
        };
        let Some(owner) = self.outside_of(frame.datagram.src) else { return false };
        // With another uplink's address, it was meant for that one, if that one is up.
        let meant = owner != uplink && self.is_up(owner);
        let on_link = Self::route(frame.datagram.dst) == Some(Some(uplink));
        may_begin && !meant && !on_link
    }

    /// A packet leaves by the uplink that its source address belongs to.
    fn by_source(&self, uplink: u8, frame: &Frame) -> Result<Expected, Refusal> {
        match self.outside_of(frame.datagram.src) {
            Some(owner) if owner != uplink => {
                Ok(Expected { code: TC_REDIRECT, verdict: "host", mark: mark::DONE, frame: frame.clone() })
            }
            _ => pass("pass_host"),
        }
    }

    /// An error of the machine itself about a packet that came in for an inside host, or for itself.
    fn turned_back(&self, frame: &Frame) -> Option<(Half, Frame)> {
        let outer = &frame.datagram;
        let Body::Error { about, kind, code, quoted } = &outer.body else { return None };
        let key: Key = about.key().filter(|about| about.src == outer.dst)?.swapped();
        let half = self.halves.get(&key).filter(|half| half.leads_outside() && !half.embryonic)?;
        let about = Box::new(about.with(&half.to.swapped()));
        let body = Body::Error { about, kind: *kind, code: *code, quoted: *quoted };
        let datagram = Datagram { src: half.to.src, dst: half.to.dst, body, ..outer.clone() };
        Some((half.clone(), Frame { datagram, ..frame.clone() }))
    }
}

//! What happens to a packet whose half is known, to fragments, and to ICMP errors.

use mh_common::{
    abi::mark,
    time::{Tick, since},
};

use super::rules::{Expected, Refusal, Side, drop, pass};
use super::tables::{
    Datagram as Whose, End, FRAGMENT_LIFE, Half, Kind, MOST_WAITING, Model, SEEN_GRANULARITY, has_ports,
};
use super::wire::{ACK, Body, Datagram, FIN, Frame, ICMP, Key, Part, RST, SYN};
use crate::rig::{GATEWAY1, GATEWAY2, HOST, HOST2, LAN, TC_NEXT, TC_REDIRECT, WAN1, WAN2};

impl Model {
    /// The MTU of the link that the half leads to.
    pub(super) fn mtu(&self, half: &Half) -> u32 {
        if half.leads_outside() { self.setup.mtu[usize::from(half.uplink)].into() } else { self.setup.lan_mtu }
    }

    /// Counts the packet in its half, and does what is due. What is too large for its uplink is not counted. `begun` as for [`Self::send`].
    pub(super) fn account(
        &mut self,
        key: &Key,
        side: Side,
        frame: &Frame,
        begun: Option<&'static str>,
        now: Tick,
    ) -> Result<Half, Refusal> {
        let epoch = self.epoch;
        let Some(mut half) = self.halves.get(key).cloned() else { return drop("conntrack_full") };
        let due = self.is_due(&half, now);
        let (outside, size, datagram) = (half.leads_outside(), frame.len(), &frame.datagram);
        let whole = if datagram.df { "too_big" } else { "pass_to_fragment" };
        if outside && size > self.mtu(&half) {
            if let Part::First(_) = frame.part {
                // The rest of the datagram may come before the kernel has made fragments of this one.
                self.fragments.insert(whose(frame, side), (half.clone(), now));
            }
            return Err((whole, Some(mark::FIRST_UPLINK + u32::from(half.uplink))));
        }
        self.touched.extend([*key, half.to.swapped()]);
        let flags = datagram.tcp_flags();
        half.packets += 1;
        half.bytes += u64::from(size);
        half.tcp |= flags & (SYN | FIN | RST | ACK);
        // RFC 7857 section 2.2: a RST after which its sender goes on was none.
        let revived = half.tcp & RST != 0 && flags & (SYN | FIN | RST) == 0;
        if revived {
            half.tcp &= !RST;
        }
        if since(now, half.last_seen) >= SEEN_GRANULARITY {
            half.last_seen = now;
        }
        self.count(half.uplink, half.reply, size);
        if due {
            // What the machine itself sends, the kernel sends.
            let by_kernel = half.kind == Kind::Host || matches!(side, Side::Egress(_));
            if !by_kernel {
                half.resolved = next_mac(&half).is_some();
                if !outside && !is_inside(half.to.dst) {
                    self.halves.insert(*key, half);
                    return drop("no_route_back");
                }
            }
            if half.resolved || by_kernel {
                half.maintained = now;
                half.epoch = epoch;
            }
        }
        // What is worked out for an embryonic flow's packet is not kept.
        let kept = if half.embryonic {
            Half { resolved: false, maintained: half.created, epoch: 0, ..half.clone() }
        } else {
            half.clone()
        };
        self.halves.insert(*key, kept);
        let closing = flags & (FIN | RST) != 0;
        // A binding that has just been made, or asked for, lasts as long as a new flow.
        let fresh = begun == Some("new") && has_ports(key.protocol);
        if due && !fresh || closing || revived {
            self.extend_binding(key, closing, now);
        }
        // What a former flow's answers left says nothing of one that begins.
        if begun != Some("new") {
            self.confirm(key);
        }
        if let Part::First(_) = frame.part {
            self.fragments.insert(whose(frame, side), (half.clone(), now));
        }
        Ok(half)
    }

    /// The packet as it leaves, but for what a router changes.
    pub(super) fn translated(&self, frame: &Frame, half: &Half) -> Frame {
        let mut new = frame.datagram.with(&half.to);
        if let Body::Tcp { flags, mss: Some(mss), .. } = &mut new.body
            && *flags & SYN != 0
        {
            *mss = (*mss).min(self.setup.mtu[usize::from(half.uplink)] - 40);
        }
        Frame { datagram: new, ..frame.clone() }
    }

    /// Does what the half says. `begun`: what a packet that has just made the half counts as.
    pub(super) fn send(
        &mut self,
        key: &Key,
        side: Side,
        frame: &Frame,
        begun: Option<&'static str>,
        now: Tick,
    ) -> Result<Expected, Refusal> {
        let half = self.account(key, side, frame, begun, now)?;
        let size = frame.len();
        let whole = if frame.datagram.df { "too_big" } else { "pass_to_fragment" };
        let translated = self.translated(frame, &half);
        let on_flow = match (half.kind, half.reply) {
            (Kind::Hairpin, _) => "hairpin",
            (_, true) => "reply",
            (_, false) => "forward",
        };
        let verdict = begun.unwrap_or(on_flow);
        if half.kind == Kind::Host {
            // Delivered here.
            let verdict = begun.unwrap_or("host");
            return Ok(Expected { code: TC_NEXT, verdict, mark: mark::NONE, frame: translated });
        }
        if size > self.mtu(&half) {
            // The kernel forwards it, in pieces, or says why not.
            return Ok(Expected { code: TC_NEXT, verdict: whole, mark: mark::DONE, frame: translated });
        }
        Ok(Expected { code: TC_REDIRECT, verdict, mark: mark::DONE, frame: forwarded(translated, &half) })
    }

    pub(super) fn count(&mut self, uplink: u8, reply: bool, size: u32) {
        let traffic = &mut self.traffic[usize::from(uplink)];
        let (packets, bytes) = if reply {
            (&mut traffic.rx_packets, &mut traffic.rx_bytes)
        } else {
            (&mut traffic.tx_packets, &mut traffic.tx_bytes)
        };
        *packets += 1;
        *bytes += u64::from(size);
    }

    /// Once packets have gone both ways, both halves belong to an answered flow.
    pub(super) fn confirm(&mut self, key: &Key) {
        let Some(half) = self.halves.get(key).filter(|half| !half.answered) else { return };
        let other_key = half.to.swapped();
        if self.other(half).is_some_and(|other| !other.answered && other.packets > 0) {
            for key in [key, &other_key] {
                if let Some(half) = self.halves.get_mut(key) {
                    half.answered = true;
                }
            }
        }
    }

    /// Whether a later fragment of this datagram would find its way.
    #[must_use]
    pub fn recalls(&self, side: Side, frame: &Frame, now: Tick) -> bool {
        self.fragments.get(&whose(frame, side)).is_some_and(|(_, then)| since(now, *then) < FRAGMENT_LIFE)
    }

    /// A fragment that is not the first.
    pub(super) fn later(&mut self, side: Side, frame: &Frame, now: Tick) -> Result<Expected, Refusal> {
        if frame.datagram.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        if frame.datagram.key().is_none() && frame.datagram.protocol() != ICMP {
            return pass("pass_protocol");
        }
        if !self.recalls(side, frame, now) {
            return self.hold(side, frame, now);
        }
        let (half, _) = self.fragments[&whose(frame, side)].clone();
        if !self.takes(&half, side) {
            return pass(if side == Side::Lan { "pass_not_for_uplink" } else { "pass_no_flow" });
        }
        self.count(half.uplink, half.reply, frame.len());
        let outside = half.leads_outside();
        let whole = if frame.datagram.df { "too_big" } else { "pass_to_fragment" };
        if outside && frame.len() > self.mtu(&half) {
            return Err((whole, Some(mark::FIRST_UPLINK + u32::from(half.uplink))));
        }
        let translated = Frame { datagram: frame.datagram.with(&half.to), ..frame.clone() };
        if half.kind == Kind::Host {
            return Ok(Expected { code: TC_NEXT, verdict: "host", mark: mark::NONE, frame: translated });
        }
        if frame.len() > self.mtu(&half) {
            return Ok(Expected { code: TC_NEXT, verdict: whole, mark: mark::DONE, frame: translated });
        }
        let mark = if outside { mark::DONE } else { mark::NONE };
        Ok(Expected { code: TC_REDIRECT, verdict: "fragment", mark, frame: forwarded(translated, &half) })
    }

    /// A fragment that comes before the first of its datagram waits for it, if it may be for mh (RFC 4787 REQ-14).
    fn hold(&mut self, side: Side, frame: &Frame, now: Tick) -> Result<Expected, Refusal> {
        let dst = frame.datagram.dst;
        let from_lan = side == Side::Lan;
        if self.outside_of(dst).is_none() && !(from_lan && Self::route(dst).is_some()) {
            return pass(if from_lan { "pass_not_for_uplink" } else { "pass_no_flow" });
        }
        let (held, then) = self.waiting.entry(whose(frame, side)).or_insert((0, now));
        if since(now, *then) >= FRAGMENT_LIFE {
            (*held, *then) = (0, now);
        }
        if *held >= MOST_WAITING {
            return drop("fragments_full");
        }
        *held += 1;
        drop("fragment_held")
    }

    /// An ICMP error: goes to whoever sent what it quotes, with what it quotes turned back.
    pub(super) fn error(&mut self, side: Side, frame: &Frame, now: Tick) -> Result<Expected, Refusal> {
        let outer = &frame.datagram;
        let Body::Error { about, kind, code, quoted } = &outer.body else { return pass("pass_protocol") };
        let half =
            about.key().filter(|about| about.src == outer.dst).and_then(|about| self.answerer(&about, side, now));
        let Some(half) = half.filter(|half| self.takes(half, side)) else {
            return match side {
                Side::Lan if Self::route(outer.dst).is_some() => drop("icmp_stray"),
                Side::Lan | Side::Egress(_) => pass("pass_not_for_uplink"),
                Side::Uplink(_) => pass("pass_no_flow"),
            };
        };
        if outer.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        let delivered = half.kind == Kind::Host;
        if !delivered && !half.leads_outside() && !is_inside(half.to.dst) {
            return drop("no_route_back");
        }
        let src = if side == Side::Lan { half.to.src } else { outer.src };
        let about = Box::new(about.with(&half.to.swapped()));
        let body = Body::Error { about, kind: *kind, code: *code, quoted: *quoted };
        let ttl = if delivered { outer.ttl } else { outer.ttl - 1 };
        let datagram = Datagram { src, dst: half.to.dst, body, ttl, ..outer.clone() };
        Ok(Expected {
            code: if delivered { TC_NEXT } else { TC_REDIRECT },
            verdict: "icmp_error",
            mark: if half.leads_outside() { mark::DONE } else { mark::NONE },
            // The kernel finds the neighbour.
            frame: Frame { datagram, ..frame.clone() },
        })
    }

    /// What would happen to answers to the packet: by its flow or, from outside, by the binding alone.
    pub(super) fn answerer(&self, about: &Key, side: Side, now: Tick) -> Option<Half> {
        let key = about.swapped();
        if let Some(half) = self.halves.get(&key).filter(|half| half.reply || !half.embryonic) {
            return Some(half.clone());
        }
        let Side::Uplink(uplink) = side else { return None };
        if !has_ports(key.protocol) {
            return None;
        }
        let end = End { address: key.dst, port: key.dport, protocol: key.protocol, uplink };
        let owner = self.owners.get(&end).filter(|owner| owner.resting.is_none())?;
        let kind = if Self::is_own(owner.address) { Kind::Host } else { Kind::Lan };
        Some(Half::new(Key { dst: owner.address, dport: owner.port, ..key }, uplink, true, kind, now))
    }
}

/// Whether the address is reached by the LAN.
const fn is_inside(address: std::net::Ipv4Addr) -> bool {
    matches!(address.octets(), [192, 168, 1, _])
}

/// The Ethernet addresses of the next hop and of the interface that leads there, if the next hop's is known.
pub(super) fn next_mac(half: &Half) -> Option<([u8; 6], [u8; 6])> {
    if half.leads_outside() {
        return Some([(GATEWAY1, WAN1), (GATEWAY2, WAN2)][usize::from(half.uplink)]);
    }
    match half.to.dst.octets() {
        [192, 168, 1, 10] => Some((HOST, LAN)),
        [192, 168, 1, 11] => Some((HOST2, LAN)),
        _ => None,
    }
}

/// Sent on by mh: a hop less to live, and to the next hop if that is known.
fn forwarded(mut frame: Frame, half: &Half) -> Frame {
    frame.datagram.ttl -= 1;
    if half.resolved
        && let Some((to, from)) = next_mac(half)
    {
        (frame.to, frame.from) = (to, from);
    }
    frame
}

pub(super) fn whose(frame: &Frame, side: Side) -> Whose {
    let arrival = match side {
        Side::Lan | Side::Egress(_) => None,
        Side::Uplink(uplink) => Some(uplink),
    };
    let d = &frame.datagram;
    (d.src, d.dst, d.id, d.protocol(), arrival)
}

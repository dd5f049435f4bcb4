//! The rules: what becomes of a packet.

use std::net::Ipv4Addr;

use mh_common::{
    abi::mark,
    hash::{self, HashMode},
    slots,
    time::{Tick, later, passed, since},
};

use super::tables::{Binding, End, FRAGMENT_LIFE, Half, Kind, MAINTENANCE, Model, OnDown, Owner, SEEN_GRANULARITY};
use super::tables::{Datagram as Whose, Source, has_ports};
use super::wire::{ACK, Body, Datagram, FIN, Frame, ICMP, Key, Part, RST, SYN, TCP, UDP};
use crate::rig::{
    GATEWAY1, GATEWAY2, HOST, HOST2, LAN, TC_DROP, TC_NEXT, TC_REDIRECT, WAN1, WAN2, XDP_PASS, XDP_REDIRECT,
};

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the LAN.
    Lan,
    /// From an uplink.
    Uplink(u8),
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

/// MTU of every link.
pub const MTU: u32 = 1500;
/// The largest MSS that the MTU has room for.
const MSS: u16 = 1460;
/// The machine's address on the LAN.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

/// What the model is told of a lot that the datapath drew: the outside port of the binding with this inside end.
pub type Lot<'a> = &'a dyn Fn(&End) -> Option<u16>;

/// A packet that is not sent: the counter, and the mark with which it goes to the kernel; `None`: dropped.
type Refusal = (&'static str, Option<u32>);

const fn pass<T>(verdict: &'static str) -> Result<T, Refusal> {
    Err((verdict, Some(mark::NONE)))
}

const fn drop<T>(verdict: &'static str) -> Result<T, Refusal> {
    Err((verdict, None))
}

const fn refuse<T>(verdict: &'static str) -> Result<T, Refusal> {
    Err((verdict, Some(mark::PROHIBIT)))
}

const fn no_uplink<T>() -> Result<T, Refusal> {
    Err(("no_uplink", Some(mark::UNREACHABLE)))
}

impl Model {
    /// A packet at TC ingress.
    pub fn tc(&mut self, side: Side, frame: &Frame, now: Tick, lot: Lot<'_>) -> Expected {
        self.forget_touched();
        let result = if let Part::Later(_) = frame.part {
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

    /// A packet at XDP: only what needs no attention is sent.
    pub fn xdp(&mut self, side: Side, frame: &Frame, now: Tick) -> Expected {
        self.forget_touched();
        let quick = frame.part == Part::Whole && frame.datagram.tcp_flags() & (SYN | FIN | RST) == 0;
        let key = frame.datagram.key().filter(|_| quick && frame.datagram.ttl > 1);
        let half = key.and_then(|key| self.halves.get(&key));
        let sends = half.is_some_and(|half| {
            self.takes(half, side)
                && half.answered
                && half.resolved
                && half.kind != Kind::Host
                && half.tcp & RST == 0
                && !self.is_due(half, now)
                && !(half.leads_outside() && !self.is_up(half.uplink))
                && frame.len() <= MTU
        });
        let refused = Expected { code: XDP_PASS, verdict: "xdp_to_tc", mark: 0, frame: frame.clone() };
        let Some(key) = key.filter(|_| sends) else { return refused };
        match self.send(&key, side, frame, None, now) {
            Ok(sent) => Expected { code: XDP_REDIRECT, mark: 0, ..sent },
            Err(_) => refused,
        }
    }

    fn forget_touched(&mut self) {
        self.touched.clear();
        self.touched_bindings.clear();
        self.touched_owners.clear();
    }

    const fn is_up(&self, uplink: u8) -> bool {
        self.healthy >> uplink & 1 != 0
    }

    /// Whether packets from this side may use the half: those of a flow's own uplink, or of an inside host.
    fn takes(&self, half: &Half, side: Side) -> bool {
        match (half.kind, half.reply) {
            (Kind::Hairpin, _) | (Kind::Lan, false) => side == Side::Lan,
            (Kind::Host, false) => false,
            (_, true) => side == Side::Uplink(half.uplink),
        }
    }

    fn is_due(&self, half: &Half, now: Tick) -> bool {
        !half.resolved && half.kind != Kind::Host
            || half.epoch != self.epoch
            || since(now, half.maintained) >= MAINTENANCE
    }

    /// Whether the packet begins another flow in place of this one.
    fn is_over(&self, half: &Half, frame: &Frame) -> bool {
        let flags = frame.datagram.tcp_flags();
        let opens = flags & (SYN | ACK | FIN | RST) == SYN;
        if opens && half.tcp & (FIN | RST) != 0 {
            return true;
        }
        let down = half.leads_outside() && !self.is_up(half.uplink) && self.healthy != 0;
        down && match self.setup.on_down[usize::from(half.uplink)] {
            OnDown::Hold => false,
            OnDown::Repin => true,
            OnDown::Reset => half.to.protocol != TCP || opens,
        }
    }

    fn packet(&mut self, side: Side, frame: &Frame, now: Tick, lot: Lot<'_>) -> Result<Expected, Refusal> {
        let Some(key) = frame.datagram.key() else { return pass("pass_protocol") };
        self.touched.insert(key);
        let half = self.halves.get(&key).filter(|half| self.takes(half, side)).cloned();
        if let Some(half) = half {
            self.touched.insert(half.to.swapped());
            if frame.datagram.ttl <= 1 {
                return pass("pass_ttl_expired");
            }
            if !self.has_expired(&half, now) && !self.is_over(&half, frame) {
                return self.send(&key, side, frame, None, now);
            }
            self.forget(&key);
        }
        let verdict = match side {
            Side::Lan => self.outbound(&key, frame, now, lot)?,
            Side::Uplink(uplink) => {
                let entered = self.inbound(&key, uplink, frame, now);
                if let (Part::First(_), Err(("pass_no_flow", _))) = (frame.part, &entered) {
                    // The rest of the datagram is the kernel's, too.
                    let half = Half::new(key, uplink, true, Kind::Host, now);
                    self.fragments.insert(whose(frame, side), (half, now));
                }
                entered?
            }
        };
        self.send(&key, side, frame, Some(verdict), now)
    }

    /// Where the kernel would send what comes from inside: `None`: not to an uplink. The inner value is the uplink whose own link the
    /// destination is on.
    fn route(dst: Ipv4Addr) -> Option<Option<u8>> {
        match dst.octets() {
            [192, 168, 1, _] | [198, 51, 100, 2] | [203, 0, 113, 2] => None,
            [198, 51, 100, _] => Some(Some(0)),
            [203, 0, 113, _] => Some(Some(1)),
            _ => Some(None),
        }
    }

    fn is_own(address: Ipv4Addr) -> bool {
        matches!(address.octets(), [192, 168, 1, 1 | 255] | [198, 51, 100, 2] | [203, 0, 113, 2])
    }

    fn outside_of(&self, address: Ipv4Addr) -> Option<u8> {
        self.setup.outside.iter().zip(0..).find(|(outside, _)| **outside == address).map(|(_, uplink)| uplink)
    }

    /// From inside, of no flow.
    fn outbound(&mut self, key: &Key, frame: &Frame, now: Tick, lot: Lot<'_>) -> Result<&'static str, Refusal> {
        let Some(on_link) = Self::route(key.dst) else { return self.hairpin(key, frame, now, lot) };
        if let Body::Echo { request: false, .. } = frame.datagram.body {
            return pass("pass_protocol");
        }
        if frame.datagram.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        self.begin(key, frame, on_link, Kind::Lan, now, lot)
    }

    /// Restores a flow or begins it.
    fn begin(
        &mut self,
        key: &Key,
        frame: &Frame,
        pinned: Option<u8>,
        kind: Kind,
        now: Tick,
        lot: Lot<'_>,
    ) -> Result<&'static str, Refusal> {
        if let Some((uplink, sent)) = self.evicted(key, frame) {
            self.insert(key, &sent, uplink, kind, now)?;
            return Ok("restored");
        }
        if frame.datagram.tcp_flags() & (FIN | RST) != 0 {
            return drop("tcp_stray");
        }
        self.count_new(key.src, now);
        let uplink = match pinned {
            None => self.choose(key)?,
            Some(uplink) if self.is_up(uplink) => uplink,
            Some(_) => return no_uplink(),
        };
        let (address, port) = self.bind(key, frame, uplink, kind, now, lot)?;
        self.insert(key, &Key { src: address, sport: port, ..*key }, uplink, kind, now)?;
        self.traffic[usize::from(uplink)].new_flows += 1;
        Ok("new")
    }

    fn count_new(&mut self, host: Ipv4Addr, now: Tick) {
        let source = self.sources.entry(host).or_insert(Source { bindings: 0, window: now, flows: 0 });
        if since(now, source.window) >= SEEN_GRANULARITY {
            source.window = now;
            source.flows = 0;
        }
        source.flows += 1;
    }

    /// The uplink that the flow's slot names, the next one's if that can't, and after nine of them any that can.
    fn choose(&self, key: &Key) -> Result<u8, Refusal> {
        let fit = self.setup.members & self.healthy;
        if fit == 0 {
            return no_uplink();
        }
        let (src, dst) = (key.src.into(), key.dst.into());
        let (sport, dport) = (key.sport.to_be(), key.dport.to_be());
        let mut value = hash::flow::<mh_common::address::Ipv4>(
            self.setup.seed,
            HashMode::Flow,
            src,
            dst,
            sport,
            dport,
            key.protocol,
        );
        for _ in 0..9 {
            let uplink = self.setup.slots[slots::slot(value)];
            if uplink < 2 && fit >> uplink & 1 != 0 {
                return Ok(uplink);
            }
            value = hash::again(value);
        }
        let fit: Vec<u8> = (0..2).filter(|uplink| fit >> uplink & 1 != 0).collect();
        let nth = (value >> 32) % fit.len() as u64;
        Ok(fit[usize::from(nth == 1)])
    }

    /// The uplink and the outside form of a flow of which a half is gone, if something tells them: the answer's half, or the binding in
    /// mid-stream. An uplink that is down restores nothing.
    fn evicted(&self, key: &Key, frame: &Frame) -> Option<(u8, Key)> {
        let plain = has_ports(key.protocol);
        let midstream = !plain || key.protocol == TCP && frame.datagram.tcp_flags() & SYN == 0;
        let answered_by = |sent: &Key| self.halves.get(&sent.swapped()).filter(|half| half.reply).map(|h| h.uplink);
        if let Some(uplink) = answered_by(key).filter(|uplink| self.is_up(*uplink)) {
            return Some((uplink, *key));
        }
        (0..2).filter(|uplink| self.is_up(*uplink)).find_map(|uplink| {
            let address = if plain { key.src } else { key.dst };
            let end = End { address, port: key.sport, protocol: key.protocol, uplink };
            let binding = self.bindings.get(&end)?;
            let sent = Key { src: binding.address, sport: binding.port, ..*key };
            let ours = plain || self.owners.get(&end).is_some_and(|owner| owner.address == key.src);
            (ours && (midstream || answered_by(&sent) == Some(uplink))).then_some((uplink, sent))
        })
    }

    /// The binding of the packet's source on the uplink.
    fn bind(
        &mut self,
        key: &Key,
        frame: &Frame,
        uplink: u8,
        kind: Kind,
        now: Tick,
        lot: Lot<'_>,
    ) -> Result<(Ipv4Addr, u16), Refusal> {
        let protocol = key.protocol;
        let address = self.setup.outside[usize::from(uplink)];
        let expires = now.wrapping_add(Self::first_timeout(protocol));
        if !has_ports(protocol) {
            let end = End { address: key.dst, port: 0, protocol, uplink };
            self.touched_owners.insert(end);
            self.touched_bindings.insert(end);
            if self.owners.get(&end).is_some_and(|owner| owner.resting.is_none() && owner.address != key.src) {
                return refuse("protocol_in_use");
            }
            self.owners.insert(end, Owner { address: key.src, port: 0, resting: None });
            if self.bindings.insert(end, Binding { address, port: 0, created: now, expires }).is_none() {
                self.bound(key.src);
            }
            return Ok((address, 0));
        }
        let inside = End { address: key.src, port: key.sport, protocol, uplink };
        self.touched_bindings.insert(inside);
        if let Some(binding) = self.bindings.get_mut(&inside) {
            binding.expires = later(expires, binding.expires);
            let (address, port) = (binding.address, binding.port);
            self.permit(key, End { address, port, protocol, uplink }, expires);
            return Ok((address, port));
        }
        let end = |port| End { address, port, protocol, uplink };
        let (first, last) = if protocol == ICMP { (0, u16::MAX) } else { self.setup.ports[usize::from(uplink)] };
        let own = kind == Kind::Host && address == key.src;
        let within = |port: u16| first <= port && port <= last;
        let keeps = (within(key.sport) || own) && self.is_free(&end(key.sport), key.src, now);
        let port = if keeps {
            key.sport
        } else if let Some(port) = lot(&inside) {
            self.check_lot(key.sport, port, (first, last), &end, key.src, now);
            port
        } else {
            let taken = (first..=last).filter(|port| !self.is_free(&end(*port), key.src, now)).count();
            assert!(taken * 4 > usize::from(last - first), "no port for {frame:?}, with {taken} taken");
            return refuse("ports_exhausted");
        };
        self.touched_owners.insert(end(port));
        self.owners.insert(end(port), Owner { address: key.src, port: key.sport, resting: None });
        self.bindings.insert(inside, Binding { address, port, created: now, expires });
        self.permit(key, end(port), expires);
        self.bound(key.src);
        Ok((address, port))
    }

    /// Whether a port that the datapath drew was one that it might draw (RFC 4787 REQ-3, REQ-3a, REQ-4).
    fn check_lot(
        &self,
        wanted: u16,
        port: u16,
        (first, last): (u16, u16),
        end: &dyn Fn(u16) -> End,
        host: Ipv4Addr,
        now: Tick,
    ) {
        assert!(first <= port && port <= last, "port {port} is out of range");
        assert!(self.is_free(&end(port), host, now), "port {port} is taken: {:?}", self.owners.get(&end(port)));
        if end(port).protocol == ICMP {
            return;
        }
        let same_class = |port: u16| (port < 1024) == (wanted < 1024);
        let class_exists = if wanted < 1024 { first < 1024 } else { last >= 1024 };
        assert!(same_class(port) || !class_exists, "port {port} is of another class than {wanted}");
        // Half of the tries look at ports of the same parity; with few ports taken, one of them is free.
        let crowded = last - first < 1000;
        assert!(crowded || port % 2 == wanted % 2, "port {port} is of another parity than {wanted}");
    }

    fn permit(&mut self, key: &Key, end: End, until: Tick) {
        if self.setup.address_dependent {
            self.peers.insert((key.dst, end), until);
        }
    }

    fn bound(&mut self, host: Ipv4Addr) {
        if let Some(source) = self.sources.get_mut(&host) {
            source.bindings += 1;
        }
    }

    /// Both halves of a flow. An answer's half that is there already belongs to the flow if it leads back to it.
    fn insert(&mut self, key: &Key, sent: &Key, uplink: u8, kind: Kind, now: Tick) -> Result<(), Refusal> {
        let answer = sent.swapped();
        self.touched.extend([*key, answer]);
        if self.halves.contains_key(key) {
            return pass("pass_no_flow");
        }
        let mut forward = Half::new(*sent, uplink, false, kind, now);
        match self.halves.get(&answer) {
            Some(reply) if reply.to.swapped() == *key && reply.uplink == uplink && reply.kind == kind => {
                forward.answered = reply.answered;
            }
            _ => {
                self.halves.insert(answer, Half::new(key.swapped(), uplink, true, kind, now));
            }
        }
        self.halves.insert(*key, forward);
        Ok(())
    }

    /// From inside to the outside end of a binding (RFC 4787 REQ-9).
    fn hairpin(&mut self, key: &Key, frame: &Frame, now: Tick, lot: Lot<'_>) -> Result<&'static str, Refusal> {
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
        let (address, port) = self.bind(key, frame, uplink, Kind::Hairpin, now, lot)?;
        let sent = Key { src: address, sport: port, dst: owner.address, dport: owner.port, protocol: key.protocol };
        self.insert(key, &sent, uplink, Kind::Hairpin, now)?;
        Ok("hairpin")
    }

    /// Who has the outside end, if the binding lives.
    fn open(&self, end: &End, now: Tick) -> Option<Owner> {
        let owner = self.owners.get(end).filter(|owner| owner.resting.is_none())?.clone();
        let inside =
            if has_ports(end.protocol) { End { address: owner.address, port: owner.port, ..*end } } else { *end };
        self.bindings.get(&inside).filter(|binding| !passed(now, binding.expires)).map(|_| owner)
    }

    /// From an uplink, of no flow.
    fn inbound(&mut self, key: &Key, uplink: u8, frame: &Frame, now: Tick) -> Result<&'static str, Refusal> {
        if frame.datagram.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        if self.halves.contains_key(key) {
            return pass("pass_no_flow");
        }
        let address = if has_ports(key.protocol) { key.dst } else { key.src };
        let end = End { address, port: key.dport, protocol: key.protocol, uplink };
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
            let reply = Half { answered: forward.answered, ..Half::new(inside, uplink, true, forward.kind, now) };
            self.halves.insert(*key, reply);
            return Ok("restored");
        }
        let answers = matches!(frame.datagram.body, Body::Echo { request: false, .. });
        if !answers && !request && self.open(&end, now).is_some() {
            if !self.lets_in(key, &end, now) {
                return drop("filtered");
            }
            if frame.datagram.tcp_flags() & (FIN | RST) != 0 {
                return drop("tcp_stray");
            }
            let kind = if Self::is_own(inside.dst) { Kind::Host } else { Kind::Lan };
            self.insert(&forward_key, &key.swapped(), uplink, kind, now)?;
            return Ok("inbound");
        }
        if !Self::is_own(key.dst) {
            return pass("pass_no_flow");
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
        self.insert(&key.swapped(), &key.swapped(), uplink, Kind::Host, now)?;
        Ok("host")
    }

    fn lets_in(&self, key: &Key, end: &End, now: Tick) -> bool {
        !self.setup.address_dependent
            || !has_ports(key.protocol)
            || self.peers.get(&(key.src, *end)).is_some_and(|until| !passed(now, *until))
    }

    /// Does what the half says. `begun`: what a packet that has just made the half counts as.
    fn send(
        &mut self,
        key: &Key,
        side: Side,
        frame: &Frame,
        begun: Option<&'static str>,
        now: Tick,
    ) -> Result<Expected, Refusal> {
        let epoch = self.epoch;
        let Some(mut half) = self.halves.get(key).cloned() else { return drop("conntrack_full") };
        let due = self.is_due(&half, now);
        let (outside, size, datagram) = (half.leads_outside(), frame.len(), &frame.datagram);
        let whole = if datagram.df { "too_big" } else { "pass_to_fragment" };
        if outside && size > MTU {
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
            half.resolved = half.kind != Kind::Host && next_mac(&half).is_some();
            if half.resolved || half.kind == Kind::Host {
                half.maintained = now;
                half.epoch = epoch;
            }
        }
        self.halves.insert(*key, half.clone());
        let closing = flags & (FIN | RST) != 0;
        if due || closing || revived {
            self.extend_binding(key, closing, now);
        }
        self.confirm(key);
        if let Part::First(_) = frame.part {
            self.fragments.insert(whose(frame, side), (half.clone(), now));
        }
        let mut new = datagram.with(&half.to);
        if let Body::Tcp { flags, mss: Some(mss), .. } = &mut new.body
            && *flags & SYN != 0
        {
            *mss = (*mss).min(MSS);
        }
        let translated = Frame { datagram: new, ..frame.clone() };
        let on_flow = match (half.kind, half.reply) {
            (Kind::Hairpin, _) => "hairpin",
            (_, true) => "reply",
            (_, false) => "forward",
        };
        let verdict = begun.unwrap_or(on_flow);
        if half.kind == Kind::Host {
            // Delivered here.
            return Ok(Expected { code: TC_NEXT, verdict: "host", mark: mark::NONE, frame: translated });
        }
        if size > MTU {
            // The kernel forwards it, in pieces, or says why not.
            return Ok(Expected { code: TC_NEXT, verdict: whole, mark: mark::DONE, frame: translated });
        }
        Ok(Expected { code: TC_REDIRECT, verdict, mark: mark::DONE, frame: forwarded(translated, &half) })
    }

    fn count(&mut self, uplink: u8, reply: bool, size: u32) {
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
    fn confirm(&mut self, key: &Key) {
        let Some(half) = self.halves.get(key).filter(|half| !half.answered) else { return };
        let other_key = half.to.swapped();
        if self.halves.get(&other_key).is_some_and(|other| !other.answered && other.packets > 0) {
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
    fn later(&mut self, side: Side, frame: &Frame, now: Tick) -> Result<Expected, Refusal> {
        if frame.datagram.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        assert!(self.recalls(side, frame, now), "a fragment out of order");
        let (half, _) = self.fragments[&whose(frame, side)].clone();
        if !self.takes(&half, side) {
            return pass("pass_no_flow");
        }
        self.count(half.uplink, half.reply, frame.len());
        let outside = half.leads_outside();
        if outside && frame.len() > MTU {
            let whole = if frame.datagram.df { "too_big" } else { "pass_to_fragment" };
            return Err((whole, Some(mark::FIRST_UPLINK + u32::from(half.uplink))));
        }
        let translated = Frame { datagram: frame.datagram.with(&half.to), ..frame.clone() };
        if half.kind == Kind::Host {
            return Ok(Expected { code: TC_NEXT, verdict: "host", mark: mark::NONE, frame: translated });
        }
        let mark = if outside { mark::DONE } else { mark::NONE };
        Ok(Expected { code: TC_REDIRECT, verdict: "fragment", mark, frame: forwarded(translated, &half) })
    }

    /// An ICMP error: goes to whoever sent what it quotes, with what it quotes turned back.
    fn error(&mut self, side: Side, frame: &Frame, now: Tick) -> Result<Expected, Refusal> {
        let outer = &frame.datagram;
        let Body::Error { about, kind, code, quoted } = &outer.body else { return pass("pass_protocol") };
        let half =
            about.key().filter(|about| about.src == outer.dst).and_then(|about| self.answerer(&about, side, now));
        let Some(half) = half.filter(|half| self.takes(half, side)) else {
            return match side {
                Side::Lan if Self::route(outer.dst).is_some() => drop("icmp_stray"),
                Side::Lan => pass("pass_not_for_uplink"),
                Side::Uplink(_) => pass("pass_no_flow"),
            };
        };
        if outer.ttl <= 1 {
            return pass("pass_ttl_expired");
        }
        let src = if side == Side::Lan { half.to.src } else { outer.src };
        let about = Box::new(about.with(&half.to.swapped()));
        let body = Body::Error { about, kind: *kind, code: *code, quoted: *quoted };
        let delivered = half.kind == Kind::Host;
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
    fn answerer(&self, about: &Key, side: Side, now: Tick) -> Option<Half> {
        let key = about.swapped();
        if let Some(half) = self.halves.get(&key) {
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

/// The Ethernet addresses of the next hop and of the interface that leads there, if the next hop's is known.
fn next_mac(half: &Half) -> Option<([u8; 6], [u8; 6])> {
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

fn whose(frame: &Frame, side: Side) -> Whose {
    let arrival = match side {
        Side::Lan => None,
        Side::Uplink(uplink) => Some(uplink),
    };
    let d = &frame.datagram;
    (d.src, d.dst, d.id, d.protocol(), arrival)
}

//! How flows begin: the uplink, the outside port, and both halves.

use std::net::Ipv4Addr;

use mh_common::{
    hash::{self, HashMode},
    slots,
    time::{Tick, later, since},
};

use super::rules::{Lot, Refusal, Side, drop, no_uplink, pass, refuse};
use super::tables::{Binding, End, Half, Kind, Model, Owner, SEEN_GRANULARITY, Source, has_ports};
use super::wire::{ACK, FIN, Frame, ICMP, Key, Part, RST, SYN, TCP, UDP};

impl Model {
    /// Restores a flow or begins it.
    pub(super) fn begin(
        &mut self,
        key: &Key,
        frame: &Frame,
        pinned: Option<u8>,
        kind: Kind,
        now: Tick,
        lot: Lot<'_>,
    ) -> Result<&'static str, Refusal> {
        self.hatch_source(key);
        if let Some((uplink, sent)) = self.evicted(key, frame, kind) {
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
        let inside = Self::source_end(key, uplink);
        let lasts = |binding: &Binding| binding.address == self.setup.outside[usize::from(uplink)];
        let made = !self.bindings.get(&inside).is_some_and(lasts);
        let (address, port) = self.bind(key, frame, uplink, kind, now, lot)?;
        let sent = Key { src: address, sport: port, ..*key };
        let alone = !self.halves.contains_key(key) && !self.halves.contains_key(&sent.swapped());
        let may_be = made && kind == Kind::Lan && self.may_be_embryonic(key, frame, uplink) && alone;
        // Only with a port that was fresh, which the datapath knows of others than the first as well.
        let embryonic = (lot.drawn)(&inside).is_some_and(|(_, embryonic)| embryonic);
        let must_be = may_be && port == key.sport && lot.fresh[usize::from(uplink)];
        assert!(if embryonic { may_be } else { !must_be }, "{key:?} at {port} is embryonic: {embryonic}");
        self.make(key, &sent, uplink, kind, embryonic, now)?;
        Ok("new")
    }

    /// Makes a new flow, and counts it.
    fn make(
        &mut self,
        key: &Key,
        sent: &Key,
        uplink: u8,
        kind: Kind,
        embryonic: bool,
        now: Tick,
    ) -> Result<(), Refusal> {
        self.insert(key, sent, uplink, kind, now)?;
        for key in [*key, sent.swapped()] {
            self.halves.entry(key).and_modify(|half| half.embryonic = embryonic);
        }
        self.traffic[usize::from(uplink)].new_flows += 1;
        Ok(())
    }

    /// Whether a flow that begins with this packet and a binding of its own may be embryonic: one of UDP or TCP, in one piece.
    fn may_be_embryonic(&self, key: &Key, frame: &Frame, uplink: u8) -> bool {
        let fits = frame.len() <= self.setup.mtu[usize::from(uplink)].into();
        Self::may_begin_at_xdp(key, frame) && fits
    }

    fn may_begin_at_xdp(key: &Key, frame: &Frame) -> bool {
        let opens = match key.protocol {
            TCP => frame.datagram.tcp_flags() & (SYN | ACK | FIN | RST) == SYN,
            UDP => true,
            _ => false,
        };
        opens && frame.part == Part::Whole
    }

    fn source_end(key: &Key, uplink: u8) -> End {
        End { address: key.src, port: key.sport, protocol: key.protocol, uplink }
    }

    /// Begins the packet's flow, if that may be embryonic. Nothing is known of its source. Returns its key.
    pub(super) fn begin_at_xdp(&mut self, side: Side, frame: &Frame, now: Tick, lot: Lot<'_>) -> Option<Key> {
        let key = frame.datagram.key().filter(|key| Self::may_begin_at_xdp(key, frame))?;
        let from_lan = side == Side::Lan && frame.datagram.is_forwardable() && frame.datagram.ttl > 1;
        if !from_lan || self.outside_of(key.dst).is_some() {
            return None;
        }
        let bound = (0..2).any(|uplink| self.bindings.contains_key(&Self::source_end(&key, uplink)));
        let ours = self.halves.get(&key).is_some_and(|half| self.takes(half, side));
        assert!(!bound && !ours, "{key:?} is not of a source of which nothing is known");
        let on_link = Self::route(key.dst)?;
        self.count_new(key.src, now);
        let begun = self.embryo(&key, frame, on_link, now, lot);
        if begun.is_none()
            && let Some(source) = self.sources.get_mut(&key.src)
        {
            source.flows -= 1;
        }
        begun.map(|()| key)
    }

    fn embryo(&mut self, key: &Key, frame: &Frame, on_link: Option<u8>, now: Tick, lot: Lot<'_>) -> Option<()> {
        let uplink = match on_link {
            None => self.choose(key).ok()?,
            Some(uplink) => Some(uplink).filter(|uplink| self.is_up(*uplink))?,
        };
        if !self.may_be_embryonic(key, frame, uplink) {
            return None;
        }
        let (first, last) = self.setup.ports[usize::from(uplink)];
        let kept = lot.fresh[usize::from(uplink)] && (first..=last).contains(&key.sport);
        if !kept && (lot.drawn)(&Self::source_end(key, uplink)).is_none() {
            // Something was known of all ports that follow from the source.
            return None;
        }
        let (address, port) = self.bind(key, frame, uplink, Kind::Lan, now, lot).ok()?;
        let sent = Key { src: address, sport: port, ..*key };
        if self.halves.contains_key(&sent.swapped()) {
            return None;
        }
        self.make(key, &sent, uplink, Kind::Lan, true, now).ok()
    }

    pub(super) fn count_new(&mut self, host: Ipv4Addr, now: Tick) {
        self.touched_sources.insert(host);
        let source = self.sources.entry(host).or_insert(Source { bindings: 0, window: now, flows: 0 });
        if since(now, source.window) >= SEEN_GRANULARITY {
            source.window = now;
            source.flows = 0;
        }
        source.flows += 1;
    }

    /// The uplink that the flow's slot names, the next one's if that can't, and after nine of them any that can.
    pub(super) fn choose(&self, key: &Key) -> Result<u8, Refusal> {
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
    pub(super) fn evicted(&self, key: &Key, frame: &Frame, kind: Kind) -> Option<(u8, Key)> {
        let plain = has_ports(key.protocol);
        let midstream = !plain || key.protocol == TCP && frame.datagram.tcp_flags() & SYN == 0;
        let answered_by = |sent: &Key| {
            self.halves.get(&sent.swapped()).filter(|half| half.reply && !half.embryonic).map(|half| half.uplink)
        };
        // All uplinks translate: what begins inside has no answers to its own addresses. The machine itself may have been asked.
        let untranslated = answered_by(key).filter(|uplink| self.is_up(*uplink) && (kind == Kind::Host || midstream));
        if let Some(uplink) = untranslated {
            return Some((uplink, *key));
        }
        (0..2).filter(|uplink| self.is_up(*uplink)).find_map(|uplink| {
            let address = if plain { key.src } else { key.dst };
            let end = End { address, port: key.sport, protocol: key.protocol, uplink };
            let binding = self.bindings.get(&end)?;
            let sent = Key { src: binding.address, sport: binding.port, ..*key };
            let lasts = self.outside_of(binding.address) == Some(uplink);
            let ours = lasts && (plain || self.owners.get(&end).is_some_and(|owner| owner.address == key.src));
            (ours && (midstream || answered_by(&sent) == Some(uplink))).then_some((uplink, sent))
        })
    }

    /// The binding of the packet's source on the uplink.
    pub(super) fn bind(
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
            self.owners.insert(end, Owner { address: key.src, port: 0, resting: None, fixed: false });
            if self.bindings.insert(end, Binding { address, port: 0, created: now, expires, fixed: false }).is_none() {
                self.bound(key.src);
            }
            return Ok((address, 0));
        }
        let inside = End { address: key.src, port: key.sport, protocol, uplink };
        self.touched_bindings.insert(inside);
        if let Some(stale) = self.bindings.get(&inside).filter(|b| self.outside_of(b.address) != Some(uplink)).cloned()
        {
            // To an address that the uplink has lost.
            let end = End { address: stale.address, port: stale.port, protocol, uplink };
            self.owners.remove(&end);
            self.touched_owners.insert(end);
            self.bindings.remove(&inside);
        }
        if let Some(binding) = self.bindings.get_mut(&inside) {
            binding.expires = later(expires, binding.expires);
            let (address, port) = (binding.address, binding.port);
            self.hatch_binding(&inside, &End { address, port, ..inside });
            self.permit(key, End { address, port, protocol, uplink }, expires);
            return Ok((address, port));
        }
        let end = |port| End { address, port, protocol, uplink };
        let (first, last) = if protocol == ICMP { (1, u16::MAX) } else { self.setup.ports[usize::from(uplink)] };
        let own = kind == Kind::Host && address == key.src;
        let within = |port: u16| first <= port && port <= last;
        let known = lot.fresh_only && !lot.fresh[usize::from(uplink)];
        let keeps = (within(key.sport) || own) && !known && self.is_free(&end(key.sport), key.src, now);
        let port = if keeps {
            key.sport
        } else if let Some((port, _)) = (lot.drawn)(&inside) {
            self.check_lot(key.sport, port, (first, last), &end, key.src, now);
            port
        } else {
            let taken = (first..=last).filter(|port| !self.is_free(&end(*port), key.src, now)).count();
            assert!(taken * 4 > usize::from(last - first), "no port for {frame:?}, with {taken} taken");
            return refuse("ports_exhausted");
        };
        self.touched_owners.insert(end(port));
        self.owners.insert(end(port), Owner { address: key.src, port: key.sport, resting: None, fixed: false });
        self.bindings.insert(inside, Binding { address, port, created: now, expires, fixed: false });
        self.permit(key, end(port), expires);
        self.bound(key.src);
        Ok((address, port))
    }

    /// Whether a port that the datapath drew was one that it might draw (RFC 4787 REQ-3, REQ-3a, REQ-4).
    pub(super) fn check_lot(
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

    pub(super) fn permit(&mut self, key: &Key, end: End, until: Tick) {
        if self.setup.address_dependent {
            self.touched_peers.insert((key.dst, end));
            self.peers.entry((key.dst, end)).and_modify(|known| *known = later(until, *known)).or_insert(until);
        }
    }

    pub(super) fn bound(&mut self, host: Ipv4Addr) {
        if let Some(source) = self.sources.get_mut(&host) {
            source.bindings += 1;
        }
    }

    /// Both halves of a flow. An answer's half that is there already belongs to the flow if it leads back to it.
    pub(super) fn insert(&mut self, key: &Key, sent: &Key, uplink: u8, kind: Kind, now: Tick) -> Result<(), Refusal> {
        let answer = sent.swapped();
        self.touched.extend([*key, answer]);
        if self.halves.contains_key(key) {
            return pass("pass_no_flow");
        }
        // An embryonic flow loses a half: its answers' to one of the machine itself, its own to one from inside to inside.
        if let Some(half) = self.halves.get(&answer).filter(|half| half.embryonic) {
            let forward = if half.reply { half.to.swapped() } else { answer };
            self.hatch(&forward);
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
}

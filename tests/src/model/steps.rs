//! Random steps: packets between few addresses and ports, so that they meet often.

use std::net::Ipv4Addr;

use mh_common::{abi::mark, time::Tick};

use super::rules::{Expected, ROUTER, Side};
use super::tables::{Kind, Model};
use super::wire::{ACK, Body, Datagram, FIN, Frame, ICMP, Key, PSH, Part, RST, SYN, TCP, UDP, UDPLITE};
use crate::packet::Mac;
use crate::rig::{GATEWAY1, GATEWAY2, HOST, LAN, WAN1, WAN2};

/// An inside host to which the machine has no route but by an uplink.
const LOST: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// Addresses that no router forwards.
const SCOPED: [Ipv4Addr; 3] =
    [Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::new(169, 254, 1, 1), Ipv4Addr::new(255, 255, 255, 255)];
/// Identification of datagrams whose fragments may come out of order: one only, so that few wait at a time.
const OVERTAKEN: u16 = 5;
/// A protocol without ports.
const GRE: u8 = 47;

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        let value = mh_common::hash::again(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        value
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.number() % n.max(1) as u64).unwrap_or(0)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Which program a packet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// That at XDP.
    Xdp,
    /// That at TC ingress.
    Tc,
    /// That at TC egress, with this value in the mark, on what the machine itself sends.
    Egress(u32),
    /// The same on what the kernel forwards.
    Forwarded(u32),
}

/// What happens next.
#[derive(Clone, Debug)]
pub enum Step {
    /// A packet.
    Packet(Hook, Side, Frame),
    /// These weights.
    Weights([u32; 2]),
    /// These uplinks are up.
    Healthy(u64),
    /// So many ticks pass.
    Age(u32),
    /// The controller sweeps.
    Sweep,
    /// These halves are evicted.
    Evict(Vec<Key>),
    /// Ethernet addresses may have changed.
    NeighbourEpoch,
    /// An uplink has another outside address.
    Renumber(u8, Ipv4Addr),
}

const HOSTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 168, 1, 10), Ipv4Addr::new(192, 168, 1, 11), Ipv4Addr::new(192, 168, 1, 12)];
const REMOTES: [Ipv4Addr; 5] = [
    Ipv4Addr::new(192, 0, 2, 10),
    Ipv4Addr::new(192, 0, 2, 20),
    Ipv4Addr::new(192, 0, 2, 30),
    Ipv4Addr::new(198, 51, 100, 77),
    Ipv4Addr::new(203, 0, 113, 77),
];
/// What uplinks may be renumbered to: an own address of the machine, and one that is routed to it.
const ADDRESSES: [[Ipv4Addr; 2]; 2] = [
    [Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(198, 51, 100, 9)],
    [Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(203, 0, 113, 9)],
];
const PORTS: [u16; 5] = [40001, 40002, 40003, 700, 0];
const SERVICES: [u16; 2] = [443, 53];
const FLAGS: [u8; 8] = [SYN, SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST, RST | ACK];

/// Draws steps.
pub struct Steps {
    /// Where the luck comes from.
    pub random: Random,
    /// Datagrams of which first fragments were sent, to be followed.
    started: Vec<(Side, Frame)>,
    /// First fragments whose datagrams' later ones have come before.
    overtaken: Vec<(Side, Frame)>,
    /// Recent packets as they arrived and as they left, for errors to be about.
    recent: Vec<Datagram>,
    /// What was too large for an uplink and is the kernel's to fragment.
    large: Vec<(u8, Frame)>,
}

impl Steps {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { random: Random(seed), started: Vec::new(), overtaken: Vec::new(), recent: Vec::new(), large: Vec::new() }
    }

    /// The next step.
    pub fn step(&mut self, model: &Model, now: Tick) -> Step {
        let random = &mut self.random;
        match random.below(1000) {
            0..5 => Step::Weights(random.of(&[[1, 1], [1, 0], [0, 1], [3, 1], [1, 20]])),
            5..15 => Step::Healthy(random.of(&[0b11, 0b11, 0b01, 0b10, 0b00])),
            15..22 => Step::Age(match random.below(10) {
                0..6 => u32::try_from(random.below(300)).unwrap_or(0),
                6..9 => u32::try_from(random.below(3000)).unwrap_or(0),
                _ => u32::try_from(random.below(70_000)).unwrap_or(0),
            }),
            22..28 => Step::Sweep,
            28..50 => {
                let Some(key) = self.any_half(model, |_| true) else { return Step::Sweep };
                let other = model.halves[&key].to.swapped();
                Step::Evict(if self.random.one_in(3) { vec![key, other] } else { vec![key] })
            }
            50 => Step::NeighbourEpoch,
            51 => {
                let uplink = u8::from(random.one_in(2));
                Step::Renumber(uplink, random.of(&ADDRESSES[usize::from(uplink)]))
            }
            _ => self.packet(model, now),
        }
    }

    /// Takes note of a packet that was sent.
    pub fn sent(&mut self, side: Side, arrived: &Frame, expected: &Expected) {
        let marked = [mark::FIRST_UPLINK, mark::FIRST_UPLINK + 1].contains(&expected.mark);
        if expected.verdict == "pass_to_fragment" && marked && side == Side::Lan && arrived.part == Part::Whole {
            self.large.push((u8::from(expected.mark != mark::FIRST_UPLINK), arrived.clone()));
            return;
        }
        if let Part::First(_) = arrived.part {
            self.started.push((side, arrived.clone()));
        } else if arrived.part == Part::Whole
            && !matches!(arrived.datagram.body, Body::Error { .. })
            && expected.verdict != "reset"
        {
            self.recent.push(expected.frame.datagram.clone());
            if self.recent.len() > 40 {
                let oldest = self.random.below(30);
                self.recent.swap_remove(oldest);
            }
        }
        if self.started.len() > 8 {
            self.started.remove(0);
        }
    }

    fn any_half(&mut self, model: &Model, wanted: impl Fn(&super::tables::Half) -> bool) -> Option<Key> {
        // Sorted, since the order of a hash map is no part of the seed.
        let mut keys: Vec<Key> = model.halves.iter().filter(|(_, half)| wanted(half)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        (!keys.is_empty()).then(|| self.random.of(&keys))
    }

    fn packet(&mut self, model: &Model, now: Tick) -> Step {
        let (side, frame) = match self.random.below(100) {
            0..10 => self.fragment(model, now).unwrap_or_else(|| self.inside_packet(model)),
            10..18 => self.error().unwrap_or_else(|| self.outside_packet(model)),
            18..50 => self.inside_packet(model),
            50..60 => self.of_the_machine(model),
            60..62 => self.fragmented_by_kernel().unwrap_or_else(|| self.of_the_machine(model)),
            _ => self.outside_packet(model),
        };
        let hook = match side {
            Side::Egress(uplink) => {
                let fragmented = frame.part != Part::Whole && !self.random.one_in(8);
                let other = self.random.of(&[mark::DONE, mark::FIRST_UPLINK, mark::FIRST_UPLINK + 1]);
                let own = if fragmented { mark::FIRST_UPLINK + u32::from(uplink) } else { mark::NONE };
                let value = if self.random.one_in(20) { other } else { own };
                if value == mark::NONE || self.random.one_in(20) { Hook::Egress(value) } else { Hook::Forwarded(value) }
            }
            _ if frame.part == Part::Whole && self.random.one_in(5) => Hook::Xdp,
            _ => Hook::Tc,
        };
        Step::Packet(hook, side, frame)
    }

    /// A packet of the machine itself: of a flow that exists, of a new one, or an error.
    fn of_the_machine(&mut self, model: &Model) -> (Side, Frame) {
        let uplink = self.random.below(2);
        let key = if self.random.one_in(2) {
            self.any_half(model, |half| half.kind == Kind::Host && !half.reply)
        } else {
            None
        };
        let key = key.unwrap_or_else(|| {
            let protocol = self.random.of(&[TCP, UDP, ICMP, GRE]);
            let src = if self.random.one_in(15) { ROUTER } else { self.random.of(&model.setup.outside) };
            let (sport, dport) = match protocol {
                TCP | UDP => (self.random.of(&[40001, 22, 68, 9999]), self.random.of(&SERVICES)),
                ICMP => (self.random.of(&PORTS), 0),
                _ => (0, 0),
            };
            Key { src, dst: self.random.of(&REMOTES), sport, dport, protocol }
        });
        let (from, to) = [(WAN1, GATEWAY1), (WAN2, GATEWAY2)][uplink];
        let mut frame = self.frame(to, from, &key, true);
        if self.random.one_in(8)
            && let Some((_, about)) = self.error()
        {
            let src = model.setup.outside[uplink];
            frame.datagram = Datagram { src, ..about.datagram };
        }
        (Side::Egress(u8::from(uplink == 1)), frame)
    }

    /// The first fragment that the kernel has made of something large.
    fn fragmented_by_kernel(&mut self) -> Option<(Side, Frame)> {
        let (uplink, mut frame) = self.large.pop()?;
        frame.part = Part::First(if frame.len() > 1500 { 1480 } else { 1376 });
        frame.datagram.ttl -= 1;
        Some((Side::Egress(uplink), frame))
    }

    fn inside_packet(&mut self, model: &Model) -> (Side, Frame) {
        let key = if self.random.one_in(2) {
            self.any_half(model, |half| half.kind != Kind::Host && (!half.reply || half.kind == Kind::Hairpin))
        } else {
            None
        };
        let key = key.unwrap_or_else(|| {
            let protocol = self.random.of(&[TCP, TCP, TCP, TCP, UDP, UDP, UDP, UDP, ICMP, ICMP, ICMP, GRE, UDPLITE]);
            let dst = match self.random.below(20) {
                0..3 => self.random.of(&model.setup.outside),
                3 => self.random.of(&[ROUTER, HOSTS[0], SCOPED[0], SCOPED[1], SCOPED[2]]),
                _ => self.random.of(&REMOTES),
            };
            let mut dport = self.random.of(&SERVICES);
            if let Some(outside) = model.setup.outside.iter().position(|outside| *outside == dst) {
                dport = self.outside_port(model, protocol, outside).unwrap_or(dport);
            }
            let (sport, dport) = match protocol {
                TCP | UDP => (self.random.of(&PORTS), dport),
                ICMP if self.random.one_in(10) => (0, self.random.of(&PORTS)),
                ICMP => (self.random.of(&PORTS), 0),
                _ => (0, 0),
            };
            let src = if self.random.one_in(20) { LOST } else { self.random.of(&HOSTS) };
            Key { src, dst, sport, dport, protocol }
        });
        (Side::Lan, self.frame(LAN, HOST, &key, true))
    }

    fn outside_port(&mut self, model: &Model, protocol: u8, uplink: usize) -> Option<u16> {
        let mut ports: Vec<u16> = model
            .owners
            .keys()
            .filter(|end| end.protocol == protocol && usize::from(end.uplink) == uplink)
            .map(|end| end.port)
            .collect();
        ports.sort_unstable();
        (!ports.is_empty()).then(|| self.random.of(&ports))
    }

    fn outside_packet(&mut self, model: &Model) -> (Side, Frame) {
        let mut uplink = self.random.below(2);
        let key = if self.random.below(10) < 7 {
            self.any_half(model, |half| half.reply && half.kind != Kind::Hairpin)
        } else {
            None
        };
        let key = match key {
            Some(key) => {
                if !self.random.one_in(20) {
                    uplink = usize::from(model.halves[&key].uplink);
                }
                key
            }
            None => {
                let protocol = self.random.of(&[TCP, TCP, UDP, UDP, UDP, ICMP, ICMP, GRE, UDPLITE]);
                let dst = match self.random.below(20) {
                    0 => self.random.of(&HOSTS),
                    1 => model.setup.outside[1 - uplink],
                    _ => model.setup.outside[uplink],
                };
                let port = if self.random.one_in(3) { None } else { self.outside_port(model, protocol, uplink) };
                let port = port.unwrap_or_else(|| self.random.of(&[40001, 40002, 22, 9999]));
                let (sport, dport) = match protocol {
                    TCP | UDP => (self.random.of(&SERVICES), port),
                    ICMP if self.random.one_in(2) => (self.random.of(&PORTS), 0),
                    ICMP => (0, port),
                    _ => (0, 0),
                };
                Key { src: self.random.of(&REMOTES), dst, sport, dport, protocol }
            }
        };
        let (to, from) = [(WAN1, GATEWAY1), (WAN2, GATEWAY2)][uplink];
        (Side::Uplink(u8::from(uplink == 1)), self.frame(to, from, &key, false))
    }

    /// A packet with this key. `inside`: from inside.
    fn frame(&mut self, to: Mac, from: Mac, key: &Key, inside: bool) -> Frame {
        let random = &mut self.random;
        let body = match key.protocol {
            TCP => {
                let flags = random.of(&FLAGS);
                let mss =
                    if flags & SYN != 0 && random.one_in(3) { Some(random.of(&[536, 1400, 1461, 8960])) } else { None };
                Body::Tcp { sport: key.sport, dport: key.dport, flags, mss }
            }
            UDP => Body::Udp { sport: key.sport, dport: key.dport, summed: !random.one_in(5) },
            ICMP => {
                // Of an identifier of zero, the key does not tell.
                let request = if key.sport == key.dport { inside } else { key.sport != 0 };
                Body::Echo { request, id: key.sport.max(key.dport) }
            }
            other => Body::Other(other),
        };
        let len = match random.below(40) {
            0..2 => 1340 + random.below(200),
            _ => 2 + random.below(40),
        };
        let mut payload = vec![0; len];
        for byte in payload.iter_mut().take(4) {
            *byte = random.number().to_be_bytes()[0];
        }
        let datagram = Datagram {
            src: key.src,
            dst: key.dst,
            ttl: if random.one_in(25) { 1 } else { random.of(&[2, 64, 255]) },
            id: u16::try_from(random.below(6)).unwrap_or(0),
            df: random.one_in(2),
            body,
            payload,
        };
        Frame { to, from, datagram, part: Part::Whole }
    }

    /// A first fragment, or another one of a datagram: mostly of one whose first fragment has found its way.
    fn fragment(&mut self, model: &Model, now: Tick) -> Option<(Side, Frame)> {
        if self.random.one_in(2) {
            let (side, mut frame) =
                if self.random.one_in(2) { self.inside_packet(model) } else { self.outside_packet(model) };
            frame.datagram.payload.resize(80 + self.random.below(40), 7);
            let end = 8 * (4 + self.random.below(3));
            frame.part = Part::First(end);
            if !self.random.one_in(4) {
                return Some((side, frame));
            }
            frame.datagram.id = OVERTAKEN;
            self.overtaken.push((side, frame.clone()));
            frame.part = Part::Later(end);
            frame.datagram.ttl = 60;
            return Some((side, frame));
        }
        if self.random.one_in(4) {
            return self.overtaken.pop();
        }
        let at = self.random.below(self.started.len());
        let (side, first) = self.started.get(at)?.clone();
        let Part::First(end) = first.part else { return None };
        let mut frame = Frame { part: Part::Later(end), ..first };
        frame.datagram.ttl = if self.random.one_in(20) { 1 } else { 60 };
        let waits = frame.datagram.id == OVERTAKEN && !model.recalls(side, &frame, now);
        let fit = frame.datagram.ttl == 1 || waits || model.recalls(side, &frame, now.wrapping_add(2));
        fit.then_some((side, frame))
    }

    /// An error about a recent packet, by whoever got it, or by somebody on its way.
    fn error(&mut self) -> Option<(Side, Frame)> {
        if self.recent.is_empty() {
            return None;
        }
        let at = self.random.below(self.recent.len());
        let mut about = self.recent[at].clone();
        about.ttl = self.random.of(&[1, 60]);
        about.payload.truncate(40);
        let inside = HOSTS.contains(&about.dst);
        let src = if self.random.one_in(2) {
            about.dst
        } else if inside {
            HOSTS[2]
        } else {
            REMOTES[2]
        };
        let (side, to, from) = if inside {
            (Side::Lan, LAN, HOST)
        } else if self.random.one_in(12) {
            self.random.of(&[
                (Side::Uplink(0), WAN1, GATEWAY1),
                (Side::Uplink(1), WAN2, GATEWAY2),
                (Side::Lan, LAN, HOST),
            ])
        } else if about.src.octets().starts_with(&[203, 0, 113]) {
            (Side::Uplink(1), WAN2, GATEWAY2)
        } else {
            (Side::Uplink(0), WAN1, GATEWAY1)
        };
        let (kind, code) = self.random.of(&[(3, 1), (3, 4), (11, 0), (12, 0), (4, 0)]);
        let quoted = self.random.of(&[8, 12, 20, 28]);
        let datagram = Datagram {
            src,
            dst: about.src,
            ttl: if self.random.one_in(20) { 1 } else { 64 },
            id: 77,
            df: false,
            body: Body::Error { kind, code, about: Box::new(about), quoted },
            payload: Vec::new(),
        };
        Some((side, Frame { to, from, datagram, part: Part::Whole }))
    }
}

//! Both worlds side by side: every step is done in the datapath and in the model, and then compared.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail, ensure};
use mh_common::{abi, address::Ipv4, binding, flow, policy, time::Tick};
use mh_userspace::datapath::{
    flows::{self, Flow},
    sweep,
    tables::Tables,
};
use nix::time::{ClockId, clock_gettime};

use super::rules::Lot;
use super::steps::{Hook, Step, Steps};
use super::tables::{Binding, End, Half, Kind, Model, Owner, Setup, Source, Traffic};
use super::wire::{Frame, Key};
use super::{Expected, Side};
use crate::rig::Rig;

/// How many steps back the log of a difference goes.
const LOG: usize = 20;
/// How often all tables are compared.
const ALL: u64 = 500;
/// Where the mark has its value.
const MARK_SHIFT: u32 = 16;
/// A step does not begin so shortly before the datapath's clock ticks, so that it does not tick meanwhile.
const MARGIN_NS: u64 = 1_500_000;

/// Does so many steps.
///
/// # Errors
/// At the first difference.
pub fn run(rig: &mut Rig, setup: Setup, seed: u64, steps: u64) -> Result<()> {
    let mut world = World { rig, model: Model::new(setup), steps: Steps::new(seed), counts: HashMap::new() };
    world.read_slots()?;
    world.read_forwards()?;
    let mut log = VecDeque::new();
    for number in 0..steps {
        let now = quiet_tick();
        let step = world.steps.step(&world.model, now);
        log.push_back(format!("{number} at {now}: {step:?}"));
        if log.len() > LOG {
            log.pop_front();
        }
        let checked =
            world.step(&step, now).and_then(|()| if number % ALL == 0 { world.compare_all() } else { Ok(()) });
        checked.with_context(|| {
            let log: Vec<String> = log.iter().cloned().collect();
            format!("seed {seed}, step {number}; the last steps:\n{}", log.join("\n"))
        })?;
    }
    world.compare_all()?;
    let mut counts: Vec<_> = world.counts.into_iter().collect();
    counts.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
    eprintln!("seed {seed}, {steps} steps without a difference: {counts:?}");
    Ok(())
}

/// The tick that it is, and will be for a while.
fn quiet_tick() -> Tick {
    loop {
        let ns = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |time| u64::try_from(std::time::Duration::from(time).as_nanos()).unwrap_or(0));
        if mh_common::time::tick(ns) == mh_common::time::tick(ns + MARGIN_NS) {
            return mh_common::time::tick(ns);
        }
        std::hint::spin_loop();
    }
}

struct World<'a> {
    rig: &'a mut Rig,
    model: Model,
    steps: Steps,
    counts: HashMap<&'static str, u64>,
}

impl World<'_> {
    fn step(&mut self, step: &Step, now: Tick) -> Result<()> {
        let model = &mut self.model;
        match step {
            Step::Packet(hook, side, frame) => return self.packet(*hook, *side, frame, now),
            Step::Weights(weights) => {
                self.rig.set_weights(*weights)?;
                return self.read_slots();
            }
            Step::Healthy(healthy) => {
                self.rig.set_healthy(*healthy)?;
                model.healthy = *healthy;
            }
            Step::Age(ticks) => {
                self.rig.age(*ticks)?;
                model.age(*ticks);
            }
            Step::Sweep => {
                let timeouts = self.rig.tables.settings.get(&0, 0)?.timeouts;
                sweep::sweep(&mut self.rig.tables, &timeouts, now)?;
                model.sweep(now);
                return self.compare_all();
            }
            Step::Evict(keys) => {
                for key in keys {
                    self.rig.evict(&kernel_key(key))?;
                    model.evict(key);
                }
            }
            Step::NeighbourEpoch => {
                model.epoch = self.rig.next_neighbour_epoch(model.healthy)?.to_le_bytes()[0];
            }
            Step::Renumber(uplink, address) => {
                model.renumber(*uplink, *address);
                model.epoch = self.rig.renumber(*uplink, *address, model.healthy)?.to_le_bytes()[0];
            }
        }
        Ok(())
    }

    fn read_slots(&mut self) -> Result<()> {
        let found = self.rig.tables.policies.get(&policy::DEFAULT, 0)?;
        self.model.setup.members = u64::from(found.members);
        self.model.setup.slots = self.rig.tables.slots.get(&found.table, 0)?.to_vec();
        Ok(())
    }

    /// Port forwards are there from the start.
    fn read_forwards(&mut self) -> Result<()> {
        let Self { rig, model, .. } = self;
        rig.tables.by_inside4.walk(|end, outside| {
            model.bindings.insert(model_end(&end), model_binding(&outside));
        })?;
        rig.tables.by_outside4.walk(|end, inside| {
            model.owners.insert(model_end(&end), model_owner(&inside));
        })?;
        Ok(())
    }

    fn packet(&mut self, hook: Hook, side: Side, frame: &Frame, now: Tick) -> Result<()> {
        let interface = match side {
            Side::Lan => "lan0",
            Side::Uplink(0) | Side::Egress(0) => "wan1",
            Side::Uplink(_) | Side::Egress(_) => "wan2",
        };
        let seed = self.model.setup.seed;
        let is_unknown = |key: Key| self.rig.tables.known.is_unknown(seed, &kernel_key(&key));
        let unknown = frame.datagram.key().is_some_and(is_unknown);
        let fresh = self
            .model
            .setup
            .outside
            .map(|address| frame.datagram.key().is_some_and(|key| is_unknown(Key { src: address, ..key })));
        let bytes = frame.build();
        let outcome = match hook {
            Hook::Xdp => self.rig.xdp(interface, &bytes)?,
            Hook::Tc => self.rig.tc(interface, &bytes)?,
            Hook::Egress(mark) => self.rig.egress(interface, mark << MARK_SHIFT, &bytes)?,
            Hook::Forwarded(mark) => self.rig.egress_forwarded(interface, mark << MARK_SHIFT, &bytes)?,
        };
        let until = flows::now();
        // Rarely, the clock has ticked in spite of the margin: before, after, or between two programs.
        let mut differs = Ok(());
        let before = (until != now).then(|| self.model.clone());
        for tick in now..=until {
            if let (Some(before), true) = (&before, tick != now) {
                self.model.clone_from(before);
            }
            let tables = &self.rig.tables;
            let drawn = |end: &End| {
                let embryonic = tables.by_inside4.get(&kernel_end(end), 0).is_err();
                binding_of(tables, end).map(|outside| (u16::from_be(outside.port), embryonic))
            };
            let lot = Lot { drawn: &drawn, fresh, fresh_only: hook == Hook::Xdp };
            let model = &mut self.model;
            let expected = match (hook, side) {
                (Hook::Xdp, _) => model.xdp(side, frame, tick, unknown, lot),
                (Hook::Egress(mark), Side::Egress(uplink)) => model.egress(uplink, mark, true, frame, tick, lot),
                (Hook::Forwarded(mark), Side::Egress(uplink)) => model.egress(uplink, mark, false, frame, tick, lot),
                _ => model.tc(side, frame, tick, lot),
            };
            if until != now {
                self.adopt_times(until - now);
            }
            differs = self.compare(&expected, &outcome, side, frame);
            if differs.is_ok() {
                break;
            }
        }
        differs
    }

    fn compare(&mut self, expected: &Expected, outcome: &crate::rig::Outcome, side: Side, frame: &Frame) -> Result<()> {
        let counted: Vec<_> = outcome.counted.iter().map(|(name, count)| (*name, *count)).collect();
        let wanted: &[_] = if expected.verdict.is_empty() { &[] } else { &[(expected.verdict, 1)] };
        ensure!(counted == wanted, "counted {counted:?}, expected {expected:?}");
        ensure!(outcome.code == expected.code, "code {}, expected {expected:?}", outcome.code);
        ensure!(outcome.mark == expected.mark << MARK_SHIFT, "mark {:#x}, expected {expected:?}", outcome.mark);
        let bytes = expected.frame.build();
        let dropped = expected.code == crate::rig::TC_DROP;
        ensure!(
            dropped || outcome.packet == bytes,
            "packet\n{:02x?}, expected\n{bytes:02x?}: {expected:?}",
            outcome.packet
        );
        *self.counts.entry(expected.verdict).or_default() += 1;
        self.compare_touched().with_context(|| format!("after {expected:?}"))?;
        if expected.code != crate::rig::TC_DROP || expected.frame != *frame {
            self.steps.sent(side, frame, expected);
        }
        Ok(())
    }

    /// Takes the times that the datapath has written over from it, where they are off by no more than `span`.
    fn adopt_times(&mut self, span: u32) {
        let Self { rig, model, .. } = self;
        let adopt = |time: &mut Tick, found: Tick| {
            if found.wrapping_sub(*time).wrapping_add(span) <= 2 * span {
                *time = found;
            }
        };
        let tables = &rig.tables;
        for key in &model.touched {
            if let (Some(half), Some(entry)) = (model.halves.get_mut(key), tables.half(&kernel_key(key))) {
                adopt(&mut half.created, entry.created);
                adopt(&mut half.last_seen, entry.last_seen);
                adopt(&mut half.maintained, entry.maintained);
            }
        }
        for end in &model.touched_bindings {
            if let (Some(binding), Some(found)) = (model.bindings.get_mut(end), binding_of(tables, end)) {
                adopt(&mut binding.created, found.created);
                adopt(&mut binding.expires, found.expires);
            }
        }
        for host in &model.touched_sources {
            if let (Some(source), Ok(found)) = (model.sources.get_mut(host), tables.sources4.get(&(*host).into(), 0)) {
                adopt(&mut source.window, found.window);
            }
        }
        for peer in &model.touched_peers {
            let outside = kernel_end(&peer.1);
            let found = tables.peers4.get(&binding::Peer { remote: peer.0.into(), outside }, 0);
            if let (Some(until), Ok(found)) = (model.peers.get_mut(peer), found) {
                adopt(until, found);
            }
        }
    }

    fn compare_touched(&self) -> Result<()> {
        let tables = &self.rig.tables;
        for key in &self.model.touched {
            let at = kernel_key(key);
            let found = match (tables.flows4.get(&at, 0), tables.new_flows4.get(&at, 0)) {
                (Ok(_), Ok(_)) => bail!("{key:?} is in both tables"),
                (Ok(mut entry), _) => {
                    tables.copies.count(&at, &mut entry);
                    Some(model_half(key, &entry, true))
                }
                (_, Ok(entry)) => Some(model_half(key, &entry, false)),
                _ => tables.half(&at).map(|entry| Half { embryonic: true, ..model_half(key, &entry, false) }),
            };
            same(key, found.as_ref(), self.model.halves.get(key))?;
        }
        for end in &self.model.touched_bindings {
            let found = binding_of(tables, end).map(|outside| model_binding(&outside));
            same(end, found.as_ref(), self.model.bindings.get(end))?;
        }
        for end in &self.model.touched_owners {
            let found = tables.by_outside4.get(&kernel_end(end), 0).ok().map(|inside| model_owner(&inside));
            same(end, found.as_ref(), self.model.owners.get(end))?;
        }
        for host in &self.model.touched_sources {
            let found = tables.sources4.get(&(*host).into(), 0).ok().map(|source| model_source(&source));
            same(host, found.as_ref(), self.model.sources.get(host))?;
        }
        for peer in &self.model.touched_peers {
            let (remote, outside) = (peer.0.into(), kernel_end(&peer.1));
            let found = tables.peers4.get(&binding::Peer { remote, outside }, 0).ok();
            same(peer, found.as_ref(), self.model.peers.get(peer))?;
        }
        Ok(())
    }

    fn compare_all(&self) -> Result<()> {
        let tables = &self.rig.tables;
        let mut halves = HashMap::new();
        for (table, answered) in [(&tables.flows4, true), (&tables.new_flows4, false)] {
            table.walk(|key, mut entry| {
                tables.copies.count(&key, &mut entry);
                let key = model_key(&key);
                halves.insert(key, model_half(&key, &entry, answered));
            })?;
        }
        tables.each_embryo(|end, inside| {
            for (key, entry) in flows::embryo(end, inside).iter().flat_map(Flow::halves) {
                let key = model_key(&key);
                halves.insert(key, Half { embryonic: true, ..model_half(&key, &entry, false) });
            }
        })?;
        same_all(&halves, &self.model.halves)?;
        let mut bindings = HashMap::new();
        for (end, outside) in tables.bindings()? {
            let former = bindings.insert(model_end(&end), model_binding(&outside));
            ensure!(former.is_none(), "{end:?} has two bindings, {outside:?} and {former:?}");
        }
        same_all(&bindings, &self.model.bindings)?;
        let mut owners = HashMap::new();
        tables.by_outside4.walk(|end, inside| {
            owners.insert(model_end(&end), model_owner(&inside));
        })?;
        same_all(&owners, &self.model.owners)?;
        for (index, expected) in (0..).zip(self.model.traffic) {
            let stats = tables.uplink_stats(index)?;
            let found = Traffic {
                tx_packets: stats.tx_packets,
                tx_bytes: stats.tx_bytes,
                rx_packets: stats.rx_packets,
                rx_bytes: stats.rx_bytes,
                new_flows: stats.new_flows,
            };
            ensure!(found == expected, "uplink {index}: {found:?}, expected {expected:?}");
        }
        let mut sources = HashMap::new();
        tables.sources4.walk(|host, source| {
            sources.insert(Ipv4Addr::from(host), model_source(&source));
        })?;
        same_all(&sources, &self.model.sources)?;
        let mut peers = HashMap::new();
        tables.peers4.walk(|peer, until| {
            peers.insert((Ipv4Addr::from(peer.remote), model_end(&peer.outside)), until);
        })?;
        same_all(&peers, &self.model.peers)
    }
}

/// The binding with this inside end, be its flow embryonic.
fn binding_of(tables: &Tables, end: &End) -> Option<binding::Outside<Ipv4>> {
    let end = kernel_end(end);
    tables.by_inside4.get(&end, 0).ok().or_else(|| {
        let timeouts = tables.settings.get(&0, 0).ok()?.timeouts;
        tables.embryo_of(&end).map(|(outside, inside)| inside.embryo_binding(&outside, &timeouts))
    })
}

fn same<K: std::fmt::Debug, V: std::fmt::Debug + PartialEq>(
    key: &K,
    found: Option<&V>,
    model: Option<&V>,
) -> Result<()> {
    ensure!(found == model, "{key:?}: datapath\n{found:?}, model\n{model:?}");
    Ok(())
}

fn same_all<K: std::fmt::Debug + Eq + std::hash::Hash, V: std::fmt::Debug + PartialEq>(
    found: &HashMap<K, V>,
    model: &HashMap<K, V>,
) -> Result<()> {
    for key in found.keys().chain(model.keys()) {
        same(key, found.get(key), model.get(key))?;
    }
    Ok(())
}

fn kernel_key(key: &Key) -> flow::Key<Ipv4> {
    flow::Key::new(key.src.into(), key.dst.into(), key.sport.to_be(), key.dport.to_be(), key.protocol)
}

fn model_key(key: &flow::Key<Ipv4>) -> Key {
    Key {
        src: key.src.into(),
        dst: key.dst.into(),
        sport: u16::from_be(key.sport),
        dport: u16::from_be(key.dport),
        protocol: key.protocol,
    }
}

fn kernel_end(end: &End) -> binding::End<Ipv4> {
    binding::End { address: end.address.into(), port: end.port.to_be(), protocol: end.protocol, uplink: end.uplink }
}

fn model_end(end: &binding::End<Ipv4>) -> End {
    End { address: end.address.into(), port: u16::from_be(end.port), protocol: end.protocol, uplink: end.uplink }
}

fn model_half(key: &Key, entry: &flow::Entry<Ipv4>, answered: bool) -> Half {
    let kind = if entry.flags & flow::HOST != 0 {
        Kind::Host
    } else if entry.flags & flow::HAIRPIN != 0 {
        Kind::Hairpin
    } else {
        Kind::Lan
    };
    let to = Key {
        src: entry.src.into(),
        dst: entry.dst.into(),
        sport: u16::from_be(entry.sport),
        dport: u16::from_be(entry.dport),
        protocol: key.protocol,
    };
    Half {
        to,
        uplink: entry.uplink,
        reply: entry.is_reply(),
        kind,
        asked: entry.flags & flow::ASKED != 0 && !entry.is_reply(),
        answered,
        embryonic: false,
        resolved: entry.flags & flow::RESOLVED != 0,
        created: entry.created,
        last_seen: entry.last_seen,
        maintained: entry.maintained,
        epoch: entry.epoch,
        tcp: entry.tcp,
        packets: entry.packets,
        bytes: entry.bytes,
    }
}

const fn model_source(source: &abi::Source) -> Source {
    Source { bindings: source.bindings, window: source.window, flows: source.flows }
}

fn model_binding(outside: &binding::Outside<Ipv4>) -> Binding {
    Binding {
        address: outside.address.into(),
        port: u16::from_be(outside.port),
        created: outside.created,
        expires: outside.expires,
        fixed: outside.flags & binding::STATIC != 0,
    }
}

fn model_owner(inside: &binding::Inside<Ipv4>) -> Owner {
    let resting = (!inside.in_use()).then_some(inside.released);
    let fixed = inside.flags & u16::from(binding::STATIC) != 0;
    Owner { address: inside.address.into(), port: u16::from_be(inside.port), resting, fixed }
}

//! The conntrack and the bindings as people see them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use mh_common::{
    abi::{self, Settings},
    address::Ipv4,
    binding::{End, Inside, Outside},
    flow::{self, Entry, Key, Seen, State},
    time::{self, TICK_NS, Tick},
    verdict::{Group, Verdict},
    wire,
};

use super::{
    DatapathError,
    tables::{Hash, Tables},
};
use crate::control::api;

/// Which flows are meant, in the datapath's terms; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The uplink's index.
    pub uplink: Option<u8>,
    /// The inside address.
    pub src: Option<IpNet>,
    /// The remote address.
    pub dst: Option<IpNet>,
    /// The IP protocol.
    pub protocol: Option<u8>,
}

/// A binding, by its inside and its outside.
pub type Binding = (End<Ipv4>, Outside<Ipv4>);

/// A flow: its forward half, and its reply half if that is there.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// The key of the forward half.
    pub key: Key<Ipv4>,
    /// The forward half.
    pub forward: Entry<Ipv4>,
    /// The reply half.
    pub reply: Option<Entry<Ipv4>>,
}

impl Filter {
    fn matches(&self, key: &Key<Ipv4>, forward: &Entry<Ipv4>) -> bool {
        let within = |net: Option<IpNet>, address: Ipv4| net.is_none_or(|net| net.contains(&to_ip(address)));
        self.uplink.is_none_or(|uplink| uplink == forward.uplink)
            && self.protocol.is_none_or(|protocol| protocol == key.protocol)
            && within(self.src, key.src)
            && within(self.dst, key.dst)
    }
}

impl Flow {
    /// What the flow as a whole is doing.
    pub fn state(&self) -> State {
        let reply = self.reply.as_ref().map(Seen::from).unwrap_or_default();
        flow::state(self.key.protocol, Seen::from(&self.forward), reply)
    }

    /// Its halves, by the keys that packets arrive with.
    pub fn halves(&self) -> impl Iterator<Item = (Key<Ipv4>, Entry<Ipv4>)> {
        let other = self.forward.other_key(self.key.protocol);
        std::iter::once((self.key, self.forward)).chain(self.reply.map(|reply| (other, reply)))
    }

    /// Ticks since the last packet in either direction.
    pub fn idle(&self, now: Tick) -> u32 {
        let forward = time::since(now, self.forward.last_seen);
        self.reply.map_or(forward, |reply| forward.min(time::since(now, reply.last_seen)))
    }

    /// The document that users get.
    pub fn document(&self, uplink: &str, now: Tick) -> api::Flow {
        let reply = self.reply.as_ref();
        api::Flow {
            protocol: api::protocol_name(self.key.protocol),
            src: to_ip(self.key.src),
            sport: u16::from_be(self.key.sport),
            dst: to_ip(self.key.dst),
            dport: u16::from_be(self.key.dport),
            nat_src: to_ip(self.forward.src),
            nat_sport: u16::from_be(self.forward.sport),
            uplink: uplink.to_owned(),
            state: self.state().name().to_owned(),
            age_s: seconds(time::since(now, self.forward.created)),
            idle_s: seconds(self.idle(now)),
            packets_out: self.forward.packets,
            bytes_out: self.forward.bytes,
            packets_in: reply.map_or(0, |r| r.packets),
            bytes_in: reply.map_or(0, |r| r.bytes),
        }
    }
}

/// The inside end of the binding that a flow uses, by its forward half.
pub(super) const fn inside_end(key: &Key<Ipv4>, forward: &Entry<Ipv4>) -> End<Ipv4> {
    let address = if wire::has_ports(key.protocol) { key.src } else { key.dst };
    End { address, port: key.sport, protocol: key.protocol, uplink: forward.uplink }
}

/// The embryonic flow of a binding by its outside end, if it has one, with both halves as they would be.
pub fn embryo(outside: &End<Ipv4>, inside: &Inside<Ipv4>) -> Option<Flow> {
    inside.has_embryo().then(|| Flow {
        key: inside.embryo_key(outside),
        forward: inside.embryo_forward(outside),
        reply: Some(inside.embryo_reply(outside)),
    })
}

/// Now, in the datapath's ticks.
pub fn now() -> Tick {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(std::time::Duration::ZERO, Into::into);
    time::tick(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// An address for people.
pub fn to_ip(address: Ipv4) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(address))
}

/// Ticks in whole seconds.
pub const fn seconds(ticks: u32) -> u64 {
    ticks as u64 * TICK_NS / 1_000_000_000
}

impl Tables {
    /// Calls `each` with every flow that matches, until it returns false.
    pub fn each_flow(&self, filter: &Filter, mut each: impl FnMut(Flow) -> bool) -> Result<(), DatapathError> {
        let mut go_on = true;
        self.copies.look()?;
        // One that hatches meanwhile is seen here or there.
        self.each_embryo(|end, inside| {
            if let Some(flow) = embryo(end, inside).filter(|flow| go_on && filter.matches(&flow.key, &flow.forward)) {
                go_on = each(flow);
            }
        })?;
        for table in [&self.flows4, &self.new_flows4] {
            table.walk(|key, mut forward| {
                if go_on && !forward.is_reply() && filter.matches(&key, &forward) {
                    self.copies.count(&key, &mut forward);
                    let reply = self.reply(&forward.other_key(key.protocol));
                    go_on = each(Flow { key, forward, reply });
                }
            })?;
        }
        Ok(())
    }

    /// A half of a flow, with what its copies have counted, or as it would be if the flow were not embryonic.
    pub fn half(&self, key: &Key<Ipv4>) -> Option<Entry<Ipv4>> {
        self.entry(key).or_else(|| {
            let (end, inside) = self.embryo(key)?;
            let flow = embryo(&end, &inside)?;
            if flow.key == *key { Some(flow.forward) } else { flow.reply }
        })
    }

    /// A half from either table, with what its copies have counted.
    pub(super) fn entry(&self, key: &Key<Ipv4>) -> Option<Entry<Ipv4>> {
        let mut half = self.flows4.get(key, 0).or_else(|_| self.new_flows4.get(key, 0)).ok()?;
        self.copies.count(key, &mut half);
        Some(half)
    }

    /// What answers to a flow; another flow may have the key.
    pub(super) fn reply(&self, key: &Key<Ipv4>) -> Option<Entry<Ipv4>> {
        // Of a flow from inside to inside, both halves may be forward ones: each side began it.
        let answers = |half: &Entry<Ipv4>| half.is_reply() || half.flags & flow::HAIRPIN != 0;
        self.half(key).filter(answers)
    }

    /// Removes a flow, its reply half too, which may have come since the flow was read.
    pub fn remove_flow(&mut self, flow: &Flow) -> Result<(), DatapathError> {
        let other = flow.forward.other_key(flow.key.protocol);
        if self.reply(&other).is_some() {
            self.remove_half(&other)?;
        }
        self.remove_half(&flow.key)
    }

    /// Removes a half, wherever it is; one that is gone already is no error.
    pub fn remove_half(&mut self, key: &Key<Ipv4>) -> Result<(), DatapathError> {
        // One that has an entry is not embryonic: nearly all that are removed one by one.
        let embryonic = if self.entry(key).is_none() { self.embryo(key) } else { None };
        self.flows4.forget(key)?;
        self.new_flows4.forget(key)?;
        embryonic.map_or(Ok(()), |(end, inside)| self.keep_binding(&end, &inside))
    }

    /// Removes both ends of a binding.
    pub fn remove_binding(&mut self, inside: &End<Ipv4>, outside: &Outside<Ipv4>) -> Result<(), DatapathError> {
        self.by_inside4.forget(inside)?;
        let end = End { address: outside.address, port: outside.port, ..*inside };
        self.by_outside4.forget(if wire::has_ports(inside.protocol) { &end } else { inside })
    }

    /// The inside host and port that have a binding.
    pub fn owner(&self, inside: &End<Ipv4>) -> (Ipv4, u16) {
        if wire::has_ports(inside.protocol) {
            return (inside.address, inside.port);
        }
        self.by_outside4.get(inside, 0).map_or((Ipv4::UNSPECIFIED, 0), |owner| (owner.address, 0))
    }

    /// Removes the flows that match, both halves, and returns how many there were.
    pub fn flush(&mut self, filter: &Filter) -> Result<u64, DatapathError> {
        let mut embryonic = Vec::new();
        self.each_embryo(|end, inside| {
            if embryo(end, inside).is_some_and(|flow| filter.matches(&flow.key, &flow.forward)) {
                embryonic.push((*end, *inside));
            }
        })?;
        embryonic.iter().try_for_each(|(end, inside)| self.keep_binding(end, inside))?;
        let mut found = Vec::new();
        self.each_flow(filter, |flow| {
            found.push(flow);
            true
        })?;
        found.iter().try_for_each(|flow| self.remove_flow(flow))?;
        self.void_copies()?;
        Ok((embryonic.len() + found.len()) as u64)
    }

    /// Removes all flows and bindings of an uplink that is no more, so that its index can serve another one.
    pub fn forget_uplink(&mut self, index: u8) -> Result<(), DatapathError> {
        self.flush(&Filter { uplink: Some(index), ..Filter::default() })?;
        for (inside, outside) in self.bindings()? {
            if inside.uplink == index {
                self.remove_binding(&inside, &outside)?;
            }
        }
        self.release_sources_of(index)
    }

    /// Notes the sources of all flows and bindings: those of an older version are not known yet.
    pub fn note_all(&self) -> Result<(), DatapathError> {
        let seed = self.seed()?;
        let note = |end: &End<Ipv4>| self.known.note(seed, end);
        self.by_inside4.walk(|inside, _| note(&inside))?;
        self.by_outside4.walk(|outside, inside| {
            note(&outside);
            if inside.has_embryo() {
                note(&inside.end(&outside));
            }
        })?;
        for table in [&self.flows4, &self.new_flows4] {
            table.walk(|key, half| {
                let end = |address, port| End { address, port, protocol: key.protocol, uplink: half.uplink };
                note(&end(key.src, key.sport));
                if half.is_reply() {
                    note(&end(key.dst, key.dport));
                }
            })?;
        }
        Ok(())
    }

    /// The key of the programs' hashes.
    pub fn seed(&self) -> Result<[u64; 2], DatapathError> {
        Ok(self.settings()?.seed)
    }

    /// The programs' settings.
    pub(super) fn settings(&self) -> Result<Settings, DatapathError> {
        self.settings.get(&0, 0).map_err(DatapathError::map("read the settings"))
    }

    /// All bindings.
    pub fn bindings(&self) -> Result<Vec<Binding>, DatapathError> {
        let (mut bindings, timeouts) = (Vec::new(), self.settings()?.timeouts);
        // First, as in `each_flow`.
        self.each_embryo(|end, inside| bindings.push((inside.end(end), inside.embryo_binding(end, &timeouts))))?;
        self.by_inside4.walk(|inside, outside| bindings.push((inside, outside)))?;
        Ok(bindings)
    }

    /// How many flows there are: with a reply, without, and by uplink index.
    pub fn totals(&self) -> Result<(u64, u64, HashMap<u8, u64>), DatapathError> {
        let mut by_uplink = HashMap::new();
        let mut counts = [0u64; 2];
        self.each_embryo(|end, _| {
            counts[1] += 1;
            *by_uplink.entry(end.uplink).or_default() += 1;
        })?;
        for (table, count) in [&self.flows4, &self.new_flows4].into_iter().zip(&mut counts) {
            table.walk(|_, entry| {
                if !entry.is_reply() {
                    *count += 1;
                    *by_uplink.entry(entry.uplink).or_default() += 1;
                }
            })?;
        }
        let [established, new] = counts;
        Ok((established, new, by_uplink))
    }

    /// How full the tables are, by map name. Arrays have a fixed size and are left out.
    pub fn usage(&self) -> Result<Vec<(&'static str, api::Usage)>, DatapathError> {
        use abi::map;
        Ok(vec![
            (map::FLOWS4, usage(&self.flows4)?),
            (map::NEW_FLOWS4, usage(&self.new_flows4)?),
            (map::BY_INSIDE4, usage(&self.by_inside4)?),
            (map::BY_OUTSIDE4, usage(&self.by_outside4)?),
        ])
    }

    /// How many bindings there are, those of embryonic flows too, and how many find room by their inside ends.
    pub fn binding_usage(&self) -> Result<api::Usage, DatapathError> {
        let mut embryonic = 0;
        self.each_embryo(|_, _| embryonic += 1)?;
        let entered = usage(&self.by_inside4)?;
        Ok(api::Usage { used: entered.used + embryonic, ..entered })
    }

    /// A verdict's counter, over all CPUs.
    pub fn verdict(&self, verdict: Verdict) -> Result<u64, DatapathError> {
        let values =
            self.verdicts.get(&(verdict as u32), 0).map_err(DatapathError::map("read the verdict counters"))?;
        Ok(values.iter().sum())
    }

    /// All counters by name: verdicts that send or pass, and drops.
    pub fn verdicts_by_name(&self) -> Result<Counters, DatapathError> {
        let mut counters = Counters::default();
        for &verdict in Verdict::ALL {
            let into = if matches!(verdict.group(), Group::Drop | Group::Refuse) {
                &mut counters.drops
            } else {
                &mut counters.verdicts
            };
            into.push((verdict.name(), self.verdict(verdict)?));
        }
        Ok(counters)
    }

    /// An uplink's counters, over all CPUs.
    pub fn uplink_stats(&self, index: u8) -> Result<api::UplinkStats, DatapathError> {
        let values =
            self.uplink_counters.get(&u32::from(index), 0).map_err(DatapathError::map("read the uplink counters"))?;
        Ok(values.iter().fold(api::UplinkStats::default(), |sum, c| api::UplinkStats {
            tx_packets: sum.tx_packets + c.tx_packets,
            tx_bytes: sum.tx_bytes + c.tx_bytes,
            rx_packets: sum.rx_packets + c.rx_packets,
            rx_bytes: sum.rx_bytes + c.rx_bytes,
            new_flows: sum.new_flows + c.new_flows,
        }))
    }
}

/// Counters by name.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets that were sent on or left to the kernel.
    pub verdicts: Vec<(&'static str, u64)>,
    /// Packets that were dropped, or refused with an ICMP message.
    pub drops: Vec<(&'static str, u64)>,
}

fn usage<K: aya::Pod + bytemuck::Pod, V: aya::Pod + bytemuck::Pod>(
    table: &Hash<K, V>,
) -> Result<api::Usage, DatapathError> {
    let mut used = 0;
    table.walk(|_, _| used += 1)?;
    Ok(api::Usage { used, capacity: u64::from(table.capacity()) })
}

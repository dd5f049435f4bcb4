//! Expiry: flows that have been idle too long, bindings that nothing uses, and ports that have rested.
//!
//! One lifetime for flows and bindings: a binding goes only when its own time is over and no flow is left that uses it; one that only
//! the remote side sends to is not used. The outside end of a binding that goes stays for a while, so that its port rests
//! (RFC 6888 REQ-8). A flow that a packet revives between the look and the removal loses its entry only, which the next packet restores
//! from the binding.
//!
//! A sweep goes by steps, each over a few hundred entries, and who runs it may pause between them for as long as it likes: see
//! [`sweep_by_steps`]. It reads in batches, looks the reply half of a flow up only if the forward half does not tell enough, and holds
//! nothing in memory but what is found over. Packets go on meanwhile.
//!
//! What is on an address that its uplink has lost (DHCP) is over sooner, unless `on_down` holds it.
//!
//! The sweep also settles the limits per inside host: how many of its bindings have ended is how many it had got when the sweep began less
//! those of them that are there. Bindings that are made during the sweep are no part of that, however long it takes; those made in the
//! tick in which it begins may be counted as not ended until the next one.

use std::collections::HashMap;

use mh_common::{
    abi::{self, Timeouts},
    address::Ipv4,
    binding::{End, Inside, Outside, STATIC},
    flow::{self, Entry, Key, Seen, State},
    policy,
    time::{self, Tick},
    wire,
};

use super::{
    DatapathError,
    embryo::Outer,
    flows::{self, Flow, inside_end},
    known::Kept,
    sticky::Sources,
    tables::Tables,
};

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows removed.
    pub flows: u64,
    /// Bindings removed.
    pub bindings: u64,
    /// Ports that have rested and are free again.
    pub rested: u64,
}

/// Entries that are dealt with between two pauses. Reading so many takes some microseconds, in which a kernel without preemption gives
/// the processor to nobody else.
const STEP: usize = 32;

/// Lines of known sources that are looked through between two pauses: likewise some microseconds.
const LINES_AT_A_TIME: usize = 256;

/// How often it is looked anew which addresses are lost, and where copies are: about twice a second. Copies that go elsewhere between leave
/// what they have counted behind.
const LOOK_AGAIN_TICKS: u32 = 4;

/// Removes what has expired as of `now`, in one go.
pub fn sweep(tables: &mut Tables, timeouts: &Timeouts, now: Tick) -> Result<Swept, DatapathError> {
    sweep_by_steps(tables, timeouts, &mut || Some(now)).map(Option::unwrap_or_default)
}

/// Removes what has expired, some entries at a time. `step` is called at the beginning and between, may take its time, and tells what
/// time it is; or it returns `None`, and the sweep ends before its time, and returns `None`, too. What it has done by then holds.
pub fn sweep_by_steps(
    tables: &mut Tables,
    timeouts: &Timeouts,
    step: &mut dyn FnMut() -> Option<Tick>,
) -> Result<Option<Swept>, DatapathError> {
    match Sweep::begin(tables, timeouts, step).and_then(Sweep::run) {
        Ok(swept) => Ok(Some(swept)),
        Err(Halt::Stopped) => Ok(None),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// Why a sweep ends before its time.
enum Halt {
    /// It was told to.
    Stopped,
    Failed(DatapathError),
}

impl From<DatapathError> for Halt {
    fn from(error: DatapathError) -> Self {
        Self::Failed(error)
    }
}

/// A sweep on its way.
struct Sweep<'a> {
    tables: &'a mut Tables,
    timeouts: &'a Timeouts,
    step: &'a mut dyn FnMut() -> Option<Tick>,
    began: Tick,
    now: Tick,
    lost: Lost,
    /// When it was found out what is lost.
    looked: Tick,
    sources: Option<Sources>,
    /// How many bindings each inside host had got when the sweep began.
    got: HashMap<Ipv4, u32>,
    /// How many of those it has still.
    held: HashMap<Ipv4, u32>,
    /// Bindings that go unless a flow turns up that uses them.
    unused: HashMap<End<Ipv4>, Outside<Ipv4>>,
    /// The forward halves of flows that are over.
    over: Vec<Key<Ipv4>>,
    /// Bindings whose embryonic flow is over.
    embryos: Vec<Outer>,
    /// Reply halves that have been idle for long, and where their forward halves would be.
    idle: Vec<(Key<Ipv4>, Key<Ipv4>)>,
    /// Flows were removed of which there may be good copies.
    voids: bool,
    /// Sources of which something is left.
    kept: Kept,
    swept: Swept,
}

impl<'a> Sweep<'a> {
    fn begin(
        tables: &'a mut Tables,
        timeouts: &'a Timeouts,
        step: &'a mut dyn FnMut() -> Option<Tick>,
    ) -> Result<Self, Halt> {
        let now = step().ok_or(Halt::Stopped)?;
        tables.copies.look()?;
        let lost = Lost::look(tables)?;
        let sources = Sources::look(tables, now)?;
        let mut got = HashMap::new();
        tables.sources4.walk(|host, source| {
            got.insert(host, source.bindings);
        })?;
        let (held, unused, swept) = (HashMap::new(), HashMap::new(), Swept::default());
        let sources = Some(sources);
        let kept = Kept::none(tables.seed()?, tables.known.lines());
        Ok(Self {
            tables,
            timeouts,
            step,
            began: now,
            now,
            lost,
            looked: now,
            sources,
            got,
            held,
            unused,
            over: Vec::new(),
            embryos: Vec::new(),
            idle: Vec::new(),
            voids: false,
            kept,
            swept,
        })
    }

    fn run(mut self) -> Result<Swept, Halt> {
        self.age_sources()?;
        // In this order a flow that hatches meanwhile is seen as what it was, or as what it is.
        self.look_at_ports()?;
        self.look_at_bindings()?;
        self.look_at_flows()?;
        self.remove_flows()?;
        self.end_embryos()?;
        self.release_unused()?;
        if let Some(sources) = self.sources.take() {
            let (step, mut count) = (&mut self.step, 0);
            sources.settle(self.tables, || {
                count += 1;
                if count % STEP == 0 { step().map(drop).ok_or(Halt::Stopped) } else { Ok(()) }
            })?;
        }
        self.withdraw()?;
        self.settle()?;
        self.forget_sources()?;
        Ok(self.swept)
    }

    fn pause(&mut self) -> Result<(), Halt> {
        let Some(now) = (self.step)() else {
            self.void()?;
            return Err(Halt::Stopped);
        };
        self.now = now;
        if time::since(self.now, self.looked) >= LOOK_AGAIN_TICKS {
            self.tables.copies.look()?;
            self.lost = Lost::look(self.tables)?;
            self.looked = self.now;
            self.void()?;
        }
        Ok(())
    }

    /// Voids the copies of flows that were removed though they were not idle: they may still be good.
    fn void(&mut self) -> Result<(), DatapathError> {
        if self.voids {
            self.voids = false;
            self.tables.void_copies()?;
        }
        Ok(())
    }

    /// Whether the uplink has lost this outside address and does not hold what is on it. It may have got it since the last look.
    fn has_lost(&self, uplink: u8, address: Ipv4) -> bool {
        self.lost.is(uplink, address) && !has(self.tables.outside4.get(&address, 0).unwrap_or_default(), uplink)
    }

    /// Whether a binding counts among those that its host had got when the sweep began.
    const fn is_counted(&self, outside: &Outside<Ipv4>) -> bool {
        outside.flags & STATIC == 0 && !time::passed(outside.created, self.began)
    }

    /// Notes that a binding of this host has ended.
    fn let_go(&mut self, outside: &Outside<Ipv4>, host: Ipv4) {
        if self.is_counted(outside)
            && let Some(held) = self.held.get_mut(&host)
        {
            *held = held.saturating_sub(1);
        }
    }

    /// Bindings by their outside end: those with an embryonic flow are looked at, and ports that have rested are free again.
    fn look_at_ports(&mut self) -> Result<(), Halt> {
        let mut batches = self.tables.by_outside4.batches(STEP)?;
        while let Some((ends, insides)) = batches.read().map_err(DatapathError::io("read the ports"))? {
            for (end, inside) in ends.iter().zip(insides) {
                self.kept.end(end);
                if inside.has_embryo() {
                    self.look_at_embryo(end, inside);
                }
                if !inside.rested(self.now) {
                    continue;
                }
                // The host that it rests for may have taken it up since.
                if self.tables.by_outside4.get(end, 0).is_ok_and(|inside| inside.rested(self.now)) {
                    self.tables.by_outside4.forget(end)?;
                    self.swept.rested += 1;
                }
            }
            self.pause()?;
        }
        Ok(())
    }

    fn look_at_embryo(&mut self, end: &End<Ipv4>, inside: &Inside<Ipv4>) {
        let Some(flow) = flows::embryo(end, inside) else { return };
        self.kept.end(&inside.end(end));
        if self.is_counted(&inside.embryo_binding(end, self.timeouts)) {
            *self.held.entry(inside.address).or_default() += 1;
        }
        if self.is_embryo_over(&flow) {
            self.embryos.push((*end, *inside));
        } else if let Some(sources) = &mut self.sources
            && sources.want(flow.key.src, end.uplink)
        {
            sources.see(&flow);
        }
    }

    /// Whether an embryonic flow is over, and its binding with it.
    fn is_embryo_over(&self, flow: &Flow) -> bool {
        is_expired(flow, self.timeouts, self.now) || self.has_lost(flow.forward.uplink, flow.forward.src)
    }

    /// Ends embryonic flows that are over, with their bindings. What has hatched since, or got its address back, stays.
    fn end_embryos(&mut self) -> Result<(), Halt> {
        for (number, (end, inside)) in std::mem::take(&mut self.embryos).iter().enumerate() {
            let over = flows::embryo(end, inside).is_some_and(|flow| self.is_embryo_over(&flow));
            if over && self.tables.by_outside4.get(end, 0).is_ok_and(|now| now == *inside) {
                self.let_go(&inside.embryo_binding(end, self.timeouts), inside.address);
                self.tables.release_embryo(end, inside, self.now)?;
                self.swept.bindings += 1;
                self.swept.flows += 1;
            }
            if number % STEP == STEP - 1 {
                self.pause()?;
            }
        }
        Ok(())
    }

    fn look_at_bindings(&mut self) -> Result<(), Halt> {
        let mut batches = self.tables.by_inside4.batches(STEP)?;
        while let Some((insides, outsides)) = batches.read().map_err(DatapathError::io("read the bindings"))? {
            for (inside, outside) in insides.iter().zip(outsides) {
                self.kept.end(inside);
                if self.is_counted(outside) {
                    let host = self.tables.owner(inside).0;
                    *self.held.entry(host).or_default() += 1;
                }
                let over = time::passed(self.now, outside.expires) || self.has_lost(inside.uplink, outside.address);
                if outside.flags & STATIC == 0 && over {
                    self.unused.insert(*inside, *outside);
                }
            }
            self.pause()?;
        }
        Ok(())
    }

    fn look_at_flows(&mut self) -> Result<(), Halt> {
        // In this order a flow that moves on when its first reply comes is seen here or there.
        for established in [false, true] {
            let table = if established { &self.tables.flows4 } else { &self.tables.new_flows4 };
            let mut batches = table.batches(STEP)?;
            while let Some((keys, halves)) = batches.read().map_err(DatapathError::io("read the flows"))? {
                for (key, half) in keys.iter().zip(halves) {
                    if !half.is_reply() || half.flags & flow::HAIRPIN != 0 {
                        self.kept.key(key);
                    }
                    if half.is_reply() {
                        self.kept.answers_to(key);
                        self.look_at_reply(key, half);
                    } else if self.look_at_flow(key, half).is_some() {
                        self.over.push(*key);
                    }
                }
                self.pause()?;
            }
        }
        Ok(())
    }

    /// Looks at a flow by its forward half, and returns it if it is over, and whether it is stranded; one that lives is noted. Its reply
    /// half, and copies, are looked up only if they matter.
    fn look_at_flow(&mut self, key: &Key<Ipv4>, forward: &Entry<Ipv4>) -> Option<(Flow, bool)> {
        let shortest = [State::New, State::Established].map(|state| state.timeout(key.protocol, self.timeouts));
        let recent = shortest.iter().all(|timeout| time::since(self.now, forward.last_seen) <= *timeout);
        let wanted = self.sources.as_ref().is_some_and(|sources| sources.want(key.src, forward.uplink));
        let mut forward = *forward;
        if !recent || wanted || !Seen::from(&forward).any {
            self.tables.copies.count(key, &mut forward);
        }
        let translated = forward.leads_outside() && forward.src != key.src;
        let stranded = translated && self.has_lost(forward.uplink, forward.src);
        if !recent || wanted || stranded {
            let reply = self.tables.reply(&forward.other_key(key.protocol));
            let flow = Flow { key: *key, forward, reply };
            if is_expired(&flow, self.timeouts, self.now) || stranded && !self.lost.waits(&flow) {
                return Some((flow, stranded));
            }
            if let Some(sources) = &mut self.sources {
                sources.see(&flow);
            }
        }
        if Seen::from(&forward).any && !self.unused.is_empty() {
            self.unused.remove(&inside_end(key, &forward));
        }
        None
    }

    /// Notes a reply half that has been idle for longer than any flow may be.
    fn look_at_reply(&mut self, key: &Key<Ipv4>, reply: &Entry<Ipv4>) {
        let longest = State::Established.timeout(key.protocol, self.timeouts);
        if time::since(self.now, reply.last_seen) > longest {
            let mut reply = *reply;
            self.tables.copies.count(key, &mut reply);
            if time::since(self.now, reply.last_seen) > longest {
                self.idle.push((*key, reply.other_key(key.protocol)));
            }
        }
    }

    /// Removes what was found over. What a packet has revived since stays.
    fn remove_flows(&mut self) -> Result<(), Halt> {
        // Not before all were looked at: flows may have a reply half in common.
        for (number, key) in std::mem::take(&mut self.over).iter().enumerate() {
            let half = self.tables.half(key).filter(|half| !half.is_reply());
            if let Some((flow, stranded)) = half.and_then(|forward| self.look_at_flow(key, &forward)) {
                self.tables.remove_flow(&flow)?;
                self.swept.flows += 1;
                self.voids |= stranded;
            }
            if number % STEP == STEP - 1 {
                self.pause()?;
            }
        }
        self.void()?;
        // Reply halves that have lost their forward half, so that no flow shows them.
        for (number, (key, other)) in std::mem::take(&mut self.idle).iter().enumerate() {
            if self.tables.entry(other).is_none() {
                self.tables.remove_half(key)?;
            }
            if number % STEP == STEP - 1 {
                self.pause()?;
            }
        }
        Ok(())
    }

    fn release_unused(&mut self) -> Result<(), Halt> {
        for (number, (inside, outside)) in std::mem::take(&mut self.unused).iter().enumerate() {
            // A new flow may have taken it up since.
            let still = self.tables.by_inside4.get(inside, 0).is_ok_and(|o| o.expires == outside.expires);
            if still {
                self.let_go(outside, self.tables.owner(inside).0);
                self.tables.release_binding(inside, outside, self.now)?;
                self.swept.bindings += 1;
            }
            if number % STEP == STEP - 1 {
                self.pause()?;
            }
        }
        Ok(())
    }

    /// Makes sources old that are known now, before anything is looked at.
    fn age_sources(&mut self) -> Result<(), Halt> {
        for lines in self.tables.known.spans(LINES_AT_A_TIME) {
            self.tables.known.age(lines);
            self.pause()?;
        }
        Ok(())
    }

    /// Forgets sources of which nothing is left since the sweep before.
    fn forget_sources(&mut self) -> Result<(), Halt> {
        for lines in self.tables.known.spans(LINES_AT_A_TIME) {
            self.tables.known.forget(lines, &self.kept);
            self.pause()?;
        }
        Ok(())
    }

    /// Withdraws permissions: one is its binding's, and the port's next host starts with none.
    fn withdraw(&mut self) -> Result<(), Halt> {
        let mut batches = self.tables.peers4.batches(STEP)?;
        while let Some((peers, times)) = batches.read().map_err(DatapathError::io("read the permissions"))? {
            for (peer, until) in peers.iter().zip(times) {
                let bound = || self.tables.by_outside4.get(&peer.outside, 0).is_ok_and(|inside| inside.in_use());
                if time::passed(self.now, *until) || !bound() {
                    self.tables.peers4.forget(peer)?;
                }
            }
            self.pause()?;
        }
        Ok(())
    }

    /// Tells the programs how many bindings of each inside host have ended: of those that it had got when the sweep began.
    fn settle(&mut self) -> Result<(), Halt> {
        let mut told = HashMap::new();
        self.tables.ended4.walk(|host, ended| {
            told.insert(host, ended);
        })?;
        for (number, (host, got)) in std::mem::take(&mut self.got).into_iter().enumerate() {
            let told = told.remove(&host);
            if let Ok(source) = self.tables.sources4.get(&host, 0) {
                // One that was displaced meanwhile counts from zero again.
                let began_anew = source.bindings.wrapping_sub(got).cast_signed() < 0;
                let got = if began_anew { 0 } else { got };
                let ended = got.wrapping_sub(self.held.get(&host).copied().unwrap_or(0));
                if told != Some(ended) {
                    let write = self.tables.ended4.insert(host, ended, 0);
                    write.map_err(DatapathError::map("write the ended bindings"))?;
                }
            } else if told.is_some() {
                self.tables.ended4.forget(&host)?;
            }
            if number % STEP == STEP - 1 {
                self.pause()?;
            }
        }
        for host in told.keys() {
            if self.tables.sources4.get(host, 0).is_err() {
                self.tables.ended4.forget(host)?;
            }
        }
        Ok(())
    }
}

/// The addresses that uplinks have, to tell which ones they have lost.
struct Lost {
    uplinks: HashMap<u8, abi::Uplink>,
    owners: HashMap<Ipv4, u32>,
    /// New flows find an uplink. While they find none, nothing is given up: an address that was lost may come back.
    elsewhere: bool,
}

impl Lost {
    fn look(tables: &Tables) -> Result<Self, DatapathError> {
        let uplinks = tables.uplinks()?.into_iter().collect();
        let mut owners = HashMap::new();
        tables.outside4.walk(|address, uplinks| {
            owners.insert(address, uplinks);
        })?;
        let policies = tables.policies()?;
        let live = tables.live.get(&0, 0).map_err(DatapathError::map("read the live state"))?;
        let mut named = policies.iter().filter(|(index, _)| policy::uplink_of(*index).is_none());
        let elsewhere = named.any(|(_, policy)| u64::from(policy.eligible) & live.healthy != 0);
        Ok(Self { uplinks, owners, elsewhere })
    }

    /// Whether the uplink has lost this outside address, and does not hold what is on it.
    fn is(&self, uplink: u8, address: Ipv4) -> bool {
        let flags = self.uplinks.get(&uplink).map_or(abi::UPLINK_HOLD, |uplink| uplink.flags);
        let owners = self.owners.get(&address).copied().unwrap_or_default();
        self.elsewhere && flags & abi::UPLINK_HOLD == 0 && !has(owners, uplink)
    }

    /// Whether a flow on a lost address is not over yet, though nothing comes back to it: a TCP connection that is to be reset waits for its
    /// client, who is told with the next segment.
    fn waits(&self, flow: &Flow) -> bool {
        let repins = self.uplinks.get(&flow.forward.uplink).is_some_and(|u| u.flags & abi::UPLINK_REPIN != 0);
        flow.key.protocol == wire::PROTOCOL_TCP
            && !repins
            && matches!(flow.state(), State::Established | State::HalfClosed)
    }
}

/// Whether an uplink is among the owners of an address.
const fn has(owners: u32, uplink: u8) -> bool {
    owners >> (uplink & 31) & 1 != 0
}

fn is_expired(flow: &Flow, timeouts: &Timeouts, now: Tick) -> bool {
    let state: State = flow.state();
    flow.idle(now) > state.timeout(flow.key.protocol, timeouts)
}

impl Tables {
    /// Ends a binding; its port rests.
    fn release_binding(&mut self, inside: &End<Ipv4>, outside: &Outside<Ipv4>, now: Tick) -> Result<(), DatapathError> {
        self.by_inside4.forget(inside)?;
        if !wire::has_ports(inside.protocol) {
            return self.by_outside4.forget(inside);
        }
        let end = End { address: outside.address, port: outside.port, ..*inside };
        match self.by_outside4.get(&end, 0) {
            Ok(owner) if owner.end(&end) == *inside => self.let_rest(end, &owner, now),
            _ => Ok(()),
        }
    }

    /// Ends a binding with its embryonic flow; its port rests, unless the flow hatches at this moment.
    pub(super) fn release_embryo(
        &mut self,
        end: &End<Ipv4>,
        inside: &Inside<Ipv4>,
        now: Tick,
    ) -> Result<(), DatapathError> {
        let over = Inside { embryo: 0, ..*inside };
        self.let_rest(*end, &over, now)?;
        if self.is_entered(end, inside) {
            self.by_outside4.replace(end, &over)?;
        }
        Ok(())
    }

    fn let_rest(&mut self, end: End<Ipv4>, owner: &Inside<Ipv4>, now: Tick) -> Result<(), DatapathError> {
        let resting = Inside { released: now.max(1), ..*owner };
        self.by_outside4.insert(end, resting, 0).map_err(DatapathError::map("let a port rest"))
    }
}

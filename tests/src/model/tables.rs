//! The model's tables: flows, bindings, and how time ends them.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use mh_common::time::{Tick, later, passed, since};

use super::wire::{ACK, FIN, ICMP, Key, RST, TCP, UDP};

/// A tick is 2^27 ns.
const fn seconds(s: u64) -> u32 {
    mh_common::time::ticks_for(s * 1_000_000_000)
}

/// Default timeouts (docs/config.md).
const UDP_TIMEOUT: u32 = seconds(300);
const TCP_ESTABLISHED: u32 = seconds(7440);
const TCP_TRANSITORY: u32 = seconds(240);
const ICMP_TIMEOUT: u32 = seconds(60);
/// The shortest of them that a flow of this protocol may have, for what does not look more closely: of those without ports, of all.
pub const fn least_timeout(protocol: u8) -> u32 {
    match protocol {
        TCP | UDP => TCP_TRANSITORY,
        _ => ICMP_TIMEOUT,
    }
}
/// RFC 6888 REQ-8.
const REST: u32 = seconds(120);
/// How stale the time of a flow's last packet may be.
pub const SEEN_GRANULARITY: u32 = 8;
/// How often a flow is maintained.
pub const MAINTENANCE: u32 = 256;
/// How long a datagram's fragments belong together.
pub const FRAGMENT_LIFE: u32 = seconds(8);
/// How many fragments of a datagram wait for the first one.
pub const MOST_WAITING: u32 = 52;

/// Whose flow it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An inside host's.
    Lan,
    /// The machine's own.
    Host,
    /// From inside to inside.
    Hairpin,
}

/// What happens to packets of one direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// What they leave with.
    pub to: Key,
    /// The flow's uplink.
    pub uplink: u8,
    /// Whether they are the answers.
    pub reply: bool,
    /// Whose flow.
    pub kind: Kind,
    /// The answers to what a remote end has begun.
    pub asked: bool,
    /// Whether the flow has been answered, so that a flood of new ones can't displace it.
    pub answered: bool,
    /// Whether it has had one packet so far, and is in its binding.
    pub embryonic: bool,
    /// Whether the next hop's Ethernet address is known.
    pub resolved: bool,
    /// When the flow began.
    pub created: Tick,
    /// When the last packet came, to [`SEEN_GRANULARITY`].
    pub last_seen: Tick,
    /// When it was last maintained.
    pub maintained: Tick,
    /// In which neighbour epoch.
    pub epoch: u8,
    /// TCP flags so far.
    pub tcp: u8,
    /// Packets so far.
    pub packets: u64,
    /// Bytes so far.
    pub bytes: u64,
}

impl Half {
    /// A half that nothing has used yet.
    #[must_use]
    pub const fn new(to: Key, uplink: u8, reply: bool, kind: Kind, now: Tick) -> Self {
        Self {
            to,
            uplink,
            reply,
            kind,
            asked: false,
            answered: false,
            embryonic: false,
            resolved: false,
            created: now,
            last_seen: now,
            maintained: now,
            epoch: 0,
            tcp: 0,
            packets: 0,
            bytes: 0,
        }
    }

    /// Whether the packets leave by the uplink.
    #[must_use]
    pub fn leads_outside(&self) -> bool {
        !self.reply && self.kind != Kind::Hairpin
    }
}

/// One end of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    /// Inside or outside address; for a protocol without ports, at both ends, the remote address.
    pub address: Ipv4Addr,
    /// Port or identifier.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Uplink.
    pub uplink: u8,
}

/// A binding, by its inside end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Outside address.
    pub address: Ipv4Addr,
    /// Outside port.
    pub port: u16,
    /// When it was made.
    pub created: Tick,
    /// When it ends unless a flow uses it.
    pub expires: Tick,
    /// A port forward's: never.
    pub fixed: bool,
}

/// Who has an outside port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Inside address.
    pub address: Ipv4Addr,
    /// Inside port.
    pub port: u16,
    /// Since when the port rests, if it does.
    pub resting: Option<Tick>,
    /// By a port forward.
    pub fixed: bool,
}

/// What an inside host has used of its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Bindings that it has got.
    pub bindings: u32,
    /// When the window for its new flows began.
    pub window: Tick,
    /// New flows in the window.
    pub flows: u32,
}

/// An uplink's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets to the uplink.
    pub tx_packets: u64,
    /// Bytes to the uplink.
    pub tx_bytes: u64,
    /// Packets from it.
    pub rx_packets: u64,
    /// Bytes from it.
    pub rx_bytes: u64,
    /// Flows begun.
    pub new_flows: u64,
}

/// A datagram in fragments: addresses, identification, protocol, and where it comes from.
pub type Datagram = (Ipv4Addr, Ipv4Addr, u16, u8, Option<u8>);

/// What the model can't know by itself and the test sets.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Outside address of each uplink.
    pub outside: [Ipv4Addr; 2],
    /// Its ports.
    pub ports: [(u16, u16); 2],
    /// The address-dependent filter.
    pub address_dependent: bool,
    /// `on_down` of each uplink.
    pub on_down: [OnDown; 2],
    /// MTU of each uplink.
    pub mtu: [u16; 2],
    /// MTU of the LAN.
    pub lan_mtu: u32,
    /// Seed of the flow hash.
    pub seed: [u64; 2],
    /// Slots in force.
    pub slots: Vec<u8>,
    /// Uplinks that may take new flows.
    pub members: u64,
}

/// What becomes of the flows of an uplink that is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// All but TCP in mid-stream move, and that is reset.
    Reset,
    /// All move.
    Repin,
    /// All stay.
    Hold,
}

/// Everything that the NAT remembers.
#[derive(Clone, Debug)]
pub struct Model {
    /// Configuration.
    pub setup: Setup,
    /// Uplinks that are up, a bit each.
    pub healthy: u64,
    /// Neighbour epoch.
    pub epoch: u8,
    /// Halves of flows by what their packets arrive with.
    pub halves: HashMap<Key, Half>,
    /// Bindings by inside end.
    pub bindings: HashMap<End, Binding>,
    /// Owners by outside end.
    pub owners: HashMap<End, Owner>,
    /// With the address-dependent filter: until when a remote address may send to an outside end.
    pub peers: HashMap<(Ipv4Addr, End), Tick>,
    /// Limits by inside host.
    pub sources: HashMap<Ipv4Addr, Source>,
    /// What became of first fragments, and when.
    pub fragments: HashMap<Datagram, (Half, Tick)>,
    /// How many fragments of a datagram wait for its first one, and since when.
    pub waiting: HashMap<Datagram, (u32, Tick)>,
    /// Counters by uplink.
    pub traffic: [Traffic; 2],
    /// Keys of halves that the last step may have changed.
    pub touched: BTreeSet<Key>,
    /// Inside ends of bindings that it may have changed.
    pub touched_bindings: BTreeSet<End>,
    /// Outside ends.
    pub touched_owners: BTreeSet<End>,
    /// Inside hosts whose limits it may have changed.
    pub touched_sources: BTreeSet<Ipv4Addr>,
    /// Remote addresses, and the outside ends that they may send to.
    pub touched_peers: BTreeSet<(Ipv4Addr, End)>,
}

impl Model {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            healthy: 0b11,
            epoch: 0,
            halves: HashMap::new(),
            bindings: HashMap::new(),
            owners: HashMap::new(),
            peers: HashMap::new(),
            sources: HashMap::new(),
            fragments: HashMap::new(),
            waiting: HashMap::new(),
            traffic: [Traffic::default(); 2],
            touched: BTreeSet::new(),
            touched_bindings: BTreeSet::new(),
            touched_owners: BTreeSet::new(),
            touched_sources: BTreeSet::new(),
            touched_peers: BTreeSet::new(),
        }
    }

    /// The half that answers to packets of this one arrive at, if it is there. That of an embryonic flow between the same ends by another uplink is
    /// none.
    #[must_use]
    pub fn other(&self, half: &Half) -> Option<&Half> {
        self.halves.get(&half.to.swapped()).filter(|other| other.embryonic == half.embryonic)
    }

    /// How long the flow may be idle, in the state that its halves tell.
    #[must_use]
    pub fn timeout(&self, half: &Half) -> u32 {
        Self::timeout_beside(half, self.other(half))
    }

    fn timeout_beside(half: &Half, other: Option<&Half>) -> u32 {
        match half.to.protocol {
            TCP => {
                let (own, answer) = (half.tcp, other.map_or(0, |other| other.tcp));
                let reset = (own | answer) & RST != 0;
                let closed = own & answer & FIN != 0;
                let opened = own & answer & ACK != 0;
                if opened && !closed && !reset { TCP_ESTABLISHED } else { TCP_TRANSITORY }
            }
            ICMP => ICMP_TIMEOUT,
            _ => UDP_TIMEOUT,
        }
    }

    /// Whether a TCP connection has come to its end: by FIN both ways, or by RST.
    #[must_use]
    pub fn has_ended(&self, half: &Half) -> bool {
        let answer = self.other(half).map_or(0, |other| other.tcp);
        (half.tcp | answer) & RST != 0 || half.tcp & answer & FIN != 0
    }

    /// How long a binding of this protocol lives after the first packet.
    #[must_use]
    pub const fn first_timeout(protocol: u8) -> u32 {
        match protocol {
            TCP => TCP_TRANSITORY,
            ICMP => ICMP_TIMEOUT,
            _ => UDP_TIMEOUT,
        }
    }

    /// Whether the flow has been idle for too long, in both directions.
    #[must_use]
    pub fn has_expired(&self, half: &Half, now: Tick) -> bool {
        Self::has_expired_beside(half, self.other(half), now, |timeout| (timeout / 4).min(MAINTENANCE))
    }

    /// The same for whoever hears of packets later: how much, by the timeout.
    fn has_expired_beside(half: &Half, other: Option<&Half>, now: Tick, late: impl Fn(u32) -> u32) -> bool {
        let timeout = Self::timeout_beside(half, other);
        let timeout = timeout + late(timeout);
        let idle = |half: &Half| since(now, half.last_seen) > timeout;
        idle(half) && other.is_none_or(idle)
    }

    /// The half of the answers, and no other flow's that has its key.
    fn answers(&self, half: &Half) -> Option<&Half> {
        self.other(half).filter(|other| other.reply || other.kind == Kind::Hairpin)
    }

    /// Takes a half out.
    pub fn remove_half(&mut self, key: &Key) {
        self.touched.insert(*key);
        self.halves.remove(key);
    }

    /// A second packet has come for a flow, with this key.
    pub fn hatch(&mut self, key: &Key) {
        let Some(half) = self.halves.get(key).filter(|half| half.embryonic) else { return };
        let (other, answered) = (half.to.swapped(), half.reply);
        for key in [key, &other] {
            self.touched.insert(*key);
            if let Some(half) = self.halves.get_mut(key) {
                (half.embryonic, half.answered) = (false, answered);
            }
        }
    }

    /// A packet has come from inside of a source that may have embryonic flows: of its own, or else of all of them.
    pub fn hatch_source(&mut self, key: &Key) {
        if self.halves.get(key).is_some_and(|half| half.embryonic && !half.reply) {
            return self.hatch(key);
        }
        self.hatch_all(|at, _| (at.src, at.sport, at.protocol) == (key.src, key.sport, key.protocol));
    }

    /// The binding of this inside end, which may have this outside end or another one (it is a forward's), gets another flow by it.
    pub fn hatch_binding(&mut self, inside: &End, outside: &End) {
        if self.bindings.get(inside).is_some_and(|b| (b.address, b.port) == (outside.address, outside.port)) {
            self.hatch_all(|key, half| Self::inside_end(key, half) == *inside);
        }
    }

    /// Hatches the embryonic flows of which this is true, by their forward halves.
    fn hatch_all(&mut self, is_meant: impl Fn(&Key, &Half) -> bool) {
        let meant = |(key, half): &(&Key, &Half)| half.embryonic && !half.reply && is_meant(key, half);
        let keys: Vec<Key> = self.halves.iter().filter(meant).map(|(key, _)| *key).collect();
        for key in keys {
            self.hatch(&key);
        }
    }

    /// Gives an uplink another address. Embryonic flows on the former one would not be found from inside any more.
    pub fn renumber(&mut self, uplink: u8, address: Ipv4Addr) {
        self.setup.outside[usize::from(uplink)] = address;
        self.hatch_all(|_, half| half.uplink == uplink && half.to.src != address);
    }

    /// Takes a half out as if for lack of room; of an embryonic flow, both.
    pub fn evict(&mut self, key: &Key) {
        if let Some(half) = self.halves.get(key).filter(|half| half.embryonic) {
            let other = half.to.swapped();
            self.remove_half(&other);
        }
        self.remove_half(key);
    }

    /// Ends a flow.
    pub fn forget(&mut self, key: &Key) {
        if let Some(half) = self.halves.get(key).filter(|half| self.other(half).is_some()) {
            let other = half.to.swapped();
            self.remove_half(&other);
        }
        self.remove_half(key);
    }

    /// The inside end of the binding that a half's flow uses.
    #[must_use]
    pub fn inside_end(key: &Key, half: &Half) -> End {
        // From inside, this is the key; in the other direction, the reverse of what it becomes.
        let inside = if half.reply { half.to.swapped() } else { *key };
        let remote = if half.reply { key.src } else { key.dst };
        let protocol = key.protocol;
        if has_ports(protocol) {
            // The identifier of a ping is the requester's port.
            End { address: inside.src, port: inside.sport, protocol, uplink: half.uplink }
        } else {
            End { address: remote, port: 0, protocol, uplink: half.uplink }
        }
    }

    /// Moves the end of the binding on; `ends`: or nearer, if this was the end of a TCP connection.
    pub fn extend_binding(&mut self, key: &Key, ends: bool, now: Tick) {
        let Some(half) = self.halves.get(key).cloned() else { return };
        let heard = half.answered && half.to.protocol != TCP;
        let from_inside =
            if half.reply { heard || self.other(&half).is_some_and(|f| f.packets > 0) } else { half.packets > 0 };
        // RFC 4787 REQ-6: only what inside hosts send keeps a binding.
        if !from_inside {
            return;
        }
        let ended = ends && half.to.protocol == TCP && self.has_ended(&half);
        let timeout = self.timeout(&half);
        // It hears of later packets only when the flow is maintained.
        let expires = now.wrapping_add(timeout + if ended { 0 } else { timeout.min(MAINTENANCE) });
        let end = Self::inside_end(key, &half);
        self.touched_bindings.insert(end);
        // One with an embryonic flow has no other: the half is of a former binding, of an address that the uplink has had.
        if self.halves.iter().any(|(key, half)| half.embryonic && Self::inside_end(key, half) == end) {
            return;
        }
        let Some(binding) = self.bindings.get_mut(&end) else { return };
        binding.expires = if ended { expires } else { later(expires, binding.expires) };
        if self.setup.address_dependent && half.leads_outside() {
            let outside = End { address: binding.address, port: binding.port, ..end };
            self.touched_peers.insert((key.dst, outside));
            let until = self.peers.entry((key.dst, outside)).or_insert(expires);
            *until = if ended { expires } else { later(expires, *until) };
        }
    }

    /// Whether an outside end can serve this inside host.
    #[must_use]
    pub fn is_free(&self, end: &End, host: Ipv4Addr, now: Tick) -> bool {
        match self.owners.get(end) {
            None => true,
            Some(Owner { resting: None, .. }) => false,
            Some(Owner { resting: Some(then), address, .. }) => *address == host || since(now, *then) >= REST,
        }
    }

    /// The controller's sweep.
    pub fn sweep(&mut self, now: Tick) {
        // A binding with an embryonic flow has no other: those of its inside end are of former bindings, of addresses that the uplink has had.
        let embryonic = |(_, half): &(&Key, &Half)| half.embryonic;
        let alone: BTreeSet<End> =
            self.halves.iter().filter(embryonic).map(|(key, half)| Self::inside_end(key, half)).collect();
        let over: Vec<Key> = self
            .halves
            .iter()
            .filter(|(key, half)| {
                let expired = Self::has_expired_beside(half, self.answers(half), now, |_| 0);
                !half.reply && (expired || self.is_stranded(key, half))
            })
            .flat_map(|(key, half)| [Some(*key), self.answers(half).map(|_| half.to.swapped())])
            .flatten()
            .collect();
        for key in over {
            self.remove_half(&key);
        }
        // An answer's half without its flow goes when even the longest idle time is over.
        let longest = |protocol| if protocol == TCP { TCP_ESTABLISHED } else { Self::first_timeout(protocol) };
        let lone: Vec<Key> = self
            .halves
            .iter()
            .filter(|(key, half)| {
                half.reply && self.other(half).is_none() && { since(now, half.last_seen) > longest(key.protocol) }
            })
            .map(|(key, _)| *key)
            .collect();
        for key in lone {
            self.remove_half(&key);
        }
        let used: BTreeSet<End> = self
            .halves
            .iter()
            .filter(|(_, half)| !half.reply && half.packets > 0)
            .map(|(key, half)| Self::inside_end(key, half))
            .collect();
        let unused: Vec<End> = self
            .bindings
            .iter()
            .filter(|(end, binding)| {
                let over = passed(now, binding.expires) || self.has_lost(end.uplink, binding.address);
                !binding.fixed && over && (alone.contains(end) || !used.contains(end))
            })
            .map(|(end, _)| *end)
            .collect();
        for end in unused {
            self.release(&end, now);
        }
        self.owners.retain(|_, owner| owner.resting.is_none_or(|then| since(now, then) < REST));
        // A permission goes with its binding, or when its own time is over.
        let owners = &self.owners;
        self.peers.retain(|(_, end), until| {
            !passed(now, *until) && owners.get(end).is_some_and(|owner| owner.resting.is_none())
        });
    }

    /// Whether an uplink does not have an address, and its flows are not held, and would find another.
    fn has_lost(&self, uplink: u8, address: Ipv4Addr) -> bool {
        let on_down = self.setup.on_down[usize::from(uplink)];
        let elsewhere = self.setup.members & self.healthy != 0;
        elsewhere && on_down != OnDown::Hold && self.setup.outside[usize::from(uplink)] != address
    }

    /// Whether a flow is over for its address is lost: at once, but for a TCP connection that waits to be reset.
    fn is_stranded(&self, key: &Key, half: &Half) -> bool {
        let repins = self.setup.on_down[usize::from(half.uplink)] == OnDown::Repin;
        let waits =
            half.to.protocol == TCP && !repins && Self::timeout_beside(half, self.answers(half)) == TCP_ESTABLISHED;
        half.leads_outside() && half.to.src != key.src && self.has_lost(half.uplink, half.to.src) && !waits
    }

    /// Ends a binding; its port rests.
    fn release(&mut self, end: &End, now: Tick) {
        let Some(binding) = self.bindings.remove(end) else { return };
        if has_ports(end.protocol) {
            let outside = End { address: binding.address, port: binding.port, ..*end };
            if let Some(owner) = self.owners.get_mut(&outside)
                && (owner.address, owner.port) == (end.address, end.port)
            {
                owner.resting = Some(now.max(1));
            }
        } else {
            self.owners.remove(end);
        }
    }

    /// How many bindings an inside host has in use.
    #[must_use]
    pub fn in_use(&self, host: Ipv4Addr) -> u32 {
        let count = self.owners.values().filter(|o| o.resting.is_none() && o.address == host).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Makes everything older.
    pub fn age(&mut self, ticks: u32) {
        for half in self.halves.values_mut() {
            for time in [&mut half.created, &mut half.last_seen, &mut half.maintained] {
                *time = time.wrapping_sub(ticks);
            }
        }
        for binding in self.bindings.values_mut() {
            binding.created = binding.created.wrapping_sub(ticks);
            binding.expires = binding.expires.wrapping_sub(ticks);
        }
        for owner in self.owners.values_mut() {
            owner.resting = owner.resting.map(|then| aged(then, ticks));
        }
        for until in self.peers.values_mut() {
            *until = until.wrapping_sub(ticks);
        }
        for source in self.sources.values_mut() {
            source.window = source.window.wrapping_sub(ticks);
        }
        let first = self.fragments.values_mut().map(|(_, since)| since);
        for since in first.chain(self.waiting.values_mut().map(|(_, since)| since)) {
            *since = since.wrapping_sub(ticks);
        }
    }
}

/// A time that is not zero, made older.
#[must_use]
pub fn aged(then: Tick, ticks: u32) -> Tick {
    match then.wrapping_sub(ticks) {
        0 => 1,
        other => other,
    }
}

/// Whether the protocol has ports or identifiers.
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | ICMP)
}

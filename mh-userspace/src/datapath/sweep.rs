//! Expiry: flows that have been idle too long, bindings that nothing uses, and ports that have rested.
//!
//! One lifetime for flows and bindings: a binding goes only when its own time is over and no flow is left that uses it; one that only
//! the remote side sends to is not used. The outside end of a binding that goes stays for a while, so that its port rests
//! (RFC 6888 REQ-8). The walk reads in batches and removes one by one; packets go on meanwhile, and a flow that a packet revives between
//! the look and the removal loses its entry only, which the next packet restores from the binding.
//!
//! What is on an address that its uplink has lost (DHCP) is over sooner, unless `on_down` holds it.
//!
//! The sweep also settles the limits per inside host: how many of its bindings have ended is how many it got less those that are there.

use std::collections::HashMap;

use mh_common::{
    abi::{self, Timeouts},
    address::Ipv4,
    binding::{End, Inside, Outside, Peer, STATIC},
    flow::{Seen, State},
    policy,
    time::{self, Tick},
    wire,
};

use super::{
    DatapathError,
    flows::{Filter, Flow},
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

/// Removes what has expired as of `now`.
pub fn sweep(tables: &mut Tables, timeouts: &Timeouts, now: Tick) -> Result<Swept, DatapathError> {
    let lost = Lost::look(tables)?;
    let mut unused: HashMap<End<Ipv4>, Outside<Ipv4>> = tables
        .bindings()?
        .into_iter()
        .filter(|(inside, outside)| {
            let over = time::passed(now, outside.expires) || lost.is(inside.uplink, outside.address);
            outside.flags & STATIC == 0 && over
        })
        .collect();
    let mut expired = Vec::new();
    let mut sources = Sources::look(tables, now)?;
    tables.each_flow(&Filter::default(), |flow| {
        if is_expired(&flow, timeouts, now) || lost.ends(&flow) {
            expired.push(flow);
        } else {
            sources.see(&flow);
            if Seen::from(&flow.forward).any {
                unused.remove(&flow.inside_end());
            }
        }
        true
    })?;
    expired.iter().try_for_each(|flow| tables.remove_flow(flow))?;
    // Flows that were not idle may have copies that are still good.
    if expired.iter().any(|flow| !is_expired(flow, timeouts, now)) {
        tables.void_copies()?;
    }
    let mut lone = Vec::new();
    tables.each_lone_reply(now, |protocol| State::Established.timeout(protocol, timeouts), |key| lone.push(key))?;
    for key in &lone {
        tables.remove_half(key)?;
    }
    let mut swept = Swept { flows: expired.len() as u64, ..Swept::default() };
    for (inside, outside) in &unused {
        // A new flow may have taken it up since.
        let still = tables.by_inside4.get(inside, 0).is_ok_and(|o| o.expires == outside.expires);
        if still {
            tables.release_binding(inside, outside, now)?;
            swept.bindings += 1;
        }
    }
    sources.settle(tables)?;
    swept.rested = settle(tables, now)?;
    Ok(swept)
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
        self.elsewhere && flags & abi::UPLINK_HOLD == 0 && owners >> (uplink & 31) & 1 == 0
    }

    /// Whether a flow is over because of that: nothing comes back to it. A TCP connection that is to be reset waits for its client, who
    /// is told with the next segment.
    fn ends(&self, flow: &Flow) -> bool {
        let translated = flow.forward.leads_outside() && flow.forward.src != flow.key.src;
        let repins = self.uplinks.get(&flow.forward.uplink).is_some_and(|u| u.flags & abi::UPLINK_REPIN != 0);
        let waits = flow.key.protocol == wire::PROTOCOL_TCP
            && !repins
            && matches!(flow.state(), State::Established | State::HalfClosed);
        translated && !waits && self.is(flow.forward.uplink, flow.forward.src)
    }
}

fn is_expired(flow: &Flow, timeouts: &Timeouts, now: Tick) -> bool {
    let state: State = flow.state();
    flow.idle(now) > state.timeout(flow.key.protocol, timeouts)
}

/// Frees rested ports, and tells the programs how many bindings of each inside host have ended. Returns how many ports were freed.
fn settle(tables: &mut Tables, now: Tick) -> Result<u64, DatapathError> {
    let mut rested = Vec::new();
    let mut held: HashMap<Ipv4, u32> = HashMap::new();
    tables.by_outside4.walk(|end, inside: Inside<Ipv4>| {
        if inside.rested(now) {
            rested.push(end);
        } else if inside.in_use() && inside.flags & u16::from(STATIC) == 0 {
            *held.entry(inside.address).or_default() += 1;
        }
    })?;
    for end in &rested {
        // The host that it rests for may have taken it up since.
        if tables.by_outside4.get(end, 0).is_ok_and(|inside| inside.rested(now)) {
            tables.by_outside4.forget(end)?;
        }
    }
    // A permission is its binding's: the port's next host starts with none.
    let mut withdrawn = Vec::new();
    tables.peers4.walk(|peer: Peer<Ipv4>, until| {
        let bound = tables.by_outside4.get(&peer.outside, 0).is_ok_and(|inside| inside.in_use());
        if !bound || time::passed(now, until) {
            withdrawn.push(peer);
        }
    })?;
    for peer in &withdrawn {
        tables.peers4.forget(peer)?;
    }
    // Read after the walk: a binding that was made meanwhile counts as ended until the next sweep.
    let mut sources = HashMap::new();
    tables.sources4.walk(|host, source| {
        sources.insert(host, source.bindings);
    })?;
    let mut ended = Vec::new();
    tables.ended4.walk(|host, _| ended.push(host))?;
    for (host, got) in &sources {
        let ended = got.wrapping_sub(held.get(host).copied().unwrap_or(0));
        tables.ended4.insert(host, ended, 0).map_err(DatapathError::map("write the ended bindings"))?;
    }
    for host in ended {
        if !sources.contains_key(&host) {
            tables.ended4.forget(&host)?;
        }
    }
    Ok(rested.len() as u64)
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
            Ok(owner) if (owner.address, owner.port) == (inside.address, inside.port) => {
                let resting = Inside { released: now.max(1), ..owner };
                self.by_outside4.insert(end, resting, 0).map_err(DatapathError::map("let a port rest"))
            }
            _ => Ok(()),
        }
    }
}

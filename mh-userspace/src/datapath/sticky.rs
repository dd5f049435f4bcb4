//! Sources that keep their uplink: what the sweep does about them.
//!
//! The datapath notes when a source last began a flow. A source keeps its uplink for as long as it has a flow there, too: the sweep, which
//! sees all flows, notes when that was last seen; a TCP connection that is open counts, whether it is idle or not. And it forgets those whose time is over.

use std::collections::HashMap;

use mh_common::{
    address::Ipv4,
    flow::State,
    policy::{Sticky, StickyKey},
    time::{self, Tick},
    wire,
};

use super::{DatapathError, flows::Flow, tables::Tables};

/// The sources that keep their uplink, and when they last had a flow there.
pub struct Sources {
    kept: Vec<(StickyKey<Ipv4>, Sticky)>,
    /// By source and uplink: when it last had a flow there.
    seen: HashMap<(Ipv4, u8), Option<Tick>>,
    now: Tick,
    /// How long each policy has them kept, by its id.
    lasts: HashMap<u32, u32>,
}

impl Sources {
    /// Reads them, as of `now`.
    pub fn look(tables: &Tables, now: Tick) -> Result<Self, DatapathError> {
        let (mut kept, mut seen) = (Vec::new(), HashMap::new());
        tables.sticky4.walk(|key, sticky| {
            kept.push((key, sticky));
            seen.insert((key.source, sticky.uplink), None);
        })?;
        let lasts = tables.policies()?.into_iter().map(|(_, policy)| (policy.id, policy.sticky)).collect();
        Ok(Self { kept, seen, lasts, now })
    }

    /// Whether it matters what the flows of this source by this uplink do.
    pub fn want(&self, source: Ipv4, uplink: u8) -> bool {
        self.seen.contains_key(&(source, uplink))
    }

    /// Takes a flow in that lives.
    pub fn see(&mut self, flow: &Flow) {
        if let Some(seen) = self.seen.get_mut(&(flow.key.src, flow.forward.uplink)) {
            let open = flow.key.protocol == wire::PROTOCOL_TCP
                && matches!(flow.state(), State::Established | State::HalfClosed);
            let halves = flow.reply.iter().map(|reply| reply.last_seen).chain([flow.forward.last_seen]);
            *seen = if open { Some(self.now) } else { halves.chain(*seen).reduce(time::later) };
        }
    }

    /// Notes what was seen, and forgets the sources whose time is over. `pause` is called for each.
    pub fn settle<E: From<DatapathError>>(
        self,
        tables: &mut Tables,
        mut pause: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        for (key, kept) in self.kept {
            pause()?;
            let seen = self.seen.get(&(key.source, kept.uplink)).copied().flatten();
            let last = seen.map_or(kept.last, |seen| time::later(seen, kept.last));
            let lasts = self.lasts.get(&key.policy).copied().unwrap_or_default();
            // A program may have renewed it meanwhile.
            if tables.sticky4.get(&key, 0).is_ok_and(|now| now != kept) {
                continue;
            }
            if time::since(self.now, last) > lasts {
                tables.sticky4.forget(&key)?;
            } else if last != kept.last {
                let write = tables.sticky4.insert(key, Sticky { last, ..kept }, 0);
                write.map_err(DatapathError::map("note that a source keeps its uplink"))?;
            }
        }
        Ok(())
    }
}

impl Tables {
    /// Has no source keep an uplink that is no more.
    pub(super) fn release_sources_of(&mut self, uplink: u8) -> Result<(), DatapathError> {
        let mut kept = Vec::new();
        self.sticky4.walk(|key, sticky| kept.extend((sticky.uplink == uplink).then_some(key)))?;
        kept.iter().try_for_each(|key| self.sticky4.forget(key))
    }
}

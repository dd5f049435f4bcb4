//! Time that passes in the tables, and nowhere else.

use anyhow::Result;
use mh_common::{address::Ipv4, flow::Entry, fragment, policy::Sticky, time::Tick};
use mh_userspace::datapath::tables::Tables;

use super::Rig;

impl Rig {
    /// Makes everything in the tables older, as if so many ticks had passed.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub fn age(&mut self, ticks: u32) -> Result<()> {
        self.end_copies()?;
        let Tables { flows4, new_flows4, by_inside4, by_outside4, peers4, sources4, sticky4, .. } = &mut self.tables;
        let earlier = |time: Tick| time.wrapping_sub(ticks);
        let half = |entry: Entry<Ipv4>| Entry {
            created: earlier(entry.created),
            last_seen: earlier(entry.last_seen),
            maintained: earlier(entry.maintained),
            ..entry
        };
        let mut halves = Vec::new();
        for table in [flows4, new_flows4] {
            halves.clear();
            table.walk(|key, entry| halves.push((key, half(entry))))?;
            halves.iter().try_for_each(|(key, entry)| table.insert(key, entry, 0))?;
        }
        let mut bindings = Vec::new();
        by_inside4.walk(|end, outside| bindings.push((end, outside)))?;
        for (end, mut outside) in bindings {
            (outside.created, outside.expires) = (earlier(outside.created), earlier(outside.expires));
            by_inside4.insert(end, outside, 0)?;
        }
        let mut ports = Vec::new();
        by_outside4.walk(|end, inside| ports.push((end, inside)))?;
        for (end, mut inside) in ports {
            inside.created = earlier(inside.created);
            if !inside.in_use() {
                // Zero would be a port in use.
                inside.released = earlier(inside.released).max(1);
            }
            by_outside4.insert(end, inside, 0)?;
        }
        let mut peers = Vec::new();
        peers4.walk(|peer, until| peers.push((peer, earlier(until))))?;
        peers.iter().try_for_each(|(peer, until)| peers4.insert(peer, until, 0))?;
        let mut kept = Vec::new();
        sticky4.walk(|source, sticky| kept.push((source, Sticky { last: earlier(sticky.last), ..sticky })))?;
        kept.iter().try_for_each(|(source, sticky)| sticky4.insert(source, sticky, 0))?;
        let mut sources = Vec::new();
        sources4.walk(|host, source| sources.push((host, source)))?;
        for (host, mut source) in sources {
            source.window = earlier(source.window);
            sources4.insert(host, source, 0)?;
        }
        for datagram in self.fragments.keys().collect::<Result<Vec<_>, _>>()? {
            let entry = half(self.fragments.get(&datagram, 0)?);
            self.fragments.insert(datagram, entry, 0)?;
        }
        for datagram in self.waiting.keys().collect::<Result<Vec<_>, _>>()? {
            let waiting = self.waiting.get(&datagram, 0)?;
            self.waiting.insert(datagram, fragment::Waiting { since: earlier(waiting.since), ..waiting }, 0)?;
        }
        Ok(())
    }
}

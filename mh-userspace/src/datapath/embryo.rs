//! Embryonic flows as the controller finds them: see [`mh_common::binding`].

use mh_common::{
    address::Ipv4,
    binding::{End, Inside},
    flow::Key,
    hash,
    ports::{Candidates, KEYED, Range},
};

use super::{DatapathError, flows::embryo, tables::Tables};

/// A binding by its outside end.
pub type Outer = (End<Ipv4>, Inside<Ipv4>);

impl Tables {
    /// Calls `each` with every binding that has an embryonic flow.
    pub fn each_embryo(&self, mut each: impl FnMut(&End<Ipv4>, &Inside<Ipv4>)) -> Result<(), DatapathError> {
        self.by_outside4.walk(|end, inside| {
            if inside.has_embryo() {
                each(&end, &inside);
            }
        })
    }

    /// Where a binding of this inside end with an embryonic flow may be: at the few ports that follow from it.
    fn keyed(&self, inside: &End<Ipv4>) -> Option<impl Iterator<Item = End<Ipv4>>> {
        let (inside, index) = (*inside, u32::from(inside.uplink));
        let host = hash::host(self.seed().ok()?, inside.address);
        // The halves of a number, as the programs take them.
        let [pooled, secret] = bytemuck::cast::<u64, [u32; 2]>(host.to_le()).map(u32::from_le);
        let address = self.pools.get(&index, 0).ok()?.nth(pooled)?;
        let uplink = self.uplinks.get(&index, 0).ok()?;
        let range = Range { first: uplink.first_port, last: uplink.last_port };
        let mut candidates = Candidates::new(u16::from_be(inside.port), range, secret, 0, false);
        Some((0..KEYED).map(move |n| End { address, port: candidates.get(n).to_be(), ..inside }))
    }

    /// The binding of this inside end, if its flow is embryonic.
    pub fn embryo_of(&self, inside: &End<Ipv4>) -> Option<Outer> {
        self.keyed(inside)?.find_map(|end| {
            let found = self.by_outside4.get(&end, 0).ok()?;
            (found.has_embryo() && found.end(&end) == *inside).then_some((end, found))
        })
    }

    /// The binding in which a flow is embryonic, by either of the keys that its halves would have.
    pub fn embryo(&self, key: &Key<Ipv4>) -> Option<Outer> {
        let uplinks = u8::try_from(self.settings().ok()?.uplinks).unwrap_or(u8::MAX);
        (0..uplinks).find_map(|uplink| {
            let end = |address, port| End { address, port, protocol: key.protocol, uplink };
            let source = self.embryo_of(&end(key.src, key.sport));
            if let Some(found) = source.filter(|(_, inside)| inside.is_embryonic(key.dst, key.dport)) {
                return Some(found);
            }
            let end = end(key.dst, key.dport);
            let inside = self.by_outside4.get(&end, 0).ok()?;
            inside.is_embryonic(key.src, key.sport).then_some((end, inside))
        })
    }

    /// Ends the embryonic flow of a binding, and not the binding.
    pub(super) fn keep_binding(&mut self, end: &End<Ipv4>, inside: &Inside<Ipv4>) -> Result<(), DatapathError> {
        let outside = inside.embryo_binding(end, &self.settings()?.timeouts);
        // A program may have entered it by now.
        self.by_inside4.add(&inside.end(end), &outside)?;
        self.by_outside4.replace(end, &Inside { embryo: 0, ..*inside })
    }
    /// Makes conntrack entries of embryonic flows of an uplink that would not be found from inside any more, since its addresses or ports have changed.
    pub fn hatch_misplaced(&mut self, uplink: u8) -> Result<(), DatapathError> {
        let mut misplaced = Vec::new();
        self.each_embryo(|end, inside| {
            if end.uplink == uplink && self.keyed(&inside.end(end)).is_none_or(|mut keyed| keyed.all(|at| at != *end)) {
                misplaced.push((*end, *inside));
            }
        })?;
        for (end, inside) in misplaced {
            if let Some(flow) = embryo(&end, &inside) {
                // The reply's first, so that no packet goes out that can't be answered.
                for (key, half) in flow.halves().collect::<Vec<_>>().iter().rev() {
                    self.new_flows4.add(key, half)?;
                }
            }
            self.keep_binding(&end, &inside)?;
        }
        Ok(())
    }
}

//! Embryonic flows as the controller finds them: see [`mh_common::binding`].

use mh_common::{
    abi::Pool,
    address::Ipv4,
    binding::{End, Inside},
    flow::Key,
    hash,
    ports::{Candidates, KEYED, Range},
};

use super::{
    DatapathError,
    flows::{embryo, now},
    tables::Tables,
};

/// A binding by its outside end.
pub type Outer = (End<Ipv4>, Inside<Ipv4>);

/// What the ports of embryonic flows of an uplink follow from.
struct Keys {
    seed: [u64; 2],
    pool: Pool,
    range: Range,
}

impl Keys {
    /// Where a binding of this inside end with an embryonic flow may be.
    fn ends(&self, inside: &End<Ipv4>) -> impl Iterator<Item = End<Ipv4>> {
        let (inside, host) = (*inside, hash::host(self.seed, inside.address));
        // The halves of a number, as the programs take them.
        let [pooled, secret] = bytemuck::cast::<u64, [u32; 2]>(host.to_le()).map(u32::from_le);
        let mut candidates = Candidates::new(u16::from_be(inside.port), self.range, secret, 0, false);
        let end = move |address| (0..KEYED).map(move |n| End { address, port: candidates.get(n).to_be(), ..inside });
        self.pool.nth(pooled).map(end).into_iter().flatten()
    }
}

impl Tables {
    /// Calls `each` with every binding that has an embryonic flow.
    pub fn each_embryo(&self, mut each: impl FnMut(&End<Ipv4>, &Inside<Ipv4>)) -> Result<(), DatapathError> {
        self.by_outside4.walk(|end, inside| {
            if inside.has_embryo() {
                each(&end, &inside);
            }
        })
    }

    /// What the ports of embryonic flows of an uplink follow from.
    fn keys(&self, uplink: u8) -> Option<Keys> {
        let record = self.uplinks.get(&uplink.into(), 0).ok()?;
        let range = Range { first: record.first_port, last: record.last_port };
        Some(Keys { seed: self.seed().ok()?, pool: self.pools.get(&uplink.into(), 0).ok()?, range })
    }

    /// The binding of this inside end, if its flow is embryonic.
    pub fn embryo_of(&self, inside: &End<Ipv4>) -> Option<Outer> {
        self.keys(inside.uplink)?.ends(inside).find_map(|end| {
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

    /// Ends the embryonic flow of a binding, and not the binding, if there is room for it, and its source has no other.
    pub(super) fn keep_binding(&mut self, end: &End<Ipv4>, inside: &Inside<Ipv4>) -> Result<(), DatapathError> {
        let entered = self.enter_binding(end, inside)?;
        self.end_embryo(end, inside, entered)
    }

    /// Ends the embryonic flow of a binding, and the binding unless it has been entered by its inside end.
    fn end_embryo(&mut self, end: &End<Ipv4>, inside: &Inside<Ipv4>, entered: bool) -> Result<(), DatapathError> {
        if entered {
            self.by_outside4.replace(end, &Inside { embryo: 0, ..*inside })
        } else {
            self.release_embryo(end, inside, now())
        }
    }

    /// Whether the binding with these ends has been entered by its inside end.
    pub(super) fn is_entered(&self, end: &End<Ipv4>, inside: &Inside<Ipv4>) -> bool {
        self.by_inside4.get(&inside.end(end), 0).is_ok_and(|outside| outside.is_to(end))
    }

    /// Enters the binding of an embryonic flow by its inside end. Returns whether it is there now.
    fn enter_binding(&mut self, end: &End<Ipv4>, inside: &Inside<Ipv4>) -> Result<bool, DatapathError> {
        let outside = inside.embryo_binding(end, &self.settings()?.timeouts);
        self.by_inside4.add(&inside.end(end), &outside)?;
        Ok(self.is_entered(end, inside))
    }

    /// Makes conntrack entries of embryonic flows of an uplink that would not be found from inside any more, since its addresses or ports have changed.
    pub fn hatch_misplaced(&mut self, uplink: u8) -> Result<(), DatapathError> {
        let keys = self.keys(uplink);
        let is_found = |end: &End<Ipv4>, inside: &Inside<Ipv4>| {
            keys.as_ref().is_some_and(|keys| keys.ends(&inside.end(end)).any(|at| at == *end))
        };
        let mut misplaced = Vec::new();
        self.each_embryo(|end, inside| {
            if end.uplink == uplink && !is_found(end, inside) {
                misplaced.push((*end, *inside));
            }
        })?;
        for (end, inside) in misplaced {
            let entered = self.enter_binding(&end, &inside)?;
            if entered && let Some(flow) = embryo(&end, &inside) {
                // The reply's first, so that no packet goes out that can't be answered.
                for (key, half) in flow.halves().collect::<Vec<_>>().iter().rev() {
                    self.new_flows4.add(key, half)?;
                }
            }
            self.end_embryo(&end, &inside, entered)?;
        }
        Ok(())
    }
}

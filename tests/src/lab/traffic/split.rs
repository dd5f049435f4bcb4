//! Counting flows by the source that the server saw, and judging the counts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};

/// How many flows came from which source address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    counts: BTreeMap<Ipv4Addr, usize>,
}

impl Split {
    /// Counts the sources of flows.
    pub fn of(sources: impl IntoIterator<Item = SocketAddrV4>) -> Self {
        let mut counts = BTreeMap::new();
        for source in sources {
            *counts.entry(*source.ip()).or_default() += 1;
        }
        Self { counts }
    }

    /// Flows that came from `source`.
    #[must_use]
    pub fn count(&self, source: Ipv4Addr) -> usize {
        self.counts.get(&source).copied().unwrap_or_default()
    }

    /// All flows.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    /// Every source with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, usize)> + '_ {
        self.counts.iter().map(|(&source, &count)| (source, count))
    }

    /// How far `source`'s count is from its expected `share` (0 to 1) of all flows, in standard deviations of the binomial
    /// distribution. For a share of 0 or 1 there is no deviation: any difference is infinitely far.
    #[must_use]
    pub fn sigmas(&self, source: Ipv4Addr, share: f64) -> f64 {
        let total = self.total() as f64;
        let difference = (self.count(source) as f64 - total * share).abs();
        if difference == 0.0 { 0.0 } else { difference / (total * share * (1.0 - share)).sqrt() }
    }

    /// Checks that the sources are these and no others, each with its part of all flows within 4 standard deviations.
    /// `weights`: source address and weight.
    ///
    /// # Errors
    /// Says which source is off, and how far.
    pub fn check(&self, weights: &[(Ipv4Addr, u32)]) -> Result<()> {
        let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let known: usize = weights.iter().map(|&(source, _)| self.count(source)).sum();
        ensure!(known == self.total(), "flows from sources that are no uplink's: {self}");
        for &(source, weight) in weights {
            let share = f64::from(weight) / f64::from(sum);
            let sigmas = self.sigmas(source, share);
            ensure!(sigmas <= 4.0, "{source} is {sigmas:.1} sigma from its share of {share:.3}: {self}");
        }
        Ok(())
    }
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (source, count)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(formatter, "{comma}{source}: {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

    fn split(a: usize, b: usize) -> Split {
        let flows = [(A, a), (B, b)].into_iter().flat_map(|(ip, n)| (0..n).map(move |_| SocketAddrV4::new(ip, 1)));
        Split::of(flows)
    }

    #[test]
    fn sigma_of_a_fair_coin() {
        // 400 throws: the standard deviation is 10.
        assert!((split(230, 170).sigmas(A, 0.5) - 3.0).abs() < 1e-9);
        split(239, 161).check(&[(A, 1), (B, 1)]).unwrap();
        split(241, 159).check(&[(A, 1), (B, 1)]).unwrap_err();
    }

    #[test]
    fn nothing_may_come_from_a_zero_weight_or_a_stranger() {
        split(100, 0).check(&[(A, 1), (B, 0)]).unwrap();
        split(100, 1).check(&[(A, 1), (B, 0)]).unwrap_err();
        split(100, 1).check(&[(A, 1)]).unwrap_err();
    }
}

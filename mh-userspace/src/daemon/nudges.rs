//! Which clients are nudged, so that they connect anew, when an uplink goes down or loses an address, and when that ends.
//!
//! The datapath resets a lost connection with the client's next segment; [`mod@nudge`] sees to it that there is one.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use mh_common::abi::{UPLINK_HOLD, UPLINK_REPIN};
use tokio::task::spawn_blocking;

use crate::{
    core::Desired,
    datapath::nudge::{self, Which},
};

/// The nudging of a controller. It ends with it.
#[derive(Debug, Default)]
pub struct Nudges {
    /// One bit per uplink that can be used.
    healthy: Arc<AtomicU64>,
}

impl Nudges {
    /// Nudges those whose connections are lost since `before`, on threads of their own.
    pub fn follow(&self, dir: &Path, before: Option<&Desired>, desired: &Desired) {
        self.healthy.store(desired.healthy, Ordering::Relaxed);
        for which in before.into_iter().flat_map(|before| lost(before, desired)) {
            let healthy = Arc::downgrade(&self.healthy);
            let dir = dir.to_owned();
            spawn_blocking(move || run(&dir, &which, &healthy));
        }
    }
}

fn run(dir: &Path, which: &Which, healthy: &Weak<AtomicU64>) {
    let goes_on = || {
        healthy.upgrade().is_some_and(|healthy| match which {
            Which::Uplink(index) => healthy.load(Ordering::Relaxed) >> index & 1 == 0,
            Which::Addresses(..) => true,
        })
    };
    match nudge::nudge(dir, which, goes_on) {
        Ok(count) => tracing::debug!("had {count} clients connect anew: {which:?}"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// What the datapath resets from now on and did not before.
fn lost(before: &Desired, desired: &Desired) -> Vec<Which> {
    // Nothing is given up where new flows find no uplink.
    if !desired.takes_flows() {
        return Vec::new();
    }
    let mut lost = Vec::new();
    for (&index, uplink) in &desired.uplinks {
        if uplink.flags & (UPLINK_HOLD | UPLINK_REPIN) != 0 {
            continue;
        }
        if (before.healthy & !desired.healthy) >> index & 1 != 0 {
            lost.push(Which::Uplink(index));
        }
        let has = |owners: Option<&u32>| owners.is_some_and(|owners| owners >> index & 1 != 0);
        let addresses = before.outside.iter().filter(|(_, owners)| has(Some(owners)));
        let gone = addresses.filter(|(address, _)| !has(desired.outside.get(address)));
        let gone: BTreeSet<_> = gone.map(|(&address, _)| address).collect();
        if !gone.is_empty() {
            lost.push(Which::Addresses(index, gone));
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::core::{Core, Indices, Overrides};

    const OLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    const NEW: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

    /// Two uplinks, both healthy.
    fn desired(on_down: &str) -> Desired {
        let config = format!(
            "lan = [\"lan0\"]\n[uplink.isp1]\ninterface = \"wan1\"\naddress = \"{OLD}\"\non_down = \"{on_down}\"\n\
             [uplink.isp2]\ninterface = \"wan2\"\naddress = \"203.0.113.2\"\n"
        );
        let config = crate::config::parse(&config).unwrap().config;
        let mut indices = Indices::default();
        indices.assign(&config);
        let desired = Core::new(config, indices, Overrides::default(), 0).desired(std::time::Duration::ZERO);
        getting(Desired { healthy: 0b11, ..desired }, 0b11)
    }

    /// New flows go to these uplinks.
    fn getting(mut desired: Desired, members: u32) -> Desired {
        desired.policies.get_mut(&0).unwrap().members = members;
        desired
    }

    #[test]
    fn who_lost_an_uplink() {
        for (on_down, expected) in [("reset", vec![Which::Uplink(0)]), ("repin", vec![]), ("hold", vec![])] {
            let before = desired(on_down);
            let down = Desired { healthy: 0b10, ..before.clone() };
            assert_eq!(lost(&before, &down), expected);
            assert_eq!(lost(&down, &down), []);
            assert_eq!(lost(&down, &before), []);
        }
        let before = desired("reset");
        assert_eq!(lost(&before, &Desired { healthy: 0, ..before.clone() }), [], "nowhere to go");
        let drained = getting(Desired { healthy: 0b10, ..before.clone() }, 0b01);
        assert_eq!(lost(&before, &drained), [], "nowhere to go");
    }

    #[test]
    fn who_lost_an_address() {
        for (on_down, expected) in
            [("reset", vec![Which::Addresses(0, [OLD].into())]), ("repin", vec![]), ("hold", vec![])]
        {
            let before = desired(on_down);
            assert_eq!(before.outside.get(&OLD), Some(&1));
            let mut renumbered = before.clone();
            renumbered.outside.remove(&OLD);
            renumbered.outside.insert(NEW, 1);
            assert_eq!(lost(&before, &renumbered), expected);
        }
    }
}

//! The way to an uplink's gateway, as a CPU has last learned it from the kernel's routing.
//!
//! All flows that leave by an uplink with a gateway have the same next hop, so one routing lookup serves those that begin, or are due for
//! maintenance, in the next second. A change of neighbours that the controller has seen ends it at once: the epoch is part of it.

use bytemuck::{Pod, Zeroable};

use crate::{
    time::{self, Tick},
    wire::Mac,
};

/// How long it is good: 1.07 s.
const GOOD_TICKS: u32 = 8;

/// What was learned. 32 bytes. All zero: nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Hop {
    /// The gateway's IPv4 address, as in memory; zero: nothing is known.
    pub gateway: u32,
    /// The uplink's interface.
    pub ifindex: u32,
    /// When it was learned.
    pub learned: Tick,
    /// The neighbour epoch of then.
    pub epoch: u16,
    /// Flags that a half gets by it: [`crate::flow::XDP`].
    pub flags: u16,
    /// The gateway's Ethernet address.
    pub dst_mac: Mac,
    /// The interface's.
    pub src_mac: Mac,
    /// Zero.
    pub reserved: u32,
}

impl Hop {
    /// Whether it tells the way to this gateway by this interface still.
    #[inline(always)]
    pub const fn leads_to(&self, gateway: u32, ifindex: u32, epoch: u16, now: Tick) -> bool {
        self.gateway == gateway
            && self.ifindex == ifindex
            && self.epoch == epoch
            && time::since(now, self.learned) < GOOD_TICKS
            && gateway != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_for_a_second_and_for_one_epoch() {
        let hop = Hop { gateway: 7, ifindex: 3, learned: 100, epoch: 5, ..Hop::default() };
        assert!(hop.leads_to(7, 3, 5, 100));
        assert!(hop.leads_to(7, 3, 5, 107));
        for other in [hop.leads_to(8, 3, 5, 100), hop.leads_to(7, 4, 5, 100), hop.leads_to(7, 3, 6, 100)] {
            assert!(!other, "gateway, interface and epoch are part of it");
        }
        assert!(!hop.leads_to(7, 3, 5, 108), "it is too old");
        assert!(!Hop::default().leads_to(0, 0, 0, 0), "nothing is known");
    }
}

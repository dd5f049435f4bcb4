//! Time as the datapath keeps it.
//!
//! A [`Tick`] is 2^27 ns (134.2 ms) of `CLOCK_MONOTONIC`, counted since boot: 32 bits last 18 years and keep an entry within one
//! cache line. It is fine enough for timeouts of seconds and coarse enough to write `last_seen` rarely.

/// A point in time, in units of 2^27 ns since boot.
pub type Tick = u32;

/// log2 of a tick's length in nanoseconds.
pub const TICK_SHIFT: u32 = 27;

/// A tick's length in nanoseconds.
pub const TICK_NS: u64 = 1 << TICK_SHIFT;

/// `last_seen` is written only when it is at least this old (1.07 s): a write on every packet would dirty a cache line each.
pub const SEEN_GRANULARITY_TICKS: u32 = 8;

/// How often a flow is maintained (every 34.4 s, or more often with short timeouts: see [`crate::cache::window`]; and when the neighbour epoch changes): its
/// Ethernet addresses are resolved anew and its binding's life is extended. Timeouts of flows whose entries are there are honoured to this precision, on the
/// late side.
pub const MAINTENANCE_TICKS: u32 = 256;

/// How long something lasts, in ticks, that has to be there for `timeout` ticks after a flow's last packet, and hears of the flow only when it is maintained:
/// that long, and until it is maintained again, which is no later than after its timeout.
#[inline(always)]
pub const fn until_maintained(timeout: u32) -> u32 {
    timeout + if timeout < MAINTENANCE_TICKS { timeout } else { MAINTENANCE_TICKS }
}

/// The tick in which a point of `CLOCK_MONOTONIC` lies.
#[inline(always)]
pub const fn tick(monotonic_ns: u64) -> Tick {
    (monotonic_ns >> TICK_SHIFT) as u32
}

/// How many ticks a duration takes, rounded up and limited to half the range.
pub const fn ticks_for(duration_ns: u64) -> u32 {
    let ticks = duration_ns.div_ceil(TICK_NS);
    if ticks > i32::MAX as u64 { i32::MAX as u32 } else { ticks as u32 }
}

/// Ticks from `then` to `now`; zero if `then` lies ahead (another CPU's clock, or written in the meantime).
#[inline(always)]
pub const fn since(now: Tick, then: Tick) -> u32 {
    let elapsed = now.wrapping_sub(then);
    if elapsed > i32::MAX as u32 { 0 } else { elapsed }
}

/// Whether `deadline` has passed.
#[inline(always)]
pub const fn passed(now: Tick, deadline: Tick) -> bool {
    now != deadline && since(now, deadline) > 0
}

/// The later of two points in time.
#[inline(always)]
pub const fn later(a: Tick, b: Tick) -> Tick {
    if since(a, b) > 0 { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{abi::Timeouts, cache::window};

    #[test]
    fn order_survives_the_wrap() {
        let before = u32::MAX - 2;
        let after = 3;
        assert_eq!(since(after, before), 6);
        assert_eq!(since(before, after), 0);
        assert!(passed(after, before));
        assert!(!passed(before, after));
        assert!(!passed(before, before));
        assert_eq!(later(before, after), after);
        assert_eq!(later(after, before), after);
    }

    #[test]
    fn what_lasts_is_there_for_its_timeout_after_a_packet_that_it_does_not_hear_of() {
        for timeout in [1, 8, 100, MAINTENANCE_TICKS, 10_000] {
            let timeouts = Timeouts { udp: timeout, tcp_established: timeout, tcp_transitory: timeout, icmp: timeout };
            assert!(until_maintained(timeout) >= timeout + window(&timeouts), "{timeout}");
            // Of ICMP alone.
            let timeouts = Timeouts { udp: 10_000, tcp_established: 10_000, tcp_transitory: 10_000, icmp: timeout };
            assert!(until_maintained(timeout) >= timeout + window(&timeouts), "{timeout}");
        }
    }

    #[test]
    fn durations_round_up() {
        assert_eq!(ticks_for(0), 0);
        assert_eq!(ticks_for(1), 1);
        assert_eq!(ticks_for(TICK_NS), 1);
        assert_eq!(ticks_for(TICK_NS + 1), 2);
        assert_eq!(ticks_for(u64::MAX), i32::MAX as u32);
    }
}

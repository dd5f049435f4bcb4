//! Damping: an uplink that comes and goes is not used again before it has been well for a while.
//!
//! Every return of an uplink puts new flows on it, and every loss ends them; one that flaps does more harm than one that is down. So once it
//! was lost too often within a while, it has to stay well for the hold time without a break.

use std::{collections::VecDeque, time::Duration};

use crate::config::Damping;

/// What is known of one uplink's comings and goings. Times are since an arbitrary start, and never run backwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damper {
    /// When it was lost, the latest last; no more than count.
    losses: VecDeque<Duration>,
    /// Since when it has been well.
    well_since: Option<Duration>,
    /// Until when it is held.
    held_until: Option<Duration>,
}

impl Damper {
    /// Notes whether the uplink is well now.
    pub fn note(&mut self, well: bool, config: &Damping, now: Duration) {
        match (well, self.well_since) {
            (true, None) => {
                self.well_since = Some(now);
                let oldest = now.saturating_sub(config.within);
                let recent = self.losses.iter().filter(|loss| **loss >= oldest).count();
                let damped = config.losses > 0 && recent >= usize::from(config.losses);
                self.held_until = damped.then(|| now + config.hold);
            }
            (false, Some(_)) => {
                self.well_since = None;
                self.held_until = None;
                self.losses.push_back(now);
                while self.losses.len() > usize::from(config.losses).max(1) {
                    self.losses.pop_front();
                }
            }
            _ => {}
        }
    }

    /// Until when an uplink that is well must not be used; `None`: it may be.
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        self.held_until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: Damping = Damping { losses: 3, within: Duration::from_secs(30), hold: Duration::from_secs(10) };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lost_and_back(damper: &mut Damper, at: u64) {
        damper.note(false, &CONFIG, s(at));
        damper.note(true, &CONFIG, s(at + 1));
    }

    #[test]
    fn holds_an_uplink_that_was_lost_too_often() {
        let mut damper = Damper::default();
        damper.note(true, &CONFIG, s(0));
        lost_and_back(&mut damper, 10);
        lost_and_back(&mut damper, 12);
        assert_eq!(damper.held_until(s(13)), None);
        lost_and_back(&mut damper, 14);
        assert_eq!(damper.held_until(s(15)), Some(s(25)));
        assert_eq!(damper.held_until(s(25)), None, "over");
    }

    #[test]
    fn a_loss_begins_the_hold_anew() {
        let mut damper = Damper::default();
        damper.note(true, &CONFIG, s(0));
        for at in [1, 3, 5] {
            lost_and_back(&mut damper, at);
        }
        assert_eq!(damper.held_until(s(6)), Some(s(16)));
        lost_and_back(&mut damper, 12);
        assert_eq!(damper.held_until(s(13)), Some(s(23)));
    }

    #[test]
    fn losses_long_ago_do_not_count() {
        let mut damper = Damper::default();
        damper.note(true, &CONFIG, s(0));
        for at in [1, 3, 40] {
            lost_and_back(&mut damper, at);
        }
        assert_eq!(damper.held_until(s(41)), None);
    }

    #[test]
    fn zero_losses_mean_no_damping() {
        let off = Damping { losses: 0, ..CONFIG };
        let mut damper = Damper::default();
        for at in 0..100 {
            damper.note(at % 2 == 0, &off, s(at));
        }
        assert_eq!(damper.held_until(s(100)), None);
    }

    proptest! {
        #[test]
        fn never_used_within_the_hold_after_too_many_losses(gaps in prop::collection::vec(1u64..20, 1..60)) {
            let mut damper = Damper::default();
            let (mut now, mut well) = (0, false);
            let mut losses: Vec<u64> = Vec::new();
            let mut well_since = 0;
            for gap in gaps {
                now += gap;
                well = !well;
                damper.note(well, &CONFIG, s(now));
                if well { well_since = now } else { losses.push(now) }
                for at in now..now + gap {
                    let recent = losses.iter().filter(|loss| **loss + 30 >= well_since).count();
                    let held = well && recent >= 3 && at < well_since + 10;
                    prop_assert_eq!(damper.held_until(s(at)).is_some(), held, "at {}", at);
                }
            }
        }
    }
}

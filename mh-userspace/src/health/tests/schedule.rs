//! Rounds begin at their times, whatever the caller does.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::Schedule;
use super::ms;

#[test]
fn a_late_caller_gets_one_round_and_then_the_next_in_time() {
    let mut schedule = Schedule::new(ms(30), ms(100));
    assert!(!schedule.take(ms(29)));
    assert!(schedule.take(ms(30)));
    assert_eq!(schedule.due(), ms(130));
    // Three have passed; the fourth is not brought forward.
    assert!(schedule.take(ms(399)));
    assert!(!schedule.take(ms(399)));
    assert_eq!(schedule.due(), ms(430));
    assert!(schedule.take(ms(430)));
    assert_eq!(schedule.due(), ms(530));
}

proptest! {
    #[test]
    fn rounds_stay_on_their_times(
        first in 0_u64..10_000_000,
        interval in 1_u64..5_000_000,
        steps in vec(0_u64..20_000_000, 1..200),
    ) {
        let nanos = std::time::Duration::from_nanos;
        let mut schedule = Schedule::new(nanos(first), nanos(interval));
        let mut now = 0;
        let mut last = None;
        for step in steps {
            now += step;
            let slot = now.checked_sub(first).map(|since| since / interval);
            // At most one round in each slot, and one in every slot that the caller asked in.
            prop_assert_eq!(schedule.take(nanos(now)), slot.is_some() && slot != last);
            last = slot;
            let due = u64::try_from(schedule.due().as_nanos()).unwrap();
            prop_assert_eq!((due - first) % interval, 0);
            prop_assert!(due > now || slot.is_none());
            prop_assert!(due <= now.max(first) + interval);
        }
    }
}

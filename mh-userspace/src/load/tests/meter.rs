//! The meter by itself.

use std::time::Duration;

use proptest::prelude::*;

use super::super::{Meter, Rates, TIME_CONSTANT};

/// Counts a steady rate, in bytes per second down and a tenth of it up, at these times in ms.
fn count(meter: &mut Meter, times: &[u64], bytes_per_second: u64) {
    for ms in times {
        let bytes = bytes_per_second * ms / 1000;
        meter.count("isp1", Duration::from_millis(*ms), bytes / 10, bytes);
    }
}

#[test]
fn the_first_interval_tells_the_rate_at_once() {
    let mut meter = Meter::default();
    count(&mut meter, &[5000], 1000);
    assert_eq!(meter.rates("isp1"), Rates::default(), "nothing is known yet");
    count(&mut meter, &[6000], 1000);
    assert_eq!(meter.rates("isp1"), Rates { down: 8000.0, up: 800.0 });
    assert_eq!(meter.rates("isp2"), Rates::default());
}

#[test]
fn a_change_shows_to_63_percent_after_the_time_constant() {
    let mut meter = Meter::default();
    let steady: Vec<u64> = (0..100).map(|s| s * 1000).collect();
    count(&mut meter, &steady, 1000);
    let before = 99 * 1000;
    for s in 1..=TIME_CONSTANT.as_secs() {
        meter.count("isp1", Duration::from_secs(99 + s), 9900, before + s * 3000);
    }
    let rates = meter.rates("isp1");
    assert!((rates.down - 8000.0 * (1.0 + 2.0 * 0.632)).abs() < 20.0, "{rates:?}");
    assert!((rates.up - 800.0 * 0.368).abs() < 2.0, "{rates:?}");
}

#[test]
fn counters_that_begin_anew_make_no_rate() {
    let mut meter = Meter::default();
    count(&mut meter, &[0, 1000, 2000], 1000);
    meter.count("isp1", Duration::from_millis(3000), 0, 50);
    assert_eq!(meter.rates("isp1"), Rates { down: 8000.0, up: 800.0 }, "kept until something is known");
    meter.count("isp1", Duration::from_millis(4000), 0, 1050);
    assert_eq!(meter.rates("isp1"), Rates { down: 8000.0, up: 0.0 });
}

#[test]
fn an_uplink_that_is_gone_is_forgotten() {
    let mut meter = Meter::default();
    count(&mut meter, &[0, 1000], 1000);
    meter.retain(|name| name != "isp1");
    assert_eq!(meter.rates("isp1"), Rates::default());
}

#[test]
fn calls_in_quick_succession_are_one() {
    let mut meter = Meter::default();
    count(&mut meter, &[0, 1000], 1000);
    meter.count("isp1", Duration::from_millis(1000), 5000, 5000);
    meter.count("isp1", Duration::from_millis(1001), 5000, 5000);
    assert_eq!(meter.rates("isp1"), Rates { down: 8000.0, up: 800.0 });
}

proptest! {
    /// However irregular the intervals are, a steady rate is seen as it is, and what comes after it is forgotten at the same pace.
    #[test]
    fn intervals_do_not_matter(gaps in prop::collection::vec(100_u64..5000, 1..60)) {
        let mut meter = Meter::default();
        let mut now = 0;
        count(&mut meter, &[now], 1_000_000);
        for gap in &gaps {
            now += gap;
            count(&mut meter, &[now], 1_000_000);
            let rates = meter.rates("isp1");
            prop_assert!((rates.down - 8e6).abs() < 200.0 && (rates.up - 8e5).abs() < 200.0, "{:?}", rates);
        }
        // So long that what is first averaged is over.
        now += 100_000;
        count(&mut meter, &[now], 1_000_000);
        let (end, bytes) = (now, now * 1000);
        for gap in &gaps {
            now += gap;
            meter.count("isp1", Duration::from_millis(now), bytes / 10, bytes);
        }
        let left = (-((now - end) as f64 / 1000.0) / TIME_CONSTANT.as_secs_f64()).exp();
        let rates = meter.rates("isp1");
        prop_assert!((rates.down - 8e6 * left).abs() < 200.0, "{:?} {}", rates, left);
    }

    #[test]
    fn rates_are_never_negative_or_infinite(calls in prop::collection::vec((0_u64..10_000, any::<u64>(), any::<u64>()), 0..50)) {
        let mut meter = Meter::default();
        for (ms, tx, rx) in calls {
            meter.count("isp1", Duration::from_millis(ms), tx, rx);
            let rates = meter.rates("isp1");
            prop_assert!(rates.down >= 0.0 && rates.down.is_finite() && rates.up >= 0.0 && rates.up.is_finite());
        }
    }
}

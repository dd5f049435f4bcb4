//! The closed loop: it converges from any start and does not swing, whatever the lifetime of flows.
//!
//! Each test prints its figures: `cargo test -p mh-userspace --lib load:: -- --nocapture`.

use super::plant::{Control, Lifetime, Plant, Traffic};
use super::{by_capacity, by_number, megabits, percent};

const LIFETIMES: [Lifetime; 11] = [
    Lifetime::Fixed(0.2),
    Lifetime::Fixed(1.0),
    Lifetime::Fixed(10.0),
    Lifetime::Fixed(30.0),
    Lifetime::Fixed(60.0),
    Lifetime::Fixed(300.0),
    Lifetime::Exponential(0.2),
    Lifetime::Exponential(3.0),
    Lifetime::Exponential(300.0),
    Lifetime::HeavyTailed(3.0),
    Lifetime::HeavyTailed(30.0),
];

/// The time over which settled figures are taken, in seconds.
const SETTLED: usize = 400;

/// Flows of this lifetime that want `down` Mbit/s together, and a tenth of it upwards.
fn traffic(down: f64, lifetime: Lifetime) -> Traffic {
    let flows = (400.0 * lifetime.mean()).clamp(300.0, 4000.0);
    Traffic { down, up: down / 10.0, flows, lifetime, elastic: false }
}

/// How long to run until everything of the start is over.
fn long_enough(lifetime: Lifetime) -> usize {
    200 + SETTLED + (3.0 * lifetime.mean()) as usize
}

/// Two uplinks of one tier by capacity, the first of which is filled by flows that last for a minute.
fn uneven(part: f64, lifetime: Lifetime) -> Plant {
    let traffic = traffic(part * 150.0, lifetime);
    let capacities = [Some(megabits(100, 50)), Some(megabits(50, 25))];
    let mut plant = Plant::new(&capacities, by_capacity(&[&[0, 1]]), None, traffic);
    plant.put(0, (traffic.flows / part * 2.0 / 3.0) as usize, 60.0);
    plant
}

/// An uplink and a metered one behind it that is to take what does not fit in 80% of the first.
fn metered(part: f64, lifetime: Lifetime) -> Plant {
    let capacities = [Some(megabits(100, 50)), None];
    Plant::new(&capacities, by_number(&[&[(0, 1)], &[(1, 1)]]), percent(80), traffic(part * 100.0, lifetime))
}

#[test]
fn uplinks_fill_equally_and_shares_do_not_swing() {
    for part in [0.5, 0.9] {
        for lifetime in LIFETIMES {
            let mut plant = uneven(part, lifetime);
            plant.run(long_enough(lifetime));
            let fill = [plant.fill(0, SETTLED), plant.fill(1, SETTLED)];
            let (swing, rewrites) = (plant.swing(0, SETTLED), plant.rewrites(SETTLED));
            let settled = plant.settled(0, |fill| (fill[0] - fill[1]).abs() < 0.1);
            println!("{part} {lifetime:?}: fill {fill:.3?} swing {swing:.3} settled {settled} s rewrites {rewrites}");
            assert!((fill[0] - fill[1]).abs() < 0.05 && fill[0] > part * 0.9, "{fill:?}\n{}", plant.told());
            assert!(swing < 0.11, "{swing}\n{}", plant.told());
            assert!(settled as f64 <= 90.0 + 2.0 * lifetime.mean(), "{settled}\n{}", plant.told());
            assert!(rewrites < SETTLED / 4, "{rewrites}");
        }
    }
}

#[test]
fn without_damping_shares_would_swing() {
    for lifetime in [Lifetime::Fixed(0.2), Lifetime::Fixed(1.0), Lifetime::Exponential(0.2)] {
        let swing = [Control::Real, Control::Undamped].map(|control| {
            let mut plant = uneven(0.9, lifetime);
            plant.control = control;
            plant.run(long_enough(lifetime)).swing(0, SETTLED)
        });
        println!("{lifetime:?}: swing {:.3} undamped {:.3}", swing[0], swing[1]);
        assert!(swing[1] > 0.2 && swing[0] < swing[1] / 4.0, "{lifetime:?}: {swing:?}");
    }
}

#[test]
fn a_metered_uplink_takes_what_does_not_fit_and_nothing_else() {
    for (part, kept) in [(0.7, 0.67..0.74), (0.9, 0.82..0.87), (1.5, 0.88..0.94), (3.0, 0.90..0.97)] {
        for lifetime in LIFETIMES {
            let mut plant = metered(part, lifetime);
            plant.run(long_enough(lifetime));
            let (fill, swing, rewrites) = (plant.fill(0, SETTLED), plant.swing(0, SETTLED), plant.rewrites(SETTLED));
            let placed = plant.placed(1, SETTLED);
            println!("{part} {lifetime:?}: fill {fill:.3} spilled {placed:.3} swing {swing:.3} rewrites {rewrites}");
            // The few longest flows have not been seen yet: there is less load.
            let is_cut = matches!(lifetime, Lifetime::HeavyTailed(30.0));
            assert!(kept.contains(&fill) || is_cut, "{fill}\n{}", plant.told());
            assert!(swing < 0.2, "{swing}\n{}", plant.told());
            assert!(rewrites < SETTLED / 4, "{rewrites}");
            assert!(if part < 0.8 { placed == 0.0 } else { placed > 0.0 }, "{placed}\n{}", plant.told());
        }
    }
}

/// The higher the threshold, the less room there is to decide in.
#[test]
fn a_threshold_of_100_percent_spills_only_from_full_uplinks() {
    for lifetime in LIFETIMES.into_iter().step_by(2) {
        for part in [0.9, 1.5] {
            let capacities = [Some(megabits(100, 50)), None];
            let tiers = by_number(&[&[(0, 1)], &[(1, 1)]]);
            let mut plant = Plant::new(&capacities, tiers, percent(100), traffic(part * 100.0, lifetime));
            plant.run(long_enough(lifetime));
            let (fill, swing, placed) = (plant.fill(0, SETTLED), plant.swing(0, SETTLED), plant.placed(1, SETTLED));
            println!("{part} {lifetime:?}: fill {fill:.3} spilled {placed:.3} swing {swing:.3}");
            if part < 1.0 {
                assert!(placed < 0.002, "{placed}\n{}", plant.told());
            } else {
                assert!(
                    (0.94..1.001).contains(&fill) && placed > 0.2 && swing < 0.3,
                    "{fill} {placed} {swing}\n{}",
                    plant.told()
                );
            }
        }
    }
}

/// Other traffic of the metered uplink looks like demand, so the gain is higher; what is passed on still varies around what does not fit.
#[test]
fn other_traffic_of_a_metered_uplink_does_not_count_as_spilled() {
    for lifetime in LIFETIMES.into_iter().step_by(2) {
        for part in [0.7, 0.9] {
            let mut plant = metered(part, lifetime);
            plant.set_background(1, 90.0);
            plant.run(long_enough(lifetime));
            let (fill, swing, placed) = (plant.fill(0, SETTLED), plant.swing(0, SETTLED), plant.placed(1, SETTLED));
            println!("{part} {lifetime:?}: fill {fill:.3} spilled {placed:.3} swing {swing:.3}");
            if part < 0.8 {
                assert_eq!(placed, 0.0, "{}", plant.told());
            } else {
                assert!(
                    (0.05..0.14).contains(&placed) && (0.8..0.84).contains(&fill),
                    "{placed} {fill}\n{}",
                    plant.told()
                );
                assert!(swing < 0.33, "{swing}\n{}", plant.told());
            }
        }
    }
}

#[test]
fn a_ramp_without_bound_on_its_gain_would_swing() {
    for lifetime in [Lifetime::Fixed(10.0), Lifetime::Fixed(30.0), Lifetime::Fixed(100.0)] {
        let swing = [Control::Real, Control::PlainRamp].map(|control| {
            let mut plant = metered(1.5, lifetime);
            plant.control = control;
            plant.run(long_enough(lifetime)).swing(0, SETTLED)
        });
        println!("{lifetime:?}: swing {:.3} with a plain ramp {:.3}", swing[0], swing[1]);
        assert!(swing[1] > 0.5 && swing[0] < swing[1] / 3.0, "{lifetime:?}: {swing:?}");
    }
}

#[test]
fn a_metered_uplink_is_released_when_the_demand_falls() {
    for lifetime in LIFETIMES {
        let mut plant = metered(0.5, lifetime);
        let span = 100 + (2.0 * lifetime.mean()) as usize;
        let run = |plant: &mut Plant, part: f64| {
            let flows = plant.traffic.flows;
            // As many flows as before for the same rate each.
            plant.traffic = Traffic { flows: flows * part * 100.0 / plant.traffic.down, ..plant.traffic };
            (plant.traffic.down, plant.traffic.up) = (part * 100.0, part * 10.0);
            plant.run(span);
        };
        run(&mut plant, 0.5);
        assert_eq!(plant.placed(1, span), 0.0, "{}", plant.told());
        run(&mut plant, 1.5);
        let taken = plant.history[span..].iter().position(|second| second.share[1] > 0.0).unwrap();
        let fill = plant.fill(0, 30);
        run(&mut plant, 0.5);
        let kept_on =
            plant.history[2 * span..].iter().rposition(|second| second.share[1] > 0.0).map_or(0, |last| last + 1);
        println!("{lifetime:?}: taken after {taken} s, released after {kept_on} s, fill while spilling {fill:.3}");
        assert!((0.84..0.99).contains(&fill), "{fill}\n{}", plant.told());
        assert!(taken as f64 <= 20.0 + lifetime.mean(), "{taken}\n{}", plant.told());
        assert!(kept_on as f64 <= 20.0 + lifetime.mean(), "{kept_on}\n{}", plant.told());
        assert_eq!(plant.placed(1, 40), 0.0, "{}", plant.told());
    }
}

#[test]
fn flows_that_wait_for_room_spill_until_there_is_room() {
    for lifetime in [Lifetime::Fixed(3.0), Lifetime::Exponential(30.0), Lifetime::HeavyTailed(30.0)] {
        let mut plant = metered(1.5, lifetime);
        plant.traffic.elastic = true;
        plant.run(long_enough(lifetime));
        let (fill, swing, placed) = (plant.fill(0, SETTLED), plant.swing(0, SETTLED), plant.placed(1, SETTLED));
        println!("{lifetime:?}: fill {fill:.3} spilled {placed:.3} swing {swing:.3}");
        assert!((0.86..0.96).contains(&fill) && (0.3..0.5).contains(&placed) && swing < 0.16, "{}", plant.told());
    }
}

#[test]
fn a_death_and_a_return_are_followed() {
    for lifetime in LIFETIMES {
        let traffic = traffic(90.0, lifetime);
        let capacities = [Some(megabits(100, 50)), Some(megabits(50, 25)), Some(megabits(50, 25))];
        let mut plant = Plant::new(&capacities, by_capacity(&[&[0, 1, 2]]), None, traffic);
        let span = 150 + (2.0 * lifetime.mean()) as usize;
        plant.run(span);
        plant.set_up(1, false);
        plant.run(span);
        let without = plant.settled(span, |fill| (fill[0] - fill[2]).abs() < 0.12);
        assert_eq!(plant.placed(1, span), 0.0);
        plant.set_up(1, true);
        plant.run(span);
        let mean = |fill: &[f64]| (2.0 * fill[0] + fill[1] + fill[2]) / 4.0;
        let again = plant.settled(2 * span, |fill| fill.iter().all(|one| (one - mean(fill)).abs() < 0.12));
        println!("{lifetime:?}: after the death {without} s, after the return {again} s");
        assert!(without as f64 <= 60.0 + 2.0 * lifetime.mean(), "{without}\n{}", plant.told());
        assert!(again as f64 <= 60.0 + 2.0 * lifetime.mean(), "{again}\n{}", plant.told());
    }
}

#[test]
fn no_traffic_is_spread_by_capacity_and_nothing_is_rewritten() {
    let none = Traffic { flows: 0.0, ..traffic(0.0, Lifetime::Fixed(1.0)) };
    let capacities = [Some(megabits(100, 50)), Some(megabits(50, 25))];
    let mut plant = Plant::new(&capacities, by_capacity(&[&[0, 1]]), None, none);
    plant.run(300);
    assert_eq!(plant.rewrites(300), 0);
    assert!((plant.history[299].share[0] - 2.0 / 3.0).abs() < 1e-9, "{:?}", plant.history[299].share);
}

#[test]
fn capacity_far_above_demand_is_spread_by_capacity() {
    let capacities = [Some(megabits(10_000, 10_000)), Some(megabits(1000, 1000))];
    let mut plant = Plant::new(&capacities, by_capacity(&[&[0, 1]]), None, traffic(1.0, Lifetime::HeavyTailed(3.0)));
    plant.run(600);
    assert_eq!(plant.rewrites(599), 0);
    assert!((plant.history[599].share[0] - 10.0 / 11.0).abs() < 0.02, "{:?}", plant.history[599].share);
}

/// The first uplink's way up is what is scarce, the second one's is not: uploads go by that.
#[test]
fn uplinks_are_as_full_in_their_fuller_direction() {
    for lifetime in LIFETIMES.into_iter().step_by(2) {
        for (down, up) in [(10.0, 25.0), (80.0, 8.0), (60.0, 30.0)] {
            let traffic = Traffic { up, ..traffic(down, lifetime) };
            let capacities = [Some(megabits(100, 10)), Some(megabits(40, 40))];
            let mut plant = Plant::new(&capacities, by_capacity(&[&[0, 1]]), None, traffic);
            plant.run(long_enough(lifetime));
            let fill = [plant.fill(0, SETTLED), plant.fill(1, SETTLED)];
            let swing = plant.swing(0, SETTLED);
            println!("{down}/{up} {lifetime:?}: fill {fill:.3?} swing {swing:.3}");
            assert!((fill[0] - fill[1]).abs() < 0.05 && swing < 0.11, "{fill:?} {swing}\n{}", plant.told());
        }
    }
}

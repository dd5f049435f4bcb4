//! A monitor against a model that keeps all rounds and works everything out anew after each.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::time::Duration;

use super::super::{Monitor, Outcome, Start};
use super::{answered, lost, ms, probe};
use crate::config::{Limit, Probe, Share};

/// A probe of `targets` targets.
fn probes() -> impl Strategy<Value = Probe> {
    let share = (1_u32..=100).prop_map(|percent| format!("{percent}%").parse::<Share>().unwrap());
    let latency = (1_u64..=60).prop_map(ms);
    (
        1_usize..=4,
        any::<prop::sample::Index>(),
        1_u32..=4,
        1_u32..=4,
        option::of(limit(share)),
        option::of(limit(latency)),
    )
        .prop_map(|(targets, quorum, down, up, loss, latency)| Probe {
            quorum: quorum.index(targets) + 1,
            down,
            up,
            loss,
            latency,
            ..probe(targets, "")
        })
}

fn limit<T: Copy + PartialOrd + std::fmt::Debug>(
    level: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Limit<T>> {
    (1_u32..=12, level.clone(), level, 0_u8..3).prop_map(|(window, one, other, which)| {
        let (warn, down) = if one <= other { (one, other) } else { (other, one) };
        Limit { window, warn: (which != 0).then_some(warn), down: (which != 1).then_some(down) }
    })
}

/// Rounds in which each target keeps doing the same for a while.
fn histories() -> impl Strategy<Value = Vec<Vec<Option<u64>>>> {
    let outcome = || prop_oneof![2 => Just(None), 5 => (1_u64..=60).prop_map(Some)];
    vec((vec(outcome(), 4), 1_usize..6), 1..40)
        .prop_map(|runs| runs.into_iter().flat_map(|(round, count)| vec![round; count]).collect())
}

fn outcome(of: &Option<u64>) -> Outcome {
    of.map_or_else(lost, answered)
}

/// What a monitor should do, from the whole history each time.
struct Model<'p> {
    probe: &'p Probe,
    history: Vec<Vec<Option<u64>>>,
    beyond: Vec<(bool, bool)>,
    up: bool,
}

impl Model<'_> {
    fn in_a_row(&self, good: bool) -> usize {
        let is_good = |round: &Vec<Option<u64>>| {
            round.iter().take(self.probe.targets.len()).flatten().count() >= self.probe.quorum
        };
        self.history.iter().rev().take_while(|round| is_good(round) == good).count()
    }

    fn last(&self, target: usize, window: u32) -> Vec<Option<u64>> {
        self.history.iter().rev().take(window as usize).map(|round| round[target]).collect()
    }

    /// The loss in percent, with rounds to come answered.
    fn loss(&self, target: usize, window: u32) -> f64 {
        let lost = self.last(target, window).iter().filter(|round| round.is_none()).count();
        100.0 * lost as f64 / f64::from(window)
    }

    fn latency(&self, target: usize, window: u32) -> Option<Duration> {
        let answers: Vec<u64> = self.last(target, window).into_iter().flatten().collect();
        let count = u32::try_from(answers.len()).unwrap();
        (self.history.len() >= window as usize && count > 0).then(|| ms(answers.iter().sum()) / count)
    }

    fn round(&mut self, round: Vec<Option<u64>>) {
        self.history.push(round);
        for target in 0..self.probe.targets.len() {
            if let Some(Limit { window, warn, down: Some(down) }) = self.probe.loss {
                let percent = |share: Share| f64::from(share.basis_points()) / 100.0;
                let loss = self.loss(target, window);
                let back = warn.map_or(percent(down) * 0.8, percent);
                // Equal but for rounding counts as equal.
                if loss > percent(down) - 1e-9 {
                    self.beyond[target].0 = true;
                } else if loss < back - 1e-9 {
                    self.beyond[target].0 = false;
                }
            }
            if let Some(Limit { window, warn, down: Some(down) }) = self.probe.latency
                && let Some(latency) = self.latency(target, window)
            {
                if latency >= down {
                    self.beyond[target].1 = true;
                } else if latency < warn.unwrap_or(down * 4 / 5) {
                    self.beyond[target].1 = false;
                }
            }
        }
        let counting = self.beyond.iter().filter(|beyond| **beyond == (false, false)).count();
        let enough = counting >= self.probe.quorum;
        if self.in_a_row(false) >= self.probe.down as usize || !enough {
            self.up = false;
        } else if self.in_a_row(true) >= self.probe.up as usize {
            self.up = true;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_monitor_does_as_its_model(probe in probes(), history in histories(), start_up in any::<bool>()) {
        let mut monitor = Monitor::new(&probe, if start_up { Start::Up } else { Start::Down });
        let beyond = vec![(false, false); probe.targets.len()];
        let mut model = Model { probe: &probe, history: Vec::new(), beyond, up: start_up };
        let mut before = monitor.health();
        for round in history {
            let outcomes: Vec<Outcome> = round.iter().take(probe.targets.len()).map(outcome).collect();
            monitor.round(&outcomes);
            model.round(round);
            let health = monitor.health();
            prop_assert_eq!(health.up, model.up, "{:?}", model.history);
            // A reason is fixed when the state changes, or when the first is found.
            if health.up == before.up && before.reason != "probes pending" {
                prop_assert_eq!(&health.reason, &before.reason);
            }
            if health.up != before.up {
                prop_assert!(health.reason != "probes pending" && health.reason != before.reason);
            }
            prop_assert!(health.up || health.reason.starts_with("prob"));
            prop_assert!(health.loss.is_some_and(|loss| (0.0..=1.0).contains(&loss)));
            prop_assert!(health.rtt.is_none_or(|rtt| (ms(1)..=ms(60)).contains(&rtt)), "{:?}", health.rtt);
            before = health;
        }
    }

    /// Once down by loss, what wavers between the levels changes nothing; and once up, it does not either.
    #[test]
    fn nothing_flaps_between_the_levels(swings in vec(3_usize..=7, 1..30)) {
        let probe = probe(1, "down = 1000\nup = 1\nloss = { window = 20, warn = \"10%\", down = \"40%\" }");
        for start_with in [8_usize, 0] {
            let mut monitor = Monitor::new(&probe, Start::Up);
            let mut window: Vec<bool> = vec![true; 20];
            window[..start_with].fill(false);
            for good in &window {
                monitor.round(&[if *good { answered(1) } else { lost() }]);
            }
            let up = monitor.health().up;
            prop_assert_eq!(up, start_with == 0);
            for lost_in_window in &swings {
                // One round more, chosen so that the window holds between 10% and 35% lost where it can.
                window.remove(0);
                let now = window.iter().filter(|good| !**good).count();
                let lose = now < *lost_in_window;
                window.push(!lose);
                monitor.round(&[if lose { lost() } else { answered(1) }]);
                let count = window.iter().filter(|good| !**good).count();
                if !up {
                    prop_assert!(count >= 2);
                }
                prop_assert_eq!(monitor.health().up, up, "{} lost", count);
            }
        }
    }
}

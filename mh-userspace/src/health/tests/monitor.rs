//! States and reasons, step by step.

use super::super::{Failure, Health, Monitor, Outcome, Start};
use super::{answered, lost, ms, probe};

/// Takes `count` rounds of the same outcomes.
fn rounds(monitor: &mut Monitor, count: usize, outcomes: &[Outcome]) -> Health {
    for _ in 0..count {
        monitor.round(outcomes);
    }
    monitor.health()
}

#[track_caller]
fn is(health: &Health, up: bool, reason: &str) {
    assert_eq!((health.up, health.reason.as_str()), (up, reason));
}

#[test]
fn a_fresh_start_is_up_until_probes_fail() {
    let mut monitor = Monitor::new(&probe(1, ""), Start::Up);
    let health = monitor.health();
    is(&health, true, "probes pending");
    assert_eq!((health.rtt, health.loss, health.warning), (None, None, None));
    is(&rounds(&mut monitor, 2, &[lost()]), true, "probes pending");
    is(&rounds(&mut monitor, 1, &[lost()]), false, "probe icmp://192.0.2.1 3/3 lost");
    is(&rounds(&mut monitor, 4, &[answered(20)]), false, "probe icmp://192.0.2.1 3/3 lost");
    is(&rounds(&mut monitor, 1, &[answered(20)]), true, "probes answered");
    is(&rounds(&mut monitor, 2, &[lost()]), true, "probes answered");
    is(&rounds(&mut monitor, 1, &[answered(20)]), true, "probes answered");
    is(&rounds(&mut monitor, 3, &[Outcome::Failed(Failure::Refused)]), false, "probe icmp://192.0.2.1 3/3 refused");
    // The reason stays, whatever fails then.
    is(&rounds(&mut monitor, 3, &[lost()]), false, "probe icmp://192.0.2.1 3/3 refused");
}

#[test]
fn the_first_answer_ends_the_waiting() {
    let mut monitor = Monitor::new(&probe(1, ""), Start::Up);
    is(&rounds(&mut monitor, 1, &[lost()]), true, "probes pending");
    is(&rounds(&mut monitor, 1, &[answered(1)]), true, "probes answered");
}

#[test]
fn what_was_down_comes_up_after_good_rounds() {
    let mut monitor = Monitor::new(&probe(1, "up = 2"), Start::Down);
    is(&monitor.health(), false, "probes pending");
    is(&rounds(&mut monitor, 1, &[answered(1)]), false, "probes pending");
    is(&rounds(&mut monitor, 2, &[lost()]), false, "probes pending");
    // That it is down for a reason is known now.
    is(&rounds(&mut monitor, 1, &[lost()]), false, "probe icmp://192.0.2.1 3/3 lost");
    is(&rounds(&mut monitor, 1, &[answered(1)]), false, "probe icmp://192.0.2.1 3/3 lost");
    is(&rounds(&mut monitor, 1, &[answered(1)]), true, "probes answered");
}

#[test]
fn the_quorum_decides() {
    let mut monitor = Monitor::new(&probe(3, "quorum = 2"), Start::Up);
    is(&rounds(&mut monitor, 9, &[answered(1), lost(), answered(3)]), true, "probes answered");
    assert_eq!(monitor.health().rtt, Some(ms(3)), "the second best");
    let refused = Outcome::Failed(Failure::Refused);
    is(
        &rounds(&mut monitor, 3, &[lost(), refused.clone(), answered(3)]),
        false,
        "probe icmp://192.0.2.1 3/3 lost, icmp://192.0.2.2 3/3 refused",
    );
    let mut all = Monitor::new(&probe(2, "quorum = \"all\"\ndown = 2"), Start::Up);
    // Two rounds failed, each for another target.
    all.round(&[lost(), answered(1)]);
    all.round(&[answered(1), refused]);
    is(&all.health(), false, "probe icmp://192.0.2.1 1/2 lost, icmp://192.0.2.2 1/2 refused");
    let mut any = Monitor::new(&probe(2, "quorum = \"any\""), Start::Up);
    for round in 0..20 {
        any.round(&[
            if round % 2 == 0 { lost() } else { answered(1) },
            if round % 2 == 1 { lost() } else { answered(1) },
        ]);
    }
    is(&any.health(), true, "probes answered");
}

#[test]
fn a_reason_names_the_worst_targets() {
    let mut monitor = Monitor::new(&probe(5, "quorum = 5\ndown = 2"), Start::Up);
    monitor.round(&[lost(), lost(), lost(), answered(1), lost()]);
    monitor.round(&[answered(1), lost(), lost(), lost(), lost()]);
    is(
        &monitor.health(),
        false,
        "probe icmp://192.0.2.2 2/2 lost, icmp://192.0.2.3 2/2 lost, icmp://192.0.2.5 2/2 lost and 2 more",
    );
    // Nothing makes it longer than three addresses cut short.
    let mut long = probe(1, "");
    long.targets = vec![format!("http://192.0.2.1/{}", "a".repeat(1000)).parse().unwrap()];
    let mut monitor = Monitor::new(&long, Start::Up);
    let error = Outcome::Failed(Failure::error(&"b".repeat(1000)));
    assert!(rounds(&mut monitor, 3, &[error]).reason.len() < 200);
}

#[test]
fn why_probes_fail() {
    for (failure, expected) in [
        (Failure::Timeout, "lost"),
        (Failure::Refused, "refused"),
        (Failure::Unreachable, "unreachable"),
        (Failure::NoAddress, "no address"),
        (Failure::Status(503), "status 503"),
        (Failure::Dns(2), "SERVFAIL"),
        (Failure::Dns(5), "REFUSED"),
        (Failure::Dns(9), "rcode 9"),
        (Failure::tls("certificate expired"), "certificate expired"),
        (Failure::error("no such device\nsecond line"), "no such device"),
    ] {
        let mut monitor = Monitor::new(&probe(1, "down = 1"), Start::Up);
        monitor.round(&[Outcome::Failed(failure)]);
        is(&monitor.health(), false, &format!("probe icmp://192.0.2.1 1/1 {expected}"));
    }
}

#[test]
fn loss_takes_down_and_back_below_the_warning() {
    let mut monitor =
        Monitor::new(&probe(1, "up = 1\nloss = { window = 10, warn = \"20%\", down = \"40%\" }"), Start::Up);
    let mut lose_one_of_two = |pairs: usize| {
        for _ in 0..pairs {
            monitor.round(&[lost()]);
            monitor.round(&[answered(1)]);
        }
        monitor.health()
    };
    let health = lose_one_of_two(1);
    assert_eq!((health.warning, health.loss), (None, Some(0.5)));
    let health = lose_one_of_two(2);
    is(&health, true, "probes answered");
    assert_eq!(health.warning.as_deref(), Some("probe icmp://192.0.2.1 loss above 20%"));
    let health = lose_one_of_two(1);
    is(&health, false, "probe icmp://192.0.2.1 loss 57% (limit 40%)");
    assert_eq!(health.warning, None);
    // Answers: the rounds of the window are 10, and it ends with an answered one.
    let health = rounds(&mut monitor, 6, &[answered(1)]);
    assert_eq!(health.loss, Some(0.2));
    assert!(!health.up, "20% is not below the warning");
    let health = rounds(&mut monitor, 2, &[answered(1)]);
    is(&health, true, "probes answered");
    assert_eq!((health.loss, health.warning), (Some(0.1), None));
}

#[test]
fn without_a_warning_four_fifths_bring_it_back() {
    let mut monitor = Monitor::new(&probe(1, "up = 1\nloss = { window = 10, down = \"50%\" }\ndown = 9"), Start::Up);
    is(&rounds(&mut monitor, 5, &[lost()]), false, "probe icmp://192.0.2.1 loss 100% (limit 50%)");
    let health = rounds(&mut monitor, 6, &[answered(1)]);
    assert_eq!((health.up, health.loss), (false, Some(0.4)));
    let health = rounds(&mut monitor, 1, &[answered(1)]);
    assert_eq!((health.up, health.loss), (true, Some(0.3)));
}

#[test]
fn latency_is_judged_over_a_full_window() {
    let limits = "up = 2\nlatency = { window = 4, warn = \"100ms\", down = \"200ms\" }";
    let mut monitor = Monitor::new(&probe(1, limits), Start::Up);
    is(&rounds(&mut monitor, 3, &[answered(300)]), true, "probes answered");
    is(&rounds(&mut monitor, 1, &[answered(300)]), false, "probe icmp://192.0.2.1 latency 300 ms (limit 200ms)");
    is(&rounds(&mut monitor, 2, &[answered(100)]), false, "probe icmp://192.0.2.1 latency 300 ms (limit 200ms)");
    assert!(!rounds(&mut monitor, 4, &[answered(100)]).up, "100 ms is not below the warning");
    let health = rounds(&mut monitor, 1, &[answered(90)]);
    is(&health, true, "probes answered");
    assert_eq!(health.warning.as_deref(), Some("probe icmp://192.0.2.1 latency above 100ms"));
    assert!(rounds(&mut monitor, 3, &[answered(80)]).warning.is_some(), "the mean is above 80 ms");
    assert!(rounds(&mut monitor, 4, &[answered(79)]).warning.is_none());
}

#[test]
fn one_target_beyond_a_limit_is_a_warning_while_others_count() {
    let mut monitor = Monitor::new(&probe(2, "latency = { window = 1, down = \"200ms\" }"), Start::Up);
    let health = rounds(&mut monitor, 3, &[answered(300), answered(10)]);
    is(&health, true, "probes answered");
    assert_eq!(health.warning.as_deref(), Some("probe icmp://192.0.2.1 latency above 200ms"));
    is(
        &rounds(&mut monitor, 1, &[answered(300), answered(400)]),
        false,
        "probe icmp://192.0.2.1 latency 300 ms (limit 200ms), icmp://192.0.2.2 latency 400 ms (limit 200ms)",
    );
}

#[test]
fn the_round_trip_time_is_smoothed_and_of_late() {
    let mut monitor = Monitor::new(&probe(1, ""), Start::Up);
    assert_eq!(rounds(&mut monitor, 1, &[answered(80)]).rtt, Some(ms(80)));
    assert_eq!(rounds(&mut monitor, 1, &[answered(160)]).rtt, Some(ms(90)));
    assert_eq!(rounds(&mut monitor, 2, &[lost()]).rtt, Some(ms(90)));
    assert_eq!(rounds(&mut monitor, 1, &[lost()]).rtt, None);
    let health = rounds(&mut monitor, 45, &[lost()]);
    assert_eq!(health.loss, Some(1.0));
}

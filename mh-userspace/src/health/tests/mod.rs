//! Tests of the health of uplinks: states and their reasons, step by step, and properties against a model that recomputes all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod monitor;
mod properties;
mod schedule;

use std::time::Duration;

use super::{Failure, Outcome};
use crate::config::{self, Probe};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn answered(rtt_ms: u64) -> Outcome {
    Outcome::Answered(ms(rtt_ms))
}

fn lost() -> Outcome {
    Outcome::Failed(Failure::Timeout)
}

/// The probe of a config with `targets` hosts to ping and these lines.
fn probe(targets: usize, lines: &str) -> Probe {
    let targets: Vec<String> = (1..=targets).map(|last| format!("\"icmp://192.0.2.{last}\"")).collect();
    let text = format!(
        "lan = [\"lan0\"]\n[uplink.isp1]\ninterface = \"wan1\"\n[uplink.isp1.probe]\ntargets = [{}]\n{lines}\n",
        targets.join(", ")
    );
    let loaded = config::parse(&text).unwrap_or_else(|faults| panic!("{text}\n{faults}"));
    loaded.config.uplinks[0].probe.clone().unwrap()
}

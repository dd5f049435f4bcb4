//! Tests of the config: every fault with its place and words, the values, the whole format, and properties.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod documents;
mod faults;
mod forwards;
mod policies;
mod probes;
mod properties;
mod review;
mod rules;
mod sets;
mod steering;
mod values;

use super::{Config, Loaded, Weight, parse};

/// A valid config to which lines are added: line 4 is the first line of what follows, in `[uplink.isp1]`.
const ONE_UPLINK: &str = "lan = [\"lan0\"]\n[uplink.isp1]\ninterface = \"wan1\"\n";

/// The faults of a text, one a line.
fn faults(text: &str) -> String {
    match parse(text) {
        Ok(loaded) => panic!("no fault in\n{text}\n{loaded:?}"),
        Err(faults) => faults.to_string(),
    }
}

/// The config of a text that is valid, and its warnings.
fn loaded(text: &str) -> Loaded {
    parse(text).unwrap_or_else(|faults| panic!("{text}\n{faults}"))
}

/// The config of a text that is valid and gives no warning.
fn config(text: &str) -> Config {
    let loaded = loaded(text);
    assert_eq!(loaded.warnings, [], "{text}");
    loaded.config
}

/// The tiers of the default policy: indices of uplinks with their weights.
fn tiers(config: &Config) -> Vec<Vec<(usize, Weight)>> {
    let tiers = &config.default_policy().unwrap().tiers;
    tiers.iter().map(|tier| tier.iter().map(|member| (member.uplink, member.weight)).collect()).collect()
}

/// The warnings of a text that is valid, one a line.
fn warnings(text: &str) -> String {
    super::Faults(loaded(text).warnings).to_string()
}

/// Asserts the faults of some lines put after [`ONE_UPLINK`].
#[track_caller]
fn after(lines: &str, expected: &[&str]) {
    assert_eq!(faults(&format!("{ONE_UPLINK}{lines}")), expected.join("\n"), "{lines}");
}

/// Asserts the faults of a whole text.
#[track_caller]
fn whole(text: &str, expected: &[&str]) {
    assert_eq!(faults(text), expected.join("\n"), "{text}");
}

/// Asserts the warnings about some lines put after [`ONE_UPLINK`].
#[track_caller]
fn warned(lines: &str, expected: &[&str]) {
    assert_eq!(warnings(&format!("{ONE_UPLINK}{lines}")), expected.join("\n"), "{lines}");
}

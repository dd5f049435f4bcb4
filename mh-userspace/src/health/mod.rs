//! Whether an uplink works, as its probes tell: what the outcomes of rounds mean, and when rounds begin.
//!
//! Sans-IO: [`Monitor`] takes the outcomes of one round after the other, [`Schedule`] the time since some start. Nothing in here
//! fails, and nothing grows beyond the rounds that the config asks to be looked at.
//!
//! A round is good when at least `quorum` targets answered. `down` failed rounds in a row take the uplink down, and so do loss or
//! latency where they leave fewer than `quorum` targets that count. `up` good rounds in a row bring it back if enough targets count
//! again; the levels for that lie below those that took it down, so that a value that wavers around a level does not.

mod monitor;
mod outcome;
mod schedule;
#[cfg(test)]
mod tests;
mod window;

pub use monitor::{Health, Monitor, Start};
pub use outcome::{Failure, Outcome};
pub use schedule::Schedule;

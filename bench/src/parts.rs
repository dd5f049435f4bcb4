//! The parts of the benchmark, in the order in which they run.

use anyhow::Result;

use crate::{effort::Effort, forward, names::table, program, report::Table};

/// A part: a command of its own, and one of all that run without one.
pub struct Part {
    /// The command.
    pub name: &'static str,
    /// What it measures, for `--help`.
    pub about: &'static str,
    /// Measures.
    pub measure: fn(&Effort) -> Result<Vec<Table>>,
}

/// All of them.
pub const PARTS: &[Part] = &[
    Part {
        name: table::FORWARD,
        about: "packets per second of established flows, one core",
        measure: |effort| forward::measure(&forward::Arguments::of(effort)),
    },
    Part {
        name: table::PROGRAM,
        about: "what a run of the programs costs, by kind of packet, and how large they are",
        measure: program::measure,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for part in PARTS {
            assert_eq!(PARTS.iter().filter(|other| other.name == part.name).count(), 1, "{}", part.name);
        }
    }
}

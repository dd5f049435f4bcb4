//! The parts of the benchmark, in the order in which they run.

use anyhow::Result;

use crate::{effort::Effort, footprint, forward, growth, http, names::table, new_flows, program, report::Table, tcp};

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
        measure: forward::measure,
    },
    Part {
        name: table::NEW_FLOWS,
        about: "new flows per second, one core, and what becomes of others when there are too many",
        measure: new_flows::measure,
    },
    Part {
        name: table::PROGRAM,
        about: "what a run of the programs costs, by kind of packet, and how large they are",
        measure: program::measure,
    },
    Part { name: table::TCP, about: "TCP throughput with real sockets", measure: tcp::measure },
    Part {
        name: table::HTTP,
        about: "short HTTP connections: how many a second, and how long they take",
        measure: http::measure,
    },
    Part {
        name: "footprint",
        about: "memory, starts, and the controller's work with many flows",
        measure: footprint::measure,
    },
    Part { name: "growth", about: "packets and new flows per second by the number of flows", measure: growth::measure },
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

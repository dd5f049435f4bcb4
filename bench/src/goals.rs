//! What the figures are to be, and whether they are. Ratios within one run, except for where a time or a size is the goal itself.

use std::fmt::Write as _;

use crate::{
    names::{contender, footprint, table},
    report::{Table, shown},
};

/// What a figure is compared with.
enum Bound {
    /// At least so many times another contender's.
    Times(f64, &'static str),
    /// At most so many times another row's.
    AtMostTimes(f64, &'static str),
    /// At most so much, in the table's unit.
    AtMost(f64),
}

/// A goal for one row, to be met in every column that [`Goal::is_about`].
struct Goal {
    table: &'static str,
    row: &'static str,
    column: &'static str,
    bound: Bound,
}

const fn times(table: &'static str, row: &'static str, column: &'static str, factor: f64, other: &'static str) -> Goal {
    Goal { table, row, column, bound: Bound::Times(factor, other) }
}

const fn at_most(table: &'static str, row: &'static str, column: &'static str, most: f64) -> Goal {
    Goal { table, row, column, bound: Bound::AtMost(most) }
}

/// All of them.
const GOALS: &[Goal] = &[
    times(table::FORWARD, contender::MH_XDP, "64 B, 1 Ki flows", 0.8, contender::BLIND_REDIRECT),
    times(table::FORWARD, contender::MH_XDP, "64 B, 64 Ki flows", 0.7, contender::BLIND_REDIRECT),
    times(table::FORWARD, contender::MH_XDP, "64 B, 1 Mi flows", 0.6, contender::BLIND_REDIRECT),
    times(table::FORWARD, contender::MH_XDP, "64 B, 64 Ki flows", 6.0, contender::IPTABLES),
    times(table::FORWARD, contender::MH_XDP, "64 B, 64 Ki flows", 3.0, contender::KERNEL),
    times(table::FORWARD, contender::MH_TC, "64 B", 1.0, contender::KERNEL),
    times(table::TCP, contender::MH_TC, "", 1.0, contender::KERNEL),
    times(table::NEW_FLOWS, contender::MH_XDP, "", 3.0, contender::IPTABLES),
    times(table::NEW_FLOWS, contender::MH_XDP, "", 3.0, contender::NFT),
    at_most(table::PROGRAM, contender::MH_XDP, "hit", 60.0),
    at_most(table::FOOTPRINT_MEMORY, footprint::MH, footprint::ONE_FLOW, 512.0),
    at_most(table::FOOTPRINT_CONTROLLER, footprint::SWEEP, "", 20.0),
    Goal {
        table: table::FOOTPRINT_LATENCY,
        row: footprint::SWEPT,
        column: "p99",
        bound: Bound::AtMostTimes(1.05, footprint::CALM),
    },
];

/// How a goal was met where it was met least.
#[derive(Debug, PartialEq)]
struct Outcome {
    column: String,
    figure: f64,
    met: bool,
}

impl Goal {
    /// The column in which the goal is met least; `None` if nothing was measured of it.
    fn evaluate(&self, tables: &[Table]) -> Option<Outcome> {
        let table = tables.iter().find(|table| table.name == self.table)?;
        let row = table.row(self.row)?;
        let columns = table.columns.iter().enumerate().filter(|(_, column)| self.is_about(column));
        let outcomes = columns.filter_map(|(at, column)| {
            let (figure, surplus) = match self.bound {
                Bound::Times(factor, other) => {
                    let ratio = table.ratio_to(row, table.row(other)?, at)?.median;
                    (ratio, ratio - factor)
                }
                Bound::AtMostTimes(factor, other) => {
                    let ratio = table.ratio_to(row, table.row(other)?, at)?.median;
                    (ratio, factor - ratio)
                }
                Bound::AtMost(most) => {
                    let figure = table.figure(row, at)?.median;
                    (figure, most - figure)
                }
            };
            Some((surplus, Outcome { column: column.clone(), figure, met: surplus >= 0.0 }))
        });
        outcomes.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, outcome)| outcome)
    }

    /// Whether a column is one of the goal's: `64 B` is about `64 B, 1 Ki flows`, `p99` not about `p99.9`.
    fn is_about(&self, column: &str) -> bool {
        let rest = column.strip_prefix(self.column);
        self.column.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(", "))
    }

    /// What is to be, in words.
    fn bound(&self) -> String {
        match self.bound {
            Bound::Times(factor, other) => format!("at least {factor} times {other}"),
            Bound::AtMostTimes(factor, other) => format!("at most {factor} times: {other}"),
            Bound::AtMost(most) => format!("at most {most}"),
        }
    }
}

/// Which goals were met, with the figures. Those of which nothing was measured are named if `all` parts were run.
#[must_use]
pub fn text(tables: &[Table], all: bool) -> String {
    let mut text = String::new();
    for goal in GOALS {
        let (verdict, figure, column) = match goal.evaluate(tables) {
            Some(Outcome { column, figure, met }) => (if met { "met" } else { "NOT MET" }, shown(figure), column),
            None if all => ("unknown", "-".to_owned(), goal.column.to_owned()),
            None => continue,
        };
        let column = if column.is_empty() { column } else { format!("; {column}") };
        let _ = writeln!(text, "  {verdict:<8}{figure:>7}  {}: {}{column}", goal.table, goal.row);
        let _ = writeln!(text, "  {:<8}{:>7}    {}", "", "", goal.bound());
    }
    if text.is_empty() { text } else { format!("\nGoals, each where it is met least\n{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Row;

    /// One contender at twice the other's figure in the first column, at the same in the second.
    fn tables() -> Vec<Table> {
        let row = |name: &str, samples: [f64; 2]| Row {
            name: name.to_owned(),
            samples: samples.into_iter().map(|sample| vec![sample]).collect(),
        };
        vec![Table {
            name: table::TCP,
            title: String::new(),
            unit: "Gbit/s",
            more_is_better: true,
            columns: vec!["1 stream, up".to_owned(), "8 streams, up".to_owned()],
            rows: vec![row(contender::KERNEL, [10.0, 40.0]), row(contender::MH_TC, [20.0, 40.0])],
            baseline: 0,
        }]
    }

    #[test]
    fn the_column_where_a_goal_is_met_least_counts() {
        let outcome =
            |factor, column| times(table::TCP, contender::MH_TC, column, factor, contender::KERNEL).evaluate(&tables());
        let expected = |column: &str, figure, met| Some(Outcome { column: column.to_owned(), figure, met });
        assert_eq!(outcome(1.0, ""), expected("8 streams, up", 1.0, true));
        assert_eq!(outcome(1.5, ""), expected("8 streams, up", 1.0, false));
        assert_eq!(outcome(1.5, "1 stream"), expected("1 stream, up", 2.0, true));
        assert_eq!(outcome(1.5, "9 streams"), None);
        let most = |most| at_most(table::TCP, contender::MH_TC, "", most).evaluate(&tables());
        assert_eq!(most(50.0), expected("8 streams, up", 40.0, true));
        assert_eq!(most(30.0), expected("8 streams, up", 40.0, false));
    }

    #[test]
    fn goals_are_told_with_their_figures() {
        let text = text(&tables(), false);
        let expected = "  met        1.00  tcp: mh, TC; 8 streams, up\n                     at least 1 times kernel forwarding, no NAT\n";
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("unknown"));
        assert!(super::text(&tables(), true).contains("unknown       -  forward: mh, XDP; 64 B, 1 Ki flows\n"));
        assert_eq!(super::text(&[], false), "");
    }
}

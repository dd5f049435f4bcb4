//! Tables for the terminal: 80 columns wide, names of up to 40 characters.

use std::fmt::Write as _;

use super::{Spread, Table, shown};

/// Eight heights.
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Wider than that, a table would not fit into 80 columns.
const MAX_NAME: usize = 40;

/// A table as text: contenders below each column's name, or, of a curve, one line for each contender.
#[must_use]
pub fn text(table: &Table) -> String {
    let better = if table.more_is_better { "more is better" } else { "less is better" };
    let mut text = format!("\n{}\n{}, {better}", table.heading(), table.unit);
    let base = table.compared_with();
    if let Some(base) = base {
        let _ = write!(text, "; ratio to: {}", base.name);
    }
    text.push('\n');
    let width = table.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).min(MAX_NAME);
    match table.curve() {
        Some(_) => curve(&mut text, table, width),
        None => groups(&mut text, table, width),
    }
    text
}

/// One part for each column.
fn groups(text: &mut String, table: &Table, width: usize) {
    // Columns' names stand two places further left than rows', above a gap of two.
    let longest = table.columns.iter().map(|column| column.chars().count().saturating_sub(2)).max().unwrap_or(0);
    let width = width.max(longest);
    let rounds = table.rows.iter().flat_map(|row| &row.samples).map(Vec::len).max().unwrap_or(0);
    let head = match (table.compared_with().is_some(), rounds) {
        (false, _) => format!("{:>7}", "median"),
        (true, 0 | 1) => format!("{:>7}  {:>6}", "median", "ratio"),
        (true, _) => format!("{:>7}  {:>6}  {:>16}", "median", "ratio", "least to most"),
    };
    for (at, column) in table.columns.iter().enumerate() {
        let begin = width + 2;
        let _ = writeln!(text, "\n  {column:<begin$}  {head}");
        for (number, row) in table.rows.iter().enumerate() {
            let Some(figure) = table.figure(number, at) else {
                let _ = writeln!(text, "    {:<width$}  {:>7}", row.name, "-");
                continue;
            };
            let _ = write!(text, "    {:<width$}  {:>7}", row.name, shown(figure.median));
            if let Some(Spread { min, median, max }) = table.ratio(number, at).filter(|_| number != table.baseline) {
                let _ = write!(text, "  {median:>6.2}");
                // Of one sample there is no spread.
                if table.samples(number, at).len() > 1 {
                    let _ = write!(text, "  {:>16}", format!("{min:.2} to {max:.2}"));
                }
            }
            text.push('\n');
        }
    }
}

/// One line for each contender: how it begins and ends, how it changes, and its form.
fn curve(text: &mut String, table: &Table, width: usize) {
    let (Some(first), Some(last)) = (table.columns.first(), table.columns.last()) else { return };
    let _ = writeln!(text, "\n    {:<width$}  {first:>10}  {last:>10}  per doubling", "");
    let figures = |row: usize| (0..table.columns.len()).map(move |column| table.figure(row, column));
    let all = (0..table.rows.len()).flat_map(figures).flatten();
    let most = all.map(|figure| figure.median).fold(0.0, f64::max);
    for (number, row) in table.rows.iter().enumerate() {
        let at = |column: usize| table.figure(number, column).map_or("-".to_owned(), |figure| shown(figure.median));
        let slope = table.slope(number).map_or(String::new(), |factor| format!("{:+.1} %", (factor - 1.0) * 100.0));
        let form: String =
            figures(number).map(|figure| figure.map_or(' ', |figure| spark(figure.median, most))).collect();
        let (begin, end) = (at(0), at(table.columns.len() - 1));
        let _ = writeln!(text, "    {:<width$}  {begin:>10}  {end:>10}  {slope:>12}  {form}", row.name);
    }
}

/// A bar of a height between nothing and the most.
fn spark(value: f64, most: f64) -> char {
    let share = if most > 0.0 { value / most } else { 0.0 };
    let steps = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];
    let height = steps.iter().filter(|step| share > **step).count();
    SPARKS[height]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{names, report::tests::table};

    #[test]
    fn figures_stand_below_each_other() {
        let text = text(&table());
        let expected = "
Packets
Mpps, more is better; ratio to: limit

  64 B, 1 Ki flows    median   ratio     least to most
    limit               8.00
    mh, XDP             5.00    0.75      0.50 to 0.75
    lazy                1.00    0.12      0.10 to 0.25
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.lines().any(|line| line.trim_end() == "    lazy                   -"), "{text}");
    }

    #[test]
    fn a_curve_is_a_line_for_each_contender() {
        let mut curve = table();
        curve.columns = [1, 2, 4].map(names::flows).to_vec();
        curve.rows.truncate(1);
        curve.rows[0].samples = vec![vec![8.0], vec![4.0], vec![2.0]];
        let text = text(&curve);
        assert!(text.contains("    limit        8.00        2.00       -50.0 %  █▄▂\n"), "{text}");
    }

    #[test]
    fn heights_are_within_bounds() {
        assert_eq!([0.0, 0.1, 0.5, 1.0, 2.0].map(|value| spark(value, 1.0)), ['▁', '▁', '▄', '█', '█']);
        assert_eq!(spark(0.0, 0.0), '▁');
    }
}

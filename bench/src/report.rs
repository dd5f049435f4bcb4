//! Figures: what was measured, how it is compared, and where it goes.
//!
//! A [`Table`] is one part of the benchmark: contenders take turns within each round, so figures of one round belong together. What is
//! reported of a contender is the median of its samples, and its ratio to the baseline's: the median of the ratios of all rounds, with
//! the least and the greatest, since the machine's speed changes between rounds more than within one.

use serde::Serialize;

/// One part of the benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The file's stem in `bench/results`.
    pub name: &'static str,
    /// What was measured, for people.
    pub title: String,
    /// The unit of all samples.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// The settings under which each contender was measured, such as `64 B, 1 Ki flows`.
    pub columns: Vec<String>,
    /// The contenders, in the order in which they are shown.
    pub rows: Vec<Row>,
    /// The row to which ratios are given.
    pub baseline: usize,
}

/// What was measured of one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The contender.
    pub name: String,
    /// Per column the samples in the order of rounds; empty where it could not be measured.
    pub samples: Vec<Vec<f64>>,
}

/// A median with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of some samples; `None` of none.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { min: *sorted.first()?, median: sorted[sorted.len() / 2], max: *sorted.last()? })
    }
}

impl Table {
    /// The ratio of a row to the baseline in a column, round by round.
    #[must_use]
    pub fn ratio(&self, row: usize, column: usize) -> Option<Spread> {
        let samples = |row: usize| self.rows.get(row)?.samples.get(column);
        let (own, base) = (samples(row)?, samples(self.baseline)?);
        Spread::of(&own.iter().zip(base).map(|(own, base)| own / base).collect::<Vec<_>>())
    }

    /// Prints the table to the terminal.
    pub fn print(&self) {
        println!("\n{} ({})", self.title, self.unit);
        for (at, column) in self.columns.iter().enumerate() {
            println!("  {column}");
            for (number, row) in self.rows.iter().enumerate() {
                let Some(figure) = row.samples.get(at).and_then(|samples| Spread::of(samples)) else { continue };
                let ratio = self.ratio(number, at).map_or(String::new(), |ratio| {
                    format!("{:>8.2}  ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max)
                });
                println!("    {:<44} {:>10.3}{ratio}", row.name, figure.median);
            }
        }
    }
}

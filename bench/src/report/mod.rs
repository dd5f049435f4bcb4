//! Figures: what was measured, how it is compared, and where it goes.
//!
//! A [`Table`] is one part of the benchmark: contenders take turns within each round, so figures of one round belong together. What is
//! reported of a contender is the median of its samples, and its ratio to the baseline's: the median of the ratios of all rounds, with
//! the least and the greatest, since the machine's speed changes between rounds more than within one.
//!
//! A table goes to the terminal ([`terminal`]) and to files ([`json`], [`picture`]), with the facts of the run ([`facts`]); a later run is compared with it
//! ([`compare`]).

pub mod compare;
pub mod facts;
pub mod json;
pub mod picture;
pub mod terminal;

use crate::names;

/// The baseline of a table whose rows are not to be compared with one of them.
pub const NO_BASELINE: usize = usize::MAX;

/// One part of the benchmark.
#[derive(Clone, Debug)]
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
    /// The row to which ratios are given, or [`NO_BASELINE`].
    pub baseline: usize,
}

/// What was measured of one contender.
#[derive(Clone, Debug)]
pub struct Row {
    /// The contender.
    pub name: String,
    /// Per column the samples in the order of rounds; empty where it could not be measured.
    pub samples: Vec<Vec<f64>>,
}

/// A median with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The median: of an even number of samples, the mean of the two in the middle.
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
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { min: *sorted.first()?, median: f64::midpoint(*lower, *upper), max: *sorted.last()? })
    }
}

impl Table {
    /// The title with a capital letter.
    #[must_use]
    pub fn heading(&self) -> String {
        let mut letters = self.title.chars();
        letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
    }

    /// A row's samples in a column; empty where there are none.
    #[must_use]
    pub fn samples(&self, row: usize, column: usize) -> &[f64] {
        self.rows.get(row).and_then(|row| row.samples.get(column)).map_or(&[], Vec::as_slice)
    }

    /// A row's figure in a column.
    #[must_use]
    pub fn figure(&self, row: usize, column: usize) -> Option<Spread> {
        Spread::of(self.samples(row, column))
    }

    /// The ratio of a row to the baseline in a column, round by round.
    #[must_use]
    pub fn ratio(&self, row: usize, column: usize) -> Option<Spread> {
        self.ratio_to(row, self.baseline, column)
    }

    /// The ratio of a row to another in a column, round by round. Rounds in which the other's sample is zero don't count.
    #[must_use]
    pub fn ratio_to(&self, row: usize, base: usize, column: usize) -> Option<Spread> {
        let pairs = self.samples(row, column).iter().zip(self.samples(base, column));
        Spread::of(&pairs.filter(|(_, base)| **base != 0.0).map(|(own, base)| own / base).collect::<Vec<_>>())
    }

    /// The row to which ratios are given, if there is one and others beside it.
    #[must_use]
    pub fn compared_with(&self) -> Option<&Row> {
        self.rows.get(self.baseline).filter(|_| self.rows.len() > 1)
    }

    /// The row of that name.
    #[must_use]
    pub fn row(&self, name: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.name == name)
    }

    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The numbers of flows, if that is what the columns are: at least three of them, ascending. Such a table is a curve.
    #[must_use]
    pub fn curve(&self) -> Option<Vec<u64>> {
        let is_count = |column: &&String| names::flows_in(column).is_some_and(|count| names::flows(count) == **column);
        if self.columns.len() < 3 || !self.columns.iter().all(|column| is_count(&column)) {
            return None;
        }
        let counts: Vec<u64> = self.columns.iter().filter_map(|column| names::flows_in(column)).collect();
        counts.is_sorted_by(|a, b| a < b).then_some(counts)
    }

    /// Of a curve: by what factor a row's figure changes when the number of flows doubles, by least squares over the logarithms.
    #[must_use]
    pub fn slope(&self, row: usize) -> Option<f64> {
        let counts = self.curve()?;
        let measured = counts.iter().enumerate().filter_map(|(column, count)| {
            let median = self.figure(row, column)?.median;
            (median > 0.0).then(|| (as_f64(*count).log2(), median.log2()))
        });
        let points: Vec<(f64, f64)> = measured.collect();
        if points.len() < 2 {
            return None;
        }
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
            sum / count
        };
        let x = mean(&mut points.iter().map(|point| point.0));
        let y = mean(&mut points.iter().map(|point| point.1));
        let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        Some((covariance / variance).exp2())
    }
}

/// A count as a number to calculate with.
#[must_use]
pub fn as_f64(count: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "counts of flows are far below 2^53")]
    let number = count as f64;
    number
}

/// A figure with three or four digits that say something.
#[must_use]
pub fn shown(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size < 0.1 => 4,
        size if size < 10.0 => 2,
        size if size < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Three contenders, two columns.
    pub fn table() -> Table {
        Table {
            name: "forward",
            title: "packets".to_owned(),
            unit: "Mpps",
            more_is_better: true,
            columns: vec!["64 B, 1 Ki flows".to_owned(), "64 B, 64 Ki flows".to_owned()],
            rows: vec![
                Row { name: "limit".to_owned(), samples: vec![vec![8.0, 10.0, 4.0], vec![4.0, 4.0, 4.0]] },
                Row { name: "mh, XDP".to_owned(), samples: vec![vec![6.0, 5.0, 3.0], vec![3.0, 2.0, 4.0]] },
                Row { name: "lazy".to_owned(), samples: vec![vec![1.0, 1.0, 1.0], vec![]] },
            ],
            baseline: 0,
        }
    }

    #[test]
    fn a_spread_is_least_median_and_greatest() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(Spread::of(&[7.0]), Some(Spread { min: 7.0, median: 7.0, max: 7.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratios_are_of_samples_of_the_same_round() {
        let table = table();
        // 0.75, 0.5, 0.75: the ratio of the medians would be 0.625.
        assert_eq!(table.ratio(1, 0), Some(Spread { min: 0.5, median: 0.75, max: 0.75 }));
        assert_eq!(table.ratio(0, 0), Some(Spread { min: 1.0, median: 1.0, max: 1.0 }));
        assert_eq!(table.ratio(2, 1), None, "not measured");
        assert_eq!(table.ratio(7, 0), None, "no such row");
        let alone = Table { baseline: NO_BASELINE, ..table };
        assert!(alone.ratio(0, 0).is_none() && alone.compared_with().is_none());
    }

    #[test]
    fn a_round_in_which_the_other_did_nothing_gives_no_ratio() {
        let mut table = table();
        table.rows[0].samples[0] = vec![0.0, 10.0, 4.0];
        assert_eq!(table.ratio(1, 0).map(|ratio| ratio.max), Some(0.75));
    }

    #[test]
    fn a_curve_has_a_slope() {
        let mut table = table();
        assert_eq!(table.curve(), None);
        table.columns = [1, 1024, 1 << 20].map(names::flows).to_vec();
        assert_eq!(table.curve(), Some(vec![1, 1024, 1 << 20]));
        // A tenth for each factor of 1024.
        table.rows[0].samples = vec![vec![10.0], vec![1.0], vec![0.1]];
        let slope = table.slope(0).unwrap_or_default();
        assert!((slope.powi(10) - 0.1).abs() < 1e-9, "{slope}");
        table.rows[0].samples = vec![vec![10.0], vec![], vec![]];
        assert_eq!(table.slope(0), None);
    }

    #[test]
    fn figures_have_digits_that_say_something() {
        for (value, text) in [(0.0, "0"), (0.01234, "0.0123"), (0.8, "0.80"), (41.26, "41.3"), (12_345.6, "12346")] {
            assert_eq!(shown(value), text);
        }
    }
}

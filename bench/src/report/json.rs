//! Results as files: one figure a line, in the order of the table, so that a change to one figure is one line of a diff.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{NO_BASELINE, Row, Spread, Table, facts::Facts};

/// A table as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The table's name.
    pub name: String,
    /// What was measured.
    pub title: String,
    /// The unit of all figures but ratios.
    pub unit: String,
    /// Whether more is better.
    pub more_is_better: bool,
    /// The contender to which ratios are given; empty if there is none.
    pub baseline: String,
    /// Of the run.
    pub run: Facts,
    /// All that was measured, column by column.
    pub figures: Vec<Figure>,
    /// Of a curve: by what factor each contender's figure changes when flows double.
    #[serde(default)]
    pub slopes: Vec<Slope>,
}

/// A contender in a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The setting.
    pub column: String,
    /// The contender.
    pub row: String,
    /// The median of the samples.
    pub median: f64,
    /// Ratio to the baseline, round by round: least, median, greatest. Absent if the baseline was not measured.
    pub ratio: Option<[f64; 3]>,
    /// In the order of rounds.
    pub samples: Vec<f64>,
}

/// A curve's slope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slope {
    /// The contender.
    pub row: String,
    /// The factor.
    pub per_doubling: f64,
}

impl Stored {
    /// What is kept of a table.
    #[must_use]
    pub fn new(table: &Table, run: Facts) -> Self {
        let mut figures = Vec::new();
        for (at, column) in table.columns.iter().enumerate() {
            for (number, row) in table.rows.iter().enumerate() {
                let Some(figure) = table.figure(number, at) else { continue };
                let ratio =
                    table.ratio(number, at).map(|Spread { min, median, max }| [min, median, max].map(significant));
                figures.push(Figure {
                    column: column.clone(),
                    row: row.name.clone(),
                    median: significant(figure.median),
                    ratio,
                    samples: table.samples(number, at).iter().copied().map(significant).collect(),
                });
            }
        }
        let slopes = table.rows.iter().enumerate().filter_map(|(number, row)| {
            Some(Slope { row: row.name.clone(), per_doubling: significant(table.slope(number)?) })
        });
        Self {
            name: table.name.to_owned(),
            title: table.title.clone(),
            unit: table.unit.to_owned(),
            more_is_better: table.more_is_better,
            baseline: table.rows.get(table.baseline).map(|row| row.name.clone()).unwrap_or_default(),
            run,
            slopes: slopes.collect(),
            figures,
        }
    }

    /// The table again: rows and columns in the order in which they are kept.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut columns: Vec<String> = Vec::new();
        let mut names: Vec<&String> = Vec::new();
        for Figure { column, row, .. } in &self.figures {
            if !columns.contains(column) {
                columns.push(column.clone());
            }
            if !names.contains(&row) {
                names.push(row);
            }
        }
        let samples = |row: &str, column: &str| {
            let figure = self.figures.iter().find(|figure| figure.row == row && figure.column == column);
            figure.map(|figure| figure.samples.clone()).unwrap_or_default()
        };
        let rows = names.iter().map(|name| Row {
            name: (*name).clone(),
            samples: columns.iter().map(|column| samples(name, column)).collect(),
        });
        Table {
            // A few short texts, once per run of the program: parts name their tables by constants.
            name: self.name.clone().leak(),
            title: self.title.clone(),
            unit: self.unit.clone().leak(),
            more_is_better: self.more_is_better,
            rows: rows.collect(),
            baseline: names.iter().position(|name| **name == self.baseline).unwrap_or(NO_BASELINE),
            columns,
        }
    }

    /// As text.
    fn text(&self) -> Result<String> {
        let lines = |items: Vec<String>| format!("[\n    {}\n  ]", items.join(",\n    "));
        let figures = self.figures.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let slopes = self.slopes.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let mut fields = vec![
            ("name", serde_json::to_string(&self.name)?),
            ("title", serde_json::to_string(&self.title)?),
            ("unit", serde_json::to_string(&self.unit)?),
            ("more_is_better", self.more_is_better.to_string()),
            ("baseline", serde_json::to_string(&self.baseline)?),
            ("run", serde_json::to_string(&self.run)?),
            ("figures", if figures.is_empty() { "[]".to_owned() } else { lines(figures) }),
        ];
        if !slopes.is_empty() {
            fields.push(("slopes", lines(slopes)));
        }
        let fields = fields.into_iter().map(|(key, value)| format!("  \"{key}\": {value}")).collect::<Vec<_>>();
        Ok(format!("{{\n{}\n}}\n", fields.join(",\n")))
    }

    /// Writes it to a directory, which is made if it is not there.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let file = directory.join(format!("{}.json", self.name));
        fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
        fs::write(&file, self.text()?).with_context(|| format!("can't write {}", file.display()))
    }

    /// Reads it; `None` if there is no such file.
    ///
    /// # Errors
    /// If the file can't be read, or holds something else.
    pub fn read(directory: &Path, name: &str) -> Result<Option<Self>> {
        let file = directory.join(format!("{name}.json"));
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("can't read {}", file.display()))?,
        };
        serde_json::from_str(&text).with_context(|| format!("{} holds no results", file.display()))
    }
}

/// Four digits: more are noise, and noise in files is hard to read.
fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{names, report::tests::table};

    fn facts() -> Facts {
        Facts {
            date: "2026-01-01".to_owned(),
            revision: None,
            kernel: "6.18".to_owned(),
            cpu: "a \"CPU\"".to_owned(),
            cores: 2,
            rounds: 3,
            quick: false,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let stored = Stored::new(&table(), facts());
        stored.write(&directory.path().join("results")).unwrap();
        assert_eq!(Stored::read(&directory.path().join("results"), "forward").unwrap(), Some(stored));
        assert_eq!(Stored::read(directory.path(), "forward").unwrap(), None);
        fs::write(directory.path().join("forward.json"), "{}").unwrap();
        assert!(Stored::read(directory.path(), "forward").unwrap_err().to_string().contains("forward.json"));
    }

    #[test]
    fn a_table_is_had_again() {
        let stored = Stored::new(&table(), facts());
        assert_eq!(Stored::new(&stored.table(), facts()), stored);
    }

    #[test]
    fn a_figure_is_a_line() {
        let text = Stored::new(&table(), facts()).text().unwrap();
        let line = r#"    {"column":"64 B, 1 Ki flows","row":"mh, XDP","median":5.0,"ratio":[0.5,0.75,0.75],"samples":[6.0,5.0,3.0]},"#;
        assert!(text.lines().any(|found| found == line), "{text}");
        assert!(!text.contains("slopes"));
        assert_eq!(text.matches("lazy").count(), 1, "where nothing was measured, nothing is written");
    }

    #[test]
    fn a_curve_has_its_slopes() {
        let mut curve = table();
        curve.columns = [1, 2, 4].map(names::flows).to_vec();
        curve.rows[1].samples = vec![vec![8.0], vec![4.0], vec![2.0]];
        let stored = Stored::new(&curve, facts());
        assert!(stored.slopes.contains(&Slope { row: "mh, XDP".to_owned(), per_doubling: 0.5 }));
        assert_eq!(serde_json::from_str::<Stored>(&stored.text().unwrap()).unwrap(), stored);
    }

    #[test]
    fn four_digits_are_kept() {
        for (value, kept) in [(0.0, 0.0), (1234.56, 1235.0), (0.012_345_6, 0.01235), (-2.0, -2.0)] {
            assert!((significant(value) - kept).abs() < 1e-12, "{value}");
        }
    }
}

//! The results: a table for people, and JSON.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::round::Times;

/// All rounds of a case.
#[derive(Debug)]
pub struct Row {
    name: String,
    samples: [Vec<Duration>; 3],
}

/// What is measured, in the order of [`Row::add`].
const COLUMNS: [(&str, &str); 3] = [
    ("first_packet_ms", "first packet by the other uplink"),
    ("last_lost_ms", "last new flow lost"),
    ("served_ms", "TCP client served again"),
];

impl Row {
    /// No rounds yet.
    pub const fn new(name: String) -> Self {
        Self { name, samples: [Vec::new(), Vec::new(), Vec::new()] }
    }

    /// One more round.
    pub fn add(&mut self, times: &Times) {
        for (samples, time) in self.samples.iter_mut().zip([times.first_packet, times.last_lost, times.served]) {
            samples.push(time);
            samples.sort_unstable();
        }
    }

    /// Median and worst of each column, in milliseconds.
    fn figures(&self) -> [(f64, f64); 3] {
        self.samples.each_ref().map(|samples| {
            let at = |index: usize| samples.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
            (at(samples.len() / 2), at(samples.len().saturating_sub(1)))
        })
    }
}

/// The table, in Markdown: median / worst.
pub fn table(rows: &[Row]) -> String {
    let mut table = "| failure and router |".to_owned();
    for (_, title) in COLUMNS {
        table += &format!(" {title} |");
    }
    table += "\n| --- | ---: | ---: | ---: |\n";
    for row in rows {
        table += &format!("| {} |", row.name);
        for (median, worst) in row.figures() {
            table += &format!(" {} / {} ms |", shown(median), shown(worst));
        }
        table += "\n";
    }
    table
}

/// Milliseconds with as many digits as say something.
fn shown(milliseconds: f64) -> String {
    if milliseconds < 100.0 { format!("{milliseconds:.1}") } else { format!("{milliseconds:.0}") }
}

/// Writes every sample.
pub fn write(file: &Path, rounds: u32, rows: &[Row]) -> Result<()> {
    let cases = rows.iter().map(|row| {
        let columns =
            COLUMNS.iter().zip(row.figures()).zip(&row.samples).map(|(((key, _), (median, worst)), samples)| {
                let samples: Vec<f64> = samples.iter().map(|time| time.as_secs_f64() * 1e3).collect();
                ((*key).to_owned(), json!({ "median": median, "worst": worst, "samples": samples }))
            });
        let mut case = columns.collect::<serde_json::Map<_, _>>();
        case.insert("name".to_owned(), row.name.clone().into());
        case.into()
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let document = json!({
        "kernel": kernel.trim(),
        "rounds": rounds,
        "cases": cases.collect::<Vec<serde_json::Value>>(),
    });
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    fs::write(file, format!("{document:#}\n")).with_context(|| file.display().to_string())
}

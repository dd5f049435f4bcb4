//! Compares a run with what was kept: so that something that got slower is seen.
//!
//! Ratios are compared, since the machine may be another one by now, or busy; where there is none to another contender, the figures
//! themselves are. Something changed if the spreads of before and now do not touch each other, and the medians differ by more than
//! [`TOLERANCE`]: with few rounds, spreads are narrow by chance.

use super::{Spread, Table, json::Stored, shown};

/// By how much medians may differ, as a share.
const TOLERANCE: f64 = 0.05;

/// A figure that changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The setting.
    pub column: String,
    /// The contender.
    pub row: String,
    /// Before.
    pub before: Spread,
    /// Now.
    pub now: Spread,
    /// Whether what is compared are ratios.
    pub is_ratio: bool,
    /// Whether it got worse.
    pub worse: bool,
}

/// What changed, in the table's order.
#[must_use]
pub fn changes(kept: &Stored, table: &Table) -> Vec<Change> {
    let baseline = table.rows.get(table.baseline).map(|row| row.name.as_str());
    // Ratios to someone else can't be compared.
    let same_baseline = baseline == Some(kept.baseline.as_str()) && table.rows.len() > 1;
    let mut changes = Vec::new();
    for figure in &kept.figures {
        let (Some(row), Some(column)) = (table.row(&figure.row), table.column(&figure.column)) else { continue };
        let is_ratio = same_baseline && row != table.baseline && figure.ratio.is_some();
        if same_baseline && row == table.baseline {
            continue;
        }
        let before = match figure.ratio {
            Some([min, median, max]) if is_ratio => Some(Spread { min, median, max }),
            _ => Spread::of(&figure.samples),
        };
        let now = if is_ratio { table.ratio(row, column) } else { table.figure(row, column) };
        let (Some(before), Some(now)) = (before, now) else { continue };
        let apart = now.min > before.max || now.max < before.min;
        let more = now.median > before.median;
        if apart && (now.median - before.median).abs() > TOLERANCE * before.median.abs() {
            let worse = more != table.more_is_better;
            changes.push(Change {
                column: figure.column.clone(),
                row: figure.row.clone(),
                before,
                now,
                is_ratio,
                worse,
            });
        }
    }
    changes
}

/// Prints what changed; how many of it got worse.
pub fn print(kept: Option<&Stored>, table: &Table) -> usize {
    let Some(kept) = kept else {
        println!("\n  no earlier run was kept");
        return 0;
    };
    let changes = changes(kept, table);
    println!("\n  compared with the run of {} (kernel {}):", kept.run.date, kept.run.kernel);
    if kept.run.cpu != crate::report::facts::cpu() {
        println!("    that was another kind of machine: {}", kept.run.cpu);
    }
    if changes.is_empty() {
        println!("    nothing changed beyond the spread");
    }
    for change in &changes {
        println!(
            "    {}: {}, {}: {} {} (was {}, {} to {})",
            if change.worse { "worse" } else { "better" },
            change.row,
            change.column,
            if change.is_ratio { "ratio" } else { table.unit },
            shown(change.now.median),
            shown(change.before.median),
            shown(change.before.min),
            shown(change.before.max),
        );
    }
    changes.iter().filter(|change| change.worse).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{facts::Facts, tests::table};

    fn kept() -> Stored {
        let facts = Facts {
            date: "2026-01-01".to_owned(),
            revision: None,
            kernel: "6.18".to_owned(),
            cpu: "a CPU".to_owned(),
            cores: 2,
            rounds: 3,
            quick: false,
        };
        Stored::new(&table(), facts)
    }

    #[test]
    fn the_same_run_changed_nothing() {
        assert_eq!(changes(&kept(), &table()), []);
    }

    #[test]
    fn a_machine_that_is_faster_changes_no_ratio() {
        let mut faster = table();
        for sample in faster.rows.iter_mut().flat_map(|row| row.samples.iter_mut().flatten()) {
            *sample *= 3.0;
        }
        assert_eq!(changes(&kept(), &faster), []);
    }

    #[test]
    fn what_got_worse_beyond_the_spread_is_seen() {
        let mut slower = table();
        slower.rows[1].samples[0] = vec![3.0, 4.0, 1.5];
        let changes = changes(&kept(), &slower);
        assert_eq!(changes.len(), 1, "{changes:?}");
        let change = &changes[0];
        assert!(change.worse && change.is_ratio && change.row == "mh, XDP" && change.column == "64 B, 1 Ki flows");
    }

    #[test]
    fn within_the_spread_nothing_changed() {
        let mut same = table();
        same.rows[1].samples[0] = vec![4.1, 5.1, 2.1];
        assert_eq!(changes(&kept(), &same), []);
    }

    #[test]
    fn where_less_is_better_more_is_worse() {
        let mut cost = table();
        cost.more_is_better = false;
        cost.rows[2].samples[0] = vec![8.0, 10.0, 4.0];
        assert!(changes(&kept(), &cost).iter().all(|change| change.worse));
    }

    #[test]
    fn without_another_contender_figures_are_compared() {
        let mut alone = table();
        alone.rows.truncate(1);
        let mut kept = kept();
        kept.figures.retain(|figure| figure.row == "limit");
        assert_eq!(changes(&kept, &alone), []);
        alone.rows[0].samples[1] = vec![2.0, 2.0, 2.1];
        let changes = changes(&kept, &alone);
        assert!(matches!(changes.as_slice(), [change] if change.worse && !change.is_ratio), "{changes:?}");
    }
}

//! The probes of an uplink: `[uplink.NAME.probe]`, and what its keys must hold together.

use std::collections::HashSet;
use std::time::Duration;

use toml::de::DeValue;

use super::fault::Report;
use super::probe::{
    Check, DEFAULT_WINDOW, Limit, MAX_INTERVAL, MAX_OVERLAP, MAX_ROUNDS, MAX_TARGETS, MAX_TIMEOUT, MIN_INTERVAL, Probe,
    ProbeTarget, Share, ShareError, TargetError,
};
use super::schema::{self, Levels, Section};
use super::table::{Placed, Table, list_of, read_as};
use super::value::{Mismatch, duration, integer, text};

/// The shortest timeout, and the lowest level of latency.
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
const DEFAULT_INTERVAL: Duration = Duration::from_millis(500);
const DEFAULT_DOWN: u32 = 3;
const DEFAULT_UP: u32 = 5;

/// How many targets have to answer, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quorum {
    /// So many.
    Number(usize),
    /// As many as there are.
    All,
}

/// A URL.
pub(super) fn target(value: &DeValue<'_>) -> Result<ProbeTarget, Mismatch> {
    text(value)?.parse().map_err(|error: TargetError| Mismatch::Because(error.to_string()))
}

/// A number, `any` or `all`.
pub(super) fn quorum(value: &DeValue<'_>) -> Result<Quorum, Mismatch> {
    match value {
        DeValue::Integer(_) => integer::<u8>(value, 1, 64).map(|number| Quorum::Number(number.into())),
        other => match text(other)? {
            "any" => Ok(Quorum::Number(1)),
            "all" => Ok(Quorum::All),
            _ => Err(Mismatch::Value),
        },
    }
}

/// From one round to the next.
pub(super) fn interval(value: &DeValue<'_>) -> Result<Duration, Mismatch> {
    duration_within(value, MIN_INTERVAL, MAX_INTERVAL)
}

/// How long an answer takes.
pub(super) fn up_to_a_minute(value: &DeValue<'_>) -> Result<Duration, Mismatch> {
    duration_within(value, LEAST_TIMEOUT, MAX_TIMEOUT)
}

fn duration_within(value: &DeValue<'_>, least: Duration, most: Duration) -> Result<Duration, Mismatch> {
    let duration = duration(value)?;
    if (least..=most).contains(&duration) { Ok(duration) } else { Err(Mismatch::Value) }
}

/// A number of rounds.
pub(super) fn rounds(value: &DeValue<'_>) -> Result<u32, Mismatch> {
    integer(value, 1, MAX_ROUNDS.into())
}

/// A percentage.
pub(super) fn share(value: &DeValue<'_>) -> Result<Share, Mismatch> {
    text(value)?.parse().map_err(|_: ShareError| Mismatch::Value)
}

/// Reads a `[uplink.NAME.probe]`; `None` if it has no target that could be read.
pub(super) fn probe(table: &Table<'_, '_>, report: &mut Report) -> Option<Probe> {
    if table.lacks(schema::TARGETS) {
        report.fault(table.at, format!("[{}] has no targets; add targets = [\"icmp://ADDRESS\"]", table.path));
    }
    let targets = targets(table, report);
    let quorum = quorum_of(table, targets.as_ref(), report);
    let (interval, timeout) = pace(table, report);
    let down = table.read(&schema::DOWN, report).map_or(DEFAULT_DOWN, |down| down.value);
    let up = table.read(&schema::UP, report).map_or(DEFAULT_UP, |up| up.value);
    let loss = limit(table, schema::LOSS_TABLE, &schema::LOSS, &schema::LOSS_LEVELS, Share::to_string, report);
    let latency = limit(
        table,
        schema::LATENCY_TABLE,
        &schema::LATENCY,
        &schema::LATENCY_LEVELS,
        |latency| format!("{latency:?}"),
        report,
    );
    for level in latency.iter().flat_map(|(_, levels)| levels) {
        if level.value > timeout {
            report.warning(
                level.at,
                format!(
                    "a latency of {:?} is never reached: answers count as lost after the timeout of {timeout:?}; lower it, or \
                     raise timeout",
                    level.value
                ),
            );
        }
    }
    Some(Probe {
        targets: targets?.0,
        quorum,
        interval,
        timeout,
        down,
        up,
        loss: loss.map(|(limit, _)| limit),
        latency: latency.map(|(limit, _)| limit),
    })
}

/// The targets in file order, and whether all of them could be read; `None` if the list cannot be.
fn targets(table: &Table<'_, '_>, report: &mut Report) -> Option<(Vec<ProbeTarget>, bool)> {
    let (_, value) = table.get(schema::TARGETS)?;
    let list = list_of(schema::TARGETS, schema::TARGETS_WANTS, value, report)?;
    if let Some(further) = list.get(MAX_TARGETS) {
        report.fault(
            further.span().start,
            format!("targets has {} elements; keep at most {MAX_TARGETS} for one uplink", list.len()),
        );
    }
    let mut targets = Vec::new();
    let mut checks: HashSet<Check> = HashSet::new();
    let mut whole = true;
    for element in list {
        match read_as(schema::TARGETS, &schema::TARGET, element, report) {
            Some(target) if !checks.insert(target.check().clone()) => {
                report.warning(element.span().start, format!("{target} is in targets twice; keep one of them"));
            }
            Some(target) => targets.push(target),
            None => whole = false,
        }
    }
    Some((targets, whole))
}

/// How many targets have to answer. It is not compared with targets that are faulty themselves.
fn quorum_of(table: &Table<'_, '_>, targets: Option<&(Vec<ProbeTarget>, bool)>, report: &mut Report) -> usize {
    let (count, whole) = targets.map_or((0, false), |(targets, whole)| (targets.len(), *whole));
    let Some(quorum) = table.read(&schema::QUORUM, report) else { return 1 };
    match quorum.value {
        Quorum::All => count,
        Quorum::Number(number) => {
            if whole && number > count {
                let targets = if count == 1 { "target" } else { "targets" };
                report.fault(
                    quorum.at,
                    format!("quorum = {number} is more than the {count} {targets}; lower it, or add targets"),
                );
            }
            number
        }
    }
}

/// Interval and timeout. Where only the interval is written, the timeout is four fifths of it.
fn pace(table: &Table<'_, '_>, report: &mut Report) -> (Duration, Duration) {
    let written = table.read(&schema::INTERVAL, report);
    let interval = written.as_ref().map_or(DEFAULT_INTERVAL, |interval| interval.value);
    let Some(timeout) = table.read(&schema::TIMEOUT, report) else {
        return (interval, (interval * 4 / 5).min(MAX_TIMEOUT));
    };
    let most = interval * MAX_OVERLAP;
    // A faulty interval says nothing about the timeout.
    let known = written.is_some() || table.get(schema::INTERVAL.name).is_none();
    if known && timeout.value > most {
        report.fault(
            timeout.at,
            format!(
                "timeout = {:?} is more than {MAX_OVERLAP} intervals of {interval:?}; lower it to {most:?}, or raise interval",
                timeout.value
            ),
        );
    }
    (interval, timeout.value)
}

/// Reads `loss` or `latency`, and gives its levels with their places too.
fn limit<T: Copy + PartialOrd>(
    table: &Table<'_, '_>,
    name: &str,
    section: &'static Section,
    levels: &Levels<T>,
    shown: impl Fn(&T) -> String,
    report: &mut Report,
) -> Option<(Limit<T>, Vec<Placed<T>>)> {
    let table = table.child(name, section, report)?;
    let window = table.read(&schema::WINDOW, report).map_or(DEFAULT_WINDOW, |window| window.value);
    let warn = table.read(&levels.warn, report);
    let down = table.read(&levels.down, report);
    if table.lacks(levels.warn.name) && table.lacks(levels.down.name) {
        report.fault(table.at, format!("[{}] has no level; add warn or down, or remove it", table.path));
    }
    if let (Some(warn), Some(down)) = (&warn, &down)
        && warn.value > down.value
    {
        report.fault(
            warn.at,
            format!(
                "{name}.warn = {} is above down = {}; swap them, or lower warn",
                shown(&warn.value),
                shown(&down.value)
            ),
        );
    }
    let limit =
        Limit { window, warn: warn.as_ref().map(|level| level.value), down: down.as_ref().map(|level| level.value) };
    Some((limit, warn.into_iter().chain(down).collect()))
}

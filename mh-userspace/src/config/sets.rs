//! The sets of prefixes: `[set.NAME]`, and the files that they are from.
//!
//! A file has one prefix or address a line; blank lines, and what follows a `#`, are skipped. What is wrong with a file is reported at the
//! key that names it, with the file's own line. Files are read whole, up to [`MAX_FILE_BYTES`].

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use super::fault::Report;
use super::policy::{MAX_PREFIXES, MAX_SETS, Set};
use super::schema;
use super::table::{
    Key, Placed, Table, Value, check_name, dotted, entries_of, in_file_order, is_misplaced, list_of, read_each,
};
use super::value::{Mismatch, prefix_of, quoted};

/// How many bytes the file of a set may have: [`MAX_PREFIXES`] lines of 64.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// How many lines of a file are reported for themselves.
const MAX_LINE_FAULTS: usize = 5;

/// A set and where it is named.
pub(super) struct PlacedSet {
    pub(super) set: Set,
    pub(super) at: usize,
}

/// Reads every `[set.NAME]` in file order; relative paths begin at `directory`.
pub(super) fn sets(root: &Table<'_, '_>, directory: &Path, report: &mut Report) -> Vec<PlacedSet> {
    let mut sets: Vec<PlacedSet> = Vec::new();
    let Some((_, value)) = root.get(schema::SET_TABLE) else {
        return sets;
    };
    let Some(tables) = entries_of(schema::SET_TABLE, "[set.NAME]", value, report) else {
        return sets;
    };
    for (key, value) in in_file_order(tables) {
        if is_misplaced(schema::SET_TABLE, &schema::SET, (key, value), report) {
            continue;
        }
        let at = key.span().start;
        check_name("a set", key.get_ref(), at, report);
        if sets.len() == MAX_SETS {
            report.fault(at, format!("set {} is one too many; keep at most {MAX_SETS} sets", quoted(key.get_ref())));
            // What follows is not read: that may take long.
            break;
        }
        // The place in the list is kept even if the set is faulty: rules may name it.
        sets.push(PlacedSet { set: set((key, value), directory, report), at });
    }
    sets
}

fn set(entry: (&Key<'_>, &Value<'_>), directory: &Path, report: &mut Report) -> Set {
    let name = entry.0.get_ref();
    let mut set = Set { name: name.to_string(), prefixes: [].into(), file: None };
    let Some(table) = Table::open(&schema::SET, dotted(schema::SET_TABLE, name), entry, report) else {
        return set;
    };
    if table.lacks(schema::PREFIXES.name) && table.lacks(schema::FILE.name) {
        report.fault(
            table.at,
            format!("[{}] has no prefixes; add prefixes = [\"PREFIX\"], or file = \"FILE\"", table.path),
        );
    }
    let mut prefixes = listed(&table, report);
    if let Some(file) = table.read(&schema::FILE, report) {
        set.file = Some(directory.join(&file.value));
        from_file(directory, &file, &mut prefixes, report);
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    if prefixes.len() > MAX_PREFIXES {
        report
            .fault(table.at, format!("[{}] has {} prefixes; keep at most {MAX_PREFIXES}", table.path, prefixes.len()));
    }
    set.prefixes = prefixes.into();
    set
}

/// The prefixes that the config itself lists.
fn listed(table: &Table<'_, '_>, report: &mut Report) -> Vec<Ipv4Net> {
    let Some((key, value)) = table.get(schema::PREFIXES.name) else {
        return Vec::new();
    };
    if value.get_ref().as_array().is_some_and(|list| list.is_empty()) {
        let mend =
            if table.lacks(schema::FILE.name) { format!("remove [{}]", table.path) } else { "remove it".to_owned() };
        report.warning(value.span().start, format!("prefixes has no prefix in it; add one, or {mend}"));
        return Vec::new();
    }
    let Some(list) = list_of(schema::PREFIXES.name, schema::PREFIXES.wants, value, report) else {
        return Vec::new();
    };
    let placed = read_each(&schema::PREFIXES, key.span().start, list.iter(), report);
    placed.into_iter().map(|placed| placed.value).collect()
}

/// Adds the prefixes of a file.
fn from_file(directory: &Path, file: &Placed<PathBuf>, prefixes: &mut Vec<Ipv4Net>, report: &mut Report) {
    let path = directory.join(&file.value);
    let name = shown(&file.value);
    let bytes = match contents(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let whence = if file.value.is_relative() && !directory.as_os_str().is_empty() {
                format!("; the path begins at {}", shown(directory))
            } else {
                String::new()
            };
            report.fault(file.at, format!("cannot read {name}: {error}; put the file there, or remove file{whence}"));
            return;
        }
    };
    let mut wrong = 0_usize;
    let mut count = 0_usize;
    for (number, line) in lines(&bytes) {
        match line_prefix(line) {
            Ok(None) => {}
            Ok(Some(_)) if count == MAX_PREFIXES => {
                let what = format!("the file has more than {MAX_PREFIXES} prefixes; shorten it");
                report.fault(file.at, format!("{name}:{number}: {what}"));
                break;
            }
            Ok(Some(prefix)) => {
                prefixes.push(prefix);
                count += 1;
            }
            Err(what) => {
                wrong += 1;
                if wrong <= MAX_LINE_FAULTS {
                    report.fault(file.at, format!("{name}:{number}: {what}"));
                }
            }
        }
    }
    match wrong.saturating_sub(MAX_LINE_FAULTS) {
        0 => {}
        1 => report.fault(file.at, format!("{name}: 1 more line is wrong; correct it as well")),
        more => report.fault(file.at, format!("{name}: {more} more lines are wrong; correct them as well")),
    }
    if count == 0 && wrong == 0 {
        report.warning(file.at, format!("{name} has no prefix in it; add one a line, or remove file"));
    }
}

/// A path on one line.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

/// The bytes of a regular file. Anything else, such as a pipe, might never end.
fn contents(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The lines of a file with their numbers, from 1, without a byte order mark.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    (1..).zip(bytes.split(|byte| *byte == b'\n'))
}

/// The prefix of a line, if there is one, or what is wrong.
fn line_prefix(line: &[u8]) -> Result<Option<Ipv4Net>, String> {
    let end = line.iter().position(|byte| *byte == b'#').unwrap_or(line.len());
    let line = line.get(..end).unwrap_or_default().trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    // A prefix is ASCII, and so the rest may be whatever it is.
    let text = String::from_utf8_lossy(line);
    prefix_of(&text).map(Some).map_err(|mismatch| {
        let what = format!("{} is no IPv4 prefix or address", quoted(&text));
        match mismatch {
            Mismatch::Because(reason) => format!("{what}: {reason}"),
            Mismatch::Type | Mismatch::Value => format!("{what}; write one a line, such as 203.0.113.0/24"),
        }
    })
}

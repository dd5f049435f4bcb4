//! mh's TOML as it is written: items of comments and lines, strings that are quoted, and names that are valid and unique.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::note::{Note, Source, printable};
use crate::config::MAX_NAME;

/// Where comments are broken, in characters.
const COMMENT_WIDTH: usize = 118;

/// A part of the output: what is to be said about it, and its lines of TOML.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub(super) notes: Vec<Note>,
    /// Comments that say something which is no note.
    pub(super) remarks: Vec<String>,
    pub(super) lines: Vec<String>,
    /// The lines are there to be read only.
    pub(super) is_comment: bool,
}

impl Item {
    /// Something that is not in the output but for what is said about it.
    pub(super) fn left_out(notes: Vec<Note>) -> Self {
        Self { notes, ..Self::default() }
    }

    /// Adds `KEY = VALUE`.
    pub(super) fn key(&mut self, key: &str, value: impl std::fmt::Display) {
        self.lines.push(format!("{key} = {value}"));
    }
}

/// The output so far.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) text: String,
    /// What was said, in the order of the output.
    pub(super) notes: Vec<Note>,
}

impl Output {
    /// Adds an item, with a blank line in front.
    pub(super) fn add(&mut self, item: Item) {
        let Item { mut notes, remarks, lines, is_comment } = item;
        notes.sort_by_key(|note| (note.source == Source::Network, note.line));
        if notes.is_empty() && remarks.is_empty() && lines.is_empty() {
            return;
        }
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        for remark in &remarks {
            self.comment(remark);
        }
        for note in &notes {
            let file = if note.source == Source::Network { "network, " } else { "" };
            self.comment(&format!("{file}line {}: {}", note.line, note.text));
        }
        for line in &lines {
            if is_comment {
                // One line stays one, so that it can be uncommented.
                let line = format!("# {}", printable(line));
                self.text.push_str(line.trim_end());
            } else {
                self.text.push_str(line);
            }
            self.text.push('\n');
        }
        self.notes.extend(notes);
    }

    fn comment(&mut self, text: &str) {
        let mut width = 0;
        for word in printable(text).split(' ') {
            let length = word.chars().count();
            if width > 0 && width + 1 + length > COMMENT_WIDTH {
                self.text.push('\n');
                width = 0;
            }
            self.text.push_str(if width == 0 { "# " } else { " " });
            self.text.push_str(word);
            width += 1 + length;
        }
        self.text.push('\n');
    }
}

/// `text` as a basic string of TOML.
pub(super) fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // Writing to a string does not fail.
            c if c.is_control() => drop(write!(quoted, "\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A list of what is written already.
pub(super) fn list(elements: &[String]) -> String {
    format!("[{}]", elements.join(", "))
}

/// A list of strings.
pub(super) fn strings<'s>(texts: impl IntoIterator<Item = &'s str>) -> String {
    list(&texts.into_iter().map(string).collect::<Vec<_>>())
}

/// The names of one kind of thing.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Names that nothing else may have.
    pub(super) fn reserving(names: &[&str]) -> Self {
        Self { taken: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    /// A name like `wanted` that is valid, and that no other has.
    pub(super) fn unique(&mut self, wanted: &str) -> String {
        let valid = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
        let wanted: String = wanted.chars().map(valid).collect();
        let wanted = if wanted.is_empty() { "_".to_owned() } else { wanted };
        unique_within(&wanted, MAX_NAME, |name| self.taken.insert(name.to_owned()))
    }
}

/// `wanted`, cut to `most` bytes and with a number if need be, such that `is_free`. `wanted` is ASCII.
pub(super) fn unique_within(wanted: &str, most: usize, mut is_free: impl FnMut(&str) -> bool) -> String {
    let cut = |length: usize| wanted.get(..wanted.len().min(length)).unwrap_or_default().to_owned();
    let first = cut(most);
    if is_free(&first) {
        return first;
    }
    // There are fewer names than numbers.
    let mut number: u64 = 2;
    loop {
        let suffix = format!("_{number}");
        let name = cut(most.saturating_sub(suffix.len())) + &suffix;
        if is_free(&name) {
            return name;
        }
        number += 1;
    }
}

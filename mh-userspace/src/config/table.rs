//! A table of the document under the eyes of the schema: keys that do not belong are reported when it is opened, and values that
//! do not fit when they are read. Everything is reported where it stands, and nothing is reported twice.

use std::collections::HashSet;
use std::hash::Hash;

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::fault::Report;
use super::policy::MAX_NAME;
use super::schema::{Scalar, Section, Support};
use super::value::{Mismatch, describe, describe_value, quoted};

/// A key and the bytes where it stands.
pub(super) type Key<'i> = Spanned<DeString<'i>>;
/// A value and the bytes where it stands.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// Something that was read, and the byte where its key and its value begin.
pub(super) struct Placed<T> {
    pub(super) key_at: usize,
    pub(super) at: usize,
    pub(super) value: T,
}

/// A table of the document and the section of the schema that it is.
pub(super) struct Table<'t, 'i> {
    section: &'static Section,
    /// Its dotted path, empty for the document itself.
    pub(super) path: String,
    /// Where it is named.
    pub(super) at: usize,
    entries: &'t DeTable<'i>,
}

impl<'t, 'i> Table<'t, 'i> {
    /// Opens a table and reports its keys that are unknown or not supported.
    pub(super) fn new(
        section: &'static Section,
        path: String,
        at: usize,
        entries: &'t DeTable<'i>,
        report: &mut Report,
    ) -> Self {
        let table = Self { section, path, at, entries };
        for (key, _) in in_file_order(entries) {
            match section.entry(key.get_ref()).map(|entry| entry.support) {
                Some(Support::Now) => {}
                Some(Support::Later) => refuse(&table.path_of(key), key.span().start, report),
                None => report.fault(
                    key.span().start,
                    format!("unknown key {} {}; {}", quoted(key.get_ref()), table.place(), section.mend(key.get_ref())),
                ),
            }
        }
        table
    }

    /// The value of a key of this table as a table of its own, read as `section`.
    pub(super) fn open(
        section: &'static Section,
        path: String,
        (key, value): (&Key<'i>, &'t Value<'i>),
        report: &mut Report,
    ) -> Option<Self> {
        let entries = entries_of(&path, &format!("[{path}]"), value, report)?;
        Some(Self::new(section, path, key.span().start, entries, report))
    }

    /// An element of the list `name` at the top level as a table of its own, read as `section`.
    ///
    /// Its path is `[NAME]`, and so its header in messages `[[NAME]]`.
    pub(super) fn element(
        section: &'static Section,
        name: &str,
        value: &'t Value<'i>,
        report: &mut Report,
    ) -> Option<Self> {
        let entries = entries_of(&format!("an element of {name}"), &format!("[[{name}]]"), value, report)?;
        Some(Self::new(section, format!("[{name}]"), value.span().start, entries, report))
    }

    /// The section at `name` of this table.
    pub(super) fn child(&self, name: &str, section: &'static Section, report: &mut Report) -> Option<Table<'t, 'i>> {
        let (key, value) = self.get(name)?;
        Table::open(section, self.path_of(key), (key, value), report)
    }

    /// A key and its value, whatever they are.
    pub(super) fn get(&self, name: &str) -> Option<(&'t Key<'i>, &'t Value<'i>)> {
        self.entries.get_key_value(name)
    }

    /// Reads the value of a key; `None` if it is left out or wrong.
    pub(super) fn read<T>(&self, scalar: &Scalar<T>, report: &mut Report) -> Option<Placed<T>> {
        debug_assert!(self.section.entry(scalar.name).is_some(), "{} is not in the schema", scalar.name);
        let (key, value) = self.get(scalar.name)?;
        let value_read = read_as(scalar.name, scalar, value, report)?;
        Some(Placed { key_at: key.span().start, at: value.span().start, value: value_read })
    }

    /// Reads a key whose value is one or a list of several; empty if it is left out. What is wrong is left out; what is there twice is kept once,
    /// with a warning.
    pub(super) fn read_all<T: Clone + Eq + Hash>(&self, scalar: &Scalar<T>, report: &mut Report) -> Vec<Placed<T>> {
        debug_assert!(self.section.entry(scalar.name).is_some(), "{} is not in the schema", scalar.name);
        let Some((key, value)) = self.get(scalar.name) else {
            return Vec::new();
        };
        read_each(scalar, key.span().start, elements_or_value(value), report)
    }

    /// Is a required key left out? A misspelt one, which has been reported, counts as there.
    pub(super) fn lacks(&self, name: &str) -> bool {
        self.get(name).is_none()
            && !self.entries.keys().any(|key| {
                self.section.entry(key.get_ref()).is_none() && self.section.nearest(key.get_ref()).contains(&name)
            })
    }

    fn path_of(&self, key: &Key<'_>) -> String {
        dotted(&self.path, key.get_ref())
    }

    fn place(&self) -> String {
        if self.path.is_empty() { "at the top level".to_owned() } else { format!("in [{}]", self.path) }
    }
}

/// Can the key `name` be written without quotes?
pub(super) fn is_bare(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// The path of the key `name` of the table at `parent`, as it is written in a header.
pub(super) fn dotted(parent: &str, name: &str) -> String {
    let name = if is_bare(name) { name.to_owned() } else { quoted(name) };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

/// Reads `value` as `scalar` describes and reports it under `name` if it does not fit.
pub(super) fn read_as<T>(name: &str, scalar: &Scalar<T>, value: &Value<'_>, report: &mut Report) -> Option<T> {
    let mismatch = match (scalar.read)(value.get_ref()) {
        Ok(read) => return Some(read),
        Err(mismatch) => mismatch,
    };
    let wants = scalar.wants;
    let message = match mismatch {
        Mismatch::Type => format!("{name} must be {wants}, not {}", describe(value.get_ref())),
        Mismatch::Value => format!("{name} must be {wants}, not {}", describe_value(value.get_ref())),
        Mismatch::Because(reason) => {
            format!("{name} must be {wants}, not {}: {reason}", describe_value(value.get_ref()))
        }
    };
    report.fault(value.span().start, message);
    None
}

/// Reads the elements of the list at a key. What is wrong is left out; what is there twice is kept once, with a warning.
pub(super) fn read_each<'t, 'i: 't, T: Clone + Eq + Hash>(
    scalar: &Scalar<T>,
    key_at: usize,
    elements: impl IntoIterator<Item = &'t Value<'i>>,
    report: &mut Report,
) -> Vec<Placed<T>> {
    let mut all: Vec<Placed<T>> = Vec::new();
    let mut seen: HashSet<T> = HashSet::new();
    for element in elements {
        let at = element.span().start;
        let Some(value) = read_as(scalar.name, scalar, element, report) else {
            continue;
        };
        if !seen.insert(value.clone()) {
            let what = describe_value(element.get_ref());
            report.warning(at, format!("{what} is in {} twice; keep one of them", scalar.name));
        } else {
            all.push(Placed { key_at, at, value });
        }
    }
    all
}

/// Reports `name` at byte `at` if it can't be that of `what`, such as "a policy".
pub(super) fn check_name(what: &str, name: &str, at: usize, report: &mut Report) {
    if !is_name(name) {
        let wants = format!("use 1 to {MAX_NAME} of the characters a-z, A-Z, 0-9, _ and -");
        report.fault(at, format!("{} is no name for {what}; {wants}", quoted(name)));
    }
}

/// Can a thing be named `name`?
pub(super) fn is_name(name: &str) -> bool {
    is_bare(name) && name.len() <= MAX_NAME
}

/// Reports a key of `[TABLE.NAME]`, as `section` has them, that stands in `[TABLE]`. Other values that are no tables are not its business.
pub(super) fn is_misplaced(
    parent: &str,
    section: &Section,
    (key, value): (&Key<'_>, &Value<'_>),
    report: &mut Report,
) -> bool {
    let name = key.get_ref();
    let misplaced = value.get_ref().as_table().is_none() && section.entry(name).is_some();
    if misplaced {
        report.fault(
            key.span().start,
            format!("{name} stands in [{parent}] itself; it belongs in [{parent}.NAME], which names the {parent}"),
        );
    }
    misplaced
}

/// The keys and values of a table, or a report that it is none.
pub(super) fn entries_of<'t, 'i>(
    name: &str,
    wants: &str,
    value: &'t Value<'i>,
    report: &mut Report,
) -> Option<&'t DeTable<'i>> {
    let entries = value.get_ref().as_table();
    if entries.is_none() {
        report.fault(value.span().start, format!("{name} must be a table, {wants}, not {}", describe(value.get_ref())));
    }
    entries
}

/// The elements of a list, or a report that it is none.
pub(super) fn list_of<'t, 'i>(
    name: &str,
    wants: &str,
    value: &'t Value<'i>,
    report: &mut Report,
) -> Option<&'t DeArray<'i>> {
    let list = value.get_ref().as_array().filter(|list| !list.is_empty());
    if list.is_none() {
        report.fault(value.span().start, format!("{name} must be {wants}, not {}", describe(value.get_ref())));
    }
    list
}

/// The elements of the list of tables `name` at the top level, `[[name]]` each; none, with a report, if it is no list.
pub(super) fn tables_of<'t, 'i>(root: &Table<'t, 'i>, name: &str, report: &mut Report) -> &'t [Value<'i>] {
    let Some((_, value)) = root.get(name) else {
        return &[];
    };
    let Some(list) = value.get_ref().as_array() else {
        let what = describe(value.get_ref());
        report.fault(value.span().start, format!("{name} must be a list of tables, [[{name}]] each, not {what}"));
        return &[];
    };
    list
}

/// The elements of a list, or the value itself if it is another, or an empty list.
pub(super) fn elements_or_value<'t, 'i>(value: &'t Value<'i>) -> Vec<&'t Value<'i>> {
    match value.get_ref() {
        DeValue::Array(list) if !list.is_empty() => list.iter().collect(),
        _ => vec![value],
    }
}

/// Keys and values as they follow each other in the text.
pub(super) fn in_file_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Key<'i>, &'t Value<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Reports a part of the format that this version does not support.
pub(super) fn refuse(what: &str, at: usize, report: &mut Report) {
    report.fault(at, format!("{what} is not supported by this version of mh yet; remove it"));
}

//! What is wrong with a config, and where.
//!
//! While a file is read, findings are kept by byte offset in a [`Report`]; at the end they are put in file order and become
//! [`Fault`]s with a line and a column. Both count from 1, and columns count characters, not bytes, so that an editor's
//! "go to line:column" lands on the spot. A byte order mark at the start of the file is no character of its first line.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One finding: an error, or, in [`Loaded::warnings`](super::Loaded::warnings), a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and the mend, on one line.
    pub message: String,
}

impl fmt::Display for Fault {
    /// `LINE:COLUMN: message`; put the file's name and a colon in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

/// Every fault of a config, in file order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    /// One fault per line as `LINE:COLUMN: message`, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Why a config file was not loaded.
///
/// Displayed, it is one line per fault: `FILE:LINE:COLUMN: message`.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("{}: cannot read the config: {_1}", _0.display())]
    Io(PathBuf, std::io::Error),
    /// The file was read and is wrong.
    #[error("{}", lines(path, "", &faults.0))]
    Faults {
        /// The file, as it was named by the caller.
        path: PathBuf,
        /// What is wrong with it.
        faults: Faults,
    },
}

/// Warnings about `path`, one a line as `FILE:LINE:COLUMN: warning: message`, with a newline at the end of each.
///
/// Empty if there are none.
#[must_use]
pub fn warning_lines(path: &Path, warnings: &[Fault]) -> String {
    let mut text = lines(path, "warning: ", warnings);
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn lines(path: &Path, kind: &str, faults: &[Fault]) -> String {
    let lines: Vec<String> = faults
        .iter()
        .map(|fault| format!("{}:{}:{}: {kind}{}", path.display(), fault.line, fault.column, fault.message))
        .collect();
    lines.join("\n")
}

/// Findings by byte offset, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Report {
    faults: Vec<Finding>,
    warnings: Vec<Finding>,
}

/// A message about the text at byte `at`, which goes on with the line of byte `other`.
#[derive(Debug)]
struct Finding {
    at: usize,
    message: String,
    other: Option<usize>,
}

impl Report {
    /// The config cannot be used: `message` is about the text at byte `at`.
    pub(super) fn fault(&mut self, at: usize, message: impl Into<String>) {
        self.faults.push(Finding { at, message: message.into(), other: None });
    }

    /// As [`Report::fault`], where the text at byte `other` has a part in it: its line ends the message, as ` line LINE`.
    pub(super) fn fault_against(&mut self, at: usize, other: usize, message: impl Into<String>) {
        self.faults.push(Finding { at, message: message.into(), other: Some(other) });
    }

    /// The config can be used, but its writer should know.
    pub(super) fn warning(&mut self, at: usize, message: impl Into<String>) {
        self.warnings.push(Finding { at, message: message.into(), other: None });
    }

    /// As [`Report::warning`], where the text at byte `other` has a part in it, as of [`Report::fault_against`].
    pub(super) fn warning_against(&mut self, at: usize, other: usize, message: impl Into<String>) {
        self.warnings.push(Finding { at, message: message.into(), other: Some(other) });
    }

    /// Is there a fault?
    pub(super) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// The warnings in file order, or, if there is any fault, the faults.
    pub(super) fn finish(self, text: &str) -> Result<Vec<Fault>, Faults> {
        if self.faults.is_empty() { Ok(placed(text, self.warnings)) } else { Err(self.finish_faults(text)) }
    }

    /// The faults in file order, of which there must be one.
    pub(super) fn finish_faults(self, text: &str) -> Faults {
        Faults(placed(text, self.faults))
    }
}

/// Findings in file order with lines and columns, in one pass over the text for these and one for the other places named.
fn placed(text: &str, mut findings: Vec<Finding>) -> Vec<Fault> {
    let mut others: Vec<usize> = findings.iter().filter_map(|finding| finding.other).collect();
    others.sort_unstable();
    let mut cursor = Cursor::new(text.as_bytes());
    let lines: HashMap<usize, usize> = others.into_iter().map(|at| (at, cursor.advance_to(at).0)).collect();

    findings.sort_by_key(|finding| finding.at);
    let mut cursor = Cursor::new(text.as_bytes());
    findings
        .into_iter()
        .map(|Finding { at, mut message, other }| {
            let (line, column) = cursor.advance_to(at);
            if let Some(line) = other.and_then(|at| lines.get(&at)) {
                message += &format!(" line {line}");
            }
            Fault { line, column, message }
        })
        .collect()
}

/// Line and column, both from 1, of byte `at` of `text`, which need not be valid UTF-8 after that byte.
pub(super) fn position(text: &[u8], at: usize) -> (usize, usize) {
    Cursor::new(text).advance_to(at)
}

/// A place in a text that moves forward only.
struct Cursor<'t> {
    text: &'t [u8],
    at: usize,
    line: usize,
    column: usize,
}

impl<'t> Cursor<'t> {
    fn new(text: &'t [u8]) -> Self {
        const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
        Self { text, at: if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 }, line: 1, column: 1 }
    }

    /// Moves to byte `at`, or stays if that lies behind, and returns line and column there.
    fn advance_to(&mut self, at: usize) -> (usize, usize) {
        let at = at.min(self.text.len());
        for byte in self.text.get(self.at..at).unwrap_or_default() {
            if *byte == b'\n' {
                self.line += 1;
                self.column = 1;
            } else if byte & 0xc0 != 0x80 {
                // A character is counted at its first byte; continuation bytes are 0b10xx_xxxx.
                self.column += 1;
            }
        }
        self.at = self.at.max(at);
        (self.line, self.column)
    }
}

//! What the demonstration prints: headings, quoted commands, and the table of measured facts at the end.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;

use crate::lab::Mode;

/// Whether and how to colour; copied around.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terminal {
    colour: bool,
}

impl Terminal {
    /// Colours on a terminal only, and not if `NO_COLOR` is set.
    pub(super) fn new() -> Self {
        Self {
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A step's heading.
    pub(super) fn heading(self, text: &str) {
        println!("\n{}", self.paint("1", &format!("== {text}")));
    }

    /// A fact seen along the way.
    pub(super) fn note(self, text: &str) {
        println!("   {text}");
    }

    /// A command as one would type it, and what it printed.
    pub(super) fn command(self, command: &str, printed: &str) {
        println!("   {}", self.paint("36", &format!("$ {command}")));
        for line in printed.trim_end().lines() {
            println!("   {line}");
        }
    }
}

/// A measured fact and what it should be.
#[derive(Debug)]
struct Row {
    good: bool,
    name: String,
    measured: String,
    criterion: String,
}

/// The facts so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a fact. `outcome`: whether it is as it should be, and what was measured; an error is a fact that isn't.
    pub(super) fn add(&mut self, name: &str, criterion: &str, outcome: Result<(bool, String)>) {
        let (good, measured) = outcome.unwrap_or_else(|error| (false, format!("{error:#}")));
        self.rows.push(Row { good, name: name.to_owned(), measured, criterion: criterion.to_owned() });
    }

    /// Whether all was as it should be.
    pub(super) fn is_good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.good)
    }

    /// Prints the table and the verdict.
    pub(super) fn print(&self, terminal: Terminal, mode: Mode, elapsed: Duration) {
        let width = |column: fn(&Row) -> &str, most: usize| {
            self.rows.iter().map(|row| column(row).chars().count().min(most)).max().unwrap_or_default()
        };
        let (names, measured) = (width(|row| &row.name, 40), width(|row| &row.measured, 46));
        let criteria = width(|row| &row.criterion, 60);
        let line = "─".repeat(6 + names + 2 + measured + 2 + criteria);
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        println!(
            "\n{}",
            terminal.paint("1", &format!("mh demo: {} mode, Linux {}", mode.name(), kernel.unwrap_or_default()))
        );
        println!("{line}");
        let heading = format!("      {:names$}  {:measured$}  {}", "what", "measured", "should be");
        println!("{}", terminal.paint("2", &heading));
        for row in &self.rows {
            let verdict = if row.good { terminal.paint("32", "ok  ") } else { terminal.paint("1;31", "FAIL") };
            println!("{verdict}  {:names$}  {:measured$}  {}", row.name, row.measured, row.criterion);
        }
        println!("{line}");
        let bad = self.rows.iter().filter(|row| !row.good).count();
        let seconds = elapsed.as_secs_f64();
        if self.is_good() {
            let text = format!("all {} as they should be, in {seconds:.0} s", self.rows.len());
            println!("{}", terminal.paint("1;32", &text));
        } else {
            let text = format!("{bad} of {} NOT as they should be, in {seconds:.0} s", self.rows.len());
            println!("{}", terminal.paint("1;31", &text));
        }
    }
}

/// A duration in milliseconds for people.
pub(super) fn milliseconds(duration: Duration) -> String {
    let value = duration.as_secs_f64() * 1e3;
    if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

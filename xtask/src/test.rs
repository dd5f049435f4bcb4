//! `cargo xtask test`: builds everything, runs every test, and ends with the totals alone on a line.
//!
//! Invariants: tests see the programs that were just built (`MH_BIN_DIR`); one failing test keeps none of the others
//! from running; a test that ends early for want of something, which it says as `NAME: skipped: REASON`, counts as
//! skipped and not as passed.
//!
//! Failure behaviour: exit status 1 if a test failed, or a test program ended without saying how its tests went.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Read, Write},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    commands::{PROGRAMS_VARIABLE, build_workspace},
    project::{Profile, Project, is_root},
    run::{announce, run},
    setup::{self, Purpose},
};

/// The crate whose tests are laboratories.
pub const LABORATORIES: &str = "mh-tests";
/// What the modules with laboratories in other crates are called.
const LABORATORY_MODULES: &str = "laboratory::";

/// Runs the tests whose name contains `filter`; `unit`: without the laboratories.
pub fn test(project: &Project, unit: bool, filter: Option<&str>, arguments: &[OsString]) -> Result<()> {
    if unit {
        setup::ensure(project, &[Purpose::Build])?;
    } else {
        setup::ensure(project, &[Purpose::Build, Purpose::Laboratory])?;
    }
    build_workspace(project, Profile::Dev)?;

    let cargo_test = || {
        let mut cargo = project.cargo();
        cargo.args(["test", "--workspace"]);
        if unit {
            cargo.args(["--exclude", LABORATORIES]);
        }
        cargo
    };
    // First of all built with cargo's own progress in sight; running needs both streams for the totals.
    run(cargo_test().arg("--no-run"))?;
    if unit {
        println!("left out: the laboratories (crate {LABORATORIES}, modules {LABORATORY_MODULES}), as --unit says");
    } else if !is_root() {
        println!("not root: laboratories make network namespaces and load BPF programs, they are skipped");
    }
    let mut command = cargo_test();
    command
        .args(["--no-fail-fast"])
        .args(filter)
        .arg("--")
        .args(if unit { &["--skip", LABORATORY_MODULES][..] } else { &[] })
        .args(arguments)
        .env(PROGRAMS_VARIABLE, project.programs(Profile::Dev));
    announce(&command);
    let (totals, succeeded) = run_counting(&mut command)?;
    println!("\n{totals}");
    if totals.failed > 0 {
        bail!("{} of the tests failed", totals.failed);
    }
    if !succeeded {
        bail!("a test program ended without saying how its tests went: see above");
    }
    if totals.ran == 0 && filter.is_some() {
        bail!("no test's name contains {}", filter.unwrap_or_default());
    }
    Ok(())
}

/// Sums of what the test programs said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ended without complaint, those that skipped themselves included.
    ran: u64,
    /// Did not.
    pub failed: u64,
    ignored: u64,
    skipped_themselves: u64,
}

impl Totals {
    fn passed(&self) -> u64 {
        self.ran.saturating_sub(self.skipped_themselves)
    }

    fn skipped(&self) -> u64 {
        self.ignored + self.skipped_themselves
    }

    /// The sums of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            ran: self.ran + other.ran,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
            skipped_themselves: self.skipped_themselves + other.skipped_themselves,
        }
    }

    /// Takes a line of a test program into account.
    fn count(&mut self, line: &str) {
        if let Some(result) = line.split("test result: ").nth(1) {
            let number_of = |word: &str| {
                let field = result.split([';', '.']).map(str::trim).find_map(|field| field.strip_suffix(word));
                field.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            self.ran += number_of("passed");
            self.failed += number_of("failed");
            self.ignored += number_of("ignored");
        } else if line.contains(": skipped: ") {
            self.skipped_themselves += 1;
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed(), self.failed, self.skipped())
    }
}

/// Counts while output comes in pieces.
#[derive(Debug, Default)]
pub struct Counter {
    totals: Totals,
    line: Vec<u8>,
}

impl Counter {
    /// Takes the next piece.
    pub fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.totals.count(&String::from_utf8_lossy(&self.line));
                self.line.clear();
            } else {
                self.line.push(*byte);
            }
        }
    }

    /// What was counted, a last line without end included.
    pub fn finish(mut self) -> Totals {
        self.totals.count(&String::from_utf8_lossy(&self.line));
        self.totals
    }
}

/// Runs the command with its output passed on as it comes, and says what it counted, and whether it succeeded.
fn run_counting(command: &mut Command) -> Result<(Totals, bool)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("can't start cargo test")?;
    let output = child.stdout.take().context("cargo test has no stdout")?;
    let errors = child.stderr.take().context("cargo test has no stderr")?;
    let counted = thread::scope(|scope| {
        let of_errors = scope.spawn(|| pass_on(errors, io::stderr()));
        let of_output = pass_on(output, io::stdout());
        let of_errors = of_errors.join().unwrap_or_else(|_| Err(io::Error::other("the thread that reads stderr died")));
        Ok::<_, io::Error>(of_output?.plus(of_errors?))
    });
    let status = child.wait().context("waiting for cargo test")?;
    Ok((counted.context("passing on what cargo test prints")?, status.success()))
}

/// Copies bytes as they come, so that the name of a running test is seen while it runs, and counts whole lines.
fn pass_on(mut from: impl Read, mut to: impl Write) -> io::Result<Totals> {
    let mut counter = Counter::default();
    let mut buffer = [0; 8192];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        to.write_all(bytes)?;
        to.flush()?;
        counter.take(bytes);
    }
    Ok(counter.finish())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_summed_over_programs() {
        let text = "\nrunning 2 tests\ntest a ... ok\ntest b ... FAILED\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: ok. 30 passed; 0 failed; 2 ignored; 0 measured; 7 filtered out; finished in 1.20s";
        let mut copy = Vec::new();
        let totals = pass_on(text.as_bytes(), &mut copy).unwrap();
        assert_eq!(copy, text.as_bytes());
        assert_eq!(totals, Totals { ran: 31, failed: 1, ignored: 2, skipped_themselves: 0 });
    }

    #[test]
    fn tests_that_skip_themselves_have_not_passed() {
        let text = "lab_tcp: skipped: needs root\nok\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n";
        let totals = pass_on(text.as_bytes(), io::sink()).unwrap();
        assert_eq!((totals.passed(), totals.failed, totals.skipped()), (2, 0, 2));
    }

    #[test]
    fn lines_may_be_cut_anywhere_and_need_not_be_text() {
        struct OneByOne<'a>(&'a [u8]);
        impl Read for OneByOne<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let (Some((first, rest)), Some(slot)) = (self.0.split_first(), buffer.first_mut()) else {
                    return Ok(0);
                };
                *slot = *first;
                self.0 = rest;
                Ok(1)
            }
        }
        let totals = pass_on(OneByOne(b"\xff\xfe\ntest result: ok. 4 passed; 0 failed; 0 ignored\n"), io::sink());
        assert_eq!(totals.unwrap().ran, 4);
    }
}

//! How large mh's programs are: how many instructions the verifier walked through (its limit is a million; `verified_insns`, since Linux
//! 5.16), and how many bytes the program takes as BPF and as machine code.
//!
//! The figures depend on kernel and compiler, and on nothing else: kept in a file, a change is a change of the program. How to read them:
//! docs/benchmark.md.

use std::{fmt::Write as _, fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};
use mh_tests::rig::Rig;
use serde::{Deserialize, Serialize};

use crate::{
    names::table,
    report::{Row, Table, facts::Facts},
};

/// What is known of each program, in the table's order.
const COLUMNS: [&str; 3] = ["verified", "BPF bytes", "code bytes"];

/// What is kept: a line for each program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The kernel's release.
    kernel: String,
    programs: Vec<Program>,
}

/// A program; what the kernel does not tell is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Program {
    program: String,
    verified: Option<f64>,
    bpf_bytes: Option<f64>,
    machine_bytes: Option<f64>,
}

impl Program {
    const fn figures(&self) -> [Option<f64>; COLUMNS.len()] {
        [self.verified, self.bpf_bytes, self.machine_bytes]
    }
}

/// All programs of the rig.
///
/// # Errors
/// If the kernel does not tell about a program.
pub fn table(rig: &mut Rig) -> Result<Table> {
    let mut rows = Vec::new();
    for (name, program) in rig.ebpf().programs() {
        let info = program.info().with_context(|| format!("ask for facts about {name}"))?;
        let figures = [info.verified_instruction_count(), info.size_translated(), Some(info.size_jitted())];
        let samples = figures.map(|figure| figure.filter(|figure| *figure > 0).map(f64::from).into_iter().collect());
        rows.push(Row { name: name.to_owned(), samples: samples.into() });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Table {
        name: table::INSTRUCTIONS,
        title: "The size of mh's programs".to_owned(),
        unit: "instructions or bytes",
        more_is_better: false,
        columns: COLUMNS.map(str::to_owned).into(),
        rows,
        baseline: 0,
    })
}

impl Kept {
    fn new(table: &Table, kernel: &str) -> Self {
        let programs = table.rows.iter().enumerate().map(|(number, row)| {
            let [verified, bpf_bytes, machine_bytes] =
                [0, 1, 2].map(|column| table.samples(number, column).first().copied());
            Program { program: row.name.clone(), verified, bpf_bytes, machine_bytes }
        });
        Self { kernel: kernel.to_owned(), programs: programs.collect() }
    }

    /// As text, with whole numbers.
    fn text(&self) -> Result<String> {
        let shown = |figure: Option<f64>| figure.map_or("null".to_owned(), |figure| format!("{figure:.0}"));
        let lines = self.programs.iter().map(|program| {
            let [verified, bpf, machine] = program.figures().map(shown);
            let name = serde_json::to_string(&program.program)?;
            Ok(format!(
                "    {{\"program\": {name}, \"verified\": {verified}, \"bpf_bytes\": {bpf}, \"machine_bytes\": {machine}}}"
            ))
        });
        let lines = lines.collect::<Result<Vec<_>>>()?.join(",\n");
        let kernel = serde_json::to_string(&self.kernel)?;
        Ok(format!("{{\n  \"kernel\": {kernel},\n  \"programs\": [\n{lines}\n  ]\n}}\n"))
    }

    fn read(file: &Path) -> Result<Option<Self>> {
        match fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't read {}", file.display())),
            Ok(text) => {
                let kept = serde_json::from_str(&text);
                kept.map(Some).with_context(|| format!("{} holds no sizes of programs", file.display()))
            }
        }
    }

    /// A line for each program, with the change of each figure since `before`; and those that are gone.
    fn differences(&self, before: Option<&Self>) -> String {
        let width = self.programs.iter().map(|program| program.program.len()).max().unwrap_or(0);
        let mut text = format!("  {:<width$}", "");
        for column in COLUMNS {
            let _ = write!(text, "  {column:>18}");
        }
        text.push('\n');
        let old = |name: &str| before.and_then(|kept| kept.programs.iter().find(|program| program.program == name));
        for program in &self.programs {
            let _ = write!(text, "  {:<width$}", program.program);
            let old = old(&program.program).map(Program::figures);
            for (column, figure) in program.figures().into_iter().enumerate() {
                let cell = match (figure, old.and_then(|old| old[column])) {
                    (Some(now), Some(then)) if now != then => format!("{now:.0} ({:+.0})", now - then),
                    (Some(now), _) => format!("{now:.0}"),
                    (None, _) => "-".to_owned(),
                };
                let _ = write!(text, "  {cell:>18}");
            }
            if before.is_some() && old.is_none() {
                text.push_str("  new");
            }
            text.push('\n');
        }
        let is_gone = |program: &&Program| !self.programs.iter().any(|now| now.program == program.program);
        for program in before.iter().flat_map(|kept| &kept.programs).filter(is_gone) {
            let _ = writeln!(text, "  {:<width$}  gone", program.program);
        }
        text
    }
}

/// Prints the sizes, with what changed since those in the directory `before` were kept, and keeps them in the directory `now`, if there is
/// one.
///
/// # Errors
/// If a file can't be read or written.
pub fn report(table: &Table, facts: &Facts, before: &Path, now: Option<&Path>) -> Result<()> {
    let file = format!("{}.json", table.name);
    let kept = Kept::read(&before.join(&file))?;
    let new = Kept::new(table, &facts.kernel);
    println!("\n{}, and in brackets what changed since it was kept", table.title);
    if let Some(kept) = kept.as_ref().filter(|kept| kept.kernel != new.kernel) {
        println!("  kept under kernel {}, and this is {}: changes may be the verifier's", kept.kernel, new.kernel);
    }
    print!("{}", new.differences(kept.as_ref()));
    let Some(directory) = now else { return Ok(()) };
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    let file = directory.join(file);
    fs::write(&file, new.text()?).with_context(|| format!("can't write {}", file.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sizes(programs: &[(&str, [f64; 3])]) -> Kept {
        let programs = programs.iter().map(|(name, [verified, bpf, machine])| Program {
            program: (*name).to_owned(),
            verified: Some(*verified),
            bpf_bytes: Some(*bpf),
            machine_bytes: Some(*machine),
        });
        Kept { kernel: "6.18".to_owned(), programs: programs.collect() }
    }

    #[test]
    fn a_program_is_a_line() {
        let kept = sizes(&[("mh_tc", [1234.0, 800.0, 600.0]), ("mh_xdp", [1.0, 2.0, 3.0])]);
        let text = kept.text().unwrap();
        let line = r#"    {"program": "mh_tc", "verified": 1234, "bpf_bytes": 800, "machine_bytes": 600},"#;
        assert!(text.lines().any(|found| found == line), "{text}");
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
    }

    #[test]
    fn changes_are_shown() {
        let before = sizes(&[("gone", [1.0, 1.0, 1.0]), ("mh_tc", [1000.0, 800.0, 600.0])]);
        let now = sizes(&[("mh_tc", [1100.0, 800.0, 590.0]), ("mh_xdp", [7.0, 8.0, 9.0])]);
        let text = now.differences(Some(&before));
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[1..], ["mh_tc 1100 (+100) 800 590 (-10)", "mh_xdp 7 8 9 new", "gone gone"]);
        assert!(!now.differences(None).contains('('));
    }

    #[test]
    fn nothing_kept_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Kept::read(&directory.path().join("none.json")).unwrap(), None);
        fs::write(directory.path().join("other.json"), "[]").unwrap();
        assert!(Kept::read(&directory.path().join("other.json")).is_err());
    }
}

//! mh's own tests in a VM.
//!
//! Invariants: each test program gets a VM of its own, so that a kernel that dies takes one program's tests along and not
//! all; programs without a test that is meant are not booted for.
//!
//! Failure behaviour: what a program's VM came to is said at once, and counts at the end.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    Verdict,
    machine::{End, Job, Machine, Stream},
};
use crate::{
    commands::PROGRAMS_VARIABLE,
    project::{Profile, Project},
    run::{announce, run},
    test::{Counter, LABORATORIES, Totals},
};

/// A built test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    name: String,
    file: PathBuf,
}

/// Builds mh and the test programs, and picks those of `names` (none: all that run mh), and of those the ones with a
/// test that `filters` select.
///
/// # Errors
/// If something can't be built, or nothing is selected.
pub fn build(project: &Project, names: &[String], filters: &[OsString]) -> Result<Vec<Program>> {
    run(project.cargo().args(["build", "--package", "mh-userspace", "--bins"]))?;
    let mut cargo = project.cargo();
    cargo.args(["test", "--package", LABORATORIES, "--test", "*", "--no-run"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    announce(&cargo);
    let output = cargo.stderr(Stdio::inherit()).output().context("can't start cargo")?;
    ensure!(output.status.success(), "cargo test failed: {}", output.status);
    let all = programs(&String::from_utf8_lossy(&output.stdout));
    let picked = pick(&all, names)?;
    let mut selected = Vec::new();
    for program in picked {
        if has_tests(&program.file, filters)? {
            selected.push(program);
        }
    }
    ensure!(!selected.is_empty(), "no test's name contains {}", filters.join(OsStr::new(" ")).display());
    Ok(selected)
}

/// The test programs among what cargo says that it built, single packets before laboratories.
fn programs(messages: &str) -> Vec<Program> {
    let mut programs: Vec<Program> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some(Program { name, file: message["executable"].as_str()?.into() })
        })
        .collect();
    programs.sort_by_key(|program| (program.name.starts_with("lab_"), program.name.clone()));
    programs
}

fn pick(all: &[Program], names: &[String]) -> Result<Vec<Program>> {
    if names.is_empty() {
        let runs_mh = |program: &&Program| program.name.starts_with("test_run") || program.name.starts_with("lab_");
        return Ok(all.iter().filter(runs_mh).cloned().collect());
    }
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|program| program.name != **name)) {
        let known: Vec<&str> = all.iter().map(|program| program.name.as_str()).collect();
        bail!("no test program is called {unknown}: there are {}", known.join(", "));
    }
    Ok(all.iter().filter(|program| names.contains(&program.name)).cloned().collect())
}

/// Asks a test program on this machine, where that takes no time.
fn has_tests(program: &Path, filters: &[OsString]) -> Result<bool> {
    let mut command = Command::new(program);
    let output = command.args(filters).arg("--list").env_remove("LD_LIBRARY_PATH").output();
    let output = output.with_context(|| format!("can't start {}", program.display()))?;
    if !output.status.success() {
        bail!("the test programs refuse the filters: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": test")))
}

/// Runs test programs, each in a VM, and prints what came of them.
///
/// # Errors
/// If a VM can't be started.
pub fn test(project: &Project, machine: &Machine<'_>, programs: &[Program], filters: &[OsString]) -> Result<Verdict> {
    let mut totals = Totals::default();
    let mut verdict = Verdict::Passed;
    for program in programs {
        eprintln!("vm: {} on Linux {}", program.name, machine.kernel.release);
        let mut command = vec![program.file.clone().into(), "--test-threads".into(), "1".into()];
        command.extend_from_slice(filters);
        let directory = project.root.join("tests");
        let variables = vec![(PROGRAMS_VARIABLE, project.programs(Profile::Dev).into_os_string())];
        let begun = Instant::now();
        let (end, counted) = run_counting(machine, &Job { command, directory: &directory, variables })?;
        totals = totals.plus(counted);
        let came_to = Verdict::of_tests(&end, &counted);
        let remark = match &came_to {
            Verdict::Failed if counted.failed == 0 => ", but ended without saying how all tests went",
            Verdict::TimeLimit => ", and the time was up before the end",
            Verdict::Died => ", and the VM died before the end",
            Verdict::Interrupted(_) => ", and was interrupted",
            _ => "",
        };
        println!(
            "{} on {}: {counted} in {} s{remark}",
            program.name,
            machine.kernel.release,
            begun.elapsed().as_secs()
        );
        verdict = verdict.max(came_to);
        if matches!(verdict, Verdict::Interrupted(_)) {
            break;
        }
    }
    println!("\n{totals}");
    Ok(verdict)
}

/// Runs a job with its output passed on, and counts what test programs say.
fn run_counting(machine: &Machine<'_>, job: &Job<'_>) -> Result<(End, Totals)> {
    let [mut output, mut errors] = [Counter::default(), Counter::default()];
    let end = machine.run(job, |stream, bytes| {
        match stream {
            Stream::Output => output.take(bytes),
            Stream::Errors => errors.take(bytes),
        }
        pass_on(stream, bytes)
    })?;
    super::show_console(&end);
    Ok((end, output.finish().plus(errors.finish())))
}

/// Prints what came from a VM.
///
/// # Errors
/// If the stream is gone.
pub fn pass_on(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Output => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        Stream::Errors => io::stderr().write_all(bytes),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(programs: &[Program]) -> Vec<&str> {
        programs.iter().map(|program| program.name.as_str()).collect()
    }

    #[test]
    fn test_programs_are_told_from_the_rest() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"mh_tests"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"lab_self"},"executable":"/t/lab_self-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"mh-demo"},"executable":"/t/mh-demo"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"test_run"},"executable":"/t/test_run-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"corpus"},"executable":"/t/corpus-1"}
{"reason":"build-finished","success":true}"#;
        let all = programs(messages);
        assert_eq!(names(&all), ["corpus", "test_run", "lab_self"]);
        assert_eq!(all[1].file, Path::new("/t/test_run-1"));
        assert_eq!(names(&pick(&all, &[]).unwrap()), ["test_run", "lab_self"]);
        assert_eq!(names(&pick(&all, &["corpus".into()]).unwrap()), ["corpus"]);
        assert!(pick(&all, &["lab".into()]).unwrap_err().to_string().ends_with("corpus, test_run, lab_self"));
    }
}

//! `cargo xtask bench`: mh beside what people use, and beside the limits of the machine.
//!
//! Each part of [`parts`] measures its contenders in turn, round by round, and yields tables ([`report`]); they are printed, and kept in
//! `bench/results`. [`failover`] and [`policy`] have commands and results of their own.
//!
//! Failure behaviour: a part that fails is named with its cause; the others run nevertheless, and the exit status is 1.

mod bed;
mod effort;
mod failover;
mod far;
mod footprint;
mod forward;
mod goals;
mod growth;
mod http;
mod machine;
mod names;
mod new_flows;
mod parts;
mod policy;
mod profile;
mod program;
mod programs;
mod report;
mod router;
mod site;
mod tcp;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, builder::PossibleValuesParser};

use crate::{
    effort::Flags,
    parts::{PARTS, Part},
    program::instructions,
    report::{facts::Facts, json::Stored, picture, terminal},
};

/// The directory of results.
const RESULTS: &str = "bench/results";
/// Where what is no full run goes, below the directory of results.
const PARTIAL: &str = "partial";

/// Measures mh beside what people use, and beside the limits of the machine.
///
/// Contenders take turns, and figures are given as ratios: absolute ones depend on the machine and on what else it does.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", args_conflicts_with_subcommands = true, after_help = parts_help())]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,

    /// What to measure; everything if nothing is named.
    #[arg(value_name = "PART", value_parser = PossibleValuesParser::new(PARTS.iter().map(|part| part.name)), hide_possible_values = true)]
    parts: Vec<String>,

    #[command(flatten)]
    flags: Flags,

    /// The directory of results. What --quick, --only or --flows measured goes into its directory `partial`.
    #[arg(long, value_name = "DIR", default_value = RESULTS)]
    results: PathBuf,

    /// Keeps nothing; compares with the results that were kept, and fails if one got worse by more than the spread.
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
enum Task {
    /// Measures how long the failure of an uplink is felt, with mh and with the classic set-up of iptables and a ping script.
    Failover(failover::Arguments),
    /// Measures what rules cost that do not match, and sets.
    Policy(policy::Arguments),
    /// Draws where the time of a packet goes, as a flame graph.
    Profile(profile::Arguments),
    /// Draws the pictures anew, from the results that were kept.
    Redraw {
        /// The directory of results.
        #[arg(long, value_name = "DIR", default_value = RESULTS)]
        results: PathBuf,
    },
}

/// The parts, one a line.
fn parts_help() -> String {
    let lines = PARTS.iter().map(|part| format!("  {:<12} {}", part.name, part.about));
    format!("Parts:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.task {
        Some(Task::Failover(arguments)) => failover::measure(arguments),
        Some(Task::Policy(arguments)) => policy::measure(arguments),
        Some(Task::Profile(arguments)) => machine::end_on_signals().and_then(|()| profile::profile(arguments)),
        Some(Task::Redraw { results }) => redraw(results),
        None => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all parts that were asked for.
fn measure(arguments: &Arguments) -> Result<()> {
    machine::end_on_signals()?;
    let effort = arguments.flags.effort();
    let facts = Facts::gather(&effort);
    let named = |part: &&Part| arguments.parts.iter().any(|name| name == part.name);
    let chosen: Vec<&Part> = PARTS.iter().filter(|part| arguments.parts.is_empty() || named(part)).collect();
    let partial = arguments.results.join(PARTIAL);
    let directory: &Path = if effort.is_full() { &arguments.results } else { &partial };
    let (mut tables, mut failed, mut worse) = (Vec::new(), Vec::new(), 0);
    for part in &chosen {
        eprintln!("{}: {}, rounds: {}", part.name, part.about, effort.rounds);
        let begun = Instant::now();
        let measured = match (part.measure)(&effort) {
            Ok(measured) => measured,
            Err(error) => {
                eprintln!("{}: {error:#}", part.name);
                failed.push(part.name);
                continue;
            }
        };
        eprintln!("{}: took {:.0} s", part.name, begun.elapsed().as_secs_f64());
        for table in &measured {
            if table.name == names::table::INSTRUCTIONS {
                let kept_in = (!arguments.check).then_some(directory);
                instructions::report(table, &facts, &arguments.results, kept_in)?;
                continue;
            }
            print!("{}", terminal::text(table));
            if arguments.check {
                worse += report::compare::print(Stored::read(&arguments.results, table.name)?.as_ref(), table);
            } else {
                Stored::new(table, facts.clone()).write(directory)?;
                picture::write(table, &facts, directory)?;
            }
        }
        tables.extend(measured);
    }
    print!("{}", goals::text(&tables, chosen.len() == PARTS.len()));
    if !arguments.check {
        println!("\nkept in {}", directory.display());
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    if worse > 0 {
        bail!("worse than before: {worse} figures");
    }
    Ok(())
}

/// Draws all tables of a directory anew. Other files are left alone.
fn redraw(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
    }
    names.sort_unstable();
    for name in names {
        let Some(stored) = Stored::read(directory, &name)? else { continue };
        picture::write(&stored.table(), &stored.run, directory)?;
        println!("{name}.svg");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn parts_and_commands_are_told_apart() {
        let parsed = |words: &[&str]| Arguments::try_parse_from([&["bench"], words].concat());
        let named = parsed(&["program", "--quick"]).map(|arguments| (arguments.parts, arguments.task.is_none()));
        assert!(matches!(named, Ok((parts, true)) if parts == ["program"]));
        assert!(parsed(&["failover", "--rounds", "1"]).is_ok_and(|arguments| arguments.task.is_some()));
        assert!(parsed(&["--quick"]).is_ok_and(|arguments| arguments.parts.is_empty() && arguments.task.is_none()));
        assert!(parsed(&["nonsense"]).is_err());
        assert!(parsed(&["--rounds", "0"]).is_err());
    }
}

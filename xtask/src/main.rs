//! `cargo xtask`: the front door for people who work on mh.
//!
//! Purpose: one command each for what is done often, from a fresh clone with nothing prepared: every command sees to the
//! tools that it needs first (see [`setup`]).
//!
//! Invariants: every program that is run for more than asking its version is printed before ([`vm`] tells what it does in
//! words instead); what is installed is said before, with the reason.
//!
//! Failure behaviour: exit status 1 with the cause on stderr, 2 on wrong usage; a program that `demo` or `bench` turns
//! into has its own, and so has `vm`.

mod apt;
mod bpf_linker;
mod commands;
mod lint;
mod project;
mod run;
mod setup;
mod test;
mod tools;
mod vm;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{project::Project, setup::Purpose};

/// Builds, sets up, demonstrates, tests and lints mh.
///
/// Every command finds or installs what it needs first: on Debian and Ubuntu as root with apt-get; elsewhere it says
/// precisely what to install.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
#[command(after_help = "environment:
  MH_BPF_TOOLCHAIN  builds the BPF object: a rustup toolchain's name, or a directory
                    with bin/cargo and bin/rustc [default: rustup's nightly, else /usr]
  MH_BPF_LINKER     path of bpf-linker [default: target/tools/bin, PATH, ~/.cargo/bin]")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Finds or installs the BPF toolchain, bpf-linker and the test tools, and shows what was found.
    Setup,
    /// Builds the whole workspace, the BPF object included.
    Build {
        /// Builds with optimisations, into target/release.
        #[arg(long)]
        release: bool,
    },
    /// Makes a laboratory of network namespaces and shows mh at work in it (as root).
    Demo {
        /// Passed on to mh-demo.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Runs the tests; those in laboratories need root.
    Test {
        /// Leaves out the laboratories (crate mh-tests).
        #[arg(long)]
        unit: bool,
        /// Runs only tests whose name contains this.
        filter: Option<String>,
        /// Passed on to the test programs, after `--`.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Runs the tests of the laboratories under another kernel, in a VM.
    ///
    /// A Debian kernel of that version boots in QEMU with this machine's root, read-only with a file system in memory over
    /// it. Kernels, and QEMU where the machine has none, are downloaded with apt into a cache; they are not installed.
    /// Mostly the CPU is emulated, and code runs 15 to 25 times slower: it is for seeing that mh works, never how fast.
    Vm(vm::Options),
    /// Checks format, lints for host and BPF target, documentation, spelling and file lengths.
    Lint,
    /// Builds with optimisations and runs the benchmarks.
    Bench {
        /// Passed on to mh-bench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    let project = Project::locate()?;
    match task {
        Task::Setup => {
            let everything = [Purpose::Build, Purpose::Laboratory, Purpose::Lint];
            let survey = setup::ensure(&project, &everything)?;
            setup::show(&project, &survey);
        }
        Task::Build { release } => commands::build(&project, release)?,
        Task::Demo { arguments } => commands::demo(&project, &arguments)?,
        Task::Test { unit, filter, arguments } => test::test(&project, unit, filter.as_deref(), &arguments)?,
        Task::Vm(options) => return vm::vm(&project, &options),
        Task::Lint => lint::lint(&project)?,
        Task::Bench { arguments } => commands::bench(&project, &arguments)?,
    }
    Ok(ExitCode::SUCCESS)
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
    fn arguments_are_passed_on_untouched() {
        let parsed = Arguments::try_parse_from(["xtask", "demo", "--quick", "-x"]).map(|arguments| arguments.task);
        assert!(matches!(parsed, Ok(Task::Demo { arguments }) if arguments == ["--quick", "-x"]));
        let parsed = Arguments::try_parse_from(["xtask", "test", "--unit", "ports", "--", "--nocapture"]);
        assert!(matches!(
            parsed.map(|arguments| arguments.task),
            Ok(Task::Test { unit: true, filter: Some(filter), arguments })
                if filter == "ports" && arguments == ["--nocapture"]
        ));
    }
}

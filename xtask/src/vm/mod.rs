//! `cargo xtask vm`: mh's tests under other kernels.
//!
//! Purpose: the verifier and the hooks differ from kernel to kernel; one machine shall do to see mh work on all of them.
//! Debian's kernels boot in a small VM that sees this machine's root read-only, with a file system in memory over it.
//!
//! - [`archive`]: packages without installing them; [`kernels`]: which kernel is meant, and made ready; [`image`]: the
//!   kernel in its compressed image.
//! - [`tools`]: QEMU, busybox and kmod; [`initramfs`]: the first file system; [`machine`]: one run.
//! - [`suite`]: the test programs, each in a VM.
//!
//! Invariants: nothing is installed, and nothing outside of the cache directory is written, save for what building writes
//! and what `setup` installs for laboratories. One process at a time prepares kernels. What takes long is said before.
//!
//! Failure behaviour: see [`Verdict`] for exit statuses. A kernel or tool that can't be had is one sentence.

mod archive;
mod image;
mod initramfs;
mod kernels;
mod machine;
mod suite;
mod tools;

use std::{env, ffi::OsString, fmt, fs::File, io, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::sys::signal::Signal;

use self::{
    archive::Archive,
    kernels::Kernel,
    machine::{End, Job, Machine},
    tools::Tools,
};
use crate::{
    commands::PROGRAMS_VARIABLE,
    project::{Profile, Project},
    setup::{self, Purpose},
    test::Totals,
};

/// How it is called.
#[derive(Debug, Args)]
#[command(after_long_help = "examples:
  cargo xtask vm 6.1                      every test in VMs with the newest 6.1
  cargo xtask vm 5.10 --test test_run     the single packets' tests
  cargo xtask vm newest -- tcp            tests whose name contains tcp
  cargo xtask vm 6.12 --run -- ip link    any command

exit status:
  0 all passed, 1 a test failed, 2 wrong usage, 3 the kernel or a tool can't be had,
  124 time limit, 125 the VM died (its console is printed), 128+N ended by signal N;
  with --run the command's own

environment:
  MH_VM_CACHE  keeps kernels and tools, some 200 MB each [default: target/vm]")]
pub struct Options {
    /// A series (5.10, 6.1), `newest`, or a package's name (linux-image-6.1.0-56-amd64).
    #[arg(required_unless_present = "list")]
    kernel: Option<String>,
    /// Lists the kernels on offer.
    #[arg(long, conflicts_with_all = ["kernel", "run", "tests", "arguments"])]
    list: bool,
    /// Runs a command instead of tests, as root in this directory; what it writes is gone afterwards.
    #[arg(long, requires = "arguments", conflicts_with = "tests")]
    run: bool,
    /// Runs only this test program (may be given again) [default: all test_run* and lab_*].
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// The longest that a VM may run; there is one for each test program.
    #[arg(long, value_name = "SECONDS", default_value_t = 1500)]
    timeout: u64,
    /// Passed on to the test programs: parts of tests' names. With --run: the command.
    #[arg(last = true, value_name = "FILTER|COMMAND")]
    arguments: Vec<OsString>,
}

/// What has to be fetched can't be; says what and why.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// What it came to, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// All tests passed.
    Passed,
    /// A test failed, or a test program did not say.
    Failed,
    /// The time was up.
    TimeLimit,
    /// A VM ended by itself.
    Died,
    /// By a signal.
    Interrupted(Signal),
}

impl Verdict {
    fn of_tests(end: &End, totals: &Totals) -> Self {
        match end {
            End::Status(0) if totals.failed == 0 => Self::Passed,
            End::Status(_) => Self::Failed,
            End::TimeLimit { .. } => Self::TimeLimit,
            End::Died { .. } => Self::Died,
            End::Interrupted(signal) => Self::Interrupted(*signal),
        }
    }

    fn exit_status(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::TimeLimit => 124,
            Self::Died => 125,
            // As shells have it.
            Self::Interrupted(signal) => u8::try_from(signal as i32).map_or(1, |number| 128 + number),
        }
    }
}

/// Performs the command, and gives its exit status.
///
/// # Errors
/// If it can't be done at all, but for [`Unavailable`], which is told here and has a status of its own.
pub fn vm(project: &Project, options: &Options) -> Result<ExitCode> {
    match perform(project, options) {
        Err(error) if error.is::<Unavailable>() => {
            eprintln!("error: {error}");
            Ok(ExitCode::from(3))
        }
        status => status.map(ExitCode::from),
    }
}

fn perform(project: &Project, options: &Options) -> Result<u8> {
    ensure!(cfg!(target_arch = "x86_64"), "VMs are for x86_64 machines only");
    let cache = tools::cache_directory(&project.target_dir)?;
    let Some(wanted) = &options.kernel else {
        let _lock = lock(&cache)?;
        kernels::list(&mut Archive::open(&cache)?)?;
        return Ok(0);
    };
    // First, since it is the quickest to fail.
    let (kernel, tools) = prepare(&cache, wanted)?;
    let machine =
        Machine { cache: &cache, kernel: &kernel, tools: &tools, limit: Duration::from_secs(options.timeout) };
    if options.run {
        return run_command(project, &machine, &options.arguments);
    }
    setup::ensure(project, &[Purpose::Build, Purpose::Laboratory])?;
    let programs = suite::build(project, &options.tests, &options.arguments)?;
    Ok(suite::test(project, &machine, &programs, &options.arguments)?.exit_status())
}

fn prepare(cache: &Path, wanted: &str) -> Result<(Kernel, Tools)> {
    let _lock = lock(cache)?;
    let mut archive = Archive::open(cache)?;
    let tools = Tools::find(cache)?;
    let kernel = kernels::prepare(cache, &mut archive, &tools, wanted)?;
    Ok((kernel, tools))
}

/// Keeps other processes from the cache until it is dropped.
fn lock(cache: &Path) -> Result<File> {
    let file = File::create(cache.join("lock")).with_context(|| format!("can't write {}", cache.display()))?;
    if file.try_lock().is_err() {
        eprintln!("vm: waiting for another one that prepares a kernel");
        file.lock()?;
    }
    Ok(file)
}

fn run_command(project: &Project, machine: &Machine<'_>, command: &[OsString]) -> Result<u8> {
    let directory = env::current_dir().context("where this is started")?;
    let variables = vec![(PROGRAMS_VARIABLE, project.programs(Profile::Dev).into_os_string())];
    let end = machine.run(&Job { command: command.to_vec(), directory: &directory, variables }, suite::pass_on)?;
    show_console(&end);
    Ok(match end {
        End::Status(status) => status,
        end => Verdict::of_tests(&end, &Totals::default()).exit_status(),
    })
}

/// Says so if a VM ended without its command's status, with what its console showed.
fn show_console(end: &End) {
    let (cause, console) = match end {
        End::TimeLimit { console } => ("the time limit is up", console),
        End::Died { console } => ("the VM died", console),
        End::Status(_) | End::Interrupted(_) => return,
    };
    let console = if console.is_empty() { "(the console showed nothing)" } else { console };
    // Whether stderr is still there or not, there is nothing else to do.
    let _ = io::Write::write_all(
        &mut io::stderr(),
        format!("{console}\nerror: {cause}; the console is above\n").as_bytes(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(end: &End) -> u8 {
        Verdict::of_tests(end, &Totals::default()).exit_status()
    }

    #[test]
    fn each_end_has_its_exit_status() {
        assert_eq!(status(&End::Status(0)), 0);
        assert_eq!(status(&End::Status(101)), 1);
        assert_eq!(status(&End::TimeLimit { console: String::new() }), 124);
        assert_eq!(status(&End::Died { console: String::new() }), 125);
        assert_eq!(status(&End::Interrupted(Signal::SIGTERM)), 143);
    }

    #[test]
    fn the_worst_counts() {
        let worst = [Verdict::Failed, Verdict::Died, Verdict::Passed, Verdict::TimeLimit].into_iter().max();
        assert_eq!(worst, Some(Verdict::Died));
    }
}

//! mhctl, mh's command line.

use std::process::ExitCode;

use clap::Parser as _;
use mh_userspace::cli::{self, CliError, arguments::Arguments};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mhctl: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        // Faults of a file are lines of their own, each with its place.
        Err(error @ (CliError::Config(_) | CliError::Import(_))) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("mhctl: {error}");
            ExitCode::FAILURE
        }
    }
}

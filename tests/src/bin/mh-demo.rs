//! `mh-demo`: the demonstration as a program; see [`mh_tests::demo`].

use std::process::ExitCode;

fn main() -> ExitCode {
    mh_tests::demo::main()
}

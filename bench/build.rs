//! Builds the benchmark's BPF object and leaves it in `OUT_DIR/bench.o`, from where the program includes it.

use std::process::ExitCode;

use mh_build::{Package, script};

fn main() -> ExitCode {
    script::run(Package::BENCH, "bench.o")
}

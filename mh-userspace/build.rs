//! Builds the BPF object for the target `bpf*-unknown-none` and leaves it in `OUT_DIR/mh.o`, from where the library
//! includes it.
//!
//! Which toolchain and linker are taken, and how to name others, is `mh-build`'s business.

use std::process::ExitCode;

use mh_build::{Package, script};

fn main() -> ExitCode {
    script::run(Package::DATAPATH, "mh.o")
}

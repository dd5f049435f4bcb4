//! The commands that build, and those that then turn into a built program.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Error, Result, ensure};

use crate::{
    project::{Profile, Project, is_root},
    run::{announce, run},
    setup::{self, Purpose},
};

/// Tells programs of the laboratory where mhd and mhctl are.
pub const PROGRAMS_VARIABLE: &str = "MH_BIN_DIR";

/// `cargo xtask build`.
pub fn build(project: &Project, release: bool) -> Result<()> {
    setup::ensure(project, &[Purpose::Build])?;
    build_workspace(project, if release { Profile::Release } else { Profile::Dev })
}

/// Builds every crate.
pub fn build_workspace(project: &Project, profile: Profile) -> Result<()> {
    let mut cargo = project.cargo();
    cargo.args(["build", "--workspace"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    run(&mut cargo)
}

/// `cargo xtask demo`.
pub fn demo(project: &Project, arguments: &[OsString]) -> Result<()> {
    ensure!(
        is_root(),
        "the demo makes network namespaces and loads BPF programs: run it as root \
         (sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask demo)"
    );
    setup::ensure(project, &[Purpose::Build, Purpose::Laboratory])?;
    run(project
        .cargo()
        .args(["build", "--release", "--package", "mh-userspace", "--package", "mh-tests"])
        .args(["--bin", "mhd", "--bin", "mhctl", "--bin", "mh-demo"]))?;
    Err(become_program(project, "mh-demo", arguments))
}

/// `cargo xtask bench`, with mhd built with optimisations as well; in the workspace's root, where the results are.
pub fn bench(project: &Project, arguments: &[OsString]) -> Result<()> {
    setup::ensure(project, &[Purpose::Build, Purpose::Laboratory])?;
    run(project.cargo().args(["build", "--release", "--package", "mh-userspace", "--package", "mh-bench", "--bins"]))?;
    std::env::set_current_dir(&project.root).with_context(|| format!("can't enter {}", project.root.display()))?;
    Err(become_program(project, "mh-bench", arguments))
}

/// Replaces this process, so that signals and the exit status are the program's own. Returns only if that fails.
fn become_program(project: &Project, name: &str, arguments: &[OsString]) -> Error {
    let programs = project.programs(Profile::Release);
    let mut command = Command::new(programs.join(name));
    command.args(arguments).env(PROGRAMS_VARIABLE, &programs).env_remove("LD_LIBRARY_PATH");
    announce(&command);
    let error = command.exec();
    Error::from(error).context(format!("can't start {}", programs.join(name).display()))
}

//! Where things are, and cargo as the person who called would run it.

use std::{
    env,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The workspace that this program belongs to.
#[derive(Debug)]
pub struct Project {
    /// Its root directory.
    pub root: PathBuf,
    /// Its target directory.
    pub target_dir: PathBuf,
}

impl Project {
    /// Finds the workspace: cargo says where the package is, this program's own place tells the target directory.
    pub fn locate() -> Result<Self> {
        let package =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package.parent().context("the package xtask is in no directory")?.to_path_buf();
        ensure!(
            root.join("mh-ebpf/Cargo.toml").exists(),
            "{} is not mh's workspace: run `cargo xtask` inside of it",
            root.display()
        );
        // TARGET/PROFILE/xtask
        let executable = env::current_exe().context("can't find out where xtask itself is")?;
        let target_dir = executable.ancestors().nth(2).context("xtask is in no target directory")?.to_path_buf();
        Ok(Self { root, target_dir })
    }

    /// Cargo, with what the cargo that started this program exported for it alone taken away: build scripts would see
    /// the package xtask where they expect none, and be run again by the next cargo that is started by hand.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_for_xtask_alone)) {
            command.env_remove(name);
        }
        command.current_dir(&self.root);
        command
    }

    /// The directory of built programs.
    pub fn programs(&self, profile: Profile) -> PathBuf {
        self.target_dir.join(profile.directory())
    }
}

/// The cargo that started this program, else the first in `PATH`.
pub fn cargo_program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

fn is_for_xtask_alone(name: &str) -> bool {
    const NAMES: [&str; 5] = ["CARGO", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "LD_LIBRARY_PATH", "OUT_DIR"];
    NAMES.contains(&name) || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Cargo's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `dev`.
    Dev,
    /// `release`.
    Release,
}

impl Profile {
    /// Its directory below the target directory.
    fn directory(self) -> &'static Path {
        Path::new(match self {
            Self::Dev => "debug",
            Self::Release => "release",
        })
    }
}

/// Whether this process acts as root: its own entry in /proc belongs to the effective user.
pub fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|meta| meta.uid() == 0)
}

//! `cargo xtask lint`: everything that is checked without running mh.
//!
//! Invariant: all checks run, whatever came of those before.
//!
//! Failure behaviour: the last line names the checks that failed; exit status 1.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use mh_build::{InnerCargo, Package};

use crate::{
    project::Project,
    run::run,
    setup::{self, Purpose, Survey},
};

/// Above this a source file is pointed at: it mostly has two purposes.
const LONG_FILE_LINES: usize = 600;
/// Above this it is refused.
const TOO_LONG_FILE_LINES: usize = 700;

/// Words that stand: Rust's own, and keys misspelt on purpose, as mhd names the one that was most likely meant.
const SPELLED_RIGHT: &str = "crate,wieght,intreface,tiemout,whithin,keypair,fiel,dorp,iif";
/// What is not ours, or not prose. Hidden files are left out anyway.
const NOT_SPELLED: &str = "./target,./.git,*.lock,./LICENSE-APACHE,*.pcap,*.svg";

/// Runs every check.
pub fn lint(project: &Project) -> Result<()> {
    let survey = setup::ensure(project, &[Purpose::Build, Purpose::Lint])?;
    // The quick ones first.
    let checks: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("format", &|| run(project.cargo().args(["fmt", "--all", "--check"]))),
        ("file lengths", &|| check_lengths(&project.root)),
        ("spelling", &|| check_spelling(&project.root)),
        ("clippy", &|| run(project.cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
        ("BPF programs", &|| check_bpf(project, &survey)),
        ("documentation", &|| {
            run(project.cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
        }),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    println!("lint: {} checks passed", checks.len());
    Ok(())
}

/// Lints the programs as the kernel's target sees them: code behind `target_arch = "bpf"` is not compiled for the host.
fn check_bpf(project: &Project, survey: &Survey) -> Result<()> {
    Package::ALL.into_iter().try_for_each(|package| check_package(project, survey, package))
}

fn check_package(project: &Project, survey: &Survey, package: Package) -> Result<()> {
    let (toolchain, linker) = survey.bpf()?;
    let inner = InnerCargo {
        package,
        toolchain,
        // Named although clippy links nothing: with the same flags it finds the same dependencies built.
        linker: Some(linker),
        workspace: &project.root,
        target_dir: &project.target_dir,
        arch: std::env::consts::ARCH,
        big_endian: cfg!(target_endian = "big"),
    };
    if toolchain.has_clippy() {
        return run(&mut inner.clippy());
    }
    // Some toolchains come without clippy. Then the compiler's own warnings count for the BPF target, and clippy's are
    // those of the host's compilation of the same crate, which the check before this one has made.
    eprintln!("{} has no clippy: compiling the BPF programs with warnings denied instead", toolchain.origin);
    run(&mut inner.build(true))
}

fn check_spelling(root: &Path) -> Result<()> {
    run(Command::new("codespell")
        .args(["--quiet-level", "2", "--skip", NOT_SPELLED, "--ignore-words-list", SPELLED_RIGHT, "."])
        .current_dir(root))
}

fn check_lengths(root: &Path) -> Result<()> {
    let mut too_long = Vec::new();
    for file in rust_files(root).with_context(|| format!("can't list {}", root.display()))? {
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        let lines = text.lines().count();
        let name = file.strip_prefix(root).unwrap_or(&file).display();
        if lines > TOO_LONG_FILE_LINES {
            too_long.push(format!("{name} ({lines} lines)"));
        } else if lines > LONG_FILE_LINES {
            eprintln!("warning: {name} has {lines} lines, more than {LONG_FILE_LINES}: does it have one purpose?");
        }
    }
    if !too_long.is_empty() {
        bail!("more than {TOO_LONG_FILE_LINES} lines, to be split by purpose: {}", too_long.join(", "));
    }
    Ok(())
}

/// The workspace's own Rust sources: hidden directories and target directories are not.
fn rust_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Cargo marks the directories that it makes.
        if kind.is_dir() && !hidden && !path.join("CACHEDIR.TAG").exists() {
            files.extend(rust_files(&path)?);
        } else if kind.is_file() && path.extension() == Some(OsStr::new("rs")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_found_and_build_products_are_not() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let files = rust_files(&root).unwrap_or_default();
        assert!(files.iter().any(|file| file.ends_with("xtask/src/lint.rs")));
        assert!(!files.iter().any(|file| file.components().any(|part| part.as_os_str() == "target")));
    }
}

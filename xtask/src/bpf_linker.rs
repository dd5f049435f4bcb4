//! Builds `bpf-linker` into `target/tools`, where the build script looks first.
//!
//! The linker needs a shared LLVM that is at least as new as the compiler's. Every usual Rust toolchain has exactly that
//! one: rustup's brings it, a distribution's depends on it. So the linker is linked with the toolchain's own, through a
//! directory with the one name that its build looks for (`libLLVM.so`); LLVM's development packages, hundreds of
//! megabytes, are not needed.
//!
//! Failure behaviour: an LLVM that bpf-linker has no support for, or that is nowhere, is named with what to install.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use mh_build::{
    TOOLS_DIRECTORY, Toolchain,
    version::{Compiler, llvm_major_of_file},
};

use crate::{project::Project, run::run};

/// The version that is installed.
const VERSION: &str = "0.13.0";
/// LLVM's major versions that this version can be built with.
const SUPPORTED_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A shared library of LLVM.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Llvm {
    major: u32,
    file: PathBuf,
}

/// Builds it for the toolchain.
pub fn install(project: &Project, toolchain: &Toolchain) -> Result<()> {
    let llvm = choose_llvm(toolchain.compiler, find_llvm(toolchain))?;
    let tools = project.target_dir.join(TOOLS_DIRECTORY);
    println!(
        "building bpf-linker {VERSION} into {}: nothing here links the BPF object (with LLVM {}, {}; about a minute)",
        tools.display(),
        llvm.major,
        llvm.file.display()
    );
    let prefix = tools.join("llvm");
    link_llvm(&prefix.join("lib"), &llvm.file).context("can't make the directory that leads to LLVM")?;
    // What the caller sets for its own crates, such as `-D warnings`, is not for this one.
    let mut cargo = project.cargo();
    cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{}", llvm.major), "--root"])
        .arg(&tools)
        .env("LLVM_PREFIX", &prefix)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET");
    run(&mut cargo)
}

/// The toolchain's own LLVM, else the oldest of the newer ones: the linker must read what the compiler writes.
fn choose_llvm(compiler: Compiler, found: Vec<Llvm>) -> Result<Llvm> {
    let major = compiler.llvm_major;
    if major > *SUPPORTED_LLVM.end() {
        bail!(
            "bpf-linker {VERSION} can't be built with LLVM {major}, which rustc {} uses: put a bpf-linker for it into \
             PATH, or name an older toolchain in {}",
            compiler.release,
            mh_build::TOOLCHAIN_VARIABLE
        );
    }
    let usable = |llvm: &Llvm| llvm.major >= major && SUPPORTED_LLVM.contains(&llvm.major);
    // Of several with one number the first: directories come in the order of preference.
    found.into_iter().filter(usable).min_by_key(|llvm| llvm.major).with_context(|| {
        format!(
            "no shared library of LLVM {major} to build bpf-linker with: install it (Debian: libllvm{major}; Fedora: \
             llvm-libs; Arch: llvm-libs), or put a bpf-linker into PATH"
        )
    })
}

/// Every shared LLVM in the toolchain and in the system's library directories.
fn find_llvm(toolchain: &Toolchain) -> Vec<Llvm> {
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    let mut directories: Vec<PathBuf> = Vec::new();
    for root in [toolchain.sysroot.as_path(), Path::new("/usr")] {
        directories.extend(["lib", "lib64"].map(|lib| root.join(lib)));
        directories.push(root.join("lib").join(&multiarch));
    }
    for major in SUPPORTED_LLVM {
        directories.push(format!("/usr/lib/llvm-{major}/lib").into());
        directories.push(format!("/usr/lib64/llvm{major}/lib").into());
    }
    directories.iter().flat_map(|directory| llvm_in(directory)).collect()
}

fn llvm_in(directory: &Path) -> Vec<Llvm> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<Llvm> = names
        .filter_map(|name| Some(Llvm { major: llvm_major_of_file(name.to_str()?)?, file: directory.join(name) }))
        .filter(|llvm| llvm.file.is_file())
        .collect();
    found.sort_by(|one, other| one.file.cmp(&other.file));
    found
}

/// Makes `directory` hold LLVM under the name that linking asks for, and under the one that the built program will.
fn link_llvm(directory: &Path, llvm: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(directory)?,
    }
    symlink(llvm, directory.join("libLLVM.so"))?;
    // The library calls itself by its real file's name; rustup's is in no directory that the loader knows.
    let real = llvm.canonicalize()?;
    match real.file_name() {
        Some(name) if name != "libLLVM.so" => symlink(&real, directory.join(name)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mh_build::version::Release;

    fn compiler(llvm_major: u32) -> Compiler {
        Compiler { release: Release(1, 97, 0), unstable: true, llvm_major }
    }

    fn llvm(major: u32, file: &str) -> Llvm {
        Llvm { major, file: file.into() }
    }

    #[test]
    fn the_toolchains_own_llvm_or_a_newer_one() {
        let found = vec![llvm(14, "/a"), llvm(23, "/b"), llvm(22, "/c"), llvm(22, "/d")];
        assert_eq!(choose_llvm(compiler(22), found.clone()).unwrap(), llvm(22, "/c"));
        assert_eq!(choose_llvm(compiler(23), found.clone()).unwrap(), llvm(23, "/b"));
        assert_eq!(choose_llvm(compiler(20), found).unwrap(), llvm(22, "/c"), "22 reads what 20 wrote");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = choose_llvm(compiler(22), vec![llvm(14, "/a")]).unwrap_err().to_string();
        assert!(error.contains("libllvm22"), "{error}");
        let error = choose_llvm(compiler(24), vec![llvm(24, "/a")]).unwrap_err().to_string();
        assert!(error.contains("can't be built with LLVM 24"), "{error}");
    }
}

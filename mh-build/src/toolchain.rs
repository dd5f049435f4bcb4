//! Chooses the Rust toolchain that the BPF object is built with.
//!
//! The target has no prebuilt `core`, so the toolchain must bring the library's sources and must be one that takes
//! `-Z build-std`: rustup's nightly with `rust-src` (what most people have), or a distribution's own packages in `/usr`,
//! whose stable compiler is told to by `RUSTC_BOOTSTRAP=1`.
//!
//! Invariant: a toolchain is addressed by the paths of its programs, never by way of rustup's proxies, so that neither
//! the outer cargo's choice of toolchain nor the order of `PATH` decides which compiler runs.
//!
//! Failure behaviour: [`ToolchainError`] lists every toolchain that was looked at and why it does not do.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use crate::{
    TOOLCHAIN_VARIABLE, find_program, is_executable, output_of,
    version::{Compiler, Release},
};

/// Where a toolchain was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Named by [`TOOLCHAIN_VARIABLE`], with this value.
    Variable(String),
    /// rustup's toolchain `nightly`.
    Rustup,
    /// The distribution's packages in `/usr`.
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(value) => write!(f, "{TOOLCHAIN_VARIABLE}={value}"),
            Self::Rustup => f.write_str("rustup's nightly"),
            Self::System => f.write_str("/usr"),
        }
    }
}

/// A toolchain that can build the BPF object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Where it was found.
    pub origin: Origin,
    /// The directory that holds `bin/rustc` and the library's sources.
    pub sysroot: PathBuf,
    /// What its compiler says of itself.
    pub compiler: Compiler,
    /// The directory that holds `cargo`, `rustc` and, perhaps, `cargo-clippy`.
    pub bin: PathBuf,
}

impl Toolchain {
    /// Path of one of its programs, which need not exist unless it is `cargo` or `rustc`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Whether it has clippy.
    #[must_use]
    pub fn has_clippy(&self) -> bool {
        is_executable(&self.program("cargo-clippy")) && is_executable(&self.program("clippy-driver"))
    }
}

/// Why a toolchain does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is not there.
    #[error("not installed")]
    Absent,
    /// It has no cargo beside the compiler.
    #[error("has no cargo")]
    NoCargo,
    /// Its compiler's answer to `-vV` is not understood.
    #[error("its rustc does not say what it is")]
    Unreadable,
    /// It is older than the workspace's `rust-version`.
    #[error("rustc {0} is older than {minimum}", minimum = minimum_release_text())]
    TooOld(Release),
    /// It has no library sources.
    #[error("rustc {0} has no library sources (rust-src)")]
    NoSources(Release),
}

/// No toolchain does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolchainError {
    /// The one that was asked for does not.
    #[error("{0}: {1}; name a rustup toolchain with rust-src, or a directory with bin/cargo and bin/rustc")]
    Named(Origin, Unfit),
    /// None of those that were looked for does.
    #[error(
        "no rust toolchain here can build the BPF object ({}): run `cargo xtask setup`, or `rustup toolchain install \
         nightly --component rust-src`",
        list(.0)
    )]
    NoneFits(Vec<(Origin, Unfit)>),
}

fn list(tried: &[(Origin, Unfit)]) -> String {
    let each: Vec<String> = tried.iter().map(|(origin, unfit)| format!("{origin}: {unfit}")).collect();
    each.join("; ")
}

/// What was seen at one place.
pub type Candidate = (Origin, Result<Toolchain, Unfit>);

/// The workspace's `rust-version`.
#[must_use]
pub fn minimum_release() -> Release {
    Release::parse(minimum_release_text()).unwrap_or(Release(1, 95, 0))
}

const fn minimum_release_text() -> &'static str {
    env!("CARGO_PKG_RUST_VERSION")
}

/// Takes the first candidate that does; one that was named by hand is never passed over in silence.
///
/// # Errors
/// When none does.
pub fn choose(candidates: Vec<Candidate>) -> Result<Toolchain, ToolchainError> {
    let mut tried = Vec::new();
    for (origin, seen) in candidates {
        match (seen, origin) {
            (Ok(toolchain), _) => return Ok(toolchain),
            (Err(unfit), origin @ Origin::Variable(_)) => return Err(ToolchainError::Named(origin, unfit)),
            (Err(unfit), origin) => tried.push((origin, unfit)),
        }
    }
    Err(ToolchainError::NoneFits(tried))
}

/// Looks at what there is on this machine and chooses.
///
/// # Errors
/// When no toolchain does.
pub fn find() -> Result<Toolchain, ToolchainError> {
    let named = env::var(TOOLCHAIN_VARIABLE).ok().filter(|value| !value.is_empty());
    if let Some(value) = named {
        let seen = match value.contains('/') {
            true => inspect(Origin::Variable(value.clone()), &Path::new(&value).join("bin")),
            false => inspect_rustup(Origin::Variable(value.clone()), &value),
        };
        return choose(vec![(Origin::Variable(value), seen)]);
    }
    // The second look is not worth its time once the first one found something.
    let rustup = inspect_rustup(Origin::Rustup, "nightly");
    if rustup.is_ok() {
        return choose(vec![(Origin::Rustup, rustup)]);
    }
    let system = inspect(Origin::System, Path::new("/usr/bin"));
    choose(vec![(Origin::Rustup, rustup), (Origin::System, system)])
}

fn inspect_rustup(origin: Origin, name: &str) -> Result<Toolchain, Unfit> {
    let rustup = find_program("rustup").or_else(|| {
        let in_cargo_home = cargo_home()?.join("bin/rustup");
        is_executable(&in_cargo_home).then_some(in_cargo_home)
    });
    let rustc =
        output_of(&rustup.ok_or(Unfit::Absent)?, ["which", "--toolchain", name, "rustc"]).ok_or(Unfit::Absent)?;
    let bin = Path::new(rustc.trim()).parent().ok_or(Unfit::Absent)?;
    inspect(origin, bin)
}

fn inspect(origin: Origin, bin: &Path) -> Result<Toolchain, Unfit> {
    // The compiler finds its sysroot by its own real path; distributions link it from /usr/bin.
    let rustc = bin.join("rustc").canonicalize().map_err(|_| Unfit::Absent)?;
    let sysroot = rustc.parent().and_then(Path::parent).ok_or(Unfit::Absent)?.to_path_buf();
    if !is_executable(&bin.join("cargo")) {
        return Err(Unfit::NoCargo);
    }
    let compiler = output_of(&rustc, ["-vV"]).as_deref().and_then(Compiler::parse).ok_or(Unfit::Unreadable)?;
    if compiler.release < minimum_release() {
        return Err(Unfit::TooOld(compiler.release));
    }
    if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
        return Err(Unfit::NoSources(compiler.release));
    }
    Ok(Toolchain { origin, sysroot, compiler, bin: bin.to_path_buf() })
}

/// `CARGO_HOME`, or `~/.cargo`.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn toolchain(origin: Origin) -> Toolchain {
        let compiler = Compiler { release: Release(1, 97, 0), unstable: true, llvm_major: 22 };
        Toolchain { origin, sysroot: "/x".into(), compiler, bin: "/x/bin".into() }
    }

    #[test]
    fn the_first_that_does_is_taken() {
        let rustup = toolchain(Origin::Rustup);
        let system = toolchain(Origin::System);
        let both = vec![(Origin::Rustup, Ok(rustup.clone())), (Origin::System, Ok(system.clone()))];
        assert_eq!(choose(both), Ok(rustup));
        let without_sources =
            vec![(Origin::Rustup, Err(Unfit::NoSources(Release(1, 97, 0)))), (Origin::System, Ok(system.clone()))];
        assert_eq!(choose(without_sources), Ok(system));
    }

    #[test]
    fn a_named_one_is_not_passed_over() {
        let named = Origin::Variable("nightly-2026-01-01".into());
        let error = choose(vec![(named.clone(), Err(Unfit::Absent)), (Origin::System, Ok(toolchain(Origin::System)))])
            .unwrap_err();
        assert_eq!(error, ToolchainError::Named(named, Unfit::Absent));
        assert!(error.to_string().starts_with("MH_BPF_TOOLCHAIN=nightly-2026-01-01: not installed; "), "{error}");
    }

    #[test]
    fn the_error_is_one_sentence_that_names_them_all_and_the_mend() {
        let error = choose(vec![
            (Origin::Rustup, Err(Unfit::NoSources(Release(1, 97, 0)))),
            (Origin::System, Err(Unfit::TooOld(Release(1, 63, 0)))),
        ])
        .unwrap_err()
        .to_string();
        assert!(error.contains("rustup's nightly: rustc 1.97.0 has no library sources"), "{error}");
        assert!(error.contains("/usr: rustc 1.63.0 is older than 1."), "{error}");
        assert!(error.contains("cargo xtask setup"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn a_directory_without_a_compiler_is_absent() {
        assert_eq!(inspect(Origin::System, Path::new("/nonexistent/bin")), Err(Unfit::Absent));
    }
}

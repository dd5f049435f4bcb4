//! Finds the Rust toolchain and the linker that the BPF object is built with, and puts the inner cargo's command together.
//!
//! Several callers must come to the same choice: the build scripts of the crates that include an object (see [`script`]), and
//! `xtask`, which installs what the choice lacks and lints for the BPF target. So the choice is made here and nowhere else.
//!
//! Invariants: nothing here installs or downloads, and only [`script`] writes; choosing is a pure function of what was found
//! ([`toolchain::choose`], [`linker::choose`]), looking is kept apart from it.
//!
//! Failure behaviour: every error is one sentence that says what was looked at, why it did not do, and what helps.
//!
//! | environment variable | says |
//! | --- | --- |
//! | [`TOOLCHAIN_VARIABLE`] | the toolchain: a name that rustup knows, or a directory that has `bin/cargo` and `bin/rustc` |
//! | [`LINKER_VARIABLE`] | the path of `bpf-linker` |

pub mod inner;
pub mod linker;
pub mod package;
pub mod script;
pub mod toolchain;
pub mod version;

pub use inner::InnerCargo;
pub use linker::Linker;
pub use package::Package;
pub use toolchain::Toolchain;

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Environment variable that names the toolchain for the BPF object.
pub const TOOLCHAIN_VARIABLE: &str = "MH_BPF_TOOLCHAIN";
/// Environment variable that names the linker for the BPF object.
pub const LINKER_VARIABLE: &str = "MH_BPF_LINKER";

/// Directory, below the workspace's target directory, where `cargo xtask setup` installs tools (`bin/bpf-linker`).
pub const TOOLS_DIRECTORY: &str = "tools";
/// Directory, below the workspace's target directory, that the inner cargo builds in: a lock of its own.
pub const EBPF_DIRECTORY: &str = "ebpf";

/// The first executable file called `name` in the directories of `PATH`, and then in those where administrators' tools
/// live, which are not in the `PATH` of every user.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// Whether `path` is a file that somebody may execute.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The standard output of a program that ended with success; none if it did not start or failed.
///
/// Cargo's `LD_LIBRARY_PATH` is taken away: it would hand one toolchain's libraries to another's programs.
pub(crate) fn output_of<A: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = A>) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env_remove("LD_LIBRARY_PATH")
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

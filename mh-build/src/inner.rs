//! The inner cargo: the commands that compile and lint a crate of BPF programs (see [`Package`]) for the BPF target.
//!
//! Invariants: what the outer cargo exports for its own compiler never reaches the inner one (it would pick the wrong
//! compiler, flags or libraries, or wait for a lock that the outer one holds); both work in `target/ebpf`, so that
//! debug, release and clippy runs outside share one build of the object.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{EBPF_DIRECTORY, Linker, Package, Toolchain};

/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const FLAG_SEPARATOR: &str = "\x1f";

/// What the inner cargo needs to know.
#[derive(Clone, Debug)]
pub struct InnerCargo<'a> {
    /// What is compiled.
    pub package: Package,
    /// The toolchain that compiles.
    pub toolchain: &'a Toolchain,
    /// The linker; none for commands that don't link.
    pub linker: Option<&'a Linker>,
    /// The workspace's root.
    pub workspace: &'a Path,
    /// The workspace's target directory.
    pub target_dir: &'a Path,
    /// Architecture of the machine whose kernel runs the object, as in `CARGO_CFG_TARGET_ARCH`.
    pub arch: &'a str,
    /// Whether that machine is big endian.
    pub big_endian: bool,
}

impl InnerCargo<'_> {
    /// `cargo build` of the object, which [`InnerCargo::object`] then names. `warnings_are_errors` denies warnings.
    #[must_use]
    pub fn build(&self, warnings_are_errors: bool) -> Command {
        let mut command = Command::new(self.toolchain.program("cargo"));
        command.arg("build");
        self.configure(&mut command, warnings_are_errors);
        command
    }

    /// `cargo clippy` of the programs, with warnings denied; only for a toolchain that has it.
    #[must_use]
    pub fn clippy(&self) -> Command {
        // `cargo clippy` would take the first cargo-clippy in PATH, which is another toolchain's.
        let mut command = Command::new(self.toolchain.program("cargo-clippy"));
        command.arg("clippy");
        self.configure(&mut command, false);
        command.env("CARGO", self.toolchain.program("cargo")).args(["--", "-D", "warnings"]);
        command
    }

    /// Path of the object that [`InnerCargo::build`] leaves.
    #[must_use]
    pub fn object(&self) -> PathBuf {
        self.target_dir.join(EBPF_DIRECTORY).join(self.target()).join("release").join(self.package.binary)
    }

    fn target(&self) -> &'static str {
        if self.big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
    }

    fn configure(&self, command: &mut Command, warnings_are_errors: bool) {
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_the_outer_cargo)) {
            command.env_remove(name);
        }
        command
            .args(["--locked", "--release", "--package", self.package.name, "--bin", self.package.binary])
            .args(["-Z", "build-std=core", "--target", self.target(), "--color", "never"])
            .arg("--target-dir")
            .arg(self.target_dir.join(EBPF_DIRECTORY))
            .current_dir(self.workspace)
            // Named, since the first rustc in PATH is most likely another toolchain's.
            .env("RUSTC", self.toolchain.program("rustc"))
            // Set but empty: also switches off a wrapper from the user's cargo configuration.
            .env("RUSTC_WRAPPER", "")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(warnings_are_errors));
        if !self.toolchain.compiler.unstable {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
    }

    fn flags(&self, warnings_are_errors: bool) -> OsString {
        let arch = if self.arch.starts_with("riscv64") { "riscv64" } else { self.arch };
        // Which kernel's registers and context structures aya-ebpf describes.
        let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{arch}\""));
        // Debug information is what the linker makes BTF of.
        // What is zeroed or moved is so by stores and loads on the spot, and not by calls of functions that go byte by byte, with a stack.
        let in_place = "-Clink-arg=--disable-expand-memcpy-in-order";
        for flag in ["-Cdebuginfo=2", "-Clink-arg=--btf", in_place] {
            flags.push(FLAG_SEPARATOR);
            flags.push(flag);
        }
        if let Some(linker) = self.linker {
            flags.push(FLAG_SEPARATOR);
            flags.push("-Clinker=");
            flags.push(&linker.path);
        }
        if warnings_are_errors {
            flags.push(FLAG_SEPARATOR);
            flags.push("-Dwarnings");
        }
        flags
    }
}

/// Whether an environment variable is one by which the outer cargo, or the user for it, steers compilers.
///
/// `CARGO_MAKEFLAGS` stays: by it the two cargos share the outer one's job slots.
fn is_of_the_outer_cargo(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "CARGO",
        "CARGO_INCREMENTAL",
        "LD_LIBRARY_PATH",
        "RUSTC_BOOTSTRAP",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    // CARGO_CFG_*, CARGO_PKG_* and the like are what cargo tells a build script about its package.
    const PREFIXES: [&str; 10] = [
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_ENCODED_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_UNSTABLE_",
        "DEP_",
    ];
    const COMPILER: [&str; 3] = ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
    NAMES.contains(&name)
        || COMPILER.contains(&name)
        || name == "RUSTC_LINKER"
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// One line for each warning that the inner build printed: what, and where. Cargo's own summaries are left out.
#[must_use]
pub fn warnings(stderr: &str) -> Vec<String> {
    let mut lines = stderr.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some(what) = line.strip_prefix("warning: ") else {
            continue;
        };
        // "warning: `mh-ebpf` (bin "mh") generated 2 warnings" counts what was printed above it.
        if what.starts_with('`') && what.contains(" generated ") {
            continue;
        }
        let place = lines.peek().and_then(|next| next.trim_start().strip_prefix("--> "));
        found.push(match place {
            Some(place) => format!("{what} ({place})"),
            None => what.to_owned(),
        });
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        toolchain::Origin,
        version::{Compiler, Release},
    };

    #[test]
    fn commands_name_compiler_linker_and_directory() {
        let toolchain = Toolchain {
            origin: Origin::System,
            sysroot: "/usr".into(),
            compiler: Compiler { release: Release(1, 96, 0), unstable: false, llvm_major: 22 },
            bin: "/usr/bin".into(),
        };
        let linker = Linker { path: "/opt/a b/bpf-linker".into(), release: Release(0, 13, 0), llvm_major: None };
        let inner = InnerCargo {
            package: Package::DATAPATH,
            toolchain: &toolchain,
            linker: Some(&linker),
            workspace: Path::new("/w"),
            target_dir: Path::new("/w/target"),
            arch: "riscv64gc",
            big_endian: false,
        };
        let command = inner.build(true);
        assert_eq!(command.get_program(), "/usr/bin/cargo");
        let environment = |name: &str| {
            let found = command.get_envs().find(|(key, _)| *key == name);
            found.and_then(|(_, value)| value).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(environment("RUSTC").as_deref(), Some("/usr/bin/rustc"));
        assert_eq!(environment("RUSTC_BOOTSTRAP").as_deref(), Some("1"));
        let flags = environment("CARGO_ENCODED_RUSTFLAGS").unwrap();
        let flags: Vec<&str> = flags.split(FLAG_SEPARATOR).collect();
        assert_eq!(
            flags,
            [
                "--cfg=bpf_target_arch=\"riscv64\"",
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
                "-Clink-arg=--disable-expand-memcpy-in-order",
                "-Clinker=/opt/a b/bpf-linker",
                "-Dwarnings"
            ]
        );
        assert_eq!(inner.object(), Path::new("/w/target/ebpf/bpfel-unknown-none/release/mh"));
        assert_eq!(inner.clippy().get_program(), "/usr/bin/cargo-clippy");
    }

    #[test]
    fn the_outer_cargos_variables_are_kept_out() {
        for name in [
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER",
            "RUSTC_WORKSPACE_WRAPPER",
            "LD_LIBRARY_PATH",
            "CARGO_PROFILE_RELEASE_DEBUG",
        ] {
            assert!(is_of_the_outer_cargo(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "RUSTUP_HOME", "PATH", "HOME"] {
            assert!(!is_of_the_outer_cargo(name), "{name}");
        }
    }

    #[test]
    fn warnings_are_one_line_each() {
        let stderr = "   Compiling mh-ebpf v0.1.0\nwarning: unused variable: `x`\n  --> mh-ebpf/src/main.rs:3:9\n   |\n\
                      3 |     let x = 1;\n\nwarning: linker said so\n\n\
                      warning: `mh-ebpf` (bin \"mh\") generated 2 warnings\n    Finished\n";
        assert_eq!(warnings(stderr), ["unused variable: `x` (mh-ebpf/src/main.rs:3:9)", "linker said so"]);
        assert!(warnings("   Compiling core\n    Finished `release` profile\n").is_empty());
    }
}

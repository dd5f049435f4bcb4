//! Builds the BPF object: compiles `mh-ebpf` for the BPF target and leaves it as `mh.o` in `OUT_DIR`, where the library
//! includes it.
//!
//! Which toolchain and linker are taken, and how to name others, is `mh-build`'s business.
//!
//! Failure behaviour: a missing tool is one sentence that says what helps; a compile error is shown as the compiler
//! wrote it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use mh_build::{
    InnerCargo, LINKER_VARIABLE, TOOLCHAIN_VARIABLE, inner, linker,
    toolchain::{self, Origin},
    version::Release,
};

/// What the object is made from, relative to the workspace.
const SOURCES: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", "mh-ebpf/Cargo.toml", "mh-ebpf/src", "mh-common/Cargo.toml", "mh-common/src"];

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("cargo did not set {0} for the build script")]
    NotUnderCargo(&'static str),
    #[error(transparent)]
    Toolchain(#[from] toolchain::ToolchainError),
    #[error(transparent)]
    Linker(#[from] linker::LinkerError),
    #[error("{program}: {source}", program = program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("mh-ebpf does not build for the BPF target with rustc {release} of {origin}: see below, under stderr")]
    Compile { release: Release, origin: Origin },
    #[error("can't copy the BPF object {object}: {source}", object = object.display())]
    Copy { object: PathBuf, source: io::Error },
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), BuildError> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let workspace = manifest_dir.parent().unwrap_or(&manifest_dir);
    let target_dir = target_dir(&out_dir).unwrap_or_else(|| workspace.join("target"));

    let toolchain = toolchain::find()?;
    // Tools are looked for beside the workspace too: OUT_DIR may be in a build directory of its own.
    let linker = linker::find(&[target_dir.clone(), workspace.join("target")], toolchain.compiler.llvm_major)?;

    let inner = InnerCargo {
        toolchain: &toolchain,
        linker: Some(&linker),
        workspace,
        target_dir: &target_dir,
        arch: &variable("CARGO_CFG_TARGET_ARCH")?,
        big_endian: variable("CARGO_CFG_TARGET_ENDIAN")? == "big",
    };
    let mut command = inner.build(false);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| BuildError::Start { program: command.get_program().into(), source })?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprint!("{stderr}");
        return Err(BuildError::Compile { release: toolchain.compiler.release, origin: toolchain.origin });
    }
    for warning in inner::warnings(&stderr) {
        println!("cargo::warning={warning}");
    }
    let object = inner.object();
    fs::copy(&object, out_dir.join("mh.o")).map_err(|source| BuildError::Copy { object, source })?;

    // Only now: a script that failed runs again anyway, and cargo shows its output in full.
    let sources = SOURCES.map(|source| workspace.join(source));
    for path in sources.iter().chain([&toolchain.program("rustc"), &linker.path]) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-env-changed={TOOLCHAIN_VARIABLE}");
    println!("cargo::rerun-if-env-changed={LINKER_VARIABLE}");
    Ok(())
}

fn variable(name: &'static str) -> Result<String, BuildError> {
    env::var(name).map_err(|_| BuildError::NotUnderCargo(name))
}

/// The target directory: `TARGET/PROFILE/build/…/out`, with a different number of levels in different cargos.
fn target_dir(out_dir: &Path) -> Option<PathBuf> {
    let build =
        out_dir.ancestors().skip(1).find(|directory| directory.file_name().is_some_and(|name| name == "build"))?;
    Some(build.parent()?.parent()?.to_path_buf())
}

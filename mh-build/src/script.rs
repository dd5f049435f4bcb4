//! The whole of a build script: builds an object and puts it where the crate's library includes it.
//!
//! Failure behaviour: a missing tool is one sentence that says what helps; a compile error is shown as the compiler
//! wrote it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use crate::{
    InnerCargo, LINKER_VARIABLE, Package, TOOLCHAIN_VARIABLE, inner, linker,
    toolchain::{self, Origin},
    version::Release,
};

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
enum ScriptError {
    #[error("cargo did not set {0} for the build script")]
    NotUnderCargo(&'static str),
    #[error(transparent)]
    Toolchain(#[from] toolchain::ToolchainError),
    #[error(transparent)]
    Linker(#[from] linker::LinkerError),
    #[error("{program}: {source}", program = program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("{package} does not build for the BPF target with rustc {release} of {origin}: see below, under stderr")]
    Compile { package: &'static str, release: Release, origin: Origin },
    #[error("can't copy the BPF object {object}: {source}", object = object.display())]
    Copy { object: PathBuf, source: io::Error },
}

/// Builds a package's object and copies it to `OUT_DIR/FILE`: all that a build script does.
#[must_use]
pub fn run(package: Package, file: &str) -> ExitCode {
    match build(package, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build(package: Package, file: &str) -> Result<(), ScriptError> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    // Every crate that includes an object is a directory of the workspace's root.
    let workspace = manifest_dir.parent().unwrap_or(&manifest_dir);
    let target_dir = target_dir(&out_dir).unwrap_or_else(|| workspace.join("target"));

    let toolchain = toolchain::find()?;
    // Tools are looked for beside the workspace too: OUT_DIR may be in a build directory of its own.
    let linker = linker::find(&[target_dir.clone(), workspace.join("target")], toolchain.compiler.llvm_major)?;

    let inner = InnerCargo {
        package,
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
        .map_err(|source| ScriptError::Start { program: command.get_program().into(), source })?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprint!("{stderr}");
        return Err(ScriptError::Compile {
            package: package.name,
            release: toolchain.compiler.release,
            origin: toolchain.origin,
        });
    }
    for warning in inner::warnings(&stderr) {
        println!("cargo::warning={warning}");
    }
    let object = inner.object();
    fs::copy(&object, out_dir.join(file)).map_err(|source| ScriptError::Copy { object, source })?;

    // Only now: a script that failed runs again anyway, and cargo shows its output in full.
    let sources: Vec<_> = package.sources.iter().map(|source| workspace.join(source)).collect();
    for path in sources.iter().chain([&toolchain.program("rustc"), &linker.path]) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-env-changed={TOOLCHAIN_VARIABLE}");
    println!("cargo::rerun-if-env-changed={LINKER_VARIABLE}");
    Ok(())
}

fn variable(name: &'static str) -> Result<String, ScriptError> {
    env::var(name).map_err(|_| ScriptError::NotUnderCargo(name))
}

/// The target directory: `TARGET/PROFILE/build/…/out`, with a different number of levels in different cargos.
fn target_dir(out_dir: &Path) -> Option<PathBuf> {
    let build =
        out_dir.ancestors().skip(1).find(|directory| directory.file_name().is_some_and(|name| name == "build"))?;
    Some(build.parent()?.parent()?.to_path_buf())
}

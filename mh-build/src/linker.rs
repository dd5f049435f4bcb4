//! Chooses the `bpf-linker` that turns the compiler's bitcode into the BPF object.
//!
//! Invariant: the linker's LLVM is at least as new as the compiler's, else it cannot read the bitcode. A linker that
//! brings its LLVM inside (the project's own release binaries) does not say which; it is taken at its word.
//!
//! Failure behaviour: [`LinkerError`] lists every linker that was looked at and why it does not do.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{
    LINKER_VARIABLE, TOOLS_DIRECTORY, output_of,
    toolchain::cargo_home,
    version::{Release, llvm_major_of_file},
};

/// The oldest version that is known to do.
pub const MINIMUM_RELEASE: Release = Release(0, 13, 0);

/// A linker that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// Its path.
    pub path: PathBuf,
    /// Its version.
    pub release: Release,
    /// Major version of the shared LLVM that it uses; none if it brings its own.
    pub llvm_major: Option<u32>,
}

/// Why a linker does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is not there.
    #[error("not there")]
    Absent,
    /// It does not start, for instance since its LLVM was uninstalled, or does not say which version it is.
    #[error("does not run")]
    Broken,
    /// It is older than [`MINIMUM_RELEASE`].
    #[error("version {0} is older than {MINIMUM_RELEASE}")]
    TooOld(Release),
    /// It can't read what the compiler writes.
    #[error("its LLVM {linker} can't read the bitcode of rustc's LLVM {compiler}")]
    OldLlvm {
        /// Major version of the linker's LLVM.
        linker: u32,
        /// Major version of the compiler's LLVM.
        compiler: u32,
    },
}

/// No linker does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkerError {
    /// The one that was asked for does not.
    #[error("{LINKER_VARIABLE}={path}: {why}; name a bpf-linker of version {MINIMUM_RELEASE} or later", path = .0.display(), why = .1)]
    Named(PathBuf, Unfit),
    /// None of those that were looked for does.
    #[error("no bpf-linker here can link the BPF object ({}): run `cargo xtask setup`, which builds one", list(.0))]
    NoneFits(Vec<(PathBuf, Unfit)>),
}

fn list(tried: &[(PathBuf, Unfit)]) -> String {
    if tried.is_empty() {
        return "none in target/tools/bin, PATH and ~/.cargo/bin".to_owned();
    }
    let each: Vec<String> = tried.iter().map(|(path, unfit)| format!("{}: {unfit}", path.display())).collect();
    each.join("; ")
}

/// What was seen at one place: version, and LLVM's major version if it is a shared library; none if it does not run.
pub type Seen = Option<(Release, Option<u32>)>;

/// Whether a linker that was seen can link what a compiler with this LLVM writes.
///
/// # Errors
/// When it can't, and why.
pub fn judge(path: &Path, seen: Seen, compiler_llvm_major: u32) -> Result<Linker, Unfit> {
    let (release, llvm_major) = seen.ok_or(Unfit::Broken)?;
    if release < MINIMUM_RELEASE {
        return Err(Unfit::TooOld(release));
    }
    match llvm_major {
        Some(linker) if linker < compiler_llvm_major => Err(Unfit::OldLlvm { linker, compiler: compiler_llvm_major }),
        _ => Ok(Linker { path: path.to_path_buf(), release, llvm_major }),
    }
}

/// Takes the first of `paths` that does, looking at each with `look`.
///
/// # Errors
/// When none does.
pub fn choose(
    paths: impl IntoIterator<Item = PathBuf>,
    compiler_llvm_major: u32,
    look: impl Fn(&Path) -> Seen,
) -> Result<Linker, LinkerError> {
    let mut tried = Vec::new();
    for path in paths {
        match judge(&path, look(&path), compiler_llvm_major) {
            Ok(linker) => return Ok(linker),
            Err(unfit) => tried.push((path, unfit)),
        }
    }
    Err(LinkerError::NoneFits(tried))
}

/// Looks at what there is on this machine and chooses: [`LINKER_VARIABLE`], else `tools/bin` in the `target_dirs`, `PATH`,
/// and cargo's own directory.
///
/// # Errors
/// When no linker does.
pub fn find(target_dirs: &[PathBuf], compiler_llvm_major: u32) -> Result<Linker, LinkerError> {
    if let Some(path) = env::var_os(LINKER_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from) {
        if !path.exists() {
            return Err(LinkerError::Named(path, Unfit::Absent));
        }
        return judge(&path, look(&path), compiler_llvm_major).map_err(|unfit| LinkerError::Named(path, unfit));
    }
    let path_variable = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = target_dirs.iter().map(|target| target.join(TOOLS_DIRECTORY).join("bin")).collect();
    places.extend(env::split_paths(&path_variable));
    places.extend(cargo_home().map(|home| home.join("bin")));
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in places.into_iter().map(|place| place.join("bpf-linker")) {
        if path.exists() && !paths.contains(&path) {
            paths.push(path);
        }
    }
    choose(paths, compiler_llvm_major, look)
}

fn look(path: &Path) -> Seen {
    let version = output_of(path, ["--version"])?;
    let release = version.strip_prefix("bpf-linker ").and_then(Release::parse)?;
    let libraries = output_of(Path::new("ldd"), [path]).unwrap_or_default();
    Some((release, llvm_major_of_libraries(&libraries)))
}

/// The major version of LLVM among the shared libraries that `ldd` prints.
fn llvm_major_of_libraries(ldd: &str) -> Option<u32> {
    ldd.lines().filter_map(|line| line.split_whitespace().next()).find_map(llvm_major_of_file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_can_read_the_bitcode_is_taken() {
        let look = |path: &Path| match path.to_str() {
            Some("/broken") => None,
            Some("/old") => Some((Release(0, 9, 14), Some(22))),
            Some("/llvm21") => Some((Release(0, 13, 0), Some(21))),
            Some("/static") => Some((Release(0, 14, 0), None)),
            _ => Some((Release(0, 13, 0), Some(23))),
        };
        let paths = ["/broken", "/old", "/llvm21", "/llvm23", "/static"].map(PathBuf::from);
        assert_eq!(choose(paths.clone(), 22, look).unwrap().path, Path::new("/llvm23"));
        assert_eq!(choose(paths.clone(), 21, look).unwrap().path, Path::new("/llvm21"));
        assert_eq!(choose(paths, 24, look).unwrap().path, Path::new("/static"));
    }

    #[test]
    fn the_error_is_one_sentence_that_names_them_all_and_the_mend() {
        let error = choose([], 22, |_| None).unwrap_err().to_string();
        assert!(error.contains("none in target/tools/bin") && error.contains("cargo xtask setup"), "{error}");
        let error = choose(["/x".into()], 22, |_| Some((Release(0, 13, 0), Some(21)))).unwrap_err().to_string();
        assert!(error.contains("/x: its LLVM 21 can't read the bitcode of rustc's LLVM 22"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn llvm_is_read_from_the_loader() {
        let shared = "\tlinux-vdso.so.1 (0x1)\n\tlibLLVM.so.22.1 => /lib/libLLVM.so.22.1 (0x2)\n\tlibc.so.6 => /lib/libc.so.6 (0x3)\n";
        assert_eq!(llvm_major_of_libraries(shared), Some(22));
        assert_eq!(llvm_major_of_libraries("\tstatically linked\n"), None);
    }
}

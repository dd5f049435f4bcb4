//! Versions as the tools print them.
//!
//! Purpose: read `rustc -vV`, `NAME --version` and the file names of LLVM's library. Parsers return none for what they
//! don't recognise; they never guess.

use std::fmt;

/// A released version, `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32, pub u32);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Release {
    /// Reads `1.97`, `1.97.0`, `1.97.0-nightly` and `1.96.0+dfsg1-1~deb12u2`; a missing patch level is 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = digits.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch = parts.next().and_then(|patch| patch.parse().ok()).unwrap_or(0);
        Some(Self(major, minor, patch))
    }
}

/// What a compiler says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// Its version.
    pub release: Release,
    /// Whether it takes unstable options without being talked into it.
    pub unstable: bool,
    /// Major version of the LLVM that writes its bitcode.
    pub llvm_major: u32,
}

impl Compiler {
    /// Reads the output of `rustc -vV`.
    #[must_use]
    pub fn parse(verbose: &str) -> Option<Self> {
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:")?;
        Some(Self {
            release: Release::parse(release)?,
            unstable: release.contains("-nightly") || release.contains("-dev"),
            llvm_major: field("LLVM version:")?.split('.').next()?.parse().ok()?,
        })
    }
}

/// The major version in a file name of LLVM's shared library: `libLLVM.so.22.1`, `libLLVM-15.so.1`,
/// `libLLVM.so.22.1-rust-1.97.0-nightly`. None for other files, such as the linker scripts that stand for it.
#[must_use]
pub fn llvm_major_of_file(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("libLLVM")?;
    let digits = rest.strip_prefix(".so.").or_else(|| rest.strip_prefix('-'))?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (number, tail) = digits.split_at(end);
    (rest.starts_with(".so.") || tail.starts_with(".so")).then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(Release::parse("1.95"), Some(Release(1, 95, 0)));
        assert_eq!(Release::parse("1.97.0-nightly"), Some(Release(1, 97, 0)));
        assert_eq!(Release::parse("1.96.0+dfsg1-1~deb12u2"), Some(Release(1, 96, 0)));
        assert_eq!(Release::parse("(none)"), None);
        assert_eq!(Release::parse(""), None);
        assert!(Release(1, 100, 0) > Release(1, 95, 9));
    }

    #[test]
    fn compilers() {
        let nightly = "rustc 1.97.0-nightly (abc 2026-05-19)\nbinary: rustc\ncommit-hash: abc\nhost: x86_64-unknown-linux-gnu\n\
                       release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(
            Compiler::parse(nightly),
            Some(Compiler { release: Release(1, 97, 0), unstable: true, llvm_major: 22 })
        );
        let debian = "rustc 1.96.0 (abc) (built from a source tarball)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert!(!Compiler::parse(debian).unwrap().unstable);
        assert_eq!(Compiler::parse("error: toolchain 'nightly' is not installed"), None);
        assert_eq!(Compiler::parse("release: 1.96.0\n"), None, "cranelift only: no LLVM, no bitcode");
    }

    #[test]
    fn llvm_files() {
        assert_eq!(llvm_major_of_file("libLLVM.so.22.1"), Some(22));
        assert_eq!(llvm_major_of_file("libLLVM-15.so.1"), Some(15));
        assert_eq!(llvm_major_of_file("libLLVM-22.so"), Some(22));
        assert_eq!(llvm_major_of_file("libLLVM.so.22.1-rust-1.97.0-nightly"), Some(22));
        assert_eq!(llvm_major_of_file("libLLVM-22-rust-1.97.0-nightly.so"), None, "a linker script");
        assert_eq!(llvm_major_of_file("libLLVM-14.0.6.so.1"), None, "an alias of libLLVM-14.so.1");
        assert_eq!(llvm_major_of_file("libLLVMCore.a"), None);
        assert_eq!(llvm_major_of_file("libc.so.6"), None);
    }
}

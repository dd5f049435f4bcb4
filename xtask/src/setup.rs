//! Finds, and where it may installs, what building, laboratories and lints need.
//!
//! Purpose: a fresh clone needs no preparation by hand. [`ensure`] is called by every command with what it is about to do.
//!
//! Invariants:
//! - Idempotent: what is found is left alone; nothing is installed that was not missing, and it is said before, with why.
//! - Installs only by apt-get as root (see [`crate::apt`]), and bpf-linker, which goes below the target directory.
//! - The kernel's state is left alone. In particular bpffs is only looked for: a router's administrator mounts it (or
//!   systemd did), laboratories mount their own.
//!
//! Failure behaviour: everything that is still missing is named at once, with what installs it; exit status 1.

use std::{fs, io::IsTerminal as _, path::Path, thread};

use anyhow::{Error, Result, bail};
use mh_build::{
    Linker, Toolchain, linker,
    linker::LinkerError,
    toolchain,
    toolchain::{Origin, ToolchainError},
};

use crate::{
    apt::Apt,
    bpf_linker,
    project::{Project, cargo_program, is_root},
    tools::{TOOLS, Tool, version_of},
};

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Building the workspace, the BPF object included.
    Build,
    /// Laboratories: tests, demonstration, benchmarks.
    Laboratory,
    /// `cargo xtask lint`.
    Lint,
}

/// Debian's packages of a Rust toolchain, the newest family first.
const RUST_PACKAGES: [[&str; 3]; 2] = [["rustc-web", "cargo-web", "rust-web-src"], ["rustc", "cargo", "rust-src"]];
/// Debian's packages of clippy, of the same families.
const CLIPPY_PACKAGES: [&str; 2] = ["rust-web-clippy", "rust-clippy"];
/// The subcommands of cargo that lints use, rustup's components, and Debian's packages for who has cargo from there.
const LINT_COMPONENTS: [(&str, &str, [&str; 2]); 2] =
    [("fmt", "rustfmt", ["rustfmt-web", "rustfmt"]), ("clippy", "clippy", CLIPPY_PACKAGES)];

/// What was found.
#[derive(Debug)]
pub struct Survey {
    toolchain: Result<Toolchain, ToolchainError>,
    /// None if it was not looked for, since what it must do depends on the toolchain.
    linker: Option<Result<Linker, LinkerError>>,
    missing_tools: Vec<&'static Tool>,
    /// Subcommands of the outer cargo, as in [`LINT_COMPONENTS`].
    missing_components: Vec<&'static str>,
    /// Clippy for the BPF target would be nice to have and is not there.
    lacks_bpf_clippy: bool,
}

impl Survey {
    fn take(project: &Project, purposes: &[Purpose]) -> Self {
        let lints = purposes.contains(&Purpose::Lint);
        let toolchain = toolchain::find();
        let target_dirs = [project.target_dir.clone(), project.root.join("target")];
        let linker = toolchain.as_ref().ok().map(|toolchain| linker::find(&target_dirs, toolchain.compiler.llvm_major));
        let missing_tools =
            TOOLS.iter().filter(|tool| purposes.contains(&tool.purpose) && tool.find().is_none()).collect();
        let components = LINT_COMPONENTS.iter().map(|(subcommand, ..)| *subcommand);
        let missing_components =
            components.filter(|subcommand| lints && !has_subcommand(project, subcommand)).collect();
        let lacks_bpf_clippy = lints && toolchain.as_ref().is_ok_and(|toolchain| !toolchain.has_clippy());
        Self { toolchain, linker, missing_tools, missing_components, lacks_bpf_clippy }
    }

    fn is_complete(&self) -> bool {
        matches!(self.linker, Some(Ok(_))) && self.missing_tools.is_empty() && self.missing_components.is_empty()
    }

    /// Toolchain and linker.
    pub fn bpf(&self) -> Result<(&Toolchain, &Linker)> {
        let toolchain = self.toolchain.as_ref().map_err(|error| Error::from(error.clone()))?;
        match &self.linker {
            Some(Ok(linker)) => Ok((toolchain, linker)),
            Some(Err(error)) => Err(Error::from(error.clone())),
            None => bail!("bpf-linker was not looked for"),
        }
    }
}

fn has_subcommand(project: &Project, subcommand: &str) -> bool {
    project.cargo().args([subcommand, "--version"]).output().is_ok_and(|output| output.status.success())
}

/// Sees to it that everything is there that these purposes need.
pub fn ensure(project: &Project, purposes: &[Purpose]) -> Result<Survey> {
    let mut survey = Survey::take(project, purposes);
    if Apt::is_here() && is_root() {
        let plan = Plan::make(&survey)?;
        if !plan.packages.is_empty() {
            println!("to be installed with apt-get:");
            for (packages, why) in &plan.reasons {
                println!("  {packages:<36} {why}");
            }
            plan.apt()?;
            survey = Survey::take(project, purposes);
        }
    }
    let mut linker_error = None;
    if let (Ok(toolchain), Some(Err(LinkerError::NoneFits(_)))) = (&survey.toolchain, &survey.linker) {
        match bpf_linker::install(project, toolchain) {
            Ok(()) => survey = Survey::take(project, purposes),
            Err(error) => linker_error = Some(error),
        }
    }
    if !survey.is_complete() {
        bail!(report(&survey, linker_error.as_ref()));
    }
    Ok(survey)
}

/// What apt-get shall install.
struct Plan {
    apt: Apt,
    packages: Vec<&'static str>,
    /// For people: packages, and what for.
    reasons: Vec<(String, String)>,
}

impl Plan {
    fn make(survey: &Survey) -> Result<Self> {
        let mut plan = Self { apt: Apt::new(), packages: Vec::new(), reasons: Vec::new() };
        if let Err(ToolchainError::NoneFits(tried)) = &survey.toolchain {
            for packages in &RUST_PACKAGES {
                if plan.apt.available_since(&packages[..1], toolchain::minimum_release())?.is_some() {
                    let seen: Vec<String> = tried.iter().map(|(origin, unfit)| format!("{origin}: {unfit}")).collect();
                    plan.add(packages, format!("build the BPF object ({})", seen.join("; ")));
                    break;
                }
            }
        }
        for tool in &survey.missing_tools {
            if let Some(package) = plan.apt.available(tool.apt)? {
                plan.add(&[package], format!("{}: {}", tool.program, tool.why));
            }
        }
        let cargo_is_debians = cargo_program().starts_with("/usr/bin");
        for (subcommand, _, packages) in &LINT_COMPONENTS {
            if cargo_is_debians
                && survey.missing_components.contains(subcommand)
                && let Some(package) = plan.apt.available_since(packages, toolchain::minimum_release())?
            {
                plan.add(&[package], format!("cargo {subcommand}"));
            }
        }
        // Not worth fetching package lists for: without it the lint is weaker, not impossible.
        if let (true, Ok(Toolchain { origin: Origin::System, compiler, .. })) =
            (survey.lacks_bpf_clippy, &survey.toolchain)
            && let Some(package) = Apt::known_since(&CLIPPY_PACKAGES, compiler.release)
        {
            plan.add(&[package], "clippy of the BPF programs for the BPF target".to_owned());
        }
        Ok(plan)
    }

    fn add(&mut self, packages: &[&'static str], why: String) {
        let new: Vec<&'static str> =
            packages.iter().copied().filter(|package| !self.packages.contains(package)).collect();
        self.reasons.push((packages.join(" "), why));
        self.packages.extend(new);
    }

    fn apt(mut self) -> Result<()> {
        self.apt.install(&self.packages)
    }
}

/// Everything that is missing, and what installs it.
fn report(survey: &Survey, linker_error: Option<&Error>) -> String {
    let mut lines = vec!["not everything that is needed is here:".to_owned()];
    match (&survey.toolchain, &survey.linker) {
        (Err(error), _) => {
            lines.push(format!("- {error}"));
            lines.push("- bpf-linker: looked for, and built if need be, once there is a toolchain".to_owned());
        }
        (Ok(_), Some(Err(error))) => match linker_error {
            Some(cause) => lines.push(format!("- bpf-linker: {cause:#}")),
            None => lines.push(format!("- {error}")),
        },
        _ => {}
    }
    for tool in &survey.missing_tools {
        lines.push(format!("- {}, which {}", tool.program, tool.why));
    }
    let components: Vec<&str> = LINT_COMPONENTS
        .iter()
        .filter(|(subcommand, ..)| survey.missing_components.contains(subcommand))
        .map(|(_, component, _)| *component)
        .collect();
    if !components.is_empty() {
        lines.push(format!("- cargo {}", survey.missing_components.join(" and cargo ")));
        lines.push(format!("get them with: rustup component add {}", components.join(" ")));
    }
    if !survey.missing_tools.is_empty() {
        lines.push(match PackageManager::of_this_machine() {
            Some(manager) => format!("get the programs with: {}", manager.command(&survey.missing_tools)),
            None => "get the programs with this machine's package manager".to_owned(),
        });
    }
    lines.join("\n")
}

/// Whose package names to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PackageManager {
    Apt,
    Dnf,
    Pacman,
}

impl PackageManager {
    fn of_this_machine() -> Option<Self> {
        let has = |program| mh_build::find_program(program).is_some();
        [("apt-get", Self::Apt), ("dnf", Self::Dnf), ("pacman", Self::Pacman)]
            .into_iter()
            .find_map(|(program, manager)| has(program).then_some(manager))
    }

    fn command(self, tools: &[&Tool]) -> String {
        let (command, package): (&str, fn(&Tool) -> &'static str) = match self {
            Self::Apt => {
                ("sudo apt-get install --no-install-recommends", |tool| tool.apt.first().unwrap_or(&tool.program))
            }
            Self::Dnf => ("sudo dnf install", |tool| tool.dnf),
            Self::Pacman => ("sudo pacman -S --needed", |tool| tool.pacman),
        };
        let mut words = vec![command];
        for tool in tools {
            let package = package(tool);
            if !words.contains(&package) {
                words.push(package);
            }
        }
        words.join(" ")
    }
}

/// Prints what was found.
pub fn show(project: &Project, survey: &Survey) {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let cargo = cargo_program();
    let own = version_of(&cargo, &["--version"]).unwrap_or_default();
    rows.push(["cargo".into(), own, cargo.display().to_string()]);
    if let Ok((toolchain, linker)) = survey.bpf() {
        let compiler = toolchain.compiler;
        let place =
            format!("{} ({}, LLVM {})", toolchain.program("rustc").display(), toolchain.origin, compiler.llvm_major);
        rows.push(["rustc for BPF".into(), compiler.release.to_string(), place]);
        let llvm = linker.llvm_major.map_or_else(|| "its own LLVM".to_owned(), |major| format!("LLVM {major}"));
        let place = format!("{} ({llvm})", linker.path.display());
        rows.push(["bpf-linker".into(), linker.release.to_string(), place]);
        let clippy = if toolchain.has_clippy() {
            toolchain.program("cargo-clippy").display().to_string()
        } else {
            "none".into()
        };
        rows.push(["clippy for BPF".into(), String::new(), clippy]);
    }
    rows.extend(tool_rows());
    rows.push(kernel_row());
    rows.push(["bpffs".into(), String::new(), bpffs().into()]);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (name_width, version_width) = (width(0), width(1));
    let (bold, plain) = match std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => ("\x1b[1m", "\x1b[0m"),
        false => ("", ""),
    };
    for [name, version, place] in &rows {
        println!("{bold}{name:name_width$}{plain}  {version:version_width$}  {place}");
    }
    println!("setup: all there for {}", project.root.display());
}

fn tool_rows() -> Vec<[String; 3]> {
    // Some take a tenth of a second to say who they are.
    thread::scope(|scope| {
        let ask = |tool: &'static Tool| {
            move || {
                let place = tool.find()?;
                let version = version_of(&place, tool.version).unwrap_or_default();
                Some([tool.program.to_owned(), version, place.display().to_string()])
            }
        };
        let asked: Vec<_> = TOOLS.iter().map(|tool| scope.spawn(ask(tool))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    })
}

fn kernel_row() -> [String; 3] {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let btf = match Path::new("/sys/kernel/btf/vmlinux").exists() {
        true => "describes its types (BTF)",
        false => "does not describe its types (no /sys/kernel/btf/vmlinux)",
    };
    ["kernel".into(), release.trim().to_owned(), btf.into()]
}

fn bpffs() -> &'static str {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    match mounts.lines().any(|mount| mount.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        true => "/sys/fs/bpf",
        false => "not mounted: mhd needs it (mount -t bpf bpf /sys/fs/bpf), tests and demo mount their own",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str]) -> Vec<&'static Tool> {
        TOOLS.iter().filter(|tool| names.contains(&tool.program)).collect()
    }

    #[test]
    fn each_package_is_named_once() {
        let command = PackageManager::Apt.command(&tools(&["ip", "tc", "nginx"]));
        assert_eq!(command, "sudo apt-get install --no-install-recommends iproute2 nginx-light");
        assert_eq!(PackageManager::Dnf.command(&tools(&["ip", "tc"])), "sudo dnf install iproute iproute-tc");
    }

    #[test]
    fn everything_missing_is_reported_at_once() {
        let survey = Survey {
            toolchain: Err(ToolchainError::NoneFits(vec![(Origin::Rustup, toolchain::Unfit::Absent)])),
            linker: None,
            missing_tools: tools(&["conntrack", "tcpdump"]),
            missing_components: vec!["clippy"],
            lacks_bpf_clippy: false,
        };
        let report = report(&survey, None);
        for part in ["rustup's nightly: not installed", "bpf-linker", "- conntrack, which", "- tcpdump", "add clippy"] {
            assert!(report.contains(part), "{part} in {report}");
        }
    }
}

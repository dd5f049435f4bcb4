//! Debian's archive by a private apt state.
//!
//! Invariants: the machine's own lists, sources and packages stay as they are; packages come from the mirror that the
//! machine's apt is set up with, checked with Debian's key. Lists are fetched once a day.
//!
//! Failure behaviour: a suite that is gone does not take the others along; what can't be had is [`Unavailable`].

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use mh_build::find_program;

use super::Unavailable;

/// How long package lists are good for.
const LISTS_LAST: Duration = Duration::from_secs(24 * 3600);
/// Signs Debian's suites, also those that a machine's own apt has not been told of.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's suites that carry kernels, besides one another's: 5.10; 6.1 and 6.12; the newest ones.
const SUITES: [(Section, &str); 3] = [
    (Section::Security, "bullseye-security"),
    (Section::Security, "bookworm-security"),
    (Section::Main, "trixie-backports"),
];

/// A part of a mirror, with an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Main,
    Security,
}

/// The archive as seen from a cache directory.
#[derive(Debug)]
pub struct Archive {
    directory: PathBuf,
    lists_are_fresh: bool,
}

impl Archive {
    /// The archive, with its state below `cache`.
    ///
    /// # Errors
    /// If apt is not here, or the directories can't be made.
    pub fn open(cache: &Path) -> Result<Self> {
        let missing: Vec<&str> = ["apt-get", "apt-cache", "dpkg-deb"]
            .into_iter()
            .filter(|program| find_program(program).is_none())
            .collect();
        if !missing.is_empty() {
            bail!("{} not found: kernels are Debian's packages, which takes a machine with apt", missing.join(", "));
        }
        let directory = cache.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part)).with_context(|| format!("can't write {}", directory.display()))?;
        }
        Ok(Self { directory, lists_are_fresh: false })
    }

    /// The names of all packages about Linux on offer.
    ///
    /// # Errors
    /// [`Unavailable`] if no list can be fetched.
    pub fn package_names(&mut self) -> Result<Vec<String>> {
        let stamp = self.directory.join("fetched");
        let age = stamp.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_none_or(|age| age > LISTS_LAST) {
            self.update()?;
        }
        let output = self.apt("apt-cache").args(["pkgnames", "linux-"]).output().context("can't start apt-cache")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Fetches the lists. False if that was done before by this process.
    ///
    /// # Errors
    /// As [`Self::package_names`].
    pub fn update(&mut self) -> Result<bool> {
        if self.lists_are_fresh {
            return Ok(false);
        }
        eprintln!("vm: fetching the package lists of Debian's kernels");
        let targets = ["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Origin: Debian"];
        let output = Command::new("apt-get").args(targets).output().context("can't start apt-get")?;
        let sources = sources(&String::from_utf8_lossy(&output.stdout), Path::new(KEYRING).exists())?;
        fs::write(self.directory.join("sources.list"), sources)?;
        let output = self.apt("apt-get").args(["-qq", "update"]).output().context("can't start apt-get")?;
        if !output.status.success() {
            eprintln!("vm: not every list could be fetched: {}", first_error(&output.stderr));
        }
        let lists = fs::read_dir(self.directory.join("lists"))?;
        if !lists.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages")) {
            return Err(Unavailable(format!("no package list can be fetched: {}", first_error(&output.stderr))).into());
        }
        fs::write(self.directory.join("fetched"), "")?;
        self.lists_are_fresh = true;
        Ok(true)
    }

    /// Downloads packages and unpacks them into `to`, which must exist.
    ///
    /// # Errors
    /// [`Unavailable`] if one can't be downloaded.
    pub fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        eprintln!("vm: downloading {}", packages.join(" and "));
        let downloads = to.join("downloads");
        fs::create_dir_all(&downloads)?;
        let mut download = self.apt("apt-get");
        let output = download.args(["-qq", "download"]).args(packages).current_dir(&downloads).output()?;
        if !output.status.success() {
            let cause = first_error(&output.stderr);
            return Err(Unavailable(format!("{} can't be downloaded: {cause}", packages.join(" and "))).into());
        }
        unpack_all(&downloads, to)
    }

    /// One of apt's programs with the private state.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let directory = self.directory.display();
        for option in [
            format!("Dir::Etc::SourceList={directory}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={directory}/lists"),
            format!("Dir::Cache={directory}/cache"),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        ] {
            command.args(["-o", &option]);
        }
        command.args(COMMON_OPTIONS).env("LC_ALL", "C");
        command
    }
}

/// apt's own user could not write below everybody's directories; networks have bad minutes.
const COMMON_OPTIONS: [&str; 6] =
    ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=60"];

/// Downloads what of `packages` and their dependencies the machine itself lacks, by its own lists, and unpacks it into
/// `to`; installs nothing.
///
/// # Errors
/// [`Unavailable`] if something can't be downloaded.
pub fn unpack_missing(packages: &[&str], to: &Path) -> Result<()> {
    let downloads = to.join("downloads");
    fs::create_dir_all(downloads.join("partial"))?;
    let output = Command::new("apt-get")
        .args(["-y", "-qq", "--no-install-recommends", "--download-only"])
        .args(COMMON_OPTIONS)
        // Nothing of dpkg's is changed, so neither its lock nor root is needed.
        .args(["-o", "Debug::NoLocking=true", "-o", &format!("Dir::Cache::archives={}", downloads.display())])
        .arg("install")
        .args(packages)
        .env("LC_ALL", "C")
        .output()
        .context("can't start apt-get")?;
    if !output.status.success() {
        let cause = first_error(&output.stderr);
        let names = packages.join(", ");
        return Err(Unavailable(format!("can't download {names} (apt-get update may help): {cause}")).into());
    }
    unpack_all(&downloads, to)
}

/// Unpacks every package in `downloads` into `to`, and removes `downloads`.
fn unpack_all(downloads: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(downloads)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            let status =
                Command::new("dpkg-deb").arg("-x").args([&file, to]).status().context("can't start dpkg-deb")?;
            if !status.success() {
                bail!("dpkg-deb can't unpack {}: {status}", file.display());
            }
        }
    }
    fs::remove_dir_all(downloads)?;
    Ok(())
}

/// The sources to ask, from what the machine's apt knows: a line `ADDRESS RELEASE` for each list.
fn sources(targets: &str, with_key: bool) -> Result<String> {
    let known = || targets.lines().filter_map(|line| line.split_once(' '));
    let main = known().find(|(_, release)| !release.contains('-'));
    let security = known().find(|(_, release)| release.ends_with("-security"));
    let (Some((main, _)), Some((security, _))) = (main, security) else {
        bail!("apt has no lists of Debian's main and security archives here: run apt-get update first, on Debian");
    };
    let key = if with_key { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let lines = SUITES.map(|(section, suite)| {
        let address = if section == Section::Main { main } else { security };
        format!("deb {key}{address} {suite} main\n")
    });
    Ok(lines.concat())
}

/// What apt says first of what went wrong.
fn first_error(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let error = text.lines().find_map(|line| line.strip_prefix("E: "));
    error.or_else(|| text.lines().next()).unwrap_or("apt-get does not say why").trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_machines_own() {
        let targets = "http://a/debian/ bookworm\nhttp://a/debian/ bookworm-updates\nhttp://a/sec/ bookworm-security\n";
        let expected = "deb http://a/sec/ bullseye-security main\ndeb http://a/sec/ bookworm-security main\n\
            deb http://a/debian/ trixie-backports main\n";
        assert_eq!(sources(targets, false).unwrap(), expected);
        assert!(sources(targets, true).unwrap().starts_with("deb [signed-by=/usr/share/keyrings/"));
        assert!(sources("http://a/ubuntu noble\n", false).is_err());
    }

    #[test]
    fn the_first_error_is_told() {
        assert_eq!(first_error(b"W: odd\nE: Unable to locate package x\nE: more\n"), "Unable to locate package x");
        assert_eq!(first_error(b""), "apt-get does not say why");
    }
}

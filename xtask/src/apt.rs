//! Debian's and Ubuntu's packages.
//!
//! Invariants: no package that was asked for starts a service, now or at the next boot; packages that are only
//! recommended are left out; a `policy-rc.d` that was there before is left as it is.
//!
//! Failure behaviour: apt-get's own output is shown; package lists that are absent or stale are fetched once.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use mh_build::{find_program, version::Release};

use crate::run::{announce, run};

/// Runs apt-get with services held back the way Debian means it to be done: a `policy-rc.d` that says "forbidden by
/// policy". It is a shell's business, since a shell cleans up when it is interrupted, too. One that an earlier run had to
/// leave (killed hard) is known by its mark and taken away by the next.
const GUARDED: &str = r##"
guard=/usr/sbin/policy-rc.d
mark='# mh: cargo xtask setup is installing packages; no service shall start'
if [ ! -e "$guard" ] || grep -qF "$mark" "$guard"; then
    trap 'rm -f "$guard"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" > "$guard"
    chmod 755 "$guard"
fi
apt-get "$@"
"##;

/// Services that their packages would have started at every boot.
const BOOT_SERVICES: [(&str, &str); 3] = [("nginx-light", "nginx"), ("nginx", "nginx"), ("frr", "frr")];

/// apt, if this machine has it.
#[derive(Debug)]
pub struct Apt {
    lists_are_fresh: bool,
}

impl Apt {
    /// Whether this machine is one of apt's.
    pub fn is_here() -> bool {
        Path::new("/etc/debian_version").exists() && find_program("apt-get").is_some()
    }

    /// apt, with the package lists as they are.
    pub const fn new() -> Self {
        Self { lists_are_fresh: false }
    }

    /// The version that would be installed of a package; none if the archive has no such package.
    fn candidate(package: &str) -> Option<String> {
        let output = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output().ok()?;
        candidate_in(&String::from_utf8_lossy(&output.stdout))
    }

    /// The first of these packages that the archive has. Fetches the package lists before it says none.
    pub fn available<'a>(&mut self, packages: &[&'a str]) -> Result<Option<&'a str>> {
        let look = || packages.iter().copied().find(|package| Self::candidate(package).is_some());
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        self.update()?;
        Ok(look())
    }

    /// The first of these packages that the archive has in this version or a later one. Fetches the package lists before
    /// it says none.
    pub fn available_since<'a>(&mut self, packages: &[&'a str], minimum: Release) -> Result<Option<&'a str>> {
        if let Some(found) = Self::known_since(packages, minimum) {
            return Ok(Some(found));
        }
        self.update()?;
        Ok(Self::known_since(packages, minimum))
    }

    /// The same by the package lists as they are.
    pub fn known_since<'a>(packages: &[&'a str], minimum: Release) -> Option<&'a str> {
        let release = |package: &str| Self::candidate(package).as_deref().and_then(Release::parse);
        packages.iter().copied().find(|package| release(package).is_some_and(|release| release >= minimum))
    }

    fn update(&mut self) -> Result<()> {
        if self.lists_are_fresh {
            return Ok(());
        }
        println!("fetching apt's package lists: they are absent or old");
        run(Command::new("apt-get").args(["-q", "update"]))?;
        self.lists_are_fresh = true;
        Ok(())
    }

    /// Installs packages, as root.
    pub fn install(&mut self, packages: &[&str]) -> Result<()> {
        if let Err(error) = Self::try_install(packages) {
            if self.lists_are_fresh {
                return Err(error);
            }
            // Mostly a version that the archive has since replaced.
            self.update()?;
            Self::try_install(packages)?;
        }
        for (package, service) in BOOT_SERVICES {
            if packages.contains(&package) {
                // It was not here a moment ago, so nobody counts on it. Fails without harm where no init system is.
                let mut disable = Command::new("update-rc.d");
                disable.args([service, "disable"]);
                announce(&disable);
                let _ = disable.output();
            }
        }
        Ok(())
    }

    fn try_install(packages: &[&str]) -> Result<()> {
        let mut arguments = vec![
            "-qq",
            "-y",
            "-o",
            "Dpkg::Use-Pty=0",
            "-o",
            "DPkg::Lock::Timeout=300",
            "install",
            "--no-install-recommends",
            "--no-remove",
        ];
        arguments.extend(packages);
        eprintln!("$ apt-get {}", arguments.join(" "));
        let status = Command::new("sh")
            .args(["-c", GUARDED, "apt-get"])
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env_remove("LD_LIBRARY_PATH")
            .status()
            .context("can't start sh")?;
        if !status.success() {
            bail!("apt-get can't install {}: {status}", packages.join(", "));
        }
        Ok(())
    }
}

/// The candidate in `apt-cache policy`'s answer.
fn candidate_in(policy: &str) -> Option<String> {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (candidate != "(none)").then(|| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None, "a package that nobody heard of");
    }
}

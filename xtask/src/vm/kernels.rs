//! Debian's kernels: which there are, which one is meant, and one unpacked.
//!
//! Invariants: resolving a name is pure ([`offered`], [`resolve`]); a kernel's directory counts once its file `ok` is
//! there, so an interrupted preparation is begun anew.
//!
//! Failure behaviour: [`Unavailable`] for a kernel that is not on offer or can't be downloaded. One that was unpacked
//! before is used also if the archive has dropped it since.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Unavailable, archive::Archive, image, tools::Tools};

/// Parts of the kernel that no router's test in a VM needs: most of the size, and of depmod's time.
const LEFT_OUT: [&str; 17] = [
    "sound",
    "drivers/accel",
    "drivers/ata",
    "drivers/comedi",
    "drivers/gpu",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/media",
    "drivers/mtd",
    "drivers/net/can",
    "drivers/net/ethernet",
    "drivers/net/usb",
    "drivers/net/wireless",
    "drivers/scsi",
    "drivers/staging",
    "drivers/usb",
];

/// A kernel on offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// What the kernel itself says it is: `6.1.0-56-amd64`.
    pub release: String,
    /// The packages that hold it.
    pub packages: Vec<String>,
}

impl Package {
    /// The name of the package that stands for it.
    pub fn name(&self) -> String {
        format!("linux-image-{}", self.release)
    }

    /// The series: `6.1`.
    pub fn series(&self) -> String {
        self.release.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")
    }
}

/// A kernel ready to boot.
#[derive(Debug)]
pub struct Kernel {
    /// As in [`Package::release`].
    pub release: String,
    /// The kernel that QEMU loads.
    pub image: PathBuf,
    /// Its modules, with the indices of depmod.
    pub modules: PathBuf,
}

/// The kernels among all of the archive's package names about Linux, oldest first.
///
/// Since 6.19 a kernel is in two packages, and `linux-image` is an empty third one. The archive drops the modules of
/// older ones first: those without are of no use.
pub fn offered(names: &[String]) -> Vec<Package> {
    let has = |name: &str| names.iter().any(|other| other == name);
    let releases = names.iter().filter_map(|name| name.strip_prefix("linux-image-")).filter(|name| is_release(name));
    let mut kernels: Vec<Package> = releases
        .filter_map(|release| {
            let [binary, modules] = ["binary", "modules"].map(|part| format!("linux-{part}-{release}"));
            let packages = match (has(&binary), has(&modules)) {
                (true, true) => vec![binary, modules],
                (true, false) => return None,
                (false, _) => vec![format!("linux-image-{release}")],
            };
            Some(Package { release: release.to_owned(), packages })
        })
        .collect();
    kernels.sort_by_cached_key(|kernel| age(&kernel.release));
    kernels
}

/// Whether it is the release of a plain kernel: not of a metapackage, nor one unsigned, for debugging, for real time, or for
/// clouds (that has no 9p).
fn is_release(name: &str) -> bool {
    let Some(version) = name.strip_suffix("-amd64") else { return false };
    let (upstream, abi) = version.split_once('-').unwrap_or((version, "0"));
    let upstream: Vec<&str> = upstream.splitn(3, '.').collect();
    let starts_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let is_version = upstream.len() == 3 && upstream.into_iter().all(starts_with_digit);
    is_version && starts_with_digit(abi) && !abi.contains('-')
}

/// Sorts releases by age: numbers in them count as numbers.
fn age(release: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = release;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        let (digits, after) = after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len()));
        key.push((word.to_owned(), digits.parse().unwrap_or(0)));
        rest = after;
    }
    key
}

/// The kernel that is meant: by a package's full name, `newest`, or the start of a version, of which the newest is taken.
pub fn resolve<'a>(kernels: &'a [Package], wanted: &str) -> Option<&'a Package> {
    if wanted == "newest" {
        return kernels.last();
    }
    kernels.iter().rfind(|kernel| is_meant(&kernel.release, wanted))
}

fn is_meant(release: &str, wanted: &str) -> bool {
    let release_of = wanted.strip_prefix("linux-image-");
    match release.strip_prefix(release_of.unwrap_or(wanted)) {
        Some("") => true,
        Some(rest) => release_of.is_none() && !wanted.is_empty() && !rest.starts_with(|c: char| c.is_ascii_digit()),
        None => false,
    }
}

/// Finds the kernel that is meant, downloads it if need be, and makes it ready.
///
/// # Errors
/// [`Unavailable`] if it can't be had.
pub fn prepare(cache: &Path, archive: &mut Archive, tools: &Tools, wanted: &str) -> Result<Kernel> {
    let directory = cache.join("kernels");
    fs::create_dir_all(&directory).with_context(|| format!("can't write {}", directory.display()))?;
    let cached = unpacked(&directory)?;
    loop {
        let names = archive.package_names();
        let kernels = names.as_deref().map(offered).unwrap_or_default();
        let Some(package) = resolve(&kernels, wanted) else {
            if let Some(package) = resolve(&cached, wanted) {
                eprintln!("vm: {} is not on offer, the one unpacked earlier is taken", package.name());
                return Ok(kernel(&directory, &package.release));
            }
            names?;
            let text = format!("no kernel {wanted} is on offer (cargo xtask vm --list shows those that are)");
            return Err(Unavailable(text).into());
        };
        if cached.contains(package) || cached.iter().any(|cached| cached.release == package.release) {
            return Ok(kernel(&directory, &package.release));
        }
        match unpack(&directory, archive, tools, package) {
            Ok(()) => return Ok(kernel(&directory, &package.release)),
            // Mostly a version that the archive has since replaced.
            Err(error) if error.is::<Unavailable>() && archive.update()? => eprintln!("vm: {error}; trying once more"),
            Err(error) => return Err(error),
        }
    }
}

/// The kernels that are ready, oldest first.
fn unpacked(directory: &Path) -> Result<Vec<Package>> {
    let mut kernels = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.path().join("ok").exists() {
            let release = entry.file_name().to_string_lossy().into_owned();
            kernels.push(Package { release, packages: Vec::new() });
        }
    }
    kernels.sort_by_cached_key(|kernel| age(&kernel.release));
    Ok(kernels)
}

/// Where the parts of an unpacked kernel are.
fn kernel(directory: &Path, release: &str) -> Kernel {
    let home = directory.join(release);
    Kernel { release: release.to_owned(), image: home.join("kernel"), modules: home.join("lib/modules").join(release) }
}

fn unpack(directory: &Path, archive: &Archive, tools: &Tools, package: &Package) -> Result<()> {
    let home = directory.join(&package.release);
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::create_dir_all(&home)?;
    archive.unpack(&package.packages, &home)?;
    let kernel = kernel(directory, &package.release);
    // Newer packages know no /lib of its own.
    if !home.join("lib/modules").exists() {
        symlink("usr/lib", home.join("lib"))?;
    }
    ensure!(kernel.modules.is_dir(), "{} has no modules", package.name());
    for part in LEFT_OUT {
        let part = kernel.modules.join("kernel").join(part);
        if part.exists() {
            fs::remove_dir_all(part)?;
        }
    }
    let mut depmod = tools.kmod.command();
    // kmod is many programs and goes by the name that it is called by. What was left out makes it complain.
    depmod.arg0("depmod").arg("-b").args([home.as_os_str(), OsStr::new(&package.release)]).stderr(Stdio::null());
    ensure!(depmod.status().context("can't start kmod")?.success(), "depmod failed for {}", package.release);

    let packed = [home.join("boot").join(format!("vmlinuz-{}", package.release)), kernel.modules.join("vmlinuz")];
    let Some(packed) = packed.iter().find(|file| file.exists()) else { bail!("{} has no vmlinuz", package.name()) };
    if let Err(error) = image::unpack(packed, &kernel.image) {
        eprintln!("vm: booting the compressed image: {error:#}");
        fs::copy(packed, &kernel.image)?;
    }
    fs::write(home.join("ok"), "")?;
    Ok(())
}

/// Prints the kernels on offer.
///
/// # Errors
/// [`Unavailable`] if the lists can't be had.
pub fn list(archive: &mut Archive) -> Result<()> {
    for kernel in offered(&archive.package_names()?) {
        println!("{:<6} {}", kernel.series(), kernel.name());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn kernels(names: &[&str]) -> Vec<Package> {
        offered(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    fn releases(names: &[&str]) -> Vec<String> {
        kernels(names).into_iter().map(|kernel| kernel.release).collect()
    }

    #[test]
    fn plain_kernels_are_on_offer_oldest_first() {
        let names = [
            "linux-image-6.12.100+deb12-amd64",
            "linux-image-6.12.99+deb12-amd64",
            "linux-image-6.1-amd64",
            "linux-image-amd64",
            "linux-image-6.1-amd64-signed-template",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-56-amd64-unsigned",
            "linux-image-6.1.0-56-amd64-dbg",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-rt-amd64",
            "linux-image-6.1.0-0.deb11.52-amd64",
            "linux-image-5.10.0-46-amd64",
            "linux-headers-6.1.0-56-amd64",
        ];
        assert_eq!(
            releases(&names),
            [
                "5.10.0-46-amd64",
                "6.1.0-0.deb11.52-amd64",
                "6.1.0-56-amd64",
                "6.12.99+deb12-amd64",
                "6.12.100+deb12-amd64"
            ]
        );
        assert_eq!(kernels(&names)[0].packages, ["linux-image-5.10.0-46-amd64"]);
        assert_eq!(kernels(&names)[4].series(), "6.12");
    }

    #[test]
    fn kernels_in_two_packages_need_both() {
        let names = [
            "linux-image-7.0.4+deb13-amd64",
            "linux-binary-7.0.4+deb13-amd64",
            "linux-image-7.2.6+deb13-amd64",
            "linux-binary-7.2.6+deb13-amd64",
            "linux-modules-7.2.6+deb13-amd64",
            "linux-modules-7.3.4+deb13-amd64",
        ];
        let kernels = kernels(&names);
        assert_eq!(kernels.len(), 1);
        assert_eq!(kernels[0].packages, ["linux-binary-7.2.6+deb13-amd64", "linux-modules-7.2.6+deb13-amd64"]);
        assert_eq!(kernels[0].name(), "linux-image-7.2.6+deb13-amd64");
        assert_eq!(resolve(&kernels, "7.0"), None);
    }

    #[test]
    fn a_series_means_its_newest() {
        let kernels = kernels(&[
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.12.3+deb12-amd64",
            "linux-image-6.18.5+deb13-amd64",
            "linux-image-6.18.15+deb13-amd64",
        ]);
        for (wanted, release) in [
            ("6.1", Some("6.1.0-56-amd64")),
            ("6.1.0-9", Some("6.1.0-9-amd64")),
            ("6.12", Some("6.12.3+deb12-amd64")),
            ("6.18.5", Some("6.18.5+deb13-amd64")),
            ("6", Some("6.18.15+deb13-amd64")),
            ("newest", Some("6.18.15+deb13-amd64")),
            ("linux-image-6.1.0-9-amd64", Some("6.1.0-9-amd64")),
            ("linux-image-6.1", None),
            ("6.6", None),
            ("", None),
        ] {
            assert_eq!(resolve(&kernels, wanted).map(|kernel| kernel.release.as_str()), release, "{wanted}");
        }
    }
}

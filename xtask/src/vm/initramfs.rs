//! The VM's first file system: busybox, the modules it takes to reach the machine's root, and the script that does so.
//!
//! Invariants: made anew for each run, so it is never out of date; modules stand in the order they are loaded in.
//!
//! Failure behaviour: a kernel without one of the modules is an error that names it.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{image::read_module, kernels::Kernel};

/// Mounts the root; runs as the VM's process 1.
const BOOT: &[u8] = include_bytes!("boot.sh");
/// What the first stage mounts with, by the names of the modules.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// Directories and mount points.
const DIRECTORIES: [&str; 8] = ["bin", "dev", "lower", "memory", "modules", "proc", "root", "sys"];

/// The initramfs for a kernel.
///
/// # Errors
/// If the kernel lacks a module, or something can't be read.
pub fn make(kernel: &Kernel, busybox: &Path) -> Result<Vec<u8>> {
    let read = |name: &str| {
        let file = kernel.modules.join(name);
        fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))
    };
    let dependencies = read("modules.dep")?;
    // Kernels in two packages come without.
    let builtin = read("modules.builtin").ok();
    let modules = load_order(&dependencies, builtin.as_deref(), &MODULES)
        .with_context(|| format!("Linux {} is of no use here", kernel.release))?;
    let mut cpio = Cpio::default();
    for directory in DIRECTORIES {
        cpio.add(directory, 0o040_755, &[])?;
    }
    let program = fs::read(busybox).with_context(|| format!("can't read {}", busybox.display()))?;
    cpio.add("bin/busybox", 0o100_755, &program)?;
    cpio.add("init", 0o100_755, BOOT)?;
    for (index, module) in modules.iter().enumerate() {
        cpio.add(&format!("modules/{index:02}.ko"), 0o100_644, &read_module(&kernel.modules.join(module))?)?;
    }
    cpio.finish()
}

/// The files of the modules wanted and of those that they need, each after those that it needs. `dependencies` and
/// `builtin` are what depmod and the kernel's build wrote; without the latter, what is no module is taken to be built in.
fn load_order<'a>(dependencies: &'a str, builtin: Option<&str>, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let needs: HashMap<&str, Vec<&str>> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needed)| (module, needed.split_whitespace().collect()))
        .collect();
    let mut order = Vec::new();
    for name in wanted {
        match needs.keys().find(|file| module_name(file) == *name) {
            Some(file) => add_in_order(file, &needs, &mut order),
            None if builtin.is_none_or(|builtin| builtin.lines().any(|file| module_name(file) == *name)) => {}
            None => bail!("it has no module {name}"),
        }
    }
    Ok(order)
}

fn add_in_order<'a>(file: &'a str, needs: &HashMap<&'a str, Vec<&'a str>>, order: &mut Vec<&'a str>) {
    if order.contains(&file) {
        return;
    }
    for needed in needs.get(file).into_iter().flatten() {
        add_in_order(needed, needs, order);
    }
    order.push(file);
}

/// The name of a module by its file: `kernel/fs/9p/9p.ko.xz` is `9p`.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

/// An archive of the form that the kernel unpacks ("newc").
#[derive(Debug, Default)]
struct Cpio {
    bytes: Vec<u8>,
    files: usize,
}

impl Cpio {
    /// Adds a file or directory; `mode` is as in `stat`.
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.files += 1;
        let size = u32::try_from(data.len()).with_context(|| format!("{name} is too big for an initramfs"))?;
        let links = 1;
        // Inode, mode, owner, group, links, time, size, device (2), special device (2), name's length, check sum.
        let fields = [self.files, mode as usize, 0, 0, links, 0, size as usize, 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.align();
        self.bytes.extend(data);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
        kernel/fs/netfs/netfs.ko.xz:\n\
        kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz\n\
        kernel/net/9p/9pnet-virtio.ko.xz: kernel/net/9p/9pnet.ko.xz\n";

    #[test]
    fn modules_come_after_what_they_need() {
        let order =
            load_order(DEPENDENCIES, Some("kernel/fs/overlayfs/overlay.ko\n"), &["9pnet_virtio", "9p", "overlay"]);
        let names: Vec<String> = order.unwrap().into_iter().map(module_name).collect();
        assert_eq!(names, ["netfs", "9pnet", "9pnet_virtio", "9p"]);
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let error = load_order(DEPENDENCIES, Some(""), &["9p", "overlay"]).unwrap_err();
        assert_eq!(error.to_string(), "it has no module overlay");
        assert!(load_order(DEPENDENCIES, None, &["9p", "overlay"]).is_ok());
    }

    #[test]
    fn archives_are_laid_out_in_fours() {
        let mut cpio = Cpio::default();
        cpio.add("a", 0o040_755, &[]).unwrap();
        cpio.add("bc", 0o100_644, b"12345").unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(&bytes[..22], b"07070100000001000041ed");
        assert_eq!(&bytes[110..112], b"a\0");
        let second = 112;
        assert_eq!(&bytes[second + 54..second + 62], b"00000005");
        assert_eq!(&bytes[second + 110..second + 112], b"bc");
        // 110 + 3 are padded by 3 bytes, 5 by 3.
        assert_eq!(&bytes[second + 116..second + 124], b"12345\0\0\0");
        assert!(bytes[second + 124..].starts_with(b"070701"));
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}

//! The programs that a VM takes: QEMU, a static busybox, and kmod.
//!
//! Invariants: what the machine has is used; what it lacks is unpacked into the cache, and nothing is installed.
//!
//! Failure behaviour: [`super::Unavailable`] if something has to be downloaded and can't be.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use mh_build::{find_program, is_executable};

use super::archive;

/// Where unpacked programs find their libraries, below the directory that they are unpacked in.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// Where an unpacked QEMU finds its firmware.
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// A program, on the machine or unpacked.
#[derive(Debug)]
pub struct Program {
    /// Where it is.
    pub file: PathBuf,
    /// The directory it was unpacked in, if it was.
    unpacked_in: Option<PathBuf>,
}

impl Program {
    /// A command that starts it, with its own libraries if it was unpacked.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        match &self.unpacked_in {
            Some(directory) => {
                let libraries = LIBRARIES.map(|library| directory.join(library).into_os_string());
                command.env("LD_LIBRARY_PATH", libraries.join(&OsString::from(":")))
            }
            // cargo's, for xtask.
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
        command
    }

    /// Arguments that tell an unpacked QEMU where its firmware is.
    pub fn firmware(&self) -> Vec<OsString> {
        let Some(directory) = &self.unpacked_in else { return Vec::new() };
        FIRMWARE.iter().flat_map(|firmware| ["-L".into(), directory.join(firmware).into_os_string()]).collect()
    }
}

/// The programs.
#[derive(Debug)]
pub struct Tools {
    /// Runs the VM.
    pub qemu: Program,
    /// The VM's first programs; without dynamic libraries.
    pub busybox: Program,
    /// Indexes modules.
    pub kmod: Program,
}

/// Its name, the package that has it, and where in there it may be.
type Source = (&'static str, &'static str, &'static [&'static str]);
const QEMU: Source = ("qemu-system-x86_64", "qemu-system-x86", &["usr/bin/qemu-system-x86_64"]);
const BUSYBOX: Source = ("busybox", "busybox-static", &["usr/bin/busybox", "bin/busybox"]);
const KMOD: Source = ("kmod", "kmod", &["usr/bin/kmod", "bin/kmod"]);

impl Tools {
    /// Finds them, and unpacks below `cache` what is missing.
    ///
    /// # Errors
    /// If one can't be had.
    pub fn find(cache: &Path) -> Result<Self> {
        let directory = cache.join("tools");
        let mut on_machine = [QEMU, BUSYBOX, KMOD].map(|(name, ..)| find_program(name));
        let [_, busybox, _] = &mut on_machine;
        // In the initramfs there are no libraries.
        if busybox.as_deref().is_some_and(|file| !fs::read(file).is_ok_and(|program| is_static(&program))) {
            *busybox = None;
        }
        let sources = [QEMU, BUSYBOX, KMOD];
        let missing: Vec<&str> =
            sources.iter().zip(&on_machine).filter(|(_, found)| found.is_none()).map(|(source, _)| source.1).collect();
        // Named by what it holds: another machine's cache, or one from before something was uninstalled, may lack some.
        let ok = directory.join(format!("ok-{}", missing.join("+")));
        if !missing.is_empty() && !ok.exists() {
            eprintln!("vm: downloading {} into {} (nothing is installed)", missing.join(", "), directory.display());
            if directory.exists() {
                fs::remove_dir_all(&directory)?;
            }
            archive::unpack_missing(&missing, &directory)?;
            fs::write(&ok, "")?;
        }
        let [qemu, busybox, kmod] = on_machine;
        Ok(Self {
            qemu: program(qemu, &directory, QEMU)?,
            busybox: program(busybox, &directory, BUSYBOX)?,
            kmod: program(kmod, &directory, KMOD)?,
        })
    }
}

fn program(on_machine: Option<PathBuf>, directory: &Path, (name, package, places): Source) -> Result<Program> {
    if let Some(file) = on_machine {
        return Ok(Program { file, unpacked_in: None });
    }
    let file = places.iter().map(|place| directory.join(place)).find(|file| is_executable(file));
    let file = file.with_context(|| format!("the package {package} has no {name}"))?;
    Ok(Program { file, unpacked_in: Some(directory.to_path_buf()) })
}

/// Whether an ELF program asks for no dynamic linker (which would be its segment of type `PT_INTERP`).
fn is_static(program: &[u8]) -> bool {
    let number = |offset: usize| {
        let bytes = program.get(offset..)?.first_chunk::<2>()?;
        Some(usize::from(u16::from_le_bytes(*bytes)))
    };
    // The table stands right behind the header, far below 64 KiB; both types meant here fit 16 bits.
    let (Some(table), Some(entry), Some(count)) = (number(32), number(54), number(56)) else { return false };
    program.starts_with(b"\x7fELF\x02\x01") && (0..count).all(|index| number(table + index * entry) != Some(3))
}

/// Where kernels, tools and runs are kept.
///
/// # Errors
/// If it can't be made.
pub fn cache_directory(target: &Path) -> Result<PathBuf> {
    let directory = env::var_os("MH_VM_CACHE").map_or_else(|| target.join("vm"), PathBuf::from);
    fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let directory = directory.canonicalize()?;
    ensure!(
        directory.to_str().is_some_and(|path| !path.contains(',')),
        "{}: QEMU splits at commas",
        directory.display()
    );
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segment: u8) -> Vec<u8> {
        let mut program = vec![0; 64 + 2 * 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[32], program[54], program[56]) = (64, 56, 2);
        program[64] = 1;
        program[64 + 56] = segment;
        program
    }

    #[test]
    fn a_dynamic_program_asks_for_its_linker() {
        assert!(is_static(&elf(2)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF"));
    }
}

//! The machine under the laboratory: settings outside of it that a measurement needs, and cores.
//!
//! Invariants: whoever changes settings has the turn ([`Turn`]) to do so; a setting is put back when its guard is gone, also on a panic, and by [`restore_all`] when a signal ends the program.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use mh_tests::lab;
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::{SigSet, Signal},
    unistd::Pid,
};

/// Far longer than one sample takes.
const CORE_TIMEOUT: Duration = Duration::from_secs(300);
/// Longer than a part of the benchmark takes.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(3600);

/// What settings were before, by file.
static BEFORE: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());

/// A setting of the machine that is put back at the end.
#[derive(Debug)]
pub struct Setting {
    file: PathBuf,
}

impl Setting {
    /// Raises a number in a file below /proc/sys or /sys to at least `least`. None if it is as high already.
    ///
    /// # Errors
    /// If it can't be read, or the kernel refuses.
    pub fn at_least(file: &str, least: u64) -> Result<Option<Self>> {
        let old: u64 = read(file)?.parse().with_context(|| format!("{file} is no number"))?;
        if old < least { Self::set(file, &least.to_string()).map(Some) } else { Ok(None) }
    }

    /// Sets it.
    ///
    /// # Errors
    /// If it can't be read, or the kernel refuses.
    pub fn set(file: &str, value: &str) -> Result<Self> {
        let before = read(file)?;
        let setting = Self { file: file.into() };
        if let Ok(mut all) = BEFORE.lock() {
            // The first guard of a file knows what it was.
            all.entry(setting.file.clone()).or_insert(before);
        }
        fs::write(file, value).with_context(|| format!("write {value} to {file}"))?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Ok(mut all) = BEFORE.lock()
            && let Some(before) = all.remove(&self.file)
        {
            restore(&self.file, &before);
        }
    }
}

fn read(file: &str) -> Result<String> {
    Ok(fs::read_to_string(file).with_context(|| format!("read {file}"))?.trim().to_owned())
}

fn restore(file: &Path, before: &str) {
    if let Err(error) = fs::write(file, before) {
        eprintln!("{} is not {before} again: {error}", file.display());
    }
}

/// Puts every setting back.
pub fn restore_all() {
    if let Ok(mut all) = BEFORE.lock() {
        while let Some((file, before)) = all.pop_first() {
            restore(&file, &before);
        }
    }
}

/// From here on, a signal that would end this process leaves nothing behind. To be called before there are other threads.
///
/// # Errors
/// If signals can't be blocked, or the thread that waits for them can't be made.
pub fn end_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // All threads inherit it, so that the signals wait for the thread below.
    signals.thread_block().context("block signals")?;
    let wait = move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\nmh-bench: {signal}: cleaning up");
            restore_all();
            lab::clean_up();
            std::process::exit(128 + signal as i32);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("signal thread")?;
    Ok(())
}

/// The core that is measured on: the last that this process may use, since interrupts and daemons prefer the first.
///
/// # Errors
/// If the kernel doesn't tell.
pub fn core() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("which cores may be used")?;
    (0..CpuSet::count()).rev().find(|core| allowed.is_set(*core).unwrap_or(false)).context("no core may be used")
}

/// What two benchmarks can't use at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// The core that is measured on: they would starve each other.
    Core,
    /// Settings of the machine: neither would put back what was there before both.
    Settings,
}

/// The turn of this process with something shared, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Turn {
    _name: UnixDatagram,
}

impl Turn {
    /// Waits until no other process, and nobody else in this one, has it.
    ///
    /// # Errors
    /// If another has it for too long.
    pub fn wait(shared: Shared) -> Result<Self> {
        // An abstract socket's name is taken once, leaves no file behind, and is free when its owner is gone.
        let (name, timeout) = match shared {
            Shared::Core => ("mh-bench core", CORE_TIMEOUT),
            Shared::Settings => ("mh-bench settings", SETTINGS_TIMEOUT),
        };
        let address = SocketAddr::from_abstract_name(name)?;
        let what = format!("another benchmark to be done (abstract socket \"{name}\")");
        let (name, _) = lab::wait_for(&what, timeout, || match UnixDatagram::bind_addr(&address) {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        Ok(Self { _name: name })
    }
}

/// Keeps the calling thread on a core.
///
/// # Errors
/// If the kernel refuses.
pub fn pin(core: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Gives the calling thread the core whenever it wants it: the kernel leaves the rest, some 5 %, to its own threads and all others.
/// (A nice value would count among the threads of one session only.)
///
/// # Errors
/// If the kernel refuses.
pub fn come_first() -> Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the parameters, which live through the call; zero is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) })
        .context("take precedence over other threads")?;
    Ok(())
}

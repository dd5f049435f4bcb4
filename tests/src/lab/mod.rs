//! Laboratories: hosts made of anonymous namespaces, wired with veth pairs, with real processes and real sockets inside.
//!
//! - [`Host`]: one network namespace and the mount namespace that goes with it; runs commands, closures and sockets inside.
//! - [`Lab`]: a set of hosts with a temporary directory; [`Lab::two_isps`] builds the standard topology ([`TwoIsps`]).
//! - [`Frr`]: routing daemons in a host.
//! - [`Mhd`]: the controller under test, running in a host.
//! - [`traffic`]: servers, clients and streams that report what they saw.
//! - [`ruled`]: flows to one port, and a rule for them.
//! - [`Scene`] and [`run`]: what a laboratory test gets, and how it is run and reported.
//!
//! Invariants: no namespace has a name, and none outlives this process, however it ends: they are held by open file
//! descriptors only. Every child process dies with its guard, or with this process. Nothing outside the namespaces is changed
//! but one directory under the system's temporary directory, which the lab's drop (or [`clean_up`]) removes. Any number of
//! laboratories can live side by side.
//!
//! Failure behaviour: everything returns `anyhow::Error` with the host and the command that failed; a program that isn't
//! installed gives an error that names `cargo xtask setup`. Waiting is always for a condition, with a deadline.

mod frr;
mod host;
mod mhd;
mod namespace;
mod process;
mod programs;
mod questions;
pub mod ruled;
mod scene;
mod stun;
mod topology;
pub mod traffic;
mod tunnel;

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

pub use self::frr::Frr;
pub use self::host::{Host, Output};
pub use self::mhd::{Mhd, binary};
pub use self::process::Process;
pub use self::programs::programs_on;
pub use self::scene::{Scene, in_lab, run, run_configured, run_scene, run_with};
pub use self::stun::{Discovery, StunServer};
pub use self::topology::{CLIENT1, CLIENT2, CLIENT3, Options, ROUTER_LAN0, ROUTER_LAN1, SERVER, TwoIsps, Uplink};
pub use self::tunnel::Tunnel;

/// Temporary directories of the laboratories alive in this process, for [`clean_up`].
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// How mh is attached to the router's interfaces, as in the config's `datapath.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TC only: the complete path.
    Tc,
    /// Native XDP in front of TC.
    Xdp,
}

impl Mode {
    /// The value that `datapath.mode` takes in the config.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }
}

/// A set of hosts and the directory that their files (configs, logs, sockets) live in.
#[derive(Debug)]
pub struct Lab {
    directory: TempDir,
}

impl Lab {
    /// An empty laboratory.
    ///
    /// # Errors
    /// Without root, or if the temporary directory can't be made.
    pub fn new() -> Result<Self> {
        ensure!(is_root(), "laboratories need root: namespaces can't be made otherwise");
        // Hundreds of flows with both ends in one process; two laboratories at a time.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let wanted = hard.min(65_536);
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).context("open file limit")?;
        }
        let directory = tempfile::Builder::new().prefix("mh-lab-").tempdir().context("laboratory's directory")?;
        if let Ok(mut directories) = DIRECTORIES.lock() {
            directories.push(directory.path().to_path_buf());
        }
        Ok(Self { directory })
    }

    /// Where the laboratory's files live; removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Makes a host: new namespaces with loopback up.
    ///
    /// # Errors
    /// If the namespaces can't be made.
    pub fn host(&self, name: &str) -> Result<Host> {
        Host::new(name, self.directory())
    }

    /// The standard topology; see [`TwoIsps`] for its drawing.
    ///
    /// # Errors
    /// Without root, without the tools (`cargo xtask setup`), or if the kernel refuses a part.
    pub fn two_isps(options: &Options) -> Result<TwoIsps> {
        TwoIsps::new(options)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Ok(mut directories) = DIRECTORIES.lock() {
            directories.retain(|directory| directory != self.directory.path());
        }
    }
}

/// Kills every child of every laboratory and removes their directories: for a signal handler's thread, right before it ends
/// the process. The namespaces go with the process.
pub fn clean_up() {
    process::kill_all();
    if let Ok(directories) = DIRECTORIES.lock() {
        for directory in directories.iter() {
            // Best effort: there is nobody left to tell.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Whether this process is root, which laboratories need.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says on the terminal that a test was skipped for want of root, past the test harness's capture. True if it was.
#[must_use]
pub fn skipped() -> bool {
    if is_root() {
        return false;
    }
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    // Straight to the descriptor: what `eprintln!` writes in a passing test is thrown away.
    let _ = writeln!(std::io::stderr(), "{name}: skipped: needs root");
    true
}

/// Checks that programs are installed.
///
/// # Errors
/// Names every missing program and the command that installs them.
pub fn require_tools(tools: &[&str]) -> Result<()> {
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| find_program(tool.as_ref()).is_none()).collect();
    if !missing.is_empty() {
        bail!("not installed: {}: run `cargo xtask setup`", missing.join(", "));
    }
    Ok(())
}

/// The first executable of that name in `PATH`, or in the directories that root's tools live in.
fn find_program(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0))
}

/// Asks until the answer is yes (`Some`), at most for `timeout`; gives the answer and how long it took.
///
/// # Errors
/// If the time is up, naming `what` was waited for, or if asking fails.
pub fn wait_for<T>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().with_context(|| format!("waiting for {what}"))? {
            return Ok((answer, begun.elapsed()));
        }
        ensure!(begun.elapsed() < timeout, "waited {timeout:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// [`wait_for`] a plain condition; gives how long it took.
///
/// # Errors
/// If the time is up, or if asking fails.
pub fn wait_until(what: &str, timeout: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<Duration> {
    wait_for(what, timeout, || Ok(ask()?.then_some(()))).map(|((), elapsed)| elapsed)
}

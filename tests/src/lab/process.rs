//! Processes inside a laboratory: started from a thread that lives as long as this process, killed by their guard.
//!
//! Invariants: a child is in a process group of its own (a terminal's ctrl-C reaches only this process, which decides), gets
//! SIGKILL when this process dies, and has been reaped when its guard is gone. Its output goes to files, so nothing blocks on a
//! full pipe and everything can be read at any time, also after its end.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::unistd::{Pid, getpid, getppid};

use super::{wait_for, wait_until};

type Job = Box<dyn FnOnce() + Send>;

/// Parent death signals follow the thread that forked, and test threads come and go: all guarded children are forked here.
static SPAWNER: LazyLock<Option<mpsc::Sender<Job>>> = LazyLock::new(|| {
    let (sender, jobs) = mpsc::channel::<Job>();
    thread::Builder::new().name("spawner".into()).spawn(move || jobs.into_iter().for_each(|job| job())).ok()?;
    Some(sender)
});

/// Process groups of the children alive, for [`kill_all`].
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Numbers the output files.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What every child of a laboratory does between fork and exec: die with the parent, and take signals as usual.
pub(super) fn prepare(command: &mut Command) {
    let parent = getpid();
    // SAFETY: runs in the forked child; prctl, getppid and sigprocmask are async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                // The parent was gone before the line above could tell the kernel.
                return Err(io::Error::from(Errno::ESRCH));
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
}

/// Kills every child that a guard in this process stands for.
pub(super) fn kill_all() {
    if let Ok(groups) = GROUPS.lock() {
        for &group in groups.iter() {
            // Gone already is as good.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// A running child with its output in files. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    group: Pid,
    status: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` (already set up to enter its namespaces) with output files named after `name` in `directory`.
    pub(super) fn spawn(mut command: Command, name: &str, directory: &Path) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let stdout = directory.join(format!("{name}.{number}.out"));
        let stderr = directory.join(format!("{name}.{number}.err"));
        command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).with_context(|| stdout.display().to_string())?)
            .stderr(File::create(&stderr).with_context(|| stderr.display().to_string())?)
            .process_group(0);
        let (sender, answer) = mpsc::sync_channel(1);
        SPAWNER
            .as_ref()
            .context("no spawner thread")?
            .send(Box::new(move || {
                // If the asker is gone, so is the answer's guard.
                let _ = sender.send(command.spawn());
            }))
            .map_err(|_| anyhow!("the spawner thread is gone"))?;
        let child = answer.recv().context("the spawner thread is gone")?.map_err(|error| explain(name, error))?;
        let group = Pid::from_raw(i32::try_from(child.id())?);
        if let Ok(mut groups) = GROUPS.lock() {
            groups.insert(group.as_raw());
        }
        Ok(Self { name: name.to_owned(), child, group, status: None, stdout, stderr })
    }

    /// What it wrote to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it wrote to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// The process identifier.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Waits until a line with `needle` is in its stdout or stderr; gives the line and the time it took.
    ///
    /// # Errors
    /// If the time is up or the process ends first; the message carries its stderr.
    pub fn wait_for_line(&mut self, needle: &str, timeout: Duration) -> Result<(String, Duration)> {
        let what = format!("a line with `{needle}` from {}", self.name);
        let found = wait_for(&what, timeout, || {
            // Ask about the end first: a line written right before it must still be found.
            let ended = self.try_wait()?;
            let lines = self.stderr() + &self.stdout();
            if let Some(line) = lines.lines().find(|line| line.contains(needle)) {
                return Ok(Some(line.to_owned()));
            }
            match ended {
                Some(status) => bail!("{} ended first: {status}", self.name),
                None => Ok(None),
            }
        });
        found.with_context(|| format!("{}'s stderr:\n{}", self.name, self.stderr()))
    }

    /// Sends a signal to the process (not to its group).
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.try_wait()? {
            bail!("{} has ended already: {status}", self.name);
        }
        kill(self.group, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it doesn't end in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_until(&what, timeout, || Ok(self.try_wait()?.is_some()))?;
        self.status.context("ended without a status")
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // The group: whatever the process started itself goes with it.
            let _ = killpg(self.group, Signal::SIGKILL);
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
        self.forget();
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().with_context(|| format!("wait for {}", self.name))?;
            if self.status.is_some() {
                self.forget();
            }
        }
        Ok(self.status)
    }

    fn forget(&self) {
        if let Ok(mut groups) = GROUPS.lock() {
            groups.remove(&self.group.as_raw());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Turns "no such file" into something that says what to do.
pub(super) fn explain(program: &str, error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        anyhow!("{program} is not installed: run `cargo xtask setup`")
    } else {
        anyhow!(error).context(format!("start {program}"))
    }
}

fn read_lossy(file: &Path) -> String {
    std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

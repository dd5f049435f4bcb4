//! The controller under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Host, Lab, Output, Process, wait_until};

/// How long mhd may take to be ready here: far more than it should, since two laboratories share two cores.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long an uplink may take to get to a state.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the host's own bpffs keeps the pins.
const BPFFS: &str = "/sys/fs/bpf/mh";

/// Finds one of mh's programs: in `MH_BIN_DIR`, else where this executable was built.
///
/// # Errors
/// If it isn't there: says how to build it.
pub fn binary(name: &str) -> Result<String> {
    let directory = match std::env::var_os("MH_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let executable = std::env::current_exe().context("where this executable is")?;
            let directory = executable.parent().context("the executable's directory")?;
            // Test executables are one level below the programs.
            let parent = if directory.ends_with("deps") { directory.parent() } else { None };
            parent.unwrap_or(directory).to_path_buf()
        }
    };
    let file = directory.join(name);
    ensure!(file.is_file(), "{} is missing: run `cargo xtask build`, or set MH_BIN_DIR", file.display());
    // Entering a mount namespace changes the working directory.
    let file = file.canonicalize()?;
    Ok(file.to_str().context("the path of mh's programs is not UTF-8")?.to_owned())
}

/// A running (or just killed) mhd in a host, with its config and socket in the laboratory's directory.
#[derive(Debug)]
pub struct Mhd {
    host: Host,
    config: PathBuf,
    socket: PathBuf,
    prefix: Vec<String>,
    process: Option<Process>,
    old_logs: String,
    ready_after: Duration,
}

impl Mhd {
    /// Writes the config, starts mhd in `host` and waits until it is ready.
    ///
    /// # Errors
    /// If it isn't built, ends, or isn't ready in time; the message carries its log.
    pub fn start(lab: &Lab, host: &Host, config: &str) -> Result<Self> {
        let file = |end: &str| lab.directory().join(format!("{}.{end}", host.name()));
        let mut mhd = Self {
            host: host.clone(),
            config: file("mh.toml"),
            socket: file("mhd.sock"),
            prefix: Vec::new(),
            process: None,
            old_logs: String::new(),
            ready_after: Duration::ZERO,
        };
        mhd.write_config(config)?;
        mhd.start_again()?;
        Ok(mhd)
    }

    /// Replaces the config file; mhd reads it at the next start or reload.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_config(&self, config: &str) -> Result<()> {
        fs::write(&self.config, config).with_context(|| self.config.display().to_string())
    }

    /// Has mhd started by this command from now on, which is put in front of its own command line.
    pub fn start_under(&mut self, prefix: &[&str]) {
        self.prefix = prefix.iter().map(|&word| word.to_owned()).collect();
    }

    /// Starts mhd after its end, with the same config, socket and pins, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Mhd::start`]; also if it is running.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "mhd is running already");
        self.keep_log();
        let arguments = self.arguments()?;
        let mut process = self.host.spawn("mhd", &as_strs(&arguments))?;
        let ready = process.wait_for_line("ready", READY_TIMEOUT);
        self.process = Some(process);
        let (_, elapsed) = ready?;
        self.ready_after = elapsed;
        Ok(())
    }

    /// Ends mhd with SIGTERM, which must succeed, and starts it again.
    ///
    /// # Errors
    /// If it doesn't end with status 0, or doesn't get ready again.
    pub fn restart(&mut self) -> Result<()> {
        let status = self.sigterm()?;
        ensure!(status.success(), "mhd ended with {status} on SIGTERM");
        self.start_again()
    }

    /// The command line that mhd is started with.
    ///
    /// # Errors
    /// If mhd isn't built.
    pub fn arguments(&self) -> Result<Vec<String>> {
        let mut arguments = self.prefix.clone();
        arguments.push(binary("mhd")?);
        let level = std::env::var("MH_LAB_LOG").unwrap_or_else(|_| "info".into());
        let config = self.config.display().to_string();
        let socket = self.socket.display().to_string();
        let state = self.config.with_extension("state").display().to_string();
        let options = ["--config", &config, "--socket", &socket, "--state", &state, "--bpffs", BPFFS, "--log", &level];
        arguments.extend(options.map(str::to_owned));
        Ok(arguments)
    }

    /// Runs mhd's `--detach` with the same config, socket and pins.
    ///
    /// # Errors
    /// If it ends with a status other than 0.
    pub fn detach(&self) -> Result<String> {
        let mut arguments = self.arguments()?;
        arguments.push("--detach".into());
        self.host.run(&as_strs(&arguments))
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// If it isn't running, or doesn't end within 10 seconds.
    pub fn sigterm(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.process.as_mut().context("mhd isn't running")?.wait(Duration::from_secs(10))
    }

    /// Kills it with SIGKILL and waits for the end.
    ///
    /// # Errors
    /// If it isn't running.
    pub fn sigkill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process.as_mut().context("mhd isn't running")?.wait(Duration::from_secs(10)).map(drop)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it isn't running.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().context("mhd isn't running")?.signal(signal)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// The process identifier of the last start.
    ///
    /// # Errors
    /// If it was never started.
    pub fn pid(&self) -> Result<u32> {
        self.process.as_ref().map(Process::pid).context("mhd isn't running")
    }

    /// How long the last start took until mhd was ready.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The config's path.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The directory of the pins, as seen inside the host.
    #[must_use]
    pub fn bpffs(&self) -> &'static str {
        BPFFS
    }

    /// Everything that mhd logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        let current = self.process.as_ref().map(|process| process.stderr() + &process.stdout());
        format!("{}{}", self.old_logs, current.unwrap_or_default())
    }

    /// Runs mhctl to its end, whatever that is.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn ctl_output(&self, arguments: &[&str]) -> Result<Output> {
        let (program, socket) = (binary("mhctl")?, self.socket.display().to_string());
        let mut line = vec![program.as_str(), "--socket", &socket];
        line.extend(arguments);
        self.host.output(&line)
    }

    /// Runs mhctl and gives its stdout.
    ///
    /// # Errors
    /// If it ends with a status other than 0.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.ctl_output(arguments)?;
        ensure!(status.success(), "`mhctl {}`: {status}\n{stdout}{stderr}", arguments.join(" "));
        Ok(stdout)
    }

    /// Runs `mhctl --json` and gives the document.
    ///
    /// # Errors
    /// If it ends with a status other than 0, or prints no JSON.
    pub fn ctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut line = vec!["--json"];
        line.extend(arguments);
        let printed = self.ctl(&line)?;
        serde_json::from_str(&printed).with_context(|| format!("`mhctl {}` printed {printed:?}", line.join(" ")))
    }

    /// The entry of an uplink in `mhctl status --json`.
    ///
    /// # Errors
    /// If there is none.
    pub fn uplink(&self, name: &str) -> Result<Value> {
        let status = self.ctl_json(&["status"])?;
        let uplinks = status["uplinks"].as_array().context("status without uplinks")?;
        let found = uplinks.iter().find(|uplink| uplink["name"] == name);
        found.cloned().with_context(|| format!("no uplink {name} in {status}"))
    }

    /// Waits until an uplink has a state; gives how long it took.
    ///
    /// # Errors
    /// If it doesn't get there within 10 seconds; the message carries the uplink's last status.
    pub fn wait_for_state(&self, name: &str, state: &str) -> Result<Duration> {
        self.wait_for_uplink(name, &format!("to be {state}"), STATE_TIMEOUT, |uplink| uplink["state"] == state)
    }

    /// Waits until an uplink has a state for a reason that begins like this; gives how long it took.
    ///
    /// # Errors
    /// If it doesn't get there within `longest`; the message carries the uplink's last status.
    pub fn wait_for_reason(&self, name: &str, state: &str, reason: &str, longest: Duration) -> Result<Duration> {
        self.wait_for_uplink(name, &format!("to be {state}: {reason}"), longest, |uplink| {
            uplink["state"] == state && uplink["reason"].as_str().is_some_and(|text| text.starts_with(reason))
        })
    }

    /// Waits until an uplink's entry in `mhctl status --json` is as wanted (`what`, in words); gives how long it took.
    ///
    /// # Errors
    /// If it isn't within `longest`; the message carries the uplink's last status.
    pub fn wait_for_uplink(
        &self,
        name: &str,
        what: &str,
        longest: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Duration> {
        let mut last = Value::Null;
        let waited = wait_until(&format!("{name} {what}"), longest, || {
            last = self.uplink(name)?;
            Ok(holds(&last))
        });
        waited.with_context(|| format!("last seen: {last}"))
    }

    /// What `mhctl flows list --json` gives with these further arguments.
    ///
    /// # Errors
    /// If it isn't an array.
    pub fn flows(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut line = vec!["flows", "list", "--limit", "100000"];
        line.extend(arguments);
        match self.ctl_json(&line)? {
            Value::Array(flows) => Ok(flows),
            other => bail!("flows list gave no array: {other}"),
        }
    }

    fn keep_log(&mut self) {
        self.old_logs = self.log();
        self.process = None;
    }
}

fn as_strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

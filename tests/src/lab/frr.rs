//! FRR routers: zebra, bgpd and bfdd in a host.
//!
//! The daemons are children of the laboratory in the foreground. Their configuration, process identifiers and sockets are in the
//! laboratory's directory, so any number of them runs side by side, and beside the machine's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Host, Lab, Process, find_program, wait_until};

/// Where Debian, Fedora and Arch keep the daemons.
const DAEMON_DIRECTORIES: [&str; 3] = ["/usr/lib/frr", "/usr/libexec/frr", "/usr/sbin"];
/// zebra first: the others look for its socket when they start.
const DAEMONS: [&str; 3] = ["zebra", "bfdd", "bgpd"];
/// The group of those who may talk to the daemons, as it begins its line in /etc/group.
const VTY_GROUP: &str = "frrvty:";
/// What the daemons write without being asked where: files about crashes.
const SCRATCH: &str = "/var/tmp";
/// How long a daemon may take to answer after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running FRR in a host.
#[derive(Debug)]
pub struct Frr {
    host: Host,
    directory: PathBuf,
    daemons: Vec<Process>,
}

impl Frr {
    /// Starts the daemons in `host`, bgpd with this configuration, and waits until they answer.
    ///
    /// # Errors
    /// If FRR is not installed, or doesn't answer.
    pub fn start(lab: &Lab, host: &Host, config: &str) -> Result<Self> {
        let directory = lab.directory().join(format!("{}.frr", host.name()));
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        // The host's mounts are its own.
        host.run(&["mount", "-t", "tmpfs", "tmpfs", SCRATCH])?;
        join_vty_group(host, &directory)?;
        fs::write(directory.join("vtysh.conf"), "no service integrated-vtysh-config\n")?;
        let mut frr = Self { host: host.clone(), directory, daemons: Vec::new() };
        for daemon in DAEMONS {
            frr.start_daemon(daemon, if daemon == "bgpd" { config } else { "" })?;
        }
        Ok(frr)
    }

    fn start_daemon(&mut self, daemon: &str, config: &str) -> Result<()> {
        let program =
            DAEMON_DIRECTORIES.iter().find_map(|directory| find_program(Path::new(directory).join(daemon).as_ref()));
        let program = program.with_context(|| format!("{daemon} is not installed: run `cargo xtask setup`"))?;
        let file = |end: &str| self.directory.join(format!("{daemon}.{end}")).display().to_string();
        fs::write(file("conf"), config)?;
        let (program, directory) = (program.display().to_string(), self.directory.display().to_string());
        let (config_file, pid_file, control) = (file("conf"), file("pid"), file("sock"));
        let zserv = self.directory.join("zserv").display().to_string();
        let mut arguments = vec![
            program.as_str(),
            "--config_file",
            &config_file,
            "--pid_file",
            &pid_file,
            "--socket",
            &zserv,
            "--vty_socket",
            &directory,
            "--vty_port",
            "0",
            "--user",
            "root",
            "--group",
            "root",
            "--log",
            "stdout",
        ];
        if daemon == "bfdd" {
            arguments.extend(["--bfdctl", &control]);
        }
        let process = self.host.spawn(daemon, &arguments)?;
        self.daemons.push(process);
        let vty = self.directory.join(format!("{daemon}.vty"));
        wait_until(&format!("{}'s {daemon} to answer", self.host.name()), START_TIMEOUT, || {
            if let Some(process) = self.daemons.last_mut() {
                ensure!(process.is_running(), "{daemon} ended:\n{}{}", process.stdout(), process.stderr());
            }
            Ok(vty.exists())
        })
        .map(drop)
    }

    /// Has vtysh do these lines, and gives what it prints.
    ///
    /// # Errors
    /// If it refuses one.
    pub fn vtysh(&self, lines: &[&str]) -> Result<String> {
        let directory = self.directory.display().to_string();
        let mut arguments = vec!["vtysh", "--vty_socket", &directory, "--config_dir", &directory];
        arguments.extend(lines.iter().flat_map(|line| ["-c", line]));
        self.host.run(&arguments)
    }

    /// Has vtysh do these lines in configuration mode.
    ///
    /// # Errors
    /// If it refuses one.
    pub fn configure(&self, lines: &[&str]) -> Result<()> {
        let mut all = vec!["configure terminal"];
        all.extend(lines);
        self.vtysh(&all).map(drop)
    }

    /// The answer to a `show … json`.
    ///
    /// # Errors
    /// If it is refused, or no JSON.
    pub fn show(&self, what: &str) -> Result<Value> {
        let printed = self.vtysh(&[&format!("show {what} json")])?;
        serde_json::from_str(&printed).with_context(|| format!("show {what}: {printed:?}"))
    }

    /// What the daemons logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemons.iter().map(|daemon| daemon.stdout() + &daemon.stderr()).collect()
    }
}

/// Lets root, as which the daemons run, use their sockets: they insist on being in the group that FRR was built with. As any other user
/// they would no longer be told when this process ends.
fn join_vty_group(host: &Host, directory: &Path) -> Result<()> {
    let groups = fs::read_to_string("/etc/group").context("/etc/group")?;
    let joined = |line: &str| match line.strip_prefix(VTY_GROUP) {
        Some(rest) => format!("{VTY_GROUP}{rest}{}root\n", if rest.ends_with(':') { "" } else { "," }),
        None => format!("{line}\n"),
    };
    let file = directory.join("group");
    fs::write(&file, groups.lines().map(joined).collect::<String>())?;
    host.run(&["mount", "--bind", &file.display().to_string(), "/etc/group"]).map(drop)
}

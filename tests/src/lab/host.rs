//! Hosts: what a machine is in a laboratory.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;

use super::namespace::Namespace;
use super::process::{self, Process};
use super::wait_until;

/// A machine of the laboratory: a network namespace with its own mounts. Cheap to clone; all clones are the same machine.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: Namespace,
    directory: PathBuf,
}

/// What a finished command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Host {
    pub(super) fn new(name: &str, directory: &Path) -> Result<Self> {
        let namespace = Namespace::new().with_context(|| format!("namespaces of {name}"))?;
        let inner = Inner { name: name.to_owned(), namespace, directory: directory.to_path_buf() };
        let host = Self { inner: Arc::new(inner) };
        host.ip(&["link set lo up"])?;
        Ok(host)
    }

    /// The host's name, for messages and file names.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A command that will run inside this host, with its mounts, and die with this process.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let (program, rest) = arguments.split_first().unwrap_or((&"true", &[]));
        let found = super::find_program(program.as_ref());
        let mut command = Command::new(found.as_deref().unwrap_or(Path::new(program)));
        command.args(rest);
        let inner = Arc::clone(&self.inner);
        // SAFETY: runs in the forked child; `setns` is a plain system call and nothing is allocated.
        unsafe {
            command.pre_exec(move || Ok(inner.namespace.enter_both()?));
        }
        process::prepare(&mut command);
        command
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.output_with_input(arguments, "")
    }

    /// Runs a command to its end and gives its stdout.
    ///
    /// # Errors
    /// If it can't be started, or ends with a status other than 0: the message carries its stderr.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, "")
    }

    /// Like [`Host::run`], with something on stdin.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.output_with_input(arguments, input)?;
        if !output.status.success() {
            let Output { status, stdout, stderr } = output;
            bail!("{}: `{}`: {status}\n{input}{stdout}{stderr}", self.name(), arguments.join(" "));
        }
        Ok(output.stdout)
    }

    fn output_with_input(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let program = arguments.first().copied().unwrap_or_default();
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| process::explain(program, error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that doesn't read its input is free to; inputs here are shorter than a pipe.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
        Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts a command that keeps running; its guard kills it. `name` names it in messages and its output files.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn spawn(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let name = format!("{}.{name}", self.name());
        Process::spawn(self.command(arguments), &name, &self.inner.directory)
    }

    /// A path to the host's network namespace, for tools that take one (`ip link … netns`, `nsenter --net=`). Good while this
    /// process lives.
    #[must_use]
    pub fn namespace_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.inner.namespace.net().as_raw_fd())
    }

    /// Runs a closure on a thread inside the host's network namespace, and waits for it. Sockets that it makes belong to the
    /// namespace for good, wherever they are used afterwards.
    ///
    /// # Errors
    /// If the thread can't be made or can't enter. A panic inside is passed on.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name(self.name().to_owned()).spawn_scoped(scope, || {
                self.inner.namespace.enter_net()?;
                anyhow::Ok(work())
            })?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
        .with_context(|| format!("enter {}", self.name()))
    }

    /// Runs lines of `ip` commands (without the word `ip`) in one go; stops at the first that fails.
    ///
    /// # Errors
    /// If one fails.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> Result<()> {
        let batch: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
        self.run_with_input(&["ip", "-batch", "-"], &batch).map(drop)
    }

    /// Loads an nft ruleset.
    ///
    /// # Errors
    /// If nft refuses it.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.run_with_input(&["nft", "-f", "-"], &format!("{ruleset}\n")).map(drop)
    }

    /// Sets a network sysctl, named as under /proc/sys/net with slashes: `ipv4/ip_forward`.
    ///
    /// # Errors
    /// If there is none of that name, or the value is refused.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/net/{name}");
        // What /proc/sys/net shows is the namespace of the thread that looks.
        self.enter(|| fs::write(&file, value))?.with_context(|| format!("{}: {file} = {value}", self.name()))
    }

    /// Switches offload features of an interface: `ethtool -K interface features…`.
    ///
    /// # Errors
    /// If ethtool or the driver refuses.
    pub fn features(&self, interface: &str, features: &[&str]) -> Result<()> {
        let mut arguments = vec!["ethtool", "-K", interface];
        arguments.extend(features);
        self.run(&arguments).map(drop)
    }

    /// Sets a link up or down at once: without the milliseconds that starting a program takes.
    ///
    /// # Errors
    /// If there is none of that name, or the kernel refuses.
    pub fn set_link(&self, interface: &str, up: bool) -> Result<()> {
        let set = || -> Result<()> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // SAFETY: plain integers and characters, for which zero is a value.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            let name = interface.bytes().map(u8::cast_signed);
            // The last stays zero.
            let room = request.ifr_name.len() - 1;
            request.ifr_name.iter_mut().take(room).zip(name).for_each(|(to, from)| *to = from);
            let mask = i16::try_from(libc::IFF_UP)?;
            // SAFETY: the kernel reads and writes the request, which lives through the calls; the flags are its part of the union.
            unsafe {
                Errno::result(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
                let flags = request.ifr_ifru.ifru_flags;
                request.ifr_ifru.ifru_flags = if up { flags | mask } else { flags & !mask };
                Errno::result(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request))?;
            }
            Ok(())
        };
        self.enter(set)?.with_context(|| format!("{}: set {interface} {}", self.name(), if up { "up" } else { "down" }))
    }

    /// Wires `interface` of this host to `peer_interface` of `peer` with a veth pair and sets both ends up; see [`Host::wait_for_link`].
    ///
    /// # Errors
    /// If a name is taken, or the kernel refuses.
    pub fn connect(&self, interface: &str, peer: &Self, peer_interface: &str) -> Result<()> {
        // `ip` takes a path to a namespace wherever it takes a name.
        let namespace = peer.namespace_path();
        self.ip(&[
            format!("link add {interface} type veth peer name {peer_interface} netns {namespace}"),
            format!("link set {interface} up"),
        ])?;
        peer.ip(&[format!("link set {peer_interface} up")])
    }

    /// Waits until an interface is operational: the kernel takes up to a second from carrier to there.
    ///
    /// # Errors
    /// If there is none of that name, or it doesn't come up within 5 seconds.
    pub fn wait_for_link(&self, interface: &str) -> Result<()> {
        let what = format!("{}'s {interface} to come up", self.name());
        let file = format!("/sys/class/net/{interface}/operstate");
        wait_until(&what, Duration::from_secs(5), || Ok(self.run(&["cat", &file])?.trim() == "up")).map(drop)
    }

    /// Pings with the system's `ping`: `count` requests, 50 ms apart; gives the number of replies.
    ///
    /// # Errors
    /// If ping can't be run. No reply is no error.
    pub fn ping(&self, to: Ipv4Addr, count: u32) -> Result<u32> {
        self.ping_timed(to, count).map(|(replies, _)| replies)
    }

    /// [`Host::ping`] with the average round trip; zero if there was no reply.
    ///
    /// # Errors
    /// As [`Host::ping`].
    pub fn ping_timed(&self, to: Ipv4Addr, count: u32) -> Result<(u32, Duration)> {
        let count = count.to_string();
        let output = self.output(&["ping", "-n", "-c", &count, "-i", "0.05", "-W", "1", &to.to_string()])?;
        let replies = output.stdout.split(", ").find_map(|part| part.strip_suffix(" received"));
        let replies = replies
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("{}: ping {to}: {}{}", self.name(), output.stdout, output.stderr))?;
        // rtt min/avg/max/mdev = 0.036/0.051/0.103/0.018 ms
        let times = output.stdout.rsplit(" = ").next().unwrap_or_default();
        let average_ms: f64 = times.split('/').nth(1).and_then(|time| time.parse().ok()).unwrap_or_default();
        Ok((replies, Duration::from_secs_f64(average_ms / 1e3)))
    }
}

//! One run of a VM: a command in, its output and exit status out.
//!
//! Purpose: QEMU boots a kernel over a read-only view of this machine's root. A directory of the run's own is shared
//! for writing: the VM finds the command there, and leaves output and exit status.
//!
//! Invariants: QEMU ends with this process, however that ends; the run's directory goes with the run (what a killed
//! process left is cleared by the next). Hardware virtualisation is used only where it can work.
//!
//! Failure behaviour: a VM that ends without a status, or in the time limit, is an [`End`] with what its console showed.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::{
        ffi::OsStrExt as _,
        process::{CommandExt as _, parent_id},
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{initramfs, kernels::Kernel, tools::Tools};

/// Sets up the VM's system and runs the command.
const SYSTEM: &str = include_str!("system.sh");
/// How often output is passed on.
const INTERVAL: Duration = Duration::from_millis(50);
/// How much of the console is shown of a VM that died, in lines.
const CONSOLE_LINES: usize = 80;
/// What ends a run early.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// Variables of the caller that the command sees, besides those whose names start with `MH_`.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "LANG", "TERM", "RUST_BACKTRACE", "RUST_LOG"];

/// A VM that can be started any number of times.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Where the directories of runs are made.
    pub cache: &'a Path,
    /// What it boots.
    pub kernel: &'a Kernel,
    /// What it is made with.
    pub tools: &'a Tools,
    /// The longest that one run may take, boot included.
    pub limit: Duration,
}

/// What is run in a VM.
#[derive(Debug)]
pub struct Job<'a> {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Where it is started.
    pub directory: &'a Path,
    /// Variables besides those that are passed on.
    pub variables: Vec<(&'static str, OsString)>,
}

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// stdout.
    Output,
    /// stderr.
    Errors,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this status.
    Status(u8),
    /// The time was up.
    TimeLimit {
        /// The end of what the console showed.
        console: String,
    },
    /// The VM ended without a status.
    Died {
        /// The end of what the console showed, and what QEMU said.
        console: String,
    },
    /// This process was told to end, by this signal.
    Interrupted(Signal),
}

impl Machine<'_> {
    /// Runs a job to its end; `pass_on` gets its output as it comes.
    ///
    /// # Errors
    /// If the run can't be prepared or QEMU not started, or if `pass_on` fails.
    pub fn run(&self, job: &Job<'_>, mut pass_on: impl FnMut(Stream, &[u8]) -> io::Result<()>) -> Result<End> {
        let run = RunDirectory::make(self.cache)?;
        run.write("initramfs", &initramfs::make(self.kernel, &self.tools.busybox.file)?)?;
        run.write("settings", &settings(&self.kernel.modules))?;
        run.write("system", SYSTEM.as_bytes())?;
        run.write("command", &script(job, env::vars_os()))?;
        run.write("stdout", b"")?;
        run.write("stderr", b"")?;
        let mut streams =
            [(Stream::Output, File::open(run.file("stdout"))?), (Stream::Errors, File::open(run.file("stderr"))?)];

        let signals = Signals::catch()?;
        let mut qemu = Guard::start(&mut self.qemu(&run)?)?;
        let begun = Instant::now();
        loop {
            // Before the last look at the streams, so that none of the output is lost.
            let ended = qemu.0.try_wait()?;
            for (stream, file) in &mut streams {
                drain(file, |bytes| pass_on(*stream, bytes))?;
            }
            if ended.is_some() {
                break;
            }
            if let Some(signal) = signals.caught()? {
                return Ok(End::Interrupted(signal));
            }
            if begun.elapsed() > self.limit {
                drop(qemu);
                return Ok(End::TimeLimit { console: run.console() });
            }
            thread::sleep(INTERVAL);
        }
        // A terminal's ctrl-C reaches QEMU as well, which then may be the first to end.
        if let Some(signal) = signals.caught()? {
            return Ok(End::Interrupted(signal));
        }
        let status = fs::read_to_string(run.file("status")).ok().and_then(|text| text.trim().parse().ok());
        Ok(status.map_or_else(|| End::Died { console: run.console() }, End::Status))
    }

    fn qemu(&self, run: &RunDirectory) -> Result<Command> {
        let mut command = self.tools.qemu.command();
        command.args(self.tools.qemu.firmware());
        if virtualisation_works() {
            command.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            // Not the model of a real Intel CPU: that would bring page table isolation, which makes each system call
            // ten times as slow here. AVX is emulated slower than SSE.
            command.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off,avx=off,avx2=off,xsave=off"]);
        }
        let path = run.0.display();
        command.args(["-machine", "pc,usb=off,vmport=off", "-smp", "2", "-m", "1024", "-no-reboot"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"]);
        command.args(["-chardev", &format!("file,id=console,path={path}/console"), "-serial", "chardev:console"]);
        command.args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]);
        command.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
        command.args(["-fsdev", &format!("local,id=run,path={path},security_model=none")]);
        command.args(["-device", "virtio-9p-pci,fsdev=run,mount_tag=run"]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(run.file("initramfs"));
        // A panic ends the VM at once, and so does an oops: what comes after it proves nothing.
        command.args(["-append", "console=ttyS0 quiet panic=-1 oops=panic no_timer_check random.trust_cpu=on"]);
        let log = File::create(run.file("qemu.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

/// Whether KVM is here and the CPU can do it: some hosts offer a `/dev/kvm` that no ordinary kernel gets far on.
fn virtualisation_works() -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    can_virtualise(&cpus) && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

fn can_virtualise(cpuinfo: &str) -> bool {
    cpuinfo.split_whitespace().any(|word| word == "vmx" || word == "svm")
}

/// What the first stage reads.
fn settings(modules: &Path) -> Vec<u8> {
    [b"MODULES=", quoted(modules.as_os_str()).as_slice(), b"\n"].concat()
}

/// The command as a shell's script.
fn script(job: &Job<'_>, variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<u8> {
    let passed_on = |name: &OsStr| PASSED_ON.iter().any(|one| name == *one) || name.as_bytes().starts_with(b"MH_");
    let mut script = b"cd ".to_vec();
    script.extend(quoted(job.directory.as_os_str()));
    script.extend(b" || exit 126\n");
    let own = job.variables.iter().map(|(name, value)| (OsString::from(name), value.clone()));
    for (name, value) in variables.filter(|(name, _)| passed_on(name)).chain(own) {
        script.extend(b"export ");
        script.extend(name.as_bytes());
        script.push(b'=');
        script.extend(quoted(&value));
        script.push(b'\n');
    }
    script.extend(b"exec");
    for word in &job.command {
        script.push(b' ');
        script.extend(quoted(word));
    }
    script.push(b'\n');
    script
}

/// A word for the shell to take as it is.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// Reads what was added to a file.
fn drain(file: &mut File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        take(buffer.get(..length).unwrap_or_default())?;
    }
}

/// The directory shared with a VM; removed when dropped.
#[derive(Debug)]
struct RunDirectory(PathBuf);

impl RunDirectory {
    fn make(cache: &Path) -> Result<Self> {
        let runs = cache.join("runs");
        fs::create_dir_all(&runs)?;
        for entry in fs::read_dir(&runs)?.flatten() {
            if !Path::new("/proc").join(entry.file_name()).exists() {
                // Another process may be at it as well.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let directory = runs.join(process::id().to_string());
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory).with_context(|| format!("can't make {}", directory.display()))?;
        Ok(Self(directory))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        let file = self.file(name);
        fs::write(&file, contents).with_context(|| format!("can't write {}", file.display()))
    }

    /// The end of what the console showed, and what QEMU said.
    fn console(&self) -> String {
        let console = fs::read(self.file("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let mut text = lines.get(lines.len().saturating_sub(CONSOLE_LINES)..).unwrap_or_default().join("\n");
        text.push('\n');
        text.push_str(&fs::read_to_string(self.file("qemu.log")).unwrap_or_default());
        text.trim().to_owned()
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // Best effort; the next run tries again.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A QEMU that is killed when dropped.
#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn start(command: &mut Command) -> Result<Self> {
        let parent = process::id();
        // SAFETY: runs in the forked child; prctl, getppid and sigprocmask are async-signal-safe, and nothing is
        // allocated.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                if parent_id() != parent {
                    // The parent was gone before the line above could tell the kernel.
                    return Err(io::Error::from(Errno::ESRCH));
                }
                // The parent's, which keeps these signals to itself, would be inherited.
                SigSet::empty().thread_set_mask()?;
                Ok(())
            });
        }
        Ok(Self(command.spawn().context("can't start QEMU")?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Holds signals back, to be asked for; what was held back is delivered when this is dropped.
#[derive(Debug)]
struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    fn catch() -> Result<Self> {
        let signals: SigSet = SIGNALS.into_iter().collect();
        let before = SigSet::thread_get_mask()?;
        signals.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { descriptor: SignalFd::with_flags(&signals, flags)?, before })
    }

    fn caught(&self) -> Result<Option<Signal>> {
        let Some(info) = self.descriptor.read_signal()? else { return Ok(None) };
        Ok(Some(Signal::try_from(i32::try_from(info.ssi_signo)?)?))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Can't fail with a mask that was in force before.
        let _ = self.before.thread_set_mask();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_takes_words_as_they_are() {
        assert_eq!(quoted("a b".as_ref()), b"'a b'");
        assert_eq!(quoted("".as_ref()), b"''");
        assert_eq!(quoted("it's $HOME\n".as_ref()), b"'it'\\''s $HOME\n'");
        assert_eq!(quoted(OsStr::from_bytes(b"\xff\\")), b"'\xff\\'");
        let words = ["'", "''", "\\'", "a'b\"c`d$(e)", "*"];
        let mut line = b"printf '%s\\n'".to_vec();
        for word in words {
            line.push(b' ');
            line.extend(quoted(word.as_ref()));
        }
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&line)).output().unwrap();
        assert_eq!(output.stdout, format!("{}\n", words.join("\n")).into_bytes());
    }

    #[test]
    fn the_command_gets_what_is_meant_for_it() {
        let job = Job {
            command: vec!["/bin/t".into(), "a b".into()],
            directory: Path::new("/it's here"),
            variables: vec![("MH_BIN_DIR", "/bin dir".into())],
        };
        let variables = [("MH_LAB_LOG", "debug"), ("SECRET", "x"), ("PATH", "/bin")];
        let script = script(&job, variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        assert_eq!(
            String::from_utf8(script).unwrap(),
            "cd '/it'\\''s here' || exit 126\nexport MH_LAB_LOG='debug'\nexport PATH='/bin'\n\
             export MH_BIN_DIR='/bin dir'\nexec '/bin/t' 'a b'\n"
        );
    }

    #[test]
    fn virtualisation_is_a_flag_of_the_cpu() {
        assert!(can_virtualise("flags\t\t: fpu vmx sse\n"));
        assert!(can_virtualise("flags\t\t: fpu svm\n"));
        assert!(!can_virtualise("flags\t\t: fpu svm_lock vmxish\n"));
    }
}

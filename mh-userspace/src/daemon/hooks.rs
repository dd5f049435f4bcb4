//! The program of `[hooks] on_change`, run for each event of an uplink.
//!
//! Invariants: nothing waits for a hook. One runs at a time, in the order of the events; of events that wait, the latest [`QUEUE`] are
//! kept, and dropping others is a warning. A hook is a process group of its own, and ends as one: at its timeout, when its leader
//! ends, and when the runner does, so nothing of it outlives mhd (but for what leaves the group).
//!
//! Failure behaviour: a hook that can't be run, takes too long or ends with a status other than 0 is a warning in the log and among the
//! events, and changes nothing else.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    pin::{Pin, pin},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::{FutureExt as _, future::FusedFuture};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, killpg},
    },
    unistd::{Pid, getpid, getppid},
};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use crate::{
    config::Hooks,
    control::{
        api::{Event, EventKind},
        events::{EventLog, Follower},
    },
};

/// How many events wait for a hook at the most.
const QUEUE: usize = 256;
/// How many lines of a hook's output are logged.
const MAX_LINES: usize = 100;
/// How many bytes of a line are logged.
const MAX_LINE: usize = 512;
/// A hook that writes more bytes than this finds its output closed.
const MAX_OUTPUT: usize = 1 << 20;
/// How long a killed hook may take to be gone, and its output to end.
const GRACE: Duration = Duration::from_secs(1);

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("it can't be run: {0}; see that it is there and executable")]
    Start(io::Error),
    #[error("it took longer than {0:?} and was killed; mend it, or raise timeout in [hooks]")]
    Timeout(Duration),
    #[error("it ended with {0}")]
    Status(ExitStatus),
    #[error("its end was not seen: {0}")]
    Wait(io::Error),
}

/// Runs the hooks in force for every event, until mhd ends.
pub async fn run(events: EventLog, hooks: watch::Receiver<Hooks>) {
    let mut follower = events.follow_inside();
    let mut waiting = VecDeque::new();
    loop {
        let dropped = gather(&mut follower, &mut waiting).await;
        if dropped > 0 {
            events.warn(format!("hooks are slower than changes: {dropped} events are told to none"));
        }
        let Some(event) = waiting.pop_front() else { return };
        let Hooks { on_change: Some(program), timeout } = hooks.borrow().clone() else { continue };
        if let Err(error) = run_one(&program, timeout, &event).await {
            let uplink = event.uplink.as_deref().unwrap_or_default();
            events.warn(format!("hook {} for {uplink}: {error}", program.display()));
        }
    }
}

/// Takes in all events that are there, and waits for one if there is none. Returns how many were dropped; nothing waits when events end.
async fn gather(follower: &mut Follower, waiting: &mut VecDeque<Event>) -> usize {
    let mut dropped = 0;
    loop {
        let next = if waiting.is_empty() { follower.next().await } else { follower.next().now_or_never().flatten() };
        let Some(events) = next else { return dropped };
        // An uplink's first state is no change.
        let changes = |event: &Event| event.kind == EventKind::Uplink && event.previous_state.is_some();
        waiting.extend(events.into_iter().filter(changes));
        let excess = waiting.len().saturating_sub(QUEUE);
        waiting.drain(..excess);
        dropped += excess;
    }
}

/// A process group that is killed when this is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It may be gone.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

/// Runs a hook to its end.
async fn run_one(program: &Path, limit: Duration, event: &Event) -> Result<(), HookError> {
    let (mut child, output) = start(program, event).map_err(HookError::Start)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(|id| Group(Pid::from_raw(id)));
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let mut output = pin!(log_output(&name, output).fuse());
    let ended = tokio::select! {
        ended = timeout(limit, child.wait()) => ended,
        ended = read_and_wait(output.as_mut()) => ended,
    };
    drop(group);
    let status = match ended {
        Ok(status) => Ok(status.map_err(HookError::Wait)?),
        Err(_) => {
            // It is killed: what is left is to see it go.
            let _ = timeout(GRACE, child.wait()).await;
            Err(HookError::Timeout(limit))
        }
    };
    if !output.is_terminated() {
        let _ = timeout(GRACE, output).await;
    }
    match status? {
        status if status.success() => Ok(()),
        status => Err(HookError::Status(status)),
    }
}

/// Reads output beside something else that ends: ends never itself.
async fn read_and_wait<T>(output: Pin<&mut impl FusedFuture>) -> T {
    if !output.is_terminated() {
        output.await;
    }
    std::future::pending().await
}

fn start(program: &Path, event: &Event) -> io::Result<(Child, pipe::Receiver)> {
    let (reader, writer) = io::pipe()?;
    let word = |state: Option<_>| {
        state.map_or_else(|| "removed".to_owned(), |state: crate::control::api::UplinkState| state.to_string())
    };
    let mut command = Command::new(program);
    command
        .env("MH_UPLINK", event.uplink.as_deref().unwrap_or_default())
        .env("MH_INTERFACE", event.interface.as_deref().unwrap_or_default())
        .env("MH_PREVIOUS_STATE", word(event.previous_state))
        .env("MH_STATE", word(event.state))
        .env("MH_REASON", &event.reason)
        .env("MH_TIME", &event.time)
        // It shall not speak to the service manager in mhd's name.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true);
    let parent = getpid();
    // SAFETY: runs in the forked child; prctl and getppid are async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            // Should mhd be killed. It is the thread that counts: one of the runtime's, which live as long as mhd does.
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() == parent { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
        });
    }
    let child = command.spawn()?;
    // The command's ends of the pipe go with it here: else its end would never be seen.
    drop(command);
    Ok((child, pipe::Receiver::from_owned_fd(reader.into())?))
}

/// Logs what a hook writes, line by line, until it closes its output or has written too much.
async fn log_output(name: &str, mut output: pipe::Receiver) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = match output.read(&mut buffer).await {
            Ok(length) if length > 0 => length,
            // An error ends it too: there is nothing to mend.
            _ => break,
        };
        lines.take(buffer.get(..length).unwrap_or_default(), &mut |line| tracing::info!("hook {name}: {line}"));
        if lines.bytes > MAX_OUTPUT {
            tracing::warn!("hook {name} wrote more than {MAX_OUTPUT} bytes: its output is closed");
            break;
        }
    }
    lines.finish(&mut |line| tracing::info!("hook {name}: {line}"));
}

/// Cuts output into lines, at most [`MAX_LINES`] of at most [`MAX_LINE`] bytes.
#[derive(Debug, Default)]
struct Lines {
    line: Vec<u8>,
    count: usize,
    bytes: usize,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], log: &mut impl FnMut(&str)) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(log),
                byte if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self, log: &mut impl FnMut(&str)) {
        if self.count < MAX_LINES {
            // No escapes to whoever reads the log on a terminal.
            let text = String::from_utf8_lossy(&self.line).replace(char::is_control, " ");
            log(text.trim_end());
        }
        self.count += 1;
        self.line.clear();
    }

    fn finish(mut self, log: &mut impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.end_line(log);
        }
        if self.count > MAX_LINES {
            log(&format!("and {} more lines", self.count - MAX_LINES));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Instant};

    use super::*;
    use crate::{control::api::UplinkState, core::Change};

    /// A shell script in a directory of its own.
    struct Script {
        dir: tempfile::TempDir,
    }

    impl Script {
        fn new(body: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let script = Self { dir };
            fs::write(script.path(), format!("#!/bin/sh\ncd {}\n{body}\n", script.dir.path().display())).unwrap();
            fs::set_permissions(script.path(), fs::Permissions::from_mode(0o755)).unwrap();
            script
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("hook")
        }

        fn file(&self, name: &str) -> String {
            fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
        }

        /// The numbers of processes that the script wrote into a file; all of them must be gone.
        fn check_gone(&self, name: &str, count: usize) {
            let text = self.file(name);
            let ids: Vec<i32> = text.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(ids.len(), count, "{text:?}");
            for id in ids {
                let begun = Instant::now();
                // Killed, and reaped by whoever is its parent now.
                while fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
                    assert!(begun.elapsed() < Duration::from_secs(10), "{id} is still there");
                    std::thread::yield_now();
                }
            }
        }
    }

    fn change(uplink: &str, n: usize) -> Change {
        Change {
            uplink: uplink.to_owned(),
            interface: "wan1".to_owned(),
            previous: Some(UplinkState::Up),
            state: Some(UplinkState::Down),
            reason: format!("reason {n}"),
        }
    }

    fn event() -> Event {
        let log = EventLog::default();
        log.push(change("isp1", 1));
        log.list(None).remove(0)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_hook_is_told_what_changed() {
        let script = Script::new(
            "echo $# $MH_UPLINK $MH_INTERFACE $MH_PREVIOUS_STATE $MH_STATE $MH_REASON, $MH_TIME > told; cat >> told
             ps -o pgid= $$ > group; echo $$ > id",
        );
        let event = event();
        run_one(&script.path(), LONG, &event).await.unwrap();
        assert_eq!(script.file("told"), format!("0 isp1 wan1 up down reason 1, {}\n", event.time));
        assert_eq!(script.file("group").trim(), script.file("id").trim());
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said() {
        let error = run_one(Path::new("/nonexistent/hook"), LONG, &event()).await.unwrap_err();
        assert!(matches!(error, HookError::Start(_)), "{error}");
        let error = run_one(&Script::new("echo oh >&2; exit 3").path(), LONG, &event()).await.unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_killed_with_all_that_it_started() {
        let script = Script::new("sleep 1000 & echo $! $$ > ids; mv ids done; wait");
        let begun = Instant::now();
        let error = run_one(&script.path(), Duration::from_millis(500), &event()).await.unwrap_err();
        assert!(matches!(error, HookError::Timeout(_)), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        script.check_gone("done", 2);
    }

    #[tokio::test]
    async fn what_a_hook_leaves_running_ends_with_it() {
        let script = Script::new("sleep 1000 & echo $! > ids");
        let begun = Instant::now();
        run_one(&script.path(), LONG, &event()).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        script.check_gone("ids", 1);
    }

    #[tokio::test]
    async fn a_flood_of_output_is_cut() {
        let begun = Instant::now();
        let error = run_one(&Script::new("exec yes").path(), LONG, &event()).await.unwrap_err();
        // SIGPIPE.
        assert!(matches!(&error, HookError::Status(status) if !status.success()), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }

    #[test]
    fn output_is_cut_into_lines() {
        let mut logged = Vec::new();
        let mut log = |line: &str| logged.push(line.to_owned());
        let mut lines = Lines::default();
        lines.take(b"one\ntw", &mut log);
        lines.take(b"o\n\x1b[31mred\xff\n", &mut log);
        lines.take(&[b'x'; 2 * MAX_LINE], &mut log);
        lines.take(&[b'\n'; MAX_LINES], &mut log);
        lines.take(b"end", &mut log);
        lines.finish(&mut log);
        assert_eq!(logged[..3], ["one", "two", " [31mred\u{fffd}"]);
        assert_eq!(logged[3], "x".repeat(MAX_LINE));
        assert_eq!(logged.len(), MAX_LINES + 1);
        assert_eq!(logged[MAX_LINES], "and 4 more lines");
    }

    fn hooks(script: &Script) -> Hooks {
        Hooks { on_change: Some(script.path()), timeout: LONG }
    }

    async fn until(what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(30), "waited for {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hooks_run_in_order_and_follow_the_configuration() {
        let (first, second) = (Script::new("echo $MH_REASON >> told"), Script::new("echo $MH_REASON >> told"));
        let events = EventLog::default();
        let (in_force, configured) = watch::channel(hooks(&first));
        let runner = tokio::spawn(run(events.clone(), configured));
        // No change: a first state, and what is not about an uplink.
        events.push(Change { previous: None, ..change("isp1", 0) });
        events.warn("a warning");
        (1..=3).for_each(|n| events.push(change("isp1", n)));
        until("three hooks", || first.file("told") == "reason 1\nreason 2\nreason 3\n").await;
        in_force.send_replace(hooks(&second));
        events.push(change("isp1", 4));
        until("the second hook", || second.file("told") == "reason 4\n").await;
        in_force.send_replace(Hooks { on_change: Some("/nonexistent/hook".into()), timeout: LONG });
        events.push(change("isp1", 5));
        until("a warning", || events.list(None).iter().any(|event| event.reason.contains("/nonexistent/hook"))).await;
        in_force.send_replace(hooks(&second));
        events.push(change("isp1", 6));
        events.close();
        runner.await.unwrap();
        assert_eq!(second.file("told"), "reason 4\nreason 6\n", "what waits at the end of events is run");
        assert_eq!(first.file("told").lines().count(), 3);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hook_that_hangs_delays_nobody_and_ends_with_the_runner() {
        let script = Script::new("sleep 1000 & echo $! $$ > ids; mv ids begun; wait");
        let events = EventLog::default();
        let (_in_force, configured) = watch::channel(hooks(&script));
        let runner = tokio::spawn(run(events.clone(), configured));
        let begun = Instant::now();
        (0..QUEUE + 51).for_each(|n| events.push(change("isp1", n)));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        until("the hook", || !script.file("begun").is_empty()).await;
        runner.abort();
        let _ = runner.await;
        script.check_gone("begun", 2);
    }

    #[tokio::test]
    async fn of_events_that_wait_the_latest_are_kept() {
        let events = EventLog::default();
        let mut follower = events.follow_inside();
        let mut waiting = VecDeque::new();
        (0..QUEUE + 50).for_each(|n| events.push(change("isp1", n)));
        assert_eq!(gather(&mut follower, &mut waiting).await, 50);
        assert_eq!(waiting.len(), QUEUE);
        assert_eq!(waiting[0].reason, "reason 50");
    }
}

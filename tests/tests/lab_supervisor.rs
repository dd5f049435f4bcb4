//! What mhd tells a service manager, heard on a notification socket of the test's own.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mh_tests::lab::{Mode, run, wait_until};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Far more than a busy machine delays mhd by, and short enough to be seen several times.
const WATCHDOG: Duration = Duration::from_secs(2);

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The next message that has this line. Others before it are of no interest.
    fn wait_for(&self, line: &str) -> Result<Vec<String>> {
        let deadline = Instant::now() + TIMEOUT;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            let length = self.socket.recv(&mut buffer).with_context(|| format!("waiting for {line}"))?;
            let text = String::from_utf8(buffer[..length].to_vec())?;
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.iter().any(|l| l == line) {
                return Ok(lines);
            }
        }
        bail!("waited {TIMEOUT:?} for {line}")
    }
}

fn monotonic_us() -> Result<i128> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000)
}

#[test]
fn the_service_manager_hears_it_all() -> Result<()> {
    run(Mode::Tc, |scene| {
        assert_eq!(scene.mhd.sigterm()?.code(), Some(0));
        let path = scene.lab.lab().directory().join("notify.sock");
        let manager = Manager { socket: UnixDatagram::bind(&path)? };
        manager.socket.set_read_timeout(Some(TIMEOUT))?;
        let (notify, watchdog) =
            (format!("NOTIFY_SOCKET={}", path.display()), format!("WATCHDOG_USEC={}", WATCHDOG.as_micros()));
        let arguments = scene.mhd.arguments()?;
        let line: Vec<&str> =
            ["env", &notify, &watchdog].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let mut mhd = scene.lab.router.spawn("notifying-mhd", &line)?;

        let ready = manager.wait_for("READY=1")?;
        assert!(ready.contains(&"STATUS=2 of 2 uplinks up".to_owned()), "{ready:?}");
        // Ready means that it answers.
        scene.mhd.ctl(&["status"])?;
        let mut last = Instant::now();
        for _ in 0..5 {
            manager.wait_for("WATCHDOG=1")?;
            assert!(last.elapsed() < WATCHDOG, "{:?} between two signs of life", last.elapsed());
            last = Instant::now();
        }
        scene.mhd.ctl(&["health", "isp1", "down"])?;
        manager.wait_for("STATUS=1 of 2 uplinks up")?;

        let reload = |reload: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            let before = monotonic_us()?;
            reload()?;
            let reloading = manager.wait_for("RELOADING=1")?;
            let time = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).context("no time")?;
            assert!((before..=monotonic_us()?).contains(&time.parse()?), "{reloading:?}");
            let ready = manager.wait_for("READY=1")?;
            assert!(ready.contains(&"STATUS=1 of 2 uplinks up".to_owned()), "{ready:?}");
            Ok(())
        };
        reload(&mut || scene.mhd.ctl(&["reload"]).map(drop))?;
        reload(&mut || mhd.signal(Signal::SIGHUP))?;
        // A configuration that is refused ends the reload too.
        let config = std::fs::read_to_string(scene.mhd.config())?;
        scene.mhd.write_config("lan = 3\n")?;
        reload(&mut || mhd.signal(Signal::SIGHUP))?;
        scene.mhd.write_config(&config)?;

        // A loop that does not run gives no sign of life.
        mhd.signal(Signal::SIGSTOP)?;
        manager.socket.set_nonblocking(true)?;
        let mut silent_since = Instant::now();
        wait_until("silence", TIMEOUT, || {
            if manager.socket.recv(&mut [0; 4096]).is_ok() {
                silent_since = Instant::now();
            }
            Ok(silent_since.elapsed() > WATCHDOG)
        })?;
        manager.socket.set_nonblocking(false)?;
        mhd.signal(Signal::SIGCONT)?;
        manager.wait_for("WATCHDOG=1")?;

        mhd.signal(Signal::SIGTERM)?;
        manager.wait_for("STOPPING=1")?;
        assert_eq!(mhd.wait(TIMEOUT)?.code(), Some(0), "{}", mhd.stderr());
        Ok(())
    })
}

//! How a laboratory test is run: what it gets, and what is printed when it fails.

use std::io::Write as _;
use std::net::SocketAddrV4;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Context as _, Result};

use super::traffic::{TcpServer, UdpServer};
use super::{Lab, Mhd, Mode, Options, SERVER, TwoIsps, skipped};

/// The port of the internet host's TCP and UDP servers in a [`Scene`].
const SERVER_PORT: u16 = 7000;

/// What a test gets: the standard topology, mhd ready in the router with weights 1:1, servers on the internet host.
#[derive(Debug)]
pub struct Scene {
    /// A TCP server on the internet host.
    pub tcp: TcpServer,
    /// A UDP server on the internet host.
    pub udp: UdpServer,
    /// mhd in the router.
    pub mhd: Mhd,
    /// The hosts.
    pub lab: TwoIsps,
}

impl Scene {
    /// Builds it for a mode.
    ///
    /// # Errors
    /// If the laboratory can't be built, or mhd doesn't start.
    pub fn new(mode: Mode) -> Result<Self> {
        Self::configured(&Options::new(mode), |lab| lab.config(&[1, 1]))
    }

    /// Builds it with these options and this config.
    ///
    /// # Errors
    /// As [`Scene::new`].
    pub fn configured(options: &Options, config: impl FnOnce(&TwoIsps) -> String) -> Result<Self> {
        let lab = Lab::two_isps(options)?;
        let config = config(&lab);
        Self::start(lab, &config)
    }

    /// Starts mhd with this config, and the servers, in a topology that is there.
    ///
    /// # Errors
    /// If one doesn't start.
    pub fn start(lab: TwoIsps, config: &str) -> Result<Self> {
        let mhd = Mhd::start(lab.lab(), &lab.router, config)?;
        let address = SocketAddrV4::new(SERVER, SERVER_PORT);
        Ok(Self {
            tcp: TcpServer::start(&lab.server, address)?,
            udp: UdpServer::start(&lab.server, address)?,
            mhd,
            lab,
        })
    }

    /// Sets the weights of isp1 and isp2 with mhctl.
    ///
    /// # Errors
    /// If mhctl refuses.
    pub fn set_weights(&self, isp1: u32, isp2: u32) -> Result<()> {
        self.mhd.ctl(&["weights", &format!("isp1={isp1}"), &format!("isp2={isp2}")]).map(drop)
    }

    /// What to look at when something failed.
    fn report(&self) -> String {
        let mut report = String::new();
        let mut section = |title: &str, text: Result<String>| {
            let text = text.unwrap_or_else(|error| format!("{error:#}"));
            report += &format!("--- {title}\n{}\n", text.trim_end());
        };
        section("mhd's log", Ok(self.mhd.log()));
        for command in ["status", "stats", "bindings"] {
            section(&format!("mhctl {command}"), self.mhd.ctl(&[command]));
        }
        section("mhctl flows list", self.mhd.ctl(&["flows", "list", "--limit", "40"]));
        for command in ["ip -s -d addr", "ip route show table all type unicast", "ip neigh"] {
            let words: Vec<&str> = command.split(' ').collect();
            section(&format!("router: {command}"), self.lab.router.run(&words));
        }
        report
    }
}

/// Runs a test with its scene in one mode; prints what there is to see if it fails, and says so if it needs root.
///
/// # Errors
/// What the test failed with.
pub fn run(mode: Mode, test: fn(&mut Scene) -> Result<()>) -> Result<()> {
    run_with(&Options::new(mode), test)
}

/// [`run`] with a laboratory of these options.
///
/// # Errors
/// As [`run`].
pub fn run_with(options: &Options, test: fn(&mut Scene) -> Result<()>) -> Result<()> {
    run_configured(options, |lab| lab.config(&[1, 1]), test)
}

/// [`run`] with options and a config of choice.
///
/// # Errors
/// What the test failed with.
pub fn run_configured(
    options: &Options,
    config: impl FnOnce(&TwoIsps) -> String,
    test: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<()> {
    let mode = options.mode.name();
    run_scene(|| Scene::configured(options, config).with_context(|| format!("laboratory in {mode} mode")), test)
}

/// [`run`] with a scene of the test's own.
///
/// # Errors
/// What the scene or the test failed with.
pub fn run_scene(build: impl FnOnce() -> Result<Scene>, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = build()?;
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&mut scene)));
    if !matches!(outcome, Ok(Ok(()))) {
        let name = std::thread::current().name().unwrap_or("test").to_owned();
        // In one piece, since tests run side by side; to no avail if the terminal is gone.
        let _ = writeln!(std::io::stderr(), "=== {name} failed: its laboratory\n{}=== end of {name}", scene.report());
    }
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Makes a `#[test]` of each function named, once per [`Mode`]: `tc::NAME` and `xdp::NAME`. The functions take
/// `&mut Scene` and return `anyhow::Result<()>`.
#[macro_export]
macro_rules! in_both_modes {
    ($($name:ident),+ $(,)?) => {
        mod tc {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                $crate::lab::run($crate::lab::Mode::Tc, super::$name)
            })+
        }
        mod xdp {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                $crate::lab::run($crate::lab::Mode::Xdp, super::$name)
            })+
        }
    };
}

/// Runs a test with a bare topology (no mhd); skips without root.
///
/// # Errors
/// What the test failed with.
pub fn in_lab(options: &Options, test: fn(&TwoIsps) -> Result<()>) -> Result<()> {
    if skipped() {
        return Ok(());
    }
    test(&Lab::two_isps(options)?)
}

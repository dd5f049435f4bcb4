//! The demonstration: mh in the router of the standard laboratory, with real servers and clients around it, and a report of
//! what was measured.
//!
//! Each row of the report has its criterion; the program ends with status 1 if any is not met, 2 if the demonstration can't be
//! held at all (not root, tools or programs missing). A step that fails becomes a row that says why, and the next steps still run.
//! Everything is gone at the end, also after ctrl-C: namespaces and processes go with this process, and a thread that waits for
//! the signals removes the laboratory's directory.

mod failover;
mod report;
mod scenario;
mod services;
mod shell;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use self::report::{Report, Terminal};
use self::scenario::Scenario;
use crate::lab::{self, Mode, binary, require_tools};

/// The config that the router runs with, but for the mode.
const CONFIG: &str = include_str!("../../../docs/examples/two-uplinks.toml");

/// What the demonstration runs besides mh's own programs.
const TOOLS: [&str; 7] = ["ip", "ethtool", "nft", "ping", "curl", "nginx", "iperf3"];

/// Set while a shell has the terminal: ctrl-C is the shell's business then.
static IN_SHELL: AtomicBool = AtomicBool::new(false);

/// A router with two uplinks in network namespaces: real traffic, measured.
#[derive(Debug, Parser)]
#[command(name = "mh-demo", version)]
struct Arguments {
    /// How mh is attached to the interfaces.
    #[arg(long, value_enum, default_value = "tc")]
    mode: ModeArgument,
    /// Open a shell in the router at the end; everything is cleaned up when it exits.
    #[arg(long)]
    shell: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArgument {
    Tc,
    Xdp,
}

impl From<ModeArgument> for Mode {
    fn from(mode: ModeArgument) -> Self {
        match mode {
            ModeArgument::Tc => Self::Tc,
            ModeArgument::Xdp => Self::Xdp,
        }
    }
}

/// Runs the demonstration with this process's arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mh-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True if everything was as it should be.
fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(lab::is_root(), "needs root: network namespaces can't be made otherwise");
    require_tools(&TOOLS)?;
    binary("mhd")?;
    binary("mhctl")?;
    end_on_signals()?;

    let begun = Instant::now();
    let mode = arguments.mode.into();
    let terminal = Terminal::new();
    let mut report = Report::default();
    let mut scenario = Scenario::new(mode, &config(mode)?, terminal)?;
    scenario.run(&mut report);
    let good = report.is_good();
    if !good {
        eprintln!("\nmhd's log:\n{}", scenario.mhd.log());
    }
    report.print(terminal, mode, begun.elapsed());
    if arguments.shell {
        IN_SHELL.store(true, Ordering::Relaxed);
        let outcome = shell::open(&scenario.lab, &scenario.mhd);
        IN_SHELL.store(false, Ordering::Relaxed);
        outcome?;
    }
    Ok(good)
}

/// The example's config with the mode put in: on veth, `auto` would mean TC.
fn config(mode: Mode) -> Result<String> {
    let mut config: toml::Table = CONFIG.parse().context("docs/examples/two-uplinks.toml")?;
    let datapath = config.entry("datapath").or_insert_with(|| toml::Table::new().into());
    let datapath = datapath.as_table_mut().context("docs/examples/two-uplinks.toml: datapath is no table")?;
    datapath.insert("mode".into(), mode.name().into());
    Ok(toml::to_string(&config)?)
}

/// From here on, a signal that would end this process leaves nothing behind.
fn end_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Before any other thread: all inherit it, so that the signals wait for the thread below. Children get an empty mask again.
    signals.thread_block().context("block signals")?;
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGINT && IN_SHELL.load(Ordering::Relaxed) {
                continue;
            }
            eprintln!("\nmh-demo: {signal}: cleaning up");
            // What the other threads still have to say is about things that are being taken away.
            let _quiet = (std::io::stdout().lock(), std::io::stderr().lock());
            lab::clean_up();
            std::process::exit(128 + signal as i32);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("signal thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_example_fits_the_laboratory() {
        for mode in [Mode::Tc, Mode::Xdp] {
            let table: toml::Table = config(mode).unwrap().parse().unwrap();
            assert_eq!(table["datapath"]["mode"].as_str(), Some(mode.name()));
            for (name, interface, gateway, weight) in
                [("isp1", "wan1", "198.51.100.1", 2), ("isp2", "wan2", "203.0.113.1", 1)]
            {
                let uplink = &table["uplink"][name];
                assert_eq!(uplink["interface"].as_str(), Some(interface));
                assert_eq!(uplink["gateway"].as_str(), Some(gateway));
                assert_eq!(uplink["weight"].as_integer(), Some(weight));
            }
        }
    }
}

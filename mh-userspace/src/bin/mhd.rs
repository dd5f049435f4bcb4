//! mhd, the controller: loads mh's programs, keeps their maps, follows netlink, serves mhctl.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use mh_userspace::{
    config,
    control::client::Client,
    daemon::{self, Options},
    datapath::load,
};
use tracing::Level;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// mh's controller: loads the datapath, follows the kernel's links, addresses and routes, and serves mhctl.
///
/// It runs in the foreground and logs to stderr. SIGHUP reloads the configuration. SIGTERM ends it and leaves programs and maps in
/// place: forwarding goes on, and the next start takes them over.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/mh/mh.toml")]
    config: PathBuf,

    /// The control socket.
    #[arg(long, value_name = "PATH", default_value = "/run/mh/mhd.sock")]
    socket: PathBuf,

    /// Where programs' links and maps are pinned, on a bpffs.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/mh")]
    bpffs: PathBuf,

    /// Where weights, drains and health that were set by hand with --save are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/mh")]
    state: PathBuf,

    /// How much to log: error, warn, info, debug or trace. With debug the programs log each new flow.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: Level,

    /// Remove every trace from the kernel, and end: programs, maps, pins. A running mhd ends too.
    #[arg(long)]
    detach: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Check a configuration without touching anything.
    Check {
        /// The configuration.
        #[arg(value_name = "FILE", default_value = "/etc/mh/mh.toml")]
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Some(Command::Check { file }) => return check(file),
        None => run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mhd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &std::path::Path) -> ExitCode {
    match config::check(file) {
        Ok(warnings) => {
            eprint!("{}", config::warning_lines(file, &warnings));
            println!("{}: ok", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // The loader's own log is about relocations: for trace alone.
    let programs = if arguments.log > Level::DEBUG { "" } else { ",aya=warn,aya_obj=warn" };
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::from_level(arguments.log).into())
        .parse(format!("{}{programs}", arguments.log))?;
    // https://no-color.org
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    runtime.block_on(async {
        if arguments.detach {
            return detach(arguments).await;
        }
        let options = Options {
            config: arguments.config.clone(),
            socket: arguments.socket.clone(),
            bpffs: arguments.bpffs.clone(),
            state: arguments.state.clone(),
            debug: arguments.log >= Level::DEBUG,
        };
        let detached = daemon::run(options).await?;
        if detached {
            tracing::info!("detached: programs and maps are removed");
        } else {
            tracing::info!("ending; programs and maps stay, and forwarding goes on");
        }
        Ok(())
    })
}

/// A running mhd does it itself; else it is done here.
async fn detach(arguments: &Arguments) -> anyhow::Result<()> {
    if tokio::net::UnixStream::connect(&arguments.socket).await.is_ok() {
        Client::new(&arguments.socket).detach().await.context("the running mhd did not detach")?;
        return Ok(());
    }
    if load::detach(&arguments.bpffs)? {
        println!("removed programs and maps pinned in {}", arguments.bpffs.display());
    } else {
        println!("nothing is pinned in {}", arguments.bpffs.display());
    }
    Ok(())
}

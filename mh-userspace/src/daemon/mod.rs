//! mhd: one loop that owns the datapath.
//!
//! Netlink events, commands from the socket, signals and the sweep's timer come in; each ends in one reconciliation. Long reads (flow
//! lists, the sweep) run on threads of their own with their own map descriptors.
//!
//! Failure behaviour: an action that fails is logged and tried again with the next reconciliation; the datapath goes on with what is in
//! force. The end of the loop, however it comes, leaves programs and maps pinned, unless detaching was asked for.

mod backend;
mod controller;
mod differences;
mod explain;
mod hooks;
mod keeper;
mod nudges;
pub mod privileges;
mod probes;
mod reasons;
mod reload;
mod ruling;
mod saved;
mod supervisor;
mod sweeper;
mod worker;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use aya_log::EbpfLogger;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use self::{
    backend::{Command, Handle, Views},
    controller::Controller,
    keeper::CacheKeeper,
    probes::Probes,
    reload::Reload,
    supervisor::Supervisor,
    sweeper::Sweeper,
};
use crate::{
    config,
    control::{api::EventKind, events::Happening, server},
    datapath::{DatapathError, load, routing},
    netlink,
};

/// How often gateways are asked whether they are there: with the kernel's three attempts, one a second, one that is silent is found out
/// within six seconds.
const GATEWAY_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// How often it is measured what uplinks carry.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);
/// Commands that wait for the loop at the most; further ones wait at the socket.
const COMMAND_QUEUE: usize = 64;

/// How mhd is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The pin directory.
    pub bpffs: PathBuf,
    /// The directory for what is kept across restarts.
    pub state: PathBuf,
    /// The programs log new flows.
    pub debug: bool,
}

/// Why mhd could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration has faults.
    #[error(transparent)]
    Config(#[from] config::LoadError),
    /// The datapath could not be set up.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Netlink does not answer.
    #[error(transparent)]
    Netlink(#[from] netlink::NetlinkError),
    /// The control socket could not be opened.
    #[error(transparent)]
    Socket(#[from] server::BindError),
    /// mhd may not do what it has to.
    #[error(transparent)]
    Privileges(#[from] privileges::PrivilegeError),
    /// Something of the runtime failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Netlink events ended.
    #[error("netlink events have ended; programs and maps stay, restart mhd")]
    NetlinkClosed,
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::Io { what, source }
}

/// Runs mhd until it is told to end. Returns whether it was told to detach, and did.
pub async fn run(options: Options) -> Result<bool, DaemonError> {
    let loaded = config::load(&options.config)?;
    warn_of(&options.config, &loaded);
    privileges::check()?;
    // First of all the socket: a second mhd must not touch what the first one runs.
    let listener = server::bind(&options.socket)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io("handle SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("handle SIGINT"))?;

    raise_descriptor_limit();
    let (facts, mut changes) = netlink::open().await?;
    let (probes, mut rounds) = Probes::new();
    let mut controller = Controller::new(&options, loaded.config, probes)?;
    controller.start(facts)?;
    warn_of_forwarding();
    warn_of_strict_filters(&controller.views());
    // Before anybody waits for it: copies begin with the first packets.
    let keeper = controller.keeper()?;
    let logger = options.debug.then(|| spawn_logger(&mut controller)).flatten();

    let events = controller.events().clone();
    let (commands, mut inbox) = mpsc::channel(COMMAND_QUEUE);
    let (views, latest) = watch::channel(controller.views());
    let backend = Arc::new(Handle::new(commands, latest, events.clone(), options.bpffs.clone()));
    let (hooks, hooks_in_force) = watch::channel(controller.hooks().clone());
    let hook_runner = tokio::spawn(hooks::run(events.clone(), hooks_in_force));
    let (stop, stopped) = watch::channel(false);
    let mut served = tokio::spawn(server::serve(listener, backend, ended(stopped)));

    tracing::info!("ready: {}", controller.summary());
    events
        .push(Happening::new(EventKind::Start, format!("mhd {}: {}", env!("CARGO_PKG_VERSION"), controller.summary())));
    let mut supervisor = Supervisor::new();
    supervisor.ready(&controller.state());

    let every = |period| {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    };
    let mut gateways = every(GATEWAY_CHECK_INTERVAL);
    let mut measuring = every(MEASURE_INTERVAL);
    let mut sweeper = Sweeper::new(&options.bpffs);
    let keeper = CacheKeeper::new(keeper)
        .inspect_err(|error| tracing::error!("cannot look after the flow cache: no thread: {error}"));
    let mut checking = None;
    let mut reload = Reload::default();
    let mut detached = None;
    let outcome = loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(change) => controller.follow(change),
                None => break Err(DaemonError::NetlinkClosed),
            },
            Some(round) = rounds.recv() => controller.take(&round),
            () = until(controller.next_wake()) => controller.wake(),
            _ = measuring.tick() => controller.measure(),
            _ = gateways.tick() => {
                if checking.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                    checking = Some(spawn_check(controller.gateways()));
                }
            }
            Some(command) = inbox.recv() => match command {
                Command::Detach(reply) => {
                    detached = Some(reply);
                    break Ok(());
                }
                Command::Reload(reply) => {
                    supervisor.reloading();
                    reload.ask(Some(reply), &controller);
                }
                command => controller.execute(command),
            },
            _ = hangup.recv() => {
                supervisor.reloading();
                reload.ask(None, &controller);
            }
            draft = reload.draft() => {
                let outcome = controller.reload(draft);
                if reload.answer(&outcome, &controller) {
                    supervisor.ready(&controller.state());
                }
            }
            () = supervisor.watchdog_due() => supervisor.alive(),
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            () = until(Some(sweeper.due(controller.sweep_interval()))) => {
                sweeper.begin(controller.timeouts(), controller.sweep_hurry());
            }
            end = &mut served => break match end {
                Ok(Err(error)) => Err(DaemonError::Io { what: "serve the control socket", source: error }),
                _ => Ok(()),
            },
        }
        views.send_replace(controller.views());
        supervisor.status(&controller.state());
        hooks.send_if_modified(|hooks| {
            let changed = hooks != controller.hooks();
            hooks.clone_from(controller.hooks());
            changed
        });
    };
    supervisor.stopping();
    drop(sweeper);
    drop(keeper);
    drop(logger);
    // Who waits for an answer still is told that there is none.
    drop(inbox);
    // A hook that runs is killed with its runner.
    hook_runner.abort();
    let _ = hook_runner.await;
    let detach = detached.is_some();
    events.push(match detach {
        true => Happening::new(EventKind::Detach, "programs and maps are removed"),
        false => Happening::new(EventKind::Stop, "mhd ends; programs and maps stay, and forwarding goes on"),
    });
    events.close();
    if let Some(reply) = detached {
        drop(controller);
        let result = load::detach(&options.bpffs).map(drop);
        let failed = result.is_err();
        // Who asked may have gone meanwhile.
        let _ = reply.send(result.map_err(backend::internal));
        if failed {
            tracing::error!("detaching failed");
        }
    }
    let _ = stop.send(true);
    if !served.is_finished() {
        let _ = served.await;
    }
    outcome.map(|()| detach)
}

/// Waits until then; without a time, for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

async fn ended(mut stopped: watch::Receiver<bool>) {
    // If the sender is gone, so is the loop.
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn warn_of(path: &Path, loaded: &config::Loaded) {
    for line in config::warning_lines(path, &loaded.warnings).lines() {
        tracing::warn!("{line}");
    }
}

/// Each probe that is on its way has a socket; the usual limit is for programs that `select`.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

/// The kernel's routing tells what is for an uplink, and refuses to tell while forwarding is off.
fn warn_of_forwarding() {
    let enabled = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1");
    if !enabled {
        tracing::warn!("IPv4 forwarding is off, so nothing is steered; switch it on: sysctl -w net.ipv4.ip_forward=1");
    }
}

/// A strict reverse-path filter drops what comes in by any uplink but the one that the kernel's default route names: what is for the
/// machine itself, that is; what mh forwards does not pass it.
fn warn_of_strict_filters(views: &Views) {
    let strict = |name: &str| {
        let file = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
    };
    let loose = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").is_ok_and(|text| text.trim() == "2");
    for interface in views.uplinks.iter().map(|uplink| uplink.interface.as_str()) {
        if !loose && (strict("all") || strict(interface)) {
            tracing::warn!(
                "the reverse-path filter on {interface} is strict: what others ask this machine by uplinks other than the default \
                 route's, and what answers probes there, gets lost; make it loose: sysctl -w net.ipv4.conf.{interface}.rp_filter=2"
            );
        }
    }
}

/// Has the kernel make sure that the gateways (interface, address, known) are still there. On a thread of its own: it waits for a lock that the
/// whole system shares.
fn spawn_check(gateways: Vec<(u32, Ipv4Addr, bool)>) -> tokio::task::JoinHandle<()> {
    spawn_blocking(move || {
        for (ifindex, gateway, known) in gateways {
            let ask = if known { routing::check_gateway } else { routing::keep_gateway };
            if let Err(error) = ask(ifindex, gateway) {
                tracing::warn!("{error}");
            }
        }
    })
}

/// Prints what the programs log, for as long as the returned task is held.
fn spawn_logger(controller: &mut Controller) -> Option<tokio::task::JoinHandle<()>> {
    let logger = EbpfLogger::init(controller.ebpf())
        .map_err(|error| error.to_string())
        // SAFETY: the logger owns its ring buffer's descriptor, which stays the same and open as long as the logger lives.
        .and_then(|logger| unsafe { AsyncFd::register(logger) }.map_err(|error| error.to_string()));
    let mut logger = match logger {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!("no log from the programs: {error}");
            return None;
        }
    };
    Some(tokio::spawn(async move {
        while let Ok(mut guard) = pin!(logger.readable_mut()).await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }))
}

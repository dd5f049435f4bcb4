//! What the control socket asks: changes go to the loop, reads are answered from the latest views and straight from the maps.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use mh_common::abi;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
};

use super::ruling::Ruling;
use crate::{
    control::{
        api::{
            self, Backend, Binding, Capacity, ControlError, Count, DrainRequest, ExplainRequest, Explanation, Flow,
            FlowFilter, FlowTotals, HealthRequest, Policy, Reloaded, Rule, Set, SetsRequest, Stats, Status,
            UplinkStatus, Version, Weight, WeightsRequest,
        },
        events::EventLog,
    },
    core::UplinkView,
    datapath::{
        DatapathError,
        flows::{self, Filter},
        tables::Tables,
    },
    health::Health,
    load::Rates,
};

/// What only the loop can do, with the place for its answer.
pub enum Command {
    /// Set weights.
    SetWeights(WeightsRequest, oneshot::Sender<Result<Views, ControlError>>),
    /// Drain an uplink (true) or stop draining it.
    SetDrain(String, bool, DrainRequest, oneshot::Sender<Result<(), ControlError>>),
    /// Set an uplink's health.
    SetHealth(String, HealthRequest, oneshot::Sender<Result<(), ControlError>>),
    /// Ask the programs, which the loop holds, about a packet.
    Explain(ExplainRequest, oneshot::Sender<Result<Explanation, ControlError>>),
    /// Read the configuration again.
    Reload(oneshot::Sender<Result<Reloaded, ControlError>>),
    /// Remove every trace, and end.
    Detach(oneshot::Sender<Result<(), ControlError>>),
}

/// What is in force, for commands that only read.
#[derive(Debug, Clone, PartialEq)]
pub struct Views {
    /// The configured mode.
    pub mode: &'static str,
    /// The uplinks in the order of the configuration.
    pub uplinks: Vec<UplinkView>,
    /// The hook in use on each uplink's interface.
    pub hooks: BTreeMap<String, &'static str>,
    /// What the probes of each uplink that has some say.
    pub health: BTreeMap<String, Health>,
    /// What each uplink carries.
    pub rates: BTreeMap<String, Rates>,
    /// The policies by index, but for the sources that keep their uplink.
    pub policies: Arc<Vec<(u8, Policy)>>,
    /// Rules and sets.
    pub ruling: Arc<Ruling>,
    /// The datapath's counters of the rules, in their order.
    pub counters: Arc<[u16]>,
}

impl Views {
    fn weights(&self) -> Vec<Weight> {
        self.uplinks
            .iter()
            .map(|view| Weight {
                name: view.name.clone(),
                configured: u32::from(view.configured_weight),
                configured_by_capacity: view.configured_by_capacity,
                weight: u32::from(view.weight),
                by_capacity: view.by_capacity,
                effective_weight: u32::from(view.effective_weight),
                share: view.share,
            })
            .collect()
    }

    fn names(&self) -> BTreeMap<u8, String> {
        self.uplinks.iter().map(|view| (view.index, view.name.clone())).collect()
    }

    fn filter(&self, filter: &FlowFilter) -> Result<Filter, ControlError> {
        let uplink = match &filter.uplink {
            None => None,
            Some(name) => {
                let view = self.uplinks.iter().find(|view| view.name == *name);
                let index = view.map(|view| view.index);
                Some(index.ok_or_else(|| ControlError::NotFound(format!("there is no uplink {name:?}")))?)
            }
        };
        let protocol = match &filter.proto {
            None => None,
            Some(name) => Some(api::protocol_number(name).ok_or_else(|| {
                ControlError::Invalid(format!("there is no protocol {name:?}; give tcp, udp, icmp or a number to 255"))
            })?),
        };
        Ok(Filter { uplink, src: filter.src, dst: filter.dst, protocol })
    }
}

/// The backend of a running daemon.
pub struct Handle {
    commands: mpsc::Sender<Command>,
    views: watch::Receiver<Views>,
    events: EventLog,
    dir: PathBuf,
}

/// A failure of the datapath as an answer.
pub fn internal(error: DatapathError) -> ControlError {
    ControlError::Internal(error.to_string())
}

/// A rate in whole bits per second.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are not negative, and far below the limit"
)]
const fn bits(rate: f64) -> u64 {
    rate as u64
}

/// The loop has put nothing in force yet.
pub fn starting() -> ControlError {
    ControlError::Conflict("mhd is starting; try again".to_owned())
}

fn ending() -> ControlError {
    ControlError::Conflict("mhd is ending; start it again".to_owned())
}

fn name_of(names: &BTreeMap<u8, String>, index: u8) -> &str {
    names.get(&index).map_or("?", String::as_str)
}

impl Handle {
    /// A backend for the loop at the other end of `commands`, with the pins in `dir`.
    pub const fn new(
        commands: mpsc::Sender<Command>,
        views: watch::Receiver<Views>,
        events: EventLog,
        dir: PathBuf,
    ) -> Self {
        Self { commands, views, events, dir }
    }

    fn views(&self) -> Views {
        self.views.borrow().clone()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ControlError>>) -> Command,
    ) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }

    /// Runs a read on a thread of its own, with maps of its own.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Tables) -> Result<T, DatapathError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let dir = self.dir.clone();
        let task = spawn_blocking(move || Tables::open(&dir).and_then(|mut tables| read(&mut tables)));
        task.await.map_err(|_| ending())?.map_err(internal)
    }
}

impl Backend for Handle {
    async fn status(&self) -> Result<Status, ControlError> {
        let views = self.views();
        self.read(move |tables| {
            let (established, embryonic, by_uplink) = tables.totals()?;
            let capacity = tables.flows4.capacity() + tables.new_flows4.capacity();
            let mut uplinks = Vec::with_capacity(views.uplinks.len());
            for view in &views.uplinks {
                let stats = tables.uplink_stats(view.index)?;
                let health = views.health.get(&view.name);
                let rates = views.rates.get(&view.name);
                uplinks.push(UplinkStatus {
                    name: view.name.clone(),
                    interface: view.interface.clone(),
                    state: view.state,
                    reason: view.reason.clone(),
                    hook: views.hooks.get(&view.name).copied().unwrap_or("none").to_owned(),
                    address: view.addresses.iter().map(ToString::to_string).collect(),
                    gateway: view.gateway.map(Into::into),
                    weight: u32::from(view.weight),
                    effective_weight: u32::from(view.effective_weight),
                    by_capacity: view.by_capacity,
                    tier: view.tier.and_then(|tier| u32::try_from(tier).ok()).unwrap_or_default(),
                    warning: view.warning.clone(),
                    share: view.share,
                    capacity: view.capacity.map(|capacity| Capacity { down_bps: capacity.down, up_bps: capacity.up }),
                    rx_bps: rates.map_or(0, |rates| bits(rates.down)),
                    tx_bps: rates.map_or(0, |rates| bits(rates.up)),
                    rtt_ms: health.and_then(|health| health.rtt).map(|rtt| rtt.as_secs_f64() * 1000.0),
                    loss: health.and_then(|health| health.loss),
                    tx_packets: stats.tx_packets,
                    tx_bytes: stats.tx_bytes,
                    rx_packets: stats.rx_packets,
                    rx_bytes: stats.rx_bytes,
                    flows: by_uplink.get(&view.index).copied().unwrap_or(0),
                });
            }
            Ok(Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                mode: views.mode.to_owned(),
                uplinks,
                flows: FlowTotals { established, embryonic, capacity: u64::from(capacity) },
                bindings: tables.binding_usage()?,
            })
        })
        .await
    }

    async fn weights(&self) -> Result<Vec<Weight>, ControlError> {
        Ok(self.views().weights())
    }

    async fn set_weights(&self, request: WeightsRequest) -> Result<Vec<Weight>, ControlError> {
        self.ask(|reply| Command::SetWeights(request, reply)).await.map(|views| views.weights())
    }

    async fn set_drain(&self, uplink: String, drain: bool, request: DrainRequest) -> Result<(), ControlError> {
        self.ask(|reply| Command::SetDrain(uplink, drain, request, reply)).await
    }

    async fn set_health(&self, uplink: String, request: HealthRequest) -> Result<(), ControlError> {
        self.ask(|reply| Command::SetHealth(uplink, request, reply)).await
    }

    async fn flows(&self, filter: FlowFilter) -> Result<Vec<Flow>, ControlError> {
        let views = self.views();
        let wanted = views.filter(&filter)?;
        let limit = filter.limit.unwrap_or(usize::MAX);
        self.read(move |tables| {
            let names = views.names();
            let now = flows::now();
            let mut list = Vec::new();
            tables.each_flow(&wanted, |flow| {
                if list.len() < limit {
                    list.push(flow.document(name_of(&names, flow.forward.uplink), now));
                }
                list.len() < limit
            })?;
            Ok(list)
        })
        .await
    }

    async fn count_flows(&self, filter: FlowFilter) -> Result<Count, ControlError> {
        let wanted = self.views().filter(&filter)?;
        let limit = filter.limit.map_or(u64::MAX, |limit| limit as u64);
        self.read(move |tables| {
            let mut count = 0;
            tables.each_flow(&wanted, |_| {
                count += 1;
                count < limit
            })?;
            Ok(Count { count: count.min(limit) })
        })
        .await
    }

    async fn flush_flows(&self, filter: FlowFilter) -> Result<Count, ControlError> {
        if filter.limit.is_some() {
            return Err(ControlError::Invalid(
                "flush takes no limit; narrow it with uplink, src, dst or proto".to_owned(),
            ));
        }
        let wanted = self.views().filter(&filter)?;
        self.read(move |tables| Ok(Count { count: tables.flush(&wanted)? })).await
    }

    async fn bindings(&self) -> Result<Vec<Binding>, ControlError> {
        let names = self.views().names();
        self.read(move |tables| {
            let now = flows::now();
            // Of an inside port that several outside ports lead to, all are shown.
            let all = tables.bindings()?.into_iter().chain(tables.further_forwards()?);
            let documents = all.map(|(inside, outside)| {
                let (address, port) = tables.owner(&inside);
                Binding {
                    protocol: api::protocol_name(inside.protocol),
                    inside: flows::to_ip(address),
                    inside_port: u16::from_be(port),
                    outside: flows::to_ip(outside.address),
                    outside_port: u16::from_be(outside.port),
                    uplink: name_of(&names, inside.uplink).to_owned(),
                    expires_s: flows::seconds(mh_common::time::since(outside.expires, now)),
                    forward: outside.flags & mh_common::binding::STATIC != 0,
                }
            });
            Ok(documents.collect())
        })
        .await
    }

    async fn stats(&self) -> Result<Stats, ControlError> {
        let views = self.views();
        self.read(move |tables| {
            let mut stats = Stats::default();
            for view in &views.uplinks {
                stats.uplinks.insert(view.name.clone(), tables.uplink_stats(view.index)?);
            }
            let counters = tables.verdicts_by_name()?;
            let named =
                |list: Vec<(&str, u64)>| list.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
            stats.verdicts = named(counters.verdicts);
            stats.drops = named(counters.drops);
            stats.maps = tables.usage()?.into_iter().map(|(name, usage)| (name.to_owned(), usage)).collect();
            Ok(stats)
        })
        .await
    }

    async fn rules(&self) -> Result<Vec<Rule>, ControlError> {
        let views = self.views();
        self.read(move |tables| Ok(views.ruling.counted(&tables.rule_hits(views.counters.iter().copied())?))).await
    }

    async fn policies(&self) -> Result<Vec<Policy>, ControlError> {
        let policies = self.views().policies;
        self.read(move |tables| {
            let sources = tables.sources_kept(flows::now())?;
            let counted = policies.iter().map(|(index, policy)| {
                let sources = sources.get(index).copied().unwrap_or_default();
                Policy { sources, ..policy.clone() }
            });
            Ok(counted.collect())
        })
        .await
    }

    async fn sets(&self, request: SetsRequest) -> Result<Vec<Set>, ControlError> {
        self.views().ruling.sets(request)
    }

    async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        self.ask(|reply| Command::Explain(request, reply)).await
    }

    fn event_log(&self) -> &EventLog {
        &self.events
    }

    async fn reload(&self) -> Result<Reloaded, ControlError> {
        self.ask(Command::Reload).await
    }

    async fn detach(&self) -> Result<(), ControlError> {
        self.ask(Command::Detach).await
    }

    async fn version(&self) -> Result<Version, ControlError> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: abi::VERSION,
            kernel: release.trim().to_owned(),
        })
    }
}

//! The documents that mhd and mhctl exchange: JSON over HTTP/1.1 over a Unix socket.
//!
//! Field names, states, verdicts and drop reasons are a contract with users: fields are added, never renamed or removed. Counters
//! are monotonic while the maps live. Times are in seconds, bytes are counted from the IP header on.

mod policy;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::policy::{ByCapacity, ExplainRequest, Explanation, Member, MemberWeight, Policy, Rule, Set, SetsRequest};
pub use crate::core::{HealthOverride, UplinkState};

use super::events::EventLog;

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// mh's version.
    pub version: String,
    /// The configured datapath mode: `auto`, `xdp` or `tc`.
    pub mode: String,
    /// The uplinks in the order of the configuration.
    pub uplinks: Vec<UplinkStatus>,
    /// How full the conntrack is.
    pub flows: FlowTotals,
    /// How full the binding table is.
    pub bindings: Usage,
}

/// One uplink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// Its name.
    pub name: String,
    /// Its interface.
    pub interface: String,
    /// Whether it takes flows.
    pub state: UplinkState,
    /// Why it is in that state.
    pub reason: String,
    /// What does not keep it from taking flows, but people should know.
    pub warning: Option<String>,
    /// `xdp` or `tc`: the hook in use on its interface, or `none` while that does not exist.
    pub hook: String,
    /// Its source addresses, or prefixes of them.
    pub address: Vec<String>,
    /// Its gateway, if it has one.
    pub gateway: Option<IpAddr>,
    /// Its weight, as configured or set; if it goes by capacity: that from the uplink, in Mbit/s.
    pub weight: u32,
    /// Its weight as in force: zero if it gets no new flows; if it goes by capacity: what is left of that, in Mbit/s.
    pub effective_weight: u32,
    /// Its weight goes by capacity.
    pub by_capacity: bool,
    /// Its tier in the default policy.
    pub tier: u32,
    /// The part of new flows that it gets, from 0 to 1.
    pub share: f64,
    /// How much it can carry, if that is configured.
    pub capacity: Option<Capacity>,
    /// What it receives now, in bits per second.
    pub rx_bps: u64,
    /// What it sends now, in bits per second.
    pub tx_bps: u64,
    /// Round-trip time of its probes, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Loss of its probes, from 0 to 1.
    pub loss: Option<f64>,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received on flows.
    pub rx_packets: u64,
    /// Bytes received on flows.
    pub rx_bytes: u64,
    /// Flows that are pinned to it now.
    pub flows: u64,
}

/// How much an uplink can carry, in bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// From the uplink.
    pub down_bps: u64,
    /// To the uplink.
    pub up_bps: u64,
}

/// How full the conntrack is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTotals {
    /// Flows that have seen a reply.
    pub established: u64,
    /// Flows that have seen none yet.
    pub embryonic: u64,
    /// How many entries fit, of which a flow takes two: one per direction.
    pub capacity: u64,
}

/// How full a table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Entries in use.
    pub used: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// One line of `GET /v1/weights`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Weight {
    /// The uplink.
    pub name: String,
    /// Its weight in the configuration; if it goes by capacity: that from the uplink, in Mbit/s.
    pub configured: u32,
    /// It goes by capacity in the configuration.
    pub configured_by_capacity: bool,
    /// Its weight as configured or set; if it goes by capacity: that from the uplink, in Mbit/s.
    pub weight: u32,
    /// It goes by capacity now.
    pub by_capacity: bool,
    /// Its weight as in force: zero if the uplink is down or drained; if it goes by capacity: what is left of that, in Mbit/s.
    pub effective_weight: u32,
    /// The part of new flows that it gets, from 0 to 1.
    pub share: f64,
}

/// `PUT /v1/weights`: takes effect as a whole or not at all. Answered with the weights as they are then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsRequest {
    /// New weights by uplink, 0 to 65535 each, or `None` (`null`): as configured. Uplinks that are not named keep theirs.
    /// Those of the default policy and of policies without `tiers`; others keep the weights of their tiers.
    pub weights: BTreeMap<String, Option<u32>>,
    /// Keep them across restarts of mhd.
    #[serde(default)]
    pub save: bool,
}

/// `PUT /v1/uplinks/NAME/health` with more to say than the health alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthRequest {
    /// What it is set to.
    pub health: HealthOverride,
    /// Keep all health set by hand across restarts of mhd.
    #[serde(default)]
    pub save: bool,
}

/// `PUT` and `DELETE /v1/uplinks/NAME/drain`; the body may be left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Keep all drains across restarts of mhd.
    #[serde(default)]
    pub save: bool,
}

/// Which flows a command is about; conditions that are left out hold for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowFilter {
    /// On this uplink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// From an inside address within this prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpNet>,
    /// To a remote address within this prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpNet>,
    /// Of this protocol: `tcp`, `udp`, `icmp` or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// One flow of `GET /v1/flows`. For ICMP the identifier stands as `sport` and `nat_sport`, and `dport` is zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `icmp` or a number.
    pub protocol: String,
    /// The inside address.
    pub src: IpAddr,
    /// The inside port.
    pub sport: u16,
    /// The remote address.
    pub dst: IpAddr,
    /// The remote port.
    pub dport: u16,
    /// The source address towards the remote.
    pub nat_src: IpAddr,
    /// The source port towards the remote.
    pub nat_sport: u16,
    /// The uplink.
    pub uplink: String,
    /// `new`, `established`, `half_closed`, `closing` or `reset`.
    pub state: String,
    /// Seconds since the flow began.
    pub age_s: u64,
    /// Seconds since its last packet.
    pub idle_s: u64,
    /// Packets from inside.
    pub packets_out: u64,
    /// Bytes from inside.
    pub bytes_out: u64,
    /// Packets from outside.
    pub packets_in: u64,
    /// Bytes from outside.
    pub bytes_in: u64,
}

/// `GET /v1/flows/count`, and the answer to `DELETE /v1/flows` (how many were removed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// So many flows.
    pub count: u64,
}

/// One binding of `GET /v1/bindings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// `tcp`, `udp`, `icmp` or a number.
    pub protocol: String,
    /// The inside address.
    pub inside: IpAddr,
    /// The inside port or identifier.
    pub inside_port: u16,
    /// The outside address.
    pub outside: IpAddr,
    /// The outside port or identifier.
    pub outside_port: u16,
    /// The uplink.
    pub uplink: String,
    /// Seconds until it may go if no flow uses it.
    pub expires_s: u64,
    /// It is a port forward: it stays.
    pub forward: bool,
}

/// `GET /v1/stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Counters by uplink.
    pub uplinks: BTreeMap<String, UplinkStats>,
    /// Packets that were sent on or left to the kernel, by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Packets that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// How full each table is, by map name.
    pub maps: BTreeMap<String, Usage>,
}

/// Counters of one uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkStats {
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received on flows.
    pub rx_packets: u64,
    /// Bytes received on flows.
    pub rx_bytes: u64,
    /// Flows begun.
    pub new_flows: u64,
}

/// `POST /v1/reload`: what the new configuration changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// One line per change; empty if the configuration is the same.
    pub changed: Vec<String>,
    /// Warnings about the configuration, each with its place.
    pub warnings: Vec<String>,
}

/// `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// mhd's version.
    pub version: String,
    /// The version of the maps' layout.
    pub abi: u32,
    /// The kernel's release.
    pub kernel: String,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// An uplink's state, or the reason for it.
    Uplink,
    /// mhd is ready.
    Start,
    /// mhd ends; programs and maps stay.
    Stop,
    /// mhd read its configuration again, or refused to.
    Reload,
    /// mhd removed programs and maps, and ends.
    Detach,
    /// Something failed, or is not as it should be.
    Warning,
    /// Events before this one are not kept any more.
    Skipped,
}

/// One event of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number, from 1 at mhd's start.
    pub seq: u64,
    /// When it happened: RFC 3339, UTC, to the millisecond.
    pub time: String,
    /// The same in seconds since 1970.
    pub time_s: f64,
    /// What it is about.
    pub kind: EventKind,
    /// The uplink, if it is about one.
    pub uplink: Option<String>,
    /// The uplink's interface.
    pub interface: Option<String>,
    /// The uplink's state before; `null` if it had none.
    pub previous_state: Option<UplinkState>,
    /// The uplink's state from then on; `null` if it is configured no more, or if the event is not about an uplink.
    pub state: Option<UplinkState>,
    /// Why, or what happened.
    pub reason: String,
}

/// Which events `GET /v1/events` is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsRequest {
    /// Only those after the one with this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Go on with those to come, one JSON document a line.
    #[serde(default)]
    pub follow: bool,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, and the mend.
    pub error: String,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It names something that does not exist (404).
    #[error("{0}")]
    NotFound(String),
    /// It asks for something that can't be (400).
    #[error("{0}")]
    Invalid(String),
    /// It can't be done in the present state (409).
    #[error("{0}")]
    Conflict(String),
    /// It failed (500).
    #[error("{0}")]
    Internal(String),
}

/// What serves the requests: the daemon, or a stand-in in tests.
pub trait Backend: Send + Sync + 'static {
    /// `GET /v1/status`.
    fn status(&self) -> impl Future<Output = Result<Status, ControlError>> + Send;
    /// `GET /v1/weights`.
    fn weights(&self) -> impl Future<Output = Result<Vec<Weight>, ControlError>> + Send;
    /// `PUT /v1/weights`.
    fn set_weights(&self, request: WeightsRequest) -> impl Future<Output = Result<Vec<Weight>, ControlError>> + Send;
    /// `PUT /v1/uplinks/NAME/drain` (true) and `DELETE /v1/uplinks/NAME/drain` (false).
    fn set_drain(
        &self,
        uplink: String,
        drain: bool,
        request: DrainRequest,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// `PUT /v1/uplinks/NAME/health`.
    fn set_health(
        &self,
        uplink: String,
        request: HealthRequest,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// `GET /v1/flows`.
    fn flows(&self, filter: FlowFilter) -> impl Future<Output = Result<Vec<Flow>, ControlError>> + Send;
    /// `GET /v1/flows/count`.
    fn count_flows(&self, filter: FlowFilter) -> impl Future<Output = Result<Count, ControlError>> + Send;
    /// `DELETE /v1/flows`.
    fn flush_flows(&self, filter: FlowFilter) -> impl Future<Output = Result<Count, ControlError>> + Send;
    /// `GET /v1/bindings`.
    fn bindings(&self) -> impl Future<Output = Result<Vec<Binding>, ControlError>> + Send;
    /// `GET /v1/stats`.
    fn stats(&self) -> impl Future<Output = Result<Stats, ControlError>> + Send;
    /// `GET /v1/rules`.
    fn rules(&self) -> impl Future<Output = Result<Vec<Rule>, ControlError>> + Send;
    /// `GET /v1/policies`.
    fn policies(&self) -> impl Future<Output = Result<Vec<Policy>, ControlError>> + Send;
    /// `GET /v1/sets`.
    fn sets(&self, request: SetsRequest) -> impl Future<Output = Result<Vec<Set>, ControlError>> + Send;
    /// `GET /v1/explain`.
    fn explain(&self, request: ExplainRequest) -> impl Future<Output = Result<Explanation, ControlError>> + Send;
    /// `GET /v1/events` is answered from here.
    fn event_log(&self) -> &EventLog;
    /// `POST /v1/reload`.
    fn reload(&self) -> impl Future<Output = Result<Reloaded, ControlError>> + Send;
    /// `POST /v1/detach`: removes programs and maps; mhd then ends.
    fn detach(&self) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// `GET /v1/version`.
    fn version(&self) -> impl Future<Output = Result<Version, ControlError>> + Send;
}

/// The name of an IP protocol: a word, or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// The number of an IP protocol from a word or a number; `None` if it is neither.
pub fn protocol_number(name: &str) -> Option<u8> {
    match name.to_ascii_lowercase().as_str() {
        "icmp" => Some(1),
        "tcp" => Some(6),
        "udp" => Some(17),
        other => other.parse().ok(),
    }
}

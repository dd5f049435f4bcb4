//! The documents about who leaves where: rules, policies, sets, and what would become of one packet.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::UplinkState;

/// One rule of `GET /v1/rules`, as configured. Conditions that are empty hold for all; of each list, one element has to match.
///
/// The last one of the list stands for what no rule matches: it has neither index nor conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its place among the rules, from 1; `None`: what no rule matches.
    pub index: Option<u32>,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Source addresses: prefixes, and sets as `set:NAME`.
    pub from: Vec<String>,
    /// Destination addresses, likewise.
    pub to: Vec<String>,
    /// Protocols: `tcp`, `udp`, `icmp` or numbers.
    pub protocol: Vec<String>,
    /// Source ports, and ranges of them.
    pub from_port: Vec<String>,
    /// Destination ports, likewise.
    pub to_port: Vec<String>,
    /// Interfaces that packets come in by, and patterns of them.
    pub interface: Vec<String>,
    /// Differentiated services code points.
    pub dscp: Vec<u8>,
    /// `policy:NAME`, `uplink:NAME`, `direct`, `reject` or `drop`.
    #[serde(rename = "use")]
    pub action: String,
    /// New flows that it has decided about; with `direct`, `reject` and `drop`: packets.
    pub hits: u64,
}

impl Rule {
    /// What people and documents call it: its name, else `rule 3`, counted from 1; `None`: it is what no rule matches.
    pub fn label(&self) -> Option<String> {
        let index = self.index?;
        Some(self.name.clone().unwrap_or_else(|| format!("rule {index}")))
    }
}

/// One policy of `GET /v1/policies`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Whether it is the one for what no rule matches.
    pub default: bool,
    /// What of a flow picks its slot: `flow`, `source` or `source-destination`.
    pub hash: String,
    /// How long a source keeps its uplink after its last flow, in seconds; zero: not at all.
    pub sticky_s: f64,
    /// How full a tier is, from 0 to 1, when new flows begin to spill over to the next; `None`: only when it is lost.
    pub spill: Option<f64>,
    /// How full the uplinks of each tier are together, in the fuller direction, from 0; 1 is full. `None`: none takes flows, a capacity is not known,
    /// or the policy does not go by that.
    pub fill: Vec<Option<f64>>,
    /// Its tiers with their uplinks.
    pub tiers: Vec<Vec<Member>>,
    /// The first tier that gets new flows now; `None`: none does.
    pub active_tier: Option<u32>,
    /// The rules that use it, by name, or as `rule 3`.
    pub rules: Vec<String>,
    /// How many sources keep their uplink now.
    pub sources: u64,
}

/// An uplink in a tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// The uplink.
    pub uplink: String,
    /// Its weight in this policy, configured or by hand.
    pub weight: MemberWeight,
    /// Its weight as in force, among those of its tier: zero if it gets no new flows; if it goes by capacity: what is left of that, in Mbit/s.
    pub effective_weight: u32,
    /// The part of the policy's new flows that it gets, from 0 to 1.
    pub share: f64,
    /// Whether it takes new flows of this policy, when its tier's turn comes.
    pub state: UplinkState,
}

/// The weight of an uplink in a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MemberWeight {
    /// A number.
    Fixed(u16),
    /// What is left of its capacity.
    ByCapacity(ByCapacity),
}

/// The word that stands in a weight's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ByCapacity {
    /// What is left of the uplink's capacity.
    #[serde(rename = "capacity")]
    Capacity,
}

impl std::fmt::Display for MemberWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(weight) => weight.fmt(f),
            Self::ByCapacity(ByCapacity::Capacity) => f.write_str("capacity"),
        }
    }
}

/// One set of `GET /v1/sets`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// How many prefixes it has, those of its file included.
    pub prefixes: u64,
    /// The file that some of them are from.
    pub file: Option<String>,
    /// The rules that use it, by name, or as `rule 3`.
    pub rules: Vec<String>,
    /// The longest of its prefixes that contains the address that was asked for; `None` if none was.
    pub prefix: Option<IpNet>,
}

/// Which sets `GET /v1/sets` is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetsRequest {
    /// Only those that contain this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<IpAddr>,
}

/// `GET /v1/explain`: a packet that begins a flow, or belongs to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Its protocol: `tcp`, `udp`, `icmp` or a number.
    pub proto: String,
    /// Its source address.
    pub src: IpAddr,
    /// Its source port; for ICMP, the identifier. Left out: an ephemeral port, 49152 or one soon after that has no flow yet; for
    /// ICMP 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Its destination address.
    pub dst: IpAddr,
    /// Its destination port: for TCP and UDP, and for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// The managed interface that it comes in by (with a source of the machine's own: leaves by). Left out: as the kernel's routing says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its differentiated services code point. Left out: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
}

/// The answer to `GET /v1/explain`. What does not apply is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The name of the verdict that the packet would be counted with.
    pub verdict: String,
    /// The rule that decides, by name, or as `rule 3`.
    pub rule: Option<String>,
    /// Its place among the rules, from 1.
    pub rule_index: Option<u32>,
    /// The policy that decides; none if the rule names an uplink.
    pub policy: Option<String>,
    /// The tier of the uplink in that policy, from 0.
    pub tier: Option<u32>,
    /// The slot that decides; none if no slot does: the source keeps its uplink, or there is but one.
    pub slot: Option<u32>,
    /// The uplink that the packet leaves by.
    pub uplink: Option<String>,
    /// The source address that it leaves with.
    pub nat_src: Option<IpAddr>,
    /// The source port that it leaves with; none if that is open until it leaves, or if the request had no source port.
    pub nat_sport: Option<u16>,
    /// Whether it belongs to a flow that exists.
    pub existing: bool,
    /// Whether its source keeps an uplink that it has, and gets it by that.
    pub sticky: bool,
    /// The interface that it comes in by; for the machine's own: that the kernel would send it by.
    pub interface: Option<String>,
    /// Whether the machine itself sends it.
    pub host: bool,
    /// Why, in the order in which it is decided: a sentence each.
    pub why: Vec<String>,
}

//! Which keys there are: one table per section of the config.
//!
//! A key that this version acts on has a [`Scalar`] (name, what may stand there in words, how it is read) or is a table or list of
//! its own; all of them, and the keys that belong to the format but are not supported yet, are listed in their [`Section`]. Unknown
//! keys are found, and the nearest known ones proposed, from these lists alone, so a new key is one line here and one where it is
//! used. `docs/config.md` describes each; a test holds the two together. How near keys are is a matter of `near`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use toml::de::DeValue;

use super::model::{
    AddressRange, Filtering, ForwardProtocol, HashMode, InterfacePattern, MAX_LOSSES, Mode, MssClamp, OnDown,
    PortRange, Timeouts,
};
use super::policy::{Capacity, Weight};
use super::probe::{ProbeTarget, Share};
use super::probes::{self, Quorum};
use super::rules::{self, Term};
use super::value::{self, Mismatch, Target};

/// A key whose value is read in one piece.
pub(super) struct Scalar<T> {
    /// The key.
    pub(super) name: &'static str,
    /// What may stand there; continues "NAME must be ".
    pub(super) wants: &'static str,
    /// Reads it.
    pub(super) read: for<'a, 'i> fn(&'a DeValue<'i>) -> Result<T, Mismatch>,
}

/// A key that may stand in a section.
pub(super) struct Entry {
    /// The key.
    pub(super) name: &'static str,
    /// Whether this version acts on it.
    pub(super) support: Support,
}

/// Whether this version acts on a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// Yes.
    Now,
    /// No: it is refused.
    Later,
}

/// The keys of a section.
pub(super) struct Section {
    /// Where the section is, for messages; continues "it belongs ".
    pub(super) place: &'static str,
    /// Its keys in the order of the documentation.
    pub(super) entries: &'static [Entry],
}

const fn now(name: &'static str) -> Entry {
    Entry { name, support: Support::Now }
}

const fn later(name: &'static str) -> Entry {
    Entry { name, support: Support::Later }
}

impl<T> Scalar<T> {
    const fn entry(&self) -> Entry {
        now(self.name)
    }
}

/// Every section that this version reads.
pub(super) const SECTIONS: &[&Section] = &[
    &ROOT,
    &DATAPATH,
    &UPLINK,
    &DAMPING,
    &PROBE,
    &LOSS,
    &LATENCY,
    &POLICY,
    &RULE,
    &SET,
    &FORWARD,
    &NAT_SECTION,
    &LIMITS,
    &TIMEOUTS,
    &HOOKS,
];

// The top level.

pub(super) const LAN: &str = "lan";
/// What `lan` must be.
pub(super) const LAN_WANTS: &str = "a list of interface names such as [\"lan0\", \"vlan*\"]";
pub(super) const DATAPATH_TABLE: &str = "datapath";
pub(super) const UPLINK_TABLE: &str = "uplink";
pub(super) const POLICY_TABLE: &str = "policy";
pub(super) const RULE_TABLE: &str = "rule";
pub(super) const SET_TABLE: &str = "set";
pub(super) const FORWARD_TABLE: &str = "forward";
pub(super) const NAT_TABLE: &str = "nat";
pub(super) const LIMITS_TABLE: &str = "limits";
pub(super) const TIMEOUTS_TABLE: &str = "timeouts";
pub(super) const HOOKS_TABLE: &str = "hooks";

pub(super) const ROOT: Section = Section {
    place: "at the top level, above the first [section]",
    entries: &[
        now(LAN),
        now(DATAPATH_TABLE),
        now(UPLINK_TABLE),
        now(POLICY_TABLE),
        now(RULE_TABLE),
        now(SET_TABLE),
        now(FORWARD_TABLE),
        now(NAT_TABLE),
        now(LIMITS_TABLE),
        now(TIMEOUTS_TABLE),
        now(HOOKS_TABLE),
        later("metrics"),
    ],
};

// [datapath]

pub(super) const MODE: Scalar<Mode> =
    Scalar { name: "mode", wants: "\"auto\", \"xdp\" or \"tc\"", read: |value| value::word(value, Mode::from_word) };
pub(super) const CONNTRACK_ENTRIES: Scalar<u32> = Scalar {
    name: "conntrack_entries",
    wants: "a whole number from 1024 to 16777216",
    read: |value| value::integer(value, 1024, 16_777_216),
};
pub(super) const BINDINGS: Scalar<u32> = Scalar {
    name: "bindings",
    wants: "a whole number from 64 to 16777216",
    read: |value| value::integer(value, 64, 16_777_216),
};
pub(super) const MARK_MASK: Scalar<u32> = Scalar {
    name: "mark_mask",
    wants: "a hexadecimal number of 32 bits in quotes with one run of at least 6 bits set, such as \"0x00ff0000\"",
    read: value::mark_mask,
};
pub(super) const HOST_TRAFFIC: Scalar<bool> =
    Scalar { name: "host_traffic", wants: "true or false", read: value::boolean };

pub(super) const DATAPATH: Section = Section {
    place: "in [datapath]",
    entries: &[MODE.entry(), CONNTRACK_ENTRIES.entry(), BINDINGS.entry(), MARK_MASK.entry(), HOST_TRAFFIC.entry()],
};

// [uplink.NAME]

pub(super) const INTERFACE: Scalar<String> =
    Scalar { name: "interface", wants: "the name of an interface such as \"wan1\"", read: value::interface };
pub(super) const GATEWAY: Scalar<Ipv4Addr> = Scalar {
    name: "gateway",
    wants: "the IPv4 address of the next router, such as \"198.51.100.1\"",
    read: value::address,
};
/// Of the value, or of each element of a list.
pub(super) const ADDRESS: Scalar<AddressRange> = Scalar {
    name: "address",
    wants: "an IPv4 address such as \"198.51.100.2\", a prefix such as \"198.51.100.8/30\", or a list of these",
    read: value::addresses,
};
pub(super) const WEIGHT: Scalar<Weight> =
    Scalar { name: "weight", wants: "a whole number from 0 to 65535, or \"capacity\"", read: value::weight };
pub(super) const CAPACITY: Scalar<Capacity> = Scalar {
    name: "capacity",
    wants: "the rates from and to the uplink in quotes, from \"1kbit\" to \"10000gbit\", such as \"100mbit/20mbit\"",
    read: value::capacity,
};
pub(super) const PORTS: Scalar<PortRange> = Scalar {
    name: "ports",
    wants: "a range of ports such as \"1024-65535\", or one such as \"5000\", from 1 to 65535 and in quotes",
    read: value::ports,
};
pub(super) const ON_DOWN: Scalar<OnDown> = Scalar {
    name: "on_down",
    wants: "\"reset\", \"repin\" or \"hold\"",
    read: |value| value::word(value, OnDown::from_word),
};
pub(super) const MSS_CLAMP: Scalar<MssClamp> = Scalar {
    name: "mss_clamp",
    wants: "\"auto\", \"off\" or a whole number from 536 to 65495",
    read: value::mss_clamp,
};
pub(super) const NAT: Scalar<bool> = Scalar { name: "nat", wants: "true or false", read: value::boolean };

pub(super) const UPLINK: Section = Section {
    place: "in [uplink.NAME]",
    entries: &[
        INTERFACE.entry(),
        GATEWAY.entry(),
        ADDRESS.entry(),
        WEIGHT.entry(),
        CAPACITY.entry(),
        PORTS.entry(),
        ON_DOWN.entry(),
        MSS_CLAMP.entry(),
        NAT.entry(),
        now(DAMPING_TABLE),
        now(PROBE_TABLE),
        later("gateway6"),
        later("address6"),
        later("nptv6"),
        later("nat66"),
    ],
};

// [uplink.NAME.damping]

pub(super) const DAMPING_TABLE: &str = "damping";
pub(super) const LOSSES: Scalar<u16> = Scalar {
    name: "losses",
    wants: "a whole number from 0 to 100, 0 for no damping",
    read: |value| value::integer(value, 0, i64::from(MAX_LOSSES)),
};
pub(super) const WITHIN: Scalar<Duration> =
    Scalar { name: "within", wants: "a duration in quotes from \"1s\" to \"24h\", such as \"30s\"", read: value::span };
pub(super) const HOLD: Scalar<Duration> = Scalar { name: "hold", wants: WITHIN.wants, read: value::span };

pub(super) const DAMPING: Section =
    Section { place: "in [uplink.NAME.damping]", entries: &[LOSSES.entry(), WITHIN.entry(), HOLD.entry()] };

// [uplink.NAME.probe]

pub(super) const PROBE_TABLE: &str = "probe";
pub(super) const TARGETS: &str = "targets";
/// What `targets` must be.
pub(super) const TARGETS_WANTS: &str = "a list of URLs such as [\"icmp://192.0.2.1\", \"tcp://192.0.2.9:443\"]";
/// Each element of `targets`.
pub(super) const TARGET: Scalar<ProbeTarget> = Scalar {
    name: TARGETS,
    wants: "URLs such as \"icmp://192.0.2.1\", \"tcp://192.0.2.9:443\", \"http://192.0.2.9/health\" or \
            \"dns://192.0.2.53/example.org\"",
    read: probes::target,
};
pub(super) const QUORUM: Scalar<Quorum> =
    Scalar { name: "quorum", wants: "a whole number from 1 to 64, \"any\" or \"all\"", read: probes::quorum };
pub(super) const INTERVAL: Scalar<Duration> = Scalar {
    name: "interval",
    wants: "a duration in quotes from \"10ms\" to \"1h\", such as \"500ms\"",
    read: probes::interval,
};
pub(super) const TIMEOUT: Scalar<Duration> = Scalar {
    name: "timeout",
    wants: "a duration in quotes from \"1ms\" to \"1m\", such as \"400ms\"",
    read: probes::up_to_a_minute,
};
pub(super) const DOWN: Scalar<u32> = Scalar { name: "down", wants: ROUNDS_WANTS, read: probes::rounds };
pub(super) const UP: Scalar<u32> = Scalar { name: "up", wants: ROUNDS_WANTS, read: probes::rounds };
const ROUNDS_WANTS: &str = "a whole number from 1 to 1000";
pub(super) const LOSS_TABLE: &str = "loss";
pub(super) const LATENCY_TABLE: &str = "latency";

pub(super) const PROBE: Section = Section {
    place: "in [uplink.NAME.probe]",
    entries: &[
        now(TARGETS),
        QUORUM.entry(),
        INTERVAL.entry(),
        TIMEOUT.entry(),
        DOWN.entry(),
        UP.entry(),
        now(LOSS_TABLE),
        now(LATENCY_TABLE),
    ],
};

pub(super) const WINDOW: Scalar<u32> = Scalar { name: "window", wants: ROUNDS_WANTS, read: probes::rounds };

/// The keys of a level at which there is a warning, and of one at which a target counts no more.
pub(super) struct Levels<T> {
    pub(super) warn: Scalar<T>,
    pub(super) down: Scalar<T>,
}

pub(super) const LOSS_LEVELS: Levels<Share> = Levels {
    warn: Scalar { name: "warn", wants: SHARE_WANTS, read: probes::share },
    down: Scalar { name: "down", wants: SHARE_WANTS, read: probes::share },
};
const SHARE_WANTS: &str = "a percentage in quotes from \"0.01%\" to \"100%\", such as \"5%\"";

pub(super) const LATENCY_LEVELS: Levels<Duration> = Levels {
    warn: Scalar { name: "warn", wants: LATENCY_WANTS, read: probes::up_to_a_minute },
    down: Scalar { name: "down", wants: LATENCY_WANTS, read: probes::up_to_a_minute },
};
const LATENCY_WANTS: &str = "a duration in quotes from \"1ms\" to \"1m\", such as \"200ms\"";

pub(super) const LOSS: Section = Section {
    place: "in [uplink.NAME.probe.loss]",
    entries: &[WINDOW.entry(), LOSS_LEVELS.warn.entry(), LOSS_LEVELS.down.entry()],
};
pub(super) const LATENCY: Section = Section {
    place: "in [uplink.NAME.probe.latency]",
    entries: &[WINDOW.entry(), LATENCY_LEVELS.warn.entry(), LATENCY_LEVELS.down.entry()],
};

// [policy.NAME]

pub(super) const TIERS: &str = "tiers";
/// What `tiers` must be.
pub(super) const TIERS_WANTS: &str = "a list with tables of uplinks and weights, such as [ { isp1 = 2, isp2 = 1 } ]";
pub(super) const HASH: Scalar<HashMode> = Scalar {
    name: "hash",
    wants: "\"flow\", \"source\" or \"source-destination\"",
    read: |value| value::word(value, HashMode::from_word),
};
pub(super) const STICKY: Scalar<Duration> = Scalar {
    name: "sticky",
    wants: "a duration in quotes up to \"7d\", such as \"300s\" or \"1h30m\", or \"0s\"",
    read: value::sticky,
};
pub(super) const SPILL: Scalar<Share> = Scalar { name: "spill", wants: SHARE_WANTS, read: probes::share };

pub(super) const POLICY: Section =
    Section { place: "in [policy.NAME]", entries: &[now(TIERS), HASH.entry(), STICKY.entry(), SPILL.entry()] };

// [[rule]]

pub(super) const RULE_NAME: Scalar<String> = Scalar {
    name: "name",
    wants: "1 to 32 of the characters a-z, A-Z, 0-9, _ and - in quotes, such as \"bank\"",
    read: rules::name,
};
/// Of the value, or of each element of a list, as those that follow but `use`.
pub(super) const FROM: Scalar<Term> = Scalar { name: "from", wants: TERM_WANTS, read: rules::term };
pub(super) const RULE_TO: Scalar<Term> = Scalar { name: "to", wants: TERM_WANTS, read: rules::term };
const TERM_WANTS: &str = "an IPv4 prefix such as \"192.168.1.0/24\", an address such as \"192.168.1.20\", \"set:NAME\", or \
                          a list of these";
pub(super) const RULE_PROTOCOL: Scalar<u8> = Scalar {
    name: "protocol",
    wants: "\"tcp\", \"udp\", \"icmp\", a whole number from 0 to 255, or a list of these",
    read: rules::protocol,
};
pub(super) const FROM_PORT: Scalar<PortRange> =
    Scalar { name: "from_port", wants: RULE_PORT_WANTS, read: value::port_or_ports };
pub(super) const TO_PORT: Scalar<PortRange> =
    Scalar { name: "to_port", wants: RULE_PORT_WANTS, read: value::port_or_ports };
const RULE_PORT_WANTS: &str =
    "a port such as \"443\", a range such as \"8000-8999\", from 1 to 65535, or a list of these";
pub(super) const RULE_INTERFACE: Scalar<InterfacePattern> = Scalar {
    name: "interface",
    wants: "the name of an interface of lan such as \"lan0\" or \"vlan*\", or a list of these",
    read: rules::interface,
};
pub(super) const DSCP: Scalar<u8> = Scalar {
    name: "dscp",
    wants: "a whole number from 0 to 63, or a list of these",
    read: |value| value::integer(value, 0, 63),
};
pub(super) const USE: &str = "use";
/// What `use` must be.
pub(super) const USE_WANTS: &str = "\"policy:NAME\", \"uplink:NAME\", \"direct\", \"reject\" or \"drop\"";

pub(super) const RULE: Section = Section {
    place: "in [[rule]]",
    entries: &[
        RULE_NAME.entry(),
        FROM.entry(),
        RULE_TO.entry(),
        RULE_PROTOCOL.entry(),
        FROM_PORT.entry(),
        TO_PORT.entry(),
        RULE_INTERFACE.entry(),
        DSCP.entry(),
        now(USE),
    ],
};

// [set.NAME]

/// Of each element of the list.
pub(super) const PREFIXES: Scalar<Ipv4Net> = Scalar {
    name: "prefixes",
    wants: "a list of IPv4 prefixes and addresses such as [\"203.0.113.0/24\", \"192.0.2.7\"]",
    read: value::prefix,
};
pub(super) const FILE: Scalar<PathBuf> =
    Scalar { name: "file", wants: "the path of a file such as \"banks.txt\"", read: value::path };

pub(super) const SET: Section = Section { place: "in [set.NAME]", entries: &[PREFIXES.entry(), FILE.entry()] };

// [[forward]]

pub(super) const UPLINKS: &str = "uplinks";
/// What `uplinks` must be.
pub(super) const UPLINKS_WANTS: &str = "a list of names of uplinks such as [\"isp1\", \"isp2\"]";
/// Of the value, or of each element of a list.
pub(super) const PROTOCOL: Scalar<ForwardProtocol> = Scalar {
    name: "protocol",
    wants: "\"tcp\", \"udp\" or a list of both",
    read: |value| value::word(value, ForwardProtocol::from_word),
};
pub(super) const PORT: Scalar<PortRange> = Scalar {
    name: "port",
    wants: "a port such as \"8443\", or a range such as \"8000-8010\", from 1 to 65535",
    read: value::port_or_ports,
};
pub(super) const TO: Scalar<Target> = Scalar {
    name: "to",
    wants: "the IPv4 address of an inside host, with or without a port, such as \"192.168.1.20:443\"",
    read: value::target,
};

pub(super) const FORWARD: Section =
    Section { place: "in [[forward]]", entries: &[now(UPLINKS), PROTOCOL.entry(), PORT.entry(), TO.entry()] };

// [nat]

pub(super) const FILTERING: Scalar<Filtering> = Scalar {
    name: "filtering",
    wants: "\"endpoint-independent\" or \"address-dependent\"",
    read: |value| value::word(value, Filtering::from_word),
};

pub(super) const NAT_SECTION: Section = Section { place: "in [nat]", entries: &[FILTERING.entry()] };

// [limits]

pub(super) const BINDINGS_PER_SOURCE: Scalar<u32> = Scalar {
    name: "bindings_per_source",
    wants: "a whole number from 0 to 16777216, 0 for no limit",
    read: |value| value::integer(value, 0, 16_777_216),
};
pub(super) const NEW_FLOWS_PER_SOURCE: Scalar<u32> = Scalar {
    name: "new_flows_per_source",
    wants: "a whole number from 0 to 10000000, 0 for no limit",
    read: |value| value::integer(value, 0, 10_000_000),
};

pub(super) const LIMITS: Section =
    Section { place: "in [limits]", entries: &[BINDINGS_PER_SOURCE.entry(), NEW_FLOWS_PER_SOURCE.entry()] };

// [timeouts]

/// A timeout and the least that an RFC asks for.
pub(super) struct Timeout {
    /// Its key.
    pub(super) key: Scalar<Duration>,
    /// Less than this is accepted with a warning.
    pub(super) floor: Duration,
    /// Where the floor is from.
    pub(super) source: &'static str,
    /// Its place in the config.
    pub(super) field: fn(&mut Timeouts) -> &mut Duration,
}

const fn timeout(name: &'static str) -> Scalar<Duration> {
    Scalar {
        name,
        wants: "a duration in quotes from \"1s\" to \"720h\", such as \"300s\" or \"1h30m\"",
        read: value::timeout,
    }
}

pub(super) const TIMEOUT_KEYS: &[Timeout] = &[
    Timeout {
        key: timeout("udp"),
        floor: Duration::from_secs(120),
        source: "RFC 4787 REQ-5",
        field: |timeouts| &mut timeouts.udp,
    },
    Timeout {
        key: timeout("tcp_established"),
        floor: Duration::from_secs(7440),
        source: "RFC 5382 REQ-5",
        field: |timeouts| &mut timeouts.tcp_established,
    },
    Timeout {
        key: timeout("tcp_transitory"),
        floor: Duration::from_secs(240),
        source: "RFC 5382 REQ-5",
        field: |timeouts| &mut timeouts.tcp_transitory,
    },
    Timeout {
        key: timeout("icmp"),
        floor: Duration::from_secs(60),
        source: "RFC 5508 REQ-2",
        field: |timeouts| &mut timeouts.icmp,
    },
];

pub(super) const TIMEOUTS: Section = Section {
    place: "in [timeouts]",
    entries: &[
        TIMEOUT_KEYS[0].key.entry(),
        TIMEOUT_KEYS[1].key.entry(),
        TIMEOUT_KEYS[2].key.entry(),
        TIMEOUT_KEYS[3].key.entry(),
    ],
};

// [hooks]

pub(super) const ON_CHANGE: Scalar<PathBuf> = Scalar {
    name: "on_change",
    wants: "the absolute path of a program such as \"/etc/mh/on-change\"",
    read: value::absolute_path,
};
pub(super) const HOOK_TIMEOUT: Scalar<Duration> = Scalar {
    name: "timeout",
    wants: "a duration in quotes from \"100ms\" to \"10m\", such as \"10s\"",
    read: value::hook_timeout,
};

pub(super) const HOOKS: Section = Section { place: "in [hooks]", entries: &[ON_CHANGE.entry(), HOOK_TIMEOUT.entry()] };

impl Section {
    /// The entry for `name`.
    pub(super) fn entry(&self, name: &str) -> Option<&'static Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

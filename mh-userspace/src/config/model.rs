//! The typed config: what the rest of mh works with once a file has been found valid.
//!
//! Invariants of a [`Config`] that came out of [`parse`](super::parse): `lan` and `uplinks` are not empty, there are at most
//! [`MAX_UPLINKS`] uplinks, uplink names and interfaces are unique, no uplink's interface is matched by `lan`, no address is in two
//! [`AddressRange`]s, and every index in `policies`, `rules` and `forwards` is one of the list that it points into (see [`Policy`]). Forwards are on uplinks that translate
//! only, no two of them have an uplink, a protocol and a port in common, and they are at most [`MAX_FORWARDED_PORTS`] ports.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::policy::{Capacity, Policy, Rule, Set, Weight};
use super::probe::Probe;

/// How many uplinks a config may have.
pub const MAX_UPLINKS: usize = 32;

/// The longest name of a network interface in bytes (the kernel's `IFNAMSIZ` less its NUL).
pub const MAX_INTERFACE_NAME: usize = 15;

/// The longest name of an uplink in bytes.
pub const MAX_UPLINK_NAME: usize = 32;

/// How many addresses an uplink may have.
pub const MAX_ADDRESSES: u32 = 4096;

/// How many [`AddressRange`]s an uplink may have.
pub const MAX_ADDRESS_RANGES: usize = 16;

/// How many ports may be forwarded, each counted for every uplink and protocol.
pub const MAX_FORWARDED_PORTS: usize = 4096;

/// The most losses of an uplink that [`Damping`] can count.
pub const MAX_LOSSES: u16 = 100;

/// The fewest bits that [`Datapath::mark_mask`] may have: for 32 uplinks and four more values.
pub const MIN_MARK_BITS: u32 = 6;

/// The whole config.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The interfaces whose traffic is steered.
    pub lan: Vec<InterfacePattern>,
    /// Settings of the datapath.
    pub datapath: Datapath,
    /// The uplinks in file order. An index into this is what the datapath calls an uplink.
    pub uplinks: Vec<Uplink>,
    /// The policies of new flows; the first is for those that no rule matches.
    pub policies: Vec<Policy>,
    /// The rules, of which the first that matches a flow decides.
    pub rules: Vec<Rule>,
    /// Prefixes for rules.
    pub sets: Vec<Set>,
    /// The ports that are forwarded to inside hosts, in file order.
    pub forwards: Vec<Forward>,
    /// How addresses are translated on every uplink.
    pub nat: Nat,
    /// What one inside host may use up.
    pub limits: Limits,
    /// How long idle flows and bindings are kept.
    pub timeouts: Timeouts,
    /// What is run when something changes.
    pub hooks: Hooks,
}

impl Config {
    /// The index of the uplink that is named `name`.
    #[must_use]
    pub fn uplink_index(&self, name: &str) -> Option<usize> {
        self.uplinks.iter().position(|uplink| uplink.name == name)
    }

    /// The policy of new flows that no rule matches.
    #[must_use]
    pub fn default_policy(&self) -> Option<&Policy> {
        self.policies.first()
    }

    /// Is traffic from the interface `name` steered?
    #[must_use]
    pub fn is_lan(&self, name: &str) -> bool {
        self.lan.iter().any(|pattern| pattern.matches(name))
    }
}

/// The name of a network interface, or its beginning followed by `*`.
///
/// Parsed with [`FromStr`], displayed as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfacePattern {
    /// The name, or its beginning.
    stem: String,
    /// Whether a `*` follows.
    open: bool,
}

impl InterfacePattern {
    /// Does the pattern cover the interface `name`? A pattern with a `*` never covers the loopback interface.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.stem) && name != LOOPBACK } else { name == self.stem }
    }

    /// Is there a name that both patterns cover?
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.open, other.open) {
            (true, true) => self.stem.starts_with(&other.stem) || other.stem.starts_with(&self.stem),
            (_, false) => self.matches(&other.stem),
            (false, true) => other.matches(&self.stem),
        }
    }

    /// The name without its `*`.
    pub(super) fn stem(&self) -> &str {
        &self.stem
    }

    /// Does it end with a `*`?
    pub(super) fn is_open(&self) -> bool {
        self.open
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stem)?;
        if self.open {
            f.write_str("*")?;
        }
        Ok(())
    }
}

impl FromStr for InterfacePattern {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        let (stem, open) = match text.strip_suffix('*') {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        if stem.contains('*') {
            return Err(InterfaceNameError::Star);
        }
        // `*` alone is everything; else the stem has to be able to begin a name.
        if !(open && stem.is_empty()) {
            check_interface_name(stem)?;
        }
        Ok(Self { stem: stem.to_owned(), open })
    }
}

/// Why a text is not the name of an interface that mh can use; the messages continue "NAME is no interface that ...: ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceNameError {
    /// No characters.
    #[error("it is empty")]
    Empty,
    /// More than [`MAX_INTERFACE_NAME`] bytes.
    #[error("it is longer than {MAX_INTERFACE_NAME} bytes")]
    Long,
    /// A character that the kernel refuses, or `.` or `..`.
    #[error("white space, \"/\", \":\", \".\" and \"..\" are not allowed")]
    Character,
    /// The loopback interface.
    #[error("the loopback interface carries no traffic to steer")]
    Loopback,
    /// A `*` where none may be.
    #[error("a * stands for the rest of a name and is allowed at the end of lan's only")]
    Star,
}

const LOOPBACK: &str = "lo";

/// Checks a name as the kernel does (`dev_valid_name`), and that it is not the loopback interface.
pub(super) fn check_interface_name(name: &str) -> Result<(), InterfaceNameError> {
    if name.is_empty() {
        Err(InterfaceNameError::Empty)
    } else if name.len() > MAX_INTERFACE_NAME {
        Err(InterfaceNameError::Long)
    } else if matches!(name, "." | "..")
        || name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace() || c.is_control())
    {
        Err(InterfaceNameError::Character)
    } else if name.contains('*') {
        Err(InterfaceNameError::Star)
    } else if name == LOOPBACK {
        Err(InterfaceNameError::Loopback)
    } else {
        Ok(())
    }
}

/// Settings of the datapath: `[datapath]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datapath {
    /// Where programs are attached.
    pub mode: Mode,
    /// Capacity of the conntrack; each flow takes two entries, one per direction.
    pub conntrack_entries: u32,
    /// Capacity of the NAT bindings.
    pub bindings: u32,
    /// The bits of `skb->mark` that are mh's: one run of at least [`MIN_MARK_BITS`].
    pub mark_mask: u32,
    /// Whether flows that this machine starts itself are steered too.
    pub host_traffic: bool,
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            conntrack_entries: 1_048_576,
            bindings: 262_144,
            mark_mask: 0x00ff_0000,
            host_traffic: true,
        }
    }
}

/// Generates an enum whose values are written as fixed words, and both ways between the two.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word for it in configs and reports.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The value that is written `word`.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Where the programs are attached.
    Mode {
        /// XDP where the driver does it natively and checksums make it safe, else TC.
        Auto = "auto",
        /// XDP in front of TC, wherever it can be attached.
        Xdp = "xdp",
        /// TC alone.
        Tc = "tc",
    }
}

words! {
    /// What happens to the flows of an uplink that fails.
    OnDown {
        /// They are reset, so that their ends connect anew at once.
        Reset = "reset",
        /// They are bound to another uplink.
        Repin = "repin",
        /// They wait for the uplink to return.
        Hold = "hold",
    }
}

words! {
    /// What the choice of an uplink depends on.
    HashMode {
        /// Each flow for itself.
        Flow = "flow",
        /// All flows of a source address go together.
        Source = "source",
        /// All flows between two addresses go together.
        SourceDestination = "source-destination",
    }
}

/// An uplink: `[uplink.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name: 1 to 32 ASCII letters, digits, `_` and `-`.
    pub name: String,
    /// The interface that it is reached by.
    pub interface: String,
    /// The next router; `None`: learned from the interface's default route, and followed.
    pub gateway: Option<Ipv4Addr>,
    /// The addresses that flows leave with, in file order; empty: the interface's primary address, and followed.
    pub addresses: Vec<AddressRange>,
    /// Its share of new flows in policies without tiers; 0: only when named by a rule.
    pub weight: Weight,
    /// How much it can carry.
    pub capacity: Option<Capacity>,
    /// The outside ports (and ICMP identifiers) that NAT may use.
    pub ports: PortRange,
    /// What happens to its flows when it fails.
    pub on_down: OnDown,
    /// How the maximum segment size of TCP connections is limited.
    pub mss_clamp: MssClamp,
    /// Whether source addresses are translated.
    pub nat: bool,
    /// What keeps it from being used while it comes and goes.
    pub damping: Damping,
    /// What tells whether it works; `None`: its link and its gateway alone.
    pub probe: Option<Probe>,
}

impl Uplink {
    /// What its capacity counts as among numbers: the Mbit/s from the uplink, at least 1; 1 without a capacity.
    #[must_use]
    pub fn nominal_weight(&self) -> u16 {
        let megabits = self.capacity.map_or(1, |capacity| capacity.down / 1_000_000);
        u16::try_from(megabits).unwrap_or(u16::MAX).max(1)
    }
}

/// Damping of an uplink that comes and goes: `[uplink.NAME.damping]`. Once it has been lost `losses` times within `within`, it is used again
/// only when it has been well for `hold` without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damping {
    /// How many losses are too many, at most [`MAX_LOSSES`]; 0: any number is fine.
    pub losses: u16,
    /// Within which time.
    pub within: Duration,
    /// How long it has to be well then.
    pub hold: Duration,
}

impl Default for Damping {
    fn default() -> Self {
        Self { losses: 5, within: Duration::from_secs(60), hold: Duration::from_secs(3) }
    }
}

/// An address, or all addresses of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// The lowest address: a multiple of `count`.
    pub first: Ipv4Addr,
    /// How many addresses: a power of two, at most [`MAX_ADDRESSES`].
    pub count: u32,
}

impl AddressRange {
    /// The highest address.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits().saturating_add(self.count.saturating_sub(1)))
    }

    /// All of them, in order.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.first.to_bits()..=self.last().to_bits()).map(Ipv4Addr::from_bits)
    }

    /// Is `address` one of them?
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last()).contains(&address)
    }
}

impl fmt::Display for AddressRange {
    /// As in the config: `198.51.100.2`, `198.51.100.8/30`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.count > 1 { write!(f, "/{}", self.count.leading_zeros() + 1) } else { Ok(()) }
    }
}

/// Ports from `first` to `last`, both included; `1 <= first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// Is `port` one of them?
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports.
    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }
}

impl Default for PortRange {
    /// All ports that need no privilege.
    fn default() -> Self {
        Self { first: 1024, last: u16::MAX }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// How the maximum segment size (MSS) that TCP connections announce is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MssClamp {
    /// To what the uplink's MTU has room for.
    Auto,
    /// Not at all.
    Off,
    /// To this many bytes.
    Bytes(u16),
}

impl fmt::Display for MssClamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

words! {
    /// A protocol whose ports can be forwarded.
    ForwardProtocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

/// Ports that are forwarded from outside to an inside host: `[[forward]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Indices into [`Config::uplinks`], without duplicates, all of them with `nat`.
    pub uplinks: Vec<usize>,
    /// The protocols, without duplicates.
    pub protocols: Vec<ForwardProtocol>,
    /// The outside ports.
    pub ports: PortRange,
    /// The inside host.
    pub to: Ipv4Addr,
    /// The inside port of the first outside port; those of the others follow, to 65535 at most.
    pub to_port: u16,
}

words! {
    /// From whom outside a packet may come to a port that an inside host has a binding for (RFC 4787 section 5).
    Filtering {
        /// From anyone.
        EndpointIndependent = "endpoint-independent",
        /// From the addresses that the inside host has sent to through the binding.
        AddressDependent = "address-dependent",
    }
}

/// How addresses are translated: `[nat]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nat {
    /// From whom outside packets may come.
    pub filtering: Filtering,
}

impl Default for Nat {
    fn default() -> Self {
        Self { filtering: Filtering::EndpointIndependent }
    }
}

/// What one inside host may use up (RFC 6888 REQ-4): `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bindings at a time; 0: no limit.
    pub bindings_per_source: u32,
    /// New flows per second; 0: no limit.
    pub new_flows_per_source: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bindings_per_source: 16_384, new_flows_per_source: 5000 }
    }
}

/// How long a flow and its binding are kept after the last packet: `[timeouts]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP.
    pub udp: Duration,
    /// TCP connections whose handshake is done.
    pub tcp_established: Duration,
    /// TCP connections that are being opened or closed.
    pub tcp_transitory: Duration,
    /// ICMP queries such as ping.
    pub icmp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            udp: Duration::from_secs(300),
            tcp_established: Duration::from_secs(7440),
            tcp_transitory: Duration::from_secs(240),
            icmp: Duration::from_secs(60),
        }
    }
}

/// What is run when something changes: `[hooks]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// The program that is run for each event of an uplink: an absolute path.
    pub on_change: Option<PathBuf>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { on_change: None, timeout: Duration::from_secs(10) }
    }
}

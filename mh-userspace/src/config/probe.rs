//! The probes of an uplink: what is asked, how often, and what the answers must be for the uplink to be up.
//!
//! Invariants of a [`Probe`] that came out of [`parse`](super::parse): 1 to [`MAX_TARGETS`] targets, no two of which ask the same;
//! `quorum` is one to as many; `interval`, `timeout` and windows are within the bounds here, and `timeout` is at most
//! [`MAX_OVERLAP`] intervals; of the levels of a window at least one is there, and `warn` is not above `down`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use super::value::{self, clipped};

/// How many targets an uplink's probe may have.
pub const MAX_TARGETS: usize = 64;
/// The shortest interval of rounds.
pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// The longest interval of rounds.
pub const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// The longest that an answer may take.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// How many intervals an answer may take: rounds that overlap hold sockets each.
pub const MAX_OVERLAP: u32 = 16;
/// How many rounds in a row may be asked for, and how many a window may have.
pub const MAX_ROUNDS: u32 = 1000;
/// The rounds over which loss is shown where no window says otherwise, and the default of windows.
pub const DEFAULT_WINDOW: u32 = 40;
/// The longest path of an HTTP target in bytes.
pub const MAX_PATH: usize = 1024;
/// The longest domain name in bytes (RFC 1035 section 2.3.4, without the root's label).
pub const MAX_DOMAIN: usize = 253;
/// The longest label of a domain name in bytes.
const MAX_LABEL: usize = 63;

/// The probes of an uplink: `[uplink.NAME.probe]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is asked in every round, in file order.
    pub targets: Vec<ProbeTarget>,
    /// How many targets have to answer for a round to be good.
    pub quorum: usize,
    /// From the start of a round to the start of the next.
    pub interval: Duration,
    /// How long a target has to answer.
    pub timeout: Duration,
    /// After how many failed rounds in a row the uplink is down.
    pub down: u32,
    /// After how many good rounds in a row it is up again.
    pub up: u32,
    /// Limits of the share of probes without answer.
    pub loss: Option<Limit<Share>>,
    /// Limits of the mean time of answers.
    pub latency: Option<Limit<Duration>>,
}

/// What a measure of the last rounds may reach. At least one level is there, and `warn <= down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<T> {
    /// The rounds that are looked at, 1 to [`MAX_ROUNDS`].
    pub window: u32,
    /// At this level and above there is a warning.
    pub warn: Option<T>,
    /// At this level and above a target does not count for the quorum.
    pub down: Option<T>,
}

/// A share of a whole in hundredths of a percent: 1 to 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u16);

impl Share {
    /// The whole.
    pub const WHOLE: u16 = 10_000;

    /// In hundredths of a percent.
    #[must_use]
    pub fn basis_points(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Share {
    /// As in the config: `5%`, `0.25%`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, rest) = (self.0 / 100, self.0 % 100);
        match (rest, rest % 10) {
            (0, _) => write!(f, "{percent}%"),
            (_, 0) => write!(f, "{percent}.{}%", rest / 10),
            _ => write!(f, "{percent}.{rest:02}%"),
        }
    }
}

/// The text is no share: the config says what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no percentage above 0% and up to 100%, with at most two decimals, such as \"5%\" or \"0.25%\"")]
pub struct ShareError;

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let number = text.strip_suffix('%').ok_or(ShareError)?;
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let is_decimal = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_decimal(whole) || !is_decimal(decimals) || decimals.len() > 2 {
            return Err(ShareError);
        }
        let whole: u16 = whole.parse().map_err(|_| ShareError)?;
        let hundredths: u16 = format!("{decimals:0<2}").parse().map_err(|_| ShareError)?;
        let share = whole.checked_mul(100).and_then(|share| share.checked_add(hundredths)).ok_or(ShareError)?;
        if (1..=Self::WHOLE).contains(&share) { Ok(Self(share)) } else { Err(ShareError) }
    }
}

/// What is probed: a URL. Parsed with [`FromStr`], displayed as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    url: String,
    check: Check,
}

impl ProbeTarget {
    /// What is asked.
    #[must_use]
    pub fn check(&self) -> &Check {
        &self.check
    }

    /// Who is asked.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        match self.check {
            Check::Icmp { address } | Check::Tcp { address, .. } | Check::Dns { address, .. } => address,
            Check::Http(Http { address, .. }) => address,
        }
    }
}

impl fmt::Display for ProbeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// What a target is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Check {
    /// An ICMP echo request has its reply.
    Icmp {
        /// The host.
        address: Ipv4Addr,
    },
    /// A TCP connection is accepted.
    Tcp {
        /// The host.
        address: Ipv4Addr,
        /// Its port.
        port: u16,
    },
    /// A request by HTTP is answered with a status of 200 to 399.
    Http(Http),
    /// A question is answered by a DNS server, also that there is no such name.
    Dns {
        /// The server.
        address: Ipv4Addr,
        /// Its port.
        port: u16,
        /// The name whose IPv4 addresses are asked for.
        name: String,
    },
}

/// A request by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Http {
    /// Over TLS, with a certificate that the system's roots vouch for, for `name`, or else for `address`.
    pub tls: bool,
    /// The server.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// The host that is asked for; `None`: the address.
    pub name: Option<String>,
    /// The path and the query, from the first `/`.
    pub path: String,
}

impl Http {
    /// The port of `https` (with `tls`) or `http` (RFC 9110 section 4.2).
    pub const fn default_port(tls: bool) -> u16 {
        if tls { 443 } else { 80 }
    }
}

/// Why a text is no target; the messages continue "not TEXT: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a URL.
    #[error("it has no scheme; put icmp://, tcp://, http://, https:// or dns:// in front")]
    NoScheme,
    /// Not one of ours.
    #[error("there is no probe {scheme:?}; use icmp, tcp, http, https or dns")]
    Scheme {
        /// What stands in front of `://`, in lower case.
        scheme: String,
    },
    /// A name in place of an address.
    #[error("{host:?} is no IPv4 address; write the address, since a name would be resolved by whichever uplink works")]
    Name {
        /// The host.
        host: String,
    },
    /// An IPv6 address.
    #[error("IPv6 is not supported by this version of mh yet; write an IPv4 address")]
    Ipv6,
    /// Not one host's.
    #[error("{address} is {kind}, not one machine's; write the address of a host")]
    Address {
        /// The address.
        address: Ipv4Addr,
        /// What it is.
        kind: &'static str,
    },
    /// TCP without port.
    #[error("it has no port; add one, such as tcp://{address}:443")]
    NoPort {
        /// The host.
        address: Ipv4Addr,
    },
    /// Not 1 to 65535.
    #[error("{port:?} is no port; write a number from 1 to 65535")]
    Port {
        /// What stands there.
        port: String,
    },
    /// ICMP has no ports.
    #[error("ICMP has no ports; write icmp://{address}")]
    IcmpPort {
        /// The host.
        address: Ipv4Addr,
    },
    /// Something after the host where nothing may be.
    #[error("nothing may follow the host; remove {rest:?}")]
    Rest {
        /// What follows.
        rest: String,
    },
    /// DNS without name.
    #[error("it has no name to ask for; add one, such as dns://{address}/example.org")]
    NoName {
        /// The server.
        address: Ipv4Addr,
    },
    /// Not a domain name.
    #[error(
        "{name:?} is no domain name: labels of 1 to {MAX_LABEL} letters, digits, - and _ with dots between them, {MAX_DOMAIN} in \
         all"
    )]
    Domain {
        /// What stands there.
        name: String,
    },
    /// A path that HTTP does not allow.
    #[error(
        "its path may have ASCII characters without blanks and # only, and {MAX_PATH} of them; encode others as %XX"
    )]
    Path,
    /// A name in front of the address where it has no meaning.
    #[error("a name in front of the address is for http and https only; remove {name:?}")]
    User {
        /// What stands there.
        name: String,
    },
}

impl FromStr for ProbeTarget {
    type Err = TargetError;

    fn from_str(url: &str) -> Result<Self, TargetError> {
        let (scheme, rest) = url.split_once("://").ok_or(TargetError::NoScheme)?;
        let scheme = scheme.to_ascii_lowercase();
        if !["icmp", "tcp", "http", "https", "dns"].contains(&scheme.as_str()) {
            return Err(TargetError::Scheme { scheme: clipped(&scheme) });
        }
        let path_at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_at);
        let (name, host) = match authority.rsplit_once('@') {
            Some((name, host)) => (Some(name), host),
            None => (None, authority),
        };
        let (address, port) = host_and_port(host)?;
        let is_http = scheme.starts_with("http");
        if let Some(name) = name {
            if !is_http {
                return Err(TargetError::User { name: clipped(&format!("{name}@")) });
            }
            check_domain(name)?;
        }
        let no_rest = || if matches!(path, "" | "/") { Ok(()) } else { Err(TargetError::Rest { rest: clipped(path) }) };
        let check = match scheme.as_str() {
            "icmp" => {
                no_rest()?;
                if port.is_some() {
                    return Err(TargetError::IcmpPort { address });
                }
                Check::Icmp { address }
            }
            "tcp" => {
                no_rest()?;
                Check::Tcp { address, port: port.ok_or(TargetError::NoPort { address })? }
            }
            "dns" => {
                let name = path.strip_prefix('/').filter(|name| !name.is_empty());
                let name = name.ok_or(TargetError::NoName { address })?;
                check_domain(name)?;
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                Check::Dns { address, port: port.unwrap_or(DNS_PORT), name }
            }
            _ => {
                let tls = scheme == "https";
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                if path.len() > MAX_PATH || path.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
                    return Err(TargetError::Path);
                }
                let port = port.unwrap_or(Http::default_port(tls));
                Check::Http(Http { tls, address, port, name: name.map(str::to_ascii_lowercase), path })
            }
        };
        Ok(Self { url: url.to_owned(), check })
    }
}

const DNS_PORT: u16 = 53;

/// `ADDRESS` or `ADDRESS:PORT`.
fn host_and_port(text: &str) -> Result<(Ipv4Addr, Option<u16>), TargetError> {
    if text.starts_with('[') || text.matches(':').count() > 1 {
        return Err(TargetError::Ipv6);
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let address: Ipv4Addr = host.parse().map_err(|_| TargetError::Name { host: clipped(host) })?;
    if let Some(kind) = value::not_unicast(address) {
        return Err(TargetError::Address { address, kind });
    }
    let Some(digits) = port else { return Ok((address, None)) };
    match value::port(digits) {
        Some(port) => Ok((address, Some(port))),
        None => Err(TargetError::Port { port: clipped(digits) }),
    }
}

/// A domain name that a host or a service may have, with or without the root's dot.
fn check_domain(name: &str) -> Result<(), TargetError> {
    let labels = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if labels.len() <= MAX_DOMAIN && labels.split('.').all(is_label) {
        Ok(())
    } else {
        Err(TargetError::Domain { name: clipped(name) })
    }
}

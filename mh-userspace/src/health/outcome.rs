//! What became of one probe.

use std::fmt;
use std::time::Duration;

/// The longest text of a failure in characters.
const MAX_TEXT: usize = 80;

/// What became of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The target answered as it should, after this time.
    Answered(Duration),
    /// It did not.
    Failed(Failure),
}

/// Why a probe failed. Displayed, it ends `probe URL 3/3 ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No answer in time.
    Timeout,
    /// The target refused, by a RST or an ICMP error.
    Refused,
    /// There is no way to the target.
    Unreachable,
    /// The uplink has no interface or no address to probe from.
    NoAddress,
    /// An HTTP status outside 200 to 399.
    Status(u16),
    /// The response code of a DNS server (RFC 1035 section 4.1.1, RFC 6895 section 2.3).
    Dns(u16),
    /// No TLS connection, or no certificate that holds.
    Tls(String),
    /// Something else, in a few words on one line.
    Error(String),
}

impl Failure {
    /// A failure for the reason in `text`, of which the first line is kept.
    #[must_use]
    pub fn error(text: &str) -> Self {
        Self::Error(short(text))
    }

    /// A failure of TLS for the reason in `text`, of which the first line is kept.
    #[must_use]
    pub fn tls(text: &str) -> Self {
        Self::Tls(short(text))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("lost"),
            Self::Refused => f.write_str("refused"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::NoAddress => f.write_str("no address"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Dns(1) => f.write_str("FORMERR"),
            Self::Dns(2) => f.write_str("SERVFAIL"),
            Self::Dns(4) => f.write_str("NOTIMP"),
            Self::Dns(5) => f.write_str("REFUSED"),
            Self::Dns(code) => write!(f, "rcode {code}"),
            Self::Tls(text) | Self::Error(text) => f.write_str(text),
        }
    }
}

fn short(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(MAX_TEXT).collect()
}

//! From rules of mwan3 to the conditions of `[[rule]]`.
//!
//! A rule whose conditions mh can't express is left out as a whole: without one of them it would match what it should not.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::mwan3::{Family, Rule};
use super::output::{Item, list, string};
use super::uci::{Word, clipped};

/// The protocols that iptables takes by name; those of mh by name have none.
const PROTOCOLS: &[(&str, u8)] = &[
    ("igmp", 2),
    ("ipip", 4),
    ("ipencap", 4),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// The conditions of a rule; empty ones hold for all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    pub(super) from: Vec<Ipv4Net>,
    pub(super) to: Vec<Ipv4Net>,
    /// The name of an ipset.
    pub(super) ipset: Option<Word>,
    pub(super) protocols: Vec<Protocol>,
    pub(super) from_ports: Vec<(u16, u16)>,
    pub(super) to_ports: Vec<(u16, u16)>,
    /// The name of an interface of OpenWrt.
    pub(super) interface: Option<Word>,
}

/// A protocol as mh has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Number(u8),
}

impl Conditions {
    /// Do all flows match?
    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// Writes them, with the names that set and interface have in mh.
    pub(super) fn write(&self, set: Option<&str>, device: Option<&str>, item: &mut Item) {
        let prefix = |net: &Ipv4Net| match net.prefix_len() {
            32 => string(&net.addr().to_string()),
            _ => string(&net.to_string()),
        };
        let prefixes = |nets: &[Ipv4Net]| nets.iter().map(prefix).collect::<Vec<_>>();
        let ports = |ranges: &[(u16, u16)]| {
            let range = |(first, last): &(u16, u16)| match first == last {
                true => string(&first.to_string()),
                false => string(&format!("{first}-{last}")),
            };
            list(&ranges.iter().map(range).collect::<Vec<_>>())
        };
        if !self.from.is_empty() {
            item.key("from", list(&prefixes(&self.from)));
        }
        let mut to = prefixes(&self.to);
        to.extend(set.map(|set| string(&format!("set:{set}"))));
        if !to.is_empty() {
            item.key("to", list(&to));
        }
        let protocol = |protocol: &Protocol| match protocol {
            Protocol::Tcp => string("tcp"),
            Protocol::Udp => string("udp"),
            Protocol::Icmp => string("icmp"),
            Protocol::Number(number) => number.to_string(),
        };
        match self.protocols.as_slice() {
            [] => {}
            [one] => item.key("protocol", protocol(one)),
            more => item.key("protocol", list(&more.iter().map(protocol).collect::<Vec<_>>())),
        }
        if !self.from_ports.is_empty() {
            item.key("from_port", ports(&self.from_ports));
        }
        if !self.to_ports.is_empty() {
            item.key("to_port", ports(&self.to_ports));
        }
        if let Some(device) = device {
            item.key("interface", list(&[string(device)]));
        }
    }
}

/// The conditions of a rule, or why they can't be brought over.
pub(super) fn conditions(rule: &Rule, note: &mut impl FnMut(usize, String)) -> Result<Conditions, String> {
    if rule.family == Family::Ipv6 {
        return Err("it is of IPv6, which is not supported by this version of mh yet".to_owned());
    }
    let from = prefixes("src_ip", &rule.src_ip)?;
    let to = prefixes("dest_ip", &rule.dest_ip)?;
    if let (Some(ipset), false) = (&rule.ipset, to.is_empty()) {
        let name = clipped(&ipset.text);
        return Err(format!(
            "it wants dest_ip and ipset {name} both, and mh's `to` either; write the prefixes that are in both"
        ));
    }
    let (protocols, has_ports) = protocols(rule.proto.as_ref())?;
    let (mut from_ports, mut to_ports) = (Vec::new(), Vec::new());
    if has_ports {
        from_ports = ports("src_port", &rule.src_port)?;
        to_ports = ports("dest_port", &rule.dest_port)?;
    } else if let Some(port) = rule.src_port.first().or(rule.dest_port.first()) {
        let why = match &rule.proto {
            Some(proto) if !protocols.is_empty() => format!("proto {} has none", clipped(&proto.text)),
            _ => "it looks at ports only with proto tcp or udp. The rule matches whatever the protocol and port, and rules behind it \
                  may never apply"
                .to_owned(),
        };
        note(port.line, format!("ports are left out, as mwan3 does: {why}"));
    }
    Ok(Conditions {
        from,
        to,
        ipset: rule.ipset.clone(),
        protocols,
        from_ports,
        to_ports,
        interface: rule.src_iface.clone(),
    })
}

/// A value that says what is meant and not what is not, and the same to be shown.
fn affirmed<'w>(option: &str, word: &'w Word) -> Result<(&'w str, String), String> {
    let shown = clipped(&word.text);
    if word.text.starts_with('!') {
        return Err(format!(
            "{option} {shown} means all but that, which mh's rules can't say; put a rule for it in front of one for all"
        ));
    }
    Ok((&word.text, shown))
}

/// Prefixes; none for all addresses.
fn prefixes(option: &str, words: &[Word]) -> Result<Vec<Ipv4Net>, String> {
    let mut prefixes = Vec::new();
    for word in words {
        let (text, shown) = affirmed(option, word)?;
        if text.contains(':') {
            return Err(format!("{option} {shown} is of IPv6, which is not supported by this version of mh yet"));
        }
        let prefix = match text.split_once('/') {
            None => text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from),
            Some((address, mask)) if mask.contains('.') => {
                let parts = address.parse::<Ipv4Addr>().ok().zip(mask.parse::<Ipv4Addr>().ok());
                parts.and_then(|(address, mask)| Ipv4Net::with_netmask(address, mask).ok())
            }
            Some(_) => text.parse().ok(),
        };
        match prefix {
            // All addresses, whatever else is listed.
            Some(prefix) if prefix.prefix_len() == 0 => return Ok(Vec::new()),
            Some(prefix) => prefixes.push(prefix.trunc()),
            None => return Err(format!("{option} {shown} is no IPv4 address or prefix; write one")),
        }
    }
    Ok(prefixes)
}

/// The protocols, and whether all of them have ports.
fn protocols(proto: Option<&Word>) -> Result<(Vec<Protocol>, bool), String> {
    let Some(proto) = proto else { return Ok((Vec::new(), false)) };
    let text = proto.text.to_ascii_lowercase();
    let mut protocols = Vec::new();
    // Only one is what iptables takes; several are what is meant by those who write them.
    for name in text.split([' ', ',', '\t']).filter(|name| !name.is_empty()) {
        match name {
            "all" | "any" | "0" => return Ok((Vec::new(), false)),
            "tcp" | "6" => protocols.push(Protocol::Tcp),
            "udp" | "17" => protocols.push(Protocol::Udp),
            "tcpudp" => protocols.extend([Protocol::Tcp, Protocol::Udp]),
            "icmp" | "1" => protocols.push(Protocol::Icmp),
            "icmpv6" | "ipv6-icmp" | "58" => {
                return Err("proto icmpv6 is of IPv6, which is not supported by this version of mh yet".to_owned());
            }
            other => {
                let by_name = PROTOCOLS.iter().find(|(name, _)| *name == other).map(|(_, number)| *number);
                let digits = other.bytes().all(|byte| byte.is_ascii_digit());
                let number = by_name.or_else(|| other.parse().ok().filter(|_| digits));
                let Some(number) = number else {
                    return Err(format!("proto {:?} is not known; write its number", clipped(other)));
                };
                protocols.push(Protocol::Number(number));
            }
        }
    }
    protocols.dedup();
    let have_ports =
        !protocols.is_empty() && protocols.iter().all(|protocol| matches!(protocol, Protocol::Tcp | Protocol::Udp));
    Ok((protocols, have_ports))
}

/// Ranges of ports, written as `80`, `1024:2048`, `1024-2048`, `1024:` or `:2048`.
fn ports(option: &str, words: &[Word]) -> Result<Vec<(u16, u16)>, String> {
    let port = |digits: &str, left_out: u16| match digits {
        "" => Some(left_out),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<u16>().ok(),
        _ => None,
    };
    let mut ranges = Vec::new();
    for word in words {
        let (text, shown) = affirmed(option, word)?;
        let range = match text.split_once([':', '-']) {
            Some(("", "")) => None,
            Some((first, last)) => port(first, 0).zip(port(last, u16::MAX)),
            None => port(text, 0).map(|port| (port, port)),
        };
        match range {
            // No flow has port 0.
            Some((first, last)) if first <= last && last > 0 => ranges.push((first.max(1), last)),
            _ => return Err(format!("{option} {shown} is no port or range of ports; write numbers")),
        }
    }
    Ok(ranges)
}

//! Reading single values: numbers, words, addresses, ports, durations.
//!
//! Every reader takes a TOML value and returns what it means or a [`Mismatch`]; none of them knows its key, and none of them can
//! fail otherwise. What may stand at a key is put in words once, in the schema.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use toml::de::DeValue;

use super::model::{
    AddressRange, MAX_ADDRESSES, MAX_UPLINKS, MIN_MARK_BITS, MssClamp, PortRange, check_interface_name,
};
use super::policy::{Capacity, MAX_CAPACITY, MAX_STICKY, MIN_CAPACITY, Weight};

/// Why a value cannot stand where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// It is of another type than what is wanted.
    Type,
    /// It has the type, but is not one of the values that are wanted.
    Value,
    /// As before, for this reason.
    Because(String),
}

/// A value of another type than what was wanted, in words: `a string "2"`.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("a string {}", quoted(text)),
        DeValue::Integer(number) => format!("a whole number {}", clipped(&number.to_string())),
        DeValue::Float(number) => format!("a float {}", clipped(number.as_str())),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(list) if list.is_empty() => "an empty list".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// A value of the type that was wanted, as it is written.
pub(super) fn describe_value(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => clipped(&number.to_string()),
        other => describe(other),
    }
}

/// `text` in quotes on one line, and not too long for a message.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", clipped(text))
}

/// `text`, cut where it is too long for a message.
pub(super) fn clipped(text: &str) -> String {
    const MOST_CHARS: usize = 60;
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A string.
pub(super) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Mismatch> {
    value.as_str().ok_or(Mismatch::Type)
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Mismatch> {
    value.as_bool().ok_or(Mismatch::Type)
}

/// A whole number from `least` to `most`.
pub(super) fn integer<T: TryFrom<i64>>(value: &DeValue<'_>, least: i64, most: i64) -> Result<T, Mismatch> {
    let number = value.as_integer().ok_or(Mismatch::Type)?;
    i64::from_str_radix(number.as_str(), number.radix())
        .ok()
        .filter(|number| (least..=most).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or(Mismatch::Value)
}

/// One of a set of words.
pub(super) fn word<T>(value: &DeValue<'_>, from: fn(&str) -> Option<T>) -> Result<T, Mismatch> {
    from(text(value)?).ok_or(Mismatch::Value)
}

/// `0x` and 1 to 8 hexadecimal digits with one run of bits set, and at least [`MIN_MARK_BITS`] of them.
pub(super) fn mark_mask(value: &DeValue<'_>) -> Result<u32, Mismatch> {
    let text = text(value)?;
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).ok_or(Mismatch::Value)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Mismatch::Value);
    }
    let mask = u32::from_str_radix(digits, 16).map_err(|_| Mismatch::Value)?;
    let bits_from_lowest_set = mask.checked_shr(mask.trailing_zeros());
    match bits_from_lowest_set {
        Some(run) if run & run.wrapping_add(1) == 0 => match mask.count_ones() {
            bits if bits < MIN_MARK_BITS => Err(Mismatch::Because(format!(
                "it has {bits} bit{}, too few to tell {MAX_UPLINKS} uplinks and four more values apart",
                if bits == 1 { "" } else { "s" }
            ))),
            _ => Ok(mask),
        },
        // All bits are zero, or there is a gap between bits that are set.
        _ => Err(Mismatch::Value),
    }
}

/// The name of one interface.
pub(super) fn interface(value: &DeValue<'_>) -> Result<String, Mismatch> {
    let name = text(value)?;
    check_interface_name(name).map(|()| name.to_owned()).map_err(|error| Mismatch::Because(error.to_string()))
}

/// A unicast IPv4 address that another machine can send to.
pub(super) fn address(value: &DeValue<'_>) -> Result<Ipv4Addr, Mismatch> {
    one_address(text(value)?)
}

fn one_address(text: &str) -> Result<Ipv4Addr, Mismatch> {
    let address: Ipv4Addr = text.parse().map_err(|_| Mismatch::Value)?;
    match not_unicast(address) {
        None => Ok(address),
        Some(kind) => Err(Mismatch::Because(format!("it is {kind}, not one machine's"))),
    }
}

/// What `address` is if it can't be that of one other machine.
pub(crate) fn not_unicast(address: Ipv4Addr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.octets()[0] == 0 {
        Some("an address of \"this network\", 0.0.0.0/8")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address.is_broadcast() {
        Some("the broadcast address")
    } else {
        None
    }
}

/// An address, or a prefix of at most [`MAX_ADDRESSES`], all of them unicast.
pub(super) fn addresses(value: &DeValue<'_>) -> Result<AddressRange, Mismatch> {
    let text = text(value)?;
    if !text.contains('/') {
        return one_address(text).map(|first| AddressRange { first, count: 1 });
    }
    let prefix: Ipv4Net = text.parse().map_err(|_| Mismatch::Value)?;
    let Some(count) = 1_u32.checked_shl(32 - u32::from(prefix.prefix_len())).filter(|count| *count <= MAX_ADDRESSES)
    else {
        return Err(Mismatch::Because(format!(
            "it has more than {MAX_ADDRESSES} addresses; write a prefix of /{} or longer",
            MAX_ADDRESSES.leading_zeros() + 1
        )));
    };
    if prefix != prefix.trunc() {
        return Err(Mismatch::Because(format!("it does not begin its prefix; write \"{}\"", prefix.trunc())));
    }
    // The two ends tell for all: what is not unicast is blocks of /8 and larger, and the broadcast address, which ends its prefix.
    for address in [prefix.network(), prefix.broadcast()] {
        if let Some(kind) = not_unicast(address) {
            return Err(Mismatch::Because(format!("{address} in it is {kind}, not one machine's")));
        }
    }
    Ok(AddressRange { first: prefix.network(), count })
}

/// A prefix, or an address for itself, whatever it is used for.
pub(super) fn prefix(value: &DeValue<'_>) -> Result<Ipv4Net, Mismatch> {
    prefix_of(text(value)?)
}

/// What [`prefix`] reads.
pub(super) fn prefix_of(text: &str) -> Result<Ipv4Net, Mismatch> {
    let prefix = if text.contains('/') { text.parse().ok() } else { text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from) };
    match prefix {
        Some(prefix) if prefix == prefix.trunc() => Ok(prefix),
        Some(prefix) => Err(Mismatch::Because(format!("it does not begin its prefix; write \"{}\"", prefix.trunc()))),
        None if text.parse::<Ipv6Net>().is_ok() || text.parse::<Ipv6Addr>().is_ok() => Err(Mismatch::Because(
            "it is of IPv6, which is not supported by this version of mh yet; remove it".to_owned(),
        )),
        None => Err(Mismatch::Value),
    }
}

/// A weight as a number, or `capacity`.
pub(super) fn weight(value: &DeValue<'_>) -> Result<Weight, Mismatch> {
    match value {
        DeValue::Integer(_) => integer(value, 0, 65_535).map(Weight::Fixed),
        other if other.as_str() == Some("capacity") => Ok(Weight::Capacity),
        // Also of a number in quotes, which tells what is wrong with it.
        _ => Err(Mismatch::Type),
    }
}

/// `DOWN/UP`, or one rate for both.
pub(super) fn capacity(value: &DeValue<'_>) -> Result<Capacity, Mismatch> {
    let text = text(value)?;
    let (down, up) = text.split_once('/').unwrap_or((text, text));
    match (rate(down.trim()), rate(up.trim())) {
        (Some(down), Some(up)) => Ok(Capacity { down, up }),
        _ => Err(Mismatch::Value),
    }
}

/// A number of bits per second with a decimal unit: `100mbit`, `1.5gbit`.
fn rate(text: &str) -> Option<u64> {
    /// Units and how many decimals of each are whole bits; `bit` last, since the others end with it.
    const UNITS: &[(&str, usize)] = &[("kbit", 3), ("mbit", 6), ("gbit", 9), ("bit", 0)];
    let (number, decimals) =
        UNITS.iter().find_map(|(unit, decimals)| text.strip_suffix(unit).map(|number| (number, *decimals)))?;
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    if whole.is_empty() || fraction.len() > decimals {
        return None;
    }
    let rate = decimal(&format!("{whole}{fraction:0<decimals$}"))?;
    (MIN_CAPACITY..=MAX_CAPACITY).contains(&rate).then_some(rate)
}

/// An inside host, and the port if one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: Ipv4Addr,
    pub(super) port: Option<u16>,
}

/// `ADDRESS:PORT`, or an address alone.
pub(super) fn target(value: &DeValue<'_>) -> Result<Target, Mismatch> {
    let text = text(value)?;
    let Some((address, digits)) = text.split_once(':') else {
        return one_address(text).map(|address| Target { address, port: None });
    };
    let address = one_address(address)?;
    if digits.contains('-') {
        return Err(Mismatch::Because("write the first port alone; the others follow it".to_owned()));
    }
    port(digits).map(|port| Target { address, port: Some(port) }).ok_or(Mismatch::Value)
}

/// A port as a number, or what [`ports`] reads.
pub(super) fn port_or_ports(value: &DeValue<'_>) -> Result<PortRange, Mismatch> {
    match value {
        DeValue::Integer(_) => integer(value, 1, 65_535).map(|port| PortRange { first: port, last: port }),
        _ => ports(value),
    }
}

/// `FIRST-LAST`, or one port.
pub(super) fn ports(value: &DeValue<'_>) -> Result<PortRange, Mismatch> {
    let text = text(value)?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first.trim()), port(last.trim())) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
        _ => Err(Mismatch::Value),
    }
}

/// The number of a port, 1 to 65535.
pub(super) fn port(digits: &str) -> Option<u16> {
    decimal(digits).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// Digits alone: no sign, no blanks.
fn decimal(digits: &str) -> Option<u64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// `auto`, `off`, or a number of bytes.
pub(super) fn mss_clamp(value: &DeValue<'_>) -> Result<MssClamp, Mismatch> {
    match value {
        DeValue::Integer(_) => {
            // From the least that RFC 9293 lets a sender assume, to what an IPv4 packet holds besides its two headers.
            integer(value, 536, 65_495).map(MssClamp::Bytes)
        }
        other => match text(other)? {
            "auto" => Ok(MssClamp::Auto),
            "off" => Ok(MssClamp::Off),
            _ => Err(Mismatch::Value),
        },
    }
}

/// Numbers with units, the larger unit first: `500ms`, `300s`, `2h4m`.
pub(super) fn duration(value: &DeValue<'_>) -> Result<Duration, Mismatch> {
    parse_duration(text(value)?).ok_or(Mismatch::Value)
}

/// A duration that an idle flow may be kept for.
pub(super) fn timeout(value: &DeValue<'_>) -> Result<Duration, Mismatch> {
    duration_within(value, Duration::from_secs(1), Duration::from_secs(720 * 3600))
}

/// A duration in which an uplink is watched.
pub(super) fn span(value: &DeValue<'_>) -> Result<Duration, Mismatch> {
    duration_within(value, Duration::from_secs(1), Duration::from_secs(24 * 3600))
}

/// How long a source may keep its uplink.
pub(super) fn sticky(value: &DeValue<'_>) -> Result<Duration, Mismatch> {
    duration_within(value, Duration::ZERO, MAX_STICKY)
}

fn duration_within(value: &DeValue<'_>, least: Duration, most: Duration) -> Result<Duration, Mismatch> {
    duration(value).and_then(
        |duration| {
            if (least..=most).contains(&duration) { Ok(duration) } else { Err(Mismatch::Value) }
        },
    )
}

/// The time that a hook's program may take.
pub(super) fn hook_timeout(value: &DeValue<'_>) -> Result<Duration, Mismatch> {
    const LEAST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(600);
    let timeout = duration(value)?;
    if (LEAST..=MOST).contains(&timeout) { Ok(timeout) } else { Err(Mismatch::Value) }
}

/// A path that does not depend on a working directory.
pub(super) fn absolute_path(value: &DeValue<'_>) -> Result<PathBuf, Mismatch> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() && !path.to_string_lossy().contains('\0') { Ok(path) } else { Err(Mismatch::Value) }
}

/// A path, from wherever.
pub(super) fn path(value: &DeValue<'_>) -> Result<PathBuf, Mismatch> {
    let text = text(value)?;
    if text.is_empty() || text.contains('\0') { Err(Mismatch::Value) } else { Ok(PathBuf::from(text)) }
}

fn parse_duration(text: &str) -> Option<Duration> {
    /// Units in the order in which they may follow each other, with their milliseconds.
    const UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut total_ms: u64 = 0;
    let mut units = UNITS;
    let mut rest = text;
    loop {
        let digits_end = rest.find(|c: char| !c.is_ascii_digit())?;
        let (digits, after) = rest.split_at(digits_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let index = units.iter().position(|(name, _)| *name == unit)?;
        let part_ms = digits.parse::<u64>().ok()?.checked_mul(units[index].1)?;
        total_ms = total_ms.checked_add(part_ms)?;
        if after.is_empty() {
            return Some(Duration::from_millis(total_ms));
        }
        units = &units[index + 1..];
        rest = after;
    }
}

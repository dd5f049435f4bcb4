//! Reading single values: numbers, words, addresses, ports, durations.
//!
//! Every reader takes a TOML value and returns what it means or a [`Mismatch`]; none of them knows its key, and none of them can
//! fail otherwise. What may stand at a key is put in words once, in the schema.

use std::net::Ipv4Addr;
use std::time::Duration;

use toml::de::DeValue;

use super::model::{MssClamp, PortRange, check_interface_name};

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

fn clipped(text: &str) -> String {
    const MOST_CHARS: usize = 60;
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Mismatch> {
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

/// `0x` and 1 to 8 hexadecimal digits with one run of bits set.
pub(super) fn mark_mask(value: &DeValue<'_>) -> Result<u32, Mismatch> {
    let text = text(value)?;
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).ok_or(Mismatch::Value)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Mismatch::Value);
    }
    let mask = u32::from_str_radix(digits, 16).map_err(|_| Mismatch::Value)?;
    let bits_from_lowest_set = mask.checked_shr(mask.trailing_zeros());
    match bits_from_lowest_set {
        Some(run) if run & run.wrapping_add(1) == 0 => Ok(mask),
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
    let address: Ipv4Addr = text(value)?.parse().map_err(|_| Mismatch::Value)?;
    let kind = if address.is_unspecified() {
        "the unspecified address"
    } else if address.octets()[0] == 0 {
        "an address of \"this network\", 0.0.0.0/8"
    } else if address.is_loopback() {
        "a loopback address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if address.is_broadcast() {
        "the broadcast address"
    } else {
        return Ok(address);
    };
    Err(Mismatch::Because(format!("it is {kind}, not one machine's")))
}

/// What an address may be, or each element of a list of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressForm {
    /// One address.
    One(Ipv4Addr),
    /// Several: a prefix.
    Prefix,
}

/// An address or a prefix.
pub(super) fn address_form(value: &DeValue<'_>) -> Result<AddressForm, Mismatch> {
    match text(value)?.parse::<ipnet::Ipv4Net>() {
        Ok(_) => Ok(AddressForm::Prefix),
        Err(_) => address(value).map(AddressForm::One),
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

fn port(digits: &str) -> Option<u16> {
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
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(720 * 3600);
    duration(value).and_then(
        |duration| {
            if (LEAST..=MOST).contains(&duration) { Ok(duration) } else { Err(Mismatch::Value) }
        },
    )
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

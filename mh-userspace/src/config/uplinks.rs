//! The uplinks: `[uplink.NAME]`, and what they may not have in common.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::fault::Report;
use super::model::{
    AddressRange, Damping, InterfacePattern, MAX_ADDRESS_RANGES, MAX_ADDRESSES, MAX_UPLINKS, MssClamp, OnDown,
    PortRange, Uplink,
};
use super::near::mend_name;
use super::policy::Weight;
use super::probes;
use super::schema;
use super::table::{
    Key, Table, Value, check_name, dotted, elements_or_value, entries_of, in_file_order, is_misplaced, read_as,
};
use super::value::quoted;

/// An uplink with what is needed to check it against the rest of the config.
pub(super) struct PlacedUplink {
    pub(super) uplink: Uplink,
    pub(super) name_at: usize,
    /// Where its weight stands, if that could be read.
    pub(super) weight_at: Option<usize>,
    /// Is its capacity written, be it faulty?
    pub(super) has_capacity: bool,
    /// Where its interface stands, if that could be read.
    interface_at: Option<usize>,
    /// Its addresses, and where they stand.
    ranges: Vec<PlacedRange>,
}

struct PlacedRange {
    range: AddressRange,
    at: usize,
}

/// Reads every `[uplink.NAME]`.
pub(super) fn uplinks(root: &Table<'_, '_>, lan: &[InterfacePattern], report: &mut Report) -> Vec<PlacedUplink> {
    const MISSING: &str = "there is no uplink; add [uplink.NAME] with interface = \"INTERFACE\"";
    let mut uplinks = Vec::new();
    if root.lacks(schema::UPLINK_TABLE) {
        report.fault(root.at, MISSING);
    }
    let Some((key, value)) = root.get(schema::UPLINK_TABLE) else {
        return uplinks;
    };
    let Some(tables) = entries_of(schema::UPLINK_TABLE, "[uplink.NAME]", value, report) else {
        return uplinks;
    };
    if tables.is_empty() {
        report.fault(key.span().start, MISSING);
    }
    for (key, value) in in_file_order(tables) {
        let name = key.get_ref();
        if is_misplaced(schema::UPLINK_TABLE, &schema::UPLINK, (key, value), report) {
            continue;
        }
        check_name("an uplink", name, key.span().start, report);
        if uplinks.len() == MAX_UPLINKS {
            report.fault(
                key.span().start,
                format!("uplink {} is one too many; keep at most {MAX_UPLINKS} uplinks", quoted(name)),
            );
        }
        // The place in the list is kept even if the uplink is faulty: policies may name it.
        uplinks.push(uplink(name, (key, value), report));
    }
    check_interfaces(&uplinks, lan, report);
    check_addresses(&uplinks, report);
    uplinks
}

fn uplink(name: &str, entry: (&Key<'_>, &Value<'_>), report: &mut Report) -> PlacedUplink {
    let name_at = entry.0.span().start;
    let mut uplink = Uplink {
        name: name.to_owned(),
        interface: String::new(),
        gateway: None,
        addresses: Vec::new(),
        weight: Weight::Fixed(1),
        capacity: None,
        ports: PortRange::default(),
        on_down: OnDown::Reset,
        mss_clamp: MssClamp::Auto,
        nat: true,
        damping: Damping::default(),
        probe: None,
    };
    let mut interface_at = None;
    let path = dotted(schema::UPLINK_TABLE, name);
    let Some(table) = Table::open(&schema::UPLINK, path, entry, report) else {
        return PlacedUplink {
            uplink,
            name_at,
            weight_at: None,
            has_capacity: false,
            interface_at,
            ranges: Vec::new(),
        };
    };
    if let Some(interface) = table.read(&schema::INTERFACE, report) {
        uplink.interface = interface.value;
        interface_at = Some(interface.at);
    } else if table.lacks(schema::INTERFACE.name) {
        report.fault(table.at, format!("[{}] names no interface; add interface = \"INTERFACE\"", table.path));
    }
    let ranges = addresses(&table, report);
    uplink.addresses = ranges.iter().map(|placed| placed.range).collect();
    if let Some(gateway) = table.read(&schema::GATEWAY, report) {
        uplink.gateway = Some(gateway.value);
        if uplink.addresses.iter().any(|range| range.contains(gateway.value)) {
            report.fault(
                gateway.at,
                format!(
                    "gateway {} is an address of the uplink itself; write that of the next router, or take it out of address",
                    gateway.value
                ),
            );
        }
    }
    let weight = table.read(&schema::WEIGHT, report);
    if let Some(weight) = &weight {
        uplink.weight = weight.value;
    }
    uplink.capacity = table.read(&schema::CAPACITY, report).map(|capacity| capacity.value);
    let has_capacity = !table.lacks(schema::CAPACITY.name);
    if let Some(weight) = weight.as_ref().filter(|weight| weight.value == Weight::Capacity && !has_capacity) {
        report.fault(weight.at, lacks_capacity(name));
    }
    if let Some(ports) = table.read(&schema::PORTS, report) {
        uplink.ports = ports.value;
    }
    if let Some(on_down) = table.read(&schema::ON_DOWN, report) {
        uplink.on_down = on_down.value;
    }
    if let Some(clamp) = table.read(&schema::MSS_CLAMP, report) {
        uplink.mss_clamp = clamp.value;
    }
    if let Some(nat) = table.read(&schema::NAT, report) {
        uplink.nat = nat.value;
    }
    if let Some(damping) = table.child(schema::DAMPING_TABLE, &schema::DAMPING, report) {
        let default = uplink.damping;
        uplink.damping = Damping {
            losses: damping.read(&schema::LOSSES, report).map_or(default.losses, |placed| placed.value),
            within: damping.read(&schema::WITHIN, report).map_or(default.within, |placed| placed.value),
            hold: damping.read(&schema::HOLD, report).map_or(default.hold, |placed| placed.value),
        };
    }
    if let Some(table) = table.child(schema::PROBE_TABLE, &schema::PROBE, report) {
        uplink.probe = probes::probe(&table, report);
    }
    let weight_at = weight.map(|weight| weight.at);
    PlacedUplink { uplink, name_at, weight_at, has_capacity, interface_at, ranges }
}

/// What is wrong where the capacity of the uplink `name` decides, and it has none.
pub(super) fn lacks_capacity(name: &str) -> String {
    let header = dotted(schema::UPLINK_TABLE, name);
    format!(
        "uplink {} has no capacity; add capacity = \"DOWN/UP\" to [{header}], such as \"100mbit/20mbit\"",
        quoted(name)
    )
}

/// The addresses of an uplink in file order; those that are faulty are left out.
fn addresses(table: &Table<'_, '_>, report: &mut Report) -> Vec<PlacedRange> {
    let Some((_, value)) = table.get(schema::ADDRESS.name) else {
        return Vec::new();
    };
    let elements = elements_or_value(value);
    if let Some(further) = elements.get(MAX_ADDRESS_RANGES) {
        report.fault(
            further.span().start,
            format!(
                "address has {} elements; keep at most {MAX_ADDRESS_RANGES}, with prefixes in place of single addresses",
                elements.len()
            ),
        );
    }
    let ranges: Vec<PlacedRange> = elements
        .into_iter()
        .filter_map(|element| {
            let range = read_as(schema::ADDRESS.name, &schema::ADDRESS, element, report)?;
            Some(PlacedRange { range, at: element.span().start })
        })
        .collect();
    let count: u64 = ranges.iter().map(|placed| u64::from(placed.range.count)).sum();
    if count > u64::from(MAX_ADDRESSES) {
        report.fault(
            value.span().start,
            format!("address stands for {count} addresses in all; keep at most {MAX_ADDRESSES} for one uplink"),
        );
    }
    ranges
}

/// An interface is one uplink's, or a LAN's.
fn check_interfaces(uplinks: &[PlacedUplink], lan: &[InterfacePattern], report: &mut Report) {
    let mut owners: HashMap<&str, &str> = HashMap::new();
    for placed in uplinks {
        let Some(at) = placed.interface_at else {
            continue;
        };
        let interface = placed.uplink.interface.as_str();
        match owners.get(interface) {
            Some(owner) => report.fault(
                at,
                format!(
                    "interface {interface:?} is already that of uplink {owner:?}; give each uplink an interface of its own"
                ),
            ),
            None => {
                owners.insert(interface, &placed.uplink.name);
            }
        }
        if let Some(pattern) = lan.iter().find(|pattern| pattern.matches(interface)) {
            report.fault(
                at,
                format!(
                    "interface {interface:?} is also one of lan, by {:?}; an interface is a lan's or an uplink's, so change one of them",
                    pattern.to_string()
                ),
            );
        }
    }
}

/// An address stands in one place.
fn check_addresses(uplinks: &[PlacedUplink], report: &mut Report) {
    // Two uplinks may have the same address: identical modems do.
    uplinks.iter().for_each(|placed| check_ranges(placed, report));
}

fn check_ranges(placed: &PlacedUplink, report: &mut Report) {
    let name = placed.uplink.name.as_str();
    let mut all: Vec<(&PlacedRange, &str)> = placed.ranges.iter().map(|range| (range, name)).collect();
    // Prefixes lie apart or within each other: one that overlaps another follows the outermost that it is in.
    all.sort_by_key(|(placed, _)| (placed.range.first, Reverse(placed.range.count), placed.at));
    let mut outer: Option<(&PlacedRange, &str)> = None;
    for inner in all {
        match outer {
            Some(outer) if outer.0.range.contains(inner.0.range.first) => {
                let (former, latter) = if outer.0.at < inner.0.at { (outer, inner) } else { (inner, outer) };
                let (here, there, owner) = (latter.0.range, former.0.range, former.1);
                let what = if here == there {
                    format!("{here} is in the address of uplink {owner:?} already")
                } else {
                    format!("{here} overlaps {there} in the address of uplink {owner:?}")
                };
                report.fault_against(latter.0.at, former.0.at, format!("{what}; keep one of them, the other is in"));
            }
            _ => outer = Some(inner),
        }
    }
}

/// The index of the uplink that is named `name` at byte `at`, or a report that there is none.
pub(super) fn index_of(name: &str, at: usize, uplinks: &[PlacedUplink], report: &mut Report) -> Option<usize> {
    let index = uplinks.iter().position(|placed| placed.uplink.name == name);
    if index.is_none() {
        let names = uplinks.iter().map(|placed| placed.uplink.name.as_str());
        let mend = mend_name(name, names, "uplinks", "[uplink.NAME]");
        report.fault(at, format!("no uplink is named {}; {mend}", quoted(name)));
    }
    index
}

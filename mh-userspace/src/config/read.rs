//! From a parsed TOML document to a [`Config`]: sections, and what they must hold together.
//!
//! Reading goes on after a fault, with a default in place of the faulty value, so that one run finds every fault; the [`Report`]
//! keeps them, and its caller drops the config if there are any.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use toml::de::{DeTable, DeValue};

use super::fault::Report;
use super::model::{
    Config, Datapath, HashMode, InterfaceNameError, InterfacePattern, MAX_UPLINK_NAME, MAX_UPLINKS, MssClamp, OnDown,
    Policy, PortRange, Timeouts, Uplink,
};
use super::schema::{self, did_you_mean, nearest};
use super::table::{Key, Placed, Table, Value, dotted, entries_of, in_file_order, is_bare, list_of, read_as, refuse};
use super::value::{AddressForm, describe, quoted};

/// An uplink with what is needed to check it against the rest of the config.
struct PlacedUplink {
    uplink: Uplink,
    name_at: usize,
    /// Where its interface stands, if that could be read.
    interface_at: Option<usize>,
}

/// Reads a whole document.
pub(super) fn config(document: &DeTable<'_>, report: &mut Report) -> Config {
    let root = Table::new(&schema::ROOT, String::new(), 0, document, report);
    let lan = lan(&root, report);
    let datapath = datapath(&root, report);
    let uplinks = uplinks(&root, &lan, report);
    let default_policy = default_policy(&root, &uplinks, report);
    let timeouts = timeouts(&root, report);
    Config {
        lan,
        datapath,
        uplinks: uplinks.into_iter().map(|placed| placed.uplink).collect(),
        default_policy,
        timeouts,
    }
}

fn lan(root: &Table<'_, '_>, report: &mut Report) -> Vec<InterfacePattern> {
    let mut patterns: Vec<InterfacePattern> = Vec::new();
    if root.lacks(schema::LAN) {
        report.fault(
            root.at,
            "lan is missing; add lan = [\"INTERFACE\"] at the top of the file, above the first [section]",
        );
    }
    let Some((_, value)) = root.get(schema::LAN) else {
        return patterns;
    };
    let Some(list) = list_of(schema::LAN, schema::LAN_WANTS, value, report) else {
        return patterns;
    };
    for element in list {
        let at = element.span().start;
        let Some(name) = element.get_ref().as_str() else {
            report
                .fault(at, format!("lan must be {}, without {} in it", schema::LAN_WANTS, describe(element.get_ref())));
            continue;
        };
        match name.parse::<InterfacePattern>() {
            Ok(pattern) if patterns.contains(&pattern) => {
                report.warning(at, format!("{pattern} is in lan twice; keep one of them"));
            }
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let error: InterfaceNameError = error;
                report.fault(
                    at,
                    format!("lan must name interfaces, such as \"lan0\" or \"vlan*\", not {}: {error}", quoted(name)),
                );
            }
        }
    }
    patterns
}

fn datapath(root: &Table<'_, '_>, report: &mut Report) -> Datapath {
    let mut datapath = Datapath::default();
    let Some(table) = root.child(schema::DATAPATH_TABLE, &schema::DATAPATH, report) else {
        return datapath;
    };
    if let Some(mode) = table.read(&schema::MODE, report) {
        datapath.mode = mode.value;
    }
    if let Some(entries) = table.read(&schema::CONNTRACK_ENTRIES, report) {
        datapath.conntrack_entries = entries.value;
    }
    if let Some(bindings) = table.read(&schema::BINDINGS, report) {
        datapath.bindings = bindings.value;
        let flows = datapath.conntrack_entries / 2;
        if bindings.value > flows {
            report.warning(
                bindings.at,
                format!(
                    "bindings = {} is more than the {flows} flows that conntrack_entries = {} has room for, at two entries a \
                     flow; lower it, or raise conntrack_entries",
                    bindings.value, datapath.conntrack_entries
                ),
            );
        }
    }
    if let Some(mask) = table.read(&schema::MARK_MASK, report) {
        datapath.mark_mask = mask.value;
    }
    if let Some(host_traffic) = table.read(&schema::HOST_TRAFFIC, report) {
        datapath.host_traffic = host_traffic.value;
        if host_traffic.value {
            report.warning(
                host_traffic.at,
                "host_traffic = true has no effect in this version of mh yet: flows that this machine starts itself are left to \
                 the kernel",
            );
        }
    }
    datapath
}

fn uplinks(root: &Table<'_, '_>, lan: &[InterfacePattern], report: &mut Report) -> Vec<PlacedUplink> {
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
        if value.get_ref().as_table().is_none() && schema::UPLINK.entry(name).is_some() {
            report.fault(
                key.span().start,
                format!("{name} stands in [uplink] itself; it belongs in [uplink.NAME], which names the uplink"),
            );
            continue;
        }
        if !is_uplink_name(name) {
            report.fault(
                key.span().start,
                format!(
                    "{} is no name for an uplink; use 1 to {MAX_UPLINK_NAME} of the characters a-z, A-Z, 0-9, _ and -",
                    quoted(name)
                ),
            );
        }
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
    uplinks
}

fn is_uplink_name(name: &str) -> bool {
    is_bare(name) && name.len() <= MAX_UPLINK_NAME
}

fn uplink(name: &str, entry: (&Key<'_>, &Value<'_>), report: &mut Report) -> PlacedUplink {
    let name_at = entry.0.span().start;
    let mut uplink = Uplink {
        name: name.to_owned(),
        interface: String::new(),
        gateway: None,
        address: None,
        weight: 1,
        ports: PortRange::default(),
        on_down: OnDown::Reset,
        mss_clamp: MssClamp::Off,
        nat: true,
    };
    let mut interface_at = None;
    let path = dotted(schema::UPLINK_TABLE, name);
    let Some(table) = Table::open(&schema::UPLINK, path, entry, report) else {
        return PlacedUplink { uplink, name_at, interface_at };
    };
    if let Some(interface) = table.read(&schema::INTERFACE, report) {
        uplink.interface = interface.value;
        interface_at = Some(interface.at);
    } else if table.lacks(schema::INTERFACE.name) {
        report.fault(table.at, format!("[{}] names no interface; add interface = \"INTERFACE\"", table.path));
    }
    uplink.address = address(&table, report);
    if let Some(gateway) = table.read(&schema::GATEWAY, report) {
        uplink.gateway = Some(gateway.value);
        if uplink.address == Some(gateway.value) {
            report.fault(
                gateway.at,
                format!("gateway {} is the uplink's own address; write the address of the next router", gateway.value),
            );
        }
    }
    if let Some(weight) = table.read(&schema::WEIGHT, report) {
        uplink.weight = weight.value;
    }
    if let Some(ports) = table.read(&schema::PORTS, report) {
        uplink.ports = ports.value;
    }
    if let Some(on_down) = table.read(&schema::ON_DOWN, report) {
        uplink.on_down = on_down.value;
        if on_down.value == OnDown::Reset {
            report.warning(
                on_down.at,
                "on_down = \"reset\" sends no RST in this version of mh yet: TCP connections are held, all other flows are \
                     bound anew"
                        .to_owned(),
            );
        }
    }
    if let Some(clamp) = table.read(&schema::MSS_CLAMP, report) {
        uplink.mss_clamp = clamp.value;
        if clamp.value != MssClamp::Off {
            report.warning(
                clamp.at,
                format!(
                    "mss_clamp = {} has no effect in this version of mh yet: segment sizes are left alone as with \"off\"",
                    match clamp.value {
                        MssClamp::Bytes(bytes) => bytes.to_string(),
                        word => format!("\"{word}\""),
                    }
                ),
            );
        }
    }
    if let Some(nat) = table.read(&schema::NAT, report) {
        uplink.nat = nat.value;
    }
    PlacedUplink { uplink, name_at, interface_at }
}

/// An uplink's address: one, or a list of one.
fn address(table: &Table<'_, '_>, report: &mut Report) -> Option<Ipv4Addr> {
    let (key, value) = table.get(schema::ADDRESS.name)?;
    let elements = match value.get_ref() {
        DeValue::Array(list) if !list.is_empty() => list.iter().collect(),
        _ => vec![value],
    };
    let forms: Vec<AddressForm> = elements
        .iter()
        .filter_map(|element| read_as(schema::ADDRESS.name, &schema::ADDRESS, element, report))
        .collect();
    if forms.len() < elements.len() {
        return None;
    }
    if let [AddressForm::One(address)] = forms[..] {
        return Some(address);
    }
    report.fault(
        key.span().start,
        format!(
            "a pool of addresses in {}.address is not supported by this version of mh yet; remove it, or write one address",
            table.path
        ),
    );
    None
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

fn default_policy(root: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Policy {
    let mut policy = Policy {
        members: uplinks.iter().enumerate().map(|(index, placed)| (index, placed.uplink.weight)).collect(),
        hash: HashMode::Flow,
    };
    let mut members_at = uplinks.first().map_or(root.at, |placed| placed.name_at);
    if let Some((_, value)) = root.get(schema::POLICY_TABLE)
        && let Some(policies) = entries_of(schema::POLICY_TABLE, "[policy.default]", value, report)
    {
        for (key, value) in in_file_order(policies) {
            if key.get_ref() != schema::DEFAULT_POLICY {
                let path = dotted(schema::POLICY_TABLE, key.get_ref());
                refuse(&path, key.span().start, report);
                continue;
            }
            let path = dotted(schema::POLICY_TABLE, schema::DEFAULT_POLICY);
            let Some(table) = Table::open(&schema::POLICY, path, (key, value), report) else {
                continue;
            };
            if let Some(tiers) = tiers(&table, uplinks, report) {
                policy.members = tiers.value;
                members_at = tiers.at;
            }
            if let Some(hash) = table.read(&schema::HASH, report) {
                policy.hash = hash.value;
            }
            if let Some(sticky) = table.read(&schema::STICKY, report)
                && !sticky.value.is_zero()
            {
                let what = format!("{}.sticky other than \"0s\"", table.path);
                refuse(&what, sticky.key_at, report);
            }
        }
    }
    if !policy.members.is_empty() && policy.members.iter().all(|(_, weight)| *weight == 0) {
        report.warning(
            members_at,
            "no uplink has a weight above 0: no new flow will get an uplink; give at least one uplink a weight",
        );
    }
    policy
}

/// The members of the first tier; `None` if the key is left out or too wrong to go on.
fn tiers(table: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Option<Placed<Vec<(usize, u16)>>> {
    let (key, value) = table.get(schema::TIERS)?;
    let list = list_of(schema::TIERS, schema::TIERS_WANTS, value, report)?;
    let first = list.first()?;
    for further in list.iter().skip(1) {
        refuse("a second or further tier", further.span().start, report);
    }
    let entries = entries_of("a tier", "such as { isp1 = 2, isp2 = 1 }", first, report)?;
    if entries.is_empty() {
        report.fault(first.span().start, "the tier is empty; name an uplink, such as { isp1 = 1 }, or leave out tiers");
    }
    let mut members = Vec::new();
    for (name, weight) in in_file_order(entries) {
        let index = uplinks.iter().position(|placed| placed.uplink.name == **name.get_ref());
        let what = format!("the weight of {}", quoted(name.get_ref()));
        let weight = read_as(&what, &schema::WEIGHT, weight, report);
        match (index, weight) {
            (Some(index), Some(weight)) => members.push((index, weight)),
            (Some(_), None) => {}
            (None, _) => report.fault(
                name.span().start,
                format!("no uplink is named {}; {}", quoted(name.get_ref()), mend_uplink_name(name.get_ref(), uplinks)),
            ),
        }
    }
    Some(Placed { key_at: key.span().start, at: first.span().start, value: members })
}

fn mend_uplink_name(name: &str, uplinks: &[PlacedUplink]) -> String {
    let names = || uplinks.iter().map(|placed| placed.uplink.name.as_str());
    let near = nearest(name, names());
    if !near.is_empty() {
        return did_you_mean(&near);
    }
    let all: Vec<String> = names().map(quoted).collect();
    if all.is_empty() { "add [uplink.NAME]".to_owned() } else { format!("the uplinks are {}", all.join(", ")) }
}

fn timeouts(root: &Table<'_, '_>, report: &mut Report) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let Some(table) = root.child(schema::TIMEOUTS_TABLE, &schema::TIMEOUTS, report) else {
        return timeouts;
    };
    for timeout in schema::TIMEOUT_KEYS {
        let Some(duration) = table.read(&timeout.key, report) else {
            continue;
        };
        *(timeout.field)(&mut timeouts) = duration.value;
        if duration.value < timeout.floor {
            report.warning(
                duration.at,
                format!(
                    "{} is less than the {}s that {} asks for: flows that are idle, but in use, may be cut",
                    timeout.key.name,
                    timeout.floor.as_secs(),
                    timeout.source
                ),
            );
        }
    }
    timeouts
}

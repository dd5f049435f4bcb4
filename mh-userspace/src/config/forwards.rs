//! Forwarded ports: `[[forward]]`, and that no port is forwarded twice.

use std::collections::{HashMap, HashSet};

use super::fault::Report;
use super::model::{Forward, ForwardProtocol, MAX_FORWARDED_PORTS, PortRange};
use super::schema;
use super::table::{Table, elements_or_value, list_of, read_as, tables_of};
use super::uplinks::{PlacedUplink, index_of};
use super::value::{describe, quoted};

/// The forwarded ports, and the indices of the uplinks that they name.
#[derive(Default)]
pub(super) struct Forwards {
    pub(super) all: Vec<Forward>,
    pub(super) named: HashSet<usize>,
}

/// Reads every `[[forward]]`.
pub(super) fn forwards(root: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Forwards {
    let mut forwards = Forwards::default();
    let list = tables_of(root, schema::FORWARD_TABLE, report);
    let mut taken = Taken::default();
    for element in list {
        let Some(table) = Table::element(&schema::FORWARD, schema::FORWARD_TABLE, element, report) else {
            continue;
        };
        if let Some(forward) = forward(&table, uplinks, report) {
            taken.take(&forward, table.at, uplinks, report);
            if table.get(schema::UPLINKS).is_some() {
                forwards.named.extend(&forward.uplinks);
            }
            forwards.all.push(forward);
        }
    }
    forwards
}

fn forward(table: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Option<Forward> {
    for (key, example) in
        [(schema::PROTOCOL.name, "\"tcp\""), (schema::PORT.name, "\"PORT\""), (schema::TO.name, "\"ADDRESS:PORT\"")]
    {
        if table.lacks(key) {
            report.fault(table.at, format!("[[forward]] lacks {key}; add {key} = {example}"));
        }
    }
    let uplinks = uplinks_of(table, uplinks, report);
    let protocols = protocols(table, report);
    let ports = table.read(&schema::PORT, report);
    let to = table.read(&schema::TO, report);
    let (ports, to) = (ports?.value, to?);
    let to_port = to.value.port.unwrap_or(ports.first);
    let room = PortRange { first: to_port, last: u16::MAX }.count();
    if ports.count() > room {
        report.fault(
            to.at,
            format!(
                "port {ports} is {} ports, and from port {to_port} of to there are {room} up to 65535; lower the port of to, or \
                 forward fewer",
                ports.count()
            ),
        );
        return None;
    }
    Some(Forward { uplinks: uplinks?, protocols: protocols?, ports, to: to.value.address, to_port })
}

/// The uplinks of a forward, or all of them; each has to translate.
fn uplinks_of(table: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Option<Vec<usize>> {
    let Some((_, value)) = table.get(schema::UPLINKS) else {
        check_all_translate(table.at, uplinks, report);
        return Some((0..uplinks.len()).collect());
    };
    let mut indices = Vec::new();
    for element in list_of(schema::UPLINKS, schema::UPLINKS_WANTS, value, report)? {
        let at = element.span().start;
        let Some(name) = element.get_ref().as_str() else {
            report.fault(
                at,
                format!("uplinks must be {}, without {} in it", schema::UPLINKS_WANTS, describe(element.get_ref())),
            );
            continue;
        };
        let Some(index) = index_of(name, at, uplinks, report) else {
            continue;
        };
        if indices.contains(&index) {
            report.warning(at, format!("{name} is in uplinks twice; keep one of them"));
            continue;
        }
        if uplinks.get(index).is_some_and(|placed| !placed.uplink.nat) {
            report.fault(
                at,
                format!("uplink {name:?} has nat = false, which forwards no ports; take it out of uplinks, or set its nat = true"),
            );
        }
        indices.push(index);
    }
    Some(indices)
}

/// Reports a forward at byte `at` that is on all uplinks although some do not translate.
fn check_all_translate(at: usize, uplinks: &[PlacedUplink], report: &mut Report) {
    let Some(without) = uplinks.iter().find(|placed| !placed.uplink.nat) else {
        return;
    };
    let with: Vec<String> =
        uplinks.iter().filter(|placed| placed.uplink.nat).map(|placed| quoted(&placed.uplink.name)).collect();
    let mend = if with.is_empty() {
        "set its nat = true, or remove the [[forward]]".to_owned()
    } else {
        format!("name those that translate: uplinks = [{}]", with.join(", "))
    };
    report.fault(
        at,
        format!(
            "[[forward]] without uplinks is on all of them, and {} has nat = false, which forwards no ports; {mend}",
            quoted(&without.uplink.name)
        ),
    );
}

fn protocols(table: &Table<'_, '_>, report: &mut Report) -> Option<Vec<ForwardProtocol>> {
    let (_, value) = table.get(schema::PROTOCOL.name)?;
    let mut protocols = Vec::new();
    for element in elements_or_value(value) {
        let Some(protocol) = read_as(schema::PROTOCOL.name, &schema::PROTOCOL, element, report) else {
            continue;
        };
        if protocols.contains(&protocol) {
            report.warning(element.span().start, format!("{protocol} is in protocol twice; keep one of them"));
        } else {
            protocols.push(protocol);
        }
    }
    Some(protocols)
}

/// The ports that are forwarded, and where the `[[forward]]` of each is. Never more than one beyond [`MAX_FORWARDED_PORTS`].
#[derive(Default)]
struct Taken {
    by: HashMap<(usize, ForwardProtocol, u16), usize>,
    /// There were more ports, which has been reported; nothing is compared any more.
    overflown: bool,
}

impl Taken {
    /// Adds the ports of the forward at byte `at`, up to the first that is taken or one too many, which is reported.
    fn take(&mut self, forward: &Forward, at: usize, uplinks: &[PlacedUplink], report: &mut Report) {
        for &uplink in &forward.uplinks {
            for &protocol in &forward.protocols {
                for port in forward.ports.first..=forward.ports.last {
                    if self.overflown {
                        return;
                    }
                    if let Some(other) = self.by.insert((uplink, protocol, port), at) {
                        let name = uplinks.get(uplink).map_or("", |placed| placed.uplink.name.as_str());
                        report.fault_against(
                            at,
                            other,
                            format!(
                                "{protocol} port {port} of uplink {} is forwarded already; change or remove this [[forward]], or the \
                                 one in",
                                quoted(name)
                            ),
                        );
                        return;
                    }
                    if self.by.len() > MAX_FORWARDED_PORTS {
                        report.fault(
                            at,
                            format!(
                                "with this [[forward]] more than {MAX_FORWARDED_PORTS} ports are forwarded, each counted for every \
                                 uplink and protocol; forward fewer"
                            ),
                        );
                        self.overflown = true;
                    }
                }
            }
        }
    }
}

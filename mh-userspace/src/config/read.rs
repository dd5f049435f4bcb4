//! From a parsed TOML document to a [`Config`]: sections, and what they must hold together.
//!
//! Reading goes on after a fault, with a default in place of the faulty value, so that one run finds every fault; the [`Report`]
//! keeps them, and its caller drops the config if there are any.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use toml::de::DeTable;

use super::fault::Report;
use super::model::{Config, Datapath, Hooks, InterfaceNameError, InterfacePattern, Limits, Nat, Timeouts};
use super::rules::Named;
use super::table::{Table, list_of};
use super::value::{describe, quoted};
use super::{forwards, policies, review, rules, schema, sets, uplinks};

/// Reads a whole document; relative paths of files of sets begin at `directory`.
pub(super) fn config(document: &DeTable<'_>, directory: &Path, report: &mut Report) -> Config {
    let root = Table::new(&schema::ROOT, String::new(), 0, document, report);
    let lan = lan(&root, report);
    let datapath = datapath(&root, report);
    let uplinks = uplinks::uplinks(&root, &lan, report);
    let policies = policies::policies(&root, &uplinks, report);
    let sets = sets::sets(&root, directory, report);
    let named = Named { uplinks: &uplinks, policies: &policies, sets: &sets };
    let rules = rules::rules(&root, &named, report);
    let forwards = forwards::forwards(&root, &uplinks, report);
    if !report.has_faults() {
        review::review(&lan, datapath.host_traffic, &named, &rules, &forwards.named, report);
    }
    let nat = nat(&root, report);
    let limits = limits(&root, report);
    let timeouts = timeouts(&root, report);
    let hooks = hooks(&root, report);
    Config {
        lan,
        datapath,
        uplinks: uplinks.into_iter().map(|placed| placed.uplink).collect(),
        policies: policies.into_iter().map(|placed| placed.policy).collect(),
        rules: rules.into_iter().map(|placed| placed.rule).collect(),
        sets: sets.into_iter().map(|placed| placed.set).collect(),
        forwards: forwards.all,
        nat,
        limits,
        timeouts,
        hooks,
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
    }
    datapath
}

fn nat(root: &Table<'_, '_>, report: &mut Report) -> Nat {
    let mut nat = Nat::default();
    if let Some(table) = root.child(schema::NAT_TABLE, &schema::NAT_SECTION, report)
        && let Some(filtering) = table.read(&schema::FILTERING, report)
    {
        nat.filtering = filtering.value;
    }
    nat
}

fn limits(root: &Table<'_, '_>, report: &mut Report) -> Limits {
    let mut limits = Limits::default();
    let Some(table) = root.child(schema::LIMITS_TABLE, &schema::LIMITS, report) else {
        return limits;
    };
    if let Some(bindings) = table.read(&schema::BINDINGS_PER_SOURCE, report) {
        limits.bindings_per_source = bindings.value;
    }
    if let Some(flows) = table.read(&schema::NEW_FLOWS_PER_SOURCE, report) {
        limits.new_flows_per_source = flows.value;
    }
    limits
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

fn hooks(root: &Table<'_, '_>, report: &mut Report) -> Hooks {
    let mut hooks = Hooks::default();
    let Some(table) = root.child(schema::HOOKS_TABLE, &schema::HOOKS, report) else {
        return hooks;
    };
    if let Some(program) = table.read(&schema::ON_CHANGE, report) {
        if let Some(trouble) = trouble_with_program(&program.value) {
            report.warning(program.at, format!("{} {trouble}", quoted(&program.value.to_string_lossy())));
        }
        hooks.on_change = Some(program.value);
    }
    if let Some(timeout) = table.read(&schema::HOOK_TIMEOUT, report) {
        hooks.timeout = timeout.value;
    }
    hooks
}

/// Why a program can't be run, and the mend.
fn trouble_with_program(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Err(error) => Some(format!("can't be run: {error}; changes are not told to anybody until it is there")),
        Ok(data) if !data.is_file() => Some("is no file; name a program".to_owned()),
        Ok(data) if data.permissions().mode() & 0o111 == 0 => {
            Some("is not executable; make it so with: chmod +x".to_owned())
        }
        Ok(_) => None,
    }
}

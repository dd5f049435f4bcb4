//! From a parsed TOML document to a [`Config`]: sections, and what they must hold together.
//!
//! Reading goes on after a fault, with a default in place of the faulty value, so that one run finds every fault; the [`Report`]
//! keeps them, and its caller drops the config if there are any.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::fault::Report;
use super::model::{Config, Datapath, HashMode, Hooks, InterfaceNameError, InterfacePattern, Limits, Nat, Timeouts};
use super::policy::{self, Member, Policy, Weight};
use super::table::{Placed, Table, dotted, entries_of, in_file_order, list_of, read_as, refuse};
use super::uplinks::{PlacedUplink, index_of};
use super::value::{describe, quoted};
use super::{forwards, schema, uplinks};

/// Reads a whole document.
pub(super) fn config(document: &DeTable<'_>, report: &mut Report) -> Config {
    let root = Table::new(&schema::ROOT, String::new(), 0, document, report);
    let lan = lan(&root, report);
    let datapath = datapath(&root, report);
    let uplinks = uplinks::uplinks(&root, &lan, report);
    let default_policy = default_policy(&root, &uplinks, report);
    let forwards = forwards::forwards(&root, &uplinks, report);
    let nat = nat(&root, report);
    let limits = limits(&root, report);
    let timeouts = timeouts(&root, report);
    let hooks = hooks(&root, report);
    Config {
        lan,
        datapath,
        uplinks: uplinks.into_iter().map(|placed| placed.uplink).collect(),
        policies: vec![default_policy],
        rules: Vec::new(),
        sets: Vec::new(),
        forwards,
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

fn default_policy(root: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Policy {
    let mut policy = Policy {
        name: policy::DEFAULT_POLICY.to_owned(),
        tiers: vec![
            uplinks
                .iter()
                .enumerate()
                .map(|(uplink, placed)| Member { uplink, weight: placed.uplink.weight })
                .collect(),
        ],
        own_weights: true,
        hash: HashMode::Flow,
        sticky: Duration::ZERO,
        spill: None,
    };
    let mut members_at = uplinks.first().map_or(root.at, |placed| placed.name_at);
    if let Some((_, value)) = root.get(schema::POLICY_TABLE)
        && let Some(policies) = entries_of(schema::POLICY_TABLE, "[policy.default]", value, report)
    {
        for (key, value) in in_file_order(policies) {
            if key.get_ref() != policy::DEFAULT_POLICY {
                let path = dotted(schema::POLICY_TABLE, key.get_ref());
                refuse(&path, key.span().start, report);
                continue;
            }
            let path = dotted(schema::POLICY_TABLE, policy::DEFAULT_POLICY);
            let Some(table) = Table::open(&schema::POLICY, path, (key, value), report) else {
                continue;
            };
            if let Some(tiers) = tiers(&table, uplinks, report) {
                policy.tiers = tiers.value;
                policy.own_weights = false;
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
    let mut members = policy.tiers.iter().flatten().peekable();
    if members.peek().is_some() && members.all(|member| member.weight == Weight::Fixed(0)) {
        report.warning(
            members_at,
            "no uplink has a weight above 0: no new flow will get an uplink; give at least one uplink a weight",
        );
    }
    policy
}

type Tier = Vec<Member>;

/// The tiers; `None` if the key is left out or too wrong to go on.
fn tiers(table: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Option<Placed<Vec<Tier>>> {
    let (key, value) = table.get(schema::TIERS)?;
    let list = list_of(schema::TIERS, schema::TIERS_WANTS, value, report)?;
    let mut tiers: Vec<Tier> = Vec::new();
    for tier in list {
        let entries = entries_of("a tier", "such as { isp1 = 2, isp2 = 1 }", tier, report)?;
        if entries.is_empty() {
            let mend = "name an uplink, such as { isp1 = 1 }, or leave it out";
            report.fault(tier.span().start, format!("the tier is empty; {mend}"));
        }
        let mut members = Vec::new();
        for (name, weight) in in_file_order(entries) {
            let index = index_of(name.get_ref(), name.span().start, uplinks, report);
            if index.is_some_and(|index| tiers.iter().flatten().any(|other| other.uplink == index)) {
                let what = format!("uplink {} is in an earlier tier already; keep one of them", quoted(name.get_ref()));
                report.fault(name.span().start, what);
            }
            let what = format!("the weight of {}", quoted(name.get_ref()));
            let weight = read_as(&what, &schema::WEIGHT, weight, report);
            let member = |(uplink, weight)| Member { uplink, weight: Weight::Fixed(weight) };
            members.extend(index.zip(weight).map(member));
        }
        tiers.push(members);
    }
    let first = list.first()?;
    Some(Placed { key_at: key.span().start, at: first.span().start, value: tiers })
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

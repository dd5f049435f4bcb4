//! The rules: `[[rule]]`, and the policies, uplinks and sets that they name.

use ipnet::Ipv4Net;
use mh_common::wire;
use toml::de::DeValue;

use super::fault::Report;
use super::model::{InterfaceNameError, InterfacePattern, PortRange};
use super::near::{did_you_mean, mend_name, nearest};
use super::policies::PlacedPolicy;
use super::policy::{Addresses, MAX_PORT_RANGES, MAX_PREFIXES, MAX_RULES, Rule, Use};
use super::schema::{self, Scalar};
use super::sets::PlacedSet;
use super::table::{Placed, Table, is_name, tables_of};
use super::uplinks::{PlacedUplink, index_of};
use super::value::{Mismatch, describe, describe_value, integer, prefix, quoted, text};

/// What rules may name.
#[derive(Clone, Copy)]
pub(super) struct Named<'n> {
    pub(super) uplinks: &'n [PlacedUplink],
    pub(super) policies: &'n [PlacedPolicy],
    pub(super) sets: &'n [PlacedSet],
}

/// A rule and where it stands.
pub(super) struct PlacedRule {
    pub(super) rule: Rule,
    pub(super) at: usize,
    /// Where each of its interfaces stands.
    pub(super) interfaces_at: Vec<usize>,
}

/// An element of `from` or `to` as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Term {
    Prefix(Ipv4Net),
    /// The name of a set.
    Set(String),
    /// What could be one, and stands alone.
    Name(String),
}

/// A prefix, an address, `set:NAME`, or what could be a name.
pub(super) fn term(value: &DeValue<'_>) -> Result<Term, Mismatch> {
    let text = text(value)?;
    match text.strip_prefix("set:") {
        Some(name) => Ok(Term::Set(name.to_owned())),
        None if is_name(text) => Ok(Term::Name(text.to_owned())),
        None => prefix(value).map(Term::Prefix),
    }
}

/// The name of a rule.
pub(super) fn name(value: &DeValue<'_>) -> Result<String, Mismatch> {
    let name = text(value)?;
    if is_name(name) { Ok(name.to_owned()) } else { Err(Mismatch::Value) }
}

/// An IP protocol by name or number.
pub(super) fn protocol(value: &DeValue<'_>) -> Result<u8, Mismatch> {
    match value {
        DeValue::Integer(_) => integer(value, 0, 255),
        other => match text(other)? {
            "tcp" => Ok(wire::PROTOCOL_TCP),
            "udp" => Ok(wire::PROTOCOL_UDP),
            "icmp" => Ok(wire::PROTOCOL_ICMP),
            _ => Err(Mismatch::Value),
        },
    }
}

/// The name of an interface, or its beginning with a `*`.
pub(super) fn interface(value: &DeValue<'_>) -> Result<InterfacePattern, Mismatch> {
    text(value)?.parse().map_err(|error: InterfaceNameError| Mismatch::Because(error.to_string()))
}

/// Reads every `[[rule]]` in file order; those that are faulty are left out.
pub(super) fn rules(root: &Table<'_, '_>, named: &Named<'_>, report: &mut Report) -> Vec<PlacedRule> {
    let mut rules = Vec::new();
    let list = tables_of(root, schema::RULE_TABLE, report);
    if let Some(further) = list.get(MAX_RULES) {
        report.fault(further.span().start, format!("there are {} rules; keep at most {MAX_RULES}", list.len()));
    }
    let mut names: Vec<(String, usize)> = Vec::new();
    let mut totals = Totals::default();
    for element in list.iter().take(MAX_RULES) {
        let Some(table) = Table::element(&schema::RULE, schema::RULE_TABLE, element, report) else {
            continue;
        };
        let name = table.read(&schema::RULE_NAME, report);
        if let Some(name) = &name {
            match names.iter().find(|(other, _)| *other == name.value) {
                Some((_, other)) => report.fault_against(
                    name.at,
                    *other,
                    format!("{:?} is the name of two rules; change one of them, the other is in", name.value),
                ),
                None => names.push((name.value.clone(), name.at)),
            }
        }
        if let Some(placed) = rule(&table, name.map(|name| name.value), named, report) {
            totals.add(&placed.rule, table.at, named.sets, report);
            rules.push(placed);
        }
    }
    rules
}

fn rule(table: &Table<'_, '_>, name: Option<String>, named: &Named<'_>, report: &mut Report) -> Option<PlacedRule> {
    if table.lacks(schema::USE) {
        report.fault(table.at, "[[rule]] lacks use; add use = \"policy:NAME\"");
    }
    let from = addresses(table, &schema::FROM, named.sets, report);
    let to = addresses(table, &schema::RULE_TO, named.sets, report);
    let protocols = table.read_all(&schema::RULE_PROTOCOL, report);
    let from_ports = table.read_all(&schema::FROM_PORT, report);
    let to_ports = table.read_all(&schema::TO_PORT, report);
    check_ports(&protocols, &from_ports, &to_ports, report);
    let interfaces = table.read_all(&schema::RULE_INTERFACE, report);
    let interfaces_at = interfaces.iter().map(|placed| placed.at).collect();
    let dscp = table.read_all(&schema::DSCP, report);
    let action = action(table, named, report)?;
    let rule = Rule {
        name,
        from,
        to,
        protocols: values(protocols),
        from_ports: values(from_ports),
        to_ports: values(to_ports),
        interfaces: values(interfaces),
        dscp: values(dscp),
        action,
    };
    Some(PlacedRule { rule, at: table.at, interfaces_at })
}

fn values<T>(placed: Vec<Placed<T>>) -> Vec<T> {
    placed.into_iter().map(|placed| placed.value).collect()
}

fn addresses(table: &Table<'_, '_>, key: &Scalar<Term>, sets: &[PlacedSet], report: &mut Report) -> Addresses {
    let mut addresses = Addresses::default();
    for term in table.read_all(key, report) {
        match term.value {
            Term::Prefix(prefix) => addresses.prefixes.push(prefix),
            Term::Name(name) => {
                let is_set = sets.iter().any(|placed| placed.set.name == name);
                let mend =
                    if is_set { format!("; {}", did_you_mean(&[&format!("set:{name}")])) } else { String::new() };
                report.fault(term.at, format!("{} must be {}, not {}{mend}", key.name, key.wants, quoted(&name)));
            }
            Term::Set(name) => match sets.iter().position(|placed| placed.set.name == name) {
                Some(index) => addresses.sets.push(index),
                None => {
                    let names = sets.iter().map(|placed| placed.set.name.as_str());
                    let mend = mend_name(&name, names, "sets", "[set.NAME]");
                    report.fault(term.at, format!("no set is named {}; {mend}", quoted(&name)));
                }
            },
        }
    }
    addresses
}

/// Only TCP and UDP have ports.
fn check_ports(
    protocols: &[Placed<u8>],
    from_ports: &[Placed<PortRange>],
    to_ports: &[Placed<PortRange>],
    report: &mut Report,
) {
    let Some((key, ports)) = [(&schema::FROM_PORT, from_ports), (&schema::TO_PORT, to_ports)]
        .into_iter()
        .find_map(|(key, ports)| ports.first().map(|first| (key.name, first)))
    else {
        return;
    };
    let Some(without) = protocols.iter().find(|placed| !wire::is_tcp_or_udp(placed.value)) else {
        return;
    };
    if protocols.iter().any(|placed| wire::is_tcp_or_udp(placed.value)) {
        report.warning(
            without.at,
            format!(
                "only tcp and udp have ports: with {key} the rule matches no other protocol; take it out of protocol"
            ),
        );
    } else {
        report.fault(
            ports.key_at,
            format!("{key} is for tcp and udp, and protocol names neither; add one of them, or remove {key}"),
        );
    }
}

/// What becomes of what matches.
fn action(table: &Table<'_, '_>, named: &Named<'_>, report: &mut Report) -> Option<Use> {
    const WORDS: [(&str, Use); 3] = [("direct", Use::Direct), ("reject", Use::Reject), ("drop", Use::Drop)];
    let (_, value) = table.get(schema::USE)?;
    let at = value.span().start;
    let wants = schema::USE_WANTS;
    let Some(text) = value.get_ref().as_str() else {
        report.fault(at, format!("use must be {wants}, not {}", describe(value.get_ref())));
        return None;
    };
    if let Some(name) = text.strip_prefix("uplink:") {
        return index_of(name, at, named.uplinks, report).map(Use::Uplink);
    }
    let policies = named.policies.iter().map(|placed| placed.policy.name.as_str());
    if let Some(name) = text.strip_prefix("policy:") {
        let index = policies.clone().position(|policy| policy == name);
        if index.is_none() {
            let mend = mend_name(name, policies, "policies", "[policy.NAME]");
            report.fault(at, format!("no policy is named {}; {mend}", quoted(name)));
        }
        return index.map(Use::Policy);
    }
    if let Some((_, word)) = WORDS.iter().find(|(word, _)| *word == text) {
        return Some(*word);
    }
    // The name of a policy or an uplink alone, or a misspelling.
    let mut meant = Vec::new();
    meant.extend(policies.filter(|name| *name == text).map(|name| format!("policy:{name}")));
    let uplinks = named.uplinks.iter().map(|placed| placed.uplink.name.as_str());
    meant.extend(uplinks.filter(|name| *name == text).map(|name| format!("uplink:{name}")));
    if meant.is_empty() {
        meant.extend(nearest(text, WORDS.iter().map(|(word, _)| *word)).into_iter().map(str::to_owned));
    }
    let near: Vec<&str> = meant.iter().map(String::as_str).collect();
    let mend = if near.is_empty() { String::new() } else { format!("; {}", did_you_mean(&near)) };
    report.fault(at, format!("use must be {wants}, not {}{mend}", describe_value(value.get_ref())));
    None
}

/// What all rules together have, which is bounded.
#[derive(Default)]
struct Totals {
    from: Prefixes,
    to: Prefixes,
    from_ports: usize,
    to_ports: usize,
}

/// The prefixes of one direction.
#[derive(Default)]
struct Prefixes {
    count: usize,
    /// The sets that are counted already.
    sets: Vec<usize>,
}

impl Prefixes {
    fn add(&mut self, addresses: &Addresses, sets: &[PlacedSet]) {
        self.count += addresses.prefixes.len();
        for &index in &addresses.sets {
            if !self.sets.contains(&index) {
                self.sets.push(index);
                self.count += sets.get(index).map_or(0, |placed| placed.set.prefixes.len());
            }
        }
    }
}

impl Totals {
    /// Adds the rule at byte `at`, and reports the first with which there is too much of something.
    fn add(&mut self, rule: &Rule, at: usize, sets: &[PlacedSet], report: &mut Report) {
        let before = self.counts();
        self.from.add(&rule.from, sets);
        self.to.add(&rule.to, sets);
        self.from_ports += rule.from_ports.len();
        self.to_ports += rule.to_ports.len();
        let what = [
            (schema::FROM.name, "prefixes", ", each set counted once", MAX_PREFIXES),
            (schema::RULE_TO.name, "prefixes", ", each set counted once", MAX_PREFIXES),
            (schema::FROM_PORT.name, "ranges", "", MAX_PORT_RANGES),
            (schema::TO_PORT.name, "ranges", "", MAX_PORT_RANGES),
        ];
        for ((key, unit, how, most), (before, now)) in what.into_iter().zip(before.into_iter().zip(self.counts())) {
            if before <= most && now > most {
                report.fault(
                    at,
                    format!("with this [[rule]] the rules have {now} {unit} in {key}{how}; keep at most {most} in all"),
                );
            }
        }
    }

    fn counts(&self) -> [usize; 4] {
        [self.from.count, self.to.count, self.from_ports, self.to_ports]
    }
}

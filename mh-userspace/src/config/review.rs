//! What is valid in a config, but hardly meant: rules that are never reached, and sets, policies and uplinks that nothing uses.
//!
//! All of it are warnings, and none is made where the config has faults.

use std::collections::HashSet;

use super::cover::{Cover, covers};
use super::fault::Report;
use super::model::InterfacePattern;
use super::policy::{Addresses, DEFAULT_POLICY, Policy, Rule, Set, Use, Weight};
use super::rules::{Named, PlacedRule};
use super::schema;
use super::table::dotted;
use super::uplinks::PlacedUplink;
use super::value::quoted;

/// Adds warnings about the parts of a config that say who leaves where. `forwarded` are the indices of the uplinks that forwarded ports name.
pub(super) fn review(
    lan: &[InterfacePattern],
    host_traffic: bool,
    named: &Named<'_>,
    rules: &[PlacedRule],
    forwarded: &HashSet<usize>,
    report: &mut Report,
) {
    for placed in rules {
        interfaces(placed, lan, named.uplinks, report);
    }
    let reach = Reach::new(lan, host_traffic, named, rules);
    reached(&reach, rules, report);
    unused_sets(named, rules, report);
    unused_policies(named, rules, &reach, report);
    unused_uplinks(named, rules, &reach, forwarded, report);
}

/// Only what comes from `lan` is steered.
fn interfaces(placed: &PlacedRule, lan: &[InterfacePattern], uplinks: &[PlacedUplink], report: &mut Report) {
    for (pattern, at) in placed.rule.interfaces.iter().zip(&placed.interfaces_at) {
        if lan.iter().any(|of_lan| of_lan.overlaps(pattern)) {
            continue;
        }
        let name = quoted(&pattern.to_string());
        // In lan, that of an uplink would be a fault.
        let what = match uplinks.iter().find(|placed| pattern.matches(&placed.uplink.interface)) {
            Some(placed) => {
                let uplink = quoted(&placed.uplink.name);
                format!(
                    "interface {name} is that of uplink {uplink}, and only what comes in by those of lan is steered; take it out of the rule"
                )
            }
            None => format!(
                "interface {name} is none of lan, and only what comes in by those is steered; add it to lan, or take it out of the rule"
            ),
        };
        report.warning(*at, what);
    }
}

/// What the rules leave each other, and the default policy.
struct Reach {
    /// Of each rule, whether anything reaches it.
    rules: Vec<Cover>,
    /// Of what no rule matches.
    default: Cover,
}

impl Reach {
    fn new(lan: &[InterfacePattern], host_traffic: bool, named: &Named<'_>, placed: &[PlacedRule]) -> Self {
        let otherwise = Rule {
            name: None,
            from: Addresses::default(),
            to: Addresses::default(),
            protocols: Vec::new(),
            from_ports: Vec::new(),
            to_ports: Vec::new(),
            interfaces: Vec::new(),
            dscp: Vec::new(),
            action: Use::Policy(0),
        };
        let rules: Vec<&Rule> = placed.iter().map(|placed| &placed.rule).chain([&otherwise]).collect();
        let sets: Vec<&Set> = named.sets.iter().map(|placed| &placed.set).collect();
        let mut rules = covers(lan, host_traffic, &rules, &sets);
        let default = rules.pop().unwrap_or(Cover::Reached);
        Self { rules, default }
    }

    /// Does a rule that is reached do this, or what becomes of flows that no rule matches?
    fn has(&self, action: Use, rules: &[PlacedRule]) -> bool {
        let mut reached = rules.iter().zip(&self.rules).filter(|(_, cover)| **cover == Cover::Reached);
        (action == Use::Policy(0) && self.default == Cover::Reached)
            || reached.any(|(placed, _)| placed.rule.action == action)
    }
}

/// Rules that those before them leave nothing.
fn reached(reach: &Reach, placed: &[PlacedRule], report: &mut Report) {
    for (index, (placed_rule, cover)) in placed.iter().zip(&reach.rules).enumerate() {
        let this = label(index, &placed_rule.rule);
        match cover {
            Cover::Reached | Cover::Nothing => {}
            Cover::By(other_index) => {
                if let Some(other) = placed.get(*other_index) {
                    let other_label = label(*other_index, &other.rule);
                    report.warning_against(
                        placed_rule.at,
                        other.at,
                        format!(
                            "{this} is never reached: {other_label} takes all that it matches; move it up, or remove it; {other_label} is in"
                        ),
                    );
                }
            }
            Cover::Together => report.warning(
                placed_rule.at,
                format!(
                    "{this} is never reached: together, the rules before it take all that it matches; move it up, or remove it"
                ),
            ),
        }
    }
}

/// How a rule is called: by its name, or by its number from 1.
fn label(index: usize, rule: &Rule) -> String {
    rule.name.as_ref().map_or_else(|| format!("rule {}", index + 1), |name| format!("rule {}", quoted(name)))
}

fn unused_sets(named: &Named<'_>, rules: &[PlacedRule], report: &mut Report) {
    for (index, placed) in named.sets.iter().enumerate() {
        let uses = |rule: &Rule| rule.from.sets.contains(&index) || rule.to.sets.contains(&index);
        if !rules.iter().any(|placed| uses(&placed.rule)) {
            let name = &placed.set.name;
            let header = dotted(schema::SET_TABLE, name);
            report.warning(
                placed.at,
                format!("no rule uses set {name:?}; write \"set:{name}\" in from or to of one, or remove [{header}]"),
            );
        }
    }
}

fn unused_policies(named: &Named<'_>, rules: &[PlacedRule], reach: &Reach, report: &mut Report) {
    // That the default gets nothing is a matter of the uplinks that lose by it.
    for (index, placed) in named.policies.iter().enumerate().skip(1) {
        let action = Use::Policy(index);
        if reach.has(action, rules) {
            continue;
        }
        let name = &placed.policy.name;
        let header = dotted(schema::POLICY_TABLE, name);
        let what = if rules.iter().any(|placed| placed.rule.action == action) {
            format!("no flow gets to the rules that use policy {name:?}; correct one of them, or remove [{header}]")
        } else {
            format!("no rule uses policy {name:?}; write use = \"policy:{name}\" in one, or remove [{header}]")
        };
        report.warning(placed.at, what);
    }
}

fn unused_uplinks(
    named: &Named<'_>,
    rules: &[PlacedRule],
    reach: &Reach,
    forwarded: &HashSet<usize>,
    report: &mut Report,
) {
    for (index, placed) in named.uplinks.iter().enumerate() {
        // That a policy gives flows to none of its uplinks has its own warning.
        let gives = |policy: &Policy| {
            let weight = policy.place(index).map(|(_, weight)| weight);
            weight.is_some_and(|weight| weight != Weight::Fixed(0) || !policy.gives_flows())
        };
        let mut policies = named.policies.iter().enumerate();
        let has_policy =
            policies.any(|(policy, placed)| gives(&placed.policy) && reach.has(Use::Policy(policy), rules));
        if has_policy || reach.has(Use::Uplink(index), rules) || forwarded.contains(&index) {
            continue;
        }
        let name = quoted(&placed.uplink.name);
        let default_gives = named.policies.first().is_some_and(|default| gives(&default.policy));
        let taker = match reach.default {
            Cover::By(other) => rules.get(other).map(|rule| (other, rule)),
            _ => None,
        };
        match taker {
            Some((other, rule)) if default_gives => {
                let label = label(other, &rule.rule);
                report.warning_against(
                    placed.name_at,
                    rule.at,
                    format!(
                        "uplink {name} gets no new flows: {label} leaves policy {DEFAULT_POLICY:?} nothing, and nothing else gives it any; \
                         give {label} a condition, or remove the uplink; {label} is in"
                    ),
                );
            }
            None if default_gives => report.warning(
                placed.name_at,
                format!(
                    "uplink {name} gets no new flows: together, the rules leave policy {DEFAULT_POLICY:?} nothing, and nothing else \
                     gives it any; narrow one of the rules, or remove the uplink"
                ),
            ),
            _ => report.warning(
                placed.name_at,
                format!(
                    "uplink {name} gets no new flows: no policy in use gives it a weight above 0, and no rule that is reached names it; do \
                     either, or remove the uplink"
                ),
            ),
        }
    }
}

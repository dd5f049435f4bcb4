//! What is valid in a config, but hardly meant: rules that are never reached, and sets, policies and uplinks that nothing uses.
//!
//! All of it are warnings, and none is made where the config has faults.

use super::cover::{Cover, covers};
use super::fault::Report;
use super::model::InterfacePattern;
use super::policy::{Policy, Rule, Set, Use, Weight};
use super::rules::{Named, PlacedRule};
use super::schema;
use super::table::dotted;
use super::value::quoted;

/// Adds warnings about the parts of a config that say who leaves where.
pub(super) fn review(
    lan: &[InterfacePattern],
    host_traffic: bool,
    named: &Named<'_>,
    rules: &[PlacedRule],
    report: &mut Report,
) {
    for placed in rules {
        interfaces(placed, lan, report);
    }
    reached(lan, host_traffic, named, rules, report);
    unused_sets(named, rules, report);
    unused_policies(named, rules, report);
    unused_uplinks(named, rules, report);
}

/// Only what comes from `lan` is steered.
fn interfaces(placed: &PlacedRule, lan: &[InterfacePattern], report: &mut Report) {
    for (pattern, at) in placed.rule.interfaces.iter().zip(&placed.interfaces_at) {
        if !lan.iter().any(|of_lan| of_lan.overlaps(pattern)) {
            let name = pattern.to_string();
            report.warning(
                *at,
                format!(
                    "interface {} is none of lan, and only what comes in by those is steered; add it to lan, or take it out of the rule",
                    quoted(&name)
                ),
            );
        }
    }
}

/// Rules that those before them leave nothing.
fn reached(
    lan: &[InterfacePattern],
    host_traffic: bool,
    named: &Named<'_>,
    placed: &[PlacedRule],
    report: &mut Report,
) {
    let rules: Vec<&Rule> = placed.iter().map(|placed| &placed.rule).collect();
    let sets: Vec<&Set> = named.sets.iter().map(|placed| &placed.set).collect();
    let covers = covers(lan, host_traffic, &rules, &sets);
    for (index, (placed_rule, cover)) in placed.iter().zip(covers).enumerate() {
        let this = label(index, &placed_rule.rule);
        match cover {
            Cover::Reached | Cover::Nothing => {}
            Cover::By(other_index) => {
                if let Some(other) = placed.get(other_index) {
                    let other_label = label(other_index, &other.rule);
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

/// Is the policy with this index the default, or that of a rule?
fn is_used(index: usize, rules: &[PlacedRule]) -> bool {
    index == 0 || rules.iter().any(|placed| placed.rule.action == Use::Policy(index))
}

fn unused_policies(named: &Named<'_>, rules: &[PlacedRule], report: &mut Report) {
    for (index, placed) in named.policies.iter().enumerate() {
        if !is_used(index, rules) {
            let name = &placed.policy.name;
            let header = dotted(schema::POLICY_TABLE, name);
            report.warning(
                placed.at,
                format!("no rule uses policy {name:?}; write use = \"policy:{name}\" in one, or remove [{header}]"),
            );
        }
    }
}

fn unused_uplinks(named: &Named<'_>, rules: &[PlacedRule], report: &mut Report) {
    let used = named.policies.iter().enumerate().filter(|(index, _)| is_used(*index, rules));
    let used: Vec<&Policy> = used.map(|(_, placed)| &placed.policy).collect();
    for (index, placed) in named.uplinks.iter().enumerate() {
        // That a policy gives flows to none of its uplinks has its own warning.
        let gives = |policy: &&Policy| {
            let weight = policy.place(index).map(|(_, weight)| weight);
            weight.is_some_and(|weight| weight != Weight::Fixed(0) || !policy.gives_flows())
        };
        let names = |placed: &PlacedRule| placed.rule.action == Use::Uplink(index);
        if !used.iter().any(gives) && !rules.iter().any(names) {
            let name = quoted(&placed.uplink.name);
            report.warning(
                placed.name_at,
                format!(
                    "uplink {name} gets no new flows: no policy in use gives it a weight above 0, and no rule names it; do either, or \
                     remove the uplink"
                ),
            );
        }
    }
}

//! The policies: `[policy.NAME]`, and what their keys must hold together.

use std::time::Duration;

use super::fault::Report;
use super::model::HashMode;
use super::policy::{DEFAULT_POLICY, MAX_POLICIES, Member, Policy, Weight};
use super::schema;
use super::table::{
    Key, Placed, Table, Value, check_name, dotted, entries_of, in_file_order, is_misplaced, list_of, read_as,
};
use super::uplinks::{PlacedUplink, index_of, lacks_capacity};
use super::value::quoted;

/// A policy and where it is named.
pub(super) struct PlacedPolicy {
    pub(super) policy: Policy,
    pub(super) at: usize,
}

type Tier = Vec<Member>;

/// Flows are looked at once a second at the most: what keeps a source for less than this may lose it between two looks.
const LEAST_STICKY: Duration = Duration::from_secs(3);

/// Reads every `[policy.NAME]`. The first is that for what no rule matches, whether it is written or not; the others follow in file order.
pub(super) fn policies(root: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Vec<PlacedPolicy> {
    let at = uplinks.first().map_or(root.at, |placed| placed.name_at);
    let mut policies = vec![PlacedPolicy { policy: by_own_weights(DEFAULT_POLICY, uplinks), at }];
    let mut default_is_written = false;
    if let Some((_, value)) = root.get(schema::POLICY_TABLE)
        && let Some(tables) = entries_of(schema::POLICY_TABLE, "[policy.NAME]", value, report)
    {
        for (key, value) in in_file_order(tables) {
            if is_misplaced(schema::POLICY_TABLE, &schema::POLICY, (key, value), report) {
                continue;
            }
            let placed = PlacedPolicy { policy: policy((key, value), uplinks, report), at: key.span().start };
            if key.get_ref() == DEFAULT_POLICY {
                policies[0] = placed;
                default_is_written = true;
                continue;
            }
            check_name("a policy", key.get_ref(), placed.at, report);
            if policies.len() == MAX_POLICIES {
                report.fault(
                    placed.at,
                    format!(
                        "policy {} is one too many; keep at most {MAX_POLICIES}, {DEFAULT_POLICY} included",
                        quoted(key.get_ref())
                    ),
                );
            }
            // The place in the list is kept even if the policy is faulty: rules may name it.
            policies.push(placed);
        }
    }
    if !default_is_written && let Some(default) = policies.first() {
        check_weights(&default.policy, at, report);
    }
    if let Some(own) = policies.iter().find(|placed| placed.policy.own_weights) {
        check_own_weights(&own.policy.name, uplinks, report);
    }
    policies
}

/// The policy `name` as it is where nothing else is written.
fn by_own_weights(name: &str, uplinks: &[PlacedUplink]) -> Policy {
    let members =
        uplinks.iter().enumerate().map(|(uplink, placed)| Member { uplink, weight: placed.uplink.weight }).collect();
    Policy {
        name: name.to_owned(),
        tiers: vec![members],
        own_weights: true,
        hash: HashMode::Flow,
        sticky: Duration::ZERO,
        spill: None,
    }
}

fn policy(entry: (&Key<'_>, &Value<'_>), uplinks: &[PlacedUplink], report: &mut Report) -> Policy {
    let name = entry.0.get_ref();
    let mut policy = by_own_weights(name, uplinks);
    let Some(table) = Table::open(&schema::POLICY, dotted(schema::POLICY_TABLE, name), entry, report) else {
        return policy;
    };
    let mut members_at = table.at;
    if let Some(tiers) = tiers(&table, uplinks, report) {
        policy.tiers = tiers.value;
        members_at = tiers.at;
    }
    policy.own_weights = table.lacks(schema::TIERS);
    if let Some(hash) = table.read(&schema::HASH, report) {
        policy.hash = hash.value;
    }
    if let Some(sticky) = table.read(&schema::STICKY, report) {
        policy.sticky = sticky.value;
        if !sticky.value.is_zero() && sticky.value < LEAST_STICKY {
            let least = LEAST_STICKY.as_secs();
            report.warning(
                sticky.at,
                format!(
                    "sticky is less than {least}s: flows are looked at once a second at the most, so that a source may lose its uplink \
                     while it has flows; write \"{least}s\" or more"
                ),
            );
        }
        if !sticky.value.is_zero() && policy.hash != HashMode::Source {
            report.warning(
                sticky.at,
                format!(
                    "with sticky a source keeps one uplink, so hash = \"{}\" decides for its first flow only; write hash = \
                     \"source\", or remove sticky",
                    policy.hash
                ),
            );
        }
    }
    if let Some(spill) = table.read(&schema::SPILL, report) {
        policy.spill = Some(spill.value);
        check_spill(&policy, spill.at, uplinks, report);
    }
    check_weights(&policy, members_at, report);
    policy
}

/// The tiers; `None` if the key is left out or too wrong to go on.
fn tiers(table: &Table<'_, '_>, uplinks: &[PlacedUplink], report: &mut Report) -> Option<Placed<Vec<Tier>>> {
    let (key, value) = table.get(schema::TIERS)?;
    let list = list_of(schema::TIERS, schema::TIERS_WANTS, value, report)?;
    let mut tiers: Vec<Tier> = Vec::new();
    for element in list {
        let members = tier(element, &tiers, uplinks, report)?;
        tiers.push(members);
    }
    let first = list.first()?;
    Some(Placed { key_at: key.span().start, at: first.span().start, value: tiers })
}

/// A tier that follows `earlier`; `None` if it is no table.
fn tier(value: &Value<'_>, earlier: &[Tier], uplinks: &[PlacedUplink], report: &mut Report) -> Option<Tier> {
    let entries = entries_of("a tier", "such as { isp1 = 2, isp2 = 1 }", value, report)?;
    if entries.is_empty() {
        let mend = "name an uplink, such as { isp1 = 1 }, or leave it out";
        report.fault(value.span().start, format!("the tier is empty; {mend}"));
    }
    let mut members: Tier = Vec::new();
    for (name, value) in in_file_order(entries) {
        let name_at = name.span().start;
        let index = index_of(name.get_ref(), name_at, uplinks, report);
        if index.is_some_and(|index| earlier.iter().flatten().any(|other| other.uplink == index)) {
            let what = format!("uplink {} is in an earlier tier already; keep one of them", quoted(name.get_ref()));
            report.fault(name_at, what);
        }
        let what = format!("the weight of {}", quoted(name.get_ref()));
        let weight = read_as(&what, &schema::WEIGHT, value, report);
        let Some((uplink, weight)) = index.zip(weight) else {
            continue;
        };
        let placed = uplinks.get(uplink)?;
        // Where the kinds are mixed it is open whether a capacity is needed.
        if let Some(first) = members.first()
            && is_mixed(first.weight, weight)
            && let Some(other) = uplinks.get(first.uplink)
        {
            report.fault(value.span().start, mixed(&other.uplink.name, first.weight, &placed.uplink.name));
        } else if weight == Weight::Capacity && !placed.has_capacity {
            report.fault(value.span().start, lacks_capacity(&placed.uplink.name));
        }
        members.push(Member { uplink, weight });
    }
    Some(members)
}

/// Is one a number, and the other not?
fn is_mixed(one: Weight, other: Weight) -> bool {
    (one == Weight::Capacity) != (other == Weight::Capacity)
}

/// What is wrong where the weight of `latter` is of another kind than that of `former`.
fn mixed(former: &str, weight: Weight, latter: &str) -> String {
    let (by_capacity, by_number) = if weight == Weight::Capacity { (former, latter) } else { (latter, former) };
    format!(
        "a tier has numbers or \"capacity\" for weights, never both; write \"capacity\" for {} too, or a number for {}",
        quoted(by_number),
        quoted(by_capacity)
    )
}

/// Uplinks that are in one tier because no tiers are written must have weights of one kind.
fn check_own_weights(policy: &str, uplinks: &[PlacedUplink], report: &mut Report) {
    let mut all = uplinks.iter();
    let Some(first) = all.next() else { return };
    let weight = first.uplink.weight;
    if let Some(other) = all.find(|placed| is_mixed(placed.uplink.weight, weight)) {
        let header = dotted(schema::POLICY_TABLE, policy);
        report.fault(
            other.weight_at.unwrap_or(other.name_at),
            format!(
                "{}, or give [{header}] tiers: without, all uplinks are in one",
                mixed(&first.uplink.name, weight, &other.uplink.name)
            ),
        );
    }
}

/// A policy that spills over must know how full its uplinks are, and have something to spill over to.
fn check_spill(policy: &Policy, at: usize, uplinks: &[PlacedUplink], report: &mut Report) {
    let Some((_, measured)) = policy.tiers.split_last() else { return };
    if measured.is_empty() {
        report.warning(at, "there is only one tier: nothing to spill over to; add a tier, or remove spill");
    }
    // Of those whose weight is their capacity it has been reported with the weight.
    let by_number = measured.iter().flatten().filter(|member| member.weight != Weight::Capacity);
    for placed in by_number.filter_map(|member| uplinks.get(member.uplink)) {
        if !placed.has_capacity {
            let what = lacks_capacity(&placed.uplink.name);
            report.fault(at, format!("{what}, or remove spill, which compares with it"));
        }
    }
}

/// A policy in which nobody has a weight gives flows to nobody.
fn check_weights(policy: &Policy, at: usize, report: &mut Report) {
    if policy.gives_flows() || policy.tiers.iter().all(Vec::is_empty) {
        return;
    }
    let (of, flow) = if policy.name == DEFAULT_POLICY {
        (String::new(), "no new flow")
    } else {
        (format!(" of policy {}", quoted(&policy.name)), "no new flow of its rules")
    };
    report.warning(
        at,
        format!("no uplink{of} has a weight above 0: {flow} will get an uplink; give at least one uplink a weight"),
    );
}

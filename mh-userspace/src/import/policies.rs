//! From members and policies of mwan3 to `[policy.NAME]`, and where stickiness is a rule's own, to more of them.
//!
//! A policy of mwan3 is its members by metric; whether a source keeps its uplink is said by the rule that uses it, and with what timeout.
//! In mh the policy says that. So a policy that rules use in several ways becomes several.

use std::collections::BTreeMap;

use super::mwan3::{LastResort, MAX_NAME, Member, Policy, ignored_for_name};
use super::note::Note;
use super::output::{Item, Names, list, string};
use super::uci::clipped;
use super::uplinks::{Place, Uplinks};
use super::{Fault, fault};
use crate::config::{DEFAULT_POLICY, MAX_POLICIES, MAX_STICKY};

/// The largest metric of a member that mwan3 uses.
const MAX_METRIC: u64 = 256;

/// What mwan3 takes for no name of a policy but for these themselves.
const RESERVED: [&str; 3] = ["default", "unreachable", "blackhole"];

/// A policy of mwan3 with what is left of its members.
pub(super) struct Spread {
    pub(super) name: String,
    line: usize,
    /// Uplinks and their weights by metric.
    tiers: BTreeMap<u64, Vec<(String, u64)>>,
    pub(super) last_resort: LastResort,
    notes: Vec<Note>,
    /// How rules use it: for how long a source keeps its uplink, 0 for not at all, and the name for that.
    uses: Vec<(u64, String)>,
}

impl Spread {
    /// Is there no uplink in it?
    pub(super) fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    fn write(&self, header: &str, sticky_s: u64) -> Item {
        let mut item = Item { lines: vec![format!("[policy.{header}]")], ..Item::default() };
        let tier = |members: &Vec<(String, u64)>| {
            let members: Vec<String> = members.iter().map(|(name, weight)| format!("{name} = {weight}")).collect();
            format!("{{ {} }}", members.join(", "))
        };
        item.key("tiers", list(&self.tiers.values().map(tier).collect::<Vec<_>>()));
        if sticky_s > 0 {
            item.key("hash", string("source"));
            item.key("sticky", string(&format!("{sticky_s}s")));
        }
        item
    }
}

/// All policies of mwan3.
#[derive(Default)]
pub(super) struct Policies {
    all: Vec<Spread>,
    /// Which of them, and how sticky, is for what no rule matches; with what is said about it.
    default: Option<(usize, u64, Item)>,
    /// Those that mwan3 ignores, to be read only.
    ignored: Vec<Item>,
    names: Names,
}

impl Policies {
    /// Puts members and uplinks in place of their names.
    pub(super) fn new(policies: Vec<Policy>, members: &[Member], uplinks: &Uplinks, notes: &mut Vec<Note>) -> Self {
        let mut all: Vec<Spread> = Vec::new();
        let mut ignored = Vec::new();
        for policy in policies {
            let shown = clipped(&policy.name);
            if RESERVED.contains(&policy.name.as_str()) {
                let text = format!("policy {shown} is left out: for mwan3 rules that use this name mean no policy");
                notes.push(Note::new(policy.line, text));
                continue;
            }
            if policy.name.len() > MAX_NAME {
                let text = format!("policy {shown} is left out: {}", ignored_for_name());
                let notes = policy.notes.into_iter().chain([Note::new(policy.line, text)]).collect();
                ignored.push(Item { notes, lines: policy.written, is_comment: true, ..Item::default() });
                continue;
            }
            all.push(spread(policy, members, uplinks));
        }
        Self { all, default: None, ignored, names: Names::reserving(&[DEFAULT_POLICY]) }
    }

    /// The policy `name`.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.all.iter().position(|policy| policy.name == name)
    }

    /// The policy with this index.
    pub(super) fn get(&self, index: usize) -> Option<&Spread> {
        self.all.get(index)
    }

    /// The name of a policy with a stickiness. The first that is asked for has the policy's own name.
    pub(super) fn used(&mut self, index: usize, sticky_s: u64) -> Option<String> {
        let names = &mut self.names;
        let policy = self.all.get_mut(index)?;
        if let Some((_, name)) = policy.uses.iter().find(|(other, _)| *other == sticky_s) {
            return Some(name.clone());
        }
        let name = match policy.uses.is_empty() {
            true => names.unique(&policy.name),
            false => names.unique(&format!("{}_sticky_{sticky_s}", policy.name)),
        };
        policy.uses.push((sticky_s, name.clone()));
        Some(name)
    }

    /// Makes the policy the one for what no rule matches.
    pub(super) fn set_default(&mut self, index: usize, sticky_s: u64, about: Item) {
        self.default = Some((index, sticky_s, about));
    }

    /// Which policy is for what no rule matches, and how sticky.
    pub(super) fn default(&self) -> Option<(usize, u64)> {
        self.default.as_ref().map(|(index, sticky_s, _)| (*index, *sticky_s))
    }

    /// Writes them.
    pub(super) fn items(mut self) -> Result<Vec<Item>, Fault> {
        let mut items = Vec::new();
        if let Some((index, sticky_s, about)) = self.default.take()
            && let Some(policy) = self.all.get(index)
        {
            let Item { lines, .. } = policy.write(DEFAULT_POLICY, sticky_s);
            items.push(Item { lines, ..about });
        }
        let used: usize = self.all.iter().map(|policy| policy.uses.len()).sum();
        let mut free = (MAX_POLICIES - 1).checked_sub(used).ok_or_else(|| {
            let line = self.all.first().map_or(1, |policy| policy.line);
            let what = format!("rules use {used} policies, each with another timeout of sticky counted, and mh has at most {MAX_POLICIES}");
            fault(line, format!("{what}, one of which is default; let rules share policies and timeouts"))
        })?;
        for mut policy in self.all {
            let shown = clipped(&policy.name);
            let mut notes = std::mem::take(&mut policy.notes);
            if policy.is_empty() {
                notes.push(Note::new(
                    policy.line,
                    format!("policy {shown} is left out: none of its members is an uplink here"),
                ));
                items.push(Item::left_out(notes));
                continue;
            }
            let mut uses = std::mem::take(&mut policy.uses);
            if uses.is_empty() {
                if free == 0 {
                    let text = format!(
                        "policy {shown} is left out: no rule uses it, and mh has at most {MAX_POLICIES} policies"
                    );
                    items.push(Item::left_out(vec![Note::new(policy.line, text)]));
                    continue;
                }
                free -= 1;
                uses.push((0, self.names.unique(&policy.name)));
            }
            for (sticky_s, name) in uses {
                let mut item = policy.write(&name, sticky_s);
                item.notes = std::mem::take(&mut notes);
                if name != policy.name {
                    let how =
                        if sticky_s > 0 { format!(", for its sticky rules of {sticky_s} s") } else { String::new() };
                    item.remarks.push(format!("policy {shown} of mwan3{how}"));
                }
                items.push(item);
            }
        }
        items.append(&mut self.ignored);
        Ok(items)
    }
}

fn spread(policy: Policy, members: &[Member], uplinks: &Uplinks) -> Spread {
    let Policy { name, line, members: named, last_resort, mut notes, .. } = policy;
    let shown = clipped(&name);
    let mut note = |line, text: String| notes.push(Note::new(line, format!("policy {shown}: {text}")));
    let mut without: Vec<String> = Vec::new();
    let mut places: Vec<(String, u64, u64)> = Vec::new();
    for word in &named {
        let called = clipped(&word.text);
        let Some(member) = members.iter().find(|member| member.name == word.text) else {
            note(word.line, format!("there is no member {called}; it is left out"));
            continue;
        };
        let Some(interface) = &member.interface else {
            note(word.line, format!("member {called} is left out: it names no interface"));
            continue;
        };
        if member.metric > MAX_METRIC {
            note(word.line, format!("member {called} is left out, as by mwan3: its metric is above {MAX_METRIC}"));
            continue;
        }
        match uplinks.of(&interface.text) {
            None => note(
                word.line,
                format!("member {called} is left out: there is no interface {}", clipped(&interface.text)),
            ),
            // The same policy's half for IPv6, which is said of the interface.
            Some(Place::Ipv6) => {}
            Some(Place::Disabled | Place::Shared) => {
                let (metric, weight) = (member.metric, member.weight);
                without.push(format!("{called} ({}, metric {metric}, weight {weight})", clipped(&interface.text)));
            }
            Some(Place::Uplink { name, .. }) => match places.iter_mut().find(|(other, ..)| other == name) {
                None => places.push((name.clone(), member.metric, member.weight)),
                Some((_, metric, weight)) if *metric == member.metric => {
                    *weight = weight.saturating_add(member.weight).min(u64::from(u16::MAX));
                }
                Some((_, metric, weight)) => {
                    note(word.line, format!("member {called}: {name} is in it twice, and is kept at its lower metric"));
                    if member.metric < *metric {
                        (*metric, *weight) = (member.metric, member.weight);
                    }
                }
            },
        }
    }
    if !without.is_empty() {
        note(line, format!("its members {} are left out, as their interfaces are", without.join(", ")));
    }
    let mut tiers: BTreeMap<u64, Vec<(String, u64)>> = BTreeMap::new();
    for (name, metric, weight) in places {
        tiers.entry(metric).or_default().push((name, weight));
    }
    Spread { name, line, tiers, last_resort, notes, uses: Vec::new() }
}

/// The stickiness of a rule in whole seconds, as mh can have it.
pub(super) fn sticky(seconds: Option<u64>, line: usize, shown: &str, notes: &mut Vec<Note>) -> u64 {
    let Some(seconds) = seconds else { return 0 };
    let most = MAX_STICKY.as_secs();
    let (text, kept) = match seconds {
        0 => (format!("timeout is 0, for ever; {most} s, the most of mh, take its place"), most),
        seconds if seconds > most => (format!("timeout is {seconds}; {most} s, the most of mh, take its place"), most),
        seconds => return seconds,
    };
    notes.push(Note::new(line, format!("rule {shown}: {text}")));
    kept
}

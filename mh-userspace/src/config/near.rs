//! What was meant by a name that is not known: the nearest known ones, and what to do about it.
//!
//! A key is near a known one if it is a misspelling of it, if one of both begins or ends with the other, or if it is what other programs call
//! the same thing ([`OTHER_NAMES`]). Names that users choose are near by their spelling alone.

use super::schema::{self, FORWARD, RULE, SECTIONS, Section, Support, UPLINK};

/// What a key may be called elsewhere.
struct OtherName {
    /// The sections that this is about, by their places.
    places: &'static [&'static str],
    /// The key, in small letters.
    name: &'static str,
    /// What it is called here.
    key: &'static str,
    /// What to do about it, if the value is to be changed too.
    mend: Option<&'static str>,
}

const fn same(places: &'static [&'static str], name: &'static str, key: &'static str) -> OtherName {
    OtherName { places, name, key, mend: None }
}

const fn other(name: &'static str, key: &'static str, mend: &'static str) -> OtherName {
    OtherName { places: OF_RULE, name, key, mend: Some(mend) }
}

const OF_RULE: &[&str] = &[RULE.place];

const OTHER_NAMES: &[OtherName] = &[
    same(OF_RULE, "source", schema::FROM.name),
    same(OF_RULE, "src", schema::FROM.name),
    same(OF_RULE, "destination", schema::RULE_TO.name),
    same(OF_RULE, "dest", schema::RULE_TO.name),
    same(OF_RULE, "dst", schema::RULE_TO.name),
    same(OF_RULE, "port", schema::TO_PORT.name),
    same(OF_RULE, "ports", schema::TO_PORT.name),
    same(OF_RULE, "dport", schema::TO_PORT.name),
    same(OF_RULE, "dports", schema::TO_PORT.name),
    same(OF_RULE, "sport", schema::FROM_PORT.name),
    same(OF_RULE, "sports", schema::FROM_PORT.name),
    same(OF_RULE, "action", schema::USE),
    same(&[RULE.place, UPLINK.place], "iface", schema::INTERFACE.name),
    same(&[RULE.place, FORWARD.place], "proto", schema::PROTOCOL.name),
    other("uplink", schema::USE, "write use = \"uplink:NAME\""),
    other("uplinks", schema::USE, "write use = \"uplink:NAME\""),
    other("policy", schema::USE, "write use = \"policy:NAME\""),
    other("set", schema::RULE_TO.name, "write \"set:NAME\" in from or to"),
];

impl Section {
    fn other_name(&self, name: &str) -> Option<&'static OtherName> {
        let name = name.to_lowercase();
        OTHER_NAMES.iter().find(|other| other.name == name && other.places.contains(&self.place))
    }

    fn names(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.entries.iter().map(|entry| entry.name)
    }

    /// The names of the keys that may be meant by `name`.
    pub(super) fn nearest(&self, name: &str) -> Vec<&'static str> {
        if let Some(other) = self.other_name(name) {
            return vec![other.key];
        }
        let near = nearest(name, self.names());
        if near.is_empty() { longer_or_shorter(name, self.names()) } else { near }
    }

    /// What to do about the key `name`, which the section does not have.
    pub(super) fn mend(&self, name: &str) -> String {
        if let Some(other) = self.other_name(name) {
            return other.mend.map_or_else(|| did_you_mean(&[other.key]), str::to_owned);
        }
        let near = nearest(name, self.names());
        if near.iter().any(|near| distance(name, near) <= 1) {
            return did_you_mean(&near);
        }
        let places: Vec<&str> =
            SECTIONS.iter().filter(|section| section.entry(name).is_some()).map(|section| section.place).collect();
        let belongs = format!("it belongs {}", places.join(", or "));
        let parts = longer_or_shorter(name, self.names());
        match (parts.is_empty(), places.is_empty()) {
            (false, true) => did_you_mean(&parts),
            (false, false) => format!("{} if not, {belongs}", did_you_mean(&parts)),
            (true, false) => belongs,
            (true, true) if !near.is_empty() => did_you_mean(&near),
            (true, true) => {
                let supported: Vec<&str> =
                    self.entries.iter().filter(|entry| entry.support == Support::Now).map(|entry| entry.name).collect();
                format!("the keys here are {}", supported.join(", "))
            }
        }
    }
}

/// Those of `known` that begin or end with `name`, and those that it begins or ends with.
fn longer_or_shorter<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    /// Less than this is in many names by chance.
    const LEAST: usize = 3;
    let name = name.to_lowercase();
    let is_part = |part: &str, of: &str| part.len() >= LEAST && (of.starts_with(part) || of.ends_with(part));
    known.filter(|known| is_part(&name, known) || is_part(known, &name)).collect()
}

/// `did you mean "a"?`, or, where several are equally near, `did you mean "a" or "b"?`.
pub(super) fn did_you_mean(near: &[&str]) -> String {
    let quoted: Vec<String> = near.iter().map(|name| format!("{name:?}")).collect();
    format!("did you mean {}?", quoted.join(" or "))
}

/// What to do about `name` where one of `known` has to stand, which are `kind`s and come from sections with the header `header`.
pub(super) fn mend_name<'n>(
    name: &str,
    known: impl Iterator<Item = &'n str> + Clone,
    kind: &str,
    header: &str,
) -> String {
    /// Of a list that is longer no more than these are named.
    const MOST_NAMES: usize = 32;
    let near = nearest(name, known.clone());
    if !near.is_empty() {
        return did_you_mean(&near);
    }
    let all: Vec<String> = known.take(MOST_NAMES).map(|name| format!("{name:?}")).collect();
    if all.is_empty() { format!("add {header}") } else { format!("the {kind} are {}", all.join(", ")) }
}

/// Those of `known` that are nearest to `name`: all at the least distance, if that is at most a third of their length (or 1).
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let mut near = Vec::new();
    let mut least = usize::MAX;
    for candidate in known {
        let distance = distance(name, candidate);
        if distance > (candidate.chars().count() / 3).max(1) || distance > least {
            continue;
        }
        if distance < least {
            near.clear();
            least = distance;
        }
        near.push(candidate);
    }
    near
}

/// Edits between two names, whatever their case: letters added, left out, replaced, or swapped with their neighbour.
fn distance(left: &str, right: &str) -> usize {
    strsim::osa_distance(&left.to_lowercase(), &right.to_lowercase())
}

//! Who leaves where: rules, policies, sets, and what would become of a packet.

use std::fmt::Write as _;

use mh_common::verdict::{Group, Verdict};

use super::{effective, percent, state};
use crate::{
    cli::table::{Cell, Colour, Table},
    control::api::{ByCapacity, Explanation, MemberWeight, Policy, Rule, Set},
};

/// How many elements of a list are shown; `--json` has all.
const SHOWN: usize = 4;

/// A list, in one word.
fn brief<T: ToString>(list: &[T]) -> String {
    let shown: Vec<String> = list.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if list.len() > SHOWN { format!(",+{}", list.len() - SHOWN) } else { String::new() };
    shown.join(",") + &more
}

/// The same for a column, where nothing has a mark of its own.
fn cell<T: ToString>(list: &[T]) -> String {
    if list.is_empty() { "-".to_owned() } else { brief(list) }
}

/// What a rule asks for.
fn conditions(rule: &Rule) -> String {
    if rule.index.is_none() {
        return "what no rule matches".to_owned();
    }
    let lists = [
        ("from", &rule.from),
        ("to", &rule.to),
        ("protocol", &rule.protocol),
        ("from_port", &rule.from_port),
        ("to_port", &rule.to_port),
        ("interface", &rule.interface),
        ("dscp", &rule.dscp.iter().map(ToString::to_string).collect()),
    ];
    let asked: Vec<String> = lists
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name} {}", brief(list)))
        .collect();
    if asked.is_empty() { "everything".to_owned() } else { asked.join(" ") }
}

pub fn rules(rules: &[Rule], colour: bool) -> String {
    let mut table = Table::new([("RULE", true), ("NAME", false), ("USE", false), ("HITS", true), ("MATCHES", false)]);
    for rule in rules {
        let index = rule.index.map_or_else(|| "-".to_owned(), |index| index.to_string());
        let name = rule.name.as_deref().unwrap_or("-");
        table.row([&index, &name, &rule.action, &rule.hits, &conditions(rule)]);
    }
    table.render(colour)
}

pub fn policies(policies: &[Policy], colour: bool) -> String {
    let mut table = Table::new([
        ("POLICY", false),
        ("TIER", true),
        ("UPLINK", false),
        ("STATE", false),
        ("WEIGHT", true),
        ("EFFECTIVE", true),
        ("SHARE", true),
        ("HASH", false),
        ("STICKY", true),
        ("SOURCES", true),
        ("FULL", true),
        ("SPILL", true),
        ("RULES", false),
    ]);
    for policy in policies {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let sticks = policy.sticky_s > 0.0;
        let sticky = or_none(sticks.then(|| format!("{} s", policy.sticky_s)));
        let sources = or_none(sticks.then(|| policy.sources.to_string()));
        // As configured: to a hundredth at most.
        let spill = or_none(policy.spill.map(|spill| format!("{} %", (spill * 1e4).round() / 1e2)));
        let rules = cell(&policy.rules);
        let members =
            policy.tiers.iter().enumerate().flat_map(|(tier, list)| list.iter().map(move |member| (tier, member)));
        let mut before = None;
        for (tier, member) in members {
            // What is the policy's or a tier's own stands in its first line alone.
            let own = |text: &String| if before.is_none() { text.clone() } else { String::new() };
            let fill = policy.fill.get(tier).copied().flatten();
            let fill = if before == Some(tier) { String::new() } else { or_none(fill.map(percent)) };
            let by_capacity = member.weight == MemberWeight::ByCapacity(ByCapacity::Capacity);
            table.row([
                &policy.name,
                &tier,
                &member.uplink,
                &state(member.state) as &dyn Cell,
                &member.weight,
                &effective(member.effective_weight, by_capacity),
                &percent(member.share),
                &own(&policy.hash),
                &own(&sticky),
                &own(&sources),
                &fill,
                &own(&spill),
                &own(&rules),
            ]);
            before = Some(tier);
        }
    }
    table.render(colour)
}

pub fn sets(sets: &[Set], colour: bool) -> String {
    let columns = [("SET", false), ("PREFIXES", true), ("FILE", false), ("RULES", false)];
    let file = |set: &Set| set.file.clone().unwrap_or_else(|| "-".to_owned());
    if sets.iter().any(|set| set.prefix.is_some()) {
        let [a, b, c, d] = columns;
        let mut table = Table::new([a, ("CONTAINS IT BY", false), b, c, d]);
        for set in sets {
            let prefix = set.prefix.map_or_else(|| "-".to_owned(), |prefix| prefix.to_string());
            table.row([&set.name, &prefix, &set.prefixes, &file(set), &cell(&set.rules)]);
        }
        return table.render(colour);
    }
    let mut table = Table::new(columns);
    for set in sets {
        table.row([&set.name, &set.prefixes, &file(set), &cell(&set.rules)]);
    }
    table.render(colour)
}

/// How wide the names before an explanation's values are.
const NAME_WIDTH: usize = 10;

pub fn explanation(explanation: &Explanation, colour: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<NAME_WIDTH$}{value}");
        }
    };
    line("verdict", Some(verdict(&explanation.verdict, colour)));
    line("flow", Some(if explanation.existing { "exists" } else { "new" }.to_owned()));
    let rule = explanation.rule.as_ref().zip(explanation.rule_index).map(|(name, index)| {
        let number = format!("rule {index}");
        if *name == number { number } else { format!("{number} ({name})") }
    });
    line("rule", rule);
    line("policy", explanation.policy.clone());
    line("tier", explanation.tier.map(|tier| tier.to_string()));
    line("slot", explanation.slot.map(|slot| slot.to_string()));
    let sticky = if explanation.sticky { " (sticky)" } else { "" };
    line("uplink", explanation.uplink.as_ref().map(|uplink| format!("{uplink}{sticky}")));
    let port = explanation.nat_sport.map_or_else(String::new, |port| format!(":{port}"));
    line("source", explanation.nat_src.map(|address| format!("{address}{port}")));
    text.push('\n');
    for (number, sentence) in (1..).zip(&explanation.why) {
        let _ = writeln!(text, "{number:>2}. {sentence}");
    }
    text
}

/// A verdict, in a colour that says what it means.
fn verdict(name: &str, colour: bool) -> String {
    let group = Verdict::ALL.iter().find(|verdict| verdict.name() == name).map(|verdict| verdict.group());
    let paint = match group {
        Some(Group::Send) => Colour::Green,
        Some(Group::Drop | Group::Refuse) => Colour::Red,
        Some(Group::Pass) | None => Colour::Yellow,
    };
    if colour { paint.paint(name) } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::table::tests::bare,
        control::api::{Member, UplinkState},
    };

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn rules_say_what_they_match() {
        let rule = |index, name: Option<&str>, action: &str| Rule {
            index,
            name: name.map(str::to_owned),
            action: action.to_owned(),
            hits: 7,
            ..Rule::default()
        };
        let bank = Rule {
            from: words(&["192.168.1.0/24"]),
            to: words(&["a", "b", "c", "d", "e", "f"]),
            dscp: vec![46],
            ..rule(Some(1), Some("bank"), "policy:one-source")
        };
        let list = [bank, rule(Some(2), None, "drop"), rule(None, None, "policy:default")];
        assert_eq!(
            rules(&list, true),
            "RULE  NAME  USE                HITS  MATCHES\n   \
             1  bank  policy:one-source     7  from 192.168.1.0/24 to a,b,c,d,+2 dscp 46\n   \
             2  -     drop                  7  everything\n   \
             -  -     policy:default        7  what no rule matches\n"
        );
    }

    #[test]
    fn a_policy_has_a_line_for_each_uplink() {
        let member = |uplink: &str, weight, share, state| Member {
            uplink: uplink.to_owned(),
            weight,
            effective_weight: 2,
            share,
            state,
        };
        let policy = Policy {
            name: "default".to_owned(),
            hash: "source".to_owned(),
            sticky_s: 600.0,
            sources: 3,
            spill: Some(0.57),
            fill: vec![Some(0.5), None],
            rules: words(&["bank", "rule 2"]),
            tiers: vec![
                vec![
                    member("isp1", MemberWeight::Fixed(2), 0.5, UplinkState::Up),
                    member("isp2", MemberWeight::Fixed(2), 0.5, UplinkState::Up),
                ],
                vec![member("lte", MemberWeight::ByCapacity(ByCapacity::Capacity), 0.0, UplinkState::Down)],
            ],
            ..Policy::default()
        };
        let coloured = policies(&[policy], true);
        let plain = bare(&coloured);
        let cells: Vec<Vec<&str>> = plain.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let rows = [
            "default 0 isp1 up 2 2 50.0 % source 600 s 3 50.0 % 57 % bank,rule 2",
            "default 0 isp2 up 2 2 50.0 %",
            "default 1 lte down capacity 2 Mbit/s 0.0 % -",
        ];
        assert_eq!(cells, rows.map(|row| row.split(' ').collect::<Vec<_>>()));
        assert!(coloured.contains("\x1b[31mdown\x1b[0m"), "{coloured:?}");
    }

    #[test]
    fn sets_show_a_prefix_where_one_was_asked_for() {
        let set = Set { name: "banks".to_owned(), prefixes: 2, rules: words(&["bank"]), ..Set::default() };
        assert_eq!(
            sets(std::slice::from_ref(&set), false),
            "SET    PREFIXES  FILE  RULES\nbanks         2  -     bank\n"
        );
        let found = Set { prefix: Some("203.0.113.0/24".parse().unwrap()), ..set };
        assert!(sets(&[found], false).contains("203.0.113.0/24"));
    }

    #[test]
    fn an_explanation_leaves_out_what_does_not_apply() {
        let explained = Explanation {
            verdict: "rule_drop".to_owned(),
            rule: Some("rule 3".to_owned()),
            rule_index: Some(3),
            interface: Some("lan0".to_owned()),
            why: words(&["it comes in by lan0", "it is dropped"]),
            ..Explanation::default()
        };
        let text = explanation(&explained, true);
        assert!(text.starts_with("verdict   \x1b[31mrule_drop\x1b[0m\n"), "{text}");
        assert_eq!(
            explanation(&explained, false),
            "verdict   rule_drop\nflow      new\nrule      rule 3\n\n 1. it comes in by lan0\n 2. it is dropped\n"
        );
        let sent = Explanation {
            verdict: "new".to_owned(),
            rule: Some("bank".to_owned()),
            uplink: Some("isp1".to_owned()),
            nat_src: Some("198.51.100.2".parse().unwrap()),
            nat_sport: Some(40_001),
            sticky: true,
            ..explained
        };
        let text = explanation(&sent, false);
        for line in ["rule      rule 3 (bank)\n", "uplink    isp1 (sticky)\n", "source    198.51.100.2:40001\n"] {
            assert!(text.contains(line), "{text}");
        }
    }
}

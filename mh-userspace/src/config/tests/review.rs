//! Warnings about what is valid and hardly meant, and, against all packets of a small world, the rules that are never reached.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::cover::{Cover, covers};
use super::super::{Addresses, InterfacePattern, PortRange, Rule, Set, Use, parse};
use super::{loaded, warned};

/// With this the uplink is of use, whatever rules leave the default policy.
const FORWARD: &str = "[[forward]]\nuplinks = [\"isp1\"]\nprotocol = \"tcp\"\nport = 1\nto = \"10.0.0.1\"\n";

/// Asserts the warnings about rules, of which the first is in line 4.
#[track_caller]
fn rules(rules: &[&str], expected: &[&str]) {
    let text: String = rules.iter().map(|rule| format!("[[rule]]\nuse = \"drop\"\n{rule}\n")).collect();
    warned(&format!("{text}{FORWARD}"), expected);
}

#[test]
fn shadowed_rules() {
    let shadowed = |line: usize, this: &str, other: &str, other_line: usize| {
        format!(
            "{line}:1: {this} is never reached: {other} takes all that it matches; move it up, or remove it; {other} is in line {other_line}"
        )
    };
    rules(&["", "to = \"10.0.0.1\""], &[&shadowed(7, "rule 2", "rule 1", 4)]);
    rules(&["to = \"10.0.0.1\"", ""], &[]);
    rules(
        &[
            "name = \"all\"\nto = \"10.0.0.0/8\"",
            "to = \"11.0.0.0/8\"",
            "name = \"one\"\nto = \"10.0.0.1\"\nprotocol = \"tcp\"",
        ],
        &[&shadowed(11, "rule \"one\"", "rule \"all\"", 4)],
    );
    // One condition of the first rule that the second does not have is enough.
    for condition in [
        "from = \"10.0.0.0/8\"",
        "to = \"10.0.0.0/8\"",
        "protocol = \"tcp\"",
        "from_port = 1",
        "to_port = 1",
        "interface = \"lan0\"",
        "dscp = 1",
    ] {
        rules(&[condition, ""], &[]);
        rules(&[condition, condition], &[&shadowed(7, "rule 2", "rule 1", 4)]);
    }
    // Ports are those of TCP and UDP, whatever the rule says.
    rules(&["protocol = [6, 17]", "to_port = 80"], &[&shadowed(7, "rule 2", "rule 1", 4)]);
    rules(&["to_port = \"1-65535\"", "protocol = 6"], &[]);
    rules(&["protocol = 6", "to_port = 80"], &[]);
    // The machine's own flows have no interface; without them there is only that of lan.
    warned(
        &format!(
            "[datapath]\nhost_traffic = false\n[[rule]]\nuse = \"drop\"\ninterface = \"lan*\"\n[[rule]]\nuse = \"direct\"\n{FORWARD}"
        ),
        &[&shadowed(9, "rule 2", "rule 1", 6)],
    );
}

#[test]
fn rules_that_others_take_together() {
    let together = |line: usize, this: &str| {
        format!(
            "{line}:1: {this} is never reached: together, the rules before it take all that it matches; move it up, or remove it"
        )
    };
    rules(&["to = \"10.0.0.0/9\"", "to = \"10.128.0.0/9\"", "to = \"10.0.0.0/8\""], &[&together(10, "rule 3")]);
    rules(&["to = \"10.0.0.0/9\"", "to = \"10.128.0.0/10\"", "to = \"10.0.0.0/8\""], &[]);
    rules(
        &[
            "protocol = \"tcp\"\nto_port = \"1-99\"",
            "name = \"b\"\nto_port = \"50-200\"",
            "name = \"c\"\nprotocol = 6\nto_port = \"20-150\"",
        ],
        &[&together(12, "rule \"c\"")],
    );
    // Two dimensions at once: all of the four quarters are needed.
    let quarters = [
        "from = \"0.0.0.0/1\"\nto = \"0.0.0.0/1\"",
        "from = \"128.0.0.0/1\"\nto = \"0.0.0.0/1\"",
        "from = \"0.0.0.0/1\"\nto = \"128.0.0.0/1\"",
        "from = \"128.0.0.0/1\"\nto = \"128.0.0.0/1\"",
    ];
    rules(&[quarters[0], quarters[1], quarters[2], quarters[3], "dscp = 3"], &[&together(20, "rule 5")]);
    rules(&[quarters[0], quarters[1], quarters[2], "dscp = 3", quarters[3]], &[]);
}

#[test]
fn interfaces_that_are_none_of_lan() {
    let wrong = |line: usize, column: usize, name: &str| {
        format!(
            "{line}:{column}: interface {name:?} is none of lan, and only what comes in by those is steered; add it to lan, or take it out of \
             the rule"
        )
    };
    // A rule that matches nothing is not also one that another takes all of, and takes nothing itself.
    rules(&["", "interface = \"lan1\""], &[&wrong(9, 13, "lan1")]);
    rules(&["interface = [\"lan0\", \"wan2\", \"vlan*\", \"la*\"]"], &[&wrong(6, 22, "wan2"), &wrong(6, 30, "vlan*")]);
    for name in ["wan1", "wan*"] {
        rules(
            &[&format!("interface = [\"lan0\", {name:?}]")],
            &[&format!(
                "6:22: interface {name:?} is that of uplink \"isp1\", and only what comes in by those of lan is steered; take it out of the rule"
            )],
        );
    }
    assert_eq!(
        super::warnings(
            "lan = [\"vlan*\"]\n[uplink.a]\ninterface = \"wan1\"\n[[rule]]\nuse = \"drop\"\ninterface = [\"vlan7\", \"vl*\", \"vlan1*\", \"*\", \"vla\"]\n"
        ),
        wrong(6, 45, "vla")
    );
}

#[test]
fn what_nothing_uses() {
    warned(
        "[policy.used]\nhash = \"source\"\n[policy.spare]\n[set.a]\nprefixes = [\"10.0.0.0/8\"]\n[set.b]\nprefixes = [\"10.0.0.0/8\"]\n[[rule]]\nfrom = \
         \"set:b\"\nuse = \"policy:used\"",
        &[
            "6:9: no rule uses policy \"spare\"; write use = \"policy:spare\" in one, or remove [policy.spare]",
            "7:6: no rule uses set \"a\"; write \"set:a\" in from or to of one, or remove [set.a]",
        ],
    );
    let unused = |line: usize| {
        format!(
            "{line}:9: uplink \"lte\" gets no new flows: no policy in use gives it a weight above 0, and no rule that is reached names it; do \
             either, or remove the uplink"
        )
    };
    let lte = "[uplink.lte]\ninterface = \"wwan0\"\n";
    warned(&format!("{lte}weight = 0"), &[&unused(4)]);
    warned(&format!("{lte}[policy.default]\ntiers = [{{ isp1 = 1 }}]"), &[&unused(4)]);
    warned(&format!("{lte}[policy.default]\ntiers = [{{ isp1 = 1 }}, {{ lte = 0 }}]"), &[&unused(4)]);
    warned(&format!("{lte}weight = 0\n[[rule]]\nto = \"1.1.1.1\"\nuse = \"uplink:lte\""), &[]);
    let backup = "[policy.default]\ntiers = [{ isp1 = 1 }]\n[policy.lte]\ntiers = [{ lte = 1 }]\n";
    warned(&format!("{lte}{backup}[[rule]]\nto = \"1.1.1.1\"\nuse = \"policy:lte\""), &[]);
    warned(
        &format!("{lte}{backup}"),
        &[&unused(4), "8:9: no rule uses policy \"lte\"; write use = \"policy:lte\" in one, or remove [policy.lte]"],
    );
}

/// What only rules use that nothing reaches is not used.
#[test]
fn what_nothing_gets_to() {
    let lte = "[uplink.lte]\ninterface = \"wwan0\"\n";
    let taken = |line: usize, label: &str| {
        format!(
            "4:9: uplink \"lte\" gets no new flows: {label} leaves policy \"default\" nothing, and nothing else gives it any; give {label} \
             a condition, or remove the uplink; {label} is in line {line}"
        )
    };
    // Only uplinks that lose by it are told that the default policy gets nothing.
    let all = "[[rule]]\nname = \"all\"\nuse = \"uplink:isp1\"\n";
    warned(all, &[]);
    warned(&format!("{lte}{all}"), &[&taken(6, "rule \"all\"")]);
    warned(&format!("{lte}[[rule]]\nuse = \"uplink:lte\"\nto = \"1.1.1.1\"\n{all}"), &[]);
    warned(&format!("{lte}[[rule]]\nuse = \"policy:default\"\nto = \"1.1.1.1\"\n{all}"), &[]);
    warned(&format!("{lte}{}", all.replace("[[rule]]", "[[rule]]\nto = [\"0.0.0.0/1\", \"128.0.0.0/2\"]")), &[]);
    // The machine's own flows come in by no interface.
    let from_lan = all.replace("[[rule]]", "[[rule]]\ninterface = \"lan0\"");
    warned(&format!("{lte}{from_lan}"), &[]);
    warned(&format!("{lte}[datapath]\nhost_traffic = false\n{from_lan}"), &[&taken(8, "rule \"all\"")]);
    let halves = ["0.0.0.0/1", "128.0.0.0/1"].map(|half| format!("[[rule]]\nto = \"{half}\"\nuse = \"uplink:isp1\"\n"));
    warned(
        &format!("{lte}{}", halves.concat()),
        &[
            "4:9: uplink \"lte\" gets no new flows: together, the rules leave policy \"default\" nothing, and nothing else gives it any; narrow \
           one of the rules, or remove the uplink",
        ],
    );
    // One rule more than there may be is looked at.
    let many: String =
        (0..255).map(|index| format!("[[rule]]\nto = \"10.0.{index}.0/24\"\nuse = \"drop\"\n")).collect();
    warned(&format!("{lte}{many}{all}"), &[&taken(771, "rule \"all\"")]);
    // Rules that are never reached, or match nothing, use nothing.
    let never = "10:1: rule 2 is never reached: rule 1 takes all that it matches; move it up, or remove it; rule 1 is in line 8";
    let default = "[policy.default]\ntiers = [{ isp1 = 1 }]\n[[rule]]\nuse = \"uplink:isp1\"\n";
    warned(
        &format!("{lte}{default}[[rule]]\nuse = \"uplink:lte\""),
        &[
            "4:9: uplink \"lte\" gets no new flows: no policy in use gives it a weight above 0, and no rule that is reached names it; do \
             either, or remove the uplink",
            never,
        ],
    );
    warned(
        &format!(
            "[policy.a]\nsticky = \"0s\"\nhash = \"source\"\n\n{all}[[rule]]\nuse = \"policy:a\"\nto = \"1.1.1.1\""
        ),
        &[
            "4:9: no flow gets to the rules that use policy \"a\"; correct one of them, or remove [policy.a]",
            "11:1: rule 2 is never reached: rule \"all\" takes all that it matches; move it up, or remove it; rule \"all\" is in line 8",
        ],
    );
}

/// An uplink that forwarded ports name is there for these.
#[test]
fn uplinks_of_forwarded_ports() {
    let text = |uplinks: &str| {
        format!(
            "[uplink.lte]\ninterface = \"wwan0\"\nweight = 0\n[[forward]]\n{uplinks}\nprotocol = \"tcp\"\nport = 80\nto = \"192.168.1.2\""
        )
    };
    warned(&text("uplinks = [\"lte\"]"), &[]);
    let unused = "4:9: uplink \"lte\" gets no new flows: no policy in use gives it a weight above 0, and no rule that is reached names it; do \
                  either, or remove the uplink";
    warned(&text(""), &[unused]);
    warned(&text("uplinks = [\"isp1\"]"), &[unused]);
}

#[test]
fn faults_come_without_warnings_of_review() {
    let faults =
        parse("lan = [\"lan0\"]\n[uplink.isp1]\ninterface = \"wan1\"\n[policy.spare]\nhash = 1\n").unwrap_err();
    assert_eq!(faults.0.len(), 1);
}

/// 256 rules that overlap in many ways, and two sets of 100,000 prefixes that overlap too. The bound is for a debug build on a busy machine.
#[test]
fn long_configs_are_reviewed_in_time() {
    let mut text = String::from("lan = [\"lan0\", \"vlan*\"]\n[uplink.isp1]\ninterface = \"wan1\"\n");
    for (name, step) in [("a", 40_000_u32), ("b", 41_000)] {
        let prefixes: Vec<String> =
            (0..100_000_u32).map(|index| format!("\"{}\"", std::net::Ipv4Addr::from_bits(index * step))).collect();
        writeln!(text, "[set.{name}]\nprefixes = [{}]", prefixes.join(", ")).unwrap();
    }
    let mut random = 1_u32;
    let mut draw = |most: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % most
    };
    for _ in 0..256 {
        text += "[[rule]]\nuse = \"drop\"\n";
        for (key, set) in [("from", "a"), ("to", "b")] {
            match draw(3) {
                0 => writeln!(text, "{key} = [\"set:{set}\", \"{}.0.0.0/8\"]", draw(200)).unwrap(),
                1 => writeln!(text, "{key} = \"{}.{}.0.0/16\"", draw(20), draw(256)).unwrap(),
                _ => {}
            }
        }
        for key in ["from_port", "to_port"] {
            let first = 1 + draw(30_000);
            writeln!(text, "{key} = \"{first}-{}\"", first + draw(30_000)).unwrap();
        }
        if draw(2) == 0 {
            writeln!(text, "dscp = [{}, {}]", draw(4), 4 + draw(4)).unwrap();
        }
        if draw(2) == 0 {
            writeln!(text, "interface = \"vlan{}*\"", draw(5)).unwrap();
        }
    }
    let begin = Instant::now();
    assert!(!loaded(&text).warnings.is_empty());
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

/// The packets of a small world: what rules there can tell apart.
struct World {
    addresses: Vec<u32>,
    /// Protocol, source port and destination port.
    ports: Vec<(u8, u16, u16)>,
    code_points: Vec<u8>,
    interfaces: Vec<Option<&'static str>>,
}

const BASE: u32 = 0x0a00_0000;

fn world(lan: &[InterfacePattern], host_traffic: bool) -> World {
    let values = [0_u16, 1, 2, 3, 9];
    let ports = [1_u8, 6, 17, 47]
        .into_iter()
        .flat_map(|protocol| values.map(|from| values.map(|to| (protocol, from, to))).into_iter().flatten())
        .collect();
    let names = ["a", "ab", "abc", "b", "ax", "abx", "abcx", "x"];
    let steered = names.into_iter().filter(|name| lan.iter().any(|pattern| pattern.matches(name)));
    let interfaces = steered.map(Some).chain(host_traffic.then_some(None)).collect();
    World { addresses: vec![BASE, BASE + 1, BASE + 2, BASE + 3, 0], ports, code_points: vec![0, 1, 2], interfaces }
}

fn bits(rules: &[Rule], matches: impl Fn(&Rule) -> bool) -> u32 {
    rules.iter().enumerate().map(|(index, rule)| u32::from(matches(rule)) << index).sum()
}

/// What [`covers`] should find, from every packet of the world.
fn expected(lan: &[InterfacePattern], host_traffic: bool, rules: &[Rule], sets: &[Set]) -> Vec<Cover> {
    let world = world(lan, host_traffic);
    let contains = |addresses: &Addresses, address: u32| {
        let within = |prefix: &Ipv4Net| prefix.contains(&std::net::Ipv4Addr::from_bits(address));
        addresses.is_any()
            || addresses.prefixes.iter().any(within)
            || addresses.sets.iter().any(|set| sets[*set].prefixes.iter().any(within))
    };
    let side = |of: fn(&Rule) -> &Addresses| -> Vec<u32> {
        world.addresses.iter().map(|address| bits(rules, |rule| contains(of(rule), *address))).collect()
    };
    let (from, to) = (side(|rule| &rule.from), side(|rule| &rule.to));
    let port_is_in = |ranges: &[PortRange], protocol: u8, port: u16| {
        ranges.is_empty() || ([6, 17].contains(&protocol) && ranges.iter().any(|range| range.contains(port)))
    };
    let ports = world.ports.iter().map(|(protocol, from, to)| {
        bits(rules, |rule| {
            (rule.protocols.is_empty() || rule.protocols.contains(protocol))
                && port_is_in(&rule.from_ports, *protocol, *from)
                && port_is_in(&rule.to_ports, *protocol, *to)
        })
    });
    let ports: Vec<u32> = ports.collect();
    let dscp =
        world.code_points.iter().map(|dscp| bits(rules, |rule| rule.dscp.is_empty() || rule.dscp.contains(dscp)));
    let dscp: Vec<u32> = dscp.collect();
    let interfaces = world.interfaces.iter().map(|name| {
        bits(rules, |rule| {
            rule.interfaces.is_empty()
                || name.is_some_and(|name| rule.interfaces.iter().any(|pattern| pattern.matches(name)))
        })
    });
    let interfaces: Vec<u32> = interfaces.collect();

    let mut common = vec![u32::MAX; rules.len()];
    let mut reached = vec![false; rules.len()];
    let mut matched = vec![false; rules.len()];
    for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
        for (ports, dscp) in ports.iter().flat_map(|ports| dscp.iter().map(move |dscp| (ports, dscp))) {
            for interface in &interfaces {
                let all = from & to & ports & dscp & interface;
                for index in (0..rules.len()).filter(|index| all & 1 << index != 0) {
                    let before = all & ((1 << index) - 1);
                    matched[index] = true;
                    reached[index] |= before == 0;
                    common[index] &= before;
                }
            }
        }
    }
    (0..rules.len())
        .map(|index| match () {
            () if !matched[index] => Cover::Nothing,
            () if reached[index] => Cover::Reached,
            () if common[index] != 0 => Cover::By(common[index].trailing_zeros() as usize),
            () => Cover::Together,
        })
        .collect()
}

fn prefix() -> impl Strategy<Value = Ipv4Net> {
    prop_oneof![
        4 => (0..4_u32, 30..=32_u8).prop_map(|(host, length)| {
            Ipv4Net::new(std::net::Ipv4Addr::from_bits(BASE + host), length).unwrap().trunc()
        }),
        1 => Just(Ipv4Net::default()),
    ]
}

fn patterns(most: usize) -> impl Strategy<Value = Vec<InterfacePattern>> {
    let all = ["*", "a*", "ab*", "ab", "abc", "b", "a"];
    subsequence(all.to_vec(), 0..=most).prop_map(|names| names.iter().map(|name| name.parse().unwrap()).collect())
}

/// Often nothing, so that rules are wide enough to cover each other.
fn seldom<T: std::fmt::Debug + Clone>(list: impl Strategy<Value = Vec<T>>) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![2 => Just(Vec::new()), 1 => list]
}

fn rule() -> impl Strategy<Value = Rule> {
    let addresses = || {
        (seldom(vec(prefix(), 1..4)), prop_oneof![4 => Just(vec![]), 1 => vec(0..2_usize, 1..3)])
            .prop_map(|(prefixes, sets)| Addresses { prefixes, sets })
    };
    let range = || {
        prop_oneof![
            (1..=3_u16, 1..=3_u16).prop_map(|(one, other)| PortRange { first: one.min(other), last: one.max(other) }),
            Just(PortRange { first: 1, last: u16::MAX })
        ]
    };
    let ports = move || prop_oneof![4 => Just(vec![]), 1 => vec(range(), 1..3)];
    (
        addresses(),
        addresses(),
        seldom(subsequence(vec![1_u8, 6, 17], 1..=3)),
        (ports(), ports()),
        seldom(patterns(4)),
        seldom(vec(select(vec![0_u8, 1]), 1..3)),
    )
        .prop_map(|(from, to, protocols, (from_ports, to_ports), interfaces, dscp)| Rule {
            name: None,
            from,
            to,
            protocols,
            from_ports,
            to_ports,
            interfaces,
            dscp,
            action: Use::Drop,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn what_is_never_reached_is_what_no_packet_reaches(
        rules in vec(rule(), 1..9),
        lan in patterns(3),
        host_traffic in any::<bool>(),
        listed in vec(vec(prefix(), 0..4), 2),
    ) {
        let sets: Vec<Set> = listed
            .into_iter()
            .map(|mut prefixes| {
                prefixes.sort_unstable();
                prefixes.dedup();
                Set { name: String::new(), prefixes: prefixes.into(), file: None }
            })
            .collect();
        let found = covers(&lan, host_traffic, &rules.iter().collect::<Vec<_>>(), &sets.iter().collect::<Vec<_>>());
        prop_assert_eq!(found, expected(&lan, host_traffic, &rules, &sets));
    }
}

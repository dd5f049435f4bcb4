//! Rules: every fault and warning with its place and words, and the values.

use super::super::{Addresses, PortRange, Rule, Use};
use super::{ONE_UPLINK, after, config, loaded, warned, whole};

/// Asserts the fault of one condition of a rule, whose value is at 5:(1 + length of KEY + 3).
#[track_caller]
fn condition(key: &str, value: &str, column: usize, expected: &str) {
    after(&format!("[[rule]]\n{key} = {value}\nuse = \"direct\""), &[&format!("5:{column}: {expected}")]);
}

#[test]
fn rules() {
    after("[rule]\nuse = \"drop\"", &["4:1: rule must be a list of tables, [[rule]] each, not a table"]);
    after(
        "[[rule]]\nuse = \"drop\"\nfrm = \"10.0.0.1\"\nhash = \"flow\"",
        &[
            "6:1: unknown key \"frm\" in [[rule]]; did you mean \"from\"?",
            "7:1: unknown key \"hash\" in [[rule]]; it belongs in [policy.NAME]",
        ],
    );
    for (key, mend) in [
        ("port", "did you mean \"to_port\"?"),
        ("ports", "did you mean \"to_port\"?"),
        ("dport", "did you mean \"to_port\"?"),
        ("sport", "did you mean \"from_port\"?"),
        ("proto", "did you mean \"protocol\"?"),
        ("protocols", "did you mean \"protocol\"?"),
        ("iface", "did you mean \"interface\"?"),
        ("src", "did you mean \"from\"?"),
        ("Source", "did you mean \"from\"?"),
        ("from_address", "did you mean \"from\"?"),
        ("dst", "did you mean \"to\"?"),
        ("dest", "did you mean \"to\"?"),
        ("destination", "did you mean \"to\"?"),
        ("set", "write \"set:NAME\" in from or to"),
    ] {
        after(
            &format!("[[rule]]\nuse = \"drop\"\n{key} = 1"),
            &[&format!("6:1: unknown key {key:?} in [[rule]]; {mend}")],
        );
    }
    // What stands in the place of use is not missing as well.
    for key in ["uplink", "policy"] {
        after(
            &format!("[[rule]]\n{key} = \"isp1\""),
            &[&format!("5:1: unknown key {key:?} in [[rule]]; write use = \"{key}:NAME\"")],
        );
    }
    whole(
        &format!("rule = [3]\n{ONE_UPLINK}"),
        &["1:9: an element of rule must be a table, [[rule]], not a whole number 3"],
    );
    whole(
        &format!("rule = \"drop\"\n{ONE_UPLINK}"),
        &["1:8: rule must be a list of tables, [[rule]] each, not a string \"drop\""],
    );
    let rule_name = "name must be 1 to 32 of the characters a-z, A-Z, 0-9, _ and - in quotes, such as \"bank\", not";
    condition("name", "\"\"", 8, &format!("{rule_name} \"\""));
    condition("name", "\"the bank\"", 8, &format!("{rule_name} \"the bank\""));
    condition("name", "[\"bank\"]", 8, &format!("{rule_name} a list"));
    let long = "n".repeat(33);
    condition("name", &format!("{long:?}"), 8, &format!("{rule_name} {long:?}"));
    after(
        "[[rule]]\nname = \"a\"\nuse = \"drop\"\n[[rule]]\nuse = \"drop\"\n[[rule]]\nname = \"a\"\nuse = \"drop\"",
        &["10:8: \"a\" is the name of two rules; change one of them, the other is in line 5"],
    );
    let many = "[[rule]]\nuse = \"drop\"\n".repeat(258);
    after(&many, &["516:1: there are 258 rules; keep at most 256"]);
    assert_eq!(loaded(&format!("{ONE_UPLINK}{}", "[[rule]]\nuse = \"drop\"\n".repeat(256))).config.rules.len(), 256);
}

#[test]
fn actions() {
    let wants = "use must be \"policy:NAME\", \"uplink:NAME\", \"direct\", \"reject\" or \"drop\", not";
    for (value, expected) in [
        ("\"\"", format!("{wants} \"\"")),
        ("3", format!("{wants} a whole number 3")),
        ("[\"drop\"]", format!("{wants} a list")),
        ("\"dorp\"", format!("{wants} \"dorp\"; did you mean \"drop\"?")),
        ("\"Direct\"", format!("{wants} \"Direct\"; did you mean \"direct\"?")),
        ("\"isp1\"", format!("{wants} \"isp1\"; did you mean \"uplink:isp1\"?")),
        ("\"voice\"", format!("{wants} \"voice\"; did you mean \"policy:voice\"?")),
        ("\"set:banks\"", format!("{wants} \"set:banks\"")),
        ("\"uplink:ips1\"", "no uplink is named \"ips1\"; did you mean \"isp1\"?".to_owned()),
        ("\"uplink:\"", "no uplink is named \"\"; the uplinks are \"isp1\"".to_owned()),
        ("\"policy:voip\"", "no policy is named \"voip\"; the policies are \"default\", \"voice\"".to_owned()),
        ("\"policy:vioce\"", "no policy is named \"vioce\"; did you mean \"voice\"?".to_owned()),
        ("\"policy: voice\"", "no policy is named \" voice\"; did you mean \"voice\"?".to_owned()),
    ] {
        after(&format!("[[rule]]\nuse = {value}\n[policy.voice]"), &[&format!("5:7: {expected}")]);
    }
    after("[[rule]]\nname = \"a\"", &["4:1: [[rule]] lacks use; add use = \"policy:NAME\""]);
    after("[[rule]]\nuze = \"drop\"", &["5:1: unknown key \"uze\" in [[rule]]; did you mean \"use\"?"]);
    // A policy or uplink that is faulty itself is there all the same.
    after(
        "weight = -1\n[policy.voice]\nhash = 3\n[[rule]]\nuse = \"policy:voice\"\n[[rule]]\nuse = \"uplink:isp1\"",
        &[
            "4:10: weight must be a whole number from 0 to 65535, or \"capacity\", not -1",
            "6:8: hash must be \"flow\", \"source\" or \"source-destination\", not a whole number 3",
        ],
    );
}

#[test]
fn addresses() {
    for (key, column) in [("from", 8), ("to", 6)] {
        let wants = format!(
            "{key} must be an IPv4 prefix such as \"192.168.1.0/24\", an address such as \"192.168.1.20\", \"set:NAME\", or a list of \
             these, not"
        );
        for (value, reason) in [
            ("10.0.0.0/33", ""),
            ("10.0.0", ""),
            ("10.0.0.1-10.0.0.9", ""),
            ("lan0", ""),
            ("", ""),
            ("10.0.0.1/24", ": it does not begin its prefix; write \"10.0.0.0/24\""),
            ("2001:db8::/32", ": it is of IPv6, which is not supported by this version of mh yet; remove it"),
            ("::1", ": it is of IPv6, which is not supported by this version of mh yet; remove it"),
        ] {
            condition(key, &format!("{value:?}"), column, &format!("{wants} {value:?}{reason}"));
            condition(key, &format!("[\"10.0.0.1\", {value:?}]"), column + 13, &format!("{wants} {value:?}{reason}"));
        }
        condition(key, "[]", column, &format!("{wants} an empty list"));
        condition(key, "10", column, &format!("{wants} a whole number 10"));
        after(
            &format!("[[rule]]\n{key} = \"banks\"\nuse = \"drop\"\n[set.banks]\nprefixes = [\"10.0.0.0/8\"]"),
            &[&format!("5:{column}: {wants} \"banks\"; did you mean \"set:banks\"?")],
        );
        condition(key, "\"set:banks\"", column, "no set is named \"banks\"; add [set.NAME]");
    }
    after(
        "[[rule]]\nto = [\"set:bnaks\", \"set:\"]\nuse = \"drop\"\n[set.banks]\nprefixes = 3",
        &[
            "5:7: no set is named \"bnaks\"; did you mean \"banks\"?",
            "5:20: no set is named \"\"; the sets are \"banks\"",
            "8:12: prefixes must be a list of IPv4 prefixes and addresses such as [\"203.0.113.0/24\", \"192.0.2.7\"], not a whole number 3",
        ],
    );
    warned(
        "[[rule]]\nfrom = [\"10.0.0.1\", \"10.0.0.1/32\", \"set:a\", \"set:a\"]\nuse = \"drop\"\n[set.a]\nprefixes = [\"10.0.0.0/8\"]",
        &[
            "5:21: \"10.0.0.1/32\" is in from twice; keep one of them",
            "5:45: \"set:a\" is in from twice; keep one of them",
        ],
    );
}

#[test]
fn protocols_ports_interfaces_and_code_points() {
    let wants = "protocol must be \"tcp\", \"udp\", \"icmp\", a whole number from 0 to 255, or a list of these, not";
    condition("protocol", "256", 12, &format!("{wants} 256"));
    condition("protocol", "[6, -1]", 16, &format!("{wants} -1"));
    condition("protocol", "\"TCP\"", 12, &format!("{wants} \"TCP\""));
    condition("protocol", "[]", 12, &format!("{wants} an empty list"));
    let wants = "dscp must be a whole number from 0 to 63, or a list of these, not";
    condition("dscp", "64", 8, &format!("{wants} 64"));
    condition("dscp", "[46, \"ef\"]", 13, &format!("{wants} a string \"ef\""));
    let wants =
        "interface must be the name of an interface of lan such as \"lan0\" or \"vlan*\", or a list of these, not";
    condition("interface", "[]", 13, &format!("{wants} an empty list"));
    condition(
        "interface",
        "[\"lan0\", \"a b\"]",
        22,
        &format!("{wants} \"a b\": white space, \"/\", \":\", \".\" and \"..\" are not allowed"),
    );
    condition(
        "interface",
        "\"lo\"",
        13,
        &format!("{wants} \"lo\": the loopback interface carries no traffic to steer"),
    );
    for (key, column) in [("from_port", 13), ("to_port", 11)] {
        let wants = format!(
            "{key} must be a port such as \"443\", a range such as \"8000-8999\", from 1 to 65535, or a list of these, not"
        );
        condition(key, "0", column, &format!("{wants} 0"));
        condition(key, "[443, \"90-80\"]", column + 6, &format!("{wants} \"90-80\""));
        condition(key, "[]", column, &format!("{wants} an empty list"));
        after(
            &format!("[[rule]]\nprotocol = [\"icmp\", 47]\n{key} = 443\nuse = \"drop\""),
            &[&format!("6:1: {key} is for tcp and udp, and protocol names neither; add one of them, or remove {key}")],
        );
        warned(
            &format!("[[rule]]\nprotocol = [\"icmp\", \"tcp\"]\n{key} = 443\nuse = \"drop\""),
            &[&format!(
                "5:13: only tcp and udp have ports: with {key} the rule matches no other protocol; take it out of protocol"
            )],
        );
        warned(
            &format!("[[rule]]\nprotocol = 17\n{key} = [443, \"443\"]\nuse = \"drop\""),
            &[&format!("6:{}: \"443\" is in {key} twice; keep one of them", column + 6)],
        );
        let list: Vec<String> = (1..=501).map(|port| port.to_string()).collect();
        let rule = format!("[[rule]]\n{key} = [{}]\nuse = \"drop\"\n", list.join(", "));
        after(
            &format!("{rule}{rule}{rule}"),
            &[&format!("7:1: with this [[rule]] the rules have 1002 ranges in {key}; keep at most 1000 in all")],
        );
    }
    warned(
        "[[rule]]\nprotocol = [\"tcp\", 6]\ninterface = [\"lan0\", \"lan0\"]\ndscp = [1, 1]\nuse = \"drop\"",
        &[
            "5:20: 6 is in protocol twice; keep one of them",
            "6:22: \"lan0\" is in interface twice; keep one of them",
            "7:12: 1 is in dscp twice; keep one of them",
        ],
    );
}

#[test]
fn values() {
    let config = config(&format!(
        "{ONE_UPLINK}[policy.voice]\n[[rule]]\nto = \"10.1.2.3\"\nuse = \"policy:voice\"\n[[rule]]\nfrom = [\"set:b\", \"10.0.0.0/8\", \"set:a\"]\n\
         protocol = [\"icmp\", 255]\nuse = \"policy:default\"\n[[rule]]\nfrom_port = [53, \"1-9\"]\nto_port = \"80\"\ninterface = \"lan*\"\ndscp = \
         [0, 63]\nuse = \"uplink:isp1\"\n[set.b]\nprefixes = [\"1.1.1.1\", \"1.0.0.0/8\", \"1.1.1.1/32\", \"0.0.0.0/0\"]\n[set.a]\nprefixes = [\"2.0.0.0/8\"]"
    ).replace(", \"1.1.1.1/32\"", ""));
    let anything = Rule {
        name: None,
        from: Addresses::default(),
        to: Addresses::default(),
        protocols: vec![],
        from_ports: vec![],
        to_ports: vec![],
        interfaces: vec![],
        dscp: vec![],
        action: Use::Drop,
    };
    let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    assert!(anything.from.is_any());
    assert_eq!(
        config.rules,
        [
            Rule {
                to: Addresses { prefixes: prefixes(&["10.1.2.3/32"]), sets: vec![] },
                action: Use::Policy(1),
                ..anything.clone()
            },
            Rule {
                from: Addresses { prefixes: prefixes(&["10.0.0.0/8"]), sets: vec![0, 1] },
                protocols: vec![1, 255],
                action: Use::Policy(0),
                ..anything.clone()
            },
            Rule {
                from_ports: vec![PortRange { first: 53, last: 53 }, PortRange { first: 1, last: 9 }],
                to_ports: vec![PortRange { first: 80, last: 80 }],
                interfaces: vec!["lan*".parse().unwrap()],
                dscp: vec![0, 63],
                action: Use::Uplink(0),
                ..anything
            },
        ]
    );
    assert_eq!(config.sets[0].prefixes.to_vec(), prefixes(&["0.0.0.0/0", "1.0.0.0/8", "1.1.1.1/32"]));
    assert_eq!((config.sets[1].name.as_str(), config.sets[1].file.as_ref()), ("a", None));
}

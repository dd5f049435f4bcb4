//! What becomes of options, and what is said about it.

use std::time::Duration;

use super::super::mwan3::{Mwan3, OPTIONS};
use super::super::{Source, mwan3, uci};
use super::{WAN, config_of, fault, import, imported_config, notes};
use crate::config::{Config, HashMode, MAX_RULES, MAX_UPLINKS, OnDown, Use, Weight};

const EXAMPLE: &str = include_str!("../../../tests/mwan3/example.uci");
const EXAMPLE_NETWORK: &str = include_str!("../../../tests/mwan3/example-network.uci");
const EVERY_OPTION: &str = include_str!("../../../tests/mwan3/every-option.uci");

/// A config with two uplinks and the policies `both` and `first`.
const TWO: &str = "\
config interface a
	option enabled 1
config interface b
	option enabled 1
config member a1
	option interface a
	option weight 2
config member b1
	option interface b
config member b2
	option interface b
	option metric 20
config policy both
	list use_member a1
	list use_member b1
config policy first
	list use_member a1
	list use_member b2
";

/// The tiers of a policy as names and weights.
fn tiers<'c>(config: &'c Config, policy: &str) -> Vec<Vec<(&'c str, u16)>> {
    let policy = config.policies.iter().find(|other| other.name == policy).unwrap();
    let member = |member: &crate::config::Member| {
        let Weight::Fixed(weight) = member.weight else { panic!("{member:?}") };
        (config.uplinks[member.uplink].name.as_str(), weight)
    };
    policy.tiers.iter().map(|tier| tier.iter().map(member).collect()).collect()
}

/// What a rule with these options, in front of one for everything, becomes: its lines of TOML without name.
fn rule(options: &str) -> Vec<String> {
    let text = format!("{TWO}config rule r\n{options}\nconfig rule rest\n\toption use_policy first\n");
    let toml = import(&text).toml;
    let Some((_, rule)) = toml.split_once("[[rule]]\nname = \"r\"\n") else { return Vec::new() };
    rule.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Why a rule with these options is left out.
fn left_out(options: &str) -> String {
    assert_eq!(rule(options), [""; 0], "{options}");
    let text = format!("{TWO}config rule r\n{options}\nconfig rule rest\n\toption use_policy first\n");
    let all = notes(&text);
    let why = all.iter().find_map(|note| note.split_once("rule r is left out: "));
    why.unwrap_or_else(|| panic!("{all:?}")).1.to_owned()
}

#[test]
fn the_example_is_what_it_was() {
    let imported = import(EXAMPLE);
    assert_eq!(imported.toml, include_str!("../../../tests/mwan3/example.toml"));
    let config = config_of(&imported);
    assert_eq!(config.uplinks.iter().map(|uplink| uplink.name.as_str()).collect::<Vec<_>>(), ["wan"]);
    assert_eq!(config.datapath.mark_mask, 0x3f00);
}

#[test]
fn the_example_with_all_uplinks_and_the_network() {
    let text = EXAMPLE.replace("enabled '0'", "enabled '1'");
    let imported = mwan3(text.as_bytes(), Some(EXAMPLE_NETWORK.as_bytes())).unwrap();
    assert_eq!(imported.toml, include_str!("../../../tests/mwan3/example-network.toml"));
    let config = config_of(&imported);
    let interfaces: Vec<&str> = config.uplinks.iter().map(|uplink| uplink.interface.as_str()).collect();
    assert_eq!(interfaces, ["eth1", "pppoe-wanb"]);
    assert_eq!(config.lan.iter().map(ToString::to_string).collect::<Vec<_>>(), ["br-lan", "br-guest"]);
    assert_eq!(config.uplinks[0].gateway, Some("198.51.100.1".parse().unwrap()));
    assert_eq!(config.uplinks[0].addresses[0].to_string(), "198.51.100.2");
    assert_eq!(tiers(&config, "default"), [[("wan", 3), ("wanb", 3)]]);
    assert_eq!(tiers(&config, "wan_wanb"), [[("wan", 3)], [("wanb", 2)]]);
    assert_eq!(tiers(&config, "wanb_wan"), [[("wanb", 2)], [("wan", 3)]]);
    let Use::Policy(index) = config.rules[0].action else { panic!("{:?}", config.rules) };
    let sticky = &config.policies[index];
    assert_eq!((sticky.hash, sticky.sticky), (HashMode::Source, Duration::from_secs(600)));
    assert_eq!((config.policies[0].hash, config.policies[0].sticky), (HashMode::Flow, Duration::ZERO));
    let office = imported.notes.iter().find(|note| note.source == Source::Network).unwrap();
    assert!(office.text.contains("office"), "{office:?}");
}

#[test]
fn every_option_is_brought_over_or_named() {
    let imported = import(EVERY_OPTION);
    assert_eq!(imported.toml, include_str!("../../../tests/mwan3/every-option.toml"));
    config_of(&imported);
    let document = uci::parse(EVERY_OPTION.as_bytes()).unwrap();
    for known in OPTIONS.iter().filter(|known| !["reroute", "force_link"].contains(&known.name)) {
        let mut sections = document.sections.iter().filter(|section| section.kind == known.section);
        assert!(sections.any(|section| section.get(known.name).is_some()), "{} {}", known.section, known.name);
    }
    for known in OPTIONS.iter().filter(|known| known.without.is_some()) {
        let name = if known.section == "interface" { "wan" } else { "n" };
        let text = format!("{WAN}config {} {name}\n\toption {} 17\n", known.section, known.name);
        let found = notes(&text).into_iter().any(|note| note.contains(&format!("{} 17 is left out: ", known.name)));
        assert!(found, "{} {}", known.section, known.name);
    }
}

/// The page has a row for every option, and for none that is not there.
#[test]
fn the_page_lists_every_option() {
    let page = include_str!("../../../../docs/import.md");
    for section in ["globals", "interface", "member", "policy", "rule"] {
        let (_, table) = page.split_once(&format!("### `config {section}`")).unwrap();
        let table = table.split("### ").next().unwrap();
        let mut listed: Vec<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once(" |"))
            .flat_map(|(names, _)| names.split('`').filter(|name| !name.is_empty() && *name != ", "))
            .collect();
        let mut known: Vec<&str> =
            OPTIONS.iter().filter(|known| known.section == section).map(|known| known.name).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known, "{section}");
    }
}

#[test]
fn tracking_becomes_a_probe() {
    let probe = |options: &str| {
        let config = imported_config(&format!("{WAN}{options}"));
        config.uplinks.into_iter().next().unwrap().probe
    };
    assert_eq!(probe(""), None);
    assert_eq!(probe("list track_ip example.org\n"), None);
    assert_eq!(probe("list track_ip 192.0.2.1\noption reliability 0\n"), None);
    let targets = |options: &str| {
        let probe = probe(&format!("list track_ip 192.0.2.1\nlist track_ip 192.0.2.1\n{options}")).unwrap();
        probe.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    for (options, urls) in [
        ("", "icmp://192.0.2.1"),
        ("option track_method httping", "http://192.0.2.1"),
        ("option track_method httping\noption httping_ssl 1", "https://192.0.2.1"),
        ("option track_method nping-tcp", "tcp://192.0.2.1:80"),
        ("option track_method nping-udp", "icmp://192.0.2.1"),
        ("option track_method nping-arp", "icmp://192.0.2.1"),
        ("option track_method telepathy", "icmp://192.0.2.1"),
        ("option track_ip '192.0.2.1 192.0.2.2'", "icmp://192.0.2.1 icmp://192.0.2.2"),
    ] {
        assert_eq!(targets(options), urls, "{options}");
    }
    let paced = probe("list track_ip 192.0.2.1\n").unwrap();
    let seconds = Duration::from_secs;
    assert_eq!((paced.interval, paced.timeout, paced.down, paced.up), (seconds(10), seconds(4), 5, 5));
    let odd = "list track_ip 192.0.2.1\noption interval 99999\noption timeout 0\noption down 0\noption up x\noption reliability 7\n";
    let odd = probe(odd).unwrap();
    assert_eq!((odd.interval, odd.timeout, odd.down, odd.up, odd.quorum), (seconds(3600), seconds(1), 1, 5, 1));
}

#[test]
fn quality_becomes_limits() {
    let probe = |options: &str| {
        let text = format!("{WAN}list track_ip 192.0.2.1\noption check_quality 1\n{options}");
        imported_config(&text).uplinks.into_iter().next().unwrap().probe.unwrap()
    };
    let plain = probe("");
    let (loss, latency) = (plain.loss.unwrap(), plain.latency.unwrap());
    assert_eq!(
        (loss.window, loss.warn.unwrap().to_string(), loss.down.unwrap().to_string()),
        (20, "10%".into(), "40%".into())
    );
    assert_eq!((latency.warn.unwrap().as_millis(), latency.down.unwrap().as_millis()), (500, 1000));
    assert_eq!(probe("option count 10\noption down 7").loss.unwrap().window, 70);
    let above = probe("option recovery_loss 90\noption recovery_latency 9000").loss.unwrap();
    assert_eq!(above.warn, above.down);
    let none = probe("option failure_loss 0\noption failure_latency 4001\noption recovery_loss 0");
    assert_eq!((none.loss, none.latency), (None, None));
    assert_eq!(probe("option recovery_loss 0").loss.unwrap().warn.unwrap().to_string(), "0.01%");
}

#[test]
fn flushing_is_on_down() {
    for (options, on_down, written) in
        [("", OnDown::Reset, false), ("list flush_conntrack disconnected", OnDown::Reset, true)]
    {
        let imported = import(&format!("{WAN}{options}\n"));
        assert_eq!(config_of(&imported).uplinks[0].on_down, on_down);
        assert_eq!(imported.toml.contains("on_down"), written);
    }
}

#[test]
fn masks_that_do_not_fit_are_named() {
    for (mask, bits) in [
        ("0x3F00", Some(0x3f00)),
        ("0XFC", Some(0xfc)),
        ("0xffffffff", Some(0xffff_ffff)),
        ("0x3f", Some(0x3f)),
        ("0x1f", None),
        ("0x3f3f", None),
        ("0x0", None),
        ("0x", None),
        ("0x+3f", None),
        ("255", None),
        ("0x100000000", None),
    ] {
        let imported = import(&format!("{WAN}config globals globals\n\toption mmx_mask '{mask}'\n"));
        let mark_mask = config_of(&imported).datapath.mark_mask;
        assert_eq!(mark_mask, bits.unwrap_or(0x00ff_0000), "{mask}");
        assert_eq!(imported.notes.iter().any(|note| note.text.contains("mmx_mask")), bits.is_none(), "{mask}");
    }
}

#[test]
fn without_local_source_the_machines_own_traffic_is_not_steered() {
    for (options, host_traffic, noted) in [
        ("", true, false),
        ("\toption local_source none\n", false, false),
        ("\toption local_source lan\n", true, true),
        ("\toption local_source none\n\toption mmx_mask 0x3F00\n", false, false),
    ] {
        let imported = import(&format!("{WAN}config globals globals\n{options}"));
        let config = config_of(&imported);
        assert_eq!(config.datapath.host_traffic, host_traffic, "{options}");
        assert_eq!(config.datapath.mark_mask == 0x3f00, options.contains("mmx_mask"), "{options}");
        assert_eq!(imported.notes.iter().any(|note| note.text.contains("local_source")), noted, "{options}");
    }
}

#[test]
fn members_become_tiers_by_metric() {
    let config = imported_config(&format!(
        "{TWO}config policy odd\n\tlist use_member b2\n\tlist use_member a1\n\tlist use_member b1\n\tlist use_member nobody\n\
         config policy sum\n\tlist use_member a1\n\tlist use_member a1\n\
         config rule all\n\toption use_policy first\n"
    ));
    assert_eq!(tiers(&config, "both"), [[("a", 2), ("b", 1)]]);
    assert_eq!(tiers(&config, "first"), [[("a", 2)], [("b", 1)]]);
    assert_eq!(tiers(&config, "default"), tiers(&config, "first"));
    // The lower metric of b is 1.
    assert_eq!(tiers(&config, "odd"), [[("b", 1), ("a", 2)]]);
    assert_eq!(tiers(&config, "sum"), [[("a", 4)]]);
    let all = notes(&format!(
        "{TWO}config member far\n\toption interface a\n\toption metric 257\nconfig policy p\n\tlist use_member far\n\tlist use_member gone\n"
    ));
    assert!(all.iter().any(|note| note.starts_with("23: ") && note.contains("far")), "{all:?}");
    assert!(all.iter().any(|note| note.starts_with("24: ") && note.contains("gone")), "{all:?}");
}

#[test]
fn policies_are_one_for_each_stickiness() {
    let policies = |rules: &str| {
        let text = format!("{TWO}{rules}");
        let config = imported_config(&text);
        let shown = |policy: &crate::config::Policy| format!("{} {}", policy.name, policy.sticky.as_secs());
        let used: Vec<String> = config
            .rules
            .iter()
            .map(|rule| match rule.action {
                Use::Policy(index) => shown(&config.policies[index]),
                other => format!("{other:?}"),
            })
            .collect();
        (used.join(", "), shown(&config.policies[0]))
    };
    let rule = |port: u16, options: &str| {
        format!(
            "config rule r{port}\n\toption proto tcp\n\toption dest_port {port}\n\toption use_policy both\n{options}\n"
        )
    };
    let all = |options: &str| format!("config rule all\n\toption use_policy both\n{options}\n");
    let sticky = "option sticky 1";
    assert_eq!(policies(&(rule(1, sticky) + &all(""))), ("both_sticky_600 600".into(), "default 0".into()));
    assert_eq!(policies(&(rule(1, sticky) + &all(sticky))), ("both 600".into(), "default 600".into()));
    let various = rule(1, sticky) + &rule(2, "") + &rule(3, "option sticky 1\noption timeout 60") + &rule(4, sticky);
    assert_eq!(policies(&various).0, "both_sticky_600 600, both 0, both_sticky_60 60, both_sticky_600 600, Direct");
    let long = rule(1, "option sticky 1\noption timeout 1000000") + &rule(2, "option sticky 1\noption timeout 0");
    assert_eq!(policies(&long).0, "both 604800, both 604800, Direct");
    // A name that is taken.
    let taken = format!(
        "config policy both_sticky_60\n\tlist use_member a1\n{}{}",
        rule(1, ""),
        rule(2, "option sticky 1\noption timeout 60")
    );
    let config = imported_config(&format!("{TWO}{taken}"));
    assert_eq!(config.policies.len(), 5, "{:?}", config.policies);
}

#[test]
fn conditions_are_those_of_the_rule() {
    let use_both = "\toption use_policy both\n";
    for (options, lines) in [
        ("option src_ip 192.168.1.0/24,10.1.2.3", &["from = [\"192.168.1.0/24\", \"10.1.2.3\"]"][..]),
        ("option src_ip 192.168.1.9/255.255.0.0", &["from = [\"192.168.0.0/16\"]"]),
        ("list dest_ip 192.0.2.77/28\nlist dest_ip 192.0.2.3", &["to = [\"192.0.2.64/28\", \"192.0.2.3\"]"]),
        ("option dest_ip 0.0.0.0/0\noption proto TCP", &["protocol = \"tcp\""]),
        ("option proto udp\noption src_port 68", &["protocol = \"udp\"", "from_port = [\"68\"]"]),
        (
            "option proto tcp\noption dest_port 80,443,8000:8080,9000-,:1023",
            &["protocol = \"tcp\"", "to_port = [\"80\", \"443\", \"8000-8080\", \"9000-65535\", \"1-1023\"]"],
        ),
        ("option proto gre", &["protocol = 47"]),
        ("option proto 132", &["protocol = 132"]),
        ("option proto icmp\noption dest_port 80", &["protocol = \"icmp\""]),
        ("option src_ip 192.0.2.1\noption proto all\noption dest_port 80", &["from = [\"192.0.2.1\"]"]),
        ("option src_ip 192.0.2.1\noption src_port '!80'", &["from = [\"192.0.2.1\"]"]),
        ("option proto 'tcp udp'\noption dest_port 53", &["protocol = [\"tcp\", \"udp\"]", "to_port = [\"53\"]"]),
        ("option ipset news", &["to = [\"set:news\"]"]),
        ("option src_iface lan", &["interface = [\"br-lan\"]"]),
        ("option src_iface guest", &["interface = [\"guest\"]"]),
    ] {
        let expected: Vec<String> =
            lines.iter().map(|line| (*line).to_owned()).chain(["use = \"policy:both\"".to_owned()]).collect();
        assert_eq!(rule(&format!("{options}\n{use_both}")), expected, "{options}");
    }
    for (policy, action) in [("unreachable", "reject"), ("blackhole", "drop"), ("default", "direct")] {
        let lines = rule(&format!("option proto gre\noption use_policy {policy}"));
        assert_eq!(lines, ["protocol = 47".to_owned(), format!("use = \"{action}\"")]);
    }
}

#[test]
fn rules_that_can_not_be_said_are_left_out_with_the_reason() {
    for (options, word) in [
        ("option family ipv6\noption use_policy both", "IPv6"),
        ("option dest_ip ::/0\noption use_policy both", "IPv6"),
        ("option proto ipv6-icmp\noption use_policy both", "IPv6"),
        ("option src_ip '!192.0.2.1'\noption use_policy both", "all but"),
        ("option src_ip example.org\noption use_policy both", "example.org"),
        ("option src_ip 192.0.2.0/33\noption use_policy both", "192.0.2.0/33"),
        ("option proto tcp\noption dest_port '!80'\noption use_policy both", "all but"),
        ("option proto tcp\noption dest_port https\noption use_policy both", "https"),
        ("option proto tcp\noption dest_port 90:80\noption use_policy both", "90:80"),
        ("option proto tcp\noption dest_port 0\noption use_policy both", "dest_port 0"),
        ("option proto tcp\noption dest_port 65536\noption use_policy both", "65536"),
        ("option proto weird\noption use_policy both", "weird"),
        ("option ipset news\noption dest_ip 192.0.2.1\noption use_policy both", "news"),
        ("option src_iface a\noption use_policy both", "uplink"),
        ("option src_iface lo\noption use_policy both", "lo"),
        ("option src_iface very_long_interface\noption use_policy both", "very_long"),
        ("option use_policy nobody", "nobody"),
        ("option proto tcp", "use_policy"),
    ] {
        assert!(left_out(options).contains(word), "{options}: {}", left_out(options));
    }
}

#[test]
fn what_no_rule_matches_is_the_last_rule_or_the_kernels() {
    let direct = imported_config(TWO);
    assert_eq!((direct.rules.len(), direct.rules[0].action), (1, Use::Direct));
    assert!(direct.policies[0].own_weights);
    for (policy, action) in [("unreachable", Use::Reject), ("default", Use::Direct)] {
        let config = imported_config(&format!(
            "{TWO}config rule all\n\toption use_policy {policy}\nconfig rule late\n\toption use_policy both\n"
        ));
        assert_eq!((config.rules.len(), config.rules[0].action), (1, action));
    }
    let text = format!("{TWO}config rule all\n\toption use_policy both\nconfig rule late\n\toption use_policy first\n");
    let config = imported_config(&text);
    assert_eq!((config.rules.len(), tiers(&config, "default")), (0, tiers(&config, "both")));
    assert!(notes(&text).iter().any(|note| note.contains("late") && note.contains("line 19")), "{:?}", notes(&text));
}

#[test]
fn ports_without_protocol_are_none_as_in_mwan3() {
    for options in ["option proto all\noption dest_port 80", "option src_port 1024:", "option dest_port http"] {
        let text = format!(
            "{TWO}config rule web\n{options}\n\toption use_policy both\nconfig rule late\n\toption use_policy first\n"
        );
        let (config, all) = (imported_config(&text), notes(&text));
        assert_eq!((config.rules.len(), tiers(&config, "default")), (0, tiers(&config, "both")), "{options}");
        assert!(all.iter().any(|note| note.contains("rule web: ports are left out")), "{all:?}");
    }
}

#[test]
fn what_mwan3_ignores_for_its_name_is_left_out() {
    let with = |policy: &str, rule: &str| {
        let text = format!(
            "{TWO}config policy {policy}\n\tlist use_member b2\nconfig rule {rule}\n\toption use_policy both\n\
             config rule other\n\toption proto udp\n\toption use_policy {policy}\n"
        );
        (imported_config(&text), import(&text).toml, notes(&text))
    };
    let (config, _, all) = with("fifteen_letters", "everything_here");
    assert_eq!(tiers(&config, "default"), tiers(&config, "both"));
    assert_eq!(tiers(&config, "fifteen_letters"), [[("b", 1)]]);
    assert!(!all.iter().any(|note| note.contains("15 characters")), "{all:?}");

    let (config, toml, all) = with("sixteen__letters", "everything_there");
    assert!(config.policies.iter().all(|policy| policy.name != "sixteen__letters"));
    assert_eq!((config.rules.len(), config.rules[0].action), (1, Use::Direct), "{toml}");
    assert!(config.policies[0].own_weights, "{toml}");
    for left in ["policy sixteen__letters", "rule everything_there"] {
        let why = format!("{left} is left out: its name has more than 15 characters, so that mwan3 ignores it");
        assert!(all.iter().any(|note| note.ends_with(&why)), "{all:?}");
    }
    assert!(
        all.iter().any(|note| note.contains("rule other is left out: there is no policy sixteen__letters")),
        "{all:?}"
    );
    assert!(toml.contains("\n# list use_member 'b2'\n") && toml.contains("\n# option use_policy 'both'\n"), "{toml}");
}

#[test]
fn names_are_made_valid_and_unique() {
    let long = "a_very_long_name_of_an_interface_in_a_config";
    let interfaces = ["a.b", "a+b", long, &format!("{long}2"), "", "br-lan", "lo"];
    let interfaces: String =
        interfaces.iter().map(|name| format!("config interface '{name}'\n\toption enabled 1\n")).collect();
    let text = interfaces
        + "config member m\n\toption interface a+b\nconfig policy default\n\tlist use_member m\n"
        + "config policy pol\n\tlist use_member m\n"
        + "config rule 'x.y'\n\toption proto gre\n\toption use_policy pol\n"
        + "config rule x_y\n\toption proto esp\n\toption use_policy pol\n";
    let config = imported_config(&text);
    let names: Vec<&str> = config.uplinks.iter().map(|uplink| uplink.name.as_str()).collect();
    let cut = &long[..32];
    let second = format!("{}_2", &long[..30]);
    assert_eq!(names, ["a_b", "a_b_2", cut, &second, "interface5", "br-lan", "lo"]);
    let interfaces: Vec<&str> = config.uplinks.iter().map(|uplink| uplink.interface.as_str()).collect();
    assert_eq!(interfaces, ["a.b", "a_b", "a_very_long_nam", "a_very_long_n_2", "interface5", "br-lan", "_lo"]);
    assert_eq!(config.lan[0].to_string(), "br-lan_2");
    let rules: Vec<Option<&str>> = config.rules.iter().map(|rule| rule.name.as_deref()).collect();
    assert_eq!(rules, [Some("x_y"), Some("x_y_2"), Some("unmatched")]);
    assert_eq!(tiers(&config, "pol"), [[("a_b_2", 1)]]);
}

#[test]
fn devices_are_those_of_the_network() {
    let network = "\
config interface a
	option ifname 'eth0.2'
	option proto dhcp
config interface b
	option proto 3g
config interface c
	option device '/dev/cdc-wdm0'
	option proto qmi
config interface d
	option device '@a'
	option proto static
config interface e
	option device eth9
	option proto static
	option ipaddr '198.51.100.9/30 198.51.100.20/30'
	option gateway '198.51.100.9'
config interface f
	option device '@g'
config interface g
	option device '@f'
config interface lan
	option type bridge
	option ifname 'eth0.1 eth0.3'
	option proto static
	option ipaddr 192.168.1.1
";
    let text: String = ["a", "b", "c", "d", "e", "f", "gone"]
        .iter()
        .map(|name| format!("config interface {name}\n\toption enabled 1\n"))
        .collect();
    let imported = mwan3(text.as_bytes(), Some(network.as_bytes())).unwrap();
    let config = config_of(&imported);
    let uplinks: Vec<(&str, &str)> =
        config.uplinks.iter().map(|uplink| (uplink.name.as_str(), uplink.interface.as_str())).collect();
    let expected = [("a", "eth0.2"), ("b", "3g-b"), ("c", "c"), ("e", "eth9"), ("f", "f"), ("gone", "gone")];
    assert_eq!(uplinks, expected);
    assert_eq!(config.lan[0].to_string(), "br-lan");
    assert_eq!((config.uplinks[3].gateway, config.uplinks[3].addresses.len()), (None, 1));
    for (line, word) in [(7, "interface c"), (15, "198.51.100.20"), (16, "gateway")] {
        let mut of_network = imported.notes.iter().filter(|note| note.source == Source::Network);
        assert!(of_network.any(|note| note.line == line && note.text.contains(word)), "{word}: {:?}", imported.notes);
    }
    assert!(imported.toml.contains("# line 7: interface d is left out"), "{}", imported.toml);
}

#[test]
fn what_is_no_config_of_mwan3_is_a_fault_with_a_mend() {
    for (text, line, word) in [
        ("", 1, "/etc/config/mwan3"),
        ("config rule r\n", 1, "config interface"),
        ("\nconfig interface wan\n", 2, "enabled '1'"),
        ("\n\nconfig interface wan\n\toption enabled 1\n\toption family ipv6\n", 3, "IPv4"),
        ("config interface lan\n\toption proto static\n", 1, "--network"),
        ("{ \"json\": 1 }\n", 1, "no command of UCI"),
        ("package network\nconfig interface wan\n\toption enabled 1\n", 1, "config interface"),
    ] {
        let (at, message) = fault(text);
        assert_eq!(at, line, "{text}: {message}");
        assert!(message.contains(word), "{text}: {message}");
    }
    let interfaces: String =
        (0..=MAX_UPLINKS).map(|number| format!("config interface w{number}\n\toption enabled 1\n")).collect();
    assert_eq!(fault(&interfaces).0, 2 * MAX_UPLINKS + 1);
    let rules: String = (0..MAX_RULES)
        .map(|number| {
            format!(
                "config rule r{number}\n\toption dest_ip 10.{}.{}.0/24\n\toption use_policy default\n",
                number / 256,
                number % 256
            )
        })
        .collect();
    assert!(fault(&format!("{WAN}{rules}")).1.contains("256"));
    let all = rules.replace("10.0.255.0/24", "0.0.0.0/0");
    assert_eq!(imported_config(&format!("{WAN}{all}")).rules.len(), MAX_RULES);
}

#[test]
fn more_policies_than_there_is_room_for() {
    let unused: String = (0..70).map(|number| format!("config policy p{number}\n\tlist use_member a1\n")).collect();
    let text = format!("{TWO}{unused}");
    assert_eq!(imported_config(&text).policies.len(), 64);
    let uses: String = (0..70)
        .map(|number| {
            format!("config rule r{number}\n\toption proto {}\n\toption use_policy p{number}\n", number + 140)
        })
        .collect();
    assert!(fault(&format!("{text}{uses}")).1.contains("70 policies"));
}

#[test]
fn sections_of_others_are_named() {
    let text = format!("package mwan3\n{WAN}config timeserver ntp\npackage system\nconfig system\nconfig system\n");
    let all = notes(&text);
    assert!(all.contains(&"4: config timeserver is no section of mwan3, and is left out".to_owned()), "{all:?}");
    assert_eq!(all.iter().filter(|note| note.contains("package system")).count(), 1, "{all:?}");
    let document = uci::parse(text.as_bytes()).unwrap();
    assert_eq!(Mwan3::new(&document).interfaces.len(), 1);
}

//! Properties: no bytes make the reader panic, what is written is what is read, and whatever config comes in, what comes out is a config.

use std::fmt::Write as _;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::mwan3::OPTIONS;
use super::super::{ImportError, mwan3, uci};
use super::config_of;

const EVERY_OPTION: &str = include_str!("../../../tests/mwan3/every-option.uci");

/// Sections, options and values before they are written.
type Plain = Vec<(String, Option<String>, Vec<(String, bool, String)>)>;

/// Writes a value in one of the ways in which that can be done.
fn quoted(value: &str, way: u8) -> String {
    let escaped = |special: &[char]| {
        value.chars().fold(String::new(), |text, c| {
            if special.contains(&c) { text + "\\" + &c.to_string() } else { text + &c.to_string() }
        })
    };
    // A \ in front of the end of a line would join the two.
    match way % 3 {
        0 if !value.is_empty() && !value.contains('\n') => {
            escaped(&[' ', '\t', '\r', '\x0b', '\x0c', '\'', '"', '\\', '#', ';'])
        }
        1 => format!("\"{}\"", escaped(&['"', '\\'])),
        _ => format!("'{}'", value.replace('\'', r"'\''")),
    }
}

fn written(sections: &Plain, ways: &[u8]) -> String {
    let mut ways = ways.iter().copied().cycle();
    let mut text = String::new();
    for (kind, name, options) in sections {
        let name = name.as_deref().map(|name| quoted(name, ways.next().unwrap_or(0))).unwrap_or_default();
        writeln!(text, "config {kind} {name}").unwrap();
        for (option, is_list, value) in options {
            let command = if *is_list { "list" } else { "option" };
            writeln!(text, "\t{command} {option} {} # {value:?}", quoted(value, ways.next().unwrap_or(0))).unwrap();
        }
    }
    text
}

/// Values that options have, and some that none should.
const VALUES: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "5",
    "10",
    "60",
    "255",
    "256",
    "257",
    "600",
    "1000",
    "65535",
    "65536",
    "99999999999999999999999",
    "-1",
    "1.5",
    "yes",
    "x",
    "ipv4",
    "ipv6",
    "any",
    "ping",
    "arping",
    "httping",
    "nping-tcp",
    "nping-udp",
    "unreachable",
    "blackhole",
    "default",
    "192.0.2.1",
    "192.0.2.2",
    "192.168.1.0/24",
    "192.168.1.77/24",
    "10.0.0.0/255.0.0.0",
    "0.0.0.0/0",
    "0.0.0.0",
    "255.255.255.255",
    "127.0.0.1",
    "224.0.0.1",
    "1.2.3.4/0",
    "2001:db8::1",
    "::/0",
    "example.org",
    "!192.0.2.1",
    "192.0.2.1,192.0.2.9",
    "a/b/c",
    "/24",
    "tcp",
    "udp",
    "icmp",
    "all",
    "esp",
    "47",
    "tcpudp",
    "tcp udp icmp",
    "ipv6-icmp",
    "80",
    "80,443",
    "80:90",
    "90-80",
    ":1024",
    "1024:",
    ":",
    "-",
    "0:0",
    "0-65535",
    "!80",
    "0x3F00",
    "0xff0000",
    "0x5",
    "online",
    "offline",
    "connected",
    "disconnected",
    "ifdown",
    "lan",
    "sure",
    "sure",
    "wan",
    "wanb",
    "br-lan",
    "lo",
    "*",
    "eth0",
    "@wan",
    "/dev/ttyUSB0",
    "static",
    "dhcp",
    "pppoe",
    "bridge",
    "198.51.100.1",
    "both",
    "m1",
    "m2",
    "m3",
    "käse",
    "two words",
    "a\nb",
    "bell\u{7}",
    "del\u{7f}",
    "nel\u{85}",
    "\u{2028}",
    "quote'\"\\",
    "\"\"\"",
    "'''",
    "[uplink.x]",
    "#",
    ",",
    " ",
    "",
    "a_name_that_is_much_longer_than_any_name_in_mh_may_be",
];

/// Names that sections have, so that some refer to others.
const NAMES: &[&str] = &[
    "sure",
    "sure",
    "wan",
    "wanb",
    "lan",
    "m1",
    "m2",
    "m3",
    "both",
    "default",
    "blackhole",
    "a.b",
    "a_b",
    "globals",
    "lo",
    "br-lan",
    "a_name_that_is_much_longer_than_any_name_in_mh_may_be",
    "\"",
    "'",
    "\\",
    "[x]",
    "#",
];

/// Values that fit an option.
fn fitting(option: &str) -> &'static [&'static str] {
    match option {
        "proto" => &["tcp", "udp", "icmp", "all", "esp", "static", "static", "dhcp", "pppoe"],
        "src_port" | "dest_port" => &["80", "80,443", "1024:", "80-90"],
        "src_ip" | "dest_ip" => &["192.0.2.1", "192.168.1.77/24", "0.0.0.0/0", "10.0.0.0/8,192.0.2.9"],
        "track_ip" | "ipaddr" | "gateway" => &["192.0.2.1", "192.0.2.2", "192.0.2.1/24"],
        "interface" | "src_iface" => &["wan", "wanb", "lan", "sure", "guest"],
        "device" | "ifname" => &["eth0", "eth1", "br-lan", "@wan"],
        "family" => &["ipv4", "ipv4", "ipv6"],
        "use_policy" => &["both", "blackhole", "default"],
        "use_member" => &["m1", "m2", "m3"],
        "track_method" => &["ping", "httping", "nping-tcp"],
        "ipset" => &["news", "a.b", "a_b"],
        "local_source" => &["none", "none", "lan"],
        "mmx_mask" => &["0x3F00", "0xff0000"],
        "last_resort" => &["unreachable", "blackhole", "default"],
        _ => &["0", "1", "1", "2", "600"],
    }
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(VALUES).prop_map(str::to_owned),
        1 => any::<u32>().prop_map(|number| number.to_string()),
        1 => "[ -~]{0,12}",
        1 => "\\PC{0,6}",
    ]
}

/// A section of one type, with options of that type, and others now and then. Names are of one type only, as libuci wants it.
fn section(
    kind: &'static str,
    extra: &'static [&'static str],
) -> impl Strategy<Value = (String, Option<String>, Vec<(String, bool, String)>)> {
    let mut names: Vec<&'static str> =
        OPTIONS.iter().filter(|known| known.section == kind).map(|known| known.name).collect();
    names.extend(extra);
    let name = select(NAMES).prop_map(move |name| {
        let shared = ["both", "default", "blackhole"].contains(&name) && kind == "policy"
            || ["m1", "m2", "m3"].contains(&name) && kind == "member";
        if shared || kind == "interface" { name.to_owned() } else { format!("{kind}-{name}") }
    });
    let is_foreign = |name: &String| ["both", "default", "blackhole", "m1", "m2", "m3"].contains(&name.as_str());
    let valued = select(names).prop_flat_map(|name| {
        let value = prop_oneof![3 => select(fitting(name)).prop_map(str::to_owned), 1 => value()];
        (Just(name), any::<bool>(), value)
    });
    let options = vec(valued, 0..8).prop_map(|options| {
        options.into_iter().map(|(name, is_list, value)| (name.to_owned(), is_list, value)).collect::<Vec<_>>()
    });
    (option::weighted(0.9, name), options).prop_map(move |(name, options)| {
        let name = name.filter(|name| kind != "interface" || !is_foreign(name));
        (kind.to_owned(), name, options)
    })
}

/// Interfaces of both packages, one of them in use for certain, and all else that mwan3 has; references mostly fit.
fn config() -> impl Strategy<Value = Plain> {
    let interface = section("interface", &["enabled", "enabled", "made_up"]);
    let referring = vec(any::<Index>(), 24);
    let sections = vec(
        prop_oneof![
            1 => section("globals", &["made_up"]),
            2 => interface,
            4 => section("member", &["interface"]),
            3 => section("policy", &["use_member"]),
            6 => section("rule", &["use_policy", "use_policy"]),
        ],
        0..24,
    );
    (sections, referring).prop_map(|(mut sections, referring)| {
        for ((kind, _, options), pick) in sections.iter_mut().zip(referring) {
            let option =
                |name: &str, is_list, values: &[&str]| (name.to_owned(), is_list, (*pick.get(values)).to_owned());
            match kind.as_str() {
                "interface" => options.push(option("enabled", false, &["1", "1", "0"])),
                "member" => options.push(option("interface", false, &["wan", "wanb", "br-lan", "nobody"])),
                "policy" => options.push(option("use_member", true, &["m1", "m2", "m3"])),
                "rule" => options.push(option("use_policy", false, &["both", "both", "blackhole", "nobody"])),
                _ => {}
            }
        }
        let option = |(name, value): &(&str, &str)| ((*name).to_owned(), *name == "use_member", (*value).to_owned());
        let named = |kind: &str, name: &str, options: &[(&str, &str)]| {
            (kind.to_owned(), Some(name.to_owned()), options.iter().map(option).collect())
        };
        sections.extend([
            named("interface", "sure", &[("enabled", "1"), ("family", "ipv4")]),
            named("member", "m1", &[("interface", "wan")]),
            named("member", "m2", &[("interface", "wanb"), ("weight", "3")]),
            named("member", "m3", &[("interface", "sure")]),
            named("policy", "both", &[("use_member", "m1"), ("use_member", "m2"), ("use_member", "m3")]),
        ]);
        sections
    })
}

/// Interfaces, mostly with what static ones have, and some of them those of mwan3.
fn network() -> impl Strategy<Value = Plain> {
    const USUAL: [&str; 4] = ["device", "proto", "ipaddr", "gateway"];
    let odd = section("interface", &["device", "ifname", "proto", "ipaddr", "gateway", "type", "disabled"]);
    let usual = (select(vec!["sure", "wan", "wanb", "lan", "guest"]), USUAL.map(|option| select(fitting(option))));
    let usual = usual.prop_map(|(name, values)| {
        let option = |(option, value): (&str, &str)| (option.to_owned(), false, value.to_owned());
        ("interface".to_owned(), Some(name.to_owned()), USUAL.into_iter().zip(values).map(option).collect())
    });
    vec(prop_oneof![odd, usual], 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// What comes out is a config of mh's, and everything that is said is in it.
    #[test]
    fn whatever_comes_in_a_config_comes_out(
        plain in config(), ways in vec(any::<u8>(), 1..9), network in option::of(network())
    ) {
        let text = written(&plain, &ways);
        let network = network.map(|network| written(&network, &ways));
        let imported = match mwan3(text.as_bytes(), network.as_deref().map(str::as_bytes)) {
            Ok(imported) => imported,
            Err(error) => return Err(TestCaseError::fail(format!("{error:?}\n{text}"))),
        };
        let config = config_of(&imported);
        prop_assert_eq!(config.uplinks.len(), imported.counts.uplinks);
        prop_assert_eq!(config.rules.len(), imported.counts.rules);
        prop_assert_eq!(config.sets.len(), imported.counts.sets);
        let said = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        let comments: Vec<&str> = imported.toml.lines().filter_map(|line| line.strip_prefix("# ")).collect();
        let comments = said(&comments.join(" "));
        for note in &imported.notes {
            prop_assert!(note.line >= 1);
            prop_assert!(!note.text.contains(char::is_control), "{note:?}");
            prop_assert!(comments.contains(&said(&note.text)), "{note:?} is not in the comments:\n{}", imported.toml);
        }
    }

    /// What is written is what is read.
    #[test]
    fn values_come_back(values in vec(("\\PC{1,20}|[ -~\n\t]{1,20}", any::<bool>()), 1..20), ways in vec(any::<u8>(), 1..9)) {
        let options: Vec<(String, bool, String)> =
            values.iter().enumerate().map(|(index, (value, is_list))| (format!("o{index}"), *is_list, value.clone())).collect();
        let text = written(&vec![("t".to_owned(), None, options.clone())], &ways);
        let document = uci::parse(text.as_bytes()).map_err(|error| TestCaseError::fail(format!("{error:?}: {text:?}")))?;
        let read: Vec<(String, bool, String)> = document.sections[0]
            .options
            .iter()
            .map(|setting| (setting.name.clone(), setting.is_list, setting.values[0].text.clone()))
            .collect();
        prop_assert_eq!(read, options);
    }

    /// A damaged config is a fault of the file, or another config.
    #[test]
    fn no_damage_makes_it_panic(
        at in any::<Index>(), removed in 0_usize..40, inserted in "[\\x00-\\x7f]{0,8}|\\PC{0,4}|option|config rule|'"
    ) {
        let start = at.index(EVERY_OPTION.len());
        let end = (start + removed).min(EVERY_OPTION.len());
        let text = [&EVERY_OPTION.as_bytes()[..start], inserted.as_bytes(), &EVERY_OPTION.as_bytes()[end..]].concat();
        match mwan3(&text, None) {
            Ok(imported) => {
                config_of(&imported);
            }
            Err(ImportError::File { line, .. }) => prop_assert!(line <= 1 + text.iter().filter(|byte| **byte == b'\n').count()),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200), network in vec(any::<u8>(), 0..50)) {
        drop(mwan3(&bytes, Some(&network)));
    }
}

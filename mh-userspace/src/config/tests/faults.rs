//! Every fault and warning: its line, its column and its words.

use super::{ONE_UPLINK, after, faults, warned, warnings, whole};

const NO_LAN: &str = "1:1: lan is missing; add lan = [\"INTERFACE\"] at the top of the file, above the first [section]";
const NO_UPLINK: &str = "1:1: there is no uplink; add [uplink.NAME] with interface = \"INTERFACE\"";

#[test]
fn syntax() {
    whole("x = ", &["1:5: a value is missing; write one after the ="]);
    whole("[datapath]\nmode = \n[a]\n", &["2:8: a value is missing; write one after the ="]);
    whole("mode = auto\n", &["1:8: not a TOML value; if it is a string, write it in quotes: \"auto\""]);
    whole("lan = [", &["1:8: not valid TOML: unclosed array, expected `]`"]);
    whole("a = 1\na = 2\n", &["2:1: \"a\" is defined twice; keep one of them"]);
    whole("\"a b\" = 1\n'a b' = 2\n", &["2:1: \"a b\" is defined twice; keep one of them"]);
    whole("\"é\" = 012", &["1:7: not valid TOML: unexpected leading zero"]);
    whole("a = 'b\nc'", &["1:7: not valid TOML: invalid literal string, expected `'`"]);
    // The same uplink twice is a fault of TOML already.
    after("[uplink.isp1]\n", &["4:9: \"isp1\" is defined twice; keep one of them"]);
}

#[test]
fn deep_nesting_is_refused() {
    for text in [
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}", "{a=".repeat(100_000)),
        format!("{}a = 1", "a.".repeat(100_000)),
        format!("[{}a]", "a.".repeat(100_000)),
    ] {
        assert!(faults(&text).contains("recurs"));
    }
}

#[test]
fn top_level() {
    whole("", &[NO_LAN, NO_UPLINK]);
    whole("uplink = 3", &[NO_LAN, "1:10: uplink must be a table, [uplink.NAME], not a whole number 3"]);
    whole("[[uplink]]", &[NO_LAN, "1:1: uplink must be a table, [uplink.NAME], not a list"]);
    whole("[uplink]", &[NO_LAN, "1:2: there is no uplink; add [uplink.NAME] with interface = \"INTERFACE\""]);
    whole(
        "[uplink]\ninterface = \"wan1\"",
        &[NO_LAN, "2:1: interface stands in [uplink] itself; it belongs in [uplink.NAME], which names the uplink"],
    );
    whole(
        "lan = [\"lan0\"]\n[uplink]\nisp1 = 1",
        &["3:8: uplink.isp1 must be a table, [uplink.isp1], not a whole number 1"],
    );
    after(
        "[[datapath]]\n[[timeouts]]",
        &[
            "4:1: datapath must be a table, [datapath], not a list",
            "5:1: timeouts must be a table, [timeouts], not a list",
        ],
    );
}

#[test]
fn lan() {
    whole(
        "lan = \"lan0\"",
        &[NO_UPLINK, "1:7: lan must be a list of interface names such as [\"lan0\", \"vlan*\"], not a string \"lan0\""],
    );
    whole(
        "lan = []",
        &[NO_UPLINK, "1:7: lan must be a list of interface names such as [\"lan0\", \"vlan*\"], not an empty list"],
    );
    let names = "lan must name interfaces, such as \"lan0\" or \"vlan*\"";
    whole(
        "lan = [\n \"a b\", \"a/b\",\n 3,\n \"x*y\",\n \"lo\",\n \"\",\n \"abcdefghijklmnop\",\n \"lan0\", \"..\"]\n[uplink.a]\ninterface = \"w\"",
        &[
            &format!("2:2: {names}, not \"a b\": white space, \"/\", \":\", \".\" and \"..\" are not allowed"),
            &format!("2:9: {names}, not \"a/b\": white space, \"/\", \":\", \".\" and \"..\" are not allowed"),
            "3:2: lan must be a list of interface names such as [\"lan0\", \"vlan*\"], without a whole number 3 in it",
            &format!(
                "4:2: {names}, not \"x*y\": a * stands for the rest of a name and is allowed at the end of lan's only"
            ),
            &format!("5:2: {names}, not \"lo\": the loopback interface carries no traffic to steer"),
            &format!("6:2: {names}, not \"\": it is empty"),
            &format!("7:2: {names}, not \"abcdefghijklmnop\": it is longer than 15 bytes"),
            &format!("8:10: {names}, not \"..\": white space, \"/\", \":\", \".\" and \"..\" are not allowed"),
        ],
    );
    assert_eq!(
        warnings("lan = [\"lan0\", \"lan0\"]\n[uplink.isp1]\ninterface = \"wan1\"\n"),
        "1:16: lan0 is in lan twice; keep one of them"
    );
}

#[test]
fn unknown_keys() {
    after("wieght = 2", &["4:1: unknown key \"wieght\" in [uplink.isp1]; did you mean \"weight\"?"]);
    after(
        "foo = 2",
        &[
            "4:1: unknown key \"foo\" in [uplink.isp1]; the keys here are interface, gateway, address, weight, capacity, ports, on_down, \
         mss_clamp, nat, damping, probe",
        ],
    );
    // Keys that are known, but not supported, are proposed too; whatever the case; and all that are equally near.
    after(
        "porbe = 1\nWEIGHT = 1\non-down = \"hold\"\naddress5 = 1\ngatway6 = 1",
        &[
            "4:1: unknown key \"porbe\" in [uplink.isp1]; did you mean \"probe\"?",
            "5:1: unknown key \"WEIGHT\" in [uplink.isp1]; did you mean \"weight\"?",
            "6:1: unknown key \"on-down\" in [uplink.isp1]; did you mean \"on_down\"?",
            "7:1: unknown key \"address5\" in [uplink.isp1]; did you mean \"address\" or \"address6\"?",
            "8:1: unknown key \"gatway6\" in [uplink.isp1]; did you mean \"gateway6\"?",
        ],
    );
    // So are those that go on, or leave something out, and where else the key may stand.
    after(
        "iface = 1\ndown = 1\n[timeouts]\ntcp = \"3h\"",
        &[
            "4:1: unknown key \"iface\" in [uplink.isp1]; did you mean \"interface\"?",
            "5:1: unknown key \"down\" in [uplink.isp1]; did you mean \"on_down\"? if not, it belongs in [uplink.NAME.probe], or in \
             [uplink.NAME.probe.loss], or in [uplink.NAME.probe.latency]",
            "7:1: unknown key \"tcp\" in [timeouts]; did you mean \"tcp_established\" or \"tcp_transitory\"?",
        ],
    );
    // A key that is right elsewhere: TOML's sections end where the next one begins.
    after(
        "mode = \"tc\"\n[datapath]\nhash = \"flow\"\nrule = []\nnat = true",
        &[
            "4:1: unknown key \"mode\" in [uplink.isp1]; it belongs in [datapath]",
            "6:1: unknown key \"hash\" in [datapath]; it belongs in [policy.NAME]",
            "7:1: unknown key \"rule\" in [datapath]; it belongs at the top level, above the first [section]",
            "8:1: unknown key \"nat\" in [datapath]; it belongs at the top level, above the first [section], or in [uplink.NAME]",
        ],
    );
    whole(
        "[uplink.isp2]\ninterface = \"wan2\"\nlan = [\"lan0\"]",
        &[NO_LAN, "3:1: unknown key \"lan\" in [uplink.isp2]; it belongs at the top level, above the first [section]"],
    );
    after(
        "[datapth]\nmode = 1\n[rules]\n[policy.default]\nteirs = []\n[timeouts]\nicpm = 3",
        &[
            "4:2: unknown key \"datapth\" at the top level; did you mean \"datapath\"?",
            "6:2: unknown key \"rules\" at the top level; did you mean \"rule\"?",
            "8:1: unknown key \"teirs\" in [policy.default]; did you mean \"tiers\"?",
            "10:1: unknown key \"icpm\" in [timeouts]; did you mean \"icmp\"?",
        ],
    );
    // A misspelt key is not missing as well.
    whole(
        "lna = [\"lan0\"]\n[uplnik.isp1]\ninterface = \"wan1\"",
        &[
            "1:1: unknown key \"lna\" at the top level; did you mean \"lan\"?",
            "2:2: unknown key \"uplnik\" at the top level; did you mean \"uplink\"?",
        ],
    );
    whole(
        "lan = [\"lan0\"]\n[uplink.isp1]\nintreface = \"wan1\"",
        &["3:1: unknown key \"intreface\" in [uplink.isp1]; did you mean \"interface\"?"],
    );
    // Whatever the key is, the message stays one line.
    after(
        "\"a\\nb\" = 1",
        &[
            "4:1: unknown key \"a\\nb\" in [uplink.isp1]; the keys here are interface, gateway, address, weight, capacity, ports, on_down, \
         mss_clamp, nat, damping, probe",
        ],
    );
}

#[test]
fn columns_count_characters() {
    whole(
        "# ü\r\n\"ü\" = 1\r\nlan = [\"ü\", \"ü ü\"]\r\n[uplink.\"ü\"]\r\ninterface = \"wan1\"",
        &[
            "2:1: unknown key \"ü\" at the top level; the keys here are lan, datapath, uplink, policy, rule, set, forward, nat, limits, \
         timeouts, hooks",
            "3:13: lan must name interfaces, such as \"lan0\" or \"vlan*\", not \"ü ü\": white space, \"/\", \":\", \".\" and \"..\" are \
         not allowed",
            "4:9: \"ü\" is no name for an uplink; use 1 to 32 of the characters a-z, A-Z, 0-9, _ and -",
        ],
    );
    whole(
        "\u{feff}lan = 3",
        &[NO_UPLINK, "1:7: lan must be a list of interface names such as [\"lan0\", \"vlan*\"], not a whole number 3"],
    );
}

#[test]
fn datapath() {
    after(
        "[datapath]\nmode = \"native\"\nconntrack_entries = 1023\nbindings = 63\nmark_mask = \"0x0f0f0000\"\nhost_traffic = 1",
        &[
            "5:8: mode must be \"auto\", \"xdp\" or \"tc\", not \"native\"",
            "6:21: conntrack_entries must be a whole number from 1024 to 16777216, not 1023",
            "7:12: bindings must be a whole number from 64 to 16777216, not 63",
            "8:13: mark_mask must be a hexadecimal number of 32 bits in quotes with one run of at least 6 bits set, such as \"0x00ff0000\", \
             not \"0x0f0f0000\"",
            "9:16: host_traffic must be true or false, not a whole number 1",
        ],
    );
    after(
        "[datapath]\nmode = 3\nconntrack_entries = 16777217\nbindings = 16777217\nmark_mask = 0x00ff0000",
        &[
            "5:8: mode must be \"auto\", \"xdp\" or \"tc\", not a whole number 3",
            "6:21: conntrack_entries must be a whole number from 1024 to 16777216, not 16777217",
            "7:12: bindings must be a whole number from 64 to 16777216, not 16777217",
            "8:13: mark_mask must be a hexadecimal number of 32 bits in quotes with one run of at least 6 bits set, such as \"0x00ff0000\", \
             not a whole number 0x00ff0000",
        ],
    );
    for mask in ["", "0x", "0x0", "ff", "0x1ffffffff", "0x+ff", "0x80000001"] {
        after(
            &format!("[datapath]\nmark_mask = \"{mask}\""),
            &[&format!(
                "5:13: mark_mask must be a hexadecimal number of 32 bits in quotes with one run of at least 6 bits set, such as \"0x00ff0000\", \
             not \"{mask}\""
            )],
        );
    }
    for (mask, bits) in [("0x1", "1 bit"), ("0x80000000", "1 bit"), ("0x001f0000", "5 bits")] {
        after(
            &format!("[datapath]\nmark_mask = \"{mask}\""),
            &[&format!(
                "5:13: mark_mask must be a hexadecimal number of 32 bits in quotes with one run of at least 6 bits set, such as \
                 \"0x00ff0000\", not \"{mask}\": it has {bits}, too few to tell 32 uplinks and four more values apart"
            )],
        );
    }
    warned(
        "[datapath]\nbindings = 524289\nhost_traffic = true",
        &[
            "5:12: bindings = 524289 is more than the 524288 flows that conntrack_entries = 1048576 has room for, at two entries a \
         flow; lower it, or raise conntrack_entries",
        ],
    );
}

#[test]
fn weights() {
    for (value, what) in [
        ("\"2\"", "a string \"2\""),
        ("65536", "65536"),
        ("-1", "-1"),
        ("0x10000", "0x10000"),
        ("2.5", "a float 2.5"),
        ("99999999999999999999", "99999999999999999999"),
        ("true", "true"),
        ("[1]", "a list"),
        ("2024-01-01", "a date or time"),
        ("{}", "a table"),
    ] {
        after(
            &format!("weight = {value}"),
            &[&format!("4:10: weight must be a whole number from 0 to 65535, or \"capacity\", not {what}")],
        );
    }
    warned(
        "weight = 0",
        &["2:9: no uplink has a weight above 0: no new flow will get an uplink; give at least one uplink a weight"],
    );
}

#[test]
fn addresses() {
    let gateway = "gateway must be the IPv4 address of the next router, such as \"198.51.100.1\", not";
    let address = "address must be an IPv4 address such as \"198.51.100.2\", a prefix such as \"198.51.100.8/30\", or a list of these, \
                   not";
    for (text, reason) in [
        ("0.0.0.0", ": it is the unspecified address, not one machine's"),
        ("0.1.2.3", ": it is an address of \"this network\", 0.0.0.0/8, not one machine's"),
        ("127.0.0.1", ": it is a loopback address, not one machine's"),
        ("224.0.0.1", ": it is a multicast address, not one machine's"),
        ("239.255.255.255", ": it is a multicast address, not one machine's"),
        ("255.255.255.255", ": it is the broadcast address, not one machine's"),
        ("2001:db8::1", ""),
        ("198.51.100", ""),
        ("router", ""),
    ] {
        after(
            &format!("gateway = \"{text}\"\naddress = \"{text}\""),
            &[&format!("4:11: {gateway} \"{text}\"{reason}"), &format!("5:11: {address} \"{text}\"{reason}")],
        );
    }
    after("gateway = [\"10.0.0.1\"]", &[&format!("4:11: {gateway} a list")]);
    after(
        "address = [3, \"x\", [\"10.0.0.1\"]]",
        &[
            &format!("4:12: {address} a whole number 3"),
            &format!("4:15: {address} \"x\""),
            &format!("4:20: {address} a list"),
        ],
    );
    after("address = []", &[&format!("4:11: {address} an empty list")]);
    after(
        "gateway = \"10.0.0.1\"\naddress = [\"10.0.0.1\"]",
        &[
            "4:11: gateway 10.0.0.1 is an address of the uplink itself; write that of the next router, or take it out of address",
        ],
    );
}

#[test]
fn pools_of_addresses() {
    let address = "address must be an IPv4 address such as \"198.51.100.2\", a prefix such as \"198.51.100.8/30\", or a list of these, \
                   not";
    for (text, reason) in [
        ("10.0.0.0/0", ": it has more than 4096 addresses; write a prefix of /20 or longer"),
        ("0.0.0.0/0", ": it has more than 4096 addresses; write a prefix of /20 or longer"),
        ("10.0.0.0/19", ": it has more than 4096 addresses; write a prefix of /20 or longer"),
        ("10.0.0.1/30", ": it does not begin its prefix; write \"10.0.0.0/30\""),
        ("10.0.0.0/33", ""),
        ("10.0.0.0/", ""),
        ("10.0.0/24", ""),
        ("10.0.0.0-10.0.0.3", ""),
        ("2001:db8::/120", ""),
        ("0.0.0.0/24", ": 0.0.0.0 in it is the unspecified address, not one machine's"),
        ("0.1.0.0/24", ": 0.1.0.0 in it is an address of \"this network\", 0.0.0.0/8, not one machine's"),
        ("127.0.0.0/20", ": 127.0.0.0 in it is a loopback address, not one machine's"),
        ("239.255.255.252/30", ": 239.255.255.252 in it is a multicast address, not one machine's"),
        ("255.255.255.252/30", ": 255.255.255.255 in it is the broadcast address, not one machine's"),
    ] {
        after(&format!("address = \"{text}\""), &[&format!("4:11: {address} \"{text}\"{reason}")]);
        after(&format!("address = [\"192.0.2.1\", \"{text}\"]"), &[&format!("4:25: {address} \"{text}\"{reason}")]);
    }
    let many: Vec<String> = (1..=17).map(|host| format!("\"10.0.0.{host}\"")).collect();
    after(
        &format!("address = [{},\n{}]", many[..16].join(", "), many[16]),
        &["5:1: address has 17 elements; keep at most 16, with prefixes in place of single addresses"],
    );
    after(
        "address = [\"10.0.0.0/20\", \"10.1.0.0\"]",
        &["4:11: address stands for 4097 addresses in all; keep at most 4096 for one uplink"],
    );
    after(
        "gateway = \"10.0.0.9\"\naddress = [\"10.0.0.2\", \"10.0.0.8/30\"]",
        &[
            "4:11: gateway 10.0.0.9 is an address of the uplink itself; write that of the next router, or take it out of address",
        ],
    );
}

#[test]
fn addresses_stand_in_one_place() {
    after(
        "address = [\"10.0.0.1\", \"10.0.0.2\",\n\"10.0.0.1/32\", \"10.0.0.1\"]",
        &[
            "5:1: 10.0.0.1 is in the address of uplink \"isp1\" already; keep one of them, the other is in line 4",
            "5:16: 10.0.0.1 is in the address of uplink \"isp1\" already; keep one of them, the other is in line 4",
        ],
    );
    // Whichever of two stands behind the other has the fault.
    after(
        "address = [\n\"10.0.0.1\", \"10.0.1.0/24\",\n\"10.0.0.0/24\",\n\"10.0.1.255\", \"10.0.2.0\", \"9.255.255.255\"]",
        &[
            "6:1: 10.0.0.0/24 overlaps 10.0.0.1 in the address of uplink \"isp1\"; keep one of them, the other is in line 5",
            "7:1: 10.0.1.255 overlaps 10.0.1.0/24 in the address of uplink \"isp1\"; keep one of them, the other is in line 5",
        ],
    );
}

/// Identical modems give the same address to every machine behind them.
#[test]
fn two_uplinks_may_have_the_same_address() {
    let text = "lan = [\"lan0\"]\n[uplink.a]\ninterface = \"wan1\"\naddress = \"10.0.0.1\"\n\
                [uplink.b]\ninterface = \"wan2\"\naddress = \"10.0.0.1\"\n";
    assert!(super::super::parse(text).is_ok());
}

#[test]
fn ports() {
    for (value, what) in [
        ("5000", "a whole number 5000"),
        ("\"0-5\"", "\"0-5\""),
        ("\"0\"", "\"0\""),
        ("\"7-5\"", "\"7-5\""),
        ("\"1-65536\"", "\"1-65536\""),
        ("\"+1-5\"", "\"+1-5\""),
        ("\"-5\"", "\"-5\""),
        ("\"1-2-3\"", "\"1-2-3\""),
        ("\"\"", "\"\""),
    ] {
        after(
            &format!("ports = {value}"),
            &[&format!(
                "4:9: ports must be a range of ports such as \"1024-65535\", or one such as \"5000\", from 1 to 65535 and in quotes, \
             not {what}"
            )],
        );
    }
}

#[test]
fn other_uplink_keys() {
    after(
        "on_down = \"x\"\nmss_clamp = 535\nnat = \"false\"",
        &[
            "4:11: on_down must be \"reset\", \"repin\" or \"hold\", not \"x\"",
            "5:13: mss_clamp must be \"auto\", \"off\" or a whole number from 536 to 65495, not 535",
            "6:7: nat must be true or false, not a string \"false\"",
        ],
    );
    after(
        "mss_clamp = \"on\"",
        &["4:13: mss_clamp must be \"auto\", \"off\" or a whole number from 536 to 65495, not \"on\""],
    );
    warned("on_down = \"reset\"\nmss_clamp = 1400", &[]);
    warned("on_down = \"repin\"\nmss_clamp = \"auto\"", &[]);
    warned("on_down = \"hold\"\nmss_clamp = \"off\"", &[]);
}

#[test]
fn damping() {
    let span = "must be a duration in quotes from \"1s\" to \"24h\", such as \"30s\", not";
    after(
        "damping = { losses = 101, within = \"25h\", hold = 3, whithin = 1 }",
        &[
            "4:22: losses must be a whole number from 0 to 100, 0 for no damping, not 101",
            &format!("4:36: within {span} \"25h\""),
            &format!("4:50: hold {span} a whole number 3"),
            "4:53: unknown key \"whithin\" in [uplink.isp1.damping]; did you mean \"within\"?",
        ],
    );
    after(
        "damping = \"off\"",
        &["4:11: uplink.isp1.damping must be a table, [uplink.isp1.damping], not a string \"off\""],
    );
}

#[test]
fn uplinks_against_each_other() {
    after(
        "[uplink.isp2]\ninterface = \"wan1\"\n[uplink.in]\ninterface = \"lan0\"\n[uplink.\"a b\"]\ninterface = \"w*\"\n[uplink.x]\n\
         [uplink.y]\ninterface = 3\n[uplink.z]\ninterface = \"lo\"",
        &[
            "5:13: interface \"wan1\" is already that of uplink \"isp1\"; give each uplink an interface of its own",
            "7:13: interface \"lan0\" is also one of lan, by \"lan0\"; an interface is a lan's or an uplink's, so change one of them",
            "8:9: \"a b\" is no name for an uplink; use 1 to 32 of the characters a-z, A-Z, 0-9, _ and -",
            "9:13: interface must be the name of an interface such as \"wan1\", not \"w*\": a * stands for the rest of a name and is \
             allowed at the end of lan's only",
            "10:9: [uplink.x] names no interface; add interface = \"INTERFACE\"",
            "12:13: interface must be the name of an interface such as \"wan1\", not a whole number 3",
            "14:13: interface must be the name of an interface such as \"wan1\", not \"lo\": the loopback interface carries no \
             traffic to steer",
        ],
    );
    whole(
        "lan = [\"*\"]\n[uplink.isp1]\ninterface = \"wan1\"",
        &[
            "3:13: interface \"wan1\" is also one of lan, by \"*\"; an interface is a lan's or an uplink's, so change one of them",
        ],
    );
    let long = "a".repeat(33);
    after(
        &format!("[uplink.{long}]\ninterface = \"wan2\""),
        &[&format!("4:9: \"{long}\" is no name for an uplink; use 1 to 32 of the characters a-z, A-Z, 0-9, _ and -")],
    );
}

#[test]
fn too_many_uplinks() {
    let mut text = ONE_UPLINK.to_owned();
    for number in 2..=32 {
        text += &format!("[uplink.isp{number}]\ninterface = \"wan{number}\"\n");
    }
    assert_eq!(super::config(&text).uplinks.len(), 32);
    text += "[uplink.more]\ninterface = \"more\"\n[uplink.yet-more]\ninterface = \"yet-more\"\n";
    whole(&text, &["66:9: uplink \"more\" is one too many; keep at most 32 uplinks"]);
}

#[test]
fn timeouts() {
    let wants = "must be a duration in quotes from \"1s\" to \"720h\", such as \"300s\" or \"1h30m\", not";
    after(
        "[timeouts]\nudp = 300\ntcp_established = \"0s\"\ntcp_transitory = \"1m1h\"\nicmp = \"721h\"",
        &[
            &format!("5:7: udp {wants} a whole number 300"),
            &format!("6:19: tcp_established {wants} \"0s\""),
            &format!("7:18: tcp_transitory {wants} \"1m1h\""),
            &format!("8:8: icmp {wants} \"721h\""),
        ],
    );
    let idle = "asks for: flows that are idle, but in use, may be cut";
    warned(
        "[timeouts]\nudp = \"119s\"\ntcp_established = \"2h3m59s\"\ntcp_transitory = \"239999ms\"\nicmp = \"59s\"",
        &[
            &format!("5:7: udp is less than the 120s that RFC 4787 REQ-5 {idle}"),
            &format!("6:19: tcp_established is less than the 7440s that RFC 5382 REQ-5 {idle}"),
            &format!("7:18: tcp_transitory is less than the 240s that RFC 5382 REQ-5 {idle}"),
            &format!("8:8: icmp is less than the 60s that RFC 5508 REQ-2 {idle}"),
        ],
    );
    warned("[timeouts]\nudp = \"2m\"\ntcp_established = \"2h4m\"\ntcp_transitory = \"4m\"\nicmp = \"1m\"", &[]);
}

#[test]
fn parts_of_the_format_that_are_not_supported_yet() {
    after(
        "address6 = 1\ngateway6 = 1\nnptv6 = 1\nnat66 = true\n[metrics]",
        &[
            "4:1: uplink.isp1.address6 is not supported by this version of mh yet; remove it",
            "5:1: uplink.isp1.gateway6 is not supported by this version of mh yet; remove it",
            "6:1: uplink.isp1.nptv6 is not supported by this version of mh yet; remove it",
            "7:1: uplink.isp1.nat66 is not supported by this version of mh yet; remove it",
            "8:2: metrics is not supported by this version of mh yet; remove it",
        ],
    );
}

#[test]
fn hooks() {
    let path = "on_change must be the absolute path of a program such as \"/etc/mh/on-change\"";
    let time = "timeout must be a duration in quotes from \"100ms\" to \"10m\", such as \"10s\"";
    after(
        "[hooks]\non_change = \"on-change\"\ntimeout = \"11m\"",
        &[&format!("5:13: {path}, not \"on-change\""), &format!("6:11: {time}, not \"11m\"")],
    );
    after(
        "[hooks]\non_change = true\ntimeout = 5\non_chnage = 1",
        &[
            &format!("5:13: {path}, not true"),
            &format!("6:11: {time}, not a whole number 5"),
            "7:1: unknown key \"on_chnage\" in [hooks]; did you mean \"on_change\"?",
        ],
    );
    warned(
        "[hooks]\non_change = \"/nonexistent/hook\"",
        &[
            "5:13: \"/nonexistent/hook\" can't be run: No such file or directory (os error 2); changes are not told to anybody until \
           it is there",
        ],
    );
    warned("[hooks]\non_change = \"/etc\"", &["5:13: \"/etc\" is no file; name a program"]);
    warned(
        "[hooks]\non_change = \"/etc/passwd\"",
        &["5:13: \"/etc/passwd\" is not executable; make it so with: chmod +x"],
    );
    warned("[hooks]\non_change = \"/bin/true\"\ntimeout = \"1m30s\"", &[]);
}

//! Faults of `[[forward]]`, `[nat]` and `[limits]`.

use super::{ONE_UPLINK, after, warned, whole};

/// A forward to which the keys that are tested are added; they begin in line 5.
fn forward(keys: &str) -> String {
    format!("[[forward]]\n{keys}")
}

#[test]
fn tables() {
    after("[forward]\nport = 80", &["4:1: forward must be a list of tables, [[forward]] each, not a table"]);
    whole(
        &format!("forward = [3]\n{ONE_UPLINK}"),
        &["1:12: an element of forward must be a table, [[forward]], not a whole number 3"],
    );
    after(
        "[[forward]]\n[[forward]]\nprotokol = \"tcp\"\nport = 80\nto = \"10.0.0.1\"\nname = \"web\"\nhash = 1",
        &[
            "4:1: [[forward]] lacks protocol; add protocol = \"tcp\"",
            "4:1: [[forward]] lacks port; add port = \"PORT\"",
            "4:1: [[forward]] lacks to; add to = \"ADDRESS:PORT\"",
            "6:1: unknown key \"protokol\" in [[forward]]; did you mean \"protocol\"?",
            "9:1: unknown key \"name\" in [[forward]]; it belongs in [[rule]]",
            "10:1: unknown key \"hash\" in [[forward]]; it belongs in [policy.NAME]",
        ],
    );
}

#[test]
fn protocols() {
    let wants = "protocol must be \"tcp\", \"udp\" or a list of both, not";
    for (value, fault) in [
        ("\"icmp\"", format!("5:12: {wants} \"icmp\"")),
        ("\"TCP\"", format!("5:12: {wants} \"TCP\"")),
        ("6", format!("5:12: {wants} a whole number 6")),
        ("[]", format!("5:12: {wants} an empty list")),
        ("[\"tcp\", 17]", format!("5:20: {wants} a whole number 17")),
        ("[[\"tcp\"]]", format!("5:13: {wants} a list")),
    ] {
        after(&forward(&format!("protocol = {value}\nport = 80\nto = \"10.0.0.1\"")), &[&fault]);
    }
    warned(
        &forward("protocol = [\"tcp\", \"udp\", \"tcp\"]\nport = 80\nto = \"10.0.0.1\""),
        &["5:27: tcp is in protocol twice; keep one of them"],
    );
}

#[test]
fn ports() {
    let wants = "port must be a port such as \"8443\", or a range such as \"8000-8010\", from 1 to 65535, not";
    for (value, what) in [
        ("0", "0"),
        ("65536", "65536"),
        ("-1", "-1"),
        ("\"0\"", "\"0\""),
        ("\"65530-65540\"", "\"65530-65540\""),
        ("\"80-79\"", "\"80-79\""),
        ("\"http\"", "\"http\""),
        ("\"80,443\"", "\"80,443\""),
        ("true", "true"),
        ("[80]", "a list"),
    ] {
        after(
            &forward(&format!("protocol = \"tcp\"\nport = {value}\nto = \"10.0.0.1\"")),
            &[&format!("6:8: {wants} {what}")],
        );
    }
}

#[test]
fn targets() {
    let wants =
        "to must be the IPv4 address of an inside host, with or without a port, such as \"192.168.1.20:443\", not";
    for (text, reason) in [
        ("0.0.0.0", ": it is the unspecified address, not one machine's"),
        ("0.0.0.1:80", ": it is an address of \"this network\", 0.0.0.0/8, not one machine's"),
        ("127.0.0.1:80", ": it is a loopback address, not one machine's"),
        ("224.0.0.1", ": it is a multicast address, not one machine's"),
        ("255.255.255.255:80", ": it is the broadcast address, not one machine's"),
        ("10.0.0.1:8000-8010", ": write the first port alone; the others follow it"),
        ("10.0.0.1:", ""),
        ("10.0.0.1:0", ""),
        ("10.0.0.1:65536", ""),
        ("10.0.0.1:http", ""),
        (":80", ""),
        ("10.0.0.0/30", ""),
        ("server:80", ""),
        ("[2001:db8::1]:80", ""),
        ("2001:db8::1", ""),
    ] {
        after(
            &forward(&format!("protocol = \"tcp\"\nport = 80\nto = \"{text}\"")),
            &[&format!("7:6: {wants} \"{text}\"{reason}")],
        );
    }
    after(&forward("protocol = \"tcp\"\nport = 80\nto = 80"), &[&format!("7:6: {wants} a whole number 80")]);
    after(
        &forward("protocol = \"tcp\"\nport = \"8000-8010\"\nto = \"10.0.0.1:65526\""),
        &[
            "7:6: port 8000-8010 is 11 ports, and from port 65526 of to there are 10 up to 65535; lower the port of to, or forward \
           fewer",
        ],
    );
}

#[test]
fn uplinks() {
    let wants = "uplinks must be a list of names of uplinks such as [\"isp1\", \"isp2\"]";
    let rest = "protocol = \"tcp\"\nport = 80\nto = \"10.0.0.1\"";
    for (value, fault) in [
        ("\"isp1\"", format!("5:11: {wants}, not a string \"isp1\"")),
        ("[]", format!("5:11: {wants}, not an empty list")),
        ("[1]", format!("5:12: {wants}, without a whole number 1 in it")),
        ("[\"isp1\", \"ips1\"]", "5:20: no uplink is named \"ips1\"; did you mean \"isp1\"?".to_owned()),
        ("[\"lte\"]", "5:12: no uplink is named \"lte\"; the uplinks are \"isp1\"".to_owned()),
    ] {
        after(&forward(&format!("uplinks = {value}\n{rest}")), &[&fault]);
    }
    warned(
        &forward(&format!("uplinks = [\"isp1\", \"isp1\"]\n{rest}")),
        &["5:20: isp1 is in uplinks twice; keep one of them"],
    );
}

#[test]
fn uplinks_that_do_not_translate() {
    let rest = "protocol = \"tcp\"\nport = 80\nto = \"10.0.0.1\"";
    let routed = "[uplink.isp2]\ninterface = \"wan2\"\nnat = false\n";
    after(
        &format!("{routed}[[forward]]\nuplinks = [\"isp1\", \"isp2\"]\n{rest}"),
        &[
            "8:20: uplink \"isp2\" has nat = false, which forwards no ports; take it out of uplinks, or set its nat = true",
        ],
    );
    after(
        &format!("{routed}[[forward]]\n{rest}"),
        &[
            "7:1: [[forward]] without uplinks is on all of them, and \"isp2\" has nat = false, which forwards no ports; name those that \
           translate: uplinks = [\"isp1\"]",
        ],
    );
    after(
        &format!("nat = false\n[[forward]]\n{rest}"),
        &[
            "5:1: [[forward]] without uplinks is on all of them, and \"isp1\" has nat = false, which forwards no ports; set its nat = \
           true, or remove the [[forward]]",
        ],
    );
}

#[test]
fn a_port_is_forwarded_once() {
    let two = "[uplink.isp2]\ninterface = \"wan2\"\n";
    let already = "is forwarded already; change or remove this [[forward]], or the one in line";
    // Line 6.
    let first =
        "[[forward]]\nuplinks = [\"isp2\"]\nprotocol = [\"tcp\", \"udp\"]\nport = \"8000-8010\"\nto = \"10.0.0.1\"\n";
    for (second, expected) in [
        ("protocol = \"udp\"\nport = 8000\nto = \"10.0.0.2\"", "11:1: udp port 8000 of uplink \"isp2\""),
        ("protocol = \"tcp\"\nport = \"7990-9000\"\nto = \"10.0.0.1\"", "11:1: tcp port 8000 of uplink \"isp2\""),
        (
            "uplinks = [\"isp2\"]\nprotocol = \"tcp\"\nport = \"8010\"\nto = \"10.0.0.1:80\"",
            "11:1: tcp port 8010 of uplink \"isp2\"",
        ),
    ] {
        after(&format!("{two}{first}[[forward]]\n{second}"), &[&format!("{expected} {already} 6")]);
    }
    // Each has one fault, against the one in front of it.
    after(
        &[forward("protocol = \"tcp\"\nport = 80\nto = \"10.0.0.1\"\n").as_str(); 3].concat(),
        &[
            &format!("8:1: tcp port 80 of uplink \"isp1\" {already} 4"),
            &format!("12:1: tcp port 80 of uplink \"isp1\" {already} 8"),
        ],
    );
}

#[test]
fn too_many_ports() {
    let most = "[[forward]]\nprotocol = [\"tcp\", \"udp\"]\nport = \"1001-3048\"\nto = \"10.0.0.1\"\n";
    warned(most, &[]);
    after(
        &format!("{most}{}", most.replace("1001-3048", "1").repeat(2)),
        &[
            "8:1: with this [[forward]] more than 4096 ports are forwarded, each counted for every uplink and protocol; forward fewer",
        ],
    );
    after(
        "[[forward]]\nprotocol = \"tcp\"\nport = \"1-65535\"\nto = \"10.0.0.1\"\n",
        &[
            "4:1: with this [[forward]] more than 4096 ports are forwarded, each counted for every uplink and protocol; forward fewer",
        ],
    );
}

#[test]
fn nat() {
    let wants = "filtering must be \"endpoint-independent\" or \"address-dependent\", not";
    after("[nat]\nfiltering = \"port-dependent\"", &[&format!("5:13: {wants} \"port-dependent\"")]);
    after("[nat]\nfiltering = false", &[&format!("5:13: {wants} false")]);
    after(
        "[nat]\nfilterign = 1\nnat = true",
        &[
            "5:1: unknown key \"filterign\" in [nat]; did you mean \"filtering\"?",
            "6:1: unknown key \"nat\" in [nat]; it belongs at the top level, above the first [section], or in [uplink.NAME]",
        ],
    );
    whole(&format!("nat = false\n{ONE_UPLINK}"), &["1:7: nat must be a table, [nat], not false"]);
}

#[test]
fn limits() {
    let bindings = "bindings_per_source must be a whole number from 0 to 16777216, 0 for no limit, not";
    let flows = "new_flows_per_source must be a whole number from 0 to 10000000, 0 for no limit, not";
    for (value, what) in [("-1", "-1"), ("16777217", "16777217"), ("1.5", "a float 1.5"), ("\"10\"", "a string \"10\"")]
    {
        after(
            &format!("[limits]\nbindings_per_source = {value}\nnew_flows_per_source = {value}"),
            &[&format!("5:23: {bindings} {what}"), &format!("6:24: {flows} {what}")],
        );
    }
    after("[limits]\nnew_flows_per_source = 10000001", &[&format!("5:24: {flows} 10000001")]);
    after(
        "[limits]\nbindings_per_souce = 1\nbindings = 64",
        &[
            "5:1: unknown key \"bindings_per_souce\" in [limits]; did you mean \"bindings_per_source\"?",
            "6:1: unknown key \"bindings\" in [limits]; did you mean \"bindings_per_source\"? if not, it belongs in [datapath]",
        ],
    );
    after("[[limits]]", &["4:1: limits must be a table, [limits], not a list"]);
}

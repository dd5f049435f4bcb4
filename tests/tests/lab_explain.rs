//! What `mhctl explain`, `rules`, `policies` and `sets` say, and what then becomes of flows.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │            │                             │
//!                                             │ router: mh │ wan2 203.0.113.2 ─── isp2 ──┼── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 │            │                             │
//!                        192.168.2.0/24    .1 └────────────┘ wan3 198.18.3.2 ──── isp3 ──┘
//! ```
//!
//! Of each packet it is first asked what would become of it; then a real socket sends it, and the flow that is found in the conntrack has
//! to be the one that was told. Hits are counted by hand beside it: what is explained is not counted, and what is sent is, once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::{Bound, DatagramSocket, TcpFlow, UdpFlow};
use mh_tests::lab::{
    CLIENT1, CLIENT2, CLIENT3, Host, Mode, Options, ROUTER_LAN0, SERVER, Scene, TwoIsps, run_configured, wait_until,
};
use serde_json::{Value, json};

mod tc {
    #[test]
    fn what_is_told_happens() -> anyhow::Result<()> {
        super::with_rules(super::Mode::Tc, super::what_is_told_happens)
    }

    #[test]
    fn wrong_questions_get_one_line() -> anyhow::Result<()> {
        super::with_rules(super::Mode::Tc, super::wrong_questions_get_one_line)
    }
}

mod xdp {
    #[test]
    fn what_is_told_happens() -> anyhow::Result<()> {
        super::with_rules(super::Mode::Xdp, super::what_is_told_happens)
    }
}

const RULES: &str = r#"
[policy.default]
tiers = [ { isp1 = 2, isp2 = 1 }, { isp3 = 1 } ]

[policy.one-source]
tiers = [ { isp1 = 1, isp2 = 1 } ]
hash = "source"
sticky = "60s"

[policy.backup]
tiers = [ { isp3 = 1 }, { isp1 = 1 } ]

[set.banks]
prefixes = ["198.18.9.0/24"]
file = "banks.txt"

[[rule]]
name = "bank"
from = ["192.168.1.0/24"]
to = ["set:banks"]
protocol = "tcp"
to_port = ["7000-7001"]
use = "policy:one-source"

[[rule]]
protocol = "udp"
from_port = ["5000-5099"]
use = "uplink:isp3"

[[rule]]
name = "other-lan"
protocol = "udp"
to_port = 7000
interface = "lan1"
use = "policy:backup"

[[rule]]
name = "voice"
dscp = 46
use = "uplink:isp2"

[[rule]]
name = "refused"
to_port = 7009
use = "reject"

[[rule]]
name = "lost"
protocol = "udp"
to_port = 7010
use = "drop"

[[rule]]
name = "left"
protocol = "udp"
to_port = 7011
use = "direct"
"#;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

fn with_rules(mode: Mode, test: fn(&mut Scene) -> Result<()>) -> Result<()> {
    let config = |lab: &TwoIsps| {
        let file = lab.lab().directory().join("banks.txt");
        std::fs::write(&file, "# The internet host.\n192.0.2.0/28\n192.0.2.10\n")
            .expect("a file in the laboratory's directory");
        lab.config(&[1, 1, 1]) + RULES
    };
    run_configured(&Options { uplinks: 3, ..Options::new(mode) }, config, test)
}

/// What `mhctl explain` says.
fn explained(scene: &Scene, arguments: &[&str]) -> Result<Value> {
    scene.mhd.ctl_json(&[&["explain"], arguments].concat())
}

fn end(address: Ipv4Addr, port: u16) -> String {
    SocketAddrV4::new(address, port).to_string()
}

/// The only flow from here.
fn flow(scene: &Scene, protocol: &str, src: Ipv4Addr, sport: Option<u16>) -> Result<Value> {
    let flows = scene.mhd.flows(&["--proto", protocol, "--src", &src.to_string()])?;
    let mut found = flows.iter().filter(|flow| sport.is_none_or(|sport| flow["sport"] == sport));
    let flow = found.next().with_context(|| format!("no {protocol} flow of {src}:{sport:?} in {flows:?}"))?;
    assert!(found.next().is_none(), "{flows:?}");
    Ok(flow.clone())
}

/// What was told before a flow, what its client was seen as by the server, and the flow that is there: all the same. And it exists now.
fn compare(scene: &Scene, told: &Value, arguments: &[&str], seen: SocketAddrV4, flow: &Value) -> Result<()> {
    assert_eq!(told["verdict"], "new", "{told}");
    assert_eq!(told["existing"], false, "{told}");
    assert_eq!(told["uplink"], flow["uplink"], "{told} {flow}");
    assert_eq!(told["nat_src"], flow["nat_src"], "{told} {flow}");
    assert_eq!(told["nat_src"], seen.ip().to_string(), "{told}");
    let again = explained(scene, arguments)?;
    assert_eq!(again["existing"], true, "{again}");
    for field in ["uplink", "nat_src", "nat_sport"] {
        assert_eq!(again[field], flow[field], "{field}: {again} {flow}");
    }
    for field in ["rule", "policy", "tier", "slot"] {
        assert_eq!(again[field], Value::Null, "{again}");
    }
    let verdict = if again["host"] == true { "host" } else { "forward" };
    assert_eq!(again["verdict"], verdict, "{again}");
    Ok(())
}

/// Opens a UDP flow as was told before, and compares. Returns what was told.
fn udp(scene: &Scene, host: &Host, src: Ipv4Addr, sport: u16) -> Result<Value> {
    let arguments = ["udp", &end(src, sport), &end(SERVER, 7000)];
    let told = explained(scene, &arguments)?;
    let sent = Bound::Port(sport).udp(host, scene.udp.address())?;
    compare(scene, &told, &arguments, sent.seen, &flow(scene, "udp", src, Some(sport))?)?;
    Ok(told)
}

/// The same with TCP.
fn tcp(scene: &Scene, host: &Host, src: Ipv4Addr, sport: u16) -> Result<(Value, TcpFlow)> {
    let arguments = ["tcp", &end(src, sport), &end(SERVER, 7000)];
    let told = explained(scene, &arguments)?;
    let sent = TcpFlow::connect_from(host, SocketAddrV4::new(src, sport), scene.tcp.address(), CONNECT_TIMEOUT)?;
    compare(scene, &told, &arguments, sent.seen, &flow(scene, "tcp", src, Some(sport))?)?;
    Ok((told, sent))
}

/// The hits of all rules in order, that of no rule last.
fn hits(scene: &Scene) -> Result<Vec<u64>> {
    let rules = scene.mhd.ctl_json(&["rules"])?;
    let rules = rules.as_array().context("rules are an array")?;
    rules.iter().map(|rule| rule["hits"].as_u64().context("hits")).collect()
}

fn policy(scene: &Scene, name: &str) -> Result<Value> {
    let list = scene.mhd.ctl_json(&["policies"])?;
    let found = list.as_array().context("an array")?.iter().find(|policy| policy["name"] == name);
    found.cloned().with_context(|| format!("no policy {name} in {list}"))
}

fn says(told: &Value, words: &str) {
    let why = told["why"].as_array().expect("reasons");
    assert!(why.iter().any(|line| line.as_str().is_some_and(|line| line.contains(words))), "{words:?} in {told:#}");
}

fn what_is_told_happens(scene: &mut Scene) -> Result<()> {
    let scene = &*scene;
    let lab = &scene.lab;
    let mut expected = [0u64; 8];
    assert_eq!(hits(scene)?, expected);

    // The default policy: by slots.
    let mut uplinks = BTreeMap::<String, u32>::new();
    for sport in 40_000..40_024 {
        let told = udp(scene, &lab.client1, CLIENT1, sport)?;
        assert_eq!(
            (&told["rule"], &told["policy"], &told["tier"]),
            (&Value::Null, &json!("default"), &json!(0)),
            "{told}"
        );
        assert!(told["slot"].as_u64().is_some_and(|slot| slot < 4096), "{told}");
        assert_eq!(
            (&told["interface"], &told["host"], &told["sticky"]),
            (&json!("lan0"), &json!(false), &json!(false))
        );
        *uplinks.entry(told["uplink"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        expected[7] += 1;
    }
    // One of two alone for all 24 would be chance once in 16,000.
    assert!(uplinks.keys().eq(["isp1", "isp2"]), "{uplinks:?}");
    assert_eq!(hits(scene)?, expected);

    // A rule without a name, and its own uplink.
    let told = udp(scene, &lab.client2, CLIENT2, 5001)?;
    assert_eq!(
        (&told["rule"], &told["rule_index"], &told["uplink"]),
        (&json!("rule 2"), &json!(2), &json!("isp3")),
        "{told}"
    );
    assert_eq!((&told["policy"], &told["slot"], &told["tier"]), (&Value::Null, &Value::Null, &Value::Null), "{told}");
    expected[1] += 1;

    // By interface, and by --interface whatever the source says.
    let told = udp(scene, &lab.client3, CLIENT3, 41_000)?;
    assert_eq!(
        (&told["rule"], &told["policy"], &told["uplink"]),
        (&json!("other-lan"), &json!("backup"), &json!("isp3")),
        "{told}"
    );
    expected[2] += 1;
    let packet = ["udp", &end(CLIENT1, 41_000), &end(SERVER, 7000)];
    assert_eq!(explained(scene, &packet)?["rule"], Value::Null);
    assert_eq!(explained(scene, &[&packet[..], &["--interface", "lan1"]].concat())?["rule"], "other-lan");

    sources_stick(scene, &mut expected)?;

    // By code point, and by a protocol without ports: the identifier is the sender's choice, and the rule does not care.
    let packet = ["icmp", &CLIENT1.to_string(), &SERVER.to_string(), "--dscp", "46"];
    let told = explained(scene, &packet)?;
    assert_eq!((&told["rule"], &told["uplink"]), (&json!("voice"), &json!("isp2")), "{told}");
    lab.client1.run(&["ping", "-c", "1", "-W", "5", "-Q", "184", &SERVER.to_string()])?;
    let pinged = flow(scene, "icmp", CLIENT1, None)?;
    assert_eq!((&told["uplink"], &told["nat_src"]), (&pinged["uplink"], &pinged["nat_src"]));
    expected[3] += 1;

    // The machine itself: no interface, so no rule that asks for one.
    for sport in 42_000..42_008 {
        let src = lab.uplink(0)?.address;
        let told = udp(scene, &lab.router, src, sport)?;
        assert_eq!(
            (&told["host"], &told["interface"], &told["policy"]),
            (&json!(true), &json!("wan1"), &json!("default")),
            "{told}"
        );
        expected[7] += 1;
    }
    // Bound to an address, it is not steered.
    let src = lab.uplink(1)?.address;
    let told = explained(scene, &["udp", &end(src, 42_100), &end(SERVER, 7000)])?;
    assert_eq!(
        (&told["verdict"], &told["uplink"], &told["rule"]),
        (&json!("host"), &json!("isp2"), &Value::Null),
        "{told}"
    );
    let sent = UdpFlow::open_bound(&lab.router, SocketAddrV4::new(src, 42_100), scene.udp.address())?;
    assert_eq!(sent.seen, SocketAddrV4::new(src, 42_100));
    let told = explained(scene, &["udp", &end(ROUTER_LAN0, 1), &end(CLIENT1, 1)])?;
    assert_eq!((&told["verdict"], &told["uplink"]), (&json!("pass_not_for_uplink"), &Value::Null), "{told}");
    says(&told, "lan0");

    without_uplinks(scene, &mut expected)?;
    tiers(scene, &mut expected)?;
    assert_eq!(hits(scene)?, expected);
    sets_and_rules(scene)
}

/// A source keeps what it got, without slots.
fn sources_stick(scene: &Scene, expected: &mut [u64; 8]) -> Result<()> {
    let (first, _first) = tcp(scene, &scene.lab.client1, CLIENT1, 43_000)?;
    assert_eq!(
        (&first["rule"], &first["policy"], &first["sticky"]),
        (&json!("bank"), &json!("one-source"), &json!(false)),
        "{first}"
    );
    assert_eq!(policy(scene, "one-source")?["sources"], 1);
    let (second, _second) = tcp(scene, &scene.lab.client1, CLIENT1, 43_001)?;
    assert_eq!(
        (&second["sticky"], &second["slot"], &second["tier"]),
        (&json!(true), &Value::Null, &json!(0)),
        "{second}"
    );
    assert_eq!(first["uplink"], second["uplink"]);
    // Whatever the slots say from now on.
    let uplink = first["uplink"].as_str().context("an uplink")?;
    scene.mhd.ctl(&["drain", uplink])?;
    let packet = ["tcp", &end(CLIENT1, 43_002), &end(SERVER, 7000)];
    let told = explained(scene, &packet)?;
    assert_eq!(told["sticky"], false, "a drained uplink is kept: {told}");
    assert_ne!(told["uplink"], uplink);
    says(&told, &format!("{uplink} is draining"));
    scene.mhd.ctl(&["undrain", uplink])?;
    assert_eq!(explained(scene, &packet)?["uplink"], uplink);
    expected[0] += 2;
    Ok(())
}

/// What needs no uplink.
fn without_uplinks(scene: &Scene, expected: &mut [u64; 8]) -> Result<()> {
    for dst in [CLIENT3, ROUTER_LAN0] {
        let told = explained(scene, &["tcp", &end(CLIENT1, 1), &end(dst, 80)])?;
        assert_eq!(told["verdict"], "pass_not_for_uplink", "{told}");
        assert_eq!(
            (&told["rule"], &told["uplink"], &told["nat_src"]),
            (&Value::Null, &Value::Null, &Value::Null),
            "{told}"
        );
    }
    let told = explained(scene, &["tcp", &end(SERVER, 80), &end(CLIENT1, 1), "--interface", "wan1"])?;
    assert_eq!(told["verdict"], "pass_no_flow", "{told}");
    let client = &scene.lab.client1;
    let count = |name: &str| -> Result<u64> {
        let stats = scene.mhd.ctl_json(&["stats"])?;
        Ok(["verdicts", "drops"].iter().filter_map(|group| stats[group][name].as_u64()).sum())
    };
    for (port, name, rule, place) in
        [(7009, "rule_reject", "refused", 4), (7010, "rule_drop", "lost", 5), (7011, "pass_direct", "left", 6)]
    {
        let told = explained(scene, &["udp", &end(CLIENT1, 44_000), &end(SERVER, port)])?;
        assert_eq!(
            (&told["verdict"], &told["rule"], &told["uplink"]),
            (&json!(name), &json!(rule), &Value::Null),
            "{told}"
        );
        let before = count(name)?;
        DatagramSocket::bind(client, SocketAddrV4::new(CLIENT1, 44_000))?
            .send(SocketAddrV4::new(SERVER, port), "hello")?;
        wait_until(name, SETTLE_TIMEOUT, || Ok(count(name)? == before + 1))?;
        expected[place] += 1;
    }
    Ok(())
}

/// Tiers take over from each other, and what is told follows.
fn tiers(scene: &Scene, expected: &mut [u64; 8]) -> Result<()> {
    let client = &scene.lab.client2;
    for uplink in ["isp1", "isp2"] {
        scene.mhd.ctl(&["health", uplink, "down"])?;
    }
    assert_eq!(policy(scene, "default")?["active_tier"], 1);
    let told = udp(scene, client, CLIENT2, 45_000)?;
    assert_eq!((&told["tier"], &told["uplink"]), (&json!(1), &json!("isp3")), "{told}");
    says(&told, "tier 0 gets none: isp1 is down");
    expected[7] += 1;
    scene.mhd.ctl(&["health", "isp3", "down"])?;
    let told = explained(scene, &["udp", &end(CLIENT2, 45_001), &end(SERVER, 7000)])?;
    assert_eq!(
        (&told["verdict"], &told["policy"], &told["uplink"]),
        (&json!("no_uplink"), &json!("default"), &Value::Null),
        "{told}"
    );
    assert_eq!((&told["tier"], &told["nat_src"]), (&Value::Null, &Value::Null), "{told}");
    let told = explained(scene, &["udp", &end(CLIENT2, 5001), &end(SERVER, 7002)])?;
    assert_eq!((&told["verdict"], &told["rule"]), (&json!("no_uplink"), &json!("rule 2")), "{told}");
    says(&told, "isp3 is down");
    for uplink in ["isp1", "isp2", "isp3"] {
        scene.mhd.ctl(&["health", uplink, "auto"])?;
    }
    let told = udp(scene, client, CLIENT2, 45_002)?;
    assert_eq!(told["tier"], 0, "{told}");
    expected[7] += 1;
    Ok(())
}

fn sets_and_rules(scene: &Scene) -> Result<()> {
    let sets = scene.mhd.ctl_json(&["sets"])?;
    assert_eq!(
        (&sets[0]["name"], &sets[0]["prefixes"], &sets[0]["rules"]),
        (&json!("banks"), &json!(3), &json!(["bank"]))
    );
    assert!(sets[0]["file"].as_str().is_some_and(|file| file.ends_with("/banks.txt")), "{sets}");
    let containing = |address: &str| scene.mhd.ctl_json(&["sets", "--contains", address]);
    assert_eq!(containing("192.0.2.10")?[0]["prefix"], "192.0.2.10/32");
    assert_eq!(containing("192.0.2.9")?[0]["prefix"], "192.0.2.0/28");
    assert_eq!(containing("192.0.2.16")?, json!([]));

    let rules = scene.mhd.ctl_json(&["rules"])?;
    assert_eq!(
        (&rules[0]["index"], &rules[0]["name"], &rules[0]["use"]),
        (&json!(1), &json!("bank"), &json!("policy:one-source"))
    );
    assert_eq!((&rules[0]["to"], &rules[0]["to_port"]), (&json!(["set:banks"]), &json!(["7000-7001"])));
    assert_eq!((&rules[7]["index"], &rules[7]["use"]), (&Value::Null, &json!("policy:default")));
    let default = policy(scene, "default")?;
    assert_eq!((&default["default"], &default["hash"], &default["rules"]), (&json!(true), &json!("flow"), &json!([])));
    assert_eq!(default["tiers"][0][0]["weight"], 2);
    assert_eq!(policy(scene, "backup")?["rules"], json!(["other-lan"]));

    // Other rules come into force, and are told at once; those that stay keep their counts.
    let before = hits(scene)?;
    let config = std::fs::read_to_string(scene.mhd.config())?;
    scene.mhd.write_config(&config.replace(
        "[[rule]]\nname = \"bank\"",
        "[[rule]]\nfrom = \"10.0.0.1\"\nuse = \"drop\"\n\n[[rule]]\nname = \"bank\"",
    ))?;
    scene.mhd.ctl(&["reload"])?;
    assert_eq!(hits(scene)?, [&[0], &before[..]].concat());
    let told = explained(scene, &["udp", &end(CLIENT2, 5002), &end(SERVER, 7000)])?;
    assert_eq!(told["rule"], "rule 3", "{told}");
    let text = scene.mhd.ctl(&["explain", "udp", &end(CLIENT2, 45_003), &end(SERVER, 7010)])?;
    assert!(
        text.starts_with("verdict   rule_drop\nflow      new\nrule      rule 7 (lost)\n\n 1. it comes in by lan0"),
        "{text}"
    );
    let text = scene.mhd.ctl(&["rules"])?;
    assert_eq!(text.lines().nth(2).and_then(|line| line.split_whitespace().nth(1)), Some("bank"), "{text}");
    let text = scene.mhd.ctl(&["policies"])?;
    assert_eq!(text.lines().filter(|line| line.starts_with("default ")).count(), 3, "{text}");

    // Without a source port: one of those that clients use, and none that a flow has.
    let rule = "[[rule]]\nname = \"clients\"\nprotocol = \"udp\"\nfrom_port = [\"1024-65535\"]\nto_port = 7000\nuse = \"uplink:isp2\"\n\n";
    scene
        .mhd
        .write_config(&config.replace("[[rule]]\nname = \"bank\"", &format!("{rule}[[rule]]\nname = \"bank\"")))?;
    scene.mhd.ctl(&["reload"])?;
    for port in [49_152, 49_153] {
        let told = explained(scene, &["udp", &CLIENT2.to_string(), &end(SERVER, 7000)])?;
        assert_eq!(
            (&told["rule"], &told["existing"], &told["nat_sport"]),
            (&json!("clients"), &json!(false), &Value::Null),
            "{told}"
        );
        says(&told, &format!("{port} stands for it"));
        udp(scene, &scene.lab.client2, CLIENT2, port)?;
    }
    Ok(())
}

fn wrong_questions_get_one_line(scene: &mut Scene) -> Result<()> {
    let (src, dst) = ("192.168.1.11:1", "192.0.2.10:443");
    for (arguments, word) in [
        (&["tcp", src, dst, "--interface", "eth9"][..], "those are lan0, lan1, wan1, wan2, wan3"),
        (&["tpc", src, dst], "tpc"),
        (&["tcp", src, "192.0.2.10"], "destination port"),
        (&["icmp", src, dst], "no destination port"),
        (&["47", src, "192.0.2.10"], "no ports"),
        (&["tcp", "192.168.1.300:1", dst], "192.168.1.300:1"),
        (&["tcp", "[2001:db8::1]:1", dst], "IPv6"),
        (&["tcp", src, dst, "--dscp", "64"], "63"),
        (&["tcp", "198.51.100.77:1", dst], "reaches it by wan1; name the interface with --interface"),
    ] {
        let output = scene.mhd.ctl_output(&[&["explain"], arguments].concat())?;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{arguments:?}: {output:?}");
        assert!(output.stderr.contains(word) && output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
    assert_eq!(scene.mhd.ctl_output(&["explain", "tcp", src])?.status.code(), Some(2));
    Ok(())
}

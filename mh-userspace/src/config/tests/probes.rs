//! `[uplink.NAME.probe]`: what targets and levels mean, defaults, and every fault with its place and words.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::super::{Check, Http, Limit, Probe, ProbeTarget, Share};
use super::{ONE_UPLINK, after, config, warned};

const TARGET: &str = "targets = [\"icmp://192.0.2.1\"]";

/// The probe of a text put after `[uplink.isp1.probe]`.
fn probe(lines: &str) -> Probe {
    config(&format!("{ONE_UPLINK}[uplink.isp1.probe]\n{lines}")).uplinks[0].probe.clone().unwrap()
}

fn target(url: &str) -> ProbeTarget {
    url.parse().unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn what_may_be_left_out_has_its_default() {
    let defaults = Probe {
        targets: vec![target("icmp://192.0.2.1")],
        quorum: 1,
        interval: ms(500),
        timeout: ms(400),
        down: 3,
        up: 5,
        loss: None,
        latency: None,
    };
    assert_eq!(probe(TARGET), defaults);
    let limits = probe(&format!("{TARGET}\nloss = {{ down = \"20%\" }}\nlatency = {{ warn = \"200ms\" }}"));
    assert_eq!(limits.loss, Some(Limit { window: 40, warn: None, down: Some("20%".parse().unwrap()) }));
    assert_eq!(limits.latency, Some(Limit { window: 40, warn: Some(ms(200)), down: None }));
    // Without a timeout of its own, it follows the interval.
    assert_eq!(probe(&format!("{TARGET}\ninterval = \"100ms\"")).timeout, ms(80));
    assert_eq!(probe(&format!("{TARGET}\ninterval = \"10ms\"")).timeout, ms(8));
    assert_eq!(probe(&format!("{TARGET}\ninterval = \"1h\"")).timeout, ms(60_000));
    assert_eq!(probe(&format!("{TARGET}\ntimeout = \"8s\"")).timeout, ms(8000));
}

#[test]
fn quorums() {
    let three = "targets = [\"icmp://192.0.2.1\", \"icmp://192.0.2.2\", \"icmp://192.0.2.3\"]";
    for (quorum, expected) in [("\"any\"", 1), ("\"all\"", 3), ("2", 2), ("3", 3)] {
        assert_eq!(probe(&format!("{three}\nquorum = {quorum}")).quorum, expected, "{quorum}");
    }
}

#[test]
fn targets() {
    let address = Ipv4Addr::new(192, 0, 2, 9);
    let http = |tls, port, name: Option<&str>, path: &str| {
        Check::Http(Http { tls, address, port, name: name.map(str::to_owned), path: path.to_owned() })
    };
    let dns = |port, name: &str| Check::Dns { address, port, name: name.to_owned() };
    for (url, check) in [
        ("icmp://192.0.2.9", Check::Icmp { address }),
        ("ICMP://192.0.2.9/", Check::Icmp { address }),
        ("tcp://192.0.2.9:443", Check::Tcp { address, port: 443 }),
        ("http://192.0.2.9", http(false, 80, None, "/")),
        ("http://192.0.2.9/health", http(false, 80, None, "/health")),
        ("http://192.0.2.9:8080/a/b?c=d", http(false, 8080, None, "/a/b?c=d")),
        ("http://192.0.2.9?c", http(false, 80, None, "/?c")),
        ("http://Portal.example@192.0.2.9/", http(false, 80, Some("portal.example"), "/")),
        ("https://192.0.2.9/", http(true, 443, None, "/")),
        ("https://www.example.org@192.0.2.9:8443/up", http(true, 8443, Some("www.example.org"), "/up")),
        ("dns://192.0.2.9/example.org", dns(53, "example.org")),
        ("dns://192.0.2.9:5353/_sip._udp.Example.org.", dns(5353, "_sip._udp.example.org")),
    ] {
        let target = target(url);
        assert_eq!(target.check(), &check, "{url}");
        assert_eq!(target.address(), address);
        assert_eq!(target.to_string(), url);
    }
}

#[test]
fn what_is_no_target() {
    for (url, expected) in [
        ("192.0.2.1", "it has no scheme; put icmp://, tcp://, http://, https:// or dns:// in front"),
        ("", "it has no scheme; put icmp://, tcp://, http://, https:// or dns:// in front"),
        ("ping://192.0.2.1", "there is no probe \"ping\"; use icmp, tcp, http, https or dns"),
        (
            "https://example.org/",
            "\"example.org\" is no IPv4 address; write the address, since a name would be resolved by whichever uplink works",
        ),
        (
            "icmp://",
            "\"\" is no IPv4 address; write the address, since a name would be resolved by whichever uplink works",
        ),
        ("icmp://2001:db8::1", "IPv6 is not supported by this version of mh yet; write an IPv4 address"),
        ("tcp://[2001:db8::1]:80", "IPv6 is not supported by this version of mh yet; write an IPv4 address"),
        ("icmp://224.0.0.1", "224.0.0.1 is a multicast address, not one machine's; write the address of a host"),
        ("icmp://127.0.0.1", "127.0.0.1 is a loopback address, not one machine's; write the address of a host"),
        ("icmp://0.0.0.0", "0.0.0.0 is the unspecified address, not one machine's; write the address of a host"),
        ("tcp://192.0.2.1", "it has no port; add one, such as tcp://192.0.2.1:443"),
        ("tcp://192.0.2.1:0", "\"0\" is no port; write a number from 1 to 65535"),
        ("tcp://192.0.2.1:65536", "\"65536\" is no port; write a number from 1 to 65535"),
        ("tcp://192.0.2.1:", "\"\" is no port; write a number from 1 to 65535"),
        ("tcp://192.0.2.1:80/x", "nothing may follow the host; remove \"/x\""),
        ("icmp://192.0.2.1:7", "ICMP has no ports; write icmp://192.0.2.1"),
        ("icmp://192.0.2.1?x", "nothing may follow the host; remove \"?x\""),
        ("dns://192.0.2.1", "it has no name to ask for; add one, such as dns://192.0.2.1/example.org"),
        ("dns://192.0.2.1/", "it has no name to ask for; add one, such as dns://192.0.2.1/example.org"),
        (
            "dns://192.0.2.1/a..b",
            "\"a..b\" is no domain name: labels of 1 to 63 letters, digits, - and _ with dots between them, 253 in all",
        ),
        (
            "https://a b@192.0.2.1/",
            "\"a b\" is no domain name: labels of 1 to 63 letters, digits, - and _ with dots between them, 253 in all",
        ),
        ("tcp://a@192.0.2.1:80", "a name in front of the address is for http and https only; remove \"a@\""),
        (
            "http://192.0.2.1/a b",
            "its path may have ASCII characters without blanks and # only, and 1024 of them; encode others as %XX",
        ),
        (
            "http://192.0.2.1/#a",
            "its path may have ASCII characters without blanks and # only, and 1024 of them; encode others as %XX",
        ),
    ] {
        assert_eq!(url.parse::<ProbeTarget>().unwrap_err().to_string(), expected, "{url}");
    }
    let label = |length: usize| format!("dns://192.0.2.1/{}.org", "a".repeat(length));
    assert!(label(63).parse::<ProbeTarget>().is_ok() && label(64).parse::<ProbeTarget>().is_err());
    let path = |length: usize| format!("http://192.0.2.1/{}", "a".repeat(length - 1));
    assert!(path(1024).parse::<ProbeTarget>().is_ok() && path(1025).parse::<ProbeTarget>().is_err());
}

#[test]
fn shares() {
    for (text, basis_points, shown) in [
        ("5%", 500, "5%"),
        ("0.25%", 25, "0.25%"),
        ("12.50%", 1250, "12.5%"),
        ("0.01%", 1, "0.01%"),
        ("100%", 10_000, "100%"),
    ] {
        let share: Share = text.parse().unwrap();
        assert_eq!((share.basis_points(), share.to_string().as_str()), (basis_points, shown));
    }
    for text in ["", "%", "5", "0%", "0.00%", "100.01%", "-5%", "+5%", "5 %", ".5%", "5.%", "0.001%", "99999999%", "é%"]
    {
        assert!(text.parse::<Share>().is_err(), "{text}");
    }
}

/// Asserts the faults of lines put after `[uplink.isp1.probe]`; the first is line 5.
#[track_caller]
fn faulty(lines: &str, expected: &[&str]) {
    after(&format!("[uplink.isp1.probe]\n{lines}"), expected);
}

#[test]
fn faults_of_targets_and_quorum() {
    let missing = "[uplink.isp1.probe] has no targets; add targets = [\"icmp://ADDRESS\"]";
    faulty("", &[&format!("4:14: {missing}")]);
    after("probe = {}", &[&format!("4:1: {missing}")]);
    after("probe = 1", &["4:9: uplink.isp1.probe must be a table, [uplink.isp1.probe], not a whole number 1"]);
    let list = "targets must be a list of URLs such as [\"icmp://192.0.2.1\", \"tcp://192.0.2.9:443\"], not";
    faulty("targets = []", &[&format!("5:11: {list} an empty list")]);
    faulty("targets = \"icmp://192.0.2.1\"", &[&format!("5:11: {list} a string \"icmp://192.0.2.1\"")]);
    let urls = "targets must be URLs such as \"icmp://192.0.2.1\", \"tcp://192.0.2.9:443\", \"http://192.0.2.9/health\" or \
                \"dns://192.0.2.53/example.org\", not";
    faulty(
        "targets = [1, \"icmp://192.0.2.1\", \"udp://192.0.2.1\",\n\"tcp://192.0.2.1\"]\nquorum = 3",
        &[
            &format!("5:12: {urls} a whole number 1"),
            &format!("5:35: {urls} \"udp://192.0.2.1\": there is no probe \"udp\"; use icmp, tcp, http, https or dns"),
            &format!("6:1: {urls} \"tcp://192.0.2.1\": it has no port; add one, such as tcp://192.0.2.1:443"),
        ],
    );
    let many: Vec<String> = (1..=65).map(|last| format!("\"icmp://192.0.2.{last}\"")).collect();
    faulty(
        &format!("targets = [{},\n{}]", many[..64].join(","), many[64]),
        &["6:1: targets has 65 elements; keep at most 64 for one uplink"],
    );
    let wants = "quorum must be a whole number from 1 to 64, \"any\" or \"all\", not";
    for (quorum, expected) in [
        ("0", format!("6:10: {wants} 0")),
        ("65", format!("6:10: {wants} 65")),
        ("\"most\"", format!("6:10: {wants} \"most\"")),
        ("[1]", format!("6:10: {wants} a list")),
        ("2", "6:10: quorum = 2 is more than the 1 target; lower it, or add targets".to_owned()),
    ] {
        faulty(&format!("{TARGET}\nquorum = {quorum}"), &[&expected]);
    }
    // The same asked twice counts once.
    let twice = "[uplink.isp1.probe]\ntargets = [\"http://192.0.2.1\", \"http://192.0.2.1:80/\"]";
    warned(twice, &["5:32: http://192.0.2.1:80/ is in targets twice; keep one of them"]);
    after(&format!("{twice}\nquorum = 2"), &["6:10: quorum = 2 is more than the 1 target; lower it, or add targets"]);
}

#[test]
fn faults_of_times_and_counts() {
    let interval = "interval must be a duration in quotes from \"10ms\" to \"1h\", such as \"500ms\", not";
    let timeout = "timeout must be a duration in quotes from \"1ms\" to \"1m\", such as \"400ms\", not";
    let rounds = "must be a whole number from 1 to 1000, not";
    for (line, expected) in [
        ("interval = \"9ms\"", format!("6:12: {interval} \"9ms\"")),
        ("interval = \"61m\"", format!("6:12: {interval} \"61m\"")),
        ("interval = 500", format!("6:12: {interval} a whole number 500")),
        ("interval = \"0s\"", format!("6:12: {interval} \"0s\"")),
        ("timeout = \"0ms\"", format!("6:11: {timeout} \"0ms\"")),
        ("timeout = \"61s\"", format!("6:11: {timeout} \"61s\"")),
        (
            "timeout = \"8001ms\"",
            "6:11: timeout = 8.001s is more than 16 intervals of 500ms; lower it to 8s, or raise interval".to_owned(),
        ),
        ("down = 0", format!("6:8: down {rounds} 0")),
        ("down = 1001", format!("6:8: down {rounds} 1001")),
        ("up = 0", format!("6:6: up {rounds} 0")),
        ("up = \"5\"", format!("6:6: up {rounds} a string \"5\"")),
        (
            "tiemout = \"1s\"",
            "6:1: unknown key \"tiemout\" in [uplink.isp1.probe]; did you mean \"timeout\"?".to_owned(),
        ),
    ] {
        faulty(&format!("{TARGET}\n{line}"), &[&expected]);
    }
    faulty(
        &format!("{TARGET}\ninterval = \"100ms\"\ntimeout = \"2s\""),
        &["7:11: timeout = 2s is more than 16 intervals of 100ms; lower it to 1.6s, or raise interval"],
    );
    // Nothing is said about a timeout against an interval that is faulty itself.
    faulty(&format!("{TARGET}\ninterval = 1\ntimeout = \"30s\""), &[&format!("6:12: {interval} a whole number 1")]);
}

#[test]
fn faults_of_levels() {
    let share = "must be a percentage in quotes from \"0.01%\" to \"100%\", such as \"5%\", not";
    let latency = "must be a duration in quotes from \"1ms\" to \"1m\", such as \"200ms\", not";
    for (line, expected) in [
        (
            "loss = 1",
            "6:8: uplink.isp1.probe.loss must be a table, [uplink.isp1.probe.loss], not a whole number 1".to_owned(),
        ),
        ("loss = {}", "6:1: [uplink.isp1.probe.loss] has no level; add warn or down, or remove it".to_owned()),
        (
            "latency = { window = 5 }",
            "6:1: [uplink.isp1.probe.latency] has no level; add warn or down, or remove it".to_owned(),
        ),
        (
            "loss = { window = 0, warn = \"5%\" }",
            "6:19: window must be a whole number from 1 to 1000, not 0".to_owned(),
        ),
        ("loss = { warn = 5 }", format!("6:17: warn {share} a whole number 5")),
        ("loss = { warn = \"5\" }", format!("6:17: warn {share} \"5\"")),
        ("loss = { down = \"0%\" }", format!("6:17: down {share} \"0%\"")),
        (
            "loss = { warn = \"20%\", down = \"5%\" }",
            "6:17: loss.warn = 20% is above down = 5%; swap them, or lower warn".to_owned(),
        ),
        ("latency = { warn = \"5%\" }", format!("6:20: warn {latency} \"5%\"")),
        ("latency = { down = \"0s\" }", format!("6:20: down {latency} \"0s\"")),
        (
            "latency = { down = \"200ms\", warn = \"201ms\" }",
            "6:36: latency.warn = 201ms is above down = 200ms; swap them, or lower warn".to_owned(),
        ),
        (
            "loss = { wran = \"5%\" }",
            "6:10: unknown key \"wran\" in [uplink.isp1.probe.loss]; did you mean \"warn\"?".to_owned(),
        ),
    ] {
        faulty(&format!("{TARGET}\n{line}"), &[&expected]);
    }
    warned(
        &format!("[uplink.isp1.probe]\n{TARGET}\nlatency = {{ warn = \"400ms\", down = \"401ms\" }}"),
        &[
            "6:36: a latency of 401ms is never reached: answers count as lost after the timeout of 400ms; lower it, or raise \
           timeout",
        ],
    );
}

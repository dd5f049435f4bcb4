//! What values mean: defaults, durations, interface patterns; files and how faults of files are shown.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use super::super::{
    AddressRange, Config, Damping, Datapath, Filtering, Forward, ForwardProtocol, HashMode, Hooks, InterfacePattern,
    Limits, LoadError, Member, Mode, MssClamp, Nat, OnDown, Policy, PortRange, Timeouts, Uplink, Weight, check, load,
    warning_lines,
};
use super::{ONE_UPLINK, config, faults, loaded, tiers};

#[test]
fn everything_that_may_be_left_out_has_its_default() {
    assert_eq!(
        config(ONE_UPLINK),
        Config {
            lan: vec!["lan0".parse().unwrap()],
            datapath: Datapath {
                mode: Mode::Auto,
                conntrack_entries: 1_048_576,
                bindings: 262_144,
                mark_mask: 0x00ff_0000,
                host_traffic: true,
            },
            uplinks: vec![Uplink {
                name: "isp1".to_owned(),
                interface: "wan1".to_owned(),
                gateway: None,
                addresses: vec![],
                weight: Weight::Fixed(1),
                capacity: None,
                ports: PortRange { first: 1024, last: 65535 },
                on_down: OnDown::Reset,
                mss_clamp: MssClamp::Auto,
                nat: true,
                damping: Damping::default(),
                probe: None,
            }],
            policies: vec![Policy {
                name: "default".to_owned(),
                tiers: vec![vec![Member { uplink: 0, weight: Weight::Fixed(1) }]],
                own_weights: true,
                hash: HashMode::Flow,
                sticky: Duration::ZERO,
                spill: None,
            }],
            rules: Vec::new(),
            sets: Vec::new(),
            forwards: vec![],
            nat: Nat { filtering: Filtering::EndpointIndependent },
            limits: Limits { bindings_per_source: 16_384, new_flows_per_source: 5000 },
            timeouts: Timeouts {
                udp: Duration::from_secs(300),
                tcp_established: Duration::from_secs(7440),
                tcp_transitory: Duration::from_secs(240),
                icmp: Duration::from_secs(60),
            },
            hooks: Hooks { on_change: None, timeout: Duration::from_secs(10) },
        }
    );
}

#[test]
fn uplinks_keep_the_order_of_the_file() {
    let text = "lan = [\"lan0\"]\n[policy.default]\ntiers = [{ a = 1, z = 2 }, { m = 3 }]\n[uplink.z]\ninterface = \"wan1\"\n[uplink.m]\n\
                interface = \"wan2\"\n[uplink.a]\ninterface = \"wan3\"\n";
    let config = config(text);
    let names: Vec<&str> = config.uplinks.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["z", "m", "a"]);
    assert_eq!(tiers(&config), [vec![(2, Weight::Fixed(1)), (0, Weight::Fixed(2))], vec![(1, Weight::Fixed(3))]]);
    assert_eq!(config.uplink_index("m"), Some(1));
    assert_eq!(config.uplink_index("x"), None);
    assert!(config.is_lan("lan0") && !config.is_lan("wan1"));
}

#[test]
fn every_way_to_write_a_table_is_the_same() {
    let dotted = "lan = [\"lan0\"]\nuplink.isp1.interface = \"wan1\"\nuplink.isp1.weight = 3\ndatapath.mode = \"tc\"\n";
    let inline =
        "lan = [\"lan0\"]\nuplink = { isp1 = { interface = \"wan1\", weight = 0x3 } }\ndatapath = { mode = \"tc\" }\n";
    let headers = "lan = [\"lan0\"]\n[uplink.isp1]\ninterface = 'wan1'\nweight = +3\n[datapath]\nmode = \"tc\"\n";
    assert_eq!(config(dotted), config(inline));
    assert_eq!(config(dotted), config(headers));
}

#[test]
fn what_damping_leaves_out_has_its_default() {
    let damping = |text: &str| config(&format!("{ONE_UPLINK}damping = {text}")).uplinks[0].damping;
    let default = Damping::default();
    assert_eq!(damping("{ losses = 0 }"), Damping { losses: 0, ..default });
    assert_eq!(damping("{ within = \"1m\" }"), Damping { within: Duration::from_secs(60), ..default });
    assert_eq!(damping("{ hold = \"1s\" }"), Damping { hold: Duration::from_secs(1), ..default });
}

#[test]
fn settings_of_the_datapath_and_of_uplinks() {
    let config = config(&format!("{ONE_UPLINK}mss_clamp = \"auto\"\n[datapath]\nhost_traffic = false"));
    assert_eq!(config.uplinks[0].mss_clamp, MssClamp::Auto);
    assert!(!config.datapath.host_traffic);
}

fn range(first: [u8; 4], count: u32) -> AddressRange {
    AddressRange { first: first.into(), count }
}

#[test]
fn an_address_may_be_a_pool() {
    for (written, read) in [
        ("\"10.0.0.1\"", vec![range([10, 0, 0, 1], 1)]),
        ("[\"10.0.0.1\"]", vec![range([10, 0, 0, 1], 1)]),
        ("\"10.0.0.1/32\"", vec![range([10, 0, 0, 1], 1)]),
        ("\"198.51.100.8/30\"", vec![range([198, 51, 100, 8], 4)]),
        ("[\"198.51.100.8/30\", \"198.51.100.2\"]", vec![range([198, 51, 100, 8], 4), range([198, 51, 100, 2], 1)]),
        ("[\"10.0.0.0/31\", \"10.0.0.2/31\"]", vec![range([10, 0, 0, 0], 2), range([10, 0, 0, 2], 2)]),
        ("\"10.0.16.0/20\"", vec![range([10, 0, 16, 0], 4096)]),
        ("[\"10.0.16.0/21\", \"10.0.24.0/21\"]", vec![range([10, 0, 16, 0], 2048), range([10, 0, 24, 0], 2048)]),
    ] {
        assert_eq!(config(&format!("{ONE_UPLINK}address = {written}")).uplinks[0].addresses, read, "{written}");
    }
    let sixteen: Vec<String> = (1..=16).map(|host| format!("\"10.0.0.{host}\"")).collect();
    assert_eq!(
        config(&format!("{ONE_UPLINK}address = [{}]", sixteen.join(", "))).uplinks[0].addresses,
        (1..=16).map(|host| range([10, 0, 0, host], 1)).collect::<Vec<_>>()
    );
}

#[test]
fn address_ranges() {
    let four = range([198, 51, 100, 8], 4);
    assert_eq!(four.last(), Ipv4Addr::new(198, 51, 100, 11));
    assert!(four.contains(four.first) && four.contains(four.last()));
    assert!(!four.contains([198, 51, 100, 7].into()) && !four.contains([198, 51, 100, 12].into()));
    assert_eq!(range([255, 255, 255, 254], 1).last(), Ipv4Addr::new(255, 255, 255, 254));
    for (range, text) in
        [(four, "198.51.100.8/30"), (range([10, 0, 0, 1], 1), "10.0.0.1"), (range([10, 0, 0, 0], 4096), "10.0.0.0/20")]
    {
        assert_eq!(range.to_string(), text);
    }
}

#[test]
fn forwards() {
    use ForwardProtocol::{Tcp, Udp};
    let two = format!("{ONE_UPLINK}[uplink.isp2]\ninterface = \"wan2\"\n[uplink.isp3]\ninterface = \"wan3\"\n");
    let to = Ipv4Addr::new(192, 168, 1, 20);
    let ports = |first, last| PortRange { first, last };
    for (written, uplinks, protocols, ports, to_port) in [
        (
            "protocol = \"tcp\"\nport = \"8443\"\nto = \"192.168.1.20:443\"",
            vec![0, 1, 2],
            vec![Tcp],
            ports(8443, 8443),
            443,
        ),
        ("protocol = \"udp\"\nport = 8443\nto = \"192.168.1.20\"", vec![0, 1, 2], vec![Udp], ports(8443, 8443), 8443),
        (
            "uplinks = [\"isp3\", \"isp1\"]\nprotocol = [\"udp\", \"tcp\"]\nport = \"8000-8010\"\nto = \"192.168.1.20\"",
            vec![2, 0],
            vec![Udp, Tcp],
            ports(8000, 8010),
            8000,
        ),
        (
            "protocol = [\"tcp\"]\nport = \"1-11\"\nto = \"192.168.1.20:65525\"",
            vec![0, 1, 2],
            vec![Tcp],
            ports(1, 11),
            65_525,
        ),
        (
            "protocol = \"tcp\"\nport = 65535\nto = \"192.168.1.20:1\"",
            vec![0, 1, 2],
            vec![Tcp],
            ports(65_535, 65_535),
            1,
        ),
    ] {
        let config = config(&format!("{two}[[forward]]\n{written}"));
        assert_eq!(config.forwards, [Forward { uplinks, protocols, ports, to, to_port }], "{written}");
    }
    // The same port on another uplink, by another protocol, and its neighbours are others.
    let others = "[[forward]]\nuplinks = [\"isp1\"]\nprotocol = \"tcp\"\nport = 80\nto = \"10.0.0.1\"\n\
                  [[forward]]\nuplinks = [\"isp2\"]\nprotocol = \"tcp\"\nport = 80\nto = \"10.0.0.2\"\n\
                  [[forward]]\nprotocol = \"udp\"\nport = 80\nto = \"10.0.0.1\"\n\
                  [[forward]]\nprotocol = \"tcp\"\nport = \"81-90\"\nto = \"10.0.0.1:80\"\n";
    assert_eq!(config(&format!("{two}{others}")).forwards.len(), 4);
    assert_eq!(config(&format!("forward = []\n{ONE_UPLINK}")).forwards, []);
    let inline = format!("forward = [{{ protocol = \"tcp\", port = 80, to = \"10.0.0.1\" }}]\n{ONE_UPLINK}");
    assert_eq!(config(&inline).forwards.len(), 1);
}

#[test]
fn as_many_ports_as_may_be_are_forwarded() {
    let text = format!(
        "{ONE_UPLINK}[uplink.isp2]\ninterface = \"wan2\"\n[[forward]]\nprotocol = [\"tcp\", \"udp\"]\nport = \"1001-2024\"\n\
         to = \"10.0.0.1\""
    );
    assert_eq!(config(&text).forwards[0].ports.count(), 1024);
}

#[test]
fn nat_and_limits() {
    for (word, filtering) in
        [("endpoint-independent", Filtering::EndpointIndependent), ("address-dependent", Filtering::AddressDependent)]
    {
        assert_eq!(config(&format!("{ONE_UPLINK}[nat]\nfiltering = \"{word}\"")).nat.filtering, filtering);
    }
    for (bindings_per_source, new_flows_per_source) in [(0, 0), (1, 1), (16_777_216, 10_000_000)] {
        let text = format!(
            "{ONE_UPLINK}[limits]\nbindings_per_source = {bindings_per_source}\nnew_flows_per_source = {new_flows_per_source}"
        );
        assert_eq!(config(&text).limits, Limits { bindings_per_source, new_flows_per_source });
    }
    assert_eq!(config(&format!("{ONE_UPLINK}[nat]\n[limits]")), config(ONE_UPLINK));
}

#[test]
fn ports() {
    for (text, first, last) in [("1024-65535", 1024, 65535), ("5000", 5000, 5000), ("1 - 2", 1, 2)] {
        let config = config(&format!("{ONE_UPLINK}ports = \"{text}\""));
        let ports = config.uplinks[0].ports;
        assert_eq!(ports, PortRange { first, last });
        assert!(ports.contains(first) && ports.contains(last) && !ports.contains(first - 1));
    }
}

#[test]
fn mark_masks() {
    for (text, mask) in [
        ("0x00ff0000", 0x00ff_0000),
        ("0XFF", 0xff),
        ("0x3f", 0x3f),
        ("0xfc000000", 0x3f << 26),
        ("0xffffffff", u32::MAX),
    ] {
        let config = config(&format!("{ONE_UPLINK}[datapath]\nmark_mask = \"{text}\""));
        assert_eq!(config.datapath.mark_mask, mask);
    }
}

#[test]
fn durations() {
    for (text, ms) in [
        ("120s", 120_000),
        ("500000ms", 500_000),
        ("5m", 300_000),
        ("2h4m", 7_440_000),
        ("1d2h3m4s5ms", 93_784_005),
        ("0h300s", 300_000),
        ("30d", 2_592_000_000),
    ] {
        let config = config(&format!("{ONE_UPLINK}[timeouts]\nudp = \"{text}\""));
        assert_eq!(config.timeouts.udp, Duration::from_millis(ms), "{text}");
    }
    for text in [
        "",
        "s",
        "300",
        "300 s",
        " 300s",
        "5m5m",
        "5s5m",
        "-5s",
        "1.5h",
        "5x",
        "3m5",
        "99999999999999999999s",
        "18446744073709551615d",
        "999ms",
        "٣s",
    ] {
        let faults = faults(&format!("{ONE_UPLINK}[timeouts]\nudp = \"{text}\""));
        assert!(faults.starts_with("5:7: udp must be a duration"), "{faults}");
    }
}

#[test]
fn interface_patterns() {
    let pattern = |text: &str| text.parse::<InterfacePattern>().unwrap();
    assert!(pattern("lan0").matches("lan0"));
    assert!(!pattern("lan0").matches("lan01"));
    assert!(pattern("lan*").matches("lan"));
    assert!(pattern("lan*").matches("lan0.7"));
    assert!(!pattern("lan*").matches("la"));
    assert!(pattern("*").matches("wan1"));
    assert!(!pattern("*").matches("lo"));
    assert!(!pattern("l*").matches("lo"));
    assert!(pattern("abcdefghijklmno").matches("abcdefghijklmno"));
    for text in ["lan0", "lan*", "*"] {
        assert_eq!(pattern(text).to_string(), text);
    }
    for text in ["", "a b", "a\tb", "a/b", "a:b", "*a", "**", ".", "..", "lo", "a\0", "abcdefghijklmnop", "éééééééé"]
    {
        assert!(text.parse::<InterfacePattern>().is_err(), "{text:?}");
    }
}

#[test]
fn faults_of_a_file_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mh.toml");

    let error = load(&path).unwrap_err();
    assert!(matches!(&error, LoadError::Io(at, _) if *at == path));
    assert_eq!(
        error.to_string(),
        format!("{}: cannot read the config: No such file or directory (os error 2)", path.display())
    );

    std::fs::write(&path, format!("{ONE_UPLINK}wieght = 2\nnat = 3\n")).unwrap();
    assert_eq!(
        check(&path).unwrap_err().to_string(),
        format!(
            "{0}:4:1: unknown key \"wieght\" in [uplink.isp1]; did you mean \"weight\"?\n\
             {0}:5:7: nat must be true or false, not a whole number 3",
            path.display()
        )
    );

    std::fs::write(&path, b"lan = [\"lan0\"] # \xc3\xbc\n# \xc3\xbc \xff\n").unwrap();
    assert_eq!(
        check(&path).unwrap_err().to_string(),
        format!("{}:2:5: this is not UTF-8 text; save the file as UTF-8", path.display())
    );

    std::fs::write(&path, ONE_UPLINK).unwrap();
    assert_eq!(check(&path).unwrap(), []);
    assert_eq!(load(&path).unwrap().config, config(ONE_UPLINK));
}

#[test]
fn warnings_say_that_they_are() {
    let warnings =
        loaded(&format!("{ONE_UPLINK}[policy.default]\ntiers = [{{ isp1 = 0 }}]\n[timeouts]\nicmp = \"1s\"\n"))
            .warnings;
    assert_eq!(
        warning_lines(Path::new("mh.toml"), &warnings),
        "mh.toml:5:10: warning: no uplink has a weight above 0: no new flow will get an uplink; give at least one uplink a weight\n\
         mh.toml:7:8: warning: icmp is less than the 60s that RFC 5508 REQ-2 asks for: flows that are idle, but in use, may be cut\n"
    );
    assert_eq!(warning_lines(Path::new("mh.toml"), &[]), "");
}

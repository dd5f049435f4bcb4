//! What values mean: defaults, durations, interface patterns; files and how faults of files are shown.

use std::path::Path;
use std::time::Duration;

use super::super::{
    Config, Datapath, HashMode, InterfacePattern, LoadError, Mode, MssClamp, OnDown, Policy, PortRange, Timeouts,
    Uplink, check, load, warning_lines,
};
use super::{ONE_UPLINK, config, faults, loaded};

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
                host_traffic: false,
            },
            uplinks: vec![Uplink {
                name: "isp1".to_owned(),
                interface: "wan1".to_owned(),
                gateway: None,
                address: None,
                weight: 1,
                ports: PortRange { first: 1024, last: 65535 },
                on_down: OnDown::Reset,
                mss_clamp: MssClamp::Off,
                nat: true,
            }],
            default_policy: Policy { members: vec![(0, 1)], hash: HashMode::Flow },
            timeouts: Timeouts {
                udp: Duration::from_secs(300),
                tcp_established: Duration::from_secs(7440),
                tcp_transitory: Duration::from_secs(240),
                icmp: Duration::from_secs(60),
            },
        }
    );
}

#[test]
fn uplinks_keep_the_order_of_the_file() {
    let text = "lan = [\"lan0\"]\n[policy.default]\ntiers = [{ a = 1, z = 2 }]\n[uplink.z]\ninterface = \"wan1\"\n[uplink.m]\n\
                interface = \"wan2\"\n[uplink.a]\ninterface = \"wan3\"\n";
    let config = config(text);
    let names: Vec<&str> = config.uplinks.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["z", "m", "a"]);
    assert_eq!(config.default_policy.members, [(2, 1), (0, 2)]);
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
fn values_without_effect_are_kept() {
    let config =
        loaded(&format!("{ONE_UPLINK}on_down = \"reset\"\nmss_clamp = \"auto\"\n[datapath]\nhost_traffic = true"))
            .config;
    assert_eq!(config.uplinks[0].on_down, OnDown::Reset);
    assert_eq!(config.uplinks[0].mss_clamp, MssClamp::Auto);
    assert!(config.datapath.host_traffic);
}

#[test]
fn an_address_may_be_a_list_of_one() {
    let plain = config(&format!("{ONE_UPLINK}address = \"10.0.0.1\""));
    let listed = config(&format!("{ONE_UPLINK}address = [\"10.0.0.1\"]"));
    assert_eq!(plain, listed);
    assert_eq!(plain.uplinks[0].address, Some([10, 0, 0, 1].into()));
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
    for (text, mask) in
        [("0x00ff0000", 0x00ff_0000), ("0XFF", 0xff), ("0x1", 1), ("0x80000000", 1 << 31), ("0xffffffff", u32::MAX)]
    {
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
    let warnings = loaded(&format!("{ONE_UPLINK}on_down = \"reset\"\nmss_clamp = 1400\n")).warnings;
    assert_eq!(
        warning_lines(Path::new("mh.toml"), &warnings),
        "mh.toml:4:11: warning: on_down = \"reset\" sends no RST in this version of mh yet: TCP connections are held, all other flows are bound anew\n\
         mh.toml:5:13: warning: mss_clamp = 1400 has no effect in this version of mh yet: segment sizes are left alone as with \"off\""
    );
    assert_eq!(warning_lines(Path::new("mh.toml"), &[]), "");
}

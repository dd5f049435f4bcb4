//! Whole documents: the format with everything that belongs to it, the example, and the reference of keys.

use std::path::{Path, PathBuf};

use super::super::schema::{SECTIONS, Support};
use super::super::{Addresses, Config, HashMode, MssClamp, OnDown, PortRange, Rule, Use, load};
use super::{Weight, config, faults, loaded, tiers};

/// The whole format, also the parts that this version refuses.
const WHOLE_FORMAT: &str = r#"lan = ["lan0"]

[datapath]
mode = "auto"
conntrack_entries = 1048576
bindings = 262144
mark_mask = "0x00ff0000"
host_traffic = true

[uplink.isp1]
interface = "wan1"
gateway   = "198.51.100.1"
address   = ["198.51.100.2", "198.51.100.8/30"]
weight    = 2
ports     = "1024-65535"
on_down   = "reset"
mss_clamp = "auto"
nat       = true

[uplink.isp1.probe]
targets  = ["icmp://192.0.2.1", "tcp://192.0.2.9:443", "http://192.0.2.9/health", "dns://192.0.2.53/example.org"]
quorum   = 1
interval = "500ms"
timeout  = "400ms"
down     = 3
up       = 5
loss     = { window = 40, warn = "5%", down = "20%" }
latency  = { window = 40, warn = "200ms", down = "500ms" }

[uplink.isp2]
interface = "wan2"
gateway   = "203.0.113.1"
address6  = "2001:db8:2::2"
nptv6     = { inside = "fd00:1::/48", outside = "2001:db8:2::/48" }

[uplink.lte]
interface = "wwan0"

[policy.default]
tiers = [ { isp1 = 2, isp2 = 1 }, { lte = 1 } ]
hash  = "flow"
sticky = "0s"

[policy.one-source]
hash = "source"

[[rule]]
name = "bank"
from = ["192.168.1.0/24"]
to   = ["set:banks"]
protocol = "tcp"
from_port = ["1024-65535"]
to_port = ["443", "8000-8999"]
interface = ["lan0"]
dscp = 46
use  = "policy:one-source"

[set.banks]
prefixes = ["203.0.113.0/24"]

[[forward]]
uplinks = ["isp1", "isp2"]
protocol = "tcp"
port = "8443"
to = "192.168.1.20:443"

[nat]
filtering = "endpoint-independent"

[limits]
bindings_per_source = 16384
new_flows_per_source = 5000

[timeouts]
udp = "300s"
tcp_established = "7440s"
tcp_transitory = "240s"
icmp = "60s"

[hooks]
on_change = "/nonexistent/on-change"
timeout = "10s"

[metrics]
listen = "127.0.0.1:9469"
"#;

#[test]
fn the_whole_format_is_refused_part_by_part() {
    assert_eq!(
        faults(WHOLE_FORMAT),
        "33:1: uplink.isp2.address6 is not supported by this version of mh yet; remove it\n\
         34:1: uplink.isp2.nptv6 is not supported by this version of mh yet; remove it\n\
         84:2: metrics is not supported by this version of mh yet; remove it"
    );
}

/// What is left of the whole format when everything that the faults ask to be removed is removed.
#[test]
fn the_mends_mend() {
    let mut kept = String::new();
    let mut refused = false;
    for line in WHOLE_FORMAT.lines() {
        if line.starts_with('[') {
            refused = line.contains("metrics");
        }
        if !refused && !line.starts_with("address6") && !line.starts_with("nptv6") {
            kept += line;
            kept.push('\n');
        }
    }
    let loaded = loaded(&kept);
    let warnings: Vec<(usize, &str)> =
        loaded.warnings.iter().map(|warning| (warning.line, &warning.message[..12])).collect();
    assert_eq!(warnings, [(28, "a latency of"), (79, "\"/nonexisten")]);
    let config = loaded.config;
    let weight = |uplink, weight| (uplink, Weight::Fixed(weight));
    assert_eq!(tiers(&config), [vec![weight(0, 2), weight(1, 1)], vec![weight(2, 1)]]);
    assert_eq!(config.uplinks[0].on_down, OnDown::Reset);
    assert_eq!(config.uplinks[0].mss_clamp, MssClamp::Auto);
    assert_eq!(config.uplinks[0].addresses.iter().map(|range| range.count).sum::<u32>(), 5);
    assert_eq!(config.forwards[0].uplinks, [0, 1]);
    assert_eq!(config.uplinks[1].gateway, Some([203, 0, 113, 1].into()));
    assert_eq!(config.policies[1].name, "one-source");
    assert_eq!(config.policies[1].hash, HashMode::Source);
    assert_eq!(
        config.rules,
        [Rule {
            name: Some("bank".to_owned()),
            from: Addresses { prefixes: vec!["192.168.1.0/24".parse().unwrap()], sets: vec![] },
            to: Addresses { prefixes: vec![], sets: vec![0] },
            protocols: vec![6],
            from_ports: vec![PortRange { first: 1024, last: 65_535 }],
            to_ports: vec![PortRange { first: 443, last: 443 }, PortRange { first: 8000, last: 8999 }],
            interfaces: vec!["lan0".parse().unwrap()],
            dscp: vec![46],
            action: Use::Policy(1),
        }]
    );
    assert_eq!(config.sets[0].name, "banks");
    assert_eq!(*config.sets[0].prefixes, ["203.0.113.0/24".parse().unwrap()]);
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn example(name: &str) -> Config {
    let loaded = load(&docs().join("examples").join(name)).unwrap();
    assert_eq!(loaded.warnings, []);
    loaded.config
}

#[test]
fn the_examples_are_valid() {
    assert_eq!(tiers(&example("two-uplinks.toml")), [[(0, Weight::Fixed(2)), (1, Weight::Fixed(1))]]);
    let policies = example("policies.toml");
    assert_eq!(policies.policies.len(), 4);
    let names: Vec<&str> = policies.rules.iter().filter_map(|rule| rule.name.as_deref()).collect();
    assert_eq!(names, ["blocked", "work", "voip", "bank", "guests"]);
    let servers = example("servers.toml");
    assert_eq!(servers.forwards.iter().map(|forward| forward.uplinks.len()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(servers.uplinks[0].addresses.len(), 2);
}

#[test]
fn the_reference_describes_every_key_and_its_example_is_valid() {
    let reference = std::fs::read_to_string(docs().join("config.md")).unwrap();
    let (supported, later) = reference.split_once("## Not supported yet").unwrap();
    for entry in SECTIONS.iter().flat_map(|section| section.entries) {
        let part = if entry.support == Support::Now { supported } else { later };
        assert!(part.contains(&format!("`{}`", entry.name)), "docs/config.md does not describe {}", entry.name);
    }
    let (_, example) = reference.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    assert_eq!(config(example).uplinks.len(), 2);
}

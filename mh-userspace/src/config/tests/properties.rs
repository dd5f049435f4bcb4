//! Properties: no text makes the parser panic, what is written is what is read, and no misspelling goes unnoticed.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use super::super::schema::{SECTIONS, Section};
use super::super::{
    AddressRange, Capacity, Config, Damping, Datapath, Filtering, Forward, ForwardProtocol, Hooks, InterfacePattern,
    Limit, Limits, Mode, MssClamp, Nat, OnDown, PortRange, Probe, ProbeTarget, Share, Timeouts, Uplink, Weight, parse,
};
use super::steering::{self, Steering, drafts, port_range};
use super::{ONE_UPLINK, faults, loaded};

/// A config as a person would write it.
fn render(config: &Config) -> String {
    let mut text = String::new();
    let lan: Vec<String> = config.lan.iter().map(|p| format!("\"{p}\"")).collect();
    let datapath = &config.datapath;
    let timeouts = &config.timeouts;
    writeln!(text, "lan = [{}]", lan.join(", ")).unwrap();
    writeln!(
        text,
        "[datapath]\nmode = \"{}\"\nconntrack_entries = {}\nbindings = {}\nmark_mask = \"{:#010x}\"\nhost_traffic = {}",
        datapath.mode, datapath.conntrack_entries, datapath.bindings, datapath.mark_mask, datapath.host_traffic
    )
    .unwrap();
    text += &steering::render(config);
    for uplink in &config.uplinks {
        writeln!(
            text,
            "[uplink.{}]\ninterface = \"{}\"\nweight = {}\nports = \"{}\"\non_down = \"{}\"\nnat = {}",
            uplink.name,
            uplink.interface,
            steering::weight(uplink.weight),
            uplink.ports,
            uplink.on_down,
            uplink.nat
        )
        .unwrap();
        let damping = uplink.damping;
        let (within, hold) = (damping.within.as_secs(), damping.hold.as_secs());
        writeln!(text, "damping = {{ losses = {}, within = \"{within}s\", hold = \"{hold}s\" }}", damping.losses)
            .unwrap();
        match uplink.mss_clamp {
            MssClamp::Bytes(bytes) => writeln!(text, "mss_clamp = {bytes}").unwrap(),
            word => writeln!(text, "mss_clamp = \"{word}\"").unwrap(),
        }
        if let Some(capacity) = uplink.capacity {
            writeln!(text, "capacity = \"{}\"", steering::capacity(capacity)).unwrap();
        }
        if let Some(gateway) = uplink.gateway {
            writeln!(text, "gateway = \"{gateway}\"").unwrap();
        }
        let addresses = uplink.addresses.iter().map(|range| format!("\"{range}\"")).collect::<Vec<_>>();
        if !addresses.is_empty() {
            writeln!(text, "address = [{}]", addresses.join(", ")).unwrap();
        }
        if let Some(probe) = &uplink.probe {
            text += &render_probe(&uplink.name, probe);
        }
    }
    for forward in &config.forwards {
        let uplinks: Vec<String> =
            forward.uplinks.iter().map(|index| format!("\"{}\"", config.uplinks[*index].name)).collect();
        let protocols: Vec<String> = forward.protocols.iter().map(|protocol| format!("\"{protocol}\"")).collect();
        writeln!(
            text,
            "[[forward]]\nuplinks = [{}]\nprotocol = [{}]\nport = \"{}\"\nto = \"{}:{}\"",
            uplinks.join(", "),
            protocols.join(", "),
            forward.ports,
            forward.to,
            forward.to_port
        )
        .unwrap();
    }
    writeln!(
        text,
        "[nat]\nfiltering = \"{}\"\n[limits]\nbindings_per_source = {}\nnew_flows_per_source = {}",
        config.nat.filtering, config.limits.bindings_per_source, config.limits.new_flows_per_source
    )
    .unwrap();
    writeln!(
        text,
        "[timeouts]\nudp = \"{}ms\"\ntcp_established = \"{}s\"\ntcp_transitory = \"{}ms\"\nicmp = \"{}s\"",
        timeouts.udp.as_millis(),
        timeouts.tcp_established.as_secs(),
        timeouts.tcp_transitory.as_millis(),
        timeouts.icmp.as_secs()
    )
    .unwrap();
    writeln!(text, "[hooks]\ntimeout = \"{}ms\"", config.hooks.timeout.as_millis()).unwrap();
    if let Some(program) = &config.hooks.on_change {
        writeln!(text, "on_change = \"{}\"", program.display()).unwrap();
    }
    text
}

/// The probes of an uplink as a person would write them.
fn render_probe(uplink: &str, probe: &Probe) -> String {
    fn level<T>(name: &str, level: Option<T>, shown: impl Fn(T) -> String) -> String {
        level.map_or(String::new(), |level| format!(", {name} = \"{}\"", shown(level)))
    }
    let targets: Vec<String> = probe.targets.iter().map(|target| format!("\"{target}\"")).collect();
    let ms = |duration: Duration| format!("{}ms", duration.as_millis());
    let mut text = format!(
        "[uplink.{uplink}.probe]\ntargets = [{}]\nquorum = {}\ninterval = \"{}\"\ntimeout = \"{}\"\ndown = {}\nup = {}\n",
        targets.join(", "),
        probe.quorum,
        ms(probe.interval),
        ms(probe.timeout),
        probe.down,
        probe.up
    );
    if let Some(Limit { window, warn, down }) = probe.loss {
        let levels = level("warn", warn, |share| share.to_string()) + &level("down", down, |share| share.to_string());
        writeln!(text, "loss = {{ window = {window}{levels} }}").unwrap();
    }
    if let Some(Limit { window, warn, down }) = probe.latency {
        let levels = level("warn", warn, ms) + &level("down", down, ms);
        writeln!(text, "latency = {{ window = {window}{levels} }}").unwrap();
    }
    text
}

fn probe_target() -> impl Strategy<Value = String> {
    let name = "[a-z0-9_-]{1,20}(\\.[a-z0-9_-]{1,20}){0,3}";
    let port = option::of(1..=u16::MAX).prop_map(|port| port.map_or(String::new(), |port| format!(":{port}")));
    let user = option::of(name).prop_map(|name| name.map_or(String::new(), |name| format!("{name}@")));
    prop_oneof![
        unicast().prop_map(|address| format!("icmp://{address}")),
        (unicast(), 1..=u16::MAX).prop_map(|(address, port)| format!("tcp://{address}:{port}")),
        (any::<bool>(), user, unicast(), port.clone(), "(/[a-zA-Z0-9%?&=._~-]{0,40})?").prop_map(
            |(tls, user, address, port, path)| {
                format!("http{}://{user}{address}{port}{path}", if tls { "s" } else { "" })
            }
        ),
        (unicast(), port, name).prop_map(|(address, port, name)| format!("dns://{address}{port}/{name}")),
    ]
}

fn limit<T: Copy + PartialOrd + std::fmt::Debug>(
    level: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Limit<T>> {
    (1_u32..=1000, level.clone(), level, 0_u8..3).prop_map(|(window, one, other, which)| {
        let (warn, down) = if one <= other { (one, other) } else { (other, one) };
        Limit { window, warn: (which != 0).then_some(warn), down: (which != 1).then_some(down) }
    })
}

fn probe() -> impl Strategy<Value = Probe> {
    let share =
        (1_u32..=10_000).prop_map(|share| format!("{}.{:02}%", share / 100, share % 100).parse::<Share>().unwrap());
    let latency = (1_u64..=60_000).prop_map(Duration::from_millis);
    (
        (vec(probe_target(), 1..6), any::<Index>()),
        (10_u64..=3_600_000, 1_u64..=60_000, 1_u32..=1000, 1_u32..=1000),
        (option::of(limit(share)), option::of(limit(latency))),
    )
        .prop_map(|((urls, quorum), (interval_ms, timeout_ms, down, up), (loss, latency))| {
            let mut targets: Vec<ProbeTarget> = Vec::new();
            for url in urls {
                let target: ProbeTarget = url.parse().unwrap();
                if !targets.iter().any(|other| other.check() == target.check()) {
                    targets.push(target);
                }
            }
            Probe {
                quorum: quorum.index(targets.len()) + 1,
                targets,
                interval: Duration::from_millis(interval_ms),
                timeout: Duration::from_millis(timeout_ms.min(16 * interval_ms)),
                down,
                up,
                loss,
                latency,
            }
        })
}

fn unicast() -> impl Strategy<Value = Ipv4Addr> {
    (1_u8..=223, any::<[u8; 3]>())
        .prop_filter("loopback", |(first, _)| *first != 127)
        .prop_map(|(a, [b, c, d])| Ipv4Addr::new(a, b, c, d))
}

/// An address or a prefix of up to 1024, so that four of them are not too many.
fn address_range() -> impl Strategy<Value = AddressRange> {
    (unicast(), 0_u32..=10).prop_map(|(address, bits)| AddressRange {
        first: Ipv4Addr::from_bits(address.to_bits() >> bits << bits),
        count: 1 << bits,
    })
}

/// Takes out addresses that overlap with some further to the front.
fn without_overlaps(mut uplinks: Vec<Uplink>) -> Vec<Uplink> {
    let mut seen: Vec<AddressRange> = Vec::new();
    for uplink in &mut uplinks {
        uplink.addresses.retain(|range| {
            let apart = !seen.iter().any(|other| other.contains(range.first) || range.contains(other.first));
            if apart {
                seen.push(*range);
            }
            apart
        });
    }
    uplinks
}

fn forwards() -> impl Strategy<Value = Vec<(Vec<Index>, Forward)>> {
    let protocols = subsequence(ForwardProtocol::ALL, 1..=2).prop_shuffle();
    let forward = (protocols, 1..=u16::MAX, 0_u16..50, unicast(), 1..=u16::MAX).prop_map(
        |(protocols, first, more, to, to_port)| {
            let more = more.min(u16::MAX - first).min(u16::MAX - to_port);
            Forward { uplinks: Vec::new(), protocols, ports: PortRange { first, last: first + more }, to, to_port }
        },
    );
    vec((vec(any::<Index>(), 1..4), forward), 0..6)
}

/// Puts forwards on those of their uplinks that translate, and leaves out those that none is left of or that overlap.
fn on_uplinks(forwards: Vec<(Vec<Index>, Forward)>, uplinks: &[Uplink]) -> Vec<Forward> {
    let mut kept: Vec<Forward> = Vec::new();
    for (indices, mut forward) in forwards {
        for index in indices {
            let index = index.index(uplinks.len());
            if uplinks[index].nat && !forward.uplinks.contains(&index) {
                forward.uplinks.push(index);
            }
        }
        let overlaps = |other: &Forward| {
            other.uplinks.iter().any(|index| forward.uplinks.contains(index))
                && other.protocols.iter().any(|protocol| forward.protocols.contains(protocol))
                && other.ports.first <= forward.ports.last
                && forward.ports.first <= other.ports.last
        };
        if !forward.uplinks.is_empty() && !kept.iter().any(overlaps) {
            kept.push(forward);
        }
    }
    kept
}

fn nat_and_limits() -> impl Strategy<Value = (Nat, Limits)> {
    (select(Filtering::ALL), 0_u32..=16_777_216, 0_u32..=10_000_000).prop_map(
        |(filtering, bindings_per_source, new_flows_per_source)| {
            (Nat { filtering }, Limits { bindings_per_source, new_flows_per_source })
        },
    )
}

/// A capacity, in half of the cases, and whether it decides.
fn capacity() -> impl Strategy<Value = Option<(Capacity, bool)>> {
    let rate = || prop_oneof![1000_u64..=10_000_000_000_000, 1_000_000_000_u64..=1_000_000_000];
    option::of((rate(), rate(), any::<bool>()).prop_map(|(down, up, decides)| (Capacity { down, up }, decides)))
}

fn mss_clamp() -> impl Strategy<Value = MssClamp> {
    prop_oneof![Just(MssClamp::Auto), Just(MssClamp::Off), (536_u16..=65_495).prop_map(MssClamp::Bytes),]
}

fn uplink(name: String, interface: String) -> impl Strategy<Value = Uplink> {
    (
        (option::of(unicast()), vec(address_range(), 0..4), any::<u16>(), capacity()),
        (port_range(), select(OnDown::ALL), mss_clamp(), any::<bool>()),
        (damping(), option::of(probe())),
    )
        .prop_map(
            move |((gateway, addresses, weight, capacity), (ports, on_down, mss_clamp, nat), (damping, probe))| {
                Uplink {
                    name: name.clone(),
                    interface: interface.clone(),
                    gateway: gateway.filter(|gateway| !addresses.iter().any(|range| range.contains(*gateway))),
                    addresses,
                    weight: if capacity.is_some_and(|(_, decides)| decides) {
                        Weight::Capacity
                    } else {
                        Weight::Fixed(weight)
                    },
                    capacity: capacity.map(|(capacity, _)| capacity),
                    ports,
                    on_down,
                    mss_clamp,
                    nat,
                    damping,
                    probe,
                }
            },
        )
}

fn damping() -> impl Strategy<Value = Damping> {
    (0..=100_u16, 1..=86_400_u64, 1..=86_400_u64).prop_map(|(losses, within_s, hold_s)| Damping {
        losses,
        within: Duration::from_secs(within_s),
        hold: Duration::from_secs(hold_s),
    })
}

fn uplinks() -> impl Strategy<Value = Vec<Uplink>> {
    (1_usize..=8)
        .prop_flat_map(|count| (btree_set("[a-zA-Z0-9_-]{1,32}", count), btree_set("w[a-z0-9._-]{1,14}", count)))
        .prop_flat_map(|(names, interfaces)| {
            names.into_iter().zip(interfaces).map(|(name, interface)| uplink(name, interface)).collect::<Vec<_>>()
        })
        .prop_shuffle()
        .prop_map(without_overlaps)
}

fn datapath() -> impl Strategy<Value = Datapath> {
    (select(Mode::ALL), 1024_u32..=16_777_216, 64_u32..=16_777_216, (0_u32..=26, 6_u32..=32), any::<bool>()).prop_map(
        |(mode, conntrack_entries, bindings, (shift, width), host_traffic)| Datapath {
            mode,
            conntrack_entries,
            bindings,
            mark_mask: (u32::MAX >> (32 - width)) << shift,
            host_traffic,
        },
    )
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    (1000_u64..=2_592_000_000, 1_u64..=2_592_000, 1000_u64..=2_592_000_000, 1_u64..=2_592_000).prop_map(
        |(udp_ms, established_s, transitory_ms, icmp_s)| Timeouts {
            udp: Duration::from_millis(udp_ms),
            tcp_established: Duration::from_secs(established_s),
            tcp_transitory: Duration::from_millis(transitory_ms),
            icmp: Duration::from_secs(icmp_s),
        },
    )
}

/// Half of them with a program that is there, so that there is no warning about it.
fn hooks() -> impl Strategy<Value = Hooks> {
    (any::<bool>(), 100_u64..=600_000).prop_map(|(there, timeout_ms)| Hooks {
        on_change: there.then(|| "/bin/sh".into()),
        timeout: Duration::from_millis(timeout_ms),
    })
}

fn configs() -> impl Strategy<Value = Config> {
    let lan = btree_set("(l[a-km-z0-9._-]{1,13}|vlan\\*|x[a-z]{0,10}\\*)", 1..4);
    (lan, datapath(), uplinks(), drafts(), forwards(), nat_and_limits(), (timeouts(), hooks())).prop_map(
        |(lan, datapath, uplinks, draft, forwards, (nat, limits), (timeouts, hooks))| {
            let Steering { policies, rules, sets } = draft.on(&uplinks);
            let lan: Vec<InterfacePattern> =
                lan.iter().filter(|name| name.as_str() != "lo").map(|name| name.parse().unwrap()).collect();
            Config {
                lan: if lan.is_empty() { vec!["lan0".parse().unwrap()] } else { lan },
                datapath,
                forwards: on_uplinks(forwards, &uplinks),
                uplinks,
                policies,
                rules,
                sets,
                nat,
                limits,
                timeouts,
                hooks,
            }
        },
    )
}

/// Parses, and if there are faults, they are in order and on one line each.
fn parse_any(text: &str) -> Result<(), TestCaseError> {
    let found = match parse(text) {
        Ok(loaded) => loaded.warnings,
        Err(faults) => {
            prop_assert!(!faults.0.is_empty());
            faults.0
        }
    };
    let lines = text.matches('\n').count() + 1;
    for fault in &found {
        prop_assert!((1..=lines).contains(&fault.line) && fault.column >= 1);
        prop_assert!(!fault.message.contains(['\n', '\r']), "{}", fault);
    }
    prop_assert!(found.is_sorted_by_key(|fault| (fault.line, fault.column)));
    Ok(())
}

/// Names with one character left out, added, replaced, or swapped with its neighbour.
fn misspellings(name: &str) -> Vec<String> {
    let letters: Vec<char> = name.chars().collect();
    let mut names = Vec::new();
    for at in 0..=letters.len() {
        let (head, tail) = letters.split_at(at);
        let mut put = |middle: &[char], skip: usize| {
            names.push(head.iter().chain(middle).chain(&tail[skip..]).collect::<String>());
        };
        for letter in ['a'..='z', '0'..='9', 'A'..='Z'].into_iter().flatten().chain(['_', '-']) {
            put(&[letter], 0);
            if !tail.is_empty() {
                put(&[letter], 1);
            }
        }
        if !tail.is_empty() {
            put(&[], 1);
        }
        if tail.len() > 1 {
            put(&[tail[1], tail[0]], 2);
        }
    }
    names.retain(|misspelt| !misspelt.is_empty() && misspelt != name);
    names
}

/// Where the keys of a section are written, as lines in front of a key, and what faults call the place.
fn place_of(section: &Section) -> (&'static str, &'static str) {
    match section.place {
        "at the top level, above the first [section]" => ("", "at the top level"),
        "in [datapath]" => ("[datapath]\n", "in [datapath]"),
        "in [uplink.NAME]" => ("[uplink.isp1]\ninterface = \"wan1\"\n", "in [uplink.isp1]"),
        "in [uplink.NAME.damping]" => {
            ("[uplink.isp1]\ninterface = \"wan1\"\n[uplink.isp1.damping]\n", "in [uplink.isp1.damping]")
        }
        "in [uplink.NAME.probe]" => ("[uplink.isp1.probe]\n", "in [uplink.isp1.probe]"),
        "in [uplink.NAME.probe.loss]" => ("[uplink.isp1.probe.loss]\n", "in [uplink.isp1.probe.loss]"),
        "in [uplink.NAME.probe.latency]" => ("[uplink.isp1.probe.latency]\n", "in [uplink.isp1.probe.latency]"),
        "in [policy.NAME]" => ("[policy.default]\n", "in [policy.default]"),
        "in [[rule]]" => ("[[rule]]\n", "in [[rule]]"),
        "in [set.NAME]" => ("[set.banks]\n", "in [set.banks]"),
        "in [[forward]]" => ("[[forward]]\n", "in [[forward]]"),
        "in [nat]" => ("[nat]\n", "in [nat]"),
        "in [limits]" => ("[limits]\n", "in [limits]"),
        "in [hooks]" => ("[hooks]\n", "in [hooks]"),
        "in [timeouts]" => ("[timeouts]\n", "in [timeouts]"),
        other => panic!("where is {other}?"),
    }
}

#[test]
fn every_misspelling_of_one_character_is_mended() {
    let mut count = 0;
    for section in SECTIONS {
        let (header, place) = place_of(section);
        for entry in section.entries {
            for misspelt in misspellings(entry.name) {
                if section.entry(&misspelt).is_some() {
                    continue;
                }
                let text = format!("{header}{misspelt} = 1\n");
                let line = header.lines().count() + 1;
                let start = format!("{line}:1: unknown key \"{misspelt}\" {place}; did you mean ");
                let faults = faults(&text);
                let fault = faults
                    .lines()
                    .find(|fault| fault.starts_with(&start))
                    .unwrap_or_else(|| panic!("{text}\n{faults}"));
                assert!(fault.contains(&format!("\"{}\"", entry.name)), "{fault}");
                count += 1;
            }
        }
    }
    assert!(count > 20_000, "{count}");
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        parse_any(&text)?;
    }

    #[test]
    fn no_text_of_toml_tokens_panics(
        tokens in vec(
            select(&[
                "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", " ", "\"", "'", "#", "\"\"\"", "é", "1", "-1", "0x", "1.5",
                "true", "\"0s\"", "\"1.2.3.4\"", "1979-05-27", "lan", "uplink", "isp1", "interface", "policy", "default", "tiers",
                "rule", "set", "datapath", "mode", "timeouts", "udp", "address", "\"1.2.3.0/24\"", "forward", "uplinks", "port", "to",
                "protocol", "\"udp\"", "use", "\"policy:default\"", "\"set:isp1\"", "from", "prefixes", "file", "dscp", "\"capacity\"", "nat", "filtering", "limits", "probe", "targets", "quorum", "loss", "warn", "\"5%\"", "\"tcp://1.2.3.4:5\"", "\r\n", "\u{feff}", "\0",
            ][..]),
            0..60,
        )
    ) {
        parse_any(&tokens.concat())?;
    }

    #[test]
    fn no_change_to_a_config_panics(
        config in configs(),
        changes in vec((any::<Index>(), any::<char>(), 0_u8..3), 1..6),
    ) {
        let mut letters: Vec<char> = render(&config).chars().collect();
        for (index, letter, kind) in changes {
            let at = index.index(letters.len());
            match kind {
                0 => letters.insert(at, letter),
                1 => letters[at] = letter,
                _ => {
                    letters.remove(at);
                }
            }
        }
        parse_any(&letters.into_iter().collect::<String>())?;
    }

    #[test]
    fn no_exchange_of_values_panics(config in configs(), from in any::<Index>(), to in any::<Index>()) {
        let text = render(&config);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let from = from.index(lines.len());
        let to = to.index(lines.len());
        if let (Some((_, value)), Some((key, _))) = (lines[from].split_once('='), lines[to].split_once('=')) {
            lines[to] = format!("{key}={value}");
        }
        parse_any(&lines.join("\n"))?;
    }

    #[test]
    fn what_is_written_is_what_is_read(config in configs()) {
        let text = render(&config);
        prop_assert_eq!(loaded(&text).config, config);
    }

    #[test]
    fn faults_are_found_at_any_depth_of_a_file(blank in 0_usize..200, indent in 0_usize..80) {
        let text = format!("{ONE_UPLINK}{}{}wieght = 2", "\n".repeat(blank), " ".repeat(indent));
        let expected = format!("{}:{}: unknown key \"wieght\" in [uplink.isp1]; did you mean \"weight\"?", 4 + blank, 1 + indent);
        prop_assert_eq!(faults(&text), expected);
    }
}

//! Rules and policies, packet by packet: what the datapath does, and that it does what it says when asked (`mhctl explain`). The rig is
//! drawn in `mh_tests::rig`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use mh_common::{
    address::Ipv4,
    flow::{Entry, Key},
    policy::{Explanation, NO_SLOT, NO_UPLINK, explained},
    rules::{NO_RULE, NO_RULE_COUNTER},
    verdict::Verdict,
};
use mh_tests::model::steps::Random;
use mh_tests::model::wire::{ACK, FIN, SYN};
use mh_tests::packet::{Packet, Transport, icmp_error};
use mh_tests::rig::conversation::{counted, flows, on_rig_with, out};
use mh_tests::rig::{HOST, HOST2, LAN, Rig};
use mh_userspace::datapath::explain::Question;

/// The addresses of isp1 and isp2.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(203, 0, 113, 2)];

/// A half of a flow.
type Half = (Key<Ipv4>, Entry<Ipv4>);

/// What is asked about a packet.
fn question(rig: &Rig, packet: &Packet) -> Question {
    let protocol = match packet.transport {
        Transport::Tcp(_) => 6,
        Transport::Udp | Transport::UdpUnsummed => 17,
        Transport::EchoRequest | Transport::EchoReply => 1,
    };
    Question {
        ifindex: rig.index("lan0").unwrap(),
        by_host: false,
        protocol,
        src: *packet.src.ip(),
        sport: packet.src.port(),
        dst: *packet.dst.ip(),
        dport: packet.dst.port(),
        dscp: packet.tos >> 2,
    }
}

fn verdict(answer: &Explanation) -> &'static str {
    Verdict::from_index(answer.verdict).map_or("?", Verdict::name)
}

/// How many flows each rule, and none, has matched, by its counter.
fn hits(rig: &Rig) -> BTreeMap<u16, u64> {
    let of_rules = rig.rules().list.rules.iter().filter(|rule| rule.number != NO_RULE).map(|rule| rule.counter);
    let counters: Vec<u16> = of_rules.chain([NO_RULE_COUNTER]).collect();
    counters.iter().copied().zip(rig.tables.rule_hits(counters.clone()).unwrap()).collect()
}

/// The source that a frame has after translation, and its port.
fn source(frame: &[u8]) -> (Ipv4Addr, u16) {
    let address: [u8; 4] = frame[26..30].try_into().unwrap();
    let at = if frame[23] == 1 { 38 } else { 34 };
    (address.into(), u16::from_be_bytes([frame[at], frame[at + 1]]))
}

/// All halves of flows, and bindings.
fn entries(rig: &Rig) -> Result<(Vec<Half>, usize)> {
    let mut halves = Vec::new();
    for table in [&rig.tables.flows4, &rig.tables.new_flows4] {
        table.walk(|key, entry| halves.push((key, entry)))?;
    }
    Ok((halves, rig.tables.bindings()?.len()))
}

/// Rules and policies at random, the later the more general; seldom one that catches all.
fn random_config(random: &mut Random) -> String {
    let mut text = String::new();
    let hashes = ["flow", "source", "source-destination"];
    for name in ["default", "one", "two"] {
        let tiers = random.of(&[
            "[{ isp1 = 2, isp2 = 1 }]",
            "[{ isp1 = 1 }, { isp2 = 1 }]",
            "[{ isp2 = 5 }, { isp1 = 1 }]",
            "[{ isp2 = 1 }]",
        ]);
        let (hash, sticky) = (random.of(&hashes), random.of(&["0s", "0s", "10m"]));
        writeln!(text, "[policy.{name}]\ntiers = {tiers}\nhash = \"{hash}\"\nsticky = \"{sticky}\"").unwrap();
    }
    writeln!(text, "[set.few]\nprefixes = [\"192.0.2.0/29\", \"192.0.2.12/32\", \"192.0.2.64/26\"]").unwrap();
    for _ in 0..random.below(40) {
        let chosen = random.of(&[
            "policy:one",
            "policy:two",
            "policy:default",
            "uplink:isp1",
            "uplink:isp2",
            "direct",
            "reject",
            "drop",
        ]);
        writeln!(text, "[[rule]]\nuse = \"{chosen}\"").unwrap();
        let conditions = [
            ["from = [\"192.168.1.10\"]", "from = [\"192.168.1.0/28\", \"10.0.0.0/8\"]"],
            ["to = [\"set:few\"]", "to = [\"192.0.2.0/28\", \"192.0.2.99\"]"],
            ["protocol = \"tcp\"", "protocol = [\"udp\", \"icmp\"]"],
            ["protocol = \"tcp\"\nto_port = [\"80-443\", 8080]", "to_port = \"53\""],
            ["from_port = \"1-40003\"", "from_port = [\"40002\", \"40005-65535\"]"],
            ["dscp = 46", "dscp = [0, 8]"],
            ["interface = \"lan0\"", "interface = [\"lan*\"]"],
        ];
        // Of protocol and ports one at most.
        let mut left = vec![0, 1, random.of(&[2, 3, 4]), 5, 6];
        for _ in 0..=random.below(2) {
            let which = left.remove(random.below(left.len()));
            writeln!(text, "{}", random.of(&conditions[which])).unwrap();
        }
    }
    text
}

fn random_packet(random: &mut Random) -> Packet {
    let (host, mac) = random.of(&[(10, HOST), (11, HOST2)]);
    let port = 40_000 + u16::try_from(random.below(8)).unwrap();
    let remote = random.of(&[
        [192, 0, 2, 1],
        [192, 0, 2, 12],
        [192, 0, 2, 14],
        [192, 0, 2, 70],
        [192, 0, 2, 99],
        [192, 168, 1, 1],
    ]);
    let transport = random.of(&[Transport::Tcp(SYN), Transport::Udp, Transport::EchoRequest]);
    let to_port = if transport == Transport::EchoRequest { 0 } else { random.of(&[53, 80, 443, 8080, 9000]) };
    Packet {
        src: SocketAddrV4::new([192, 168, 1, host].into(), port),
        dst: SocketAddrV4::new(remote.into(), to_port),
        tos: random.of(&[0, 0, 46 << 2, 8 << 2]),
        ..Packet::new(LAN, mac, "0.0.0.0:0", "0.0.0.0:0", transport)
    }
}

/// Asks what would become of the packet, sends it, and compares. Returns the verdict.
fn ask_and_send(rig: &mut Rig, packet: &Packet) -> Result<&'static str> {
    let before = hits(rig);
    let question = question(rig, packet);
    let answer = rig.explain(&question)?;
    assert_eq!((rig.explain(&question)?, hits(rig)), (answer, before.clone()), "asking changes nothing");
    let outcome = rig.tc("lan0", &packet.build())?;
    let context = format!("{packet:?} {answer:?} {outcome:?}");
    let verdict = verdict(&answer);
    assert_eq!(outcome.counted, counted(verdict), "{context}");
    let mut changed = hits(rig);
    changed.retain(|counter, hits| {
        *hits -= before[counter];
        *hits > 0
    });
    let matched = ["new", "pass_direct", "rule_reject", "rule_drop", "no_uplink"].contains(&verdict);
    let expected: BTreeMap<u16, u64> = matched.then_some((answer.rule.counter, 1)).into_iter().collect();
    assert_eq!(changed, expected, "{context}");
    assert_eq!(answer.flags & explained::RULE != 0, matched || verdict == "restored", "{context}");
    if ["new", "forward", "restored"].contains(&verdict) {
        let (address, port) = source(&outcome.packet);
        assert_eq!(address, ADDRESSES[usize::from(answer.uplink)], "{context}");
        assert_eq!(Ipv4Addr::from(Ipv4::from_be(answer.address[0])), address, "{context}");
        assert!(answer.port == 0 || u16::from_be(answer.port) == port, "{context}");
    } else {
        assert_eq!((answer.uplink, answer.address), (NO_UPLINK, [0; 4]), "{context}");
    }
    assert_eq!(answer.flags & explained::FLOW != 0, verdict == "forward", "{context}");
    Ok(verdict)
}

/// 10,000 packets under 20 configurations: whatever the rules, policies, health, flows and sources that stick, the answer is what happens.
#[test]
fn what_is_said_is_what_is_done() {
    let mut seen: BTreeMap<&'static str, u32> = BTreeMap::new();
    let mut slots = 0;
    let mut sticky = 0;
    for seed in 0..20 {
        let mut random = Random(seed);
        let config = random_config(&mut random);
        on_rig_with(&config, [1, 1], |rig| {
            let weights = random.of(&[[2, 1], [1, 1], [0, 1], [1, 20]]);
            rig.set_weights(weights)?;
            for _ in 0..500 {
                if random.one_in(25) {
                    rig.set_healthy(random.of(&[0b11, 0b11, 0b01, 0b10, 0b00]))?;
                }
                if random.one_in(15) {
                    let (key, _) = match flows(rig)?.first() {
                        Some(flow) => (flow.key, ()),
                        None => continue,
                    };
                    rig.evict(&key)?;
                }
                let packet = random_packet(&mut random);
                let before = random.one_in(50).then(|| entries(rig)).transpose()?;
                let answer = rig.explain(&question(rig, &packet))?;
                if let Some(before) = before {
                    assert_eq!(entries(rig)?, before, "asking changes nothing");
                }
                slots += u32::from(answer.slot != NO_SLOT);
                sticky += u32::from(answer.flags & explained::STICKY != 0);
                *seen.entry(ask_and_send(rig, &packet)?).or_default() += 1;
            }
            Ok(())
        });
    }
    if seen.is_empty() {
        return;
    }
    for verdict in
        ["new", "forward", "restored", "pass_direct", "rule_reject", "rule_drop", "no_uplink", "pass_not_for_uplink"]
    {
        assert!(seen.get(verdict).is_some_and(|count| *count > 20), "{verdict} in {seen:?}");
    }
    assert!(slots > 500 && sticky > 100, "{slots} by slots, {sticky} by stickiness");
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = "
        [[rule]]
        to = [\"192.0.2.10\"]
        protocol = \"udp\"
        use = \"drop\"
        [[rule]]
        to = [\"192.0.2.0/24\"]
        dscp = 46
        use = \"reject\"
        [[rule]]
        to = [\"192.0.2.0/24\"]
        use = \"uplink:isp2\"
    ";
    on_rig_with(rules, [1, 0], |rig| {
        assert_eq!(rig.tc("lan0", &out(Transport::Udp).build())?.counted, counted("rule_drop"));
        let marked = Packet { tos: 46 << 2, ..out(Transport::Tcp(SYN)) };
        let refused = rig.tc("lan0", &marked.build())?;
        assert_eq!((refused.counted, refused.mark >> 16), (counted("rule_reject"), mh_common::abi::mark::PROHIBIT));
        // By an uplink that has no weight, since a rule names it.
        let sent = rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?;
        assert_eq!((sent.counted, source(&sent.packet).0), (counted("new"), ADDRESSES[1]));
        let other = Packet { dst: "192.0.3.1:443".parse()?, ..out(Transport::Tcp(SYN)) };
        let sent = rig.tc("lan0", &other.build())?;
        assert_eq!((sent.counted, source(&sent.packet).0), (counted("new"), ADDRESSES[0]));
        let hits = rig.tables.rule_hits(rig.rules().list.rules[..4].iter().map(|rule| rule.counter))?;
        assert_eq!(hits, [1, 1, 1, 1]);
        Ok(())
    });
}

#[test]
fn what_is_left_to_the_kernel_is_left_in_mid_stream_too() {
    on_rig_with("[[rule]]\nto = [\"192.0.2.10\"]\nuse = \"direct\"\n", [1, 0], |rig| {
        for flags in [SYN, ACK, FIN | ACK] {
            let packet = out(Transport::Tcp(flags)).build();
            let outcome = rig.tc("lan0", &packet)?;
            assert_eq!((outcome.counted, outcome.packet, outcome.mark), (counted("pass_direct"), packet, 0));
        }
        // The same port, on its way elsewhere, has a binding: the former destination is none of its business still.
        let other = Packet { dst: "192.0.2.11:443".parse()?, ..out(Transport::Tcp(SYN)) };
        assert_eq!(rig.tc("lan0", &other.build())?.counted, counted("new"));
        assert_eq!(rig.tc("lan0", &out(Transport::Tcp(ACK)).build())?.counted, counted("pass_direct"));
        assert_eq!(flows(rig)?.len(), 1);
        Ok(())
    });
}

#[test]
fn an_uplink_that_a_rule_names_is_the_only_one() {
    on_rig_with("[[rule]]\nprotocol = \"tcp\"\nuse = \"uplink:isp2\"\n", [1, 1], |rig| {
        let connect =
            |port: u16| Packet { src: SocketAddrV4::new([192, 168, 1, 10].into(), port), ..out(Transport::Tcp(SYN)) };
        rig.set_healthy(0b01)?;
        assert_eq!(rig.tc("lan0", &connect(40_000).build())?.counted, counted("no_uplink"));
        rig.set_healthy(0b11)?;
        assert_eq!(source(&rig.tc("lan0", &connect(40_001).build())?.packet).0, ADDRESSES[1]);
        Ok(())
    });
}

/// A flow that is pinned to an uplink that is down is given up only if its own policy has another one for it.
#[test]
fn a_flow_without_another_uplink_is_not_given_up() {
    let rules = "on_down = \"repin\"\n[[rule]]\nto_port = \"443\"\nuse = \"uplink:isp2\"\n[[rule]]\nuse = \"policy:second\"\n\
                 [policy.second]\ntiers = [{ isp2 = 1 }, { isp1 = 1 }]\n";
    on_rig_with(rules, [1, 1], |rig| {
        let alone = out(Transport::Udp);
        let free = Packet { dst: "192.0.2.10:80".parse()?, ..alone.clone() };
        for packet in [&alone, &free] {
            assert_eq!(source(&rig.tc("lan0", &packet.build())?.packet).0, ADDRESSES[1]);
        }
        rig.set_healthy(0b01)?;
        let outcomes = [rig.tc("lan0", &alone.build())?, rig.tc("lan0", &free.build())?];
        let held = outcomes.map(|outcome| (outcome.counted, source(&outcome.packet).0));
        assert_eq!(held, [(counted("forward"), ADDRESSES[1]), (counted("new"), ADDRESSES[0])]);
        Ok(())
    });
}

/// A tier that is lost is not waited for: until the controller has seen to it, the others' uplinks do.
#[test]
fn a_lost_tier_leaves_no_gap() {
    on_rig_with(
        "[policy.default]\ntiers = [{ isp1 = 1 }, { isp2 = 1 }]\n[[rule]]\nuse = \"policy:two\"\n[policy.two]\ntiers = [{ isp1 = 1 }, { isp2 = 1 }]\n",
        [1, 1],
        |rig| {
            assert_eq!(source(&rig.tc("lan0", &out(Transport::Tcp(SYN)).build())?.packet).0, ADDRESSES[0]);
            rig.set_healthy(0b10)?;
            let next = Packet { src: "192.168.1.10:40002".parse()?, ..out(Transport::Tcp(SYN)) };
            assert_eq!(source(&rig.tc("lan0", &next.build())?.packet).0, ADDRESSES[1]);
            Ok(())
        },
    );
}

#[test]
fn a_source_keeps_its_uplink_for_a_while() {
    let rules = "[policy.sticky]\nhash = \"source\"\nsticky = \"1m\"\n[[rule]]\nuse = \"policy:sticky\"\n";
    on_rig_with(rules, [1, 1], |rig| {
        let mut port = 40_000;
        let mut uplink = |rig: &mut Rig| -> Result<usize> {
            port += 1;
            let packet = Packet { src: SocketAddrV4::new([192, 168, 1, 10].into(), port), ..out(Transport::Udp) };
            let address = source(&rig.tc("lan0", &packet.build())?.packet).0;
            Ok(ADDRESSES.iter().position(|a| *a == address).unwrap())
        };
        let kept = uplink(rig)?;
        // All slots go to the other one, with the weights of policies that have none of their own.
        let others = if kept == 0 { [0, 1] } else { [1, 0] };
        let minute = 60_000_000_000 / mh_common::time::TICK_NS;
        rig.set_policy_weights("sticky", others, [1, 1])?;
        assert_eq!(uplink(rig)?, kept);
        rig.age(u32::try_from(minute)? - 10)?;
        assert_eq!(uplink(rig)?, kept, "the last flow was less than a minute ago");
        rig.age(u32::try_from(minute)? - 10)?;
        assert_eq!(uplink(rig)?, kept, "that flow counts, too");
        rig.age(u32::try_from(minute)? + 10)?;
        assert_eq!(uplink(rig)?, 1 - kept, "nothing keeps it any more");
        rig.set_policy_weights("sticky", [1, 1], [1, 1])?;
        assert_eq!(uplink(rig)?, 1 - kept);
        // Not across its uplink's death.
        rig.set_healthy(1 << kept)?;
        assert_eq!(uplink(rig)?, kept);
        rig.set_healthy(0b11)?;
        assert_eq!(uplink(rig)?, kept, "it has moved");
        Ok(())
    });
}

#[test]
fn no_rule_is_a_rule_without_number() {
    on_rig_with("[[rule]]\nprotocol = \"udp\"\nuse = \"drop\"\n", [1, 0], |rig| {
        let packet = out(Transport::Tcp(SYN));
        let question = question(rig, &packet);
        let answer = rig.explain(&question)?;
        assert_eq!((answer.rule.number, answer.uplink), (NO_RULE, 0));
        assert!(answer.slot < 4096);
        Ok(())
    });
}

/// A flow that exists is restored by its reply half, whatever the rules say by now; by its binding alone only if they still have it begin.
#[test]
fn a_flow_goes_on_when_rules_change() {
    on_rig_with("", [1, 0], |rig| {
        for packet in [out(Transport::Udp), out(Transport::Tcp(ACK))] {
            rig.set_rules(&Rig::rules_of("")?)?;
            assert_eq!(rig.tc("lan0", &packet.build())?.counted, counted("new"));
            assert_eq!(rig.tc("lan0", &packet.build())?.counted, counted("forward"));
            rig.set_rules(&Rig::rules_of("[[rule]]\nuse = \"reject\"\n")?)?;
            let forward = flows(rig)?.first().unwrap().key;
            rig.evict(&forward)?;
            assert_eq!(rig.tc("lan0", &packet.build())?.counted, counted("restored"));
            let halves: Vec<_> = entries(rig)?.0.iter().map(|(key, _)| *key).collect();
            halves.iter().try_for_each(|key| rig.evict(key))?;
            assert_eq!(rig.tc("lan0", &packet.build())?.counted, counted("rule_reject"));
        }
        Ok(())
    });
}

/// An inside host's errors about what is left to the kernel are left to it as well.
#[test]
fn errors_about_direct_flows_are_the_kernels() {
    on_rig_with("[[rule]]\nto = [\"192.0.2.10\"]\nuse = \"direct\"\n", [1, 0], |rig| {
        for (remote, expected) in [("192.0.2.10:443", "pass_direct"), ("192.0.2.11:443", "icmp_stray")] {
            let from_remote = Packet::new(HOST, LAN, remote, "192.168.1.10:40001", Transport::Udp).build();
            let address = remote.split(':').next().unwrap();
            let error = icmp_error(LAN, HOST, "192.168.1.10", address, 64, [3, 3], 0, &from_remote[14..]);
            assert_eq!(rig.tc("lan0", &error)?.counted, counted(expected));
        }
        Ok(())
    });
}

/// What a rule has go by one uplink does not go by another, of the machine itself neither.
#[test]
fn the_machines_own_flows_obey_rules() {
    on_rig_with("[[rule]]\nto = [\"192.0.2.10\"]\nuse = \"uplink:isp2\"\n", [1, 1], |rig| {
        let own = |remote: &str| {
            Packet::new([2, 0, 0, 0, 0, 0xa1], [2, 0, 0, 0, 0, 2], "198.51.100.2:40001", remote, Transport::Udp)
        };
        rig.set_healthy(0b01)?;
        assert_eq!(rig.egress("wan1", 0, &own("192.0.2.10:53").build())?.counted, counted("no_uplink"));
        assert_eq!(rig.egress("wan1", 0, &own("192.0.2.11:53").build())?.counted, counted("new"));
        rig.set_healthy(0b00)?;
        assert_eq!(rig.egress("wan1", 0, &own("192.0.2.12:53").build())?.counted, counted("pass_host"));
        rig.set_healthy(0b11)?;
        let sent = rig.egress("wan1", 0, &own("192.0.2.10:53").build())?;
        assert_eq!((sent.counted, source(&sent.packet).0), (counted("new"), ADDRESSES[1]));
        Ok(())
    });
}

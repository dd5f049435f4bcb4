//! Ordinary traffic through mh: TCP both ways checked by hash, UDP, ping, and what the conntrack says about it.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Direction, TcpFlow, UdpFlow, tcp_flows, transfer, udp_flows};
use mh_tests::lab::{CLIENT1, CLIENT2, SERVER, Scene};
use serde_json::Value;

in_both_modes!(
    tcp_transfers_100_megabytes_both_ways,
    udp_flows_keep_their_source,
    ping,
    equal_source_ports_do_not_collide,
    flows_show_both_tuples,
    bindings_show_inside_and_outside,
    counters_only_grow,
);

const BYTES: u64 = 100_000_000;

fn tcp_transfers_100_megabytes_both_ways(scene: &mut Scene) -> Result<()> {
    // Each uplink by turns, so that neither goes untested by chance.
    for (isp1, isp2, index) in [(1, 0, 0), (0, 1, 1)] {
        scene.set_weights(isp1, isp2)?;
        let uplink = scene.lab.uplink(index)?;
        for (client, direction) in [(&scene.lab.client1, Direction::Upload), (&scene.lab.client3, Direction::Download)]
        {
            let transferred = transfer(client, scene.tcp.address(), direction, BYTES)?;
            assert_eq!(*transferred.seen.ip(), uplink.address, "{direction:?} through {}", uplink.name);
            let rate = BYTES as f64 / 1e6 / transferred.elapsed.as_secs_f64();
            println!("{direction:?} through {}: {rate:.0} MB/s", uplink.name);
        }
    }
    Ok(())
}

fn udp_flows_keep_their_source(scene: &mut Scene) -> Result<()> {
    let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 50)?;
    for flow in &flows {
        assert!(scene.lab.uplink_of(*flow.seen.ip()).is_some(), "{} is no uplink's address", flow.seen);
        for _ in 0..3 {
            assert_eq!(flow.ask()?, flow.seen);
        }
    }
    Ok(())
}

fn ping(scene: &mut Scene) -> Result<()> {
    for (isp1, isp2) in [(1, 0), (0, 1)] {
        scene.set_weights(isp1, isp2)?;
        for client in [&scene.lab.client1, &scene.lab.client2, &scene.lab.client3] {
            assert_eq!(client.ping(SERVER, 10)?, 10, "{}", client.name());
        }
    }
    Ok(())
}

/// Two clients use the same source ports towards the same server: outside, no two flows may look the same.
fn equal_source_ports_do_not_collide(scene: &mut Scene) -> Result<()> {
    let mut flows = Vec::new();
    for port in 20_000..20_020 {
        for client in [&scene.lab.client1, &scene.lab.client2] {
            flows.push(UdpFlow::open_from(client, port, scene.udp.address())?);
        }
    }
    let outside: BTreeSet<SocketAddrV4> = flows.iter().map(|flow| flow.seen).collect();
    assert_eq!(outside.len(), flows.len());
    for flow in &flows {
        assert_eq!(flow.ask()?, flow.seen);
    }
    // The same for echo identifiers, at the same time.
    let arguments = ["ping", "-n", "-e", "4242", "-c", "10", "-i", "0.05", "-W", "1", "192.0.2.10"];
    let mut first = scene.lab.client1.spawn("ping", &arguments)?;
    let mut second = scene.lab.client2.spawn("ping", &arguments)?;
    for ping in [&mut first, &mut second] {
        ping.wait_for_line("10 received", Duration::from_secs(10))?;
    }
    Ok(())
}

/// The entry of `flows` with this inside source.
fn entry<'a>(flows: &'a [Value], protocol: &str, source: SocketAddrV4) -> Result<&'a Value> {
    flows
        .iter()
        .find(|flow| {
            flow["protocol"] == protocol && flow["src"] == source.ip().to_string() && flow["sport"] == source.port()
        })
        .with_context(|| format!("no {protocol} flow from {source} in {flows:?}"))
}

fn flows_show_both_tuples(scene: &mut Scene) -> Result<()> {
    let tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), 10)?;
    let udp = udp_flows(&scene.lab.client2, scene.udp.address(), 10)?;
    let list = scene.mhd.flows(&[])?;
    let shown = tcp
        .iter()
        .map(|flow| ("tcp", flow.local, flow.seen))
        .chain(udp.iter().map(|flow| ("udp", flow.local, flow.seen)));
    for (protocol, local, seen) in shown {
        let flow = entry(&list, protocol, local)?;
        assert_eq!(flow["dst"], SERVER.to_string());
        assert_eq!(flow["dport"], 7000);
        assert_eq!(flow["nat_src"], seen.ip().to_string(), "{flow}");
        assert_eq!(flow["nat_sport"], seen.port(), "{flow}");
        assert_eq!(flow["uplink"].as_str(), scene.lab.uplink_of(*seen.ip()), "{flow}");
        assert!(flow["state"].as_str().is_some_and(|state| !state.is_empty()), "{flow}");
        for counter in ["packets_out", "packets_in", "bytes_out", "bytes_in"] {
            assert!(flow[counter].as_u64().is_some_and(|count| count >= 1), "{counter}: {flow}");
        }
        for time in ["age_s", "idle_s"] {
            assert!(flow[time].as_f64().is_some_and(|seconds| (0.0..60.0).contains(&seconds)), "{time}: {flow}");
        }
    }

    // Ping's identifier stands where a port would.
    scene.lab.client1.run(&["ping", "-n", "-e", "4660", "-c", "2", "-i", "0.05", "-W", "1", "192.0.2.10"])?;
    let list = scene.mhd.flows(&["--proto", "icmp"])?;
    let ping = entry(&list, "icmp", SocketAddrV4::new(CLIENT1, 4660))?;
    assert!(ping["nat_sport"].is_u64(), "{ping}");
    assert!(list.iter().all(|flow| flow["protocol"] == "icmp"), "{list:?}");

    // Filters.
    for uplink in ["isp1", "isp2"] {
        let list = scene.mhd.flows(&["--uplink", uplink])?;
        assert!(list.iter().all(|flow| flow["uplink"] == uplink), "{list:?}");
        let expected = tcp.iter().map(|flow| flow.seen).chain(udp.iter().map(|flow| flow.seen));
        let expected = expected.filter(|seen| scene.lab.uplink_of(*seen.ip()) == Some(uplink)).count();
        assert!(list.len() >= expected, "{} flows on {uplink}, {expected} are known", list.len());
    }
    let list = scene.mhd.flows(&["--src", &CLIENT2.to_string(), "--proto", "udp"])?;
    assert_eq!(list.len(), udp.len(), "{list:?}");
    assert_eq!(scene.mhd.flows(&["--dst", "192.0.2.99"])?.len(), 0);
    assert_eq!(scene.mhd.flows(&["--dst", "192.0.2.0/24"])?.len(), tcp.len() + udp.len() + 1);
    let three = scene.mhd.ctl_json(&["flows", "list", "--limit", "3"])?;
    assert_eq!(three.as_array().map(Vec::len), Some(3), "{three}");

    // Count and flush. Whatever is forgotten is rebuilt from its binding: nothing is cut off, no source changes.
    let count = |arguments: &[&str]| -> Result<u64> {
        let printed = scene.mhd.ctl(&[&["flows", "count"], arguments].concat())?;
        let digits: String = printed.chars().filter(char::is_ascii_digit).collect();
        digits.parse().with_context(|| format!("flows count printed {printed:?}"))
    };
    assert_eq!(count(&["--src", &CLIENT2.to_string(), "--proto", "udp"])?, 10);
    assert_eq!(count(&[])?, 21);
    scene.mhd.ctl(&["flows", "flush", "--proto", "udp"])?;
    assert_eq!(count(&["--proto", "udp"])?, 0);
    assert_eq!(count(&["--proto", "tcp"])?, 10);
    scene.mhd.ctl(&["flows", "flush"])?;
    assert_eq!(count(&[])?, 0);
    for flow in &udp {
        assert_eq!(flow.ask()?, flow.seen);
    }
    for mut flow in tcp {
        flow.echo()?;
    }
    assert!(count(&[])? >= 20);
    Ok(())
}

fn bindings_show_inside_and_outside(scene: &mut Scene) -> Result<()> {
    let flows = udp_flows(&scene.lab.client1, scene.udp.address(), 5)?;
    let document = scene.mhd.ctl_json(&["bindings"])?;
    let bindings = document.as_array().or_else(|| document["bindings"].as_array()).context("no array of bindings")?;
    for flow in &flows {
        // The addresses and ports, whatever the fields are called.
        let found = bindings.iter().filter_map(Value::as_object).any(|binding| {
            let has = |address: SocketAddrV4| {
                binding.values().any(|value| *value == address.ip().to_string())
                    && binding.values().any(|value| *value == address.port())
            };
            has(flow.local) && has(flow.seen)
        });
        assert!(found, "no binding {} -> {} in {document}", flow.local, flow.seen);
    }
    let status = scene.mhd.ctl_json(&["status"])?;
    assert!(status["bindings"]["used"].as_u64() >= Some(5), "{status}");
    assert_eq!(status["bindings"]["capacity"], 16_384, "{status}");
    Ok(())
}

/// Adds up, and compares, all numbers at the same places of two documents.
fn assert_grown(path: &str, before: &Value, after: &Value) {
    match (before, after) {
        (Value::Object(before), _) => {
            for (key, value) in before {
                assert_grown(&format!("{path}/{key}"), value, &after[key]);
            }
        }
        (Value::Number(before), Value::Number(after)) => {
            assert!(after.as_f64() >= before.as_f64(), "{path} went from {before} to {after}");
        }
        _ => assert!(before.is_number() == after.is_number(), "{path} was {before} and is {after}"),
    }
}

fn counters_only_grow(scene: &mut Scene) -> Result<()> {
    let mut last = scene.mhd.ctl_json(&["stats"])?;
    for section in ["uplinks", "verdicts", "drops", "maps"] {
        assert!(last[section].is_object(), "{section}: {last}");
    }
    for round in 0..3 {
        for mut flow in tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)? {
            flow.echo()?;
        }
        udp_flows(&scene.lab.client2, scene.udp.address(), 20)?;
        if round == 1 {
            scene.mhd.restart()?;
        }
        let stats = scene.mhd.ctl_json(&["stats"])?;
        for section in ["verdicts", "drops"] {
            assert_grown(section, &last[section], &stats[section]);
        }
        for uplink in ["isp1", "isp2"] {
            for counter in ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes"] {
                let (before, now) = (&last["uplinks"][uplink][counter], &stats["uplinks"][uplink][counter]);
                assert!(before.is_u64() && now.as_u64() > before.as_u64(), "{uplink}/{counter}: {before} {now}");
            }
        }
        let used = stats["maps"].as_object().context("maps")?;
        for (name, map) in used {
            assert!(map["used"].as_u64() <= map["capacity"].as_u64(), "{name}: {map}");
        }
        last = stats;
    }
    // A connection opened and used in the meantime still works.
    TcpFlow::connect(&scene.lab.client1, scene.tcp.address(), Duration::from_secs(5))?.echo()
}

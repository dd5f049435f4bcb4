//! Port forwards with real servers behind them: who is reached, whom they see, and which way the answers leave.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! An answer that left by the other uplink, or with its address, would be dropped by the ISP or not be taken for an answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{DatagramSocket, Direction, TcpFlow, TcpServer, UdpFlow, UdpServer, transfer};
use mh_tests::lab::{CLIENT1, CLIENT3, SERVER, Scene, wait_until};

in_both_modes!(
    both_uplinks_lead_to_the_inside_host,
    ranges_are_forwarded_in_order,
    inside_hosts_use_forwards_too,
    reload_adds_and_removes_without_touching_flows,
    a_forward_takes_over_a_port,
    a_port_rests_when_its_forward_is_gone,
    several_ports_lead_to_one,
    all_addresses_of_a_pool_are_forwarded,
    forwards_survive_restarts,
    a_forward_of_one_uplink_leaves_the_other_alone,
);

/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Outside port 8443 to client1's 443, by both protocols and all uplinks.
const WEB: &str = "[[forward]]\nprotocol = [\"tcp\", \"udp\"]\nport = 8443\nto = \"192.168.1.11:443\"\n";

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

/// Servers for both protocols behind the forward.
fn web(scene: &Scene) -> Result<(TcpServer, UdpServer)> {
    let address = at(CLIENT1, 443);
    Ok((TcpServer::start(&scene.lab.client1, address)?, UdpServer::start(&scene.lab.client1, address)?))
}

/// Outside ends on both uplinks.
fn ends(scene: &Scene, port: u16) -> [SocketAddrV4; 2] {
    [0, 1].map(|index| at(scene.lab.uplinks[index].address, port))
}

/// What a TCP connection from the server to a port that nobody has comes to.
fn refused(scene: &Scene, to: SocketAddrV4) -> Result<io::ErrorKind> {
    let connect = || TcpStream::connect_timeout(&to.into(), Duration::from_millis(400));
    Ok(scene.lab.server.enter(connect)?.err().with_context(|| format!("there is something at {to}"))?.kind())
}

/// Whether the server gets an answer from a UDP end.
fn answers(scene: &Scene, to: SocketAddrV4) -> Result<bool> {
    let socket = DatagramSocket::bind(&scene.lab.server, at(SERVER, 0))?;
    socket.send(to, "q")?;
    Ok(socket.receive(Duration::from_millis(400)).unwrap_or(None).is_some())
}

fn both_uplinks_lead_to_the_inside_host(scene: &mut Scene) -> Result<()> {
    scene.reconfigure(WEB)?;
    let (tcp, udp) = web(scene)?;
    let server = &scene.lab.server;
    // Whatever new flows of inside hosts would take, and whatever the default routes say: isp1's is the better one.
    for (isp1, isp2) in [(1, 1), (1, 0), (0, 1)] {
        scene.set_weights(isp1, isp2)?;
        for (index, end) in ends(scene, 8443).into_iter().enumerate() {
            let uplink = scene.lab.uplink(index)?.name.as_str();
            let mut flow = TcpFlow::connect(server, end, PATIENCE)?;
            flow.echo()?;
            assert_eq!(flow.seen, at(SERVER, flow.local.port()), "the inside host sees who it is");
            assert_eq!(tcp.seen().last(), Some(&flow.seen));
            let question = UdpFlow::open(server, end)?;
            assert_eq!(question.seen, at(SERVER, question.local.port()));
            assert_eq!(udp.seen().last(), Some(&question.seen));
            for (protocol, port) in [("tcp", flow.local.port()), ("udp", question.local.port())] {
                let flows = scene.mhd.flows(&["--uplink", uplink, "--proto", protocol])?;
                let found = flows.iter().find(|flow| flow["dport"] == port);
                let found = found.with_context(|| format!("no {protocol} flow to port {port} in {flows:?}"))?;
                assert_eq!(
                    (&found["src"], &found["sport"], &found["nat_src"], &found["nat_sport"]),
                    (&CLIENT1.to_string().into(), &443.into(), &end.ip().to_string().into(), &8443.into()),
                    "{found}"
                );
            }
        }
    }
    for end in ends(scene, 8443) {
        for direction in [Direction::Download, Direction::Upload] {
            let moved = transfer(server, end, direction, 20_000_000)?;
            assert_eq!(*moved.seen.ip(), SERVER);
        }
    }
    assert!(scene.count_of("inbound")? >= 16, "one for each flow");
    Ok(())
}

fn ranges_are_forwarded_in_order(scene: &mut Scene) -> Result<()> {
    // The port below NAT's range of ports, and one that is as inside.
    scene.reconfigure(
        "[[forward]]\nprotocol = [\"tcp\", \"udp\"]\nport = \"1020-1030\"\nto = \"192.168.2.13:9000\"\n\n\
         [[forward]]\nprotocol = \"udp\"\nport = \"5000-5001\"\nto = \"192.168.1.11\"\n",
    )?;
    let client3 = &scene.lab.client3;
    let mut services = Vec::new();
    for port in 8999..=9011 {
        let address = at(CLIENT3, port);
        services.push((TcpServer::start(client3, address)?, UdpServer::start(client3, address)?));
    }
    for (outside, inside) in [(1020, 9000), (1023, 9003), (1024, 9004), (1030, 9010)] {
        for end in ends(scene, outside) {
            let flow = TcpFlow::connect(&scene.lab.server, end, PATIENCE)?;
            let question = UdpFlow::open(&scene.lab.server, end)?;
            let (tcp, udp) = &services[inside - 8999];
            assert_eq!((tcp.seen().last(), udp.seen().last()), (Some(&flow.seen), Some(&question.seen)), "{end}");
        }
    }
    for end in [1019, 1031].into_iter().flat_map(|port| ends(scene, port)) {
        let kind = refused(scene, end)?;
        let expected = if end.port() < 1024 { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::TimedOut };
        assert_eq!(kind, expected, "{end}");
        assert!(!answers(scene, end)?, "{end}");
    }
    assert!(services[0].0.seen().is_empty() && services[12].0.seen().is_empty());
    let same = UdpServer::start(&scene.lab.client1, at(CLIENT1, 5001))?;
    for end in ends(scene, 5001) {
        let question = UdpFlow::open(&scene.lab.server, end)?;
        assert_eq!(same.seen().last(), Some(&question.seen));
    }
    Ok(())
}

fn inside_hosts_use_forwards_too(scene: &mut Scene) -> Result<()> {
    scene.reconfigure(WEB)?;
    let (tcp, udp) = web(scene)?;
    for (index, end) in ends(scene, 8443).into_iter().enumerate() {
        let uplink = scene.lab.uplink(index)?.address;
        // From the same LAN, from another one, and from the inside host itself.
        for client in [&scene.lab.client2, &scene.lab.client3, &scene.lab.client1] {
            let name = client.name();
            let mut flow = TcpFlow::connect(client, end, PATIENCE)?;
            flow.echo()?;
            assert_eq!((*flow.seen.ip(), tcp.seen().last()), (uplink, Some(&flow.seen)), "{name} to {end}");
            let question = UdpFlow::open(client, end)?;
            assert_eq!((*question.seen.ip(), udp.seen().last()), (uplink, Some(&question.seen)), "{name} to {end}");
            let bindings = scene.bindings()?;
            for (protocol, local, seen) in [("tcp", flow.local, flow.seen), ("udp", question.local, question.seen)] {
                let shown = bindings.iter().any(|binding| {
                    binding["protocol"] == protocol
                        && binding["inside"] == local.ip().to_string()
                        && binding["inside_port"] == local.port()
                        && binding["outside"] == seen.ip().to_string()
                        && binding["outside_port"] == seen.port()
                });
                assert!(shown, "no {protocol} binding {local} to {seen} in {bindings:?}");
            }
        }
        assert_eq!(transfer(&scene.lab.client2, end, Direction::Download, 5_000_000)?.bytes, 5_000_000);
    }
    // What the forwarded port itself sends leaves as that port (RFC 4787 REQ-1), by the uplink whose turn it is.
    drop(udp);
    for (index, port, (isp1, isp2)) in [(0, 7100, (1, 0)), (1, 7101, (0, 1))] {
        scene.set_weights(isp1, isp2)?;
        // Another destination each time: a flow that exists would stay where it is.
        let asked = UdpServer::start(&scene.lab.server, at(SERVER, port))?;
        let flow = UdpFlow::open_from(&scene.lab.client1, 443, asked.address())?;
        assert_eq!(flow.seen, ends(scene, 8443)[index]);
    }
    Ok(())
}

fn reload_adds_and_removes_without_touching_flows(scene: &mut Scene) -> Result<()> {
    let (_tcp, _udp) = web(scene)?;
    let [first, second] = ends(scene, 8443);
    let mut dynamic = TcpFlow::connect(&scene.lab.client3, scene.tcp.address(), PATIENCE)?;
    let asking = UdpFlow::open(&scene.lab.client1, scene.udp.address())?;
    assert_eq!(refused(scene, first)?, io::ErrorKind::TimedOut);
    assert!(!answers(scene, second)?);

    scene.reconfigure(WEB)?;
    let mut flow = TcpFlow::connect(&scene.lab.server, first, PATIENCE)?;
    flow.echo()?;
    let question = UdpFlow::open(&scene.lab.server, second)?;
    dynamic.echo()?;
    assert_eq!(asking.ask()?, asking.seen);

    // Another one beside it changes nothing for the first.
    let more = "[[forward]]\nprotocol = \"tcp\"\nport = 9443\nto = \"192.168.1.11:443\"\n";
    scene.reconfigure(&format!("{WEB}\n{more}"))?;
    TcpFlow::connect(&scene.lab.server, ends(scene, 9443)[1], PATIENCE)?.echo()?;
    flow.echo()?;
    assert_eq!(question.ask()?, question.seen);
    TcpFlow::connect(&scene.lab.server, first, PATIENCE)?.echo()?;

    // To another host: new flows go there, the old ones stay.
    let elsewhere = TcpServer::start(&scene.lab.client3, at(CLIENT3, 443))?;
    scene.reconfigure(&WEB.replace("192.168.1.11", "192.168.2.13"))?;
    let mut moved = TcpFlow::connect(&scene.lab.server, first, PATIENCE)?;
    moved.echo()?;
    assert_eq!(elsewhere.seen(), [moved.seen]);
    flow.echo().context("a flow whose forward leads elsewhere now")?;

    scene.reconfigure("")?;
    for end in [first, second] {
        assert_eq!(refused(scene, end)?, io::ErrorKind::TimedOut);
    }
    assert!(!answers(scene, first)?);
    assert!(shown(scene)?.is_empty());
    moved.echo().context("a flow whose forward was removed")?;
    dynamic.echo()?;
    assert_eq!(asking.ask()?, asking.seen);
    Ok(())
}

fn a_forward_takes_over_a_port(scene: &mut Scene) -> Result<()> {
    scene.set_weights(1, 0)?;
    let local = 20_000;
    let holder = UdpFlow::open_from(&scene.lab.client3, local, scene.udp.address())?;
    let other = UdpFlow::open_from(&scene.lab.client3, local + 1, scene.udp.address())?;
    let taken = holder.seen;
    let service = UdpServer::start(&scene.lab.client1, at(CLIENT1, 53))?;
    scene.configure(&format!(
        "{}\n[[forward]]\nprotocol = \"udp\"\nport = {}\nto = \"192.168.1.11:53\"\n",
        scene.lab.config(&[1, 0]),
        taken.port()
    ))?;
    let question = UdpFlow::open(&scene.lab.server, taken)?;
    assert_eq!(service.seen().last(), Some(&question.seen));
    // Who had the port gets another one, and goes on; who hadn't keeps his.
    let now = holder.ask()?;
    assert_eq!(now.ip(), taken.ip());
    assert_ne!(now, taken);
    assert_eq!(other.ask()?, other.seen);
    assert_eq!(question.ask()?, question.seen);
    // A new client that would like that very port doesn't get it either.
    let late = UdpFlow::open_from(&scene.lab.client2, taken.port(), scene.udp.address())?;
    assert_ne!(late.seen, taken);
    Ok(())
}

fn a_port_rests_when_its_forward_is_gone(scene: &mut Scene) -> Result<()> {
    let forward = "[[forward]]\nprotocol = \"udp\"\nport = 20000\nto = \"192.168.1.11:53\"\n";
    scene.reconfigure(forward)?;
    scene.set_weights(1, 0)?;
    let _service = UdpServer::start(&scene.lab.client1, at(CLIENT1, 53))?;
    let end = ends(scene, 20_000)[0];
    let question = UdpFlow::open(&scene.lab.server, end)?;
    scene.reconfigure("")?;
    // Whoever talks to the forwarded host still must not come to talk to another one (RFC 6888 REQ-8).
    let flow = UdpFlow::open_from(&scene.lab.client2, 20_000, scene.udp.address())?;
    assert_eq!(flow.seen.ip(), end.ip());
    assert_ne!(flow.seen, end);
    assert_eq!(question.ask()?, question.seen);
    assert!(!answers(scene, end)?);
    // That the port rests doesn't keep it from being forwarded again.
    scene.reconfigure(forward)?;
    assert!(answers(scene, end)?);
    Ok(())
}

fn several_ports_lead_to_one(scene: &mut Scene) -> Result<()> {
    let more = "[[forward]]\nuplinks = [\"isp1\"]\nprotocol = \"udp\"\nport = 9443\nto = \"192.168.1.11:443\"\n";
    scene.reconfigure(&format!("{WEB}{more}"))?;
    scene.set_weights(1, 0)?;
    let ends = [ends(scene, 8443)[0], ends(scene, 9443)[0]];
    let udp_to_isp1 = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| line.starts_with("udp") && line.ends_with("isp1")).collect()
    };
    let line = |end: SocketAddrV4| format!("udp {end} 192.168.1.11:443 isp1");
    assert_eq!(udp_to_isp1(shown(scene)?), ends.map(line));
    let service = UdpServer::start(&scene.lab.client1, at(CLIENT1, 443))?;
    for end in ends {
        let question = UdpFlow::open(&scene.lab.server, end)?;
        assert_eq!(service.seen().last(), Some(&question.seen));
    }
    drop(service);
    let flow = UdpFlow::open_from(&scene.lab.client1, 443, scene.udp.address())?;
    assert_eq!(flow.seen, ends[0], "the first is what the inside port is seen as");
    drop(flow);
    // When that goes, the other takes its place.
    scene.reconfigure(more)?;
    scene.set_weights(1, 0)?;
    assert_eq!(shown(scene)?, [line(ends[1])]);
    let asked = UdpServer::start(&scene.lab.server, at(SERVER, 7100))?;
    let flow = UdpFlow::open_from(&scene.lab.client1, 443, asked.address())?;
    assert_eq!(flow.seen, ends[1]);
    Ok(())
}

fn all_addresses_of_a_pool_are_forwarded(scene: &mut Scene) -> Result<()> {
    let pool = [2, 8, 9, 10, 11].map(|last| Ipv4Addr::new(198, 51, 100, last));
    let extra: Vec<String> = pool[1..].iter().map(|address| format!("addr add {address}/24 dev wan1")).collect();
    scene.lab.router.ip(&extra)?;
    let config = scene.lab.config(&[0, 1]);
    let pooled = config.replace("address = \"198.51.100.2\"", "address = [\"198.51.100.2\", \"198.51.100.8/30\"]");
    assert_ne!(config, pooled);
    scene.configure(&format!("{pooled}\n{WEB}"))?;
    let (tcp, udp) = web(scene)?;
    for address in pool {
        let end = at(address, 8443);
        let mut flow = TcpFlow::connect(&scene.lab.server, end, PATIENCE)?;
        flow.echo()?;
        let question = UdpFlow::open(&scene.lab.server, end)?;
        assert_eq!((tcp.seen().last(), udp.seen().last()), (Some(&flow.seen), Some(&question.seen)), "{end}");
        let hairpin = UdpFlow::open(&scene.lab.client2, end)?;
        assert!(pool.contains(hairpin.seen.ip()), "{}", hairpin.seen);
    }
    // One inside port, two protocols: five outside ends by isp1 and one by isp2 for each.
    assert_eq!(shown(scene)?.len(), 12);
    // An address that leaves the pool is forwarded no more.
    scene.configure(&format!("{config}\n{WEB}"))?;
    assert_eq!(shown(scene)?.len(), 4);
    assert!(answers(scene, at(pool[0], 8443))?);
    assert!(!answers(scene, at(pool[4], 8443))?);
    Ok(())
}

/// The forwards that `mhctl bindings` shows, as `protocol outside inside uplink`.
fn shown(scene: &Scene) -> Result<Vec<String>> {
    let bindings = scene.bindings()?;
    let mut lines: Vec<String> = bindings
        .iter()
        .filter(|binding| binding["forward"] == true)
        .map(|binding| {
            let text = |key: &str| binding[key].to_string().replace('"', "");
            let [protocol, outside, port, inside, inside_port, uplink] =
                ["protocol", "outside", "outside_port", "inside", "inside_port", "uplink"].map(text);
            format!("{protocol} {outside}:{port} {inside}:{inside_port} {uplink}")
        })
        .collect();
    lines.sort();
    Ok(lines)
}

fn forwards_survive_restarts(scene: &mut Scene) -> Result<()> {
    scene.reconfigure(WEB)?;
    let (_tcp, _udp) = web(scene)?;
    let expected = [
        "tcp 198.51.100.2:8443 192.168.1.11:443 isp1",
        "tcp 203.0.113.2:8443 192.168.1.11:443 isp2",
        "udp 198.51.100.2:8443 192.168.1.11:443 isp1",
        "udp 203.0.113.2:8443 192.168.1.11:443 isp2",
    ];
    assert_eq!(shown(scene)?, expected);
    let printed = scene.mhd.ctl(&["bindings"])?;
    assert!(printed.lines().any(|line| line.contains("8443") && line.contains("forward")), "{printed}");
    let [first, second] = ends(scene, 8443);
    let mut flow = TcpFlow::connect(&scene.lab.server, first, PATIENCE)?;
    let question = UdpFlow::open(&scene.lab.server, second)?;
    for kill in [false, true] {
        if kill {
            scene.mhd.sigkill()?;
        } else {
            assert!(scene.mhd.sigterm()?.success());
        }
        // Without mhd the datapath goes on: flows that exist, and new ones.
        flow.echo()?;
        assert_eq!(question.ask()?, question.seen);
        TcpFlow::connect(&scene.lab.server, second, PATIENCE)?.echo()?;
        UdpFlow::open(&scene.lab.server, first)?;
        scene.mhd.start_again()?;
        assert_eq!(shown(scene)?, expected);
        flow.echo()?;
        TcpFlow::connect(&scene.lab.server, first, PATIENCE)?.echo()?;
    }
    // A forward that left the config while mhd was away is gone when it is back.
    assert!(scene.mhd.sigterm()?.success());
    scene.mhd.write_config(&scene.lab.config(&[1, 1]))?;
    scene.mhd.start_again()?;
    assert!(shown(scene)?.is_empty());
    assert_eq!(refused(scene, first)?, io::ErrorKind::TimedOut);
    flow.echo()
}

fn a_forward_of_one_uplink_leaves_the_other_alone(scene: &mut Scene) -> Result<()> {
    let before = UdpServer::start(&scene.lab.router, at(scene.lab.uplink(0)?.address, 8443))?;
    scene.reconfigure(&format!("{WEB}uplinks = [\"isp2\"]\n[nat]\nfiltering = \"address-dependent\"\n"))?;
    let (tcp, udp) = web(scene)?;
    let [first, second] = ends(scene, 8443);
    // A forward is open to everybody, whatever the filter; nobody inside has sent anything to this server.
    TcpFlow::connect(&scene.lab.server, second, PATIENCE)?.echo()?;
    let question = UdpFlow::open(&scene.lab.server, second)?;
    assert_eq!((tcp.seen().len(), udp.seen()), (1, vec![question.seen]));
    assert_eq!(scene.count_of("filtered")?, 0);
    // The same port of the other uplink is the machine's own.
    let own = UdpFlow::open(&scene.lab.server, first)?;
    assert_eq!(before.seen(), [own.seen]);
    assert_eq!(refused(scene, first)?, io::ErrorKind::TimedOut);
    wait_until("the counter", PATIENCE, || Ok(scene.count_of("unsolicited_syn")? >= 1))?;
    assert_eq!(udp.seen(), [question.seen]);
    Ok(())
}

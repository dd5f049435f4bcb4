//! Rules at work: what each `use` does with real traffic. What rules ask for: see `lab_rules.rs`.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! The uplink is told by the source address that the server saw. What makes these tests fail: a rule that is not looked at, looked at for
//! the first packet only of what is the kernel's, a refusal of another kind, a packet counted twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::ruled::{PORT, all_by, configure, rule, servers};
use mh_tests::lab::traffic::{
    ArrivalCounter, DatagramSocket, Datagrams, Direction, Sniffer, TcpFlow, TcpServer, UdpFlow, tcp_flows, transfer,
    udp_flows,
};
use mh_tests::lab::{CLIENT1, CLIENT3, ROUTER_LAN0, SERVER, Scene, wait_until};
use nix::errno::Errno;

in_both_modes!(
    by_policy_and_by_uplink,
    by_an_uplink_that_fails,
    direct_is_the_kernels,
    reject_tells_the_client,
    drop_says_nothing,
    own_traffic,
    own_traffic_by_an_uplink_that_fails,
    what_is_no_uplinks_business_is_let_be,
);

const DEADLINE: Duration = Duration::from_secs(10);

fn by_policy_and_by_uplink(scene: &mut Scene) -> Result<()> {
    let _servers = servers(scene)?;
    // isp2 has no weight: only what a rule names goes there.
    let policy = "[policy.second]\ntiers = [ { isp2 = 1 } ]\n";
    for action in ["policy:second", "uplink:isp2"] {
        configure(scene, [1, 0], &format!("{policy}{}", rule(action)))?;
        scene.mhd.ctl(&["flows", "flush"])?;
        for client in [&scene.lab.client1, &scene.lab.client2, &scene.lab.client3] {
            all_by(scene, client, PORT, 1).with_context(|| action.to_owned())?;
            all_by(scene, client, scene.tcp.address().port(), 0).with_context(|| format!("not {action}"))?;
        }
        transfer(&scene.lab.client1, SocketAddrV4::new(SERVER, PORT), Direction::Download, 2_000_000)?;
    }
    Ok(())
}

/// A flow of a rule that names one uplink goes by no other: it is refused while that one is down, and so is a drained one's.
fn by_an_uplink_that_fails(scene: &mut Scene) -> Result<()> {
    let _servers = servers(scene)?;
    let to = SocketAddrV4::new(SERVER, PORT);
    configure(scene, [1, 0], &rule("uplink:isp2"))?;
    all_by(scene, &scene.lab.client1, PORT, 1)?;
    type Change = fn(&Scene) -> Result<()>;
    let cases: [(&str, &str, Change, Change); 2] = [
        (
            "carrier",
            "down",
            |scene| scene.lab.uplink(1)?.isp.set_link("eth0", false),
            |scene| scene.lab.uplink(1)?.isp.set_link("eth0", true),
        ),
        (
            "drained",
            "draining",
            |scene| scene.mhd.ctl(&["drain", "isp2"]).map(drop),
            |scene| scene.mhd.ctl(&["undrain", "isp2"]).map(drop),
        ),
    ];
    for (what, state, end, begin) in cases {
        end(scene)?;
        scene.mhd.wait_for_state("isp2", state)?;
        let before = scene.count_of("no_uplink")?;
        let socket = Datagrams::connected(&scene.lab.client1, to)?;
        socket.send(b"anybody?")?;
        assert_eq!(socket.error()?, Errno::ENETUNREACH, "{what}");
        let refused = scene.lab.client3.enter(|| TcpStream::connect_timeout(&to.into(), DEADLINE))?;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::NetworkUnreachable, "{what}");
        assert_eq!(scene.count_of("no_uplink")?, before + 2, "{what}");
        // Everything else goes on by isp1.
        all_by(scene, &scene.lab.client1, scene.tcp.address().port(), 0)?;
        begin(scene)?;
        // Without a weight it is not called up.
        scene.mhd.wait_for_state("isp2", "up")?;
        all_by(scene, &scene.lab.client1, PORT, 1).with_context(|| format!("no longer {what}"))?;
    }
    Ok(())
}

/// The way from the internet host to the LAN's own addresses, by isp1, which lets them through.
fn route_the_lan(scene: &Scene) -> Result<()> {
    let uplink = scene.lab.uplink(0)?;
    uplink.isp.sysctl("ipv4/conf/all/rp_filter", "0")?;
    uplink.isp.sysctl("ipv4/conf/eth0/rp_filter", "0")?;
    uplink.isp.ip(&[format!("route add 192.168.0.0/16 via {}", uplink.address)])?;
    scene.lab.server.ip(&["route add 192.168.0.0/16 via 10.99.1.1"])
}

/// Untranslated, by the kernel's own route (isp1, though mh would take isp2), both ways and from the first segment to the last.
fn direct_is_the_kernels(scene: &mut Scene) -> Result<()> {
    let (tcp, udp) = servers(scene)?;
    route_the_lan(scene)?;
    configure(scene, [0, 1], &rule("direct"))?;
    let client = &scene.lab.client1;
    let end = Sniffer::start(&scene.lab.server, "tcp dst port 7100 and tcp[tcpflags] & (tcp-fin|tcp-rst) != 0")?;
    let (direct, strays) = (scene.count_of("pass_direct")?, scene.count_of("tcp_stray")?);

    let mut flow = TcpFlow::connect(client, tcp.address(), DEADLINE)?;
    assert_eq!(flow.seen, flow.local, "untranslated");
    flow.echo()?;
    for direction in [Direction::Upload, Direction::Download] {
        let done = transfer(client, tcp.address(), direction, 2_000_000)?;
        assert_eq!(*done.seen.ip(), CLIENT1);
    }
    let datagrams = UdpFlow::open(&scene.lab.client3, udp.address())?;
    assert_eq!(datagrams.seen, datagrams.local);
    assert_eq!(*datagrams.local.ip(), CLIENT3);
    assert_eq!(datagrams.ask()?, datagrams.seen);

    // One connection ends in order, another one with a reset: the last words arrive.
    let resets = TcpFlow::connect(client, tcp.address(), DEADLINE)?;
    let (ends, is_reset) = (flow.local, resets.local);
    drop(flow);
    reset(resets)?;
    wait_until("the FIN and the RST at the server", DEADLINE, || {
        let seen = end.segments();
        Ok([ends, is_reset].iter().all(|source| seen.iter().any(|segment| segment.source == *source)))
    })?;
    assert_eq!(scene.count_of("tcp_stray")?, strays);
    assert!(scene.count_of("pass_direct")? > direct + 20);
    let left = scene.mhd.flows(&["--dst", "192.0.2.10"])?;
    assert_eq!(left, Vec::<serde_json::Value>::new(), "mh follows none of them");

    // Fragments, the later of which have no ports to match.
    drop(udp);
    let later = ArrivalCounter::later_fragments(&scene.lab.server)?;
    let far = Datagrams::bind(&scene.lab.server, SERVER, PORT)?;
    let near = Datagrams::connected(client, SocketAddrV4::new(SERVER, PORT))?;
    for datagrams in [&far, &near] {
        datagrams.keep_whole(false)?;
    }
    let large: Vec<u8> = (0..=250).cycle().take(8000).collect();
    for _ in 0..3 {
        near.send(&large)?;
        let (bytes, source) = far.receive()?;
        assert_eq!(source, near.local);
        assert!(bytes == large, "another datagram arrived");
        far.send_to(&large, source)?;
        assert!(near.receive()?.0 == large, "another answer arrived");
    }
    assert_eq!(later.packets()?, 3 * 5);

    // What the rule does not match is mh's as ever.
    all_by(scene, client, scene.tcp.address().port(), 1).map(drop)
}

/// Closes a connection with a reset.
fn reset(flow: TcpFlow) -> Result<()> {
    let stream = flow.into_stream();
    Ok(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?)
}

fn reject_tells_the_client(scene: &mut Scene) -> Result<()> {
    let (tcp, udp) = servers(scene)?;
    configure(scene, [1, 1], &rule("reject"))?;
    let before = scene.count_of("rule_reject")?;
    let (client, to) = (&scene.lab.client1, udp.address());
    let sniffer = Sniffer::start_verbose(client, "icmp")?;
    let socket = Datagrams::connected(client, to)?;
    socket.send(b"anybody?")?;
    assert_eq!(socket.error()?, Errno::EHOSTUNREACH);
    let refused = client.enter(|| TcpStream::connect_timeout(&to.into(), DEADLINE))?;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::HostUnreachable);
    // Type 3 code 13, from the router, about what was sent and as it was sent.
    let wanted = format!("{ROUTER_LAN0} > {CLIENT1}: ICMP host {SERVER} unreachable - admin prohibited filter");
    wait_until("both refusals", DEADLINE, || Ok(sniffer.text().matches(&wanted).count() >= 2))
        .with_context(|| sniffer.text())?;
    let quoted = format!("{CLIENT1}.{} > {SERVER}.{PORT}: UDP", socket.local.port());
    assert!(sniffer.text().contains(&quoted), "{quoted:?} in {}", sniffer.text());
    assert!(!sniffer.text().contains("bad cksum"), "{}", sniffer.text());
    assert_eq!(scene.count_of("rule_reject")?, before + 2);
    drop(udp_flows(client, scene.udp.address(), 3)?);
    assert_eq!((tcp.seen(), udp.seen()), (vec![], vec![]), "nothing arrived");
    Ok(())
}

fn drop_says_nothing(scene: &mut Scene) -> Result<()> {
    let (tcp, udp) = servers(scene)?;
    configure(scene, [1, 1], &rule("drop"))?;
    let before = scene.count_of("rule_drop")?;
    let sniffer = Sniffer::start(&scene.lab.client1, "icmp")?;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let socket = DatagramSocket::bind(&scene.lab.client1, any)?;
    for _ in 0..10 {
        socket.send(udp.address(), "anybody?")?;
    }
    wait_until("all to be dropped", DEADLINE, || Ok(scene.count_of("rule_drop")? >= before + 10))?;
    assert_eq!(scene.count_of("rule_drop")?, before + 10);
    let timeout = Duration::from_millis(500);
    let gone = scene.lab.client1.enter(|| TcpStream::connect_timeout(&tcp.address().into(), timeout))?;
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::TimedOut, "a SYN that is not answered");
    assert!(scene.count_of("rule_drop")? > before + 10);
    // What is sent after it on the same ways has come through: so would have what came before.
    UdpFlow::open(&scene.lab.client1, scene.udp.address())?;
    scene.lab.client1.ping(ROUTER_LAN0, 1)?;
    wait_until("the ping's answer", DEADLINE, || Ok(sniffer.text().contains("echo reply")))?;
    assert!(!sniffer.text().contains("unreachable"), "{}", sniffer.text());
    assert_eq!((tcp.seen(), udp.seen()), (vec![], vec![]), "nothing arrived");
    assert!(socket.receive(Duration::from_millis(1))?.is_none(), "nothing came back");
    Ok(())
}

/// The machine's own flows are matched too, but by no rule that asks for an interface.
fn own_traffic(scene: &mut Scene) -> Result<()> {
    let (tcp, udp) = servers(scene)?;
    let router = scene.lab.router.clone();
    let [isp1, isp2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
    let own = |weights: [u32; 2], rules: &str, wanted: Ipv4Addr| -> Result<()> {
        configure(scene, weights, rules)?;
        scene.mhd.ctl(&["flows", "flush"])?;
        let flows = tcp_flows(&router, tcp.address(), 5)?;
        let datagrams = udp_flows(&router, udp.address(), 5)?;
        for seen in flows.iter().map(|flow| flow.seen).chain(datagrams.iter().map(|flow| flow.seen)) {
            assert_eq!(*seen.ip(), wanted, "with {weights:?} and {rules}");
        }
        Ok(())
    };
    own([1, 0], "", isp1)?;
    own([1, 0], &rule("uplink:isp2"), isp2)?;
    let asking = |action: &str| rule(action) + "interface = [\"lan0\", \"lan*\"]\n";
    own([1, 0], &asking("uplink:isp2"), isp1)?;
    own([1, 0], &asking("drop"), isp1)?;
    own([1, 0], &(rule("uplink:isp2") + "from = [\"198.51.100.0/24\", \"203.0.113.0/24\"]\n"), isp2)?;
    // The kernel's own route is by isp1.
    own([0, 1], "", isp2)?;
    own([0, 1], &rule("direct"), isp1)?;

    configure(scene, [1, 1], &rule("drop"))?;
    scene.mhd.ctl(&["flows", "flush"])?;
    let before = scene.count_of("rule_drop")?;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let socket = DatagramSocket::bind(&router, any)?;
    let arrived = udp.seen().len();
    for _ in 0..5 {
        // The kernel may tell of the loss at once.
        let _ = socket.send(udp.address(), "anybody?");
    }
    wait_until("own datagrams to be dropped", DEADLINE, || Ok(scene.count_of("rule_drop")? >= before + 5))?;
    configure(scene, [1, 1], &rule("reject"))?;
    let before = scene.count_of("rule_reject")?;
    let refused = router.enter(|| TcpStream::connect_timeout(&tcp.address().into(), Duration::from_millis(800)))?;
    println!("an own connection that is rejected: {:?}", refused.as_ref().err());
    assert!(refused.is_err(), "rejected, and yet connected");
    assert!(scene.count_of("rule_reject")? > before);
    udp_flows(&router, scene.udp.address(), 3)?;
    assert_eq!(udp.seen().len(), arrived, "dropped, and yet arrived");
    Ok(())
}

/// The machine's own flows, too, go by the uplink that their rule names or not at all.
fn own_traffic_by_an_uplink_that_fails(scene: &mut Scene) -> Result<()> {
    let (tcp, udp) = servers(scene)?;
    let router = scene.lab.router.clone();
    configure(scene, [1, 0], &rule("uplink:isp2"))?;
    assert_eq!(*TcpFlow::connect(&router, tcp.address(), DEADLINE)?.seen.ip(), scene.lab.uplink(1)?.address);
    let before = (tcp.seen().len(), udp.seen().len());
    scene.lab.uplink(1)?.isp.set_link("eth0", false)?;
    scene.mhd.wait_for_state("isp2", "down")?;
    let refused = scene.count_of("no_uplink")?;
    let timeout = Duration::from_millis(800);
    let gone = router.enter(|| TcpStream::connect_timeout(&tcp.address().into(), timeout))?;
    println!("an own connection without its uplink: {:?}", gone.as_ref().err());
    assert!(gone.is_err(), "connected, and not by the uplink that the rule names");
    let socket = DatagramSocket::bind(&router, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
    // The kernel may tell of the loss at once.
    let _ = socket.send(udp.address(), "anybody?");
    wait_until("the refusals", DEADLINE, || Ok(scene.count_of("no_uplink")? >= refused + 2))?;
    // What is under no such rule goes on, and comes after what would have arrived by then.
    assert_eq!(udp_flows(&router, scene.udp.address(), 3)?.len(), 3);
    assert_eq!((tcp.seen().len(), udp.seen().len()), before, "by another uplink");
    scene.lab.uplink(1)?.isp.set_link("eth0", true)?;
    scene.mhd.wait_for_state("isp2", "up")?;
    assert_eq!(*TcpFlow::connect(&router, tcp.address(), DEADLINE)?.seen.ip(), scene.lab.uplink(1)?.address);
    Ok(())
}

/// With a rule that drops everything, all is well that does not begin towards an uplink.
fn what_is_no_uplinks_business_is_let_be(scene: &mut Scene) -> Result<()> {
    let lab = &scene.lab;
    let forward = format!(
        "[[forward]]\nuplinks = [\"isp1\", \"isp2\"]\nprotocol = \"tcp\"\nport = \"8443\"\nto = \"{CLIENT3}:{PORT}\"\n"
    );
    configure(scene, [1, 1], &format!("{forward}[[rule]]\nname = \"all\"\nuse = \"drop\"\n"))?;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    let (_inside, _own) = (TcpServer::start(&lab.client3, any)?, TcpServer::start(&lab.router, any)?);
    let before = scene.count_of("rule_drop")?;
    let mut flows = vec![
        // From LAN to LAN, to the router, and from the router to a LAN.
        TcpFlow::connect(&lab.client1, SocketAddrV4::new(CLIENT3, PORT), DEADLINE)?,
        TcpFlow::connect(&lab.client1, SocketAddrV4::new(ROUTER_LAN0, PORT), DEADLINE)?,
        TcpFlow::connect(&lab.router, SocketAddrV4::new(CLIENT3, PORT), DEADLINE)?,
    ];
    for uplink in &lab.uplinks {
        // From outside, to an inside host and to the router; from inside by the outside address, too.
        for (host, port) in [(&lab.server, 8443), (&lab.server, PORT), (&lab.client1, 8443)] {
            let flow = TcpFlow::connect(host, SocketAddrV4::new(uplink.address, port), DEADLINE);
            flows.push(flow.with_context(|| format!("{} from {} to port {port}", uplink.name, host.name()))?);
        }
    }
    flows.iter_mut().try_for_each(TcpFlow::echo)?;
    for client in [&lab.client1, &lab.client3] {
        assert_eq!(client.ping(ROUTER_LAN0, 2)?, 2);
    }
    assert_eq!(scene.count_of("rule_drop")?, before);
    // And everything else is dropped.
    assert_eq!(lab.client1.ping(SERVER, 1)?, 0);
    assert_eq!(scene.count_of("rule_drop")?, before + 1);
    flows.iter_mut().try_for_each(TcpFlow::echo)
}

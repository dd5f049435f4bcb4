//! NAT as its users see it: mapping and filtering (RFC 5780's terms), hairpins, pools of addresses, and limits per inside host.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10, .11
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! The server's second address, 192.0.2.11, stands for another machine. For pools, wan1 has 198.51.100.8 to .11 too, and client1 has
//! 192.168.1.100 and following.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{
    DatagramSocket, Direction, Sniffer, TcpFlow, TcpServer, UdpFlow, UdpServer, transfer, udp_flows,
};
use mh_tests::lab::{CLIENT1, CLIENT2, CLIENT3, Discovery, Host, SERVER, Scene, StunServer, wait_until};
use nix::errno::Errno;

in_both_modes!(
    stun_finds_endpoint_independence,
    stun_finds_address_dependent_filtering,
    udp_hairpin_shows_the_outside_end,
    tcp_hairpin_shows_the_outside_end,
    a_client_reaches_its_own_outside_end,
    everybody_may_send_to_a_binding,
    only_known_addresses_may_send_to_a_binding,
    unsolicited_connections_are_not_answered,
    sources_keep_to_an_address_of_the_pool,
    a_pool_may_be_routed_to_the_machine,
    bindings_of_a_source_are_limited,
    new_flows_of_a_source_are_limited,
);

/// The server's second address.
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
const ADDRESS_DEPENDENT: &str = "[nat]\nfiltering = \"address-dependent\"";

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

fn add_second_address(scene: &Scene) -> Result<()> {
    scene.lab.server.ip(&[format!("addr add {SECOND}/32 dev lo")])
}

/// What STUN says must be so whatever uplink is used, and with flows of a source spread over both as far as the config allows.
fn discover(scene: &Scene, nat: &str, filtering: &str) -> Result<()> {
    add_second_address(scene)?;
    let _stun = StunServer::start(scene.lab.lab(), &scene.lab.server, SECOND)?;
    scene.reconfigure(&format!("[policy.default]\nhash = \"source\"\n{nat}"))?;
    check_discovery(&Discovery::run(&scene.lab.client1, CLIENT1)?, filtering);
    scene.reconfigure(nat)?;
    scene.set_weights(0, 1)?;
    let discovery = Discovery::run(&scene.lab.client3, CLIENT3)?;
    check_discovery(&discovery, filtering);
    assert!(discovery.says(&scene.lab.uplink(1)?.address.to_string()), "{}", discovery.text);
    Ok(())
}

fn check_discovery(discovery: &Discovery, filtering: &str) {
    for judgement in ["NAT with Endpoint Independent Mapping!", filtering, "successful hairpinning"] {
        assert!(discovery.says(judgement), "{judgement}: {}", discovery.text);
    }
    assert!(!discovery.says("ALG detected"), "{}", discovery.text);
}

fn stun_finds_endpoint_independence(scene: &mut Scene) -> Result<()> {
    discover(scene, "", "NAT with Endpoint Independent Filtering!")?;
    assert_eq!(scene.count_of("filtered")?, 0);
    Ok(())
}

fn stun_finds_address_dependent_filtering(scene: &mut Scene) -> Result<()> {
    discover(scene, ADDRESS_DEPENDENT, "NAT with Address Dependent Filtering!")?;
    // One answer from the other address in each of the two discoveries.
    assert_eq!(scene.count_of("filtered")?, 2);
    Ok(())
}

/// The outside end of a binding on the uplink at `index`, as mhctl tells it.
fn outside_of(scene: &Scene, protocol: &str, inside: SocketAddrV4, index: usize) -> Result<SocketAddrV4> {
    let uplink = &scene.lab.uplink(index)?.name;
    let bindings = scene.bindings()?;
    let found = bindings.iter().find(|binding| {
        binding["protocol"] == protocol
            && binding["inside"] == inside.ip().to_string()
            && binding["inside_port"] == inside.port()
            && binding["uplink"] == **uplink
    });
    let found = found.with_context(|| format!("no {protocol} binding of {inside} on {uplink} in {bindings:?}"))?;
    let port = found["outside_port"].as_u64().context("outside_port")?;
    Ok(at(found["outside"].as_str().context("outside")?.parse()?, port.try_into()?))
}

fn udp_hairpin_shows_the_outside_end(scene: &mut Scene) -> Result<()> {
    for (index, port, (isp1, isp2)) in [(0, 20_000, (1, 0)), (1, 20_001, (0, 1))] {
        scene.set_weights(isp1, isp2)?;
        // The peer makes its binding as it would for ICE: it asks the server, then lets others ask it from the same port.
        let peer = UdpFlow::open_from(&scene.lab.client3, port, scene.udp.address())?.seen;
        assert_eq!(*peer.ip(), scene.lab.uplink(index)?.address);
        let service = UdpServer::start(&scene.lab.client3, at(CLIENT3, port))?;
        // Not over the uplink that new flows take: the peer's address says which one the hairpin is on.
        scene.set_weights(isp2, isp1)?;
        // Of the same LAN and of the other one: the bridge must not matter.
        for (client, address) in [(&scene.lab.client1, CLIENT1), (&scene.lab.client2, CLIENT2)] {
            let flow = UdpFlow::open(client, peer)?;
            let binding = outside_of(scene, "udp", at(address, flow.local.port()), index)?;
            assert_eq!(flow.seen, binding, "the source that the peer saw");
            assert_eq!(*flow.seen.ip(), *peer.ip());
            for _ in 0..3 {
                assert_eq!(flow.ask()?, flow.seen);
            }
        }
        let strangers = service.seen().into_iter().filter(|source| source.ip() != peer.ip()).count();
        assert_eq!(strangers, 0, "{:?}", service.seen());
    }
    assert!(scene.count_of("hairpin")? >= 4, "each of four flows began with one");
    Ok(())
}

fn tcp_hairpin_shows_the_outside_end(scene: &mut Scene) -> Result<()> {
    scene.set_weights(0, 1)?;
    let local = at(CLIENT3, 20_000);
    let mut opener = TcpFlow::connect_from(&scene.lab.client3, local, scene.tcp.address(), PATIENCE)?;
    let peer = opener.seen;
    assert_eq!(*peer.ip(), scene.lab.uplink(1)?.address);
    let service = TcpServer::start(&scene.lab.client3, local)?;
    scene.set_weights(1, 0)?;
    for (client, address) in [(&scene.lab.client1, CLIENT1), (&scene.lab.client2, CLIENT2)] {
        let mut flow = TcpFlow::connect(client, peer, PATIENCE)?;
        assert_eq!(flow.seen, outside_of(scene, "tcp", at(address, flow.local.port()), 1)?);
        assert_eq!(service.seen().last(), Some(&flow.seen));
        flow.echo()?;
        let sent = transfer(client, peer, Direction::Download, 5_000_000)?;
        assert_eq!(*sent.seen.ip(), *peer.ip());
        flow.echo()?;
    }
    // What the binding was made for goes on beside.
    opener.echo()
}

fn a_client_reaches_its_own_outside_end(scene: &mut Scene) -> Result<()> {
    scene.set_weights(1, 0)?;
    let socket = DatagramSocket::bind(&scene.lab.client1, at(CLIENT1, 20_000))?;
    socket.send(scene.udp.address(), "q")?;
    let (server, answer) = socket.receive(PATIENCE)?.context("no answer from the server")?;
    assert_eq!(server, scene.udp.address());
    let own: SocketAddrV4 = answer.split(' ').next().context("the answer")?.parse()?;
    // From another port of its own.
    let other = DatagramSocket::bind(&scene.lab.client1, at(CLIENT1, 20_001))?;
    other.send(own, "from another port")?;
    let seen = socket.expect("from another port")?;
    assert_eq!(seen, outside_of(scene, "udp", other.local, 0)?);
    socket.send(seen, "and back")?;
    assert_eq!(other.expect("and back")?, own);
    // From the very same port: sender and receiver are one, and so are the flow's two directions.
    for text in ["to myself", "and again"] {
        socket.send(own, text)?;
        assert_eq!(socket.expect(text)?, own);
    }
    // None of it disturbs the flow that made the binding.
    socket.send(scene.udp.address(), "still")?;
    assert_eq!(socket.expect(&format!("{own} still"))?, scene.udp.address());
    Ok(())
}

/// A binding of client1 for UDP and one for TCP, behind both of which it listens: sockets and outside ends.
struct Behind {
    udp: DatagramSocket,
    udp_end: SocketAddrV4,
    _opener: TcpFlow,
    tcp: TcpServer,
    tcp_end: SocketAddrV4,
}

fn listen_behind_bindings(scene: &Scene) -> Result<Behind> {
    add_second_address(scene)?;
    // Bindings are an uplink's, and so is what may come in by them.
    scene.set_weights(1, 0)?;
    let client = &scene.lab.client1;
    let udp = DatagramSocket::bind(client, at(CLIENT1, 20_000))?;
    udp.send(scene.udp.address(), "q")?;
    let (_, answer) = udp.receive(PATIENCE)?.context("no answer from the server")?;
    let udp_end = answer.split(' ').next().context("the answer")?.parse()?;
    let local = at(CLIENT1, 20_000);
    let opener = TcpFlow::connect_from(client, local, scene.tcp.address(), PATIENCE)?;
    let tcp_end = opener.seen;
    Ok(Behind { udp, udp_end, _opener: opener, tcp: TcpServer::start(client, local)?, tcp_end })
}

/// Has a source on the server send to both ends and be answered; the client must see the source as it is.
fn check_let_in(scene: &Scene, behind: &Behind, source: SocketAddrV4) -> Result<()> {
    let outsider = DatagramSocket::bind(&scene.lab.server, source)?;
    outsider.send(behind.udp_end, "hello")?;
    assert_eq!(behind.udp.expect("hello")?, source);
    behind.udp.send(source, "welcome")?;
    assert_eq!(outsider.expect("welcome")?, behind.udp_end);
    let mut flow = TcpFlow::connect_from(&scene.lab.server, source, behind.tcp_end, PATIENCE)?;
    assert_eq!(flow.seen, source);
    flow.echo()
}

fn everybody_may_send_to_a_binding(scene: &mut Scene) -> Result<()> {
    let behind = listen_behind_bindings(scene)?;
    for source in [at(SERVER, 7100), at(SECOND, 7101)] {
        check_let_in(scene, &behind, source)?;
    }
    assert_eq!(scene.count_of("filtered")?, 0);
    assert!(scene.count_of("inbound")? >= 4);
    Ok(())
}

fn only_known_addresses_may_send_to_a_binding(scene: &mut Scene) -> Result<()> {
    scene.reconfigure(ADDRESS_DEPENDENT)?;
    let behind = listen_behind_bindings(scene)?;
    // Another port of an address that the client has sent to.
    check_let_in(scene, &behind, at(SERVER, 7100))?;
    assert_eq!(scene.count_of("filtered")?, 0);

    let stranger = DatagramSocket::bind(&scene.lab.server, at(SECOND, 7101))?;
    for number in 1..=3 {
        stranger.send(behind.udp_end, "let me in")?;
        wait_until("the filter to count", PATIENCE, || Ok(scene.count_of("filtered")? == number))?;
    }
    let refused =
        TcpFlow::connect_from(&scene.lab.server, at(SECOND, 7101), behind.tcp_end, Duration::from_millis(500));
    refused.expect_err("a connection from an address that the client has not sent to");
    assert!(scene.count_of("filtered")? >= 4);
    // What came from where is ordered: had anything got through, it would be here before this.
    let known = DatagramSocket::bind(&scene.lab.server, at(SERVER, 7102))?;
    known.send(behind.udp_end, "me too")?;
    let (source, text) = behind.udp.receive(PATIENCE)?.context("nothing from a known address")?;
    assert_eq!((source, text.as_str()), (at(SERVER, 7102), "me too"));
    assert!(behind.tcp.seen().iter().all(|source| *source.ip() == SERVER), "{:?}", behind.tcp.seen());

    // Sending is what makes an address known: from then on all its ports may send, by the protocol in question only.
    let door = DatagramSocket::bind(&scene.lab.server, at(SECOND, 7104))?;
    behind.udp.send(door.local, "knock")?;
    assert_eq!(door.expect("knock")?, behind.udp_end);
    stranger.send(behind.udp_end, "and now")?;
    assert_eq!(behind.udp.expect("and now")?, at(SECOND, 7101));
    let refused =
        TcpFlow::connect_from(&scene.lab.server, at(SECOND, 7103), behind.tcp_end, Duration::from_millis(500));
    refused.expect_err("a TCP connection from an address that UDP was sent to");
    Ok(())
}

fn unsolicited_connections_are_not_answered(scene: &mut Scene) -> Result<()> {
    for index in 0..2 {
        let address = scene.lab.uplink(index)?.address;
        let sniffer = Sniffer::start(&scene.lab.server, &format!("src {address}"))?;
        let connect = |port: u16| {
            let to = at(address, port).into();
            scene.lab.server.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(1500)))
        };
        let before = scene.count_of("unsolicited_syn")?;
        let error = connect(50_000)?.expect_err("a connection to a port that nobody has");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        // The first, and one that was sent again after a second.
        let counted = scene.count_of("unsolicited_syn")? - before;
        assert!(counted >= 2, "{counted}");
        // The capture works, and shows nothing but this: the machine's own services answer, in the range of NAT's ports and below.
        let _service = TcpServer::start(&scene.lab.router, at(address, 50_001))?;
        connect(50_001)?.context("a service of the router")?;
        let error = connect(80)?.expect_err("a connection to a port where nobody listens, below NAT's range");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        wait_until("the answers in the capture", PATIENCE, || {
            Ok([50_001, 80].iter().all(|port| sniffer.segments().iter().any(|segment| segment.source.port() == *port)))
        })?;
        let silent = sniffer.segments().iter().all(|segment| segment.source.port() != 50_000);
        assert!(silent, "{:?}", sniffer.segments());
        assert_eq!(scene.count_of("unsolicited_syn")?, before + counted);
    }
    Ok(())
}

fn sources_keep_to_an_address_of_the_pool(scene: &mut Scene) -> Result<()> {
    const SOURCES: u8 = 80;
    let uplink = scene.lab.uplink(0)?;
    let own = uplink.address;
    let pool: BTreeSet<Ipv4Addr> =
        [own].into_iter().chain((8..=11).map(|last| Ipv4Addr::new(198, 51, 100, last))).collect();
    let extra = pool.iter().filter(|address| **address != own);
    scene.lab.router.ip(&extra.map(|address| format!("addr add {address}/24 dev wan1")).collect::<Vec<_>>())?;
    let sources: Vec<Ipv4Addr> = (0..SOURCES).map(|n| Ipv4Addr::new(192, 168, 1, 100 + n)).collect();
    let lines: Vec<String> = sources.iter().map(|source| format!("addr add {source}/24 dev eth0")).collect();
    scene.lab.client1.ip(&lines)?;
    let config = scene.lab.config(&[1, 0]);
    let pooled = config.replace(&format!("address = \"{own}\""), "address = [\"198.51.100.2\", \"198.51.100.8/30\"]");
    assert_ne!(config, pooled);
    scene.configure(&pooled)?;

    let mut outside = BTreeMap::new();
    let mut flows = Vec::new();
    for &source in &sources {
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let flow = UdpFlow::open_bound(&scene.lab.client1, at(source, 0), scene.udp.address())?;
            seen.insert(*flow.seen.ip());
            flows.push(flow);
        }
        let mut tcp = TcpFlow::connect_from(&scene.lab.client1, at(source, 0), scene.tcp.address(), PATIENCE)?;
        tcp.echo()?;
        seen.insert(*tcp.seen.ip());
        assert_eq!(seen.len(), 1, "{source} was seen as {seen:?}");
        outside.insert(source, *seen.first().context("no address")?);
    }
    let mut counts: BTreeMap<Ipv4Addr, usize> = pool.iter().map(|&address| (address, 0)).collect();
    for (source, address) in &outside {
        *counts.get_mut(address).with_context(|| format!("{source} was seen as {address}"))? += 1;
    }
    // Sixteen each on the average; outside this range once in some million runs.
    assert!(counts.values().all(|count| (1..=40).contains(count)), "{counts:?}");
    // Whichever address it is, others inside reach it by a hairpin, with the address that they are paired with themselves.
    let local = at(sources[0], 20_000);
    let peer = UdpFlow::open_bound(&scene.lab.client1, local, scene.udp.address())?.seen;
    assert_eq!(Some(peer.ip()), outside.get(&sources[0]));
    let _service = UdpServer::start(&scene.lab.client1, local)?;
    let hairpin = UdpFlow::open(&scene.lab.client3, peer)?;
    let plain = UdpFlow::open(&scene.lab.client3, scene.udp.address())?;
    assert_eq!(hairpin.seen.ip(), plain.seen.ip());
    // Nothing moved meanwhile.
    for flow in &flows {
        assert_eq!(flow.ask()?, flow.seen);
    }
    Ok(())
}

/// The pool's addresses are not the machine's own: the ISP has a route to it for them.
fn a_pool_may_be_routed_to_the_machine(scene: &mut Scene) -> Result<()> {
    let uplink = scene.lab.uplink(0)?;
    let own = uplink.address;
    uplink.isp.ip(&[format!("route add 198.51.100.8/30 via {own}")])?;
    let config = scene.lab.config(&[1, 0]);
    let routed = config.replace(&format!("address = \"{own}\""), "address = \"198.51.100.8/30\"");
    scene.configure(&format!("{routed}\n{ADDRESS_DEPENDENT}"))?;

    let local = at(CLIENT1, 20_000);
    let peer = UdpFlow::open_bound(&scene.lab.client1, local, scene.udp.address())?.seen;
    assert!((8..=11).contains(&peer.ip().octets()[3]), "{peer}");
    let mut tcp = TcpFlow::connect(&scene.lab.client2, scene.tcp.address(), PATIENCE)?;
    tcp.echo()?;
    // The server may send to it, from any port; and other inside hosts may, whom no filter is for (RFC 4787 REQ-9).
    let service = UdpServer::start(&scene.lab.client1, local)?;
    let known = UdpFlow::open(&scene.lab.server, peer)?;
    assert_eq!(service.seen().last(), Some(&known.seen));
    let sniffer = Sniffer::start(&uplink.isp, &format!("dst {}", peer.ip()))?;
    let hairpin = UdpFlow::open(&scene.lab.client3, peer)?;
    assert_eq!(hairpin.seen, outside_of(scene, "udp", at(CLIENT3, hairpin.local.port()), 0)?);
    assert_eq!(known.ask()?, known.seen);
    wait_until("the server's datagram in the capture", PATIENCE, || {
        Ok(sniffer.segments().iter().any(|segment| *segment.source.ip() == SERVER))
    })?;
    assert!(sniffer.segments().iter().all(|segment| *segment.source.ip() == SERVER), "{:?}", sniffer.segments());

    // What nobody inside has asked for ends here: sent back to the ISP, it would come again until its TTL is over.
    let back = Sniffer::start(&uplink.isp, "src 192.0.2.10 and dst net 198.51.100.8/30 and dst port 50000")?;
    let outsider = DatagramSocket::bind(&scene.lab.server, at(SERVER, 7100))?;
    outsider.send(at(*peer.ip(), 50_000), "anybody there?")?;
    let error = TcpFlow::connect(&scene.lab.server, at(*peer.ip(), 50_000), Duration::from_millis(500));
    error.expect_err("a connection to a port that nobody has");
    wait_until("both in the capture", PATIENCE, || Ok(back.segments().len() >= 2))?;
    outsider.send(at(*peer.ip(), 50_000), "anybody there?")?;
    wait_until("the last one in the capture", PATIENCE, || Ok(back.segments().len() >= 3))?;
    assert_eq!(back.segments().len(), 3, "{:?}", back.segments());
    Ok(())
}

/// Sends a datagram on a socket that is connected to a [`UdpServer`]; whether the answer came, or what ICMP said.
fn try_to_ask(socket: &UdpSocket) -> io::Result<bool> {
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.send(b"q")?;
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => Ok(false),
        Err(error) => Err(error),
    }
}

fn connected(host: &Host, to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = host.enter(|| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        Ok(socket)
    })??;
    Ok(socket)
}

fn bindings_of_a_source_are_limited(scene: &mut Scene) -> Result<()> {
    const LIMIT: usize = 12;
    scene.reconfigure(&format!("[limits]\nbindings_per_source = {LIMIT}\n[timeouts]\nudp = \"6s\""))?;
    scene.set_weights(1, 0)?;
    let (client1, client2, server) = (&scene.lab.client1, &scene.lab.client2, scene.udp.address());
    let flows = udp_flows(client1, server, LIMIT)?;
    let before = scene.udp.seen().len();
    let excess = connected(client1, server)?;
    // ICMP type 3 code 13, communication administratively prohibited. Linux limits how many it sends to one host.
    wait_until("the refusal to be told", PATIENCE, || match try_to_ask(&excess) {
        Ok(answered) => {
            assert!(!answered, "the limit was passed");
            Ok(false)
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::EHOSTUNREACH as i32), "{error}");
            Ok(true)
        }
    })?;
    assert_eq!(scene.udp.seen().len(), before, "nothing of it was to be sent");
    assert!(scene.count_of("source_bindings")? >= 1);
    // What it has, it may use, also for other destinations of the same ports; and others are not concerned.
    for flow in &flows {
        assert_eq!(flow.ask()?, flow.seen);
    }
    let others = udp_flows(client2, server, LIMIT)?;
    assert_eq!(others.len(), LIMIT);
    let held = scene.bindings()?.iter().filter(|binding| binding["inside"] == CLIENT1.to_string()).count();
    assert_eq!(held, LIMIT);
    // When they have ended there is room again, for as many and no more.
    drop(flows);
    let waited =
        wait_until("a binding to end", Duration::from_secs(60), || Ok(matches!(try_to_ask(&excess), Ok(true))))?;
    println!("room again after {waited:?}");
    wait_until("all to end", Duration::from_secs(60), || {
        let bindings = scene.bindings()?;
        let mut held = bindings.iter().filter(|binding| binding["inside"] == CLIENT1.to_string());
        Ok(held.all(|binding| binding["inside_port"] == excess.local_addr().map_or(0, |address| address.port())))
    })?;
    let again = udp_flows(client1, server, LIMIT - 1)?;
    assert_eq!(again.len(), LIMIT - 1);
    Ok(())
}

fn new_flows_of_a_source_are_limited(scene: &mut Scene) -> Result<()> {
    const LIMIT: u128 = 20;
    const FLOWS: usize = 300;
    scene.reconfigure(&format!("[limits]\nnew_flows_per_source = {LIMIT}"))?;
    let (client1, client2, server) = (&scene.lab.client1, &scene.lab.client2, scene.udp.address());
    let sockets = (0..FLOWS).map(|_| connected(client1, server)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    for socket in &sockets {
        // An ICMP error of an earlier datagram belongs to another socket.
        socket.send(b"q")?;
    }
    let elapsed = begun.elapsed();
    // Windows are a second long, and the burst may begin in the middle of one.
    let most = LIMIT * (elapsed.as_millis() / 1000 + 2);
    let refused = scene.count_of("source_rate")?;
    wait_until("what was let through", PATIENCE, || Ok(scene.udp.seen().len() as u64 + refused >= FLOWS as u64))?;
    let passed = scene.udp.seen().len();
    assert!((LIMIT..=most).contains(&(passed as u128)), "{passed} of {FLOWS} in {elapsed:?}");
    let told = sockets.iter().filter_map(|socket| socket.take_error().ok().flatten());
    let codes: BTreeSet<Option<i32>> = told.map(|error| error.raw_os_error()).collect();
    assert_eq!(codes, BTreeSet::from([Some(Errno::EHOSTUNREACH as i32)]));
    // Others are not concerned, and neither are flows that exist.
    udp_flows(client2, server, 10)?;
    let late = connected(client1, server)?;
    wait_until("the next second", PATIENCE, || Ok(matches!(try_to_ask(&late), Ok(true))))?;
    Ok(())
}

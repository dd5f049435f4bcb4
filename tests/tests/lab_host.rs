//! What the machine itself is asked, and what it begins itself: the right uplink either way.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! The ISPs drop what comes from their customer with a source that is not theirs: an answer that arrives has left by the uplink that
//! its source belongs to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{
    Bound, Direction, Split, TcpFlow, TcpServer, UdpFlow, UdpServer, tcp_flows, transfer, udp_flows,
};
use mh_tests::lab::{Host, Lab, Mode, Options, ROUTER_LAN0, Scene, run_scene, wait_for, wait_until};

in_both_modes!(
    answers_leave_by_the_uplink_that_was_asked,
    answers_of_a_lan_address_leave_by_the_uplink_that_was_asked,
    answers_of_a_wildcard_socket_come_from_the_address_that_was_asked,
    own_flows_are_split_by_weight,
    own_flows_follow_extreme_weights,
    bound_sockets_stay_on_their_uplink,
    link_local_and_dhcp_traffic_stays_on_its_link,
    requests_survive_a_black_hole,
    requests_survive_a_silent_gateway,
    requests_survive_a_lost_carrier,
    requests_survive_a_link_set_down,
);

/// Where the router's services listen.
const PORT: u16 = 7300;
const BYTES: u64 = 5_000_000;

/// TCP both ways and ping from the internet host to an address of the router.
fn ask_by_tcp_and_ping(scene: &Scene, address: Ipv4Addr) -> Result<()> {
    let server = &scene.lab.server;
    let to = SocketAddrV4::new(address, PORT);
    for mut flow in tcp_flows(server, to, 10)? {
        flow.echo()?;
        assert_eq!(flow.seen, flow.local, "what is for the router itself is not translated");
    }
    for direction in [Direction::Upload, Direction::Download] {
        transfer(server, to, direction, BYTES)?;
    }
    assert_eq!(server.ping(address, 5)?, 5, "ping {address}");
    Ok(())
}

/// UDP from the internet host to an address of the router; the client's sockets are connected, so that an answer from another address
/// or port is none.
fn ask_by_udp(scene: &Scene, address: Ipv4Addr, port: u16) -> Result<()> {
    for flow in udp_flows(&scene.lab.server, SocketAddrV4::new(address, port), 10)? {
        assert_eq!(flow.seen, flow.local);
        assert_eq!(flow.ask()?, flow.seen);
    }
    Ok(())
}

/// Gives the router the default routes of each case by turns, and runs the check with each.
fn with_default_routes(scene: &Scene, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let [first, second] = [0, 1].map(|index| {
        let uplink = scene.lab.uplink(index).unwrap();
        format!("via {} dev {}", uplink.gateway, uplink.interface)
    });
    let cases = [
        ("as built", vec![]),
        (
            "the other way round",
            vec![format!("append default {second} metric 100"), format!("append default {first} metric 200")],
        ),
        ("the first uplink only", vec![format!("append default {first}")]),
        ("the second uplink only", vec![format!("append default {second}")]),
        (
            "the same metric",
            vec![format!("append default {first} metric 100"), format!("append default {second} metric 100")],
        ),
        ("multipath", vec![format!("append default nexthop {first} nexthop {second}")]),
    ];
    for (what, routes) in cases {
        if !routes.is_empty() {
            // `route flush` exits with 0 also if there is nothing.
            scene.lab.router.run(&["ip", "route", "flush", "exact", "default"])?;
            let lines: Vec<String> = routes.iter().map(|route| format!("route {route}")).collect();
            scene.lab.router.ip(&lines)?;
        }
        check().with_context(|| format!("default routes: {what}"))?;
    }
    Ok(())
}

fn answers_leave_by_the_uplink_that_was_asked(scene: &mut Scene) -> Result<()> {
    let router = &scene.lab.router;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    let tcp = TcpServer::start(router, any)?;
    let wildcard = UdpServer::start_with_packet_info(router, any)?;
    let mut bound = Vec::new();
    for uplink in &scene.lab.uplinks {
        bound.push(UdpServer::start(router, SocketAddrV4::new(uplink.address, PORT + 1))?);
    }
    with_default_routes(scene, || {
        for uplink in &scene.lab.uplinks {
            let asked = || -> Result<()> {
                let before = scene.count_of("host")?;
                ask_by_tcp_and_ping(scene, uplink.address)?;
                ask_by_udp(scene, uplink.address, PORT)?;
                ask_by_udp(scene, uplink.address, PORT + 1)?;
                let counted = scene.count_of("host")? - before;
                assert!(counted > 100, "{counted} packets counted as the machine's own");
                Ok(())
            };
            asked().with_context(|| format!("asked through {}", uplink.name))?;
        }
        Ok(())
    })?;
    drop((tcp, wildcard, bound));
    Ok(())
}

fn answers_of_a_lan_address_leave_by_the_uplink_that_was_asked(scene: &mut Scene) -> Result<()> {
    let lab = &scene.lab;
    let tcp = TcpServer::start(&lab.router, SocketAddrV4::new(ROUTER_LAN0, PORT))?;
    let udp = UdpServer::start(&lab.router, SocketAddrV4::new(ROUTER_LAN0, PORT))?;
    for uplink in &lab.uplinks {
        // To the ISP's filter the address is its customer's from now on.
        uplink.isp.ip(&[format!("route add {ROUTER_LAN0}/32 via {}", uplink.address)])?;
    }
    with_default_routes(scene, || {
        for (number, uplink) in (1..).zip(&lab.uplinks) {
            // Only this ISP would let the answers pass.
            lab.server.ip(&[format!("route replace {ROUTER_LAN0}/32 via 10.99.{number}.1")])?;
            let sniffed = |interface: &str| -> Result<u64> {
                let file = format!("/sys/class/net/{interface}/statistics/tx_packets");
                Ok(lab.router.run(&["cat", &file])?.trim().parse()?)
            };
            let others: Vec<&str> =
                lab.uplinks.iter().map(|other| other.interface.as_str()).filter(|i| *i != uplink.interface).collect();
            let before: Vec<u64> = others.iter().map(|other| sniffed(other)).collect::<Result<_>>()?;
            ask_by_tcp_and_ping(scene, ROUTER_LAN0).with_context(|| format!("asked through {}", uplink.name))?;
            ask_by_udp(scene, ROUTER_LAN0, PORT).with_context(|| format!("asked through {}", uplink.name))?;
            for (other, before) in others.iter().zip(before) {
                // ARP and the like.
                assert!(sniffed(other)? - before < 20, "answers to {} left by {other}", uplink.name);
            }
        }
        Ok(())
    })?;
    drop((tcp, udp));
    Ok(())
}

/// A socket that is bound to no address, and doesn't ask for one: the kernel gives its answers the address that it would use for a
/// datagram of its own, and mh corrects that.
fn answers_of_a_wildcard_socket_come_from_the_address_that_was_asked(scene: &mut Scene) -> Result<()> {
    let udp = UdpServer::start(&scene.lab.router, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT))?;
    for uplink in &scene.lab.uplinks {
        ask_by_udp(scene, uplink.address, PORT).with_context(|| format!("asked through {}", uplink.name))?;
    }
    drop(udp);
    Ok(())
}

/// The sources of 200 TCP and 200 UDP flows of the router's own, each of which must keep its.
fn own_flows(scene: &Scene) -> Result<[Split; 2]> {
    let router = &scene.lab.router;
    let mut tcp = tcp_flows(router, scene.tcp.address(), 200)?;
    let udp = udp_flows(router, scene.udp.address(), 200)?;
    tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    for flow in &udp {
        for _ in 0..2 {
            assert_eq!(flow.ask()?, flow.seen);
        }
    }
    tcp.iter_mut().try_for_each(TcpFlow::echo)?;
    Ok([Split::of(tcp.iter().map(|flow| flow.seen)), Split::of(udp.iter().map(|flow| flow.seen))])
}

fn own_flows_are_split_by_weight(scene: &mut Scene) -> Result<()> {
    let [isp1, isp2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
    scene.set_weights(2, 1)?;
    for split in own_flows(scene)? {
        assert_eq!(split.total(), 200);
        split.check(&[(isp1, 2), (isp2, 1)])?;
    }
    assert_eq!(scene.lab.router.ping(*scene.tcp.address().ip(), 10)?, 10);
    Ok(())
}

fn own_flows_follow_extreme_weights(scene: &mut Scene) -> Result<()> {
    let [isp1, isp2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
    for (weights, address) in [((9, 0), isp1), ((0, 9), isp2)] {
        scene.set_weights(weights.0, weights.1)?;
        // A new socket may get the port of an old one, and with it the old one's flow.
        scene.mhd.ctl(&["flows", "flush"])?;
        for split in own_flows(scene)? {
            split.check(&[(address, 1)])?;
        }
        for direction in [Direction::Upload, Direction::Download] {
            let transferred = transfer(&scene.lab.router, scene.tcp.address(), direction, BYTES)?;
            assert_eq!(*transferred.seen.ip(), address, "{direction:?}");
        }
        assert_eq!(scene.lab.router.ping(*scene.tcp.address().ip(), 5)?, 5);
    }
    Ok(())
}

/// 50 connections and 50 flows of sockets bound to each uplink's address, and as many to its interface, come from that address.
fn check_bound(scene: &Scene) -> Result<()> {
    let router = &scene.lab.router;
    for uplink in &scene.lab.uplinks {
        for bound in [Bound::Address(uplink.address), Bound::Device(&uplink.interface)] {
            for _ in 0..50 {
                let mut tcp = bound.tcp(router, scene.tcp.address())?;
                assert_eq!(*tcp.seen.ip(), uplink.address, "tcp, {bound:?}");
                assert_eq!(tcp.seen, tcp.local, "tcp, {bound:?}");
                tcp.echo()?;
                let udp = bound.udp(router, scene.udp.address())?;
                assert_eq!(*udp.seen.ip(), uplink.address, "udp, {bound:?}");
                assert_eq!(udp.seen, udp.local, "udp, {bound:?}");
                assert_eq!(udp.ask()?, udp.seen);
            }
        }
        // ping binds to either as well.
        for way in [uplink.interface.as_str(), &uplink.address.to_string()] {
            let server = scene.tcp.address().ip().to_string();
            let arguments = ["ping", "-n", "-I", way, "-c", "5", "-i", "0.05", "-W", "1", &server];
            let printed = router.run(&arguments)?;
            assert!(printed.contains("5 received"), "{printed}");
        }
    }
    Ok(())
}

fn bound_sockets_stay_on_their_uplink(scene: &mut Scene) -> Result<()> {
    check_bound(scene)?;
    // Whatever the weights say.
    for (isp1, isp2) in [(9, 0), (0, 9)] {
        scene.set_weights(isp1, isp2)?;
        check_bound(scene)?;
    }
    Ok(())
}

fn link_local_and_dhcp_traffic_stays_on_its_link(scene: &mut Scene) -> Result<()> {
    let router = &scene.lab.router;
    for (index, weights) in [(0, (0, 9)), (1, (9, 0))] {
        // All else goes by the other uplink.
        scene.set_weights(weights.0, weights.1)?;
        let uplink = scene.lab.uplink(index)?;
        let gateway = SocketAddrV4::new(uplink.gateway, PORT);
        let servers = (TcpServer::start(&uplink.isp, gateway)?, UdpServer::start(&uplink.isp, gateway)?);
        for flow in tcp_flows(router, gateway, 20)? {
            assert_eq!((flow.seen, *flow.seen.ip()), (flow.local, uplink.address));
        }
        for flow in udp_flows(router, gateway, 20)? {
            assert_eq!((flow.seen, *flow.seen.ip()), (flow.local, uplink.address));
        }
        assert_eq!(router.ping(uplink.gateway, 3)?, 3);
        drop(servers);
    }
    // The default route is through isp1, the weights say isp2.
    scene.set_weights(0, 9)?;
    let [isp1, isp2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
    let dhcp = Bound::Port(68).udp(router, scene.udp.address())?;
    assert_eq!(dhcp.seen, SocketAddrV4::new(isp1, 68));
    let other = Bound::Port(69).udp(router, scene.udp.address())?;
    assert_eq!(*other.seen.ip(), isp2);
    Ok(())
}

/// Requests as DNS and NTP clients make them, with a new socket each, all answered, and none through a dead uplink.
fn request(scene: &Scene, dead: Option<Ipv4Addr>) -> Result<()> {
    for number in 0..20 {
        let flow =
            UdpFlow::open(&scene.lab.router, scene.udp.address()).with_context(|| format!("request {number}"))?;
        assert_ne!(Some(*flow.seen.ip()), dead);
    }
    Ok(())
}

/// Asks by a socket that is not connected, as NTP servers and tunnels do, until an answer comes; gives the source that the server saw.
fn ask_unconnected(scene: &Scene, socket: &UdpSocket) -> Result<SocketAddrV4> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let (answer, _) = wait_for("an answer to an unconnected socket", Duration::from_secs(5), || {
        // An ICMP error, or nothing: the next try decides.
        let _ = socket.send_to(b"time?", scene.udp.address());
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).ok();
        Ok(length.map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned()))
    })?;
    answer.split(' ').next().and_then(|source| source.parse().ok()).with_context(|| answer.clone())
}

/// The router's own requests go on when isp1 fails by `cut`, and after `mend`.
fn requests_survive(scene: &mut Scene, cut: fn(&Scene) -> Result<()>, mend: fn(&Scene) -> Result<()>) -> Result<()> {
    let router = &scene.lab.router;
    let address1 = scene.lab.uplink(0)?.address;
    let long_lived = udp_flows(router, scene.udp.address(), 16)?;
    let split = Split::of(long_lived.iter().map(|flow| flow.seen));
    assert_eq!(split.iter().count(), 2, "both uplinks take part: {split}");
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let unconnected = router.enter(|| (0..16).map(|_| UdpSocket::bind(any)).collect::<Result<Vec<_>, _>>())??;
    for socket in &unconnected {
        ask_unconnected(scene, socket)?;
    }
    request(scene, None)?;
    cut(scene)?;
    scene.mhd.wait_for_state("isp1", "down")?;
    request(scene, Some(address1)).context("a new socket each, isp1 down")?;
    for flow in &long_lived {
        let seen = flow.ask().context("long-lived sockets, isp1 down")?;
        assert_ne!(*seen.ip(), address1);
    }
    for socket in &unconnected {
        // Answers to what was asked before the cut may be among the first.
        wait_until("unconnected sockets to leave isp1", Duration::from_secs(5), || {
            Ok(*ask_unconnected(scene, socket)?.ip() != address1)
        })?;
    }
    for mut flow in tcp_flows(router, scene.tcp.address(), 5).context("TCP, isp1 down")? {
        flow.echo()?;
        assert_ne!(*flow.seen.ip(), address1);
    }
    mend(scene)?;
    scene.mhd.wait_for_state("isp1", "up")?;
    request(scene, None).context("a new socket each, isp1 back")?;
    for flow in &long_lived {
        flow.ask().context("long-lived sockets, isp1 back")?;
    }
    Ok(())
}

/// What arrives at isp1 vanishes there.
const HOLE: &str = "table ip hole { chain c { type filter hook prerouting priority -300; drop; }; }";

fn isp1(scene: &Scene) -> Result<&Host> {
    Ok(&scene.lab.uplink(0)?.isp)
}

fn requests_survive_a_black_hole(scene: &mut Scene) -> Result<()> {
    requests_survive(
        scene,
        |scene| {
            isp1(scene)?.nft(HOLE)?;
            scene.mhd.ctl(&["health", "isp1", "down"]).map(drop)
        },
        |scene| {
            isp1(scene)?.nft("delete table ip hole")?;
            scene.mhd.ctl(&["health", "isp1", "auto"]).map(drop)
        },
    )
}

/// The gateway doesn't even answer ARP.
fn requests_survive_a_silent_gateway(scene: &mut Scene) -> Result<()> {
    requests_survive(
        scene,
        |scene| {
            isp1(scene)?.nft(HOLE)?;
            isp1(scene)?.ip(&["link set eth0 arp off"])?;
            let gateway = scene.lab.uplink(0)?.gateway;
            scene.lab.router.ip(&[format!("neigh del {gateway} dev wan1")])?;
            scene.mhd.ctl(&["health", "isp1", "down"]).map(drop)
        },
        |scene| {
            isp1(scene)?.ip(&["link set eth0 arp on"])?;
            isp1(scene)?.nft("delete table ip hole")?;
            scene.mhd.ctl(&["health", "isp1", "auto"]).map(drop)
        },
    )
}

fn requests_survive_a_lost_carrier(scene: &mut Scene) -> Result<()> {
    requests_survive(
        scene,
        |scene| isp1(scene)?.ip(&["link set eth0 down"]),
        |scene| {
            isp1(scene)?.ip(&["link set eth0 up"])?;
            Ok(())
        },
    )
}

fn requests_survive_a_link_set_down(scene: &mut Scene) -> Result<()> {
    requests_survive(
        scene,
        |scene| scene.lab.router.ip(&["link set wan1 down"]),
        |scene| {
            scene.lab.router.ip(&["link set wan1 up"])?;
            scene.lab.restore_default_route(0)
        },
    )
}

/// mhd keeps gateways resolved: a packet that is redirected at egress can't wait for ARP, as it keeps the kernel's route, whose gateway it
/// would then be addressed to.
#[test]
fn gateways_are_kept_resolved() -> Result<()> {
    run_scene(
        || Scene::new(Mode::Tc),
        |scene| {
            // The kernel's default route is by isp1.
            scene.set_weights(0, 9)?;
            let gateway = scene.lab.uplink(1)?.gateway.to_string();
            let router = &scene.lab.router;
            for _ in 0..3 {
                router.run(&["ip", "neigh", "flush", "to", &gateway, "dev", "wan2"])?;
                wait_until("the gateway to be resolved again", Duration::from_secs(15), || {
                    Ok(router.run(&["ip", "neigh", "show", "to", &gateway, "dev", "wan2"])?.contains("lladdr"))
                })?;
                let socket = router.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.send_to(b"once", scene.udp.address())?;
                let length = socket.recv(&mut [0; 256]).context("the only datagram was lost")?;
                assert!(length > 0);
            }
            Ok(())
        },
    )
}

fn without_host_traffic(mode: Mode) -> Result<()> {
    let build = || {
        let lab = Lab::two_isps(&Options::new(mode))?;
        let config = lab.config(&[0, 9]).replace("[datapath]\n", "[datapath]\nhost_traffic = false\n");
        Scene::start(lab, &config)
    };
    run_scene(build, |scene| {
        // The kernel's choice and not the weights'.
        let isp1 = scene.lab.uplink(0)?.address;
        for split in own_flows(scene)? {
            split.check(&[(isp1, 1)])?;
        }
        assert_eq!(scene.lab.router.ping(*scene.tcp.address().ip(), 3)?, 3);
        check_bound(scene)?;
        // What comes from the LAN is balanced as ever.
        let lan = tcp_flows(&scene.lab.client1, scene.tcp.address(), 20)?;
        Split::of(lan.iter().map(|flow| flow.seen)).check(&[(scene.lab.uplink(1)?.address, 1)])?;
        answers_leave_by_the_uplink_that_was_asked(scene)
    })
}

#[test]
fn without_host_traffic_tc() -> Result<()> {
    without_host_traffic(Mode::Tc)
}

#[test]
fn without_host_traffic_xdp() -> Result<()> {
    without_host_traffic(Mode::Xdp)
}

/// Reading the config again with `host_traffic` changed takes effect.
#[test]
fn host_traffic_can_be_switched() -> Result<()> {
    run_scene(
        || Scene::new(Mode::Tc),
        |scene| {
            let [isp1, isp2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
            for (host_traffic, expected) in [(true, isp2), (false, isp1), (true, isp2)] {
                let switch = format!("[datapath]\nhost_traffic = {host_traffic}\n");
                let config = scene.lab.config(&[0, 9]).replace("[datapath]\n", &switch);
                scene.mhd.write_config(&config)?;
                scene.mhd.ctl(&["reload"])?;
                wait_until("the new setting", Duration::from_secs(5), || {
                    let flow = UdpFlow::open(&scene.lab.router, scene.udp.address())?;
                    Ok(*flow.seen.ip() == expected)
                })?;
                let flows = udp_flows(&scene.lab.router, scene.udp.address(), 20)?;
                Split::of(flows.iter().map(|flow| flow.seen)).check(&[(expected, 1)])?;
            }
            Ok(())
        },
    )
}

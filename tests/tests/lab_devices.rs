//! Devices without Ethernet, protocols without ports, and packets larger than any MTU.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! Where a test says so, wan2 with its peer, or lan1 with its, is a pair of tun devices: point-to-point, no Ethernet header, no gateway.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Direction, Split, TcpFlow, TcpServer, UdpServer, raw, tcp_flows, transfer, udp_flows};
use mh_tests::lab::{
    CLIENT3, Host, Lab, Mode, Options, ROUTER_LAN1, SERVER, Scene, Tunnel, TwoIsps, run, run_scene, wait_until,
};

in_both_modes!(protocols_without_ports_pass_for_one_inside_host);

const BYTES: u64 = 20_000_000;

/// Makes wan2 and isp2's end of it a pair of tun devices.
fn tunnel_for_wan2(lab: &TwoIsps) -> Result<Tunnel> {
    let uplink = lab.uplink(1)?;
    lab.router.ip(&["link del wan2"])?;
    let tunnel = Tunnel::new(&lab.router, "wan2", &uplink.isp, "eth0")?;
    lab.router.ip(&[format!("addr add {}/32 peer {} dev wan2", uplink.address, uplink.gateway)])?;
    lab.router.ip(&["route add default dev wan2 metric 200"])?;
    uplink.isp.ip(&[format!("addr add {}/24 dev eth0", uplink.gateway)])?;
    uplink.isp.sysctl("ipv4/conf/eth0/rp_filter", "1")?;
    Ok(tunnel)
}

/// Makes lan1 and the third client's end of it a pair of tun devices.
fn tunnel_for_lan1(lab: &TwoIsps) -> Result<Tunnel> {
    lab.router.ip(&["link del lan1"])?;
    let tunnel = Tunnel::new(&lab.router, "lan1", &lab.client3, "eth0")?;
    lab.router.ip(&[format!("addr add {ROUTER_LAN1}/24 dev lan1")])?;
    lab.client3.ip(&[format!("addr add {CLIENT3}/24 dev eth0"), "route add default dev eth0".into()])?;
    Ok(tunnel)
}

/// Runs a test with tun devices for wan2 and lan1, isp2 without a gateway.
fn with_tunnels(mode: Mode, test: fn(&mut Scene) -> Result<()>) -> Result<()> {
    let mut tunnels = None;
    let build = || {
        let lab = Lab::two_isps(&Options::new(mode))?;
        tunnels = Some((tunnel_for_wan2(&lab)?, tunnel_for_lan1(&lab)?));
        let gateway = format!("gateway = \"{}\"\n", lab.uplink(1)?.gateway);
        // Programs at XDP have no place on tun devices.
        let mode = format!("mode = \"{}\"", mode.name());
        let config = lab.config(&[1, 1]).replace(&gateway, "").replace(&mode, "mode = \"tc\"");
        ensure!(!config.contains(&gateway), "a config without isp2's gateway");
        Scene::start(lab, &config)
    };
    let outcome = run_scene(build, test);
    drop(tunnels);
    outcome
}

/// All kinds of traffic from each client through the uplink that the weights leave.
fn lan_traffic(scene: &mut Scene) -> Result<()> {
    for (isp1, isp2, index) in [(0, 1, 1), (1, 0, 0)] {
        scene.set_weights(isp1, isp2)?;
        let uplink = scene.lab.uplink(index)?;
        for client in [&scene.lab.client1, &scene.lab.client3] {
            let pass = || -> Result<()> {
                for mut flow in tcp_flows(client, scene.tcp.address(), 20)? {
                    assert_eq!(*flow.seen.ip(), uplink.address);
                    flow.echo()?;
                }
                for flow in udp_flows(client, scene.udp.address(), 20)? {
                    assert_eq!(*flow.seen.ip(), uplink.address);
                    assert_eq!(flow.ask()?, flow.seen);
                }
                assert_eq!(client.ping(SERVER, 10)?, 10);
                for direction in [Direction::Upload, Direction::Download] {
                    let transferred = transfer(client, scene.tcp.address(), direction, BYTES)?;
                    assert_eq!(*transferred.seen.ip(), uplink.address);
                }
                Ok(())
            };
            pass().with_context(|| format!("{} through {}", client.name(), uplink.name))?;
        }
    }
    let stats = scene.mhd.ctl_json(&["stats"])?;
    for uplink in ["isp1", "isp2"] {
        for counter in ["tx_bytes", "rx_bytes"] {
            assert!(stats["uplinks"][uplink][counter].as_u64() > Some(BYTES), "{uplink}/{counter}: {stats}");
        }
    }
    Ok(())
}

#[test]
fn lan_traffic_over_devices_without_ethernet() -> Result<()> {
    with_tunnels(Mode::Tc, lan_traffic)
}

/// The two kinds of links side by side, and each as the other's spare.
#[test]
fn failover_between_ethernet_and_tunnel() -> Result<()> {
    with_tunnels(Mode::Tc, |scene| {
        let [address1, address2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
        let fresh = |scene: &Scene| -> Result<Split> {
            let tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), 40)?;
            let udp = udp_flows(&scene.lab.client3, scene.udp.address(), 40)?;
            Ok(Split::of(tcp.iter().map(|flow| flow.seen).chain(udp.iter().map(|flow| flow.seen))))
        };
        let old = udp_flows(&scene.lab.client1, scene.udp.address(), 40)?;
        fresh(scene)?.check(&[(address1, 1), (address2, 1)])?;
        // The tunnel fails.
        scene.lab.router.ip(&["link set wan2 down"])?;
        scene.mhd.wait_for_state("isp2", "down")?;
        fresh(scene)?.check(&[(address1, 1)])?;
        for flow in &old {
            assert_eq!(*flow.ask()?.ip(), address1);
        }
        scene.lab.router.ip(&["link set wan2 up", "route add default dev wan2 metric 200"])?;
        scene.mhd.wait_for_state("isp2", "up")?;
        fresh(scene)?.check(&[(address1, 1), (address2, 1)])?;
        // The other one fails.
        scene.lab.uplink(0)?.isp.ip(&["link set eth0 down"])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        fresh(scene)?.check(&[(address2, 1)])?;
        for flow in &old {
            assert_eq!(*flow.ask()?.ip(), address2);
        }
        scene.lab.uplink(0)?.isp.ip(&["link set eth0 up"])?;
        scene.mhd.wait_for_state("isp1", "up")?;
        fresh(scene)?.check(&[(address1, 1), (address2, 1)])
    })
}

/// What the router is asked, and what it begins, when one uplink has Ethernet and one has not: also from the egress of the one to the
/// other.
#[test]
fn router_itself_over_a_tunnel() -> Result<()> {
    with_tunnels(Mode::Tc, |scene| {
        let Scene { lab, tcp, udp, .. } = &*scene;
        let uplinks = [lab.uplink(0)?, lab.uplink(1)?];
        let own_tcp = tcp_flows(&lab.router, tcp.address(), 100)?;
        let own_udp = udp_flows(&lab.router, udp.address(), 100)?;
        let weights = uplinks.map(|uplink| (uplink.address, 1));
        Split::of(own_tcp.iter().map(|flow| flow.seen)).check(&weights)?;
        Split::of(own_udp.iter().map(|flow| flow.seen)).check(&weights)?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7300);
        let servers = (TcpServer::start(&lab.router, any)?, UdpServer::start_with_packet_info(&lab.router, any)?);
        // The default route's device is the one, then the other.
        for routes in [&[][..], &["route del default dev wan1"]] {
            lab.router.ip(routes)?;
            for (index, uplink) in uplinks.iter().enumerate() {
                let pass = || -> Result<()> {
                    let to = SocketAddrV4::new(uplink.address, 7300);
                    tcp_flows(&lab.server, to, 10)?.iter_mut().try_for_each(TcpFlow::echo)?;
                    for flow in udp_flows(&lab.server, to, 10)? {
                        assert_eq!(flow.ask()?, flow.local);
                    }
                    assert_eq!(lab.server.ping(uplink.address, 5)?, 5);
                    let weights = [u32::from(index == 0), u32::from(index == 1)];
                    scene.set_weights(weights[0], weights[1])?;
                    for direction in [Direction::Upload, Direction::Download] {
                        transfer(&lab.server, to, direction, BYTES)?;
                        let transferred = transfer(&lab.router, tcp.address(), direction, BYTES)?;
                        assert_eq!(*transferred.seen.ip(), uplink.address);
                    }
                    assert_eq!(lab.router.ping(SERVER, 5)?, 5);
                    Ok(())
                };
                pass().with_context(|| format!("{}, after {routes:?}", uplink.name))?;
            }
        }
        drop(servers);
        Ok(())
    })
}

/// What a host sends in the tests of protocols without ports; a GRE header without options, for IPv4.
const PAYLOAD: [u8; 12] = *b"\0\0\x08\0question";
/// Length of the IPv4 header that raw sockets give with a packet.
const HEADER_BYTES: usize = 20;

/// A raw socket of `host` that talks to `to`.
fn raw_client(host: &Host, protocol: u8, to: Ipv4Addr) -> Result<UdpSocket> {
    let socket = raw(host, protocol, Ipv4Addr::UNSPECIFIED)?;
    socket.connect((to, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(socket)
}

/// A question that the server gets, and its answer that the client gets. Returns the source that the server saw.
fn exchange(client: &UdpSocket, server: &UdpSocket) -> Result<Ipv4Addr> {
    client.send(&PAYLOAD).context("question")?;
    let mut buffer = [0; 256];
    let (length, peer) = server.recv_from(&mut buffer).context("no question arrived")?;
    ensure!(buffer[HEADER_BYTES..length] == PAYLOAD, "the question was altered: {:?}", &buffer[..length]);
    let SocketAddr::V4(peer) = peer else { unreachable!() };
    let mut answer = PAYLOAD;
    answer.reverse();
    answer[..4].copy_from_slice(&PAYLOAD[..4]);
    server.send_to(&answer, peer)?;
    let length = client.recv(&mut buffer).context("no answer arrived")?;
    ensure!(buffer[HEADER_BYTES..length] == answer, "the answer was altered: {:?}", &buffer[..length]);
    Ok(*peer.ip())
}

/// GRE and IPIP have no ports to tell inside hosts apart: one of them has the remote address to itself, the next is refused and told.
fn protocols_without_ports_pass_for_one_inside_host(scene: &mut Scene) -> Result<()> {
    let lab = &scene.lab;
    let other_server = Ipv4Addr::new(192, 0, 2, 11);
    lab.server.ip(&[format!("addr add {other_server}/32 dev lo")])?;
    for protocol in [47, 4] {
        scene.set_weights(1, 0)?;
        let servers = [SERVER, other_server].map(|address| raw(&lab.server, protocol, address));
        let [server, other] = servers;
        let (server, other) = (server?, other?);
        server.set_read_timeout(Some(Duration::from_secs(3)))?;
        other.set_read_timeout(Some(Duration::from_secs(3)))?;
        let isp1 = lab.uplink(0)?.address;
        let first = raw_client(&lab.client1, protocol, SERVER)?;
        for _ in 0..3 {
            assert_eq!(exchange(&first, &server).with_context(|| format!("protocol {protocol}"))?, isp1);
        }

        let before = scene.count_of("protocol_in_use")?;
        let second = raw_client(&lab.client2, protocol, SERVER)?;
        second.send(&PAYLOAD)?;
        let error = second.recv(&mut [0; 256]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
        assert_eq!(scene.count_of("protocol_in_use")?, before + 1);
        // Of the refused packet nothing arrived, and the first client goes on.
        assert_eq!(exchange(&first, &server)?, isp1);

        // Another remote address, or another uplink, tells them apart.
        let second_to_other = raw_client(&lab.client2, protocol, other_server)?;
        assert_eq!(exchange(&second_to_other, &other)?, isp1);
        scene.set_weights(0, 1)?;
        assert_eq!(exchange(&second, &server)?, lab.uplink(1)?.address);
        assert_eq!(exchange(&first, &server)?, isp1);
        let flows = scene.mhd.flows(&[])?;
        println!("protocol {protocol}: {flows:?}");
    }
    Ok(())
}

/// Packets and bytes that passed an interface so far: `rx` or `tx`.
fn passed(host: &Host, interface: &str, way: &str) -> Result<[u64; 2]> {
    let read = |what: &str| -> Result<u64> {
        let file = format!("/sys/class/net/{interface}/statistics/{way}_{what}");
        Ok(host.run(&["cat", &file])?.trim().parse()?)
    };
    Ok([read("packets")?, read("bytes")?])
}

/// At TC, what segmentation offload made one packet stays one on its way through mh.
#[test]
fn large_packets_stay_large() -> Result<()> {
    run(Mode::Tc, |scene| {
        let router = &scene.lab.router;
        for (isp1, isp2, wan) in [(1, 0, "wan1"), (0, 1, "wan2")] {
            scene.set_weights(isp1, isp2)?;
            for (direction, lan_way, wan_way) in [(Direction::Upload, "rx", "tx"), (Direction::Download, "tx", "rx")] {
                let before = [passed(router, "lan0", lan_way)?, passed(router, wan, wan_way)?];
                let bytes = 50_000_000;
                transfer(&scene.lab.client1, scene.tcp.address(), direction, bytes)?;
                // Counters of the sending side are seen a moment after the last byte has arrived.
                let counted = || -> Result<[[u64; 2]; 2]> {
                    Ok([passed(router, "lan0", lan_way)?, passed(router, wan, wan_way)?])
                };
                wait_until("the counters", Duration::from_secs(5), || {
                    Ok(counted()?.iter().zip(before).all(|(now, before)| now[1] - before[1] >= bytes))
                })?;
                for ((now, before), interface) in counted()?.iter().zip(before).zip(["lan0", wan]) {
                    let average = (now[1] - before[1]) / (now[0] - before[0]);
                    println!("{direction:?}, {interface}: {average} bytes per packet");
                    assert!(average > 6_000, "{direction:?}, {interface}: {average} bytes per packet");
                }
            }
        }
        Ok(())
    })
}

/// Without an Ethernet header there is nothing to swap but addresses: to an inside host, and to the machine itself.
fn connections_are_reset(scene: &mut Scene) -> Result<()> {
    for (host, down) in [(&scene.lab.client3, "isp1"), (&scene.lab.client3, "isp2"), (&scene.lab.router, "isp2")] {
        let flows = tcp_flows(host, scene.tcp.address(), 30)?;
        let (lost, kept): (Vec<_>, Vec<_>) =
            flows.into_iter().partition(|flow| scene.lab.uplink_of(*flow.seen.ip()) == Some(down));
        assert!(lost.len() > 3 && kept.len() > 3, "both uplinks take part: {} and {}", lost.len(), kept.len());
        scene.mhd.ctl(&["health", down, "down"])?;
        for mut flow in lost {
            flow.wait_for_reset(Duration::from_secs(2))?;
        }
        for mut flow in kept {
            flow.echo()?;
        }
        scene.mhd.ctl(&["health", down, "auto"])?;
        scene.mhd.wait_for_state(down, "up")?;
    }
    Ok(())
}

#[test]
fn connections_over_devices_without_ethernet_are_reset() -> Result<()> {
    with_tunnels(Mode::Tc, connections_are_reset)
}

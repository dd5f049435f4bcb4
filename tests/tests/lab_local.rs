//! What mh must leave alone: LAN to LAN, LAN to the router, with the uplinks up and down.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io::Read as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Direction, TcpFlow, TcpServer, UdpServer, transfer, udp_flows};
use mh_tests::lab::{CLIENT1, CLIENT2, CLIENT3, Host, Mode, ROUTER_LAN0, ROUTER_LAN1, SERVER, Scene, run};
use socket2::{Domain, Socket, Type};

in_both_modes!(lan_to_lan_is_untouched, lan_to_router_is_untouched, local_traffic_survives_all_uplinks_down);

/// TCP, UDP and ping from `client` (at `source`) to `host` at `address`, which must see the client's own address.
fn check_untouched(client: &Host, source: Ipv4Addr, host: &Host, address: Ipv4Addr) -> Result<()> {
    let address = SocketAddrV4::new(address, 7100);
    let tcp = TcpServer::start(host, address)?;
    let udp = UdpServer::start(host, address)?;
    let mut flow = TcpFlow::connect(client, address, Duration::from_secs(5))?;
    flow.echo()?;
    assert_eq!(flow.seen, flow.local);
    assert_eq!(*flow.seen.ip(), source);
    for flow in udp_flows(client, address, 5)? {
        assert_eq!(flow.seen, flow.local);
    }
    assert_eq!(client.ping(*address.ip(), 5)?, 5, "{} to {address}", client.name());
    assert_eq!(*transfer(client, address, Direction::Upload, 2_000_000)?.seen.ip(), source);
    assert_eq!(*transfer(client, address, Direction::Download, 2_000_000)?.seen.ip(), source);
    drop((tcp, udp));
    Ok(())
}

fn lan_to_lan(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    check_untouched(&lab.client1, CLIENT1, &lab.client3, CLIENT3)?;
    check_untouched(&lab.client3, CLIENT3, &lab.client2, CLIENT2)?;
    // Through the switch alone.
    check_untouched(&lab.client1, CLIENT1, &lab.client2, CLIENT2)
}

fn lan_to_router(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    check_untouched(&lab.client1, CLIENT1, &lab.router, ROUTER_LAN0)?;
    check_untouched(&lab.client1, CLIENT1, &lab.router, ROUTER_LAN1)?;
    check_untouched(&lab.client3, CLIENT3, &lab.router, ROUTER_LAN1)
}

fn lan_to_lan_is_untouched(scene: &mut Scene) -> Result<()> {
    lan_to_lan(scene)
}

fn lan_to_router_is_untouched(scene: &mut Scene) -> Result<()> {
    lan_to_router(scene)?;
    // Also by the address that it has on an uplink.
    for uplink in &scene.lab.uplinks {
        check_untouched(&scene.lab.client1, CLIENT1, &scene.lab.router, uplink.address)?;
    }
    Ok(())
}

fn local_traffic_survives_all_uplinks_down(scene: &mut Scene) -> Result<()> {
    let address = SocketAddrV4::new(CLIENT3, 7200);
    let server = TcpServer::start(&scene.lab.client3, address)?;
    let mut flow = TcpFlow::connect(&scene.lab.client1, address, Duration::from_secs(5))?;
    scene.lab.router.ip(&["link set wan1 down", "link set wan2 down"])?;
    scene.mhd.wait_for_state("isp1", "down")?;
    scene.mhd.wait_for_state("isp2", "down")?;
    flow.echo()?;
    drop(server);
    lan_to_lan(scene)?;
    lan_to_router(scene)
}

/// The machine closes first, so the connection stays in its TIME-WAIT; the client has its port again at once.
#[test]
fn a_connection_may_follow_one_of_the_same_ends() -> Result<()> {
    run(Mode::Tc, |scene| {
        let router = SocketAddrV4::new(scene.lab.uplink(0)?.address, 7400);
        let listener = scene.lab.router.enter(|| TcpListener::bind(router))??;
        let from = SocketAddrV4::new(SERVER, 45_000);
        let connect = || -> Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            // The client's end leaves no trace.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&router.into(), Duration::from_secs(5))?;
            Ok(socket)
        };
        for round in 0..2 {
            let client = scene.lab.server.enter(connect)?.with_context(|| format!("connection {round}"))?;
            let (served, _) = listener.accept()?;
            // The FIN both ways, the machine's first.
            served.shutdown(Shutdown::Write)?;
            let mut end = [0];
            assert_eq!((&client).read(&mut end)?, 0);
            client.set_linger(None)?;
            drop(client);
            assert_eq!((&served).read(&mut end)?, 0);
        }
        Ok(())
    })
}

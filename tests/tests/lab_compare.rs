//! nft and mh in the same router's place, on the same script: what each does, and that `docs/nft-comparison.md` says so.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌──────────────────┐ wan1 198.51.100.2 ── isp1 ── server 192.0.2.10, .11
//!                        192.168.1.0/24       │ router: nft | mh │
//!  client3 .13 ───────────────────────── lan1 └──────────────────┘
//!                        192.168.2.0/24
//! ```
//!
//! nft is `oifname "wan*" masquerade` over the kernel's conntrack, with the default route through isp1; mh has isp1 alone in use.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::traffic::Sniffer;
use mh_tests::lab::{CLIENT1, Host, Mhd, Mode, Options, SERVER, TwoIsps, in_lab, wait_until};

/// The internet host's second address.
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// How long something is waited for that should come.
const SOON: Duration = Duration::from_secs(3);
/// How long something is waited for that may not come at all.
const WHILE: Duration = Duration::from_millis(800);

/// One part of the script, and what comes of it.
struct Case {
    name: &'static str,
    run: fn(&TwoIsps) -> Result<String>,
    nft: &'static str,
    mh: &'static str,
}

const CASES: &[Case] = &[
    Case { name: "a free source port", run: free_port, nft: "kept", mh: "kept" },
    Case { name: "a source port that another inside host has", run: taken_port, nft: "replaced", mh: "replaced" },
    Case {
        name: "a replaced port, seen by a second remote",
        run: second_remote,
        nft: "the same port",
        mh: "the same port",
    },
    Case {
        name: "a source port that another inside host has, to another remote",
        run: shared_port,
        nft: "shared",
        mh: "replaced",
    },
    Case { name: "a well-known source port", run: well_known_port, nft: "kept", mh: "above 1023" },
    Case {
        name: "a datagram from another port of a remote that was sent to",
        run: other_port,
        nft: "refused",
        mh: "delivered",
    },
    Case {
        name: "a datagram from a remote that was never sent to",
        run: other_remote,
        nft: "refused",
        mh: "delivered",
    },
    Case {
        name: "an inside host's outside address and port, from inside",
        run: hairpin,
        nft: "not delivered",
        mh: "delivered from the outside address",
    },
    Case { name: "a SYN from outside to a port that nobody has", run: unsolicited, nft: "reset", mh: "no answer" },
    Case {
        name: "a FIN from inside of a connection that nobody knows",
        run: stray_fin,
        nft: "leaves with the inside address",
        mh: "dropped",
    },
    Case {
        name: "port unreachable from the remote",
        run: unreachable,
        nft: "told to the client",
        mh: "told to the client",
    },
    Case { name: "a datagram in fragments", run: fragments, nft: "delivered", mh: "delivered" },
    Case { name: "a TTL that ends at the router", run: first_hop, nft: "the router tells", mh: "the router tells" },
    Case { name: "a ping", run: ping, nft: "answered", mh: "answered" },
];

#[test]
fn nft_does_what_the_comparison_says() -> Result<()> {
    in_lab(&Options::new(Mode::Tc), |lab| {
        prepare(lab)?;
        lab.masquerade()?;
        check(lab, |case| case.nft)
    })
}

#[test]
fn mh_does_what_the_comparison_says() -> Result<()> {
    in_lab(&Options::new(Mode::Tc), |lab| {
        prepare(lab)?;
        let _mhd = Mhd::start(lab.lab(), &lab.router, &lab.config(&[1, 0]))?;
        check(lab, |case| case.mh)
    })
}

#[test]
fn every_case_is_in_the_comparison() {
    let text = include_str!("../../docs/nft-comparison.md");
    for Case { name, nft, mh, .. } in CASES {
        let row = format!("| {name} | {nft} | {mh} |");
        assert!(text.contains(&row), "docs/nft-comparison.md lacks the row {row}");
        if nft != mh {
            assert!(text.contains(&format!("**{name}**")), "docs/nft-comparison.md does not explain {name:?}");
        }
    }
}

fn prepare(lab: &TwoIsps) -> Result<()> {
    lab.server.ip(&[format!("address add {SECOND}/32 dev lo")])
}

fn check(lab: &TwoIsps, expected: impl Fn(&Case) -> &'static str) -> Result<()> {
    for case in CASES {
        let outcome = (case.run)(lab).with_context(|| case.name)?;
        assert_eq!(outcome, expected(case), "{}", case.name);
    }
    Ok(())
}

/// The router's address on isp1.
fn outside(lab: &TwoIsps, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(lab.uplinks[0].address, port)
}

fn socket(host: &Host, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind((address, port)))??;
    socket.set_read_timeout(Some(WHILE))?;
    Ok(socket)
}

fn client_socket(host: &Host, port: u16) -> Result<UdpSocket> {
    socket(host, Ipv4Addr::UNSPECIFIED, port)
}

/// Sends a datagram and gives the source that the other socket saw, or what else happened.
fn send(from: &UdpSocket, to: SocketAddrV4, at: &UdpSocket) -> Result<std::result::Result<SocketAddrV4, String>> {
    // Errors that earlier datagrams left are none of this one.
    let _ = from.take_error();
    from.send_to(b"datagram", to)?;
    let mut buffer = [0; 9000];
    Ok(match at.recv_from(&mut buffer) {
        Ok((_, SocketAddr::V4(source))) => Ok(source),
        Ok((_, other)) => Err(format!("from {other}")),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err("not delivered".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

/// The same from a connected socket, which learns of ICMP errors.
fn try_send(from: &UdpSocket, to: SocketAddrV4, at: &UdpSocket) -> Result<String> {
    from.connect(to)?;
    from.send(b"datagram")?;
    let mut buffer = [0; 64];
    if at.recv_from(&mut buffer).is_ok() {
        return Ok("delivered".to_owned());
    }
    Ok(match from.recv(&mut buffer) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused".to_owned(),
        _ => "not delivered".to_owned(),
    })
}

fn server(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(SERVER, port)
}

fn free_port(lab: &TwoIsps) -> Result<String> {
    let remote = socket(&lab.server, SERVER, 6001)?;
    let source = send(&client_socket(&lab.client1, 5001)?, server(6001), &remote)?;
    Ok(if source == Ok(outside(lab, 5001)) { "kept".into() } else { format!("{source:?}") })
}

fn taken_port(lab: &TwoIsps) -> Result<String> {
    let remote = socket(&lab.server, SERVER, 6001)?;
    let source = send(&client_socket(&lab.client2, 5001)?, server(6001), &remote)?;
    Ok(match source {
        Ok(source) if source.port() != 5001 && source.ip() == outside(lab, 0).ip() => "replaced".into(),
        other => format!("{other:?}"),
    })
}

fn second_remote(lab: &TwoIsps) -> Result<String> {
    let (first, second) = (socket(&lab.server, SERVER, 6001)?, socket(&lab.server, SECOND, 6001)?);
    let client = client_socket(&lab.client2, 5001)?;
    let one = send(&client, server(6001), &first)?;
    let other = send(&client, SocketAddrV4::new(SECOND, 6001), &second)?;
    Ok(if one.is_ok() && one == other { "the same port".into() } else { "another port".into() })
}

fn shared_port(lab: &TwoIsps) -> Result<String> {
    let (first, second) = (socket(&lab.server, SERVER, 6010)?, socket(&lab.server, SECOND, 6010)?);
    let one = send(&client_socket(&lab.client1, 5010)?, server(6010), &first)?;
    let other = send(&client_socket(&lab.client2, 5010)?, SocketAddrV4::new(SECOND, 6010), &second)?;
    Ok(match (one, other) {
        (Ok(one), Ok(other)) if one == other => "shared".into(),
        (Ok(one), Ok(_)) if one == outside(lab, 5010) => "replaced".into(),
        other => format!("{other:?}"),
    })
}

fn well_known_port(lab: &TwoIsps) -> Result<String> {
    let remote = socket(&lab.server, SERVER, 6002)?;
    let source = send(&client_socket(&lab.client1, 500)?, server(6002), &remote)?;
    Ok(match source {
        Ok(source) if source.port() == 500 => "kept".into(),
        Ok(source) if source.port() > 1023 => "above 1023".into(),
        other => format!("{other:?}"),
    })
}

fn other_port(lab: &TwoIsps) -> Result<String> {
    let (client, remote) = (client_socket(&lab.client1, 5003)?, socket(&lab.server, SERVER, 6003)?);
    send(&client, server(6003), &remote)?.map_err(anyhow::Error::msg)?;
    try_send(&socket(&lab.server, SERVER, 6004)?, outside(lab, 5003), &client)
}

fn other_remote(lab: &TwoIsps) -> Result<String> {
    let (client, remote) = (client_socket(&lab.client1, 5004)?, socket(&lab.server, SERVER, 6005)?);
    send(&client, server(6005), &remote)?.map_err(anyhow::Error::msg)?;
    try_send(&socket(&lab.server, SECOND, 6006)?, outside(lab, 5004), &client)
}

fn hairpin(lab: &TwoIsps) -> Result<String> {
    let (client, remote) = (client_socket(&lab.client1, 5005)?, socket(&lab.server, SERVER, 6007)?);
    send(&client, server(6007), &remote)?.map_err(anyhow::Error::msg)?;
    let source = send(&client_socket(&lab.client3, 5006)?, outside(lab, 5005), &client)?;
    Ok(match source {
        Ok(source) if source == outside(lab, 5006) => "delivered from the outside address".into(),
        Ok(source) => format!("delivered from {source}"),
        Err(what) => what,
    })
}

fn unsolicited(lab: &TwoIsps) -> Result<String> {
    let to = SocketAddr::V4(outside(lab, 5999));
    Ok(match lab.server.enter(|| TcpStream::connect_timeout(&to, WHILE))? {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => "reset".into(),
        Err(error) if error.kind() == ErrorKind::TimedOut => "no answer".into(),
        other => format!("{other:?}"),
    })
}

fn stray_fin(lab: &TwoIsps) -> Result<String> {
    let isp = Sniffer::start(&lab.uplinks[0].isp, "tcp and port 7999")?;
    lab.client1.output(&["hping3", "-q", "-c", "1", "-F", "-s", "5100", "-p", "7999", &SERVER.to_string()])?;
    // A SYN that is known to arrive tells when there is nothing more to wait for.
    let to = SocketAddr::V4(server(7999));
    // Nobody listens there.
    let _ = lab.client1.enter(|| TcpStream::connect_timeout(&to, SOON))?;
    let is_syn = |source: &SocketAddrV4| source.port() != 5100;
    wait_until("the SYN at isp1", SOON, || Ok(isp.segments().iter().any(|segment| is_syn(&segment.source))))?;
    let fin = isp.segments().into_iter().find(|segment| segment.source.port() == 5100);
    Ok(match fin {
        None => "dropped".into(),
        Some(segment) if *segment.source.ip() == CLIENT1 => "leaves with the inside address".into(),
        Some(segment) => format!("leaves from {}", segment.source),
    })
}

fn unreachable(lab: &TwoIsps) -> Result<String> {
    let client = client_socket(&lab.client1, 5007)?;
    client.connect(server(6999))?;
    client.send(b"datagram")?;
    Ok(match client.recv(&mut [0; 64]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => "told to the client".into(),
        other => format!("{other:?}"),
    })
}

fn fragments(lab: &TwoIsps) -> Result<String> {
    let (client, remote) = (client_socket(&lab.client1, 5008)?, socket(&lab.server, SERVER, 6009)?);
    client.send_to(&[7; 8000], server(6009))?;
    let mut buffer = [0; 9000];
    let (length, source) = remote.recv_from(&mut buffer)?;
    remote.send_to(&buffer[..length], source)?;
    let back = client.recv(&mut buffer)?;
    Ok(if (length, back) == (8000, 8000) { "delivered".into() } else { format!("{length}, {back}") })
}

fn first_hop(lab: &TwoIsps) -> Result<String> {
    let output = lab.client1.output(&["ping", "-n", "-c", "1", "-t", "1", "-W", "1", &SERVER.to_string()])?;
    let told = output.stdout.contains("From 192.168.1.1") && output.stdout.contains("Time to live exceeded");
    Ok(if told { "the router tells".into() } else { output.stdout })
}

fn ping(lab: &TwoIsps) -> Result<String> {
    Ok(if lab.client1.ping(SERVER, 3)? == 3 { "answered".into() } else { "lost".into() })
}

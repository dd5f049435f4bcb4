//! ICMP errors and path MTU: what does not fit is fragmented or refused, and whoever sent it learns why, in its own terms.
//!
//! ```text
//!                                     link MTUs: 1500 but for what a test says
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::traffic::{Datagrams, Direction, Sniffer, TcpFlow, transfer};
use mh_tests::lab::{
    CLIENT1, Host, Mode, Options, ROUTER_LAN0, SERVER, Scene, TwoIsps, run_configured, wait_for, wait_until,
};
use nix::errno::Errno;
use serde_json::Value;

/// Makes a test of each function, once per mode.
macro_rules! in_both {
    ($($name:ident),+ $(,)?) => {
        mod tc {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(mh_tests::lab::Mode::Tc)
            })+
        }
        mod xdp {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(mh_tests::lab::Mode::Xdp)
            })+
        }
    };
}

in_both!(
    client_learns_the_uplinks_mtu,
    what_may_be_fragmented_arrives_by_small_uplinks,
    tcp_works_by_small_uplinks_without_clamping,
    tcp_is_clamped_to_the_uplinks_mtu,
    client_learns_the_mtu_behind_the_isp,
    server_learns_the_lans_mtu,
    what_may_be_fragmented_arrives_in_a_small_lan,
    traceroute_shows_every_router,
    closed_port_of_the_server,
    closed_port_of_an_inside_host,
    closed_port_of_an_inside_host_by_its_outside_address,
    no_uplink_is_told_at_once,
    exhausted_ports_are_told_at_once,
);

/// How long anything may take to be seen.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Enough for many full windows, and for each direction to learn the MTU in mid-stream.
const BYTES: u64 = 10_000_000;
/// MTUs of isp1 and isp2.
const SMALL_UPLINKS: [u32; 2] = [1400, 1300];
/// UDP and IPv4 headers.
const HEADERS: usize = 28;

/// Runs a test whose uplinks are [`SMALL_UPLINKS`], each uplink with this line in its section.
fn with_small_uplinks(mode: Mode, line: &str, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    with(&Options { uplink_mtus: SMALL_UPLINKS.to_vec(), ..Options::new(mode) }, line, test)
}

/// Runs a test with these options, each uplink with this line in its section.
fn with(options: &Options, line: &str, test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let config = |lab: &TwoIsps| lab.config(&[1, 1]).replace("\nweight = ", &format!("\n{line}\nweight = "));
    run_configured(options, config, |scene| {
        tell_all(scene)?;
        test(scene)
    })
}

/// Lifts the kernel's limit of one error per second to each address, which hosts would go past here.
fn tell_all(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    let isps = lab.uplinks.iter().map(|uplink| &uplink.isp);
    [&lab.router, &lab.server, &lab.client1, &lab.client2]
        .into_iter()
        .chain(isps)
        .try_for_each(|host| host.sysctl("ipv4/icmp_ratelimit", "0"))
}

/// Lets all new flows take the uplink at `index`, and gives its outside address.
fn only(scene: &Scene, index: usize) -> Result<Ipv4Addr> {
    scene.set_weights(u32::from(index == 0), u32::from(index == 1))?;
    Ok(scene.lab.uplink(index)?.address)
}

/// A datagram's payload of that length, of which no two parts are alike.
fn payload(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|word| (word.wrapping_mul(0x9e37_79b9)).to_be_bytes()).take(length).collect()
}

/// The MTU of the path from `host` to `to` as its kernel has learned it.
fn path_mtu(host: &Host, to: Ipv4Addr) -> Result<Option<u32>> {
    let route = host.run(&["ip", "-4", "route", "get", &to.to_string()])?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().map(|mtu| mtu.parse().with_context(|| route.clone())).transpose()
}

/// Makes `host` forget what it has learned of paths.
fn forget_path_mtu(host: &Host) -> Result<()> {
    host.run(&["ip", "-4", "route", "flush", "cache"]).map(drop)
}

/// Sends datagrams that are to be kept whole, `length` bytes with headers, until the kernel refuses to send more of them, and
/// checks that it has learned `mtu`.
fn expect_too_big(socket: &Datagrams, length: usize, host: &Host, to: Ipv4Addr, mtu: u32) -> Result<()> {
    socket.keep_whole(true)?;
    socket.send(&payload(length - HEADERS)).context("the first, of which nobody knows yet")?;
    assert_eq!(socket.error()?, Errno::EMSGSIZE);
    let refused = socket.send(&payload(length - HEADERS)).map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(Errno::EMSGSIZE as i32)), "what is known to be too large");
    assert_eq!(path_mtu(host, to)?, Some(mtu));
    // What fits goes through.
    socket.send(&payload(mtu as usize - HEADERS)).context("a datagram that fits")
}

fn client_learns_the_uplinks_mtu(mode: Mode) -> Result<()> {
    with_small_uplinks(mode, "", |scene| {
        let client = &scene.lab.client1;
        let server = Datagrams::bind(&scene.lab.server, SERVER, 9001)?;
        let errors = Sniffer::start_verbose(client, "icmp")?;
        for (index, mtu) in SMALL_UPLINKS.into_iter().enumerate() {
            let outside = only(scene, index)?;
            forget_path_mtu(client)?;
            let refused = scene.count_of("too_big")?;
            let socket = Datagrams::connected(client, server.local)?;
            expect_too_big(&socket, 1450 + HEADERS, client, SERVER, mtu)?;
            assert_eq!(scene.count_of("too_big")?, refused + 1);
            let (received, source) = server.receive()?;
            assert_eq!(received, payload(mtu as usize - HEADERS), "only what fits arrives");
            assert_eq!(*source.ip(), outside);
            // The router itself tells, and quotes what the client sent.
            let told = format!("{ROUTER_LAN0} > {CLIENT1}: ICMP {SERVER} unreachable - need to frag (mtu {mtu})");
            let quoted = format!("{} > {SERVER}.9001: UDP", dotted(socket.local));
            expect_shown(&errors, &[&told, &quoted])?;
        }
        Ok(())
    })
}

/// An address and port as tcpdump prints them.
fn dotted(address: SocketAddrV4) -> String {
    format!("{}.{}", address.ip(), address.port())
}

/// Waits until all of it was captured. A wrong checksum of an ICMP message, of its IP header or of a quoted one fails the test.
fn expect_shown(sniffer: &Sniffer, all: &[&str]) -> Result<()> {
    let shown = wait_until("errors on the wire", TIMEOUT, || {
        let text = sniffer.text();
        ensure!(!text.contains("bad cksum") && !text.contains("wrong icmp cksum"), "wrong checksums");
        Ok(all.iter().all(|part| text.contains(part)))
    });
    shown.map(drop).with_context(|| format!("{all:#?} in what was captured:\n{}", sniffer.text()))
}

/// Sends `length` bytes from `client` to `server` and back, all of which may be fragmented on the way; `outside`: the source that the
/// server must see.
fn round_trip(client: &Datagrams, server: &Datagrams, length: usize, outside: Ipv4Addr) -> Result<()> {
    client.keep_whole(false)?;
    server.keep_whole(false)?;
    let question = payload(length);
    client.send(&question)?;
    let (received, source) = server.receive().with_context(|| format!("{length} bytes by {outside}"))?;
    ensure!(received == question, "{} bytes of {length} arrived, or others", received.len());
    assert_eq!(*source.ip(), outside);
    let answer: Vec<u8> = question.iter().map(|byte| !byte).collect();
    server.send_to(&answer, source)?;
    let (received, source) = client.receive().with_context(|| format!("{length} bytes back by {outside}"))?;
    ensure!(received == answer, "{} bytes of {length} came back, or others", received.len());
    assert_eq!(source, server.local);
    Ok(())
}

fn what_may_be_fragmented_arrives_by_small_uplinks(mode: Mode) -> Result<()> {
    with_small_uplinks(mode, "", |scene| {
        let client = &scene.lab.client1;
        let server = Datagrams::bind(&scene.lab.server, SERVER, 9001)?;
        for index in [0, 1] {
            let outside = only(scene, index)?;
            let mut fragmented = scene.count_of("pass_to_fragment")?;
            // One that the router fragments, then one that the client has fragmented: its fragments are too large as well. Once as
            // the first of a flow, once on a flow that exists.
            for length in [1450, 4000] {
                let socket = Datagrams::connected(client, server.local)?;
                for _ in 0..2 {
                    round_trip(&socket, &server, length, outside)?;
                    let now = scene.count_of("pass_to_fragment")?;
                    assert!(now > fragmented, "{length} bytes were not fragmented");
                    fragmented = now;
                }
            }
            // Nobody has learned anything by this.
            assert_eq!(path_mtu(client, SERVER)?, None);
        }
        Ok(())
    })
}

fn transfer_one_way(scene: &Scene, direction: Direction, outside: Ipv4Addr) -> Result<()> {
    let transferred = transfer(&scene.lab.client1, scene.tcp.address(), direction, BYTES)?;
    assert_eq!(*transferred.seen.ip(), outside, "{direction:?}");
    // A path that swallows what is too large is found only after seconds, if ever.
    assert!(transferred.elapsed < Duration::from_secs(8), "{direction:?} took {:?}", transferred.elapsed);
    Ok(())
}

fn transfer_both_ways(scene: &Scene, outside: Ipv4Addr) -> Result<()> {
    transfer_one_way(scene, Direction::Upload, outside)?;
    transfer_one_way(scene, Direction::Download, outside)
}

/// The MSS options captured so far.
fn mss(sniffer: &Sniffer) -> Vec<u32> {
    let text = sniffer.text();
    let options = text.lines().filter_map(|line| line.split_once("[mss ")?.1.split_once(','));
    options.filter_map(|(mss, _)| mss.parse().ok()).collect()
}

/// One connection by each uplink, and the MSS that each end heard of.
fn mss_heard(scene: &Scene, index: usize) -> Result<(u32, u32)> {
    let at_server = Sniffer::start(&scene.lab.server, "tcp[tcpflags] & tcp-syn != 0")?;
    let at_client = Sniffer::start(&scene.lab.client1, "tcp[tcpflags] & tcp-syn != 0")?;
    let flow = TcpFlow::connect(&scene.lab.client1, scene.tcp.address(), TIMEOUT)?;
    assert_eq!(*flow.seen.ip(), scene.lab.uplink(index)?.address);
    let heard = wait_for("both SYNs", TIMEOUT, || {
        Ok(match (&*mss(&at_server), &*mss(&at_client)) {
            (&[a], &[b]) => Some((a, b)),
            _ => None,
        })
    });
    heard.map(|(both, _)| both)
}

fn tcp_works_by_small_uplinks_without_clamping(mode: Mode) -> Result<()> {
    with_small_uplinks(mode, "mss_clamp = \"off\"", |scene| {
        for (index, mtu) in SMALL_UPLINKS.into_iter().enumerate() {
            let outside = only(scene, index)?;
            for host in [&scene.lab.client1, &scene.lab.server] {
                forget_path_mtu(host)?;
            }
            assert_eq!(mss_heard(scene, index)?, (1460, 1460));
            // Who has learned announces a smaller MSS: each has to begin without.
            transfer_one_way(scene, Direction::Upload, outside)?;
            assert_eq!(path_mtu(&scene.lab.client1, SERVER)?, Some(mtu), "told by the router");
            forget_path_mtu(&scene.lab.client1)?;
            transfer_one_way(scene, Direction::Download, outside)?;
            assert_eq!(path_mtu(&scene.lab.server, outside)?, Some(mtu), "told by the ISP");
        }
        Ok(())
    })
}

fn tcp_is_clamped_to_the_uplinks_mtu(mode: Mode) -> Result<()> {
    with_small_uplinks(mode, "mss_clamp = \"auto\"", |scene| {
        for (index, mtu) in SMALL_UPLINKS.into_iter().enumerate() {
            let outside = only(scene, index)?;
            assert_eq!(mss_heard(scene, index)?, (mtu - 40, mtu - 40));
            transfer_both_ways(scene, outside)?;
            // Nobody had to be told anything.
            assert_eq!(path_mtu(&scene.lab.client1, SERVER)?, None);
            assert_eq!(path_mtu(&scene.lab.server, outside)?, None);
            assert_eq!(scene.count_of("too_big")?, 0);
        }
        Ok(())
    })
}

fn client_learns_the_mtu_behind_the_isp(mode: Mode) -> Result<()> {
    with(&Options::new(mode), "", |scene| {
        let client = &scene.lab.client1;
        let errors = Sniffer::start_verbose(client, "icmp")?;
        let server = Datagrams::bind(&scene.lab.server, SERVER, 9001)?;
        for (index, mtu) in [1200, 1100].into_iter().enumerate() {
            let outside = only(scene, index)?;
            let uplink = scene.lab.uplink(index)?;
            // As if a smaller link followed: the server's own is as large as ever, and so is the MSS that it announces.
            uplink.isp.ip(&[format!("route replace default via 10.99.{}.2 mtu lock {mtu}", index + 1)])?;
            forget_path_mtu(client)?;
            let translated = scene.count_of("icmp_error")?;
            let socket = Datagrams::connected(client, server.local)?;
            expect_too_big(&socket, 1400, client, SERVER, mtu)?;
            assert_eq!(scene.count_of("icmp_error")?, translated + 1);
            let told = format!("{} > {CLIENT1}: ICMP {SERVER} unreachable - need to frag (mtu {mtu})", uplink.gateway);
            let quoted = format!("{} > {SERVER}.9001: UDP", dotted(socket.local));
            expect_shown(&errors, &[&told, &quoted])?;
            let (received, source) = server.receive()?;
            assert_eq!((received.len(), *source.ip()), (mtu as usize - HEADERS, outside));

            // TCP believes it only if the quoted ports and sequence numbers are a connection's.
            forget_path_mtu(client)?;
            transfer_both_ways(scene, outside)?;
            assert_eq!(path_mtu(client, SERVER)?, Some(mtu));

            // A ping's error is found by its identifier.
            forget_path_mtu(client)?;
            let ping = ["ping", "-n", "-M", "do", "-s", "1372", "-c", "1", "-W", "2", "192.0.2.10"];
            let output = client.output(&ping)?;
            let told = format!("From {} icmp_seq=1 Frag needed and DF set (mtu = {mtu})", uplink.gateway);
            assert!(output.stdout.contains(&told), "{}{}", output.stdout, output.stderr);
        }
        Ok(())
    })
}

fn server_learns_the_lans_mtu(mode: Mode) -> Result<()> {
    with(&Options { lan_mtu: 1200, ..Options::new(mode) }, "mss_clamp = \"off\"", |scene| {
        let errors = Sniffer::start_verbose(&scene.lab.server, "icmp")?;
        for (index, client) in [(0, &scene.lab.client1), (1, &scene.lab.client3)] {
            let outside = only(scene, index)?;
            let mut server = Datagrams::bind(&scene.lab.server, SERVER, 9001 + u16::try_from(index)?)?;
            let inside = Datagrams::connected(client, server.local)?;
            inside.send(b"hello")?;
            let (_, seen) = server.receive()?;
            assert_eq!(*seen.ip(), outside);
            server.connect(seen)?;
            let refused = scene.count_of("too_big")?;
            expect_too_big(&server, 1400, &scene.lab.server, outside, 1200)?;
            assert_eq!(scene.count_of("too_big")?, refused + 1);
            assert_eq!(inside.receive()?, (payload(1200 - HEADERS), server.local), "only what fits arrives");
            // The error comes from the outside address and quotes what the server sent.
            let told = format!("{outside} > {SERVER}: ICMP {outside} unreachable - need to frag (mtu 1200)");
            let quoted = format!("{} > {}: UDP", dotted(server.local), dotted(seen));
            expect_shown(&errors, &[&told, &quoted])?;
            assert!(!errors.text().contains("192.168."), "inside addresses are out:\n{}", errors.text());

            // TCP: the client's MSS says what fits by itself.
            transfer_both_ways(scene, outside)?;
        }
        Ok(())
    })
}

fn what_may_be_fragmented_arrives_in_a_small_lan(mode: Mode) -> Result<()> {
    with(&Options { lan_mtu: 1200, ..Options::new(mode) }, "", |scene| {
        let server = Datagrams::bind(&scene.lab.server, SERVER, 9001)?;
        for (index, client) in [(0, &scene.lab.client1), (1, &scene.lab.client3)] {
            let outside = only(scene, index)?;
            let socket = Datagrams::connected(client, server.local)?;
            let mut fragmented = scene.count_of("pass_to_fragment")?;
            for length in [1400, 1400, 4000] {
                round_trip(&socket, &server, length, outside)?;
                let now = scene.count_of("pass_to_fragment")?;
                assert!(now > fragmented, "{length} bytes were not fragmented");
                fragmented = now;
            }
            assert_eq!(path_mtu(&scene.lab.server, outside)?, None);
        }
        Ok(())
    })
}

/// The routers that `traceroute` shows, one for each hop.
fn hops(client: &Host, options: &[&str]) -> Result<Vec<String>> {
    let mut line = vec!["traceroute", "-n", "-q", "2", "-w", "2", "-m", "5"];
    line.extend(options);
    line.push("192.0.2.10");
    let printed = client.run(&line)?;
    // ` 2  198.51.100.1  0.075 ms  0.020 ms`: a second address or a star would stand among the times.
    let hops = printed.lines().skip(1).map(|line| {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        ensure!(words.len() == 5 && words[2] == "ms" && words[4] == "ms", "{printed}");
        Ok(words[0].to_owned())
    });
    hops.collect()
}

fn traceroute_shows_every_router(mode: Mode) -> Result<()> {
    // Routers on the way are addresses that the client has never sent to: no filter stops what they say about its packets.
    let config = |lab: &TwoIsps| lab.config(&[1, 1]) + "\n[nat]\nfiltering = \"address-dependent\"\n";
    run_configured(&Options::new(mode), config, |scene| {
        mh_tests::lab::require_tools(&["traceroute"])?;
        let errors = Sniffer::start_verbose(&scene.lab.client1, "icmp")?;
        tell_all(scene)?;
        for index in [0, 1] {
            only(scene, index)?;
            let expected =
                [ROUTER_LAN0, scene.lab.uplink(index)?.gateway, SERVER].map(|address| address.to_string()).to_vec();
            for options in [&[][..], &["-I"], &["-T", "-p", "7000"], &["-U", "-p", "9"]] {
                let translated = scene.count_of("icmp_error")?;
                assert_eq!(hops(&scene.lab.client1, options)?, expected, "traceroute {options:?}");
                assert!(scene.count_of("icmp_error")? >= translated + 2);
            }
            let told = format!("{} > {CLIENT1}: ICMP time exceeded in-transit", scene.lab.uplink(index)?.gateway);
            expect_shown(&errors, &[&told])?;
        }
        let text = errors.text();
        for uplink in &scene.lab.uplinks {
            assert!(!text.contains(&uplink.address.to_string()), "outside addresses are in:\n{text}");
        }
        Ok(())
    })
}

/// The flow of a UDP socket of client1.
fn flow_of(scene: &Scene, source: SocketAddrV4) -> Result<Option<Value>> {
    let flows = scene.mhd.flows(&["--proto", "udp", "--src", &source.ip().to_string()])?;
    Ok(flows.into_iter().find(|flow| flow["sport"] == source.port()))
}

/// How many bindings there are, and whether one is for this inside end.
fn bindings(scene: &Scene, inside: SocketAddrV4) -> Result<(usize, bool)> {
    let document = scene.mhd.ctl_json(&["bindings"])?;
    let bindings = document.as_array().or_else(|| document["bindings"].as_array()).context("no array of bindings")?;
    let found = bindings.iter().filter_map(Value::as_object).any(|binding| {
        binding.values().any(|value| *value == inside.ip().to_string())
            && binding.values().any(|value| *value == inside.port())
    });
    Ok((bindings.len(), found))
}

fn closed_port_of_the_server(mode: Mode) -> Result<()> {
    with(&Options::new(mode), "", |scene| {
        let client = &scene.lab.client1;
        let errors = Sniffer::start_verbose(client, "icmp")?;
        for index in [0, 1] {
            only(scene, index)?;
            let socket = Datagrams::connected(client, scene.lab.server_at(9999))?;
            let translated = scene.count_of("icmp_error")?;
            for round in 1..=3 {
                socket.send(b"anybody?")?;
                assert_eq!(socket.error()?, Errno::ECONNREFUSED);
                assert_eq!(scene.count_of("icmp_error")?, translated + round);
                // It neither ends the flow nor counts as an answer.
                let flow = flow_of(scene, socket.local)?.context("the flow has ended")?;
                assert_eq!(
                    (flow["packets_out"].as_u64(), flow["packets_in"].as_u64()),
                    (Some(round), Some(0)),
                    "{flow}"
                );
                assert_eq!(bindings(scene, socket.local)?, (index + 1, true));
            }
            let told = format!("{SERVER} > {CLIENT1}: ICMP {SERVER} udp port 9999 unreachable");
            let quoted = format!("{} > {SERVER}.9999: UDP", dotted(socket.local));
            expect_shown(&errors, &[&told, &quoted])?;
        }
        Ok(())
    })
}

fn closed_port_of_an_inside_host(mode: Mode) -> Result<()> {
    with(&Options::new(mode), "", |scene| {
        let client = &scene.lab.client1;
        let errors = Sniffer::start_verbose(&scene.lab.server, "icmp")?;
        for index in [0, 1] {
            let outside = only(scene, index)?;
            let mut server = Datagrams::bind(&scene.lab.server, SERVER, 0)?;
            let inside = Datagrams::connected(client, server.local)?;
            inside.send(b"hello")?;
            let (_, seen) = server.receive()?;
            assert_eq!(*seen.ip(), outside);
            server.connect(seen)?;
            let closed = inside.local;
            drop(inside);
            // The server's port that the client knew, and one that it has never sent to: the binding is open to both.
            let stranger = Datagrams::connected(&scene.lab.server, seen)?;
            for socket in [&server, &stranger] {
                let translated = scene.count_of("icmp_error")?;
                socket.send(b"still there?")?;
                assert_eq!(socket.error()?, Errno::ECONNREFUSED);
                assert_eq!(scene.count_of("icmp_error")?, translated + 1);
                let told = format!("{outside} > {SERVER}: ICMP {outside} udp port {} unreachable", seen.port());
                let quoted = format!("{} > {}: UDP", dotted(socket.local), dotted(seen));
                expect_shown(&errors, &[&told, &quoted])?;
                assert_eq!(bindings(scene, closed)?, (index + 1, true));
            }
            assert!(!errors.text().contains("192.168."), "inside addresses are out:\n{}", errors.text());
            let flow = flow_of(scene, closed)?.context("the flow has ended")?;
            assert_eq!((flow["packets_out"].as_u64(), flow["packets_in"].as_u64()), (Some(1), Some(1)), "{flow}");

            // The mapping is as it was: the same port inside gets the same one outside.
            let again = Datagrams::bind(client, CLIENT1, closed.port())?;
            again.send_to(b"back", server.local)?;
            assert_eq!(server.receive()?, (b"back".to_vec(), seen));
        }
        assert_eq!(scene.count_of("icmp_stray")?, 0);
        Ok(())
    })
}

fn closed_port_of_an_inside_host_by_its_outside_address(mode: Mode) -> Result<()> {
    with(&Options::new(mode), "", |scene| {
        let (client1, client2) = (&scene.lab.client1, &scene.lab.client2);
        let errors = Sniffer::start_verbose(client1, "icmp")?;
        for index in [0, 1] {
            let outside = only(scene, index)?;
            let mut server = Datagrams::bind(&scene.lab.server, SERVER, 0)?;
            let inside = Datagrams::connected(client2, server.local)?;
            inside.send(b"hello")?;
            let (_, seen) = server.receive()?;
            server.connect(seen)?;
            drop(inside);
            let neighbour = Datagrams::connected(client1, seen)?;
            let translated = scene.count_of("icmp_error")?;
            neighbour.send(b"still there?")?;
            assert_eq!(neighbour.error()?, Errno::ECONNREFUSED);
            assert_eq!(scene.count_of("icmp_error")?, translated + 1);
            let told = format!("{outside} > {CLIENT1}: ICMP {outside} udp port {} unreachable", seen.port());
            let quoted = format!("{} > {}: UDP", dotted(neighbour.local), dotted(seen));
            expect_shown(&errors, &[&told, &quoted])?;
        }
        Ok(())
    })
}

/// Tries UDP and TCP from `client` and checks that each fails at once with `error`, and is counted as `reason`.
fn expect_refusal(scene: &Scene, client: &Host, error: Errno, reason: &str) -> Result<()> {
    let refused = scene.count_of(reason)?;
    let socket = Datagrams::connected(client, scene.udp.address())?;
    socket.send(b"hello")?;
    assert_eq!(socket.error()?, error, "udp");
    assert_eq!(scene.count_of(reason)?, refused + 1);

    let begun = Instant::now();
    let connected = client.enter(|| TcpStream::connect(SocketAddrV4::new(SERVER, 7000)))?;
    assert_eq!(connected.err().as_ref().and_then(io::Error::raw_os_error), Some(error as i32), "tcp");
    // Here the answer to the first SYN comes while `connect` is still sending it, which the kernel takes for a hint only: it ends with
    // the repeated SYN.
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    assert!(scene.count_of(reason)? > refused + 1);
    Ok(())
}

fn no_uplink_is_told_at_once(mode: Mode) -> Result<()> {
    with(&Options::new(mode), "", |scene| {
        let errors = Sniffer::start_verbose(&scene.lab.client1, "icmp")?;
        for uplink in ["isp1", "isp2"] {
            scene.mhd.ctl(&["health", uplink, "down"])?;
            scene.mhd.wait_for_state(uplink, "down")?;
        }
        expect_refusal(scene, &scene.lab.client1, Errno::ENETUNREACH, "no_uplink")?;
        let told = format!("{ROUTER_LAN0} > {CLIENT1}: ICMP net {SERVER} unreachable");
        expect_shown(&errors, &[&told])?;
        assert!(scene.udp.seen().is_empty() && scene.tcp.seen().is_empty(), "something arrived");
        scene.mhd.ctl(&["health", "isp2", "up"])?;
        scene.mhd.wait_for_state("isp2", "up")?;
        let flow = TcpFlow::connect(&scene.lab.client1, scene.tcp.address(), TIMEOUT)?;
        assert_eq!(scene.lab.uplink_of(*flow.seen.ip()), Some("isp2"));
        Ok(())
    })
}

fn exhausted_ports_are_told_at_once(mode: Mode) -> Result<()> {
    with(&Options::new(mode), "ports = \"50000-50000\"", |scene| {
        let errors = Sniffer::start_verbose(&scene.lab.client2, "icmp")?;
        let outside = only(scene, 0)?;
        let server = Datagrams::bind(&scene.lab.server, SERVER, 9001)?;
        let first = Datagrams::connected(&scene.lab.client1, server.local)?;
        round_trip(&first, &server, 100, outside)?;
        let mut connection = TcpFlow::connect(&scene.lab.client1, scene.tcp.address(), TIMEOUT)?;
        assert_eq!(connection.seen, SocketAddrV4::new(outside, 50_000));

        expect_refusal(scene, &scene.lab.client2, Errno::EHOSTUNREACH, "ports_exhausted")?;
        let told = format!("{ROUTER_LAN0} > 192.168.1.12: ICMP host {SERVER} unreachable - admin prohibited filter");
        expect_shown(&errors, &[&told])?;
        assert!(scene.udp.seen().is_empty(), "something arrived");
        assert_eq!(scene.tcp.seen().len(), 1, "something arrived");
        // Who has a port keeps it.
        round_trip(&first, &server, 100, outside)?;
        connection.echo()
    })
}

//! Datagrams in fragments: in order and not, to everybody, too large for the next link, and floods of fragments that belong to nothing.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! No kernel on the way puts datagrams together (no host has a netfilter conntrack): what arrives is what mh made of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{ArrivalCounter, Datagram, Direction, Fragment, OpenTransfer, RawSender, UDP, transfer};
use mh_tests::lab::{CLIENT1, CLIENT2, CLIENT3, Host, Mode, Options, ROUTER_LAN0, SERVER, Scene, run_with, wait_until};

in_both_modes!(
    datagrams_in_order,
    first_fragment_last,
    shuffled,
    to_the_machine_itself,
    same_identification_of_two_clients,
    hairpin,
    flood_from_outside,
    flood_from_inside,
    too_many_of_one_datagram,
    released_once_if_the_first_is_not_let_through,
    untranslated_protocols,
    of_the_machine_itself,
);

/// A payload, and into how many fragments an MTU of 1500 takes it.
const LARGE: usize = 8000;
const LARGE_FRAGMENTS: u64 = 6;
const DEADLINE: Duration = Duration::from_secs(5);
const STRAYS: u16 = 4000;

/// Bytes that differ with the seed and from place to place.
fn payload(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
    .take(len)
    .collect()
}

/// The fragments in another order, the first one in the middle.
fn shuffled_fragments(in_order: &[Fragment]) -> Vec<Fragment> {
    let mut shuffled = in_order[1..].to_vec();
    let mut state = 12_345_usize;
    for last in (1..shuffled.len()).rev() {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
        shuffled.swap(last, (state >> 8) % (last + 1));
    }
    shuffled.insert(shuffled.len().div_ceil(2), in_order[0].clone());
    shuffled
}

fn last_first(in_order: &[Fragment]) -> Vec<Fragment> {
    in_order.iter().rev().cloned().collect()
}

fn bind(host: &Host, address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind((address, 0)))?.with_context(|| format!("bind {address}"))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

fn local(socket: &UdpSocket) -> Result<SocketAddrV4> {
    let SocketAddr::V4(address) = socket.local_addr()? else { bail!("no IPv4 socket") };
    Ok(address)
}

/// Receives a datagram that must be this one; gives its source.
#[track_caller]
fn expect(socket: &UdpSocket, payload: &[u8], what: &str) -> Result<SocketAddrV4> {
    let mut buffer = vec![0; 65_536];
    let received = socket.recv_from(&mut buffer);
    let (len, source) = received.with_context(|| format!("{what}: {} bytes did not arrive", payload.len()))?;
    assert!(buffer[..len] == *payload, "{what}: {len} bytes arrived, not the {} that were sent", payload.len());
    let SocketAddr::V4(source) = source else { bail!("not IPv4") };
    Ok(source)
}

/// Nothing more may have arrived.
#[track_caller]
fn expect_nothing(socket: &UdpSocket, what: &str) -> Result<()> {
    socket.set_nonblocking(true)?;
    let received = socket.recv_from(&mut [0; 16]);
    assert!(received.is_err(), "{what}: something arrived twice: {received:?}");
    Ok(socket.set_nonblocking(false)?)
}

/// A UDP flow between a client's socket and one of the server's.
struct Talk {
    client: UdpSocket,
    server: UdpSocket,
    /// The client's own end.
    inside: SocketAddrV4,
    /// The client's end as the server sees it.
    outside: SocketAddrV4,
    /// The server's end.
    remote: SocketAddrV4,
}

impl Talk {
    /// Begins one, with a small datagram each way.
    fn open(scene: &Scene, host: &Host, address: Ipv4Addr) -> Result<Self> {
        let (client, server) = (bind(host, address)?, bind(&scene.lab.server, SERVER)?);
        let (inside, remote) = (local(&client)?, local(&server)?);
        client.send_to(b"hello", remote)?;
        let outside = expect(&server, b"hello", "the first datagram")?;
        let talk = Self { client, server, inside, outside, remote };
        talk.exchange(b"a small one")?;
        Ok(talk)
    }

    /// Sends a datagram to the server, and the same back.
    fn exchange(&self, payload: &[u8]) -> Result<()> {
        self.client.send_to(payload, self.remote)?;
        assert_eq!(expect(&self.server, payload, "to the server")?, self.outside);
        self.server.send_to(payload, self.outside)?;
        assert_eq!(expect(&self.client, payload, "to the client")?, self.remote);
        Ok(())
    }

    fn upwards(&self, id: u16, payload: &[u8]) -> Datagram {
        Datagram { src: self.inside, dst: self.remote, protocol: UDP, id, payload: payload.to_vec() }
    }

    fn downwards(&self, id: u16, payload: &[u8]) -> Datagram {
        Datagram { src: self.remote, dst: self.outside, protocol: UDP, id, payload: payload.to_vec() }
    }
}

/// Uses the uplinks by turns: sets the weights, and gives its index with client and address.
fn each_uplink(scene: &Scene, mut test: impl FnMut(usize, &Host, Ipv4Addr) -> Result<()>) -> Result<()> {
    for (index, weights) in [(0, (1, 0)), (1, (0, 1))] {
        scene.set_weights(weights.0, weights.1)?;
        for (client, address) in [(&scene.lab.client1, CLIENT1), (&scene.lab.client3, CLIENT3)] {
            test(index, client, address).with_context(|| format!("{} by uplink {index}", client.name()))?;
        }
    }
    Ok(())
}

/// Pings with requests and answers of 4000 bytes.
fn ping_large(host: &Host, to: Ipv4Addr) -> Result<()> {
    let printed = host.run(&["ping", "-n", "-s", "4000", "-c", "3", "-i", "0.05", "-W", "1", &to.to_string()])?;
    assert!(printed.contains("3 received"), "{}: {printed}", host.name());
    Ok(())
}

fn datagrams_in_order(scene: &mut Scene) -> Result<()> {
    each_uplink(scene, |index, client, address| {
        let talk = Talk::open(scene, client, address)?;
        assert_eq!(*talk.outside.ip(), scene.lab.uplink(index)?.address);
        let before = scene.count_of("fragment")?;
        for seed in 0..3 {
            talk.exchange(&payload(seed, LARGE))?;
        }
        assert_eq!(scene.count_of("fragment")? - before, 3 * 2 * (LARGE_FRAGMENTS - 1));
        ping_large(client, SERVER)?;
        // Three fragments each.
        assert_eq!(scene.count_of("fragment")? - before, 3 * 2 * (LARGE_FRAGMENTS - 1) + 3 * 2 * 2);
        // The largest there is.
        talk.exchange(&payload(9, 65_507))
    })?;
    assert_eq!(scene.count_of("fragments_full")?, 0);
    Ok(())
}

/// Sends datagrams of 3 and of 20 fragments both ways in an order of which `later` fragments come before the first one.
fn out_of_order(scene: &Scene, order: fn(&[Fragment]) -> Vec<Fragment>, early: fn(u64) -> u64) -> Result<()> {
    let from_server = RawSender::open(&scene.lab.server)?;
    let at_server = ArrivalCounter::later_fragments(&scene.lab.server)?;
    let at_client1 = ArrivalCounter::later_fragments(&scene.lab.client1)?;
    let mut id = 1000;
    each_uplink(scene, |_, client, address| {
        let talk = Talk::open(scene, client, address)?;
        let from_client = RawSender::open(client)?;
        for count in [3_u64, 20] {
            id += 1;
            let what = format!("{count} fragments, identification {id}");
            let payload = payload(id.into(), 1000 * usize::try_from(count)?);
            let before = (scene.count_of("fragment_held")?, scene.count_of("fragment")?);
            let arrived = at_server.packets()?;
            from_client.send(&order(&talk.upwards(id, &payload).fragments(usize::try_from(count)?)))?;
            assert_eq!(expect(&talk.server, &payload, &format!("to the server: {what}"))?, talk.outside);
            talk.exchange(b"between")?;
            assert_eq!(at_server.packets()? - arrived, count - 1, "to the server: {what}");

            let arrived = at_client1.packets()?;
            from_server.send(&order(&talk.downwards(id, &payload).fragments(usize::try_from(count)?)))?;
            assert_eq!(expect(&talk.client, &payload, &format!("to the client: {what}"))?, talk.remote);
            talk.exchange(b"behind")?;
            let expected = if address == CLIENT1 { count - 1 } else { 0 };
            assert_eq!(at_client1.packets()? - arrived, expected, "to the client: {what}");

            assert_eq!(scene.count_of("fragment_held")? - before.0, 2 * early(count), "{what}");
            assert_eq!(scene.count_of("fragment")? - before.1, 2 * (count - 1), "{what}");
            expect_nothing(&talk.server, &what)?;
            expect_nothing(&talk.client, &what)?;
        }
        Ok(())
    })
}

fn first_fragment_last(scene: &mut Scene) -> Result<()> {
    out_of_order(scene, last_first, |count| count - 1)
}

fn shuffled(scene: &mut Scene) -> Result<()> {
    out_of_order(scene, shuffled_fragments, |count| (count - 1).div_ceil(2))
}

fn to_the_machine_itself(scene: &mut Scene) -> Result<()> {
    let router = &scene.lab.router;
    let mut cases = vec![(&scene.lab.client1, CLIENT1, ROUTER_LAN0)];
    cases.extend(scene.lab.uplinks.iter().map(|uplink| (&scene.lab.client3, CLIENT3, uplink.address)));
    for uplink in &scene.lab.uplinks {
        cases.push((&scene.lab.server, SERVER, uplink.address));
    }
    for (id, (host, from, to)) in (2000..).step_by(10).zip(cases) {
        let what = format!("{} to {to}", host.name());
        ping_large(host, to).context(what.clone())?;
        let (asking, answering) = (bind(host, from)?, bind(router, to)?);
        let (src, dst) = (local(&asking)?, local(&answering)?);
        let sender = RawSender::open(host)?;
        for order in [<[Fragment]>::to_vec, last_first, shuffled_fragments] {
            for count in [3, 20] {
                let payload = payload(id.into(), count * 1000);
                let id = id + u16::try_from(count)?;
                sender.send(&order(
                    &Datagram { src, dst, protocol: UDP, id, payload: payload.clone() }.fragments(count),
                ))?;
                assert_eq!(expect(&answering, &payload, &what)?, src);
                // Sent by the machine itself, in fragments as well.
                answering.send_to(&payload, src)?;
                assert_eq!(expect(&asking, &payload, &format!("answer: {what}"))?, dst);
            }
        }
        expect_nothing(&answering, &what)?;
    }
    Ok(())
}

/// By different uplinks: by one, they would get the same source address and mix at their destination, with or without mh.
fn same_identification_of_two_clients(scene: &mut Scene) -> Result<()> {
    scene.set_weights(1, 0)?;
    let first = Talk::open(scene, &scene.lab.client1, CLIENT1)?;
    scene.set_weights(0, 1)?;
    let second = Talk::open(scene, &scene.lab.client2, CLIENT2)?;
    assert_ne!(first.outside.ip(), second.outside.ip());
    let senders = (RawSender::open(&scene.lab.client1)?, RawSender::open(&scene.lab.client2)?);
    let from_server = RawSender::open(&scene.lab.server)?;
    for (id, order) in (3000..).zip([<[Fragment]>::to_vec, last_first, shuffled_fragments]) {
        let payloads = (payload(1, 5000), payload(2, 5000));
        let one = order(&first.upwards(id, &payloads.0).fragments(5));
        let other = order(&second.upwards(id, &payloads.1).fragments(5));
        for (one, other) in one.iter().zip(&other) {
            senders.0.send([one])?;
            senders.1.send([other])?;
        }
        assert_eq!(expect(&first.server, &payloads.0, "first client's")?, first.outside);
        assert_eq!(expect(&second.server, &payloads.1, "second client's")?, second.outside);
        let one = order(&first.downwards(id, &payloads.0).fragments(5));
        let other = order(&second.downwards(id, &payloads.1).fragments(5));
        from_server.send(one.iter().zip(&other).flat_map(|(one, other)| [one, other]))?;
        assert_eq!(expect(&first.client, &payloads.0, "first client's")?, first.remote);
        assert_eq!(expect(&second.client, &payloads.1, "second client's")?, second.remote);
    }
    Ok(())
}

fn hairpin(scene: &mut Scene) -> Result<()> {
    let mut id = 5000;
    for (isp1, isp2) in [(1, 0), (0, 1)] {
        scene.set_weights(isp1, isp2)?;
        let talk = Talk::open(scene, &scene.lab.client2, CLIENT2)?;
        for (host, address) in [(&scene.lab.client1, CLIENT1), (&scene.lab.client3, CLIENT3)] {
            let asking = bind(host, address)?;
            let before = (scene.count_of("hairpin")?, scene.count_of("fragment")?);
            for seed in 0..3 {
                let payload = payload(seed, LARGE);
                asking.send_to(&payload, talk.outside)?;
                let source = expect(&talk.client, &payload, "by hairpin")?;
                assert_eq!(source.ip(), talk.outside.ip(), "the sender's outside address");
                talk.client.send_to(&payload, source)?;
                assert_eq!(expect(&asking, &payload, "back by hairpin")?, talk.outside);
            }
            assert_eq!(scene.count_of("hairpin")? - before.0, 6);
            assert_eq!(scene.count_of("fragment")? - before.1, 6 * (LARGE_FRAGMENTS - 1));
            let sender = RawSender::open(host)?;
            for order in [last_first, shuffled_fragments] {
                id += 1;
                let payload = payload(id.into(), 20_000);
                let (src, dst) = (local(&asking)?, talk.outside);
                sender
                    .send(&order(&Datagram { src, dst, protocol: UDP, id, payload: payload.clone() }.fragments(20)))?;
                expect(&talk.client, &payload, "by hairpin, out of order")?;
            }
        }
        talk.exchange(&payload(4, LARGE))?;
    }
    Ok(())
}

/// A datagram both ways in order and out of order, and a connection.
fn all_is_well(scene: &Scene, talk: &Talk, id: u16) -> Result<()> {
    talk.exchange(&payload(id.into(), LARGE))?;
    let (from_client, from_server) = (RawSender::open(&scene.lab.client1)?, RawSender::open(&scene.lab.server)?);
    let payload = payload(id.into(), 20_000);
    from_client.send(&last_first(&talk.upwards(id, &payload).fragments(20)))?;
    expect(&talk.server, &payload, "to the server after the flood")?;
    from_server.send(&last_first(&talk.downwards(id, &payload).fragments(20)))?;
    expect(&talk.client, &payload, "to the client after the flood")?;
    transfer(&scene.lab.client1, scene.tcp.address(), Direction::Upload, 1_000_000).map(drop)
}

/// Sends fragments of datagrams of which the first fragment never comes, while a transfer goes on.
fn flood(scene: &Scene, host: &Host, stray: impl Fn(&Talk, u16) -> Fragment) -> Result<()> {
    let talk = Talk::open(scene, &scene.lab.client1, CLIENT1)?;
    let lab = &scene.lab;
    let others = [&lab.client1, &lab.client2, &lab.client3, &lab.server, &lab.router];
    let arrivals = others.map(ArrivalCounter::later_fragments);
    let connection = OpenTransfer::start(&lab.client3, &scene.tcp, Direction::Download)?;
    connection.advance(1_000_000)?;
    let sender = RawSender::open(host)?;
    let held = scene.count_of("fragment_held")?;
    for id in 1..=STRAYS {
        sender.send([&stray(&talk, id)])?;
    }
    let expected = held + u64::from(STRAYS);
    wait_until("all strays to be held", DEADLINE, || Ok(scene.count_of("fragment_held")? >= expected))?;
    connection.advance(1_000_000)?;
    connection.finish()?;
    for (host, arrivals) in others.iter().zip(arrivals) {
        assert_eq!(arrivals?.packets()?, 0, "strays came to {}", host.name());
    }
    assert_eq!(scene.count_of("fragment_held")?, expected);
    // Each is of a datagram of its own.
    assert_eq!(scene.count_of("fragments_full")?, 0);
    all_is_well(scene, &talk, STRAYS + 1)
}

fn flood_from_outside(scene: &mut Scene) -> Result<()> {
    flood(scene, &scene.lab.server, |talk, id| talk.downwards(id, &[]).fragment(100, id % 2 == 0, &[0x5a; 800]))
}

fn flood_from_inside(scene: &mut Scene) -> Result<()> {
    flood(scene, &scene.lab.client2, |talk, id| {
        let src = SocketAddrV4::new(CLIENT2, 0);
        Datagram { src, ..talk.upwards(id, &[]) }.fragment(100, id % 2 == 0, &[0x5a; 800])
    })
}

fn too_many_of_one_datagram(scene: &mut Scene) -> Result<()> {
    const LIMIT: u64 = mh_common::fragment::MAX_HELD_PER_DATAGRAM as u64;
    let talk = Talk::open(scene, &scene.lab.client1, CLIENT1)?;
    let directions = [(&scene.lab.client1, talk.upwards(77, &[])), (&scene.lab.server, talk.downwards(77, &[]))];
    for (host, datagram) in directions {
        let before = (scene.count_of("fragment_held")?, scene.count_of("fragments_full")?);
        let strays: Vec<Fragment> = (1..=60).map(|n| datagram.fragment(n * 10, true, &[0; 80])).collect();
        RawSender::open(host)?.send(&strays)?;
        wait_until("what is too much to be dropped", DEADLINE, || {
            Ok(scene.count_of("fragments_full")? - before.1 == 60 - LIMIT)
        })?;
        assert_eq!(scene.count_of("fragment_held")? - before.0, LIMIT);
    }
    all_is_well(scene, &talk, 78)
}

/// Nobody can make held fragments come round again and again.
fn released_once_if_the_first_is_not_let_through(scene: &mut Scene) -> Result<()> {
    let config = format!("{}\n[nat]\nfiltering = \"address-dependent\"\n", scene.lab.config(&[1, 1]));
    scene.mhd.write_config(&config)?;
    scene.mhd.restart()?;
    let talk = Talk::open(scene, &scene.lab.client1, CLIENT1)?;
    // The client has never sent anything to this one.
    let stranger = Ipv4Addr::new(192, 0, 2, 11);
    scene.lab.server.ip(&[format!("addr add {stranger}/32 dev lo")])?;
    let sender = RawSender::open(&scene.lab.server)?;
    let names = ["filtered", "fragment_held", "fragments_full", "fragment"];
    let counters = || names.iter().map(|name| scene.count_of(name)).collect::<Result<Vec<u64>>>();
    let before = counters()?;
    let payload = payload(5, 10_000);
    let datagram = Datagram { src: SocketAddrV4::new(stranger, 9), ..talk.downwards(55, &payload) };
    let fragments = datagram.fragments(10);
    sender.send(&last_first(&fragments))?;
    for _ in 0..5 {
        sender.send([&fragments[0]])?;
    }
    wait_until("the first fragments to be refused", DEADLINE, || Ok(counters()?[0] == before[0] + 6))?;
    wait_until("the others to be dropped", DEADLINE, || Ok(counters()?[2] == before[2] + 9))?;
    let moved: Vec<u64> = counters()?.iter().zip(&before).map(|(now, before)| now - before).collect();
    assert_eq!(moved, [6, 9, 9, 0], "{names:?}");
    all_is_well(scene, &talk, 56)?;
    expect_nothing(&talk.client, "what was filtered")
}

/// The kernel gets all fragments of what mh does not translate.
fn untranslated_protocols(scene: &mut Scene) -> Result<()> {
    const AUTHENTICATION_HEADER: u8 = 51;
    let arrivals = ArrivalCounter::start(&scene.lab.router, "ip protocol ah")?;
    let sender = RawSender::open(&scene.lab.server)?;
    let src = SocketAddrV4::new(SERVER, 1);
    for (uplink, id) in scene.lab.uplinks.iter().zip(60..) {
        let dst = SocketAddrV4::new(uplink.address, 2);
        let datagram = Datagram { src, dst, protocol: AUTHENTICATION_HEADER, id, payload: payload(6, 5000) };
        sender.send(&datagram.fragments(5))?;
        sender.send(&last_first(&Datagram { id: id + 100, ..datagram }.fragments(5)))?;
    }
    wait_until("all fragments to come to the kernel", DEADLINE, || Ok(arrivals.packets()? == 20))?;
    assert_eq!(scene.count_of("fragment_held")?, 0);
    Ok(())
}

/// What the router itself begins, by the uplink of the kernel's choice and by the other one.
fn of_the_machine_itself(scene: &mut Scene) -> Result<()> {
    for (index, weights) in [(0, (1, 0)), (1, (0, 1))] {
        scene.set_weights(weights.0, weights.1)?;
        // A packet that waits for the gateway's Ethernet address at another uplink than the kernel's choice is lost: the kernel sends
        // it to the wrong gateway.
        assert!(scene.lab.router.ping(scene.lab.uplink(index)?.gateway, 2)? > 0);
        let talk = Talk::open(scene, &scene.lab.router, Ipv4Addr::UNSPECIFIED)?;
        assert_eq!(*talk.outside.ip(), scene.lab.uplink(index)?.address);
        let before = scene.count_of("fragment")?;
        for seed in 0..3 {
            talk.exchange(&payload(seed, LARGE))?;
        }
        assert!(scene.count_of("fragment")? - before >= 3 * (LARGE_FRAGMENTS - 1));
        ping_large(&scene.lab.router, SERVER)?;
        let sender = RawSender::open(&scene.lab.server)?;
        let payload = payload(8, 20_000);
        for (id, order) in (70..).zip([last_first, shuffled_fragments]) {
            sender.send(&order(&talk.downwards(id, &payload).fragments(20)))?;
            assert_eq!(expect(&talk.client, &payload, "out of order")?, talk.remote);
        }
    }
    Ok(())
}

fn small_uplinks(scene: &mut Scene) -> Result<()> {
    other_mtus(scene)?;
    // What was too large for an uplink went through the kernel.
    assert!(scene.count_of("pass_to_fragment")? > 0);
    Ok(())
}

fn other_mtus(scene: &mut Scene) -> Result<()> {
    // An identification is not used again while its fragments may be on their way.
    let mut id = 4000;
    each_uplink(scene, |index, client, address| {
        let talk = Talk::open(scene, client, address)?;
        assert_eq!(*talk.outside.ip(), scene.lab.uplink(index)?.address);
        for seed in 0..3 {
            talk.exchange(&payload(seed, LARGE))?;
        }
        ping_large(client, SERVER)?;
        let (from_client, from_server) = (RawSender::open(client)?, RawSender::open(&scene.lab.server)?);
        id += 1;
        // Four as large as the link of whoever sends takes them.
        let filling = |mtu: u32| payload(7, (mtu as usize - 20) / 8 * 8 * 4 - 8);
        let upwards = filling(scene.lab.options.lan_mtu);
        from_client.send(&last_first(&talk.upwards(id, &upwards).fragments(4)))?;
        assert_eq!(expect(&talk.server, &upwards, "to the server, last first")?, talk.outside);
        let downwards = filling(1500);
        from_server.send(&last_first(&talk.downwards(id, &downwards).fragments(4)))?;
        assert_eq!(expect(&talk.client, &downwards, "to the client, last first")?, talk.remote);
        Ok(())
    })?;
    assert_eq!(scene.count_of("misrouted")?, 0);
    Ok(())
}

#[test]
fn uplinks_with_a_smaller_mtu_tc() -> Result<()> {
    run_with(&Options { uplink_mtu: 1400, ..Options::new(Mode::Tc) }, small_uplinks)
}

#[test]
fn uplinks_with_a_smaller_mtu_xdp() -> Result<()> {
    run_with(&Options { uplink_mtu: 1400, ..Options::new(Mode::Xdp) }, small_uplinks)
}

#[test]
fn lans_with_a_smaller_mtu_tc() -> Result<()> {
    run_with(&Options { lan_mtu: 1400, ..Options::new(Mode::Tc) }, small_lans)
}

#[test]
fn lans_with_a_smaller_mtu_xdp() -> Result<()> {
    run_with(&Options { lan_mtu: 1400, ..Options::new(Mode::Xdp) }, small_lans)
}

fn small_lans(scene: &mut Scene) -> Result<()> {
    other_mtus(scene)?;
    assert!(scene.count_of("pass_to_fragment")? > 0);
    Ok(())
}

//! Probes of a running mhd: what they say of uplinks, what follows for flows, and that they go their own way whatever else is configured.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10: TCP 7000, HTTP 80, DNS 53
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! An ISP that is a black hole drops whatever it would forward; its gateway and the link stay as they are. Delays are the HTTP server's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::{Asked, DatagramSocket, Sniffer, Split, TcpFlow, TcpServer, UdpFlow, udp_flows};
use mh_tests::lab::{CLIENT1, Host, Mode, SERVER, Scene, run, wait_until};
use serde_json::Value;

in_both_modes!(targets_of_each_kind, black_holes, answers_to_probes_are_nobody_elses);

const ICMP: &str = "icmp://192.0.2.10";
/// One of each kind.
const ALL: [&str; 4] = [ICMP, "tcp://192.0.2.10:7000", "http://192.0.2.10/", "dns://192.0.2.10/www.example"];
const PATIENCE: Duration = Duration::from_secs(10);

/// A section for the probes of an uplink.
fn probe(uplink: &str, targets: &[&str], lines: &str) -> String {
    format!("\n[uplink.{uplink}.probe]\ntargets = {targets:?}\n{lines}\n")
}

/// The same for both uplinks.
fn probes(targets: &[&str], lines: &str) -> String {
    probe("isp1", targets, lines) + &probe("isp2", targets, lines)
}

/// The server's HTTP and DNS.
fn asked(scene: &Scene) -> Result<Asked> {
    Asked::start(&scene.lab.server, scene.lab.server_at(80), scene.lab.server_at(53))
}

/// Has an ISP drop what it would forward, all of it or (`nft` expression) some.
fn cut(isp: &Host, which: &str) -> Result<()> {
    isp.nft(&format!("table ip hole {{ chain c {{ type filter hook forward priority 0; {which} drop; }}; }}"))
}

fn mend(isp: &Host) -> Result<()> {
    isp.nft("delete table ip hole")
}

/// States and reasons of an uplink after an event, in order.
fn events_after(scene: &Scene, seq: u64, name: &str) -> Result<Vec<(String, String)>> {
    let events = scene.mhd.ctl_json(&["events"])?;
    let events = events.as_array().with_context(|| format!("no array of events: {events}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let wanted = |event: &&Value| event["uplink"] == name && event["seq"].as_u64() > Some(seq);
    Ok(events.iter().filter(wanted).map(|event| (text(&event["state"]), text(&event["reason"]))).collect())
}

fn latest_event(scene: &Scene) -> Result<u64> {
    let events = scene.mhd.ctl_json(&["events"])?;
    let latest = events.as_array().and_then(|events| events.last()?["seq"].as_u64());
    Ok(latest.unwrap_or_default())
}

/// The sources of new flows from the LAN.
fn new_flows(scene: &Scene) -> Result<Split> {
    let flows = udp_flows(&scene.lab.client2, scene.udp.address(), 40)?;
    Ok(Split::of(flows.iter().map(|flow| flow.seen)))
}

fn check_both_take_part(scene: &Scene) -> Result<()> {
    let split = new_flows(scene)?;
    ensure!(split.iter().count() == 2, "new flows use both: {split}");
    Ok(())
}

/// New flows use isp2 alone.
fn check_isp1_is_left(scene: &Scene) -> Result<()> {
    new_flows(scene)?.check(&[(scene.lab.uplink(1)?.address, 1)])
}

fn targets_of_each_kind(scene: &mut Scene) -> Result<()> {
    let asked = asked(scene)?;
    let [isp1, isp2] = [scene.lab.uplink(0)?.address, scene.lab.uplink(1)?.address];
    // The main table knows of wan1 alone.
    scene.lab.router.ip(&["route delete default dev wan2"])?;
    let sniffers = [0, 1].map(|index| Sniffer::start(&scene.lab.uplinks[index].isp, "dst host 192.0.2.10").unwrap());
    scene.reconfigure(&probes(&ALL, "interval = \"100ms\"\nquorum = \"all\""))?;
    let passed = scene.count_of("pass_host")?;
    for name in ["isp1", "isp2"] {
        scene.mhd.wait_for_uplink(name, "to be up with a round-trip time", PATIENCE, |uplink| {
            let rtt = uplink["rtt_ms"].as_f64();
            uplink["state"] == "up"
                && uplink["reason"] == "probes answered"
                && uplink["loss"] == 0.0
                && rtt.is_some_and(|rtt| 0.0 < rtt && rtt < 80.0)
        })?;
    }
    wait_until("ten further rounds to be sent", PATIENCE, || Ok(scene.count_of("pass_host")? >= passed + 80))?;
    assert_eq!(scene.count_of("misrouted")?, 0);
    // There are none but probes so far, and they take no room of flows.
    assert_eq!(scene.mhd.flows(&[])?, [] as [Value; 0]);
    assert_eq!(scene.bindings()?, [] as [Value; 0]);
    assert!(asked.peers().contains(&isp1.into()) && asked.peers().contains(&isp2.into()), "{:?}", asked.peers());
    for (sniffer, address) in sniffers.iter().zip([isp1, isp2]) {
        let text = sniffer.text();
        for kind in ["ICMP echo request", ".7000: Flags [S]", ".80: Flags [S]", ".53:"] {
            assert!(text.contains(kind), "{kind} in {text}");
        }
        let arrived = text.lines().filter(|line| line.contains(" In ")).count();
        let own = text.lines().filter(|line| line.contains(&format!("IP {address}"))).count();
        assert_eq!(own, arrived, "all from {address}: {text}");
    }
    assert_eq!(new_flows(scene)?.total(), 40);
    Ok(())
}

fn black_holes(scene: &mut Scene) -> Result<()> {
    for (lines, goal) in [("", 2000), ("interval = \"100ms\"", 500)] {
        scene.reconfigure(&probes(&[ICMP], lines))?;
        scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        scene.mhd.wait_for_reason("isp2", "up", "probes answered", PATIENCE)?;
        check_both_take_part(scene)?;
        let seq = latest_event(scene)?;
        let isp = &scene.lab.uplink(0)?.isp;
        cut(isp, "")?;
        let begun = Instant::now();
        scene.mhd.wait_for_reason("isp1", "down", "probe icmp://192.0.2.10 3/3 lost", PATIENCE)?;
        let took = begun.elapsed();
        println!("black hole, {lines:?}: down after {took:?}, goal {goal} ms");
        assert!(took < Duration::from_millis(2 * goal), "{took:?}");
        assert_eq!(scene.mhd.uplink("isp1")?["effective_weight"], 0);
        check_isp1_is_left(scene)?;
        // They still leave by it, or it could never come back.
        let sniffer = Sniffer::start(isp, "icmp and src host 198.51.100.2 and dst host 192.0.2.10")?;
        wait_until("probes while it is down", PATIENCE, || Ok(sniffer.text().lines().count() >= 3))?;
        drop(sniffer);
        assert_eq!(scene.mhd.uplink("isp2")?["state"], "up");

        mend(isp)?;
        let begun = Instant::now();
        scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        println!("black hole, {lines:?}: up {:?} after mending", begun.elapsed());
        // Five rounds, of which the first may be on its way.
        let least = Duration::from_millis(if lines.is_empty() { 1500 } else { 300 });
        assert!(begun.elapsed() > least, "{:?}", begun.elapsed());
        check_both_take_part(scene)?;
        let expected = [("down", "probe icmp://192.0.2.10 3/3 lost"), ("up", "probes answered")];
        assert_eq!(events_after(scene, seq, "isp1")?, expected.map(|(state, why)| (state.to_owned(), why.to_owned())));
        assert_eq!(events_after(scene, seq, "isp2")?, []);
    }
    assert_eq!(scene.count_of("misrouted")?, 0);
    Ok(())
}

/// Neither inside hosts' pings nor port forwards get the answers that are for mhd, and probes keep nobody else from theirs.
fn answers_to_probes_are_nobody_elses(scene: &mut Scene) -> Result<()> {
    let _asked = asked(scene)?;
    // All that the machine connects to anybody from is forwarded to a host that refuses.
    scene.lab.router.sysctl("ipv4/ip_local_port_range", "40000 40099")?;
    let forward = "[[forward]]\nprotocol = [\"tcp\", \"udp\"]\nport = \"40000-40099\"\nto = \"192.168.1.11\"\n";
    scene.reconfigure(&(probes(&ALL, "interval = \"100ms\"\nquorum = \"all\"") + forward))?;
    for name in ["isp1", "isp2"] {
        scene.mhd.wait_for_reason(name, "up", "probes answered", PATIENCE)?;
    }
    let seq = latest_event(scene)?;
    // Identifiers of its own choice, 0 among them.
    for identifier in ["0", "1", "65535"] {
        let ping = ["ping", "-n", "-e", identifier, "-c", "20", "-i", "0.02", "-W", "2", "192.0.2.10"];
        let printed = scene.lab.client1.run(&ping)?;
        assert!(printed.contains(" 20 received"), "identifier {identifier}: {printed}");
    }
    // The forward works still, also for the host that is probed, with the ports that probes go to among its own.
    let inside = TcpServer::start(&scene.lab.client1, SocketAddrV4::new(CLIENT1, 40_050))?;
    let udp = DatagramSocket::bind(&scene.lab.client1, SocketAddrV4::new(CLIENT1, 40_051))?;
    for uplink in &scene.lab.uplinks {
        let mut flow = TcpFlow::connect(&scene.lab.server, SocketAddrV4::new(uplink.address, 40_050), PATIENCE)?;
        flow.echo()?;
        let outside = DatagramSocket::bind(&scene.lab.server, scene.lab.server_at(0))?;
        outside.send(SocketAddrV4::new(uplink.address, 40_051), "hello")?;
        udp.expect("hello")?;
    }
    assert_eq!(inside.seen().len(), 2);
    // And listeners of the machine itself don't take what is forwarded.
    let listener = scene.lab.router.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 40_050)))??;
    let mut flow =
        TcpFlow::connect(&scene.lab.server, SocketAddrV4::new(scene.lab.uplink(0)?.address, 40_050), PATIENCE)?;
    flow.echo()?;
    drop(listener);
    assert_eq!(inside.seen().len(), 3);
    for name in ["isp1", "isp2"] {
        let uplink = scene.mhd.uplink(name)?;
        // The very first round may find the links still busy with the programs that they have just got.
        let loss = uplink["loss"].as_f64().unwrap_or(1.0);
        assert!(uplink["state"] == "up" && loss < 0.1, "{uplink}");
        assert_eq!(events_after(scene, seq, name)?, []);
    }
    Ok(())
}

#[test]
fn loss_and_latency_have_limits() -> Result<()> {
    run(Mode::Tc, |scene| {
        let asked = asked(scene)?;
        let http = ["http://192.0.2.10/"];
        let limits = "interval = \"50ms\"\ntimeout = \"400ms\"\ndown = 20\nup = 3\n\
                      loss = { window = 20, warn = \"8%\", down = \"40%\" }\n\
                      latency = { window = 10, warn = \"60ms\", down = \"200ms\" }";
        scene.reconfigure(&(probe("isp1", &[ICMP], limits) + &probe("isp2", &http, limits)))?;
        for name in ["isp1", "isp2"] {
            scene.mhd.wait_for_reason(name, "up", "probes answered", PATIENCE)?;
        }
        let seq = latest_event(scene)?;
        let is_fine = |uplink: &Value| uplink["state"] == "up" && uplink["warning"].is_null();
        let is_warned = |uplink: &Value, text: &str| {
            uplink["state"] == "up"
                && uplink["reason"] == "probes answered"
                && uplink["effective_weight"] == 1
                && uplink["warning"].as_str() == Some(text)
        };
        let isp1 = scene.lab.uplink(0)?.isp.clone();

        let near = "probe icmp://192.0.2.10 loss above 8%";
        cut(&isp1, "meta l4proto icmp ip saddr 192.0.2.10 numgen inc mod 6 0")?;
        scene
            .mhd
            .wait_for_uplink("isp1", "to be near its limit of loss", PATIENCE, |uplink| is_warned(uplink, near))?;
        let table = scene.mhd.ctl(&["status"])?;
        assert!(table.contains(near), "{table}");
        // A sixth is a warning for good: there is one event, however long it lasts.
        scene.mhd.wait_for_uplink("isp1", "to have a sixth lost", PATIENCE, |uplink| {
            uplink["loss"].as_f64() >= Some(0.15)
        })?;
        mend(&isp1)?;
        cut(&isp1, "meta l4proto icmp ip saddr 192.0.2.10 numgen inc mod 2 0")?;
        scene
            .mhd
            .wait_for_uplink("isp1", "to be beyond its limit of loss", PATIENCE, |uplink| uplink["state"] == "down")?;
        check_isp1_is_left(scene)?;
        mend(&isp1)?;
        scene.mhd.wait_for_uplink("isp1", "to come back", PATIENCE, is_fine)?;
        let expected = [
            ("up", format!("probes answered; {near}")),
            ("down", "probe icmp://192.0.2.10 loss 40% (limit 40%)".to_owned()),
            // As long as the window still holds so much.
            ("up", "probes answered".to_owned()),
        ];
        assert_eq!(events_after(scene, seq, "isp1")?, expected.map(|(state, why)| (state.to_owned(), why)));

        asked.delay(Duration::from_millis(100));
        let near = "probe http://192.0.2.10/ latency above 60ms";
        scene
            .mhd
            .wait_for_uplink("isp2", "to be near its limit of latency", PATIENCE, |uplink| is_warned(uplink, near))?;
        scene.mhd.wait_for_uplink("isp2", "to show it", PATIENCE, |uplink| uplink["rtt_ms"].as_f64() >= Some(80.0))?;
        asked.delay(Duration::from_millis(300));
        scene.mhd.wait_for_uplink("isp2", "to be beyond its limit of latency", PATIENCE, |uplink| {
            uplink["state"] == "down"
        })?;
        new_flows(scene)?.check(&[(scene.lab.uplink(0)?.address, 1)])?;
        asked.delay(Duration::ZERO);
        scene.mhd.wait_for_uplink("isp2", "to come back", PATIENCE, is_fine)?;
        let events = events_after(scene, seq, "isp2")?;
        let states: Vec<&str> = events.iter().map(|(state, _)| state.as_str()).collect();
        assert_eq!(states, ["up", "down", "up"], "{events:?}");
        assert_eq!(events[0].1, format!("probes answered; {near}"));
        assert!(
            events[1].1.starts_with("probe http://192.0.2.10/ latency 2") && events[1].1.ends_with(" ms (limit 200ms)"),
            "{events:?}"
        );
        check_both_take_part(scene)
    })
}

/// Targets that nobody has, that take connections and never answer, and that don't even take them.
#[test]
fn hosts_that_do_not_answer_hold_nobody_up() -> Result<()> {
    run(Mode::Tc, |scene| {
        let _asked = asked(scene)?;
        let mute = scene.lab.server.enter(|| {
            let bind = |port| TcpListener::bind((SERVER, port));
            std::io::Result::Ok((bind(8080)?, bind(8081)?))
        })??;
        // A queue of one, which is full with two.
        let full = scene.lab.server.enter(|| {
            let socket = nix::sys::socket::Backlog::new(0)?;
            nix::sys::socket::listen(&mute.1, socket)?;
            let mut queued = Vec::new();
            while let Ok(stream) = TcpStream::connect_timeout(&(SERVER, 8081).into(), Duration::from_millis(200)) {
                queued.push(stream);
                ensure!(queued.len() < 16, "the queue has no end");
            }
            anyhow::Ok(queued)
        })??;
        let mut targets =
            vec!["icmp://192.0.2.99", "http://192.0.2.10:8080/", "tcp://192.0.2.10:8081", "tcp://192.0.2.10:1"];
        let lines = "interval = \"100ms\"\ntimeout = \"1s\"";
        // isp1 has nothing that answers.
        let isp1 = probe("isp1", &targets, lines);
        targets.push(ICMP);
        let isp2 = probe("isp2", &targets, lines);
        scene.mhd.write_config(&format!("{}{isp1}{isp2}", scene.lab.config(&[1, 1])))?;
        let usual = scene.mhd.ready_after();
        scene.mhd.restart()?;
        println!("ready after {:?}, and {usual:?} without probes", scene.mhd.ready_after());
        assert!(scene.mhd.ready_after() < usual * 2 + Duration::from_secs(1));
        scene.mhd.wait_for_uplink("isp1", "to be down by its probes", PATIENCE, |uplink| {
            let reason = uplink["reason"].as_str().unwrap_or_default();
            uplink["state"] == "down"
                && reason.starts_with("probe icmp://192.0.2.99 3/3 ")
                && reason.ends_with(" and 1 more")
        })?;
        scene.mhd.wait_for_uplink("isp2", "to be up by the one that answers", PATIENCE, |uplink| {
            uplink["state"] == "up" && uplink["reason"] == "probes answered" && uplink["rtt_ms"].as_f64() < Some(80.0)
        })?;
        check_isp1_is_left(scene)?;
        // It comes up once one answers.
        scene.lab.server.ip(&["address add 192.0.2.99/32 dev lo"])?;
        scene.mhd.wait_for_state("isp1", "up")?;
        assert!(scene.mhd.is_running());
        drop((mute, full));
        Ok(())
    })
}

/// An uplink that is down by its probes stays so over an end of mhd, however that came, until enough rounds were good.
#[test]
fn a_new_mhd_knows_which_uplink_is_down() -> Result<()> {
    run(Mode::Tc, |scene| {
        scene.reconfigure(&probes(&[ICMP], "interval = \"100ms\"\nup = 10"))?;
        scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        let isp = scene.lab.uplink(0)?.isp.clone();
        cut(&isp, "ip protocol icmp")?;
        scene.mhd.wait_for_state("isp1", "down")?;
        for kill in [false, true] {
            // Through isp1 they would pass: whoever took it would be seen.
            check_isp1_is_left(scene)?;
            if kill {
                scene.mhd.sigkill()?;
            } else {
                assert!(scene.mhd.sigterm()?.success());
            }
            check_isp1_is_left(scene)?;
            let (client, server) = (scene.lab.client1.clone(), scene.udp.address());
            let address1 = scene.lab.uplink(0)?.address;
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let flows = std::thread::spawn(move || {
                let mut count = 0;
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    assert_ne!(*UdpFlow::open(&client, server)?.seen.ip(), address1);
                    count += 1;
                }
                anyhow::Ok(count)
            });
            scene.mhd.start_again()?;
            let down = scene.mhd.uplink("isp1")?;
            assert_eq!(down["state"], "down", "{down}");
            scene.mhd.wait_for_uplink("isp1", "to say why", PATIENCE, |uplink| {
                uplink["state"] == "down" && uplink["reason"] == "probe icmp://192.0.2.10 3/3 lost"
            })?;
            stop.send(())?;
            let count = flows.join().unwrap()?;
            println!("{count} flows began while mhd started");
            assert!(count > 10);
        }
        // And with a target that answers again at once: ten rounds.
        assert!(scene.mhd.sigterm()?.success());
        mend(&isp)?;
        scene.mhd.start_again()?;
        let begun = Instant::now();
        assert_eq!(scene.mhd.uplink("isp1")?["state"], "down");
        check_isp1_is_left(scene)?;
        scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        println!("up {:?} after mhd was ready", begun.elapsed());
        check_both_take_part(scene)
    })
}

#[test]
fn probes_come_change_and_go_with_reloads() -> Result<()> {
    run(Mode::Tc, |scene| {
        let _asked = asked(scene)?;
        let seq = latest_event(scene)?;
        let isp = scene.lab.uplink(0)?.isp.clone();
        // Come, with a state that they find good.
        scene.reconfigure(&probes(&[ICMP], "interval = \"50ms\""))?;
        scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        // Change.
        for (targets, lines) in
            [(&ALL[..], "interval = \"60ms\""), (&ALL[1..2], "interval = \"60ms\"\nquorum = \"all\"")]
        {
            scene.reconfigure(&probes(targets, lines))?;
            scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        }
        let events = events_after(scene, seq, "isp1")?;
        assert!(events.iter().all(|(state, _)| state == "up"), "{events:?}");
        // Change while it is down.
        cut(&isp, "")?;
        scene.mhd.wait_for_state("isp1", "down")?;
        let seq = latest_event(scene)?;
        scene.reconfigure(&probes(&[ICMP], "interval = \"50ms\"\ntimeout = \"40ms\""))?;
        scene.mhd.wait_for_reason("isp1", "down", "probe icmp://192.0.2.10 3/3 lost", PATIENCE)?;
        let events = events_after(scene, seq, "isp1")?;
        assert!(events.iter().all(|(state, _)| state == "down"), "{events:?}");
        check_isp1_is_left(scene)?;
        // Go: the link is fine.
        scene.reconfigure(&probe("isp2", &[ICMP], "interval = \"50ms\""))?;
        scene.mhd.wait_for_reason("isp1", "up", "link up", PATIENCE)?;
        let isp1 = scene.mhd.uplink("isp1")?;
        assert!(isp1["rtt_ms"].is_null() && isp1["loss"].is_null(), "{isp1}");
        // Come to a dead uplink.
        scene.reconfigure(&probes(&[ICMP], "interval = \"50ms\""))?;
        scene.mhd.wait_for_reason("isp1", "down", "probe icmp://192.0.2.10 3/3 lost", PATIENCE)?;
        mend(&isp)?;
        scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        // Come to an uplink that was down when mhd started, and is not any more.
        isp.ip(&["link set eth0 down"])?;
        scene.mhd.wait_for_state("isp1", "down")?;
        scene.mhd.write_config(&scene.lab.config(&[1, 1]))?;
        scene.mhd.restart()?;
        isp.ip(&["link set eth0 up"])?;
        scene.mhd.wait_for_state("isp1", "up")?;
        // The kernel sends nothing for up to a second.
        let gateway = scene.lab.uplink(0)?.gateway;
        wait_until("the gateway to answer", PATIENCE, || Ok(scene.lab.router.ping(gateway, 1)? == 1))?;
        let seq = latest_event(scene)?;
        scene.reconfigure(&probes(&[ICMP], "interval = \"50ms\""))?;
        scene.mhd.wait_for_reason("isp1", "up", "probes answered", PATIENCE)?;
        let events = events_after(scene, seq, "isp1")?;
        assert!(events.iter().all(|(state, _)| state == "up"), "{events:?}");
        Ok(())
    })
}

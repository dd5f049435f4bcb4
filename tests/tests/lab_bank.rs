//! A bank that binds a session to the address that logged in: it works by a policy with `hash = "source"`, and breaks without.
//!
//! ```text
//!  client1 .11, .101 to .124 ┐                ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐    ┌ 192.0.2.10:7000 anybody
//!  client2 .12, .151 to .174 ┴ switch ── lan0 │ router: mh │                             ├── server
//!                        192.168.1.0/24    .1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘    └ 192.0.2.20:443  the bank
//! ```
//!
//! A login gives a token; each request is a TCP connection of its own with the token, and is refused unless it comes from the address that
//! the bank saw at the login. What makes these tests fail: a hash over more than it should be, a rule that is not looked at.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mh_tests::in_both_modes;
use mh_tests::lab::traffic::tcp_flows;
use mh_tests::lab::{Host, Scene};
use nix::sys::socket;

in_both_modes!(sessions_work_by_source_and_break_without, sessions_outlive_a_weight_change_if_sources_stick);

/// Where the bank is.
const BANK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 20), 443);
/// Inside addresses of each client's host that have a session each.
const SOURCES: u8 = 24;
/// Requests of a session.
const REQUESTS: usize = 8;
/// How long any one step of a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The policy and the rule.
const BY_SOURCE: &str = r#"
[policy.one-source]
hash = "HASH"
[[rule]]
name = "bank"
to = ["192.0.2.20"]
protocol = "tcp"
to_port = ["443"]
use = "policy:one-source"
"#;

/// The bank: runs on a thread until dropped.
struct Bank {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Bank {
    fn open(host: &Host) -> Result<Self> {
        host.ip(&[format!("addr add {}/32 dev lo", BANK.ip())])?;
        let listener = host.enter(|| TcpListener::bind(BANK))?.with_context(|| format!("bank at {BANK}"))?;
        let listener = Arc::new(listener);
        let at = Arc::clone(&listener);
        let thread = thread::spawn(move || {
            // The address that logged in, by token.
            let mut sessions: HashMap<u64, IpAddr> = HashMap::new();
            // Ends with the error that the shutdown in drop makes.
            while let Ok((stream, peer)) = at.accept() {
                // Who hangs up is a customer less.
                let _ = serve(stream, peer.ip(), &mut sessions);
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        // Wakes `accept`. Best effort, as everything in a drop.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request: `login`, answered with a token; or a token, answered with `yes` if it is of this address, else `no`.
fn serve(stream: TcpStream, peer: IpAddr, sessions: &mut HashMap<u64, IpAddr>) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let answer = match line.trim() {
        "login" => {
            let token = sessions.len() as u64 + 1;
            sessions.insert(token, peer);
            token.to_string()
        }
        token => match token.parse().ok().and_then(|token: u64| sessions.get(&token)) {
            Some(owner) if *owner == peer => "yes".into(),
            _ => "no".into(),
        },
    };
    Ok(stream.get_mut().write_all(format!("{answer}\n").as_bytes())?)
}

/// Asks the bank from an inside address of the namespace that this thread is in.
fn ask(from: Ipv4Addr, what: &str) -> Result<String> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(from, 0).into()).with_context(|| format!("bind {from}"))?;
    socket.connect_timeout(&BANK.into(), TIMEOUT).with_context(|| format!("{from} to the bank"))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(format!("{what}\n").as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line).with_context(|| format!("{from}: the bank's answer"))?;
    Ok(line.trim().to_owned())
}

/// Whether all requests of a session that has begun are served.
fn goes_on(from: Ipv4Addr, token: &str) -> Result<bool> {
    for _ in 0..REQUESTS {
        match ask(from, token)?.as_str() {
            "yes" => {}
            "no" => return Ok(false),
            other => bail!("the bank said {other:?}"),
        }
    }
    Ok(true)
}

/// The clients' hosts, each with its further addresses.
fn customers(scene: &Scene) -> [(&Host, Vec<Ipv4Addr>); 2] {
    let addresses = |first: u8| (first..first + SOURCES).map(|last| Ipv4Addr::new(192, 168, 1, last)).collect();
    [(&scene.lab.client1, addresses(101)), (&scene.lab.client2, addresses(151))]
}

fn settle(scene: &Scene) -> Result<()> {
    for (host, addresses) in customers(scene) {
        let lines: Vec<String> = addresses.iter().map(|address| format!("addr add {address}/24 dev eth0")).collect();
        host.ip(&lines)?;
    }
    Ok(())
}

/// Everybody logs in; gives the tokens.
fn log_in(scene: &Scene) -> Result<Vec<(&Host, Ipv4Addr, String)>> {
    let mut tokens = Vec::new();
    for (host, addresses) in customers(scene) {
        let asked = host.enter(|| addresses.iter().map(|from| ask(*from, "login")).collect::<Result<Vec<_>>>())??;
        tokens.extend(addresses.into_iter().zip(asked).map(|(address, token)| (host, address, token)));
    }
    Ok(tokens)
}

/// How many of these sessions break.
fn broken(sessions: &[(&Host, Ipv4Addr, String)]) -> Result<usize> {
    let mut broken = 0;
    for (host, from, token) in sessions {
        broken += usize::from(!host.enter(|| goes_on(*from, token))??);
    }
    Ok(broken)
}

/// The uplinks that the bank's customers have flows by.
fn uplinks_of_customers(scene: &Scene) -> Result<BTreeSet<String>> {
    let flows = scene.mhd.flows(&["--dst", "192.0.2.20"])?;
    Ok(flows.iter().map(|flow| flow["uplink"].as_str().unwrap_or_default().to_owned()).collect())
}

fn sessions_work_by_source_and_break_without(scene: &mut Scene) -> Result<()> {
    settle(scene)?;
    let _bank = Bank::open(&scene.lab.server)?;
    let all = 2 * usize::from(SOURCES);

    // Without a policy of its own, a session whose nine connections go by one uplink is the exception: one in 256.
    let sessions = log_in(scene)?;
    let without = broken(&sessions)?;
    println!("by flow: {without} of {all} sessions broke");
    assert!(without > all / 2, "{without} of {all} sessions broke by flow");

    for hash in ["source", "source-destination"] {
        scene.reconfigure(&BY_SOURCE.replace("HASH", hash))?;
        scene.mhd.ctl(&["flows", "flush"])?;
        let sessions = log_in(scene)?;
        assert_eq!(broken(&sessions)?, 0, "of {all} sessions with hash = {hash:?}");
        assert_eq!(uplinks_of_customers(scene)?.len(), 2, "different customers go by different uplinks");
        // One that is not the bank is none of the rule's business: a host's connections to it go by both.
        let others = tcp_flows(&scene.lab.client1, scene.tcp.address(), 40)?;
        let seen: BTreeSet<Ipv4Addr> = others.iter().map(|flow| *flow.seen.ip()).collect();
        assert_eq!(seen.len(), 2, "a host's flows that the rule does not match: {seen:?}");
    }

    // The same rule with the mode that is wrong for it: it is the hash that did it.
    scene.reconfigure(&BY_SOURCE.replace("HASH", "flow"))?;
    let sessions = log_in(scene)?;
    let with_flow = broken(&sessions)?;
    assert!(with_flow > all / 2, "{with_flow} of {all} sessions broke with hash = \"flow\"");
    Ok(())
}

/// A change of weights moves some slots, and with them some sources: those of sessions that are open, too, unless sources stick.
fn sessions_outlive_a_weight_change_if_sources_stick(scene: &mut Scene) -> Result<()> {
    settle(scene)?;
    let _bank = Bank::open(&scene.lab.server)?;
    for (sticky, breaks) in [("0s", true), ("60s", false)] {
        scene.set_weights(1, 1)?;
        scene.reconfigure(&BY_SOURCE.replace("\"HASH\"", &format!("\"source\"\nsticky = \"{sticky}\"")))?;
        let sessions = log_in(scene)?;
        ensure!(broken(&sessions)? == 0, "sessions broke before the weights changed");
        scene.set_weights(1, 60_000)?;
        let broke = broken(&sessions)?;
        println!("sticky = {sticky}: {broke} of {} sessions broke by the change of weights", sessions.len());
        assert_eq!(broke > 0, breaks, "{broke} of {} with sticky = {sticky:?}", sessions.len());
    }
    Ok(())
}

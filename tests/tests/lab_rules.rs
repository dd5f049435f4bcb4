//! What rules ask for, each condition by itself with traffic that meets it and traffic that does not.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0  ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24     .1 │            │                             ├── server 192.0.2.0/24
//!  client3 .13 ───────────────────────── lan1  │ router: mh │ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24     .1 │            │
//!  client7 .17 ──────── (later) ─────── vlan7  │            │
//!                        192.168.7.0/24     .1 └────────────┘
//! ```
//!
//! isp2 has no weight: what goes there was sent there by a rule. What makes these tests fail: a condition that is not looked at, looked at
//! for the wrong end or in the wrong byte order, or off by one; rules in another order than the config's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::traffic::{Bound, TcpFlow, TcpServer, UdpFlow, UdpServer, raw};
use mh_tests::lab::{
    CLIENT1, CLIENT2, CLIENT3, Host, Mode, Options, SERVER, Scene, programs_on, run_configured, wait_until,
};

/// How long a connection may take to be opened.
const DEADLINE: Duration = Duration::from_secs(10);
/// The internet host's further address.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// The port of the servers that have the whole of the internet host's network.
const PORT: u16 = 7100;
/// Further ports of UDP servers.
const PORTS: [u16; 5] = [7199, 7200, 7250, 7300, 7301];

/// Traffic that begins a flow.
#[derive(Clone, Copy, Debug)]
enum Begin {
    Tcp,
    Udp,
    /// By UDP with this byte in the type of service field.
    Tos(u8),
    /// By UDP from this port.
    From(u16),
    /// By UDP to this port.
    To(u16),
    /// By TCP to and from the ports that they are for UDP.
    TcpFrom(u16),
    Ping,
    /// A datagram of GRE.
    Gre,
}

/// A client, where it sends to, and how.
type Probe = (&'static str, Ipv4Addr, Begin);

struct Bench<'s> {
    scene: &'s Scene,
    clients: Vec<(&'static str, Host, Ipv4Addr)>,
}

impl Bench<'_> {
    fn client(&self, name: &str) -> Result<&(&'static str, Host, Ipv4Addr)> {
        self.clients.iter().find(|(other, ..)| *other == name).with_context(|| format!("no {name}"))
    }

    /// Begins a flow, and tells the uplink that it goes by.
    fn uplink_of(&self, (name, to, how): Probe) -> Result<String> {
        let (_, host, address) = self.client(name)?;
        let any = Ipv4Addr::UNSPECIFIED;
        let udp = |port: u16, to_port: u16| -> Result<_> {
            Ok(UdpFlow::open_bound(host, SocketAddrV4::new(any, port), SocketAddrV4::new(to, to_port))?.seen)
        };
        let at = SocketAddrV4::new(to, PORT);
        let seen = match how {
            Begin::Udp => udp(0, PORT)?,
            Begin::From(port) => udp(port, PORT)?,
            Begin::To(port) => udp(0, port)?,
            Begin::Tos(tos) => Bound::Tos(tos).udp(host, at)?.seen,
            Begin::Tcp => TcpFlow::connect(host, at, DEADLINE)?.seen,
            Begin::TcpFrom(port) => TcpFlow::connect_from(host, SocketAddrV4::new(any, port), at, DEADLINE)?.seen,
            Begin::Ping => {
                ensure!(host.ping(to, 1)? == 1, "no answer");
                return self.listed(*address, to, "icmp");
            }
            Begin::Gre => {
                raw(host, 47, any)?.send_to(b"\0\0\x08\0question", (to, 0))?;
                wait_until("the flow", DEADLINE, || Ok(self.listed(*address, to, "47").is_ok()))?;
                return self.listed(*address, to, "47");
            }
        };
        let uplink = self.scene.lab.uplink_of(*seen.ip());
        Ok(uplink.with_context(|| format!("seen as {seen}"))?.to_owned())
    }

    /// The uplink of the only flow like this, by mh's own account.
    fn listed(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: &str) -> Result<String> {
        let (from, to) = (from.to_string(), to.to_string());
        let flows = self.scene.mhd.flows(&["--src", &from, "--dst", &to, "--proto", protocol])?;
        let [flow] = &flows[..] else { anyhow::bail!("flows: {flows:?}") };
        Ok(flow["uplink"].as_str().context("no uplink")?.to_owned())
    }

    /// With this rule what matches goes by isp2, and what does not by isp1.
    fn check(&self, conditions: &str, matching: &[Probe], others: &[Probe]) -> Result<()> {
        let rule = format!("[[rule]]\n{conditions}\nuse = \"uplink:isp2\"\n");
        self.scene.configure(&format!("{}\n{rule}", config(self.scene)))?;
        self.scene.mhd.ctl(&["flows", "flush"])?;
        for (probes, wanted) in [(matching, "isp2"), (others, "isp1")] {
            for probe in probes {
                let uplink = self.uplink_of(*probe).with_context(|| format!("{probe:?} with {conditions}"))?;
                assert_eq!(uplink, wanted, "{probe:?} with {conditions}");
            }
        }
        Ok(())
    }
}

fn config(scene: &Scene) -> String {
    with_vlans(scene.lab.config(&[1, 0]))
}

fn with_vlans(config: String) -> String {
    config.replace("\"lan1\"]", "\"lan1\", \"vlan*\"]")
}

/// Runs a test with servers on all addresses of the internet host's network.
fn on_bench(test: impl FnOnce(&Bench<'_>) -> Result<()>) -> Result<()> {
    run_configured(
        &Options::new(Mode::Tc),
        |lab| with_vlans(lab.config(&[1, 0])),
        |scene| {
            let server = &scene.lab.server;
            server.ip(&["route add local 192.0.2.0/24 dev lo"])?;
            let any = Ipv4Addr::UNSPECIFIED;
            let _tcp = TcpServer::start(server, SocketAddrV4::new(any, PORT))?;
            let _udp = [PORT]
                .into_iter()
                .chain(PORTS)
                .map(|port| UdpServer::start_with_packet_info(server, SocketAddrV4::new(any, port)))
                .collect::<Result<Vec<_>>>()?;
            let lab = &scene.lab;
            let clients = vec![
                ("client1", lab.client1.clone(), CLIENT1),
                ("client2", lab.client2.clone(), CLIENT2),
                ("client3", lab.client3.clone(), CLIENT3),
            ];
            test(&Bench { scene, clients })
        },
    )
}

#[test]
fn addresses() -> Result<()> {
    use Begin::{Ping, Tcp, Udp};
    on_bench(|bench| {
        bench.check("", &[("client1", SERVER, Udp), ("client3", SERVER, Tcp), ("client2", OTHER, Ping)], &[])?;
        bench.check(
            "from = [\"192.168.1.0/24\"]",
            &[("client1", SERVER, Udp), ("client2", OTHER, Tcp), ("client1", SERVER, Ping)],
            &[("client3", SERVER, Udp), ("client3", SERVER, Tcp)],
        )?;
        bench.check(
            "from = [\"192.168.1.12\", \"192.168.2.8/29\"]",
            &[("client2", SERVER, Udp), ("client3", SERVER, Udp)],
            &[("client1", SERVER, Udp)],
        )?;
        bench.check(
            "to = \"192.0.2.64/26\"",
            &[("client1", OTHER, Udp), ("client3", OTHER, Ping)],
            &[("client1", SERVER, Udp), ("client3", SERVER, Tcp)],
        )?;
        bench.check(
            "from = \"192.168.1.11\"\nto = \"192.0.2.77\"",
            &[("client1", OTHER, Udp)],
            &[("client1", SERVER, Udp), ("client2", OTHER, Udp)],
        )
    })
}

#[test]
fn sets_of_addresses() -> Result<()> {
    use Begin::Udp;
    on_bench(|bench| {
        let sets = "[set.far]\nprefixes = [\"192.0.2.64/26\", \"10.0.0.0/8\"]\n[set.near]\nprefixes = [\"192.168.1.11\", \"192.168.2.0/24\"]\n";
        let check = |conditions: &str, matching: &[Probe], others: &[Probe]| {
            // Tables behind the rule.
            bench.check(
                &format!("{conditions}\nuse = \"uplink:isp2\"\n{sets}[[rule]]\nto = \"10.9.9.9\""),
                matching,
                others,
            )
        };
        check("to = \"set:far\"", &[("client1", OTHER, Udp)], &[("client1", SERVER, Udp)])?;
        check(
            "from = [\"set:near\"]",
            &[("client1", SERVER, Udp), ("client3", OTHER, Udp)],
            &[("client2", SERVER, Udp)],
        )?;
        check(
            "from = [\"set:near\", \"192.168.1.12\"]\nto = [\"set:far\", \"set:near\"]",
            &[("client1", OTHER, Udp), ("client2", OTHER, Udp), ("client3", OTHER, Udp)],
            &[("client1", SERVER, Udp), ("client2", SERVER, Udp)],
        )
    })
}

#[test]
fn protocols_and_ports() -> Result<()> {
    use Begin::{From, Gre, Ping, Tcp, TcpFrom, To, Udp};
    on_bench(|bench| {
        let by = |begin| ("client1", SERVER, begin);
        // What has no ports stays where its binding is, which outlives the flow: each has a remote end of its own.
        let gre = |last| ("client1", Ipv4Addr::new(192, 0, 2, last), Gre);
        bench.check("protocol = \"tcp\"", &[by(Tcp)], &[by(Udp), by(Ping)])?;
        bench.check("protocol = \"udp\"", &[by(Udp)], &[by(Tcp), by(Ping)])?;
        bench.check("protocol = \"icmp\"", &[by(Ping)], &[by(Tcp), by(Udp), gre(101)])?;
        bench.check("protocol = 47", &[gre(102)], &[by(Tcp), by(Udp), by(Ping)])?;
        bench.check("protocol = [\"tcp\", 47]", &[by(Tcp), gre(103)], &[by(Udp), by(Ping)])?;
        bench.check(
            "to_port = [\"7200-7300\", 7100]",
            &[by(To(7200)), by(To(7250)), by(To(7300)), by(Tcp), by(Udp)],
            &[by(To(7199)), by(To(7301)), by(Ping), gre(104)],
        )?;
        bench.check("to_port = 7100\nprotocol = \"tcp\"", &[by(Tcp)], &[by(Udp), by(To(7200))])?;
        bench.check(
            "from_port = [\"20000-20999\"]",
            &[by(From(20_000)), by(From(20_500)), by(From(20_999)), by(TcpFrom(20_001))],
            &[by(From(19_999)), by(From(21_000)), by(TcpFrom(21_001)), by(Ping)],
        )?;
        bench.check(
            "from_port = \"20000-20999\"\nto_port = \"7250\"",
            &[],
            &[by(From(20_003)), by(To(7250)), by(TcpFrom(20_004))],
        )
    })
}

#[test]
fn code_points() -> Result<()> {
    use Begin::{Tos, Udp};
    on_bench(|bench| {
        let by = |begin| ("client1", SERVER, begin);
        // The lowest two bits are for congestion (RFC 3168).
        bench.check("dscp = 46", &[by(Tos(0xb8)), by(Tos(0xb9))], &[by(Udp), by(Tos(0xb4)), by(Tos(46))])?;
        bench.check("dscp = [0, 10]", &[by(Udp), by(Tos(10 << 2))], &[by(Tos(0xb8)), by(Tos(11 << 2))])
    })
}

#[test]
fn interfaces() -> Result<()> {
    use Begin::{Tcp, Udp};
    on_bench(|bench| {
        bench.check(
            "interface = \"lan1\"",
            &[("client3", SERVER, Udp), ("client3", SERVER, Tcp)],
            &[("client1", SERVER, Udp)],
        )?;
        bench.check(
            "interface = [\"lan*\"]\nfrom = \"192.168.0.0/16\"",
            &[("client3", SERVER, Udp), ("client1", SERVER, Udp)],
            &[],
        )?;
        bench.check("interface = [\"vlan*\"]", &[], &[("client3", SERVER, Udp), ("client1", SERVER, Udp)])?;

        // An interface that was not there when the rule came.
        let lab = &bench.scene.lab;
        for round in 0..2 {
            let later = lab.lab().host("client7")?;
            lab.router.connect("vlan7", &later, "eth0")?;
            later.ip(&["addr add 192.168.7.17/24 dev eth0", "route add default via 192.168.7.1"])?;
            lab.router.ip(&["addr add 192.168.7.1/24 dev vlan7"])?;
            wait_until("mh to take up vlan7", DEADLINE, || Ok(programs_on(&lab.router, "vlan7")? > 0))?;
            let clients = [bench.clients.clone(), vec![("client7", later, Ipv4Addr::new(192, 168, 7, 17))]].concat();
            let with_it = Bench { scene: bench.scene, clients };
            for probe in [("client7", SERVER, Udp), ("client7", OTHER, Tcp)] {
                assert_eq!(with_it.uplink_of(probe)?, "isp2", "the first flows by vlan7, round {round}");
            }
            for probe in [("client1", SERVER, Udp), ("client3", SERVER, Udp)] {
                assert_eq!(with_it.uplink_of(probe)?, "isp1");
            }
            // It goes, and comes again with another index.
            lab.router.ip(&["link del vlan7"])?;
            bench.scene.mhd.ctl(&["flows", "flush"])?;
        }
        Ok(())
    })
}

#[test]
fn the_first_match_wins() -> Result<()> {
    use Begin::{Tcp, Udp};
    on_bench(|bench| {
        let all = [("client1", SERVER, Tcp), ("client1", OTHER, Udp), ("client3", OTHER, Udp)];
        // Which of three rules that overlap comes first, and the uplinks of the three flows by that.
        let rules = [
            "[[rule]]\nto = \"192.0.2.0/24\"\nuse = \"uplink:isp2\"\n",
            "[[rule]]\nfrom = \"192.168.1.0/24\"\nuse = \"uplink:isp1\"\n",
            "[[rule]]\nprotocol = \"tcp\"\nuse = \"uplink:isp2\"\n",
        ];
        for (order, wanted) in [
            ([0, 1, 2], ["isp2", "isp2", "isp2"]),
            ([1, 0, 2], ["isp1", "isp1", "isp2"]),
            ([2, 1, 0], ["isp2", "isp1", "isp2"]),
            ([1, 2, 0], ["isp1", "isp1", "isp2"]),
        ] {
            let text: String = order.iter().map(|index| rules[*index]).collect();
            bench.scene.configure(&format!("{}\n{text}", config(bench.scene)))?;
            bench.scene.mhd.ctl(&["flows", "flush"])?;
            let uplinks = all.iter().map(|probe| bench.uplink_of(*probe)).collect::<Result<Vec<_>>>()?;
            assert_eq!(uplinks, wanted, "{order:?}");
        }
        Ok(())
    })
}

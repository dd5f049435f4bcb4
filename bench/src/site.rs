//! The laboratory for measurements with real sockets: a client, a router with two uplinks, and a server that is both gateways.
//!
//! ```text
//!  ┌────────┐ eth0 .11 ────── .1 lan0 ┌────────┐ wan1 198.51.100.2 ── eth1 198.51.100.1 ┌──────────┐
//!  │ client │     192.168.1.0/24      │ router │                                        │  server  │
//!  └────────┘                         │        │ wan2 203.0.113.2 ─── eth2 203.0.113.1  │192.0.2.10│
//!                                     └────────┘                                        └──────────┘
//! ```
//!
//! - There is nothing else on the way, so that the router is as much of what is measured as it can be.
//! - Each router has a laboratory of its own, and all laboratories are there at the same time: only traffic takes turns.
//! - The server knows a way to the LAN by wan1, for the router that does not translate.
//! - XDP does not see that a frame from a local socket of another namespace has a checksum to be completed yet, and a veth device that
//!   takes redirected frames needs NAPI. So beside mh's XDP the ends that send compute their checksums in software, and have GRO on.
//! - [`Site::verify`] sees to it that each router does what it is measured for.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mh_tests::lab::traffic::{Split, TcpServer, tcp_flows};
use mh_tests::lab::{Host, Lab, Mhd, Mode, require_tools};

/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);
/// The uplinks: the router's interface, the router's address, the server's address, the server's interface.
const UPLINKS: [(&str, Ipv4Addr, Ipv4Addr, &str); 2] = [
    ("wan1", Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(198, 51, 100, 1), "eth1"),
    ("wan2", Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(203, 0, 113, 1), "eth2"),
];
/// The port of the server that tells what it saw.
const VERIFY_PORT: u16 = 7;
/// Connections by which a router is verified: that all of 32 take the same one of two uplinks happens once in two billion runs.
const VERIFY_FLOWS: usize = 32;

/// Marks for connections, and the classic set-up's balancing.
const IPTABLES: &str = "\
*mangle
-A PREROUTING -j CONNMARK --restore-mark
-A PREROUTING -i lan0 -m mark --mark 0 -m statistic --mode nth --every 2 --packet 0 -j MARK --set-mark 2
-A PREROUTING -i lan0 -m mark --mark 0 -j MARK --set-mark 1
-A PREROUTING -i wan1 -m mark --mark 0 -j MARK --set-mark 1
-A PREROUTING -i wan2 -m mark --mark 0 -j MARK --set-mark 2
-A PREROUTING -j CONNMARK --save-mark
COMMIT
*nat
-A POSTROUTING -o wan1 -j SNAT --to-source WAN1
-A POSTROUTING -o wan2 -j SNAT --to-source WAN2
COMMIT
";

/// The same by nft, which hashes instead of counting.
const NFT: &str = "\
table ip balance {
  chain choose {
    type filter hook prerouting priority mangle;
    meta mark set ct mark
    meta mark 0 iifname lan0 meta mark set jhash ip saddr . ip daddr . th sport . th dport mod 2 offset 1
    meta mark 0 iifname wan1 meta mark set 1
    meta mark 0 iifname wan2 meta mark set 2
    ct mark set meta mark
  }
  chain translate {
    type nat hook postrouting priority srcnat;
    oifname wan1 snat to WAN1
    oifname wan2 snat to WAN2
  }
}
";

/// Who is in the router's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router {
    /// The kernel, without translation and with one uplink.
    Kernel,
    /// mh at TC.
    MhTc,
    /// mh with XDP in front of TC.
    MhXdp,
    /// The classic set-up: connection marks, `statistic`, SNAT, routing rules.
    Iptables,
    /// The best that nft offers for the same.
    Nft,
}

impl Router {
    /// All of them; the first is what others are compared with.
    pub const ALL: [Self; 5] = [Self::Kernel, Self::MhTc, Self::MhXdp, Self::Iptables, Self::Nft];

    /// What it is called in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel forwarding, no NAT",
            Self::MhTc => "mh, TC",
            Self::MhXdp => "mh, XDP",
            Self::Iptables => "iptables: CONNMARK, statistic, SNAT",
            Self::Nft => "nft: jhash, ct mark, snat",
        }
    }

    /// Whether it translates, and uses both uplinks.
    const fn balances(self) -> bool {
        !matches!(self, Self::Kernel)
    }
}

/// A laboratory with a router at work.
#[derive(Debug)]
pub struct Site {
    /// Who is in the router's place.
    pub router: Router,
    /// The machine that asks.
    pub client: Host,
    /// The router's machine.
    pub machine: Host,
    /// The machine that is asked.
    pub server: Host,
    /// If the router is mh.
    pub mhd: Option<Mhd>,
    // Last: the directory goes after all that writes into it.
    lab: Lab,
}

impl Site {
    /// Builds the laboratory and puts the router in its place. `settings`: more for mh's `[datapath]`, and sections after it.
    pub fn build(router: Router, settings: &str) -> Result<Self> {
        require_tools(&["ip", "ethtool", "nft", "iptables-restore"])?;
        let lab = Lab::new()?;
        let (client, machine, server) = (lab.host("client")?, lab.host("router")?, lab.host("server")?);
        let mut site = Self { router, client, machine, server, mhd: None, lab };
        site.wire().with_context(|| format!("wire the laboratory of {}", router.name()))?;
        site.put(settings).with_context(|| format!("put {} in place", router.name()))?;
        site.verify().with_context(|| format!("{} does not do its work", router.name()))?;
        Ok(site)
    }

    /// The laboratory, for files.
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The sources that the server may see.
    pub fn outside(&self) -> Vec<Ipv4Addr> {
        if self.router.balances() { UPLINKS.iter().map(|uplink| uplink.1).collect() } else { vec![CLIENT] }
    }

    /// Has flows go through the router, and checks that they arrive as they must: translated, and by both uplinks.
    pub fn verify(&self) -> Result<()> {
        let server = TcpServer::start(&self.server, SocketAddrV4::new(SERVER, VERIFY_PORT))?;
        let mut flows = tcp_flows(&self.client, server.address(), VERIFY_FLOWS)?;
        flows.iter_mut().try_for_each(mh_tests::lab::traffic::TcpFlow::echo)?;
        let (seen, expected) = (Split::of(server.seen()), self.outside());
        let arrived = expected.iter().map(|source| seen.count(*source));
        ensure!(
            arrived.clone().all(|count| count > 0) && arrived.sum::<usize>() == VERIFY_FLOWS,
            "of {VERIFY_FLOWS} connections, from {expected:?}, the server saw {seen:?}"
        );
        if let Some(mhd) = &self.mhd {
            let counted = mhd.flows(&[])?.len();
            ensure!(counted >= VERIFY_FLOWS, "mh counts {counted} flows of {VERIFY_FLOWS}");
        }
        Ok(())
    }

    fn wire(&self) -> Result<()> {
        let Self { client, machine, server, .. } = self;
        for host in [machine, server] {
            for name in ["all", "default"] {
                host.sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
            }
        }
        machine.sysctl("ipv4/ip_forward", "1")?;
        machine.connect("lan0", client, "eth0")?;
        machine.ip(&["addr add 192.168.1.1/24 dev lan0"])?;
        client.ip(&[format!("addr add {CLIENT}/24 dev eth0"), "route add default via 192.168.1.1".into()])?;
        server.ip(&[format!("addr add {SERVER}/32 dev lo")])?;
        let mut neighbours = vec![(client, "eth0")];
        for (metric, (wan, own, gateway, eth)) in UPLINKS.into_iter().enumerate() {
            machine.connect(wan, server, eth)?;
            machine.ip(&[
                format!("addr add {own}/24 dev {wan}"),
                format!("route add default via {gateway} dev {wan} metric {}", metric + 100),
            ])?;
            server.ip(&[format!("addr add {gateway}/24 dev {eth}")])?;
            neighbours.push((server, eth));
        }
        server.ip(&[format!("route add 192.168.1.0/24 via {}", UPLINKS[0].1)])?;
        if self.router == Router::MhXdp {
            for (host, interface) in &neighbours {
                host.features(interface, &["tx", "off", "gro", "on"])?;
            }
        }
        neighbours.iter().try_for_each(|(host, interface)| host.wait_for_link(interface))?;
        ["lan0", "wan1", "wan2"].iter().try_for_each(|interface| machine.wait_for_link(interface))
    }

    fn put(&mut self, settings: &str) -> Result<()> {
        let addressed = |rules: &str| {
            UPLINKS
                .iter()
                .fold(rules.to_owned(), |rules, (wan, own, ..)| rules.replace(&wan.to_uppercase(), &own.to_string()))
        };
        match self.router {
            Router::Kernel => return Ok(()),
            Router::MhTc | Router::MhXdp => {
                let mode = if self.router == Router::MhTc { Mode::Tc } else { Mode::Xdp };
                let mut config = format!("lan = [\"lan0\"]\n[datapath]\nmode = \"{}\"\n{settings}", mode.name());
                for (wan, own, gateway, _) in UPLINKS {
                    config.push_str(&format!(
                        "[uplink.{wan}]\ninterface = \"{wan}\"\ngateway = \"{gateway}\"\naddress = \"{own}\"\n"
                    ));
                }
                self.mhd = Some(Mhd::start(&self.lab, &self.machine, &config)?);
                return Ok(());
            }
            Router::Iptables => {
                self.machine.run_with_input(&["iptables-restore"], &addressed(IPTABLES))?;
            }
            Router::Nft => self.machine.nft(&addressed(NFT))?,
        }
        self.machine.ip(&["rule add priority 1000 to 192.168.0.0/16 lookup main"])?;
        for (mark, (wan, _, gateway, _)) in (1..).zip(UPLINKS) {
            self.machine.ip(&[
                format!("rule add priority {} fwmark {mark} lookup {}", 1000 + mark, 100 + mark),
                format!("route add default via {gateway} dev {wan} table {}", 100 + mark),
            ])?;
        }
        Ok(())
    }
}

/// How long a program in a laboratory may take to be ready.
pub const READY: Duration = Duration::from_secs(10);

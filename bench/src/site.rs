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
use ipnet::Ipv4Net;
use mh_tests::lab::traffic::{TcpFlow, TcpServer, tcp_flows};
use mh_tests::lab::{Host, Lab, Mhd, Mode};

use crate::effort::Effort;
use crate::router::{self, Contender, Uplink};

/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);
/// All inside hosts.
const LAN: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 1, 0), 24);
/// The uplinks: the router's interface, the router's address, the server's address, the server's interface.
const UPLINKS: [(&str, Ipv4Addr, Ipv4Addr, &str); 2] = [
    ("wan1", Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(198, 51, 100, 1), "eth1"),
    ("wan2", Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(203, 0, 113, 1), "eth2"),
];
/// The port of the server that tells what it saw.
const VERIFY_PORT: u16 = 7;
/// Connections by which a router is verified: that all of 32 take the same one of two uplinks happens once in two billion runs.
const VERIFY_FLOWS: usize = 32;

/// Who is measured with real sockets; the first is what others are compared with.
const CONTENDERS: [Contender; 5] =
    [Contender::Kernel, Contender::MhTc, Contender::MhXdp, Contender::Iptables, Contender::Nft];

/// Those of them that are to be measured.
pub fn chosen(effort: &Effort) -> impl Iterator<Item = Contender> {
    let [baseline, ..] = CONTENDERS;
    CONTENDERS.into_iter().filter(move |contender| *contender == baseline || effort.wants(contender.name()))
}

/// What the router is to be made for.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// How many flows there will be at a time.
    pub flows: u32,
    /// Each uplink has 64 outside addresses instead of one.
    pub pools: bool,
    /// mh's config after its uplinks.
    pub sections: &'a str,
}

/// A laboratory with a router at work.
#[derive(Debug)]
pub struct Site {
    /// Who is in the router's place.
    pub contender: Contender,
    /// The machine that asks.
    pub client: Host,
    /// The router's machine.
    pub machine: Host,
    /// The machine that is asked.
    pub server: Host,
    /// If the router is mh.
    pub mhd: Option<Mhd>,
    pools: [Ipv4Net; 2],
    // Last: the directory goes after all that writes into it.
    lab: Lab,
}

impl Site {
    /// Builds the laboratory and puts the router in its place.
    pub fn build(contender: Contender, needs: &Needs<'_>) -> Result<Self> {
        let lab = Lab::new()?;
        let (client, machine, server) = (lab.host("client")?, lab.host("router")?, lab.host("server")?);
        let pools = UPLINKS.map(|(_, own, _, _)| {
            if needs.pools {
                let [a, b, c, _] = own.octets();
                Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 64), 26)
            } else {
                Ipv4Net::from(own)
            }
        });
        let mut site = Self { contender, client, machine, server, mhd: None, pools, lab };
        site.wire().with_context(|| format!("wire the laboratory of {}", contender.name()))?;
        site.put(needs).with_context(|| format!("put {} in place", contender.name()))?;
        site.verify().with_context(|| format!("{} does not do its work", contender.name()))?;
        Ok(site)
    }

    /// The laboratory, for files.
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What the server may see as a client's address: of each uplink, or the client's own.
    pub fn outside(&self) -> Vec<Ipv4Net> {
        if self.contender.translates() { self.pools.to_vec() } else { vec![CLIENT.into()] }
    }

    /// Has flows go through the router, and checks that they arrive as they must: translated, and by both uplinks.
    pub fn verify(&self) -> Result<()> {
        let server = TcpServer::start(&self.server, SocketAddrV4::new(SERVER, VERIFY_PORT))?;
        let mut flows = tcp_flows(&self.client, server.address(), VERIFY_FLOWS)?;
        flows.iter_mut().try_for_each(TcpFlow::echo)?;
        let (seen, expected) = (server.seen(), self.outside());
        let arrived = expected.iter().map(|net| seen.iter().filter(|source| net.contains(source.ip())).count());
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
        for (number, (wan, own, gateway, eth)) in UPLINKS.into_iter().enumerate() {
            machine.connect(wan, server, eth)?;
            machine.ip(&[
                format!("addr add {own}/24 dev {wan}"),
                format!("route add default via {gateway} dev {wan} metric {}", number + 100),
            ])?;
            server.ip(&[format!("addr add {gateway}/24 dev {eth}")])?;
            let pool = self.pools[number];
            if pool.prefix_len() < 32 {
                server.ip(&[format!("route add {pool} via {own}")])?;
            }
            neighbours.push((server, eth));
        }
        server.ip(&[format!("route add 192.168.1.0/24 via {}", UPLINKS[0].1)])?;
        if self.contender == Contender::MhXdp {
            for (host, interface) in &neighbours {
                host.features(interface, &["tx", "off", "gro", "on"])?;
            }
        }
        neighbours.iter().try_for_each(|(host, interface)| host.wait_for_link(interface))?;
        ["lan0", "wan1", "wan2"].iter().try_for_each(|interface| machine.wait_for_link(interface))
    }

    fn put(&mut self, needs: &Needs<'_>) -> Result<()> {
        let mut pools = self.pools.into_iter();
        let uplinks = UPLINKS.map(|(wan, own, gateway, _)| Uplink {
            interface: wan.into(),
            gateway,
            pool: pools.next().unwrap_or_else(|| own.into()),
        });
        let around = router::Site {
            lab: &self.lab,
            router: &self.machine,
            lan: "lan0",
            inside: LAN,
            uplinks,
            flows: needs.flows,
        };
        let mode = match self.contender {
            Contender::MhTc => Mode::Tc,
            Contender::MhXdp => Mode::Xdp,
            other => return other.start(&around).map(drop),
        };
        self.mhd = Some(Mhd::start(&self.lab, &self.machine, &(around.config(mode) + needs.sections))?);
        Ok(())
    }
}

/// How long a program in a laboratory may take to be ready.
pub const READY: Duration = Duration::from_secs(10);

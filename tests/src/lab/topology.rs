//! The standard topology: two (or three) ISPs, a router between them and two LANs, and an internet host behind all ISPs.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};

use super::{Host, Lab, Mode, require_tools};

/// The internet host's address, reached through every ISP.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// First client, on lan0.
pub const CLIENT1: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);
/// Second client, on lan0.
pub const CLIENT2: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);
/// Third client, on lan1.
pub const CLIENT3: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 13);
/// The router's address on lan0.
pub const ROUTER_LAN0: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The router's address on lan1.
pub const ROUTER_LAN1: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);

/// The uplinks' networks: all /24, the ISP's gateway is .1 and the router .2.
const UPLINK_NETWORKS: [[u8; 3]; 3] = [[198, 51, 100], [203, 0, 113], [198, 18, 3]];

/// What may differ between laboratories of the standard topology.
#[derive(Clone, Debug)]
pub struct Options {
    /// Prepares the links for this mode; see [`TwoIsps`].
    pub mode: Mode,
    /// How many ISPs: 1 to 3.
    pub uplinks: usize,
    /// MTU of the LANs' links.
    pub lan_mtu: u32,
    /// MTU of the links between the router and the ISPs.
    pub uplink_mtu: u32,
    /// The same for each of the first uplinks by itself; those beyond have `uplink_mtu`.
    pub uplink_mtus: Vec<u32>,
}

impl Options {
    /// Two ISPs, MTU 1500.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self { mode, uplinks: 2, lan_mtu: 1500, uplink_mtu: 1500, uplink_mtus: Vec::new() }
    }
}

/// An uplink of the standard topology.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Its name in configs: isp1, isp2, isp3.
    pub name: String,
    /// The router's interface: wan1, wan2, wan3.
    pub interface: String,
    /// The ISP's address on the link.
    pub gateway: Ipv4Addr,
    /// The router's address on the link: the source that the internet host sees.
    pub address: Ipv4Addr,
    /// The ISP's router. Its end of the link is `eth0`.
    pub isp: Host,
}

/// The standard topology.
///
/// ```text
///  client1 .11 ─┐
///     eth0      ├─ switch ── lan0 ┌────────┐ wan1 198.51.100.2 ── eth0 198.51.100.1 ┌──────┐
///  client2 .12 ─┘  (bridge)   .1  │        │ ───────────────────────────────────────│ isp1 │─ eth1 ── eth1 ┌──────────┐
///     eth0        192.168.1.0/24  │ router │                                        └──────┘   10.99.1.0/30│  server  │
///                                 │        │                                        ┌──────┐               │192.0.2.10│
///  client3 .13 ───────────── lan1 │        │ ───────────────────────────────────────│ isp2 │─ eth1 ── eth2 └──────────┘
///     eth0                    .1  └────────┘ wan2 203.0.113.2 ──── eth0 203.0.113.1 └──────┘   10.99.2.0/30
///                 192.168.2.0/24
/// ```
///
/// - A third ISP, on wan3, has 198.18.3.0/24.
/// - The internet host's address, 192.0.2.10, is on its loopback; it sends what goes to an uplink's network through that ISP,
///   so a reply follows the source address that it saw.
/// - The router forwards, has a default route through each ISP (metric 100, 200, 300), no address translation of its own, and
///   the kernel's default of no reverse-path filter.
/// - The ISPs are plain kernel routers that drop packets from their customer with a source that isn't in the uplink's network
///   (BCP 38): what wasn't translated, or was translated to the wrong uplink's address, doesn't arrive.
/// - For XDP, each direct neighbour of the router computes its checksums in software (what it sends has no partial checksums)
///   and has NAPI (GRO on), without which veth drops redirected frames. For TC, links are left with all their offloads.
#[derive(Debug)]
pub struct TwoIsps {
    /// First client on lan0.
    pub client1: Host,
    /// Second client on lan0.
    pub client2: Host,
    /// The client on lan1.
    pub client3: Host,
    /// The bridge between the first two clients and lan0; the router's port is `router`.
    pub switch: Host,
    /// The machine that mh runs on.
    pub router: Host,
    /// The uplinks in order.
    pub uplinks: Vec<Uplink>,
    /// The internet host.
    pub server: Host,
    /// What it was built with.
    pub options: Options,
    // Last: the directory goes after all that writes into it.
    lab: Lab,
}

impl TwoIsps {
    pub(super) fn new(options: &Options) -> Result<Self> {
        ensure!((1..=3).contains(&options.uplinks), "1 to 3 uplinks, not {}", options.uplinks);
        require_tools(&["ip", "ethtool", "ping", "nft"])?;
        let lab = Lab::new()?;
        let mut uplinks = Vec::new();
        for (number, [a, b, c]) in (1..=options.uplinks).zip(UPLINK_NETWORKS) {
            let name = format!("isp{number}");
            uplinks.push(Uplink {
                interface: format!("wan{number}"),
                gateway: Ipv4Addr::new(a, b, c, 1),
                address: Ipv4Addr::new(a, b, c, 2),
                isp: lab.host(&name)?,
                name,
            });
        }
        let topology = Self {
            client1: lab.host("client1")?,
            client2: lab.host("client2")?,
            client3: lab.host("client3")?,
            switch: lab.host("switch")?,
            router: lab.host("router")?,
            server: lab.host("server")?,
            uplinks,
            options: options.clone(),
            lab,
        };
        topology.build_lans().context("build the LANs")?;
        topology.build_uplinks().context("build the uplinks")?;
        topology.wait_for_links()?;
        Ok(topology)
    }

    /// The laboratory that this topology is built in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The uplink at `index` (0 is isp1).
    ///
    /// # Errors
    /// If there is none.
    pub fn uplink(&self, index: usize) -> Result<&Uplink> {
        self.uplinks.get(index).with_context(|| format!("there is no uplink {index} in this laboratory"))
    }

    /// The name of the uplink with that outside address.
    #[must_use]
    pub fn uplink_of(&self, source: Ipv4Addr) -> Option<&str> {
        self.uplinks.iter().find(|uplink| uplink.address == source).map(|uplink| uplink.name.as_str())
    }

    /// The internet host's address with a port.
    #[must_use]
    pub fn server_at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(SERVER, port)
    }

    /// A config for mhd: both LANs, the uplinks with these weights, gateways and addresses given, mode as built for.
    #[must_use]
    pub fn config(&self, weights: &[u32]) -> String {
        use std::fmt::Write as _;
        let mut config = format!(
            "lan = [\"lan0\", \"lan1\"]\n\n[datapath]\nmode = \"{}\"\nconntrack_entries = 65536\nbindings = 16384\n",
            self.options.mode.name(),
        );
        for (uplink, weight) in self.uplinks.iter().zip(weights) {
            let Uplink { name, interface, gateway, address, .. } = uplink;
            // Writing into a String can't fail.
            let _ = write!(
                config,
                "\n[uplink.{name}]\ninterface = \"{interface}\"\ngateway = \"{gateway}\"\naddress = \"{address}\"\nweight = {weight}\n",
            );
        }
        config
    }

    /// Makes the router's kernel translate what it forwards to the uplinks itself, as a router without mh does.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn masquerade(&self) -> Result<()> {
        self.router.nft(
            "table ip kernel_nat {\n  chain postrouting {\n    type nat hook postrouting priority 100;\n    \
             oifname \"wan*\" counter masquerade\n  }\n}\n",
        )
    }

    /// Takes the router's default route through an uplink again, as network configuration does after a link came back (the
    /// kernel drops such routes when a link goes down).
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn restore_default_route(&self, index: usize) -> Result<()> {
        let Uplink { interface, gateway, .. } = self.uplink(index)?;
        let metric = (index + 1) * 100;
        self.router.ip(&[format!("route replace default via {gateway} dev {interface} metric {metric}")])
    }

    fn build_lans(&self) -> Result<()> {
        let Self { client1, client2, client3, switch, router, .. } = self;
        router.sysctl("ipv4/ip_forward", "1")?;
        router.sysctl("ipv4/conf/all/rp_filter", "0")?;
        router.sysctl("ipv4/conf/default/rp_filter", "0")?;
        client1.connect("eth0", switch, "port1")?;
        client2.connect("eth0", switch, "port2")?;
        router.connect("lan0", switch, "router")?;
        router.connect("lan1", client3, "eth0")?;
        switch.ip(&[
            "link add bridge type bridge stp_state 0",
            "link set bridge up",
            "link set port1 master bridge",
            "link set port2 master bridge",
            "link set router master bridge",
        ])?;
        self.prepare_for_mode(switch, "router")?;
        self.prepare_for_mode(client3, "eth0")?;
        router.ip(&[format!("addr add {ROUTER_LAN0}/24 dev lan0"), format!("addr add {ROUTER_LAN1}/24 dev lan1")])?;
        let clients =
            [(client1, CLIENT1, ROUTER_LAN0), (client2, CLIENT2, ROUTER_LAN0), (client3, CLIENT3, ROUTER_LAN1)];
        for (client, address, gateway) in clients {
            client.ip(&[format!("addr add {address}/24 dev eth0"), format!("route add default via {gateway}")])?;
        }
        let mtu = self.options.lan_mtu;
        for (host, interface) in [
            (client1, "eth0"),
            (client2, "eth0"),
            (client3, "eth0"),
            (router, "lan0"),
            (router, "lan1"),
            (switch, "port1"),
            (switch, "port2"),
            (switch, "router"),
        ] {
            host.ip(&[format!("link set {interface} mtu {mtu}")])?;
        }
        Ok(())
    }

    fn build_uplinks(&self) -> Result<()> {
        let Self { router, server, .. } = self;
        server.ip(&[format!("addr add {SERVER}/32 dev lo")])?;
        for (index, uplink) in self.uplinks.iter().enumerate() {
            let Uplink { interface, gateway, address, isp, .. } = uplink;
            let number = index + 1;
            let transit = format!("10.99.{number}");
            let server_interface = format!("eth{number}");
            isp.sysctl("ipv4/ip_forward", "1")?;
            router.connect(interface, isp, "eth0")?;
            isp.connect("eth1", server, &server_interface)?;
            let mtu = self.options.uplink_mtus.get(index).copied().unwrap_or(self.options.uplink_mtu);
            router
                .ip(&[format!("link set {interface} mtu {mtu}"), format!("addr add {address}/24 dev {interface}")])?;
            self.restore_default_route(index)?;
            isp.ip(&[
                format!("link set eth0 mtu {mtu}"),
                format!("addr add {gateway}/24 dev eth0"),
                format!("addr add {transit}.1/30 dev eth1"),
                // Whatever isn't the customer's network is the internet's: with the filter below, that is BCP 38.
                format!("route add default via {transit}.2"),
            ])?;
            isp.sysctl("ipv4/conf/eth0/rp_filter", "1")?;
            let [a, b, c, _] = gateway.octets();
            server.ip(&[
                format!("addr add {transit}.2/30 dev {server_interface}"),
                format!("route add {a}.{b}.{c}.0/24 via {transit}.1 src {SERVER}"),
            ])?;
            self.prepare_for_mode(isp, "eth0")?;
        }
        Ok(())
    }

    fn wait_for_links(&self) -> Result<()> {
        let Self { client1, client2, client3, switch, router, .. } = self;
        for client in [client1, client2, client3] {
            client.wait_for_link("eth0")?;
        }
        for interface in ["lan0", "lan1"] {
            router.wait_for_link(interface)?;
        }
        for interface in ["port1", "port2", "router", "bridge"] {
            switch.wait_for_link(interface)?;
        }
        for (index, uplink) in self.uplinks.iter().enumerate() {
            router.wait_for_link(&uplink.interface)?;
            uplink.isp.wait_for_link("eth0")?;
            uplink.isp.wait_for_link("eth1")?;
            self.server.wait_for_link(&format!("eth{}", index + 1))?;
        }
        Ok(())
    }

    /// Prepares the far end of one of the router's links.
    fn prepare_for_mode(&self, neighbour: &Host, interface: &str) -> Result<()> {
        match self.options.mode {
            Mode::Tc => Ok(()),
            Mode::Xdp => neighbour.features(interface, &["tx", "off", "gro", "on"]),
        }
    }
}

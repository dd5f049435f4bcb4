//! Who is in the router's place: mh, and what people use instead.
//!
//! | contender | does |
//! | --- | --- |
//! | XDP drop | drops each packet: what generator and receiving alone cost |
//! | blind XDP redirect | sends each packet on without a look at it: what no datapath can beat |
//! | kernel | routes to the first uplink, without translation |
//! | ECMP | routes by a hash of addresses and ports over both uplinks, without translation |
//! | iptables | the classic set-up: CONNMARK, statistic nth, a table for each uplink, SNAT |
//! | nft | the same with a hash (jhash), a map and connection marks |
//! | mh | `mhd` with a pool of addresses for each uplink, in mode xdp or tc |
//!
//! The address range, interfaces and gateways are the laboratory's ([`Site`]), so the same contenders serve generated frames and real
//! sockets. nft's software flow tables would be one more contender where the kernel has them (CONFIG_NF_FLOW_TABLE).
//!
//! Invariants: [`Running::stop`] takes away what [`Contender::start`] has put there, flows included. What it can't take away are the legacy
//! tables themselves once they have been used in a namespace, so plain forwarding belongs in a namespace of its own.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use mh_bench_ebpf::{DROPPED, map, program};
use mh_tests::lab::{Host, Lab, Mhd, Mode, require_tools};
use nix::net::if_::if_nametoindex;

use crate::{
    machine::{Setting, Shared, Turn},
    names::contender,
    programs::Programs,
};

/// The kernel's bound for its connections, and the size of the hash table of them; the same for all namespaces.
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const CONNTRACK_BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// Seconds that a UDP flow lives after its last packet: mh's default.
const UDP_TIMEOUT_S: &str = "300";
/// The least of mh's tables.
const LEAST_FLOWS: u32 = 8192;
/// The most that a config may name.
const MOST_ENTRIES: u32 = 1 << 24;

/// Who is in the router's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// mh with native XDP.
    MhXdp,
    /// mh at TC alone.
    MhTc,
    /// Drops everything.
    XdpDrop,
    /// Redirects everything.
    BlindRedirect,
    /// Plain forwarding.
    Kernel,
    /// Plain forwarding by hash over both uplinks.
    Ecmp,
    /// Connection marks, nth, source translation.
    Iptables,
    /// The same with nft.
    Nft,
}

impl Contender {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MhXdp => contender::MH_XDP,
            Self::MhTc => contender::MH_TC,
            Self::XdpDrop => contender::XDP_DROP,
            Self::BlindRedirect => contender::BLIND_REDIRECT,
            Self::Kernel => contender::KERNEL,
            Self::Ecmp => contender::ECMP,
            Self::Iptables => contender::IPTABLES,
            Self::Nft => contender::NFT,
        }
    }

    /// Whether flows leave with an address of the uplink's pool.
    #[must_use]
    pub const fn translates(self) -> bool {
        matches!(self, Self::MhXdp | Self::MhTc | Self::Iptables | Self::Nft)
    }

    /// Whether frames leave with the next hop's Ethernet address.
    #[must_use]
    pub const fn routes(self) -> bool {
        !matches!(self, Self::XdpDrop | Self::BlindRedirect)
    }

    /// Whether flows are spread over both uplinks, half and half.
    #[must_use]
    pub const fn balances(self) -> bool {
        self.translates() || matches!(self, Self::Ecmp)
    }

    /// Whether it attaches XDP programs to the router's interfaces.
    #[must_use]
    pub const fn has_xdp(self) -> bool {
        matches!(self, Self::MhXdp | Self::XdpDrop | Self::BlindRedirect)
    }

    /// Puts it in the router's place.
    ///
    /// # Errors
    /// If a program is missing or refuses; the router is then in no state to be used.
    pub fn start(self, site: &Site<'_>) -> Result<Running> {
        let what = match self {
            Self::MhXdp => What::Mh(Box::new(site.start_mhd(Mode::Xdp)?)),
            Self::MhTc => What::Mh(Box::new(site.start_mhd(Mode::Tc)?)),
            Self::XdpDrop => What::Programs(site.attach([program::DROP; 3])?),
            Self::BlindRedirect => What::Programs(site.attach(program::BLIND)?),
            Self::Kernel => site.route(&format!("default via {}", site.uplinks[0].gateway))?,
            Self::Ecmp => {
                site.router.sysctl("ipv4/fib_multipath_hash_policy", "1")?;
                let hops = site
                    .uplinks
                    .iter()
                    .map(|Uplink { gateway, interface, .. }| format!(" nexthop via {gateway} dev {interface}"));
                site.route(&format!("default{}", hops.collect::<String>()))?
            }
            Self::Iptables => site.iptables()?,
            Self::Nft => site.nft()?,
        };
        Ok(Running { router: site.router.clone(), what })
    }
}

/// An uplink of the router.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// The router's interface.
    pub interface: String,
    /// The next hop.
    pub gateway: std::net::Ipv4Addr,
    /// The addresses that flows leave with: one (/32) or many.
    pub pool: Ipv4Net,
}

/// The router and what is around it. The router forwards, has addresses and no default route; with default routes of its own (lower
/// metric than none), see [`Site::route`].
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// Where files go.
    pub lab: &'a Lab,
    /// The router.
    pub router: &'a Host,
    /// Its interface to the inside.
    pub lan: &'a str,
    /// All inside hosts.
    pub inside: Ipv4Net,
    /// The uplinks.
    pub uplinks: [Uplink; 2],
    /// How many flows there will be at a time.
    pub flows: u32,
}

impl Site<'_> {
    /// mh's config. Tables fit the flows, as the peers' do: see [`capacity`].
    #[must_use]
    pub fn config(&self, mode: Mode) -> String {
        let bindings = capacity(self.flows);
        let mut config = format!(
            "lan = [\"{}\"]\n\n[datapath]\nmode = \"{}\"\nconntrack_entries = {}\nbindings = {bindings}\n",
            self.lan,
            mode.name(),
            bindings * 2,
        );
        for (number, Uplink { interface, gateway, pool, .. }) in (1..).zip(&self.uplinks) {
            // Writing into a String can't fail.
            let _ = write!(
                config,
                "\n[uplink.isp{number}]\ninterface = \"{interface}\"\ngateway = \"{gateway}\"\naddress = \"{pool}\"\nweight = 1\n",
            );
        }
        config
    }

    fn start_mhd(&self, mode: Mode) -> Result<Mhd> {
        // Local traffic and what no rule sends elsewhere is judged by the main table.
        self.router.ip(&[format!("route replace default via {}", self.uplinks[0].gateway)])?;
        Mhd::start(self.lab, self.router, &self.config(mode))
    }

    fn attach(&self, names: [&str; 3]) -> Result<Programs> {
        let mut programs = Programs::load(0)?;
        let [one, two] = &self.uplinks;
        let interfaces = [self.lan, &one.interface, &two.interface];
        let onward = [&one.interface, self.lan, self.lan];
        for (((number, name), interface), onward) in (0..).zip(names).zip(interfaces).zip(onward) {
            let ifindex = self.router.enter(|| if_nametoindex(onward))??;
            programs.set(map::ROUTES, number, ifindex)?;
            programs.attach(name, self.router, interface)?;
        }
        Ok(programs)
    }

    fn route(&self, route: &str) -> Result<What> {
        self.router.ip(&[format!("route replace {route}")])?;
        Ok(What::Route)
    }

    /// A table for each uplink, chosen by mark 1 or 2; each has the way inside as well, so that a reply needs no rule of its own.
    fn mark_routes(&self) -> Result<()> {
        let inside = self.router.run(&["ip", "route", "show", "exact", &self.inside.to_string()])?;
        let inside = inside.lines().next().with_context(|| format!("no route to {}", self.inside))?;
        let mut lines = vec![format!("route replace default via {}", self.uplinks[0].gateway)];
        for (mark, Uplink { gateway, interface, .. }) in (1..).zip(&self.uplinks) {
            lines.push(format!("rule add priority {} fwmark {mark} lookup {}", 1000 + mark, 100 + mark));
            lines.push(format!("route replace {} table {}", inside.replace(" linkdown", ""), 100 + mark));
            lines.push(format!("route replace default via {gateway} dev {interface} table {}", 100 + mark));
        }
        self.router.ip(&lines)?;
        // Flows live as long as mh's: in the usual 30 s, millions of them can't be visited in turn.
        for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            self.router.sysctl(&format!("netfilter/{timeout}"), UDP_TIMEOUT_S)?;
        }
        // An interface's hardware sums up what it receives; here the kernel would have to, for each packet.
        self.router.sysctl("netfilter/nf_conntrack_checksum", "0")
    }

    fn iptables(&self) -> Result<What> {
        require_tools(&["iptables-restore", "conntrack"])?;
        self.mark_routes()?;
        let [one, two] = &self.uplinks;
        let (lan, wan1, wan2) = (self.lan, &one.interface, &two.interface);
        let (range1, range2) = (range(one.pool), range(two.pool));
        let rules = format!(
            "*mangle\n\
             -A PREROUTING -j CONNMARK --restore-mark\n\
             -A PREROUTING -m mark ! --mark 0 -j ACCEPT\n\
             -A PREROUTING -i {lan} -m statistic --mode nth --every 2 --packet 0 -j MARK --set-mark 2\n\
             -A PREROUTING -i {lan} -m mark --mark 0 -j MARK --set-mark 1\n\
             -A PREROUTING -i {wan1} -j MARK --set-mark 1\n\
             -A PREROUTING -i {wan2} -j MARK --set-mark 2\n\
             -A PREROUTING -j CONNMARK --save-mark\n\
             COMMIT\n\
             *nat\n\
             -A POSTROUTING -o {wan1} -j SNAT --to-source {range1}\n\
             -A POSTROUTING -o {wan2} -j SNAT --to-source {range2}\n\
             COMMIT\n"
        );
        self.router.run_with_input(&["iptables-restore"], &rules)?;
        Ok(What::Marks)
    }

    fn nft(&self) -> Result<What> {
        require_tools(&["nft", "conntrack"])?;
        self.mark_routes()?;
        let [one, two] = &self.uplinks;
        let (lan, wan1, wan2) = (self.lan, &one.interface, &two.interface);
        let (range1, range2) = (range(one.pool), range(two.pool));
        self.router.nft(&format!(
            "table ip balance {{\n\
               chain pick {{\n\
                 type filter hook prerouting priority mangle;\n\
                 meta mark set ct mark\n\
                 meta mark != 0 accept\n\
                 iif {lan} ct mark set jhash ip saddr . ip daddr . th sport . th dport mod 2 offset 1 meta mark set ct mark\n\
                 iif {wan1} ct mark set 1 meta mark set 1\n\
                 iif {wan2} ct mark set 2 meta mark set 2\n\
               }}\n\
               chain rewrite {{\n\
                 type nat hook postrouting priority srcnat;\n\
                 oif {wan1} snat to {range1}\n\
                 oif {wan2} snat to {range2}\n\
               }}\n\
             }}\n"
        ))?;
        Ok(What::Marks)
    }
}

fn range(pool: Ipv4Net) -> String {
    if pool.prefix_len() == 32 {
        pool.network().to_string()
    } else {
        format!("{}-{}", pool.network(), pool.broadcast())
    }
}

/// How many flows there is room for where so many are wanted: in mh's tables, and among the kernel's connections.
#[must_use]
pub const fn capacity(flows: u32) -> u32 {
    let flows = if flows < LEAST_FLOWS { LEAST_FLOWS } else { flows };
    let entries = flows.saturating_mul(3);
    (if entries < MOST_ENTRIES { entries } else { MOST_ENTRIES }) / 2
}

/// The kernel's bounds for connections as a measurement needs them, until this is gone.
#[derive(Debug)]
pub struct Room {
    _settings: Vec<Setting>,
    // After the settings: others see them put back.
    _turn: Turn,
}

/// Makes room for so many of the kernel's connections as [`capacity`] says, no fewer and no more. One at a time: it waits for others.
///
/// # Errors
/// If the kernel refuses: both bounds are the machine's and can't be set from a container. If another benchmark does not get done.
pub fn room_for_connections(flows: u32) -> Result<Room> {
    let turn = Turn::wait(Shared::Settings)?;
    let room = capacity(flows);
    let mut settings = Vec::new();
    let buckets = Setting::at_least(CONNTRACK_BUCKETS, room.into());
    settings.extend(buckets.context("size of the kernel's connection table")?);
    let bound = Setting::set(CONNTRACK_MAX, &room.to_string());
    settings.push(bound.context("bound of the kernel's connections")?);
    Ok(Room { _settings: settings, _turn: turn })
}

#[derive(Debug)]
enum What {
    Mh(Box<Mhd>),
    Programs(Programs),
    Route,
    Marks,
}

/// A contender at work.
#[derive(Debug)]
pub struct Running {
    router: Host,
    what: What,
}

impl Running {
    /// How many packets [`Contender::XdpDrop`] has dropped.
    ///
    /// # Errors
    /// If it is another one, or its counters can't be read.
    pub fn dropped(&self) -> Result<u64> {
        match &self.what {
            What::Programs(programs) => Ok(programs.seen(DROPPED)?.packets),
            _ => anyhow::bail!("only XDP drop counts what it drops"),
        }
    }

    /// Takes it out of the router's place.
    ///
    /// # Errors
    /// If something refuses to go.
    pub fn stop(self) -> Result<()> {
        let Self { router, what } = self;
        match what {
            What::Mh(mhd) => mhd.ctl(&["detach"]).map(drop)?,
            What::Programs(programs) => drop(programs),
            What::Route => {}
            What::Marks => {
                router.run_with_input(&["iptables-restore"], "*mangle\nCOMMIT\n*nat\nCOMMIT\n")?;
                router.nft("flush ruleset")?;
                router.run(&["conntrack", "-F"])?;
                router.ip(&["rule del priority 1001", "rule del priority 1002"])?;
                router.ip(&["route flush table 101", "route flush table 102"])?;
            }
        }
        router.ip(&["route flush exact 0.0.0.0/0"])
    }
}

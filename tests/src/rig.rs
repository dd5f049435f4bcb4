//! The programs on a test bench: loaded and configured as mhd does it, attached nowhere, fed packet by packet through
//! `BPF_PROG_TEST_RUN`.
//!
//! ```text
//!   host .10 02::10 ── lan0 02::1 ┌─────┐ wan1 02::2  198.51.100.2 ── gateway 198.51.100.1 02::a1
//!   192.168.1.0/24             .1 │ rig │
//!                                 └─────┘ wan2 02::3  203.0.113.2 ─── gateway 203.0.113.1 02::a2
//! ```
//!
//! A config with more uplinks, on wan3 and so on, has them with 198.18.3.2 and gateway 198.18.3.1 02::a3 and so on.
//!
//! Neighbours are permanent; the far ends of the links are in a namespace that does nothing.

mod age;
pub mod conversation;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp};
use mh_common::{
    abi::{self, map, program},
    address::Ipv4,
    cache,
    flow::{Entry, Key},
    fragment,
    policy::Explanation,
    verdict::{COUNTERS, Verdict},
};
use mh_userspace::{
    config::{self, Config},
    core::{Core, Desired, Event, Indices, Link, Overrides, RuleTable},
    datapath::{apply::Datapath, cache::Keeper, explain::Question, flows, load::program_of, tables::Tables},
    reconcile::{self, Action},
};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::lab::{Host, Lab};
use crate::packet::Mac;

/// Ethernet address of lan0.
pub const LAN: Mac = [2, 0, 0, 0, 0, 0x01];
/// Ethernet address of wan1.
pub const WAN1: Mac = [2, 0, 0, 0, 0, 0x02];
/// Ethernet address of wan2.
pub const WAN2: Mac = [2, 0, 0, 0, 0, 0x03];
/// Ethernet address of the inside host 192.168.1.10.
pub const HOST: Mac = [2, 0, 0, 0, 0, 0x10];
/// Ethernet address of the inside host 192.168.1.11.
pub const HOST2: Mac = [2, 0, 0, 0, 0, 0x11];
/// Ethernet address of isp1's gateway.
pub const GATEWAY1: Mac = [2, 0, 0, 0, 0, 0xa1];
/// Ethernet address of isp2's gateway.
pub const GATEWAY2: Mac = [2, 0, 0, 0, 0, 0xa2];

/// `TC_ACT_REDIRECT`.
pub const TC_REDIRECT: i32 = 7;
/// `TC_ACT_UNSPEC`.
pub const TC_NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub const TC_DROP: i32 = 2;
/// `XDP_PASS`.
pub const XDP_PASS: i32 = 2;
/// `XDP_REDIRECT`.
pub const XDP_REDIRECT: i32 = 4;

/// Size of the kernel's `struct __sk_buff`.
const SK_BUFF: usize = 192;
/// Where the mark is in it.
const MARK: usize = 8;
/// Where the interface by which a packet was received is in it.
const INGRESS_IFINDEX: usize = 36;
/// The key of the hash of parts that are cut: how many copies find room in few sets depends on it.
const PARTS_SEED: [u64; 2] = [1, 7];

/// Which program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    Xdp,
    Tc { mark: u32 },
    Egress { mark: u32, forwarded: bool },
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The packet's mark afterwards; zero from XDP.
    pub mark: u32,
    /// Its return code.
    pub code: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The counters that changed, and by how much.
    pub counted: BTreeMap<&'static str, u64>,
}

/// The programs, with maps of their own.
pub struct Rig {
    datapath: Datapath,
    /// The maps.
    pub tables: Tables,
    desired: Desired,
    ifindex: BTreeMap<String, u32>,
    counters: Counters,
    fragments: HashMap<MapData, fragment::Key<Ipv4>, Entry<Ipv4>>,
    waiting: HashMap<MapData, fragment::Key<Ipv4>, fragment::Waiting>,
    index: Array<MapData, cache::Set>,
    parts: PerCpuArray<MapData, cache::Part>,
}

const CONFIG: &str = r#"
lan = ["lan0"]
[datapath]
conntrack_entries = 65536
bindings = 16384
[uplink.isp1]
interface = "wan1"
gateway = "198.51.100.1"
address = "198.51.100.2"
[uplink.isp2]
interface = "wan2"
gateway = "203.0.113.1"
"#;

impl Rig {
    /// Runs `work` on a rig, on a thread in its namespace, with the weights of isp1 and isp2.
    ///
    /// # Errors
    /// If the rig can't be made; or what `work` returns.
    pub fn run<T: Send>(weights: [u16; 2], work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<T> {
        Self::run_with_isp2("", weights, work)
    }

    /// The same with lines added to the section of isp2, the last one of the configuration; if they say no address, it has 203.0.113.2.
    ///
    /// # Errors
    /// If the rig can't be made; or what `work` returns.
    pub fn run_with_isp2<T: Send>(
        lines: &str,
        weights: [u16; 2],
        work: impl FnOnce(&mut Self) -> Result<T> + Send,
    ) -> Result<T> {
        let address = if lines.starts_with("address = ") { "" } else { "address = \"203.0.113.2\"\n" };
        let named = ["isp1", "isp2"].into_iter().map(String::from).zip(weights);
        Self::run_with(&format!("{CONFIG}{address}{lines}\n"), named.collect(), work)
    }

    /// Runs `work` on a rig with a config of its own, whose LAN interface is lan0 and whose uplinks are on wan1, wan2 and so on.
    ///
    /// # Errors
    /// If the rig can't be made; or what `work` returns.
    pub fn run_config<T: Send>(config: &str, work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<T> {
        Self::run_with(config, BTreeMap::new(), work)
    }

    fn run_with<T: Send>(
        text: &str,
        weights: BTreeMap<String, u16>,
        work: impl FnOnce(&mut Self) -> Result<T> + Send,
    ) -> Result<T> {
        let config = config::parse(text).map_err(|faults| anyhow::anyhow!("{:?}", faults.0))?.config;
        let wans: Vec<Wan> = (1..=config.uplinks.len().try_into()?).map(Wan::new).collect();
        let lab = Lab::new()?;
        let (router, far) = (lab.host("rig")?, lab.host("far")?);
        links(&router, &far, &wans)?;
        router.enter(|| {
            // A bpffs of this thread's own, which goes with it.
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            let bpffs = lab.directory().join("bpffs");
            std::fs::create_dir_all(&bpffs)?;
            mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
            // Copies in the flow cache are a CPU's own, as flows are one CPU's.
            let mut here = CpuSet::new();
            here.set(sched_getcpu()?)?;
            sched_setaffinity(Pid::from_raw(0), &here)?;
            let overrides = Overrides { weights, ..Overrides::default() };
            let mut rig = Self::load(config, overrides, &wans, &bpffs.join("mh"))?;
            work(&mut rig)
        })?
    }

    fn load(config: Config, overrides: Overrides, wans: &[Wan], pins: &std::path::Path) -> Result<Self> {
        let (mut datapath, _) = Datapath::open(pins, &config.datapath, false)?;
        let mut facts = Vec::new();
        let mut ifindex = BTreeMap::new();
        for (name, mac) in wans.iter().map(|wan| (wan.name.clone(), wan.mac)).chain([("lan0".to_owned(), LAN)]) {
            let index = nix::net::if_::if_nametoindex(name.as_str())?;
            ifindex.insert(name.clone(), index);
            let mac = Some(mac);
            let (up, carrier, master) = (true, true, None);
            facts.push(Event::Link(Link { ifindex: index, name, mac, mtu: 1500, up, carrier, master }));
        }
        for own in [[192, 168, 1, 1], [192, 168, 1, 255]] {
            facts.push(Event::Local(own.into()));
        }
        for wan in wans {
            facts.push(Event::Local(wan.address));
            let ifindex = ifindex.get(&wan.name).copied().unwrap_or_default();
            facts.push(Event::Neighbour { ifindex, address: wan.gateway, mac: wan.gateway_mac, fixed: true });
        }
        let mut indices = Indices::default();
        indices.assign(&config);
        // The first neighbour epoch follows this one: it is zero, as the model's.
        let mut core = Core::new(config, indices, overrides, u32::MAX);
        core.observe(facts);
        let desired = core.desired(std::time::Duration::ZERO);
        let mut tables = Tables::open(pins)?;
        for action in reconcile::plan(None, &desired) {
            if let Action::Attach(index, interface) = &action {
                let record = abi::Interface { flags: abi::INTERFACE_XDP, ..interface.interface };
                tables.interfaces.insert(index, record, 0)?;
            } else {
                datapath.apply(&action)?;
            }
        }
        // Every CPU has its part of the flow cache, as mhd sees to.
        datapath.keeper()?.look(false, flows::now())?;
        tables.copies.look()?;
        let counters = Counters::open(&pins.join(map::VERDICTS))?;
        let fragments = Map::from_map_data(MapData::from_pin(pins.join(map::FRAGMENTS4))?)?.try_into()?;
        let waiting = Map::from_map_data(MapData::from_pin(pins.join(map::WAITING4))?)?.try_into()?;
        let index = Map::from_map_data(MapData::from_pin(pins.join(map::CACHE_INDEX4))?)?.try_into()?;
        let parts = Map::from_map_data(MapData::from_pin(pins.join(map::CACHE_PARTS))?)?.try_into()?;
        Ok(Self { datapath, tables, desired, ifindex, counters, fragments, waiting, index, parts })
    }

    /// Who shares the flow cache out.
    ///
    /// # Errors
    /// If a map can't be opened.
    pub fn keeper(&mut self) -> Result<Keeper> {
        Ok(self.datapath.keeper()?)
    }

    /// How many sets of the flow cache each CPU has that has any.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn part_sizes(&self) -> Result<Vec<u32>> {
        Ok(self.parts.get(&0, 0)?.iter().map(|part| part.sets).filter(|sets| *sets != 0).collect())
    }

    /// Makes all CPUs' parts of the flow cache so many sets small, and copies good for so many ticks.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub fn cut_parts(&mut self, sets: u32, window: u32) -> Result<()> {
        let found = self.parts.get(&0, 0)?;
        let cut: Vec<_> = found
            .iter()
            .map(|part| cache::Part { sets: part.sets.min(sets), window, seed: PARTS_SEED, ..*part })
            .collect();
        self.parts.set(0, PerCpuValues::try_from(cut)?, 0)?;
        Ok(self.tables.copies.look()?)
    }

    /// How many copies the index of the flow cache tells in all parts.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn told_copies(&self) -> Result<usize> {
        let mut told = 0;
        for part in self.parts.get(&0, 0)?.iter() {
            for set in part.first..part.first + part.sets {
                told += self.index.get(&set, 0)?.ways.iter().filter(|entry| **entry != 0).count();
            }
        }
        Ok(told)
    }

    /// Takes all CPUs' parts of the flow cache away and leaves what is in them, as a controller does that is killed while it moves them.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub fn abandon_parts(&mut self) -> Result<()> {
        let found = self.parts.get(&0, 0)?;
        let without: Vec<_> = found.iter().map(|part| cache::Part { first: 0, sets: 0, ..*part }).collect();
        Ok(self.parts.set(0, PerCpuValues::try_from(without)?, 0)?)
    }

    /// Ends all copies in the flow cache; what they have counted goes to their halves.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub fn end_copies(&mut self) -> Result<()> {
        let all = cache::Extent { first: 0, sets: self.index.len() };
        Ok(self.keeper()?.settle(all)?)
    }

    /// Takes a half out of the conntrack, and its copies with it.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub fn evict(&mut self, key: &Key<Ipv4>) -> Result<()> {
        self.end_copies()?;
        Ok(self.tables.remove_half(key)?)
    }

    /// Sets the weights of isp1 and isp2.
    ///
    /// # Errors
    /// If a map can't be written.
    pub fn set_weights(&mut self, weights: [u32; 2]) -> Result<()> {
        self.set_policy_weights(config::DEFAULT_POLICY, weights, weights)
    }

    /// Sets the weights of isp1 and isp2 under a policy, and which of them may get flows at all: those that are not zero in `eligible`.
    ///
    /// # Errors
    /// If there is no such policy, or a map can't be written.
    pub fn set_policy_weights(&mut self, name: &str, weights: [u32; 2], eligible: [u32; 2]) -> Result<()> {
        let bits = |weights: [u32; 2]| u32::from(weights[0] > 0) | u32::from(weights[1] > 0) << 1;
        let view =
            self.desired.policy_views.iter().find(|view| view.name == name).context("there is no such policy")?;
        let mut policy = self.desired.policies.get(&view.index).context("the policy has no index")?.clone();
        policy.weights[..2].copy_from_slice(&weights);
        (policy.members, policy.eligible) = (bits(weights), bits(eligible));
        Ok(self.datapath.apply(&Action::SetPolicy(view.index, policy))?)
    }

    /// The maps once more, for who works on them beside the programs.
    ///
    /// # Errors
    /// If a map can't be opened.
    pub fn open_tables(&self) -> Result<Tables> {
        Ok(Tables::open(self.datapath.dir())?)
    }

    /// Has the controller's side do one of its actions.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn apply(&mut self, action: &Action) -> Result<()> {
        Ok(self.datapath.apply(action)?)
    }

    /// Sets which uplinks can be used.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn set_healthy(&mut self, healthy: u64) -> Result<()> {
        let neighbour_epoch = self.desired.neighbour_epoch;
        Ok(self.datapath.apply(&Action::SetLive { healthy, neighbour_epoch })?)
    }

    /// Has every Ethernet address resolved anew.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn next_neighbour_epoch(&mut self, healthy: u64) -> Result<u32> {
        self.desired.neighbour_epoch = self.desired.neighbour_epoch.wrapping_add(1);
        self.set_healthy(healthy)?;
        Ok(self.desired.neighbour_epoch)
    }

    /// Gives an uplink another outside address in place of the one that it has, as when it is renumbered. Returns the neighbour epoch.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub fn renumber(&mut self, uplink: u8, address: Ipv4Addr, healthy: u64) -> Result<u32> {
        let index = u32::from(uplink);
        let record = self.tables.uplinks.get(&index, 0)?;
        let mut pool = self.tables.pools.get(&index, 0)?;
        pool.ranges[0].first = u32::from(address);
        self.tables.uplinks.set(
            index,
            abi::Uplink { v4: abi::Route { address: address.into(), ..record.v4 }, ..record },
            0,
        )?;
        self.datapath.apply(&Action::SetPool(uplink, pool))?;
        self.datapath.apply(&Action::RemoveOutside(record.v4.address.into()))?;
        self.datapath.apply(&Action::SetOutside(address, 1 << uplink))?;
        self.next_neighbour_epoch(healthy)
    }

    /// Runs the TC program on a packet that came in by the interface.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn tc(&mut self, interface: &str, packet: &[u8]) -> Result<Outcome> {
        self.once(Hook::Tc { mark: 0 }, interface, packet)
    }

    /// The same on a packet that comes with a mark: from the machine itself.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn tc_marked(&mut self, interface: &str, mark: u32, packet: &[u8]) -> Result<Outcome> {
        self.once(Hook::Tc { mark }, interface, packet)
    }

    /// What the datapath says would become of a packet.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn explain(&mut self, question: &Question) -> Result<Explanation> {
        Ok(self.datapath.explain(question)?)
    }

    /// Nanoseconds that a decision takes, over `repeat` decisions.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn decision_ns(&mut self, question: &Question, repeat: u32) -> Result<u128> {
        Ok(self.datapath.decide(question, repeat)?.1.as_nanos())
    }

    /// The rules of lines at the end of the configuration, as for [`Self::run_with_isp2`].
    ///
    /// # Errors
    /// If the lines have faults.
    pub fn rules_of(lines: &str) -> Result<RuleTable> {
        let config =
            config::parse(&format!("{CONFIG}{lines}")).map_err(|faults| anyhow::anyhow!("{:?}", faults.0))?.config;
        let mut indices = Indices::default();
        indices.assign(&config);
        Ok(RuleTable::new(&config, &indices))
    }

    /// Puts rules in force.
    ///
    /// # Errors
    /// If a map can't be written.
    pub fn set_rules(&mut self, rules: &RuleTable) -> Result<()> {
        let interfaces = self.ifindex.iter().filter_map(|(name, index)| Some((*index, rules.of_interface(name)?)));
        let (rules, interfaces) = (Arc::new(rules.clone()), interfaces.collect());
        Ok(self.datapath.apply(&Action::SetRules { rules, interfaces })?)
    }

    /// Which rules, and which of the interfaces they ask for, the rig has.
    #[must_use]
    pub fn rules(&self) -> &RuleTable {
        &self.desired.rules
    }

    /// Runs the XDP program on a packet that came in by the interface.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn xdp(&mut self, interface: &str, packet: &[u8]) -> Result<Outcome> {
        self.once(Hook::Xdp, interface, packet)
    }

    /// Runs the egress program on a packet that the machine itself sends by the interface, with this mark.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn egress(&mut self, interface: &str, mark: u32, packet: &[u8]) -> Result<Outcome> {
        self.once(Hook::Egress { mark, forwarded: false }, interface, packet)
    }

    /// The same on a packet that the kernel forwards from lan0.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn egress_forwarded(&mut self, interface: &str, mark: u32, packet: &[u8]) -> Result<Outcome> {
        self.once(Hook::Egress { mark, forwarded: true }, interface, packet)
    }

    /// Runs the TC program on a packet that came in by the interface, and looks at nothing that comes of it: for many packets.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn feed(&mut self, interface: &str, packet: &[u8]) -> Result<()> {
        self.test_run(Hook::Tc { mark: 0 }, interface, packet, None, None, 1).map(drop)
    }

    /// Nanoseconds per packet of a program on a packet that it leaves as it is, over `repeat` runs.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn cost_ns(&mut self, xdp: bool, interface: &str, packet: &[u8], repeat: u32) -> Result<u128> {
        let hook = if xdp { Hook::Xdp } else { Hook::Tc { mark: 0 } };
        Ok(self.test_run(hook, interface, packet, None, None, repeat)?.duration.as_nanos())
    }

    fn once(&mut self, hook: Hook, interface: &str, packet: &[u8]) -> Result<Outcome> {
        let before = self.counters.read()?;
        let mut out = vec![0; packet.len() + 64];
        let mut context = [0; SK_BUFF];
        let context_out = (hook != Hook::Xdp).then_some(&mut context[..]);
        let result = self.test_run(hook, interface, packet, Some(&mut out), context_out, 1)?;
        out.truncate(usize::try_from(result.data_size_out)?);
        let after = self.counters.read()?;
        let counted = Verdict::ALL
            .iter()
            .map(|verdict| (verdict.name(), after[*verdict as usize] - before[*verdict as usize]))
            .filter(|(_, count)| *count > 0)
            .collect();
        let mark = u32::from_ne_bytes(context[MARK..MARK + 4].try_into()?);
        Ok(Outcome { code: result.return_value.cast_signed(), packet: out, counted, mark })
    }

    fn test_run(
        &mut self,
        hook: Hook,
        interface: &str,
        packet: &[u8],
        data_out: Option<&mut [u8]>,
        ctx_out: Option<&mut [u8]>,
        repeat: u32,
    ) -> Result<TestRunResult> {
        let ifindex = self.index(interface)?.to_ne_bytes();
        // struct xdp_md: data_end at 4, ingress_ifindex at 12; struct __sk_buff: ifindex at 40.
        let mut context = vec![0u8; if hook == Hook::Xdp { 24 } else { SK_BUFF }];
        if hook == Hook::Xdp {
            context[4..8].copy_from_slice(&u32::try_from(packet.len())?.to_ne_bytes());
            context[12..16].copy_from_slice(&ifindex);
        } else {
            context[40..44].copy_from_slice(&ifindex);
        }
        if let Hook::Tc { mark } | Hook::Egress { mark, .. } = hook {
            context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        }
        if let Hook::Egress { forwarded: true, .. } = hook {
            context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&self.index("lan0")?.to_ne_bytes());
        }
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out,
            ctx_in: Some(&context),
            ctx_out,
            repeat,
            ..TestRunOptions::new()
        };
        let ebpf = self.datapath.ebpf();
        Ok(match hook {
            Hook::Xdp => program_of::<Xdp>(ebpf, program::XDP)?.test_run(options)?,
            Hook::Tc { .. } => program_of::<SchedClassifier>(ebpf, program::TC)?.test_run(options)?,
            Hook::Egress { .. } => program_of::<SchedClassifier>(ebpf, program::EGRESS)?.test_run(options)?,
        })
    }

    /// The programs and maps.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        self.datapath.ebpf()
    }

    /// An interface's index.
    ///
    /// # Errors
    /// If the rig does not have it.
    pub fn index(&self, interface: &str) -> Result<u32> {
        self.ifindex.get(interface).copied().with_context(|| format!("the rig has no {interface}"))
    }
}

/// The verdict counters, read in one system call: one by one, that would take longer than the packet.
struct Counters {
    map: MapData,
    cpus: usize,
}

impl Counters {
    /// `BPF_MAP_LOOKUP_BATCH`.
    const LOOKUP_BATCH: libc::c_long = 24;

    fn open(pin: &std::path::Path) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(Self { map: MapData::from_pin(pin)?, cpus })
    }

    /// The sums over all CPUs, by the verdicts' discriminants.
    fn read(&self) -> Result<Vec<u64>> {
        let mut keys = vec![0u32; COUNTERS as usize];
        let mut values = vec![0u64; keys.len() * self.cpus];
        let mut cursor = 0u64;
        // The kernel's `union bpf_attr` for batches: cursors in and out, keys, values, count and map, flags.
        let mut attributes = [
            0,
            (&raw mut cursor).addr() as u64,
            keys.as_mut_ptr().addr() as u64,
            values.as_mut_ptr().addr() as u64,
            u64::from(COUNTERS) | u64::from(self.map.fd().as_fd().as_raw_fd().cast_unsigned()) << 32,
            0,
            0,
        ];
        // SAFETY: all pointers are to live buffers of so many keys and values, the values with one word for each possible CPU.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, Self::LOOKUP_BATCH, attributes.as_mut_ptr(), size_of_val(&attributes))
        };
        let error = std::io::Error::last_os_error();
        // ENOENT: there are no more.
        anyhow::ensure!(result == 0 || error.raw_os_error() == Some(libc::ENOENT), "read the counters: {error}");
        Ok(values.chunks(self.cpus).map(|counts| counts.iter().sum()).collect())
    }
}

/// An uplink's link.
struct Wan {
    name: String,
    mac: Mac,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    gateway_mac: Mac,
}

impl Wan {
    /// That of wan1, wan2 and so on.
    fn new(number: u8) -> Self {
        let [a, b, c] = match number {
            1 => [198, 51, 100],
            2 => [203, 0, 113],
            more => [198, 18, more],
        };
        Self {
            name: format!("wan{number}"),
            mac: [2, 0, 0, 0, 0, 1 + number],
            address: Ipv4Addr::new(a, b, c, 2),
            gateway: Ipv4Addr::new(a, b, c, 1),
            gateway_mac: [2, 0, 0, 0, 0, 0xa0 + number],
        }
    }
}

fn links(router: &Host, far: &Host, wans: &[Wan]) -> Result<()> {
    let text = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    for (name, mac) in wans.iter().map(|wan| (wan.name.as_str(), wan.mac)).chain([("lan0", LAN)]) {
        router.connect(name, far, name)?;
        router.ip(&[format!("link set {name} address {}", text(mac))])?;
    }
    router.sysctl("ipv4/ip_forward", "1")?;
    router.ip(&[
        "address add 192.168.1.1/24 dev lan0".to_owned(),
        format!("neighbour replace 192.168.1.10 lladdr {} dev lan0 nud permanent", text(HOST)),
        format!("neighbour replace 192.168.1.11 lladdr {} dev lan0 nud permanent", text(HOST2)),
    ])?;
    for Wan { name, address, gateway, gateway_mac, .. } in wans {
        router.ip(&[
            format!("address add {address}/24 dev {name}"),
            format!("neighbour replace {gateway} lladdr {} dev {name} nud permanent", text(*gateway_mac)),
        ])?;
    }
    router.ip(&["route replace default via 198.51.100.1 dev wan1"])
}

//! The maps by name and type, opened from their pins.
//!
//! Every [`Tables`] has descriptors of its own, so readers (flow lists, the sweep) work beside the controller without locks.

use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, ProgramArray, lpm_trie::LpmTrie};
use mh_common::{
    abi::{self, Interface, Live, Pool, Settings, Source, Uplink, UplinkCounters, map},
    address::Ipv4,
    binding::{End, Inside, Outside, Peer},
    flow::{Entry, Key},
    policy::{POLICIES, Policy, Sticky, StickyKey},
    rules::{Classifier, Head, InterfaceKey, PrefixKey, RuleList, RuleSet},
    slots::SlotTable,
    time::Tick,
};

use super::{
    DatapathError,
    batch::{self, Batches},
    cache::Copies,
    known::Known,
};

/// `BPF_NOEXIST`: only if there is no entry.
pub(super) const BPF_NOEXIST: u64 = 1;
/// `BPF_EXIST`: only if the entry is there.
const BPF_EXIST: u64 = 2;

/// A hash map of the datapath.
pub struct Hash<K, V> {
    map: HashMap<MapData, K, V>,
    descriptor: OwnedFd,
    capacity: u32,
}

impl<K: aya::Pod + bytemuck::Pod, V: aya::Pod + bytemuck::Pod> Hash<K, V> {
    fn open(path: &Path) -> Result<Self, MapError> {
        let data = MapData::from_pin(path)?;
        let capacity = data.info()?.max_entries();
        let descriptor = data.fd().as_fd().try_clone_to_owned()?;
        let map = Map::from_map_data(data)?.try_into()?;
        Ok(Self { map, descriptor, capacity })
    }

    /// Calls `each` with every entry.
    pub fn walk(&self, each: impl FnMut(K, V)) -> Result<(), DatapathError> {
        batch::for_each(self.descriptor.as_fd(), each).map_err(DatapathError::io("read a table"))
    }

    /// Begins a walk over all entries, so many at a time; the table may be changed between.
    pub fn batches(&self, at_a_time: usize) -> Result<Batches<K, V>, DatapathError> {
        let descriptor = self.descriptor.try_clone().map_err(DatapathError::io("walk a table"))?;
        Ok(Batches::new(descriptor, at_a_time))
    }

    /// How many entries it can hold.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Removes an entry; one that is gone already is no error.
    pub fn forget(&mut self, key: &K) -> Result<(), DatapathError> {
        self.map.remove(key).or_else(is_gone).map_err(DatapathError::map("remove an entry"))
    }

    /// Enters an entry, unless there is one, or no room.
    pub fn add(&mut self, key: &K, value: &V) -> Result<(), DatapathError> {
        let added = self.map.insert(key, value, BPF_NOEXIST).or_else(is_full).or_else(is_there);
        added.map_err(DatapathError::map("enter an entry"))
    }

    /// Gives an entry another value; one that is gone stays gone.
    pub fn replace(&mut self, key: &K, value: &V) -> Result<(), DatapathError> {
        self.map.insert(key, value, BPF_EXIST).or_else(is_gone).map_err(DatapathError::map("change an entry"))
    }
}

/// That an entry is not there is no error.
fn is_gone(error: MapError) -> Result<(), MapError> {
    match error {
        MapError::KeyNotFound => Ok(()),
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        error => Err(error),
    }
}

/// That there is no room is no error.
fn is_full(error: MapError) -> Result<(), MapError> {
    match error {
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => Ok(()),
        error => Err(error),
    }
}

/// That an entry is there already is no error.
pub(super) fn is_there(error: MapError) -> Result<(), MapError> {
    match error {
        MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        error => Err(error),
    }
}

impl<K, V> Deref for Hash<K, V> {
    type Target = HashMap<MapData, K, V>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<K, V> DerefMut for Hash<K, V> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.map
    }
}

/// All maps.
pub struct Tables {
    /// IPv4 flows that have seen a reply.
    pub flows4: Hash<Key<Ipv4>, Entry<Ipv4>>,
    /// IPv4 flows that have seen none.
    pub new_flows4: Hash<Key<Ipv4>, Entry<Ipv4>>,
    /// Bindings by inside end.
    pub by_inside4: Hash<End<Ipv4>, Outside<Ipv4>>,
    /// Bindings by outside end.
    pub by_outside4: Hash<End<Ipv4>, Inside<Ipv4>>,
    /// Own and broadcast addresses.
    pub local4: Hash<Ipv4, u8>,
    /// Outside addresses, with one bit per uplink that has them.
    pub outside4: Hash<Ipv4, u32>,
    /// Remote addresses that may send to bindings, and until when.
    pub peers4: Hash<Peer<Ipv4>, Tick>,
    /// What inside hosts have used of their limits.
    pub sources4: Hash<Ipv4, Source>,
    /// How many bindings of inside hosts have ended.
    pub ended4: Hash<Ipv4, u32>,
    /// Outside addresses by uplink.
    pub pools: Array<MapData, Pool>,
    /// The programs that others tail-call.
    pub stages: ProgramArray<MapData>,
    /// Programs that those of XDP tail-call.
    pub xdp_stages: ProgramArray<MapData>,
    /// Uplinks.
    pub uplinks: Array<MapData, Uplink>,
    /// Managed interfaces by index.
    pub interfaces: Hash<u32, Interface>,
    /// Policies.
    pub policies: Array<MapData, Policy>,
    /// Slot tables.
    pub slots: Array<MapData, SlotTable>,
    /// Settings.
    pub settings: Array<MapData, Settings>,
    /// Health and neighbour epoch.
    pub live: Array<MapData, Live>,
    /// Counters by verdict.
    pub verdicts: PerCpuArray<MapData, u64>,
    /// Counters by uplink.
    pub uplink_counters: PerCpuArray<MapData, UplinkCounters>,
    /// What rules do, for each of two generations.
    pub rules: Array<MapData, RuleList>,
    /// What rules ask for, likewise.
    pub classifiers: Array<MapData, Classifier>,
    /// Which rules are in force.
    pub rule_head: Array<MapData, Head>,
    /// Prefixes of rules.
    pub prefixes4: LpmTrie<MapData, PrefixKey<Ipv4>, RuleSet>,
    /// The rules that interfaces agree with.
    pub rule_interfaces: Hash<InterfaceKey, RuleSet>,
    /// Counters by rule.
    pub rule_hits: PerCpuArray<MapData, u64>,
    /// Sources that keep their uplink.
    pub sticky4: Hash<StickyKey<Ipv4>, Sticky>,
    /// Copies of flows' halves.
    pub copies: Copies,
    /// Sources that may have flows or bindings.
    pub known: Known,
}

/// What is pinned in the directory under this name.
pub(super) fn pinned<T>(
    dir: &Path,
    name: &str,
    open: impl FnOnce(&Path) -> Result<T, MapError>,
) -> Result<T, DatapathError> {
    let path: PathBuf = dir.join(name);
    open(&path).map_err(|source| DatapathError::Pin { path, source })
}

/// A map that is pinned there, of the type that it has.
pub(super) fn typed<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &str) -> Result<M, DatapathError> {
    pinned(dir, name, |path| MapData::from_pin(path).and_then(Map::from_map_data)?.try_into())
}

impl Tables {
    /// Opens all maps that are pinned in the directory.
    pub fn open(dir: &Path) -> Result<Self, DatapathError> {
        Ok(Self {
            flows4: pinned(dir, map::FLOWS4, Hash::open)?,
            new_flows4: pinned(dir, map::NEW_FLOWS4, Hash::open)?,
            by_inside4: pinned(dir, map::BY_INSIDE4, Hash::open)?,
            by_outside4: pinned(dir, map::BY_OUTSIDE4, Hash::open)?,
            local4: pinned(dir, map::LOCAL4, Hash::open)?,
            outside4: pinned(dir, map::OUTSIDE4, Hash::open)?,
            peers4: pinned(dir, map::PEERS4, Hash::open)?,
            sources4: pinned(dir, map::SOURCES4, Hash::open)?,
            ended4: pinned(dir, map::ENDED4, Hash::open)?,
            pools: typed(dir, map::POOLS)?,
            stages: typed(dir, map::STAGES)?,
            xdp_stages: typed(dir, map::XDP_STAGES)?,
            uplinks: typed(dir, map::UPLINKS)?,
            interfaces: pinned(dir, map::INTERFACES, Hash::open)?,
            policies: typed(dir, map::POLICIES)?,
            slots: typed(dir, map::SLOTS)?,
            settings: typed(dir, map::SETTINGS)?,
            live: typed(dir, map::LIVE)?,
            verdicts: typed(dir, map::VERDICTS)?,
            uplink_counters: typed(dir, map::UPLINK_COUNTERS)?,
            rules: typed(dir, map::RULES)?,
            classifiers: typed(dir, map::CLASSIFIERS)?,
            rule_head: typed(dir, map::RULE_HEAD)?,
            prefixes4: typed(dir, map::PREFIXES4)?,
            rule_interfaces: pinned(dir, map::RULE_INTERFACES, Hash::open)?,
            rule_hits: typed(dir, map::RULE_HITS)?,
            sticky4: pinned(dir, map::STICKY4, Hash::open)?,
            copies: Copies::open(dir)?,
            known: Known::open(dir)?,
        })
    }

    /// The uplinks that the datapath knows, by index; indices that are free have no name.
    pub fn uplinks(&self) -> Result<Vec<(u8, Uplink)>, DatapathError> {
        let highest = u8::try_from(abi::MAX_UPLINKS).unwrap_or(u8::MAX);
        (0..highest)
            .map(|index| Ok((index, self.uplinks.get(&u32::from(index), 0)?)))
            .collect::<Result<_, _>>()
            .map_err(DatapathError::map("read the uplinks"))
    }

    /// The policies that the datapath knows, by index; indices that are free, and uplinks' own policies, have no name.
    pub fn policies(&self) -> Result<Vec<(u8, Policy)>, DatapathError> {
        let highest = u8::try_from(POLICIES).unwrap_or(u8::MAX);
        (0..highest)
            .map(|index| Ok((index, self.policies.get(&u32::from(index), 0)?)))
            .collect::<Result<_, _>>()
            .map_err(DatapathError::map("read the policies"))
    }
}

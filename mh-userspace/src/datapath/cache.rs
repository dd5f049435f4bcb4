//! The flow cache from outside: who has which part of it, and what it has counted. See [`mh_common::cache`].
//!
//! Invariants: the programs alone write copies, each on its own CPU; here they are only read, from memory that the kernel shares. A CPU's
//! part changes only when nobody uses it.

use std::{
    io,
    os::fd::AsRawFd as _,
    path::Path,
    ptr::{self, NonNull},
};

use aya::{
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::{nr_cpus, online_cpus},
};
use mh_common::{
    abi::{Live, map},
    address::Ipv4,
    cache::{self, Copied, Part, Set, WAYS},
    flow::{Entry, Key},
};

use super::{DatapathError, tables::Tables};

/// Copies for each entry of the conntrack. A half that finds no room is handled by the conntrack, at its speed.
const COPIES_PER_ENTRY: u32 = 1;
/// `MEMBARRIER_CMD_GLOBAL`: returns when every CPU has been through a point at which no program runs.
const MEMBARRIER_GLOBAL: libc::c_int = 1;

/// How many sets the cache has for a conntrack of so many entries.
pub fn sets(entries: u32) -> u32 {
    (entries.saturating_mul(COPIES_PER_ENTRY) / WAYS as u32).max(1)
}

fn cpus() -> Result<Vec<u32>, DatapathError> {
    online_cpus().map_err(|(file, source)| DatapathError::Io { what: format!("read {file}"), source })
}

/// All copies, and whose they are.
pub struct Copies {
    memory: NonNull<Set>,
    sets: u32,
    parts: PerCpuArray<MapData, Part>,
    /// The parts as they are divided; CPUs without one are left out.
    divided: Vec<Part>,
}

// SAFETY: the memory is only read, and stays mapped as long as this lives.
unsafe impl Send for Copies {}
// SAFETY: as above.
unsafe impl Sync for Copies {}

impl Copies {
    /// Maps the cache that is pinned in the directory.
    pub fn open(dir: &Path) -> Result<Self, DatapathError> {
        let pinned = |name: &str| {
            let path = dir.join(name);
            MapData::from_pin(&path).map_err(|source| DatapathError::Pin { path, source })
        };
        let data = pinned(map::CACHE4)?;
        let sets = data.info().map_err(DatapathError::map("look at the flow cache"))?.max_entries();
        let length = sets as usize * size_of::<Set>();
        // SAFETY: a new mapping of the map's whole memory, which is not written from here.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                std::os::fd::AsFd::as_fd(data.fd()).as_raw_fd(),
                0,
            )
        };
        let memory = NonNull::new(memory.cast::<Set>()).filter(|memory| memory.as_ptr().cast() != libc::MAP_FAILED);
        let memory = memory.ok_or_else(io::Error::last_os_error).map_err(DatapathError::io("map the flow cache"))?;
        let parts = Map::from_map_data(pinned(map::CACHE_PARTS)?)
            .and_then(TryInto::try_into)
            .map_err(DatapathError::map("look at the parts of the flow cache"))?;
        let mut copies = Self { memory, sets, parts, divided: Vec::new() };
        copies.look()?;
        Ok(copies)
    }

    /// Takes note of how the cache is divided.
    fn look(&mut self) -> Result<(), DatapathError> {
        let parts = self.parts.get(&0, 0).map_err(DatapathError::map("read the parts of the flow cache"))?;
        self.divided = parts.iter().copied().filter(|part| part.sets != 0).collect();
        Ok(())
    }

    /// Adds to a half what its copies have counted.
    pub fn count(&self, key: &Key<Ipv4>, half: &mut Entry<Ipv4>) {
        for part in &self.divided {
            let place = part.place(cache::addresses(key), cache::ports(key), key.protocol);
            for set in part.sets(place) {
                for way in 0..WAYS {
                    if let Some(copy) = self.copy(set, way).filter(|copy| copy.tag.is_of(key)) {
                        copy.counted(half);
                    }
                }
            }
        }
    }

    /// A copy, unless there is no such set.
    fn copy(&self, set: u32, way: usize) -> Option<Copied> {
        if set >= self.sets {
            return None;
        }
        // SAFETY: within the mapping; a program may write at the same time, so words are read one by one, and each is one or the other.
        let words = unsafe {
            let start = self.memory.as_ptr().add(set as usize).cast::<Copied>().add(way).cast::<u64>();
            std::array::from_fn::<u64, { size_of::<Copied>() / size_of::<u64>() }, _>(|n| start.add(n).read_volatile())
        };
        Some(bytemuck::cast(words))
    }

    /// How many halves found no room, over all CPUs.
    pub fn full(&self) -> Result<u64, DatapathError> {
        let parts = self.parts.get(&0, 0).map_err(DatapathError::map("read the parts of the flow cache"))?;
        Ok(parts.iter().map(|part| part.full).sum())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made, which nothing refers to any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.sets as usize * size_of::<Set>()) };
    }
}

impl Tables {
    /// Gives each CPU that is online its part of the flow cache, with what the settings say.
    pub fn divide_cache(&mut self) -> Result<(), DatapathError> {
        let settings = self.settings.get(&0, 0).map_err(DatapathError::map("read the settings"))?;
        let failed = || DatapathError::map("divide the flow cache");
        let found = self.copies.parts.get(&0, 0).map_err(failed())?;
        let cpus = cpus()?;
        let sets = self.copies.sets / u32::try_from(cpus.len()).unwrap_or(u32::MAX).max(1);
        let mut wanted =
            vec![
                Part::default();
                nr_cpus().map_err(|(file, source)| DatapathError::Io { what: format!("read {file}"), source })?
            ];
        for (number, cpu) in (0..).zip(cpus) {
            if let Some(part) = wanted.get_mut(cpu as usize) {
                *part = Part { first: number * sets, sets, ..Part::default() };
            }
        }
        let moved = found
            .iter()
            .zip(&wanted)
            .any(|(found, wanted)| found.sets != 0 && (found.first, found.sets) != (wanted.first, wanted.sets));
        if moved {
            // Nobody may use what was another CPU's while that may still do so.
            self.write_parts(vec![Part::default(); wanted.len()])?;
            self.void_copies()?;
            // SAFETY: a system call without pointers.
            if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) } != 0 {
                return Err(DatapathError::Io {
                    what: "wait until no program uses the flow cache".to_owned(),
                    source: io::Error::last_os_error(),
                });
            }
        }
        for (part, found) in wanted.iter_mut().zip(found.iter()) {
            part.window = cache::window(&settings.timeouts);
            part.seed = settings.seed;
            part.full = found.full;
        }
        self.write_parts(wanted)?;
        self.void_copies()?;
        self.copies.look()
    }

    fn write_parts(&mut self, parts: Vec<Part>) -> Result<(), DatapathError> {
        let parts = PerCpuValues::try_from(parts).map_err(DatapathError::io("divide the flow cache"))?;
        self.copies.parts.set(0, parts, 0).map_err(DatapathError::map("divide the flow cache"))
    }

    /// Voids all copies in the flow cache: the next packet of each flow looks at the conntrack.
    pub fn void_copies(&mut self) -> Result<(), DatapathError> {
        let live = self.live_now()?;
        self.write_live(Live { cache_epoch: live.cache_epoch.wrapping_add(1), ..live })
    }

    /// Writes health and neighbour epoch.
    pub fn set_live(&mut self, healthy: u64, neighbour_epoch: u32) -> Result<(), DatapathError> {
        let cache_epoch = self.live_now()?.cache_epoch.wrapping_add(1);
        #[allow(clippy::cast_possible_truncation, reason = "an epoch is compared for being another one only")]
        let neighbour_epoch = neighbour_epoch as u16;
        self.write_live(Live { healthy, neighbour_epoch, cache_epoch, zero: 0 })
    }

    fn live_now(&self) -> Result<Live, DatapathError> {
        self.live.get(&0, 0).map_err(DatapathError::map("read the live state"))
    }

    fn write_live(&mut self, live: Live) -> Result<(), DatapathError> {
        self.live.set(0, live, 0).map_err(DatapathError::map("write the live state"))
    }
}

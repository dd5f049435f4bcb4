//! The flow cache from outside: who has which part of it, and what it has counted. See [`mh_common::cache`].
//!
//! Invariants: programs alone write copies, each on its own CPU; here they are only read, from memory that the kernel shares. No set becomes
//! part of a CPU's part while a program may be using it, nor before what it holds was given to the halves by a program (`mh_settle`).
//!
//! Failure behaviour: what could not be settled is, by the next look; what an earlier controller left unsettled, by the first. Parts stay as they
//! are until then, or CPUs are without one, and packets go by the conntrack.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::{PoisonError, RwLock},
};

use aya::{
    maps::{MapData, PerCpuArray, PerCpuValues},
    programs::ProgramFd,
    util::{nr_cpus, online_cpus},
};
use bytemuck::{Pod, Zeroable};
use mh_common::{
    abi::{Live, map},
    address::Ipv4,
    cache::{self, COPIES_PER_SET, Copied, Extent, Part, SPAN_AT, SPAN_END, Set},
    flow::{Entry, Key},
    time::Tick,
    verdict::Verdict,
};

use super::{
    DatapathError,
    memory::Memory,
    shares::{self, Load},
    syscall::bpf,
    tables::{Tables, typed},
};

/// Copies for each entry of the conntrack. A half that finds no room is handled by the conntrack, at its speed.
const COPIES_PER_ENTRY: u32 = 1;
/// Sets that one system call has settled: some milliseconds of work.
const SETS_PER_CALL: u32 = 1 << 14;
/// `BPF_PROG_TEST_RUN`.
const TEST_RUN: libc::c_long = 10;
/// `MEMBARRIER_CMD_QUERY`: which of the others there are.
const MEMBARRIER_QUERY: libc::c_int = 0;
/// `MEMBARRIER_CMD_GLOBAL`: returns when every CPU has been through a point at which no program runs. Not with `nohz_full`.
const MEMBARRIER_GLOBAL: libc::c_int = 1;

/// How many copies the cache has room for, with a conntrack of so many entries.
pub fn copies(entries: u32) -> u32 {
    entries.saturating_mul(COPIES_PER_ENTRY).clamp(COPIES_PER_SET, cache::LINE)
}

/// How many sets tell so many copies.
pub const fn sets(copies: u32) -> u32 {
    copies / COPIES_PER_SET
}

fn unreadable((file, source): (&str, io::Error)) -> DatapathError {
    DatapathError::Io { what: format!("read {file}"), source }
}

/// An array that the kernel shares, of entries of `WORDS` words, to be read.
struct Shared<T, const WORDS: usize> {
    memory: Memory,
    entry: PhantomData<T>,
}

impl<T: Pod, const WORDS: usize> Shared<T, WORDS> {
    /// Maps the array that is pinned in the directory.
    fn open(dir: &Path, name: &'static str) -> Result<Self, DatapathError> {
        const { assert!(size_of::<T>() == size_of::<[u64; WORDS]>()) };
        Ok(Self { memory: Memory::map::<T>(dir, name, libc::PROT_READ)?, entry: PhantomData })
    }

    /// An entry, unless there is none of that number.
    fn get(&self, index: u32) -> Option<T> {
        if index >= self.memory.entries {
            return None;
        }
        // SAFETY: within the mapping; a program may write at the same time, so words are read one by one, and each is one or the other.
        let words = unsafe {
            let start = self.memory.start().cast::<[u64; WORDS]>().add(index as usize).cast::<u64>();
            std::array::from_fn::<u64, WORDS, _>(|n| start.add(n).read_volatile())
        };
        Some(bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words)))
    }
}

/// All copies, and whose they are.
pub struct Copies {
    copies: Shared<Copied, 8>,
    index: Shared<Set, 2>,
    sets: u32,
    parts: PerCpuArray<MapData, Part>,
    /// The parts as they were divided when they were last looked at; CPUs without one are left out.
    divided: RwLock<Vec<Part>>,
}

impl Copies {
    /// Maps the cache that is pinned in the directory.
    pub fn open(dir: &Path) -> Result<Self, DatapathError> {
        let (copies, index) = (Shared::open(dir, map::CACHE4)?, Shared::open(dir, map::CACHE_INDEX4)?);
        let sets = sets(copies.memory.entries).min(index.memory.entries);
        let parts = typed(dir, map::CACHE_PARTS)?;
        let copies = Self { copies, index, sets, parts, divided: RwLock::default() };
        copies.look()?;
        Ok(copies)
    }

    fn parts(&self) -> Result<PerCpuValues<Part>, DatapathError> {
        self.parts.get(&0, 0).map_err(DatapathError::map("read the parts of the flow cache"))
    }

    /// Takes note of how the cache is divided now.
    pub fn look(&self) -> Result<(), DatapathError> {
        let divided = self.parts()?.iter().copied().filter(|part| part.sets != 0).collect();
        *self.divided.write().unwrap_or_else(PoisonError::into_inner) = divided;
        Ok(())
    }

    /// Adds to a half what its copies have counted.
    pub fn count(&self, key: &Key<Ipv4>, half: &mut Entry<Ipv4>) {
        for part in &*self.divided.read().unwrap_or_else(PoisonError::into_inner) {
            let place = part.place_of(key);
            // Both may be the same set.
            let sets = part.extent().sets_of(place).into_iter().flatten().filter_map(|set| self.index.get(set));
            let lines = sets.flat_map(|set| set.ways).filter_map(|entry| place.line(entry));
            let copy = lines.filter_map(|line| self.copies.get(line)).find(|copy| copy.tag.is_of(key));
            if let Some(copy) = copy {
                copy.counted(half);
            }
        }
    }

    /// How many of a part's copies are good.
    fn good(&self, part: &Part, now: Tick) -> u64 {
        let extent = part.extent();
        let lines = extent.first_line()..extent.first_line().saturating_add(extent.lines());
        lines.filter(|line| self.copies.get(*line).is_some_and(|copy| copy.is_used(now))).count() as u64
    }
}

/// Who shares the cache out, one look after the other.
pub struct Keeper {
    tables: Tables,
    settle: ProgramFd,
    /// Packets sent on and halves refused so far, by CPU.
    before: Vec<[u64; 2]>,
    /// What is nobody's part, and may hold what has not been given to the halves; a program may be using it still.
    unsettled: Vec<Extent>,
    /// Whether it can be known that no program uses a part any more. If not, parts stay as they were first.
    can_wait: bool,
}

impl Keeper {
    /// For the maps that are pinned in the directory; `settle` is the program by which copies end.
    pub fn new(dir: &Path, settle: ProgramFd) -> Result<Self, DatapathError> {
        let can_wait =
            membarrier(MEMBARRIER_QUERY).is_ok_and(|known| known & libc::c_long::from(MEMBARRIER_GLOBAL) != 0);
        let mut keeper =
            Self { tables: Tables::open(dir)?, settle, before: Vec::new(), unsettled: Vec::new(), can_wait };
        let parts = keeper.tables.copies.parts()?;
        keeper.before = keeper.totals(&parts)?;
        if can_wait {
            // An earlier controller may not have come to its end.
            keeper.unsettled = shares::gaps(keeper.tables.copies.sets, &keeper.extents(&parts));
        }
        Ok(keeper)
    }

    /// Where the parts are.
    fn extents(&self, parts: &[Part]) -> Vec<Extent> {
        parts.iter().map(|part| Extent::within(self.tables.copies.sets, part.first, part.sets)).collect()
    }

    /// By CPU, packets that were sent on and halves for which there was no room, since the maps were made.
    fn totals(&self, parts: &[Part]) -> Result<Vec<[u64; 2]>, DatapathError> {
        let failed = || DatapathError::map("read the verdict counters");
        let sent = |verdict: Verdict| self.tables.verdicts.get(&(verdict as u32), 0).map_err(failed());
        let (forward, reply) = (sent(Verdict::Forward)?, sent(Verdict::Reply)?);
        Ok(forward.iter().zip(reply.iter()).zip(parts.iter()).map(|((f, r), part)| [f + r, part.full]).collect())
    }

    /// Looks how full the parts are, and divides the cache anew if that is worth it. `thorough`: counts copies, too, so that a part can
    /// shrink. Returns whether anything changed.
    pub fn look(&mut self, thorough: bool, now: Tick) -> Result<bool, DatapathError> {
        let parts = self.tables.copies.parts()?;
        let totals = self.totals(&parts)?;
        let cpus: Vec<usize> = online_cpus().map_err(unreadable)?.into_iter().map(|cpu| cpu as usize).collect();
        let load = |&cpu: &usize| {
            let part = parts.get(cpu).copied().unwrap_or_default();
            let [packets, refused] = totals.get(cpu).copied().unwrap_or_default();
            let [packets_before, refused_before] = self.before.get(cpu).copied().unwrap_or_default();
            Load {
                sets: part.sets,
                packets: packets.wrapping_sub(packets_before),
                refused: refused.wrapping_sub(refused_before),
                good: thorough.then(|| self.tables.copies.good(&part, now)),
            }
        };
        let loads: Vec<Load> = cpus.iter().map(load).collect();
        self.before = totals;
        let shares = if self.can_wait {
            shares::share_out(self.tables.copies.sets, &loads)
        } else {
            shares::for_good(self.tables.copies.sets, &loads)
        };
        let mut sets = vec![0; nr_cpus().map_err(unreadable)?];
        for (cpu, share) in cpus.into_iter().zip(shares) {
            if let Some(sets) = sets.get_mut(cpu) {
                *sets = share;
            }
        }
        self.divide(&sets, &parts)
    }

    /// Gives each CPU so many sets, from how they are `found`.
    fn divide(&mut self, sets: &[u32], found: &[Part]) -> Result<bool, DatapathError> {
        let settings = self.tables.settings.get(&0, 0).map_err(DatapathError::map("read the settings"))?;
        let window = cache::window(&settings.timeouts);
        self.settle_all()?;
        let extents = self.extents(found);
        let (wanted, apart) = shares::lay_out(self.tables.copies.sets, &extents, sets);
        let same = |found: &Part| (found.window, found.seed) == (window, settings.seed);
        if wanted == extents && found.iter().all(same) {
            return Ok(false);
        }
        let parts = |extents: &[Extent]| {
            let part = |(extent, found): (&Extent, &Part)| {
                let &Extent { first, sets } = extent;
                // The time stays: a program may just be about to read it.
                Part { first, sets, window, seed: settings.seed, ..*found }
            };
            extents.iter().zip(found).map(part).collect::<Vec<Part>>()
        };
        let moved = |(wanted, found): &(&Extent, &Extent)| wanted != found;
        let gone = wanted.iter().zip(&extents).filter(moved).map(|(_, found)| *found);
        let gone = gone.filter(|extent| extent.sets != 0);
        // Nobody may use what was another CPU's while that may still do so.
        self.write_parts(if apart { parts(&wanted) } else { parts(&vec![Extent::default(); wanted.len()]) })?;
        self.unsettled.extend(gone);
        self.settle_all()?;
        if !apart {
            self.write_parts(parts(&wanted))?;
        }
        Ok(true)
    }

    /// Gives to the halves what is nobody's part any more.
    fn settle_all(&mut self) -> Result<(), DatapathError> {
        if self.unsettled.is_empty() {
            return Ok(());
        }
        // Until all programs that run now have ended.
        membarrier(MEMBARRIER_GLOBAL).map_err(DatapathError::io("wait until no program uses the flow cache"))?;
        while let Some(extent) = self.unsettled.last().copied() {
            self.settle(extent)?;
            self.unsettled.pop();
        }
        Ok(())
    }

    fn write_parts(&mut self, parts: Vec<Part>) -> Result<(), DatapathError> {
        let parts = PerCpuValues::try_from(parts).map_err(DatapathError::io("divide the flow cache"))?;
        self.tables.copies.parts.set(0, parts, 0).map_err(DatapathError::map("divide the flow cache"))
    }

    /// Ends all copies where nobody uses them: what they have counted goes to their halves.
    pub fn settle(&mut self, extent: Extent) -> Result<(), DatapathError> {
        let Extent { mut first, sets: mut left } = extent;
        while left > 0 {
            let sets = left.min(SETS_PER_CALL);
            let mut span = [0u8; SPAN_END];
            span[SPAN_AT..SPAN_AT + 4].copy_from_slice(&first.to_ne_bytes());
            span[SPAN_AT + 4..].copy_from_slice(&sets.to_ne_bytes());
            run(&self.settle, &span, sets.div_ceil(cache::SETS_PER_RUN))
                .map_err(DatapathError::io("have the flow cache settled"))?;
            (first, left) = (first + sets, left - sets);
        }
        Ok(())
    }
}

/// `membarrier(2)`.
fn membarrier(command: libc::c_int) -> io::Result<libc::c_long> {
    // SAFETY: a system call without pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        result @ 0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The part of the kernel's `union bpf_attr` for test runs, as far as it is needed.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Run {
    program: u32,
    returned: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs a program so many times on what becomes of a packet (`BPF_PROG_TEST_RUN`). aya asks for the program itself, which belongs to
/// somebody else.
fn run(program: &ProgramFd, packet: &[u8], repeat: u32) -> io::Result<()> {
    let mut attributes = Run {
        program: program.as_fd().as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(packet.len()).unwrap_or(u32::MAX),
        data_in: packet.as_ptr().addr() as u64,
        repeat,
        ..Run::default()
    };
    // SAFETY: the kernel reads the packet, which lives, and writes the attributes.
    unsafe { bpf(TEST_RUN, &mut attributes) }.map(drop)
}

impl Tables {
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

//! Kernel memory: of mh's maps, and of the kernel's own connection tracking.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use mh_common::abi::map;

/// What a map takes.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The map's name.
    pub name: &'static str,
    /// Bytes of kernel memory, by its own account.
    pub bytes: u64,
    /// Entries that there is room for.
    pub entries: u64,
}

/// The memory of all maps that are pinned in the directory (`memlock` in fdinfo).
pub fn of_maps(pins: &Path) -> Result<Vec<Taken>> {
    map::ALL.iter().map(|name| of_map(pins, name).with_context(|| format!("memory of {name}"))).collect()
}

fn of_map(pins: &Path, name: &'static str) -> Result<Taken> {
    let data = MapData::from_pin(pins.join(name))?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("the kernel does not tell")?;
    Ok(Taken { name, bytes: line.trim().parse()?, entries: u64::from(data.info()?.max_entries()) })
}

/// How many objects of each size the kernel's connection tracking may have allocated, with the memory that each takes.
#[derive(Clone, Debug)]
pub struct Slabs(HashMap<String, (f64, f64)>);

impl Slabs {
    /// As it is now.
    pub fn look() -> Result<Self> {
        let text = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
        let mut slabs = HashMap::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [name, active, _, _, per_slab, pages, ..] = fields.as_slice() else { continue };
            if !(name.starts_with("nf_conntrack") || name.starts_with("kmalloc-")) {
                continue;
            }
            let (active, per_slab, pages): (f64, f64, f64) = (active.parse()?, per_slab.parse()?, pages.parse()?);
            // What is left over of a slab counts.
            slabs.insert((*name).to_owned(), (active, pages * 4096.0 / per_slab));
        }
        Ok(Self(slabs))
    }

    /// The bytes of what has been allocated since `before` for so many flows. Sizes of which fewer than half as many objects came are taken
    /// for somebody else's.
    pub fn grown_since(&self, before: &Self, flows: f64) -> f64 {
        let grown = self.0.iter().map(|(name, (active, bytes))| {
            let more = active - before.0.get(name).map_or(0.0, |(active, _)| *active);
            if more >= flows / 2.0 { more * bytes } else { 0.0 }
        });
        grown.sum()
    }
}

/// The bytes of the connection table itself: a head for each bucket, and one more for NAT.
pub fn of_connection_table() -> Result<f64> {
    let file = "/sys/module/nf_conntrack/parameters/hashsize";
    let buckets: f64 = fs::read_to_string(file).context(file)?.trim().parse()?;
    Ok(buckets * 2.0 * 8.0)
}

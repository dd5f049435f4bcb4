//! Pins of an older version: which of them are adopted, and how the others are replaced.
//!
//! A map is adopted if its layout is still the same ([`abi::LAYOUTS`], and what the kernel says of its sizes). One whose layout changed is
//! made anew, and with it what can't be right without it (`TOGETHER`): so no flow is left without the binding that it needs.
//!
//! The bindings, of which both maps have had values of other lengths, are copied from the old map to the new one: what they begin with is the same since version 2, and what is new is
//! zero. Those that programs of the old version enter after that are lost, and their flows go on without until they end.
//!
//! What is replaced is moved aside, below `upgrade-VERSION/old`, and stays pinned until the programs on all interfaces are the new ones:
//! the old ones go on with it until then, their stages included. The version is written last of all. Interrupted at any step, the next start
//! finds the older version, sees by what was moved aside how far it came, and goes on from there.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use bytemuck::{Pod, Zeroable};
use mh_common::{
    abi::{self, Layout, map},
    address::Ipv4,
    binding::{End, Inside, Outside},
};

use super::{
    DatapathError,
    load::make_dir,
    syscall::bpf,
    tables::{BPF_NOEXIST, is_there},
    unpin,
};

/// `BPF_MAP_LOOKUP_ELEM`.
const LOOKUP: libc::c_long = 1;
/// The beginning of the name of the directory of an upgrade, below the pin directory.
const PREFIX: &str = "upgrade-";

/// Which maps are made anew if one of others is.
const TOGETHER: &[(&[&str], &[&str])] = &[
    // Flows and bindings know their uplink by an index, which the uplinks' records give a name.
    (&[map::UPLINKS], &[map::BY_INSIDE4]),
    // The two ways of bindings; flows translate as they say; and counts of them.
    (
        &[map::BY_INSIDE4, map::BY_OUTSIDE4],
        &[
            map::BY_INSIDE4,
            map::BY_OUTSIDE4,
            map::FLOWS4,
            map::NEW_FLOWS4,
            map::PEERS4,
            map::FRAGMENTS4,
            map::SOURCES4,
            map::ENDED4,
        ],
    ),
    (&[map::SOURCES4, map::ENDED4], &[map::SOURCES4, map::ENDED4]),
    // The neighbour epoch, by which flows know whether their Ethernet addresses are fresh.
    (&[map::LIVE], &[map::FLOWS4, map::NEW_FLOWS4, map::FRAGMENTS4]),
    (&[map::WAITING4, map::HELD4], &[map::WAITING4, map::HELD4]),
    (&[map::POLICIES, map::SLOTS], &[map::POLICIES, map::SLOTS]),
];

/// What is pinned.
#[derive(Debug)]
pub enum Pins {
    /// Nothing that is of use.
    None,
    /// A set of this version.
    Same,
    /// A set of an older version.
    Older(Upgrade),
}

/// The way from an older version to this one.
#[derive(Debug)]
pub struct Upgrade {
    dir: PathBuf,
    /// The version found.
    pub found: u32,
    /// Maps that are made anew.
    renewed: BTreeSet<&'static str>,
    /// Those of them whose entries are copied.
    carried: BTreeSet<&'static str>,
}

/// Looks at what is pinned in the directory, and removes what an upgrade or a first start that was interrupted left of no use.
pub fn look(dir: &Path) -> Result<Pins, DatapathError> {
    let settings = [dir.join(map::SETTINGS), old(dir).join(map::SETTINGS)].into_iter().find(|path| path.exists());
    let found = match settings {
        Some(path) => first_word(&path).map_err(|source| DatapathError::Pin { path, source })?,
        None => 0,
    };
    match found {
        // The version is written before any program is attached: nothing uses these.
        0 => {
            map::ALL.iter().try_for_each(|name| unpin(&dir.join(name)))?;
            remove(dir).map(|()| Pins::None)
        }
        abi::VERSION => remove(dir).map(|()| Pins::Same),
        found if found > abi::VERSION => {
            Err(DatapathError::AbiVersion { dir: dir.to_owned(), found, expected: abi::VERSION })
        }
        found => {
            let changed = |layout: &&Layout| {
                layout.since > found || old(dir).join(layout.map).exists() || is_other(&dir.join(layout.map), layout)
            };
            let changed: BTreeSet<_> = abi::LAYOUTS.iter().filter(changed).map(|layout| layout.map).collect();
            let carried = carried(dir, found, &changed);
            // What is copied is as good as what is kept, unless something else is missing without which it can't be right.
            let others = with_dependents(&changed - &carried);
            let carried = if others.is_disjoint(&carried) { carried } else { BTreeSet::new() };
            let renewed = if carried.is_empty() { with_dependents(changed) } else { &others | &carried };
            Ok(Pins::Older(Upgrade { dir: dir.to_owned(), found, renewed, carried }))
        }
    }
}

/// The maps whose entries can be copied if their layout has changed, each with the lengths that its values have had, in words.
const CARRIED: [(&str, [usize; 2]); 2] = [(map::BY_INSIDE4, [4, 6]), (map::BY_OUTSIDE4, [3, 6])];

/// The version since which their values begin as they do now.
const FIRST_CARRIED: u32 = 2;

/// The maps among those whose layout has changed that can be copied from what is there. None if one of them can't: the ways of bindings belong together.
fn carried(dir: &Path, found: u32, changed: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    let candidates = || CARRIED.into_iter().filter(|(name, _)| changed.contains(name));
    let can_be = |(name, words): (&str, [usize; 2])| {
        let lengths = words.map(|words| words * size_of::<u32>());
        sizes(&former(dir, name)).is_some_and(|(key, value)| key == size_of::<End<Ipv4>>() && lengths.contains(&value))
    };
    if found >= FIRST_CARRIED && candidates().all(can_be) {
        candidates().map(|(name, _)| name).collect()
    } else {
        BTreeSet::new()
    }
}

/// Where a map of the older version is.
fn former(dir: &Path, name: &str) -> PathBuf {
    [old(dir).join(name), dir.join(name)].into_iter().find(|path| path.exists()).unwrap_or_default()
}

/// Copies all entries of a map to one that is empty or has some of them, whose values are `V`.
fn copy<V: aya::Pod + Pod>(from: &Path, to: &Path) -> Result<(), MapError> {
    let words = sizes(from).map(|(_, value)| value / size_of::<u32>());
    let entries = match words {
        Some(3) => read::<[u32; 3], V>(from),
        Some(4) => read::<[u32; 4], V>(from),
        _ => read::<[u32; 6], V>(from),
    }?;
    let mut map: HashMap<MapData, End<Ipv4>, V> = Map::from_map_data(MapData::from_pin(to)?)?.try_into()?;
    for (end, value) in entries {
        // Of an attempt that was interrupted, some are there already, and may have been extended since.
        map.insert(end, value, BPF_NOEXIST).or_else(is_there)?;
    }
    Ok(())
}

/// All entries of a map whose values are `F`, as much of them as there is room for in a `V`, and zeros for the rest.
fn read<F: aya::Pod + Pod, V: Pod>(path: &Path) -> Result<Vec<(End<Ipv4>, V)>, MapError> {
    let map: HashMap<MapData, End<Ipv4>, F> = Map::from_map_data(MapData::from_pin(path)?)?.try_into()?;
    let fitted = |former: F| {
        let (mut value, common) = (V::zeroed(), size_of::<F>().min(size_of::<V>()));
        bytemuck::bytes_of_mut(&mut value)[..common].copy_from_slice(&bytemuck::bytes_of(&former)[..common]);
        value
    };
    map.iter().map(|entry| entry.map(|(end, former)| (end, fitted(former)))).collect()
}

/// Those maps, and those that can't be right without them. The stages are always among them: programs of two versions don't call each other.
fn with_dependents(mut renewed: BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    renewed.extend([map::STAGES, map::XDP_STAGES]);
    // A rule may ask for another one's: as often as there are rules is often enough.
    for _ in TOGETHER {
        for (causes, dependents) in TOGETHER {
            if causes.iter().any(|cause| renewed.contains(cause)) {
                renewed.extend(*dependents);
            }
        }
    }
    renewed
}

impl Upgrade {
    /// Makes room. Returns the maps that are to be made, each with the path to pin it at.
    pub fn prepare(&self) -> Result<Vec<(&'static str, PathBuf)>, DatapathError> {
        let dir = &self.dir;
        make_dir(&of(dir))?;
        make_dir(&old(dir))?;
        make_dir(&new(dir))?;
        let to_make: Vec<_> = self.renewed.iter().filter(|name| self.makes(name)).collect();
        // Of an attempt that was interrupted; nothing uses them.
        map::ALL.iter().try_for_each(|name| unpin(&new(dir).join(name)))?;
        Ok(to_make.into_iter().map(|name| (*name, new(dir).join(name))).collect())
    }

    /// Whether a map is to be made, beside the one that is there.
    pub fn makes(&self, name: &str) -> bool {
        self.renewed.contains(name) && !self.is_replaced(name)
    }

    /// Where the settings that are made anew are pinned, if they are.
    pub fn new_settings(&self) -> Option<PathBuf> {
        Some(new(&self.dir).join(map::SETTINGS)).filter(|path| path.exists())
    }

    /// How many entries a map has to have at least, for what is to be copied into it.
    pub fn room(&self, name: &str) -> u32 {
        let former = self.carried.contains(name).then(|| MapInfo::from_pin(former(&self.dir, name)).ok()).flatten();
        former.map_or(0, |info| info.max_entries())
    }

    /// Copies the bindings that are to be kept to the maps that are made anew.
    pub fn carry(&self) -> Result<(), DatapathError> {
        // The outside ends first: programs of the old version may enter bindings meanwhile, and an inside end alone is let go like any other.
        for name in self.carried.iter().rev() {
            let (from, made) = (former(&self.dir, name), new(&self.dir).join(name));
            let to = if made.exists() { made } else { self.dir.join(name) };
            let copied = if *name == map::BY_INSIDE4 {
                copy::<Outside<Ipv4>>(&from, &to)
            } else {
                copy::<Inside<Ipv4>>(&from, &to)
            };
            copied.map_err(DatapathError::map("copy the bindings"))?;
        }
        Ok(())
    }

    /// Puts the new maps in the old ones' places.
    pub fn replace(&self) -> Result<(), DatapathError> {
        for name in &self.renewed {
            let (place, new, old) = (self.dir.join(name), new(&self.dir).join(name), old(&self.dir).join(name));
            if !new.exists() {
                continue;
            }
            if place.exists() {
                rename(&place, &old)?;
            }
            rename(&new, &place)?;
        }
        Ok(())
    }

    /// How many maps are kept.
    pub fn kept(&self) -> usize {
        map::ALL.len().saturating_sub(self.renewed.len())
    }

    /// Whether flows and their bindings are kept.
    pub fn keeps_flows(&self) -> bool {
        self.carried.contains(map::BY_INSIDE4) || !self.renewed.contains(map::BY_INSIDE4)
    }

    /// Whether the old map was moved aside and the new one took its place.
    fn is_replaced(&self, name: &str) -> bool {
        self.dir.join(name).exists() && old(&self.dir).join(name).exists()
    }
}

/// Removes what upgrades moved aside: no program uses it any more.
pub fn remove(dir: &Path) -> Result<(), DatapathError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(DatapathError::Io { what: format!("list {}", dir.display()), source }),
    };
    let upgrades = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX)) && path.is_dir()
    });
    for upgrade in upgrades {
        fs::remove_dir_all(&upgrade).map_err(DatapathError::io(format!("remove {}", upgrade.display())))?;
    }
    Ok(())
}

/// The directory of the upgrade to this version.
fn of(dir: &Path) -> PathBuf {
    dir.join(format!("{PREFIX}{}", abi::VERSION))
}

/// Where maps are that were replaced.
fn old(dir: &Path) -> PathBuf {
    of(dir).join("old")
}

/// Where maps are made.
fn new(dir: &Path) -> PathBuf {
    of(dir).join("new")
}

fn rename(from: &Path, to: &Path) -> Result<(), DatapathError> {
    fs::rename(from, to).map_err(DatapathError::io(format!("move {} to {}", from.display(), to.display())))
}

/// Whether a pinned map has other sizes than the layout says, or can't be asked. One that is not there has none.
fn is_other(path: &Path, layout: &Layout) -> bool {
    path.exists() && sizes(path) != Some((layout.key, layout.value))
}

/// The sizes of a pinned map's keys and values, if it can be asked.
fn sizes(path: &Path) -> Option<(usize, usize)> {
    let info = MapInfo::from_pin(path).ok()?;
    Some((info.key_size().try_into().ok()?, info.value_size().try_into().ok()?))
}

/// The first word of the first value of an array, whatever its values are.
fn first_word(path: &Path) -> Result<u32, MapError> {
    /// The part of the kernel's `union bpf_attr` for single elements.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct Attributes {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let data = MapData::from_pin(path)?;
    let info = data.info()?;
    let key = [0u8; 8];
    let size = usize::try_from(info.value_size()).unwrap_or_default();
    let mut value = vec![0u8; size.max(size_of::<u32>())];
    let mut attributes = Attributes {
        map_fd: data.fd().as_fd().as_raw_fd().cast_unsigned(),
        padding: 0,
        key: key.as_ptr().addr() as u64,
        value: value.as_mut_ptr().addr() as u64,
        flags: 0,
    };
    // SAFETY: key and value are live buffers: the key of an array has four bytes, and the value as many as the kernel said.
    unsafe { bpf(LOOKUP, &mut attributes) }.map_err(MapError::IoError)?;
    Ok(value.first_chunk().copied().map_or(0, u32::from_ne_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flow_is_left_without_what_it_needs() {
        let renewed = |names: &[&'static str]| with_dependents(names.iter().copied().collect());
        assert_eq!(renewed(&[]), [map::STAGES, map::XDP_STAGES].into());
        assert_eq!(
            renewed(&[map::FLOWS4]),
            [map::STAGES, map::XDP_STAGES, map::FLOWS4].into(),
            "bindings rebuild flows"
        );
        for cause in [map::BY_OUTSIDE4, map::UPLINKS] {
            let renewed = renewed(&[cause]);
            for name in [map::FLOWS4, map::NEW_FLOWS4, map::BY_INSIDE4, map::BY_OUTSIDE4, map::PEERS4, map::ENDED4] {
                assert!(renewed.contains(name), "{cause} changed, and {name} is kept");
            }
        }
        assert!(renewed(&[map::LIVE]).contains(map::FLOWS4) && !renewed(&[map::LIVE]).contains(map::BY_INSIDE4));
    }

    #[test]
    fn the_rules_name_maps() {
        let names = TOGETHER.iter().flat_map(|(causes, dependents)| causes.iter().chain(*dependents));
        assert!(names.clone().count() > 10 && names.clone().all(|name| map::ALL.contains(name)));
    }
}

//! Loading and pinning.
//!
//! Layout below the pin directory: one pin per map under its own name, and `links/` with one pin per attachment (see
//! [`super::attach`]). Maps that are there already are adopted; those of an older version as far as [`super::upgrade`] says, those of a
//! newer one not at all: nothing is changed then.

use std::{
    fs, io,
    net::Ipv4Addr,
    num::NonZero,
    os::unix::fs::PermissionsExt as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapInfo},
    programs::{Program, ProgramError, SchedClassifier, Xdp},
};
use mh_common::{
    abi::{self, NEW_FLOWS_DIVISOR, Settings, Stage, map},
    known,
};
use nix::sys::{
    resource::{Resource, setrlimit},
    statfs::{BPF_FS_MAGIC, statfs},
};

use super::{
    DatapathError, attach, cache, kernel, routing,
    tables::Tables,
    unpin,
    upgrade::{self, Pins},
};
use crate::config;

/// The BPF object, as the build script made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mh.o"));

/// Outside ends that fit for each binding: ports rest for two minutes after their binding has ended.
const RESTING_FACTOR: u32 = 2;

/// Programs that are loaded, and the directory that holds the pins.
pub struct Loaded {
    /// The object: its programs are loaded, its maps are pinned.
    pub ebpf: Ebpf,
    /// Where everything is pinned.
    pub dir: PathBuf,
    /// What the user should know, in sentences.
    pub notes: Vec<String>,
    /// Whether maps were found and adopted.
    pub adopted: bool,
}

/// Loads the programs and makes or adopts the maps. `debug`: the programs log new flows.
pub fn load(dir: &Path, sizes: &config::Datapath, debug: bool) -> Result<Loaded, DatapathError> {
    check_bpffs(dir)?;
    let mut notes = Vec::new();
    let pins = upgrade::look(dir)?;
    let adopted = !matches!(pins, Pins::None);
    // Up to 5.10 maps are accounted against the limit for locked memory; later it does not matter.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
    make_dir(dir)?;
    make_dir(&dir.join(attach::LINKS))?;

    let userlocks = kernel::sock_userlocks_bit().unwrap_or_else(|reason| {
        notes.push(format!("{reason}; sockets of this machine that are bound to an address are steered like others"));
        0
    });
    let level: u8 = if debug { 0xff } else { 0 };
    let new_flows = (sizes.conntrack_entries / NEW_FLOWS_DIVISOR).max(1);
    let copies = cache::copies(sizes.conntrack_entries);
    let known_lines = known_lines(dir, &pins, sizes)?;
    let mut loader = EbpfLoader::new();
    let renewed = if let Pins::Older(upgrade) = &pins { upgrade.prepare()? } else { Vec::new() };
    let room = |name| if let Pins::Older(upgrade) = &pins { upgrade.room(name) } else { 0 };
    for (name, path) in renewed {
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader
        .default_map_pin_directory(dir)
        .map_max_entries(map::FLOWS4, sizes.conntrack_entries.saturating_sub(new_flows).max(1))
        .map_max_entries(map::NEW_FLOWS4, new_flows)
        .map_max_entries(map::BY_INSIDE4, sizes.bindings.max(room(map::BY_INSIDE4)))
        .map_max_entries(map::BY_OUTSIDE4, sizes.bindings.saturating_mul(RESTING_FACTOR).max(room(map::BY_OUTSIDE4)))
        .map_max_entries(map::PEERS4, sizes.bindings)
        .map_max_entries(map::CACHE4, copies)
        .map_max_entries(map::CACHE_INDEX4, cache::sets(copies))
        .map_max_entries(map::KNOWN4, known_lines)
        .override_global("AYA_LOG_LEVEL", &level, true)
        .override_global("MH_SOCK_USERLOCKS", &userlocks, true)
        .override_global("MH_KNOWN_LINES", &known_lines, true)
        .load(OBJECT)?;
    verify(&mut ebpf)?;
    if let Pins::Older(upgrade) = &pins {
        if let Some(path) = upgrade.new_settings() {
            write_version(&path, upgrade.found)?;
        }
        upgrade.carry()?;
        upgrade.replace()?;
        let flows = if upgrade.keeps_flows() { "flows go on" } else { "flows had to end: their layout is another" };
        let (from, to, kept) = (upgrade.found, abi::VERSION, upgrade.kept());
        notes.push(format!("the maps are brought from layout version {from} to {to}: {kept} are kept, and {flows}"));
    }

    let mut tables = Tables::open(dir)?;
    if matches!(pins, Pins::Older(_)) {
        tables.note_all()?;
    }
    for &(stage, name) in Stage::ALL {
        let program = program_of::<SchedClassifier>(&mut ebpf, name)?;
        let descriptor = program.fd().map_err(refused(name))?;
        tables.stages.set(stage as u32, descriptor, 0).map_err(DatapathError::map("link the programs"))?;
    }
    let begin = program_of::<Xdp>(&mut ebpf, abi::program::XDP_BEGIN)?;
    let descriptor = begin.fd().map_err(refused(abi::program::XDP_BEGIN))?;
    tables.xdp_stages.set(0, descriptor, 0).map_err(DatapathError::map("link the programs"))?;
    if adopted {
        let found = tables.flows4.capacity() + tables.new_flows4.capacity();
        if found != sizes.conntrack_entries {
            notes.push(format!(
                "the conntrack keeps the {found} entries that it was made with (conntrack_entries = {}); \
                 `mhd --detach` and a new start change its size and lose the flows",
                sizes.conntrack_entries
            ));
        }
        let found = tables.by_inside4.capacity();
        if found != sizes.bindings {
            notes.push(format!(
                "the binding table keeps the {found} entries that it was made with (bindings = {}); \
                 `mhd --detach` and a new start change its size and lose the flows",
                sizes.bindings
            ));
        }
    } else {
        write_version(&dir.join(map::SETTINGS), abi::VERSION)?;
    }
    Ok(Loaded { ebpf, dir: dir.to_owned(), notes, adopted })
}

/// How many lines of known sources there are, or will be.
fn known_lines(dir: &Path, pins: &Pins, sizes: &config::Datapath) -> Result<u32, DatapathError> {
    let path = dir.join(map::KNOWN4);
    let made = matches!(pins, Pins::Older(upgrade) if upgrade.makes(map::KNOWN4)) || !path.exists();
    if made {
        return Ok(known::lines(sizes.conntrack_entries));
    }
    let info = MapInfo::from_pin(path).map_err(DatapathError::map("look at the known sources"))?;
    Ok(info.max_entries())
}

/// Has the kernel verify the programs, as many at a time as there are processors: it is most of what a start takes.
fn verify(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let programs: Mutex<Vec<(&str, &mut Program)>> = Mutex::new(ebpf.programs_mut().collect());
    let next = || programs.lock().ok().and_then(|mut programs| programs.pop());
    let work = || -> Result<(), DatapathError> {
        while let Some((name, program)) = next() {
            match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                _ => Ok(()),
            }
            .map_err(refused(name))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

pub(super) fn refused(program: &str) -> impl FnOnce(ProgramError) -> DatapathError {
    let interface = program.to_owned();
    move |source| DatapathError::Attach {
        what: "load the program into the kernel for use",
        interface,
        source: Box::new(source),
    }
}

/// A program of the object by name.
pub fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(DatapathError::Missing(name))
}

/// Removes every trace: programs from interfaces, and all pins. Returns whether there was anything.
pub fn detach(dir: &Path) -> Result<bool, DatapathError> {
    if !dir.exists() {
        return Ok(false);
    }
    check_bpffs(dir)?;
    let mut interfaces = Vec::new();
    let mut gateways: Vec<(u32, Ipv4Addr)> = Vec::new();
    let mut tables = Tables::open(dir).ok();
    if let Some(tables) = &tables {
        tables.interfaces.walk(|ifindex, record| interfaces.push((ifindex, record.flags)))?;
        gateways.extend(tables.uplinks()?.into_iter().map(|(_, uplink)| (uplink.ifindex, uplink.v4.gateway.into())));
    }
    attach::detach_all(dir, &interfaces)?;
    if let Some(tables) = &mut tables {
        tables.remove_all_rules()?;
    }
    routing::remove()?;
    for (ifindex, gateway) in gateways {
        routing::leave_gateway(ifindex, gateway)?;
    }
    let links = dir.join(attach::LINKS);
    if links.exists() {
        fs::remove_dir(&links).map_err(DatapathError::io(format!("remove {}", links.display())))?;
    }
    upgrade::remove(dir)?;
    for name in map::ALL {
        unpin(&dir.join(name))?;
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        // The directory was made for mhd, which may not remove it: all that is in it, it may, and did.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_empty(dir) => Ok(true),
        Err(source) => {
            let what = format!("remove {}, in which mhd left nothing behind, but somebody else did", dir.display());
            Err(DatapathError::Io { what, source })
        }
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn check_bpffs(dir: &Path) -> Result<(), DatapathError> {
    let parent = dir.parent().unwrap_or(dir);
    match statfs(parent) {
        Ok(stat) if stat.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        _ => Err(DatapathError::NoBpffs(parent.to_owned())),
    }
}

/// Writes the first settings of all.
fn write_version(path: &Path, abi_version: u32) -> Result<(), DatapathError> {
    let settings = Settings { abi_version, seed: random_seed()?, ..Settings::default() };
    MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .and_then(Array::<_, Settings>::try_from)
        .and_then(|mut array: Array<MapData, Settings>| array.set(0, settings, 0))
        .map_err(DatapathError::map("write the settings"))
}

/// Makes a directory of mhd's alone, if it is not there.
pub(super) fn make_dir(dir: &Path) -> Result<(), DatapathError> {
    match fs::create_dir(dir) {
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(DatapathError::io(format!("set the mode of {}", dir.display()))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(DatapathError::Io { what: format!("make {}", dir.display()), source: error }),
    }
}

fn random_seed() -> Result<[u64; 2], DatapathError> {
    use std::io::Read as _;
    let mut seed = [[0u8; 8]; 2];
    let mut source = fs::File::open("/dev/urandom").map_err(DatapathError::io("open /dev/urandom"))?;
    source.read_exact(seed.as_flattened_mut()).map_err(DatapathError::io("read /dev/urandom"))?;
    Ok(seed.map(u64::from_ne_bytes))
}

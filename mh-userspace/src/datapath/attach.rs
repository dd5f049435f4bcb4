//! Programs on interfaces.
//!
//! TC: a tcx link where the kernel has them (6.6), pinned as `links/tc-IFINDEX`; before, a clsact filter with a fixed priority and
//! handle, which needs no pin. The same at egress of uplinks, as `links/egress-IFINDEX`. XDP: a link (5.9), pinned as `links/xdp-IFINDEX`, in native mode only: generic XDP would be
//! slower than TC. A program on an interface is replaced in one step; at no time is an interface without one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use mh_common::abi::{INTERFACE_CLSACT, INTERFACE_L3, INTERFACE_XDP, ROLE_UPLINK, program};

use super::{DatapathError, link, load::program_of, qdisc, unpin};
use crate::core::{Hook, ManagedInterface};

/// The directory of link pins, below the pin directory.
pub const LINKS: &str = "links";

/// Priority of the clsact filter: after filters with a number of their own, before those that the kernel numbers (from 49152 down).
const TC_PRIORITY: u16 = 40_000;
/// Handle of the clsact filter.
const TC_HANDLE: u16 = 1;

/// Drivers that do XDP natively and whose frames carry finished checksums, so that `auto` uses XDP on them. Frames on virtual
/// devices (veth, virtio, tap) may carry a partial checksum, which XDP can't see.
const XDP_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "cxgb4",
    "dpaa2-eth",
    "ena",
    "fec",
    "gve",
    "i40e",
    "iavf",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "thunder-nicvf",
    "tsnep",
];

/// Runs the programs on the interface, or replaces those that run. Returns the flags of the interface's record that tell what was done:
/// [`INTERFACE_XDP`] and [`INTERFACE_CLSACT`].
pub fn attach(ebpf: &mut Ebpf, dir: &Path, ifindex: u32, interface: &ManagedInterface) -> Result<u8, DatapathError> {
    let name = interface.name.as_str();
    if interface.hook == Hook::None {
        detach(dir, ifindex, interface.interface.flags)?;
        return Ok(0);
    }
    let clsact = if !has_tcx() && qdisc::add(ifindex)? { INTERFACE_CLSACT } else { 0 };
    attach_tc(ebpf, dir, ifindex, name, &INGRESS)?;
    if interface.interface.role == ROLE_UPLINK {
        attach_tc(ebpf, dir, ifindex, name, &EGRESS)?;
    } else {
        detach_tc(dir, ifindex, &EGRESS)?;
    }
    let ethernet = interface.interface.flags & INTERFACE_L3 == 0;
    let wanted = match interface.hook {
        Hook::None | Hook::Tc => false,
        Hook::Xdp => ethernet,
        Hook::Auto => ethernet && driver(name).is_some_and(|driver| XDP_DRIVERS.contains(&driver.as_str())),
    };
    if !wanted {
        unpin(&pin(dir, "xdp", ifindex))?;
        return Ok(clsact);
    }
    match attach_xdp(ebpf, dir, ifindex, name) {
        Ok(()) => Ok(clsact | INTERFACE_XDP),
        Err(error) if interface.hook == Hook::Auto => {
            tracing::warn!("{error}; {name} gets TC alone");
            Ok(clsact)
        }
        Err(error) => Err(error),
    }
}

/// Stops the programs on an interface, which may be gone. `flags`: those of its record.
pub fn detach(dir: &Path, ifindex: u32, flags: u8) -> Result<(), DatapathError> {
    sever(&pin(dir, "xdp", ifindex))?;
    detach_tc(dir, ifindex, &INGRESS)?;
    detach_tc(dir, ifindex, &EGRESS)?;
    if flags & INTERFACE_CLSACT != 0 { qdisc::remove_if_unused(ifindex) } else { Ok(()) }
}

/// Takes a pinned link off its interface, and removes the pin. The pin alone would do, but later: the kernel drops what was pinned when it
/// gets round to it, and until then the program runs.
fn sever(path: &Path) -> Result<(), DatapathError> {
    if path.exists() {
        // What can't be opened or taken off (its interface is gone) is off.
        if let Err(error) = link::detach(path) {
            tracing::debug!("{} is not taken off: {error}", path.display());
        }
    }
    unpin(path)
}

/// A TC hook of an interface.
struct TcHook {
    program: &'static str,
    direction: TcAttachType,
    /// In the names of link pins.
    pin: &'static str,
}

const INGRESS: TcHook = TcHook { program: program::TC, direction: TcAttachType::Ingress, pin: "tc" };
const EGRESS: TcHook = TcHook { program: program::EGRESS, direction: TcAttachType::Egress, pin: "egress" };

fn detach_tc(dir: &Path, ifindex: u32, hook: &TcHook) -> Result<(), DatapathError> {
    sever(&pin(dir, hook.pin, ifindex))?;
    if !has_tcx()
        && let Ok(name) = nix::net::if_::if_indextoname(ifindex)
    {
        let name = name.to_string_lossy();
        // An error says that there is none.
        if let Err(error) = tc::qdisc_detach_program(&name, hook.direction, hook.program) {
            tracing::debug!("no TC filter to remove on {name}: {error}");
        }
    }
    Ok(())
}

/// Stops the programs on these interfaces (index, and flags of the record), and on all that a link is pinned for.
pub fn detach_all(dir: &Path, interfaces: &[(u32, u8)]) -> Result<(), DatapathError> {
    for (ifindex, flags) in interfaces.iter().copied().chain(pinned(dir)?.into_iter().map(|ifindex| (ifindex, 0))) {
        detach(dir, ifindex, flags)?;
    }
    Ok(())
}

/// The interfaces that a link is pinned for.
pub fn pinned(dir: &Path) -> Result<Vec<u32>, DatapathError> {
    let links = dir.join(LINKS);
    let entries = match fs::read_dir(&links) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DatapathError::Io { what: format!("list {}", links.display()), source: error }),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.rsplit_once('-')?.1.parse().ok()).collect())
}

fn attach_tc(ebpf: &mut Ebpf, dir: &Path, ifindex: u32, name: &str, hook: &TcHook) -> Result<(), DatapathError> {
    const WHAT: &str = "attach the TC program";
    let direction = hook.direction;
    let program: &mut SchedClassifier = program_of(ebpf, hook.program)?;
    if !has_tcx() {
        let handle = TcHandle::new(0, TC_HANDLE);
        let options = NlOptions { priority: TC_PRIORITY, handle, ..NlOptions::default() };
        let attached = program.attach_with_options(name, direction, TcAttachOptions::Netlink(options));
        let link = match attached {
            Ok(link) => link,
            // There is one already, of a former controller: replaced in one step.
            Err(_) => SchedClassifierLink::attached(name, direction, TC_PRIORITY, handle, None)
                .map_err(failed(WHAT, name))
                .and_then(|link| program.attach_to_link(link).map_err(failed(WHAT, name)))?,
        };
        // Dropping the link would remove the filter; it is to stay, whatever becomes of this process.
        std::mem::forget(program.take_link(link).map_err(failed(WHAT, name))?);
        return Ok(());
    }
    let path = pin(dir, hook.pin, ifindex);
    if let Some(link) = adopt(&path)
        && let Ok(link) = SchedClassifierLink::try_from(link)
        && let Ok(id) = program.attach_to_link(link)
    {
        drop(program.take_link(id));
        return Ok(());
    }
    unpin(&path)?;
    let id = program
        .attach_with_options(name, direction, TcAttachOptions::TcxOrder(LinkOrder::default()))
        .map_err(failed(WHAT, name))?;
    let link = program.take_link(id).map_err(failed(WHAT, name))?;
    let link = FdLink::try_from(link).map_err(failed(WHAT, name))?;
    link.pin(&path).map_err(failed("pin the TC link", name)).map(drop)
}

fn attach_xdp(ebpf: &mut Ebpf, dir: &Path, ifindex: u32, name: &str) -> Result<(), DatapathError> {
    const WHAT: &str = "attach the XDP program in native mode";
    let program: &mut Xdp = program_of(ebpf, program::XDP)?;
    let path = pin(dir, "xdp", ifindex);
    if let Some(link) = adopt(&path)
        && let Ok(link) = XdpLink::try_from(link)
        && let Ok(id) = program.attach_to_link(link)
    {
        drop(program.take_link(id));
        return Ok(());
    }
    unpin(&path)?;
    let id = program.attach_to_if_index(ifindex, XdpMode::Driver).map_err(failed(WHAT, name))?;
    let link = program.take_link(id).map_err(failed(WHAT, name))?;
    let link = FdLink::try_from(link).map_err(failed(WHAT, name))?;
    link.pin(&path).map_err(failed("pin the XDP link", name)).map(drop)
}

/// The link that is pinned there, if it can be taken over; a link whose interface is gone can't.
fn adopt(path: &Path) -> Option<FdLink> {
    path.exists().then(|| PinnedLink::from_pin(path).ok().map(FdLink::from)).flatten()
}

fn pin(dir: &Path, kind: &str, ifindex: u32) -> PathBuf {
    dir.join(LINKS).join(format!("{kind}-{ifindex}"))
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
    interface: &str,
) -> impl FnOnce(E) -> DatapathError {
    let interface = interface.to_owned();
    move |source| DatapathError::Attach { what, interface, source: Box::new(source) }
}

/// The name of the interface's driver, from the kernel (`ETHTOOL_GDRVINFO`).
pub fn driver(name: &str) -> Option<String> {
    /// The kernel's `struct ethtool_drvinfo`.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    const ETHTOOL_GDRVINFO: u32 = 3;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).ok()?;
    // SAFETY: the request names a live buffer with the layout and size that the command asks for (196 bytes).
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return None;
    }
    let len = info.driver.iter().position(|b| *b == 0).unwrap_or(info.driver.len());
    Some(String::from_utf8_lossy(&info.driver[..len]).into_owned())
}

//! The datapath as the controller handles it: loading, pinning, attaching, and the tables.
//!
//! - [`load`]: programs and maps, pinned below one directory of a bpffs, adopted if they are there.
//! - [`upgrade`]: pins of an older version.
//! - [`attach`]: programs on interfaces, as pinned links (tcx, XDP) or clsact filters.
//! - [`apply`]: the actions of [`crate::reconcile`].
//! - [`cache`]: the flow cache: who has which part of it, and what it has counted; [`shares`]: how it is shared out.
//! - `kernel`: what is read of the running kernel's own structures; `link`: links taken off at once; `syscall`: `bpf(2)` itself; `forwards`: port forwards as bindings; `requests`, `qdisc`: netlink
//!   requests, and the qdisc that they are for.
//! - [`routing`]: the kernel's routing rules by which packets are fragmented and refused.
//! - [`tables`]: the maps by name and type, opened from their pins; [`batch`] reads large ones.
//! - [`policy`]: policies and rules, and which of them are in force; [`explain`] asks what they make of a packet.
//! - [`nudge`]: has clients that only wait notice that their connection is lost.
//! - [`flows`]: the conntrack and the bindings as people see them; `embryo`: flows that are in their binding only; [`sweep`] expires what is idle;
//!   `sticky` are the sources that keep their uplink.
//!
//! Fail static: nothing in here takes anything out of force because the controller ends. Only [`load::detach`] does.

pub mod apply;
pub mod attach;
pub mod batch;
pub mod cache;
mod embryo;
pub mod explain;
pub mod flows;
mod forwards;
mod kernel;
pub mod known;
mod link;
pub mod load;
mod memory;
pub mod nudge;
pub mod policy;
mod qdisc;
mod requests;
pub mod routing;
pub mod shares;
mod sticky;
pub mod sweep;
mod syscall;
pub mod tables;
pub mod upgrade;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why the datapath could not be set up or asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The pin directory does not lie on a bpffs.
    #[error("{0} is not on a bpffs; mount one with: mount -t bpf bpf /sys/fs/bpf")]
    NoBpffs(PathBuf),
    /// The maps that are pinned there are of a newer version.
    #[error(
        "the maps pinned in {dir} have layout version {found}, newer than version {expected} of this mhd; start the mhd that made them, or \
         a newer one, or remove them with `mhd --detach` (all flows end then)"
    )]
    AbiVersion {
        /// The pin directory.
        dir: PathBuf,
        /// The version found.
        found: u32,
        /// The version that this mhd has.
        expected: u32,
    },
    /// The pins are there in part only.
    #[error("cannot open the pinned map {path}: {source}; is mhd running with this --bpffs directory?")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The cause.
        source: aya::maps::MapError,
    },
    /// The object could not be loaded.
    #[error("cannot load the BPF programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused or could not be attached.
    #[error("cannot {what} on {interface}: {source}")]
    Attach {
        /// What was tried.
        what: &'static str,
        /// Where.
        interface: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map operation failed.
    #[error("cannot {what}: {source}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: aya::maps::MapError,
    },
    /// An operation on files or descriptors failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The object lacks a program or a map: it was built from other sources.
    #[error("the BPF object has no {0}; rebuild mhd")]
    Missing(&'static str),
}

impl DatapathError {
    fn map(what: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { what, source }
    }

    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }
}

/// Removes a pin; one that is gone already is no error.
fn unpin(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Io { what: format!("remove {}", path.display()), source: error })
        }
        _ => Ok(()),
    }
}

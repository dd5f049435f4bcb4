//! Anonymous namespaces: a network namespace and the mount namespace that belongs to it, held by file descriptors only.
//!
//! They are made by a short-lived thread that unshares, so this process stays where it is. The mount namespace has a sysfs that
//! shows the network namespace's devices, and a bpffs of its own on /sys/fs/bpf: pins survive the processes that made them, and
//! vanish with the last descriptor.

use std::fs::File;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace and its mount namespace. Both end with this value and the last process and socket inside.
#[derive(Debug)]
pub(super) struct Namespace {
    net: File,
    mnt: File,
}

impl Namespace {
    /// Makes both namespaces.
    pub(super) fn new() -> Result<Self> {
        thread::Builder::new()
            .name("namespace".into())
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
                mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mount sysfs on /sys")?;
                mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
                    .context("mount bpffs on /sys/fs/bpf")?;
                Ok(Self {
                    net: File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?,
                    mnt: File::open("/proc/thread-self/ns/mnt").context("/proc/thread-self/ns/mnt")?,
                })
            })
            .context("namespace thread")?
            .join()
            .map_err(|_| anyhow!("the namespace thread panicked"))?
    }

    /// The network namespace's descriptor.
    pub(super) fn net(&self) -> &File {
        &self.net
    }

    /// Moves the calling thread into the network namespace; its mounts stay.
    pub(super) fn enter_net(&self) -> nix::Result<()> {
        setns(&self.net, CloneFlags::CLONE_NEWNET)
    }

    /// Moves the calling, single-threaded process into both. Calls nothing that isn't async-signal-safe.
    pub(super) fn enter_both(&self) -> nix::Result<()> {
        setns(&self.mnt, CloneFlags::CLONE_NEWNS)?;
        setns(&self.net, CloneFlags::CLONE_NEWNET)
    }
}

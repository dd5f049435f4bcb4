//! Pinned links: taking them off at once.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::syscall::bpf;

/// Takes the link that is pinned there off what it is attached to (`BPF_LINK_DETACH`, Linux 5.9). aya has no such call.
pub fn detach(path: &Path) -> io::Result<()> {
    /// The part of the kernel's `union bpf_attr` for pins.
    #[repr(C)]
    struct Get {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    const OBJ_GET: libc::c_long = 7;
    const LINK_DETACH: libc::c_long = 34;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = Get { path: name.as_ptr().addr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the attributes have the kernel's layout, and the name lives through the call.
    let descriptor = unsafe { bpf(OBJ_GET, &mut get) }?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let mut which = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attributes are one word, the link's descriptor, which is open.
    unsafe { bpf(LINK_DETACH, &mut which) }.map(drop)
}

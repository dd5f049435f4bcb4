//! `bpf(2)`, for the commands that aya has no call for.

use std::io;

/// Gives the kernel a command with its attributes, the leading part of its `union bpf_attr`, into which it may write. Returns what the kernel
/// returns: zero, or a descriptor.
///
/// # Safety
/// The attributes must have the layout that the kernel expects of the command, and all addresses in them must be of live buffers, as large as
/// it expects, for as long as the call takes.
pub unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) } {
        result @ 0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

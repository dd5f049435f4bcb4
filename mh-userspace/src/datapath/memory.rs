//! Arrays whose memory the kernel shares (`BPF_F_MMAPABLE`, 5.5): read and written without system calls, beside the programs.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    ptr::{self, NonNull},
};

use aya::maps::MapData;

use super::{DatapathError, tables::pinned};

/// The memory of an array that the kernel shares.
pub struct Memory {
    start: NonNull<libc::c_void>,
    length: usize,
    /// How many entries it has.
    pub entries: u32,
}

// SAFETY: the memory stays mapped as long as this lives, and is accessed by volatile or atomic operations only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the array of `T` that is pinned in the directory; `protection` as for mmap(2).
    pub fn map<T>(dir: &Path, name: &'static str, protection: libc::c_int) -> Result<Self, DatapathError> {
        let data = pinned(dir, name, |path| MapData::from_pin(path))?;
        let entries = data.info().map_err(DatapathError::map("look at a shared table"))?.max_entries();
        let descriptor = data.fd().as_fd().as_raw_fd();
        let length = entries as usize * size_of::<T>();
        // SAFETY: a new mapping of the map's whole memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, descriptor, 0) };
        let mapped = NonNull::new(start).filter(|_| start != libc::MAP_FAILED);
        let start = mapped.ok_or_else(io::Error::last_os_error).map_err(DatapathError::io("map a shared table"))?;
        Ok(Self { start, length, entries })
    }

    /// Its first byte.
    pub const fn start(&self) -> *const u8 {
        self.start.as_ptr().cast()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, which nothing refers to any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

//! Reading large hash maps in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
//!
//! Key by key, a walk takes two system calls an entry and starts over whenever the key at hand is evicted; by batches it goes bucket
//! by bucket. An entry that moves between buckets during the walk does not exist, so none is seen twice; entries that come or go
//! meanwhile may or may not be seen. aya has no such call.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use bytemuck::{Pod, Zeroable};

/// `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: libc::c_long = 24;
/// Entries asked for at a time; doubled if a bucket holds more.
const CHUNK: usize = 4096;
/// A bucket that holds more than so many entries is given up on.
const MAX_CHUNK: usize = 1 << 20;

/// The part of the kernel's `union bpf_attr` for batches.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `each` with every key and value of the map. `K` and `V` must have the sizes of the map's keys and values, which holds for
/// maps that [`super::tables::Tables`] opened.
pub fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(K, V)) -> io::Result<()> {
    let mut chunk = CHUNK;
    let mut keys = vec![K::zeroed(); chunk];
    let mut values = vec![V::zeroed(); chunk];
    // The kernel's cursor: a bucket number.
    let mut cursor = 0u64;
    let mut started = false;
    loop {
        let mut next = 0u64;
        let mut attributes = Attributes {
            in_batch: if started { (&raw mut cursor).addr() as u64 } else { 0 },
            out_batch: (&raw mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(chunk).unwrap_or(u32::MAX),
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: all pointers are to live buffers of `count` elements of the map's sizes; the kernel writes no further.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>()) };
        let error = (result < 0).then(io::Error::last_os_error);
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // ENOENT: that was the last batch.
            None | Some(libc::ENOENT) => {
                let count = usize::try_from(attributes.count).unwrap_or(0).min(chunk);
                for (key, value) in keys[..count].iter().zip(&values[..count]) {
                    each(*key, *value);
                }
                if error.is_some() {
                    return Ok(());
                }
                cursor = next;
                started = true;
            }
            // ENOSPC: the next bucket holds more than a chunk.
            Some(libc::ENOSPC) if chunk < MAX_CHUNK => {
                chunk *= 2;
                keys.resize(chunk, K::zeroed());
                values.resize(chunk, V::zeroed());
            }
            Some(libc::EINTR | libc::EAGAIN) => {}
            Some(code) => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

//! Reading large hash maps in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
//!
//! Key by key, a walk takes two system calls an entry and starts over whenever the key at hand is evicted; by batches it goes bucket
//! by bucket. An entry that moves between buckets during the walk does not exist, so none is seen twice; entries that come or go
//! meanwhile may or may not be seen. aya has no such call.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};

use super::syscall::bpf;

/// `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: libc::c_long = 24;
/// Entries asked for at a time by [`for_each`]; doubled if a bucket holds more.
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

/// A walk over a map, some entries at a time. `K` and `V` must have the sizes of the map's keys and values, which holds for maps that
/// [`super::tables::Tables`] opened.
pub struct Batches<K, V> {
    map: OwnedFd,
    keys: Vec<K>,
    values: Vec<V>,
    /// The kernel's cursor, a bucket number, once there is one.
    cursor: Option<u64>,
    ended: bool,
}

impl<K: Pod, V: Pod> Batches<K, V> {
    /// Entries are read this many at a time, or as many as are in a bucket if those are more.
    pub fn new(map: OwnedFd, at_a_time: usize) -> Self {
        let at_a_time = at_a_time.max(1);
        Self {
            map,
            keys: vec![K::zeroed(); at_a_time],
            values: vec![V::zeroed(); at_a_time],
            cursor: None,
            ended: false,
        }
    }

    /// The next keys and values, which may be none; `None` at the end.
    pub fn read(&mut self) -> io::Result<Option<(&[K], &[V])>> {
        while !self.ended {
            let chunk = self.keys.len();
            let mut next = 0u64;
            let mut attributes = Attributes {
                in_batch: self.cursor.as_mut().map_or(0, |cursor| (&raw mut *cursor).addr() as u64),
                out_batch: (&raw mut next).addr() as u64,
                keys: self.keys.as_mut_ptr().addr() as u64,
                values: self.values.as_mut_ptr().addr() as u64,
                count: u32::try_from(chunk).unwrap_or(u32::MAX),
                map_fd: self.map.as_raw_fd().cast_unsigned(),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: all pointers are to live buffers of `count` elements of the map's sizes; the kernel writes no further.
            let error = unsafe { bpf(LOOKUP_BATCH, &mut attributes) }.err();
            match error.as_ref().and_then(io::Error::raw_os_error) {
                // ENOENT: that was the last batch.
                None | Some(libc::ENOENT) => {
                    let count = usize::try_from(attributes.count).unwrap_or(0).min(chunk);
                    self.ended = error.is_some();
                    self.cursor = Some(next);
                    return Ok(Some((&self.keys[..count], &self.values[..count])));
                }
                // ENOSPC: the next bucket holds more than a chunk.
                Some(libc::ENOSPC) if chunk < MAX_CHUNK => {
                    self.keys.resize(chunk * 2, K::zeroed());
                    self.values.resize(chunk * 2, V::zeroed());
                }
                Some(libc::EINTR | libc::EAGAIN) => {}
                Some(code) => return Err(io::Error::from_raw_os_error(code)),
            }
        }
        Ok(None)
    }
}

/// Calls `each` with every key and value of the map; sizes as for [`Batches`].
pub fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(K, V)) -> io::Result<()> {
    let mut batches = Batches::new(map.try_clone_to_owned()?, CHUNK);
    while let Some((keys, values)) = batches.read()? {
        for (key, value) in keys.iter().zip(values) {
            each(*key, *value);
        }
    }
    Ok(())
}

//! Bytes of packets, read and written in whole words.
//!
//! One instruction each: of what it can't know how it is aligned, the compiler would read byte by byte in programs for BPF. The processors that
//! mh is for (x86-64, arm64) don't mind, nor do their verifiers.

/// The first `LEN` bytes of a frame: checked once, read and written at constant offsets. Not valid any more after a call that may move the
/// packet.
#[derive(Clone, Copy, Debug)]
pub struct Head<const LEN: usize> {
    start: usize,
}

impl<const LEN: usize> Head<LEN> {
    /// The bytes at an address.
    ///
    /// # Safety
    /// They are there, may be read and written, and nobody else does, for as long as this or a copy of it is used.
    #[inline(always)]
    pub const unsafe fn new(start: usize) -> Self {
        Self { start }
    }

    /// Reads a `T` as it stands in memory.
    #[inline(always)]
    pub fn load<T: Wire, const AT: usize>(&self) -> T {
        const { assert!(AT + size_of::<T>() <= LEN) };
        // SAFETY: whoever made it promised `LEN` bytes.
        unsafe { T::load::<AT>(self.start) }
    }

    /// Writes a `T` as it stands in memory.
    #[inline(always)]
    pub fn store<T: Wire, const AT: usize>(&self, value: T) {
        const { assert!(AT + size_of::<T>() <= LEN) };
        // SAFETY: as above.
        unsafe { value.store::<AT>(self.start) };
    }
}

/// What can be read from and written to packets: any bit pattern is a value, and there is no padding.
pub trait Wire: Copy {
    /// Reads it at `AT` bytes from an address, however that is aligned.
    ///
    /// # Safety
    /// The bytes are there and may be read.
    unsafe fn load<const AT: usize>(start: usize) -> Self;

    /// Writes it at `AT` bytes from an address, however that is aligned.
    ///
    /// # Safety
    /// The bytes are there and may be written.
    unsafe fn store<const AT: usize>(self, start: usize);
}

macro_rules! wire {
    ($($type:ty: $width:literal),*) => {
        $(impl Wire for $type {
            #[inline(always)]
            unsafe fn load<const AT: usize>(start: usize) -> Self {
                #[cfg(target_arch = "bpf")]
                {
                    let value: u64;
                    // SAFETY: the caller's. An instruction that reads memory and does nothing else.
                    unsafe {
                        core::arch::asm!(
                            concat!("{0} = *(", $width, " *)({1} + {2})"),
                            out(reg) value, in(reg) start, const AT, options(pure, readonly, nostack)
                        );
                    }
                    value as Self
                }
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the caller's.
                unsafe {
                    ((start + AT) as *const Self).read_unaligned()
                }
            }

            #[inline(always)]
            unsafe fn store<const AT: usize>(self, start: usize) {
                #[cfg(target_arch = "bpf")]
                // SAFETY: the caller's.
                unsafe {
                    core::arch::asm!(
                        concat!("*(", $width, " *)({0} + {2}) = {1}"),
                        in(reg) start, in(reg) self as u64, const AT, options(nostack)
                    );
                }
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the caller's.
                unsafe {
                    ((start + AT) as *mut Self).write_unaligned(self);
                }
            }
        })*
    };
}
wire!(u8: "u8", u16: "u16", u32: "u32", u64: "u64");

impl Wire for [u8; 6] {
    #[inline(always)]
    unsafe fn load<const AT: usize>(start: usize) -> Self {
        // SAFETY: the caller's.
        let (first, last) = unsafe { (u32::load::<AT>(start), u16::load::<AT>(start + 4)) };
        let ([a, b, c, d], [e, f]) = (first.to_ne_bytes(), last.to_ne_bytes());
        [a, b, c, d, e, f]
    }

    #[inline(always)]
    unsafe fn store<const AT: usize>(self, start: usize) {
        let [a, b, c, d, e, f] = self;
        // SAFETY: the caller's.
        unsafe {
            u32::from_ne_bytes([a, b, c, d]).store::<AT>(start);
            u16::from_ne_bytes([e, f]).store::<AT>(start + 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_stored_is_loaded_and_nothing_else_changes(before: [u8; 32], byte: u8, word: u16, number: u64, mac: [u8; 6]) {
            let mut frame = before;
            // SAFETY: the array lives, and nobody else uses it meanwhile.
            let head = unsafe { Head::<32>::new(frame.as_mut_ptr().expose_provenance()) };
            head.store::<_, 0>(byte);
            head.store::<_, 3>(word);
            head.store::<_, 7>(number);
            head.store::<_, 17>(mac);
            let read = (head.load::<u8, 0>(), head.load::<u16, 3>(), head.load::<u64, 7>(), head.load::<[u8; 6], 17>());
            prop_assert_eq!(read, (byte, word, number, mac));
            prop_assert_eq!(&frame[7..15], &number.to_ne_bytes());
            prop_assert_eq!(&frame[17..23], &mac);
            for gap in [1..3, 5..7, 15..17, 23..32] {
                prop_assert_eq!(&frame[gap.clone()], &before[gap]);
            }
        }
    }
}

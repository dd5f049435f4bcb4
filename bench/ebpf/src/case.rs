//! What the driver of a test run and the program that starts it share.
//!
//! The kernel repeats a test run on what the run before left behind: translated, with a lower TTL. So the driver writes the packet's head
//! anew each time and then calls the program under test. With `vary`, each run's packet is of another flow: source address and port change,
//! and words that nobody looks at change with them the other way round, so that no checksum does.

use bytemuck::{Pod, Zeroable};

/// The drivers, and the programs that they call to see what they cost themselves.
pub mod program {
    /// Restores a packet and calls an XDP program.
    pub const DRIVE_XDP: &str = "drive_xdp";
    /// Restores a packet and calls a TC program.
    pub const DRIVE_TC: &str = "drive_tc";
    /// Returns.
    pub const NOTHING_XDP: &str = "nothing_xdp";
    /// Returns.
    pub const NOTHING_TC: &str = "nothing_tc";
}

/// Names of the maps.
pub mod map {
    /// Array with one [`super::Case`].
    pub const CASE: &str = "bench_case";
    /// The XDP program under test, at index zero.
    pub const UNDER_TEST_XDP: &str = "bench_xdp";
    /// The TC program under test, at index zero.
    pub const UNDER_TEST_TC: &str = "bench_tc";
}

/// So much of every packet is restored; shorter packets are not driven.
pub const SHORT: usize = 64;
/// So much of a packet is restored if [`Case::long`] says so.
pub const LONG: usize = 128;
/// Where the IPv4 identification is: changes against the address.
pub const IDENTIFICATION: usize = 18;
/// Where the lower half of the source address is.
pub const SOURCE_LOW: usize = 28;
/// Where the source port is.
pub const SOURCE_PORT: usize = 34;
/// Where two words of UDP payload are: they change against address and port.
pub const AGAINST: usize = 42;
/// So many inside hosts take turns: a power of two.
pub const HOSTS: u32 = 1024;
/// The first of them, in the lower half of the address.
pub const FIRST_HOST: u32 = 256;
/// The first source port; each run takes the next one, so that all differ.
pub const FIRST_PORT: u32 = 1024;
/// So many runs differ.
pub const MOST_RUNS: u32 = 65_536 - FIRST_PORT;

/// What the driver restores.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Case {
    /// The packet's first bytes. With `vary`: with ones for [`IDENTIFICATION`] and [`AGAINST`] and zeros for what they balance.
    pub head: [u64; LONG / 8],
    /// Not zero: [`LONG`] bytes are restored and not [`SHORT`].
    pub long: u32,
    /// Not zero: each run's packet is of another flow.
    pub vary: u32,
    /// With `vary`, the number of the next run.
    pub next: u32,
    /// Always zero.
    pub reserved: u32,
}

// SAFETY: made of integers without padding, as bytemuck has checked.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Case {}

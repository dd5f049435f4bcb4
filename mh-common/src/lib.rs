//! What mh's datapath and its controller have in common: the types that cross the kernel boundary and all pure packet logic.
//!
//! The crate is `no_std` and does not allocate, so that the very same code runs in the BPF programs and, natively, in unit
//! and property tests, under Miri and in fuzzers.
//!
//! - [`abi`]: names, sizes and layouts of the maps, and their version.
//! - [`address`]: address families; everything else is generic over them.
//! - [`flow`]: conntrack keys and entries, and what the two halves of a flow say together about its state.
//! - [`binding`]: NAT bindings, the truth about which outside port belongs to which inside host.
//! - [`mark`]: what marks mean.
//! - [`fragment`]: datagrams in fragments, and the limits that hold for them.
//! - [`checksum`]: incremental Internet checksums (RFC 1624).
//! - [`rules`], [`policy`]: which policy a new flow gets, and which uplink by it.
//! - [`hop`]: the way to an uplink's gateway.
//! - [`hash`], [`slots`]: from a packet's addresses to a slot, and from weights to slots.
//! - [`ports`]: which outside ports a binding may try, and in which order.
//! - [`wire`]: header layouts and the bounds that hold for them; [`bytes`]: how packets are read and written.
//! - [`verdict`]: every way in which the datapath can be done with a packet, each with a counter and a stable name.
//!
//! Failure behaviour: nothing here panics; functions that can fail return `Option` or a small `Copy` enum.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::cast_possible_truncation,
    reason = "arithmetic on bits of known width in const functions, where TryFrom can't be called; bounds stand beside it"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod abi;
pub mod address;
pub mod binding;
pub mod bytes;
pub mod cache;
pub mod checksum;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod hop;
pub mod known;
pub mod mark;
pub mod policy;
pub mod ports;
pub mod route;
pub mod rules;
pub mod slots;
pub mod time;
pub mod verdict;
pub mod wire;

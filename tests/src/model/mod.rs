//! A model of the NAT to hold the datapath against: the rules in plain Rust over hash maps, one packet at a time.
//!
//! It is written from docs/packet-flow.md and the RFCs that it names, shares no structure with the programs, and keeps to the plainest
//! way of saying a thing. Where the datapath draws lots (an outside port that is not the inside one) the model is told the outcome and
//! checks that it was allowed. Of fragments that come before the first of their datagram it models that they wait, not that they come
//! again.
//!
//! - [`wire`][]: packets.
//! - [`run`][]: both worlds side by side.
//! - [`steps`][]: what happens, by lot.
//! - [`tables`][]: flows and bindings, their lives and their ends.
//! - [`rules`][]: what becomes of a packet; [`begin`], [`send`] and [`egress`] are parts of it.

pub mod begin;
pub mod egress;
pub mod rules;
pub mod run;
pub mod send;
pub mod steps;
pub mod tables;
pub mod wire;

pub use rules::{Expected, Side};
pub use tables::Model;

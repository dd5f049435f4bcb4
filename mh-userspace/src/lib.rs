//! mh's controller and command line, as a library.
//!
//! Dependencies point one way: [`config`] <- [`core`], [`load`], [`health`] and [`reconcile`] (sans-IO) <- [`netlink`], [`probe`], [`datapath`],
//! [`control`] <- [`daemon`] <- the binaries `mhd` and `mhctl`. [`cli`] renders what [`control`] brings; [`import`]
//! reads other programs' configurations.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may"))]

pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod daemon;
pub mod datapath;
pub mod health;
pub mod import;
pub mod load;
pub mod netlink;
pub mod probe;
pub mod reconcile;

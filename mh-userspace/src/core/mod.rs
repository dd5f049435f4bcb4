//! The controller's core: from what is configured, ordered by hand and observed to what the datapath should hold.
//!
//! Sans-IO: nothing in here knows of tokio, aya, netlink or the clock. [`Observed`] takes [`Event`]s in any order and ends in the
//! same state for the same set of facts; [`Desired::new`] is a pure function; [`crate::reconcile`] turns two of its results into
//! actions. So all of it is tested without a kernel.

mod desired;
mod events;
mod observed;
mod records;

pub use desired::{Desired, ForwardedPort, Hook, Indices, InsidePort, ManagedInterface, Overrides, UplinkView};
pub use events::{Change, changes};
pub use observed::{DefaultRoute, Event, Link, Observed};

//! The control interface: HTTP/1.1 with JSON bodies over a Unix socket.
//!
//! [`api`] has the documents and the [`api::Backend`] that answers; [`server`] speaks HTTP for a backend; [`client`] is mhctl's side;
//! [`events`] keeps the events that are told.

pub mod api;
pub mod client;
pub mod events;
pub mod server;

//! What the tests of mh are made of: laboratories of network namespaces with real sockets in them ([`lab`]), and the
//! demonstration that is built on the same laboratory ([`demo`]).
//!
//! Nothing here is part of the product. Everything that touches a network does so inside anonymous network namespaces that
//! disappear with the process.

pub mod demo;
pub mod lab;
pub mod model;
pub mod packet;
pub mod rig;

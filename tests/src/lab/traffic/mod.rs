//! Real traffic: servers that tell what they saw, clients, streams with a hash, and counting what came of them.
//!
//! Sockets are made inside a host's namespace and used from wherever; every read has a deadline, so that a path that loses
//! packets fails a test with a message and doesn't hang it.

mod asked;
mod datagram;
mod datagrams;
mod flows;
mod fragment;
mod own;
mod paced;
mod sniffer;
mod split;
mod stream;
mod tcp;
mod udp;

pub use self::asked::Asked;
pub use self::datagram::DatagramSocket;
pub use self::datagrams::Datagrams;
pub use self::flows::Flows;
pub use self::fragment::{ArrivalCounter, Datagram, Fragment, RawSender, UDP};
pub use self::own::{Bound, raw};
pub use self::paced::PacedFlow;
pub use self::sniffer::{Segment, Sniffer};
pub use self::split::Split;
pub use self::stream::{Amount, BLOCK_BYTES, Direction, OpenTransfer, Transferred, transfer};
pub use self::tcp::{TcpFlow, TcpServer, tcp_flows};
pub use self::udp::{UdpFlow, UdpServer, udp_flows};

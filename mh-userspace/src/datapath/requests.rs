//! Netlink requests, one after the other, for what the controller changes in the kernel's networking itself.
//!
//! Events have a socket of their own (see [`crate::netlink`]), so that none is lost among answers.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::DatapathError;

/// A socket for requests, one at a time.
pub struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens it.
    pub fn open() -> Result<Self, DatapathError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // The kernel lists what is asked for and no more (4.20).
            socket.set_netlink_get_strict_chk(true)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(DatapathError::io("open a netlink socket"))?, sequence: 0 })
    }

    /// Has the kernel do something; errors of `tolerated` numbers are none.
    pub fn request(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
        tolerated: &[i32],
    ) -> Result<(), DatapathError> {
        match self.exchange(message, flags | NLM_F_ACK) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error().is_some_and(|code| tolerated.contains(&code)) => Ok(()),
            Err(error) => Err(DatapathError::Io { what: what.to_owned(), source: error }),
        }
    }

    /// Asks for a list; a routing table that does not exist is empty.
    pub fn list(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, DatapathError> {
        self.find(what, message, NLM_F_DUMP)
    }

    /// Asks for one object; nothing if it does not exist.
    pub fn get(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, DatapathError> {
        Ok(self.find(what, message, NLM_F_ACK)?.pop())
    }

    fn find(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, DatapathError> {
        match self.exchange(message, flags) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            found => found.map_err(DatapathError::io(format!("look up {what}"))),
        }
    }

    /// Sends a message and receives what the kernel answers, up to its acknowledgement or the end of the list.
    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags | NLM_F_REQUEST;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let len = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(len..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => return error.code.map_or(Ok(answers), |_| Err(error.to_io())),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

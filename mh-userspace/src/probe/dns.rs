//! A question to a DNS server over UDP (RFC 1035).

use std::fmt::Display;
use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::{Path, socket};
use crate::health::Failure;

/// The largest answer that is read; servers send 512 bytes to who does not ask for more.
const MAX_ANSWER: usize = 4096;

/// Asks the server for the IPv4 addresses of `name`. That there are none, or that there is no such name, is an answer.
///
/// Answers of others, to other questions or that are none are ignored; they can't end the probe, nor can they fail it.
pub(super) async fn ask(path: &Path, address: Ipv4Addr, port: u16, name: &str) -> Result<(), Failure> {
    let question = Question::new(name)?;
    let socket = socket::datagrams(path, address, port).await.map_err(|error| socket::failure(&error))?;
    socket.send(&question.bytes).await.map_err(|error| socket::failure(&error))?;
    let mut buffer = [0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(|error| socket::failure(&error))?;
        let Some(code) = buffer.get(..length).and_then(|answer| question.response_code(answer)) else {
            continue;
        };
        return match code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(()),
            other => Err(Failure::Dns(other.into())),
        };
    }
}

/// A question, and as it is sent.
struct Question {
    id: u16,
    query: Query,
    bytes: Vec<u8>,
}

impl Question {
    fn new(name: &str) -> Result<Self, Failure> {
        let failure = |error: &dyn Display| Failure::error(&format!("cannot ask: {error}"));
        let mut name = Name::from_ascii(name).map_err(|error| failure(&error))?;
        name.set_fqdn(true);
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(|error| failure(&error))?;
        let id = u16::from_be_bytes(id);
        let query = Query::query(name, RecordType::A);
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        let bytes = message.to_vec().map_err(|error| failure(&error))?;
        Ok(Self { id, query, bytes })
    }

    /// The response code, if this is an answer to the question.
    fn response_code(&self, answer: &[u8]) -> Option<ResponseCode> {
        let message = Message::from_vec(answer).ok()?;
        let header = &message.metadata;
        // Servers that refuse a question may leave it out.
        let is_asked = message.queries.is_empty() || message.queries.first() == Some(&self.query);
        let is_answer = header.id == self.id && header.message_type == MessageType::Response && is_asked;
        is_answer.then_some(header.response_code)
    }
}

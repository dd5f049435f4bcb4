//! Questions to a DNS server that answers in every way.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;

use super::super::dns::ask;
use super::{loopback, run};
use crate::health::Failure;

/// Asks a server that answers with what `answer` makes of the question: messages one after the other.
fn asked(answer: impl FnOnce(Message) -> Vec<Vec<u8>>) -> Result<(), Failure> {
    run(async {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let serve = async {
            let mut buffer = [0; 512];
            let (length, client) = server.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            assert!(question.metadata.recursion_desired);
            assert_eq!(question.queries[0].query_type(), RecordType::A);
            assert_eq!(question.queries[0].name().to_ascii(), "www.example.org.");
            for message in answer(question) {
                server.send_to(&message, client).await.unwrap();
            }
        };
        let path = loopback();
        let (result, ()) = tokio::join!(ask(&path, Ipv4Addr::LOCALHOST, port, "www.example.org"), serve);
        result
    })
}

fn response(mut question: Message, code: ResponseCode) -> Message {
    question.metadata.message_type = MessageType::Response;
    question.metadata.response_code = code;
    question
}

#[test]
fn response_codes() {
    for (code, expected) in [
        (ResponseCode::NoError, Ok(())),
        (ResponseCode::NXDomain, Ok(())),
        (ResponseCode::ServFail, Err(Failure::Dns(2))),
        (ResponseCode::Refused, Err(Failure::Dns(5))),
        (ResponseCode::FormErr, Err(Failure::Dns(1))),
    ] {
        assert_eq!(asked(|question| vec![response(question, code).to_vec().unwrap()]), expected, "{code}");
    }
    let without_question = |question| {
        let mut answer = response(question, ResponseCode::Refused);
        answer.queries.clear();
        vec![answer.to_vec().unwrap()]
    };
    assert_eq!(asked(without_question), Err(Failure::Dns(5)));
}

#[test]
fn what_is_no_answer_is_ignored() {
    let result = asked(|question| {
        let refused = response(question.clone(), ResponseCode::Refused);
        let mut other_id = refused.clone();
        other_id.metadata.id ^= 1;
        let mut other_name = refused.clone();
        other_name.queries = vec![Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A)];
        let mut no_response = refused.clone();
        no_response.metadata.message_type = MessageType::Query;
        let mut messages: Vec<Vec<u8>> = vec![Vec::new(), vec![0; 5], vec![0xff; 400]];
        for message in [other_id, other_name, no_response, response(question, ResponseCode::NoError)] {
            messages.push(message.to_vec().unwrap());
        }
        messages
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn a_closed_port_is_refused() {
    run(async {
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        assert_eq!(ask(&loopback(), Ipv4Addr::LOCALHOST, free, "example.org").await, Err(Failure::Refused));
    });
}

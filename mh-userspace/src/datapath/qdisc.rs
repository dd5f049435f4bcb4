//! The clsact qdisc, on which TC programs hang where the kernel has no tcx links (before 6.6).
//!
//! Ownership: whoever finds it there already leaves it there; the one that mh added goes with mh, unless others have hung filters on it.

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle, TcMessage},
    },
};

use super::{DatapathError, requests::Requests};

/// Adds the qdisc to an interface. Returns whether it was not there.
///
/// # Errors
/// If the kernel refuses.
pub fn add(ifindex: u32) -> Result<bool, DatapathError> {
    let mut socket = Requests::open()?;
    let answers = socket.list("the qdiscs", RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
    let there = answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            qdisc.header.index.cast_unsigned() == ifindex && qdisc.header.parent == TcHandle::CLSACT
        }
        _ => false,
    });
    if there {
        return Ok(false);
    }
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let message = RouteNetlinkMessage::NewQueueDiscipline(clsact(ifindex));
    socket.request("add the clsact qdisc", message, flags, &[]).map(|()| true)
}

/// Removes the qdisc from an interface, which may be gone, if nothing hangs on it any more.
///
/// # Errors
/// If the kernel refuses.
pub fn remove_if_unused(ifindex: u32) -> Result<(), DatapathError> {
    let mut socket = Requests::open()?;
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let mut filters = TcMessage::default();
        filters.header.index = ifindex.cast_signed();
        filters.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
        match socket.list("the TC filters", RouteNetlinkMessage::GetTrafficFilter(filters)) {
            Ok(answers) if answers.is_empty() => {}
            // Somebody's, or nothing to ask about any more.
            _ => return Ok(()),
        }
    }
    let gone = &[libc::ENOENT, libc::ENODEV, libc::EINVAL];
    socket.request("remove the clsact qdisc", RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex)), 0, gone)
}

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

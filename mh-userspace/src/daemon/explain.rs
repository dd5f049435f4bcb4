//! What would become of a packet: from the question that people ask to the datapath's answer, and to words ([`super::reasons`]).
//!
//! Asked is the datapath itself, with its own tables. What is found out here before is by which interface the packet would come to it:
//! the kernel's routing tells, as it does for packets.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use mh_common::{
    abi,
    policy::{self, NO_SLOT, NO_UPLINK, explained},
    rules::Action,
    verdict::Verdict,
    wire,
};

use super::{backend::internal, reasons::Reasons};
use crate::{
    config,
    control::api::{self, ControlError, ExplainRequest, Explanation},
    core::{Core, Desired, ManagedInterface},
    datapath::{
        apply::Datapath,
        explain::Question,
        routing::{self, Sent},
    },
};

/// The highest differentiated services code point (RFC 2474).
const MAX_DSCP: u8 = 63;

/// What stands for a source port that was not given: ephemeral ones (RFC 6335, section 6), the first that no flow of the source has.
const ASSUMED_PORTS: RangeInclusive<u16> = 49_152..=49_167;

/// The packet that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The IP protocol.
    pub protocol: u8,
    /// The source address.
    pub src: Ipv4Addr,
    /// The source port or identifier, if one was given.
    pub sport: Option<u16>,
    /// That with which the datapath is asked: `sport`, or what stands for it.
    pub asked_sport: u16,
    /// The destination address.
    pub dst: Ipv4Addr,
    /// The destination port; zero where there is none.
    pub dport: u16,
    /// The differentiated services code point.
    pub dscp: u8,
}

impl Packet {
    /// The packet of a request.
    fn new(request: &ExplainRequest) -> Result<Self, ControlError> {
        let invalid = |reason: String| Err(ControlError::Invalid(reason));
        let Some(protocol) = api::protocol_number(&request.proto) else {
            return invalid(format!(
                "there is no protocol {:?}; give tcp, udp, icmp or a number to 255",
                request.proto
            ));
        };
        let v4 = |address| match address {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(address) => Err(ControlError::Invalid(format!(
                "{address} is an IPv6 address, and IPv6 is not steered in this version; give IPv4 addresses"
            ))),
        };
        let (src, dst) = (v4(request.src)?, v4(request.dst)?);
        let name = api::protocol_name(protocol);
        let has_ports = wire::is_tcp_or_udp(protocol);
        match (has_ports, request.dport) {
            (true, None | Some(0)) => {
                return invalid(format!("{name} needs a destination port; give one, as in {dst}:443"));
            }
            (false, Some(_)) => {
                return invalid(format!("protocol {name} has no destination port; give the destination as {dst}"));
            }
            _ => {}
        }
        if !wire::has_ports(protocol) && request.sport.is_some() {
            return invalid(format!("protocol {name} has no ports; give the source as {src}"));
        }
        let dscp = request.dscp.unwrap_or_default();
        if dscp > MAX_DSCP {
            return invalid(format!("dscp {dscp} is too large; give 0 to {MAX_DSCP}"));
        }
        let assumed = if has_ports { *ASSUMED_PORTS.start() } else { 0 };
        Ok(Self {
            protocol,
            src,
            sport: request.sport,
            asked_sport: request.sport.unwrap_or(assumed),
            dst,
            dport: request.dport.unwrap_or_default(),
            dscp,
        })
    }

    /// Has it ports, and its source port was not given?
    pub const fn assumes_port(&self) -> bool {
        self.sport.is_none() && wire::is_tcp_or_udp(self.protocol)
    }

    fn sent(&self) -> Sent {
        Sent {
            src: Some(self.src),
            dst: self.dst,
            transport: wire::is_tcp_or_udp(self.protocol).then_some((self.protocol, self.asked_sport, self.dport)),
            tos: self.dscp << 2,
        }
    }
}

/// How a packet comes to the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entrance<'a> {
    /// The interface's index.
    pub ifindex: u32,
    /// The interface: that it comes in by or, for the machine's own, leaves by.
    pub interface: &'a ManagedInterface,
    /// The machine itself sends it.
    pub by_host: bool,
    /// Nobody named the interface: the kernel's routing tells.
    pub routed: bool,
}

/// Answers a request.
pub fn explain(
    core: &Core,
    desired: &Desired,
    policies: &[(u8, api::Policy)],
    datapath: &mut Datapath,
    request: &ExplainRequest,
) -> Result<Explanation, ControlError> {
    let mut packet = Packet::new(request)?;
    let entrance = match entrance(core, desired, &packet, request.interface.as_deref())? {
        Ok(entrance) => entrance,
        Err(reason) => return Ok(untouched(reason)),
    };
    let answer = ask(datapath, &entrance, &mut packet)?;
    let Some(verdict) = Verdict::from_index(answer.verdict) else {
        return Err(ControlError::Internal(format!("the datapath gave no verdict ({})", answer.verdict)));
    };
    let config = core.config();
    let uplink = desired.views.iter().find(|view| answer.uplink != NO_UPLINK && view.index == answer.uplink);
    let asked = answer.flags & explained::RULE != 0;
    let rule = asked.then(|| config.rules.get(usize::from(answer.rule.number))).flatten();
    let decides = asked && answer.rule.action == Action::Policy as u8 && answer.flags & explained::RESTORED == 0;
    let by_policy = decides && answer.flags & explained::ON_LINK == 0;
    let named = policies.iter().find(|(index, _)| by_policy && *index == answer.rule.policy);
    let policy = named.map(|(_, policy)| policy);
    let reasons = Reasons {
        packet: &packet,
        entrance: &entrance,
        answer: &answer,
        verdict,
        config,
        desired,
        rule,
        uplink,
        policy,
    };
    let word = |address: u32| Ipv4Addr::from(address.to_ne_bytes());
    let number = u32::from(answer.rule.number) + 1;
    let leaves_by = uplink.filter(|_| verdict != Verdict::NoUplink).map(|view| view.name.clone());
    // What the machine itself sends leaves by some uplink even if no tier has one.
    let chosen = policy.zip(leaves_by.as_ref()).filter(|_| verdict == Verdict::New);
    let tier = chosen.and_then(|(policy, uplink)| {
        let tier = policy.tiers.iter().position(|tier| tier.iter().any(|member| member.uplink == *uplink));
        tier.and_then(|tier| u32::try_from(tier).ok())
    });
    Ok(Explanation {
        verdict: verdict.name().to_owned(),
        rule: rule.map(|rule| label(rule, number)),
        rule_index: rule.map(|_| number),
        policy: policy.map(|policy| policy.name.clone()),
        tier,
        slot: (answer.slot != NO_SLOT).then_some(answer.slot),
        uplink: leaves_by,
        nat_src: (answer.address[0] != 0).then(|| word(answer.address[0]).into()),
        // Of a port that nobody gave there is nothing to claim.
        nat_sport: packet.sport.filter(|_| answer.port != 0).map(|_| u16::from_be(answer.port)),
        existing: answer.flags & explained::FLOW != 0,
        sticky: answer.flags & explained::STICKY != 0,
        interface: Some(entrance.interface.name.clone()),
        host: entrance.by_host,
        why: reasons.list(),
    })
}

/// Asks the datapath. Where no source port was given, it is one that has no flow or binding, which would decide.
fn ask(
    datapath: &mut Datapath,
    entrance: &Entrance<'_>,
    packet: &mut Packet,
) -> Result<policy::Explanation, ControlError> {
    loop {
        let question = Question {
            ifindex: entrance.ifindex,
            by_host: entrance.by_host,
            protocol: packet.protocol,
            src: packet.src,
            sport: packet.asked_sport,
            dst: packet.dst,
            dport: packet.dport,
            dscp: packet.dscp,
        };
        let answer = datapath.explain(&question).map_err(internal)?;
        let taken = answer.flags & (explained::FLOW | explained::BINDING | explained::RESTORED) != 0;
        if !(taken && packet.assumes_port()) || packet.asked_sport >= *ASSUMED_PORTS.end() {
            return Ok(answer);
        }
        packet.asked_sport += 1;
    }
}

/// What people call a rule.
pub fn label(rule: &config::Rule, number: u32) -> String {
    rule.name.clone().unwrap_or_else(|| format!("rule {number}"))
}

/// What the kernel would not even bring to the datapath.
fn untouched(reason: String) -> Explanation {
    let verdict = Verdict::NotForUplink.name().to_owned();
    Explanation { verdict, host: true, why: vec![reason], ..Explanation::default() }
}

/// How the packet comes to the datapath; or why it does not.
fn entrance<'a>(
    core: &Core,
    desired: &'a Desired,
    packet: &Packet,
    named: Option<&str>,
) -> Result<Result<Entrance<'a>, String>, ControlError> {
    let own = core.observed().local().contains(&packet.src);
    let is_uplink = |managed: &ManagedInterface| managed.interface.role == abi::ROLE_UPLINK;
    let managed = |ifindex: u32| desired.interfaces.get(&ifindex);
    let name = |ifindex: u32| {
        nix::net::if_::if_indextoname(ifindex)
            .map_or_else(|_| "?".to_owned(), |name| name.to_string_lossy().into_owned())
    };
    if let Some(named) = named {
        let found = desired.interfaces.iter().find(|(_, managed)| managed.name == named);
        let Some((&ifindex, interface)) = found else {
            return Err(ControlError::NotFound(format!(
                "{named:?} is no managed interface; those are {}",
                names(desired, |_| true)
            )));
        };
        return Ok(Ok(Entrance { ifindex, interface, by_host: own && is_uplink(interface), routed: false }));
    }
    if own {
        return Ok(match routing::leaves_by(&packet.sent()).map_err(internal)? {
            None => Err(format!(
                "this machine itself sends it, and its routing has no route from {} to {}",
                packet.src, packet.dst
            )),
            Some(ifindex) => match managed(ifindex).filter(|interface| is_uplink(interface)) {
                Some(interface) => Ok(Entrance { ifindex, interface, by_host: true, routed: true }),
                None => Err(format!(
                    "this machine itself sends it, and its routing has it leave by {}, which is no uplink's",
                    name(ifindex)
                )),
            },
        });
    }
    let back = Sent { src: None, dst: packet.src, transport: None, tos: 0 };
    let reached = routing::leaves_by(&back).map_err(internal)?;
    let found = reached.and_then(|ifindex| Some((ifindex, managed(ifindex)?)));
    match found.filter(|(_, interface)| !is_uplink(interface)) {
        Some((ifindex, interface)) => Ok(Ok(Entrance { ifindex, interface, by_host: false, routed: true })),
        None => {
            let lans = names(desired, |interface| !is_uplink(interface));
            let how = reached
                .map_or_else(|| "has no route to it".to_owned(), |ifindex| format!("reaches it by {}", name(ifindex)));
            Err(ControlError::Invalid(format!(
                "{} is behind none of the LAN interfaces ({lans}): this machine {how}; name the interface with --interface",
                packet.src
            )))
        }
    }
}

fn names(desired: &Desired, which: impl Fn(&ManagedInterface) -> bool) -> String {
    let names: Vec<&str> = desired
        .interfaces
        .values()
        .filter(|interface| which(interface))
        .map(|interface| interface.name.as_str())
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(proto: &str, sport: Option<u16>, dport: Option<u16>) -> ExplainRequest {
        let (src, dst) = ("192.168.1.10".parse().unwrap(), "192.0.2.10".parse().unwrap());
        ExplainRequest { proto: proto.to_owned(), src, sport, dst, dport, interface: None, dscp: None }
    }

    #[test]
    fn packets_have_the_ports_that_their_protocol_has() {
        for (proto, sport, dport, expected) in [
            ("tcp", Some(1), Some(2), Ok((6, 2))),
            ("UDP", None, Some(2), Ok((17, 2))),
            ("icmp", Some(7), None, Ok((1, 0))),
            ("47", None, None, Ok((47, 0))),
            ("tcp", Some(1), None, Err("192.0.2.10:443")),
            ("udp", Some(1), Some(0), Err("udp needs")),
            ("icmp", None, Some(1), Err("no destination port")),
            ("gre", None, None, Err("\"gre\"")),
            ("256", None, None, Err("\"256\"")),
            ("47", Some(1), None, Err("protocol 47 has no ports")),
        ] {
            let packet = Packet::new(&request(proto, sport, dport));
            match expected {
                Ok(expected) => assert_eq!(packet.map(|p| (p.protocol, p.dport)), Ok(expected), "{proto}"),
                Err(word) => assert!(packet.clone().unwrap_err().to_string().contains(word), "{packet:?}"),
            }
        }
        let asked = |proto, sport, dport| Packet::new(&request(proto, sport, dport)).unwrap().asked_sport;
        assert_eq!((asked("tcp", Some(7), Some(2)), asked("tcp", None, Some(2))), (7, 49_152));
        assert_eq!((asked("udp", None, Some(2)), asked("icmp", None, None), asked("47", None, None)), (49_152, 0, 0));
        let refused = |request| Packet::new(&request).unwrap_err().to_string();
        let six = ExplainRequest { src: "2001:db8::1".parse().unwrap(), ..request("tcp", None, Some(1)) };
        assert!(refused(six).contains("IPv6"));
        assert!(refused(ExplainRequest { dscp: Some(64), ..request("tcp", None, Some(1)) }).contains("63"));
    }
}

//! The datapath's answer about a packet in words: a sentence for each step, in the order in which it decides.
//!
//! The answer says what decided; the words for it are those of the configuration and of the uplinks' states that are in force.

use std::net::Ipv4Addr;

use mh_common::{
    abi,
    policy::{Explanation, NO_SLOT, NO_UPLINK, explained, uplink_of},
    rules::Action,
    slots,
    verdict::Verdict,
    wire,
};

use super::{
    explain::{Entrance, Packet, label},
    ruling::{prefix, set_word},
};
use crate::{
    config::{self, Addresses, Config, PortRange},
    control::api::{self, Member, Policy, UplinkState},
    core::{Desired, UplinkView},
};

/// What there is to say about an answer.
pub struct Reasons<'a> {
    /// What was asked.
    pub packet: &'a Packet,
    /// How it comes to the datapath.
    pub entrance: &'a Entrance<'a>,
    /// The answer.
    pub answer: &'a Explanation,
    /// Its verdict.
    pub verdict: Verdict,
    /// The configuration in force.
    pub config: &'a Config,
    /// What is in force.
    pub desired: &'a Desired,
    /// The rule that matches.
    pub rule: Option<&'a config::Rule>,
    /// The uplink that it gets.
    pub uplink: Option<&'a UplinkView>,
    /// The policy that decides, if it has a name.
    pub policy: Option<&'a Policy>,
}

impl Reasons<'_> {
    /// The sentences.
    pub fn list(&self) -> Vec<String> {
        let mut why = vec![self.entrance()];
        if self.has(explained::FLOW) {
            why.push(format!(
                "it belongs to a flow that exists, which has {}: rules and policies are for new ones",
                self.uplink_name()
            ));
            why.push(match self.verdict {
                Verdict::Reset => {
                    format!("{} is down, or has lost the flow's address: the sender gets a RST", self.uplink_name())
                }
                _ => self.leaves("it leaves"),
            });
            return why;
        }
        why.push("it belongs to no flow that exists".to_owned());
        if !self.has(explained::RULE) {
            why.extend(self.unasked());
            return why;
        }
        if !self.entrance.by_host {
            why.push(format!("the kernel would route {} to an uplink", self.packet.dst));
        }
        let port_asked = self.config.rules.iter().any(|rule| !rule.from_ports.is_empty());
        if self.packet.assumes_port() && port_asked {
            let port = self.packet.asked_sport;
            why.push(format!("rules ask for source ports, and none was given: {port} stands for it"));
        }
        why.push(self.matched());
        if self.rule_decides(&mut why) {
            return why;
        }
        if self.has(explained::RESTORED) {
            why.push(format!("what is left of its flow says that it has {}", self.uplink_name()));
            why.push(self.leaves("it leaves"));
            return why;
        }
        self.chosen(&mut why);
        match self.verdict {
            Verdict::New if self.entrance.by_host => {
                why.push(self.translated());
                why.push(
                    "unless its socket is bound to an address or an interface, which is then the way it goes"
                        .to_owned(),
                );
            }
            Verdict::New => why.push(self.translated()),
            Verdict::NoUplink => {
                why.extend(self.uplink.map(|view| format!("{} has no source address", view.name)));
                why.push("it is refused with ICMP type 3 code 13".to_owned());
            }
            _ => why.push(self.by_source()),
        }
        why
    }

    const fn has(&self, flag: u8) -> bool {
        self.answer.flags & flag != 0
    }

    fn name_of(&self, index: u8) -> &str {
        let view = self.desired.views.iter().find(|view| view.index == index);
        view.map_or("an uplink that is configured no more", |view| &view.name)
    }

    fn uplink_name(&self) -> &str {
        self.uplink.map_or("an uplink that is configured no more", |view| &view.name)
    }

    fn entrance(&self) -> String {
        let Entrance { interface, by_host, routed, .. } = self.entrance;
        let name = &interface.name;
        let uplinks = || format!("{name}, the interface of {}", self.name_of(interface.interface.uplink));
        match (by_host, routed) {
            (true, true) => format!("this machine itself sends it: its routing has it leave by {}", uplinks()),
            (true, false) => format!("this machine itself sends it by {}", uplinks()),
            (false, _) if interface.interface.role == abi::ROLE_UPLINK => format!("it comes in by {}", uplinks()),
            (false, true) => format!("it comes in by {name}, by which this machine reaches {}", self.packet.src),
            (false, false) => format!("it comes in by {name}"),
        }
    }

    /// What became of a packet for which no rule was asked.
    fn unasked(&self) -> Vec<String> {
        let Packet { src, dst, dport, .. } = self.packet;
        match self.verdict {
            Verdict::Hairpin => vec![format!("{dst}:{dport} is an inside host's, seen from outside: it goes there")],
            Verdict::NotForUplink if self.desired.local.contains(dst) => {
                vec![format!("{dst} is this machine's own address: it is left to the kernel")]
            }
            Verdict::NotForUplink => {
                vec![format!("the kernel routes {dst} elsewhere than to an uplink: it is left to the kernel")]
            }
            Verdict::NoFlow => {
                vec![
                    "what comes in by an uplink is left to the kernel, unless a port forward or a binding takes it"
                        .to_owned(),
                ]
            }
            Verdict::Host | Verdict::HostUntouched => {
                let own = self.entrance.interface.interface.uplink;
                let owners = self.desired.outside.get(src).copied().unwrap_or_default();
                let why = if !self.config.datapath.host_traffic {
                    "host_traffic is off: what this machine begins itself is not steered".to_owned()
                } else if owners == 0 {
                    format!("{src} is not an uplink's address: whoever sends from it means it")
                } else if owners & 1 << own == 0 {
                    format!(
                        "{src} is not what the kernel would choose here, and its uplink is up: whoever sends from it means it"
                    )
                } else {
                    format!("{dst} is on the link of {}", self.name_of(own))
                };
                vec![why, self.by_source()]
            }
            other => vec![format!("such packets are not steered: {}", other.name())],
        }
    }

    /// Which rule matches, and by what.
    fn matched(&self) -> String {
        let Some(rule) = self.rule else {
            return match self.config.rules.len() {
                0 => "there are no rules".to_owned(),
                1 => "the only rule does not match".to_owned(),
                many => format!("none of the {many} rules matches"),
            };
        };
        let number = u32::from(self.answer.rule.number) + 1;
        let name = if rule.name.is_some() {
            format!("rule {number} ({})", label(rule, number))
        } else {
            format!("rule {number}")
        };
        let what = self.conditions(rule);
        let what = if what.is_empty() { "it asks for nothing".to_owned() } else { what.join(", ") };
        format!("{name} is the first that matches: {what}")
    }

    /// What of each condition holds.
    fn conditions(&self, rule: &config::Rule) -> Vec<String> {
        let packet = self.packet;
        let mut list = Vec::new();
        let mut condition = |name: &str, asked: bool, holds: Option<String>| {
            list.extend(holds.filter(|_| asked).map(|what| format!("{name} {what}")));
        };
        condition("from", !rule.from.is_any(), self.within(&rule.from, packet.src));
        condition("to", !rule.to.is_any(), self.within(&rule.to, packet.dst));
        condition("protocol", !rule.protocols.is_empty(), Some(api::protocol_name(packet.protocol)));
        let port =
            |ranges: &[PortRange], port| ranges.iter().find(|range| range.contains(port)).map(ToString::to_string);
        condition("from_port", true, port(&rule.from_ports, packet.asked_sport));
        condition("to_port", true, port(&rule.to_ports, packet.dport));
        let name = &self.entrance.interface.name;
        let pattern = rule.interfaces.iter().find(|pattern| pattern.matches(name));
        condition("interface", true, pattern.map(ToString::to_string));
        condition("dscp", !rule.dscp.is_empty(), Some(packet.dscp.to_string()));
        list
    }

    /// The prefix or the set that contains the address.
    fn within(&self, addresses: &Addresses, address: Ipv4Addr) -> Option<String> {
        if let Some(found) = addresses.prefixes.iter().find(|prefix| prefix.contains(&address)) {
            return Some(prefix(found));
        }
        let mut sets = addresses.sets.iter().filter_map(|set| self.config.sets.get(*set));
        sets.find_map(|set| {
            let found = set.prefixes.iter().find(|prefix| prefix.contains(&address))?;
            Some(format!("{} ({})", set_word(&set.name), prefix(found)))
        })
    }

    /// Says what the rule does with the packet if it needs no uplink; returns whether that is all.
    fn rule_decides(&self, why: &mut Vec<String>) -> bool {
        let action = self.answer.rule.action;
        let what = match action {
            _ if action == Action::Direct as u8 => "it is left to the kernel (direct)",
            _ if action == Action::Reject as u8 => "it is refused with ICMP type 3 code 13 (reject)",
            _ if action == Action::Drop as u8 => "it is dropped (drop)",
            _ => return false,
        };
        why.push(what.to_owned());
        if self.verdict == Verdict::Host || self.verdict == Verdict::HostUntouched {
            why.push(self.by_source());
        }
        true
    }

    /// Whether the uplink was chosen: what the machine itself sends leaves by one even if no policy gives it any.
    fn is_chosen(&self) -> bool {
        if self.entrance.by_host { self.verdict == Verdict::New } else { self.uplink.is_some() }
    }

    /// How an uplink was chosen, or why none was.
    fn chosen(&self, why: &mut Vec<String>) {
        let Packet { src, dst, .. } = self.packet;
        if self.has(explained::ON_LINK) {
            why.push(match self.uplink {
                Some(view) => format!("{dst} is on the link of {}: it leaves there, whatever the policy", view.name),
                None => format!("{dst} is on the link of an uplink that is down"),
            });
            return;
        }
        if let Some(index) = uplink_of(self.answer.rule.policy) {
            let takes = if self.is_chosen() {
                "takes it".to_owned()
            } else {
                format!("does not take it: {}", self.state_of(self.name_of(index)))
            };
            why.push(format!("it is for {} and no other uplink, which {takes}", self.name_of(index)));
            return;
        }
        let Some(policy) = self.policy else { return };
        why.push(format!("policy {} goes by {}", policy.name, hashed(&policy.hash)));
        why.extend(self.tiers(policy));
        if !self.is_chosen() {
            why.push(format!("no uplink of policy {} takes new flows", policy.name));
            return;
        }
        let keeps = format!("{} s after its last flow", policy.sticky_s);
        if self.has(explained::STICKY) {
            why.push(format!("{src} has {} from an earlier flow, and keeps it until {keeps}", self.uplink_name()));
            return;
        }
        let slot = self.answer.slot;
        let (uplink, passed_over) = (self.uplink_name(), self.answer.passed_over);
        why.push(match (slot, passed_over) {
            (NO_SLOT, _) => format!("no slot is an uplink's that takes it: {uplink} is one of those that are left"),
            (_, NO_UPLINK) => format!("the hash gives slot {slot} of {}, which is {uplink}'s", slots::SLOTS),
            (..) => format!(
                "the hash's own slot is {}'s, which does not take it; the next try is slot {slot}, which is {uplink}'s",
                self.name_of(passed_over)
            ),
        });
        if self.packet.assumes_port() && policy.hash == config::HashMode::Flow.as_str() {
            why.push(format!(
                "the source port counts in the hash, and {} stands for it here: flows get others, and other slots",
                self.packet.asked_sport
            ));
        }
        if policy.sticky_s > 0.0 {
            why.push(format!("{src} would keep {uplink} until {keeps}"));
        }
    }

    /// Which tiers of a policy get new flows, and why the others don't.
    fn tiers(&self, policy: &Policy) -> Vec<String> {
        let active = |tier: &[Member]| tier.iter().any(|member| member.share > 0.0);
        let mut before = true;
        let mut lines = Vec::new();
        for (number, tier) in policy.tiers.iter().enumerate() {
            let out = |member: &&Member| member.state != UplinkState::Up;
            let missing: Vec<String> = tier
                .iter()
                .filter(out)
                .map(|member| match member.state {
                    UplinkState::Disabled => format!("{} has weight 0", member.uplink),
                    _ => self.state_of(&member.uplink),
                })
                .collect();
            if active(tier) {
                before = false;
                let shares = tier.iter().filter(|member| member.share > 0.0);
                let shares: Vec<String> =
                    shares.map(|member| format!("{} {:.1} %", member.uplink, member.share * 100.0)).collect();
                let missing = if missing.is_empty() { String::new() } else { format!("; {}", missing.join(", ")) };
                let fill = policy.fill.get(number).copied().flatten();
                let later = policy.tiers.get(number + 1..).unwrap_or_default();
                let spilled = match fill {
                    Some(fill) if policy.spill.is_some() && later.iter().any(|tier| active(tier)) => {
                        format!("; it is {:.1} % full, and some spill over", fill * 100.0)
                    }
                    _ => String::new(),
                };
                lines.push(format!("tier {number} gets new flows: {}{missing}{spilled}", shares.join(", ")));
            } else if before {
                lines.push(format!("tier {number} gets none: {}", missing.join(", ")));
            } else {
                let names: Vec<&str> = tier.iter().map(|member| member.uplink.as_str()).collect();
                let until = policy.spill.map_or_else(
                    || "when those before it are lost".to_owned(),
                    |spill| {
                        let percent = (spill * 1e4).round() / 1e2;
                        format!("when those before it are lost, or {percent} % full")
                    },
                );
                lines.push(format!("tier {number} ({}) gets none: its turn is {until}", names.join(", ")));
            }
        }
        lines
    }

    /// An uplink's state, and why.
    fn state_of(&self, name: &str) -> String {
        let view = self.desired.views.iter().find(|view| view.name == name);
        view.map_or_else(|| format!("{name} is gone"), |view| format!("{name} is {} ({})", view.state, view.reason))
    }

    /// With which source a new flow leaves.
    fn translated(&self) -> String {
        let name = self.uplink_name();
        if self.has(explained::BINDING) {
            return self.leaves("its source port has a binding: it leaves");
        }
        let addresses: u32 = self.uplink.map_or(0, |view| view.addresses.iter().map(|range| range.count).sum());
        let nat = self.config.uplinks.iter().any(|uplink| uplink.name == name && uplink.nat);
        let of = if addresses > 1 {
            format!(", of the {addresses} of {name} the one for {}", self.packet.src)
        } else {
            String::new()
        };
        match (nat, self.source()) {
            (false, _) => format!("{name} does not translate: it leaves as it is"),
            (true, Some(address)) => format!("it leaves by {name} with source {address}{of}"),
            (true, None) => format!("it leaves by {name}"),
        }
    }

    /// Which way a packet of the machine itself goes that is not steered.
    fn by_source(&self) -> String {
        let name = self.uplink_name();
        if self.has(explained::SOURCE) {
            return format!("{} is an address of {name}: it leaves by that", self.packet.src);
        }
        format!("it leaves by {name}, as the kernel's routing says")
    }

    fn source(&self) -> Option<Ipv4Addr> {
        let word = self.answer.address[0];
        (word != 0).then(|| Ipv4Addr::from(word.to_ne_bytes()))
    }

    fn leaves(&self, how: &str) -> String {
        let port = u16::from_be(self.answer.port);
        let name = self.uplink_name();
        match self.source() {
            Some(address) if wire::has_ports(self.packet.protocol) => {
                format!("{how} by {name} with source {address}:{port}")
            }
            Some(address) => format!("{how} by {name} with source {address}"),
            None => format!("{how} by {name}"),
        }
    }
}

/// What a hash mode looks at.
fn hashed(mode: &str) -> &'static str {
    match config::HashMode::from_word(mode) {
        Some(config::HashMode::Source) => "the source address (hash = \"source\")",
        Some(config::HashMode::SourceDestination) => "both addresses (hash = \"source-destination\")",
        _ => "addresses, ports and protocol (hash = \"flow\")",
    }
}

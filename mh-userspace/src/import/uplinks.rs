//! From interfaces of mwan3 to `[uplink.NAME]`, with their tracking as probes.

use std::net::Ipv4Addr;

use super::mwan3::{Interface, Method, Quality};
use super::network::{NetInterface, Network, is_device};
use super::note::Note;
use super::output::{Item, Names, string, strings, unique_within};
use super::uci::{Word, clipped};
use super::{Fault, fault};
use crate::config::{
    Check, MAX_INTERFACE_NAME, MAX_INTERVAL, MAX_OVERLAP, MAX_ROUNDS, MAX_TARGETS, MAX_TIMEOUT, MAX_UPLINKS,
    ProbeTarget, not_unicast,
};

/// The fewest rounds over which loss is a percentage worth the name.
const LEAST_WINDOW: u64 = 20;

/// The port that nping asks if none is given.
const NPING_TCP_PORT: u16 = 80;

/// What became of the interfaces.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    pub(super) items: Vec<Item>,
    /// Of each interface by its name in mwan3, in file order.
    pub(super) places: Vec<(String, Place)>,
}

/// What became of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// An uplink.
    Uplink { name: String, device: String },
    /// Nothing: it is not enabled.
    Disabled,
    /// Nothing: it is of IPv6.
    Ipv6,
    /// Nothing: its device is another uplink's.
    Shared,
}

impl Uplinks {
    /// The uplink that was an interface of mwan3; `None`: there was no such interface.
    pub(super) fn of(&self, interface: &str) -> Option<&Place> {
        self.places.iter().find(|(name, _)| name == interface).map(|(_, place)| place)
    }

    /// Is `device` the device of an uplink?
    pub(super) fn has(&self, device: &str) -> bool {
        self.places.iter().any(|(_, place)| matches!(place, Place::Uplink { device: other, .. } if other == device))
    }

    fn count(&self) -> usize {
        self.places.iter().filter(|(_, place)| matches!(place, Place::Uplink { .. })).count()
    }
}

/// Brings the interfaces over.
pub(super) fn uplinks(interfaces: Vec<Interface>, network: Option<&Network>) -> Result<Uplinks, Fault> {
    let mut uplinks = Uplinks::default();
    let mut names = Names::default();
    for interface in interfaces {
        let known = interface.name.clone();
        let is_new = uplinks.of(&known).is_none();
        let (item, place) = uplink(interface, network, &mut names, &uplinks)?;
        uplinks.items.push(item);
        if is_new {
            uplinks.places.push((known, place));
        }
    }
    Ok(uplinks)
}

fn uplink(
    interface: Interface,
    network: Option<&Network>,
    names: &mut Names,
    before: &Uplinks,
) -> Result<(Item, Place), Fault> {
    let shown = clipped(&interface.name);
    let line = interface.line;
    let mut notes = Vec::new();
    let left_out = |place, why: &str| {
        let note = Note::new(line, format!("interface {shown} is left out: {why}"));
        Ok((Item::left_out(vec![note]), place))
    };
    if interface.is_ipv6 {
        return left_out(Place::Ipv6, "it is of IPv6, which is not supported by this version of mh yet");
    }
    let device = match network.map(|network| network.device(&interface.name)) {
        Some(Ok(device)) => {
            let owner = before
                .places
                .iter()
                .find(|(_, place)| matches!(place, Place::Uplink { device: other, .. } if *other == device));
            if let Some((owner, _)) = owner {
                return left_out(
                    Place::Shared,
                    &format!("its device {device} is that of interface {} already", clipped(owner)),
                );
            }
            device
        }
        Some(Err(why)) => {
            notes.push(why);
            notes.push(Note::new(
                line,
                format!("interface {shown}: its device is not known; write its name at interface"),
            ));
            placeholder(&interface.name, before)
        }
        None => {
            let text = format!(
                "interface {shown}: interface is OpenWrt's name; write that of the device, or import with --network /etc/config/network"
            );
            notes.push(Note::new(line, text));
            placeholder(&interface.name, before)
        }
    };
    let name = names.unique(&interface.name);
    if name != interface.name {
        notes.push(Note::new(line, format!("interface {shown} is called {name}")));
    }
    let mut item = Item { lines: vec![format!("[uplink.{name}]")], ..Item::default() };
    item.key("interface", string(&device));
    if let Some(known) = network.and_then(|network| network.interface(&interface.name)) {
        fixed_addresses(known, &mut item, &mut notes);
    }
    if interface.flushes.is_some() {
        item.key("on_down", string("reset"));
    }
    let is_enabled = interface.enabled;
    probe(&name, &interface, &mut item, &mut notes);
    notes.extend(interface.notes);
    item.notes = notes;
    if !is_enabled {
        item.is_comment = true;
        // What came over in another form matters to those who make use of it.
        item.notes = vec![Note::new(
            line,
            format!(
                "interface {shown} is left out: it is not enabled; to use it, make this no comment and add it to tiers"
            ),
        )];
        return Ok((item, Place::Disabled));
    }
    if before.count() == MAX_UPLINKS {
        let what = format!("interface {shown} is one too many: mh has at most {MAX_UPLINKS} uplinks");
        return Err(fault(line, format!("{what}; disable some of them")));
    }
    Ok((item, Place::Uplink { name, device }))
}

/// A name for a device that is not known.
fn placeholder(interface: &str, before: &Uplinks) -> String {
    let valid: String = interface
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' })
        .collect();
    let valid = if is_device(valid.get(..valid.len().min(MAX_INTERFACE_NAME)).unwrap_or_default()) {
        valid
    } else {
        format!("_{valid}")
    };
    unique_within(&valid, MAX_INTERFACE_NAME, |name| !before.has(name))
}

/// A static address and its gateway.
fn fixed_addresses(known: &NetInterface, item: &mut Item, notes: &mut Vec<Note>) {
    let shown = clipped(&known.name);
    let mut note = |line, text: String| notes.push(Note::of_network(line, format!("interface {shown}: {text}")));
    if known.disabled {
        note(known.line, "it is disabled; the uplink is down until it has a link".to_owned());
    }
    if known.proto != "static" {
        return;
    }
    let mut unicast = |what: &str, word: &Word| match word.text.parse::<Ipv4Addr>() {
        Ok(address) if not_unicast(address).is_none() => Some(address),
        _ => {
            note(word.line, format!("{what} {:?} is no address of one machine, and is left out", clipped(&word.text)));
            None
        }
    };
    let address = known.addresses.first().and_then(|word| unicast("ipaddr", word));
    let gateway = known.gateway.as_ref().and_then(|word| unicast("gateway", word));
    if let Some(word) = known.addresses.get(1) {
        note(word.line, format!("only the first address is used; for a pool add {} to address", clipped(&word.text)));
    }
    if let Some(gateway) = gateway.filter(|gateway| Some(*gateway) != address) {
        item.key("gateway", string(&gateway.to_string()));
    } else if let (Some(word), true) = (&known.gateway, gateway.is_some()) {
        note(word.line, "gateway is the interface's own address, and is left out".to_owned());
    }
    if let Some(address) = address {
        item.key("address", string(&address.to_string()));
    }
}

/// The tracking of an interface.
fn probe(name: &str, interface: &Interface, item: &mut Item, notes: &mut Vec<Note>) {
    let shown = clipped(&interface.name);
    let mut note = |line, text: String| notes.push(Note::new(line, format!("interface {shown}: {text}")));
    if interface.reliability == 0 && !interface.targets.is_empty() {
        note(interface.line, "reliability is 0, so that tracking never fails; it is left out".to_owned());
        return;
    }
    let targets = targets(interface, &mut note);
    let Ok(count @ 1..) = u64::try_from(targets.len()) else { return };
    let mut within = |what: &str, value: u64, least: u64, most: u64| {
        let clamped = value.clamp(least, most);
        if clamped != value {
            note(interface.line, format!("{what} is {value}, out of mh's range; {clamped} takes its place"));
        }
        clamped
    };
    let quorum = within("reliability", interface.reliability, 1, count);
    let interval_s = within("interval", interface.interval_s, 1, MAX_INTERVAL.as_secs());
    let most_s = MAX_TIMEOUT.as_secs().min(interval_s * u64::from(MAX_OVERLAP));
    let timeout_s = within("timeout", interface.timeout_s, 1, most_s);
    let down = within("down", interface.down, 1, u64::from(MAX_ROUNDS));
    let up = within("up", interface.up, 1, u64::from(MAX_ROUNDS));
    if interface.count > 1 && interface.quality.is_none() {
        note(
            interface.line,
            format!("count is {}, which is left out: every round asks each target once", interface.count),
        );
    }
    item.lines.extend([String::new(), format!("[uplink.{name}.probe]")]);
    item.key("targets", strings(targets.iter().map(String::as_str)));
    item.key("quorum", quorum);
    item.key("interval", string(&format!("{interval_s}s")));
    item.key("timeout", string(&format!("{timeout_s}s")));
    item.key("down", down);
    item.key("up", up);
    if let Some(quality) = interface.quality {
        let window = interface.count.saturating_mul(down).clamp(LEAST_WINDOW, u64::from(MAX_ROUNDS));
        limits(quality, timeout_s * 1000, window, item, |text| note(interface.line, text));
    }
}

/// `check_quality` as limits of loss and latency.
fn limits(quality: Quality, timeout_ms: u64, window: u64, item: &mut Item, mut note: impl FnMut(String)) {
    let Quality { failure_latency_ms, recovery_latency_ms, failure_loss_percent, recovery_loss_percent } = quality;
    let mut has_limit = false;
    match failure_loss_percent {
        1..=100 => {
            // mwan3's is good with so much, mh's below it.
            let warn =
                if recovery_loss_percent == 0 { "0.01%".to_owned() } else { format!("{recovery_loss_percent}%") };
            let down = string(&format!("{failure_loss_percent}%"));
            item.key("loss", format!("{{ window = {window}, warn = {}, down = {down} }}", string(&warn)));
            has_limit = true;
        }
        other => note(format!("failure_loss is {other}, which is left out: it has to be 1 to 100")),
    }
    if (1..=timeout_ms).contains(&failure_latency_ms) {
        let (warn, down) = (recovery_latency_ms.max(1), failure_latency_ms);
        item.key("latency", format!("{{ window = {window}, warn = \"{warn}ms\", down = \"{down}ms\" }}"));
        has_limit = true;
    } else {
        note(format!(
            "failure_latency is {failure_latency_ms}, which is left out: it has to be 1 to the timeout, {timeout_ms} ms"
        ));
    }
    if has_limit {
        note(format!(
            "check_quality looks at the last {window} rounds, of one probe each, and no more at the probes of one round"
        ));
    }
}

/// The URLs of what is tracked, without those that mh can't ask.
fn targets(interface: &Interface, note: &mut impl FnMut(usize, String)) -> Vec<String> {
    let mut targets: Vec<String> = Vec::new();
    let mut checks: Vec<Check> = Vec::new();
    for word in &interface.targets {
        let host = &word.text;
        let url = match interface.method {
            Method::Httping { tls: false } => format!("http://{host}"),
            Method::Httping { tls: true } => format!("https://{host}"),
            Method::NpingTcp => format!("tcp://{host}:{NPING_TCP_PORT}"),
            Method::Ping | Method::Arping | Method::NpingUdp | Method::NpingIcmp | Method::NpingArp => {
                format!("icmp://{host}")
            }
        };
        match url.parse::<ProbeTarget>() {
            Err(error) => note(word.line, format!("track_ip {:?} is left out: {error}", clipped(host))),
            Ok(target) if checks.contains(target.check()) => {}
            Ok(_) if targets.len() == MAX_TARGETS => {
                note(
                    word.line,
                    format!("track_ip {host} is left out: mh has at most {MAX_TARGETS} targets for an uplink"),
                );
            }
            Ok(target) => {
                checks.push(target.check().clone());
                targets.push(url);
            }
        }
    }
    if targets.is_empty() {
        return targets;
    }
    let text = match interface.method {
        Method::Ping | Method::NpingIcmp | Method::NpingTcp | Method::Httping { tls: false } => return targets,
        Method::Arping | Method::NpingArp => {
            "there is no probe by ARP: mh watches the gateway's neighbour entry anyway, and asks targets by ICMP echo"
        }
        Method::NpingUdp => {
            "there is no probe by UDP but DNS; targets are asked by ICMP echo, a DNS server may be asked as dns://ADDRESS/NAME"
        }
        Method::Httping { tls: true } => {
            "https wants a certificate that is valid for the address; for one of a name write https://NAME@ADDRESS"
        }
    };
    note(interface.line, text.to_owned());
    targets
}

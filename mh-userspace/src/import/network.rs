//! What an import takes from OpenWrt's config of the network: the devices, static addresses and gateways of interfaces, and which of them
//! are LANs.
//!
//! netifd names the devices of some protocols itself (`pppoe-wan`); those of others it learns when they come up, and so nothing here can
//! name them.

use std::net::Ipv4Addr;

use super::note::Note;
use super::uci::{Document, Section, Word, clipped};
use crate::config::InterfacePattern;

/// The package's name in UCI.
const PACKAGE: &str = "network";

/// How many aliases (`@wan`) may stand for each other.
const MAX_ALIASES: usize = 8;

/// Protocols of netifd whose devices are called PREFIX-INTERFACE.
const NAMED_BY_PROTOCOL: &[(&str, &str)] = &[
    ("pppoe", "pppoe"),
    ("pppoa", "pppoa"),
    ("ppp", "ppp"),
    ("pptp", "pptp"),
    ("l2tp", "l2tp"),
    ("sstp", "sstp"),
    ("3g", "3g"),
    ("openconnect", "vpn"),
    ("openfortivpn", "vpn"),
    ("vpnc", "vpn"),
    ("gre", "gre4"),
    ("gretap", "gre4t"),
    ("vti", "vti"),
    ("xfrm", "xfrm"),
];

/// Protocols whose devices have the interface's own name.
const NAMED_BY_INTERFACE: &[&str] = &["wireguard", "amneziawg", "openvpn", "vxlan"];

/// A config of the network.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) interfaces: Vec<NetInterface>,
}

/// `config interface`.
#[derive(Debug)]
pub(super) struct NetInterface {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) proto: String,
    pub(super) disabled: bool,
    /// Its addresses, without their prefix lengths.
    pub(super) addresses: Vec<Word>,
    pub(super) gateway: Option<Word>,
    is_bridge: bool,
    devices: Vec<Word>,
}

impl Network {
    /// Understands the interfaces in a file.
    pub(super) fn new(document: &Document) -> Self {
        let ours = |section: &&Section| {
            section.kind == "interface" && section.package.as_deref().is_none_or(|package| package == PACKAGE)
        };
        let interfaces = document.sections.iter().filter(ours).filter_map(|section| {
            let text = |option| section.value(option).map(|word| word.text.clone()).unwrap_or_default();
            let is_on = |option| matches!(text(option).as_str(), "1" | "on" | "true" | "yes" | "enabled");
            let without_length =
                |word: Word| Word { text: word.text.split('/').next().unwrap_or_default().to_owned(), line: word.line };
            let devices: Vec<Word> = section.values("device").collect();
            Some(NetInterface {
                name: section.name.clone()?,
                line: section.line,
                proto: text("proto"),
                disabled: is_on("disabled"),
                addresses: section.values("ipaddr").map(without_length).collect(),
                gateway: section.value("gateway").cloned(),
                is_bridge: text("type") == "bridge",
                // Up to OpenWrt 19.07 it was ifname.
                devices: if devices.is_empty() { section.values("ifname").collect() } else { devices },
            })
        });
        Self { interfaces: interfaces.collect() }
    }

    /// The interface `name`.
    pub(super) fn interface(&self, name: &str) -> Option<&NetInterface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The device that the interface `name` sends by, or why that is not known.
    pub(super) fn device(&self, name: &str) -> Result<String, Note> {
        self.device_of(name, 0)
    }

    fn device_of(&self, name: &str, aliases: usize) -> Result<String, Note> {
        let unknown = |line, why: String| Err(Note::of_network(line, format!("interface {}: {why}", clipped(name))));
        let Some(interface) = self.interface(name) else {
            return unknown(1, "the file has no such interface".to_owned());
        };
        let line = interface.line;
        let proto = interface.proto.as_str();
        let device = if let Some((_, prefix)) = NAMED_BY_PROTOCOL.iter().find(|(known, _)| *known == proto) {
            format!("{prefix}-{name}")
        } else if NAMED_BY_INTERFACE.contains(&proto) {
            name.to_owned()
        } else if interface.is_bridge {
            format!("br-{name}")
        } else {
            let Some(device) = interface.devices.first() else {
                return unknown(line, "it has no device".to_owned());
            };
            if let Some(of) = device.text.strip_prefix('@') {
                if aliases == MAX_ALIASES {
                    return unknown(device.line, "it is an alias of an alias of itself".to_owned());
                }
                return self.device_of(of, aliases + 1);
            }
            if device.text.starts_with('/') {
                return unknown(device.line, format!("proto {} names its device when it comes up", clipped(proto)));
            }
            device.text.clone()
        };
        if is_device(&device) {
            Ok(device)
        } else {
            unknown(line, format!("{:?} is no name of a device", clipped(&device)))
        }
    }

    /// Is the interface one that gives machines behind it an address to go to?
    pub(super) fn is_lan(interface: &NetInterface) -> bool {
        let is_loopback = interface.addresses.first().and_then(|word| word.text.parse().ok());
        interface.proto == "static"
            && !interface.disabled
            && interface.gateway.is_none()
            && !interface.addresses.is_empty()
            && !is_loopback.is_some_and(|address: Ipv4Addr| address.is_loopback())
    }
}

/// Can mh use a device of this name?
pub(super) fn is_device(name: &str) -> bool {
    !name.contains('*') && name.parse::<InterfacePattern>().is_ok()
}

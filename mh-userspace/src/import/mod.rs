//! Configs of other programs, brought over: mwan3's, the multi-WAN package of OpenWrt.
//!
//! [`mwan3`](mwan3()) takes the text of `/etc/config/mwan3`, and if there is one that of `/etc/config/network`, and makes mh's TOML of it. It
//! looks at nothing else: neither at the machine nor at mhd. What has no equivalent, or came over in another form, is a [`Note`] and a
//! comment in the TOML right where it belongs. `docs/import.md` lists every option.
//!
//! `uci` reads the format, `mwan3` and `network` understand the two files, `uplinks`, `policies` and `rules` turn their sections into mh's, and
//! `output` writes TOML.
//!
//! Invariant: TOML that comes out is a config that [`config::parse`] accepts; that is looked at here each time. Failure behaviour: a
//! file that is not UCI, or of which no config can come (no interface of IPv4 is enabled, or more of something than mh has room for), is an
//! [`ImportError`] with file, line and mend.

mod mwan3;
mod network;
mod note;
mod output;
mod policies;
mod rules;
#[cfg(test)]
mod tests;
mod uci;
mod uplinks;

use self::mwan3::{LastResort, Mwan3, PACKAGE, Rule};
use self::network::{Network, is_device};
pub use self::note::{Note, Source};
use self::output::{Item, Names, Output, string, strings};
use self::policies::Policies;
use self::rules::Conditions;
pub use self::uci::MAX_BYTES;
use self::uci::{Document, Word, clipped};
use self::uplinks::{Place, Uplinks};
use crate::config::{self, MAX_PORT_RANGES, MAX_RULES, MAX_SETS};

/// OpenWrt's interface of the LAN.
const LAN: &str = "lan";

/// The device of [`LAN`] where nothing else is known.
const LAN_DEVICE: &str = "br-lan";

/// What stands for the prefixes of an ipset, which are in no config: no flow leaves to this address.
const NO_PREFIX: &str = "255.255.255.255/32";

/// The name of the rule for what no rule of mwan3 matches.
const UNMATCHED: &str = "unmatched";

/// Why nothing could be brought over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// A file is wrong.
    #[error("{message}")]
    File {
        /// Which.
        source_file: Source,
        /// The line, from 1.
        line: usize,
        /// What is wrong there, and the mend.
        message: String,
    },
    /// What came out is no config of mh's.
    #[error("this makes a config that mh does not accept, which is a fault of mh's; report it with the file: {0}")]
    Refused(config::Faults),
}

/// Something of mwan3's config with which no config can come out.
type Fault = ImportError;

fn fault(line: usize, message: String) -> Fault {
    ImportError::File { source_file: Source::Mwan3, line, message }
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// mh's config.
    pub toml: String,
    /// What has no equivalent or came over in another form, in the order in which it is in the TOML.
    pub notes: Vec<Note>,
    /// How much there is of what.
    pub counts: Counts,
}

/// How much came over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Uplinks.
    pub uplinks: usize,
    /// Policies, that for what no rule matches included where it is written.
    pub policies: usize,
    /// Rules.
    pub rules: usize,
    /// Sets.
    pub sets: usize,
}

/// Turns mwan3's config, and the network's for devices and addresses, into mh's.
///
/// # Errors
/// A file is not UCI, or no config can come of it.
pub fn mwan3(bytes: &[u8], network: Option<&[u8]>) -> Result<Imported, ImportError> {
    let read = |source_file, bytes: &[u8]| {
        uci::parse(bytes).map_err(|error| ImportError::File {
            source_file,
            line: error.line,
            message: error.to_string(),
        })
    };
    let document = read(Source::Mwan3, bytes)?;
    let network =
        network.map(|bytes| read(Source::Network, bytes)).transpose()?.map(|document| Network::new(&document));
    let config = Mwan3::new(&document);
    check_usable(&document, &config)?;
    let imported = translate(config, network.as_ref())?;
    config::parse(&imported.toml).map_err(ImportError::Refused)?;
    Ok(imported)
}

/// Without an interface there is nothing to write.
fn check_usable(document: &Document, config: &Mwan3) -> Result<(), Fault> {
    let usable = |interface: &mwan3::Interface| interface.enabled && !interface.is_ipv6;
    if config.interfaces.iter().any(usable) {
        return Ok(());
    }
    let looks_like_network =
        document.sections.iter().any(|section| section.get("proto").is_some() && section.kind == "interface");
    if looks_like_network {
        let mend = "name /etc/config/mwan3, and give this one by --network";
        return Err(fault(1, format!("this is the config of the network, not of mwan3; {mend}")));
    }
    let Some(first) = config.interfaces.first() else {
        return Err(fault(
            1,
            format!("there is no `config interface`; name a config of {PACKAGE}, such as /etc/config/{PACKAGE}"),
        ));
    };
    let what = "no interface of IPv4 is enabled, and a config needs one";
    Err(fault(first.line, format!("{what}; add option enabled '1' to those that are in use")))
}

fn translate(config: Mwan3, network: Option<&Network>) -> Result<Imported, Fault> {
    let Mwan3 { globals, interfaces, members, policies, rules, mut notes } = config;
    let uplinks = uplinks::uplinks(interfaces, network)?;
    notes.extend(members.iter().flat_map(|member| member.notes.iter().cloned()));
    let mut lan = Lan::new(network, &uplinks);
    let mut policies = Policies::new(policies, &members, &uplinks, &mut notes);
    let mut sets = Sets::default();
    let rules = translate_rules(rules, &mut policies, &mut sets, &mut lan, network, &uplinks)?;

    let policies = policies.items()?;
    let mut output = Output::default();
    let heads = |items: &[Item], header: &str| {
        items
            .iter()
            .filter(|item| !item.is_comment && item.lines.first().is_some_and(|line| line.starts_with(header)))
            .count()
    };
    let counts = Counts {
        uplinks: heads(&uplinks.items, "[uplink."),
        policies: heads(&policies, "[policy."),
        rules: heads(&rules, "[[rule]]"),
        sets: sets.items.len(),
    };
    output.add(Item { remarks: head(), notes, ..Item::default() });
    output.add(lan.item());
    output.add(datapath(globals));
    for item in uplinks.items.into_iter().chain(policies).chain(sets.items).chain(rules) {
        output.add(item);
    }
    Ok(Imported { toml: output.text, notes: output.notes, counts })
}

fn head() -> Vec<String> {
    [
        "Made by `mhctl import mwan3`. Comments with a line are about that line of mwan3's config (or of the network's).",
        "Probes keep mwan3's pace; with interval = \"500ms\", timeout = \"400ms\", down = 3 a dead uplink is left within 2 s.",
        "IPv6 is left to the kernel by this version of mh.",
    ]
    .map(str::to_owned)
    .into()
}

/// `[datapath]`, where there is something to say in it.
fn datapath(globals: mwan3::Globals) -> Item {
    let mut item = Item { notes: globals.notes, ..Item::default() };
    if globals.no_local_source {
        item.lines.push("[datapath]".to_owned());
        item.key("host_traffic", false);
    }
    let Some(mask) = globals.mask else { return item };
    let digits = mask.text.strip_prefix("0x").or_else(|| mask.text.strip_prefix("0X")).unwrap_or_default();
    let bits = u32::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let fits = |bits: &u32| {
        let run = bits.checked_shr(bits.trailing_zeros()).unwrap_or(0);
        run & run.wrapping_add(1) == 0 && run.count_ones() >= config::MIN_MARK_BITS
    };
    if let Some(bits) = bits.filter(fits) {
        if item.lines.is_empty() {
            item.lines.push("[datapath]".to_owned());
        }
        item.key("mark_mask", string(&format!("{bits:#010x}")));
    } else {
        let least = config::MIN_MARK_BITS;
        let what = format!(
            "globals: mmx_mask {} is left out: mh's mask is hexadecimal, one run of at least {least} bits",
            clipped(&mask.text)
        );
        item.notes.push(Note::new(mask.line, what));
    }
    item
}

/// The interfaces whose traffic is steered.
struct Lan {
    devices: Vec<String>,
    item: Item,
}

impl Lan {
    fn new(network: Option<&Network>, uplinks: &Uplinks) -> Self {
        let mut lan = Self { devices: Vec::new(), item: Item::default() };
        for interface in network.iter().flat_map(|network| &network.interfaces) {
            let Some(Ok(device)) = network.map(|network| network.device(&interface.name)) else { continue };
            if uplinks.of(&interface.name).is_some() || uplinks.has(&device) {
                continue;
            }
            if interface.name == LAN || Network::is_lan(interface) {
                lan.add(&device);
            } else if interface.addresses.is_empty() && matches!(interface.proto.as_str(), "" | "none") {
                // Without addresses nobody is routed by it.
            } else if !lan.devices.contains(&device) {
                let text = format!(
                    "interface {} is not in lan; mwan3 steers what comes in by it, so add {device} if that is wanted",
                    clipped(&interface.name)
                );
                lan.item.notes.push(Note::of_network(interface.line, text));
            }
        }
        if lan.devices.is_empty() {
            let device = output::unique_within(LAN_DEVICE, config::MAX_INTERFACE_NAME, |name| !uplinks.has(name));
            let why = if network.is_some() {
                "the config of the network names none"
            } else {
                "only the config of the network names them (--network)"
            };
            lan.item.remarks.push(format!("Write here the interfaces that traffic comes from: {why}."));
            lan.add(&device);
        }
        lan
    }

    fn add(&mut self, device: &str) {
        if !self.devices.iter().any(|other| other == device) {
            self.devices.push(device.to_owned());
        }
    }

    fn item(mut self) -> Item {
        self.item.key("lan", strings(self.devices.iter().map(String::as_str)));
        self.item
    }
}

/// The sets that stand for ipsets.
#[derive(Default)]
struct Sets {
    /// Names in mwan3 and here.
    known: Vec<(String, String)>,
    names: Names,
    items: Vec<Item>,
}

impl Sets {
    fn of(&mut self, ipset: &Word) -> Result<String, Fault> {
        if let Some((_, name)) = self.known.iter().find(|(known, _)| *known == ipset.text) {
            return Ok(name.clone());
        }
        if self.items.len() == MAX_SETS {
            return Err(fault(ipset.line, format!("there are more than {MAX_SETS} ipsets, the most of mh; use fewer")));
        }
        let name = self.names.unique(&ipset.text);
        let shown = clipped(&ipset.text);
        let text = format!(
            "ipset {shown}: what is in it is in no config; put it in place of {NO_PREFIX}, which matches nothing (`ipset list {shown}`), or in a \
             file that `file` names, and `mhctl reload` where it changes"
        );
        let mut item = Item { notes: vec![Note::new(ipset.line, text)], ..Item::default() };
        item.lines.push(format!("[set.{name}]"));
        item.key("prefixes", strings([NO_PREFIX]));
        self.items.push(item);
        self.known.push((ipset.text.clone(), name.clone()));
        Ok(name)
    }
}

/// What a rule of mwan3 uses.
enum Action {
    Policy(usize),
    Word(&'static str),
}

/// Brings the rules over. The first that matches everything ends them: mh's default policy is for what no rule matches.
fn translate_rules(
    rules: Vec<Rule>,
    policies: &mut Policies,
    sets: &mut Sets,
    lan: &mut Lan,
    network: Option<&Network>,
    uplinks: &Uplinks,
) -> Result<Vec<Item>, Fault> {
    // mwan3's traffic that no rule matches is the kernel's.
    let mut names = Names::default();
    let mut kept: Vec<(Item, Option<(usize, u64)>)> = Vec::new();
    let mut last: Option<(String, usize)> = None;
    let mut totals = Totals::default();
    for mut rule in rules {
        let shown = clipped(&rule.name);
        let mut notes = std::mem::take(&mut rule.notes);
        let line = rule.line;
        let mut note = |line, text: String| notes.push(Note::new(line, format!("rule {shown}: {text}")));
        let conditions = rules::conditions(&rule, &mut note).and_then(|conditions| {
            if rule.name.len() > mwan3::MAX_NAME {
                return Err(mwan3::ignored_for_name());
            }
            if let Some((last, last_line)) = &last {
                return Err(format!("rule {last} in line {last_line} matches everything before it"));
            }
            let action = action(&rule, policies, &mut note)?;
            let device = source_device(&conditions, lan, network, uplinks, &mut note)?;
            Ok((conditions, action, device))
        });
        let (conditions, action, device) = match conditions {
            Ok(parts) => parts,
            Err(why) => {
                notes.push(Note::new(line, format!("rule {shown} is left out: {why}")));
                kept.push((Item { notes, lines: rule.written, is_comment: true, ..Item::default() }, None));
                continue;
            }
        };
        let sticky_s = match action {
            Action::Policy(_) => policies::sticky(rule.sticky_s, line, &shown, &mut notes),
            Action::Word(_) => 0,
        };
        let matches_all = conditions.are_none();
        if let (true, Action::Policy(index)) = (matches_all, &action) {
            let policy = policies.get(*index).map(|policy| clipped(&policy.name)).unwrap_or_default();
            let remark = format!("What no rule matches: policy {policy}, as rule {shown} in line {line} says.");
            policies.set_default(*index, sticky_s, Item { notes, remarks: vec![remark], ..Item::default() });
            last = Some((shown, line));
            continue;
        }
        totals.add(&conditions, line)?;
        let name = names.unique(&rule.name);
        if name != rule.name {
            notes.push(Note::new(line, format!("rule {shown} is called {name}")));
        }
        let set = conditions.ipset.as_ref().map(|ipset| sets.of(ipset)).transpose()?;
        let mut item = Item { notes, lines: vec!["[[rule]]".to_owned()], ..Item::default() };
        item.key("name", string(&name));
        conditions.write(set.as_deref(), device.as_deref(), &mut item);
        match action {
            Action::Policy(index) => kept.push((item, Some((index, sticky_s)))),
            Action::Word(word) => {
                item.key("use", string(word));
                kept.push((item, None));
            }
        }
        if matches_all {
            last = Some((shown, line));
        }
    }
    if last.is_none() {
        totals.add(&Conditions::default(), 1)?;
        let mut item = Item { lines: vec!["[[rule]]".to_owned()], ..Item::default() };
        item.remarks.push(
            "What no rule matches mwan3 leaves to the main routing table. For all uplinks instead, remove this rule."
                .to_owned(),
        );
        item.key("name", string(&names.unique(UNMATCHED)));
        item.key("use", string("direct"));
        kept.push((item, None));
    }
    name_policies(&mut kept, policies);
    Ok(kept.into_iter().map(|(item, _)| item).collect())
}

/// Names the policies of rules. A policy's own name is for its use without stickiness, if there is one.
fn name_policies(kept: &mut [(Item, Option<(usize, u64)>)], policies: &mut Policies) {
    let plain_default = policies.default().filter(|(_, sticky_s)| *sticky_s == 0);
    let uses = kept.iter().filter_map(|(_, policy)| *policy).filter(|(_, sticky_s)| *sticky_s == 0);
    for (index, sticky_s) in plain_default.into_iter().chain(uses).collect::<Vec<_>>() {
        policies.used(index, sticky_s);
    }
    for (item, policy) in kept {
        if let Some((index, sticky_s)) = *policy
            && let Some(name) = policies.used(index, sticky_s)
        {
            item.key("use", string(&format!("policy:{name}")));
        }
    }
}

/// What a rule uses, or why that can't be said.
fn action(rule: &Rule, policies: &Policies, note: &mut impl FnMut(usize, String)) -> Result<Action, String> {
    let Some(used) = &rule.use_policy else {
        return Err("it uses no policy (use_policy), so that mwan3 ignores it".to_owned());
    };
    let by_last_resort = |last_resort| match last_resort {
        LastResort::Unreachable => "reject",
        LastResort::Blackhole => "drop",
        LastResort::Default => "direct",
    };
    match used.text.as_str() {
        "unreachable" => return Ok(Action::Word("reject")),
        "blackhole" => return Ok(Action::Word("drop")),
        "default" => return Ok(Action::Word("direct")),
        _ => {}
    }
    let shown = clipped(&used.text);
    let Some((index, policy)) = policies.find(&used.text).and_then(|index| Some((index, policies.get(index)?))) else {
        return Err(format!("there is no policy {shown}, so that mwan3 goes on with the next rule"));
    };
    if policy.is_empty() {
        let word = by_last_resort(policy.last_resort);
        note(used.line, format!("policy {shown} has no uplink here, so its last_resort is what is used: {word}"));
        return Ok(Action::Word(word));
    }
    Ok(Action::Policy(index))
}

/// The device of `src_iface`, which is one of lan then; or why there is none.
fn source_device(
    conditions: &Conditions,
    lan: &mut Lan,
    network: Option<&Network>,
    uplinks: &Uplinks,
    note: &mut impl FnMut(usize, String),
) -> Result<Option<String>, String> {
    let Some(word) = &conditions.interface else { return Ok(None) };
    let shown = clipped(&word.text);
    if matches!(uplinks.of(&word.text), Some(Place::Uplink { .. })) {
        return Err(format!("src_iface {shown} is an uplink; rules are for what comes from the LAN"));
    }
    let device = match network.map(|network| network.device(&word.text)) {
        Some(Ok(device)) => device,
        Some(Err(why)) => return Err(format!("the device of src_iface {shown} is not known ({})", why.text)),
        None if word.text == LAN => lan.devices.first().cloned().unwrap_or_else(|| LAN_DEVICE.to_owned()),
        None => {
            note(
                word.line,
                format!(
                    "src_iface {shown} is OpenWrt's name; write that of the device, here and in lan, or import with --network"
                ),
            );
            word.text.clone()
        }
    };
    if !is_device(&device) {
        return Err(format!("src_iface {shown} is no device that mh can look at"));
    }
    if uplinks.has(&device) {
        return Err(format!(
            "the device of src_iface {shown}, {device}, is an uplink; rules are for what comes from the LAN"
        ));
    }
    lan.add(&device);
    Ok(Some(device))
}

/// What all rules together have, which is bounded.
#[derive(Default)]
struct Totals {
    rules: usize,
    from_ports: usize,
    to_ports: usize,
}

impl Totals {
    fn add(&mut self, conditions: &Conditions, line: usize) -> Result<(), Fault> {
        self.rules += 1;
        self.from_ports += conditions.from_ports.len();
        self.to_ports += conditions.to_ports.len();
        if self.rules > MAX_RULES {
            let what = "with the one for what no rule matches";
            return Err(fault(
                line,
                format!("there are more than {MAX_RULES} rules, {what}, the most of mh; put some together"),
            ));
        }
        if self.from_ports.max(self.to_ports) > MAX_PORT_RANGES {
            return Err(fault(
                line,
                format!("with this rule there are more than {MAX_PORT_RANGES} ranges of ports; use fewer"),
            ));
        }
        Ok(())
    }
}

//! The config of OpenWrt's mwan3, typed, as that package reads it: with its defaults, and with what it makes of values that it can't use.
//!
//! Every option of the package (2.x, and of 1.x what is left of it) is in one of the lists here, so what is in none of them is no option of
//! mwan3, which is said. What an option stands for in mh is not this module's business, but for those that stand for nothing:
//! [`OPTIONS`] has the reason.

use super::note::Note;
use super::uci::{Document, Section, Word, clipped};

/// The package's name in UCI.
pub(super) const PACKAGE: &str = "mwan3";

/// The longest name of a policy or rule that mwan3 makes use of, in bytes.
pub(super) const MAX_NAME: usize = 15;

/// Why a policy or rule with a longer name is left out.
pub(super) fn ignored_for_name() -> String {
    format!("its name has more than {MAX_NAME} characters, so that mwan3 ignores it")
}

/// An option of the package, and what it is in mh.
pub(super) struct Known {
    /// The type of its section.
    pub(super) section: &'static str,
    /// Its name.
    pub(super) name: &'static str,
    /// Why it has no equivalent; `None`: it has one.
    pub(super) without: Option<&'static str>,
}

const fn known(section: &'static str, name: &'static str) -> Known {
    Known { section, name, without: None }
}

const fn without(section: &'static str, name: &'static str, reason: &'static str) -> Known {
    Known { section, name, without: Some(reason) }
}

/// Every option of the package.
pub(super) const OPTIONS: &[Known] = &[
    known("globals", "mmx_mask"),
    known("globals", "local_source"),
    without("globals", "rtmon_interval", "mh follows routes as they change, without an interval"),
    without(
        "globals",
        "rt_table_lookup",
        "mh leaves to the kernel what the main routing table sends elsewhere than to an uplink; for networks of other tables write rules with \
         use = \"direct\"",
    ),
    without("globals", "source_routing", "every flow leaves with the address of its uplink"),
    without("globals", "logging", "`mhctl rules` counts what each rule matched, and `mhctl explain` says why"),
    without("globals", "loglevel", "rules do not log; `mhctl rules` counts"),
    known("globals", "enabled"),
    known("interface", "enabled"),
    known("interface", "family"),
    known("interface", "track_ip"),
    known("interface", "track_method"),
    known("interface", "httping_ssl"),
    known("interface", "reliability"),
    known("interface", "count"),
    without("interface", "size", "echo requests have one size"),
    without("interface", "max_ttl", "probes have the system's TTL"),
    known("interface", "timeout"),
    known("interface", "interval"),
    known("interface", "check_quality"),
    known("interface", "failure_latency"),
    known("interface", "recovery_latency"),
    known("interface", "failure_loss"),
    known("interface", "recovery_loss"),
    known("interface", "failure_interval"),
    known("interface", "recovery_interval"),
    known("interface", "keep_failure_interval"),
    known("interface", "down"),
    known("interface", "up"),
    known("interface", "initial_state"),
    known("interface", "flush_conntrack"),
    without("interface", "reroute", "flows of an uplink that is down go elsewhere at once (on_down)"),
    without("interface", "force_link", "the route of an uplink is its gateway, which is learned"),
    known("member", "interface"),
    known("member", "metric"),
    known("member", "weight"),
    known("policy", "use_member"),
    known("policy", "last_resort"),
    known("rule", "family"),
    known("rule", "src_ip"),
    known("rule", "src_port"),
    known("rule", "src_iface"),
    known("rule", "dest_ip"),
    known("rule", "dest_port"),
    known("rule", "proto"),
    known("rule", "sticky"),
    known("rule", "timeout"),
    known("rule", "ipset"),
    known("rule", "use_policy"),
    without("rule", "logging", "`mhctl rules` counts what each rule matched"),
];

/// A config.
#[derive(Debug, Default)]
pub(super) struct Mwan3 {
    pub(super) globals: Globals,
    pub(super) interfaces: Vec<Interface>,
    pub(super) members: Vec<Member>,
    pub(super) policies: Vec<Policy>,
    pub(super) rules: Vec<Rule>,
    /// What is said of the file as a whole.
    pub(super) notes: Vec<Note>,
}

/// `config globals`.
#[derive(Debug, Default)]
pub(super) struct Globals {
    pub(super) mask: Option<Word>,
    /// What the machine itself sends is not balanced.
    pub(super) no_local_source: bool,
    pub(super) notes: Vec<Note>,
}

/// `config interface`.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) enabled: bool,
    pub(super) is_ipv6: bool,
    pub(super) targets: Vec<Word>,
    pub(super) method: Method,
    pub(super) reliability: u64,
    pub(super) count: u64,
    pub(super) timeout_s: u64,
    pub(super) interval_s: u64,
    pub(super) down: u64,
    pub(super) up: u64,
    pub(super) quality: Option<Quality>,
    /// The line that says that the conntrack is flushed when the interface fails.
    pub(super) flushes: Option<usize>,
    pub(super) notes: Vec<Note>,
}

/// How an interface is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Ping,
    Arping,
    Httping { tls: bool },
    NpingTcp,
    NpingUdp,
    NpingIcmp,
    NpingArp,
}

/// What `check_quality` looks at: from when a target is bad, and to when it is good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quality {
    pub(super) failure_latency_ms: u64,
    pub(super) recovery_latency_ms: u64,
    pub(super) failure_loss_percent: u64,
    pub(super) recovery_loss_percent: u64,
}

/// `config member`.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) interface: Option<Word>,
    pub(super) metric: u64,
    pub(super) weight: u64,
    pub(super) notes: Vec<Note>,
}

/// `config policy`.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) members: Vec<Word>,
    pub(super) last_resort: LastResort,
    pub(super) notes: Vec<Note>,
    /// As it was written, for one that mwan3 ignores.
    pub(super) written: Vec<String>,
}

/// What becomes of flows when no member of a policy is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastResort {
    Unreachable,
    Blackhole,
    Default,
}

/// `config rule`.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) family: Family,
    pub(super) src_ip: Vec<Word>,
    pub(super) src_port: Vec<Word>,
    pub(super) src_iface: Option<Word>,
    pub(super) dest_ip: Vec<Word>,
    pub(super) dest_port: Vec<Word>,
    pub(super) proto: Option<Word>,
    /// How long a source keeps its interface.
    pub(super) sticky_s: Option<u64>,
    pub(super) ipset: Option<Word>,
    pub(super) use_policy: Option<Word>,
    pub(super) notes: Vec<Note>,
    /// As it was written, for one that can't be brought over.
    pub(super) written: Vec<String>,
}

/// Which addresses a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Any,
    Ipv4,
    Ipv6,
}

impl Mwan3 {
    /// Understands the sections of mwan3 in a file.
    pub(super) fn new(document: &Document) -> Self {
        let mut config = Self::default();
        let mut foreign: Vec<&str> = Vec::new();
        for section in &document.sections {
            if let Some(package) = section.package.as_deref().filter(|package| *package != PACKAGE) {
                if !foreign.contains(&package) {
                    foreign.push(package);
                    let text = format!("package {} is not mwan3's, and is left out", clipped(package));
                    config.notes.push(Note::new(section.line, text));
                }
                continue;
            }
            let number = config.anonymous(section);
            let mut reader = Reader::new(section, number);
            match section.kind.as_str() {
                "globals" => config.globals = globals(&mut reader, std::mem::take(&mut config.globals)),
                "interface" => config.interfaces.push(interface(reader)),
                "member" => config.members.push(member(reader)),
                "policy" => config.policies.push(policy(reader)),
                "rule" => config.rules.push(rule(reader)),
                other => config.notes.push(Note::new(
                    section.line,
                    format!("config {} is no section of mwan3, and is left out", clipped(other)),
                )),
            }
        }
        config
    }

    /// What counts the sections of a type, for those without name.
    fn anonymous(&self, section: &Section) -> usize {
        1 + match section.kind.as_str() {
            "interface" => self.interfaces.len(),
            "member" => self.members.len(),
            "policy" => self.policies.len(),
            _ => self.rules.len(),
        }
    }
}

/// Reads the options of a section, and takes notes.
struct Reader<'s> {
    section: &'s Section,
    name: String,
    notes: Vec<Note>,
}

impl<'s> Reader<'s> {
    fn new(section: &'s Section, number: usize) -> Self {
        let name = section.name.clone().unwrap_or_else(|| format!("{}{number}", section.kind));
        let mut reader = Self { section, name, notes: Vec::new() };
        if section.name.is_none() && matches!(section.kind.as_str(), "interface" | "member" | "policy" | "rule") {
            reader.note(section.line, format!("it has no name, and is called {}", reader.name));
        }
        for setting in &section.options {
            let Some(value) = setting.values.last() else { continue };
            let mut all = OPTIONS.iter().filter(|known| known.section == section.kind);
            match all.find(|known| known.name == setting.name) {
                Some(Known { without: None, .. }) => {}
                Some(Known { without: Some(reason), .. }) => {
                    let values: Vec<&str> = setting.values.iter().map(|value| value.text.as_str()).collect();
                    let values = clipped(&values.join(" "));
                    reader.note(value.line, format!("{} {values} is left out: {reason}", setting.name));
                }
                None => reader
                    .note(value.line, format!("{} is no option of mwan3, and is left out", clipped(&setting.name))),
            }
        }
        reader
    }

    fn note(&mut self, line: usize, text: String) {
        let name = if self.section.kind == "globals" { String::new() } else { format!(" {}", clipped(&self.name)) };
        self.notes.push(Note::new(line, format!("{}{name}: {text}", self.section.kind)));
    }

    fn has(&self, option: &str) -> bool {
        self.section.get(option).is_some()
    }

    fn word(&self, option: &str) -> Option<Word> {
        self.section.value(option).cloned()
    }

    fn line(&self, option: &str) -> usize {
        self.section.value(option).map_or(self.section.line, |value| value.line)
    }

    /// Words with blanks or commas between them.
    fn listed(&self, option: &str) -> Vec<Word> {
        let words = self.section.values(option);
        let parts = words.flat_map(|word| {
            let parts = word.text.split(',').filter(|part| !part.is_empty()).map(str::to_owned);
            parts.map(|text| Word { text, line: word.line }).collect::<Vec<_>>()
        });
        parts.collect()
    }

    /// A number of at most `most`, or `default`.
    fn number(&mut self, option: &str, default: u64, most: u64) -> u64 {
        let Some(word) = self.word(option) else { return default };
        let is_number = word.text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than a number has are a large number.
        let number = if is_number { Some(word.text.parse().unwrap_or(u64::MAX)) } else { None };
        match number {
            None => {
                self.note(
                    word.line,
                    format!("{option} is {:?}, which is no number; {default} is assumed", clipped(&word.text)),
                );
                default
            }
            Some(number) if number > most => {
                self.note(
                    word.line,
                    format!("{option} is {}, more than {most}; {most} is assumed", clipped(&word.text)),
                );
                most
            }
            Some(number) => number,
        }
    }

    /// Its options as they are written.
    fn written(&self) -> Vec<String> {
        let lines = self.section.options.iter().flat_map(|setting| {
            let command = if setting.is_list { "list" } else { "option" };
            setting.values.iter().map(move |value| format!("{command} {} '{}'", setting.name, clipped(&value.text)))
        });
        lines.collect()
    }

    /// As OpenWrt's `config_get_bool`.
    fn flag(&mut self, option: &str) -> bool {
        let Some(word) = self.word(option) else { return false };
        match word.text.as_str() {
            "1" | "on" | "true" | "yes" | "enabled" => true,
            "0" | "off" | "false" | "no" | "disabled" => false,
            other => {
                self.note(word.line, format!("{option} is {:?}, neither 1 nor 0; 0 is assumed", clipped(other)));
                false
            }
        }
    }
}

fn globals(reader: &mut Reader<'_>, before: Globals) -> Globals {
    if reader.has("enabled") && !reader.flag("enabled") {
        let line = reader.line("enabled");
        reader.note(line, "enabled is 0, which is left out: mh runs where mhd is started".to_owned());
    }
    let local_source = reader.word("local_source");
    let no_local_source = match &local_source {
        None => before.no_local_source,
        Some(word) => word.text == "none",
    };
    if let Some(word) = local_source.filter(|_| !no_local_source) {
        let reason =
            "what the machine itself sends is steered too (datapath.host_traffic), with each uplink's own address";
        reader.note(word.line, format!("local_source {} is left out: {reason}", clipped(&word.text)));
    }
    let mut notes = before.notes;
    notes.append(&mut reader.notes);
    Globals { mask: reader.word("mmx_mask").or(before.mask), no_local_source, notes }
}

/// The largest number of seconds, rounds or milliseconds that is read; mh's own limits are lower.
const MOST: u64 = 10_000_000;

fn interface(mut reader: Reader<'_>) -> Interface {
    let method = method(&mut reader);
    let check_quality = reader.flag("check_quality");
    let mut quality = Quality {
        failure_latency_ms: reader.number("failure_latency", 1000, MOST),
        recovery_latency_ms: reader.number("recovery_latency", 500, MOST),
        failure_loss_percent: reader.number("failure_loss", 40, MOST),
        recovery_loss_percent: reader.number("recovery_loss", 10, MOST),
    };
    for (option, failure, recovery) in [
        ("recovery_latency", quality.failure_latency_ms, &mut quality.recovery_latency_ms),
        ("recovery_loss", quality.failure_loss_percent, &mut quality.recovery_loss_percent),
    ] {
        if check_quality && *recovery > failure {
            let line = reader.line(option);
            reader.note(line, format!("{option} is {recovery}, above what is a failure; {failure} is assumed"));
            *recovery = failure;
        }
    }
    let quality = Some(quality).filter(|_| check_quality);
    if quality.is_some() && !matches!(method, Method::Ping) {
        let line = reader.line("check_quality");
        reader.note(line, "check_quality is of use with track_method ping only; here it limits loss and latency of the probes there are".to_owned());
    }
    let interval_s = reader.number("interval", 10, MOST);
    for option in ["failure_interval", "recovery_interval"] {
        let (value, line) = (reader.number(option, interval_s, MOST), reader.line(option));
        if value != interval_s {
            let text = format!(
                "{option} is {value}, which is left out: probes have one interval, here {interval_s} s; shorten that instead"
            );
            reader.note(line, text);
        }
    }
    if reader.flag("keep_failure_interval") {
        let line = reader.line("keep_failure_interval");
        reader.note(line, "keep_failure_interval is left out: probes have one interval".to_owned());
    }
    if let Some(state) = reader.word("initial_state").filter(|state| state.text != "online") {
        let text = format!(
            "initial_state is {:?}, which is left out: mhd takes an uplink for up until its probes fail",
            clipped(&state.text)
        );
        reader.note(state.line, text);
    }
    let family = family(&mut reader, Family::Ipv4);
    let flushes = flush(&mut reader);
    Interface {
        enabled: reader.flag("enabled"),
        is_ipv6: family == Family::Ipv6,
        targets: reader.listed("track_ip"),
        method,
        reliability: reader.number("reliability", 1, MOST),
        count: reader.number("count", 1, MOST),
        timeout_s: reader.number("timeout", 4, MOST),
        interval_s,
        down: reader.number("down", 5, MOST),
        up: reader.number("up", 5, MOST),
        quality,
        flushes,
        line: reader.section.line,
        name: reader.name,
        notes: reader.notes,
    }
}

fn method(reader: &mut Reader<'_>) -> Method {
    let tls = reader.flag("httping_ssl");
    let Some(word) = reader.word("track_method") else { return Method::Ping };
    match word.text.as_str() {
        "ping" => Method::Ping,
        "arping" => Method::Arping,
        "httping" => Method::Httping { tls },
        "nping-tcp" => Method::NpingTcp,
        "nping-udp" => Method::NpingUdp,
        "nping-icmp" => Method::NpingIcmp,
        "nping-arp" => Method::NpingArp,
        other => {
            reader.note(
                word.line,
                format!("track_method is {:?}, which mwan3 does not know; ping is assumed", clipped(other)),
            );
            Method::Ping
        }
    }
}

fn family(reader: &mut Reader<'_>, default: Family) -> Family {
    let Some(word) = reader.word("family") else { return default };
    match word.text.as_str() {
        "ipv4" => Family::Ipv4,
        "ipv6" => Family::Ipv6,
        "any" if default == Family::Any => Family::Any,
        other => {
            let assumed = if default == Family::Any { "any" } else { "ipv4" };
            reader.note(
                word.line,
                format!("family is {:?}, which mwan3 does not know; {assumed} is assumed", clipped(other)),
            );
            default
        }
    }
}

/// When the conntrack is flushed: the line that says on failure, if one does.
fn flush(reader: &mut Reader<'_>) -> Option<usize> {
    let mut on_failure = None;
    for word in reader.listed("flush_conntrack") {
        match word.text.as_str() {
            "ifdown" | "disconnected" => on_failure = on_failure.or(Some(word.line)),
            "ifup" | "connected" => reader.note(
                word.line,
                format!("flush_conntrack {} is left out: when an uplink returns, new flows take it, and others stay where they are", word.text),
            ),
            // What LuCI of old wrote for "not at all".
            "never" => {}
            other => reader.note(word.line, format!("flush_conntrack {:?} is no event of mwan3, and is left out", clipped(other))),
        }
    }
    on_failure
}

fn member(mut reader: Reader<'_>) -> Member {
    Member {
        interface: reader.word("interface"),
        metric: reader.number("metric", 1, MOST),
        weight: reader.number("weight", 1, u64::from(u16::MAX)),
        name: reader.name,
        notes: reader.notes,
    }
}

fn policy(mut reader: Reader<'_>) -> Policy {
    let last_resort = match reader.word("last_resort") {
        None => LastResort::Unreachable,
        Some(word) => match word.text.as_str() {
            "unreachable" => LastResort::Unreachable,
            "blackhole" => LastResort::Blackhole,
            "default" => LastResort::Default,
            other => {
                reader.note(
                    word.line,
                    format!("last_resort is {:?}, which mwan3 does not know; unreachable is assumed", clipped(other)),
                );
                LastResort::Unreachable
            }
        },
    };
    let line = reader.line("last_resort");
    match last_resort {
        LastResort::Unreachable => {}
        LastResort::Blackhole => reader.note(
            line,
            "last_resort blackhole has no equivalent: while no uplink is up, new flows are refused with an ICMP message".to_owned(),
        ),
        LastResort::Default => reader.note(
            line,
            "last_resort default has no equivalent: while no uplink is up, new flows are refused and not left to the main routing table"
                .to_owned(),
        ),
    }
    Policy {
        members: reader.listed("use_member"),
        last_resort,
        line: reader.section.line,
        written: reader.written(),
        name: reader.name,
        notes: reader.notes,
    }
}

fn rule(mut reader: Reader<'_>) -> Rule {
    let sticky = reader.flag("sticky");
    let timeout_s = reader.number("timeout", 600, MOST);
    Rule {
        family: family(&mut reader, Family::Any),
        src_ip: reader.listed("src_ip"),
        src_port: reader.listed("src_port"),
        src_iface: reader.word("src_iface"),
        dest_ip: reader.listed("dest_ip"),
        dest_port: reader.listed("dest_port"),
        proto: reader.word("proto"),
        sticky_s: Some(timeout_s).filter(|_| sticky),
        ipset: reader.word("ipset"),
        use_policy: reader.word("use_policy"),
        line: reader.section.line,
        written: reader.written(),
        name: reader.name,
        notes: reader.notes,
    }
}

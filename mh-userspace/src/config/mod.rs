//! The config: from a TOML file to a typed, fully validated [`Config`].
//!
//! [`load`] reads a file and [`parse`] a text. Both return either a config that the rest of mh need not check again (its
//! invariants are those of [`Config`]), with warnings, or every [`Fault`] of the text in file order with line, column and mend.
//! Only where the text is no TOML at all is the first fault the only one. Nothing is ever silently ignored: keys that are unknown,
//! or that belong to the format but are not supported by this version, are faults. Nothing here looks at the machine: whether an
//! interface exists is not a matter of the config. Exceptions are the files of sets, which are part of the config, and a warning:
//! that a hook's program is not there, or can't be run.
//!
//! `schema` lists the keys, `near` says what unknown ones may mean, `table` holds tables of the document against it, `value` reads single values, `uplinks`, `probes`,
//! `policies`, `sets`, `rules` and `forwards` read what their names say, `read` all other sections, and puts them together. `review` adds
//! warnings about what is valid and hardly meant; `cover` finds the rules that are never reached.
//! The format is described in `docs/config.md`.

mod cover;
mod fault;
mod forwards;
mod model;
mod near;
mod policies;
mod policy;
mod probe;
mod probes;
mod read;
mod review;
mod rules;
mod schema;
mod sets;
mod table;
#[cfg(test)]
mod tests;
mod uplinks;
mod value;

use std::path::Path;

use toml::de::DeTable;

pub use fault::{Fault, Faults, LoadError, warning_lines};
pub use model::{
    AddressRange, Config, Damping, Datapath, Filtering, Forward, ForwardProtocol, HashMode, Hooks, InterfaceNameError,
    InterfacePattern, Limits, MAX_ADDRESS_RANGES, MAX_ADDRESSES, MAX_FORWARDED_PORTS, MAX_INTERFACE_NAME, MAX_LOSSES,
    MAX_UPLINK_NAME, MAX_UPLINKS, MIN_MARK_BITS, Mode, MssClamp, Nat, OnDown, PortRange, Timeouts, Uplink,
};
pub use policy::{
    Addresses, Capacity, DEFAULT_POLICY, MAX_CAPACITY, MAX_NAME, MAX_POLICIES, MAX_PORT_RANGES, MAX_PREFIXES,
    MAX_RULES, MAX_SETS, MAX_STICKY, MIN_CAPACITY, Member, Policy, Rule, Set, Use, Weight,
};
pub use probe::{
    Check, DEFAULT_WINDOW, Http, Limit, MAX_DOMAIN, MAX_INTERVAL, MAX_OVERLAP, MAX_PATH, MAX_ROUNDS, MAX_TARGETS,
    MAX_TIMEOUT, MIN_INTERVAL, Probe, ProbeTarget, Share, ShareError, TargetError,
};
pub(crate) use value::not_unicast;

/// A config and what its writer should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// What is accepted, but perhaps not what was meant, in file order.
    pub warnings: Vec<Fault>,
}

/// Reads and parses the config file `path`.
///
/// # Errors
/// The file cannot be read, or has faults.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let bytes = std::fs::read(path).map_err(|error| LoadError::Io(path.to_owned(), error))?;
    let parsed = match str::from_utf8(&bytes) {
        Ok(text) => parse_in(text, path.parent().unwrap_or(Path::new(""))),
        Err(error) => {
            let (line, column) = fault::position(&bytes, error.valid_up_to());
            Err(Faults(vec![Fault {
                line,
                column,
                message: "this is not UTF-8 text; save the file as UTF-8".to_owned(),
            }]))
        }
    };
    parsed.map_err(|faults| LoadError::Faults { path: path.to_owned(), faults })
}

/// Validates the config file `path` and returns the warnings.
///
/// # Errors
/// The file cannot be read, or has faults.
pub fn check(path: &Path) -> Result<Vec<Fault>, LoadError> {
    load(path).map(|loaded| loaded.warnings)
}

/// Parses the text of a config. Relative paths in it begin at the working directory.
///
/// # Errors
/// Every fault of the text in file order, or the first place where it is no TOML.
pub fn parse(text: &str) -> Result<Loaded, Faults> {
    parse_in(text, Path::new(""))
}

/// Parses the text of a config whose file is in `directory`, where relative paths in it begin.
///
/// # Errors
/// As of [`parse`].
pub fn parse_in(text: &str, directory: &Path) -> Result<Loaded, Faults> {
    let mut report = fault::Report::default();
    // The parser reports faults of structure before faults within values, so its first is not the first of the file: an unclosed
    // string would be reported at the line after it.
    let (document, errors) = DeTable::parse_recoverable(text);
    let start = |error: &toml::de::Error| error.span().map_or(text.len(), |span| span.start);
    if let Some(error) = errors.iter().min_by_key(|error| start(error)) {
        let token = error.span().and_then(|span| text.get(span)).unwrap_or("");
        report.fault(start(error), syntax_message(error.message(), token));
        return Err(report.finish_faults(text));
    }
    let config = read::config(document.get_ref(), directory, &mut report);
    let warnings = report.finish(text)?;
    Ok(Loaded { config, warnings })
}

/// What the TOML parser says about `token`, on one line, with a mend where it has none.
fn syntax_message(message: &str, token: &str) -> String {
    if message == "duplicate key" {
        return format!("{} is defined twice; keep one of them", value::quoted(token.trim_matches(['"', '\''])));
    }
    if message.starts_with("string values must be quoted") {
        return if token.is_empty() {
            "a value is missing; write one after the =".to_owned()
        } else {
            format!("not a TOML value; if it is a string, write it in quotes: {}", value::quoted(token))
        };
    }
    let message = message.strip_suffix(", expected nothing").unwrap_or(message).replace(['\n', '\r'], " ");
    format!("not valid TOML: {message}")
}

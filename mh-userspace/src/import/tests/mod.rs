//! mwan3's config to mh's.

mod properties;
mod translation;
mod uci;

use super::{ImportError, Imported, mwan3};
use crate::config::{self, Config};

/// An interface that is in use.
const WAN: &str = "config interface 'wan'\n\toption enabled '1'\n";

fn import(text: &str) -> Imported {
    mwan3(text.as_bytes(), None).unwrap()
}

/// The config that comes of a text, read by mh.
fn config_of(imported: &Imported) -> Config {
    config::parse(&imported.toml).unwrap_or_else(|faults| panic!("{faults}\n{}", imported.toml)).config
}

fn imported_config(text: &str) -> Config {
    config_of(&import(text))
}

/// What is said about a text.
fn notes(text: &str) -> Vec<String> {
    import(text).notes.into_iter().map(|note| format!("{}: {}", note.line, note.text)).collect()
}

fn fault(text: &str) -> (usize, String) {
    match mwan3(text.as_bytes(), None) {
        Err(ImportError::File { line, message, .. }) => (line, message),
        other => panic!("{other:?}"),
    }
}

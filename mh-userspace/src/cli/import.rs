//! `mhctl import`: the config of another program as mh's on stdout, and what has no equivalent on stderr.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::Serialize;

use super::{CliError, Output};
use crate::import::{self, Counts, ImportError, Source};

/// The name of a file that is stdin.
const STDIN: &str = "-";

/// The result with `--json`.
#[derive(Serialize)]
struct Document<'a> {
    /// mh's config.
    toml: &'a str,
    notes: Vec<DocumentNote<'a>>,
}

#[derive(Serialize)]
struct DocumentNote<'a> {
    file: &'a str,
    line: usize,
    note: &'a str,
}

/// Brings the config of mwan3 in `file` over.
pub(super) fn mwan3(file: &Path, network: Option<&Path>, output: &Output) -> Result<(), CliError> {
    if network == Some(file) && is_stdin(file) {
        return Err(CliError::Argument("only one of the files can be stdin; name the other one".to_owned()));
    }
    let (name, network_name) = (shown(file), network.map(shown).unwrap_or_default());
    let name_of = |source| if source == Source::Network { network_name.as_str() } else { name.as_str() };
    let bytes = read(file)?;
    let network = network.map(read).transpose()?;
    let imported = import::mwan3(&bytes, network.as_deref()).map_err(|error| match &error {
        ImportError::File { source_file, line, message } => {
            CliError::Import(format!("{}:{line}: {message}", name_of(*source_file)))
        }
        ImportError::Refused(_) => CliError::Import(format!("{name}: {error}")),
    })?;
    let note = |note: &import::Note| format!("{}:{}: {}", name_of(note.source), note.line, note.text);
    if !output.json {
        for line in imported.notes.iter().map(note) {
            eprintln!("{line}");
        }
        let Counts { uplinks, policies, rules, sets } = imported.counts;
        let notes = imported.notes.len();
        eprintln!(
            "mhctl: {}, {}, {} and {}; {}, also in comments of the result",
            counted(uplinks, "uplink", "uplinks"),
            counted(policies, "policy", "policies"),
            counted(rules, "rule", "rules"),
            counted(sets, "set", "sets"),
            counted(notes, "note", "notes"),
        );
    }
    let notes = imported.notes.iter();
    let notes =
        notes.map(|note| DocumentNote { file: name_of(note.source), line: note.line, note: &note.text }).collect();
    output.show(&Document { toml: &imported.toml, notes }, |document, _| document.toml.to_owned())
}

fn counted(number: usize, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new(STDIN)
}

/// A file's name in messages.
fn shown(file: &Path) -> String {
    if is_stdin(file) { "stdin".to_owned() } else { file.display().to_string() }
}

/// The bytes of a file, one more than [`import::MAX_BYTES`] at most: enough to see that there are too many.
fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    let most = u64::try_from(import::MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let result = if is_stdin(file) {
        io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    match result {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let mend = "name a file that can be read, or - for stdin";
            Err(CliError::Import(format!("{}: cannot read the file: {error}; {mend}", shown(file))))
        }
    }
}

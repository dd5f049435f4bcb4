//! What an import says about what it did: a line of a file, and a sentence.

/// A file that is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    /// The config of mwan3.
    #[default]
    Mwan3,
    /// The config of the network.
    Network,
}

/// Something of a file that came over in another form, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The file.
    pub source: Source,
    /// Its line, from 1.
    pub line: usize,
    /// What is so, on one line and without control characters.
    pub text: String,
}

impl Note {
    /// About a line of the config of mwan3.
    pub(super) fn new(line: usize, text: impl AsRef<str>) -> Self {
        Self { source: Source::Mwan3, line, text: printable(text.as_ref()) }
    }

    /// About a line of the config of the network.
    pub(super) fn of_network(line: usize, text: impl AsRef<str>) -> Self {
        Self { source: Source::Network, line, text: printable(text.as_ref()) }
    }
}

/// `text` without characters that a terminal or a comment of TOML may not have.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

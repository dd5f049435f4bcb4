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
    /// What is so, on one line.
    pub text: String,
}

impl Note {
    /// About a line of the config of mwan3.
    pub(super) fn new(line: usize, text: impl Into<String>) -> Self {
        Self { source: Source::Mwan3, line, text: text.into() }
    }

    /// About a line of the config of the network.
    pub(super) fn of_network(line: usize, text: impl Into<String>) -> Self {
        Self { source: Source::Network, line, text: text.into() }
    }
}

//! OpenWrt's UCI format: sections of options and lists, with the line of each.
//!
//! A file is commands, one a line or with `;` between them: `package NAME`, `config TYPE [NAME]`, `option NAME [VALUE]`, `list NAME
//! [VALUE]`, each also by its first letter alone. Words may be quoted with `'` (nothing is special) or `"` (a `\` takes away what the next
//! character means), in parts and over several lines; a `\` at the end of a line joins the next one; `#` begins a comment, also within a
//! word. A named section that comes twice is one; an option that comes twice has its last value, a list all of them, and an option without
//! value is none. This is what libuci does with files. Names of sections may have any characters that are visible ASCII, more than libuci
//! allows.
//!
//! Invariants: a [`Document`] has at most [`MAX_SECTIONS`] sections, [`MAX_OPTIONS`] options in each, [`MAX_VALUES`] values in all and
//! [`MAX_WORD`] bytes in each word; lines count from 1. Failure behaviour: the first fault ends it, with its line.

use std::collections::HashMap;

/// How many bytes a file may have.
pub const MAX_BYTES: usize = 1 << 20;
/// How many sections a file may have.
pub const MAX_SECTIONS: usize = 4096;
/// How many options and lists a section may have.
pub const MAX_OPTIONS: usize = 256;
/// How many values a file may have in all.
pub const MAX_VALUES: usize = 65_536;
/// The longest word in bytes, without quotes.
pub const MAX_WORD: usize = 4096;

/// Why a text is not UCI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct UciError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub kind: UciErrorKind,
}

/// What is wrong with a text that is not UCI, and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UciErrorKind {
    /// More than [`MAX_BYTES`].
    #[error("the file has more than {MAX_BYTES} bytes; name a UCI file")]
    Large,
    /// Not text.
    #[error("this is no UTF-8 text; name a UCI file, or save it as UTF-8")]
    NotText,
    /// A NUL byte.
    #[error("there is a NUL byte; remove it")]
    Nul,
    /// No command of UCI.
    #[error("{0:?} is no command of UCI; write config, option, list or package, or a # in front of a comment")]
    Command(String),
    /// A command lacks its first word.
    #[error("{0} lacks {1}; add it")]
    Lacks(&'static str, &'static str),
    /// A command has too many words.
    #[error("{0:?} is too much after {1}; put values with blanks in quotes")]
    Further(String, &'static str),
    /// A name with characters that no name has.
    #[error("{0:?} is no name; use letters, digits and _")]
    Name(String),
    /// An option before the first section.
    #[error("{0} stands in no section; put config TYPE in front")]
    NoSection(&'static str),
    /// Two sections with one name.
    #[error("section {name:?} is {here:?} here and {there:?} in line {line}; rename one of them")]
    Type {
        /// The name.
        name: String,
        /// The type here.
        here: String,
        /// The type where it was first.
        there: String,
        /// Where that was.
        line: usize,
    },
    /// The file ends within quotes.
    #[error("the {0} that begins here does not end; close the quotes")]
    Unclosed(char),
    /// A word is too long.
    #[error("a word of more than {MAX_WORD} bytes begins here; a quote is missing, or shorten it")]
    Long,
    /// Too much of something.
    #[error("there are more than {0} {1}; shorten the file")]
    Many(usize, &'static str),
}

/// A file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// Its sections, in file order.
    pub sections: Vec<Section>,
}

/// A section: `config TYPE [NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The package that the file says it is of.
    pub package: Option<String>,
    /// Its type.
    pub kind: String,
    /// Its name; `None`: anonymous.
    pub name: Option<String>,
    /// The line of `config`.
    pub line: usize,
    /// Its options and lists, in the order in which they came first. Each has a value.
    pub options: Vec<Setting>,
}

/// An option or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its values: one, or those of a list; never none, and none of them empty.
    pub values: Vec<Word>,
    /// Is it a list?
    pub is_list: bool,
}

/// A word without its quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The text.
    pub text: String,
    /// The line on which it begins.
    pub line: usize,
}

impl Section {
    /// The option or list `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.options.iter().find(|setting| setting.name == name)
    }

    /// The value of the option `name`; of a list the last.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&Word> {
        self.get(name).and_then(|setting| setting.values.last())
    }

    /// The values of the list `name`, those of an option that has blanks between its values included.
    pub fn values(&self, name: &str) -> impl Iterator<Item = Word> {
        let values = self.get(name).into_iter().flat_map(|setting| &setting.values);
        values.flat_map(|value| {
            value.text.split_whitespace().map(|text| Word { text: text.to_owned(), line: value.line })
        })
    }
}

/// Reads the bytes of a file.
///
/// # Errors
/// The first place where they are not UCI.
pub fn parse(bytes: &[u8]) -> Result<Document, UciError> {
    if bytes.len() > MAX_BYTES {
        return Err(UciError { line: 1, kind: UciErrorKind::Large });
    }
    let text = str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        UciError { line: 1 + before.iter().filter(|byte| **byte == b'\n').count(), kind: UciErrorKind::NotText }
    })?;
    let mut reader = Reader { rest: text.strip_prefix('\u{feff}').unwrap_or(text), line: 1 };
    let mut builder = Builder::default();
    while let Some(words) = reader.command()? {
        builder.add(words)?;
    }
    Ok(builder.document)
}

/// The text that is not read yet.
struct Reader<'t> {
    rest: &'t str,
    line: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Takes the next character.
    fn take(&mut self) -> Result<Option<char>, UciError> {
        let Some(next) = self.peek() else { return Ok(None) };
        self.rest = self.rest.get(next.len_utf8()..).unwrap_or_default();
        match next {
            '\0' => return Err(self.error(UciErrorKind::Nul)),
            '\n' => self.line += 1,
            _ => {}
        }
        Ok(Some(next))
    }

    fn error(&self, kind: UciErrorKind) -> UciError {
        UciError { line: self.line, kind }
    }

    /// The words of the next command; `None` at the end.
    fn command(&mut self) -> Result<Option<Vec<Word>>, UciError> {
        let mut words = Vec::new();
        loop {
            match self.peek() {
                None if words.is_empty() => return Ok(None),
                None => return Ok(Some(words)),
                Some('\n' | ';') => {
                    self.take()?;
                    if !words.is_empty() {
                        return Ok(Some(words));
                    }
                }
                Some('#') => self.rest = self.rest.find('\n').and_then(|end| self.rest.get(end..)).unwrap_or_default(),
                Some(blank) if is_blank(blank) => {
                    self.take()?;
                }
                Some('\\') if self.continues() => {
                    self.escaped()?;
                }
                Some(_) => {
                    let word = self.word()?;
                    // Only the first words matter: one that is too much is a fault already.
                    if words.len() <= MOST_WORDS {
                        words.push(word);
                    }
                }
            }
        }
    }

    /// Does a line that is joined with this one follow?
    fn continues(&self) -> bool {
        ["\\\n", "\\\r\n"].iter().any(|end| self.rest.starts_with(end)) || self.rest == "\\"
    }

    /// Takes a `\` and what follows it; `None` if that was the end of the line, or of the file.
    fn escaped(&mut self) -> Result<Option<char>, UciError> {
        let continues = self.continues();
        self.take()?;
        if !continues {
            return self.take();
        }
        while let Some(next) = self.take()? {
            if next == '\n' {
                break;
            }
        }
        Ok(None)
    }

    fn word(&mut self) -> Result<Word, UciError> {
        let mut word = Word { text: String::new(), line: self.line };
        while let Some(next) = self.peek() {
            match next {
                '\'' | '"' => self.quoted(&mut word)?,
                '\\' => word.text.extend(self.escaped()?),
                '#' | ';' => break,
                next if is_blank(next) || next == '\n' => break,
                _ => word.text.extend(self.take()?),
            }
            if word.text.len() > MAX_WORD {
                return Err(UciError { line: word.line, kind: UciErrorKind::Long });
            }
        }
        Ok(word)
    }

    fn quoted(&mut self, word: &mut Word) -> Result<(), UciError> {
        let line = self.line;
        let quote = self.take()?.unwrap_or('\'');
        while let Some(next) = self.peek() {
            if next == quote {
                self.take()?;
                return Ok(());
            }
            if next == '\\' && quote == '"' {
                word.text.extend(self.escaped()?);
            } else {
                word.text.extend(self.take()?);
            }
            if word.text.len() > MAX_WORD {
                return Err(UciError { line, kind: UciErrorKind::Long });
            }
        }
        Err(UciError { line, kind: UciErrorKind::Unclosed(quote) })
    }
}

/// How many words the longest command has, with its name.
const MOST_WORDS: usize = 3;

/// White space of C but the end of a line.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\x0b' | '\x0c')
}

/// The sections so far.
#[derive(Default)]
struct Builder {
    document: Document,
    package: Option<String>,
    /// The section that options go to.
    current: Option<usize>,
    /// The places of named sections.
    named: HashMap<(Option<String>, String), usize>,
    values: usize,
}

impl Builder {
    fn add(&mut self, words: Vec<Word>) -> Result<(), UciError> {
        let mut words = words.into_iter();
        let Some(command) = words.next() else { return Ok(()) };
        let fault = |kind| UciError { line: command.line, kind };
        let (name, first, second) = match command.text.as_str() {
            "config" | "c" => ("config", "a type", true),
            "option" | "o" => ("option", "a name", true),
            "list" | "l" => ("list", "a name", true),
            "package" | "p" => ("package", "a name", false),
            other => return Err(fault(UciErrorKind::Command(clipped(other)))),
        };
        let first =
            words.next().filter(|word| !word.text.is_empty()).ok_or_else(|| fault(UciErrorKind::Lacks(name, first)))?;
        check_name(&first)?;
        let second = if second { words.next() } else { None };
        if let Some(further) = words.next() {
            return Err(UciError { line: further.line, kind: UciErrorKind::Further(clipped(&further.text), name) });
        }
        match name {
            "package" => {
                self.package = Some(first.text);
                self.current = None;
                Ok(())
            }
            "config" => self.section(command.line, first, second),
            _ => self.setting(command.line, name, first, second),
        }
    }

    fn section(&mut self, line: usize, kind: Word, name: Option<Word>) -> Result<(), UciError> {
        let name = name.filter(|name| !name.text.is_empty());
        if let Some(name) = &name {
            check_name(name)?;
            let key = (self.package.clone(), name.text.clone());
            let known = self.named.get(&key).and_then(|index| Some((*index, self.document.sections.get(*index)?)));
            if let Some((index, section)) = known {
                if section.kind != kind.text {
                    let (name, here, there) = (name.text.clone(), kind.text, section.kind.clone());
                    return Err(UciError { line, kind: UciErrorKind::Type { name, here, there, line: section.line } });
                }
                self.current = Some(index);
                return Ok(());
            }
            self.named.insert(key, self.document.sections.len());
        }
        let index = self.document.sections.len();
        if index == MAX_SECTIONS {
            return Err(UciError { line, kind: UciErrorKind::Many(MAX_SECTIONS, "sections") });
        }
        self.document.sections.push(Section {
            package: self.package.clone(),
            kind: kind.text,
            name: name.map(|name| name.text),
            line,
            options: Vec::new(),
        });
        self.current = Some(index);
        Ok(())
    }

    fn setting(&mut self, line: usize, command: &'static str, name: Word, value: Option<Word>) -> Result<(), UciError> {
        let section = self.current.and_then(|index| self.document.sections.get_mut(index));
        let section = section.ok_or(UciError { line, kind: UciErrorKind::NoSection(command) })?;
        let is_list = command == "list";
        let value = value.filter(|value| !value.text.is_empty());
        let known = section.options.iter().position(|setting| setting.name == name.text);
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(UciError { line, kind: UciErrorKind::Many(MAX_VALUES, "values") });
        }
        let Some(value) = value else {
            // An option without value is none; an element without text adds nothing to a list.
            if !is_list {
                section.options.retain(|setting| setting.name != name.text);
            }
            return Ok(());
        };
        if let Some(setting) = known.and_then(|index| section.options.get_mut(index)) {
            if !is_list {
                setting.values.clear();
            }
            setting.is_list = is_list;
            setting.values.push(value);
        } else if section.options.len() == MAX_OPTIONS {
            return Err(UciError { line, kind: UciErrorKind::Many(MAX_OPTIONS, "options in a section") });
        } else {
            section.options.push(Setting { name: name.text, values: vec![value], is_list });
        }
        Ok(())
    }
}

fn check_name(name: &Word) -> Result<(), UciError> {
    if name.text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(UciError { line: name.line, kind: UciErrorKind::Name(clipped(&name.text)) })
}

/// `text`, cut where it is too long for a message.
pub(super) fn clipped(text: &str) -> String {
    const MOST_CHARS: usize = 60;
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

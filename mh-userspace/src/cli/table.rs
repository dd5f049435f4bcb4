//! Plain aligned tables: what can be read by people and cut by tools.

use std::{fmt::Display, io::IsTerminal as _};

use unicode_width::UnicodeWidthStr as _;

/// Spaces between columns.
const GAP: usize = 2;

/// The escape that ends a colour.
const PLAIN: &str = "\x1b[0m";

/// A colour for a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// All is well.
    Green,
    /// Worth a look.
    Yellow,
    /// Something is wrong.
    Red,
}

impl Colour {
    /// A text in this colour.
    pub fn paint(self, text: &str) -> String {
        format!("{}{text}{PLAIN}", self.escape())
    }

    /// The escape that begins it.
    fn escape(self) -> &'static str {
        match self {
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[31m",
        }
    }
}

/// A column's head and whether its cells are numbers, which stand to the right.
pub type Column = (&'static str, bool);

/// Whether to use colours: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What stands in a row under one head: whatever can be displayed, in one line and without escapes, or the same in a colour.
pub trait Cell {
    /// The text, by whose width the columns are laid out.
    fn text(&self) -> &dyn Display;

    /// Its colour, if it has one.
    fn colour(&self) -> Option<Colour> {
        None
    }
}

impl<T: Display> Cell for T {
    fn text(&self) -> &dyn Display {
        self
    }
}

/// A cell in a colour.
pub struct Painted<T>(pub T, pub Colour);

impl<T: Display> Cell for Painted<T> {
    fn text(&self) -> &dyn Display {
        &self.0
    }

    fn colour(&self) -> Option<Colour> {
        Some(self.1)
    }
}

/// A cell that is stored.
struct Placed {
    length: usize,
    width: usize,
    colour: Option<Colour>,
}

/// A table: two spaces between columns, no borders, no space at the ends of lines.
///
/// It is laid out by the bare texts. Colours are put around them after that, and move nothing.
pub struct Table<const N: usize> {
    columns: [Column; N],
    widths: [usize; N],
    /// The texts of all cells in the order of reading: as strings of their own they would take several times the memory.
    texts: String,
    cells: Vec<Placed>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub fn new(columns: [Column; N]) -> Self {
        let mut table = Self { columns, widths: [0; N], texts: String::new(), cells: Vec::new() };
        table.row(columns.each_ref().map(|(head, _)| head as &dyn Cell));
        table
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [&dyn Cell; N]) {
        for (cell, widest) in cells.iter().zip(&mut self.widths) {
            // Not to_string: a debug build takes a fifth longer with it, for it is compiled here and not with std.
            let text = format!("{}", cell.text());
            // As many characters as bytes: ASCII, as nearly all text is. The width of the rest takes tables to look up.
            let width = if text.chars().count() == text.len() { text.len() } else { text.width() };
            if width > *widest {
                *widest = width;
            }
            self.texts.push_str(&text);
            self.cells.push(Placed { length: text.len(), width, colour: cell.colour() });
        }
    }

    /// The table as text.
    pub fn render(&self, use_colour: bool) -> String {
        let blanks = " ".repeat(self.widths.iter().map(|width| width + GAP).sum());
        let mut out = String::with_capacity(self.texts.len() * 2);
        let mut rest = self.texts.as_str();
        for row in self.cells.chunks(N.max(1)) {
            // Padding waits until text follows.
            let mut pending = 0;
            for ((cell, widest), (_, number)) in row.iter().zip(&self.widths).zip(&self.columns) {
                let text;
                (text, rest) = rest.split_at(cell.length);
                let padding = widest - cell.width;
                if *number {
                    pending += padding;
                }
                if !text.is_empty() {
                    out.push_str(&blanks[..pending]);
                    pending = 0;
                    match cell.colour {
                        Some(colour) if use_colour => {
                            out.push_str(colour.escape());
                            out.push_str(text);
                            out.push_str(PLAIN);
                        }
                        _ => out.push_str(text),
                    }
                }
                if !*number {
                    pending += padding;
                }
                pending += GAP;
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [("UPLINK", false), ("WEIGHT", true), ("REASON", false)];

    /// A text without its escapes.
    pub(in crate::cli) fn bare(text: &str) -> String {
        let mut pieces = text.split('\x1b');
        let first = pieces.next().unwrap().to_owned();
        pieces.fold(first, |text, piece| text + piece.split_once('m').unwrap().1)
    }

    fn table<const N: usize>(columns: [Column; N], rows: &[[&dyn Cell; N]]) -> Table<N> {
        let mut table = Table::new(columns);
        for row in rows {
            table.row(*row);
        }
        table
    }

    #[test]
    fn columns_are_aligned() {
        let table = table([("UPLINK", false), ("WEIGHT", true)], &[[&"isp1", &2], [&"a-longer-one", &65535]]);
        assert_eq!(table.render(true), "UPLINK        WEIGHT\nisp1               2\na-longer-one   65535\n");
    }

    #[test]
    fn empty_cells_leave_no_space_at_the_ends_of_lines() {
        let table = table(COLUMNS, &[[&"isp1", &2, &""], [&"", &"", &"no carrier"], [&"", &"", &""]]);
        assert_eq!(table.render(false), "UPLINK  WEIGHT  REASON\nisp1         2\n                no carrier\n\n");
    }

    #[test]
    fn wide_characters_take_two_places() {
        let table = table(COLUMNS, &[[&"上行", &1, &"a"], [&"ligação", &2, &"b"]]);
        assert_eq!(table.render(false), "UPLINK   WEIGHT  REASON\n上行          1  a\nligação       2  b\n");
    }

    #[test]
    fn heads_stand_alone_without_rows() {
        assert_eq!(table(COLUMNS, &[]).render(true), "UPLINK  WEIGHT  REASON\n");
    }

    #[test]
    fn colours_move_nothing() {
        let table = table(
            COLUMNS,
            &[
                [&Painted("isp1", Colour::Green), &Painted(2, Colour::Red), &Painted("", Colour::Yellow)],
                [&"a-longer-one", &65535, &Painted("no carrier", Colour::Yellow)],
            ],
        );
        let (plain, coloured) = (table.render(false), table.render(true));
        assert!(!plain.contains('\x1b'), "{plain:?}");
        assert_eq!(bare(&coloured), plain);
        assert_eq!(coloured.lines().nth(1), Some("\x1b[32misp1\x1b[0m               \x1b[31m2\x1b[0m"));
    }
}

//! Plain aligned tables: what can be read by people and cut by tools.

use std::io::IsTerminal as _;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

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

/// A column's head and whether its cells are numbers, which stand to the right.
pub type Column = (&'static str, bool);

/// Whether to use colours: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text in a colour, if colours are used.
pub fn painted(text: &str, colour: Colour, use_colour: bool) -> String {
    if !use_colour {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A table: two spaces between columns, no borders, no space at the ends of lines.
pub fn table(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(head, _)| *head));
    table.add_rows(rows);
    for (column, (_, number)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2)).set_constraint(ColumnConstraint::ContentWidth);
        column.set_cell_alignment(if *number { CellAlignment::Right } else { CellAlignment::Left });
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["isp1".into(), "2".into()], vec!["a-longer-one".into(), "65535".into()]];
        let text = table(&[("UPLINK", false), ("WEIGHT", true)], rows);
        assert_eq!(text, "UPLINK        WEIGHT\nisp1               2\na-longer-one   65535\n");
    }

    #[test]
    fn colour_only_where_it_is_wanted() {
        assert_eq!(painted("up", Colour::Green, false), "up");
        assert_eq!(painted("up", Colour::Green, true), "\x1b[32mup\x1b[0m");
    }
}

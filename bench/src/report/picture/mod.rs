//! Pictures of tables, as SVG: [`bars`] by column, or [`lines`] over the number of flows.
//!
//! A picture is shown by browsers as an image: nothing is loaded, fonts are whatever is there, and only the reader's colour scheme is
//! known. So there is a ground of its own for light and for dark, and room is left for text as wide as common fonts make it. Colours are
//! those of Okabe and Ito, which people with any kind of colour vision tell apart; limits are hatched, lines have marks and dashes as well.

mod bars;
mod lines;
mod scale;
mod svg;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use self::svg::{Style, Svg};
use super::{Table, facts::Facts};
use crate::names::{Kind, contender};

/// Width of all pictures: about that of a README's column.
const WIDTH: f64 = 860.0;
/// Free on all sides.
const MARGIN: f64 = 18.0;
/// Between lines of text.
const LINE: f64 = 18.0;

/// The class in the style sheet by which a row is drawn, see [`svg::STYLE`].
fn class(table: &Table, row: usize) -> &'static str {
    const PEERS: [&str; 4] = ["peer-d", "peer-c", "peer-b", "peer-a"];
    let name = table.rows.get(row).map_or("", |row| row.name.as_str());
    let is_contender = |name: &str| Kind::of(name) != Kind::Peer || name.starts_with(contender::KERNEL);
    if !table.rows.iter().any(|row| is_contender(&row.name)) {
        return "mh";
    }
    if Kind::of(name) == Kind::Limit {
        return "limit";
    }
    let named = [
        (contender::MH_XDP, "mh"),
        (contender::MH_TC, "mh-too"),
        (contender::KERNEL, "peer-a"),
        (contender::ECMP, "peer-b"),
        (contender::IPTABLES, "peer-c"),
        (contender::NFT, "peer-d"),
    ];
    let known = named.into_iter().find(|(known, _)| name.starts_with(known)).map(|(_, class)| class);
    known.unwrap_or_else(|| if Kind::of(name) == Kind::Mh { "mh-too" } else { PEERS[row % PEERS.len()] })
}

/// The picture of a table.
#[must_use]
pub fn draw(table: &Table, facts: &Facts) -> String {
    let mut svg = Svg::new(WIDTH);
    let mut y = MARGIN;
    for line in svg::wrap(&table.title, WIDTH - 2.0 * MARGIN, Style::Title) {
        y += LINE;
        svg.text(MARGIN, y, Style::Title, &line);
        y += 3.0;
    }
    let better = if table.more_is_better { "more is better" } else { "less is better" };
    let mut about = format!("{}, {better}", table.unit);
    match table.rows.get(table.baseline) {
        _ if table.curve().is_some() => about += "; in brackets: the change from so many flows to twice as many",
        Some(base) if table.rows.len() > 1 => about += &format!("; × is the ratio to {}", base.name),
        _ => {}
    }
    y += LINE;
    svg.text(MARGIN, y, Style::Muted, &about);
    y += LINE * 0.5;
    y = match table.curve() {
        Some(counts) => lines::draw(&mut svg, table, &counts, y),
        None => bars::draw(&mut svg, table, y),
    };
    let rounds =
        if facts.rounds == 1 { "1 round".to_owned() } else { format!("medians and spread of {} rounds", facts.rounds) };
    let quick = if facts.quick { ", quick" } else { "" };
    let run = format!("{rounds}{quick}; {}, {} cores, Linux {}, {}", facts.cpu, facts.cores, facts.kernel, facts.date);
    for line in svg::wrap(&run, WIDTH - 2.0 * MARGIN, Style::Muted) {
        y += LINE;
        svg.text(MARGIN, y, Style::Muted, &line);
    }
    svg.finish(y + MARGIN, &table.title)
}

/// Writes the picture of a table to a directory.
///
/// # Errors
/// If the file can't be written.
pub fn write(table: &Table, facts: &Facts, directory: &Path) -> Result<()> {
    let file = directory.join(format!("{}.svg", table.name));
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    fs::write(&file, draw(table, facts)).with_context(|| format!("can't write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Row, tests::table};

    #[test]
    fn contenders_keep_their_colours_in_all_pictures() {
        let mut table = table();
        let names =
            [contender::MH_XDP, contender::MH_TC, contender::XDP_DROP, contender::NFT, "mh, otherwise", "something"];
        table.rows = names.map(|name| Row { name: name.to_owned(), samples: Vec::new() }).to_vec();
        let classes: Vec<_> = (0..names.len()).map(|row| class(&table, row)).collect();
        assert_eq!(classes[..5], ["mh", "mh-too", "limit", "peer-d", "mh-too"]);
        assert!(classes[5].starts_with("peer"));
        table.rows.drain(..3);
        table.rows.remove(1);
        assert_eq!(class(&table, 0), "mh", "where nobody contends, nobody is told apart");
    }
}

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
use super::{Row, Table, facts::Facts};
use crate::names::{self, Kind, contender};

/// Width of all pictures: about that of a README's column.
const WIDTH: f64 = 860.0;
/// Free on all sides.
const MARGIN: f64 = 18.0;
/// Between lines of text.
const LINE: f64 = 18.0;

/// The stem of the picture that the README shows.
const HEADLINE: &str = "headline";

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
    let known = named.into_iter().find(|(known, _)| name.contains(known)).map(|(_, class)| class);
    known.unwrap_or_else(|| if Kind::of(name) == Kind::Mh { "mh" } else { PEERS[row % PEERS.len()] })
}

/// The picture of a table.
#[must_use]
pub fn draw(table: &Table, facts: &Facts) -> String {
    let mut svg = Svg::new(WIDTH);
    let mut y = MARGIN;
    for line in svg::wrap(&table.heading(), WIDTH - 2.0 * MARGIN, Style::Title) {
        y += LINE;
        svg.text(MARGIN, y, Style::Title, &line);
        y += 3.0;
    }
    let better = if table.more_is_better { "more is better" } else { "less is better" };
    let mut about = format!("{}, {better}", table.unit);
    match table.compared_with() {
        _ if table.curve().is_some() => about += "; in brackets: the change from so many flows to twice as many",
        Some(base) => about += &format!("; × is the ratio to {}", base.name),
        None => {}
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
    svg.finish(y + MARGIN, &table.heading())
}

/// What the README shows of a table, if it shows anything: a picture of its own with some of the columns.
#[must_use]
pub fn headline(table: &Table) -> Option<Table> {
    if table.name != names::table::FORWARD {
        return None;
    }
    let is_shown = |column: &&String| column.starts_with("64 B, ") && column.ends_with(", forward");
    let columns: Vec<usize> = (0..table.columns.len()).filter(|at| is_shown(&&table.columns[*at])).collect();
    let rows = table.rows.iter().enumerate().map(|(number, row)| Row {
        name: row.name.clone(),
        samples: columns.iter().map(|column| table.samples(number, *column).to_vec()).collect(),
    });
    let flows = columns.iter().filter_map(|column| names::flows_in(&table.columns[*column]));
    (!columns.is_empty()).then(|| Table {
        name: HEADLINE,
        title: "Packets of 64 bytes from the LAN to two uplinks, on one core".to_owned(),
        rows: rows.collect(),
        columns: flows.map(in_turn).collect(),
        ..table.clone()
    })
}

fn in_turn(flows: u64) -> String {
    if flows == 1 { names::flows(1) } else { format!("{} in turn", names::flows(flows)) }
}

/// Writes the pictures of a table to a directory.
///
/// # Errors
/// If a file can't be written.
pub fn write(table: &Table, facts: &Facts, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    for table in [Some(table), headline(table).as_ref()].into_iter().flatten() {
        let file = directory.join(format!("{}.svg", table.name));
        fs::write(&file, draw(table, facts)).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Row, tests::table};

    #[test]
    fn the_headline_is_a_part_of_one_table() {
        let mut table = table();
        table.name = names::table::FORWARD;
        assert!(headline(&table).is_none(), "no such columns");
        table.columns = ["64 B, 1 Ki flows, forward", "512 B, 1 Ki flows, forward"].map(str::to_owned).to_vec();
        let shown = headline(&table).map(|table| (table.columns.clone(), table.figure(1, 0)));
        assert_eq!(shown, Some((vec!["1 Ki flows in turn".to_owned()], table.figure(1, 0))));
        table.name = names::table::TCP;
        assert!(headline(&table).is_none());
    }

    #[test]
    fn contenders_keep_their_colours_in_all_pictures() {
        let mut table = table();
        let names =
            [contender::MH_XDP, contender::MH_TC, contender::XDP_DROP, contender::NFT, "mh, otherwise", "something"];
        table.rows = names.map(|name| Row { name: name.to_owned(), samples: Vec::new() }).to_vec();
        let classes: Vec<_> = (0..names.len()).map(|row| class(&table, row)).collect();
        assert_eq!(classes[..5], ["mh", "mh-too", "limit", "peer-d", "mh"]);
        assert!(classes[5].starts_with("peer"));
        table.rows.drain(..3);
        table.rows.remove(1);
        assert_eq!(class(&table, 0), "mh", "where nobody contends, nobody is told apart");
    }
}

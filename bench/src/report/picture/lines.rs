//! Curves over the number of flows, on an axis of powers of two, with names at their ends.

use super::{
    LINE, MARGIN, Style, Svg, WIDTH, class,
    scale::{Linear, flow_ticks, spread_out, ticks},
    svg::width,
};
use crate::report::{Spread, Table, as_f64, shown};

/// The plot's height.
const HEIGHT: f64 = 330.0;
/// From one name to the next.
const NAMES: f64 = 17.0;
/// Half a mark's width.
const MARK: f64 = 3.5;
/// The most numbers of flows that are named.
const FLOW_TICKS: u32 = 7;

/// Draws the curves below `y`; returns where the picture ends.
pub fn draw(svg: &mut Svg, table: &Table, counts: &[u64], y: f64) -> f64 {
    let names: Vec<String> = (0..table.rows.len()).map(|row| name(table, row)).collect();
    let room = names.iter().map(|name| width(name, Style::Plain)).fold(0.0, f64::max);
    let figures = |row: usize| (0..counts.len()).map(move |column| table.figure(row, column));
    let most = (0..table.rows.len()).flat_map(figures).flatten().map(|figure| figure.max).fold(0.0, f64::max);
    let ticks = ticks(most);
    let labels: Vec<String> = ticks.iter().map(|tick| shown_tick(*tick)).collect();
    let left = MARGIN + labels.iter().map(|label| width(label, Style::Muted)).fold(0.0, f64::max) + 8.0;
    let right = WIDTH - MARGIN - room - 26.0;
    let (top, bottom) = (y + 14.0, y + 14.0 + HEIGHT);
    let vertical = Linear { most: ticks.last().copied().unwrap_or(1.0), zero: bottom, end: top };
    let log2 = |count: u64| as_f64(count.max(1)).log2();
    let first = counts.first().map_or(0.0, |count| log2(*count));
    let span = counts.last().map_or(1.0, |count| log2(*count) - first);
    let horizontal = Linear { most: span, zero: left, end: right };
    let x = |count: u64| horizontal.at(log2(count) - first);

    for (tick, label) in ticks.iter().zip(&labels) {
        let at = vertical.at(*tick);
        svg.line((left, at), (right, at), "grid");
        svg.text_to(left - 8.0, at + 4.0, Style::Muted, label);
    }
    svg.line((left, bottom), (right, bottom), "axis");
    for (count, label) in flow_ticks(counts, FLOW_TICKS) {
        svg.line((x(count), bottom), (x(count), bottom + 5.0), "axis");
        svg.text_at(x(count), bottom + 19.0, Style::Muted, &label);
    }
    svg.text_at(f64::midpoint(left, right), bottom + 38.0, Style::Muted, "flows");

    let last = |row: usize| figures(row).flatten().last().map(|figure| vertical.at(figure.median));
    let measured: Vec<usize> = (0..table.rows.len()).filter(|row| last(*row).is_some()).collect();
    let wanted: Vec<f64> = measured.iter().filter_map(|row| last(*row)).collect();
    let places = spread_out(&wanted, NAMES, top, bottom);
    for ((row, end), place) in measured.iter().zip(&wanted).zip(places) {
        let points: Vec<(f64, Spread)> =
            counts.iter().zip(figures(*row)).filter_map(|(count, figure)| Some((x(*count), figure?))).collect();
        curve(svg, &points, &vertical, class(table, *row), *row);
        let x = points.last().map_or(right, |(x, _)| *x);
        svg.path(
            &[(x + 6.0, *end), (right + 14.0, place), (right + 20.0, place)],
            false,
            "",
            &format!("line {}", class(table, *row)),
        );
        svg.text(right + 24.0, place + 4.0, Style::Plain, names.get(*row).map_or("", String::as_str));
    }
    bottom + 38.0 + LINE * 0.5
}

/// A contender's name with its slope.
fn name(table: &Table, row: usize) -> String {
    let name = table.rows.get(row).map_or("", |row| row.name.as_str());
    let slope = table.slope(row).map(|factor| format!(" ({:+.1} %)", (factor - 1.0) * 100.0).replace('-', "−"));
    format!("{name}{}", slope.unwrap_or_default())
}

/// A figure at an axis, without digits that are zero anyway.
fn shown_tick(tick: f64) -> String {
    if tick.fract() == 0.0 { format!("{tick:.0}") } else { shown(tick) }
}

/// The band from least to greatest, the line of medians, and a mark at each.
fn curve(svg: &mut Svg, points: &[(f64, Spread)], axis: &Linear, class: &str, row: usize) {
    const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];
    let upper = points.iter().map(|(x, figure)| (*x, axis.at(figure.max)));
    let lower = points.iter().rev().map(|(x, figure)| (*x, axis.at(figure.min)));
    svg.path(&upper.chain(lower).collect::<Vec<_>>(), true, "", &format!("band {class}"));
    let medians: Vec<(f64, f64)> = points.iter().map(|(x, figure)| (*x, axis.at(figure.median))).collect();
    let is_mh = class.starts_with("mh");
    svg.path(&medians, false, if is_mh { "" } else { DASHES[row % DASHES.len()] }, &format!("line {class}"));
    for (x, y) in medians {
        mark(svg, x, y, class, row);
    }
}

/// A mark: another form for each of four rows.
fn mark(svg: &mut Svg, x: f64, y: f64, class: &str, row: usize) {
    let corners: &[(f64, f64)] = match row % 4 {
        0 => &[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        1 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        2 => &[(0.0, -1.2), (1.2, 1.0), (-1.2, 1.0)],
        _ => &[(-1.2, -1.0), (1.2, -1.0), (0.0, 1.2)],
    };
    let points: Vec<(f64, f64)> = corners.iter().map(|(dx, dy)| (x + dx * MARK, y + dy * MARK)).collect();
    svg.path(&points, true, "", class);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{names, report::tests::table};

    #[test]
    fn curves_have_points_names_and_slopes() {
        let mut table = table();
        let counts = [1, 1024, 1 << 20];
        table.columns = counts.map(names::flows).to_vec();
        table.rows[0].samples = vec![vec![8.0], vec![8.0], vec![8.0]];
        table.rows[1].samples = vec![vec![6.0], vec![6.0], vec![6.0]];
        table.rows[2].samples = vec![vec![], vec![], vec![]];
        let mut svg = Svg::new(WIDTH);
        let end = draw(&mut svg, &table, &counts, 0.0);
        let text = svg.finish(end, "");
        assert!(text.contains(">mh, XDP (+0.0 %)<") && text.contains(">4 Ki<"), "{text}");
        assert!(!text.contains("lazy"), "nothing was measured of it");
        // Per row a band, a line, three marks, and the way to its name.
        assert_eq!(text.matches("<path").count(), 2 * 6, "{text}");
    }
}

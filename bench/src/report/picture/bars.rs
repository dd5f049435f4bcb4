//! Horizontal bars: a panel for each column, two panels side by side, the contenders' names once to the left of both.

use super::{LINE, MARGIN, Style, Svg, WIDTH, class, scale::Linear, svg::width};
use crate::report::{Table, shown};

/// Between two bars' upper edges.
const ROW: f64 = 20.0;
/// A bar's height.
const BAR: f64 = 13.0;
/// Between panels.
const GAP: f64 = 22.0;
/// From a bar's upper edge to the line its text stands on.
const BASE: f64 = 11.0;
/// Panels share a scale as long as none would be drawn smaller than this share of it.
const LEAST_SHARE: f64 = 0.2;
/// How many stand side by side, at most.
const SIDE_BY_SIDE: usize = 2;

/// Draws all panels below `y`; returns where they end.
pub fn draw(svg: &mut Svg, table: &Table, y: f64) -> f64 {
    let names = table.rows.iter().map(|row| width(&row.name, Style::Plain)).fold(0.0, f64::max);
    let left = MARGIN + names + 10.0;
    let whole = WIDTH - MARGIN - left;
    let half = (whole - GAP) / 2.0;
    let heads_fit = table.columns.iter().all(|column| width(column, Style::Head) <= half);
    let (beside, panel) = if table.columns.len() > 1 && heads_fit { (SIDE_BY_SIDE, half) } else { (1, whole) };
    let most: Vec<f64> = (0..table.columns.len()).map(|column| greatest(table, column)).collect();
    let overall = most.iter().copied().fold(0.0, f64::max);
    let shared = most.iter().all(|most| *most >= overall * LEAST_SHARE);
    // Behind the longest bar there is room for its figure.
    let room = (0..table.columns.len())
        .flat_map(|column| (0..table.rows.len()).map(move |row| (row, column)))
        .map(|(row, column)| figure_width(table, row, column))
        .fold(0.0, f64::max);
    let mut y = y;
    for (group, columns) in table.columns.chunks(beside).enumerate() {
        y += LINE;
        for (place, column) in columns.iter().enumerate() {
            let x = left + if place == 0 { 0.0 } else { panel + GAP };
            svg.text(x, y, Style::Head, column);
        }
        y += 7.0;
        for (row, contender) in table.rows.iter().enumerate() {
            svg.text_to(left - 8.0, y + BASE, Style::Plain, &contender.name);
            for place in 0..columns.len() {
                let column = group * beside + place;
                let x = left + if place == 0 { 0.0 } else { panel + GAP };
                let most = if shared { overall } else { most.get(column).copied().unwrap_or(overall) };
                bar(svg, table, (row, column), y, &Linear { most, zero: x, end: x + panel - room });
            }
            y += ROW;
        }
        y += 6.0;
    }
    y
}

/// The greatest sample of a column.
fn greatest(table: &Table, column: usize) -> f64 {
    let figures = (0..table.rows.len()).filter_map(|row| table.figure(row, column));
    figures.map(|figure| figure.max).fold(0.0, f64::max)
}

/// The figure's texts: itself, and its ratio.
fn texts(table: &Table, row: usize, column: usize) -> (String, String) {
    let Some(figure) = table.figure(row, column) else { return (String::new(), "not measured".to_owned()) };
    let ratio = table.ratio(row, column).filter(|_| table.compared_with().is_some());
    (shown(figure.median), ratio.map_or(String::new(), |ratio| format!("{:.2}×", ratio.median)))
}

fn figure_width(table: &Table, row: usize, column: usize) -> f64 {
    let (figure, ratio) = texts(table, row, column);
    6.0 + width(&figure, Style::Plain) + 7.0 + width(&ratio, Style::Muted)
}

fn bar(svg: &mut Svg, table: &Table, (row, column): (usize, usize), y: f64, axis: &Linear) {
    let (text, ratio) = texts(table, row, column);
    let Some(figure) = table.figure(row, column) else {
        svg.text(axis.zero + 4.0, y + BASE, Style::Muted, &ratio);
        return;
    };
    svg.rectangle(axis.zero, y, (axis.at(figure.median) - axis.zero).max(1.0), BAR, class(table, row));
    let (least, greatest, middle) = (axis.at(figure.min), axis.at(figure.max), y + BAR / 2.0);
    if greatest - least > 2.0 {
        svg.line((least, middle), (greatest, middle), "spread");
        for end in [least, greatest] {
            svg.line((end, middle - 3.0), (end, middle + 3.0), "spread");
        }
    }
    let x = greatest.max(axis.at(figure.median)) + 6.0;
    svg.figure(x, y + BASE, &text, &ratio);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::table;

    #[test]
    fn every_figure_has_a_bar_within_the_picture() {
        let mut svg = Svg::new(WIDTH);
        let end = draw(&mut svg, &table(), 0.0);
        let text = svg.finish(end, "");
        assert_eq!(text.matches("<rect").count(), 1 + 5, "the ground, and five figures: {text}");
        assert!(text.contains("not measured") && text.contains(">0.75×<"), "{text}");
        for x in text.split(" x=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok()) {
            assert!((0.0..WIDTH).contains(&x), "{x}");
        }
    }

    #[test]
    fn panels_that_differ_much_have_scales_of_their_own() {
        let widths = |table: &Table| {
            let mut svg = Svg::new(WIDTH);
            let end = draw(&mut svg, table, 0.0);
            let text = svg.finish(end, "");
            let bars = text.split("<rect ").filter(|rect| rect.contains("class=\"mh"));
            bars.filter_map(|rect| rect.split("width=\"").nth(1)?.split('"').next()?.parse::<f64>().ok())
                .collect::<Vec<_>>()
        };
        let mut table = table();
        let shared = widths(&table);
        assert!(shared[1] < shared[0], "{shared:?}");
        for row in &mut table.rows {
            row.samples[0].iter_mut().for_each(|sample| *sample *= 100.0);
        }
        let own = widths(&table);
        assert!(own[1] > shared[1], "{own:?}");
    }
}

//! Writes SVG: shapes, text, and what is common to all pictures.

use std::fmt::Write as _;

/// Colours for light and dark, and the classes that shapes have.
pub const STYLE: &str = "\
  .ground{fill:#ffffff;stroke:#d0d7de}.grid{stroke:#d8dee4}.axis{stroke:#57606a}
  text{font-family:system-ui,sans-serif;font-size:13px;fill:#1f2328}
  .title{font-size:16px;font-weight:600}.head{font-weight:600}.muted{font-size:12px;fill:#57606a}
  .end{text-anchor:end}.middle{text-anchor:middle}
  .mh{fill:#0072b2;stroke:#0072b2}.mh-too{fill:#56b4e9;stroke:#56b4e9}
  .peer-a{fill:#e69f00;stroke:#e69f00}.peer-b{fill:#cc79a7;stroke:#cc79a7}
  .peer-c{fill:#d55e00;stroke:#d55e00}.peer-d{fill:#009e73;stroke:#009e73}
  .limit{fill:url(#hatch);stroke:#8c959f}.hatch{stroke:#8c959f}line.limit,path.limit{stroke:#8c959f}
  path.band{stroke:none;opacity:.13}path.band.limit{fill:#8c959f}path.line{fill:none;stroke-width:2}.spread{stroke:#1f2328;stroke-width:1.2}
  @media (prefers-color-scheme:dark){
    .ground{fill:#0d1117;stroke:#30363d}.grid{stroke:#262c36}.axis{stroke:#8b949e}
    text{fill:#e6edf3}.muted{fill:#9198a1}.spread{stroke:#e6edf3}
    .mh{fill:#1f8fd6;stroke:#1f8fd6}.mh-too{fill:#7cc8f2;stroke:#7cc8f2}
  }
";

/// A kind of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The picture's title.
    Title,
    /// Above a group.
    Head,
    /// A name or a figure.
    Plain,
    /// What is not read first.
    Muted,
}

impl Style {
    /// Its class.
    const fn class(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Head => "head",
            Self::Plain => "plain",
            Self::Muted => "muted",
        }
    }

    /// A character's width, in pixels: the mean of wide fonts.
    const fn advance(self) -> f64 {
        match self {
            Self::Title => 10.0,
            Self::Head => 8.6,
            Self::Plain => 7.9,
            Self::Muted => 7.3,
        }
    }
}

/// Room that a text takes at most.
#[must_use]
pub fn width(text: &str, style: Style) -> f64 {
    text.chars().map(|_| style.advance()).sum()
}

/// A text in lines of at most that width, broken at spaces.
#[must_use]
pub fn wrap(text: &str, most: f64, style: Style) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line, style) + width(word, style) + style.advance() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A text as it may stand in SVG, in an attribute as well.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not even as references are others allowed in XML.
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A picture in the making.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    body: String,
}

impl Svg {
    /// An empty one.
    #[must_use]
    pub const fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    /// Text that begins at `x`, on the line at `y`.
    pub fn text(&mut self, x: f64, y: f64, style: Style, text: &str) {
        let _ =
            writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{}\">{}</text>", style.class(), escape(text));
    }

    /// A figure that begins at `x`, and more about it behind.
    pub fn figure(&mut self, x: f64, y: f64, figure: &str, more: &str) {
        let (figure, more) = (escape(figure), escape(more));
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"plain\">{figure}<tspan dx=\"7\" class=\"muted\">{more}</tspan></text>"
        );
    }

    /// Text that ends at `x`.
    pub fn text_to(&mut self, x: f64, y: f64, style: Style, text: &str) {
        let (class, text) = (style.class(), escape(text));
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class} end\">{text}</text>");
    }

    /// Text around `x`.
    pub fn text_at(&mut self, x: f64, y: f64, style: Style, text: &str) {
        let (class, text) = (style.class(), escape(text));
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class} middle\">{text}</text>");
    }

    /// A rectangle.
    pub fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" class=\"{class}\"/>"
        );
    }

    /// A line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"{class}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// A path through points; `dashes`: lengths of strokes and gaps, empty for none.
    pub fn path(&mut self, points: &[(f64, f64)], closed: bool, dashes: &str, class: &str) {
        let mut data = String::new();
        for (number, (x, y)) in points.iter().enumerate() {
            let _ = write!(data, "{}{x:.1} {y:.1}", if number == 0 { "M" } else { " L" });
        }
        let close = if closed { " Z" } else { "" };
        let dashes = if dashes.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dashes}\"") };
        let _ = writeln!(self.body, "<path d=\"{data}{close}\"{dashes} class=\"{class}\"/>");
    }

    /// The whole file.
    #[must_use]
    pub fn finish(self, height: f64, title: &str) -> String {
        let Self { width, body } = self;
        let (right, bottom, title) = (width - 1.0, height - 1.0, escape(title));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
             <defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
             <line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\" stroke-width=\"3\" class=\"hatch\"/></pattern></defs>\n\
             <rect x=\"0.5\" y=\"0.5\" width=\"{right:.0}\" height=\"{bottom:.0}\" rx=\"6\" class=\"ground\"/>\n{body}</svg>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b> & \"c\" 'd'\u{7}"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39; ");
        let mut svg = Svg::new(100.0);
        svg.text(1.0, 2.0, Style::Plain, "<script>");
        let text = svg.finish(50.0, "a & b");
        assert!(text.contains(">&lt;script&gt;<") && text.contains("<title>a &amp; b</title>"), "{text}");
        assert!(!text.contains("<script>"));
    }

    #[test]
    fn text_is_broken_at_spaces() {
        let one = Style::Plain.advance();
        assert_eq!(wrap("aa bb cc", 5.0 * one + 0.1, Style::Plain), ["aa bb", "cc"]);
        assert_eq!(wrap("aaaaaaaa b", 5.0 * one, Style::Plain), ["aaaaaaaa", "b"], "a long word stays whole");
        assert_eq!(wrap("", 10.0, Style::Plain), Vec::<String>::new());
    }

    #[test]
    fn shapes_are_closed_elements() {
        let mut svg = Svg::new(100.0);
        svg.rectangle(0.0, 0.0, 10.0, 10.0, "mh");
        svg.line((0.0, 0.0), (1.0, 1.0), "axis");
        svg.path(&[(0.0, 0.0), (1.0, 1.0)], true, "4 2", "line");
        svg.text_to(5.0, 5.0, Style::Head, "x");
        let text = svg.finish(20.0, "t");
        assert!(text.contains("<path d=\"M0.0 0.0 L1.0 1.0 Z\" stroke-dasharray=\"4 2\" class=\"line\"/>"), "{text}");
        assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
    }
}

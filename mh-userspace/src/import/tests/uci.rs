//! The format: quoting, comments, commands, merging, and faults with their lines.

use super::super::uci::{
    Document, MAX_BYTES, MAX_OPTIONS, MAX_SECTIONS, MAX_VALUES, MAX_WORD, UciError, UciErrorKind, parse,
};

fn document(text: &str) -> Document {
    parse(text.as_bytes()).unwrap_or_else(|error| panic!("line {}: {error}", error.line))
}

/// The values of option x of the first section.
fn values(text: &str) -> Vec<String> {
    let document = document(&format!("config t\n{text}"));
    let values = document.sections[0].get("x").map(|setting| setting.values.clone()).unwrap_or_default();
    values.into_iter().map(|value| value.text).collect()
}

fn error(text: impl AsRef<[u8]>) -> UciError {
    parse(text.as_ref()).unwrap_err()
}

#[test]
fn words_are_quoted_in_every_way() {
    for (written, value) in [
        ("plain", "plain"),
        ("'a b'", "a b"),
        ("\"a b\"", "a b"),
        (r#"'a\b'"#, r"a\b"),
        (r#""a\"b\\c\d""#, r#"a"b\cd"#),
        (r"a\ b\'c", "a b'c"),
        (r"'it'\''s'", "it's"),
        (r#"'it'"'"'s'"#, "it's"),
        (r#"a'b c'"d e"f"#, "ab cd ef"),
        ("'# ; no comment'", "# ; no comment"),
        ("a#comment", "a"),
        ("a # comment 'open", "a"),
        ("'two\nlines'", "two\nlines"),
        ("two\\\nparts", "twoparts"),
        ("two\\\r\nparts", "twoparts"),
        ("\"two\\\nparts\"", "twoparts"),
        ("\\\n  far", "far"),
        ("'käse ☃'", "käse ☃"),
        ("end\\", "end"),
    ] {
        assert_eq!(values(&format!("option x {written}")), [value], "{written}");
        assert_eq!(values(&format!("\t option\tx\t{written}\r\n")), [value], "{written}");
    }
    for nothing in ["option x", "option x ''", "option x \"\"", "option x # a comment", "list x ''"] {
        assert!(values(nothing).is_empty(), "{nothing}");
    }
}

#[test]
fn commands_are_lines_or_have_semicolons_between_them() {
    let long = document("package p\nconfig t 'n'\n\toption a '1'\n\tlist b '2'\n\tlist b '3'\n");
    assert_eq!(long.sections[0].package.as_deref(), Some("p"));
    assert_eq!(long.sections[0].name.as_deref(), Some("n"));
    let mut short = document("\u{feff}p p; c t n; o a 1; l b 2; l b 3");
    let line_of = |line: usize| [0, 2, 3, 4, 5][line];
    short.sections[0].line = line_of(1);
    for (setting, lines) in short.sections[0].options.iter_mut().zip([&[2][..], &[3, 4]]) {
        setting.values.iter_mut().zip(lines).for_each(|(value, line)| value.line = line_of(*line));
    }
    assert_eq!(short, long);
    assert_eq!(document(" \n# nothing\n\n  #more\n;;\n"), Document::default());
}

#[test]
fn what_comes_twice_is_one() {
    let text = "config t a\noption x 1\nlist y 1\nconfig t b\nconfig t a\noption x 2\nlist y 2\noption z 1\noption z\n";
    let document = document(text);
    assert_eq!(document.sections.len(), 2);
    let first = &document.sections[0];
    assert_eq!((first.line, first.options.len()), (1, 2));
    let x = first.value("x").unwrap();
    assert_eq!((x.text.as_str(), x.line), ("2", 6));
    assert_eq!(first.values("y").map(|word| word.line).collect::<Vec<_>>(), [3, 7]);
    assert_eq!(values("option x 1\nlist x 2"), ["1", "2"]);
    assert_eq!(values("list x 1\nlist x 2\noption x 3"), ["3"]);
    // Sections without name are each for itself, and so are those of several packages.
    let apart = parse(b"config t\nconfig t\nconfig t a\npackage p\nconfig u a\n").unwrap();
    assert_eq!(apart.sections.len(), 4);
}

#[test]
fn faults_have_their_line() {
    let name = |text: &str| text.to_owned();
    for (text, line, kind) in [
        ("config t\n  setting x 1\n", 2, UciErrorKind::Command(name("setting"))),
        ("\n\nconfigure t\n", 3, UciErrorKind::Command(name("configure"))),
        ("config\n", 1, UciErrorKind::Lacks("config", "a type")),
        ("config t\noption\n", 2, UciErrorKind::Lacks("option", "a name")),
        ("config t; list ''\n", 1, UciErrorKind::Lacks("list", "a name")),
        ("package # p\n", 1, UciErrorKind::Lacks("package", "a name")),
        ("config t n more\n", 1, UciErrorKind::Further(name("more"), "config")),
        ("config t\noption x 1 2 3 4 5\n", 2, UciErrorKind::Further(name("2"), "option")),
        ("package p q\n", 1, UciErrorKind::Further(name("q"), "package")),
        ("config 'a b'\n", 1, UciErrorKind::Name(name("a b"))),
        ("config t 'é'\n", 1, UciErrorKind::Name(name("é"))),
        ("config t\noption 'x\n' 1\n", 2, UciErrorKind::Name(name("x\n"))),
        ("# c\noption x 1\n", 2, UciErrorKind::NoSection("option")),
        ("config t\npackage p\nlist x 1\n", 3, UciErrorKind::NoSection("list")),
        ("config t\n\noption x 'open\nand on\n", 3, UciErrorKind::Unclosed('\'')),
        ("config t\noption x \"a\nb\" \"open\\\"\n", 3, UciErrorKind::Unclosed('"')),
        ("config t\noption x a\0b\n", 2, UciErrorKind::Nul),
    ] {
        assert_eq!(error(text), UciError { line, kind }, "{text:?}");
    }
    let (there, here) = (name("t"), name("u"));
    let kind = UciErrorKind::Type { name: name("a"), here, there, line: 2 };
    assert_eq!(error("\nconfig t a\nconfig u a\n"), UciError { line: 3, kind });
    assert_eq!(error(b"config t\noption x '\xff'\n"), UciError { line: 2, kind: UciErrorKind::NotText });
}

#[test]
fn everything_is_bounded() {
    assert_eq!(error(vec![b'#'; MAX_BYTES + 1]).kind, UciErrorKind::Large);
    assert!(parse(&vec![b'#'; MAX_BYTES]).is_ok());
    let word = "x".repeat(MAX_WORD);
    assert_eq!(values(&format!("option x {word}")), std::slice::from_ref(&word));
    for written in [format!("{word}x"), format!("'{word}x'"), format!("'{word}'\"x\"")] {
        assert_eq!(error(format!("config t\noption x {written}\n")).kind, UciErrorKind::Long);
    }
    let sections = |number| "config t\n".repeat(number);
    assert!(parse(sections(MAX_SECTIONS).as_bytes()).is_ok());
    assert!(matches!(error(sections(MAX_SECTIONS + 1)).kind, UciErrorKind::Many(MAX_SECTIONS, _)));
    let options =
        |number| (0..number).fold("config t\n".to_owned(), |text, option| text + &format!("option o{option} 1\n"));
    assert!(parse(options(MAX_OPTIONS).as_bytes()).is_ok());
    let many = UciErrorKind::Many(MAX_OPTIONS, "options in a section");
    assert_eq!(error(options(MAX_OPTIONS + 1)), UciError { line: MAX_OPTIONS + 2, kind: many });
    let values = |number| "config t\n".to_owned() + &"list x 1\n".repeat(number);
    assert!(parse(values(MAX_VALUES).as_bytes()).is_ok());
    assert!(matches!(error(values(MAX_VALUES + 1)).kind, UciErrorKind::Many(MAX_VALUES, _)));
}

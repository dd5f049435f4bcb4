//! The documents name what exists.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::path::Path;

/// Every test and every file that `docs/rfc-compliance.md` names is there.
#[test]
fn rfc_compliance_names_tests_and_code_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/rfc-compliance.md")).unwrap();
    let read =
        |path: String| std::fs::read_to_string(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut tests = 0;
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let mut crate_of_last = "mh-ebpf/src";
        let mut source = String::new();
        for (before, quoted) in line.split('`').collect::<Vec<_>>().chunks(2).filter_map(|c| Some((c[0], *c.get(1)?))) {
            if let Some((file, name)) =
                quoted.split_once("::").filter(|(file, _)| file.chars().all(|c| c.is_lowercase() || c == '_'))
            {
                let test = read(format!("tests/tests/{file}.rs"));
                assert!(test.contains(&format!("fn {name}(")), "{file}.rs has no test {name}");
                tests += 1;
            } else if quoted.ends_with(".rs") {
                crate_of_last = match before.rsplit([' ', '|', '(']).next() {
                    Some("c:") => "mh-common/src",
                    Some("u:") => "mh-userspace/src",
                    _ => "mh-ebpf/src",
                };
                source = read(format!("{crate_of_last}/{quoted}"));
            } else if !source.is_empty() && quoted.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                let name = quoted.rsplit("::").next().unwrap();
                assert!(source.contains(name), "{crate_of_last} has no {quoted} where {line} says");
            }
        }
    }
    assert!(tests > 40, "only {tests} tests are named: the page has another form than this test reads");
}

/// The table of `docs/failover.md` is what was measured.
#[test]
fn failover_tells_what_was_measured() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/failover.md")).unwrap();
    let results = std::fs::read_to_string(root.join("bench/results/failover.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    assert!(text.contains(&format!("{} rounds of each", results["rounds"])), "the number of rounds is another one");
    let cases = results["cases"].as_array().unwrap();
    assert!(cases.len() >= 8);
    let shown = |figure: &serde_json::Value| {
        let milliseconds = figure.as_f64().unwrap();
        if milliseconds < 100.0 { format!("{milliseconds:.1}") } else { format!("{milliseconds:.0}") }
    };
    for case in cases {
        let mut row = format!("| {} |", case["name"].as_str().unwrap());
        for column in ["first_packet_ms", "last_lost_ms", "served_ms"] {
            row += &format!(" {} / {} ms |", shown(&case[column]["median"]), shown(&case[column]["worst"]));
        }
        assert!(text.contains(&row), "not in docs/failover.md: {row}");
    }
}

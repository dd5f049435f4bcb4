//! `mhctl import` as a process, and `mhd check` of what came out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mwan3/example.uci");
const EXAMPLE_NETWORK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mwan3/example-network.uci");
const EVERY_OPTION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mwan3/every-option.uci");

fn import(arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mhctl"));
    command.args(["import", "mwan3"]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that does not read its stdin may have ended.
    drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// `mhd check` of a config.
fn check(toml: &[u8]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mh.toml");
    std::fs::write(&file, toml).unwrap();
    Command::new(env!("CARGO_BIN_EXE_mhd")).arg("check").arg(&file).output().unwrap()
}

#[test]
fn what_comes_out_passes_the_check() {
    for arguments in [
        &[EXAMPLE][..],
        &[EXAMPLE, "--network", EXAMPLE_NETWORK],
        &[EVERY_OPTION],
        &[EVERY_OPTION, "--network", EXAMPLE_NETWORK],
    ] {
        let output = import(arguments, "");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        let checked = check(&output.stdout);
        assert_eq!(checked.status.code(), Some(0), "{arguments:?}: {checked:?}");
    }
}

#[test]
fn what_has_no_equivalent_is_on_stderr() {
    let output = import(&[EVERY_OPTION], "");
    let said = text(&output.stderr);
    let place = |option: &str| {
        let line = std::fs::read_to_string(EVERY_OPTION).unwrap();
        let line = 1 + line.lines().position(|line| line.contains(option)).unwrap();
        format!("{EVERY_OPTION}:{line}: ")
    };
    for option in ["rtmon_interval", "max_ttl", "colour", "last_resort 'blackhole'", "'youtube'", "rule 'not_web'"] {
        assert!(said.lines().any(|line| line.starts_with(&place(option))), "{option}: {said}");
    }
    assert!(said.lines().last().unwrap().starts_with("mhctl: 4 uplinks, 6 policies, 8 rules and 1 set; "), "{said}");
    assert!(!text(&output.stdout).contains(EVERY_OPTION));
}

#[test]
fn files_may_be_stdin_and_results_json() {
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    let from_file = import(&[EXAMPLE], "");
    let from_stdin = import(&["-"], &example);
    assert_eq!(from_stdin.stdout, from_file.stdout);
    assert!(text(&from_stdin.stderr).starts_with("stdin:"), "{from_stdin:?}");
    let network = std::fs::read_to_string(EXAMPLE_NETWORK).unwrap();
    let with_network = import(&[EXAMPLE, "--network", "-"], &network);
    assert_eq!(with_network.stdout, import(&[EXAMPLE, "--network", EXAMPLE_NETWORK], "").stdout);
    assert_ne!(with_network.stdout, from_file.stdout);

    let output = import(&[EXAMPLE, "--json"], "");
    assert!(output.stderr.is_empty(), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["toml"], text(&from_file.stdout));
    let note = &document["notes"][0];
    assert!(note["file"] == EXAMPLE && note["line"].is_u64() && note["note"].is_string(), "{note}");
}

#[test]
fn faults_are_one_line_with_place_and_mend() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let open = file("open", b"config interface wan\n\toption enabled '1\n");
    let empty = file("empty", b"");
    let endless = "/dev/zero";
    let missing = directory.path().join("missing");
    assert!(!Path::new(&missing).exists());
    let missing = missing.to_str().unwrap();
    for (arguments, place, word) in [
        (&[open.as_str()][..], format!("{open}:2: "), "close the quotes"),
        (&[empty.as_str()], format!("{empty}:1: "), "/etc/config/mwan3"),
        (&[EXAMPLE_NETWORK], format!("{EXAMPLE_NETWORK}:1: "), "--network"),
        (&[EXAMPLE, "--network", &open], format!("{open}:2: "), "close the quotes"),
        (&[missing], format!("{missing}: "), "cannot read"),
        (&[endless], format!("{endless}:1: "), "bytes"),
        (&["-", "--network", "-"], "mhctl: ".to_owned(), "stdin"),
    ] {
        let output = import(arguments, "");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.starts_with(&place) && said.contains(word), "{arguments:?}: {said}");
    }
    assert_eq!(import(&[], "").status.code(), Some(2));
}

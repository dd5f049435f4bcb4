//! Sets and their files: every fault and warning with its place and words, and the values.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::{Config, Loaded, MAX_PREFIXES, load, parse_in};
use super::{ONE_UPLINK, after, faults, warned};

#[test]
fn sets() {
    after("[set.banks]", &["4:6: [set.banks] has no prefixes; add prefixes = [\"PREFIX\"], or file = \"FILE\""]);
    after(
        "[set]\nprefixes = [\"10.0.0.0/8\"]",
        &["5:1: prefixes stands in [set] itself; it belongs in [set.NAME], which names the set"],
    );
    after("[set]\nbanks = [\"10.0.0.0/8\"]", &["5:9: set.banks must be a table, [set.banks], not a list"]);
    after("[[set]]", &["4:1: set must be a table, [set.NAME], not a list"]);
    let wants =
        "prefixes must be a list of IPv4 prefixes and addresses such as [\"203.0.113.0/24\", \"192.0.2.7\"], not";
    after(
        "[set.\"a b\"]\nprefixes = \"10.0.0.0/8\"\n[set.b]\nprefixes = [\"set:a\", 3, \"10.0.0.1/8\"]\nfiel = \"b.txt\"\n[set.c]\nfile = \"\"",
        &[
            "4:6: \"a b\" is no name for a set; use 1 to 32 of the characters a-z, A-Z, 0-9, _ and -",
            &format!("5:12: {wants} a string \"10.0.0.0/8\""),
            &format!("7:13: {wants} \"set:a\""),
            &format!("7:22: {wants} a whole number 3"),
            &format!("7:25: {wants} \"10.0.0.1/8\": it does not begin its prefix; write \"10.0.0.0/8\""),
            "8:1: unknown key \"fiel\" in [set.b]; did you mean \"file\"?",
            "10:8: file must be the path of a file such as \"banks.txt\", not \"\"",
        ],
    );
    warned(
        "[set.a]\nprefixes = [\"10.0.0.1\", \"10.0.0.1/32\"]\n[[rule]]\nto = \"set:a\"\nuse = \"drop\"",
        &["5:25: \"10.0.0.1/32\" is in prefixes twice; keep one of them"],
    );
    // A set may be empty for now: rules with it match nothing.
    let empty = |more: &str| format!("[set.a]\nprefixes = []\n{more}[[rule]]\nto = \"set:a\"\nuse = \"drop\"");
    warned(&empty(""), &["5:12: prefixes has no prefix in it; add one, or remove [set.a]"]);
    let directory = Directory::new();
    let file = directory.write("a.txt", "10.0.0.0/8");
    warned(
        &empty(&format!("file = {:?}\n", file.to_string_lossy())),
        &["5:12: prefixes has no prefix in it; add one, or remove it"],
    );
    let many: String = (0..1025).map(|index| format!("[set.s{index}]\nprefixes = [\"10.0.0.0/8\"]\n")).collect();
    after(&many, &["2052:6: set \"s1024\" is one too many; keep at most 1024 sets"]);
}

/// A directory with files that is removed with it.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A config with a set from `banks.txt`, and a rule with it.
    fn with_set(&self, file: impl AsRef<[u8]>) -> Result<Loaded, super::super::Faults> {
        self.write("banks.txt", file);
        parse_in(&format!("{ONE_UPLINK}{SET}"), self.path())
    }
}

const SET: &str = "[set.banks]\nfile = \"banks.txt\"\n[[rule]]\nto = \"set:banks\"\nuse = \"direct\"\n";

fn set_of(config: &Config) -> Vec<String> {
    config.sets[0].prefixes.iter().map(ToString::to_string).collect()
}

#[test]
fn files() {
    let directory = Directory::new();
    let text =
        b"\xef\xbb\xbf# from the bank\n203.0.113.0/24\r\n\n  192.0.2.7 # caf\xe9\n\t\n203.0.113.0/24\n10.0.0.0/8";
    let config = directory.with_set(text).unwrap().config;
    assert_eq!(set_of(&config), ["10.0.0.0/8", "192.0.2.7/32", "203.0.113.0/24"]);
    assert_eq!(config.sets[0].file, Some(directory.path().join("banks.txt")));

    // A file is looked for where the config is, whatever the working directory; with prefixes of the config itself they are one set.
    let path = directory.write(
        "mh.toml",
        format!("{ONE_UPLINK}{}", SET.replace("file", "prefixes = [\"1.0.0.0/8\", \"10.0.0.0/8\"]\nfile")),
    );
    assert_eq!(set_of(&load(&path).unwrap().config), ["1.0.0.0/8", "10.0.0.0/8", "192.0.2.7/32", "203.0.113.0/24"]);
    let absolute =
        format!("{ONE_UPLINK}{}", SET.replace("banks.txt", &directory.path().join("banks.txt").to_string_lossy()));
    assert_eq!(set_of(&parse_in(&absolute, Path::new("/nonexistent")).unwrap().config), set_of(&config));

    // No prefix at all: the set is empty, and rules with it match nothing.
    let loaded = directory.with_set("# nothing\n").unwrap();
    assert_eq!(loaded.warnings[0].to_string(), "5:8: banks.txt has no prefix in it; add one a line, or remove file");
    assert!(loaded.config.sets[0].prefixes.is_empty() && !loaded.config.rules[0].to.is_any());
}

#[test]
fn faults_of_files() {
    let directory = Directory::new();
    let wrong = directory.with_set(b"10.0.0.0/8\n10.0.0.1/8\n\nexample.org # a name\n::1\n\xff\n").unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "5:8: banks.txt:2: \"10.0.0.1/8\" is no IPv4 prefix or address: it does not begin its prefix; write \"10.0.0.0/8\"\n\
         5:8: banks.txt:4: \"example.org\" is no IPv4 prefix or address; write one a line, such as 203.0.113.0/24\n\
         5:8: banks.txt:5: \"::1\" is no IPv4 prefix or address: it is of IPv6, which is not supported by this version of mh yet; remove it\n\
         5:8: banks.txt:6: \"\u{fffd}\" is no IPv4 prefix or address; write one a line, such as 203.0.113.0/24"
    );
    for (lines, last) in
        [(6, "1 more line is wrong; correct it as well"), (9, "4 more lines are wrong; correct them as well")]
    {
        let faults = directory.with_set("wrong\n".repeat(lines)).unwrap_err();
        assert_eq!(faults.0.len(), 6);
        assert_eq!(faults.0[5].message, format!("banks.txt: {last}"));
    }
    std::fs::remove_file(directory.path().join("banks.txt")).unwrap();
    let text = format!("{ONE_UPLINK}{SET}");
    let shown = directory.path().display();
    assert_eq!(
        parse_in(&text, directory.path()).unwrap_err().to_string(),
        format!(
            "5:8: cannot read banks.txt: No such file or directory (os error 2); put the file there, or remove file; the path begins at {shown}"
        )
    );
    assert_eq!(
        faults(&text.replace("banks.txt", "/dev/zero")),
        "5:8: cannot read /dev/zero: it is no file; put the file there, or remove file"
    );
    let sparse = std::fs::File::create(directory.path().join("banks.txt")).unwrap();
    sparse.set_len((64 << 20) + 1).unwrap();
    let error = parse_in(&text, directory.path()).unwrap_err().to_string();
    assert!(error.starts_with("5:8: cannot read banks.txt: it has more than 67108864 bytes; "), "{error}");
}

#[test]
fn long_files() {
    let directory = Directory::new();
    let file = |count: u32| {
        (0..count).map(|index| format!("{}\n", std::net::Ipv4Addr::from_bits(index * 3))).collect::<String>()
    };
    let begin = Instant::now();
    let config = directory.with_set(file(200_000)).unwrap().config;
    assert_eq!(config.sets[0].prefixes.len(), 200_000);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());

    let most = u32::try_from(MAX_PREFIXES).unwrap();
    let text = file(most + 1);
    let wrong = directory.with_set(&text).unwrap_err();
    assert_eq!(wrong.0[0].to_string(), "5:8: banks.txt:1048577: the file has more than 1048576 prefixes; shorten it");
    directory.write("banks.txt", text.lines().skip(1).collect::<Vec<_>>().join("\n"));
    let one_more = format!("{ONE_UPLINK}{}", SET.replace("\"set:banks\"", "[\"set:banks\", \"255.0.0.0/8\"]"));
    assert_eq!(
        parse_in(&one_more, directory.path()).unwrap_err().to_string(),
        "6:1: with this [[rule]] the rules have 1048577 prefixes in to, each set counted once; keep at most 1048576 in all"
    );
    // The same set in both directions, and in two rules, counts once for each direction.
    let twice = format!("{ONE_UPLINK}{SET}[[rule]]\nfrom = \"set:banks\"\nto = \"set:banks\"\nuse = \"drop\"\n");
    assert_eq!(parse_in(&twice, directory.path()).unwrap().config.rules.len(), 2);
}

//! Facts about a run, so that figures can be judged later. No names of hosts, people or directories are among them.

use std::{fs, process::Command, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::effort::Effort;

/// Facts about a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// When it began: year, month, day (UTC).
    pub date: String,
    /// The commit that was measured, with `+` if files differed from it; absent outside a repository.
    pub revision: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's model.
    pub cpu: String,
    /// How many cores this process could use.
    pub cores: usize,
    /// Rounds.
    pub rounds: usize,
    /// Whether the run was a quick one.
    pub quick: bool,
}

impl Facts {
    /// Looks around.
    #[must_use]
    pub fn gather(effort: &Effort) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self {
            date: now.chars().take_while(|c| *c != 'T').collect(),
            revision: revision(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cpu: cpu(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            rounds: effort.rounds,
            quick: effort.quick,
        }
    }
}

/// The processor's model; the architecture where the kernel tells no more.
#[must_use]
pub fn cpu() -> String {
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_model(&text));
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The model in the text of `/proc/cpuinfo`, where the architecture has it there.
fn cpu_model(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    let model = line.trim_start_matches(|c: char| c.is_whitespace() || c == ':');
    Some(model.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The commit, as git tells it.
fn revision() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    // What an earlier run wrote is no change to what is measured.
    let changes = git(&["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}+") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        let text = "processor\t: 0\nmodel name\t: Some  CPU @ 2.00GHz\nprocessor\t: 1\nmodel name\t: Some  CPU\n";
        assert_eq!(cpu_model(text).as_deref(), Some("Some CPU @ 2.00GHz"));
        assert_eq!(cpu_model("processor\t: 0\nBogoMIPS\t: 50\n"), None);
    }

    #[test]
    fn a_date_has_no_time() {
        let facts = Facts::gather(&Effort { rounds: 1, quick: true, ..Effort::default() });
        assert_eq!(facts.date.len(), "2000-01-01".len(), "{}", facts.date);
        assert!(facts.cores > 0 && !facts.kernel.is_empty());
    }
}

//! The capabilities that mhd needs (capabilities(7)), whoever it runs as.
//!
//! They are looked for before anything is touched, so that what is missing is named, and not an operation of many that the kernel
//! refused. Why each is needed: docs/operations.md.

use std::{fs, io};

/// Where the kernel shows this process's capabilities.
const STATUS: &str = "/proc/self/status";
/// `CAP_SYS_ADMIN`, which includes `CAP_BPF` and `CAP_PERFMON`, and was what they are before 5.8.
const SYS_ADMIN: u32 = 21;
/// Numbers and names, and what else will do.
const NEEDED: [(u32, &str, Option<u32>); 4] = [
    (39, "CAP_BPF", Some(SYS_ADMIN)),
    (12, "CAP_NET_ADMIN", None),
    (13, "CAP_NET_RAW", None),
    (38, "CAP_PERFMON", Some(SYS_ADMIN)),
];

/// Why mhd can't do its work.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Capabilities are missing.
    #[error("mhd lacks {0}; run it as root, or give it AmbientCapabilities as contrib/systemd/mhd.service does")]
    Missing(String),
    /// They can't be read.
    #[error("cannot read {STATUS}: {0}; is /proc mounted?")]
    Unknown(#[from] io::Error),
}

/// Checks that this process has them all.
pub fn check() -> Result<(), PrivilegeError> {
    let effective = effective(&fs::read_to_string(STATUS)?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no line CapEff of the known form"))?;
    let missing = missing(effective);
    if missing.is_empty() { Ok(()) } else { Err(PrivilegeError::Missing(missing.join(" and "))) }
}

/// The effective capabilities, a bit each.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective >> number & 1 != 0;
    let lacks = |&&(number, _, instead): &&(u32, &str, Option<u32>)| !has(number) && !instead.is_some_and(has);
    NEEDED.iter().filter(lacks).map(|(_, name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(effective("Name:\tmhd\nCapInh:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("CapInh:\t0\n"), None);
        assert_eq!(missing(u64::MAX), [""; 0]);
        assert_eq!(missing(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]);
        let all = 1 << 39 | 1 << 12 | 1 << 13 | 1 << 38;
        assert_eq!(missing(all), [""; 0]);
        assert_eq!(missing(all & !(1 << 13)), ["CAP_NET_RAW"]);
        // Root before 5.8.
        assert_eq!(missing(1 << SYS_ADMIN | 1 << 12 | 1 << 13), [""; 0]);
    }
}

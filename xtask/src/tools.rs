//! The programs that laboratories and lints use, and the packages that bring them.

use std::{path::PathBuf, process::Command};

use crate::setup::Purpose;

/// A program that is needed besides the compilers.
#[derive(Debug)]
pub struct Tool {
    /// Its name.
    pub program: &'static str,
    /// What it is needed for.
    pub purpose: Purpose,
    /// The same for people.
    pub why: &'static str,
    /// Asks for its version; the first word that looks like one is taken.
    pub version: &'static [&'static str],
    /// Debian's and Ubuntu's packages; the first that the archive has is taken.
    pub apt: &'static [&'static str],
    /// Fedora's package.
    pub dnf: &'static str,
    /// Arch's package.
    pub pacman: &'static str,
}

const fn laboratory(
    program: &'static str,
    why: &'static str,
    version: &'static [&'static str],
    apt: &'static [&'static str],
    dnf: &'static str,
    pacman: &'static str,
) -> Tool {
    Tool { program, purpose: Purpose::Laboratory, why, version, apt, dnf, pacman }
}

/// All of them.
pub const TOOLS: &[Tool] = &[
    laboratory("ip", "makes namespaces, links and routes", &["-V"], &["iproute2"], "iproute", "iproute2"),
    laboratory("tc", "shows filters and shapes links", &["-V"], &["iproute2"], "iproute-tc", "iproute2"),
    laboratory("nft", "filters and translates for comparison", &["--version"], &["nftables"], "nftables", "nftables"),
    laboratory(
        "iptables",
        "filters and translates for comparison",
        &["--version"],
        &["iptables"],
        "iptables-nft",
        "iptables",
    ),
    laboratory(
        "conntrack",
        "shows the kernel's own flows",
        &["--version"],
        &["conntrack"],
        "conntrack-tools",
        "conntrack-tools",
    ),
    laboratory("hping3", "sends odd TCP segments", &["-v"], &["hping3"], "hping3", "hping"),
    laboratory("iperf3", "sends bulk traffic", &["--version"], &["iperf3"], "iperf3", "iperf3"),
    laboratory("nginx", "serves HTTP", &["-v"], &["nginx-light", "nginx"], "nginx", "nginx"),
    laboratory("curl", "asks for HTTP", &["--version"], &["curl"], "curl", "curl"),
    laboratory("ping", "sends ICMP echo", &["-V"], &["iputils-ping"], "iputils", "iputils"),
    laboratory("ethtool", "switches offloads", &["--version"], &["ethtool"], "ethtool", "ethtool"),
    laboratory(
        "traceroute",
        "shows the routers on a path",
        &["--version"],
        &["traceroute"],
        "traceroute",
        "traceroute",
    ),
    laboratory("tcpdump", "shows what is on the wire", &["--version"], &["tcpdump"], "tcpdump", "tcpdump"),
    laboratory(
        "bpftool",
        "shows programs and maps",
        &["version"],
        &["bpftool", "linux-tools-common"],
        "bpftool",
        "bpf",
    ),
    laboratory("ps", "shows processes", &["--version"], &["procps"], "procps-ng", "procps-ng"),
    laboratory("setpriv", "takes privileges away", &["--version"], &["util-linux"], "util-linux", "util-linux"),
    laboratory("taskset", "keeps programs on a core", &["--version"], &["util-linux"], "util-linux", "util-linux"),
    laboratory("turnserver", "serves STUN", &["--version"], &["coturn"], "coturn", "coturn"),
    laboratory(
        "turnutils_natdiscovery",
        "tells what a NAT does (RFC 5780)",
        &["-h"],
        &["coturn"],
        "coturn-utils",
        "coturn",
    ),
    laboratory("vtysh", "speaks BGP and BFD (FRR)", &["--help"], &["frr"], "frr", "frr"),
    laboratory("dnsmasq", "leases addresses", &["--version"], &["dnsmasq-base"], "dnsmasq", "dnsmasq"),
    laboratory("udhcpc", "asks for a lease", &["--help"], &["udhcpc"], "busybox", "busybox"),
    Tool {
        program: "codespell",
        purpose: Purpose::Lint,
        why: "finds misspelt words",
        version: &["--version"],
        apt: &["codespell"],
        dnf: "codespell",
        pacman: "codespell",
    },
];

impl Tool {
    /// Where it is.
    pub fn find(&self) -> Option<PathBuf> {
        mh_build::find_program(self.program)
    }
}

/// What a program says of its version: the first word of its first line that has digits around a dot.
pub fn version_of(program: &PathBuf, arguments: &[&str]) -> Option<String> {
    // Programs disagree on where to print it.
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    first_version(&String::from_utf8_lossy(&text))
}

fn first_version(text: &str) -> Option<String> {
    let words = text.lines().next()?.split([' ', ',', '/', '-', '(']);
    let mut versions = words.map(|word| word.trim_start_matches('v').trim_end_matches(|c: char| !c.is_alphanumeric()));
    let looks_like_one = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    versions.find(looks_like_one).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            ("ip utility, iproute2-6.1.0, libbpf 1.1.2", "6.1.0"),
            ("nftables v1.0.6 (Lester Gooch #5)", "1.0.6"),
            ("iptables v1.8.9 (nf_tables)", "1.8.9"),
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1", "7.88.1"),
            ("ps from procps-ng 4.0.2", "4.0.2"),
            ("ping from iputils 20221126", ""),
            ("iperf 3.12 (cJSON 1.7.15)", "3.12"),
        ] {
            assert_eq!(first_version(text).as_deref().unwrap_or_default(), version, "{text}");
        }
    }
}

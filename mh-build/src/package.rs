//! The crates of BPF programs.

/// A crate of BPF programs: one binary, which becomes one object.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// The name of its binary.
    pub binary: &'static str,
    /// What the object is made from, relative to the workspace.
    pub sources: &'static [&'static str],
}

impl Package {
    /// The datapath.
    pub const DATAPATH: Self = Self {
        name: "mh-ebpf",
        binary: "mh",
        sources: &[
            "Cargo.toml",
            "Cargo.lock",
            "mh-ebpf/Cargo.toml",
            "mh-ebpf/src",
            "mh-common/Cargo.toml",
            "mh-common/src",
        ],
    };
    /// What the benchmark sends, counts and compares with.
    pub const BENCH: Self = Self {
        name: "mh-bench-ebpf",
        binary: "bench",
        sources: &[
            "Cargo.toml",
            "Cargo.lock",
            "bench/ebpf/Cargo.toml",
            "bench/ebpf/src",
            "mh-common/Cargo.toml",
            "mh-common/src",
        ],
    };
    /// All of them.
    pub const ALL: [Self; 2] = [Self::DATAPATH, Self::BENCH];
}

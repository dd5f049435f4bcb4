//! mhctl's arguments.

use std::{fmt, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::control::api::HealthOverride;

/// Shows and steers mhd, mh's controller.
#[derive(Debug, Parser)]
#[command(name = "mhctl", version)]
pub struct Arguments {
    /// mhd's socket.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/mh/mhd.sock")]
    pub socket: PathBuf,

    /// Print one JSON document instead of a table.
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// mhctl's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Uplinks: state and why, addresses, gateways, weights, shares, traffic, flows.
    Status,
    /// Show the weights, or set some: at once, for new flows. Flows that exist stay where they are.
    ///
    /// Weights set by hand are those of the default policy and of policies without tiers; others keep the weights of their tiers.
    Weights {
        /// New weights, 0 to 65535, or auto: as configured. Uplinks that are not named keep theirs.
        #[arg(value_name = "NAME=N")]
        weights: Vec<String>,
        /// Keep all weights set by hand across restarts of mhd.
        #[arg(long)]
        save: bool,
    },
    /// Give an uplink no new flows; flows that exist stay on it.
    Drain {
        /// The uplink.
        name: String,
        /// Keep all drains across restarts of mhd.
        #[arg(long)]
        save: bool,
    },
    /// Give a drained uplink new flows again.
    Undrain {
        /// The uplink.
        name: String,
        /// Keep all drains that are left across restarts of mhd.
        #[arg(long)]
        save: bool,
    },
    /// Override what is observed of an uplink.
    Health {
        /// The uplink.
        name: String,
        /// Up, down, or as observed (auto).
        health: Health,
        /// Keep all health set by hand across restarts of mhd.
        #[arg(long)]
        save: bool,
    },
    /// The conntrack: list, count or flush flows.
    Flows(FlowsArguments),
    /// The NAT bindings.
    Bindings,
    /// Counters by uplink, verdict and drop reason, and how full the tables are.
    Stats,
    /// The rules in order, and how many new flows each has decided about.
    Rules,
    /// The policies: tiers, uplinks, weights and shares; and which rules use them.
    Policies,
    /// The sets of addresses, and which rules use them.
    Sets {
        /// Only sets that contain this address.
        #[arg(long, value_name = "ADDRESS")]
        contains: Option<String>,
    },
    /// What would become of a packet, and why: rule, policy, tier, slot, uplink, source address. Nothing is sent, counted or changed.
    Explain(ExplainArguments),
    /// What happened: changes of uplinks' states and why, reloads, warnings. mhd keeps the latest 1024.
    Events {
        /// Go on with what happens, until mhd ends; with --json, one document a line.
        #[arg(long, short)]
        follow: bool,
        /// Only events after the one with this number.
        #[arg(long, value_name = "SEQ")]
        since: Option<u64>,
    },
    /// Make mhd read its configuration again. A faulty one changes nothing.
    Reload,
    /// Check a configuration without touching anything.
    Check {
        /// The configuration.
        #[arg(default_value = "/etc/mh/mh.toml")]
        file: PathBuf,
    },
    /// Turn the config of another program into mh's, on stdout. Needs no mhd.
    Import {
        /// Whose.
        #[command(subcommand)]
        from: ImportFrom,
    },
    /// Remove programs and maps from the kernel, and end mhd.
    Detach,
    /// Versions of mhctl, mhd, the maps' layout and the kernel.
    Version,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print mhctl's man page, and behind it one for each command; `mhctl man | man -l -` shows them.
    Man,
}

/// Programs whose configs can be brought over.
#[derive(Debug, Subcommand)]
pub enum ImportFrom {
    /// OpenWrt's multi-WAN package. What has no equivalent is named on stderr, and in comments of the result.
    Mwan3 {
        /// Its config, such as /etc/config/mwan3; - for stdin.
        file: PathBuf,
        /// OpenWrt's config of the network, such as /etc/config/network, for devices, addresses and LANs; - for stdin.
        #[arg(long, value_name = "FILE")]
        network: Option<PathBuf>,
    },
}

/// Arguments of `flows`.
#[derive(Debug, Default, Args)]
pub struct FlowsArguments {
    /// What to do with the flows [default: list].
    #[arg(value_enum)]
    pub action: Option<FlowsAction>,
    /// Only flows on this uplink.
    #[arg(long, value_name = "NAME")]
    pub uplink: Option<String>,
    /// Only flows from this inside address or prefix.
    #[arg(long, value_name = "PREFIX")]
    pub src: Option<String>,
    /// Only flows to this remote address or prefix.
    #[arg(long, value_name = "PREFIX")]
    pub dst: Option<String>,
    /// Only flows of this protocol: tcp, udp, icmp or a number.
    #[arg(long, value_name = "PROTO")]
    pub proto: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// The protocol: tcp, udp, icmp or a number.
    pub proto: String,
    /// Where the packet is from: an address of an inside host, or of this machine; for icmp, the port is the identifier.
    #[arg(value_name = "SRC[:PORT]")]
    pub src: String,
    /// Where it goes; tcp and udp need the port.
    #[arg(value_name = "DST[:PORT]")]
    pub dst: String,
    /// The interface that it comes in by [default: the one by which this machine reaches SRC].
    #[arg(long, value_name = "I")]
    pub interface: Option<String>,
    /// Its differentiated services code point, 0 to 63 [default: 0].
    #[arg(long, value_name = "N")]
    pub dscp: Option<u8>,
}

/// What to do with flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FlowsAction {
    /// List them, with both tuples.
    List,
    /// Count them.
    Count,
    /// Remove them from the conntrack; their bindings stay.
    Flush,
}

/// What an uplink's health is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Health {
    /// Up, whatever is observed.
    Up,
    /// Down, whatever is observed.
    Down,
    /// As observed.
    Auto,
}

impl From<Health> for HealthOverride {
    fn from(health: Health) -> Self {
        match health {
            Health::Up => Self::Up,
            Health::Down => Self::Down,
            Health::Auto => Self::Auto,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Auto => "auto",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_anywhere() {
        let parse = |words: &str| Arguments::try_parse_from(words.split(' '));
        assert!(parse("mhctl status --json").unwrap().json);
        assert!(parse("mhctl --json status").unwrap().json);
        for words in ["mhctl flows --uplink isp1 count", "mhctl flows count --uplink isp1"] {
            let Command::Flows(flows) = parse(words).unwrap().command else { panic!("{words}") };
            assert_eq!((flows.action, flows.uplink.as_deref()), (Some(FlowsAction::Count), Some("isp1")));
        }
        assert!(parse("mhctl health isp1 sideways").is_err());
    }
}

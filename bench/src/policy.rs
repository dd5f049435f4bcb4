//! What rules cost: the time of a whole decision about a new flow (parse, route, rules, policy, slot, binding), by the number of rules that
//! do not match it, and by the size of a set that one of them asks for.
//!
//! The program is `mh_explain`, which decides as the others do and changes nothing, so that one packet can be decided about again and again
//! (`BPF_PROG_TEST_RUN`, on the rig of `mh_tests::rig`). All tables take turns on the same program. What counts is the difference to the
//! line without rules; the rest is the same in all lines, with some fixed cost of the run itself.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use clap::Args;
use mh_tests::rig::Rig;
use mh_userspace::{core::RuleTable, datapath::explain::Question};
use serde_json::json;

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// How often each measurement is repeated; the median counts.
    #[arg(long, default_value_t = 15)]
    rounds: usize,

    /// Decisions per measurement.
    #[arg(long, default_value_t = 200_000)]
    decisions: u32,

    /// Write the figures to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

/// Numbers of rules that do not match.
const RULES: [usize; 5] = [0, 1, 16, 64, 256];
/// Numbers of prefixes of a set that the flow's destination is not in.
const PREFIXES: [u32; 3] = [1_000, 10_000, 100_000];

/// The flow that is decided about.
const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

/// Rules that ask for everything there is to ask for, and of which each fails in another way.
fn rules(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        let (octet, port) = (number % 250, 1000 + number);
        let (from, to, dscp) = match number % 4 {
            0 => (format!("10.{octet}.0.0/16"), "192.0.2.0/24".to_owned(), 0),
            1 => ("192.168.1.0/24".to_owned(), format!("172.16.{octet}.0/24"), 0),
            2 => ("192.168.1.0/24".to_owned(), "192.0.2.0/24".to_owned(), 1 + number % 60),
            _ => ("192.168.0.0/16".to_owned(), "192.0.0.0/16".to_owned(), 0),
        };
        let _ = write!(
            text,
            "[[rule]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\nprotocol = \"tcp\"\nto_port = [\"{port}\"]\ninterface = [\"lan0\"]\n\
             dscp = {dscp}\nuse = \"drop\"\n"
        );
    }
    text
}

/// A rule with a set of prefixes of different lengths around the destination.
fn set(count: u32) -> String {
    // Odd steps, so that prefixes are spread over all addresses, and not over the destination's own network.
    let prefix = |n: u32| Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1) & 0xffff_ff00);
    let prefixes = (0..count).map(prefix).filter(|prefix| prefix.octets()[..3] != DESTINATION.octets()[..3]);
    let prefixes: Vec<String> = prefixes.map(|prefix| format!("\"{prefix}/24\"")).collect();
    format!("[set.big]\nprefixes = [{}]\n[[rule]]\nto = [\"set:big\"]\nuse = \"drop\"\n", prefixes.join(", "))
}

/// Measures, and prints the figures.
pub fn measure(arguments: &Arguments) -> Result<()> {
    Rig::run([2, 1], |rig| {
        let mut cases: Vec<(String, RuleTable)> = Vec::new();
        for count in RULES {
            cases.push((format!("{count} rules"), Rig::rules_of(&rules(count))?));
        }
        for count in PREFIXES {
            cases.push((format!("1 rule with a set of {count} prefixes"), Rig::rules_of(&set(count))?));
        }
        let question = Question {
            ifindex: rig.index("lan0")?,
            by_host: false,
            protocol: 6,
            src: SOURCE,
            sport: 40_001,
            dst: DESTINATION,
            dport: 443,
            dscp: 0,
        };
        let mut measured = vec![Vec::new(); cases.len()];
        for _ in 0..arguments.rounds {
            for ((name, table), samples) in cases.iter().zip(&mut measured) {
                rig.set_rules(table)?;
                let answer = rig.explain(&question)?;
                anyhow::ensure!(answer.rule.number == mh_common::rules::NO_RULE, "{name}: rule {}", answer.rule.number);
                samples.push(rig.decision_ns(&question, arguments.decisions)?);
            }
        }
        println!(
            "{:<44} {:>6} {:>6} {:>6} {:>12}",
            "a decision about a new flow, ns", "min", "median", "max", "more than 0"
        );
        let mut lines = Vec::new();
        let mut none = 0;
        for ((name, _), samples) in cases.iter().zip(&mut measured) {
            samples.sort_unstable();
            let (min, max) = (samples.first().context("no rounds")?, samples.last().context("no rounds")?);
            let median = samples[samples.len() / 2];
            if lines.is_empty() {
                none = median;
            }
            let more = i128::try_from(median)? - i128::try_from(none)?;
            println!("{name:<44} {min:>6} {median:>6} {max:>6} {more:>12}");
            lines.push(json!({ "case": name, "ns": samples.iter().map(|ns| u64::try_from(*ns)).collect::<Result<Vec<_>, _>>()? }));
        }
        if let Some(file) = &arguments.json {
            std::fs::write(file, format!("{:#}\n", json!(lines))).with_context(|| file.display().to_string())?;
        }
        Ok(())
    })
}

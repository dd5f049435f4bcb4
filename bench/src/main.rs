//! `cargo xtask bench`: what a packet costs; `cargo xtask bench tcp`: how fast TCP gets through, see [`tcp`]; `cargo xtask bench failover`: how long a failure is felt, see
//! [`failover`]; `cargo xtask bench policy`: what rules cost, see [`policy`].
//!
//! The cost of a packet: measures both programs by `BPF_PROG_TEST_RUN` on the rig of `mh_tests::rig`, interleaved and repeated, and prints medians. The figures are of
//! the programs alone, without driver, socket buffer or redirect. The machine's noise is in them: compare within one run.

mod failover;
mod far;
mod footprint;
mod forward;
mod http;
mod machine;
mod policy;
mod programs;
mod report;
mod router;
mod site;
mod tcp;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mh_tests::packet::{Packet, Transport};
use mh_tests::rig::{GATEWAY1, HOST, LAN, Rig, WAN1};

/// Measures what a packet costs in each program.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,

    /// How often each measurement is repeated; the median counts.
    #[arg(long, default_value_t = 9)]
    rounds: usize,

    /// Packets per measurement.
    #[arg(long, default_value_t = 200_000)]
    packets: u32,
}

#[derive(Subcommand)]
enum Task {
    /// Measures how long the failure of an uplink is felt, with mh and with the classic set-up of iptables and a ping script.
    Failover(failover::Arguments),
    /// Measures packets per second through mh and through what people use instead, by number of flows.
    Forward(forward::Arguments),
    /// Measures what rules cost that do not match, and sets.
    Policy(policy::Arguments),
    /// Measures TCP throughput beside that of the kernel.
    Tcp(tcp::Arguments),
    /// Measures short HTTP connections: how many, and how long they take.
    Http(http::Arguments),
    /// Measures memory, starts, and the controller's work with many flows.
    Footprint(footprint::Arguments),
}

/// A kind of packet to measure.
struct Case {
    name: &'static str,
    xdp: bool,
    interface: &'static str,
    packet: Vec<u8>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.task {
        Some(Task::Failover(arguments)) => return failover::measure(arguments),
        Some(Task::Forward(arguments)) => {
            machine::end_on_signals()?;
            forward::measure(arguments)?.iter().for_each(report::Table::print);
            return Ok(());
        }
        Some(Task::Policy(arguments)) => return policy::measure(arguments),
        Some(Task::Tcp(arguments)) => {
            tcp::measure(arguments)?.iter().for_each(report::Table::print);
            return Ok(());
        }
        Some(Task::Http(arguments)) => {
            http::measure(arguments)?.iter().for_each(report::Table::print);
            return Ok(());
        }
        Some(Task::Footprint(arguments)) => {
            machine::end_on_signals()?;
            footprint::measure(arguments)?.iter().for_each(report::Table::print);
            return Ok(());
        }
        None => {}
    }
    Rig::run([1, 0], |rig| {
        let (inside, outside, remote) = ("192.168.1.10:40001", "198.51.100.2:40001", "192.0.2.10:443");
        // The kernel repeats a run on the packet that the run before left behind: what is measured has to be left as it is.
        let out = Packet::new(LAN, HOST, inside, remote, Transport::Udp).build();
        let back = Packet::new(WAN1, GATEWAY1, remote, outside, Transport::Udp).build();
        rig.tc("lan0", &out)?;
        rig.tc("wan1", &back)?;
        let not_ours = Packet::new(LAN, HOST, inside, "192.168.1.1:53", Transport::Udp).build();
        let case = |name, xdp, interface, packet: &Vec<u8>| Case { name, xdp, interface, packet: packet.clone() };
        let cases = [
            case("xdp: to the router itself", true, "lan0", &not_ours),
            case("tc:  to the router itself (with its routing lookup)", false, "lan0", &not_ours),
            case(
                "tc:  from an uplink, no flow",
                false,
                "wan1",
                // In mid-stream, to a port that nobody has: the kernel's.
                &Packet::new(WAN1, GATEWAY1, "192.0.2.77:53", "198.51.100.2:40009", Transport::Tcp(0x10)).build(),
            ),
        ];
        let mut measured = vec![Vec::new(); cases.len()];
        for _ in 0..arguments.rounds {
            for (case, samples) in cases.iter().zip(&mut measured) {
                samples.push(rig.cost_ns(case.xdp, case.interface, &case.packet, arguments.packets)?);
            }
        }
        println!("{:<56} {:>6} {:>6} {:>6}  ns/packet", "program run on a packet", "min", "median", "max");
        for (case, samples) in cases.iter().zip(&mut measured) {
            samples.sort_unstable();
            let (Some(min), Some(max)) = (samples.first(), samples.last()) else { continue };
            println!("{:<56} {min:>6} {:>6} {max:>6}", case.name, samples[samples.len() / 2]);
        }
        Ok(())
    })
}

//! `cargo xtask bench program`: what a run of mh's programs costs, by kind of packet, by `BPF_PROG_TEST_RUN` on the rig of
//! `mh_tests::rig`; and how large the programs are (see [`instructions`]).
//!
//! Measured are the programs alone, without driver, socket buffer or redirect, and with warm caches: one flow is all that a hit sees. Each
//! run's result is looked at: a packet that is not treated as its kind must be is an error and not a figure. What mh's XDP program leaves
//! to TC has no figure for XDP.

mod driver;
pub mod instructions;

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use mh_bench_ebpf::case::{AGAINST, IDENTIFICATION, MOST_RUNS, SHORT};
use mh_tests::packet::{Packet, Transport, icmp_error, with_fragment};
use mh_tests::rig::{GATEWAY1, HOST, LAN, Rig, TC_NEXT, TC_REDIRECT, WAN1, XDP_PASS, XDP_REDIRECT};
use mh_userspace::{core::RuleTable, datapath::tables::Hash};

use self::driver::{Cost, Drive, Driver, Hook};
use crate::{
    effort::Effort,
    names::{column, contender, table},
    report::{NO_BASELINE, Row, Table},
};

/// One uplink gets all flows; nothing limits an inside host, and all runs of a round fit into the tables.
const CONFIG: &str = r#"
lan = ["lan0"]
[datapath]
conntrack_entries = 262144
bindings = 65536
[limits]
bindings_per_source = 0
new_flows_per_source = 0
[uplink.isp1]
interface = "wan1"
gateway = "198.51.100.1"
address = "198.51.100.2"
"#;

/// Numbers of rules that a new flow agrees with none of.
const RULES: [usize; 3] = [0, 16, 256];
/// Runs per sample of what a packet can be repeated on.
const RUNS: u32 = 1_000_000;
const QUICK_RUNS: u32 = 100_000;
/// Runs per sample of new flows: ports enough that all find their own free.
const NEW_FLOWS: u32 = 16_384;
const _: () = assert!(NEW_FLOWS < MOST_RUNS);

const INSIDE: &str = "192.168.1.10:40001";
const OUTSIDE: &str = "198.51.100.2:40001";
const REMOTE: &str = "192.0.2.10:443";

/// A kind of packet.
struct Kind {
    column: String,
    interface: &'static str,
    packet: Vec<u8>,
    /// Of a new flow each time, with so many rules.
    rules: Option<usize>,
    /// The return codes that it must have of TC and XDP; what XDP passes it leaves to TC, unless it must.
    codes: [i32; 2],
}

impl Kind {
    fn all() -> Vec<Self> {
        let codes = [TC_REDIRECT, XDP_REDIRECT];
        let kind =
            |column: &str, interface, packet| Self { column: column.to_owned(), interface, packet, rules: None, codes };
        let out = udp(LAN, HOST, INSIDE, REMOTE);
        let mut kinds = vec![
            kind(column::HIT_OUT, "lan0", out.build()),
            kind(column::HIT_BACK, "wan1", udp(WAN1, GATEWAY1, REMOTE, OUTSIDE).build()),
        ];
        for rules in RULES {
            let new = Self { rules: Some(rules), ..kind(&column::new_flow(rules), "lan0", new_flow()) };
            kinds.push(new);
        }
        // A router on the way says that the time was up for a packet of the flow, which it quotes as it was sent.
        let mut quoted = udp(GATEWAY1, WAN1, OUTSIDE, REMOTE);
        quoted.payload = vec![0; 88];
        let quoted = quoted.build();
        let error = icmp_error(WAN1, GATEWAY1, "192.0.2.1", "198.51.100.2", 60, [11, 0], 0, &quoted[14..]);
        kinds.push(kind(column::ICMP_ERROR, "wan1", error));
        let own = udp(LAN, HOST, "192.168.1.10:40002", "192.168.1.1:53").build();
        kinds.push(Self { codes: [TC_NEXT, XDP_PASS], ..kind(column::NOT_OURS, "lan0", own) });
        kinds
    }
}

/// A packet of 64 bytes.
fn udp(to: [u8; 6], from: [u8; 6], src: &str, dst: &str) -> Packet {
    Packet { payload: vec![0; SHORT - AGAINST], ..Packet::new(to, from, src, dst, Transport::Udp) }
}

/// The packet of which the driver makes one of another flow each time, see [`mh_bench_ebpf::case::Case`].
fn new_flow() -> Vec<u8> {
    let mut packet = udp(LAN, HOST, "10.7.0.0:0", REMOTE);
    packet.payload[..4].fill(0xff);
    let mut frame = packet.build();
    frame[IDENTIFICATION..IDENTIFICATION + 2].fill(0xff);
    // The header's checksum is worked out again; the word is that of "don't fragment".
    with_fragment(&frame, 0x4000)
}

/// So many rules with which no packet here agrees, each in another way.
fn rules(count: usize) -> Result<RuleTable> {
    let mut text = String::new();
    for number in 0..count {
        let (octet, port) = (number % 250, 1000 + number);
        let (to, from) = if number % 2 == 0 {
            ("192.0.2.0/24".to_owned(), "10.0.0.0/8")
        } else {
            (format!("172.16.{octet}.0/24"), "10.7.0.0/16")
        };
        let _ = write!(
            text,
            "[[rule]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\nprotocol = \"tcp\"\nto_port = [\"{port}\"]\nuse = \"drop\"\n"
        );
    }
    Rig::rules_of(&text)
}

/// Measures.
///
/// # Errors
/// If the rig can't be made, the kernel refuses a run, or a program does not do with a packet what it must.
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    Rig::run_config(CONFIG, |rig| {
        let sizes = instructions::table(rig)?;
        let tables = RULES.map(rules).into_iter().collect::<Result<Vec<_>>>()?;
        let mut driver = Driver::load(rig)?;
        let kinds = Kind::all();
        let hooks = [(Hook::Xdp, contender::MH_XDP), (Hook::Tc, contender::MH_TC)];
        let mut rows = hooks.map(|(_, name)| Row { name: name.to_owned(), samples: vec![Vec::new(); kinds.len()] });
        for _ in 0..effort.rounds {
            establish(rig)?;
            for (at, kind) in kinds.iter().enumerate() {
                if let Some(rules) = RULES.iter().position(|count| Some(*count) == kind.rules) {
                    rig.set_rules(&tables[rules])?;
                }
                for ((hook, _), row) in hooks.iter().zip(&mut rows) {
                    let sample = sample(rig, &mut driver, *hook, kind, effort)
                        .with_context(|| format!("{}, {}", row.name, kind.column))?;
                    row.samples[at].extend(sample);
                }
            }
            rig.set_rules(&tables[0])?;
        }
        let cost = Table {
            name: table::PROGRAM,
            title: "A run of mh's programs, by kind of packet".to_owned(),
            unit: "ns",
            more_is_better: false,
            columns: kinds.into_iter().map(|kind| kind.column).collect(),
            rows: rows.into(),
            // Both are mh: what slows both down must be seen.
            baseline: NO_BASELINE,
        };
        Ok(vec![cost, sizes])
    })
}

/// Begins a round: empty tables but for the one flow that hits are of.
fn establish(rig: &mut Rig) -> Result<()> {
    clear(rig)?;
    let out = udp(LAN, HOST, INSIDE, REMOTE).build();
    let back = udp(WAN1, GATEWAY1, REMOTE, OUTSIDE).build();
    for (interface, packet) in [("lan0", &out), ("wan1", &back), ("lan0", &out)] {
        let outcome = rig.tc(interface, packet)?;
        ensure!(outcome.code == TC_REDIRECT, "the flow is not forwarded from {interface}: {:?}", outcome.counted);
    }
    Ok(())
}

/// Empties all tables of flows.
fn clear(rig: &mut Rig) -> Result<()> {
    fn empty<K: aya::Pod + bytemuck::Pod, V: aya::Pod + bytemuck::Pod>(table: &mut Hash<K, V>) -> Result<()> {
        let mut keys = Vec::new();
        table.walk(|key, _| keys.push(key))?;
        keys.iter().try_for_each(|key| table.forget(key))?;
        Ok(())
    }
    rig.end_copies()?;
    let tables = &mut rig.tables;
    empty(&mut tables.flows4)?;
    empty(&mut tables.new_flows4)?;
    empty(&mut tables.by_inside4)?;
    tables.known.reset();
    empty(&mut tables.by_outside4)?;
    empty(&mut tables.peers4)?;
    empty(&mut tables.sources4)?;
    empty(&mut tables.ended4)
}

/// A sample, in nanoseconds; none if the hook leaves this kind to the other one.
fn sample(rig: &mut Rig, driver: &mut Driver, hook: Hook, kind: &Kind, effort: &Effort) -> Result<Option<f64>> {
    let vary = kind.rules.is_some();
    let runs = if vary { NEW_FLOWS } else { effort.pick(RUNS, QUICK_RUNS) };
    let before = bindings(rig)?;
    let cost = driver.cost(rig, hook, &Drive { packet: &kind.packet, interface: kind.interface, vary, runs })?;
    let code = kind.codes[usize::from(hook == Hook::Xdp)];
    // XDP leaves those new flows to TC that share a byte with others (`mh_common::known`), and the last of them may be one.
    let may_pass = vary && hook == Hook::Xdp;
    if hook == Hook::Xdp && cost.code == XDP_PASS && code != XDP_PASS && !may_pass {
        return Ok(None);
    }
    let passed = may_pass && cost.code == XDP_PASS;
    ensure!(passed || cost.code == code, "the program returned {} where {code} was to be", cost.code);
    if vary {
        let more = bindings(rig)? - before;
        let enough = if may_pass { u64::from(runs) * 19 / 20 } else { u64::from(runs) };
        ensure!((enough..=u64::from(runs)).contains(&more), "{runs} new flows made {more} bindings");
        establish(rig)?;
    } else if code != TC_NEXT && code != XDP_PASS {
        ensure!(is_translated(&kind.packet, &cost), "the packet was sent, but not translated");
    }
    Ok(Some(cost.ns))
}

/// Whether the last run changed an address, and the TTL by one: each run got the packet as it was at first.
fn is_translated(packet: &[u8], cost: &Cost) -> bool {
    const TTL: usize = 22;
    const ADDRESSES: std::ops::Range<usize> = 26..34;
    let ttl = |packet: &[u8]| packet.get(TTL).copied().unwrap_or_default();
    packet.get(ADDRESSES) != cost.packet.get(ADDRESSES) && ttl(&cost.packet) + 1 == ttl(packet)
}

fn bindings(rig: &Rig) -> Result<u64> {
    Ok(rig.tables.bindings()?.len() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mh_bench_ebpf::case::FIRST_PORT;
    use mh_tests::packet::checksum;

    #[test]
    fn packets_can_be_driven() {
        for kind in Kind::all() {
            assert!(kind.packet.len() >= SHORT, "{}", kind.column);
            assert_eq!(checksum(&[&kind.packet[14..34]]), 0, "{}", kind.column);
        }
    }

    #[test]
    fn no_checksum_changes_with_the_flow() {
        let mut frame = new_flow();
        let (host, port) = (0x0123u16.to_be_bytes(), u16::try_from(FIRST_PORT + 7).unwrap().to_be_bytes());
        let against = |bytes: [u8; 2]| bytes.map(|byte| !byte);
        for (offset, bytes) in [(18, against(host)), (28, host), (34, port), (42, against(host)), (44, against(port))] {
            frame[offset..offset + 2].copy_from_slice(&bytes);
        }
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        let len = u16::try_from(frame.len() - 34).unwrap().to_be_bytes();
        assert_eq!(checksum(&[&frame[26..34], &[0, 17], &len, &frame[34..]]), 0);
    }
}

/// Needs root.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod laboratory {
    use mh_tests::lab::skipped;

    use super::*;

    #[test]
    fn every_kind_of_packet_is_treated_as_its_kind_and_has_its_cost() {
        if skipped() {
            return;
        }
        let effort = Effort { rounds: 1, quick: true, ..Effort::default() };
        let [cost, sizes] = <[Table; 2]>::try_from(measure(&effort).unwrap()).unwrap();
        let ns = |row: &str, column: &str| {
            let (row, column) = (cost.row(row).unwrap(), cost.column(column).unwrap());
            cost.figure(row, column).map(|figure| figure.median)
        };
        for column in &cost.columns {
            assert!(ns(contender::MH_TC, column).is_some_and(|ns| ns > 0.0), "{column}");
        }
        let hit = ns(contender::MH_TC, column::HIT_OUT).unwrap();
        let new = ns(contender::MH_TC, &column::new_flow(0)).unwrap();
        assert!(new > 2.0 * hit, "a new flow took {new} ns and a hit {hit} ns: the driver made no new flows");
        assert!(ns(contender::MH_XDP, column::HIT_OUT).is_some() && ns(contender::MH_XDP, column::HIT_BACK).is_some());
        let xdp = sizes.row(mh_common::abi::program::XDP).unwrap();
        assert!(
            (0..sizes.columns.len()).all(|column| sizes.figure(xdp, column).is_some_and(|size| size.median > 100.0))
        );
    }

    #[test]
    fn the_driver_gives_each_run_the_packet_as_it_was() {
        if skipped() {
            return;
        }
        Rig::run_config(CONFIG, |rig| {
            establish(rig)?;
            let mut driver = Driver::load(rig)?;
            let packet = udp(LAN, HOST, INSIDE, REMOTE).build();
            let once = rig.xdp("lan0", &packet)?;
            let drive = Drive { packet: &packet, interface: "lan0", vary: false, runs: 1000 };
            let often = driver.cost(rig, Hook::Xdp, &drive)?;
            assert_eq!((often.code, &often.packet), (once.code, &once.packet), "the last of 1000 runs is as the first");
            let short = Drive { packet: &packet[..SHORT - 1], ..drive.clone() };
            assert!(driver.cost(rig, Hook::Xdp, &short).unwrap_err().to_string().contains("too short"));
            let many = Drive { vary: true, runs: MOST_RUNS + 1, ..drive };
            assert!(driver.cost(rig, Hook::Tc, &many).is_err());
            Ok(())
        })
        .unwrap();
    }
}

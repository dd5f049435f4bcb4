//! What a run of mh's programs costs, by `BPF_PROG_TEST_RUN` on the rig of `mh_tests::rig`: the programs alone, without driver, socket
//! buffer or redirect.

use anyhow::Result;
use mh_tests::packet::{Packet, Transport};
use mh_tests::rig::{GATEWAY1, HOST, LAN, Rig, WAN1};

use crate::{
    effort::Effort,
    names,
    report::{Row, Table, as_f64},
};

/// A kind of packet to measure.
struct Case {
    name: &'static str,
    xdp: bool,
    interface: &'static str,
    packet: Vec<u8>,
}

/// Measures.
///
/// # Errors
/// If the rig can't be made, or the kernel refuses a run.
pub fn measure(effort: &Effort) -> Result<Vec<Table>> {
    let runs = effort.pick(200_000, 50_000);
    let rows = Rig::run([1, 0], |rig| {
        // The kernel repeats a run on the packet that the run before left behind: what is measured has to be left as it is.
        let not_ours = Packet::new(LAN, HOST, "192.168.1.10:40001", "192.168.1.1:53", Transport::Udp).build();
        let case = |name, xdp, interface, packet: &Vec<u8>| Case { name, xdp, interface, packet: packet.clone() };
        let cases = [
            case("xdp: to the router itself", true, "lan0", &not_ours),
            case("tc: to the router itself", false, "lan0", &not_ours),
            case(
                "tc: from an uplink, no flow",
                false,
                "wan1",
                // In mid-stream, to a port that nobody has: the kernel's.
                &Packet::new(WAN1, GATEWAY1, "192.0.2.77:53", "198.51.100.2:40009", Transport::Tcp(0x10)).build(),
            ),
        ];
        let mut rows = cases.each_ref().map(|case| Row { name: case.name.to_owned(), samples: vec![Vec::new()] });
        for _ in 0..effort.rounds {
            for (case, row) in cases.iter().zip(&mut rows) {
                let ns = rig.cost_ns(case.xdp, case.interface, &case.packet, runs)?;
                row.samples[0].push(as_f64(u64::try_from(ns)?));
            }
        }
        Ok(Vec::from(rows))
    })?;
    Ok(vec![Table {
        name: names::table::PROGRAM,
        title: "A program's run, by kind of packet".to_owned(),
        unit: "ns",
        more_is_better: false,
        columns: vec!["test run".to_owned()],
        rows,
        baseline: 0,
    }])
}

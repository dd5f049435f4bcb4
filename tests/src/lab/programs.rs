//! What programs run on an interface.

use anyhow::Result;
use aya::{
    programs::{SchedClassifier, TcAttachType},
    util::KernelVersion,
};

use super::Host;

/// How many programs are attached to an interface of a host: XDP, tcx and clsact together.
///
/// # Errors
/// If the interface does not exist, or the kernel doesn't tell.
pub fn programs_on(host: &Host, interface: &str) -> Result<usize> {
    let link = host.run(&["ip", "-d", "link", "show", "dev", interface])?;
    let xdp = link.matches("prog/xdp").count();
    let mut tc = 0;
    for direction in ["ingress", "egress"] {
        // Without a clsact qdisc, tc complains instead of listing nothing.
        tc += host.output(&["tc", "filter", "show", "dev", interface, direction])?.stdout.matches("bpf").count();
    }
    // Before 6.6 there are no tcx links, and asking for them is refused.
    let has_tcx = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
    let tcx = if has_tcx { host.enter(|| tcx_programs(interface))?? } else { 0 };
    Ok(xdp + tc + tcx)
}

fn tcx_programs(interface: &str) -> Result<usize> {
    let (_, ingress) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress)?;
    let (_, egress) = SchedClassifier::query_tcx(interface, TcAttachType::Egress)?;
    Ok(ingress.len() + egress.len())
}

//! TCP throughput through the router, by iperf3 over veth with segmentation offload: mh beside the kernel.
//!
//! ```text
//!  client1 ── switch ── lan0 ┌────────┐ wan1 ── isp1 ── server: iperf3
//!                            │ router │
//!                            └────────┘
//! ```
//!
//! One topology for all contenders, which take turns. Without translation the ISP and the server get routes to the LAN, so that plain
//! forwarding works. All run on the same cores, so ratios within one run are what counts.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::{Lab, Mhd, Mode, Options, SERVER, TwoIsps};

/// Who forwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Router {
    /// The kernel, without translation.
    Kernel,
    /// The kernel, translating (nft masquerade).
    Masquerade,
    /// mh at TC.
    MhTc,
}

impl Router {
    const ALL: [Self; 3] = [Self::Kernel, Self::Masquerade, Self::MhTc];

    const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel forwarding, no NAT",
            Self::Masquerade => "kernel forwarding, nft masquerade",
            Self::MhTc => "mh, TC",
        }
    }
}

/// Measures `rounds` times `seconds` per contender and direction, and prints medians and ratios to plain forwarding.
pub fn measure(rounds: usize, seconds: u32) -> Result<()> {
    let lab = Lab::two_isps(&Options::new(Mode::Tc))?;
    let isp = &lab.uplink(0)?.isp;
    isp.sysctl("ipv4/conf/all/rp_filter", "0")?;
    isp.sysctl("ipv4/conf/eth0/rp_filter", "0")?;
    isp.ip(&[format!("route add 192.168.0.0/16 via {}", lab.uplink(0)?.address)])?;
    lab.server.ip(&["route add 192.168.0.0/16 via 10.99.1.1"])?;
    let mut iperf3 = lab.server.spawn("iperf3", &["iperf3", "-s", "-B", &SERVER.to_string(), "--forceflush"])?;
    iperf3.wait_for_line("Server listening", Duration::from_secs(5))?;

    let mut samples = vec![[Vec::new(), Vec::new()]; Router::ALL.len()];
    for _ in 0..rounds {
        for (router, samples) in Router::ALL.into_iter().zip(&mut samples) {
            let running = start(&lab, router)?;
            for (reverse, samples) in [false, true].into_iter().zip(samples.iter_mut()) {
                samples.push(gigabits(&lab, reverse, seconds)?);
            }
            stop(&lab, router, running)?;
        }
    }
    println!("{:<36} {:>10} {:>10} {:>8} {:>8}", "TCP, one stream, iperf3", "up Gbit/s", "down", "ratio up", "down");
    let mut plain = [1.0, 1.0];
    for (router, samples) in Router::ALL.into_iter().zip(&mut samples) {
        let [up, down] = samples.each_mut().map(|samples| {
            samples.sort_by(f64::total_cmp);
            samples.get(samples.len() / 2).copied().unwrap_or(0.0)
        });
        if router == Router::Kernel {
            plain = [up, down];
        }
        println!("{:<36} {up:>10.1} {down:>10.1} {:>8.2} {:>8.2}", router.name(), up / plain[0], down / plain[1]);
    }
    Ok(())
}

fn start(lab: &TwoIsps, router: Router) -> Result<Option<Mhd>> {
    match router {
        Router::Kernel => Ok(None),
        Router::Masquerade => lab.masquerade().map(|()| None),
        Router::MhTc => Mhd::start(lab.lab(), &lab.router, &lab.config(&[1, 0])).map(Some),
    }
}

fn stop(lab: &TwoIsps, router: Router, running: Option<Mhd>) -> Result<()> {
    if router == Router::Masquerade {
        lab.router.nft("flush ruleset")?;
    }
    if let Some(mhd) = running {
        mhd.ctl(&["detach"])?;
    }
    Ok(())
}

fn gigabits(lab: &TwoIsps, reverse: bool, seconds: u32) -> Result<f64> {
    let (server, seconds) = (SERVER.to_string(), seconds.to_string());
    let mut arguments = vec!["iperf3", "-c", &server, "-t", &seconds, "-J", "--connect-timeout", "3000"];
    if reverse {
        arguments.push("-R");
    }
    let printed = lab.client1.run(&arguments)?;
    let report: serde_json::Value = serde_json::from_str(&printed).context("iperf3's JSON")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3's throughput")?;
    Ok(bits / 1e9)
}

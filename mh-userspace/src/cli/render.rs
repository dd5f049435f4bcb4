//! Documents as tables.

use std::net::{IpAddr, SocketAddr};

use super::table::{Colour, painted, table};
use crate::control::api::{Binding, Flow, Reloaded, Stats, Status, UplinkState, Weight};

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn end(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn state(state: UplinkState, colour: bool) -> String {
    let paint = match state {
        UplinkState::Up => Colour::Green,
        UplinkState::Draining | UplinkState::Disabled => Colour::Yellow,
        UplinkState::Down => Colour::Red,
    };
    painted(&state.to_string(), paint, colour)
}

/// A number of bytes with a binary unit.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

pub fn status(status: &Status, colour: bool) -> String {
    let flows = status.flows;
    let head = format!(
        "mh {}, mode {}: {} flows and {} without reply in {} entries, {} bindings of {}\n\n",
        status.version,
        status.mode,
        flows.established,
        flows.embryonic,
        flows.capacity,
        status.bindings.used,
        status.bindings.capacity
    );
    let rows = status
        .uplinks
        .iter()
        .map(|u| {
            let addresses: Vec<String> = u.address.iter().map(ToString::to_string).collect();
            vec![
                u.name.clone(),
                state(u.state, colour),
                format!("{} ({})", u.interface, u.hook),
                if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") },
                u.gateway.map_or_else(|| "-".to_owned(), |gateway| gateway.to_string()),
                u.weight.to_string(),
                percent(u.share),
                u.flows.to_string(),
                size(u.tx_bytes),
                size(u.rx_bytes),
                u.reason.clone(),
            ]
        })
        .collect();
    head + &table(
        &[
            ("UPLINK", false),
            ("STATE", false),
            ("INTERFACE", false),
            ("ADDRESS", false),
            ("GATEWAY", false),
            ("WEIGHT", true),
            ("SHARE", true),
            ("FLOWS", true),
            ("SENT", true),
            ("RECEIVED", true),
            ("REASON", false),
        ],
        rows,
    )
}

pub fn weights(weights: &[Weight], _colour: bool) -> String {
    let rows = weights
        .iter()
        .map(|w| {
            vec![
                w.name.clone(),
                w.configured.to_string(),
                w.weight.to_string(),
                w.effective_weight.to_string(),
                percent(w.share),
            ]
        })
        .collect();
    let columns = [("UPLINK", false), ("CONFIGURED", true), ("WEIGHT", true), ("EFFECTIVE", true), ("SHARE", true)];
    table(&columns, rows)
}

pub fn flows(flows: &[Flow], _colour: bool) -> String {
    let rows = flows
        .iter()
        .map(|f| {
            vec![
                f.protocol.clone(),
                end(f.src, f.sport),
                end(f.dst, f.dport),
                end(f.nat_src, f.nat_sport),
                f.uplink.clone(),
                f.state.clone(),
                format!("{} s", f.age_s),
                format!("{} s", f.idle_s),
                f.packets_out.to_string(),
                f.packets_in.to_string(),
                size(f.bytes_out),
                size(f.bytes_in),
            ]
        })
        .collect();
    table(
        &[
            ("PROTO", false),
            ("INSIDE", false),
            ("REMOTE", false),
            ("OUTSIDE", false),
            ("UPLINK", false),
            ("STATE", false),
            ("AGE", true),
            ("IDLE", true),
            ("PKTS OUT", true),
            ("PKTS IN", true),
            ("OUT", true),
            ("IN", true),
        ],
        rows,
    )
}

pub fn bindings(bindings: &[Binding], _colour: bool) -> String {
    let rows = bindings
        .iter()
        .map(|b| {
            vec![
                b.protocol.clone(),
                end(b.inside, b.inside_port),
                end(b.outside, b.outside_port),
                b.uplink.clone(),
                format!("{} s", b.expires_s),
            ]
        })
        .collect();
    table(&[("PROTO", false), ("INSIDE", false), ("OUTSIDE", false), ("UPLINK", false), ("EXPIRES", true)], rows)
}

pub fn stats(stats: &Stats, _colour: bool) -> String {
    let uplinks = stats
        .uplinks
        .iter()
        .map(|(name, u)| {
            vec![
                name.clone(),
                u.tx_packets.to_string(),
                u.tx_bytes.to_string(),
                u.rx_packets.to_string(),
                u.rx_bytes.to_string(),
                u.new_flows.to_string(),
            ]
        })
        .collect();
    let counts = |list: &std::collections::BTreeMap<String, u64>| {
        list.iter().map(|(name, count)| vec![name.clone(), count.to_string()]).collect()
    };
    let maps = stats
        .maps
        .iter()
        .map(|(name, usage)| vec![name.clone(), usage.used.to_string(), usage.capacity.to_string()])
        .collect();
    [
        table(
            &[
                ("UPLINK", false),
                ("TX PACKETS", true),
                ("TX BYTES", true),
                ("RX PACKETS", true),
                ("RX BYTES", true),
                ("NEW FLOWS", true),
            ],
            uplinks,
        ),
        table(&[("VERDICT", false), ("PACKETS", true)], counts(&stats.verdicts)),
        table(&[("DROPPED BECAUSE", false), ("PACKETS", true)], counts(&stats.drops)),
        table(&[("MAP", false), ("USED", true), ("CAPACITY", true)], maps),
    ]
    .join("\n")
}

pub fn reloaded(reloaded: &Reloaded, _colour: bool) -> String {
    let mut text = String::new();
    for warning in &reloaded.warnings {
        text += &format!("warning: {warning}\n");
    }
    for change in &reloaded.changed {
        text += &format!("{change}\n");
    }
    if reloaded.changed.is_empty() {
        text += "nothing changed\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn a_flow_shows_both_tuples() {
        let address = |text: &str| text.parse().unwrap();
        let flow = Flow {
            protocol: "tcp".into(),
            src: address("192.168.1.10"),
            sport: 40000,
            dst: address("192.0.2.10"),
            dport: 80,
            nat_src: address("198.51.100.2"),
            nat_sport: 40001,
            uplink: "isp1".into(),
            state: "established".into(),
            age_s: 3,
            idle_s: 0,
            packets_out: 5,
            bytes_out: 2048,
            packets_in: 4,
            bytes_in: 10,
        };
        let text = flows(&[flow], false);
        let row = text.lines().nth(1).unwrap();
        assert_eq!(
            row.split_whitespace().collect::<Vec<_>>()[..6],
            ["tcp", "192.168.1.10:40000", "192.0.2.10:80", "198.51.100.2:40001", "isp1", "established"]
        );
    }
}

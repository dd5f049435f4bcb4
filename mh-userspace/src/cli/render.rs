//! Documents as tables.

mod policy;

use std::{collections::BTreeMap, net::SocketAddr};

pub use self::policy::{explanation, policies, rules, sets};

use super::table::{Cell, Colour, Painted, Table};
use crate::control::api::{
    Binding, Event, EventKind, Flow, Reloaded, Stats, Status, UplinkState, UplinkStatus, Weight,
};

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn state(state: UplinkState) -> Painted<UplinkState> {
    let colour = match state {
        UplinkState::Up => Colour::Green,
        UplinkState::Draining | UplinkState::Disabled => Colour::Yellow,
        UplinkState::Down => Colour::Red,
    };
    Painted(state, colour)
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
    let mut table = Table::new([
        ("UPLINK", false),
        ("STATE", false),
        ("INTERFACE", false),
        ("ADDRESS", false),
        ("GATEWAY", false),
        ("WEIGHT", true),
        ("SHARE", true),
        ("FLOWS", true),
        ("SENDS", true),
        ("RECEIVES", true),
        ("SENT", true),
        ("RECEIVED", true),
        ("REASON", false),
    ]);
    for u in &status.uplinks {
        let addresses: Vec<String> = u.address.iter().map(ToString::to_string).collect();
        table.row([
            &u.name,
            &state(u.state),
            &format!("{} ({})", u.interface, u.hook),
            &if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") },
            &u.gateway.map_or_else(|| "-".to_owned(), |gateway| gateway.to_string()),
            &weight(u),
            &percent(u.share),
            &u.flows,
            &rate_of(u.tx_bps, u.capacity.map(|capacity| capacity.up_bps)),
            &rate_of(u.rx_bps, u.capacity.map(|capacity| capacity.down_bps)),
            &size(u.tx_bytes),
            &size(u.rx_bytes),
            &why(u),
        ]);
    }
    head + &table.render(colour)
}

/// An uplink's weight; what of it is in force, if that is another.
fn weight(uplink: &UplinkStatus) -> String {
    let unit = if uplink.by_capacity { MEGABITS } else { "" };
    if uplink.effective_weight == uplink.weight {
        return format!("{}{unit}", uplink.weight);
    }
    format!("{} of {}{unit}", uplink.effective_weight, uplink.weight)
}

/// What stands behind weights that go by capacity.
const MEGABITS: &str = " Mbit/s";

/// A weight in force.
fn effective(weight: u32, by_capacity: bool) -> String {
    // Nothing at all says that there are no new flows, and not what is left.
    if by_capacity && weight > 0 { format!("{weight}{MEGABITS}") } else { weight.to_string() }
}

/// Units of rates, and bits per second in each.
const RATES: [(&str, f64); 4] = [("bit/s", 1.0), ("kbit/s", 1e3), ("Mbit/s", 1e6), ("Gbit/s", 1e9)];

/// The unit in which a rate has the fewest digits before the point, but one.
fn unit_of(bps: u64) -> (&'static str, f64) {
    let fits = |(_, scale): &(&str, f64)| bps as f64 / scale < 999.5;
    RATES.into_iter().find(fits).unwrap_or(RATES[RATES.len() - 1])
}

/// A rate in a unit, to three digits.
fn three_digits(bps: u64, scale: f64) -> String {
    let value = bps as f64 / scale;
    let digits = if bps == 0 || scale <= 1.0 || value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    format!("{value:.digits$}")
}

/// Bits per second, and how many there can be, if that is known.
fn rate_of(bps: u64, capacity: Option<u64>) -> String {
    let (unit, scale) = unit_of(capacity.unwrap_or(bps));
    let rate = three_digits(bps, scale);
    match capacity {
        Some(capacity) => format!("{rate} of {} {unit}", capacity as f64 / scale),
        None => format!("{rate} {unit}"),
    }
}

/// The reason of an uplink's state, what its probes measure, and what they warn of.
fn why(uplink: &UplinkStatus) -> String {
    let rtt = uplink.rtt_ms.map(|rtt| format!("{rtt:.1} ms"));
    let loss = uplink.loss.map(|loss| format!("{} lost", percent(loss)));
    let measured: Vec<String> = rtt.into_iter().chain(loss).collect();
    let measured = if measured.is_empty() { String::new() } else { format!(" ({})", measured.join(", ")) };
    let warning = uplink.warning.as_ref().map_or_else(String::new, |warning| format!("; {warning}"));
    format!("{}{measured}{warning}", uplink.reason)
}

pub fn weights(weights: &[Weight], colour: bool) -> String {
    let mut table =
        Table::new([("UPLINK", false), ("CONFIGURED", true), ("WEIGHT", true), ("EFFECTIVE", true), ("SHARE", true)]);
    let number = |weight: u32, by_capacity| if by_capacity { "capacity".to_owned() } else { weight.to_string() };
    for w in weights {
        table.row([
            &w.name,
            &number(w.configured, w.configured_by_capacity),
            &number(w.weight, w.by_capacity),
            &effective(w.effective_weight, w.by_capacity),
            &percent(w.share),
        ]);
    }
    table.render(colour)
}

pub fn flows(flows: &[Flow], colour: bool) -> String {
    let mut table = Table::new([
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
    ]);
    for f in flows {
        table.row([
            &f.protocol,
            &SocketAddr::new(f.src, f.sport),
            &SocketAddr::new(f.dst, f.dport),
            &SocketAddr::new(f.nat_src, f.nat_sport),
            &f.uplink,
            &f.state,
            &format_args!("{} s", f.age_s),
            &format_args!("{} s", f.idle_s),
            &f.packets_out,
            &f.packets_in,
            &size(f.bytes_out),
            &size(f.bytes_in),
        ]);
    }
    table.render(colour)
}

pub fn bindings(bindings: &[Binding], colour: bool) -> String {
    let mut table =
        Table::new([("PROTO", false), ("INSIDE", false), ("OUTSIDE", false), ("UPLINK", false), ("EXPIRES", true)]);
    for b in bindings {
        let expires = if b.forward { "forward".to_owned() } else { format!("{} s", b.expires_s) };
        table.row([
            &b.protocol,
            &SocketAddr::new(b.inside, b.inside_port),
            &SocketAddr::new(b.outside, b.outside_port),
            &b.uplink,
            &expires,
        ]);
    }
    table.render(colour)
}

pub fn stats(stats: &Stats, colour: bool) -> String {
    let mut uplinks = Table::new([
        ("UPLINK", false),
        ("TX PACKETS", true),
        ("TX BYTES", true),
        ("RX PACKETS", true),
        ("RX BYTES", true),
        ("NEW FLOWS", true),
    ]);
    for (name, u) in &stats.uplinks {
        uplinks.row([name, &u.tx_packets, &u.tx_bytes, &u.rx_packets, &u.rx_bytes, &u.new_flows]);
    }
    let counts = |head, list: &BTreeMap<String, u64>| {
        let mut table = Table::new([(head, false), ("PACKETS", true)]);
        for (name, count) in list {
            table.row([name, count]);
        }
        table.render(colour)
    };
    let mut maps = Table::new([("MAP", false), ("USED", true), ("CAPACITY", true)]);
    for (name, usage) in &stats.maps {
        maps.row([name, &usage.used, &usage.capacity]);
    }
    [
        uplinks.render(colour),
        counts("VERDICT", &stats.verdicts),
        counts("DROPPED BECAUSE", &stats.drops),
        maps.render(colour),
    ]
    .join("\n")
}

/// The columns of events.
const EVENT_COLUMNS: [(&str, bool); 4] = [("TIME", false), ("UPLINK", false), ("STATE", false), ("REASON", false)];

/// An event's uplink and state, or what else it is about.
fn event_cells(event: &Event) -> (&str, Box<dyn Cell>) {
    let uplink = event.uplink.as_deref().unwrap_or("-");
    match (event.kind, event.state) {
        (EventKind::Uplink, Some(now)) => (uplink, Box::new(state(now))),
        (EventKind::Uplink, None) => (uplink, Box::new("removed")),
        (EventKind::Start, _) => (uplink, Box::new("start")),
        (EventKind::Stop, _) => (uplink, Box::new("stop")),
        (EventKind::Reload, _) => (uplink, Box::new("reload")),
        (EventKind::Detach, _) => (uplink, Box::new("detach")),
        (EventKind::Warning, _) => (uplink, Box::new(Painted("warning", Colour::Yellow))),
        (EventKind::Skipped, _) => (uplink, Box::new(Painted("skipped", Colour::Yellow))),
    }
}

pub fn events(events: &[Event], colour: bool) -> String {
    let mut table = Table::new(EVENT_COLUMNS);
    for event in events {
        let (uplink, state) = event_cells(event);
        table.row([&event.time, &uplink, state.as_ref(), &event.reason]);
    }
    table.render(colour)
}

/// The widths of all columns of events but the last, where events are printed as they come and no table can be laid out.
const EVENT_WIDTHS: [usize; 3] = [24, 10, 8];

/// The head above lines of [`event`].
pub fn event_head() -> String {
    let [time, uplink, state] = EVENT_WIDTHS;
    let [(a, _), (b, _), (c, _), (d, _)] = EVENT_COLUMNS;
    format!("{a:<time$}  {b:<uplink$}  {c:<state$}  {d}")
}

/// One event on one line.
pub fn event(event: &Event, colour: bool) -> String {
    let [time, uplink, width] = EVENT_WIDTHS;
    let (name, state) = event_cells(event);
    // Padded before it is coloured.
    let padded = format!("{:<width$}", state.text().to_string());
    let padded = match state.colour() {
        Some(paint) if colour => paint.paint(&padded),
        _ => padded,
    };
    format!("{:<time$}  {name:<uplink$}  {padded}  {}", event.time, event.reason)
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
    use crate::{
        cli::table::tests::bare,
        control::api::{FlowTotals, Usage},
    };

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn rates_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0 bit/s"),
            (999, "999 bit/s"),
            (1_000, "1.00 kbit/s"),
            (12_340_000, "12.3 Mbit/s"),
            (999_949, "1.00 Mbit/s"),
        ];
        for (bps, text) in cases {
            assert_eq!(rate_of(bps, None), text);
        }
        assert_eq!(
            [99_949, 99_950, 40_000_000_000].map(|bps| rate_of(bps, None)),
            ["99.9 kbit/s", "100 kbit/s", "40.0 Gbit/s"]
        );
    }

    #[test]
    fn rates_are_in_the_unit_of_the_capacity() {
        let cases = [
            (7_908_257, 20_000_000, "7.91 of 20 Mbit/s"),
            (0, 1_500_000_000, "0 of 1.5 Gbit/s"),
            (250_000, 33_300_000, "0.25 of 33.3 Mbit/s"),
            (12_000_000, 8_000, "12000 of 8 kbit/s"),
        ];
        for (bps, capacity, text) in cases {
            assert_eq!(rate_of(bps, Some(capacity)), text);
        }
    }

    #[test]
    fn weights_by_capacity_have_a_unit() {
        let number = UplinkStatus { weight: 2, effective_weight: 0, ..uplink("isp1", UplinkState::Down, "no carrier") };
        assert_eq!(weight(&number), "0 of 2");
        let by_capacity = UplinkStatus { weight: 20, effective_weight: 12, by_capacity: true, ..number };
        assert_eq!(weight(&by_capacity), "12 of 20 Mbit/s");
        assert_eq!(weight(&UplinkStatus { effective_weight: 20, ..by_capacity }), "20 Mbit/s");

        let by_hand = Weight {
            name: "isp1".into(),
            configured: 20,
            configured_by_capacity: true,
            weight: 3,
            by_capacity: false,
            effective_weight: 3,
            share: 0.25,
        };
        let as_configured = Weight { weight: 20, by_capacity: true, effective_weight: 12, ..by_hand.clone() };
        let rows = weights(&[by_hand, as_configured], false);
        let rows: Vec<Vec<&str>> = rows.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(
            rows,
            [
                vec!["isp1", "capacity", "3", "3", "25.0", "%"],
                vec!["isp1", "capacity", "capacity", "12", "Mbit/s", "25.0", "%"]
            ]
        );
    }

    fn uplink(name: &str, state: UplinkState, reason: &str) -> UplinkStatus {
        UplinkStatus {
            name: name.into(),
            interface: "wan0".into(),
            state,
            reason: reason.into(),
            warning: None,
            hook: "xdp".into(),
            address: vec!["198.51.100.2".parse().unwrap()],
            gateway: None,
            weight: 1,
            effective_weight: 1,
            by_capacity: false,
            tier: 0,
            share: 0.25,
            capacity: None,
            rx_bps: 0,
            tx_bps: 0,
            rtt_ms: None,
            loss: None,
            tx_packets: 1,
            tx_bytes: 1536,
            rx_packets: 1,
            rx_bytes: 10,
            flows: 3,
        }
    }

    #[test]
    fn the_reason_has_what_the_probes_say() {
        let plain = uplink("isp1", UplinkState::Up, "link up");
        assert_eq!(why(&plain), "link up");
        let reason = "probes answered".to_owned();
        let probed = UplinkStatus { rtt_ms: Some(1.25), loss: Some(0.0), reason, ..plain };
        assert_eq!(why(&probed), "probes answered (1.2 ms, 0.0 % lost)");
        let warned = UplinkStatus { warning: Some("probe icmp://192.0.2.1 loss above 5%".to_owned()), ..probed };
        assert_eq!(why(&warned), "probes answered (1.2 ms, 0.0 % lost); probe icmp://192.0.2.1 loss above 5%");
    }

    #[test]
    fn a_coloured_status_has_the_layout_of_a_plain_one() {
        let document = Status {
            version: "0.1.0".into(),
            mode: "auto".into(),
            uplinks: vec![
                uplink("isp1", UplinkState::Up, ""),
                uplink("a-longer-one", UplinkState::Draining, "drained by hand"),
                uplink("isp3", UplinkState::Disabled, "disabled by hand"),
                uplink("isp4", UplinkState::Down, "no carrier"),
            ],
            flows: FlowTotals::default(),
            bindings: Usage::default(),
        };
        let plain = status(&document, false);
        let coloured = status(&document, true);
        assert_eq!(bare(&coloured), plain);
        for state in ["\x1b[32mup\x1b[0m", "\x1b[33mdraining\x1b[0m", "\x1b[33mdisabled\x1b[0m", "\x1b[31mdown\x1b[0m"]
        {
            assert!(coloured.contains(state), "{coloured:?}");
        }
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

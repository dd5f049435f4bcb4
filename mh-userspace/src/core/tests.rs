//! The core as a whole, with a clock of its own: events in, what should be out.

use std::{net::Ipv4Addr, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::config::{self, AddressRange};

const CONFIG: &str = r#"
    lan = ["lan*"]
    [uplink.isp1]
    interface = "wan1"
    weight = 2
    [uplink.isp2]
    interface = "wan2"
    gateway = "203.0.113.1"
    address = "203.0.113.2"
"#;
const WAN1: u32 = 2;
const WAN2: u32 = 3;
const GATEWAY1: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const GATEWAY2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const ADDRESS1: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

fn core_of(config: &str) -> Core {
    let config = config::parse(config).unwrap().config;
    let mut indices = Indices::default();
    assert!(indices.assign(&config).is_empty());
    Core::new(config, indices, Overrides::default(), 0)
}

fn link(ifindex: u32, name: &str) -> Link {
    let mac = Some([2, 0, 0, 0, 0, 1]);
    Link { ifindex, name: name.into(), mac, mtu: 1500, up: true, carrier: true, master: None }
}

fn address1() -> Event {
    Event::Address { ifindex: WAN1, address: ADDRESS1, secondary: false }
}

fn route(metric: u32, ifindex: u32, gateway: Ipv4Addr) -> DefaultRoute {
    DefaultRoute { metric, hops: vec![Hop { ifindex, gateway: Some(gateway) }] }
}

fn new_route(route: DefaultRoute) -> Event {
    Event::DefaultRoute { route, replaces: false }
}

fn facts() -> Vec<Event> {
    let links = [(1, "lan0"), (WAN1, "wan1"), (WAN2, "wan2"), (4, "other")];
    let mut facts: Vec<Event> = links.iter().map(|(ifindex, name)| Event::Link(link(*ifindex, name))).collect();
    facts.extend([address1(), new_route(route(100, WAN1, GATEWAY1))]);
    facts
}

fn core() -> Core {
    let mut core = core_of(CONFIG);
    core.observe(facts());
    core
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// State and reason of the uplink with this place in the configuration.
fn state(core: &mut Core, uplink: usize, now: Duration) -> (UplinkState, String) {
    let view = core.desired(now).views.swap_remove(uplink);
    assert_eq!(view.effective_weight > 0, view.state == UplinkState::Up && view.tier == Some(0), "{view:?}");
    (view.state, view.reason)
}

fn is_up(core: &mut Core, uplink: usize, now: Duration) -> bool {
    state(core, uplink, now).0 == UplinkState::Up
}

fn down(reason: &str) -> (UplinkState, String) {
    (UplinkState::Down, reason.to_owned())
}

#[test]
fn learns_what_the_configuration_leaves_out() {
    let desired = core().desired(s(0));
    assert_eq!(desired.views[0].addresses, [AddressRange { first: ADDRESS1, count: 1 }]);
    assert_eq!(desired.views[0].gateway, Some(GATEWAY1));
    assert_eq!(desired.healthy, 0b11);
    assert_eq!(default_policy(&desired), (vec![2, 1, 0], 0b11));
    assert_eq!(desired.interfaces.keys().copied().collect::<Vec<_>>(), [1, WAN1, WAN2]);
    assert_eq!(desired.gateways, [(WAN1, GATEWAY1), (WAN2, GATEWAY2)].into());
    assert!((desired.views[0].share - 2.0 / 3.0).abs() < 1e-9);
}

#[test]
fn another_uplink_stands_in_for_a_default_route_that_is_dead() {
    let mut core = core();
    let mut spare = |down: &[&str], event: Option<Event>| {
        core.observe(event.into_iter().collect());
        core.overrides_mut().health = down.iter().map(|name| ((*name).to_owned(), HealthOverride::Down)).collect();
        core.desired(s(0)).routing.spare
    };
    assert_eq!(spare(&[], None), None);
    assert_eq!(spare(&["isp2"], None), None, "the default route is not by that one");
    assert_eq!(spare(&["isp1"], None), Some(1));
    assert_eq!(spare(&["isp1", "isp2"], None), None);
    // What is preferred is no uplink's: that is somebody else's to decide.
    assert_eq!(spare(&["isp1"], Some(new_route(route(1, 4, GATEWAY1)))), None);
}

/// Puts another configuration in place, as a reload does.
fn configure(core: &mut Core, text: &str) {
    let config = config::parse(text).unwrap().config;
    let mut indices = core.indices().clone();
    indices.assign(&config);
    let rules = RuleTable::new(&config, &indices);
    core.configure(config, Arc::new(rules));
}

/// The weights of the first three uplinks under the default policy, and those that get new flows.
fn default_policy(desired: &Desired) -> (Vec<u32>, u32) {
    let policy = &desired.policies[&0];
    (policy.weights[..3].to_vec(), policy.members)
}

#[test]
fn every_trouble_has_its_reason() {
    let cases: [(&[Event], &str); 8] = [
        (&[Event::LinkGone(WAN1)], "interface wan1 does not exist"),
        (&[Event::Link(link(WAN1, "wan9"))], "interface wan1 does not exist"),
        (&[Event::Link(Link { carrier: false, ..link(WAN1, "wan1") })], "carrier lost"),
        (
            &[Event::AddressGone(WAN1, ADDRESS1), Event::Link(Link { carrier: false, ..link(WAN1, "wan1") })],
            "carrier lost",
        ),
        (&[Event::Link(Link { up: false, ..link(WAN1, "wan1") })], "interface wan1 is set down"),
        (&[Event::Link(Link { master: Some(4), ..link(WAN1, "wan1") })], "interface wan1 is enslaved to other"),
        (&[Event::AddressGone(WAN1, ADDRESS1)], "no address on wan1"),
        (
            &[Event::DefaultRouteGone(route(100, WAN1, GATEWAY1))],
            "no gateway: none configured and no default route by wan1",
        ),
    ];
    for (events, reason) in cases {
        let mut core = core();
        core.observe(events.to_vec());
        assert_eq!(state(&mut core, 0, s(0)), down(reason));
        assert!(is_up(&mut core, 1, s(0)), "{reason}");
    }
}

#[test]
fn an_enslaved_interface_is_left_alone() {
    let mut core = core();
    core.observe(vec![Event::Link(Link { master: Some(4), ..link(WAN1, "wan1") })]);
    core.observe(vec![Event::Link(Link { master: Some(4), ..link(1, "lan0") })]);
    let desired = core.desired(s(0));
    let hooks = desired.interfaces.iter().map(|(ifindex, interface)| (*ifindex, interface.hook)).collect::<Vec<_>>();
    assert_eq!(hooks, [(WAN1, Hook::None), (WAN2, Hook::Auto)]);
}

#[test]
fn a_gateway_that_has_not_answered_stays_dead_until_it_is_heard_of() {
    let known = Event::Neighbour { ifindex: WAN1, address: GATEWAY1, mac: [1; 6], fixed: false };
    let dead = down("gateway 198.51.100.1 not reachable");
    let mut core = core();
    core.observe(vec![Event::NeighbourFailed(WAN1, GATEWAY1)]);
    let desired = core.desired(s(0));
    assert_eq!((desired.views[0].state, desired.sought), (UplinkState::Up, [(WAN1, GATEWAY1)].into()));
    assert_eq!(core.wake(), Some(s(1)));
    assert_eq!(state(&mut core, 0, s(1)), dead);
    // The kernel forgets it, and looks for it anew.
    core.observe(vec![Event::NeighbourGone(WAN1, GATEWAY1)]);
    assert_eq!(state(&mut core, 0, s(2)), dead);
    core.observe(vec![known.clone()]);
    assert!(is_up(&mut core, 0, s(3)));
    // With the carrier goes what was known.
    core.observe(vec![Event::NeighbourFailed(WAN1, GATEWAY1)]);
    assert!(is_up(&mut core, 0, s(4)));
    assert_eq!(state(&mut core, 0, s(5)), dead);
    core.observe(vec![Event::NeighbourGone(WAN1, GATEWAY1)]);
    core.observe(vec![Event::Link(Link { carrier: false, ..link(WAN1, "wan1") })]);
    assert_eq!(state(&mut core, 0, s(6)), down("carrier lost"));
    core.observe(vec![Event::Link(link(WAN1, "wan1"))]);
    assert!(is_up(&mut core, 0, s(7)));
}

#[test]
fn a_gateway_with_other_hardware_is_found_before_it_counts_as_gone() {
    let mut core = core();
    core.observe(vec![Event::NeighbourFailed(WAN1, GATEWAY1)]);
    assert!(is_up(&mut core, 0, s(0)));
    core.observe(vec![Event::NeighbourGone(WAN1, GATEWAY1)]);
    core.observe(vec![Event::Neighbour { ifindex: WAN1, address: GATEWAY1, mac: [2; 6], fixed: false }]);
    assert!(is_up(&mut core, 0, s(2)));
    assert_eq!(core.wake(), None);
}

#[test]
fn neighbours_other_than_gateways_decide_nothing() {
    let mut core = core();
    core.desired(s(0));
    let known = |address, mac| Event::Neighbour { ifindex: WAN1, address, mac, fixed: false };
    let host = Ipv4Addr::new(198, 51, 100, 77);
    assert!(!core.observe(vec![known(host, [1; 6]), Event::NeighbourFailed(1, host)]));
    assert!(core.observe(vec![known(host, [2; 6])]), "another Ethernet address begins an epoch");
    assert!(core.observe(vec![known(GATEWAY1, [1; 6])]));
    assert!(core.observe(vec![Event::NeighbourFailed(WAN1, GATEWAY1)]));
}

#[test]
fn a_gateway_that_somebody_has_set_is_not_touched() {
    let mut core = core();
    core.observe(vec![Event::Neighbour { ifindex: WAN2, address: GATEWAY2, mac: [1; 6], fixed: true }]);
    assert_eq!(core.desired(s(0)).gateways, [(WAN1, GATEWAY1)].into());
}

fn health(up: bool, reason: &str, warning: Option<&str>) -> Option<Health> {
    Some(Health { up, reason: reason.into(), warning: warning.map(Into::into), rtt: None, loss: None })
}

#[test]
fn probes_decide_when_nothing_else_does() {
    let mut core = core();
    assert!(core.set_health("isp1", health(true, "probes answered", None)));
    assert!(!core.set_health("isp1", health(true, "probes answered", None)), "nothing new");
    assert_eq!(state(&mut core, 0, s(0)), (UplinkState::Up, "probes answered".into()));
    assert!(core.set_health("isp1", health(true, "probes answered", Some("loss 7%"))));
    let view = core.desired(s(0)).views.swap_remove(0);
    assert_eq!((view.state, view.warning.as_deref(), view.effective_weight), (UplinkState::Up, Some("loss 7%"), 2));
    assert!(core.set_health("isp1", health(false, "probe icmp://192.0.2.1 3/3 lost", None)));
    assert_eq!(state(&mut core, 0, s(1)), down("probe icmp://192.0.2.1 3/3 lost"));
    core.observe(vec![Event::Link(Link { carrier: false, ..link(WAN1, "wan1") })]);
    assert_eq!(state(&mut core, 0, s(2)), down("carrier lost"));
    core.observe(vec![Event::Link(link(WAN1, "wan1"))]);
    assert_eq!(state(&mut core, 0, s(3)), down("probe icmp://192.0.2.1 3/3 lost"));
    assert!(core.set_health("isp1", None));
    assert!(is_up(&mut core, 0, s(4)));
}

#[test]
fn a_drained_uplink_keeps_its_flows_and_gets_no_new_ones() {
    let mut core = core();
    core.overrides_mut().drained.insert("isp1".into());
    let desired = core.desired(s(0));
    assert_eq!(desired.views[0].state, UplinkState::Draining);
    assert_eq!(desired.healthy, 0b11);
    assert_eq!(default_policy(&desired), (vec![0, 1, 0], 0b10));
}

#[test]
fn weights_and_health_by_hand() {
    let mut core = core();
    *core.overrides_mut() = Overrides {
        weights: [("isp1".to_owned(), 0), ("isp2".to_owned(), 7)].into(),
        health: [("isp2".to_owned(), HealthOverride::Down)].into(),
        ..Overrides::default()
    };
    let desired = core.desired(s(0));
    assert_eq!(desired.views[0].state, UplinkState::Disabled);
    assert_eq!((desired.views[1].state, desired.views[1].reason.as_str()), (UplinkState::Down, "by hand"));
    assert_eq!((desired.views[1].weight, desired.views[1].effective_weight), (7, 0));
    assert_eq!((desired.healthy, default_policy(&desired).1), (0b01, 0));
}

#[test]
fn up_by_hand_overrules_what_looks_dead_but_not_what_is_missing() {
    let mut core = core();
    core.overrides_mut().health.insert("isp1".into(), HealthOverride::Up);
    core.set_health("isp1", health(false, "probe icmp://192.0.2.1 3/3 lost", None));
    assert!(is_up(&mut core, 0, s(0)));
    core.observe(vec![Event::NeighbourFailed(WAN1, GATEWAY1)]);
    assert!(is_up(&mut core, 0, s(0)));
    assert!(is_up(&mut core, 0, s(9)));
    core.observe(vec![Event::Link(Link { carrier: false, ..link(WAN1, "wan1") })]);
    assert!(is_up(&mut core, 0, s(9)));
    core.observe(vec![Event::LinkGone(WAN1)]);
    assert_eq!(state(&mut core, 0, s(0)), down("interface wan1 does not exist"));
}

const TIERS: &str = r#"
    lan = ["lan0"]
    [policy.default]
    tiers = [{ a = 2, b = 1 }, { c = 3 }]
    [uplink.a]
    interface = "a"
    gateway = "198.51.100.1"
    nat = false
    [uplink.b]
    interface = "b"
    gateway = "198.51.100.1"
    nat = false
    [uplink.c]
    interface = "c"
    gateway = "198.51.100.1"
    nat = false
"#;

#[test]
fn the_next_tier_takes_over_when_none_of_the_one_before_is_left() {
    let mut core = core_of(TIERS);
    core.observe((1..).zip(["a", "b", "c"]).map(|(ifindex, name)| Event::Link(link(ifindex, name))).collect());
    let mut weights = |down: &[&str]| {
        core.overrides_mut().health = down.iter().map(|name| ((*name).to_owned(), HealthOverride::Down)).collect();
        let desired = core.desired(s(0));
        assert_eq!(desired.views.iter().map(|view| view.tier).collect::<Vec<_>>(), [Some(0), Some(0), Some(1)]);
        default_policy(&desired)
    };
    assert_eq!(weights(&[]), (vec![2, 1, 0], 0b011));
    assert_eq!(weights(&["a"]), (vec![0, 1, 0], 0b010));
    assert_eq!(weights(&["a", "b"]), (vec![0, 0, 3], 0b100));
    assert_eq!(weights(&["a", "b", "c"]), (vec![0, 0, 0], 0));
    assert_eq!(weights(&["c"]), (vec![2, 1, 0], 0b011));
}

#[test]
fn an_uplink_that_flaps_is_held() {
    let text = CONFIG.replace("weight = 2", "weight = 2\ndamping = { losses = 2, within = \"60s\", hold = \"10s\" }");
    let mut core = core_of(&text);
    core.observe(facts());
    assert!(is_up(&mut core, 0, s(0)));
    let carrier = |core: &mut Core, carrier| core.observe(vec![Event::Link(Link { carrier, ..link(WAN1, "wan1") })]);
    for at in [10, 20] {
        assert_eq!(core.wake(), None, "nothing is held yet");
        carrier(&mut core, false);
        assert_eq!(state(&mut core, 0, s(at)), down("carrier lost"));
        carrier(&mut core, true);
        assert_eq!(is_up(&mut core, 0, s(at + 1)), at == 10);
    }
    assert_eq!(state(&mut core, 0, s(21)), down("flapping: lost 2 times within 60s, used again when well for 10s"));
    assert_eq!(core.wake(), Some(s(31)));
    assert!(is_up(&mut core, 0, s(31)));
    assert_eq!(core.wake(), None);
    // By hand overrules.
    carrier(&mut core, false);
    assert!(!is_up(&mut core, 0, s(32)));
    carrier(&mut core, true);
    assert!(!is_up(&mut core, 0, s(33)));
    let held = core.clone();
    core.overrides_mut().health.insert("isp1".into(), HealthOverride::Up);
    assert!(is_up(&mut core, 0, s(34)));
    // So does what is configured anew.
    let mut core = held.clone();
    configure(&mut core, &text.replace("hold = \"10s\"", "hold = \"11s\""));
    assert!(is_up(&mut core, 0, s(34)));
    // And the only uplink that is left is not held.
    let mut core = held;
    core.observe(vec![Event::Link(Link { carrier: false, ..link(WAN2, "wan2") })]);
    assert!(is_up(&mut core, 0, s(34)));
}

#[test]
fn flows_are_looked_at_anew_when_an_uplink_leads_elsewhere() {
    let mut core = core();
    let mut epoch = |events: Vec<Event>| {
        core.observe(events);
        core.desired(s(0)).neighbour_epoch
    };
    let begun = epoch(vec![]);
    assert_eq!(epoch(vec![Event::Link(Link { carrier: false, ..link(WAN1, "wan1") })]), begun);
    let renumbered = Event::Address { ifindex: WAN1, address: Ipv4Addr::new(198, 51, 100, 9), secondary: false };
    assert_eq!(epoch(vec![Event::AddressGone(WAN1, ADDRESS1), renumbered]), begun + 1);
    assert_eq!(epoch(vec![Event::DefaultRouteGone(route(100, WAN1, GATEWAY1))]), begun + 2);
    assert_eq!(epoch(vec![new_route(route(100, WAN1, GATEWAY1))]), begun + 3);
    assert_eq!(epoch(vec![Event::LinkGone(WAN1), Event::Link(link(9, "wan1"))]), begun + 4);
    assert_eq!(epoch(vec![]), begun + 4);
}

#[test]
fn an_uplink_keeps_its_index_across_configurations() {
    let mut core = core();
    let before = core.desired(s(0));
    let text = CONFIG.replace("[uplink.isp1]", "[uplink.isp0]\ninterface = \"wan0\"\n[uplink.isp1]");
    configure(&mut core, &text);
    let after = core.desired(s(0));
    assert_eq!(
        after.views.iter().map(|view| (view.name.as_str(), view.index)).collect::<Vec<_>>(),
        [("isp0", 2), ("isp1", 0), ("isp2", 1)]
    );
    assert_eq!(after.uplinks.get(&0), before.uplinks.get(&0));
}

/// What may happen to one object, in order. Objects are independent of each other.
fn histories() -> impl Strategy<Value = Vec<Vec<Event>>> {
    let wan = |ifindex: u32, name: &'static str| {
        prop::collection::vec((any::<bool>(), 0..4_u8), 0..6).prop_map(move |steps| {
            // The events of one link and what hangs on it come in order.
            let mut events = vec![Event::Link(link(ifindex, name))];
            for (begins, what) in steps {
                let address = Ipv4Addr::new(198, 51, 100, 2 + what);
                let route = route(u32::from(what), ifindex, GATEWAY1);
                events.push(match (what, begins) {
                    (0, carrier) => Event::Link(Link { carrier, ..link(ifindex, name) }),
                    (1, true) => Event::Address { ifindex, address, secondary: false },
                    (1, false) => Event::AddressGone(ifindex, address),
                    (2, true) => new_route(route),
                    (2, false) => Event::DefaultRouteGone(route),
                    (_, true) => Event::Neighbour { ifindex, address: GATEWAY1, mac: [what; 6], fixed: false },
                    (_, false) => Event::NeighbourFailed(ifindex, GATEWAY1),
                });
            }
            events
        })
    };
    let local = prop::collection::vec(any::<bool>(), 0..4).prop_map(|steps| {
        let event = |there| if there { Event::Local(ADDRESS1) } else { Event::LocalGone(ADDRESS1) };
        steps.into_iter().map(event).collect()
    });
    (wan(WAN1, "wan1"), wan(WAN2, "wan2"), wan(5, "lan5"), local).prop_map(|(a, b, c, d)| vec![a, b, c, d])
}

/// The histories, interleaved as `order` says.
fn interleaved(histories: &[Vec<Event>], order: &[usize]) -> Vec<Event> {
    let mut rests: Vec<_> = histories.iter().map(|history| history.iter()).collect();
    let mut events = Vec::new();
    for pick in order {
        events.extend(rests[pick % histories.len()].next().cloned());
    }
    events.extend(rests.into_iter().flatten().cloned());
    events
}

/// But for numbers that count changes.
fn settled(mut desired: Desired) -> Desired {
    desired.neighbour_epoch = 0;
    desired
}

proptest! {
    #[test]
    fn any_order_of_independent_events_comes_to_the_same(
        histories in histories(),
        order in prop::collection::vec(any::<usize>(), 0..40),
        batch in 1..9_usize,
    ) {
        // No damping: it depends on time, not on facts.
        let text = CONFIG.replace("\"wan1\"", "\"wan1\"\ndamping = { losses = 0 }").replace("\"wan2\"", "\"wan2\"\ndamping = { losses = 0 }");
        let mut one = core_of(&text);
        one.observe(histories.concat());
        let mut other = core_of(&text);
        for events in interleaved(&histories, &order).chunks(batch) {
            other.observe(events.to_vec());
            other.desired(s(0));
        }
        one.desired(s(0));
        other.desired(s(0));
        let expected = settled(one.desired(s(9)));
        prop_assert_eq!(&settled(other.desired(s(9))), &expected);
        // A dump of what holds now comes to the same, too.
        other.observe_anew(histories.concat());
        prop_assert_eq!(settled(other.desired(s(9))), expected);
    }
}

#[test]
fn an_uplink_that_rules_choose_is_not_disabled() {
    let text = CONFIG.replace("weight = 2", "weight = 0");
    let state_of = |rule: &str| {
        let mut core = core_of(&format!("{text}{rule}"));
        core.observe(facts());
        core.desired(s(0)).views[0].state
    };
    assert_eq!(state_of(""), UplinkState::Disabled);
    assert_eq!(state_of("[[rule]]\nuse = \"uplink:isp1\"\n"), UplinkState::Up);
    let policy = "[policy.other]\ntiers = [{ isp1 = 1 }]\n";
    assert_eq!(state_of(policy), UplinkState::Disabled);
    assert_eq!(state_of(&format!("{policy}[[rule]]\nuse = \"policy:other\"\n")), UplinkState::Up);
}

#[test]
fn new_flows_follow_what_is_left_of_capacities() {
    let text = CONFIG
        .replace("weight = 2", "weight = \"capacity\"\ncapacity = \"20mbit\"")
        .replace("\"wan2\"", "\"wan2\"\nweight = \"capacity\"\ncapacity = \"10mbit\"");
    let mut core = core_of(&text);
    core.observe(facts());
    assert!(core.goes_by_load());
    let mut share = |at: u64, bytes: u64| {
        core.count("isp1", s(at), 0, bytes);
        core.count("isp2", s(at), 0, 0);
        let desired = core.desired(s(at));
        let view = &desired.views[0];
        (view.weight, view.effective_weight, (view.share * 100.0).round())
    };
    assert_eq!(share(0, 0), (20, 20, 67.0));
    // 15 Mbit/s, for longer than the smoothing takes.
    let mut last = (0, 0, 0.0);
    for at in 1..60 {
        last = share(at, at * 15_000_000 / 8);
    }
    assert_eq!((last.0, last.1), (20, 5));
    assert!((30.0..40.0).contains(&last.2), "{last:?}");
}

//! The datapath against a model of it: the same random steps in both, and after each of them the same outcome in both. The rig is drawn
//! in `mh_tests::rig`, the model is `mh_tests::model`.
//!
//! `MH_MODEL_STEPS` sets the number of steps, `MH_MODEL_SEED` the seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use anyhow::Result;
use mh_common::abi;
use mh_tests::lab::skipped;
use mh_tests::model::run::run;
use mh_tests::model::tables::{OnDown, Setup};
use mh_tests::rig::Rig;

/// Then all begins anew: in the long run, an LRU table of the datapath would be full, and the model does not evict.
const STEPS_PER_RIG: u64 = 100_000;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

fn compare(isp2: &str, change: impl Fn(&mut Setup) + Sync, share: u64) {
    if skipped() {
        return;
    }
    let mut left = number("MH_MODEL_STEPS", 120_000) / share;
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let mut seed = number("MH_MODEL_SEED", fresh.into());
    while left > 0 {
        let steps = left.min(STEPS_PER_RIG);
        part(isp2, &change, seed, steps);
        left -= steps;
        seed += 1;
    }
}

fn part(isp2: &str, change: &(dyn Fn(&mut Setup) + Sync), seed: u64, steps: u64) {
    let result = Rig::run_with_isp2(isp2, [1, 1], |rig| {
        // So that the same seed chooses the same uplinks again.
        let settings = abi::Settings { seed: [seed, 7], ..rig.tables.settings.get(&0, 0)? };
        rig.tables.settings.set(0, settings, 0)?;
        // Those of forwarded ports were noted by the former one.
        rig.tables.bindings()?.iter().for_each(|(inside, _)| rig.tables.known.note(settings.seed, inside));
        rig.tables.by_outside4.walk(|outside, _| rig.tables.known.note(settings.seed, &outside))?;
        let mut setup = Setup {
            outside: [[198, 51, 100, 2].into(), [203, 0, 113, 2].into()],
            ports: [(1024, 65535); 2],
            address_dependent: false,
            on_down: [OnDown::Reset; 2],
            seed: settings.seed,
            mtu: [1500; 2],
            lan_mtu: 1500,
            slots: Vec::new(),
            members: 0,
        };
        change(&mut setup);
        set_mtu(rig, &setup)?;
        run(rig, setup, seed, steps)
    });
    if let Err(difference) = result {
        panic!("{difference:?}");
    }
}

/// Has the datapath believe in other MTUs than those of the rig's links.
fn set_mtu(rig: &mut Rig, setup: &Setup) -> Result<()> {
    let tables = &mut rig.tables;
    let settings = abi::Settings { lan_mtu: setup.lan_mtu, ..tables.settings.get(&0, 0)? };
    tables.settings.set(0, settings, 0)?;
    let interfaces = tables.interfaces.iter().collect::<Result<Vec<_>, _>>()?;
    for (index, interface) in interfaces {
        let mtu = match interface.role {
            abi::ROLE_LAN => setup.lan_mtu,
            _ => setup.mtu[usize::from(interface.uplink)].into(),
        };
        tables.interfaces.insert(index, abi::Interface { mtu, ..interface }, 0)?;
    }
    for (index, mtu) in (0..).zip(setup.mtu) {
        let uplink = tables.uplinks.get(&index, 0)?;
        tables.uplinks.set(index, abi::Uplink { mtu: mtu.into(), mss: mtu - 40, ..uplink }, 0)?;
    }
    Ok(())
}

#[test]
fn the_datapath_does_as_the_model() {
    compare("", |_| {}, 5);
}

#[test]
fn with_the_address_dependent_filter_and_other_ways_to_be_down() {
    compare(
        "on_down = \"repin\"\n[nat]\nfiltering = \"address-dependent\"",
        |setup| {
            setup.on_down[1] = OnDown::Repin;
            setup.mtu[1] = 1400;
            setup.address_dependent = true;
        },
        5,
    );
}

#[test]
fn with_forwarded_ports() {
    let forward = |protocol: &str, port: u16, to: &str| {
        format!("[[forward]]\nprotocol = {protocol}\nport = {port}\nto = \"{to}\"\n")
    };
    let forwards = [
        forward("[\"tcp\", \"udp\"]", 40001, "192.168.1.11:40002"),
        forward("\"udp\"", 9999, "192.168.1.11:40002"),
        forward("\"tcp\"", 22, "192.168.1.10:700"),
        // The machine's own.
        forward("\"tcp\"", 2222, "192.168.1.1:22"),
        "[nat]\nfiltering = \"address-dependent\"".to_owned(),
    ];
    compare(&forwards.concat(), |setup| setup.address_dependent = true, 5);
}

#[test]
fn with_an_address_that_is_routed_here() {
    compare("address = \"203.0.113.8\"", |setup| setup.outside[1] = [203, 0, 113, 8].into(), 5);
}

#[test]
fn with_few_ports() {
    compare(
        "on_down = \"hold\"\nports = \"1020-1027\"",
        |setup| {
            setup.on_down[1] = OnDown::Hold;
            setup.lan_mtu = 1400;
            setup.ports[1] = (1020, 1027);
        },
        5,
    );
}

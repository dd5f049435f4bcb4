//! Policies and capacities: every fault and warning with its place and words, and the values.

use std::time::Duration;

use super::super::{Capacity, HashMode, Member, Weight};
use super::{ONE_UPLINK, after, config, loaded, warned, whole};

const CAPACITY_MEND: &str = "such as \"100mbit/20mbit\"";

#[test]
fn tiers() {
    let tiers = "tiers must be a list with tables of uplinks and weights, such as [ { isp1 = 2, isp2 = 1 } ], not";
    let weight = "must be a whole number from 0 to 65535, or \"capacity\", not";
    for (value, expected) in [
        ("[]", format!("5:9: {tiers} an empty list")),
        ("{ isp1 = 1 }", format!("5:9: {tiers} a table")),
        ("[1]", "5:10: a tier must be a table, such as { isp1 = 2, isp2 = 1 }, not a whole number 1".to_owned()),
        ("[{}]", "5:10: the tier is empty; name an uplink, such as { isp1 = 1 }, or leave it out".to_owned()),
        ("[{ isp1 = 65536 }]", format!("5:19: the weight of \"isp1\" {weight} 65536")),
        ("[{ isp1 = \"1\" }]", format!("5:19: the weight of \"isp1\" {weight} a string \"1\"")),
        ("[{ isp1 = 0.5 }]", format!("5:19: the weight of \"isp1\" {weight} a float 0.5")),
        ("[{ isp2 = 1 }]", "5:12: no uplink is named \"isp2\"; did you mean \"isp1\"?".to_owned()),
        ("[{ lte = 1 }]", "5:12: no uplink is named \"lte\"; the uplinks are \"isp1\"".to_owned()),
        (
            "[{ isp1 = 1 }, { isp1 = 1 }]",
            "5:26: uplink \"isp1\" is in an earlier tier already; keep one of them".to_owned(),
        ),
    ] {
        after(&format!("[policy.default]\ntiers = {value}"), &[&expected]);
        after(&format!("[policy.other]\ntiers = {value}"), &[&expected]);
    }
}

#[test]
fn policies() {
    after(
        "[policy.default]\nhash = \"x\"\nsticky = 3\n[policy.\"a b\"]\n[policy.\"\"]\nspill = \"0%\"\n[policy.b]\nsticky = \"8d\"\nmode = 1",
        &[
            "5:8: hash must be \"flow\", \"source\" or \"source-destination\", not \"x\"",
            "6:10: sticky must be a duration in quotes up to \"7d\", such as \"300s\" or \"1h30m\", or \"0s\", not a whole number 3",
            "7:9: \"a b\" is no name for a policy; use 1 to 32 of the characters a-z, A-Z, 0-9, _ and -",
            "8:9: \"\" is no name for a policy; use 1 to 32 of the characters a-z, A-Z, 0-9, _ and -",
            "9:9: spill must be a percentage in quotes from \"0.01%\" to \"100%\", such as \"5%\", not \"0%\"",
            "11:10: sticky must be a duration in quotes up to \"7d\", such as \"300s\" or \"1h30m\", or \"0s\", not \"8d\"",
            "12:1: unknown key \"mode\" in [policy.b]; it belongs in [datapath]",
        ],
    );
    after("[policy]\ndefault = 1", &["5:11: policy.default must be a table, [policy.default], not a whole number 1"]);
    after(
        "[policy]\ntiers = [{ isp1 = 1 }]",
        &["5:1: tiers stands in [policy] itself; it belongs in [policy.NAME], which names the policy"],
    );
    whole(&format!("policy = 1\n{ONE_UPLINK}"), &["1:10: policy must be a table, [policy.NAME], not a whole number 1"]);
    let nobody = "no uplink has a weight above 0: no new flow will get an uplink; give at least one uplink a weight";
    warned("[policy.default]\ntiers = [{ isp1 = 0 }]\nsticky = \"0s\"", &[&format!("5:10: {nobody}")]);
    warned("weight = 0", &[&format!("2:9: {nobody}")]);
    warned(
        "[policy.none]\ntiers = [{ isp1 = 0 }]\n[[rule]]\nuse = \"policy:none\"\nto = \"1.1.1.1\"",
        &[
            "5:10: no uplink of policy \"none\" has a weight above 0: no new flow of its rules will get an uplink; give at least one \
           uplink a weight",
        ],
    );
}

#[test]
fn too_many_policies() {
    let policies = |count| (0..count).map(|index| format!("[policy.p{index}]\n")).collect::<String>();
    assert_eq!(loaded(&format!("{ONE_UPLINK}{}", policies(63))).config.policies.len(), 64);
    after(&policies(65), &["67:9: policy \"p63\" is one too many; keep at most 64, default included"]);
}

#[test]
fn capacities() {
    let wants = "capacity must be the rates from and to the uplink in quotes, from \"1kbit\" to \"10000gbit\", such as \
                 \"100mbit/20mbit\", not";
    for wrong in [
        "",
        "100",
        "100mbit/",
        "/20mbit",
        "1mbit/1mbit/1mbit",
        "100 mbit",
        "100Mbit",
        "100mbps",
        "-1mbit",
        "1.mbit",
        ".5mbit",
        "1.5bit",
        "0.0005kbit",
        "1e3mbit",
        "999bit",
        "0mbit",
        "10000.1gbit",
        "99999999999999999999gbit",
        "1.2.3mbit",
        "bit",
        "auto",
    ] {
        after(&format!("capacity = \"{wrong}\""), &[&format!("4:12: {wants} {wrong:?}")]);
    }
    after("capacity = 100", &[&format!("4:12: {wants} a whole number 100")]);
    for (right, down, up) in [
        ("100mbit/20mbit", 100_000_000, 20_000_000),
        ("1.5gbit", 1_500_000_000, 1_500_000_000),
        ("0.000001gbit / 1000bit", 1000, 1000),
        ("10000gbit/1kbit", 10_000_000_000_000, 1000),
        ("0100.250kbit/64.5kbit", 100_250, 64_500),
    ] {
        let config = config(&format!("{ONE_UPLINK}capacity = \"{right}\""));
        assert_eq!(config.uplinks[0].capacity, Some(Capacity { down, up }), "{right}");
    }
}

/// An uplink with a capacity, and two more.
const THREE_UPLINKS: &str = "lan = [\"lan0\"]\n[uplink.isp1]\ninterface = \"wan1\"\ncapacity = \"9mbit\"\n[uplink.isp2]\ninterface = \
                             \"wan2\"\n[uplink.\"lte-2\"]\ninterface = \"wwan0\"\n";

#[test]
fn weights_by_capacity() {
    after(
        "weight = \"capacity\"",
        &[&format!(
            "4:10: uplink \"isp1\" has no capacity; add capacity = \"DOWN/UP\" to [uplink.isp1], {CAPACITY_MEND}"
        )],
    );
    // A capacity that is faulty, or misspelt, is not missing as well.
    after(
        "weight = \"capacity\"\ncapacitiy = \"1mbit\"",
        &["5:1: unknown key \"capacitiy\" in [uplink.isp1]; did you mean \"capacity\"?"],
    );
    let three = |lines: &str, expected: &[&str]| whole(&format!("{THREE_UPLINKS}{lines}"), expected);
    let never_both = "a tier has numbers or \"capacity\" for weights, never both; write \"capacity\" for";
    three(
        "[policy.default]\ntiers = [{ isp1 = \"capacity\", isp2 = 1 }, { lte-2 = \"capacity\" }]\n[policy.b]\ntiers = [{ isp2 = 0, isp1 = \
         \"capacity\" }]",
        &[
            &format!("10:38: {never_both} \"isp2\" too, or a number for \"isp1\""),
            &format!(
                "10:53: uplink \"lte-2\" has no capacity; add capacity = \"DOWN/UP\" to [uplink.lte-2], {CAPACITY_MEND}"
            ),
            &format!("12:29: {never_both} \"isp2\" too, or a number for \"isp1\""),
        ],
    );
    // One mistake is one fault.
    three(
        "[policy.default]\ntiers = [{ isp1 = 1, isp2 = \"capacity\" }]",
        &[&format!("10:29: {never_both} \"isp1\" too, or a number for \"isp2\"")],
    );
    three(
        "[policy.default]\nspill = \"80%\"\ntiers = [{ isp2 = \"capacity\" }, { isp1 = 1 }]",
        &[&format!(
            "11:19: uplink \"isp2\" has no capacity; add capacity = \"DOWN/UP\" to [uplink.isp2], {CAPACITY_MEND}"
        )],
    );
    // Their own weights are of both kinds: a fault where a policy puts all of them in one tier, and only there.
    let own = "weight = \"capacity\"\ncapacity = \"1mbit\"\n";
    three(
        own,
        &[&format!(
            "9:10: {never_both} \"isp1\" too, or a number for \"lte-2\", or give [policy.default] tiers: without, all uplinks are in one"
        )],
    );
    let tiers = "[policy.default]\ntiers = [{ isp1 = 1, isp2 = 1 }]\n";
    let rule = "[[rule]]\nto = \"1.1.1.1\"\nuse = \"uplink:lte-2\"\n";
    assert_eq!(config(&format!("{THREE_UPLINKS}{own}{tiers}{rule}")).uplinks[2].weight, Weight::Capacity);
    three(
        &format!("{own}{tiers}[policy.b]\nhash = \"source\""),
        &[&format!(
            "9:10: {never_both} \"isp1\" too, or a number for \"lte-2\", or give [policy.b] tiers: without, all uplinks are in one"
        )],
    );
}

#[test]
fn spilling_over() {
    whole(
        &format!(
            "{THREE_UPLINKS}[policy.default]\nspill = \"80%\"\ntiers = [{{ isp1 = 1, isp2 = 1 }}, {{ lte-2 = 1 }}]"
        ),
        &[&format!(
            "10:9: uplink \"isp2\" has no capacity; add capacity = \"DOWN/UP\" to [uplink.isp2], {CAPACITY_MEND}, or remove spill, which \
             compares with it"
        )],
    );
    warned(
        "[policy.default]\nspill = \"80%\"",
        &["5:9: there is only one tier: nothing to spill over to; add a tier, or remove spill"],
    );
    let config = config(&format!(
        "{THREE_UPLINKS}[policy.default]\nspill = \"80.5%\"\ntiers = [{{ isp1 = \"capacity\" }}, {{ isp2 = 1, lte-2 = 2 }}]"
    ));
    let policy = config.default_policy().unwrap();
    assert_eq!(policy.spill.unwrap().basis_points(), 8050);
    assert_eq!(policy.tiers[0], [Member { uplink: 0, weight: Weight::Capacity }]);
    assert_eq!(policy.place(2), Some((1, Weight::Fixed(2))));
}

#[test]
fn stickiness() {
    let config = config(&format!("{ONE_UPLINK}[policy.default]\nhash = \"source\"\nsticky = \"5m\""));
    assert_eq!(config.policies[0].sticky, Duration::from_secs(300));
    assert!(config.policies[0].own_weights);
    let sticky = |duration: &str| format!("[policy.default]\nhash = \"source\"\nsticky = \"{duration}\"");
    for short in ["1ms", "2s999ms"] {
        warned(
            &sticky(short),
            &[
                "6:10: sticky is less than 3s: flows are looked at once a second at the most, so that a source may lose its uplink while it \
               has flows; write \"3s\" or more",
            ],
        );
    }
    for fine in ["0s", "3s"] {
        warned(&sticky(fine), &[]);
    }
    for hash in [HashMode::Flow, HashMode::SourceDestination] {
        warned(
            &format!("[policy.default]\nsticky = \"5m\"\nhash = \"{hash}\""),
            &[&format!(
                "5:10: with sticky a source keeps one uplink, so hash = \"{hash}\" decides for its first flow only; write hash = \
                 \"source\", or remove sticky"
            )],
        );
    }
}

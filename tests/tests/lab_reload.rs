//! Rules that come, go and change while traffic goes on: flows keep their uplinks, and rules that stay keep their counters.
//!
//! ```text
//!  client1 .11, client2 .12 ── switch ── lan0 ┌────────────┐ wan1 198.51.100.2 ── isp1 ──┐
//!                        192.168.1.0/24    .1 │ router: mh │                             ├── server 192.0.2.10
//!  client3 .13 ───────────────────────── lan1 └────────────┘ wan2 203.0.113.2 ─── isp2 ──┘
//!                        192.168.2.0/24    .1
//! ```
//!
//! The uplink is told by the source address that the server saw. What makes these tests fail: rules that are asked about flows that exist,
//! counters that begin anew or are another rule's, a refused config of which a part is in force.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::in_both_modes;
use mh_tests::lab::Scene;
use mh_tests::lab::ruled::{PORT, all_by, configure, rule, servers};
use mh_tests::lab::traffic::Flows;

in_both_modes!(reload_under_traffic);

/// How many flows (or packets) the rules with a name have counted.
fn hits(scene: &Scene, name: &str) -> Result<u64> {
    let rules = scene.mhd.ctl_json(&["rules"])?;
    let found = rules.as_array().and_then(|rules| rules.iter().find(|rule| rule["name"] == name));
    found.and_then(|rule| rule["hits"].as_u64()).with_context(|| format!("no hits of {name} in {rules}"))
}

/// Rules come, go and change while flows go on: those keep their uplinks, and rules that stay keep their counters.
fn reload_under_traffic(scene: &mut Scene) -> Result<()> {
    let (tcp, _udp) = servers(scene)?;
    let named = |name: &str, port: u16, action: &str| {
        format!("[[rule]]\nname = \"{name}\"\nto_port = {port}\nuse = \"{action}\"\n")
    };
    let client = &scene.lab.client1;
    let other = scene.tcp.address().port();
    let one = named("one", PORT, "uplink:isp2");
    configure(scene, [1, 0], &one)?;
    let mut kept = Flows { tcp: all_by(scene, client, PORT, 1)?, udp: vec![] };
    let counted = hits(scene, "one")?;
    assert_eq!(counted, 16, "each new flow once");

    // The rule stays at another place, with another one in front of it; and turns round.
    for (rules, to_one, to_other) in [
        (named("other", other, "uplink:isp2") + &one, 1, 1),
        (one.clone(), 1, 0),
        (named("one", PORT, "uplink:isp1"), 0, 0),
        (one.clone() + &named("never", PORT, "drop"), 1, 0),
        // First match wins.
        (named("first", PORT, "uplink:isp1") + &one, 0, 0),
        (String::new(), 0, 0),
    ] {
        let before = hits(scene, "one")?;
        configure(scene, [1, 0], &rules)?;
        let stays = rules.contains("name = \"one\"");
        if stays {
            assert_eq!(hits(scene, "one")?, before, "a rule that stays keeps its count");
        }
        scene.mhd.ctl(&["flows", "flush", "--src", "192.168.2.13"])?;
        let fresh = all_by(scene, &scene.lab.client3, PORT, to_one).with_context(|| rules.clone())?;
        all_by(scene, &scene.lab.client3, other, to_other).with_context(|| rules.clone())?;
        kept.check_all().with_context(|| format!("flows from before, with {rules}"))?;
        let pinned = scene.mhd.flows(&["--src", "192.168.1.11", "--proto", "tcp"])?;
        assert!(pinned.iter().all(|flow| flow["uplink"] == "isp2"), "{pinned:?}");
        if stays {
            let counts = if rules.starts_with(&named("first", PORT, "uplink:isp1")) { 0 } else { 16 };
            assert_eq!(hits(scene, "one")?, before + counts, "with {rules}");
        }
        drop(fresh);
        if !stays {
            break;
        }
    }

    // A rule that would end them is not asked about flows that exist.
    configure(scene, [1, 0], &rule("drop"))?;
    kept.check_all()?;
    let timeout = Duration::from_millis(300);
    let refused = client.enter(|| TcpStream::connect_timeout(&tcp.address().into(), timeout))?;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut);

    // What is refused changes nothing.
    scene.mhd.write_config(&format!("{}\n[[rule]]\nuse = \"uplink:isp9\"\n", scene.lab.config(&[1, 0])))?;
    let output = scene.mhd.ctl_output(&["reload"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("isp9"), "{output:?}");
    let refused = client.enter(|| TcpStream::connect_timeout(&tcp.address().into(), timeout))?;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut, "the old rule is in force");
    kept.check_all()
}

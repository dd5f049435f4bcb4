//! The classic set-up: connection marks, a table for each ISP, source translation, and a shell script that pings.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mh_tests::lab::{Process, SERVER, TwoIsps, require_tools, wait_until};

use super::Probe;

/// One new connection in so many goes by isp2; the rest by isp1.
const EVERY: u32 = 1000;
/// How long the script may take to see that isp1 is well.
const WELL: Duration = Duration::from_secs(30);

/// The rules; `isp1` and `isp2` stand for the router's addresses. The chain `pick` decides about new connections.
const RULES: &str = "\
*mangle
:pick - [0:0]
-A PREROUTING -j CONNMARK --restore-mark
-A PREROUTING -i lan+ -m mark --mark 0 -j pick
-A PREROUTING -i wan1 -m mark --mark 0 -j MARK --set-mark 1
-A PREROUTING -i wan2 -m mark --mark 0 -j MARK --set-mark 2
-A PREROUTING -j CONNMARK --save-mark
BALANCE
COMMIT
*nat
-A POSTROUTING -o wan1 -j SNAT --to-source isp1
-A POSTROUTING -o wan2 -j SNAT --to-source isp2
COMMIT
";

/// What the chain does while both ISPs are well.
const BALANCE: [&str; 2] = [
    "-A pick -m statistic --mode nth --every EVERY --packet 0 -j MARK --set-mark 2",
    "-A pick -m mark --mark 0 -j MARK --set-mark 1",
];

/// The monitor. A round lasts as long as its `sleep`.
const MONITOR: &str = r#"
state=up; count=0
while :; do
    sleep INTERVAL &
    if ping -n -q -I wan1 -c 1 -W TIMEOUT TARGET > /dev/null 2>&1; then answered=up; else answered=down; fi
    if [ $answered = $state ]; then count=0; else count=$((count + 1)); fi
    if [ $state = up ] && [ $count -ge DOWN ]; then
        state=down; count=0
        printf '%s\n' '*mangle' ':pick - [0:0]' '-A pick -j MARK --set-mark 2' COMMIT | iptables-restore --noflush
        conntrack -D --mark 1 > /dev/null 2>&1
        echo down
    elif [ $state = down ] && [ $count -ge UP ]; then
        state=up; count=0
        printf '%s\n' '*mangle' ':pick - [0:0]' 'BALANCE1' 'BALANCE2' COMMIT | iptables-restore --noflush
        echo up
    fi
    wait
done
"#;

/// The running script.
#[derive(Debug)]
pub struct Classic {
    monitor: Process,
}

impl Classic {
    /// Puts rules, routes and the monitor in the router's place.
    pub fn start(lab: &TwoIsps, probe: Probe) -> Result<Self> {
        require_tools(&["iptables-restore", "conntrack", "ping"])?;
        let router = &lab.router;
        let [one, two] = [lab.uplink(0)?, lab.uplink(1)?];
        let balance = BALANCE.map(|rule| rule.replace("EVERY", &EVERY.to_string()));
        let rules = RULES
            .replace("BALANCE", &balance.join("\n"))
            .replace("isp1", &one.address.to_string())
            .replace("isp2", &two.address.to_string());
        router.run_with_input(&["iptables-restore"], &rules)?;
        router.ip(&[
            "rule add priority 1000 to 192.168.0.0/16 lookup main".to_owned(),
            "rule add priority 1001 fwmark 1 lookup 101".to_owned(),
            "rule add priority 1002 fwmark 2 lookup 102".to_owned(),
            format!("route replace default via {} dev wan1 table 101", one.gateway),
            format!("route replace default via {} dev wan2 table 102", two.gateway),
        ])?;
        let script = MONITOR
            .replace("INTERVAL", &probe.interval.as_secs_f64().to_string())
            .replace("TIMEOUT", &probe.timeout.as_secs_f64().to_string())
            .replace("TARGET", &SERVER.to_string())
            .replace("DOWN", &Probe::DOWN.to_string())
            .replace("UP", &Probe::UP.to_string())
            .replace("BALANCE1", &balance[0])
            .replace("BALANCE2", &balance[1]);
        let monitor = router.spawn("monitor", &["sh", "-c", &script])?;
        Ok(Self { monitor })
    }

    /// Waits until the script has seen as many recoveries as failures.
    pub fn wait_until_well(&mut self) -> Result<()> {
        let well = wait_until("the monitor to see that isp1 is well", WELL, || {
            let said = self.monitor.stdout();
            Ok(said.lines().filter(|line| *line == "down").count() == said.lines().filter(|line| *line == "up").count())
        });
        well.with_context(|| format!("{}{}", self.monitor.stdout(), self.monitor.stderr())).map(drop)
    }

    /// Takes everything away.
    pub fn stop(self, lab: &TwoIsps) -> Result<()> {
        drop(self.monitor);
        let router = &lab.router;
        router.run_with_input(&["iptables-restore"], "*mangle\nCOMMIT\n*nat\nCOMMIT\n")?;
        router.run(&["conntrack", "-F"])?;
        router.ip(&[
            "rule del priority 1000",
            "rule del priority 1001",
            "rule del priority 1002",
            "route flush table 101",
            "route flush table 102",
        ])
    }
}

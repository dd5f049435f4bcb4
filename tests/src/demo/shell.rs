//! A shell in the router, for looking around when the demonstration is over.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::lab::{Mhd, TwoIsps, binary};

/// Opens it on this process's terminal and waits for its end.
pub(super) fn open(lab: &TwoIsps, mhd: &Mhd) -> Result<()> {
    let mhctl = binary("mhctl")?;
    let programs = Path::new(&mhctl).parent().context("where mhctl is")?.display();
    let mut hosts = vec![&lab.client1, &lab.client2, &lab.client3, &lab.switch, &lab.server];
    hosts.extend(lab.uplinks.iter().map(|uplink| &uplink.isp));
    let mut rc = format!(
        "PS1='router# '\nPATH=\"{programs}:$PATH\"\nalias mhctl='mhctl --socket {}'\nexport TERM=\"${{TERM:-vt100}}\"\n",
        mhd.socket().display(),
    );
    for host in &hosts {
        rc += &format!("{}() {{ nsenter --net={} \"$@\"; }}\n", host.name(), host.namespace_path());
    }
    let file = lab.lab().directory().join("shell.rc");
    fs::write(&file, rc)?;
    println!("\nThis is a shell in the router; its exit cleans up. Try:");
    println!("  mhctl status; mhctl flows list; mhctl weights isp1=9 isp2=1; tcpdump -ni wan1");
    let names: Vec<&str> = hosts.iter().map(|host| host.name()).collect();
    println!("  client1 ping 192.0.2.10     (likewise {})\n", names[1..].join(", "));
    let mut shell = lab.router.command(&["bash", "--rcfile", &file.display().to_string(), "-i"]);
    shell.status().context("bash")?;
    Ok(())
}

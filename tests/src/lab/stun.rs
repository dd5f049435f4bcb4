//! A STUN server with two addresses, and a client that tells by it what a NAT does (RFC 5780).

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Host, Lab, Process, SERVER, require_tools};

/// The server's port; the alternate one is the next.
const PORT: u16 = 3478;

/// A running coturn that serves STUN only.
#[derive(Debug)]
pub struct StunServer {
    _turnserver: Process,
}

/// What the client found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// All that it printed.
    pub text: String,
}

impl StunServer {
    /// Serves STUN in `host` at [`SERVER`] and `second`, which has to be the host's already.
    ///
    /// # Errors
    /// If it is not installed, or doesn't start.
    pub fn start(lab: &Lab, host: &Host, second: Ipv4Addr) -> Result<Self> {
        require_tools(&["turnserver", "turnutils_natdiscovery"])?;
        let file = |name: &str| lab.directory().join(name).display().to_string();
        let (first, second, port, alternate) =
            (SERVER.to_string(), second.to_string(), PORT.to_string(), (PORT + 1).to_string());
        let (pid, database) = (file("turnserver.pid"), file("turnserver.db"));
        let arguments = [
            "turnserver",
            "-n",
            "--stun-only",
            "--no-cli",
            "--no-tls",
            "--no-dtls",
            "--log-file",
            "stdout",
            "--pidfile",
            &pid,
            "--userdb",
            &database,
            "-L",
            &first,
            "-L",
            &second,
            "--listening-port",
            &port,
            "--alt-listening-port",
            &alternate,
        ];
        let turnserver = host.spawn("turnserver", &arguments)?;
        let wanted = [(&first, &port), (&first, &alternate), (&second, &port), (&second, &alternate)];
        super::wait_until("the STUN server to listen", Duration::from_secs(20), || {
            let sockets = host.run(&["ss", "-Hnlu"])?;
            Ok(wanted.iter().all(|(address, port)| sockets.contains(&format!("{address}:{port} "))))
        })
        .with_context(|| turnserver.stdout() + &turnserver.stderr())?;
        Ok(Self { _turnserver: turnserver })
    }
}

impl Discovery {
    /// Finds out how the NAT between `client`, as `address`, and the server maps, filters and hairpins.
    ///
    /// # Errors
    /// If the client fails.
    pub fn run(client: &Host, address: Ipv4Addr) -> Result<Self> {
        let (server, address) = (SERVER.to_string(), address.to_string());
        let mut text = String::new();
        // One after the other: each shall begin with a binding of its own.
        for behaviour in ["-m", "-f", "-H"] {
            text += &client.run(&["turnutils_natdiscovery", behaviour, "-L", &address, &server])?;
        }
        Ok(Self { text })
    }

    /// Whether it came to this judgement.
    #[must_use]
    pub fn says(&self, judgement: &str) -> bool {
        self.text.contains(judgement)
    }
}

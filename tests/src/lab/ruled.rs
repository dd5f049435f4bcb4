//! Flows to one port of the internet host, and a rule for them.

use std::net::SocketAddrV4;

use anyhow::Result;

use super::traffic::{TcpFlow, TcpServer, UdpServer, tcp_flows, udp_flows};
use super::{Host, SERVER, Scene};

/// Where the rule looks.
pub const PORT: u16 = 7100;

/// A TCP and a UDP server of the internet host on [`PORT`].
///
/// # Errors
/// If they can't be started.
pub fn servers(scene: &Scene) -> Result<(TcpServer, UdpServer)> {
    let at = SocketAddrV4::new(SERVER, PORT);
    Ok((TcpServer::start(&scene.lab.server, at)?, UdpServer::start(&scene.lab.server, at)?))
}

/// A rule for what goes to [`PORT`].
#[must_use]
pub fn rule(action: &str) -> String {
    format!("[[rule]]\nname = \"one\"\nto_port = {PORT}\nuse = \"{action}\"\n")
}

/// The config with these weights of isp1 and isp2, and these sections after it.
///
/// # Errors
/// If mhd refuses it.
pub fn configure(scene: &Scene, weights: [u32; 2], sections: &str) -> Result<()> {
    scene.configure(&format!("{}\n{sections}\n", scene.lab.config(&weights)))
}

/// New TCP and UDP flows to a port all go by this uplink.
///
/// # Errors
/// If one can't be begun.
///
/// # Panics
/// If one goes by another.
pub fn all_by(scene: &Scene, client: &Host, port: u16, index: usize) -> Result<Vec<TcpFlow>> {
    let to = SocketAddrV4::new(SERVER, port);
    let address = scene.lab.uplink(index)?.address;
    let tcp = tcp_flows(client, to, 8)?;
    let udp = udp_flows(client, to, 8)?;
    let seen = tcp.iter().map(|flow| flow.seen).chain(udp.iter().map(|flow| flow.seen));
    for seen in seen {
        assert_eq!(*seen.ip(), address, "{} to port {port}", client.name());
    }
    Ok(tcp)
}

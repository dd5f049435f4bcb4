//! TCP and UDP flows of inside hosts, open side by side.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::{Split, TcpFlow, UdpFlow, tcp_flows, udp_flows};
use crate::lab::Scene;

/// Flows that are open.
#[derive(Debug)]
pub struct Flows {
    /// TCP connections of client1.
    pub tcp: Vec<TcpFlow>,
    /// UDP flows of client3.
    pub udp: Vec<UdpFlow>,
}

impl Flows {
    /// Opens `count` of each kind to a scene's servers.
    ///
    /// # Errors
    /// If one can't be opened.
    pub fn open(scene: &Scene, count: usize) -> Result<Self> {
        let tcp = tcp_flows(&scene.lab.client1, scene.tcp.address(), count)?;
        let udp = udp_flows(&scene.lab.client3, scene.udp.address(), count)?;
        Ok(Self { tcp, udp })
    }

    /// The same, by both uplinks.
    ///
    /// # Errors
    /// If one can't be opened, or all leave by one uplink.
    pub fn open_by_both(scene: &Scene, count: usize) -> Result<Self> {
        let flows = Self::open(scene, count)?;
        let split = flows.split();
        ensure!(split.iter().count() == 2, "not by both uplinks: {split}");
        Ok(flows)
    }

    /// The addresses that the servers see.
    #[must_use]
    pub fn split(&self) -> Split {
        Split::of(self.tcp.iter().map(|flow| flow.seen).chain(self.udp.iter().map(|flow| flow.seen)))
    }

    /// The connections that the server knows by this address.
    pub fn tcp_of(&mut self, address: Ipv4Addr) -> impl Iterator<Item = &mut TcpFlow> {
        self.tcp.iter_mut().filter(move |flow| *flow.seen.ip() == address)
    }

    /// The UDP flows that the server knows by this address.
    pub fn udp_of(&self, address: Ipv4Addr) -> impl Iterator<Item = &UdpFlow> {
        self.udp.iter().filter(move |flow| *flow.seen.ip() == address)
    }

    /// Those of this address work, unchanged.
    ///
    /// # Errors
    /// If one does not, or comes from elsewhere now.
    pub fn check(&mut self, address: Ipv4Addr) -> Result<()> {
        self.tcp_of(address).try_for_each(TcpFlow::echo)?;
        self.udp_of(address).try_for_each(check_udp)
    }

    /// All of them work, unchanged.
    ///
    /// # Errors
    /// If one does not, or comes from elsewhere now.
    pub fn check_all(&mut self) -> Result<()> {
        self.tcp.iter_mut().try_for_each(TcpFlow::echo)?;
        self.udp.iter().try_for_each(check_udp)
    }
}

fn check_udp(flow: &UdpFlow) -> Result<()> {
    let seen = flow.ask()?;
    ensure!(seen == flow.seen, "{} comes from {seen} now", flow.seen);
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! The network of a run: one Ethernet switch, a port for each node, and the address of the outside world.
//!
//! A port is named after its node. What is behind it (a node made of namespaces, an emulated machine's tap) does
//! not matter here. A port's link is either up or down, and stays so whatever the node behind it does.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::supervisor::Supervisor;

/// The switch's own address, the outside world's.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// The length of the network's prefix in bits.
pub const PREFIX: u8 = 24;

/// The address of the node with this number (1 for `node1`).
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// The MAC address of a node's `eth0`: locally administered, and the same after every power cut, so that the others'
/// ARP entries stay right.
pub fn mac(node: &str) -> String {
    let hash = xxh3_64(node.as_bytes()).to_le_bytes();
    format!("02:4b:4d:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2])
}

/// The name of a node's port: an interface in the run's network.
pub fn port(node: &str) -> String {
    format!("sw-{node}")
}

/// Which way frames go on a node's cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the node sends.
    FromNode,
    /// What others send to it.
    ToNode,
}

/// The switch of a run.
#[derive(Debug, Clone, Copy)]
pub struct Switch<'run> {
    supervisor: &'run Supervisor,
}

impl<'run> Switch<'run> {
    /// The switch that came with the supervisor.
    pub fn of(supervisor: &'run Supervisor) -> Self {
        Self { supervisor }
    }

    /// Adds a port whose other end is `eth0` in the network namespace of a process (a pid inside).
    pub fn add_veth(&self, node: &str, pid: u32, up: bool) -> Result<()> {
        let (port, mac, pid) = (checked_port(node)?, mac(node), pid.to_string());
        self.ip(&[
            "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &mac, "netns",
            &pid,
        ])?;
        self.ip(&["link", "set", &port, "master", "br0", up_or_down(up)])
    }

    /// Adds a port that is a tap for an emulated machine, and gives the interface's name.
    pub fn add_tap(&self, node: &str, up: bool) -> Result<String> {
        let port = checked_port(node)?;
        self.ip(&["tuntap", "add", "dev", &port, "mode", "tap"])?;
        self.ip(&["link", "set", &port, "master", "br0", up_or_down(up)])?;
        Ok(port)
    }

    /// Removes a port; none is fine too.
    pub fn remove(&self, node: &str) -> Result<()> {
        let port = checked_port(node)?;
        // The kernel may be removing it at this very moment, so what counts is that it is not there afterwards.
        let script = "ip link del $1 2>/dev/null; ! ip link show $1 >/dev/null 2>&1";
        self.supervisor
            .run("sh", &["-c", script, "remove", &port])?;
        Ok(())
    }

    /// Plugs a node's cable in or pulls it.
    pub fn set_link(&self, node: &str, up: bool) -> Result<()> {
        self.ip(&["link", "set", &checked_port(node)?, up_or_down(up)])
    }

    /// Isolated ports do not reach each other, but all others: a split between named nodes.
    pub fn set_isolated(&self, node: &str, isolated: bool) -> Result<()> {
        let state = if isolated { "on" } else { "off" };
        self.supervisor.run(
            "bridge",
            &[
                "link",
                "set",
                "dev",
                &checked_port(node)?,
                "isolated",
                state,
            ],
        )?;
        Ok(())
    }

    /// A cable that carries nothing in one direction, or in both again.
    pub fn set_one_way(&self, node: &str, lost: Option<Direction>) -> Result<()> {
        let port = checked_port(node)?;
        let script =
            "nft delete table netdev $1 2>/dev/null; [ -z \"$2\" ] || nft add table netdev $1 '{
            chain lost { type filter hook '$2' device '$1' priority 0; policy drop; } }'";
        let hook = match lost {
            None => "",
            // What a node sends comes in at its port.
            Some(Direction::FromNode) => "ingress",
            Some(Direction::ToNode) => "egress",
        };
        self.supervisor
            .run("sh", &["-c", script, "one-way", &port, hook])?;
        Ok(())
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        self.supervisor.run("ip", arguments).map(drop)
    }
}

fn up_or_down(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// The kernel takes at most 15 bytes as an interface's name.
fn checked_port(node: &str) -> Result<String> {
    let port = port(node);
    ensure!(
        port.len() <= 15,
        "The node name {node:?} is too long: 12 bytes are the limit"
    );
    Ok(port)
}

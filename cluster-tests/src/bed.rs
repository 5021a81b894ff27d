// SPDX-License-Identifier: Apache-2.0
//! The one interface of both test beds: nodes that can be entered, lost, cut off and frozen.
//!
//! Bed A (`namespaces`) makes nodes of Linux namespaces, bed B (`machines`) of emulated machines.
//! A scenario written against [`Bed`] runs on either. Nothing here knows of Kemari.

use std::path::Path;

use anyhow::{Context as _, Result};

/// What a command in a node left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit status; 128 + the signal's number when a signal ended it.
    pub status: i32,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
}

impl Finished {
    /// Standard output of a command that exited 0, otherwise an error that shows everything.
    pub fn success(self) -> Result<String> {
        anyhow::ensure!(
            self.status == 0,
            "exit status {}\nstdout: {}\nstderr: {}",
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

/// A cluster of nodes on one machine. Dropping it removes everything it made.
pub trait Bed: Send + Sync + std::fmt::Debug {
    /// Names of the nodes, `node1` first.
    fn nodes(&self) -> &[String];

    /// The address of the outside world (the switch's own) that every node reaches, e.g. `10.77.0.254`.
    fn outside(&self) -> &str;

    /// A listening socket on [`Bed::outside`] at `port` (0: any free one).
    fn listen_outside(&self, port: u16) -> Result<std::net::TcpListener>;

    /// The cluster address of a node, e.g. `10.77.0.1`.
    fn address(&self, node: &str) -> Result<String>;

    /// Runs a command as root in a node and waits for its end.
    fn exec(&self, node: &str, command: &[&str]) -> Result<Finished>;

    /// Runs a shell command as root in a node and gives what it printed; it must exit with 0.
    fn shell(&self, node: &str, command: &str) -> Result<String> {
        let finished = self.exec(node, &["sh", "-c", command])?;
        finished
            .success()
            .with_context(|| format!("{node}: {command}"))
    }

    /// Copies a file of this machine into a node.
    fn put(&self, node: &str, from: &Path, to: &str) -> Result<()> {
        let bytes =
            std::fs::read(from).with_context(|| format!("Cannot read {}", from.display()))?;
        self.write(node, to, &bytes, 0o644)
    }

    /// Writes a file in a node, with the given permission bits.
    fn write(&self, node: &str, path: &str, contents: &[u8], mode: u32) -> Result<()>;

    /// Takes the power from a node: every process of it is gone when this returns.
    fn kill(&self, node: &str) -> Result<()>;

    /// Gives a node its power back and waits until it has booted. Its disk is as it was.
    fn power_on(&self, node: &str) -> Result<()>;

    /// Pulls the node's network cables.
    fn cut(&self, node: &str) -> Result<()>;

    /// Plugs the node's network cables in again.
    fn heal(&self, node: &str) -> Result<()>;

    /// Stops every process of the node where it is, as a stalled host would.
    fn freeze(&self, node: &str) -> Result<()>;

    /// Lets a frozen node go on.
    fn thaw(&self, node: &str) -> Result<()>;

    /// Starts Corosync and Pacemaker on every node and waits until Pacemaker shows them all online.
    fn start_cluster(&self) -> Result<()>;

    /// The same on one node, perhaps one that came back.
    fn start_cluster_on(&self, node: &str) -> Result<()>;

    /// Copies the journals and logs of all nodes into a directory, one file a node and source.
    fn collect_journals(&self, into: &Path) -> Result<()>;
}

/// Whether `crm_mon`'s XML shows a node online and ready for resources.
pub(crate) fn is_online(status: &str, node: &str) -> bool {
    let name = format!("<node name=\"{node}\"");
    status.lines().any(|line| {
        line.contains(&name)
            && line.contains("online=\"true\"")
            && line.contains("pending=\"false\"")
    })
}

#[cfg(test)]
mod tests {
    use super::is_online;

    #[test]
    fn a_pending_node_is_not_online() {
        let line = |name, online, pending| {
            format!("<node name=\"{name}\" id=\"1\" online=\"{online}\" pending=\"{pending}\"/>\n")
        };
        let status = line("node1", true, false) + &line("node2", true, true);
        assert!(is_online(&status, "node1"));
        assert!(!is_online(&status, "node2"));
        assert!(!is_online(&status, "node"));
    }
}

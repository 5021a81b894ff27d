// SPDX-License-Identifier: Apache-2.0
//! Starts Corosync and Pacemaker in the machines and waits until they are one cluster.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Machines;
use crate::bed::{Bed as _, is_online};

/// How long a cluster may take to form. Three emulated machines on two idle cores need about 20 s.
const ONLINE_LIMIT: Duration = Duration::from_secs(300);

impl Machines {
    /// Starts the cluster on every node and waits until Pacemaker shows them all online.
    ///
    /// # Errors
    /// When a service does not start, or a node is not online in time; the nodes' journals are kept then.
    pub fn start_cluster(&self) -> Result<()> {
        let begin = Instant::now();
        eprintln!("machines: starting Corosync and Pacemaker");
        self.on_all(self.nodes(), |node| self.start_services(node))?;
        self.wait_online(self.nodes())?;
        eprintln!(
            "machines: all nodes online, {} s after the start",
            begin.elapsed().as_secs()
        );
        Ok(())
    }

    /// Starts the cluster on one node, perhaps one that came back, and waits until it is online.
    pub fn start_cluster_on(&self, node: &str) -> Result<()> {
        self.start_services(node)?;
        self.wait_online(&[node.to_owned()])
    }

    fn start_services(&self, node: &str) -> Result<()> {
        self.exec(node, &["systemctl", "start", "corosync", "pacemaker"])?
            .success()
            .map(drop)
    }

    /// Waits until `crm_mon` on the first of these nodes shows all of them online.
    pub fn wait_online(&self, nodes: &[String]) -> Result<()> {
        let Some(observer) = nodes.first() else {
            return Ok(());
        };
        let what = format!("{} online", nodes.join(", "));
        self.wait_for_status(observer, &what, |status| {
            nodes.iter().all(|node| is_online(status, node))
        })
    }

    /// Waits until the XML that `crm_mon` prints on a node satisfies a condition; `what` names it in the error.
    ///
    /// # Errors
    /// After 300 s, with the last status and the place of the nodes' journals.
    pub fn wait_for_status(
        &self,
        observer: &str,
        what: &str,
        holds: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + ONLINE_LIMIT;
        loop {
            let status = self.exec(observer, &["crm_mon", "-1", "--output-as=xml"])?;
            if status.status == 0 && holds(&status.stdout) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let place = self.keep_journals();
                bail!(
                    "Not seen on {observer} within {} s: {what}. Journals are in {}. Last status:\n{}{}",
                    ONLINE_LIMIT.as_secs(),
                    place.display(),
                    status.stdout,
                    status.stderr
                );
            }
            // Pacemaker has no event to wait for without linking its libraries, and asking costs an emulated node
            // a second of its processor.
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

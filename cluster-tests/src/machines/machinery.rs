// SPDX-License-Identifier: Apache-2.0
//! The moving parts behind a bed of machines: their hardware, and which of them have power.
//!
//! Shared by the bed and its power switch. After [`Machinery::close`] nothing runs and nothing starts again.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::emulator::{Hardware, Machine};
use crate::corosync::Cluster;
use crate::fencing::Power;
use crate::supervisor::Supervisor;
use crate::switch::Switch;

/// How long a machine may take to boot. Three at once on two cores need about 25 s each under emulation.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// One bed's parts.
pub(super) struct Machinery {
    pub(super) supervisor: Supervisor,
    pub(super) cluster: Cluster,
    pub(super) outside: String,
    nodes: Vec<Node>,
    closing: AtomicBool,
}

/// One node: what it is made of, and the machine while it has power.
pub(super) struct Node {
    pub(super) hardware: Hardware,
    /// One change of power at a time.
    transition: Mutex<()>,
    machine: Mutex<Option<Arc<Machine>>>,
}

impl fmt::Debug for Machinery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machinery")
            .field("supervisor", &self.supervisor)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// The machine, if it has power now.
    pub(super) fn machine(&self) -> Option<Arc<Machine>> {
        self.current().clone().filter(|machine| machine.is_on())
    }

    /// The machine, or an error that names the node.
    pub(super) fn powered(&self) -> Result<Arc<Machine>> {
        self.machine()
            .with_context(|| format!("{} has no power", self.hardware.node))
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Machine>>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of what the machine wrote on its serial line, for error messages.
    fn last_words(&self) -> String {
        let text = fs::read(self.hardware.serial_log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(20)..)
            .unwrap_or_default();
        format!(
            "serial line of {}:\n{}",
            self.hardware.node,
            tail.join("\n")
        )
    }
}

impl Machinery {
    /// Machines without power.
    pub(super) fn new(supervisor: Supervisor, cluster: Cluster, hardware: Vec<Hardware>) -> Self {
        let nodes = hardware
            .into_iter()
            .map(|hardware| Node {
                hardware,
                transition: Mutex::default(),
                machine: Mutex::default(),
            })
            .collect();
        Self {
            outside: crate::switch::OUTSIDE.to_string(),
            supervisor,
            cluster,
            nodes,
            closing: AtomicBool::new(false),
        }
    }

    /// Ends every machine and everything else in the run, and waits for it.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.supervisor.stop();
    }

    pub(super) fn all(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.hardware.node == name)
            .with_context(|| {
                format!(
                    "No node is called {name:?}; there are {}",
                    self.cluster.nodes.join(", ")
                )
            })
    }

    /// Pulls a node's cable or plugs it in. It stays so when the node loses or gets power.
    pub(super) fn set_link(&self, node: &str, up: bool) -> Result<()> {
        let node = self.node(node)?;
        Switch::of(&self.supervisor).set_link(&node.hardware.node, up)
    }

    /// A node's own disk, as the owner of the run reaches it.
    pub(super) fn disk(&self, node: &Node) -> PathBuf {
        self.supervisor.from_outside(&node.hardware.disk)
    }

    pub(super) fn wait_booted(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        let begin = Instant::now();
        match node.powered()?.channel.wait_for_hello(BOOT_LIMIT) {
            Ok(true) => {
                eprintln!(
                    "machines: {name} has booted, {} s waited",
                    begin.elapsed().as_secs()
                );
                Ok(())
            }
            Ok(false) => bail!(
                "{name} has not booted within {} s; {}",
                BOOT_LIMIT.as_secs(),
                node.last_words()
            ),
            Err(error) => Err(error.context(node.last_words())),
        }
    }
}

impl Power for Machinery {
    fn nodes(&self) -> Vec<String> {
        self.cluster.nodes.clone()
    }

    fn off(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let _transition = node
            .transition
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let machine = node.current().take();
        machine.map_or(Ok(()), |machine| machine.kill())
    }

    fn on(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        {
            let _transition = node
                .transition
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            ensure!(!self.closing.load(Ordering::SeqCst), "The bed is closing");
            if node.machine().is_none() {
                let machine = Machine::start(&node.hardware, &self.supervisor)?;
                *node.current() = Some(Arc::new(machine));
            }
        }
        self.wait_booted(name)
    }

    fn is_on(&self, node: &str) -> Result<bool> {
        Ok(self.node(node)?.machine().is_some())
    }
}

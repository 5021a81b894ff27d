// SPDX-License-Identifier: Apache-2.0
//! Carries the tests out, and waits until the cluster is stable again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::plan::{Component, Test};
use crate::bed::{Bed as _, is_online};
use crate::histories::{NodeNumber, mend_all};
use crate::ledger_vm::delivers;
use crate::namespaces::Namespaces;
use crate::protected::ProtectedVm;

/// How long a cluster may take to come to rest.
const STABLE_LIMIT: Duration = Duration::from_secs(240);
/// Console bytes that show that the guest goes on.
const SIGN_OF_LIFE: usize = 500;
const START: &str = "systemctl start corosync pacemaker kemari-agent";
const STOP: &str = "systemctl stop pacemaker corosync";

/// Whether the guest's memory may be gone after a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// It is to be there.
    Kept,
    /// There was no quorum, and Pacemaker stops everything then.
    MayBeLost,
}

/// A cluster with the VM, and the one node that `Flip` left stopped.
#[derive(Debug)]
pub struct Lab<'a> {
    /// The nodes.
    pub bed: &'a Namespaces,
    /// The resource.
    pub vm: ProtectedVm<'a>,
    stopped: Option<NodeNumber>,
}

impl<'a> Lab<'a> {
    /// A cluster in which every node is up.
    #[must_use]
    pub fn new(bed: &'a Namespaces, vm: ProtectedVm<'a>) -> Self {
        Self {
            bed,
            vm,
            stopped: None,
        }
    }

    /// The nodes on which the cluster is to run now.
    #[must_use]
    pub fn up(&self) -> Vec<String> {
        let stopped = self.stopped.map(|node| node.to_string());
        let up = |node: &&String| Some(*node) != stopped.as_ref();
        self.bed.nodes().iter().filter(up).cloned().collect()
    }

    /// Carries a test out, from a stable cluster to a stable one.
    ///
    /// # Errors
    /// What was not as the test has it; the nodes' journals tell more.
    pub fn carry_out(&mut self, test: &Test) -> Result<Memory> {
        if !matches!(test, Test::Flip(_)) {
            self.all_up()?;
        }
        let mut memory = Memory::Kept;
        match test {
            Test::Flip(node) => match self.stopped.take() {
                Some(stopped) => self.start(stopped)?,
                None => {
                    self.run(*node, STOP)?;
                    self.stopped = Some(*node);
                }
            },
            Test::Restart(node) => {
                self.run(*node, STOP)?;
                self.others_stable(*node)?;
                self.start(*node)?;
            }
            Test::StonithOnce(node) => {
                let others = self.others(*node);
                let by = others.first().context("Nobody is there to fence it")?;
                self.vm
                    .run(by, &format!("stonith_admin --reboot {node} --timeout 60"))?;
                self.others_stable(*node)?;
                mend_all(self.bed)?;
            }
            Test::PartialStart(node, after) => {
                self.run(*node, STOP)?;
                self.run(*node, "systemctl start corosync pacemaker")?;
                // Before that Pacemaker loses the signal to end, and waits for itself.
                let answers = format!(
                    "for i in $(seq 300); do crmadmin --quiet --status {node} >/dev/null 2>&1 && \
                     exit; sleep 0.1; done; exit 1"
                );
                self.run(*node, &answers)?;
                std::thread::sleep(*after);
                self.run(*node, STOP)?;
                self.start(*node)?;
            }
            Test::NearQuorumPoint(nodes) => memory = self.near_quorum_point(nodes)?,
            Test::SplitBrain(node) => {
                self.bed.cut(&node.to_string())?;
                self.others_stable(*node)?;
                mend_all(self.bed)?;
            }
            Test::ComponentFail(node, component) => {
                self.run(*node, &kill(*component))?;
                // What it does not start again by itself, and a node that is fenced for it: longer than Corosync and
                // Pacemaker need for that.
                std::thread::sleep(Duration::from_secs(4));
                mend_all(self.bed)?;
            }
            Test::Reattach => self.reattach()?,
            Test::ResourceRecover(node) => {
                let fail = format!("crm_resource --fail --resource vm --node {node}");
                self.run(*node, &fail)?;
            }
            Test::Standby(node) => self.standby(*node)?,
        }
        self.stable(&self.up())?;
        Ok(memory)
    }

    /// Starts what `Flip` left stopped.
    ///
    /// # Errors
    /// When the cluster does not come to rest.
    pub fn all_up(&mut self) -> Result<()> {
        if let Some(node) = self.stopped.take() {
            self.start(node)?;
            self.stable(&self.up())?;
        }
        Ok(())
    }

    /// Waits until these nodes, and no others, are online, a pair is in sync among them, Pacemaker has nothing to
    /// do, and the guest goes on.
    fn stable(&self, nodes: &[String]) -> Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.online_alone(nodes) {
            if begun.elapsed() > STABLE_LIMIT {
                return Err(error.context("The cluster does not come to rest"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let first = nodes.first().context("Every node is stopped")?;
        if nodes.len() > 1 {
            self.vm.wait_protected(nodes)?;
        }
        self.vm.settle(first)?;
        if nodes.len() > 1 {
            self.vm.wait_protected(nodes)?;
        }
        delivers(&self.vm, SIGN_OF_LIFE)
    }

    fn online_alone(&self, nodes: &[String]) -> Result<()> {
        for node in nodes {
            let shown = self.vm.run(node, "crm_mon -1 --output-as=xml")?;
            for other in self.bed.nodes() {
                let wanted = nodes.contains(other);
                ensure!(
                    is_online(&shown, other) == wanted,
                    "{node} sees {other} {}:\n{shown}",
                    if wanted { "not online" } else { "online" }
                );
            }
        }
        Ok(())
    }

    fn others_stable(&self, without: NodeNumber) -> Result<()> {
        self.stable(&self.others(without))
    }

    /// The nodes that are up, but for this one.
    fn others(&self, without: NodeNumber) -> Vec<String> {
        let without = without.to_string();
        let mut others = self.up();
        others.retain(|node| *node != without);
        others
    }

    /// A minority without quorum stops its resources, and only then all are started.
    fn near_quorum_point(&self, nodes: &[NodeNumber]) -> Result<Memory> {
        let all = self.bed.nodes();
        let stopped: Vec<String> = nodes.iter().map(NodeNumber::to_string).collect();
        self.on_each(&stopped, STOP)?;
        let left: Vec<String> = all
            .iter()
            .filter(|node| !stopped.contains(node))
            .cloned()
            .collect();
        let memory = if left.len() * 2 > all.len() {
            self.stable(&left)?;
            Memory::Kept
        } else {
            if let Some(first) = left.first() {
                self.vm.settle(first)?;
            }
            Memory::MayBeLost
        };
        for node in nodes {
            self.start(*node)?;
        }
        Ok(memory)
    }

    /// The guest runs on while no cluster does. Which replica is active afterwards is not asked: the nodes whose
    /// cluster is up first may be a majority that does not see the active one yet, and take over (docs/limits.md).
    fn reattach(&self) -> Result<()> {
        let first = self.bed.nodes().first().context("The bed has no node")?;
        let maintenance = |on: &str| {
            self.vm.run(
                first,
                &format!("crm configure property maintenance-mode={on}"),
            )
        };
        maintenance("true")?;
        self.vm.settle(first)?;
        self.on_each(self.bed.nodes(), STOP)?;
        delivers(&self.vm, SIGN_OF_LIFE).context("while no cluster runs")?;
        self.on_each(self.bed.nodes(), "systemctl start corosync pacemaker")?;
        self.bed.wait_online(self.bed.nodes())?;
        maintenance("false").map(drop)
    }

    fn standby(&self, node: NodeNumber) -> Result<()> {
        let name = node.to_string();
        self.run(node, &format!("crm node standby {name}"))?;
        self.vm.settle(&name)?;
        self.vm.wait_protected(&self.others(node))?;
        let left = self.vm.replica(&name)?;
        ensure!(left.is_none(), "{name} is in standby and has {left:?}");
        self.run(node, &format!("crm node online {name}")).map(drop)
    }

    fn start(&self, node: NodeNumber) -> Result<()> {
        self.run(node, START).map(drop)
    }

    fn on_each(&self, nodes: &[String], command: &str) -> Result<()> {
        self.bed
            .on_all(nodes, |node| self.vm.run(node, command).map(drop))
    }

    fn run(&self, node: NodeNumber, command: &str) -> Result<String> {
        self.vm.run(&node.to_string(), command)
    }
}

/// A unit that was killed is started again by systemd, or later by a person.
fn kill(component: Component) -> String {
    match component {
        Component::Daemon(name) => format!("kill -KILL $(pidof {name})"),
        Component::Engine => "systemctl kill --signal=KILL kemari-vm@vm || true".to_owned(),
        Component::Agent => "systemctl kill --signal=KILL kemari-agent".to_owned(),
    }
}

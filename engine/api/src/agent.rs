// SPDX-License-Identifier: Apache-2.0
//! `org.kemari.Agent1`: the interface of the node's agent, on the system bus.
//!
//! The resource agent asks it for what needs knowledge of other nodes: who may be promoted, what
//! Pacemaker's word about a lost node means. People ask it what the cluster looks like.

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

use crate::replica::ReplicaStatus;
use crate::{Generation, NodeName, VmName};

/// The well-known bus name of the agent.
pub const BUS_NAME: &str = "org.kemari.Agent";
/// Object path of the interface.
pub const PATH: &str = "/org/kemari/Agent1";

/// A replica as the agents know it, on this node or another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ReplicaView {
    /// Its own words.
    pub status: ReplicaStatus,
    /// The node is in Corosync's membership now. If not, the words are the last ones heard.
    pub present: bool,
}

/// What the agent knows of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ClusterView {
    /// The node of the agent that answers.
    pub node: NodeName,
    /// Corosync's votequorum says that this partition is quorate.
    pub quorate: bool,
    /// Nodes in the membership now.
    pub members: Vec<NodeName>,
    /// Nodes whose agents are in the group now.
    pub agents: Vec<NodeName>,
    /// Every replica known.
    pub replicas: Vec<ReplicaView>,
    /// The newest generation this agent has recorded, a VM each, and who holds it.
    pub generations: Vec<(VmName, Generation, NodeName)>,
}

/// What an agent has recorded of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Vote {
    /// The agent's node.
    pub node: NodeName,
    /// The newest generation it recorded.
    pub generation: Generation,
    /// Who holds it.
    pub holder: NodeName,
    /// For what: `take-over`, `cold-start`, `solo` or `forced`.
    pub purpose: String,
}

/// How Pacemaker says that a passive replica is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Type)]
#[serde(rename_all = "kebab-case")]
#[zvariant(signature = "s")]
pub enum Gone {
    /// Its resource instance was stopped, or its node fenced: Pacemaker notifies both alike, after
    /// the fact.
    Stopped,
}

/// The interface. Methods fail with `org.freedesktop.DBus.Error.Failed` and a sentence that says
/// what stood against the request and what would help.
#[zbus::proxy(
    interface = "org.kemari.Agent1",
    default_service = "org.kemari.Agent",
    default_path = "/org/kemari/Agent1"
)]
pub trait Agent {
    /// What the agent knows of the cluster.
    fn status(&self) -> zbus::Result<ClusterView>;

    /// Pacemaker calls `promote` for the local replica: take over, cold start, or find the work
    /// done. Returns when the guest executes, or fails.
    fn promote(&self, vm: &VmName) -> zbus::Result<()>;

    /// What each agent is known to have recorded of `vm`, the asked one's own vote first.
    fn votes(&self, vm: &VmName) -> zbus::Result<Vec<Vote>>;

    /// A person starts the local replica of `vm` whatever nodes that are away may hold: their memory
    /// and disks may be newer, and are outdated by this. `typed` is the VM's name as that person typed
    /// it. Returns when the guest executes, or fails.
    fn force_active(&self, vm: &VmName, typed: &str) -> zbus::Result<()>;

    /// Pacemaker says that the passive replica of `vm` on `node` is gone. If the local replica is
    /// active and nothing newer is known, it goes solo.
    fn passive_gone(&self, vm: &VmName, node: &NodeName, how: Gone) -> zbus::Result<()>;
}

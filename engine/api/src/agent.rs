// SPDX-License-Identifier: Apache-2.0
//! `org.kemari.Agent1`: the interface of the node's agent, on the system bus.
//!
//! The resource agent asks it for what needs knowledge of other nodes: who may be promoted, what
//! Pacemaker's word about a lost node means. People ask it what the cluster looks like.

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

use crate::replica::ReplicaStatus;
use crate::{Epoch, Generation, NodeName, VmName};

/// The well-known bus name of the agent.
pub const BUS_NAME: &str = "org.kemari.Agent";
/// Object path of the interface.
pub const PATH: &str = "/org/kemari/Agent1";
/// The interface of a VM's object.
pub const VM_INTERFACE: &str = "org.kemari.Vm1";

/// Object path of a VM: its name below `/org/kemari/Agent1/vm`. What D-Bus has no room for, and a
/// digit at the beginning, is written `_` and two hexadecimal digits, as `sd_bus_path_encode(3)` does.
#[must_use]
pub fn vm_path(vm: &VmName) -> String {
    use std::fmt::Write as _;
    let mut path = format!("{PATH}/vm/");
    for (at, byte) in vm.as_str().bytes().enumerate() {
        let kept = byte.is_ascii_alphabetic() || at > 0 && byte.is_ascii_digit();
        if kept {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

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

    /// Asks the agent of the node that runs `vm` to hand the guest over to the passive replica here, which must be in
    /// sync. Returns when it is asked; then [`promote`](Self::promote) takes the guest.
    fn fetch(&self, vm: &VmName) -> zbus::Result<()>;

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

/// A VM as the agent of this node knows it, at [`vm_path`]. Anyone may read; methods ask polkit, and
/// fail with `org.freedesktop.DBus.Error.AccessDenied` where it refuses. Root is always allowed.
#[zbus::proxy(interface = "org.kemari.Vm1", default_service = "org.kemari.Agent")]
pub trait Vm {
    /// The VM.
    #[zbus(property)]
    fn name(&self) -> zbus::Result<VmName>;

    /// The role of the replica on this node, or empty.
    #[zbus(property)]
    fn role(&self) -> zbus::Result<String>;

    /// The newest generation of a replica that is heard.
    #[zbus(property)]
    fn generation(&self) -> zbus::Result<Generation>;

    /// The epoch of the active replica when it spoke last. No signal tells of its change.
    #[zbus(property(emits_changed_signal = "false"))]
    fn epoch(&self) -> zbus::Result<Epoch>;

    /// The node of the active replica, or empty.
    #[zbus(property)]
    fn active_node(&self) -> zbus::Result<String>;

    /// A second host could go on with it now.
    #[zbus(property)]
    fn protected(&self) -> zbus::Result<bool>;

    /// Why not, one sentence for people, or empty.
    #[zbus(property)]
    fn why_not(&self) -> zbus::Result<String>;

    /// Presses the guest's power button. On the node of the active replica. `org.kemari.power-button`.
    fn power_button(&self) -> zbus::Result<()>;

    /// Has the passive replica here take over, if the agents allow it. `org.kemari.change-role`.
    fn take_over(&self) -> zbus::Result<()>;

    /// Ends the active replica here, so that the passive one goes on from the last commit. Refused
    /// where none could. `org.kemari.change-role`.
    fn fail_over(&self) -> zbus::Result<()>;

    /// As [`AgentProxy::force_active`]. `org.kemari.force-active`.
    fn force_active(&self, typed: &str) -> zbus::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::ObjectPath;

    #[test]
    fn every_name_has_a_path_of_its_own() {
        let path = |name: &str| vm_path(&name.parse().unwrap());
        assert_eq!(path("web"), "/org/kemari/Agent1/vm/web");
        assert_eq!(path("web-01.a_b"), "/org/kemari/Agent1/vm/web_2d01_2ea_5fb");
        assert_eq!(path("9x"), "/org/kemari/Agent1/vm/_39x");
        assert_eq!(path("x_2d"), "/org/kemari/Agent1/vm/x_5f2d");
        for name in ["web-01.a_b", "9", &"a".repeat(63)] {
            assert!(ObjectPath::try_from(path(name)).is_ok(), "{name}");
        }
    }
}

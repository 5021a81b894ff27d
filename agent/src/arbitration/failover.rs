// SPDX-License-Identifier: Apache-2.0
//! Failover without being asked: the active replica is lost and this node holds its state.
//!
//! Lost means: its node left Corosync's membership, or its own agent said that the engine process
//! ended. With fewer than three nodes the loss of a node is left to Pacemaker, which fences. So is
//! every loss where the VM's policy is `fenced`, and where both nodes write one disk: what a dead host's kernel had been given may still
//! get there until the node is fenced.

use kemari_api::replica::{DiskState, FailoverPolicy, ReplicaStatus};
use kemari_api::{NodeName, Role};

use super::Action;
use super::cluster::Cluster;
use super::message::Purpose;
use super::vm::Vm;

impl Vm {
    pub(super) fn settle_failover(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        if !cluster.quorate || self.claim.is_some() || self.order.is_some() {
            return;
        }
        // A person's request goes before; it would drop the claim again.
        if self.is_forced() || self.waits_for_pacemaker() {
            return;
        }
        let Some(held) = self.local_could_take_over() else {
            return;
        };
        let generation = self.generation_after(cluster, held);
        if self.active_is_lost(cluster) && !self.has_just_failed(generation) {
            self.start_claim(cluster, Purpose::TakeOver, generation, false, out);
        }
    }

    /// Only Pacemaker's promotion, which follows fencing, lets the local replica take over.
    pub(super) fn waits_for_pacemaker(&self) -> bool {
        self.needs_fencing() || self.is_fenced_by_policy()
    }

    /// The description of the VM says so.
    pub(super) fn is_fenced_by_policy(&self) -> bool {
        let fenced = |local: &ReplicaStatus| local.failover == FailoverPolicy::Fenced;
        self.local.as_ref().is_some_and(fenced)
    }

    /// The node of the other replica must be fenced, whatever its agent says.
    fn needs_fencing(&self) -> bool {
        self.local
            .as_ref()
            .is_some_and(|local| local.disks == DiskState::Shared)
    }

    /// The node whose active engine ended, where that node must be fenced first and is there.
    pub(super) fn ended_unfenced(&self, cluster: &Cluster) -> Option<NodeName> {
        let local = self.local.as_ref().filter(|_| self.needs_fencing())?;
        let peer = local.peer.parse::<NodeName>().ok()?;
        let ended = self.ended.get(&peer) == Some(&(local.generation, Role::Active));
        (ended && cluster.members.contains(&peer)).then_some(peer)
    }

    /// The replica this passive one follows can certainly not run on, or its node is out of the
    /// membership, in which case the majority decides.
    pub(super) fn active_is_lost(&self, cluster: &Cluster) -> bool {
        self.live_active(cluster).is_none() && self.peer_is_lost(cluster, Role::Active)
    }

    /// The passive replica this active one is paired with is lost.
    pub(super) fn passive_is_lost(&self, cluster: &Cluster) -> bool {
        self.peer_is_lost(cluster, Role::Passive)
    }

    /// The node of the other replica left the membership (then the majority decides), or said
    /// itself that the engine process ended while the replica was this.
    fn peer_is_lost(&self, cluster: &Cluster, role: Role) -> bool {
        let Some(local) = &self.local else {
            return false;
        };
        let Ok(peer) = local.peer.parse::<NodeName>() else {
            return false;
        };
        let engine_ended = self.ended.get(&peer) == Some(&(local.generation, role));
        let node_lost = !cluster.too_few_for_majority()
            && cluster.configured.contains(&peer)
            && !cluster.members.contains(&peer);
        engine_ended || node_lost
    }
}

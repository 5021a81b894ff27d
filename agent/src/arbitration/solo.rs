// SPDX-License-Identifier: Apache-2.0
//! Going on alone when the passive replica is gone.
//!
//! There are two grounds to claim. The passive replica's node left the membership or said that the
//! engine ended: then a majority of agents must record the claim, as for a failover. Or Pacemaker
//! said that the replica was stopped or its node fenced: with three nodes or more the majority
//! still decides, with fewer that word takes its place.
//!
//! Pacemaker's word may come before this agent or its engine have noticed the loss; it is kept
//! until they have, and forgotten as soon as that replica is seen alive.

use kemari_api::{Licence, NodeName};

use super::Action;
use super::cluster::Cluster;
use super::message::Purpose;
use super::vm::Vm;

/// For how many ticks a word outlives signs that the replica is alive. They may be older than the
/// word: Pacemaker and the agents speak over different channels.
const PATIENCE: u32 = 3;

/// Pacemaker's word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Word {
    pub node: NodeName,
    /// The engine process on that node when the word came.
    pub pid: Option<u32>,
    /// Ticks during which that replica still seemed alive.
    pub contradicted: u32,
}

impl Vm {
    pub(super) fn passive_gone_reported(&mut self, node: NodeName) {
        let pid = self.others.get(&node).map(|status| status.pid);
        self.failed = None;
        self.word = Some(Word {
            node,
            pid,
            contradicted: 0,
        });
    }

    /// A new process on the node means that the word was about an earlier one.
    pub(super) fn restarted(&mut self, from: &NodeName, pid: u32) {
        if self
            .word
            .as_ref()
            .is_some_and(|word| word.node == *from && word.pid != Some(pid))
        {
            self.word = None;
        }
    }

    pub(super) fn settle_solo(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        let Some(local) = self.local_is_held_back() else {
            self.word = None;
            return;
        };
        let (held, peer) = (local.generation, local.peer.clone());
        let generation = self.generation_after(cluster, held);
        // While the engine still believes in its pair, it would refuse.
        let cut = local.licence == Licence::Cut;
        if self
            .word
            .as_ref()
            .is_some_and(|word| peer != word.node.as_str())
        {
            self.word = None;
        }
        let said = self
            .word
            .as_ref()
            .map(|word| !self.seems_alive(cluster, &word.node));
        let lost = self.may_go_solo_unasked(cluster);
        if said == Some(true) {
            self.act_alone(cluster, out);
        }
        // Its engine is being told that it is outdated; `settle_learning` drops any claim.
        let over = self.newer_elsewhere(cluster, held).is_some();
        let ready = cluster.quorate && !over && self.claim.is_none() && self.order.is_none();
        if !cut || !ready || !(lost || said == Some(true)) || self.has_just_failed(generation) {
            return;
        }
        let alone = said == Some(true) && cluster.too_few_for_majority();
        self.start_claim(cluster, Purpose::Solo, generation, alone, out);
        self.settle_claim(cluster, out);
    }

    /// The passive replica is lost, and the policy leaves it to the agents.
    pub(super) fn may_go_solo_unasked(&self, cluster: &Cluster) -> bool {
        !self.is_fenced_by_policy() && self.passive_is_lost(cluster)
    }

    /// Its agent still announces the replica, or the local one is still in contact with it.
    fn seems_alive(&self, cluster: &Cluster, node: &NodeName) -> bool {
        let announced = cluster.speaks(node) && self.others.contains_key(node);
        let in_contact = cluster.members.contains(node)
            && self
                .local
                .as_ref()
                .is_some_and(|local| local.licence == Licence::Paired);
        announced || in_contact
    }

    pub(super) fn tick(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        for waited in self.requests.values_mut() {
            *waited = waited.saturating_add(1);
        }
        self.repeat_claim(out);
        let Some(node) = self.word.as_ref().map(|word| word.node.clone()) else {
            return;
        };
        let alive = self.seems_alive(cluster, &node);
        if let Some(word) = self.word.as_mut().filter(|_| alive) {
            word.contradicted += 1;
            if word.contradicted >= PATIENCE {
                self.word = None;
                self.note(
                    out,
                    format!("Pacemaker said that the passive replica on node {node} is gone, but it is alive"),
                );
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! A person's word that this node's replica shall run, in the cold-start row of the table: "or a
//! person forces it by name".
//!
//! It takes the place of the words of nodes that are away: the agents' consent, and disks or memory
//! there that may be newer. It takes the place of nothing else. Quorum is needed; whoever is there is
//! asked and may refuse, and does while a replica runs there; the generation is newer than every one
//! known, so that what was overruled is outdated when it returns; and a majority records it. With two
//! nodes and the other agent away the own record suffices, as it does for Pacemaker's word.

use std::collections::BTreeSet;

use kemari_api::replica::{DiskState, Promotion, ReplicaStatus};
use kemari_api::{Generation, NodeName, Role};

use super::claim::Claim;
use super::cluster::Cluster;
use super::message::{Purpose, Record};
use super::request::{Verdict, wait};
use super::vm::Vm;
use super::{Action, RequestId};

/// How far the generation goes on where nobody else is asked. The other of two nodes may have had newer
/// ones, on Pacemaker's word, that this one never heard of; each of them took a loss of this node.
const STEP_ALONE: u64 = 16;

impl Vm {
    /// A person asks by name.
    pub(super) fn forced(&mut self, request: RequestId) {
        self.requested(request);
        self.forced.insert(request);
    }

    /// A person's request waits for its answer.
    pub(super) fn is_forced(&self) -> bool {
        self.forced
            .iter()
            .any(|request| self.requests.contains_key(request))
    }

    /// Forgets requests that were answered, gives up those whose cluster has changed under them, and
    /// drops a claim that a person's goes before: its holder is this node, too, so nobody else's is
    /// touched.
    ///
    /// A person spoke of what was to be seen then; what came or left since may be what runs the VM.
    pub(super) fn settle_force(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        let requests = &self.requests;
        self.forced.retain(|request| requests.contains_key(request));
        if self.forced.is_empty() {
            self.forced_under = None;
            return;
        }
        let views = (cluster.members.clone(), cluster.agents.clone());
        let under = self.forced_under.get_or_insert_with(|| views.clone());
        if *under != views && self.order.is_none() {
            self.claim = None;
            for request in std::mem::take(&mut self.forced) {
                self.requests.remove(&request);
                let text = "Nodes or agents came or left meanwhile: look again, then force";
                let result = Err(text.to_owned());
                out.push(Action::Answer { request, result });
            }
            self.forced_under = None;
            return;
        }
        let runs = self
            .local
            .as_ref()
            .is_some_and(|it| it.role == Role::Active);
        let other = |claim: &Claim| claim.record.purpose != Purpose::Forced;
        if !runs && self.claim.as_ref().is_some_and(other) {
            self.claim = None;
        }
    }

    /// What becomes of a forced request for a replica that is passive or waiting, with quorum, and
    /// with no active replica on a node whose agent is there.
    pub(super) fn verdict_forced(&self, cluster: &Cluster, local: &ReplicaStatus) -> Verdict {
        let vm = &self.name;
        if let Some((node, _)) = self.promotable_elsewhere(cluster) {
            return Verdict::Refuse(format!(
                "Node {node} holds a state of VM {vm} that it can run from, and its agent is there: \
                 promote that one, or end its engine first"
            ));
        }
        match self.forced_promotion() {
            None if local.role == Role::Passive => {
                return Verdict::Refuse(format!(
                    "The replica of VM {vm} on node {} is receiving and holds no complete checkpoint: \
                     restart its engine (kemarictl resync {vm}), then force",
                    cluster.node
                ));
            }
            None => {
                return Verdict::Refuse(format!(
                    "The disks of VM {vm} on node {} are only partly copied: there is nothing to boot \
                     from, restore a backup",
                    cluster.node
                ));
            }
            Some(_) => {}
        }
        let alone = cluster.too_few_for_majority() && self.nobody_else_speaks(cluster);
        if !alone && cluster.voters() < cluster.majority() {
            return wait(format!(
                "Also a forced start of VM {vm} is recorded by the agents of {} of {} nodes, {} are \
                 there: start kemari-agent on the others, or remove lost nodes from corosync.conf",
                cluster.majority(),
                cluster.configured.len(),
                cluster.voters()
            ));
        }
        let newest = self.newest_generation();
        let generation = if alone {
            Generation::new(newest.get().saturating_add(STEP_ALONE))
        } else {
            newest.next()
        };
        Verdict::Claim {
            purpose: Purpose::Forced,
            generation,
            alone,
        }
    }

    /// From what the local replica would be started.
    pub(super) fn forced_promotion(&self) -> Option<Promotion> {
        let local = self.local.as_ref()?;
        match local.role {
            Role::Passive if local.in_sync => Some(Promotion::TakeOver),
            Role::Waiting if local.disks != DiskState::Incomplete => {
                Some(Promotion::ForcedColdStart)
            }
            Role::Passive | Role::Waiting | Role::Active | Role::Outdated => None,
        }
    }

    /// Another replica that could take over, on a node whose agent is there.
    fn promotable_elsewhere(&self, cluster: &Cluster) -> Option<(&NodeName, &ReplicaStatus)> {
        self.others.iter().find(|(node, status)| {
            status.role == Role::Passive && status.in_sync && cluster.speaks(node)
        })
    }

    fn nobody_else_speaks(&self, cluster: &Cluster) -> bool {
        !cluster
            .configured
            .iter()
            .any(|node| *node != cluster.node && cluster.speaks(node))
    }

    /// Those of the earlier parties that are there to be asked; of the others a person has spoken.
    pub(super) fn consent_to_force(
        &self,
        cluster: &Cluster,
        parties: BTreeSet<NodeName>,
    ) -> BTreeSet<NodeName> {
        parties
            .into_iter()
            .filter(|node| cluster.speaks(node))
            .collect()
    }

    /// Every agent that is there: one of them may hold a state that this one has not heard of yet.
    pub(super) fn asked_to_force(&self, cluster: &Cluster) -> BTreeSet<NodeName> {
        let configured = cluster.configured.iter();
        configured
            .filter(|node| cluster.speaks(node))
            .cloned()
            .collect()
    }

    /// Every vote this agent knows of, its own first: what a person is told before.
    pub(super) fn votes<'a>(
        &'a self,
        node: &'a NodeName,
    ) -> impl Iterator<Item = (&'a NodeName, &'a Record)> {
        let own = self.written.iter().map(move |record| (node, record));
        own.chain(self.heard.iter().filter(move |(voter, _)| *voter != node))
    }
}

/// A voter knows of a turn that the person who forces was not told of.
pub(super) fn unknown_to_force(known: &Record, claim: &Record) -> bool {
    claim.purpose == Purpose::Forced && known != claim && known.generation > claim.after
}

/// What the journal says of a forced start.
pub(super) fn note(vm: &Vm, out: &mut Vec<Action>) {
    vm.note(
        out,
        format!(
            "A person forces VM {} on this node; what others hold may be lost",
            vm.name
        ),
    );
}

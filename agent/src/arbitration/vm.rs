// SPDX-License-Identifier: Apache-2.0
//! One VM as this agent knows it: the local replica, the last words of the others, the records.
//!
//! Facts come in through the functions here; `settle` then runs every rule, so that a rule never
//! depends on which of its conditions came true last.

use std::collections::{BTreeMap, BTreeSet};

use kemari_api::replica::ReplicaStatus;
use kemari_api::{Generation, Licence, NodeName, Role, VmName};

use super::claim::Claim;
use super::cluster::Cluster;
use super::message::{Message, Record};
use super::request::Order;
use super::solo::Word;
use super::{Action, Command, RequestId};

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Vm {
    pub(super) name: VmName,
    pub(super) local: Option<ReplicaStatus>,
    /// Last words of the replicas on other nodes.
    pub(super) others: BTreeMap<NodeName, ReplicaStatus>,
    /// Nodes whose own word is that the engine process of this generation ended.
    pub(super) ended: BTreeMap<NodeName, (Generation, Role)>,
    /// This agent's newest vote.
    pub(super) record: Option<Record>,
    /// The newest vote of this agent that is durable.
    pub(super) written: Option<Record>,
    /// The newest votes of other agents.
    pub(super) heard: BTreeMap<NodeName, Record>,
    /// What this agent asks the others to record.
    pub(super) claim: Option<Claim>,
    /// The last claim that failed; not repeated before the views change or somebody asks.
    pub(super) failed: Option<Record>,
    /// What the local engine was asked to become.
    pub(super) order: Option<Order>,
    /// Pacemaker's word about the passive replica, not acted on yet.
    pub(super) word: Option<Word>,
    /// Requests to promote, and for how many ticks they have waited.
    pub(super) requests: BTreeMap<RequestId, u32>,
    /// Those of the requests by which a person forces.
    pub(super) forced: BTreeSet<RequestId>,
    /// Members and agents when a person asked.
    pub(super) forced_under: Option<(BTreeSet<NodeName>, BTreeSet<NodeName>)>,
    /// The address the local replica was last told to replicate to.
    pub(super) protecting: Option<String>,
    /// The generation the local replica was last told to be outdated by.
    pub(super) outdating: Option<Generation>,
}

impl Vm {
    pub fn new(name: VmName) -> Self {
        Self {
            name,
            local: None,
            others: BTreeMap::new(),
            ended: BTreeMap::new(),
            record: None,
            written: None,
            heard: BTreeMap::new(),
            claim: None,
            failed: None,
            order: None,
            word: None,
            requests: BTreeMap::new(),
            forced: BTreeSet::new(),
            forced_under: None,
            protecting: None,
            outdating: None,
        }
    }

    /// A record found on disk at start.
    pub fn restore(&mut self, record: Record) {
        self.written = Some(record.clone());
        self.record = Some(record);
    }

    pub fn local(&self) -> Option<&ReplicaStatus> {
        self.local.as_ref()
    }

    pub fn others(&self) -> impl Iterator<Item = (&NodeName, &ReplicaStatus)> {
        self.others.iter()
    }

    /// The newest vote of this agent, as far as it may be spoken of: durable.
    pub fn record(&self) -> Option<&Record> {
        self.written.as_ref()
    }

    /// Runs every rule. At most one claim and one order are under way at any time.
    pub fn settle(&mut self, cluster: &Cluster, tick: bool, out: &mut Vec<Action>) {
        self.settle_learning(cluster, out);
        self.settle_force(cluster, out);
        self.settle_claim(cluster, out);
        self.settle_requests(cluster, out);
        self.settle_failover(cluster, out);
        self.settle_solo(cluster, out);
        self.settle_protect(cluster, tick, out);
    }

    /// What must hold after every event.
    pub fn check(&self, cluster: &Cluster) {
        assert!(
            self.claim.is_none() || cluster.quorate,
            "a claim without quorum"
        );
        assert!(
            self.claim.is_none() || self.order.is_none(),
            "a claim beside an order"
        );
        let recorded = self.record.as_ref().map(|record| record.generation);
        let written = self.written.as_ref().map(|record| record.generation);
        assert!(written <= recorded, "a record on disk that was never made");
    }

    /// Membership or group changed: what failed may succeed now.
    pub fn views_changed(&mut self) {
        self.failed = None;
        self.protecting = None;
    }

    pub fn local_changed(&mut self, status: ReplicaStatus) {
        if status.role != Role::Active || status.in_sync {
            self.protecting = None;
        }
        if matches!(status.role, Role::Waiting | Role::Outdated) {
            self.outdating = None;
        }
        let reached = |order: &Order| order.done && status.generation >= order.generation;
        if self.order.as_ref().is_some_and(reached) {
            self.order = None;
        }
        self.local = Some(status);
    }

    /// The process is gone, and only this node can say so.
    pub fn local_gone(&mut self, out: &mut Vec<Action>) {
        let Some(local) = self.local.take() else {
            return;
        };
        self.claim = None;
        self.protecting = None;
        self.outdating = None;
        if self.order.take().is_some() {
            self.answer_all(&Err(format!("The engine of VM {} ended", self.name)), out);
        }
        out.push(Action::Multicast(Message::EngineGone {
            vm: self.name.clone(),
            generation: local.generation,
            role: local.role,
        }));
    }

    /// Another node's own word that its engine process ended.
    pub fn ended(&mut self, from: &NodeName, generation: Generation, role: Role) {
        self.others.remove(from);
        self.ended.insert(from.clone(), (generation, role));
    }

    /// A replica on another node speaks of itself.
    pub fn announced(&mut self, from: &NodeName, status: ReplicaStatus) {
        // Said after the other word, in order: this is a new process.
        self.ended.remove(from);
        self.restarted(from, status.pid);
        self.others.insert(from.clone(), status);
        self.failed = None;
    }

    /// `from` announces these replicas now: what it said of others before no longer holds.
    pub fn forget_words_of(&mut self, from: &NodeName, replicas: &[ReplicaStatus]) {
        if !replicas.iter().any(|status| status.vm == self.name) {
            self.others.remove(from);
        }
    }

    pub fn heard_record(&mut self, from: &NodeName, record: Record) {
        let newer = self
            .heard
            .get(from)
            .is_none_or(|known| known.generation < record.generation);
        if newer {
            self.heard.insert(from.clone(), record);
        }
    }

    /// Takes over the newest record of the others as this agent's own.
    pub fn adopt_newest_record(&mut self, out: &mut Vec<Action>) {
        let newest = self.heard.values().max_by_key(|record| record.generation);
        let own = self.record.as_ref().map(|record| record.generation);
        if let Some(newest) = newest.filter(|record| Some(record.generation) > own) {
            out.push(Action::WriteRecord(newest.clone()));
            self.record = Some(newest.clone());
        }
    }

    /// What each agent is known to have recorded last, this one's own record the last of them.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.heard.values().chain(&self.record)
    }

    /// The newest generation anybody is known to have, claimed or received.
    pub fn newest_generation(&self) -> Generation {
        let replicas = self.others.values().chain(&self.local);
        self.records()
            .map(|record| record.generation)
            .chain(replicas.map(|status| status.generation))
            .max()
            .unwrap_or_default()
    }

    /// The newest generation that a replica is known to have, and which was granted therefore. What
    /// was claimed before it is over.
    pub fn newest_granted(&self) -> Generation {
        let replicas = self.others.values().chain(&self.local);
        replicas
            .map(|status| status.generation)
            .max()
            .unwrap_or_default()
    }

    /// A generation newer than `than` that another node certainly holds: its replica is active
    /// with it, or a majority recorded it (with fewer than three nodes: anybody), for a cold start
    /// with the consent of those whose turn it was.
    pub fn newer_elsewhere(
        &self,
        cluster: &Cluster,
        than: Generation,
    ) -> Option<(Generation, NodeName)> {
        let active = self
            .others
            .iter()
            .filter(|(_, status)| status.role == Role::Active)
            .map(|(node, status)| (status.generation, node.clone()));
        let needed = if cluster.too_few_for_majority() {
            1
        } else {
            cluster.majority()
        };
        let mut votes: BTreeMap<(Generation, &NodeName), BTreeSet<&NodeName>> = BTreeMap::new();
        let own = self.record.iter().map(|record| (&cluster.node, record));
        let mut consent: BTreeMap<(Generation, &NodeName), BTreeSet<&NodeName>> = BTreeMap::new();
        for (voter, record) in self.heard.iter().chain(own) {
            let held = (record.generation, &record.holder);
            votes.entry(held).or_default().insert(voter);
            consent.entry(held).or_default().extend(&record.consent);
        }
        // A cold start without the consent it names was not granted, however many recorded it.
        let agreed = |held: &(Generation, &NodeName), voters: &BTreeSet<&NodeName>| {
            consent
                .get(held)
                .is_none_or(|named| named.is_subset(voters))
        };
        let recorded = votes
            .into_iter()
            .filter(|(held, voters)| voters.len() >= needed && agreed(held, voters))
            .map(|((generation, holder), _)| (generation, holder.clone()));
        active
            .chain(recorded)
            .filter(|(generation, holder)| *generation > than && *holder != cluster.node)
            .max()
    }

    /// Anything at all that names a generation newer than `than` for another node, but for claims
    /// that can never count.
    pub fn newer_rumoured(&self, cluster: &Cluster, than: Generation) -> bool {
        self.records()
            .filter(|record| record.holder != cluster.node)
            .filter(|record| !self.never_counts(cluster, record, than))
            .map(|record| record.generation)
            .chain(self.others.values().map(|status| status.generation))
            .any(|generation| generation > than)
    }

    /// Another node whose replica is active, as far as its agent, in the group now, says.
    pub fn live_active(&self, cluster: &Cluster) -> Option<&NodeName> {
        self.others
            .iter()
            .find(|(node, status)| status.role == Role::Active && cluster.speaks(node))
            .map(|(node, _)| node)
    }

    /// The local replica could run from its last committed checkpoint.
    pub fn local_could_take_over(&self) -> Option<Generation> {
        self.local
            .as_ref()
            .filter(|local| local.role == Role::Passive && local.in_sync)
            .map(|local| local.generation)
    }

    /// The local replica is active and waits for a passive one that is gone: its generation.
    pub fn local_is_held_back(&self) -> Option<&ReplicaStatus> {
        self.local.as_ref().filter(|local| {
            local.role == Role::Active && matches!(local.licence, Licence::Cut | Licence::Paired)
        })
    }

    pub fn engine_answered(
        &mut self,
        command: Command,
        result: &Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        if let Err(reason) = result {
            self.note(out, format!("The engine refused to {command}: {reason}"));
        }
        match command {
            Command::Promote | Command::GoSolo => self.order_answered(command, result, out),
            Command::Outdate if result.is_err() => self.outdating = None,
            Command::Outdate | Command::Protect => {}
        }
    }

    pub fn note(&self, out: &mut Vec<Action>, text: String) {
        out.push(Action::Note {
            vm: self.name.clone(),
            text,
        });
    }
}

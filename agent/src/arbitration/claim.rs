// SPDX-License-Identifier: Apache-2.0
//! Claims: asking the agents to record who holds a generation, and recording it for others.
//!
//! A claim names the generation after the one the claimant's replica has (`generations.rs` says
//! when a later one). Of two claims of the same generation at most one finds a majority, because an
//! agent records one only; a claim that builds on an old generation finds none, because every
//! majority contains an agent that recorded the newer one. A cold start builds on nothing, so it
//! names those whose turn it was before and needs their votes, which are not given while an engine
//! there runs or may be starting. Nobody else records it before they have. A vote is spoken of only
//! once it is durable.

use std::collections::BTreeSet;

use kemari_api::replica::Promotion;
use kemari_api::{Generation, Licence, NodeName, Role};

use super::cluster::Cluster;
use super::force::unknown_to_force;
use super::generations::may_stand;
use super::message::{Message, Purpose, Record};
use super::request::Order;
use super::vm::Vm;
use super::{Action, Command, Grounds};

/// A claim of this agent that is not decided yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    pub record: Record,
    /// Pacemaker's word takes the place of a majority: this agent's own record suffices.
    pub alone: bool,
    /// For a forced start, the agents that were there: each of them must record it. Empty otherwise.
    pub asked: BTreeSet<NodeName>,
    /// Agents that have recorded it.
    pub votes: BTreeSet<NodeName>,
    /// Agents that refused it.
    pub refusals: BTreeSet<NodeName>,
    /// Who the refusing agents named instead.
    pub instead: Option<(Generation, NodeName)>,
    /// Every consent is there, and the others were asked again.
    pub agreed: bool,
}

impl Vm {
    /// Begins a claim. The caller has checked every condition of the decision.
    pub(super) fn start_claim(
        &mut self,
        cluster: &Cluster,
        purpose: Purpose,
        generation: Generation,
        alone: bool,
        out: &mut Vec<Action>,
    ) {
        assert!(cluster.quorate, "a claim needs quorum");
        assert!(self.claim.is_none(), "one claim at a time");
        assert!(self.order.is_none(), "no claim while the engine changes");
        assert!(!alone || cluster.too_few_for_majority());
        let (after, consent) = match purpose {
            Purpose::ColdStart => self.turn_before(cluster),
            Purpose::Forced => {
                let (_, parties) = self.turn_before(cluster);
                let consent = self.consent_to_force(cluster, parties);
                (self.newest_generation(), consent)
            }
            Purpose::TakeOver | Purpose::Solo => {
                let held = self.local.as_ref().map(|local| local.generation);
                (held.unwrap_or_default(), BTreeSet::new())
            }
        };
        let record = Record {
            vm: self.name.clone(),
            generation,
            holder: cluster.node.clone(),
            purpose,
            after,
            consent,
        };
        self.claim = Some(Claim {
            record: record.clone(),
            alone,
            asked: match purpose {
                Purpose::Forced => self.asked_to_force(cluster),
                Purpose::TakeOver | Purpose::ColdStart | Purpose::Solo => BTreeSet::new(),
            },
            votes: BTreeSet::new(),
            refusals: BTreeSet::new(),
            instead: None,
            agreed: false,
        });
        if alone {
            self.vote_for_own(cluster, record, out);
        } else {
            out.push(Action::Multicast(Message::Claim(record)));
        }
    }

    /// Two nodes: Pacemaker has spoken while a claim waits for the other agent, which may never
    /// come back to vote.
    pub(super) fn act_alone(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        if !cluster.too_few_for_majority() {
            return;
        }
        let Some(claim) = self.claim.as_mut().filter(|claim| {
            !claim.alone && matches!(claim.record.purpose, Purpose::TakeOver | Purpose::Solo)
        }) else {
            return;
        };
        claim.alone = true;
        let record = claim.record.clone();
        if !claim.votes.contains(&cluster.node) {
            self.vote_for_own(cluster, record, out);
        }
        self.settle_claim(cluster, out);
    }

    /// Two nodes: the own record, then the promotion, with nobody to ask.
    fn vote_for_own(&mut self, cluster: &Cluster, record: Record, out: &mut Vec<Action>) {
        let known = self.record.as_ref();
        if let Some(other) = known
            .filter(|known| known.generation >= record.generation && known.holder != cluster.node)
        {
            let (newest, holder) = (other.generation, other.holder.clone());
            let node = cluster.node.clone();
            self.claim_refused(&node, &record, newest, &holder);
            return;
        }
        self.record = Some(record.clone());
        out.push(Action::WriteRecord(record));
    }

    /// Another agent, or this one, asks for a vote.
    pub(super) fn vote(
        &mut self,
        cluster: &Cluster,
        from: &NodeName,
        claim: Record,
        out: &mut Vec<Action>,
    ) {
        if *from != claim.holder || !cluster.configured.contains(from) || !cluster.quorate {
            return;
        }
        if !cluster.admitted {
            let text = "No vote before every configured node's agent was heard once: this agent \
                        has no records yet";
            return self.note(out, text.to_owned());
        }
        if let Some((newest, holder)) = self.against(cluster, &claim) {
            let refusal = Message::Refused {
                claim,
                newest,
                holder,
            };
            return out.push(Action::Multicast(refusal));
        }
        if self.waits_for_consent(cluster, &claim) {
            return;
        }
        if self.written.as_ref() == Some(&claim) {
            out.push(Action::Multicast(Message::Recorded(claim)));
        } else {
            // Also when it was asked for before: a write that failed is tried again.
            self.record = Some(claim.clone());
            out.push(Action::WriteRecord(claim));
        }
    }

    /// What speaks against recording a claim: who holds which generation instead.
    fn against(&self, cluster: &Cluster, claim: &Record) -> Option<(Generation, NodeName)> {
        let known = self.record.as_ref().filter(|known| {
            known.generation > claim.generation
                || (known.generation == claim.generation && known.holder != claim.holder)
                || may_stand(known, claim)
                || surprises(known, claim, self.newest_granted())
                || unknown_to_force(known, claim)
        });
        if let Some(known) = known {
            return Some((known.generation, known.holder.clone()));
        }
        if let Some(generation) = self.used_here(cluster, claim) {
            return Some((generation, cluster.node.clone()));
        }
        let outdoes = |generation: Generation| {
            generation >= claim.generation || !claim.is_start() && generation > claim.after
        };
        self.others
            .iter()
            .find(|(node, status)| {
                status.role == Role::Active && **node != claim.holder && outdoes(status.generation)
            })
            .map(|(node, status)| (status.generation, node.clone()))
    }

    /// The generation with which this node's own replica is active, or about to be, when another
    /// node claims.
    fn used_here(&self, cluster: &Cluster, claim: &Record) -> Option<Generation> {
        if claim.holder == cluster.node {
            return None;
        }
        let ordered = self.order.as_ref().map(|order| order.generation);
        let claimed = self
            .claim
            .as_ref()
            .map(|own| own.record.generation)
            .filter(|own| *own != claim.generation);
        let used = self.local.as_ref().filter(|local| {
            local.role == Role::Active
                || claim.is_start() && local.role == Role::Passive && local.in_sync
        });
        ordered
            .or(claimed)
            .or_else(|| used.map(|local| local.generation))
    }

    /// The newest generation on record and the other nodes whose replicas could be using it, or an
    /// earlier one if nothing says that it was granted.
    pub(super) fn turn_before(&self, cluster: &Cluster) -> (Generation, BTreeSet<NodeName>) {
        let Some(newest) = self.records().map(|record| record.generation).max() else {
            return Default::default();
        };
        let granted = self.newest_granted().min(newest);
        let parties = self
            .records()
            .filter(|record| record.generation >= granted)
            .flat_map(Record::parties)
            .filter(|node| **node != cluster.node)
            .cloned()
            .collect();
        (newest, parties)
    }

    /// The other node that the newest record was made for.
    pub(super) fn holder_on_record(&self, cluster: &Cluster) -> Option<&NodeName> {
        let newest = self.records().max_by_key(|record| record.generation)?;
        (newest.holder != cluster.node).then_some(&newest.holder)
    }

    /// A record of this agent is durable: it may be spoken of, and it counts for its own claim.
    pub(super) fn record_written(
        &mut self,
        node: &NodeName,
        record: Record,
        out: &mut Vec<Action>,
    ) {
        let newer = self
            .written
            .as_ref()
            .is_none_or(|known| known.generation <= record.generation);
        if newer {
            self.written = Some(record.clone());
        }
        self.recorded(node, record.clone(), true);
        out.push(Action::Multicast(Message::Recorded(record)));
    }

    /// An agent has recorded something durably.
    pub(super) fn recorded(&mut self, from: &NodeName, record: Record, own: bool) {
        if let Some(claim) = &mut self.claim
            && claim.record == record
        {
            claim.votes.insert(from.clone());
        }
        if !own {
            self.heard_record(from, record);
        }
    }

    pub(super) fn claim_refused(
        &mut self,
        from: &NodeName,
        claim: &Record,
        newest: Generation,
        holder: &NodeName,
    ) {
        if let Some(own) = self.claim.as_mut().filter(|own| own.record == *claim) {
            own.refusals.insert(from.clone());
            own.instead = Some((newest, holder.clone()));
        }
    }

    /// Decides the claim under way, or drops it when its reason is gone.
    pub(super) fn settle_claim(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        let Some(claim) = &self.claim else { return };
        if !cluster.quorate || !self.claim_is_justified(cluster, claim) {
            self.claim = None;
            return;
        }
        self.ask_the_others(out);
        let Some(claim) = &self.claim else { return };
        let counted = |nodes: &BTreeSet<NodeName>| nodes.intersection(&cluster.configured).count();
        let votes = counted(&claim.votes);
        let own =
            claim.votes.contains(&cluster.node) && self.record.as_ref() == Some(&claim.record);
        let agreed =
            claim.record.consent.is_subset(&claim.votes) && claim.asked.is_subset(&claim.votes);
        let nodes = cluster.configured.len();
        if own && claim.alone {
            self.won(Grounds::Pacemaker, out);
        } else if own && agreed && votes >= cluster.majority() {
            self.won(Grounds::Majority(votes), out);
        } else if claim.alone && !claim.refusals.is_empty()
            || nodes < cluster.majority() + counted(&claim.refusals)
            || claim.refusals.contains(&cluster.node)
            || !claim.record.consent.is_disjoint(&claim.refusals)
            || !claim.asked.is_disjoint(&claim.refusals)
        {
            self.lost(out);
        } else if !claim.record.is_start()
            && self.generation_after(cluster, claim.record.after) > claim.record.generation
        {
            // Those who refuse have told why, and it can be passed over.
            self.claim = None;
        }
    }

    fn claim_is_justified(&self, cluster: &Cluster, claim: &Claim) -> bool {
        let goes_on_from = |generation: Generation| generation == claim.record.after;
        match claim.record.purpose {
            Purpose::TakeOver => {
                self.local_could_take_over().is_some_and(goes_on_from)
                    && (!self.requests.is_empty()
                        || !self.waits_for_pacemaker() && self.active_is_lost(cluster))
            }
            Purpose::ColdStart => {
                let waiting = |role| role == Role::Waiting;
                self.local.as_ref().is_some_and(|local| waiting(local.role))
                    && !self.requests.is_empty()
            }
            Purpose::Forced => self.is_forced() && self.forced_promotion().is_some(),
            Purpose::Solo => {
                (self.word.is_some() || self.may_go_solo_unasked(cluster))
                    && self
                        .local_is_held_back()
                        .is_some_and(|local| goes_on_from(local.generation))
            }
        }
    }

    fn won(&mut self, grounds: Grounds, out: &mut Vec<Action>) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        let (vm, generation) = (self.name.clone(), claim.record.generation);
        let grounds = match (claim.record.purpose, grounds) {
            (Purpose::Forced, Grounds::Majority(votes)) => Grounds::Person(votes),
            (Purpose::Forced, _) => Grounds::Person(1),
            (_, grounds) => grounds,
        };
        let promotion = match claim.record.purpose {
            Purpose::Forced => self.forced_promotion(),
            Purpose::TakeOver => Some(Promotion::TakeOver),
            Purpose::ColdStart => Some(Promotion::ColdStart),
            Purpose::Solo => None,
        };
        let command = promotion.map_or(Command::GoSolo, |_| Command::Promote);
        self.order = Some(Order {
            command,
            generation,
            done: false,
        });
        out.push(match promotion {
            Some(how) => Action::Promote {
                vm,
                how,
                generation,
                grounds,
            },
            None => Action::GoSolo {
                vm,
                generation,
                grounds,
            },
        });
    }

    fn lost(&mut self, out: &mut Vec<Action>) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        let generation = claim.record.generation;
        let instead = claim.instead.map_or_else(String::new, |(newest, holder)| {
            format!(": generation {newest} is held by node {holder}")
        });
        let text = format!(
            "The agents did not grant generation {generation} of VM {}{instead}",
            self.name
        );
        self.failed = Some(claim.record);
        self.answer_all(&Err(text.clone()), out);
        self.note(out, text);
    }

    /// Repeats the claim, for agents that could not vote when it was first made.
    pub(super) fn repeat_claim(&self, out: &mut Vec<Action>) {
        if let Some(claim) = self.claim.as_ref().filter(|claim| !claim.alone) {
            out.push(Action::Multicast(Message::Claim(claim.record.clone())));
        }
    }

    /// True if the same claim has just failed and nothing changed since.
    pub(super) fn has_just_failed(&self, generation: Generation) -> bool {
        self.failed
            .as_ref()
            .is_some_and(|record| record.generation == generation)
    }

    /// The local replica lets outputs out on its own already.
    pub(super) fn local_is_solo(&self) -> bool {
        self.local
            .as_ref()
            .is_some_and(|local| local.role == Role::Active && local.licence == Licence::Solo)
    }
}

/// A cold start builds on nothing, so a turn its claimant does not know of may still be going on.
/// `granted`: the newest generation that the voter knows to have been.
fn surprises(known: &Record, claim: &Record, granted: Generation) -> bool {
    let accounted = |node: &NodeName| *node == claim.holder || claim.consent.contains(node);
    claim.purpose == Purpose::ColdStart
        && known != claim
        && known.generation >= claim.after.min(granted)
        && !known.parties().all(accounted)
}

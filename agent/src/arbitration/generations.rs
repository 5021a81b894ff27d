// SPDX-License-Identifier: Apache-2.0
//! Which generation a claim names, and which claims on record can never count.
//!
//! A claim that is not granted leaves votes behind, and they must not stand in the way of the next
//! one for ever. Two things see to that:
//!
//! - *A start is recorded by those whose turn it was first.* A cold or forced start that one of
//!   them refuses is then on record nowhere else.
//! - *What one of them never recorded is passed over.* A start on record counts only with each
//!   consent it names. So a node that is named, and has recorded nothing but its own claims since the
//!   generation its replica has, knows that this start was not granted; and it never will be, since
//!   the node's own claim has a later number. It may name the generation after it.
//!
//! Why such a claim, of generation n from a state of generation g, is as good as one of g + 1: of
//! any claim granted with a number between them, a majority has a record. One of these agents is
//! asked for a vote, and gives it only if what it has recorded newer than g is the claimant's own,
//! or a start that named the claimant and whose holder knew of nothing newer than g. In the second
//! case the agent had recorded nothing between g and that start either, so the record hides nothing
//! that was granted.

use kemari_api::Generation;

use super::Action;
use super::cluster::Cluster;
use super::message::{Message, Record};
use super::vm::Vm;

impl Vm {
    /// What a take-over or solo claim from a state of generation `held` names: the lowest generation
    /// above it and above every claim that can never count.
    pub(super) fn generation_after(&self, cluster: &Cluster, held: Generation) -> Generation {
        let records = self.heard.values().chain(&self.record);
        records
            .filter(|record| self.never_counts(cluster, record, held))
            .map(|record| record.generation)
            .max()
            .map_or(held, |passed_over| passed_over.max(held))
            .next()
    }

    /// A start, newer than `held`, that counts only with this node's consent, which it never got and
    /// will not get while the local replica is active or claims.
    pub(super) fn never_counts(
        &self,
        cluster: &Cluster,
        record: &Record,
        held: Generation,
    ) -> bool {
        let own = self.record.as_ref();
        let recorded_nothing_else = own.is_none_or(|own| {
            own.generation <= held
                || own.holder == cluster.node && !own.is_start() && own.after == held
        });
        recorded_nothing_else && needed_consent(record, &cluster.node, held)
    }

    /// A start is recorded by those whose turn it was before anybody else records it.
    pub(super) fn waits_for_consent(&self, cluster: &Cluster, claim: &Record) -> bool {
        let has_recorded = |node| self.heard.get(node) == Some(claim);
        !claim.consent.contains(&cluster.node) && !claim.consent.iter().all(has_recorded)
    }

    /// Those whose turn it was have recorded this node's claim: now the others are asked.
    pub(super) fn ask_the_others(&mut self, out: &mut Vec<Action>) {
        let Some(claim) = self.claim.as_mut() else {
            return;
        };
        let consent = &claim.record.consent;
        if !claim.agreed && !consent.is_empty() && consent.is_subset(&claim.votes) {
            claim.agreed = true;
            out.push(Action::Multicast(Message::Claim(claim.record.clone())));
        }
    }
}

/// A start whose holder knew of nothing newer than `held`, and which counts only with the consent of
/// this node.
fn needed_consent(record: &Record, node: &kemari_api::NodeName, held: Generation) -> bool {
    record.is_start()
        && record.generation > held
        && record.after <= held
        && record.consent.contains(node)
}

/// What is on record may have been granted after the state that the claim goes on from.
pub(super) fn may_stand(known: &Record, claim: &Record) -> bool {
    !claim.is_start()
        && known.holder != claim.holder
        && known.generation > claim.after
        && !needed_consent(known, &claim.holder, claim.after)
}

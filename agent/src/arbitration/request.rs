// SPDX-License-Identifier: Apache-2.0
//! Pacemaker's `promote`: what answers it at once, what it waits for, what refuses it.
//!
//! A request is never left without an answer: every obstacle has a patience in ticks, and the
//! caller's own time-out arrives as `Cancelled`.

use kemari_api::replica::{DiskState, ReplicaStatus};
use kemari_api::{Generation, Licence, NodeName, Role};

use super::cluster::Cluster;
use super::message::Purpose;
use super::vm::Vm;
use super::{Action, Command, RequestId};

/// How many ticks a request waits for what usually takes milliseconds: another node's word that
/// its replica was demoted or its engine ended.
const PATIENCE_SHORT: u32 = 3;

/// What the local engine was asked to become.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Order {
    pub command: Command,
    pub generation: Generation,
    /// The engine agreed; its status does not show it yet.
    pub done: bool,
}

/// What to make of a request now.
pub(super) enum Verdict {
    Done,
    Claim {
        purpose: Purpose,
        generation: Generation,
        alone: bool,
    },
    Wait {
        patience: u32,
        reason: String,
    },
    Refuse(String),
}

impl Vm {
    pub(super) fn requested(&mut self, request: RequestId) {
        self.requests.insert(request, 0);
        self.failed = None;
    }

    pub(super) fn cancelled(
        &mut self,
        cluster: &Cluster,
        request: RequestId,
        out: &mut Vec<Action>,
    ) {
        if self.requests.remove(&request).is_some() {
            let result = Err(self.obstacle(cluster));
            out.push(Action::Answer { request, result });
        }
    }

    pub(super) fn answer_all(&mut self, result: &Result<(), String>, out: &mut Vec<Action>) {
        for request in std::mem::take(&mut self.requests).into_keys() {
            let result = result.clone();
            out.push(Action::Answer { request, result });
        }
    }

    pub(super) fn order_answered(
        &mut self,
        command: Command,
        result: &Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        let Some(order) = self.order.as_mut().filter(|order| order.command == command) else {
            return;
        };
        order.done = true;
        let generation = order.generation;
        let shown = |local: &kemari_api::replica::ReplicaStatus| local.generation >= generation;
        if result.is_err() || self.local.as_ref().is_some_and(shown) {
            self.order = None;
        }
        match command {
            Command::GoSolo => self.word = None,
            _ => self.answer_all(result, out),
        }
    }

    pub(super) fn settle_requests(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        if self.requests.is_empty() {
            return;
        }
        if !self.is_forced() {
            self.act_alone(cluster, out);
        }
        if self.claim.is_some() {
            return;
        }
        if let Some(order) = &self.order {
            if order.done {
                self.answer_all(&Ok(()), out);
            }
            return;
        }
        match self.verdict(cluster) {
            Verdict::Done => self.answer_all(&Ok(()), out),
            Verdict::Refuse(reason) => self.answer_all(&Err(reason), out),
            // A person looks again and asks again; what they said is of now.
            Verdict::Wait { reason, .. } if self.is_forced() => self.answer_all(&Err(reason), out),
            Verdict::Wait { patience, reason } => self.answer_impatient(patience, &reason, out),
            Verdict::Claim {
                purpose,
                generation,
                alone,
            } => {
                self.start_claim(cluster, purpose, generation, alone, out);
                self.settle_claim(cluster, out);
            }
        }
    }

    fn answer_impatient(&mut self, patience: u32, reason: &str, out: &mut Vec<Action>) {
        self.requests.retain(|&request, waited| {
            let waits = *waited < patience;
            if !waits {
                out.push(Action::Answer {
                    request,
                    result: Err(reason.to_owned()),
                });
            }
            waits
        });
    }

    /// Why a request is not fulfilled yet.
    fn obstacle(&self, cluster: &Cluster) -> String {
        if let Some(claim) = &self.claim {
            return format!(
                "Generation {} of VM {} was recorded by {} agents, {} of {} are needed: start \
                 kemari-agent on the other nodes",
                claim.record.generation,
                self.name,
                claim.votes.len(),
                cluster.majority(),
                cluster.configured.len()
            );
        }
        if self.order.is_some() {
            return format!("The engine of VM {} has not answered in time", self.name);
        }
        match self.verdict(cluster) {
            Verdict::Wait { reason, .. } | Verdict::Refuse(reason) => reason,
            Verdict::Done | Verdict::Claim { .. } => "The time is over".to_owned(),
        }
    }

    fn verdict(&self, cluster: &Cluster) -> Verdict {
        let vm = &self.name;
        let Some(local) = &self.local else {
            return wait(format!(
                "No engine of VM {vm} runs on node {}: start it first",
                cluster.node
            ));
        };
        match local.role {
            Role::Active if self.newer_elsewhere(cluster, local.generation).is_some() => {
                return Verdict::Refuse(self.outdated(cluster, local.generation));
            }
            Role::Active if local.licence != Licence::None => return Verdict::Done,
            Role::Active => return wait(format!("VM {vm} has no licence yet")),
            Role::Outdated => return Verdict::Refuse(self.outdated(cluster, local.generation)),
            Role::Passive | Role::Waiting => {}
        }
        if !cluster.quorate {
            return wait(format!(
                "Node {} has no quorum: nothing is promoted without it",
                cluster.node
            ));
        }
        if let Some(node) = self.live_active(cluster) {
            return wait_short(format!(
                "VM {vm} is active on node {node}: demote it there first"
            ));
        }
        if self.is_forced() {
            return self.verdict_forced(cluster, local);
        }
        match local.role {
            Role::Passive if local.in_sync => self.verdict_take_over(cluster, local.generation),
            Role::Passive => wait(format!(
                "The replica of VM {vm} on node {} holds no complete checkpoint",
                cluster.node
            )),
            _ => self
                .older_disks(cluster, local)
                .unwrap_or_else(|| self.verdict_cold_start(cluster)),
        }
    }

    /// What keeps the guest from being booted from this node's replicated disks: newer ones
    /// elsewhere, or the possibility of them.
    fn older_disks(&self, cluster: &Cluster, local: &ReplicaStatus) -> Option<Verdict> {
        let (vm, here) = (&self.name, &cluster.node);
        match local.disks {
            DiskState::None | DiskState::Shared => return None,
            DiskState::Copy | DiskState::Incomplete => {
                let ran_last = self.holder_on_record(cluster);
                return Some(wait_short(format!(
                    "The disks of VM {vm} on node {here} are {} of those of the node where it ran \
                     last{}: start it there",
                    match local.disks {
                        DiskState::Copy => "a copy",
                        _ => "an incomplete copy",
                    },
                    ran_last.map_or_else(String::new, |node| format!(" ({node}, as recorded)"))
                )));
            }
            DiskState::Own => {}
        }
        let newer = |(_, other): &(&NodeName, &ReplicaStatus)| {
            other.disks == DiskState::Own && other.generation > local.generation
        };
        if let Some((node, other)) = self.others.iter().find(newer) {
            return Some(wait_short(format!(
                "Node {node} ran VM {vm} after node {here} did (generation {}, here {}), so its \
                 disks are newer: promote that one",
                other.generation, local.generation
            )));
        }
        if let Some((node, other)) = self.copied_from_disks_before_these(local) {
            return Some(wait_short(format!(
                "The disks of VM {vm} on node {node} are a copy (generation {}) of disks on which the guest \
                 ran, and by this node's own record it never ran on those of node {here}: were they replaced, \
                 or was the record lost? If they are right, or nothing better is left: kemarictl force-active {vm}",
                other.generation
            )));
        }
        let (newest, holders) = self.turn_before(cluster);
        let silent = holders
            .iter()
            .find(|holder| newest > local.generation && !self.others.contains_key(*holder));
        silent.map(|holder| {
            wait(format!(
                "Node {holder} had the right to run VM {vm} with generation {newest}, and its engine \
                 is not there to say whether its disks are newer than those of node {here} \
                 (generation {}): start the resource there, too",
                local.generation
            ))
        })
    }

    /// A replica whose disks are a copy, where this one never ran: what was copied are not its disks. They are those of a
    /// machine that took the place of the one where the guest ran, or an empty disk in its old place.
    fn copied_from_disks_before_these(
        &self,
        local: &ReplicaStatus,
    ) -> Option<(&NodeName, &ReplicaStatus)> {
        let is_copy = |(_, other): &(&NodeName, &ReplicaStatus)| {
            matches!(other.disks, DiskState::Copy | DiskState::Incomplete)
        };
        let never_ran = local.generation == Generation::default();
        self.others.iter().find(is_copy).filter(|_| never_ran)
    }

    fn verdict_take_over(&self, cluster: &Cluster, generation: Generation) -> Verdict {
        if self.newer_elsewhere(cluster, generation).is_some() {
            return Verdict::Refuse(self.outdated(cluster, generation));
        }
        if let Some(node) = self.ended_unfenced(cluster) {
            return wait(format!(
                "The engine of VM {} on node {node} ended while it wrote to a disk that both nodes \
                 see, and what the kernel there was given may still get to it: fence node {node} \
                 (on-fail=fence does that by itself)",
                self.name
            ));
        }
        Verdict::Claim {
            purpose: Purpose::TakeOver,
            generation: self.generation_after(cluster, generation),
            alone: cluster.too_few_for_majority(),
        }
    }

    fn verdict_cold_start(&self, cluster: &Cluster) -> Verdict {
        let vm = &self.name;
        if let Some((node, state)) = self.better_copy(cluster) {
            let remedy = if cluster.speaks(node) {
                "promote that one"
            } else {
                "start that node"
            };
            return wait_short(format!(
                "Node {node} has the state of VM {vm} ({state}), this replica has none: {remedy}"
            ));
        }
        let (_, before) = self.turn_before(cluster);
        if let Some(holder) = before.iter().find(|holder| !cluster.speaks(holder)) {
            return wait(format!(
                "Node {holder} ran VM {vm} last and its agent is not there to say that it has \
                 ended: start that node"
            ));
        }
        if cluster.voters() < cluster.majority() {
            return wait(format!(
                "A cold start of VM {vm} needs the agents of {} of {} nodes, {} are there: start \
                 kemari-agent on the others",
                cluster.majority(),
                cluster.configured.len(),
                cluster.voters()
            ));
        }
        Verdict::Claim {
            purpose: Purpose::ColdStart,
            generation: self.newest_generation().next(),
            alone: false,
        }
    }

    /// Another replica that has state: active, or passive with the newest generation or the right
    /// to the next.
    fn better_copy(&self, cluster: &Cluster) -> Option<(&NodeName, Role)> {
        let newest = self.newest_generation();
        let (_, next) = self.turn_before(cluster);
        self.others
            .iter()
            .find(|(node, status)| match status.role {
                Role::Active => true,
                Role::Passive => {
                    status.in_sync && (status.generation >= newest || next.contains(*node))
                }
                Role::Waiting | Role::Outdated => false,
            })
            .map(|(node, status)| (node, status.role))
    }

    fn outdated(&self, cluster: &Cluster, generation: Generation) -> String {
        let holder = self.newer_elsewhere(cluster, generation).map_or_else(
            || "a newer generation exists".to_owned(),
            |(newer, holder)| format!("node {holder} holds generation {newer}"),
        );
        format!(
            "The replica of VM {} on node {} is outdated (generation {generation}), {holder}: \
             restart its engine, it is then synchronised anew",
            self.name, cluster.node
        )
    }
}

/// Waits until the caller gives up.
pub(super) fn wait(reason: String) -> Verdict {
    Verdict::Wait {
        patience: u32::MAX,
        reason,
    }
}

fn wait_short(reason: String) -> Verdict {
    Verdict::Wait {
        patience: PATIENCE_SHORT,
        reason,
    }
}

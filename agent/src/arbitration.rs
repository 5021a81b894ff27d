// SPDX-License-Identifier: Apache-2.0
//! Who may run a VM: the agent's decisions as a pure state machine.
//!
//! [`Arbiter::handle`] takes one event and returns what is to be done. No I/O, no clock, no
//! threads, no randomness: the same events give the same actions, so that the shipped code can be
//! simulated and model-checked. Invariants: an agent records at most one holder a (VM,
//! generation), and says so only after the record is durable; nothing is claimed, recorded or
//! promoted without quorum; a claim counts only if no other one counted since the generation its
//! replica has.
//! See `docs/arbitration.md`. It does not decide when a licence is cut: that is the engine's.

mod claim;
mod cluster;
mod failover;
mod force;
mod generations;
mod learning;
pub mod message;
mod protect;
mod request;
mod solo;
mod vm;

use std::collections::{BTreeMap, BTreeSet};

use kemari_api::agent::{ClusterView, ReplicaView, Vote};
use kemari_api::replica::{Promotion, ReplicaStatus};
use kemari_api::{Generation, NodeName, Role, VmName};

use cluster::Cluster;
use message::{Message, Record};
use vm::Vm;

/// Names a request of Pacemaker until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// On what a change of hands rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grounds {
    /// So many agents have recorded the claim, a majority of the configured ones.
    Majority(usize),
    /// Fewer than three nodes: Pacemaker, which fences, asked for it.
    Pacemaker,
    /// A person forced it, and so many agents have recorded that.
    Person(usize),
}

/// What an engine was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// [`Action::Promote`].
    Promote,
    /// [`Action::GoSolo`].
    GoSolo,
    /// [`Action::Outdate`].
    Outdate,
    /// [`Action::Protect`].
    Protect,
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Promote => "become active",
            Self::GoSolo => "go solo",
            Self::Outdate => "become outdated",
            Self::Protect => "replicate",
        })
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// The nodes of `corosync.conf`.
    Configured(BTreeSet<NodeName>),
    /// Corosync's word on quorum and membership.
    Quorum {
        /// This partition is quorate.
        quorate: bool,
        /// Nodes of this partition, this one too.
        members: BTreeSet<NodeName>,
    },
    /// The agents in the group now. Why one left makes no difference: an agent that vanished says
    /// nothing about its engines.
    Group(BTreeSet<NodeName>),
    /// A message was delivered.
    Message {
        /// The sender's node, as Corosync says.
        from: NodeName,
        /// The message.
        message: Message,
    },
    /// A local replica speaks of itself.
    LocalReplica(ReplicaStatus),
    /// A local engine process has ended.
    LocalEngineGone(VmName),
    /// Pacemaker calls `promote`.
    PromoteRequested {
        /// The VM.
        vm: VmName,
        /// Comes back in [`Action::Answer`].
        request: RequestId,
    },
    /// A person asks that the local replica run, whatever nodes that are away may hold.
    ForceRequested {
        /// The VM, as the person typed it.
        vm: VmName,
        /// Comes back in [`Action::Answer`].
        request: RequestId,
    },
    /// The caller waits no longer; the answer says what was missing.
    Cancelled(RequestId),
    /// Pacemaker says that the passive replica on `node` was stopped or its node fenced.
    PassiveGoneReported {
        /// The VM.
        vm: VmName,
        /// The node.
        node: NodeName,
    },
    /// A record is durable.
    RecordWritten(Record),
    /// An engine answered.
    EngineAnswered {
        /// The VM.
        vm: VmName,
        /// What it was asked.
        command: Command,
        /// Its answer.
        result: Result<(), String>,
    },
    /// About a second passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Say this to every agent.
    Multicast(Message),
    /// Make this durable, then report [`Event::RecordWritten`]. In the order given.
    WriteRecord(Record),
    /// Make durable that this agent votes from now on.
    Admit,
    /// Ask the local engine to become active.
    Promote {
        /// The VM.
        vm: VmName,
        /// From what.
        how: Promotion,
        /// With a solo licence of this generation.
        generation: Generation,
        /// On what it rests.
        grounds: Grounds,
    },
    /// Grant the local active replica a solo licence.
    GoSolo {
        /// The VM.
        vm: VmName,
        /// Of this generation.
        generation: Generation,
        /// On what it rests.
        grounds: Grounds,
    },
    /// Tell the local engine that a newer generation is held elsewhere.
    Outdate {
        /// The VM.
        vm: VmName,
        /// The newer generation.
        generation: Generation,
        /// Who holds it.
        holder: NodeName,
    },
    /// Ask the local active replica to replicate to this address.
    Protect {
        /// The VM.
        vm: VmName,
        /// An address such as `kemari:tls:HOST:PORT`.
        address: String,
    },
    /// The answer to a request.
    Answer {
        /// Which.
        request: RequestId,
        /// Done, or what stood against it.
        result: Result<(), String>,
    },
    /// A sentence for the journal.
    Note {
        /// The VM.
        vm: VmName,
        /// The sentence.
        text: String,
    },
}

/// The state machine of one agent. What it does next depends on nothing but its value, so a model
/// checker may copy and compare it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Arbiter {
    cluster: Cluster,
    vms: BTreeMap<VmName, Vm>,
}

impl Arbiter {
    /// The agent of `node` with the records found on its disk. `admitted`: the disk says that it
    /// has voted before, so its records are complete.
    #[must_use]
    pub fn new(node: NodeName, records: Vec<Record>, admitted: bool) -> Self {
        let mut vms: BTreeMap<VmName, Vm> = BTreeMap::new();
        for record in records {
            let vm = vms
                .entry(record.vm.clone())
                .or_insert_with(|| Vm::new(record.vm.clone()));
            vm.restore(record);
        }
        Self {
            cluster: Cluster::new(node, admitted),
            vms,
        }
    }

    /// Takes in one event and says what is to be done, in this order.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        let tick = matches!(event, Event::Tick);
        self.take_in(event, &mut out);
        for vm in self.vms.values_mut() {
            vm.settle(&self.cluster, tick, &mut out);
            vm.check(&self.cluster);
        }
        out
    }

    fn take_in(&mut self, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Configured(nodes) => {
                self.cluster.configured = nodes;
                self.admit_if_everyone_was_heard(out);
            }
            Event::Quorum { quorate, members } => {
                self.cluster.quorate = quorate;
                self.cluster.members = members;
                self.vms.values_mut().for_each(Vm::views_changed);
            }
            Event::Group(agents) => {
                self.cluster.agents = agents;
                self.vms.values_mut().for_each(Vm::views_changed);
                out.push(self.announcement());
            }
            Event::Message { from, message } => self.take_in_message(&from, message, out),
            Event::LocalReplica(status) => {
                self.vm(&status.vm.clone()).local_changed(status);
                out.push(self.announcement());
            }
            Event::LocalEngineGone(name) => {
                self.vm(&name).local_gone(out);
                out.push(self.announcement());
            }
            Event::PromoteRequested { vm, request } => self.vm(&vm).requested(request),
            Event::ForceRequested { vm, request } => {
                let vm = self.vm(&vm);
                vm.forced(request);
                force::note(vm, out);
            }
            Event::Cancelled(request) => {
                for vm in self.vms.values_mut() {
                    vm.cancelled(&self.cluster, request, out);
                }
            }
            Event::PassiveGoneReported { vm, node } => self.vm(&vm).passive_gone_reported(node),
            Event::RecordWritten(record) => {
                let node = self.cluster.node.clone();
                self.vm(&record.vm.clone())
                    .record_written(&node, record, out);
            }
            Event::EngineAnswered {
                vm,
                command,
                result,
            } => self.vm(&vm).engine_answered(command, &result, out),
            Event::Tick => self
                .vms
                .values_mut()
                .for_each(|vm| vm.tick(&self.cluster, out)),
        }
    }

    fn take_in_message(&mut self, from: &NodeName, message: Message, out: &mut Vec<Action>) {
        let own = *from == self.cluster.node;
        match message {
            Message::Announce { .. } | Message::EngineGone { .. } if own => {}
            // Nothing to decide: the engine hands over, and the other one asks for its promotion.
            Message::Fetch { .. } => {}
            Message::Announce { replicas, records } => {
                self.announced(from, replicas, records);
                self.admit_if_everyone_was_heard(out);
            }
            Message::EngineGone {
                vm,
                generation,
                role,
            } => self.vm(&vm).ended(from, generation, role),
            Message::Claim(claim) => {
                self.vm(&claim.vm);
                if let Some(vm) = self.vms.get_mut(&claim.vm) {
                    vm.vote(&self.cluster, from, claim, out);
                }
            }
            Message::Recorded(record) => self.vm(&record.vm.clone()).recorded(from, record, own),
            Message::Refused {
                claim,
                newest,
                holder,
            } => self
                .vm(&claim.vm)
                .claim_refused(from, &claim, newest, &holder),
        }
    }

    /// An announcement replaces all that was known from its sender.
    fn announced(&mut self, from: &NodeName, replicas: Vec<ReplicaStatus>, records: Vec<Record>) {
        self.cluster.heard.insert(from.clone());
        for vm in self.vms.values_mut() {
            vm.forget_words_of(from, &replicas);
        }
        for status in replicas {
            self.vm(&status.vm.clone()).announced(from, status);
        }
        for record in records {
            self.vm(&record.vm.clone()).heard_record(from, record);
        }
    }

    /// An agent without records may have voted in an earlier life: it takes over what all others
    /// know before it votes.
    fn admit_if_everyone_was_heard(&mut self, out: &mut Vec<Action>) {
        if self.cluster.admitted || !self.cluster.everyone_was_heard() {
            return;
        }
        for vm in self.vms.values_mut() {
            vm.adopt_newest_record(out);
        }
        self.cluster.admitted = true;
        out.push(Action::Admit);
    }

    fn announcement(&self) -> Action {
        Action::Multicast(Message::Announce {
            replicas: self
                .vms
                .values()
                .filter_map(|vm| vm.local().cloned())
                .collect(),
            records: self
                .vms
                .values()
                .filter_map(|vm| vm.record().cloned())
                .collect(),
        })
    }

    fn vm(&mut self, name: &VmName) -> &mut Vm {
        self.vms
            .entry(name.clone())
            .or_insert_with(|| Vm::new(name.clone()))
    }

    /// What this agent knows, for people and the resource agent.
    #[must_use]
    pub fn view(&self) -> ClusterView {
        let cluster = &self.cluster;
        let mut replicas = Vec::new();
        for vm in self.vms.values() {
            replicas.extend(vm.local().map(|status| ReplicaView {
                status: status.clone(),
                present: true,
            }));
            replicas.extend(vm.others().map(|(node, status)| ReplicaView {
                status: status.clone(),
                present: cluster.members.contains(node),
            }));
        }
        ClusterView {
            node: cluster.node.clone(),
            quorate: cluster.quorate,
            members: cluster.members.iter().cloned().collect(),
            agents: cluster.agents.iter().cloned().collect(),
            replicas,
            generations: self
                .vms
                .values()
                .filter_map(Vm::record)
                .map(|record| (record.vm.clone(), record.generation, record.holder.clone()))
                .collect(),
        }
    }

    /// What every agent is known to have recorded of a VM, this one's own vote first.
    #[must_use]
    pub fn votes(&self, vm: &VmName) -> Vec<Vote> {
        let Some(vm) = self.vms.get(vm) else {
            return Vec::new();
        };
        vm.votes(&self.cluster.node)
            .map(|(node, record)| Vote {
                node: node.clone(),
                generation: record.generation,
                holder: record.holder.clone(),
                purpose: record.purpose.to_string(),
            })
            .collect()
    }

    /// Who holds the newest generation that any agent is known to have recorded.
    #[must_use]
    pub fn last_holder(&self, vm: &VmName) -> Option<NodeName> {
        let votes = self.votes(vm);
        let newest = votes.into_iter().max_by_key(|vote| vote.generation)?;
        Some(newest.holder)
    }

    /// How many nodes are configured.
    #[must_use]
    pub fn configured(&self) -> usize {
        self.cluster.configured.len()
    }

    /// VMs whose local replica is active, for the one-line status.
    #[must_use]
    pub fn active_here(&self) -> usize {
        self.vms
            .values()
            .filter(|vm| vm.local().is_some_and(|status| status.role == Role::Active))
            .count()
    }
}

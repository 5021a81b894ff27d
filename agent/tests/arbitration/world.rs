// SPDX-License-Identifier: Apache-2.0
//! A model cluster: agents are the shipped [`Arbiter`], everything around them is modelled.
//!
//! Corosync delivers each message to all agents of a partition in one order, but each node handles
//! its inbox at its own pace, so views are late. Engines pair, cut, release and take over as
//! design.md says: `replicas.rs`, which checks the two rules.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kemari_agent::arbitration::message::Record;
use kemari_agent::arbitration::{Action, Arbiter, Command, Event, Grounds, RequestId};
use kemari_api::agent::Vote;
use kemari_api::replica::{DiskState, FailoverPolicy, ReplicaStatus};
use kemari_api::{Epoch, Generation, Licence, NodeName, Role, VmName};

/// One engine process.
#[derive(Debug, Clone)]
pub struct Engine {
    pub pid: u32,
    pub role: Role,
    pub licence: Licence,
    pub in_sync: bool,
    pub generation: Generation,
    pub peer: Option<usize>,
    /// How far the guest has come in the state this replica holds.
    pub state: u64,
    /// The replication session it takes part in.
    pub(super) session: u32,
}

/// One node: what survives a crash is `disk` and `admitted`.
#[derive(Debug, Default)]
pub struct Node {
    pub up: bool,
    partition: u8,
    agent: Option<Arbiter>,
    pub engine: Option<Engine>,
    disk: BTreeMap<VmName, Record>,
    admitted: bool,
    pub(super) guest_disk: GuestDisk,
    inbox: VecDeque<Event>,
    orders: VecDeque<Action>,
    writes: VecDeque<Option<Record>>,
}

/// The guest's replicated disk on a node, if the VM has one.
#[derive(Debug, Clone, Copy)]
pub struct GuestDisk {
    pub state: DiskState,
    pub generation: Generation,
    /// How far the guest was that wrote it.
    pub content: u64,
}

impl Default for GuestDisk {
    fn default() -> Self {
        Self {
            state: DiskState::Own,
            generation: Generation::default(),
            content: 0,
        }
    }
}

/// The cluster.
#[derive(Debug)]
pub struct World {
    pub nodes: Vec<Node>,
    /// Whether the VM has a replicated disk.
    pub disks: bool,
    /// Whether it writes to a disk that both nodes see.
    pub shared: bool,
    pub failover: FailoverPolicy,
    pub link: bool,
    /// The node on which a person forced the VM last.
    pub forced_on: Option<usize>,
    /// Highest generation with which an output left, who let it out, and how far the guest was.
    pub(super) released: (Generation, usize, u64),
    pub(super) promoted: BTreeMap<Generation, usize>,
    pub answers: BTreeMap<RequestId, Result<(), String>>,
    requests: u64,
    pub(super) pids: u32,
}

pub fn vm() -> VmName {
    "vm".parse().expect("a VM name")
}

pub fn name(node: usize) -> NodeName {
    format!("n{}", node + 1).parse().expect("a node name")
}

fn index(name: &str) -> usize {
    name.trim_start_matches('n')
        .parse::<usize>()
        .expect("a name of this world")
        - 1
}

impl World {
    /// All nodes up, agents in the group, engines waiting on the first two.
    pub fn new(nodes: usize) -> Self {
        Self::of_vm(nodes, false)
    }

    /// The same with a VM that has a replicated disk.
    pub fn with_disks(nodes: usize) -> Self {
        Self::of_vm(nodes, true)
    }

    /// The same with a VM that writes to a disk that both nodes see.
    pub fn with_shared_disk(nodes: usize) -> Self {
        let mut world = Self::of_vm(nodes, false);
        world.shared = true;
        world
    }

    /// The same with a VM whose policy is `fenced`.
    pub fn fenced(nodes: usize) -> Self {
        let mut world = Self::of_vm(nodes, false);
        world.failover = FailoverPolicy::Fenced;
        world
    }

    fn of_vm(nodes: usize, disks: bool) -> Self {
        let mut world = Self {
            disks,
            shared: false,
            failover: FailoverPolicy::Auto,
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            link: true,
            forced_on: None,
            released: (Generation::default(), usize::MAX, 0),
            promoted: BTreeMap::new(),
            answers: BTreeMap::new(),
            requests: 0,
            pids: 100,
        };
        for node in 0..nodes {
            world.boot(node);
        }
        world
    }

    fn partition_of(&self, node: usize) -> Vec<usize> {
        let own = self.nodes[node].partition;
        (0..self.nodes.len())
            .filter(|&other| self.nodes[other].up && self.nodes[other].partition == own)
            .collect()
    }

    pub(super) fn connected(&self, a: usize, b: usize) -> bool {
        self.nodes[a].up && self.nodes[b].up && self.nodes[a].partition == self.nodes[b].partition
    }

    fn push(&mut self, node: usize, event: Event) {
        if self.nodes[node].agent.is_some() {
            self.nodes[node].inbox.push_back(event);
        }
    }

    /// Corosync tells every node its membership; with two nodes each side is quorate.
    fn tell_membership(&mut self) {
        let configured = self.nodes.len();
        for node in 0..configured {
            let members = self.partition_of(node);
            let quorate = configured == 2 || members.len() > configured / 2;
            let event = Event::Quorum {
                quorate,
                members: members.into_iter().map(name).collect(),
            };
            self.push(node, event);
        }
        self.tell_group();
    }

    fn tell_group(&mut self) {
        for node in 0..self.nodes.len() {
            let agents: BTreeSet<NodeName> = self
                .partition_of(node)
                .into_iter()
                .filter(|&other| self.nodes[other].agent.is_some())
                .map(name)
                .collect();
            self.push(node, Event::Group(agents));
        }
    }

    pub fn boot(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.nodes[node].up = true;
        self.nodes[node].partition = 0;
        self.start_agent(node);
        self.tell_membership();
        if node < 2 {
            self.start_engine(node);
        }
    }

    pub fn kill_node(&mut self, node: usize) {
        let old = &mut self.nodes[node];
        *old = Node {
            disk: std::mem::take(&mut old.disk),
            admitted: old.admitted,
            guest_disk: old.guest_disk,
            ..Node::default()
        };
        self.tell_membership();
    }

    /// Another machine under this name: nothing of the old one is left.
    pub fn replace_machine(&mut self, node: usize) {
        self.kill_node(node);
        self.nodes[node] = Node::default();
        self.boot(node);
    }

    pub fn start_agent(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        if !this.up || this.agent.is_some() {
            return;
        }
        let records = this.disk.values().cloned().collect();
        this.agent = Some(Arbiter::new(name(node), records, this.admitted));
        let configured = (0..self.nodes.len()).map(name).collect();
        self.push(node, Event::Configured(configured));
        self.tell_membership();
        self.say(node);
    }

    /// What it asked of the engine is in the socket and still happens.
    pub fn kill_agent(&mut self, node: usize) {
        while self.obey(node) {}
        let this = &mut self.nodes[node];
        this.agent = None;
        this.inbox.clear();
        this.writes.clear();
        self.tell_group();
    }

    pub fn start_engine(&mut self, node: usize) {
        self.pids += 1;
        let this = &mut self.nodes[node];
        if !this.up || this.engine.is_some() {
            return;
        }
        this.engine = Some(Engine {
            pid: self.pids,
            role: Role::Waiting,
            licence: Licence::None,
            in_sync: false,
            generation: if self.disks {
                this.guest_disk.generation
            } else {
                Generation::default()
            },
            peer: None,
            state: 0,
            session: 0,
        });
        self.say(node);
    }

    pub fn kill_engine(&mut self, node: usize) {
        if self.nodes[node].engine.take().is_some() {
            self.nodes[node].orders.clear();
            self.push(node, Event::LocalEngineGone(vm()));
        }
    }

    pub fn isolate(&mut self, node: usize) {
        self.nodes[node].partition = u8::try_from(node + 1).expect("few nodes");
        self.tell_membership();
    }

    /// One node is back in the partition of the rest.
    pub fn rejoin(&mut self, node: usize) {
        self.nodes[node].partition = 0;
        self.tell_membership();
    }

    pub fn heal(&mut self) {
        for node in &mut self.nodes {
            node.partition = 0;
        }
        self.tell_membership();
    }

    /// The replica's own words go to its agent.
    pub(super) fn say(&mut self, node: usize) {
        let Some(engine) = &self.nodes[node].engine else {
            return;
        };
        let status = ReplicaStatus {
            vm: vm(),
            node: name(node),
            pid: engine.pid,
            role: engine.role,
            licence: engine.licence,
            in_sync: engine.in_sync,
            running: true,
            generation: engine.generation,
            epoch: Epoch::new(engine.state),
            disks: if self.disks {
                self.nodes[node].guest_disk.state
            } else if self.shared {
                DiskState::Shared
            } else {
                DiskState::None
            },
            failover: self.failover,
            peer: engine
                .peer
                .map(|peer| name(peer).to_string())
                .unwrap_or_default(),
            listen: format!("kemari:tcp:{}:4444", name(node)),
            detail: String::new(),
        };
        self.push(node, Event::LocalReplica(status));
    }

    pub fn promote(&mut self, node: usize) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.push(node, Event::PromoteRequested { vm: vm(), request });
        request
    }

    /// Every `promote` that is still waiting has ended: Pacemaker does nothing else with the VM before.
    pub fn cancel_requests(&mut self) {
        let waiting = (1..=self.requests).map(RequestId);
        let waiting: Vec<_> = waiting
            .filter(|request| !self.answers.contains_key(request))
            .collect();
        for node in 0..self.nodes.len() {
            for request in &waiting {
                self.push(node, Event::Cancelled(*request));
            }
        }
    }

    /// No other node runs the VM, could take it over, or was just told to.
    pub fn nothing_runs_but(&self, node: usize) -> bool {
        let idle = |other: &Node| {
            let engine = other.engine.as_ref();
            other.orders.is_empty()
                && engine.is_none_or(|engine| matches!(engine.role, Role::Waiting | Role::Outdated))
        };
        (0..self.nodes.len()).all(|other| other == node || idle(&self.nodes[other]))
    }

    /// What the node's agent knows of all votes.
    pub fn votes(&self, node: usize) -> Vec<Vote> {
        let agent = self.nodes[node].agent.as_ref();
        agent.map_or_else(Vec::new, |agent| agent.votes(&vm()))
    }

    /// A person forces the VM on this node.
    pub fn force(&mut self, node: usize) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.push(node, Event::ForceRequested { vm: vm(), request });
        request
    }

    pub fn passive_gone(&mut self, node: usize, passive: usize) {
        let event = Event::PassiveGoneReported {
            vm: vm(),
            node: name(passive),
        };
        self.push(node, event);
    }

    pub fn tick(&mut self, node: usize) {
        self.push(node, Event::Tick);
    }

    /// One event of the node's inbox. Returns false if there was none.
    pub fn deliver(&mut self, node: usize) -> bool {
        let this = &mut self.nodes[node];
        let (Some(agent), Some(event)) = (&mut this.agent, this.inbox.pop_front()) else {
            return false;
        };
        for action in agent.handle(event) {
            self.carry_out(node, action);
        }
        true
    }

    fn carry_out(&mut self, node: usize, action: Action) {
        match action {
            Action::Multicast(message) => {
                let from = name(node);
                for other in self.partition_of(node) {
                    let event = Event::Message {
                        from: from.clone(),
                        message: message.clone(),
                    };
                    self.push(other, event);
                }
            }
            Action::WriteRecord(record) => self.nodes[node].writes.push_back(Some(record)),
            Action::Admit => self.nodes[node].writes.push_back(None),
            Action::Answer { request, result } => {
                let again = self.answers.insert(request, result);
                assert!(again.is_none(), "{request:?} answered twice");
            }
            Action::Note { .. } => {}
            order => self.nodes[node].orders.push_back(order),
        }
    }

    pub fn write(&mut self, node: usize) -> bool {
        let this = &mut self.nodes[node];
        match this.writes.pop_front() {
            None => return false,
            Some(None) => this.admitted = true,
            Some(Some(record)) => {
                let old = this.disk.insert(record.vm.clone(), record.clone());
                if let Some(old) = old.filter(|old| old.generation == record.generation) {
                    assert_eq!(old.holder, record.holder, "two votes for one generation");
                }
                self.push(node, Event::RecordWritten(record));
            }
        }
        true
    }

    /// The engine does the next thing it was asked.
    pub fn obey(&mut self, node: usize) -> bool {
        let Some(order) = self.nodes[node].orders.pop_front() else {
            return false;
        };
        let (command, done) = match order {
            Action::Promote {
                how,
                generation,
                grounds,
                ..
            } => {
                if let (Grounds::Person(_), Some(engine)) = (grounds, &self.nodes[node].engine) {
                    // A person said that what left since is lost.
                    self.released.2 = self.released.2.min(engine.state);
                }
                (Command::Promote, self.become_active(node, how, generation))
            }
            Action::GoSolo { generation, .. } => (Command::GoSolo, self.go_solo(node, generation)),
            Action::Outdate { generation, .. } => {
                (Command::Outdate, self.outdate(node, generation))
            }
            Action::Protect { address, .. } => {
                let peer = address.split(':').nth(2).map(index);
                (
                    Command::Protect,
                    self.pair(node, peer.expect("an address of this world")),
                )
            }
            other => panic!("{other:?} is none for an engine"),
        };
        self.say(node);
        let result = if done { Ok(()) } else { Err("no".to_owned()) };
        let answer = Event::EngineAnswered {
            vm: vm(),
            command,
            result,
        };
        self.push(node, answer);
        true
    }

    /// Everything under way happens, with `ticks` passing; guests run.
    pub fn settle(&mut self, ticks: usize) {
        for round in 0..=ticks {
            let mut busy = true;
            while busy {
                busy = false;
                for node in 0..self.nodes.len() {
                    busy |= self.deliver(node) | self.write(node) | self.obey(node);
                }
            }
            for node in 0..self.nodes.len() {
                self.run_guest(node);
                if round < ticks {
                    self.tick(node);
                }
            }
        }
    }

    pub fn role(&self, node: usize) -> Option<(Role, Licence)> {
        self.nodes[node]
            .engine
            .as_ref()
            .map(|engine| (engine.role, engine.licence))
    }

    /// Nobody in the cluster runs this node's guest or could be doing so unseen.
    pub fn is_not_active(&self, node: usize) -> bool {
        self.role(node).is_none_or(|(role, _)| role != Role::Active)
    }
}

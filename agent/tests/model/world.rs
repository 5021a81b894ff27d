// SPDX-License-Identifier: Apache-2.0
//! The whole state of a cluster, and its steps.
//!
//! Whatever is under way waits in a *lane*: an agent's inbox, its records on their way to the disk,
//! what it asked of the engine, a piece on a connection, an engine's own next deed, a loss to be
//! noticed. One lane is taken at a time, in a fixed order, unless it is *held*: then it waits as
//! long as the adversary likes, and everything else goes on. Failures may strike between any two
//! steps (`moves.rs`).

use std::collections::{BTreeSet, VecDeque};

use kemari_agent::arbitration::message::{Message, Record};
use kemari_agent::arbitration::{Action, Arbiter, Command, Event, RequestId};
use kemari_api::{Generation, NodeName, Role, VmName};
use kemari_replication::licence::Permission;

use super::engine::{Around, Engine};
use super::moves::Spent;
use super::network::Network;
use super::outside::{Outside, Violation};
use super::setup::{Grain, Setup};
use super::shared::Shared;

pub fn vm() -> VmName {
    "vm".parse().expect("a VM name")
}

pub fn name(node: usize) -> NodeName {
    format!("n{}", node + 1).parse().expect("a node name")
}

pub fn index(name: &str) -> usize {
    let number = name.trim_start_matches('n').parse::<usize>();
    number.expect("a name of this cluster") - 1
}

/// Where something waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// What an agent said and nobody has got yet. Passed at once unless held.
    Said(usize),
    /// An agent's inbox.
    Agent(usize),
    /// An agent's records on their way to the disk.
    Disk(usize),
    /// What an engine was asked.
    Orders(usize),
    /// Bytes from one host to another.
    Bytes(usize, usize),
    /// What an engine does by itself.
    Work(usize),
    /// A dead connection, noticed by this host.
    Notice(usize),
}

/// One node: what survives a crash is `vote`, `admitted`, `licence` and the number of starts.
#[derive(Debug, Clone, Default, Hash)]
pub struct Node {
    pub up: bool,
    pub frozen: bool,
    pub agent: Option<Arbiter>,
    pub engine: Option<Engine>,
    pub inbox: VecDeque<Event>,
    said: VecDeque<Message>,
    writes: VecDeque<Option<Record>>,
    pub(super) orders: VecDeque<Action>,
    vote: Option<Record>,
    admitted: bool,
    /// The generation in the engine's licence record.
    licence: Generation,
    starts: u32,
    /// A `promote` of Pacemaker has not been answered.
    pub asked: bool,
    /// It was in one membership with every other since it booted.
    pub(super) has_met: bool,
    /// Its view, for the known-bad rules.
    pub(super) quorate: bool,
}

impl Node {
    pub fn is_live(&self) -> bool {
        self.up && !self.frozen
    }

    pub fn role(&self) -> Option<Role> {
        self.engine.as_ref().map(|engine| engine.role)
    }
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub setup: Setup,
    pub nodes: Vec<Shared<Node>>,
    pub network: Network,
    pub outside: Outside,
    pub held: BTreeSet<Lane>,
    pub spent: Spent,
}

impl World {
    /// Everything up and quiet; two engines wait. Nobody has been promoted.
    pub fn waiting(setup: Setup) -> Self {
        let mut world = Self {
            setup,
            nodes: (0..setup.nodes)
                .map(|_| Shared::new(Node::default()))
                .collect(),
            network: Network::new(setup.nodes),
            outside: Outside::default(),
            held: BTreeSet::new(),
            spent: Spent::default(),
        };
        (0..setup.nodes).for_each(|node| world.boot(node));
        (0..2).for_each(|node| world.start_engine(node));
        world.settle();
        world.tick();
        world.settle();
        world.seal();
        world
    }

    /// The first host has just been asked to boot the guest.
    pub fn starting(setup: Setup) -> Self {
        let mut world = Self::waiting(setup);
        world.promote(0);
        world.seal();
        world
    }

    /// A pair in sync, and nothing under way.
    pub fn paired(setup: Setup) -> Self {
        let mut world = Self::starting(setup);
        world.settle();
        world.seal();
        assert!(world.is_protected(), "no pair came about");
        world
    }

    pub fn seal(&mut self) {
        self.network.engines = (0..self.setup.hosts)
            .filter(|&node| self.nodes[node].is_live() && self.nodes[node].engine.is_some())
            .collect();
        self.nodes.iter_mut().for_each(Shared::seal);
    }

    pub(super) fn node(&mut self, node: usize) -> &mut Node {
        self.nodes[node].change()
    }

    pub fn push(&mut self, node: usize, event: Event) {
        if self.nodes[node].agent.is_some() {
            let inbox = &mut self.node(node).inbox;
            inbox.push_back(event);
            assert!(inbox.len() < 300, "n{} is flooded: {inbox:?}", node + 1);
        }
    }

    // --- starts and ends ---------------------------------------------------------------------

    pub fn boot(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.node(node).up = true;
        self.network.rejoin(node);
        self.start_agent(node);
    }

    pub fn start_agent(&mut self, node: usize) {
        let this = self.node(node);
        if !this.up || this.agent.is_some() {
            return;
        }
        let records = this.vote.iter().cloned().collect();
        this.agent = Some(Arbiter::new(name(node), records, this.admitted));
        let configured = (0..self.nodes.len()).map(name).collect();
        self.push(node, Event::Configured(configured));
        self.tell_membership();
        if let Some(engine) = &mut self.node(node).engine {
            engine.said = None;
        }
        self.say(node);
    }

    /// What it asked of the engine is in the socket and still happens.
    pub fn kill_agent(&mut self, node: usize) {
        let this = self.node(node);
        this.agent = None;
        this.asked = false;
        this.inbox.clear();
        this.said.clear();
        this.writes.clear();
        self.tell_group();
    }

    pub fn start_engine(&mut self, node: usize) {
        let this = self.node(node);
        if !this.up || this.engine.is_some() {
            return;
        }
        this.starts += 1;
        this.engine = Some(Engine::new(this.starts, this.licence));
        self.say(node);
        self.rearm();
    }

    pub fn kill_engine(&mut self, node: usize) {
        let this = self.node(node);
        if this.engine.take().is_some() {
            this.orders.clear();
            self.network.close_all(node);
            self.push(node, Event::LocalEngineGone(vm()));
        }
    }

    pub fn kill_node(&mut self, node: usize) {
        let old = self.node(node);
        *old = Node {
            vote: old.vote.take(),
            admitted: old.admitted,
            licence: old.licence,
            starts: old.starts,
            ..Node::default()
        };
        self.network.close_all(node);
        self.tell_membership();
    }

    /// Lost connections are tried again.
    pub fn rearm(&mut self) {
        for node in 0..self.setup.hosts {
            if self.nodes[node].engine.is_some()
                && let Some(engine) = &mut self.node(node).engine
            {
                engine.rearm();
            }
        }
    }

    // --- words --------------------------------------------------------------------------------

    pub fn promote(&mut self, node: usize) {
        if self.nodes[node].agent.is_none() || self.nodes[node].asked {
            return;
        }
        self.node(node).asked = true;
        let request = RequestId(0);
        self.push(node, Event::PromoteRequested { vm: vm(), request });
    }

    pub fn passive_gone(&mut self, node: usize, passive: usize) {
        let event = Event::PassiveGoneReported {
            vm: vm(),
            node: name(passive),
        };
        self.push(node, event);
    }

    pub fn tick(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_live() {
                self.push(node, Event::Tick);
            }
        }
    }

    /// The replica's own words go to its agent, if there is news.
    fn say(&mut self, node: usize) {
        let Some(engine) = &self.nodes[node].engine else {
            return;
        };
        let status = engine.status(node);
        if engine.said.as_ref() == Some(&status) || self.nodes[node].agent.is_none() {
            return;
        }
        if let Some(engine) = &mut self.node(node).engine {
            engine.said = Some(status.clone());
        }
        self.push(node, Event::LocalReplica(status));
    }

    // --- lanes --------------------------------------------------------------------------------

    /// The next lane that moves, if any.
    pub fn next_lane(&self) -> Option<Lane> {
        let nodes = 0..self.nodes.len();
        let hosts = || 0..self.setup.hosts;
        let bytes = self.network.pipes.keys().flat_map(|&(caller, callee)| {
            [Lane::Bytes(caller, callee), Lane::Bytes(callee, caller)]
        });
        nodes
            .clone()
            .map(Lane::Said)
            .chain(nodes.clone().map(Lane::Agent))
            .chain(nodes.map(Lane::Disk))
            .chain(hosts().map(Lane::Orders))
            .chain(bytes)
            .chain(hosts().map(Lane::Work))
            .chain(hosts().map(Lane::Notice))
            .find(|&lane| !self.held.contains(&lane) && self.moves(lane))
    }

    /// Whether something waits there and can go on.
    fn moves(&self, lane: Lane) -> bool {
        match lane {
            Lane::Said(node) => self.nodes[node].is_live() && !self.nodes[node].said.is_empty(),
            Lane::Agent(node) => self.nodes[node].is_live() && !self.nodes[node].inbox.is_empty(),
            Lane::Disk(node) => self.nodes[node].is_live() && !self.nodes[node].writes.is_empty(),
            Lane::Orders(node) => self.nodes[node].is_live() && !self.nodes[node].orders.is_empty(),
            Lane::Bytes(from, to) => self.piece(from, to).is_some(),
            Lane::Work(node) => {
                let Some(engine) = self.nodes[node].engine.as_ref() else {
                    return false;
                };
                let (mut network, mut outside) = (self.network.clone(), Outside::default());
                let around = Around {
                    host: node,
                    setup: self.setup,
                    network: &mut network,
                    outside: &mut outside,
                    record: &mut Generation::default(),
                };
                self.nodes[node].is_live() && engine.has_work(&around)
            }
            Lane::Notice(node) => self.dead_pipe(node).is_some(),
        }
    }

    /// The connection on which bytes go from one host to another now.
    fn piece(&self, from: usize, to: usize) -> Option<(usize, usize)> {
        let called = (from, to);
        let serves = self.nodes[to]
            .engine
            .as_ref()
            .is_some_and(|engine| engine.endpoint.serves(from));
        if serves && self.network.has_piece(called, to) {
            return Some(called);
        }
        let calling = (to, from);
        self.network.has_piece(calling, to).then_some(calling)
    }

    fn dead_pipe(&self, node: usize) -> Option<(usize, usize)> {
        let keys = self.network.pipes.keys().copied();
        self.network.engines.contains(&node).then_some(())?;
        keys.into_iter()
            .find(|&key| (key.0 == node || key.1 == node) && self.network.is_dead(key, node))
    }

    /// Takes what waits in a lane.
    pub fn step(&mut self, lane: Lane) {
        match lane {
            Lane::Said(node) => self.pass_on(node),
            Lane::Agent(node) => self.handle(node),
            Lane::Disk(node) => self.write(node),
            Lane::Orders(node) => self.obey(node),
            Lane::Bytes(from, to) => {
                let Some(key) = self.piece(from, to) else {
                    return;
                };
                let Some(piece) = self.network.take_piece(key, to) else {
                    return;
                };
                self.with_engine(to, |engine, around| {
                    if to == key.0 {
                        engine.hear_callee(around, from, &piece);
                    } else {
                        engine.hear_caller(around, from, &piece);
                    }
                });
            }
            Lane::Work(node) => self.with_engine(node, Engine::work),
            Lane::Notice(node) => {
                let Some(key) = self.dead_pipe(node) else {
                    return;
                };
                self.with_engine(node, |engine, around| {
                    if key.0 == node {
                        around.network.close(key, node);
                        if engine.link.to() == Some(key.1) {
                            engine.link_lost(around, None);
                        }
                    } else {
                        engine.caller_lost(around, key.0);
                    }
                });
            }
        }
        self.seal();
        self.check();
    }

    /// Everything under way happens.
    pub fn settle(&mut self) {
        self.seal();
        for _ in 0..3_000 {
            let Some(lane) = self.next_lane() else {
                return;
            };
            self.step(lane);
        }
        panic!("it never ends: {:?}", self.next_lane());
    }

    fn with_engine(&mut self, node: usize, act: impl FnOnce(&mut Engine, &mut Around<'_>)) {
        let setup = self.setup;
        let this = self.nodes[node].change();
        let Some(engine) = &mut this.engine else {
            return;
        };
        let mut around = Around {
            host: node,
            setup,
            network: &mut self.network,
            outside: &mut self.outside,
            record: &mut this.licence,
        };
        act(engine, &mut around);
        if engine.failed {
            self.kill_engine(node);
        } else {
            self.say(node);
        }
    }

    /// The guest of an active replica goes on.
    pub fn output(&mut self, node: usize) {
        self.with_engine(node, |engine, around| {
            if engine.role == Role::Active {
                engine.run_guest(around);
            }
        });
        self.seal();
    }

    fn handle(&mut self, node: usize) {
        let mut events = match self.setup.grain {
            Grain::Burst => self.nodes[node].inbox.len(),
            Grain::Event => 1,
        };
        while events > 0 {
            events -= 1;
            let this = self.node(node);
            let (Some(agent), Some(event)) = (&mut this.agent, this.inbox.pop_front()) else {
                return;
            };
            let actions = agent.handle(event.clone());
            self.break_rules(node, &event);
            for action in actions {
                self.carry_out(node, action);
            }
        }
    }

    fn carry_out(&mut self, node: usize, action: Action) {
        match action {
            Action::Multicast(message) => {
                self.node(node).said.push_back(message);
                if !self.held.contains(&Lane::Said(node)) {
                    self.pass_on(node);
                }
            }
            Action::WriteRecord(record) => self.node(node).writes.push_back(Some(record)),
            Action::Admit => self.node(node).writes.push_back(None),
            Action::Answer { .. } => {
                assert!(self.nodes[node].asked, "answered twice");
                self.node(node).asked = false;
            }
            Action::Note { .. } => {}
            order => self.node(node).orders.push_back(order),
        }
    }

    /// Corosync orders what was said and delivers it to every agent of the partition.
    fn pass_on(&mut self, node: usize) {
        let members = self.partition_of(node);
        while let Some(message) = self.node(node).said.pop_front() {
            for &other in &members {
                let event = Event::Message {
                    from: name(node),
                    message: message.clone(),
                };
                self.push(other, event);
            }
        }
    }

    fn write(&mut self, node: usize) {
        let this = self.node(node);
        match this.writes.pop_front() {
            None => {}
            Some(None) => this.admitted = true,
            Some(Some(record)) => {
                if let Some(old) = &this.vote
                    && old.generation == record.generation
                {
                    assert_eq!(old.holder, record.holder, "two votes for one generation");
                }
                this.vote = Some(record.clone());
                self.push(node, Event::RecordWritten(record));
            }
        }
    }

    fn obey(&mut self, node: usize) {
        let Some(order) = self.node(node).orders.pop_front() else {
            return;
        };
        let command = match order {
            Action::Promote { .. } => Command::Promote,
            Action::GoSolo { .. } => Command::GoSolo,
            Action::Outdate { .. } => Command::Outdate,
            _ => Command::Protect,
        };
        let mut done = false;
        self.with_engine(node, |engine, around| done = engine.obey(around, &order));
        let result = if done { Ok(()) } else { Err("no".to_owned()) };
        let answer = Event::EngineAnswered {
            vm: vm(),
            command,
            result,
        };
        self.push(node, answer);
    }

    // --- what is looked at --------------------------------------------------------------------

    pub fn engines(&self) -> impl Iterator<Item = (usize, &Engine)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(node, this)| this.engine.as_ref().map(|engine| (node, engine)))
    }

    /// At most one replica lets everything out, frozen ones too.
    fn check(&mut self) {
        let solo = self
            .engines()
            .filter(|(_, engine)| engine.gate.licence().permission() == Permission::All)
            .count();
        if solo > 1 {
            self.outside.report(Violation::TwoSolo);
        }
    }

    /// An active replica and a passive one hold the same, and the connection between them stands.
    pub fn is_protected(&self) -> bool {
        self.engines().any(|(node, active)| {
            let passive = active
                .peer
                .and_then(|peer| Some((peer, self.nodes.get(peer)?.engine.as_ref()?)));
            active.role == Role::Active
                && active.gate.licence().permission() == Permission::Committed
                && self.nodes[node].is_live()
                && passive.is_some_and(|(peer, passive)| {
                    passive.role == Role::Passive
                        && passive.in_sync
                        && passive.runnable() == Some(&active.guest)
                        && self.nodes[peer].is_live()
                        && self.network.is_open(node, peer)
                })
        })
    }
}

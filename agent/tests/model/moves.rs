// SPDX-License-Identifier: Apache-2.0
//! What strikes a cluster, and how often: failures, repairs, Pacemaker's words, delays.

use kemari_api::Role;

use super::world::{Lane, World};

/// One move against the cluster, or of those who repair it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    // Failures.
    KillNode(usize),
    KillEngine(usize),
    KillAgent(usize),
    /// Every process stands still; the others lose it from the membership.
    Freeze(usize),
    /// Every network of the node is cut.
    Isolate(usize),
    /// Corosync's network only.
    CutCorosync(usize),
    /// The same, and the node's side wrongly calls itself quorate.
    Delude(usize),
    /// The replication network, both ways.
    CutLink(usize, usize),
    /// The replication network, one way.
    CutOneWay(usize, usize),
    /// The state of the next checkpoint of this host does not decode on the other one.
    SpoilState(usize),

    // Repairs.
    Boot(usize),
    StartEngine(usize),
    StartAgent(usize),
    Thaw(usize),
    HealCorosync,
    HealLinks,

    // Pacemaker.
    Fence(usize),
    Promote(usize),
    PassiveGone {
        told: usize,
        passive: usize,
    },

    // The guest, and time.
    Output(usize),
    Tick,

    // Delays.
    Hold(Lane),
    Free(Lane),
}

/// What kind of a move it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Failure,
    Repair,
    Word,
    Delay,
    /// Ends a delay; not counted.
    Free,
}

impl Move {
    pub const fn kind(self) -> Kind {
        match self {
            Self::KillNode(_)
            | Self::KillEngine(_)
            | Self::KillAgent(_)
            | Self::Freeze(_)
            | Self::Isolate(_)
            | Self::CutCorosync(_)
            | Self::Delude(_)
            | Self::CutLink(..)
            | Self::CutOneWay(..)
            | Self::SpoilState(_) => Kind::Failure,
            Self::Boot(_)
            | Self::StartEngine(_)
            | Self::StartAgent(_)
            | Self::Thaw(_)
            | Self::HealCorosync
            | Self::HealLinks => Kind::Repair,
            Self::Fence(_)
            | Self::Promote(_)
            | Self::PassiveGone { .. }
            | Self::Output(_)
            | Self::Tick => Kind::Word,
            Self::Hold(_) => Kind::Delay,
            Self::Free(_) => Kind::Free,
        }
    }
}

/// How much may strike in one history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Moves of every kind together.
    pub moves: u8,
    pub failures: u8,
    /// Moves that strike between two steps; the others, when everything under way has happened.
    pub midst: u8,
    pub delays: u8,
}

/// How much has struck.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Spent {
    pub moves: u8,
    pub failures: u8,
    pub midst: u8,
    pub delays: u8,
    /// The active replica was struck while there was no pair in sync: its state is lost with it.
    pub unprotected: bool,
    /// Pacemaker said what it never says in earnest: to promote beside another, or that a replica
    /// was gone that was not. The rules must hold all the same.
    pub nonsense: bool,
}

impl World {
    /// Everything that may strike now.
    pub fn possible(&self, bounds: &Bounds, moves: &mut Vec<Move>) {
        let quiet = self.next_lane().is_none();
        if quiet {
            moves.extend(self.held.iter().copied().map(Move::Free));
        }
        let spent = &self.spent;
        if spent.moves >= bounds.moves || !quiet && spent.midst >= bounds.midst {
            return;
        }
        if spent.failures < bounds.failures {
            self.failures(moves);
        }
        self.repairs(moves);
        self.words(moves);
        if spent.delays < bounds.delays {
            self.delays(moves);
        }
    }

    fn hosts(&self) -> std::ops::Range<usize> {
        0..self.setup.hosts
    }

    fn failures(&self, moves: &mut Vec<Move>) {
        for (node, this) in self.nodes.iter().enumerate() {
            if this.up {
                moves.push(Move::KillNode(node));
            }
            if !this.is_live() {
                continue;
            }
            moves.push(Move::Freeze(node));
            if this.agent.is_some() {
                moves.push(Move::KillAgent(node));
            }
            if let Some(engine) = &this.engine {
                moves.push(Move::KillEngine(node));
                if engine.role == Role::Active && !engine.undecodable {
                    moves.push(Move::SpoilState(node));
                }
            }
            if !self.network.is_split() {
                moves.push(Move::Isolate(node));
                moves.push(Move::CutCorosync(node));
                if !self.setup.pacemaker_is_truthful() {
                    moves.push(Move::Delude(node));
                }
            }
        }
        if self.network.lost.is_empty() {
            for (a, b) in self.pairs() {
                moves.push(Move::CutOneWay(a, b));
                if a < b {
                    moves.push(Move::CutLink(a, b));
                }
            }
        }
    }

    /// Hosts with engines, by twos.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let with_engine = move |&node: &usize| self.nodes[node].engine.is_some();
        self.hosts().filter(with_engine).flat_map(move |a| {
            let others = self.hosts().filter(with_engine);
            others.filter(move |&b| a != b).map(move |b| (a, b))
        })
    }

    fn repairs(&self, moves: &mut Vec<Move>) {
        // Pacemaker starts nothing before its words were heard, as it waits for each.
        let heard = !self.setup.pacemaker_is_truthful() || self.words_were_heard();
        for (node, this) in self.nodes.iter().enumerate() {
            if !this.up && heard {
                moves.push(Move::Boot(node));
            }
            if this.frozen {
                moves.push(Move::Thaw(node));
            }
            if this.is_live() && this.agent.is_none() {
                moves.push(Move::StartAgent(node));
            }
            if self.wants_engine(node) && heard {
                moves.push(Move::StartEngine(node));
            }
        }
        if self.network.is_split() {
            moves.push(Move::HealCorosync);
        }
        if !self.network.lost.is_empty() {
            moves.push(Move::HealLinks);
        }
    }

    /// Pacemaker starts two instances.
    pub fn wants_engine(&self, node: usize) -> bool {
        let others = self
            .engines()
            .filter(|(other, _)| self.partition_of(node).contains(other))
            .count();
        let this = &self.nodes[node];
        node < self.setup.hosts && this.is_live() && this.engine.is_none() && others < 2
    }

    fn words_were_heard(&self) -> bool {
        use kemari_agent::arbitration::Event;
        let is_word = |event: &Event| {
            matches!(
                event,
                Event::PassiveGoneReported { .. } | Event::PromoteRequested { .. }
            )
        };
        let unheard = |node: &super::world::Node| node.asked || node.inbox.iter().any(is_word);
        !self.nodes.iter().any(|node| unheard(node))
    }

    fn words(&self, moves: &mut Vec<Move>) {
        for (node, this) in self.nodes.iter().enumerate() {
            let out = this.up && self.is_out(node);
            if out {
                moves.push(Move::Fence(node));
            }
            if node >= self.setup.hosts || this.agent.is_none() || !this.is_live() {
                continue;
            }
            if !this.asked && self.may_promote(node) {
                moves.push(Move::Promote(node));
            }
            for passive in self.hosts().filter(|&other| other != node) {
                if self.may_report(passive) {
                    let told = node;
                    moves.push(Move::PassiveGone { told, passive });
                }
            }
            if this.role() == Some(Role::Active) {
                moves.push(Move::Output(node));
            }
        }
        moves.push(Move::Tick);
    }

    /// Some other node, quorate, has lost it from its membership.
    fn is_out(&self, node: usize) -> bool {
        (0..self.nodes.len()).any(|other| {
            other != node
                && self.nodes[other].is_live()
                && self.is_quorate(other)
                && !self.partition_of(other).contains(&node)
        })
    }

    /// With two nodes, Pacemaker promotes where no other replica can be running.
    fn may_promote(&self, node: usize) -> bool {
        if !self.setup.pacemaker_is_truthful() {
            return true;
        }
        let other = &self.nodes[1 - node];
        let in_sight = self.partition_of(node).contains(&(1 - node));
        !other.up || in_sight && other.role() != Some(Role::Active)
    }

    fn may_report(&self, passive: usize) -> bool {
        !self.setup.pacemaker_is_truthful() || self.nodes[passive].engine.is_none()
    }

    fn delays(&self, moves: &mut Vec<Move>) {
        let nodes = 0..self.nodes.len();
        let bytes = self.pairs().map(|(a, b)| Lane::Bytes(a, b));
        let lanes = nodes
            .flat_map(|node| [Lane::Said(node), Lane::Agent(node), Lane::Disk(node)])
            .chain(
                self.hosts()
                    .flat_map(|host| [Lane::Orders(host), Lane::Notice(host)]),
            )
            .chain(bytes);
        moves.extend(
            lanes
                .filter(|lane| !self.held.contains(lane))
                .map(Move::Hold),
        );
    }

    /// Makes a move and counts it.
    pub fn strike(&mut self, strike: Move) {
        let kind = strike.kind();
        if kind != Kind::Free {
            self.spent.moves += 1;
            self.spent.midst += u8::from(self.next_lane().is_some());
        }
        match kind {
            Kind::Failure => {
                self.spent.failures += 1;
                self.spent.unprotected |= self.hits_the_only_state(strike);
            }
            Kind::Delay => self.spent.delays += 1,
            Kind::Word => self.spent.nonsense |= self.is_nonsense(strike),
            Kind::Repair | Kind::Free => {}
        }
        self.apply(strike);
        self.seal();
    }

    fn is_nonsense(&self, strike: Move) -> bool {
        match strike {
            Move::Promote(node) => self.nodes.iter().enumerate().any(|(other, this)| {
                other != node && (this.asked || this.role() == Some(Role::Active))
            }),
            Move::PassiveGone { passive, .. } => self.nodes[passive].engine.is_some(),
            _ => false,
        }
    }

    fn hits_the_only_state(&self, strike: Move) -> bool {
        let (Move::KillNode(node)
        | Move::KillEngine(node)
        | Move::Freeze(node)
        | Move::Isolate(node)
        | Move::CutCorosync(node)
        | Move::Delude(node)) = strike
        else {
            return false;
        };
        // Of two nodes that do not see each other either may be fenced.
        let splits = matches!(strike, Move::Isolate(_) | Move::CutCorosync(_));
        let either = self.setup.nodes == 2 && splits;
        let is_active = either || self.nodes[node].role() == Some(Role::Active);
        let none = !self
            .engines()
            .any(|(_, engine)| engine.role == Role::Active);
        (is_active || none) && !self.is_protected()
    }

    fn apply(&mut self, strike: Move) {
        match strike {
            Move::KillNode(node) | Move::Fence(node) => self.kill_node(node),
            Move::KillEngine(node) => self.kill_engine(node),
            Move::KillAgent(node) => self.kill_agent(node),
            Move::Freeze(node) => {
                self.nodes[node].change().frozen = true;
                self.tell_membership();
            }
            Move::Thaw(node) => {
                self.nodes[node].change().frozen = false;
                self.tell_membership();
                self.rearm();
            }
            Move::Isolate(node) => {
                self.network.isolate(node);
                for other in 0..self.nodes.len() {
                    self.network.lost.extend([(node, other), (other, node)]);
                }
                self.tell_membership();
            }
            Move::CutCorosync(node) => {
                self.network.isolate(node);
                self.tell_membership();
            }
            Move::Delude(node) => {
                self.network.isolate(node);
                self.network.deluded = Some(node);
                self.tell_membership();
            }
            Move::CutLink(a, b) => self.network.lost.extend([(a, b), (b, a)]),
            Move::CutOneWay(from, to) => drop(self.network.lost.insert((from, to))),
            Move::SpoilState(node) => {
                if let Some(engine) = &mut self.nodes[node].change().engine {
                    engine.undecodable = true;
                }
            }
            Move::Boot(node) => {
                self.boot(node);
                if self.wants_engine(node) {
                    self.start_engine(node);
                }
            }
            Move::StartEngine(node) => self.start_engine(node),
            Move::StartAgent(node) => self.start_agent(node),
            Move::HealCorosync => {
                self.network.heal_corosync();
                self.tell_membership();
            }
            Move::HealLinks => {
                self.network.lost.clear();
                self.rearm();
            }
            Move::Promote(node) => self.promote(node),
            Move::PassiveGone { told, passive } => self.passive_gone(told, passive),
            Move::Output(node) => self.output(node),
            Move::Tick => {
                self.tick();
                self.rearm();
            }
            Move::Hold(lane) => drop(self.held.insert(lane)),
            Move::Free(lane) => drop(self.held.remove(&lane)),
        }
    }
}

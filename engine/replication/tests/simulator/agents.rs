// SPDX-License-Identifier: Apache-2.0
//! Arbitration as the design's table has it, as an oracle: three agents, one of them a witness's.
//!
//! An agent records one claim a generation, durably; a majority of the three grants it. What an
//! agent believes of the rest (its view of the membership, the other agent's last word) is late and
//! may be wrong, and an order reaches its engine late. The shipped arbiter is tested against a model
//! of engines in `agent/tests/arbitration`; here the engines are the shipped ones.

use kemari_replication::Generation;
use kemari_replication::licence::Licence;

use super::engine::{Engine, LinkState, Request, Role};
use super::env::{Env, Event, HostId};
use super::mutant::Mutant;
use super::schedule::{MS, Nanos};
use super::world::World;

/// What an engine is asked by its agent.
pub type Order = Request;

/// What an agent believes of the membership.
#[derive(Debug, Clone, Copy, Default)]
pub struct View {
    pub peer_in: bool,
    pub quorate: bool,
}

/// What an agent last said of its engine; `None`: the process has ended.
#[derive(Debug, Clone, Copy)]
pub struct Word(pub Option<(Role, Generation)>);

/// One host's agent.
#[derive(Debug, Default)]
pub struct Agent {
    pub view: View,
    pub peer: Option<Word>,
    /// An order is on its way to the engine.
    pub ordered: bool,
    /// What was sent to it arrives in order.
    last_arrival: Nanos,
}

impl Agent {
    /// When something sent to it now arrives.
    pub fn arrival(&mut self, env: &mut Env, most: Nanos) -> Nanos {
        let at = env.now() + env.delay(MS, most);
        self.last_arrival = at.max(self.last_arrival);
        self.last_arrival
    }

    /// The one that starts when its host has died and boots again. What was on its way to the one before
    /// comes before what is sent to it.
    pub fn reborn(&self) -> Self {
        Self {
            last_arrival: self.last_arrival,
            ..Self::default()
        }
    }

    fn peer_runs(&self) -> bool {
        matches!(self.peer, Some(Word(Some((Role::Active, _)))))
    }

    /// The peer's own agent said that its engine has ended, or is one that holds nothing.
    fn peer_is_out(&self) -> bool {
        match self.peer {
            Some(Word(Some((role, _)))) => matches!(role, Role::Waiting | Role::Outdated),
            Some(Word(None)) => true,
            None => false,
        }
    }
}

/// The newest vote on each agent's disk.
#[derive(Debug, Default)]
pub struct Votes([(Generation, HostId); 3]);

const WITNESS: usize = 2;

impl Votes {
    fn vote(&mut self, agent: usize, generation: Generation, holder: HostId) -> bool {
        let newest = &mut self.0[agent];
        if newest.0 < generation {
            *newest = (generation, holder);
        }
        *newest == (generation, holder)
    }

    fn majority_of(&self, holder: HostId, generation: Generation) -> bool {
        let votes = self.0.iter().filter(|vote| **vote == (generation, holder));
        votes.count() >= 2
    }

    fn newest(&self) -> Generation {
        self.0.iter().map(|vote| vote.0).max().unwrap_or_default()
    }
}

impl World {
    /// An agent looks at what it knows, and acts.
    pub fn agent(&mut self, host: HostId) {
        let next = self.env.between(MS, 5 * MS);
        self.env.queue.put(next, Event::Agent(host));
        self.announce(host);
        if self.hosts[host].order_is_open() {
            return;
        }
        let Some(engine) = &self.hosts[host].engine else {
            return;
        };
        let (role, generation) = (engine.role, engine.generation);
        let agent = &self.hosts[host].agent;
        // Where only an outdated state is left, agents wait for a person; here they are that person.
        if let Some(Word(Some((_, newer)))) = agent.peer
            && newer > generation
            && matches!(role, Role::Active | Role::Passive)
        {
            return self.order(host, Request::Outdate(newer));
        }
        match role {
            Role::Passive => self.perhaps_take_over(host),
            Role::Active => self.look_after_active(host),
            Role::Outdated => self.stop_engine(host, "outdated, restarted"),
            Role::Waiting => self.perhaps_cold_start(host),
        }
    }

    fn announce(&mut self, host: HostId) {
        let other = 1 - host;
        if !self.reaches(host) || !self.reaches(other) {
            return;
        }
        let engine = self.hosts[host].engine.as_ref();
        let word = Word(engine.map(|engine| (engine.role, engine.generation)));
        let at = self.hosts[other].agent.arrival(&mut self.env, 30 * MS);
        self.env.queue.put_at(at, Event::Word(other, word));
    }

    fn engine(&self, host: HostId) -> &Engine {
        self.hosts[host].engine.as_ref().expect("looked at before")
    }

    fn perhaps_take_over(&mut self, host: HostId) {
        let hasty = self.env.fault(self.env.profile.hasty * 2);
        let engine = self.engine(host);
        let agent = &self.hosts[host].agent;
        let lost = !agent.view.peer_in || agent.peer_is_out();
        if !engine.in_sync || !agent.view.quorate || !(lost || hasty) {
            return;
        }
        let generation = engine.generation.next();
        let peer_is_out = agent.peer_is_out();
        if self.claim(host, generation) {
            self.order(host, Request::TakeOver(generation));
        } else if peer_is_out && self.votes.majority_of(1 - host, generation) {
            // The other one won this generation and lost its state: a double failure, in which the
            // VM waits for a person. This is that person.
            self.order(host, Request::Outdate(generation));
        }
    }

    fn look_after_active(&mut self, host: HostId) {
        let hasty = self.env.fault(self.env.profile.hasty);
        let moves = self.env.fault(self.env.profile.handover);
        let engine = self.engine(host);
        let agent = &self.hosts[host].agent;
        let held_back = !matches!(engine.licence(), Licence::Solo { .. });
        let cut = matches!(engine.licence(), Licence::Cut { .. });
        let lost = !agent.view.peer_in || agent.peer_is_out() && cut;
        if engine.is_ending() {
            return;
        }
        if held_back && agent.view.quorate && (lost || hasty && cut) {
            let generation = engine.generation.next();
            if self.claim(host, generation) {
                self.order(host, Request::GoSolo(generation));
            }
        } else if moves && engine.in_sync {
            self.order(host, Request::Demote);
        } else if agent.view.peer_in
            && !agent.peer_runs()
            && (matches!(engine.link(), LinkState::None) || engine.retries())
        {
            self.order(host, Request::Protect);
        }
    }

    /// No state exists anywhere, both agents consent, and nothing is on its way that could change
    /// that. What is known here without asking, agents find out by their records.
    fn perhaps_cold_start(&mut self, host: HostId) {
        let nothing = |host: HostId| {
            let this = &self.hosts[host];
            let role = this.engine.as_ref().map(|engine| engine.role);
            self.reaches(host)
                && !this.order_is_open()
                && role.is_none_or(|role| role == Role::Waiting)
        };
        if !nothing(0) || !nothing(1) || !self.hosts[host].agent.view.quorate {
            return;
        }
        let remembered = self.env.disks.iter().map(|disk| disk.generation).max();
        let newest = self.votes.newest().max(remembered.unwrap_or_default());
        if self.claim(host, newest.next()) {
            self.boots += 1;
            let boot = self.boots;
            self.order(host, Request::ColdStart(newest.next(), boot));
        }
    }

    /// Asks every agent that can be reached to record this claim.
    fn claim(&mut self, host: HostId, generation: Generation) -> bool {
        let other = 1 - host;
        let reaches = self.reaches(host);
        let mut votes = 0;
        let asked = [
            (host, true),
            (other, reaches && self.reaches(other)),
            (WITNESS, reaches && self.witness),
        ];
        for (agent, heard) in asked {
            votes += usize::from(heard && self.votes.vote(agent, generation, host));
        }
        let granted = votes >= 2;
        self.env.tell(host, || {
            format!("claims generation {generation}: {votes} of 3 agents")
        });
        if granted {
            self.env.newest = self.env.newest.max(generation);
        }
        granted || self.env.is(Mutant::NoMajority)
    }

    fn order(&mut self, host: HostId, order: Order) {
        let life = self.engine(host).life;
        self.hosts[host].agent.ordered = true;
        let delay = self.env.delay(MS, 15 * MS);
        self.env.queue.put(delay, Event::Order(host, life, order));
    }
}

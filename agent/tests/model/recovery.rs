// SPDX-License-Identifier: Apache-2.0
//! What follows when nothing strikes any more: does the guest's output flow again?
//!
//! Time passes, nothing is delayed, systemd restarts agents, and Pacemaker does its work: it fences
//! what is out of the membership, says so, restarts engines that ended or are outdated, promotes.

use kemari_agent::arbitration::{Event, RequestId};
use kemari_api::Role;

use super::engine::Engine;
use super::world::World;

/// What besides becomes well again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: lost nodes stay away. Of a split only this node's side goes on.
    Nothing { survivor: usize },
    /// Nodes come back and networks are whole.
    Everything,
}

/// Rounds of a second each; every patience of the arbiter is shorter.
const ROUNDS: usize = 30;
/// After so many rounds without an answer Pacemaker gives a `promote` up.
const TIMEOUT: usize = 6;

/// Whom Pacemaker told to promote.
struct Asked {
    node: usize,
    rounds: usize,
}

impl World {
    /// Whether outputs leave in the end.
    pub fn recovers(&self, repair: Repair) -> bool {
        let mut world = self.clone();
        world.held.clear();
        world.network.lost.clear();
        world.network.deluded = None;
        match repair {
            Repair::Nothing { survivor } => world.fence_all_but(survivor),
            Repair::Everything => world.restore_all(),
        }
        world.seal();
        let mut asked = None;
        (0..ROUNDS).any(|_| {
            world.settle();
            if world.flows() {
                return true;
            }
            world.manage(&mut asked);
            world.tick();
            world.rearm();
            false
        })
    }

    /// The nodes that can be what is left of a cluster that was split.
    pub fn survivors(&self) -> Vec<usize> {
        let quorate = |&node: &usize| self.nodes[node].is_live() && self.is_quorate(node);
        let mut survivors: Vec<usize> = (0..self.nodes.len()).filter(quorate).collect();
        survivors.dedup_by_key(|node| self.partition_of(*node));
        survivors
    }

    fn fence_all_but(&mut self, survivor: usize) {
        let members = self.partition_of(survivor);
        for node in 0..self.nodes.len() {
            if members.contains(&node) {
                self.start_agent(node);
            } else {
                self.kill_node(node);
            }
        }
        self.network.heal_corosync();
        self.tell_membership();
        self.settle();
        for node in (0..self.setup.hosts).filter(|node| !members.contains(node)) {
            self.report_gone(node);
        }
    }

    fn restore_all(&mut self) {
        self.network.heal_corosync();
        for node in 0..self.nodes.len() {
            self.nodes[node].change().frozen = false;
            self.boot(node);
            self.start_agent(node);
        }
        self.tell_membership();
        self.settle();
        for node in 0..self.setup.hosts {
            if self.nodes[node].engine.is_none() {
                self.report_gone(node);
            }
        }
    }

    /// Pacemaker's notification, on every node.
    fn report_gone(&mut self, gone: usize) {
        for told in 0..self.setup.hosts {
            if told != gone && self.nodes[told].up {
                self.passive_gone(told, gone);
            }
        }
        self.settle();
    }

    /// One look of Pacemaker at the cluster. `asked`: whom it told to promote last.
    fn manage(&mut self, asked: &mut Option<Asked>) {
        for node in 0..self.setup.hosts {
            let role = self.nodes[node].role();
            // A failed `promote` is followed by a restart, as for every failed action.
            let was_asked = asked.as_ref().is_some_and(|asked| asked.node == node);
            let refused = was_asked && !self.nodes[node].asked;
            if role == Some(Role::Outdated) || refused && role != Some(Role::Active) {
                *asked = None;
                self.kill_engine(node);
                self.settle();
                self.report_gone(node);
            }
            if self.wants_engine(node) {
                self.start_engine(node);
                self.settle();
            }
        }
        let runs = self
            .engines()
            .any(|(_, engine)| engine.role == Role::Active);
        if runs {
            return;
        }
        if let Some(asked) = asked.as_mut().filter(|asked| self.nodes[asked.node].asked) {
            asked.rounds += 1;
            if asked.rounds == TIMEOUT {
                let cancelled = Event::Cancelled(RequestId(0));
                self.push(asked.node, cancelled);
            }
            return;
        }
        // The promotion score: who is in sync comes first, then who ran last.
        let score = |engine: &Engine| (engine.in_sync, engine.generation);
        let best = self.engines().max_by_key(|(_, engine)| score(engine));
        if let Some((node, _)) = best {
            self.promote(node);
            *asked = Some(Asked { node, rounds: 0 });
        }
    }

    /// The guest goes on by an output, unless one waits already: does it leave?
    fn flows(&mut self) -> bool {
        let active = self
            .engines()
            .find(|(node, engine)| engine.role == Role::Active && self.nodes[*node].is_live());
        let Some((node, engine)) = active else {
            return false;
        };
        let made = engine.guest.made.len();
        let waits = made > self.outside.seen.made.len();
        if !waits {
            self.output(node);
            self.settle();
        }
        let expected = made + usize::from(!waits);
        self.outside.violation.is_none() && self.outside.seen.made.len() == expected
    }
}

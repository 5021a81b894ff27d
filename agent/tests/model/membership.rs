// SPDX-License-Identifier: Apache-2.0
//! What Corosync tells the agents: who is a member, who is quorate, whose agents are in the group.

use kemari_agent::arbitration::Event;

use super::world::{World, name};

impl World {
    /// Frozen nodes are in nobody's membership.
    pub fn partition_of(&self, node: usize) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|&other| {
                other == node
                    || self.nodes[other].is_live()
                        && self.nodes[node].is_live()
                        && self.network.same_partition(node, other)
            })
            .collect()
    }

    /// With two nodes each side of a split is quorate, if it has met the other since it booted
    /// (Corosync's `two_node` and `wait_for_all`).
    pub fn is_quorate(&self, node: usize) -> bool {
        let configured = self.nodes.len();
        let members = self.partition_of(node).len();
        members > configured / 2 || configured == 2 && self.nodes[node].has_met
    }

    pub fn tell_membership(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].has_met && self.partition_of(node).len() == self.nodes.len() {
                self.node(node).has_met = true;
            }
        }
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_live() {
                continue;
            }
            let members = self.partition_of(node);
            let quorate = self.is_quorate(node) || self.network.deluded == Some(node);
            let event = Event::Quorum {
                quorate,
                members: members.iter().copied().map(name).collect(),
            };
            self.push(node, event);
        }
        self.tell_group();
    }

    pub fn tell_group(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_live() {
                continue;
            }
            let agents = self
                .partition_of(node)
                .into_iter()
                .filter(|&other| self.nodes[other].agent.is_some())
                .map(name)
                .collect();
            self.push(node, Event::Group(agents));
        }
    }
}

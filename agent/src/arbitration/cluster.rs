// SPDX-License-Identifier: Apache-2.0
//! What the agent knows of the cluster as a whole, and how it counts.
//!
//! A majority is counted over the configured nodes, never over those present.

use std::collections::BTreeSet;

use kemari_api::NodeName;

/// Nodes, members and agents.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Cluster {
    /// This node.
    pub node: NodeName,
    /// The nodes of `corosync.conf`; empty until known.
    pub configured: BTreeSet<NodeName>,
    pub quorate: bool,
    pub members: BTreeSet<NodeName>,
    pub agents: BTreeSet<NodeName>,
    /// Agents whose announcement was heard since this one started.
    pub heard: BTreeSet<NodeName>,
    /// This agent's records are complete, so it may vote.
    pub admitted: bool,
}

impl Cluster {
    pub fn new(node: NodeName, admitted: bool) -> Self {
        Self {
            node,
            configured: BTreeSet::new(),
            quorate: false,
            members: BTreeSet::new(),
            agents: BTreeSet::new(),
            heard: BTreeSet::new(),
            admitted,
        }
    }

    /// How many agents must record a claim.
    pub fn majority(&self) -> usize {
        self.configured.len() / 2 + 1
    }

    /// With fewer than three nodes no majority outlives a node: fencing, and so Pacemaker's word,
    /// takes its place.
    pub fn too_few_for_majority(&self) -> bool {
        self.configured.len() < 3
    }

    /// The node is a member and its agent is in the group, so what it announced is current.
    pub fn speaks(&self, node: &NodeName) -> bool {
        self.members.contains(node) && self.agents.contains(node)
    }

    /// Agents of configured nodes that could vote now.
    pub fn voters(&self) -> usize {
        self.configured
            .iter()
            .filter(|node| self.speaks(node))
            .count()
    }

    pub fn everyone_was_heard(&self) -> bool {
        !self.configured.is_empty()
            && self
                .configured
                .iter()
                .all(|node| *node == self.node || self.heard.contains(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_more_than_half_of_the_configured_nodes() {
        let mut cluster = Cluster::new("n1".parse().unwrap(), true);
        for (nodes, majority) in [(1_usize, 1), (2, 2), (3, 2), (4, 3), (5, 3)] {
            cluster.configured = (1..=nodes)
                .map(|n| format!("n{n}").parse().unwrap())
                .collect();
            assert_eq!(cluster.majority(), majority, "of {nodes}");
        }
    }

    #[test]
    fn without_a_node_list_nobody_counts_as_heard() {
        assert!(!Cluster::new("n1".parse().unwrap(), false).everyone_was_heard());
    }
}

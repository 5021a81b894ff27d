// SPDX-License-Identifier: Apache-2.0
//! What follows from another node's newer generation: an active replica here is outdated, and a passive
//! one whose active replica has another partner by now holds a state that nobody will need.
//!
//! Safety does not rest on this (such an active replica cannot release anything, nobody acknowledges it, and such a
//! passive one would be refused); it ends what would otherwise wait for ever, or be taken for a replica that
//! could go on.

use kemari_api::{Generation, NodeName, Role};

use super::Action;
use super::cluster::Cluster;
use super::vm::Vm;

impl Vm {
    pub(super) fn settle_learning(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        let Some((generation, holder)) = self.superseded(cluster) else {
            return;
        };
        self.claim = None;
        self.word = None;
        if self.outdating.is_none_or(|asked| asked < generation) {
            self.outdating = Some(generation);
            out.push(Action::Outdate {
                vm: self.name.clone(),
                generation,
                holder,
            });
        }
    }

    /// By whom the local replica is superseded.
    fn superseded(&self, cluster: &Cluster) -> Option<(Generation, NodeName)> {
        let local = self.local.as_ref()?;
        match local.role {
            Role::Active => self.newer_elsewhere(cluster, local.generation),
            Role::Passive => self.other_pair(cluster, local.generation),
            Role::Waiting | Role::Outdated => None,
        }
    }

    /// A pair in sync of two other nodes, whose generation is newer. A mere claim or vote is not enough
    /// here: if nothing came of it, the passive replica's state may be the only one left.
    fn other_pair(&self, cluster: &Cluster, than: Generation) -> Option<(Generation, NodeName)> {
        self.others
            .iter()
            .filter(|(node, status)| {
                let paired = status.in_sync && !status.peer.is_empty();
                cluster.speaks(node)
                    && status.role == Role::Active
                    && status.generation > than
                    && paired
                    && status.peer != cluster.node.as_str()
            })
            .map(|(node, status)| (status.generation, node.clone()))
            .max()
    }
}

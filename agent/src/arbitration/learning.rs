// SPDX-License-Identifier: Apache-2.0
//! What follows from another node's newer generation: an active replica here is outdated.
//!
//! Safety does not rest on this (such a replica cannot release anything, nobody acknowledges it);
//! it ends what would otherwise wait for ever.

use kemari_api::Role;

use super::Action;
use super::cluster::Cluster;
use super::vm::Vm;

impl Vm {
    pub(super) fn settle_learning(&mut self, cluster: &Cluster, out: &mut Vec<Action>) {
        let Some(local) = self
            .local
            .as_ref()
            .filter(|local| local.role == Role::Active)
        else {
            return;
        };
        let Some((generation, holder)) = self.newer_elsewhere(cluster, local.generation) else {
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
}

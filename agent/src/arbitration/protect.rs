// SPDX-License-Identifier: Apache-2.0
//! Finding a passive replica for an active one.
//!
//! Under a solo licence any waiting replica will do. While outputs are held, only the node of the
//! present pair: a replica elsewhere could otherwise be paired while the old one, out of sight,
//! still holds a state of the same generation.

use kemari_api::replica::ReplicaStatus;
use kemari_api::{NodeName, Role};

use super::Action;
use super::cluster::Cluster;
use super::vm::Vm;

impl Vm {
    /// Asks the engine once for each address, and again every tick (the engine ignores a repeat).
    pub(super) fn settle_protect(&mut self, cluster: &Cluster, tick: bool, out: &mut Vec<Action>) {
        let idle = self.claim.is_none() && self.order.is_none() && self.outdating.is_none();
        if !cluster.quorate || !idle {
            return;
        }
        let Some(address) = self.address_to_protect(cluster) else {
            return;
        };
        if tick || self.protecting.as_ref() != Some(&address) {
            self.protecting = Some(address.clone());
            out.push(Action::Protect {
                vm: self.name.clone(),
                address,
            });
        }
    }

    fn address_to_protect(&self, cluster: &Cluster) -> Option<String> {
        let local = self.local.as_ref()?;
        if local.role != Role::Active
            || local.in_sync
            || self.newer_rumoured(cluster, local.generation)
        {
            return None;
        }
        let fits = |node: &NodeName, status: &ReplicaStatus| {
            let has_no_state = match status.role {
                Role::Waiting => true,
                Role::Passive => !status.in_sync || status.generation < local.generation,
                Role::Active | Role::Outdated => false,
            };
            let may_pair = self.local_is_solo() || local.peer == node.as_str();
            cluster.speaks(node) && has_no_state && may_pair && !status.listen.is_empty()
        };
        let same_peer_first = |node: &NodeName| local.peer != node.as_str();
        self.others
            .iter()
            .filter(|(node, status)| fits(node, status))
            .min_by_key(|(node, _)| (same_peer_first(node), (*node).clone()))
            .map(|(_, status)| status.listen.clone())
    }
}

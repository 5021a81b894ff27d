// SPDX-License-Identifier: Apache-2.0
//! Pacemaker hears at once of a replica that must not be promoted.
//!
//! The resource agent sets promotion scores, but only when Pacemaker calls it, each ten seconds or so. A
//! node that was silent and is back brings the score of its better days along, and Pacemaker goes
//! by it when it finds two promoted instances: it may demote the one that has the guest now. Here the
//! replica finds itself outdated before Pacemaker's nodes have found each other, so its score is lowered as
//! soon as the replica has said it. What raises a score is left to the resource agent.
//!
//! A score is the node attribute `master-RESOURCE` (Pacemaker's `pcmk_promotion_score_name`, which
//! `crm_attribute --promotion` goes by too); attrd_updater(8) sets it without asking the whole cluster first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use kemari_api::agent::ClusterView;
use kemari_api::{Role, VmName, place};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::pacemaker;

/// An action of the resource agent that began before may end, with the old score, after the new one was
/// told; so it is told again and again. Pacemaker does nothing about a value that it knows.
const AGAIN: Duration = Duration::from_secs(2);

/// The VMs whose replicas on this node must not be promoted, and in which role they are.
pub type Unpromotable = BTreeMap<VmName, Role>;

/// Computes it: the replicas that `kemari-ocf` gives the score `-INFINITY`.
#[must_use]
pub fn unpromotable(view: &ClusterView) -> Unpromotable {
    view.replicas
        .iter()
        .map(|replica| &replica.status)
        .filter(|status| status.node == view.node)
        .filter(|status| match status.role {
            Role::Outdated => true,
            Role::Passive => !status.in_sync,
            Role::Active | Role::Waiting => false,
        })
        .map(|status| (status.vm.clone(), status.role))
        .collect()
}

/// Keeps their scores down. Ends with the daemon.
pub async fn keep_down(mut unpromotable: watch::Receiver<Unpromotable>) {
    let mut told = BTreeSet::new();
    let mut again = interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = unpromotable.borrow_and_update().clone();
        told.retain(|vm| now.contains_key(vm));
        for (vm, role) in &now {
            // Telling takes time, and a score may have been raised meanwhile.
            let still = unpromotable.borrow().contains_key(vm);
            let Some(resource) = resource_of(vm).filter(|_| still) else {
                continue;
            };
            let heard = pacemaker::tell(&format!("master-{resource}"), "-INFINITY").await;
            if heard && told.insert(vm.clone()) {
                info!(%vm, %role, resource, "Pacemaker is told not to promote this replica");
            }
        }
        tokio::select! {
            changed = unpromotable.changed() => if changed.is_err() { return },
            _ = again.tick(), if !now.is_empty() => {}
        }
    }
}

/// The resource that Pacemaker has for the VM here, as the resource agent noted it.
fn resource_of(vm: &VmName) -> Option<String> {
    let note = place::resource(vm);
    match fs::read_to_string(&note) {
        Ok(name) => Some(name.trim().to_owned()).filter(|name| !name.is_empty()),
        Err(error) => {
            debug!(%vm, %error, "Pacemaker manages no replica here, by {}", note.display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::tests::{replica, view};
    use kemari_api::Licence;

    #[test]
    fn those_are_kept_down_that_cannot_go_on_and_no_others() {
        for (role, in_sync, kept_down) in [
            (Role::Active, true, false),
            (Role::Active, false, false),
            (Role::Waiting, false, false),
            (Role::Passive, true, false),
            (Role::Passive, false, true),
            (Role::Outdated, true, true),
            (Role::Outdated, false, true),
        ] {
            for node in ["n1", "n3"] {
                let mut replica = replica(node, role, Licence::None, true);
                replica.status.in_sync = in_sync;
                let view = view(vec![replica]);
                assert_eq!(
                    unpromotable(&view).len(),
                    usize::from(kept_down && node == view.node.as_str()),
                    "{role} {in_sync} {node}"
                );
            }
        }
    }
}

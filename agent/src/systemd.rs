// SPDX-License-Identifier: Apache-2.0
//! What the agent tells systemd's services, and hears from them.
//!
//! All of it is a courtesy: where such a service is missing, VMs run, are protected and move as ever.

pub mod machines;
pub mod shutdown;

use std::collections::{BTreeMap, BTreeSet};

use kemari_api::agent::ClusterView;
use kemari_api::{Role, VmName};

use crate::handover::heir;

/// The VMs whose guests run on this node, and the process ids of their engines.
pub type Running = BTreeMap<VmName, u32>;
/// Those of them that another node would go on with.
pub type Movable = BTreeSet<VmName>;

/// Computes it.
#[must_use]
pub fn running_here(view: &ClusterView) -> Running {
    view.replicas
        .iter()
        .map(|replica| &replica.status)
        .filter(|status| status.node == view.node && status.role == Role::Active)
        .map(|status| (status.vm.clone(), status.pid))
        .collect()
}

/// Computes it.
#[must_use]
pub fn movable(view: &ClusterView, running: &Running) -> Movable {
    running
        .keys()
        .filter(|vm| heir(view, vm).is_ok())
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::tests::{replica, view};
    use kemari_api::Licence;

    #[test]
    fn what_runs_elsewhere_is_not_here_and_what_is_alone_cannot_move() {
        let vm: VmName = "web".parse().unwrap();
        let here = view(vec![replica("n1", Role::Active, Licence::Solo, true)]);
        let running = running_here(&here);
        assert_eq!(running, Running::from([(vm, 7)]));
        assert!(movable(&here, &running).is_empty());
        let there = view(vec![
            replica("n1", Role::Passive, Licence::None, true),
            replica("n3", Role::Active, Licence::Paired, true),
        ]);
        assert!(running_here(&there).is_empty());
    }
}

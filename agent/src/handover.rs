// SPDX-License-Identifier: Apache-2.0
//! Whether an active replica of this node can be ended so that another goes on with its guest.

use kemari_api::agent::ClusterView;
use kemari_api::{NodeName, Role, VmName};

use crate::operator::successor;

/// The node that goes on with `vm` from the last commit once the engine here has ended.
///
/// # Errors
/// A sentence that says why nobody would.
pub fn heir(view: &ClusterView, vm: &VmName) -> Result<NodeName, String> {
    let here = view
        .replicas
        .iter()
        .map(|replica| &replica.status)
        .find(|status| status.vm == *vm && status.node == view.node)
        .filter(|status| status.role == Role::Active)
        .ok_or_else(|| format!("No active replica of VM {vm} is on node {}", view.node))?;
    if !view.quorate {
        return Err("This node has no quorum: nobody would take over".to_owned());
    }
    successor(view, here).cloned().ok_or_else(|| {
        format!(
            "VM {vm} is not in sync with a passive replica on a node with an agent: ending it would \
             end the guest ({})",
            here.detail
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::tests::{replica, view};
    use kemari_api::Licence;

    #[test]
    fn only_a_pair_in_sync_with_a_quorum_has_an_heir() {
        let vm: VmName = "web".parse().unwrap();
        let mut active = replica("n1", Role::Active, Licence::Paired, true);
        active.status.peer = "n3".to_owned();
        let passive = replica("n3", Role::Passive, Licence::None, true);
        let mut pair = view(vec![active, passive]);
        pair.agents.push("n3".parse().unwrap());
        assert_eq!(heir(&pair, &vm), Ok("n3".parse().unwrap()));

        let refused = |change: fn(&mut ClusterView), words: &str| {
            let mut view = pair.clone();
            change(&mut view);
            let reason = heir(&view, &vm).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        };
        refused(|view| view.quorate = false, "no quorum");
        refused(|view| view.agents.truncate(1), "not in sync");
        refused(
            |view| view.replicas[0].status.licence = Licence::Solo,
            "not in sync",
        );
        refused(|view| view.node = "n3".parse().unwrap(), "on node n3");
        assert!(heir(&pair, &"db".parse().unwrap()).is_err());
    }
}

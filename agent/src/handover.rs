// SPDX-License-Identifier: Apache-2.0
//! Which other replica would go on with the guest of this node's active one, and which would give it to this node's.

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

/// The node whose active replica would hand the guest of `vm` over to the one on this node.
///
/// # Errors
/// A sentence that says why none would.
pub fn giver(view: &ClusterView, vm: &VmName) -> Result<NodeName, String> {
    let heard = || {
        let heard = view.replicas.iter().filter(|replica| replica.present);
        heard
            .map(|replica| &replica.status)
            .filter(|status| status.vm == *vm)
    };
    let Some(active) = heard().find(|status| status.role == Role::Active) else {
        return Err(format!("No active replica of VM {vm} is heard"));
    };
    let here = heard().find(|status| status.node == view.node);
    let holds_state = here.is_some_and(|here| here.role == Role::Passive && here.in_sync);
    if active.node == view.node || !holds_state || active.peer != view.node.as_str() {
        return Err(format!(
            "VM {vm} runs on node {} and is not in sync with a passive replica on node {}",
            active.node, view.node
        ));
    }
    Ok(active.node.clone())
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

        assert!(giver(&pair, &vm).is_err(), "it is here");
        pair.node = "n3".parse().unwrap();
        pair.replicas[1].status.in_sync = true;
        assert_eq!(giver(&pair, &vm), Ok("n1".parse().unwrap()));
        for change in [
            |view: &mut ClusterView| view.replicas[1].status.in_sync = false,
            |view: &mut ClusterView| view.replicas[0].status.peer = "n2".to_owned(),
            |view: &mut ClusterView| view.replicas[0].present = false,
            |view: &mut ClusterView| view.replicas[1].status.role = Role::Waiting,
        ] {
            let mut view = pair.clone();
            change(&mut view);
            assert!(giver(&view, &vm).is_err());
        }
        assert!(heir(&pair, &"db".parse().unwrap()).is_err());
    }
}

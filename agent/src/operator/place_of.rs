// SPDX-License-Identifier: Apache-2.0
//! Where the replicas of a VM are, for commands that belong on one of their nodes.

use kemari_api::agent::{ClusterView, ReplicaView};
use kemari_api::replica::{self, ConnectError, ReplicaProxy, ReplicaStatus};
use kemari_api::{NodeName, Role, VmName};

use super::{ask_agent, status_of};
use crate::command::{Ended, Exit};

/// The engine of a VM on this node and what it says; otherwise an error that names the nodes that
/// have one.
pub(super) async fn here(vm: &VmName) -> anyhow::Result<(ReplicaProxy<'static>, ReplicaStatus)> {
    match replica::connect(vm).await {
        Ok((proxy, _)) => {
            let status = status_of(vm, &proxy).await?;
            Ok((proxy, status))
        }
        Err(error @ ConnectError::NotRunning { .. }) => {
            let Ok(view) = ask_agent().await else {
                return Err(error.into());
            };
            let nodes: Vec<String> = replicas_of(&view, vm)
                .filter(|replica| replica.present)
                .map(|replica| format!("{} ({})", replica.status.node, replica.status.role))
                .collect();
            let text = if nodes.is_empty() {
                format!("{error}, and none is known elsewhere")
            } else {
                format!("{error}; there is one on {}", nodes.join(", "))
            };
            Err(Ended::new(Exit::NotHere, text).into())
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn replicas_of<'a>(
    view: &'a ClusterView,
    vm: &VmName,
) -> impl Iterator<Item = &'a ReplicaView> {
    let vm = vm.clone();
    view.replicas
        .iter()
        .filter(move |replica| replica.status.vm == vm)
}

/// The active replica on a node that is there.
pub(super) fn active<'a>(view: &'a ClusterView, vm: &VmName) -> Option<&'a ReplicaStatus> {
    replicas_of(view, vm)
        .filter(|replica| replica.present && view.agents.contains(&replica.status.node))
        .map(|replica| &replica.status)
        .find(|status| status.role == Role::Active)
}

/// The passive replica that could go on with what this active one does now.
pub(crate) fn successor<'a>(view: &'a ClusterView, active: &ReplicaStatus) -> Option<&'a NodeName> {
    let fits = |status: &ReplicaStatus| {
        status.role == Role::Passive
            && status.in_sync
            && status.generation == active.generation
            && status.node.as_str() == active.peer
    };
    let in_pair = active.in_sync && active.licence == kemari_api::Licence::Paired;
    replicas_of(view, &active.vm)
        .filter(|replica| replica.present && view.agents.contains(&replica.status.node))
        .find(|replica| in_pair && fits(&replica.status))
        .map(|replica| &replica.status.node)
}

#[cfg(test)]
mod tests {
    use super::super::overview::tests::{replica, view};
    use super::*;
    use kemari_api::Licence;

    #[test]
    fn only_the_peer_in_sync_with_an_agent_succeeds() {
        let mut active = replica("n1", Role::Active, Licence::Paired, true);
        active.status.peer = "n3".to_owned();
        let passive = replica("n3", Role::Passive, Licence::None, true);
        let mut view = view(vec![active.clone(), passive]);
        assert_eq!(successor(&view, &active.status), None, "no agent on n3");
        view.agents.push("n3".parse().unwrap());
        assert_eq!(
            successor(&view, &active.status).map(NodeName::as_str),
            Some("n3")
        );
        active.status.licence = Licence::Cut;
        assert_eq!(successor(&view, &active.status), None, "cut off");
    }
}

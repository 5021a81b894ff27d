// SPDX-License-Identifier: Apache-2.0
//! What `status` shows, as data: VMs, their replicas, and why one is not protected.
//!
//! The names of the fields are those of `--json` and stay (docs/kemarictl.md). Built from what the
//! agent and the engines say; asks nobody.

use std::collections::{BTreeMap, BTreeSet};

use kemari_api::agent::{ClusterView, ReplicaView};
use kemari_api::replica::LinkView;
use kemari_api::{Licence, NodeName, Role, VmName};
use serde::Serialize;

/// The form of the JSON; another number means that a field changed its meaning or went away.
pub(super) const FORMAT: u32 = 1;

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Overview {
    pub format: u32,
    /// What the agent knows of the cluster; `null` without an agent.
    pub cluster: Option<Cluster>,
    pub vms: Vec<Vm>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Cluster {
    pub node: String,
    pub quorate: bool,
    pub members: Vec<String>,
    pub agents: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Vm {
    pub name: String,
    /// A second host could go on with it now.
    pub protected: bool,
    /// Why it is not; `null` if it is.
    pub why_not: Option<String>,
    /// The newest generation on record here, and whose it is; `null` without an agent or a record.
    pub recorded_generation: Option<u64>,
    pub recorded_holder: Option<String>,
    pub replicas: Vec<Replica>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Replica {
    pub node: String,
    /// The node is in the membership; if not, all this is what was heard last.
    pub present: bool,
    pub role: String,
    pub licence: String,
    pub in_sync: bool,
    pub running: bool,
    pub generation: u64,
    pub epoch: u64,
    pub disks: String,
    pub peer: String,
    pub listen: String,
    pub detail: String,
    /// Of replicas on this node only.
    pub figures: Option<Measured>,
    /// It is on this node: what changes all the time is as of now.
    #[serde(skip)]
    pub here: bool,
}

/// What was measured of a replica on this node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Measured {
    pub lag_us: u64,
    pub pause_us: u64,
    pub commit_us: u64,
    pub checkpoints: u64,
    pub checkpoints_per_s: f64,
    pub sent_bytes: u64,
    pub sent_bytes_per_s: f64,
    pub queue_outputs: u64,
    pub queue_bytes: u64,
    pub copying: bool,
    pub link_failures: u64,
    pub last_link_failure: String,
    pub links: Vec<Link>,
}

/// One link to the other replica, the preferred one first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Link {
    pub address: String,
    /// `in use`, `tried`, `idle` or `failed`.
    pub state: String,
    /// Why it failed last; empty if it did not since it carried the pair.
    pub failure: String,
}

impl From<LinkView> for Link {
    fn from(view: LinkView) -> Self {
        Self {
            address: view.address,
            state: view.state.to_string(),
            failure: view.failure,
        }
    }
}

/// Everything about these replicas; only `vm` if one is named.
pub(super) fn overview(
    cluster: Option<&ClusterView>,
    replicas: &[ReplicaView],
    figures: &BTreeMap<VmName, Measured>,
    vm: Option<&VmName>,
) -> Overview {
    let mut names: BTreeSet<&VmName> = replicas.iter().map(|replica| &replica.status.vm).collect();
    names.retain(|name| vm.is_none_or(|vm| vm == *name));
    Overview {
        format: FORMAT,
        cluster: cluster.map(told),
        vms: names
            .into_iter()
            .map(|name| of_vm(cluster, replicas, figures, name))
            .collect(),
    }
}

fn told(view: &ClusterView) -> Cluster {
    let names = |nodes: &[NodeName]| nodes.iter().map(ToString::to_string).collect();
    Cluster {
        node: view.node.to_string(),
        quorate: view.quorate,
        members: names(&view.members),
        agents: names(&view.agents),
    }
}

fn of_vm(
    cluster: Option<&ClusterView>,
    replicas: &[ReplicaView],
    figures: &BTreeMap<VmName, Measured>,
    name: &VmName,
) -> Vm {
    let mut own: Vec<&ReplicaView> = replicas
        .iter()
        .filter(|replica| replica.status.vm == *name)
        .collect();
    own.sort_by(|a, b| a.status.node.cmp(&b.status.node));
    let why_not = why_unprotected(cluster, &own);
    let recorded = cluster.and_then(|view| view.generations.iter().find(|(vm, ..)| vm == name));
    let here = |replica: &ReplicaView| cluster.is_none_or(|view| view.node == replica.status.node);
    Vm {
        name: name.to_string(),
        protected: why_not.is_none(),
        why_not,
        recorded_generation: recorded.map(|(_, generation, _)| generation.get()),
        recorded_holder: recorded.map(|(.., holder)| holder.to_string()),
        replicas: own
            .iter()
            .map(|replica| {
                let here = here(replica);
                let measured = figures.get(name).filter(|_| here);
                of_replica(replica, here, measured.cloned())
            })
            .collect(),
    }
}

fn of_replica(replica: &ReplicaView, here: bool, figures: Option<Measured>) -> Replica {
    let status = &replica.status;
    Replica {
        node: status.node.to_string(),
        present: replica.present,
        role: status.role.to_string(),
        licence: status.licence.to_string(),
        in_sync: status.in_sync,
        running: status.running,
        generation: status.generation.get(),
        epoch: status.epoch.get(),
        disks: status.disks.to_string(),
        peer: status.peer.clone(),
        listen: status.listen.clone(),
        detail: status.detail.clone(),
        figures,
        here,
    }
}

/// Why no second host could go on with a VM; `None` if one could.
pub(crate) fn why_unprotected(
    cluster: Option<&ClusterView>,
    replicas: &[&ReplicaView],
) -> Option<String> {
    let active = replicas
        .iter()
        .find(|replica| replica.present && replica.status.role == Role::Active);
    let Some(active) = active else {
        return Some(why_nobody_runs_it(cluster, replicas));
    };
    let status = &active.status;
    match status.licence {
        Licence::Paired if status.in_sync => return None,
        Licence::Cut => {
            let peer = if status.peer.is_empty() {
                "its passive replica".to_owned()
            } else {
                format!("the passive replica on {}", status.peer)
            };
            return Some(format!(
                "outputs are held: {peer} is out of reach, and nobody may say yet that it is gone \
                 (runbook, \"Outputs are held\")"
            ));
        }
        Licence::Paired | Licence::Solo | Licence::None => {}
    }
    let others: Vec<_> = replicas
        .iter()
        .filter(|replica| replica.status.node != status.node)
        .collect();
    let silent = |node: &NodeName| cluster.is_some_and(|view| !view.agents.contains(node));
    for other in &others {
        let node = &other.status.node;
        if !other.present {
            return Some(format!("node {node} with its other replica is lost"));
        }
        if silent(node) {
            return Some(format!(
                "kemari-agent is not running on node {node}, where its other replica is"
            ));
        }
        if other.status.role == Role::Outdated {
            return Some(format!(
                "its replica on node {node} is outdated: kemarictl resync there"
            ));
        }
    }
    if others.is_empty() {
        return Some(if cluster.is_some() {
            "no other node has a replica of it: start its resource there".to_owned()
        } else {
            format!(
                "{}; without an agent nothing is known of other nodes",
                status.detail
            )
        });
    }
    Some(format!("not in sync yet: {}", status.detail))
}

fn why_nobody_runs_it(cluster: Option<&ClusterView>, replicas: &[&ReplicaView]) -> String {
    if cluster.is_some_and(|view| !view.quorate) {
        return "it does not run: this node has no quorum".to_owned();
    }
    let lost = replicas
        .iter()
        .find(|replica| !replica.present && replica.status.role == Role::Active);
    match lost {
        Some(lost) => format!(
            "node {}, where it ran, is lost, and nobody has taken over yet",
            lost.status.node
        ),
        None if cluster.is_none() => "no active replica is on this node".to_owned(),
        None => "no replica is active: crm_mon -1 shows why nothing is promoted".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kemari_api::replica::{DiskState, FailoverPolicy, ReplicaStatus};
    use kemari_api::{Epoch, Generation};

    pub fn replica(node: &str, role: Role, licence: Licence, present: bool) -> ReplicaView {
        ReplicaView {
            status: ReplicaStatus {
                vm: "web".parse().unwrap(),
                node: node.parse().unwrap(),
                pid: 7,
                role,
                licence,
                in_sync: true,
                running: true,
                generation: Generation::new(3),
                epoch: Epoch::new(9),
                disks: DiskState::None,
                failover: FailoverPolicy::Auto,
                peer: String::new(),
                listen: String::new(),
                detail: "replicating".to_owned(),
            },
            present,
        }
    }

    pub fn view(replicas: Vec<ReplicaView>) -> ClusterView {
        ClusterView {
            node: "n1".parse().unwrap(),
            quorate: true,
            members: vec!["n1".parse().unwrap(), "n3".parse().unwrap()],
            agents: vec!["n1".parse().unwrap()],
            replicas,
            generations: vec![(
                "web".parse().unwrap(),
                Generation::new(3),
                "n1".parse().unwrap(),
            )],
        }
    }

    fn why(replicas: Vec<ReplicaView>) -> Option<String> {
        let view = view(replicas);
        let all: Vec<_> = view.replicas.iter().collect();
        why_unprotected(Some(&view), &all)
    }

    #[test]
    fn a_pair_in_sync_is_protected_and_nothing_else_is() {
        let pair = |licence| {
            vec![
                replica("n1", Role::Active, licence, true),
                replica("n3", Role::Passive, Licence::None, true),
            ]
        };
        assert_eq!(why(pair(Licence::Paired)), None);
        for licence in [Licence::Cut, Licence::Solo, Licence::None] {
            assert!(why(pair(licence)).is_some(), "{licence}");
        }
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        let solo = || replica("n1", Role::Active, Licence::Solo, true);
        let other = |role, present| replica("n2", role, Licence::None, present);
        let has = |replicas, words: &str| {
            let text = why(replicas).unwrap();
            assert!(text.contains(words), "{text}");
        };
        has(vec![solo()], "no other node has a replica");
        has(
            vec![solo(), other(Role::Waiting, false)],
            "node n2 with its other replica is lost",
        );
        has(
            vec![solo(), other(Role::Waiting, true)],
            "kemari-agent is not running on node n2",
        );
        has(
            vec![replica("n2", Role::Active, Licence::Paired, false)],
            "node n2, where it ran, is lost",
        );
        has(vec![other(Role::Waiting, true)], "no replica is active");
    }

    #[test]
    fn the_names_of_the_fields_are_kept() {
        let view = view(vec![replica("n1", Role::Active, Licence::Paired, true)]);
        let json = serde_json::to_value(overview(
            Some(&view),
            &view.replicas,
            &BTreeMap::new(),
            None,
        ))
        .unwrap();
        for pointer in [
            "/format",
            "/cluster/node",
            "/cluster/quorate",
            "/cluster/members/0",
            "/cluster/agents/0",
            "/vms/0/name",
            "/vms/0/protected",
            "/vms/0/why_not",
            "/vms/0/recorded_generation",
            "/vms/0/recorded_holder",
            "/vms/0/replicas/0/node",
            "/vms/0/replicas/0/present",
            "/vms/0/replicas/0/role",
            "/vms/0/replicas/0/licence",
            "/vms/0/replicas/0/in_sync",
            "/vms/0/replicas/0/running",
            "/vms/0/replicas/0/generation",
            "/vms/0/replicas/0/epoch",
            "/vms/0/replicas/0/disks",
            "/vms/0/replicas/0/peer",
            "/vms/0/replicas/0/listen",
            "/vms/0/replicas/0/detail",
            "/vms/0/replicas/0/figures",
        ] {
            assert!(json.pointer(pointer).is_some(), "{pointer} in {json}");
        }
    }
}

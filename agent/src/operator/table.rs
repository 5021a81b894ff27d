// SPDX-License-Identifier: Apache-2.0
//! Tables for people.

use std::fmt::Write;

use kemari_api::VmName;
use kemari_api::agent::{ClusterView, ReplicaView};

const HEAD: [&str; 8] = [
    "VM",
    "NODE",
    "ROLE",
    "LICENCE",
    "SYNC",
    "GENERATION",
    "PEER",
    "DETAIL",
];

/// The cluster in one line and its replicas; `None` if the VM asked for is not known.
pub(super) fn cluster(view: &ClusterView, vm: Option<&VmName>) -> Option<String> {
    let mut known: Vec<ReplicaView> = view
        .replicas
        .iter()
        .filter(|replica| vm.is_none_or(|vm| replica.status.vm == *vm))
        .cloned()
        .collect();
    if known.is_empty() && vm.is_some() {
        return None;
    }
    known.sort_by(|a, b| (&a.status.vm, &a.status.node).cmp(&(&b.status.vm, &b.status.node)));
    let quorum = if view.quorate {
        "has quorum"
    } else {
        "has no quorum: nothing is promoted"
    };
    let silent: Vec<&str> = view
        .members
        .iter()
        .filter(|node| !view.agents.contains(node))
        .map(|node| node.as_str())
        .collect();
    let members: Vec<&str> = view.members.iter().map(|node| node.as_str()).collect();
    let mut text = format!(
        "Node {} {quorum}; members: {}\n",
        view.node,
        members.join(" ")
    );
    if !silent.is_empty() {
        let _ = writeln!(text, "No kemari-agent on: {}", silent.join(" "));
    }
    text.push('\n');
    text.push_str(&replicas(&known));
    Some(text)
}

/// One line a replica.
pub(super) fn replicas(known: &[ReplicaView]) -> String {
    if known.is_empty() {
        return "No replicas.\n".to_owned();
    }
    let rows: Vec<[String; 8]> = known.iter().map(row).collect();
    let widths: Vec<usize> = HEAD
        .iter()
        .enumerate()
        .map(|(column, head)| {
            let cells = rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(String::len);
            cells.chain([head.len()]).max().unwrap_or(0)
        })
        .collect();
    let head = HEAD.map(str::to_owned);
    std::iter::once(&head)
        .chain(&rows)
        .map(|row| {
            let cells: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:width$}  "))
                .collect();
            format!("{}\n", cells.trim_end())
        })
        .collect()
}

fn row(replica: &ReplicaView) -> [String; 8] {
    let status = &replica.status;
    let dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    let absent = if replica.present {
        ""
    } else {
        "node lost, last words: "
    };
    [
        status.vm.to_string(),
        status.node.to_string(),
        status.role.to_string(),
        status.licence.to_string(),
        if status.in_sync { "yes" } else { "no" }.to_owned(),
        status.generation.to_string(),
        dash(&status.peer),
        format!("{absent}{}", status.detail),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_api::replica::{DiskState, ReplicaStatus};
    use kemari_api::{Epoch, Generation, Licence, Role};

    fn view() -> ClusterView {
        let replica = |node: &str, role, licence, present| ReplicaView {
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
                peer: String::new(),
                listen: String::new(),
                detail: "replicating".to_owned(),
            },
            present,
        };
        ClusterView {
            node: "n1".parse().unwrap(),
            quorate: true,
            members: vec!["n1".parse().unwrap(), "n3".parse().unwrap()],
            agents: vec!["n1".parse().unwrap()],
            replicas: vec![
                replica("n2", Role::Passive, Licence::None, false),
                replica("n1", Role::Active, Licence::Paired, true),
            ],
            generations: vec![],
        }
    }

    #[test]
    fn the_table_shows_who_is_lost_and_who_is_silent() {
        let text = cluster(&view(), None).unwrap();
        assert_eq!(
            text,
            "Node n1 has quorum; members: n1 n3\n\
             No kemari-agent on: n3\n\
             \n\
             VM   NODE  ROLE     LICENCE  SYNC  GENERATION  PEER  DETAIL\n\
             web  n1    active   paired   yes   3           -     replicating\n\
             web  n2    passive  none     yes   3           -     node lost, last words: replicating\n"
        );
    }

    #[test]
    fn an_unknown_vm_is_no_empty_table() {
        assert_eq!(cluster(&view(), Some(&"db".parse().unwrap())), None);
    }
}

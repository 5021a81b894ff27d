// SPDX-License-Identifier: Apache-2.0
//! The VMs of this node: descriptions, ports, records.

use std::collections::{BTreeMap, BTreeSet};

use kemari_api::replica::LinkUse;

use super::super::facts::{Described, Facts};
use super::super::{Finding, Level};
use super::{finding, fine};

pub(super) fn descriptions(facts: &Facts) -> Vec<Finding> {
    let name = "description";
    if facts.descriptions.is_empty() {
        return vec![fine(name, "none in /etc/kemari: no VM is described there")];
    }
    facts
        .descriptions
        .iter()
        .map(|described| {
            let path = described.path.display();
            match &described.read {
                Err(why) => finding(
                    name,
                    Level::Fail,
                    why.clone(),
                    format!("kemari-engine check {path}"),
                ),
                Ok(it) if !it.missing.is_empty() => finding(
                    name,
                    Level::Fail,
                    format!("VM {}: not on this node: {}", it.vm, it.missing.join(", ")),
                    "both nodes need every file that the description names",
                ),
                Ok(it) if !it.unresolved.is_empty() => finding(
                    name,
                    Level::Fail,
                    format!("VM {}: no address for {}", it.vm, it.unresolved.join(", ")),
                    "correct replication.addresses, or /etc/hosts",
                ),
                Ok(it) => fine(name, format!("VM {} ({path})", it.vm)),
            }
        })
        .collect()
}

pub(super) fn ports(facts: &Facts) -> Vec<Finding> {
    let name = "port";
    let mut users: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    let good = facts
        .descriptions
        .iter()
        .filter_map(|it| it.read.as_ref().ok());
    for Described { vm, port, .. } in good {
        users.entry(*port).or_default().insert(vm);
    }
    users
        .into_iter()
        .map(|(port, vms)| {
            let shown: Vec<&str> = vms.iter().copied().collect();
            let shown = shown.join(", ");
            let ours = vms.iter().any(|vm| facts.engines.contains(*vm));
            let taken = facts.listening.contains(&port);
            if vms.len() > 1 {
                finding(
                    name,
                    Level::Fail,
                    format!("VMs {shown} share port {port}"),
                    "give each its own replication.port",
                )
            } else if taken && !ours {
                finding(
                    name,
                    Level::Fail,
                    format!("port {port} of VM {shown} is taken by something else"),
                    format!("ss -ltnp 'sport = :{port}'; change replication.port on both nodes"),
                )
            } else if ours && !taken {
                finding(
                    name,
                    Level::Warn,
                    format!("the engine of VM {shown} does not listen at port {port}"),
                    "it was started without --incoming, or with another description: restart it",
                )
            } else if taken {
                fine(name, format!("VM {shown} listens at port {port}"))
            } else {
                fine(name, format!("port {port} of VM {shown} is free"))
            }
        })
        .collect()
}

pub(super) fn licences(facts: &Facts) -> Vec<Finding> {
    let name = "licence record";
    facts
        .licences
        .iter()
        .map(|record| {
            let path = record.path.display();
            match &record.read {
                Ok((generation, kind)) => {
                    fine(name, format!("{path}: generation {generation}, {kind}"))
                }
                Err(why) => finding(
                    name,
                    Level::Fail,
                    format!("{path} cannot be read: {why}"),
                    "look at the file system; only if the other replica runs, remove this file",
                ),
            }
        })
        .collect()
}

pub(super) fn links(facts: &Facts) -> Vec<Finding> {
    let name = "link";
    let has_links = facts.links.iter().filter(|(_, links)| !links.is_empty());
    has_links
        .map(|(vm, links)| {
            let shown = |state: LinkUse| -> Vec<String> {
                let wanted = links.iter().filter(|link| link.state == state);
                wanted.map(ToString::to_string).collect()
            };
            let failed = shown(LinkUse::Failed);
            if failed.is_empty() {
                let all: Vec<_> = links.iter().map(ToString::to_string).collect();
                return fine(name, format!("VM {vm}: {}", all.join(", ")));
            }
            let told = failed.into_iter().chain(shown(LinkUse::InUse));
            finding(
                name,
                Level::Warn,
                format!("VM {vm}: {}", told.collect::<Vec<_>>().join(", ")),
                "look at this network: cables, switches, ip -s link, a packet filter for the port; \
                 the pair goes back to it by itself",
            )
        })
        .collect()
}

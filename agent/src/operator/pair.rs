// SPDX-License-Identifier: Apache-2.0
//! `kemarictl protect`, `unprotect` and `resync`: giving a VM a passive replica, taking it away,
//! making it anew.

use kemari_api::replica::{self, ConnectError, ReplicaProxy, ReplicaStatus};
use kemari_api::{Licence, NodeName, Role, VmName};
use tokio::time::sleep;

use super::place_of::{active, here, replicas_of};
use super::progress::Line;
use super::{LOOK, ask_agent, pacemaker, print, progress, refused, status_of};
use crate::command::{Ended, Exit};

/// Begins replication and waits until the pair is in sync.
pub(super) async fn protect(vm: &VmName, address: Option<&str>) -> anyhow::Result<()> {
    let (proxy, status) = here(vm).await?;
    if status.role != Role::Active {
        return Err(Ended::refused(format!(
            "The replica of VM {vm} on node {} is {}: protect is for the active one's node{}",
            status.node,
            status.role,
            if status.peer.is_empty() {
                String::new()
            } else {
                format!(", perhaps {}", status.peer)
            }
        ))
        .into());
    }
    if status.licence == Licence::Paired && status.in_sync {
        return print(&format!(
            "VM {vm} is protected already, by node {}\n",
            status.peer
        ));
    }
    let address = match address {
        Some(address) => address.to_owned(),
        None => address_of_waiting(vm, &status).await?,
    };
    if let Err(error) = proxy.protect(&address).await
        && !becomes_paired(vm, &proxy).await?
    {
        return Err(refused(&error));
    }
    tokio::select! {
        biased;
        result = until_in_sync(vm, &proxy) => result?,
        never = progress::show(&proxy) => match never {},
    }
    print(&format!("VM {vm} is protected\n"))
}

/// Whether the agents were first: they pair what waits.
async fn becomes_paired(vm: &VmName, proxy: &ReplicaProxy<'static>) -> anyhow::Result<bool> {
    for _ in 0..25 {
        if status_of(vm, proxy).await?.licence == Licence::Paired {
            return Ok(true);
        }
        sleep(LOOK).await;
    }
    Ok(false)
}

/// Where a replica waits for this one, by the rule that the agents follow: under a solo licence
/// anywhere, otherwise on the node of the present pair only. Lifts the ban of `unprotect`.
async fn address_of_waiting(vm: &VmName, status: &ReplicaStatus) -> anyhow::Result<String> {
    let mut banned = false;
    let mut view = ask_agent().await?;
    loop {
        let fits = |other: &ReplicaStatus| {
            let of_pair = status.licence == Licence::Solo || other.node.as_str() == status.peer;
            other.node != status.node
                && matches!(other.role, Role::Waiting | Role::Passive)
                && of_pair
                && !other.listen.is_empty()
        };
        let found = replicas_of(&view, vm)
            .filter(|replica| replica.present && view.agents.contains(&replica.status.node))
            .find(|replica| fits(&replica.status));
        if let Some(found) = found {
            return Ok(found.status.listen.clone());
        }
        let resource = pacemaker::resource_of(vm).await;
        let Some(resource) = resource.filter(|_| !banned) else {
            return Err(Ended::refused(format!(
                "No replica of VM {vm} waits on a node with an agent: {}",
                "start its resource on a second node (crm_mon -1 shows why it does not run there), or \
                 name the address of an engine"
            ))
            .into());
        };
        // What `unprotect` forbade.
        banned = true;
        pacemaker::clear(&resource, None).await?;
        for _ in 0..150 {
            sleep(LOOK).await;
            view = ask_agent().await?;
            if replicas_of(&view, vm).any(|replica| replica.present && fits(&replica.status)) {
                break;
            }
        }
    }
}

async fn until_in_sync(vm: &VmName, proxy: &ReplicaProxy<'static>) -> anyhow::Result<()> {
    loop {
        let status = status_of(vm, proxy).await?;
        if status.role != Role::Active {
            let text = format!("The replica of VM {vm} on this node became {}", status.role);
            return Err(Ended::new(Exit::Failed, text).into());
        }
        if status.licence == Licence::Paired && status.in_sync {
            return Ok(());
        }
        let figures = proxy.figures().await.map_err(|error| refused(&error))?;
        if !figures.last_link_failure.is_empty() {
            return Err(Ended::refused(format!(
                "Replication did not come about: {} (runbook, \"Replication is refused\")",
                figures.last_link_failure
            ))
            .into());
        }
        sleep(LOOK).await;
    }
}

/// Has Pacemaker stop the passive replica and keep it away.
pub(super) async fn unprotect(vm: &VmName) -> anyhow::Result<()> {
    let resource = pacemaker::needed(
        vm,
        "By hand: end the passive engine with `kemarictl monitor VM quit` on its node; outputs are \
         held until it is certain that it has ended.",
    )
    .await?;
    let view = ask_agent().await?;
    let Some(running) = active(&view, vm) else {
        return Err(Ended::refused(format!("No active replica of VM {vm} is known")).into());
    };
    let others: Vec<NodeName> = replicas_of(&view, vm)
        .filter(|replica| replica.present && replica.status.node != running.node)
        .map(|replica| replica.status.node.clone())
        .collect();
    if others.is_empty() {
        return print(&format!("VM {vm} has no passive replica\n"));
    }
    for node in &others {
        pacemaker::ban(&resource, node).await?;
    }
    until(
        vm,
        "its passive replica to stop and the active one to go on alone",
        |status| status.role == Role::Active && status.licence == Licence::Solo,
    )
    .await?;
    print(&format!(
        "VM {vm} runs on node {} alone, unprotected. `kemarictl protect {vm}` there lifts the ban on {}\n",
        running.node,
        others
            .iter()
            .map(NodeName::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    ))
}

/// Ends the passive or outdated engine here and waits until a new one is in sync.
pub(super) async fn resync(vm: &VmName) -> anyhow::Result<()> {
    let (proxy, status) = here(vm).await?;
    let view = ask_agent().await?;
    match status.role {
        Role::Active => {
            return Err(Ended::refused(format!(
                "The replica of VM {vm} on node {} is the active one: resync is for the other",
                status.node
            ))
            .into());
        }
        Role::Passive | Role::Outdated | Role::Waiting if active(&view, vm).is_none() => {
            return Err(Ended::refused(format!(
                "No active replica of VM {vm} is known: what this node holds may be the only copy"
            ))
            .into());
        }
        // Nothing to throw away; it is given a state as soon as it can be.
        Role::Waiting => {}
        Role::Passive | Role::Outdated => {
            proxy.quit().await.map_err(|error| refused(&error))?;
            until_gone(vm).await?;
            if let Some(resource) = pacemaker::resource_of(vm).await {
                pacemaker::clean_up(&resource, &status.node).await?;
            } else {
                print(
                    "The engine has ended. Pacemaker does not manage it: start it again by hand\n",
                )?;
                return Ok(());
            }
        }
    }
    let node = status.node;
    until(vm, "a new engine and its synchronisation", move |status| {
        status.node == node && status.role == Role::Passive && status.in_sync
    })
    .await?;
    print(&format!("The replica of VM {vm} on this node is in sync\n"))
}

async fn until_gone(vm: &VmName) -> anyhow::Result<()> {
    while !matches!(
        replica::connect(vm).await,
        Err(ConnectError::NotRunning { .. })
    ) {
        sleep(LOOK).await;
    }
    Ok(())
}

/// Waits, until Ctrl-C, for a replica that the agents know to be so.
async fn until(vm: &VmName, what: &str, so: impl Fn(&ReplicaStatus) -> bool) -> anyhow::Result<()> {
    let mut line = Line::default();
    loop {
        let view = ask_agent().await?;
        let mut known = replicas_of(&view, vm).filter(|replica| replica.present);
        if known.any(|replica| so(&replica.status)) {
            return Ok(());
        }
        line.show_on_terminal(&format!(
            "Waiting for {what} (Ctrl-C stops waiting, not the work)"
        ));
        sleep(LOOK).await;
    }
}

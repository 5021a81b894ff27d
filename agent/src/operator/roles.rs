// SPDX-License-Identifier: Apache-2.0
//! `kemarictl handover`, `failover` and `outdate`.

use std::time::{Duration, Instant};

use kemari_api::{NodeName, Role, VmName};
use tokio::time::sleep;

use super::place_of::{active, here, successor};
use super::progress::Line;
use super::{LOOK, agent, ask_agent, pacemaker, print, refused};
use crate::command::{Ended, Exit};

/// How long the other node may take to go on after this one's engine was ended.
const FAILOVER_MAX: Duration = Duration::from_secs(30);

/// Moves the active role to the passive replica's node, by Pacemaker.
pub(super) async fn handover(vm: &VmName, patience: Duration) -> anyhow::Result<()> {
    let view = ask_agent().await?;
    let Some(running) = active(&view, vm) else {
        return Err(Ended::refused(format!("No active replica of VM {vm} is known")).into());
    };
    let Some(to) = successor(&view, running).cloned() else {
        return Err(Ended::refused(format!(
            "VM {vm} is not in sync with a passive replica on a node with an agent: a move would boot \
             it anew ({}). kemarictl status shows why",
            running.detail
        ))
        .into());
    };
    let from = running.node.clone();
    let by_hand = format!(
        "Nothing was moved. Without Pacemaker, `kemarictl failover {vm}` on node {from} ends the engine \
         there, and node {to} goes on from the last commit."
    );
    let resource = pacemaker::needed(vm, &by_hand).await?;
    pacemaker::move_to(&resource, &to).await?;
    let moved = until_active_on(vm, &to, patience).await;
    // Also when it did not come about: nothing shall move later, when nobody looks.
    let cleared = pacemaker::clear(&resource, None).await;
    if !moved {
        return Err(Ended::new(
            Exit::Failed,
            format!(
                "VM {vm} did not move to node {to} within {} s, and the constraint was taken back: \
                 crm_mon -1 shows what Pacemaker makes of it",
                patience.as_secs()
            ),
        )
        .into());
    }
    cleared?;
    print(&format!("VM {vm} runs on node {to} now (before: {from})\n"))
}

/// The other replica goes on from the last commit.
pub(super) async fn failover(vm: &VmName) -> anyhow::Result<()> {
    let (proxy, status) = here(vm).await?;
    match status.role {
        Role::Active => {
            let view = ask_agent().await?;
            let Some(to) = successor(&view, &status).cloned() else {
                return Err(Ended::refused(format!(
                    "VM {vm} is not in sync with a passive replica on a node with an agent: ending it \
                     would end the guest ({})",
                    status.detail
                ))
                .into());
            };
            if !view.quorate {
                let text = "This node has no quorum: nobody would take over";
                return Err(Ended::refused(text).into());
            }
            proxy.quit().await.map_err(|error| refused(&error))?;
            if until_active_on(vm, &to, FAILOVER_MAX).await {
                return print(&format!("VM {vm} runs on node {to} now\n"));
            }
            Err(Ended::new(
                Exit::Failed,
                format!(
                    "The engine here has ended and VM {vm} does not run on node {to} after {} s: \
                     journalctl -u kemari-agent there says why",
                    FAILOVER_MAX.as_secs()
                ),
            )
            .into())
        }
        Role::Passive => {
            agent()
                .await?
                .promote(vm)
                .await
                .map_err(|error| refused(&error))?;
            print(&format!("VM {vm} runs on node {} now\n", status.node))
        }
        Role::Waiting => Err(Ended::refused(format!(
            "The replica of VM {vm} on this node holds no state to go on from. If the other node is \
             gone for good: kemarictl force-active {vm}"
        ))
        .into()),
        Role::Outdated => Err(Ended::refused(format!(
            "The replica of VM {vm} on this node is outdated: kemarictl resync {vm}"
        ))
        .into()),
    }
}

/// Tells the replica here what the agents have on record, if that is newer and elsewhere.
pub(super) async fn outdate(vm: &VmName) -> anyhow::Result<()> {
    let (proxy, status) = here(vm).await?;
    let votes = agent()
        .await?
        .votes(vm)
        .await
        .map_err(|error| refused(&error))?;
    let newest = votes
        .into_iter()
        .filter(|vote| vote.holder != status.node && vote.generation > status.generation)
        .max_by_key(|vote| vote.generation);
    let Some(newest) = newest else {
        return Err(Ended::refused(format!(
            "Nobody has a generation of VM {vm} on record that is newer than {}, which node {} has: it \
             is not outdated",
            status.generation, status.node
        ))
        .into());
    };
    proxy
        .outdate(newest.generation)
        .await
        .map_err(|error| refused(&error))?;
    print(&format!(
        "The replica of VM {vm} on node {} knows now that node {} holds generation {}\n",
        status.node, newest.holder, newest.generation
    ))
}

async fn until_active_on(vm: &VmName, node: &NodeName, patience: Duration) -> bool {
    let begun = Instant::now();
    let mut line = Line::default();
    while begun.elapsed() < patience {
        if let Ok(view) = ask_agent().await
            && active(&view, vm).is_some_and(|status| status.node == *node)
        {
            return true;
        }
        line.show_on_terminal(&format!("Waiting for VM {vm} to run on node {node}"));
        sleep(LOOK).await;
    }
    false
}

// SPDX-License-Identifier: Apache-2.0
//! `kemarictl status` and `list`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use kemari_api::agent::{ClusterView, ReplicaView};
use kemari_api::figures::ReplicaFigures;
use kemari_api::replica::{self, LinkView, ReplicaProxy, ReplicaStatus};
use kemari_api::{Role, VmName, place};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::overview::{FORMAT, Link, Measured, Overview, overview};
use super::paint::Paint;
use super::{ANSWER_MAX, Form, ask_agent, print, print_json, status_of, table};
use crate::command::{Ended, Exit};

/// Over how long rates are measured.
const RATE_TIME: Duration = Duration::from_millis(500);

/// With what `status` is content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Whatever it is.
    Nothing,
    /// Every VM shown is protected.
    Protected,
}

/// Prints the cluster, or without an agent the engines of this node.
pub(super) async fn status(vm: Option<&VmName>, form: Form, need: Need) -> anyhow::Result<()> {
    let Looked {
        overview: now,
        notes,
    } = look(vm).await?;
    tell(&notes);
    if let (Some(vm), true) = (vm, now.vms.is_empty()) {
        return Err(Ended::new(
            Exit::NotHere,
            format!(
                "No replica of VM {vm} is known here: `kemarictl status` shows all, `crm_mon -1` \
                 what Pacemaker manages"
            ),
        )
        .into());
    }
    match form {
        Form::Json => print_json(&now)?,
        Form::Text => print(&table::screen(&now, Paint::of_stdout()))?,
    }
    let bare: Vec<&str> = now
        .vms
        .iter()
        .filter(|vm| !vm.protected)
        .map(|vm| vm.name.as_str())
        .collect();
    if need == Need::Protected && !bare.is_empty() {
        let text = format!("Not protected: {}", bare.join(" "));
        return Err(Ended::new(Exit::Found, text).into());
    }
    Ok(())
}

/// What is known, and what kept more from being known.
#[derive(Debug)]
pub(super) struct Looked {
    pub overview: Overview,
    pub notes: Vec<String>,
}

/// All that can be known now.
pub(super) async fn look(vm: Option<&VmName>) -> anyhow::Result<Looked> {
    let mut notes = Vec::new();
    let cluster = match ask_agent().await {
        Ok(view) => Some(view),
        Err(error) => {
            notes.push(format!("{error:#} Showing this node's engines only."));
            None
        }
    };
    let replicas = match &cluster {
        Some(view) => heard_now(view).await,
        None => local_replicas(&mut notes)
            .await?
            .into_iter()
            .map(|status| ReplicaView {
                status,
                present: true,
            })
            .collect(),
    };
    let figures = measure(cluster.as_ref(), &replicas, vm).await;
    Ok(Looked {
        overview: overview(cluster.as_ref(), &replicas, &figures, vm),
        notes,
    })
}

/// What the agent knows, but for replicas on this node, which speak for themselves: the agent's word
/// is as old as their last change of state.
async fn heard_now(view: &ClusterView) -> Vec<ReplicaView> {
    let mut replicas = view.replicas.clone();
    for replica in &mut replicas {
        let status = &mut replica.status;
        if status.node == view.node
            && let Ok((proxy, _)) = replica::connect(&status.vm).await
            && let Ok(now) = status_of(&status.vm, &proxy).await
        {
            *status = now;
        }
    }
    replicas
}

/// Two readings of every active replica on this node. Engines that cannot tell are left out.
async fn measure(
    cluster: Option<&ClusterView>,
    replicas: &[ReplicaView],
    vm: Option<&VmName>,
) -> BTreeMap<VmName, Measured> {
    let mut first = Vec::new();
    for replica in replicas {
        let status = &replica.status;
        let here = cluster.is_none_or(|view| view.node == status.node);
        let wanted = vm.is_none_or(|vm| *vm == status.vm);
        if here
            && wanted
            && status.role == Role::Active
            && let Ok((proxy, _)) = replica::connect(&status.vm).await
            && let Some(figures) = read(&proxy).await
        {
            first.push((status.vm.clone(), proxy, figures, Instant::now()));
        }
    }
    if first.is_empty() {
        return BTreeMap::new();
    }
    sleep(RATE_TIME).await;
    let mut measured = BTreeMap::new();
    for (vm, proxy, before, begun) in first {
        if let Some(now) = read(&proxy).await {
            let time = begun.elapsed();
            let links = links(&proxy).await;
            measured.insert(vm, between(&before, now, time, links));
        }
    }
    measured
}

async fn read(proxy: &ReplicaProxy<'static>) -> Option<ReplicaFigures> {
    timeout(ANSWER_MAX, proxy.figures()).await.ok()?.ok()
}

/// The links of a replica; none where its engine is of a release that does not tell.
pub(super) async fn links(proxy: &ReplicaProxy<'static>) -> Vec<LinkView> {
    let links = timeout(ANSWER_MAX, proxy.links()).await;
    links.ok().and_then(Result::ok).unwrap_or_default()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "rates for people need no 64 bits"
)]
fn between(
    before: &ReplicaFigures,
    now: ReplicaFigures,
    time: Duration,
    links: Vec<LinkView>,
) -> Measured {
    let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / time.as_secs_f64();
    Measured {
        lag_us: now.lag_us,
        pause_us: now.pause_us,
        commit_us: now.commit_us,
        checkpoints: now.checkpoints,
        checkpoints_per_s: rate(before.checkpoints, now.checkpoints),
        sent_bytes: now.sent_bytes,
        sent_bytes_per_s: rate(before.sent_bytes, now.sent_bytes),
        queue_outputs: now.queue_outputs,
        queue_bytes: now.queue_bytes,
        copying: now.copying,
        link_failures: now.link_failures,
        last_link_failure: now.last_link_failure,
        links: links.into_iter().map(Link::from).collect(),
    }
}

#[derive(Serialize)]
struct Listed {
    format: u32,
    vms: Vec<ListedVm>,
}

#[derive(Serialize)]
struct ListedVm {
    name: String,
    role: String,
    licence: String,
    in_sync: bool,
}

/// Prints the names of the VMs whose engines run here.
pub(super) async fn list(form: Form) -> anyhow::Result<()> {
    let mut notes = Vec::new();
    let replicas = local_replicas(&mut notes).await?;
    tell(&notes);
    if form == Form::Text {
        let names: String = replicas
            .iter()
            .map(|status| format!("{}\n", status.vm))
            .collect();
        return print(&names);
    }
    print_json(&Listed {
        format: FORMAT,
        vms: replicas
            .iter()
            .map(|status| ListedVm {
                name: status.vm.to_string(),
                role: status.role.to_string(),
                licence: status.licence.to_string(),
                in_sync: status.in_sync,
            })
            .collect(),
    })
}

fn tell(notes: &[String]) {
    for note in notes {
        eprintln!("kemarictl: {note}");
    }
}

/// Every engine of this node that answers; one that does not is named in `notes`.
pub(super) async fn local_replicas(notes: &mut Vec<String>) -> anyhow::Result<Vec<ReplicaStatus>> {
    let directory = place::run_dir();
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("Cannot read {}", directory.display()));
        }
    };
    let mut replicas = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(vm) = name.to_str().and_then(place::vm_of_control_socket) else {
            continue;
        };
        match local_replica(&vm).await {
            Ok(status) => replicas.extend(status),
            Err(error) => notes.push(format!("{error:#}")),
        }
    }
    replicas.sort_by(|a, b| a.vm.cmp(&b.vm));
    Ok(replicas)
}

/// `None`: a socket that a dead engine left behind.
async fn local_replica(vm: &VmName) -> anyhow::Result<Option<ReplicaStatus>> {
    match replica::connect(vm).await {
        Ok((proxy, _)) => status_of(vm, &proxy).await.map(Some),
        Err(replica::ConnectError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between() {
        let reading = |sent_bytes, checkpoints| ReplicaFigures {
            sent_bytes,
            checkpoints,
            ..ReplicaFigures::default()
        };
        let measured = between(
            &reading(100, 1),
            reading(1100, 21),
            Duration::from_millis(500),
            Vec::new(),
        );
        assert!((measured.sent_bytes_per_s - 2000.0).abs() < 1e-6);
        assert!((measured.checkpoints_per_s - 40.0).abs() < 1e-6);
        // An engine that was restarted in between.
        let measured = between(
            &reading(100, 1),
            reading(0, 0),
            Duration::from_millis(500),
            Vec::new(),
        );
        assert!(measured.sent_bytes_per_s.abs() < 1e-6);
    }
}

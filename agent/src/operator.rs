// SPDX-License-Identifier: Apache-2.0
//! What `kemarictl` does: questions to the agent and to the engines of this node.

mod console;
mod keygen;
mod monitor;
mod table;

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use kemari_api::agent::{AgentProxy, ClusterView, ReplicaView};
use kemari_api::replica::{self, ReplicaStatus};
use kemari_api::{VmName, place};
use tokio::time::timeout;

pub use console::{Attachment, Input, attach};
pub use keygen::Keygen;
pub use monitor::{converse, run_one};

/// How long an agent or an engine may take to answer a question.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Prints the cluster, or without an agent the engines of this node.
///
/// # Errors
/// When `vm` is not known here, or output cannot be written.
pub async fn status(vm: Option<&VmName>) -> anyhow::Result<()> {
    let text = match ask_agent().await {
        Ok(view) => table::cluster(&view, vm),
        Err(error) => {
            eprintln!(
                "kemarictl: No answer from kemari-agent ({error:#}), showing this node's engines \
                 only. Is kemari-agent.service running?"
            );
            let engines = local_replicas().await?;
            let known: Vec<_> = engines
                .into_iter()
                .filter(|status| vm.is_none_or(|vm| status.vm == *vm))
                .map(|status| ReplicaView {
                    status,
                    present: true,
                })
                .collect();
            (!known.is_empty() || vm.is_none()).then(|| table::replicas(&known))
        }
    };
    match (text, vm) {
        (Some(text), _) => print(&text),
        (None, Some(vm)) => bail!(
            "No replica of VM {vm} is known here: `kemarictl status` shows all, `crm_mon -1` what \
             Pacemaker manages"
        ),
        (None, None) => Ok(()),
    }
}

/// Prints the names of the VMs whose engines run here.
///
/// # Errors
/// When the run directory cannot be read, or output cannot be written.
pub async fn list() -> anyhow::Result<()> {
    let names: String = local_replicas()
        .await?
        .iter()
        .map(|status| format!("{}\n", status.vm))
        .collect();
    print(&names)
}

async fn ask_agent() -> anyhow::Result<ClusterView> {
    let ask = async {
        let bus = zbus::Connection::system().await?;
        AgentProxy::new(&bus).await?.status().await
    };
    timeout(ANSWER_MAX, ask)
        .await
        .with_context(|| format!("none within {} s", ANSWER_MAX.as_secs()))?
        .map_err(|error| anyhow::anyhow!(kemari_api::replica::refusal_text(&error)))
}

/// Every engine of this node that answers; one that does not is named on standard error.
async fn local_replicas() -> anyhow::Result<Vec<ReplicaStatus>> {
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
            Err(error) => eprintln!("kemarictl: {error:#}"),
        }
    }
    replicas.sort_by(|a, b| a.vm.cmp(&b.vm));
    Ok(replicas)
}

/// `None`: a socket that a dead engine left behind.
async fn local_replica(vm: &VmName) -> anyhow::Result<Option<ReplicaStatus>> {
    let proxy = match replica::connect(vm).await {
        Ok((proxy, _)) => proxy,
        Err(replica::ConnectError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let status = timeout(ANSWER_MAX, proxy.status())
        .await
        .with_context(|| format!("The engine of VM {vm} does not answer"))??;
    Ok(Some(status))
}

/// Makes or replaces the cluster's key.
///
/// # Errors
/// As [`Keygen::run`], or output cannot be written.
pub fn keygen(command: &Keygen) -> anyhow::Result<()> {
    print(&command.run()?)
}

/// Prints; that nobody reads any more is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("Cannot write to standard output"),
    }
}

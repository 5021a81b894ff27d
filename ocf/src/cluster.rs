// SPDX-License-Identifier: Apache-2.0
//! The node's agent, `org.kemari.Agent1` on the system bus: it decides, this asks.

use std::time::Duration;

use kemari_api::agent::{AgentProxy, ClusterView, Gone, Vote};
use kemari_api::replica::refusal_text;
use kemari_api::{NodeName, Role, VmName};
use tokio::time::timeout;
use zbus::proxy::CacheProperties;

use crate::exit::Failure;

/// What people can do about a missing agent.
pub(crate) const MISSING: &str =
    "kemari-agent does not answer on the system bus: systemctl start kemari-agent";

/// How the agent answered a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Done.
    Done,
    /// It refused, and says why.
    Refused(String),
    /// There is no agent, and this is the remedy.
    Absent(String),
}

impl Answer {
    fn from(result: zbus::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) if is_absence(&error) => Self::Absent(MISSING.to_owned()),
            Err(error) => Self::Refused(refusal_text(&error)),
        }
    }
}

/// What the node's agent knows.
#[derive(Debug)]
pub(crate) struct Known {
    /// Of the cluster.
    pub(crate) view: ClusterView,
    /// What each agent is known to have recorded of the VM.
    pub(crate) votes: Vec<Vote>,
}

/// What the agent knows, waited for no longer than `patience`.
///
/// # Errors
/// `OCF_ERR_GENERIC` if there is no agent or it does not answer.
pub(crate) async fn known(vm: &VmName, patience: Duration) -> Result<Known, Failure> {
    let asked = async {
        let agent = connect().await?;
        let (view, votes) = (agent.status().await?, agent.votes(vm).await?);
        Ok(Known { view, votes })
    };
    match timeout(patience, asked).await {
        Ok(Ok(known)) => Ok(known),
        Ok(Err(error)) if !is_absence(&error) => Err(Failure::generic(format!(
            "kemari-agent answers: {}",
            refusal_text(&error)
        ))),
        _ => Err(Failure::generic(MISSING)),
    }
}

/// Asks for the promotion of the local replica.
pub(crate) async fn promote(vm: &VmName) -> Answer {
    Answer::from(async { connect().await?.promote(vm).await }.await)
}

/// Asks for the guest that runs on another node.
///
/// # Errors
/// Why it is not given.
pub(crate) async fn fetch(vm: &VmName) -> Result<(), String> {
    let asked = async { connect().await?.fetch(vm).await };
    asked.await.map_err(|error| refusal_text(&error))
}

/// The node that runs the VM, if the agent hears of one that is not this node.
pub(crate) async fn runs_elsewhere(vm: &VmName) -> Option<NodeName> {
    let view = async { connect().await?.status().await }.await.ok()?;
    let mut others = view.replicas.iter().filter(|replica| {
        let status = &replica.status;
        replica.present && status.vm == *vm && status.node != view.node
    });
    let active = others.find(|replica| replica.status.role == Role::Active)?;
    Some(active.status.node.clone())
}

/// Reports that the passive replica on `node` was stopped or its node fenced.
pub(crate) async fn passive_gone(vm: &VmName, node: &NodeName) -> Answer {
    let told = async { connect().await?.passive_gone(vm, node, Gone::Stopped).await };
    Answer::from(told.await)
}

async fn connect() -> zbus::Result<AgentProxy<'static>> {
    let connection = zbus::Connection::system().await?;
    AgentProxy::builder(&connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

/// The bus is not there, or nobody owns the agent's name, or the owner went away while asked.
fn is_absence(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => matches!(
            name.as_str(),
            "org.freedesktop.DBus.Error.ServiceUnknown"
                | "org.freedesktop.DBus.Error.NameHasNoOwner"
                | "org.freedesktop.DBus.Error.NoReply"
        ),
        zbus::Error::FDO(error) => matches!(
            **error,
            zbus::fdo::Error::ServiceUnknown(_)
                | zbus::fdo::Error::NameHasNoOwner(_)
                | zbus::fdo::Error::NoReply(_)
        ),
        _ => true,
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What the engine of the VM is on this node, as seen from outside.
//!
//! Two sources: the control socket, on which a healthy engine answers, and systemd, which knows
//! how a missing one ended. Where systemd cannot be asked, the socket alone counts.

use std::time::Duration;

use kemari_api::replica::{self, ConnectError, ReplicaProxy, ReplicaStatus};
use kemari_api::unit::Systemd;
use kemari_api::{Role, VmName, place};
use tokio::time::{sleep, timeout};

/// Between two attempts to reach an engine.
const LOOK: Duration = Duration::from_millis(20);

/// The engine of the VM on this node.
#[derive(Debug)]
pub(crate) enum Engine {
    /// There is no process, and it did not fail.
    Stopped,
    /// There is no process, and this is how it ended.
    Dead(String),
    /// There is a process that does not answer, and this is why.
    Mute(String),
    /// It answers.
    Answers(Box<ReplicaStatus>),
}

impl Engine {
    /// The role, of an engine that answers.
    pub(crate) fn role(&self) -> Option<Role> {
        match self {
            Self::Answers(status) => Some(status.role),
            _ => None,
        }
    }
}

/// Looks at the engine of `vm`; an answer is waited for no longer than `patience`.
pub(crate) async fn observe(vm: &VmName, patience: Duration) -> Engine {
    match timeout(patience, status(vm)).await {
        Err(_) => Engine::Mute(format!(
            "The engine of VM {vm} did not answer within {} s",
            patience.as_secs_f32()
        )),
        Ok(Ok(status)) => Engine::Answers(Box::new(status)),
        Ok(Err(ConnectError::NotRunning { .. })) => without_answer(vm, patience).await,
        Ok(Err(error)) => Engine::Mute(with_source(&error)),
    }
}

async fn without_answer(vm: &VmName, patience: Duration) -> Engine {
    let unit = place::unit(vm);
    let look = async { Systemd::connect().await?.look(&unit).await };
    match timeout(patience, look).await {
        Ok(Ok(state)) if state.active == "failed" => Engine::Dead(state.ending(&unit)),
        Ok(Ok(state)) if state.is_over() => Engine::Stopped,
        Ok(Ok(state)) => Engine::Mute(format!(
            "{unit} is {}, but nothing answers at its control socket",
            state.active
        )),
        // Without systemd only a run by hand is possible, and that one has no socket.
        Ok(Err(_)) => Engine::Stopped,
        Err(_) => Engine::Mute(format!(
            "Nothing answers at the control socket of VM {vm}, and systemd does not say within \
             {} s whether {unit} has ended",
            patience.as_secs_f32()
        )),
    }
}

async fn status(vm: &VmName) -> Result<ReplicaStatus, ConnectError> {
    let (engine, _) = replica::connect(vm).await?;
    engine.status().await.map_err(|source| ConnectError::Bus {
        vm: vm.clone(),
        source,
    })
}

/// A connection to the engine, or the reason why there is none.
///
/// # Errors
/// One sentence.
pub(crate) async fn reach(vm: &VmName) -> Result<ReplicaProxy<'static>, String> {
    let (engine, _) = replica::connect(vm)
        .await
        .map_err(|error| with_source(&error))?;
    Ok(engine)
}

/// A short look at an engine.
#[derive(Debug)]
pub(crate) enum Contact {
    /// Nobody listens at its control socket.
    None,
    /// It answers, and is this.
    Role(Role),
    /// It is there, and does not answer properly now.
    Unclear,
}

/// Looks whether the engine is there, and as what.
pub(crate) async fn contact(vm: &VmName) -> Contact {
    match status(vm).await {
        Ok(status) => Contact::Role(status.role),
        Err(ConnectError::NotRunning { .. }) => Contact::None,
        Err(_) => Contact::Unclear,
    }
}

/// Waits until the engine answers and `wanted` holds for its status.
pub(crate) async fn until(vm: &VmName, wanted: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
    loop {
        if let Ok(status) = status(vm).await
            && wanted(&status)
        {
            return status;
        }
        sleep(LOOK).await;
    }
}

/// Waits until nothing accepts connections at the control socket.
pub(crate) async fn until_gone(vm: &VmName) {
    while !matches!(
        replica::connect(vm).await,
        Err(ConnectError::NotRunning { .. })
    ) {
        sleep(LOOK).await;
    }
}

/// An error and its source in one sentence.
fn with_source(error: &ConnectError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

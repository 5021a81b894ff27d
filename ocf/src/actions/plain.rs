// SPDX-License-Identifier: Apache-2.0
//! A plain primitive, without a clone: Pacemaker knows the instance that runs the guest, the agents keep the passive one.
//!
//! `start` and `migrate_from` are a `promote` of the replica here, which the agent may have carried out already.
//! A `stop` that is half of a move, and `migrate_to`, hand the guest over. The replica that is left here waits
//! to be the passive one; whether it is to stay the agent decides (`kemari_agent::kept`).

use std::time::Duration;

use kemari_api::replica::{ReplicaStatus, refusal_text};
use kemari_api::{Assigned, Licence, NodeName, Role, note};
use tokio::time::{sleep, timeout};

use super::promote;
use crate::cluster;
use crate::destination::{self, Destination};
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, inform, warn};
use crate::instance::Instance;

/// Between two looks whether the guest was given.
const LOOK: Duration = Duration::from_millis(50);
/// After so many it is asked for again.
const LOOKS: u32 = 40;

/// What became of the replica in a `stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It is no longer Pacemaker's, and is left as it is.
    Kept,
    /// It is to be ended, and the guest with it.
    ToEnd,
    /// It is to be ended, and the passive one goes on from the last commit.
    ToFailOver,
}

/// The guest runs here.
pub(super) async fn run_guest(instance: &Instance, engine: &Engine) -> Outcome {
    let mut role = engine.role().unwrap_or(Role::Waiting);
    instance.waits_for("kemari-agent to say where the VM runs");
    let elsewhere = timeout(instance.left() / 4, cluster::runs_elsewhere(&instance.vm)).await;
    if let (false, Ok(Some(node))) = (role == Role::Active, elsewhere) {
        role = fetch(instance, &node).await;
    }
    promote::make_active(instance, role).await?;
    instance.remember(Assigned::Started)?;
    Ok(Code::Success)
}

/// The agents had it go on at another node, and Pacemaker wants it here, for it does not know, or moves it: it is handed
/// over, once the replica here holds its state.
async fn fetch(instance: &Instance, node: &NodeName) -> Role {
    let vm = &instance.vm;
    inform(format!(
        "VM {vm} runs on node {node} and is to be handed over"
    ));
    instance.waits_for(format!(
        "the replica here to be in sync with node {node}, which runs VM {vm}"
    ));
    let holds_state = |status: &ReplicaStatus| {
        status.role == Role::Active || (status.role == Role::Passive && status.in_sync)
    };
    engine::until(vm, holds_state).await;
    instance.waits_for(format!("node {node} to hand VM {vm} over"));
    loop {
        if let Err(reason) = cluster::fetch(vm).await {
            inform(format!("VM {vm} is not handed over yet: {reason}"));
        }
        for _ in 0..LOOKS {
            sleep(LOOK).await;
            if cluster::runs_elsewhere(vm).await.is_none() {
                return Role::Passive;
            }
        }
    }
}

/// The guest is on its way here.
pub(super) async fn migrate_from(instance: &Instance) -> Outcome {
    match instance.observe().await {
        engine @ Engine::Answers(_) => run_guest(instance, &engine).await,
        _ => Err(Failure::generic(format!(
            "No replica of VM {} is on this node to take the guest: is kemari-agent running here, which \
             keeps it?",
            instance.vm
        ))),
    }
}

/// Hands the guest over to the node that Pacemaker names.
pub(super) async fn migrate_to(instance: &Instance) -> Outcome {
    let Some(target) = instance.environment.migrate_target.as_deref() else {
        let text = "Pacemaker names no node to migrate to";
        return Err(Failure::new(Code::Arguments, text));
    };
    let status = match instance.observe().await {
        Engine::Answers(status) => status,
        Engine::Mute(reason) | Engine::Dead(reason) => return Err(Failure::generic(reason)),
        Engine::Stopped => {
            let text = format!("The engine of VM {} is not running", instance.vm);
            return Err(Failure::new(Code::NotRunning, text));
        }
    };
    if status.role != Role::Active {
        // Called again.
        return Ok(Code::Success);
    }
    if !can_hand_over(&status) || status.peer != target {
        return Err(Failure::generic(format!(
            "The replica of VM {} on node {target} does not hold the guest's state (in sync with: {}); \
             kemarictl status says why",
            instance.vm,
            if can_hand_over(&status) {
                &status.peer
            } else {
                "none"
            },
        )));
    }
    hand_over(instance).await.map_err(Failure::generic)?;
    is_kept_now(instance)?;
    Ok(Code::Success)
}

/// Pacemaker's instance here ends. Says what is to become of the engine.
pub(super) async fn leave(instance: &Instance, engine: &Engine) -> Result<Left, Failure> {
    let Engine::Answers(status) = engine else {
        return Ok(Left::ToEnd);
    };
    match status.role {
        // It was handed over, or never had the guest.
        Role::Waiting | Role::Passive => {}
        // Started anew it waits.
        Role::Outdated => return Ok(Left::ToEnd),
        Role::Active => match destination(instance, status).await {
            Destination::Elsewhere(node) if can_hand_over(status) && status.peer != node => {
                inform(format!(
                    "VM {} runs here until node {node}, where Pacemaker wants it, holds its state",
                    instance.vm
                ));
            }
            Destination::Elsewhere(node) if can_hand_over(status) => {
                if let Err(reason) = hand_over(instance).await {
                    warn(format!(
                        "{reason}; node {} goes on from the last commit",
                        status.peer
                    ));
                    return Ok(Left::ToFailOver);
                }
                inform(format!(
                    "VM {} was handed over, to run on node {node}",
                    instance.vm
                ));
            }
            Destination::OneOfSeveral => inform(format!(
                "VM {} runs here and goes on: Pacemaker finds it on another node, too, and will start it \
                 on one of them",
                instance.vm
            )),
            Destination::Elsewhere(_)
            | Destination::Here
            | Destination::Nowhere
            | Destination::Unknown => return Ok(Left::ToEnd),
        },
    }
    is_kept_now(instance)?;
    Ok(Left::Kept)
}

/// The replica is the agent's from now on.
fn is_kept_now(instance: &Instance) -> Result<(), Failure> {
    note::keep(&instance.vm)
        .and_then(|()| Assigned::forget(&instance.vm))
        .map_err(|error| {
            Failure::generic(format!(
                "Cannot note in {} that VM {} is stopped here: {error}",
                kemari_api::place::run_dir().display(),
                instance.vm
            ))
        })
}

async fn destination(instance: &Instance, status: &ReplicaStatus) -> Destination {
    let environment = &instance.environment;
    let Some(resource) = &environment.resource else {
        return Destination::Unknown;
    };
    instance.waits_for("Pacemaker's scheduler to say where the VM is to run");
    destination::ask(resource, environment.node_or(status), instance.left() / 4).await
}

fn can_hand_over(status: &ReplicaStatus) -> bool {
    status.licence == Licence::Paired && status.in_sync
}

async fn hand_over(instance: &Instance) -> Result<(), String> {
    instance.waits_for("the engine to commit the last checkpoint and end being active");
    let asked = async {
        let engine = engine::reach(&instance.vm).await?;
        engine.demote().await.map_err(|error| {
            format!(
                "VM {} is not handed over: {}",
                instance.vm,
                refusal_text(&error)
            )
        })?;
        engine::until(&instance.vm, |status| status.role != Role::Active).await;
        Ok(())
    };
    match timeout(instance.left() / 2, asked).await {
        Ok(result) => result,
        Err(_) => Err(format!("VM {} is not handed over in time", instance.vm)),
    }
}

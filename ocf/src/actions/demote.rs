// SPDX-License-Identifier: Apache-2.0
//! `demote`: the replica is no longer active.
//!
//! With a passive replica in sync the last checkpoint is committed first and nothing is lost;
//! without one the guest ends. Which of the two, the engine decides. A guest that ends here because
//! every replica is stopped next, or because no other one has its state, may shut down first.
//!
//! A node that was silent and is back has Pacemaker find two promoted instances, of which it keeps the one
//! with the higher score, as the nodes told it last. The guest runs in one of them, and that one does not give it
//! up: the other one's state is of the past. Pacemaker is told that this one is demoted, and by its
//! score that it is to be promoted again, as after a provisional promotion.

use kemari_api::Role;
use kemari_api::replica::{ReplicaStatus, refusal_text};

use super::shutdown::{self, Guest, Step};
use crate::assigned::Assigned;
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, inform};
use crate::instance::Instance;

/// Demotes; a replica that is not active is done.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let status = match instance.observe().await {
        Engine::Answers(status) => status,
        engine @ (Engine::Stopped | Engine::Dead(_)) => return ended(instance, &engine).await,
        Engine::Mute(reason) => return Err(Failure::generic(reason)),
    };
    if status.role == Role::Outdated {
        return unpromoted(instance, &Engine::Answers(status)).await;
    }
    if is_mistaken(instance, &status) {
        inform(format!(
            "VM {} runs here, and the replica that Pacemaker prefers has been without it: it is kept, and waits for \
             Pacemaker to promote it again",
            instance.vm
        ));
        return unpromoted(instance, &Engine::Answers(status)).await;
    }
    if shutdown::offer(instance, &status, Step::Demote).await? == Guest::Off {
        // What Pacemaker does next is to stop this instance.
        return unpromoted(instance, &Engine::Stopped).await;
    }
    instance.waits_for("the engine to commit the last checkpoint and end being active");
    let engine = engine::reach(&instance.vm)
        .await
        .map_err(Failure::generic)?;
    engine.demote().await.map_err(|error| {
        Failure::generic(format!(
            "VM {} is not demoted: {}",
            instance.vm,
            refusal_text(&error)
        ))
    })?;
    let status = engine::until(&instance.vm, |status| status.role != Role::Active).await;
    unpromoted(instance, &Engine::Answers(Box::new(status))).await
}

/// Whether Pacemaker demotes the one that runs the guest in favour of one that has lost it.
fn is_mistaken(instance: &Instance, status: &ReplicaStatus) -> bool {
    let node = instance.environment.node_or(status);
    status.role == Role::Active
        && instance
            .environment
            .transition
            .as_ref()
            .is_some_and(|transition| {
                !transition.stops(node) && transition.prefers_another_than(node)
            })
}

/// The replica is not active. If it is outdated, that is for `monitor` to say: a failure here would be
/// counted beside that one.
async fn unpromoted(instance: &Instance, engine: &Engine) -> Outcome {
    instance.remember(Assigned::Unpromoted)?;
    instance.refresh_score(engine).await;
    Ok(Code::Success)
}

/// The engine has ended. Of a replica that Pacemaker had started this is what it asked for, and that
/// nobody ended it is for `monitor` to say, as well.
async fn ended(instance: &Instance, engine: &Engine) -> Outcome {
    if instance.assigned().is_none() {
        let text = match engine {
            Engine::Dead(reason) => reason.clone(),
            _ => format!("The engine of VM {} is not running", instance.vm),
        };
        return Err(Failure::new(Code::NotRunning, text));
    }
    unpromoted(instance, engine).await
}

// SPDX-License-Identifier: Apache-2.0
//! `demote`: the replica is no longer active.
//!
//! With a passive replica in sync the last checkpoint is committed first and nothing is lost;
//! without one the guest ends. Which of the two, the engine decides. A guest that ends here because
//! every replica is stopped next, or because no other one has its state, may shut down first.
//!
//! Where nothing is stopped, a demotion may be one that Pacemaker takes back, and the guest would be gone for it.
//! After a node that was silent has come back, Pacemaker finds two promoted instances, and scores that are old or
//! missing; it may demote the wrong one, or both. So where no other replica could go on, its scheduler is asked again
//! (`intention.rs`), and the guest stays if it would leave this one promoted, or if it holds another one for promoted, too,
//! and wants any. Where it wants nobody promoted, the guest ends.
//!
//! Pacemaker is told that this one is demoted, and by its score that it is to be promoted again, as after a
//! provisional promotion.

use kemari_api::replica::{ReplicaStatus, refusal_text};
use kemari_api::unit::Systemd;
use kemari_api::{Assigned, Licence, Role};
use tokio::time::timeout;

use super::shutdown::{self, Guest, Step};
use super::{start, stop};
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, inform, warn};
use crate::instance::Instance;
use crate::intention::{self, Intention};

/// Demotes; a replica that is not active is done.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let mut status = match instance.observe().await {
        Engine::Answers(status) => status,
        engine @ (Engine::Stopped | Engine::Dead(_)) => return ended(instance, &engine).await,
        Engine::Mute(reason) => return Err(Failure::generic(reason)),
    };
    if status.role == Role::Outdated {
        return outdated(instance, status).await;
    }
    if is_open_to_doubt(instance, &status) {
        let stays = is_taken_back(instance, &status).await;
        // That may have taken seconds.
        match instance.observe().await {
            Engine::Answers(now) if now.role == Role::Active => status = now,
            Engine::Answers(now) if now.role == Role::Outdated => {
                return outdated(instance, now).await;
            }
            engine => return unpromoted(instance, &engine).await,
        }
        if stays {
            inform(format!(
                "VM {} runs here and goes on: it waits for Pacemaker to promote it again",
                instance.vm
            ));
            return unpromoted(instance, &Engine::Answers(status)).await;
        }
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

/// Whether this demotion would cost the guest: no other replica could go on, or the one that could is stopped. One that
/// is cut off may be outdated without having heard of it.
fn is_open_to_doubt(instance: &Instance, status: &ReplicaStatus) -> bool {
    let node = instance.environment.node_or(status);
    let Some(transition) = &instance.environment.transition else {
        return false;
    };
    status.role == Role::Active
        && status.licence != Licence::Cut
        && !transition.stops(node)
        && (!status.in_sync || transition.stops(&status.peer))
}

/// Whether the guest is to stay, since Pacemaker will promote this replica again.
async fn is_taken_back(instance: &Instance, status: &ReplicaStatus) -> bool {
    let environment = &instance.environment;
    let node = environment.node_or(status);
    let (Some(transition), Some(resource)) = (&environment.transition, &environment.resource)
    else {
        return false;
    };
    let merged = transition.finds_another_than(node);
    if merged {
        inform(format!(
            "Pacemaker holds an instance of VM {} on another node for promoted, too",
            instance.vm
        ));
    }
    instance.waits_for("Pacemaker's scheduler to say whether it wants this demotion");
    match intention::ask(resource, node, instance.left() / 2).await {
        Intention::StaysPromoted => true,
        Intention::OtherPromoted | Intention::Unknown => merged,
        Intention::NonePromoted => false,
    }
}

/// An outdated replica has nothing to give up. Where Pacemaker does not stop it next, it is started anew and waits
/// to be resynchronised, before a `monitor` finds it outdated: that would be a failure, on which Pacemaker
/// acts again after a later demotion.
async fn outdated(instance: &Instance, status: Box<ReplicaStatus>) -> Outcome {
    let node = instance.environment.node_or(&status);
    let transition = instance.environment.transition.as_ref();
    let goes_on = transition.is_some_and(|transition| !transition.stops(node));
    let mut engine = Engine::Answers(status);
    if goes_on {
        let done = timeout(instance.left() / 2, begin_anew(instance)).await;
        let failure = match done {
            Ok(result) => result.err(),
            Err(_) => Some(Failure::generic(format!(
                "no end of {}",
                instance.waiting_for()
            ))),
        };
        if let Some(failure) = failure {
            warn(format!(
                "The outdated replica of VM {} is not started anew, monitor will find it so: {failure}",
                instance.vm
            ));
        }
        engine = instance.observe().await;
    }
    unpromoted(instance, &engine).await
}

async fn begin_anew(instance: &Instance) -> Result<(), Failure> {
    if let Err(error) = Systemd::connect().await {
        let reason = format!("systemd is out of reach: {}", refusal_text(&error));
        return Err(Failure::generic(reason));
    }
    let agreed = stop::ask_to_end(instance, false).await;
    stop::end(instance, agreed).await?;
    start::start_unit(instance).await?;
    instance.waits_for("the engine's control socket");
    engine::until(&instance.vm, |status| status.role != Role::Outdated).await;
    Ok(())
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

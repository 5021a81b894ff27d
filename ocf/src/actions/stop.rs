// SPDX-License-Identifier: Apache-2.0
//! `stop`: no process of the engine is left, and nothing is remembered. A replica of a plain primitive that no longer has
//! the guest is left to the agent, which keeps it as the passive one (`plain.rs`).
//!
//! A guest that still runs, and can go on nowhere else, is given time to shut down first.
//!
//! A stop that fails makes Pacemaker fence the node, so it goes on where the engine does not
//! help: ask it to end, have systemd terminate it, have systemd kill it. No stop job is queued:
//! when systemd shuts the node down, such a job would wait for Pacemaker, and Pacemaker for it.

use kemari_api::replica::refusal_text;
use kemari_api::unit::{Signal, Systemd, UnitState};
use kemari_api::{Assigned, Role, note, place};
use tokio::time::timeout;

use super::plain::{self, Left};
use super::shutdown::{self, Guest, Step};
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, warn};
use crate::form::Form;
use crate::instance::Instance;
use crate::resource;
use crate::score::Score;

/// Stops the engine, however it is; a stopped one is done.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let engine = instance.observe().await;
    let mut left = Left::ToEnd;
    if instance.environment.under_pacemaker && instance.form() == Form::Plain {
        left = plain::leave(instance, &engine).await?;
    }
    let ends_by_itself = match engine {
        _ if left == Left::Kept => return Ok(Code::Success),
        _ if left == Left::ToFailOver => false,
        Engine::Answers(status) => match shutdown::offer(instance, &status, Step::Stop).await {
            Ok(Guest::Off) => true,
            Ok(Guest::StillOn) => ask_to_end(instance, status.role == Role::Active).await,
            Err(failure) => {
                warn(failure);
                true
            }
        },
        Engine::Mute(reason) => {
            warn(format!("{reason}; its unit is stopped"));
            false
        }
        Engine::Stopped | Engine::Dead(_) => true,
    };
    end(instance, ends_by_itself).await?;
    forget(instance)?;
    instance.publish(Score::None).await;
    Ok(Code::Success)
}

/// Leaves no process of the engine; one that does not end by itself is terminated, and then killed.
///
/// # Errors
/// `OCF_ERR_GENERIC`: systemd cannot.
pub(super) async fn end(instance: &Instance, ends_by_itself: bool) -> Result<(), Failure> {
    end_unit(instance, ends_by_itself).await?;
    instance.waits_for("the engine's control socket to close");
    engine::until_gone(&instance.vm).await;
    Ok(())
}

/// Whether the engine agreed to end. Where it does not, its unit is ended next.
pub(super) async fn ask_to_end(instance: &Instance, active: bool) -> bool {
    let asked = async {
        let engine = engine::reach(&instance.vm).await?;
        if active {
            // Pacemaker demotes first; a stop by hand may not.
            let demoted = engine.demote().await;
            demoted.map_err(|error| format!("It cannot be demoted: {}", refusal_text(&error)))?;
        }
        engine.quit().await.map_err(|error| refusal_text(&error))
    };
    let patience = instance.left() / 4;
    let reason = match timeout(patience, asked).await {
        Ok(Ok(())) => return true,
        Ok(Err(reason)) => reason,
        Err(_) => format!("no answer within {} s", patience.as_secs_f32()),
    };
    warn(format!("The engine does not end by itself: {reason}"));
    false
}

async fn end_unit(instance: &Instance, ends_by_itself: bool) -> Result<(), Failure> {
    let unit = place::unit(&instance.vm);
    instance.waits_for(format!("{unit} to end"));
    let systemd = match Systemd::connect().await {
        Ok(systemd) => systemd,
        Err(error) => {
            // The engine cannot have been started by it then; the socket decides.
            warn(format!("Cannot reach systemd: {}", refusal_text(&error)));
            return Ok(());
        }
    };
    let failed = |error: zbus::Error| {
        Failure::generic(format!(
            "systemd cannot stop {unit}: {}",
            refusal_text(&error)
        ))
    };
    let state = escalate(instance, &systemd, &unit, ends_by_itself)
        .await
        .map_err(failed)?;
    if state.active == "failed" {
        systemd.forget_end(&unit).await.map_err(failed)?;
    }
    Ok(())
}

/// From patience to force. The last wait is bounded by the action's own time.
async fn escalate(
    instance: &Instance,
    systemd: &Systemd,
    unit: &str,
    ends_by_itself: bool,
) -> zbus::Result<UnitState> {
    let patience = instance.left() / 4;
    if ends_by_itself && let Ok(state) = timeout(patience, systemd.ended(unit)).await {
        return state;
    }
    systemd.signal(unit, Signal::Terminate).await?;
    if let Ok(state) = timeout(instance.left() / 4, systemd.ended(unit)).await {
        return state;
    }
    warn(format!("{unit} does not end, it is killed"));
    systemd.signal(unit, Signal::Kill).await?;
    systemd.ended(unit).await
}

fn forget(instance: &Instance) -> Result<(), Failure> {
    // The role last: from then on the agent may keep a replica here, with notes of its own.
    note::undescribe(&instance.vm)
        .and_then(|()| note::keep_no_more(&instance.vm))
        .and_then(|()| resource::forget(&instance.vm))
        .and_then(|()| Assigned::forget(&instance.vm))
        .map_err(|error| {
            Failure::generic(format!(
                "Cannot remove the notes about VM {} in {}: {error}",
                instance.vm,
                place::run_dir().display()
            ))
        })
}

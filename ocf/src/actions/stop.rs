// SPDX-License-Identifier: Apache-2.0
//! `stop`: no process of the engine is left, and nothing is remembered.
//!
//! A stop that fails makes Pacemaker fence the node, so it goes on where the engine does not
//! help: ask it to end, have systemd stop it, have systemd kill it.

use std::time::Duration;

use kemari_api::{Role, place};
use tokio::time::timeout;

use crate::assigned::Assigned;
use crate::description;
use crate::engine::{self, Engine, answer};
use crate::exit::{Code, Failure, Outcome, warn};
use crate::instance::Instance;
use crate::score::{self, Score};
use crate::unit::Systemd;

/// Stops the engine, however it is; a stopped one is done.
pub(super) async fn run(instance: &Instance) -> Outcome {
    match instance.observe().await {
        Engine::Answers(status) => ask_to_end(instance, status.role == Role::Active).await,
        Engine::Mute(reason) => warn(format!("{reason}; its unit is stopped")),
        Engine::Stopped | Engine::Dead(_) => {}
    }
    stop_unit(instance).await?;
    instance.waits_for("the engine's control socket to close");
    engine::until_gone(&instance.vm).await;
    forget(instance)?;
    instance.waits_for("Pacemaker to remove the promotion score");
    score::publish(&instance.environment, Score::None).await;
    Ok(Code::Success)
}

/// A refusal or silence here is no error: the unit is stopped next.
async fn ask_to_end(instance: &Instance, active: bool) {
    let asked = async {
        let engine = engine::reach(&instance.vm).await?;
        if active {
            // Pacemaker demotes first; a stop by hand may not.
            let demoted = engine.demote().await;
            demoted.map_err(|error| format!("It cannot be demoted: {}", answer(&error)))?;
        }
        engine.quit().await.map_err(|error| answer(&error))
    };
    let patience = share(instance, 3);
    match timeout(patience, asked).await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => warn(format!("The engine did not end by itself: {reason}")),
        Err(_) => warn(format!(
            "The engine did not end within {} s",
            patience.as_secs_f32()
        )),
    }
}

async fn stop_unit(instance: &Instance) -> Result<(), Failure> {
    let unit = place::unit(&instance.vm);
    instance.waits_for(format!("systemd to stop {unit}"));
    let systemd = match Systemd::connect().await {
        Ok(systemd) => systemd,
        Err(error) => {
            // The engine cannot have been started by it then; the socket decides.
            warn(format!("Cannot reach systemd: {}", answer(&error)));
            return Ok(());
        }
    };
    let failed = |error: zbus::Error| {
        Failure::generic(format!("systemd cannot stop {unit}: {}", answer(&error)))
    };
    let state = match timeout(share(instance, 3), systemd.stop(&unit)).await {
        Ok(state) => state.map_err(failed)?,
        Err(_) => {
            warn(format!("{unit} does not stop, it is killed"));
            systemd.kill(&unit).await.map_err(failed)?
        }
    };
    if state.active == "failed" {
        systemd.forget_end(&unit).await.map_err(failed)?;
    }
    Ok(())
}

fn share(instance: &Instance, parts: u32) -> Duration {
    instance.budget / parts
}

fn forget(instance: &Instance) -> Result<(), Failure> {
    Assigned::forget(&instance.vm)
        .and_then(|()| description::remove_note(&instance.vm))
        .map_err(|error| {
            Failure::generic(format!(
                "Cannot remove the notes about VM {} in {}: {error}",
                instance.vm,
                place::run_dir().display()
            ))
        })
}

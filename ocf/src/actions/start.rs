// SPDX-License-Identifier: Apache-2.0
//! `start`: the engine runs and waits. It is not promoted by this.

use kemari_api::place;
use kemari_api::replica::refusal_text;

use crate::assigned::Assigned;
use crate::description;
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, warn};
use crate::instance::Instance;
use crate::unit::Systemd;

/// Starts the unit unless the engine answers already. The description was validated before.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let mut engine = instance.observe().await;
    if !matches!(engine, Engine::Answers(_)) {
        start_unit(instance).await?;
        instance.waits_for("the engine's control socket");
        let status = engine::until(&instance.vm, |_| true).await;
        engine = Engine::Answers(Box::new(status));
        instance.remember(Assigned::Unpromoted)?;
    } else if instance.assigned().is_none() {
        instance.remember(Assigned::Unpromoted)?;
    }
    instance.refresh_score(&engine).await;
    Ok(Code::Success)
}

async fn start_unit(instance: &Instance) -> Result<(), Failure> {
    description::leave_note(&instance.vm, &instance.config).map_err(|error| {
        Failure::generic(format!(
            "Cannot write {}: {error}; check the file system of /run",
            place::unit_environment(&instance.vm).display()
        ))
    })?;
    let unit = place::unit(&instance.vm);
    instance.waits_for(format!("systemd to start {unit}"));
    let no_systemd = |error: zbus::Error| {
        Failure::generic(format!(
            "systemd cannot start {unit}: {}",
            refusal_text(&error)
        ))
    };
    let systemd = Systemd::connect().await.map_err(no_systemd)?;
    let before = systemd.look(&unit).await.map_err(no_systemd)?;
    if before.load != "loaded" {
        return Err(before.failure(&unit));
    }
    if before.active == "failed"
        && let Err(error) = systemd.forget_end(&unit).await
    {
        warn(format!("Cannot reset {unit}: {}", refusal_text(&error)));
    }
    let state = systemd.start(&unit).await.map_err(no_systemd)?;
    if state.active == "active" {
        Ok(())
    } else {
        Err(state.failure(&unit))
    }
}

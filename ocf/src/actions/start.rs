// SPDX-License-Identifier: Apache-2.0
//! `start`: the engine runs and waits. It is not promoted by this.
//!
//! A plain primitive has no `promote`, so its start does both: the agent decides by the same rules whether
//! the replica here takes over or boots the guest.

use kemari_api::replica::refusal_text;
use kemari_api::unit::Systemd;
use kemari_api::{Assigned, note, place};

use super::plain;
use crate::engine::{self, Engine};
use crate::exit::{Code, Failure, Outcome, warn};
use crate::form::Form;
use crate::instance::Instance;
use crate::unit;

/// What a clone of another kind is told.
const NOT_PROMOTABLE: &str = "A VM can be cloned as a promotable resource only, or each instance would \
     run a guest: set meta promotable=true notify=true clone-max=2 promoted-max=1 on the clone";

/// Starts the unit unless the engine answers already. The description was validated before.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let form = instance.form();
    if form == Form::Cloned {
        return Err(Failure::new(Code::Configured, NOT_PROMOTABLE));
    }
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
    if form == Form::Plain {
        return plain::run_guest(instance, &engine).await;
    }
    instance.refresh_score(&engine).await;
    Ok(Code::Success)
}

/// Starts the engine's unit.
///
/// # Errors
/// Why systemd cannot, or how the engine ended.
pub(super) async fn start_unit(instance: &Instance) -> Result<(), Failure> {
    note::describe(&instance.vm, &instance.config).map_err(|error| {
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
        return Err(unit::failure(&before, &unit));
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
        Err(unit::failure(&state, &unit))
    }
}

// SPDX-License-Identifier: Apache-2.0
//! A guest that ends here for good is asked to first: by its power button, and with time to shut
//! down.
//!
//! Pacemaker demotes before it stops, so this mostly happens in `demote`. There the guest may just
//! as well go on at the other node, and then it must not be asked. Who can go on is known: nobody
//! under a solo licence, and nobody if Pacemaker stops every replica. Where neither is certain, the
//! button is left alone.

use std::time::Duration;

use kemari_api::replica::{ReplicaStatus, refusal_text};
use kemari_api::unit::Systemd;
use kemari_api::{Licence, Role, place};
use tokio::time::{Instant, sleep, timeout};

use crate::engine::{self, Contact};
use crate::environment::Environment;
use crate::exit::{Code, Failure, inform, warn};
use crate::form::Form;
use crate::instance::Instance;

/// How long a guest may take when the parameter is not set.
pub(crate) const TIMEOUT_DEFAULT_S: u32 = 30;
/// Between two looks at a guest that shuts down.
const LOOK: Duration = Duration::from_millis(100);

/// The step of Pacemaker's in which the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The replica gives up being active, and may be stopped next.
    Demote,
    /// It is being stopped.
    Stop,
}

/// What became of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    /// It is off, and its engine has ended.
    Off,
    /// It is to be ended as without a power button.
    StillOn,
}

/// How long a guest may take to shut down, by the parameter `shutdown_timeout`.
///
/// # Errors
/// `OCF_ERR_CONFIGURED`: it is no number of seconds.
pub(crate) fn timeout_of(environment: &Environment) -> Result<Duration, Failure> {
    let Some(text) = &environment.shutdown_timeout else {
        return Ok(Duration::from_secs(TIMEOUT_DEFAULT_S.into()));
    };
    text.trim()
        .parse::<u32>()
        .map(|seconds| Duration::from_secs(seconds.into()))
        .map_err(|_| {
            let reason = format!(
                "shutdown_timeout={text} is no number of seconds: give how long the guest may take \
                 to shut down, or 0 to end it at once"
            );
            Failure::new(Code::Configured, reason)
        })
}

/// The same for an action that must not fail for a wrong number.
pub(super) fn timeout_or_default(environment: &Environment) -> Duration {
    timeout_of(environment).unwrap_or_else(|failure| {
        warn(format!("{failure}. Until then it is {TIMEOUT_DEFAULT_S}"));
        Duration::from_secs(TIMEOUT_DEFAULT_S.into())
    })
}

/// Presses the power button of a guest that ends in this step, and waits.
///
/// # Errors
/// The engine failed meanwhile, as its unit says.
pub(super) async fn offer(
    instance: &Instance,
    status: &ReplicaStatus,
    step: Step,
) -> Result<Guest, Failure> {
    let limit = timeout_or_default(&instance.environment);
    let patience = limit.min(instance.left() / 2);
    // Whether the guest of a plain primitive goes on elsewhere was asked before (`plain.rs`).
    let plain = instance.form() == Form::Plain && step == Step::Stop && status.role == Role::Active;
    if patience.is_zero() || !(plain || is_due(&instance.environment, status, step)) {
        return Ok(Guest::StillOn);
    }
    let vm = &instance.vm;
    if !status.running {
        inform(format!(
            "The guest of VM {vm} is paused and cannot shut down"
        ));
        return Ok(Guest::StillOn);
    }
    instance.waits_for("the guest to shut down");
    let begun = Instant::now();
    match timeout(patience, shut_down(instance, patience)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            inform(format!("VM {vm} is no longer active here"));
            return Ok(Guest::StillOn);
        }
        Ok(Err(reason)) => {
            warn(format!(
                "The guest of VM {vm} has no power button to press: {reason}"
            ));
            return Ok(Guest::StillOn);
        }
        Err(_) => {
            warn(format!(
                "The guest of VM {vm} did not shut down within {} s, it is ended; see \
                 shutdown_timeout",
                patience.as_secs_f32()
            ));
            return Ok(Guest::StillOn);
        }
    }
    ended(instance).await?;
    inform(format!(
        "The guest of VM {vm} shut down after {:.1} s",
        begun.elapsed().as_secs_f32()
    ));
    Ok(Guest::Off)
}

/// Whether this guest ends in this step and cannot go on elsewhere.
fn is_due(environment: &Environment, status: &ReplicaStatus, step: Step) -> bool {
    let alone = status.licence == Licence::Solo && !status.in_sync;
    let transition = environment.transition.as_ref();
    let node = environment.node_or(status);
    let stopped = match step {
        Step::Stop => true,
        // Without a stop the instance must go on, as unpromoted; its engine would end with the guest.
        Step::Demote => transition.is_some_and(|transition| transition.stops(node)),
    };
    let ends_all = transition.is_some_and(|transition| transition.ends_all());
    status.role == Role::Active && stopped && (alone || ends_all)
}

/// True when the engine has ended, false when it is active no more.
async fn shut_down(instance: &Instance, patience: Duration) -> Result<bool, String> {
    let engine = engine::reach(&instance.vm).await?;
    engine
        .power_button()
        .await
        .map_err(|error| refusal_text(&error))?;
    inform(format!(
        "Pressed the power button of VM {}; it may take {} s to shut down",
        instance.vm,
        patience.as_secs_f32()
    ));
    loop {
        match engine::contact(&instance.vm).await {
            Contact::None => return Ok(true),
            Contact::Role(Role::Active) | Contact::Unclear => sleep(LOOK).await,
            Contact::Role(_) => return Ok(false),
        }
    }
}

/// The engine has closed its socket: whether it ended well.
async fn ended(instance: &Instance) -> Result<(), Failure> {
    let unit = place::unit(&instance.vm);
    let end = async { Systemd::connect().await?.ended(&unit).await };
    match timeout(instance.left() / 2, end).await {
        Ok(Ok(state)) if state.active == "failed" => {
            Err(Failure::new(Code::NotRunning, state.ending(&unit)))
        }
        // Without systemd, or one that is slow, the socket decides.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::status;
    use crate::transition::Transition;

    fn environment(stopped: &[&str], promoted: &[&str]) -> Environment {
        let nodes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Environment {
            transition: Some(Transition {
                running: nodes(&["node1", "node2"]),
                held: nodes(&[]),
                stopped: nodes(stopped),
                started: nodes(&[]),
                promoted: nodes(promoted),
            }),
            ..Environment::default()
        }
    }

    fn active(licence: Licence, in_sync: bool) -> ReplicaStatus {
        let mut status = status(Role::Active);
        status.licence = licence;
        status.in_sync = in_sync;
        status
    }

    #[test]
    fn a_guest_that_could_go_on_elsewhere_is_never_powered_off() {
        let disable = environment(&["node1", "node2"], &[]);
        let standby = environment(&["node1"], &["node2"]);
        let role_moves = environment(&[], &["node2"]);
        let untold = Environment::default();
        let alone = active(Licence::Solo, false);
        let paired = active(Licence::Paired, true);
        let cut = active(Licence::Cut, true);
        for (environment, status, demote, stop) in [
            (&disable, &paired, true, true),
            (&disable, &cut, true, true),
            (&disable, &alone, true, true),
            (&standby, &paired, false, false),
            (&standby, &cut, false, false),
            (&standby, &alone, true, true),
            (&role_moves, &paired, false, false),
            (&role_moves, &alone, false, true),
            (&untold, &paired, false, false),
            (&untold, &cut, false, false),
            (&untold, &alone, false, true),
        ] {
            let due = |step| is_due(environment, status, step);
            assert_eq!(due(Step::Demote), demote, "{environment:?} {status:?}");
            assert_eq!(due(Step::Stop), stop, "{environment:?} {status:?}");
            for role in [Role::Passive, Role::Waiting, Role::Outdated] {
                let mut other = status.clone();
                other.role = role;
                assert!(!is_due(environment, &other, Step::Stop));
            }
        }
    }

    #[test]
    fn pacemakers_name_of_the_node_is_the_one_that_counts() {
        let mut environment = environment(&["node1", "node2"], &[]);
        let paired = active(Licence::Paired, true);
        environment.node = Some("another".to_owned());
        assert!(!is_due(&environment, &paired, Step::Demote));
        environment.node = Some("node2".to_owned());
        assert!(is_due(&environment, &paired, Step::Demote));
    }

    #[test]
    fn the_parameter_is_a_number_of_seconds() {
        let with = |text: Option<&str>| {
            timeout_of(&Environment {
                shutdown_timeout: text.map(str::to_owned),
                ..Environment::default()
            })
        };
        assert_eq!(with(None), Ok(Duration::from_secs(30)));
        assert_eq!(with(Some("0")), Ok(Duration::ZERO));
        assert_eq!(with(Some(" 120 ")), Ok(Duration::from_secs(120)));
        for wrong in ["", "-1", "30s", "1.5", "99999999999"] {
            assert_eq!(with(Some(wrong)).unwrap_err().code, Code::Configured);
        }
    }
}

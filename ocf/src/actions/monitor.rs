// SPDX-License-Identifier: Apache-2.0
//! `monitor`: does the engine fit the role Pacemaker assigned?
//!
//! Three states are kept apart, as OCF asks: running, failed, cleanly stopped. Only a replica that
//! nobody assigned a role since it was stopped, or since the node booted, is cleanly stopped.
//!
//! ```text
//!  assigned     stopped  dead  mute  waiting  passive  active      outdated
//!  -----------  -------  ----  ----  -------  -------  ----------  --------
//!  nothing            7     7     1        0        0  8            1
//!  Unpromoted         1     1     1        0        0  0 (provis.)  1
//!  Promoted           9     9     9        9        9  8            9
//! ```
//!
//! An active replica with an assigned role is found in the role that the monitor is for, if it is for one: when two
//! parts of a cluster merge while one of them promotes, the next coordinator does not know of that yet
//! and has it monitored as unpromoted. An 8 would be a failure to it, and stop the guest.
//!
//! A plain primitive has no roles; here a replica that is not active runs nothing:
//!
//! ```text
//!  assigned     stopped  dead  mute  waiting  passive  active       outdated
//!  -----------  -------  ----  ----  -------  -------  -----------  --------
//!  nothing            7     7  1 *         7        7  7 (provis.)  1 *
//!  Started            7     7     1        7        7  0            7
//! ```
//!
//! with a reason beside each failure, so also beside the 7 of a guest that should run. "*": 7 if the agent keeps
//! that replica, which is nothing that Pacemaker could have started. A resource whose form was changed while it ran keeps its replica: what was started plain is unpromoted in the
//! clone until Pacemaker promotes it, and what was promoted in a clone is started.
//!
//! "provis.": the agents promoted it before Pacemaker did. Pacemaker calls `promote`, or `start`, when it has
//! computed that, and finds the work done. A probe of a plain primitive does not find it before: while its old
//! node is to be fenced, Pacemaker would take the VM for one that runs twice, and stop both. An outdated replica is reported as failed so that
//! Pacemaker restarts it: restarted it waits, and is resynchronised. At `OCF_CHECK_LEVEL` 10 a
//! replica that is as assigned must also work (see `liveness.rs`).

use kemari_api::replica::ReplicaStatus;
use kemari_api::{Assigned, Role, note};

use super::liveness;
use crate::engine::Engine;
use crate::environment::{CheckLevel, Expected};
use crate::exit::{Code, Failure, Outcome};
use crate::form::Form;
use crate::instance::Instance;

/// What the table says.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    outcome: Outcome,
    /// The role to remember, where an engine runs that nobody assigned a role.
    adopt: Option<Assigned>,
}

/// Looks, refreshes the score, and judges.
pub(super) async fn run(instance: &Instance) -> Outcome {
    let engine = instance.observe().await;
    let assigned = instance.assigned();
    let verdict = match instance.form() {
        Form::Plain => judge_plain(assigned, &engine, note::is_kept(&instance.vm)),
        Form::Promotable | Form::Cloned => judge(assigned, instance.environment.expected, &engine),
    };
    if let Some(role) = verdict.adopt {
        instance.remember(role)?;
    }
    let never_started = verdict.outcome == Ok(Code::NotRunning);
    if !never_started {
        instance.refresh_score(&engine).await;
    }
    match (&engine, instance.environment.check) {
        (Engine::Answers(status), CheckLevel::Deep) => {
            deeper(instance, status, verdict.outcome).await
        }
        _ => verdict.outcome,
    }
}

/// What a replica that is as assigned is said to be after a deep check.
async fn deeper(instance: &Instance, status: &ReplicaStatus, outcome: Outcome) -> Outcome {
    let failed = match outcome {
        Ok(Code::RunningPromoted) => Code::FailedPromoted,
        Ok(Code::Success) => Code::Generic,
        _ => return outcome,
    };
    match liveness::check(instance, status).await {
        Ok(()) => outcome,
        Err(reason) => Err(Failure::new(failed, reason)),
    }
}

fn judge(assigned: Option<Assigned>, expected: Option<Expected>, engine: &Engine) -> Verdict {
    let active = engine.role() == Some(Role::Active);
    let outcome = match (assigned, expected) {
        (None, _) => unassigned(engine),
        (Some(_), Some(Expected::Unpromoted)) if active => as_unpromoted(engine),
        (Some(_), Some(Expected::Promoted)) if active => as_promoted(engine),
        (Some(Assigned::Unpromoted | Assigned::Started), _) => as_unpromoted(engine),
        (Some(Assigned::Promoted), _) => as_promoted(engine),
    };
    let adopt = match (assigned, engine.role()) {
        (None, Some(Role::Active)) => Some(Assigned::Promoted),
        (None, Some(_)) | (Some(Assigned::Started), Some(_)) => Some(Assigned::Unpromoted),
        _ => None,
    };
    Verdict { outcome, adopt }
}

fn judge_plain(assigned: Option<Assigned>, engine: &Engine, is_kept: bool) -> Verdict {
    let should_run = assigned.is_some_and(Assigned::is_to_run);
    let runs = engine.role() == Some(Role::Active);
    let outcome = match engine {
        _ if should_run && runs => Ok(Code::Success),
        Engine::Mute(_) if should_run || !is_kept => Err(Failure::generic(reason(engine))),
        _ if should_run => Err(Failure::new(Code::NotRunning, reason(engine))),
        Engine::Answers(status) if status.role == Role::Outdated && !is_kept => {
            Err(Failure::generic(reason(engine)))
        }
        _ => Ok(Code::NotRunning),
    };
    // It was promoted in a clone.
    let adopt = should_run && runs && assigned != Some(Assigned::Started);
    Verdict {
        outcome,
        adopt: adopt.then_some(Assigned::Started),
    }
}

fn unassigned(engine: &Engine) -> Outcome {
    match engine {
        Engine::Stopped | Engine::Dead(_) => Ok(Code::NotRunning),
        Engine::Answers(status) if status.role == Role::Active => Ok(Code::RunningPromoted),
        _ => as_unpromoted(engine),
    }
}

fn as_unpromoted(engine: &Engine) -> Outcome {
    match engine.role() {
        Some(Role::Waiting | Role::Passive | Role::Active) => Ok(Code::Success),
        Some(Role::Outdated) | None => Err(Failure::generic(reason(engine))),
    }
}

fn as_promoted(engine: &Engine) -> Outcome {
    match engine.role() {
        Some(Role::Active) => Ok(Code::RunningPromoted),
        _ => Err(Failure::new(Code::FailedPromoted, reason(engine))),
    }
}

fn reason(engine: &Engine) -> String {
    match engine {
        Engine::Stopped => "The engine ended without being asked to by Pacemaker".to_owned(),
        Engine::Dead(reason) | Engine::Mute(reason) => reason.clone(),
        Engine::Answers(status) if status.detail.is_empty() => {
            format!("The replica is {}", status.role)
        }
        Engine::Answers(status) => {
            format!("The replica is {}: {}", status.role, status.detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::status;

    const NOTHING: Option<Assigned> = None;
    const UNPROMOTED: Option<Assigned> = Some(Assigned::Unpromoted);
    const STARTED: Option<Assigned> = Some(Assigned::Started);
    const PROMOTED: Option<Assigned> = Some(Assigned::Promoted);

    fn engines() -> [Engine; 7] {
        let answers = |role| Engine::Answers(Box::new(status(role)));
        [
            Engine::Stopped,
            Engine::Dead("it crashed".to_owned()),
            Engine::Mute("it hangs".to_owned()),
            answers(Role::Waiting),
            answers(Role::Passive),
            answers(Role::Active),
            answers(Role::Outdated),
        ]
    }

    fn codes(assigned: Option<Assigned>) -> [u8; 7] {
        codes_by(judge_probe, assigned)
    }

    fn judge_probe(assigned: Option<Assigned>, engine: &Engine) -> Verdict {
        judge(assigned, None, engine)
    }

    fn judge_kept(assigned: Option<Assigned>, engine: &Engine) -> Verdict {
        judge_plain(assigned, engine, true)
    }

    fn judge_other(assigned: Option<Assigned>, engine: &Engine) -> Verdict {
        judge_plain(assigned, engine, false)
    }

    fn codes_by(
        judge: fn(Option<Assigned>, &Engine) -> Verdict,
        assigned: Option<Assigned>,
    ) -> [u8; 7] {
        engines().map(|engine| match judge(assigned, &engine).outcome {
            Ok(code) => code as u8,
            Err(failure) => {
                assert!(!failure.reason.is_empty(), "every error has a reason");
                failure.code as u8
            }
        })
    }

    #[test]
    fn the_table_in_the_documentation_holds() {
        assert_eq!(codes(NOTHING), [7, 7, 1, 0, 0, 8, 1]);
        assert_eq!(codes(UNPROMOTED), [1, 1, 1, 0, 0, 0, 1]);
        assert_eq!(codes(PROMOTED), [9, 9, 9, 9, 9, 8, 9]);
    }

    #[test]
    fn an_active_replica_is_found_in_the_role_that_is_looked_for() {
        let code = |assigned, expected, engine: &Engine| {
            let outcome = judge(assigned, Some(expected), engine).outcome;
            outcome.unwrap_or_else(|failure| failure.code) as u8
        };
        for engine in engines() {
            let active = engine.role() == Some(Role::Active);
            for (assigned, expected, found) in [
                (PROMOTED, Expected::Unpromoted, 0),
                (PROMOTED, Expected::Promoted, 8),
                (UNPROMOTED, Expected::Unpromoted, 0),
                (UNPROMOTED, Expected::Promoted, 8),
                (NOTHING, Expected::Unpromoted, 8),
                (NOTHING, Expected::Promoted, 8),
            ] {
                let by_note = judge_probe(assigned, &engine).outcome;
                let by_note = by_note.unwrap_or_else(|failure| failure.code) as u8;
                let found = if active { found } else { by_note };
                assert_eq!(code(assigned, expected, &engine), found, "{engine:?}");
            }
        }
    }

    #[test]
    fn the_table_of_the_plain_form_holds() {
        assert_eq!(codes_by(judge_other, NOTHING), [7, 7, 1, 7, 7, 7, 1]);
        assert_eq!(codes_by(judge_kept, NOTHING), [7, 7, 7, 7, 7, 7, 7]);
        for judge in [judge_other, judge_kept] {
            assert_eq!(codes_by(judge, STARTED), [7, 7, 1, 7, 7, 0, 7]);
            for engine in engines() {
                assert_eq!(judge(NOTHING, &engine).adopt, None);
                assert_eq!(judge(STARTED, &engine).adopt, None);
            }
        }
    }

    #[test]
    fn a_resource_whose_form_changes_keeps_its_replica() {
        // Plain, then cloned: unpromoted until Pacemaker promotes it.
        assert_eq!(codes(STARTED), codes(UNPROMOTED));
        let active = Engine::Answers(Box::new(status(Role::Active)));
        assert_eq!(judge_probe(STARTED, &active).adopt, UNPROMOTED);
        // Cloned, then plain.
        assert_eq!(
            codes_by(judge_other, PROMOTED),
            codes_by(judge_other, STARTED)
        );
        assert_eq!(
            codes_by(judge_other, UNPROMOTED),
            codes_by(judge_other, NOTHING)
        );
        assert_eq!(judge_other(PROMOTED, &active).adopt, STARTED);
    }

    #[test]
    fn a_role_is_adopted_only_where_none_was_assigned() {
        let adopted = engines().map(|engine| judge_probe(NOTHING, &engine).adopt);
        assert_eq!(
            adopted,
            [
                None, None, None, UNPROMOTED, UNPROMOTED, PROMOTED, UNPROMOTED
            ]
        );
        for engine in engines() {
            assert_eq!(judge_probe(UNPROMOTED, &engine).adopt, None);
            assert_eq!(judge_probe(PROMOTED, &engine).adopt, None);
        }
    }

    #[test]
    fn the_reason_carries_the_replicas_own_words() {
        let mut outdated = status(Role::Outdated);
        outdated.detail = "node2 runs generation 4".to_owned();
        let verdict = judge_probe(PROMOTED, &Engine::Answers(Box::new(outdated)));
        assert_eq!(
            verdict.outcome.unwrap_err().reason,
            "The replica is outdated: node2 runs generation 4"
        );
    }
}

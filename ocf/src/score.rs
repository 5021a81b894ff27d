// SPDX-License-Identifier: Apache-2.0
//! The promotion score: which replica Pacemaker prefers to promote.
//!
//! ```text
//!  replica                                                  score      Pacemaker may promote it
//!  -------------------------------------------------------  ---------  ------------------------
//!  active, also when the agents promoted it provisionally   10000      before any other
//!  passive, in sync                                          1000      yes: nothing is lost
//!  waiting, quorate, no better copy known to the agents         5      yes: the first boot
//!  waiting, any other, or its disks are only a copy          none      no
//!  passive, behind (first copy, resync)                 -INFINITY      never: its state has a gap
//!  outdated                                             -INFINITY      never
//!  no answer, dead, stopped                                  none      no
//! ```
//!
//! A score of its own for a replica that is behind, and not merely none: a location constraint adds to
//! none, so that `crm resource move` could have Pacemaker demote the active replica for one that
//! cannot go on from its state.
//!
//! Between two calls of the resource agent the node's kemari-agent sets `-INFINITY` as soon as it is
//! due (`kemari_agent::score`), so that Pacemaker finds no old score of a node that was silent.
//!
//! The score is advice to Pacemaker. What may really run, the agents and the engine decide when
//! `promote` is called; a stale score can delay a promotion, it cannot cause a wrong one.

use std::process::Stdio;
use std::time::Duration;

use kemari_api::agent::{ClusterView, ReplicaView, Vote};
use kemari_api::replica::{DiskState, ReplicaStatus};
use kemari_api::{Generation, Role};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::cluster::Known;
use crate::engine::Engine;
use crate::environment::Environment;
use crate::exit::warn;

/// From a change of an attribute to Pacemaker's coordinator having given its present plan up.
const SEEN_AFTER: Duration = Duration::from_millis(200);

/// A promotion score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Score {
    /// Promotable; the highest is taken.
    Value(u32),
    /// No score: Pacemaker does not promote it.
    None,
    /// Never, whatever location constraints say.
    Never,
}

/// The score of an engine. `first_boot` is what [`may_boot`] said of a waiting one.
pub(crate) fn of(engine: &Engine, first_boot: bool) -> Score {
    let Engine::Answers(status) = engine else {
        return Score::None;
    };
    match status.role {
        Role::Active => Score::Value(10_000),
        Role::Passive if status.in_sync => Score::Value(1_000),
        Role::Waiting if first_boot => Score::Value(5),
        Role::Waiting => Score::None,
        Role::Passive | Role::Outdated => Score::Never,
    }
}

/// Whether a waiting replica may boot the guest from nothing, as far as the agents know.
///
/// # Errors
/// Why not, one sentence.
pub(crate) fn may_boot(known: &Known, own: &ReplicaStatus) -> Result<(), String> {
    let view = &known.view;
    if !view.quorate {
        return Err("this partition has no quorum".to_owned());
    }
    if matches!(own.disks, DiskState::Copy | DiskState::Incomplete) {
        let ran_last = newest_vote(known).filter(|vote| vote.holder != own.node);
        return Err(format!(
            "its disks are a copy of those of the node where the guest ran last{}",
            ran_last.map_or_else(String::new, |vote| format!(
                " ({}, as recorded)",
                vote.holder
            ))
        ));
    }
    for other in &view.replicas {
        let status = &other.status;
        if status.vm != own.vm || status.node == own.node {
            continue;
        }
        let holds_state = match status.role {
            Role::Active => true,
            Role::Passive => status.in_sync,
            Role::Waiting | Role::Outdated => false,
        };
        if own.disks == DiskState::Own
            && status.disks == DiskState::Own
            && status.generation > own.generation
        {
            return Err(format!(
                "the disks of {} are newer, generation {}",
                status.node, status.generation
            ));
        }
        if own.disks == DiskState::Own
            && own.generation == Generation::default()
            && matches!(status.disks, DiskState::Copy | DiskState::Incomplete)
        {
            return Err(format!(
                "the disks of {} are a copy of disks on which the guest ran, and it never ran on these",
                status.node
            ));
        }
        if holds_state {
            return Err(format!(
                "the replica on {} is {}, generation {}",
                status.node, status.role, status.generation
            ));
        }
    }
    newest_vote(known).map_or(Ok(()), |vote| last_holder_allows(view, vote, own))
}

/// The newest generation that any agent is known to have recorded.
fn newest_vote(known: &Known) -> Option<&Vote> {
    let granted = known.votes.iter().filter(|vote| vote.generation.get() > 0);
    granted.max_by_key(|vote| vote.generation)
}

/// The agent refuses a cold start while it knows nothing of the last holder, or of its disks; so does the score.
fn last_holder_allows(view: &ClusterView, vote: &Vote, own: &ReplicaStatus) -> Result<(), String> {
    let holder = &vote.holder;
    let spoke = |other: &ReplicaView| other.status.vm == own.vm && other.status.node == *holder;
    if *holder == own.node || view.replicas.iter().any(spoke) {
        return Ok(());
    }
    if !view.agents.contains(holder) {
        return Err(format!(
            "{holder} held the right to run last and has not been heard since"
        ));
    }
    if own.disks == DiskState::Own && vote.generation > own.generation {
        return Err(format!(
            "{holder} held the right to run last, and no engine there says how new its disks are"
        ));
    }
    Ok(())
}

/// Hands the score to Pacemaker. Outside Pacemaker, and when its attribute manager fails, only a
/// line in the log is written: the action itself is not in question.
pub(crate) async fn publish(environment: &Environment, score: Score, patience: Duration) {
    if !environment.under_pacemaker {
        return;
    }
    let mut command = Command::new("crm_attribute");
    command.arg("--promotion").stdin(Stdio::null());
    match score {
        Score::Value(value) => command.arg("-v").arg(value.to_string()),
        Score::Never => command.args(["-v", "-INFINITY"]),
        Score::None => command.arg("-D"),
    };
    if let Err(reason) = done(command, patience).await {
        warn(format!(
            "Cannot set the promotion score to {score:?}: {reason}"
        ));
    }
}

/// Has this node's attribute manager write all that it knows to the cluster information base again, and leaves
/// Pacemaker a moment to see what was missing there.
pub(crate) async fn write_again(environment: &Environment, patience: Duration) {
    if !environment.under_pacemaker {
        return;
    }
    let mut command = Command::new("attrd_updater");
    command.arg("--refresh").stdin(Stdio::null());
    match done(command, patience).await {
        Ok(()) => sleep(SEEN_AFTER).await,
        Err(reason) => warn(format!("Cannot write the promotion scores again: {reason}")),
    }
}

/// Runs a command of Pacemaker's to its end, which it has to reach in time.
async fn done(mut command: Command, patience: Duration) -> Result<(), String> {
    let name = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    match timeout(patience, command.kill_on_drop(true).output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(format!(
            "{name} says {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Ok(Err(error)) => Err(format!("{name} cannot be run: {error}")),
        Err(_) => Err(format!("{name} took over {} s", patience.as_secs_f32())),
    }
}

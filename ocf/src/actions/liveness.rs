// SPDX-License-Identifier: Apache-2.0
//! The deep check of `monitor` (`OCF_CHECK_LEVEL` 10): does the replica work, and not only answer?
//!
//! The engine's status is answered by a thread that has nothing to do with the guest. Its monitor
//! takes `info balloon` to the thread that stops the guest's CPUs and devices, cuts checkpoints and
//! receives them. That thread answers between two of its tasks. A CPU that does not stop, or a disk
//! request that does not end, keeps a protected guest's next checkpoint from being cut, and so the
//! answer away. An unprotected guest is not stopped for checkpoints: of its CPUs this check says
//! nothing.
//!
//! A long task that gets on (a copy, a snapshot) shows in the figures, and counts as work. Commits
//! that do not come although that thread answers are the other replica's affair or the link's:
//! failing this one would end the healthy half, so it is only said.

use std::time::Duration;

use kemari_api::config::VmConfig;
use kemari_api::replica::{ReplicaProxy, ReplicaStatus};
use kemari_api::{Licence, Role};
use tokio::time::{Instant, sleep, timeout};

use crate::engine;
use crate::exit::{inform, warn};
use crate::instance::Instance;

/// Between two looks at the epoch.
const LOOK: Duration = Duration::from_millis(50);
/// What a commit may take beyond the longest epoch and the peer's silence.
const COMMIT_MAX: Duration = Duration::from_secs(1);

/// Whether the replica that said `status` works.
///
/// # Errors
/// What it does not do, one sentence.
pub(super) async fn check(instance: &Instance, status: &ReplicaStatus) -> Result<(), String> {
    instance.waits_for("the engine to be reached for a deep check");
    let engine = engine::reach(&instance.vm).await?;
    takes_requests(instance, &engine, status).await?;
    if must_commit(status) {
        commits(instance, &engine, status).await;
    }
    Ok(())
}

async fn takes_requests(
    instance: &Instance,
    engine: &ReplicaProxy<'_>,
    status: &ReplicaStatus,
) -> Result<(), String> {
    let patience = instance.left() / 2;
    instance.waits_for("the engine to take a request");
    let before = figures(instance, engine).await;
    // A refusal is an answer, too.
    if timeout(patience, engine.monitor("info balloon"))
        .await
        .is_ok()
    {
        return Ok(());
    }
    let now = timeout(instance.left() / 2, engine.status()).await;
    let gets_on =
        figures(instance, engine).await != before || matches!(&now, Ok(Ok(now)) if now != status);
    if gets_on {
        inform(format!(
            "The engine of VM {} is busy, and gets on",
            instance.vm
        ));
        return Ok(());
    }
    Err(format!(
        "The engine of VM {} answers, but took no request for {} s and nothing got on meanwhile: \
         a CPU or a disk request of the guest hangs; look at the storage of this node",
        instance.vm,
        patience.as_secs_f32()
    ))
}

/// What `info migrate` counts.
async fn figures(instance: &Instance, engine: &ReplicaProxy<'_>) -> Option<String> {
    let asked = timeout(instance.left() / 4, engine.monitor("info migrate"));
    asked.await.ok()?.ok()
}

/// An active guest that runs has an epoch at least every `epoch_ms_max`, and a passive replica in
/// sync commits it.
fn must_commit(status: &ReplicaStatus) -> bool {
    status.role == Role::Active
        && status.running
        && status.in_sync
        && status.licence == Licence::Paired
}

/// Looks for a commit, and warns if there is none.
async fn commits(instance: &Instance, engine: &ReplicaProxy<'_>, before: &ReplicaStatus) {
    let patience = instance.left() / 2;
    if longest_gap(instance).is_none_or(|gap| gap > patience) {
        return inform(format!(
            "Commits of VM {} are not looked for: the time-out of this monitor is too short for \
             epoch_ms_max and peer_timeout_ms",
            instance.vm
        ));
    }
    let end = Instant::now() + patience;
    while Instant::now() < end {
        let Ok(Ok(now)) = timeout(LOOK * 10, engine.status()).await else {
            return;
        };
        if !must_commit(&now) || now.generation != before.generation || now.epoch != before.epoch {
            return;
        }
        sleep(LOOK).await;
    }
    warn(format!(
        "VM {} is paired with {}, which has committed nothing for {} s: outputs wait. Look at that \
         node and at the link",
        instance.vm,
        before.peer,
        patience.as_secs_f32()
    ));
}

/// How long two commits may lie apart before the engine itself calls the pair cut.
fn longest_gap(instance: &Instance) -> Option<Duration> {
    let replication = VmConfig::load(&instance.config).ok()?.replication;
    let ms = |value: u32| Duration::from_millis(value.into());
    let silence = ms(replication.peer_timeout_ms.get());
    Some(ms(replication.epoch_ms_max.get()) * 2 + silence + COMMIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::status;

    #[test]
    fn only_a_running_guest_of_a_whole_pair_must_commit() {
        let mut whole = status(Role::Active);
        (whole.running, whole.in_sync, whole.licence) = (true, true, Licence::Paired);
        assert!(must_commit(&whole));
        for change in [
            (|status| status.running = false) as fn(&mut ReplicaStatus),
            |status| status.in_sync = false,
            |status| status.licence = Licence::Cut,
            |status| status.licence = Licence::Solo,
            |status| status.role = Role::Passive,
        ] {
            let mut other = whole.clone();
            change(&mut other);
            assert!(!must_commit(&other), "{other:?}");
        }
    }
}

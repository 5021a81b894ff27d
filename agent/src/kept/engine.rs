// SPDX-License-Identifier: Apache-2.0
//! Starting and ending the engines of kept replicas.
//!
//! Nothing is waited for here: what has become of it, the next look tells.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kemari_api::replica::refusal_text;
use kemari_api::unit::{Signal, Systemd};
use kemari_api::{Role, VmName, note, place};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::engines::Engines;

/// Longest wait for systemd.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// After an engine that failed another one is tried.
const AGAIN: Duration = Duration::from_secs(30);
/// An engine that was asked to end is terminated after this, and killed after twice this.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is under way.
#[derive(Debug)]
pub(super) struct KeptEngines {
    /// Those of this node.
    engines: Engines,
    /// When an engine was started last.
    started: BTreeMap<VmName, Instant>,
    /// Since when one is to end.
    ending: BTreeMap<VmName, Instant>,
}

impl KeptEngines {
    /// Nothing is under way.
    pub(super) fn of(engines: Engines) -> Self {
        Self {
            engines,
            started: BTreeMap::new(),
            ending: BTreeMap::new(),
        }
    }

    /// Starts the engine: it waits for an active replica to reach it.
    ///
    /// # Errors
    /// How the last one ended, or why none can be started.
    pub(super) async fn start(&mut self, vm: &VmName, description: &Path) -> Result<(), String> {
        match timeout(ANSWER_MAX, self.begin(vm, description)).await {
            Ok(result) => result,
            Err(_) => Err(format!(
                "systemd does not answer within {} s",
                ANSWER_MAX.as_secs()
            )),
        }
    }

    async fn begin(&mut self, vm: &VmName, description: &Path) -> Result<(), String> {
        self.ending.remove(vm);
        let since = self.started.get(vm).map(Instant::elapsed);
        if since.is_some_and(|since| since < AGAIN) {
            return Ok(());
        }
        let unit = place::unit(vm);
        let said = |error: zbus::Error| format!("systemd: {}", refusal_text(&error));
        let systemd = Systemd::connect().await.map_err(said)?;
        let before = systemd.look(&unit).await.map_err(said)?;
        if before.load != "loaded" {
            debug!(%vm, "There is no unit {unit} on this node: it hosts no replica");
            return Ok(());
        }
        if !before.is_over() || systemd.is_stopping().await.map_err(said)? {
            return Ok(());
        }
        note::describe(vm, description)
            .and_then(|()| note::keep(vm))
            .map_err(|error| format!("cannot write to {}: {error}", place::run_dir().display()))?;
        if before.active == "failed" {
            systemd.forget_end(&unit).await.map_err(said)?;
        }
        systemd.begin(&unit).await.map_err(said)?;
        self.started.insert(vm.clone(), Instant::now());
        info!(%vm, "Starting an engine that waits to be the passive replica");
        if before.active == "failed" {
            return Err(format!("{}; it is started again", before.ending(&unit)));
        }
        Ok(())
    }

    /// Ends the engine.
    pub(super) async fn end(&mut self, vm: &VmName, here: Option<Role>, why: &str) {
        let Some(since) = self.ending.get(vm).map(Instant::elapsed) else {
            info!(%vm, why, "Ending the replica that is kept here");
            self.ending.insert(vm.clone(), Instant::now());
            let asked = match here {
                // Nobody is to go on with the guest by itself.
                Some(Role::Active) => self.engines.hand_over(vm).await,
                _ => Ok(()),
            };
            let asked = match asked {
                Ok(()) => self.engines.end(vm).await,
                refused => refused,
            };
            if let Err(reason) = asked {
                warn!(%vm, reason, "The engine does not end by itself");
            }
            return;
        };
        if since < PATIENCE {
            return;
        }
        let signal = if since < 2 * PATIENCE {
            Signal::Terminate
        } else {
            Signal::Kill
        };
        let unit = place::unit(vm);
        let told = async { Systemd::connect().await?.signal(&unit, signal).await };
        match timeout(ANSWER_MAX, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%vm, "systemd cannot end {unit}: {}", refusal_text(&error));
            }
            Err(_) => warn!(%vm, "systemd does not answer"),
        }
    }

    /// The guest is to shut down.
    pub(super) async fn press_power_button(&self, vm: &VmName) {
        warn!(%vm, "The VM is stopped and its guest runs here, unknown to Pacemaker: pressing its power button");
        if let Err(reason) = self.engines.press_power_button(vm).await {
            warn!(%vm, reason, "The guest has no power button to press");
        }
    }

    /// Nothing is to be done. Notes of a replica that has ended are removed.
    pub(super) fn settled(&mut self, vm: &VmName, here: Option<Role>) {
        if here.is_some() {
            self.ending.remove(vm);
            return;
        }
        self.started.remove(vm);
        if self.ending.remove(vm).is_some() {
            forget(vm);
        }
    }

    /// The engine is no longer a kept one, whatever becomes of it.
    pub(super) fn leave(&mut self, vm: &VmName) {
        self.ending.remove(vm);
        self.started.remove(vm);
        if note::is_kept(vm)
            && let Err(error) = note::keep_no_more(vm)
        {
            warn!(%vm, %error, "A note cannot be removed");
        }
    }
}

fn forget(vm: &VmName) {
    if let Err(error) = note::keep_no_more(vm).and_then(|()| note::undescribe(vm)) {
        warn!(%vm, %error, "A note cannot be removed");
    }
}

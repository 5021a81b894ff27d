// SPDX-License-Identifier: Apache-2.0
//! Before the host goes down, its protected VMs go on elsewhere.
//!
//! While one runs here the agent holds a delay lock of systemd-logind (`org.freedesktop.login1(5)`,
//! <https://systemd.io/INHIBITOR_LOCKS>). When the host is told to go down, logind says so and waits for the
//! lock. Where Pacemaker runs, the VMs are its business: systemd stops it next, and it hands them over.
//! Who moved them at the same time would have it see failed instances, and undo that. So the agent acts
//! only where it is certain that Pacemaker does not run, and lets go of the lock at once otherwise.

use std::time::Duration;

use futures_util::StreamExt as _;
use kemari_api::{NodeName, VmName};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedFd, OwnedObjectPath};

use super::Movable;
use crate::bus::Input;
use crate::bus::shown::Shown;

/// Longest hold of the lock after logind's word: below the 5 s of `InhibitDelayMaxSec=`.
const PATIENCE: Duration = Duration::from_secs(4);
/// Pause before logind is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Either is Pacemaker.
const PACEMAKER: [&str; 2] = ["pacemaker.service", "pacemaker_remote.service"];
/// systemd has never heard of the unit, or has forgotten it.
const NO_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Logind {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait AnyUnit {
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
}

/// Whose business the VMs are when the host goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mover {
    /// Pacemaker runs, or nobody can tell.
    Pacemaker,
    /// There is certainly no Pacemaker.
    Agent,
}

/// What the guard needs of the daemon.
#[derive(Debug)]
pub struct Guard {
    /// This node.
    pub node: NodeName,
    /// The VMs to hand over.
    pub movable: watch::Receiver<Movable>,
    /// Where each VM runs.
    pub shown: watch::Receiver<Shown>,
    /// The daemon's loop.
    pub inputs: UnboundedSender<Input>,
}

impl Guard {
    /// Ends with the daemon.
    pub async fn keep(mut self) {
        let mut said = String::new();
        loop {
            if self.movable.wait_for(|vms| !vms.is_empty()).await.is_err() {
                return;
            }
            let watched = match Connection::system().await {
                Ok(connection) => self.watch(&connection).await,
                Err(error) => Err(error),
            };
            match watched {
                Ok(()) => return,
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        debug!(%error, "No word of systemd-logind before the host goes down");
                        said = text;
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Holds the lock while there is something to hand over. Ends well with the daemon.
    async fn watch(&mut self, connection: &Connection) -> zbus::Result<()> {
        let logind = LogindProxy::new(connection).await?;
        let mut words = logind.receive_prepare_for_shutdown().await?;
        let mut lock = None;
        let mut going_down = false;
        loop {
            let wanted = !going_down && !self.movable.borrow_and_update().is_empty();
            match (wanted, &lock) {
                (true, None) => lock = Some(take_lock(&logind).await?),
                (false, Some(_)) => lock = None,
                _ => {}
            }
            tokio::select! {
                changed = self.movable.changed() => if changed.is_err() {
                    return Ok(());
                },
                word = words.next() => {
                    let gone = || zbus::Error::Failure("The bus is gone".to_owned());
                    going_down = word.ok_or_else(gone)?.args()?.start;
                    if going_down {
                        self.leave(connection).await;
                    }
                }
            }
        }
    }

    /// The host goes down.
    async fn leave(&mut self, connection: &Connection) {
        let vms = self.movable.borrow_and_update().clone();
        if vms.is_empty() {
            return;
        }
        if mover(connection).await == Mover::Pacemaker {
            info!("The host goes down; handing the VMs over is Pacemaker's business");
            return;
        }
        info!(
            vms = vms.len(),
            "The host goes down and Pacemaker does not run: handing the VMs over"
        );
        let left = timeout(PATIENCE, async {
            let mut leaving = Vec::new();
            for vm in &vms {
                match self.ask_to_leave(vm).await {
                    Ok(()) => leaving.push(vm),
                    Err(reason) => warn!(%vm, %reason, "Not handed over"),
                }
            }
            for vm in leaving {
                self.until_elsewhere(vm).await;
            }
        });
        if left.await.is_err() {
            warn!(
                "Not every VM had moved when the host went down; those that had not are taken over by their other nodes if they can be"
            );
        }
    }

    /// The daemon's loop looks once more whether another node would go on with it.
    async fn ask_to_leave(&self, vm: &VmName) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let vm = vm.clone();
        let _ = self.inputs.send(Input::FailOver { vm, answer });
        let ending = |_| "kemari-agent is ending".to_owned();
        answered.await.map_err(ending)?
    }

    /// Until the VM runs on another node, or no replica of it is known.
    async fn until_elsewhere(&mut self, vm: &VmName) {
        let node = self.node.as_str();
        let elsewhere = |shown: &Shown| {
            shown
                .get(vm)
                .is_none_or(|vm| !vm.active_node.is_empty() && vm.active_node != node)
        };
        if self.shown.wait_for(elsewhere).await.is_ok() {
            info!(%vm, "Goes on elsewhere");
        }
    }
}

async fn take_lock(logind: &LogindProxy<'_>) -> zbus::Result<OwnedFd> {
    let why = "Protected virtual machines go on at their other hosts first";
    logind
        .inhibit("shutdown", "kemari-agent", why, "delay")
        .await
}

async fn mover(connection: &Connection) -> Mover {
    for unit in PACEMAKER {
        match state_of(connection, unit).await {
            Ok(None) => {}
            Ok(Some(state)) if matches!(state.as_str(), "inactive" | "failed") => {}
            Ok(Some(_)) => return Mover::Pacemaker,
            Err(error) => {
                warn!(unit, %error, "Nobody can tell whether Pacemaker runs");
                return Mover::Pacemaker;
            }
        }
    }
    Mover::Agent
}

async fn state_of(connection: &Connection, unit: &str) -> zbus::Result<Option<String>> {
    let path = match SystemdProxy::new(connection).await?.get_unit(unit).await {
        Ok(path) => path,
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_UNIT => return Ok(None),
        Err(error) => return Err(error),
    };
    let unit = AnyUnitProxy::builder(connection)
        .path(path)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    unit.active_state().await.map(Some)
}

#[cfg(test)]
mod tests;

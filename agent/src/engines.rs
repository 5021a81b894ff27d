// SPDX-License-Identifier: Apache-2.0
//! The engines of this node: finding them, hearing them, asking them, and knowing when one ended.
//!
//! A connection that closes is not an engine that ended: [`Input::Gone`] is sent only when the
//! process is certainly gone, since on this word another node starts the guest without waiting for
//! anything. What an engine is asked runs in a task of its own, so a stuck one delays nobody.

mod directory;
mod process;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use kemari_api::replica::{self, ConnectError, ReplicaProxy, ReplicaStatus, refusal_text};
use kemari_api::{NodeName, VmName, place};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};
use zbus::export::futures_core::Stream;

use crate::arbitration::{Action, Command};
use process::Process;

/// Longest wait for an engine's answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long to look closely at a process that closed its socket, before looking at its socket.
const LOOK: Duration = Duration::from_millis(200);
/// Pause before an engine that did not answer properly is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What engines say.
#[derive(Debug)]
pub enum Input {
    /// A replica's own words.
    Status(ReplicaStatus),
    /// The engine process has ended.
    Gone(VmName),
    /// The answer to [`Engines::ask`].
    Answered {
        /// The VM.
        vm: VmName,
        /// What it was asked.
        command: Command,
        /// Its answer.
        result: Result<(), String>,
    },
}

/// The engines of this node.
#[derive(Debug, Clone)]
pub struct Engines {
    node: NodeName,
    inputs: UnboundedSender<Input>,
    proxies: Arc<Mutex<BTreeMap<VmName, ReplicaProxy<'static>>>>,
}

impl Engines {
    /// Begins to look for engines. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the run directory cannot be watched.
    pub fn start(node: NodeName, inputs: UnboundedSender<Input>) -> io::Result<Self> {
        let engines = Self {
            node,
            inputs,
            proxies: Arc::default(),
        };
        let (found, names) = unbounded_channel();
        directory::watch(place::run_dir(), found)?;
        tokio::spawn(engines.clone().meet(names));
        Ok(engines)
    }

    /// Engines of which nothing is known and for which nobody looks.
    #[cfg(test)]
    pub(crate) fn without_any(node: NodeName, inputs: UnboundedSender<Input>) -> Self {
        Self {
            node,
            inputs,
            proxies: Arc::default(),
        }
    }

    /// Every engine that there is a connection to.
    #[must_use]
    pub fn known(&self) -> Vec<(VmName, ReplicaProxy<'static>)> {
        self.with_proxies(|proxies| {
            let pair = |(vm, proxy): (&VmName, &ReplicaProxy<'static>)| (vm.clone(), proxy.clone());
            proxies.iter().map(pair).collect()
        })
    }

    /// One task a VM, woken each time its socket appears.
    async fn meet(self, mut names: UnboundedReceiver<VmName>) {
        let mut known: BTreeMap<VmName, Arc<Notify>> = BTreeMap::new();
        while let Some(vm) = names.recv().await {
            let woken = known.entry(vm.clone()).or_insert_with(|| {
                let woken = Arc::new(Notify::new());
                tokio::spawn(self.clone().follow(vm, woken.clone()));
                woken
            });
            woken.notify_one();
        }
    }

    async fn follow(self, vm: VmName, woken: Arc<Notify>) {
        loop {
            woken.notified().await;
            let mut said = String::new();
            while let Err(error) = self.accompany(&vm).await {
                let text = error.to_string();
                if text != said {
                    warn!(%vm, %error, "An engine's control socket does not work, trying again");
                    said = text;
                }
                sleep(RETRY).await;
            }
        }
    }

    /// From the first contact with an engine until no engine is there.
    async fn accompany(&self, vm: &VmName) -> Result<(), ConnectError> {
        loop {
            let (proxy, pid) = match replica::connect(vm).await {
                Ok(connected) => connected,
                Err(ConnectError::NotRunning { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            let process = pid.map(Process::of);
            let heard = self.listen(vm, &proxy).await;
            self.with_proxies(|proxies| proxies.remove(vm));
            drop(proxy);
            if self.wait_for_end_or_socket(vm, process).await {
                info!(%vm, pid, "The engine process has ended");
                let _ = self.inputs.send(Input::Gone(vm.clone()));
            } else if let Err(error) = heard {
                sleep(RETRY).await;
                return Err(ConnectError::Bus {
                    vm: vm.clone(),
                    source: error,
                });
            }
        }
    }

    /// Passes on what the engine says until the connection closes.
    async fn listen(&self, vm: &VmName, proxy: &ReplicaProxy<'static>) -> zbus::Result<()> {
        let mut changes = pin!(proxy.receive_changed().await?);
        // A change sent before the first answer is older than it: ask again until none was.
        let first = loop {
            let status = timeout(ANSWER_MAX, proxy.status())
                .await
                .map_err(|_| zbus::Error::Failure("no answer to Status".to_owned()))??;
            let sent_before = poll_fn(|cx| Poll::Ready(changes.as_mut().poll_next(cx))).await;
            if !matches!(sent_before, Poll::Ready(Some(_))) {
                break status;
            }
        };
        self.with_proxies(|proxies| proxies.insert(vm.clone(), proxy.clone()));
        self.report(vm, first);
        while let Some(change) = poll_fn(|cx| changes.as_mut().poll_next(cx)).await {
            self.report(vm, change.args()?.status);
        }
        Ok(())
    }

    fn report(&self, vm: &VmName, mut status: ReplicaStatus) {
        if status.vm != *vm {
            warn!(%vm, says = %status.vm, "An engine answers on another VM's socket, ignored");
            return;
        }
        if status.node != self.node {
            warn!(
                %vm, says = %status.node, node = %self.node,
                "The engine calls this node otherwise than Corosync does: the other nodes will not \
                 notice its loss. Set the host name to the name in corosync.conf"
            );
            status.node = self.node.clone();
        }
        let _ = self.inputs.send(Input::Status(status));
    }

    /// After a connection closed: true when the process is gone, false when it lives and its
    /// socket answers again.
    async fn wait_for_end_or_socket(&self, vm: &VmName, process: Option<Process>) -> bool {
        loop {
            if let Some(process) = process.clone() {
                // A dying process takes far less than the runtime's timers can tell apart.
                let ended = tokio::task::spawn_blocking(move || process.ends_within(LOOK));
                if ended.await.unwrap_or(false) {
                    return true;
                }
            }
            debug!(%vm, "An engine closed its control socket and still runs");
            let socket = place::control_socket(vm);
            let answers = tokio::net::UnixStream::connect(&socket).await.is_ok();
            if answers && !process.as_ref().is_some_and(Process::has_ended) {
                return false;
            }
            sleep(LOOK).await;
        }
    }

    /// Asks the VM's engine what `action` says; the answer comes as [`Input::Answered`]. Returns
    /// false if the action is none for an engine.
    pub fn ask(&self, action: &Action) -> bool {
        let (vm, command) = match action {
            Action::Promote { vm, .. } => (vm.clone(), Command::Promote),
            Action::GoSolo { vm, .. } => (vm.clone(), Command::GoSolo),
            Action::Outdate { vm, .. } => (vm.clone(), Command::Outdate),
            Action::Protect { vm, .. } => (vm.clone(), Command::Protect),
            _ => return false,
        };
        let (engines, action) = (self.clone(), action.clone());
        tokio::spawn(async move {
            let result = engines.call(&vm, &action).await;
            let _ = engines.inputs.send(Input::Answered {
                vm,
                command,
                result,
            });
        });
        true
    }

    async fn call(&self, vm: &VmName, action: &Action) -> Result<(), String> {
        let proxy = self.proxy(vm)?;
        let call = async {
            match action {
                Action::Promote {
                    how, generation, ..
                } => proxy.promote(*how, *generation).await,
                Action::GoSolo { generation, .. } => proxy.go_solo(*generation).await,
                Action::Outdate { generation, .. } => proxy.outdate(*generation).await,
                Action::Protect { address, .. } => proxy.protect(address).await,
                _ => Ok(()),
            }
        };
        // What gives a right to run may still be carried out after any time-out of ours, so its
        // answer is waited for until the process ends.
        if matches!(action, Action::Promote { .. } | Action::GoSolo { .. }) {
            return call.await.map_err(|error| refusal_text(&error));
        }
        answered(vm, timeout(ANSWER_MAX, call).await)
    }

    /// Presses the power button of the VM's guest.
    ///
    /// # Errors
    /// A sentence: there is no engine, or it refuses.
    pub async fn press_power_button(&self, vm: &VmName) -> Result<(), String> {
        let proxy = self.proxy(vm)?;
        answered(vm, timeout(ANSWER_MAX, proxy.power_button()).await)
    }

    /// Has the VM's engine end. It answers before it does.
    ///
    /// # Errors
    /// A sentence: there is no engine, or it refuses.
    pub async fn end(&self, vm: &VmName) -> Result<(), String> {
        let proxy = self.proxy(vm)?;
        answered(vm, timeout(ANSWER_MAX, proxy.quit()).await)
    }

    /// Has the VM's engine hand its guest over.
    ///
    /// # Errors
    /// A sentence: there is no engine, or it refuses.
    pub async fn hand_over(&self, vm: &VmName) -> Result<(), String> {
        let proxy = self.proxy(vm)?;
        answered(vm, timeout(ANSWER_MAX, proxy.demote()).await)
    }

    fn proxy(&self, vm: &VmName) -> Result<ReplicaProxy<'static>, String> {
        self.with_proxies(|proxies| proxies.get(vm).cloned())
            .ok_or_else(|| format!("No engine of VM {vm} runs on this node"))
    }

    fn with_proxies<R>(
        &self,
        action: impl FnOnce(&mut BTreeMap<VmName, ReplicaProxy<'static>>) -> R,
    ) -> R {
        action(&mut self.proxies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What an engine answered, or that it did not.
fn answered(vm: &VmName, result: Result<zbus::Result<()>, Elapsed>) -> Result<(), String> {
    match result {
        Ok(result) => result.map_err(|error| refusal_text(&error)),
        Err(_) => Err(format!(
            "The engine of VM {vm} did not answer within {} s",
            ANSWER_MAX.as_secs()
        )),
    }
}

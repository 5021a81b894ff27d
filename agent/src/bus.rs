// SPDX-License-Identifier: Apache-2.0
//! `org.kemari.Agent1` on the system bus, and below it an object for each VM.
//!
//! Requests go to the daemon's loop and wait there for the state machine's answer; after
//! [`ANSWER_MAX`] the caller hears what was missing. Without a bus the agent does all else.

mod permission;
pub mod shown;
mod vm;

use std::time::Duration;

use kemari_api::agent::{self, ClusterView, Gone, Vote};
use kemari_api::{NodeName, VmName};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};
use zbus::fdo;

use kemari_api::replica::refusal_text;
use shown::Shown;

/// Longest wait for a promotion.
pub const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Pause before the bus is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What callers ask of the daemon.
#[derive(Debug)]
pub enum Input {
    /// `Status`.
    Status(oneshot::Sender<Result<ClusterView, String>>),
    /// `Promote`.
    Promote {
        /// The VM.
        vm: VmName,
        /// Where the answer goes. Closed when the caller waits no longer.
        answer: oneshot::Sender<Result<(), String>>,
        /// Filled with what names the request in [`Input::Cancel`].
        cancel: oneshot::Sender<u64>,
    },
    /// `Fetch`.
    Fetch {
        /// The VM.
        vm: VmName,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// `ForceActive`.
    ForceActive {
        /// The VM.
        vm: VmName,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), String>>,
        /// Filled with what names the request in [`Input::Cancel`].
        cancel: oneshot::Sender<u64>,
    },
    /// `Votes`.
    Votes {
        /// The VM.
        vm: VmName,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Vec<Vote>, String>>,
    },
    /// `PowerButton`.
    PowerButton {
        /// The VM.
        vm: VmName,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// `FailOver`.
    FailOver {
        /// The VM.
        vm: VmName,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// The time of a `Promote` is over.
    Cancel(u64),
    /// `PassiveGone`.
    PassiveGone {
        /// The VM.
        vm: VmName,
        /// The node of its passive replica.
        node: NodeName,
    },
    /// The name on the bus is owned, or was lost.
    Serving(bool),
}

struct Service {
    inputs: UnboundedSender<Input>,
}

fn ends() -> fdo::Error {
    fdo::Error::Failed("kemari-agent is ending".to_owned())
}

#[zbus::interface(name = "org.kemari.Agent1")]
impl Service {
    async fn status(&self) -> fdo::Result<ClusterView> {
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(Input::Status(answer));
        answered
            .await
            .map_err(|_| ends())?
            .map_err(fdo::Error::Failed)
    }

    async fn promote(&self, vm: VmName) -> fdo::Result<()> {
        wait_for(&self.inputs, |answer, cancel| Input::Promote {
            vm,
            answer,
            cancel,
        })
        .await
    }

    async fn fetch(&self, vm: VmName) -> fdo::Result<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(Input::Fetch { vm, answer });
        answered
            .await
            .map_err(|_| ends())?
            .map_err(fdo::Error::Failed)
    }

    async fn votes(&self, vm: VmName) -> fdo::Result<Vec<Vote>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(Input::Votes { vm, answer });
        answered
            .await
            .map_err(|_| ends())?
            .map_err(fdo::Error::Failed)
    }

    async fn force_active(&self, vm: VmName, typed: String) -> fdo::Result<()> {
        force_active(&self.inputs, vm, &typed).await
    }

    fn passive_gone(&self, vm: VmName, node: NodeName, how: Gone) {
        debug!(%vm, %node, ?how, "Pacemaker says that a passive replica is gone");
        let _ = self.inputs.send(Input::PassiveGone { vm, node });
    }
}

async fn force_active(inputs: &UnboundedSender<Input>, vm: VmName, typed: &str) -> fdo::Result<()> {
    if typed != vm.as_str() {
        return Err(fdo::Error::Failed(format!(
            "Nothing was done: {typed:?} is not the name of VM {vm}"
        )));
    }
    wait_for(inputs, |answer, cancel| Input::ForceActive {
        vm,
        answer,
        cancel,
    })
    .await
}

/// Makes a request and waits for its answer, at most [`ANSWER_MAX`].
async fn wait_for(
    inputs: &UnboundedSender<Input>,
    request: impl FnOnce(oneshot::Sender<Result<(), String>>, oneshot::Sender<u64>) -> Input,
) -> fdo::Result<()> {
    let (answer, mut answered) = oneshot::channel();
    let (cancel, number) = oneshot::channel();
    let _ = inputs.send(request(answer, cancel));
    let number = number.await.map_err(|_| ends())?;
    let result = if let Ok(result) = timeout(ANSWER_MAX, &mut answered).await {
        result
    } else {
        let _ = inputs.send(Input::Cancel(number));
        answered.await
    };
    result.map_err(|_| ends())?.map_err(fdo::Error::Failed)
}

/// Owns the name on the system bus as long as there is one; never ends.
pub async fn serve(inputs: UnboundedSender<Input>, shown: watch::Receiver<Shown>) {
    let mut said = String::new();
    loop {
        match connect_to_system(&inputs).await {
            Ok(connection) => {
                said.clear();
                info!(name = agent::BUS_NAME, "Serving on the system bus");
                let _ = inputs.send(Input::Serving(true));
                tokio::select! {
                    () = wait_for_end(&connection) => {}
                    () = keep_objects(&connection, &inputs, &shown) => {}
                }
                let _ = inputs.send(Input::Serving(false));
                warn!("The system bus is gone, trying again");
            }
            Err(error) => {
                let reason = explain(&error);
                if reason != said {
                    warn!(%reason, "No system bus: Pacemaker cannot reach this agent; trying again");
                    said = reason;
                }
            }
        }
        sleep(RETRY).await;
    }
}

fn explain(error: &zbus::Error) -> String {
    match error {
        zbus::Error::NameTaken => {
            format!(
                "another process owns {}: is kemari-agent running twice?",
                agent::BUS_NAME
            )
        }
        other => refusal_text(other),
    }
}

/// Never ends: who cannot show VMs can still promote them.
async fn keep_objects(
    connection: &zbus::Connection,
    inputs: &UnboundedSender<Input>,
    shown: &watch::Receiver<Shown>,
) {
    if let Err(error) = vm::keep(connection, inputs, shown.clone()).await {
        debug!(%error, "The objects of the VMs are kept no more");
    }
    std::future::pending::<()>().await;
}

async fn connect_to_system(inputs: &UnboundedSender<Input>) -> zbus::Result<zbus::Connection> {
    connect(zbus::connection::Builder::system(), inputs).await
}

async fn connect(
    builder: zbus::connection::Builder<'_>,
    inputs: &UnboundedSender<Input>,
) -> zbus::Result<zbus::Connection> {
    let service = Service {
        inputs: inputs.clone(),
    };
    builder
        .serve_at(agent::PATH, service)
        .serve_at(agent::PATH, fdo::ObjectManager)
        .name(agent::BUS_NAME)
        .build()
        .await
}

/// The bus tells its id for as long as the connection lives (D-Bus specification, `GetId`; unlike
/// `Peer.Ping`, every bus's policy allows it).
async fn wait_for_end(connection: &zbus::Connection) {
    loop {
        sleep(RETRY).await;
        let id = connection.call_method(
            Some("org.freedesktop.DBus"),
            "/org/freedesktop/DBus",
            Some("org.freedesktop.DBus"),
            "GetId",
            &(),
        );
        if id.await.is_err() {
            return;
        }
    }
}

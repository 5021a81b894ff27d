// SPDX-License-Identifier: Apache-2.0
//! What the outside can ask of a replica, and why it may refuse.

use std::fs::File;
use std::sync::{Arc, mpsc};

use kemari_api::config::{AddressError, LinkAddresses, ReplicationAddress};
use kemari_api::figures::ReplicaFigures;
use kemari_api::replica::{AfterSnapshot, LinkView, Promotion, ReplicaStatus};
use kemari_api::{Generation, Licence, Role};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::conductor::Input;
use crate::conductor::statistics::Statistics;
use crate::link::passive::Held;
use crate::outputs::Outputs;

/// A request, as the control socket brings it.
#[derive(Debug)]
pub enum Request {
    /// Become active.
    Promote {
        /// From what.
        how: Promotion,
        /// The generation of the new right to run.
        generation: Generation,
    },
    /// End being active, handing over to an in-sync peer.
    Demote,
    /// Move the guest once to the engine at this address; answered when it runs there.
    Migrate(ReplicationAddress),
    /// Compare the disks of both replicas; answered when it is done.
    Verify,
    /// Replicate to the replica at these addresses; answered when the attempt has begun.
    Protect(LinkAddresses),
    /// Which links there are.
    Links(oneshot::Sender<Vec<LinkView>>),
    /// Let outputs out without a passive replica.
    GoSolo(Generation),
    /// A generation exists; stop if it is newer.
    Outdate(Generation),
    /// Go on with a guest that was read from a snapshot.
    RunSnapshot(Box<Held>, Generation),
    /// Write the guest to this file.
    SaveSnapshot(File, AfterSnapshot),
    /// Ask the guest to do with this many MiB.
    SetBalloon(u32),
    /// How much memory the guest shall keep and has kept, in MiB.
    Balloon(oneshot::Sender<Option<(u32, u32)>>),
    /// Press the guest's power button.
    PowerButton,
    /// Stop the guest's vCPU until [`Request::Continue`].
    Stop,
    /// Let a stopped guest go on.
    Continue,
    /// End the process.
    Quit,
}

/// Why a request was refused. The text reaches the administrator as it is.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The role does not allow it.
    #[error("This replica is {role}: {needed}")]
    Role {
        /// What it is.
        role: Role,
        /// What the request needs.
        needed: &'static str,
    },
    /// A take-over without a complete checkpoint.
    #[error("This replica is not in sync: it holds no complete checkpoint to run from")]
    NotInSync,
    /// The generation is not newer.
    #[error(
        "Generation {asked} is not newer than {known}, which this replica knows; \
         ask the agent for the newest one (kemarictl status)"
    )]
    OldGeneration {
        /// The request's.
        asked: Generation,
        /// The replica's.
        known: Generation,
    },
    /// The migration address is wrong.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Another replication is under way.
    #[error("The replica at {addresses} is or was this one's pair; stop that one first")]
    Busy {
        /// Where to.
        addresses: LinkAddresses,
    },
    /// Both replicas' disks were compared and are not equal.
    #[error("{0}")]
    Differ(String),
    /// The machine, the disk or the peer failed.
    #[error("{0}")]
    Failed(String),
    /// The process is ending.
    #[error("The engine is ending")]
    Ending,
}

impl Refusal {
    /// A failure of something below, in its own words.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed(crate::exit::chain(error))
    }
}

/// A request's answer.
pub type Answer = Result<(), Refusal>;

/// A clonable handle by which other threads talk to the conductor.
#[derive(Debug, Clone)]
pub struct ConductorHandle {
    inputs: mpsc::Sender<Input>,
    status: watch::Receiver<ReplicaStatus>,
    statistics: Statistics,
    outputs: Arc<Outputs>,
}

impl ConductorHandle {
    /// A handle onto these queues.
    pub fn new(
        inputs: mpsc::Sender<Input>,
        status: watch::Receiver<ReplicaStatus>,
        statistics: Statistics,
        outputs: Arc<Outputs>,
    ) -> Self {
        Self {
            inputs,
            status,
            statistics,
            outputs,
        }
    }

    /// Asks and waits for the answer.
    pub async fn ask(&self, request: Request) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.inputs
            .send(Input::Request(request, reply))
            .map_err(|_| Refusal::Ending)?;
        answer.await.unwrap_or(Err(Refusal::Ending))
    }

    /// The links to the other replica, the preferred one first.
    pub async fn links(&self) -> Result<Vec<LinkView>, Refusal> {
        let (tell, told) = oneshot::channel();
        self.ask(Request::Links(tell)).await?;
        told.await.map_err(|_| Refusal::Ending)
    }

    /// The status now.
    pub fn status(&self) -> ReplicaStatus {
        self.status.borrow().clone()
    }

    /// A receiver that sees every change of the status.
    pub fn watch(&self) -> watch::Receiver<ReplicaStatus> {
        self.status.clone()
    }

    /// What the replication costs, for programs.
    pub fn figures(&self) -> ReplicaFigures {
        let mut figures = self.statistics.reading(clock::now());
        let (outputs, bytes) = self
            .outputs
            .with_gate(|gate| (gate.tap().queued(), gate.tap().queued_bytes()));
        figures.queue_outputs = outputs as u64;
        figures.queue_bytes = bytes as u64;
        if !matches!(self.status().licence, Licence::Paired | Licence::Cut) {
            figures.lag_us = 0;
        }
        figures
    }

    /// Counters of the replication.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }
}

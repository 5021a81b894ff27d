// SPDX-License-Identifier: Apache-2.0
//! The instance an action works on: one VM on this node, with the time the action has.
//!
//! What several actions share lies here: looking at the engine, refreshing the promotion score,
//! keeping the note of the assigned role, and what is being waited for at the moment.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use kemari_api::replica::ReplicaStatus;
use kemari_api::{Assigned, Role, VmName};
use tokio::time::{Instant, timeout};

use crate::cluster;
use crate::engine::{self, Contact, Engine};
use crate::environment::Environment;
use crate::exit::{Failure, inform, warn};
use crate::form::Form;
use crate::resource;
use crate::score::{self, Score};

/// One VM on this node.
#[derive(Debug)]
pub(crate) struct Instance {
    /// The VM.
    pub(crate) vm: VmName,
    /// Its description.
    pub(crate) config: PathBuf,
    /// What Pacemaker said.
    pub(crate) environment: Environment,
    /// How long the whole action may take.
    pub(crate) budget: Duration,
    begun: Instant,
    waiting_for: RefCell<String>,
}

impl Instance {
    /// The instance of `vm`, which `config` describes, for an action that has been going on since
    /// `begun`.
    pub(crate) fn new(
        vm: VmName,
        config: PathBuf,
        environment: Environment,
        budget: Duration,
        begun: Instant,
    ) -> Self {
        Self {
            vm,
            config,
            environment,
            budget,
            begun,
            waiting_for: RefCell::default(),
        }
    }

    /// How much of its time the action has left.
    pub(crate) fn left(&self) -> Duration {
        self.budget.saturating_sub(self.begun.elapsed())
    }

    /// Notes what the action waits for from now on, for the reason when time is up.
    pub(crate) fn waits_for(&self, what: impl Into<String>) {
        *self.waiting_for.borrow_mut() = what.into();
    }

    /// What the action waits for.
    pub(crate) fn waiting_for(&self) -> String {
        self.waiting_for.borrow().clone()
    }

    /// Whether the engine is there and answers; a quarter of the time is spent on it.
    pub(crate) async fn answers(&self) -> bool {
        self.waits_for(format!("the engine of VM {} to answer", self.vm));
        let contact = timeout(self.left() / 4, engine::contact(&self.vm)).await;
        matches!(contact, Ok(Contact::Role(_)))
    }

    /// Looks at the engine; half the budget is kept for what follows.
    pub(crate) async fn observe(&self) -> Engine {
        self.waits_for(format!("the engine of VM {} to answer", self.vm));
        engine::observe(&self.vm, self.budget / 2).await
    }

    /// What the resource is to Pacemaker.
    pub(crate) fn form(&self) -> Form {
        if self.environment.under_pacemaker {
            self.environment.form
        } else {
            Form::remembered(self.assigned())
        }
    }

    /// The role Pacemaker assigned last. An unreadable note counts as none.
    pub(crate) fn assigned(&self) -> Option<Assigned> {
        Assigned::recall(&self.vm).unwrap_or_else(|error| {
            warn(format!("Cannot read the assigned role: {error}"));
            None
        })
    }

    /// Remembers the role Pacemaker assigned.
    ///
    /// # Errors
    /// `OCF_ERR_GENERIC`: without the note `monitor` would misjudge the replica.
    pub(crate) fn remember(&self, role: Assigned) -> Result<(), Failure> {
        role.remember(&self.vm).map_err(|error| {
            Failure::generic(format!(
                "Cannot write {}: {error}; check the file system of /run",
                kemari_api::place::assigned_role(&self.vm).display()
            ))
        })
    }

    /// Sets the promotion score that fits the engine; a plain primitive has none.
    pub(crate) async fn refresh_score(&self, engine: &Engine) {
        if self.form() == Form::Plain {
            return;
        }
        if let Some(name) = &self.environment.resource
            && self.environment.under_pacemaker
            && let Err(error) = resource::note(&self.vm, name)
        {
            warn(format!(
                "Cannot note for kemari-agent that VM {} is the resource {name}: {error}",
                self.vm
            ));
        }
        self.waits_for("kemari-agent to say who may boot");
        let first_boot = match engine {
            Engine::Answers(status) if status.role == Role::Waiting => self.may_boot(status).await,
            _ => false,
        };
        self.publish(score::of(engine, first_boot)).await;
    }

    /// Hands a score to Pacemaker. The action itself is done by then, so no more than half of the
    /// time that is left is spent on it.
    pub(crate) async fn publish(&self, score: Score) {
        self.waits_for("Pacemaker to take the promotion score");
        score::publish(&self.environment, score, self.left() / 2).await;
    }

    async fn may_boot(&self, own: &ReplicaStatus) -> bool {
        if !self.environment.under_pacemaker {
            return false;
        }
        let verdict = match cluster::known(&self.vm, self.left() / 4).await {
            Ok(known) => score::may_boot(&known, own),
            Err(failure) => Err(failure.reason),
        };
        if let Err(reason) = &verdict {
            inform(format!(
                "VM {} waits and is not promotable: {reason}",
                self.vm
            ));
        }
        verdict.is_ok()
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Live migration: the guest moves once, while it runs.
//!
//! It is the beginning of a pair whose first checkpoint is its last: memory is copied while the
//! guest runs, then it stands still, the rest follows, and with the goodbye the right to run. Before
//! that goodbye is sent, this side has recorded that it has no right any more: if it is lost on the
//! way, neither runs, and a person must say who shall.
//!
//! For hosts without a cluster manager. On a node of a cluster the resource is moved instead, and
//! agents decide; an engine that they start does not accept migrations.

use std::time::Duration;

use kemari_api::Epoch;
use kemari_api::config::ReplicationAddress;
use kemari_replication::licence::{Licence, LicenceEvent};
use kemari_replication::wire::Goodbye;
use tokio::sync::oneshot;

use super::finish::Finish;
use super::{Answer, Conductor, End, Refusal};
use crate::clock;
use crate::record::Kind;

/// A migration under way from here.
#[derive(Debug)]
pub struct Migration {
    reply: oneshot::Sender<Answer>,
    /// When the guest was stopped.
    stopped: Option<Duration>,
}

impl Migration {
    /// Tells whoever waits.
    pub fn answer(self, answer: Answer) {
        // Who has gone need not be told.
        let _ = self.reply.send(answer);
    }

    /// The guest stands still from now on.
    pub fn stops(&mut self) {
        self.stopped = Some(clock::now());
    }
}

impl Conductor {
    pub(super) fn migrate(&mut self, address: ReplicationAddress, reply: oneshot::Sender<Answer>) {
        let may = self.may_migrate().and_then(|()| {
            let usable = self.security.check(&address);
            usable.map_err(Refusal::Failed)
        });
        if let Err(refusal) = may {
            let _ = reply.send(Err(refusal));
            return;
        }
        tracing::info!(vm = %self.config.vm.name, generation = %self.generation, %address, "migrating");
        self.migration = Some(Migration {
            reply,
            stopped: None,
        });
        self.connect_once(address);
    }

    fn may_migrate(&self) -> Answer {
        self.needs_active("only an active guest can be migrated")?;
        self.needs_sound_memory()?;
        if self.finish.is_some() {
            return Err(Refusal::Ending);
        }
        if let (Some(links), false) = (&self.links, self.link.is_none()) {
            return Err(Refusal::Busy {
                addresses: links.addresses().clone(),
            });
        }
        match self.licence() {
            Licence::Solo { .. } => Ok(()),
            _ => Err(Refusal::Failed(
                "This replica has no solo licence; only a guest without a passive replica can be \
                 migrated"
                    .into(),
            )),
        }
    }

    /// The last checkpoint is committed there, or it never will be.
    pub(super) fn migrated(&mut self, committed: Option<Epoch>) {
        let Some(migration) = self.migration.take() else {
            return;
        };
        let Some(epoch) = committed else {
            migration.answer(Err(self.migration_failed()));
            return;
        };
        let generation = self.generation.next();
        let blackout = migration.stopped.map_or(Duration::ZERO, |stopped| {
            clock::now().saturating_sub(stopped)
        });
        self.generation = generation;
        if !self.write_record(Kind::Outdated) {
            return;
        }
        self.tell_gate(LicenceEvent::HandedOver);
        self.say_goodbye(Goodbye::Migrated { epoch, generation });
        self.statistics.left(blackout);
        let peer = self.peer_name().to_owned();
        tracing::info!(
            vm = %self.config.vm.name, %generation, %epoch, %peer, t_mono_us = clock::now_us(),
            stopped_us = blackout.as_micros(), sent_bytes = self.statistics.figures().sent_bytes,
            "migrated: the guest goes on there"
        );
        self.detail = format!("migrated to {peer}");
        self.migration = Some(migration);
        self.finish = Some(Finish::left());
    }

    /// The other engine has heard that the guest is its own: this one has nothing left to do.
    pub(super) fn end_after_migration(&mut self) {
        if let Some(migration) = self.migration.take() {
            migration.answer(Ok(()));
        }
        self.end = Some(End::Quit);
    }

    /// Nothing was committed there, so the guest is still only ours.
    fn migration_failed(&mut self) -> Refusal {
        let generation = self.generation.next();
        if let Err(refusal) = self.go_solo(generation) {
            return refusal;
        }
        Refusal::Failed("The other engine did not take the guest; it goes on here".into())
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The record of where disks may differ: what it begins with, the rounds that let regions of disks go
//! from it, and the one that gives a pair its base. A round begins at a cut, while the guest stands still; then this side's disks are made durable, then
//! the other side's. `kemari_replication::storage::WriteIntents` says why that is right.

use std::time::Duration;

use kemari_replication::storage::BaseId;

use super::finish::Finish;
use super::pair::LinkState;
use super::{Conductor, End};
use crate::clock;
use crate::record::{DiskRecord, DiskRecordState, FoundChanges, Record, RecordError};
use crate::storage::{Trust, Wholeness};

/// At least this long from one round to the next: each makes both sides' disks durable.
const EVERY: Duration = Duration::from_secs(10);

impl Conductor {
    /// Goes on from the record of where disks may differ, if the node's other records allow it.
    ///
    /// # Errors
    /// What cannot be trusted cannot be removed.
    pub fn remember_changes(
        &self,
        found: FoundChanges,
        licence: Option<Record>,
        disks: Option<DiskRecord>,
        trust: Trust,
    ) -> Result<(), RecordError> {
        let storage = self.attachments.storage();
        if !storage.is_replicated() {
            return Ok(());
        }
        let ran = licence.map(|record| record.generation);
        let received = disks.map(|record| record.generation);
        let wholeness = match disks.map(|record| record.state) {
            Some(DiskRecordState::Incomplete) if received >= ran => Wholeness::Incomplete,
            _ => Wholeness::Whole,
        };
        let newest = ran.max(received).unwrap_or_default();
        storage.changes().remember(found, newest, wholeness, trust)
    }

    /// The guest stands still at a cut: begins a round if one is due.
    pub(super) fn begin_disk_round(&mut self) {
        let LinkState::Up(pair) = &self.link else {
            return;
        };
        let storage = self.attachments.storage();
        let told = storage.is_replicated() && pair.link.session.knows_change_records();
        let too_early = self
            .round_begun
            .is_some_and(|begun| clock::now() < begun + EVERY);
        if !told || too_early || self.migration.is_some() || self.finish.is_some() {
            return;
        }
        let changes = storage.changes();
        if !changes.needs_base() && !changes.can_let_go() {
            return;
        }
        self.round_begun = Some(clock::now());
        if let Err(error) = changes.begin_round() {
            tracing::warn!(vm = %self.config.vm.name, "no record of changes: {error}");
            return;
        }
        self.disk_jobs.sync_all(pair.id);
    }

    /// This side's disks are durable.
    pub(super) fn synced_here(&mut self) {
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        let over = self.finish.as_ref().is_some_and(Finish::has_said_goodbye);
        let Some(base) = self.attachments.storage().changes().round() else {
            return;
        };
        if over {
            return;
        }
        let mut frames = pair.link.buffer();
        pair.link.session.disk_sync(&mut frames, base);
        pair.link.send(frames);
        pair.last_sent = clock::now();
    }

    /// The other side's disks are durable.
    pub(super) fn synced_there(&mut self, base: BaseId) {
        let changes = self.attachments.storage().changes();
        if let Some(gone) = changes.end_round(base) {
            tracing::debug!(
                vm = %self.config.vm.name, generation = %self.generation, %base, gone_regions = gone,
                "the disks are equal and durable on both nodes, but for what is recorded"
            );
        }
    }

    /// A guest that waits for a record that cannot be written is better off elsewhere.
    pub(super) fn look_after_changes(&mut self) {
        if self.attachments.storage().changes().is_failing() && self.is_paired() {
            self.end = Some(End::Failed(
                "The record of changes of disks cannot be written: check the file system of the state \
                 directory. The passive replica continues"
                    .into(),
            ));
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The disks of a passive replica: written by what comes over the link, and by nothing else.
//!
//! Before the first byte of a copy is written, the record says durably that this disk is
//! incomplete; after the first commit it says that it is a copy. Either keeps this node from booting
//! the guest from it while a newer disk exists elsewhere.

use std::io;
use std::sync::Arc;

use kemari_api::Generation;
use kemari_replication::storage::{
    BLOCK_BYTES, BaseId, Change, DiskChange, DiskNumber, SpaceFate, block_digest,
};
use kemari_replication::wire::{Differing, DiskChanges, Probe};
use kemari_vmm::backend::{DiskContent, Unmap};
use thiserror::Error;

use super::changes::{Changes, Wholeness};
use super::thread::DiskJobs;
use crate::record::{DiskRecord, DiskRecordFile, DiskRecordState, RecordError};

/// A disk of this host failed; the replica has nothing to run from.
#[derive(Debug, Error)]
pub enum PassiveDiskError {
    /// It cannot be read or written.
    #[error("Cannot {what} disk {disk} of this replica at {offset}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The disk's place in the description.
        disk: DiskNumber,
        /// Where, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disks' record cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The disks.
#[derive(Debug, Clone)]
pub struct PassiveDisks {
    contents: Arc<[Option<DiskContent>]>,
    jobs: DiskJobs,
    changes: Arc<Changes>,
    record: Arc<DiskRecordFile>,
    /// What the record says, as far as this process has written it.
    recorded: Option<DiskRecord>,
}

impl PassiveDisks {
    pub(super) fn new(
        contents: Arc<[Option<DiskContent>]>,
        jobs: DiskJobs,
        changes: Arc<Changes>,
        record: DiskRecordFile,
    ) -> Self {
        Self {
            contents,
            jobs,
            changes,
            record: Arc::new(record),
            recorded: None,
        }
    }

    /// Whether there is a replicated disk.
    pub fn is_replicated(&self) -> bool {
        self.contents.iter().any(Option::is_some)
    }

    /// Writes the record unless it says so already; whether it was written.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note(
        &mut self,
        generation: Generation,
        state: DiskRecordState,
    ) -> Result<bool, PassiveDiskError> {
        let record = DiskRecord { generation, state };
        let news = self.is_replicated() && self.recorded != Some(record);
        if news {
            self.record.write(record)?;
            self.recorded = Some(record);
            self.changes.disks_are(match state {
                DiskRecordState::Incomplete => Wholeness::Incomplete,
                DiskRecordState::Copy => Wholeness::Whole,
            });
        }
        Ok(news)
    }

    /// An active replica is served from now on: what another one wanted is void.
    pub fn new_session(&self) {
        self.changes.new_session();
    }

    /// Where the disks may differ from this base.
    pub fn changes_since(&self, base: BaseId) -> DiskChanges {
        self.changes.since(base)
    }

    /// What comes is from a replica that does not know where the disks differ, and does not record for
    /// us where they will.
    ///
    /// # Errors
    /// The record of changes cannot be removed.
    pub fn forget_changes(&self) -> Result<(), PassiveDiskError> {
        let why = "the disks of this node were overwritten by another replica";
        Ok(self.changes.forget(why)?)
    }

    /// Makes the disks durable, some time soon, and then records this base.
    pub fn make_durable(&self, base: BaseId, generation: Generation) {
        self.jobs
            .sync_and_record(self.changes.order(base, generation));
    }

    /// The base for which that was done since this was last asked.
    pub fn made_durable(&self) -> Option<BaseId> {
        self.changes.confirmed()
    }

    /// Applies changes, in order.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn apply<'a>(
        &self,
        changes: impl Iterator<Item = DiskChange<&'a [u8]>>,
    ) -> Result<(), PassiveDiskError> {
        for change in changes {
            let failed = |source| PassiveDiskError::Io {
                what: "write",
                disk: change.disk,
                offset: change.offset,
                source,
            };
            self.apply_one(&change).map_err(failed)?;
        }
        Ok(())
    }

    fn apply_one(&self, change: &DiskChange<&[u8]>) -> io::Result<()> {
        let content = self.content(change.disk)?;
        let offset = change.offset;
        match &change.change {
            Change::Write(bytes) => content.write(offset, bytes),
            Change::Zeroes { length, space } => {
                let unmap = match space {
                    SpaceFate::Kept => Unmap::Forbidden,
                    SpaceFate::Freed => Unmap::Allowed,
                };
                content.write_zeroes(offset, *length, unmap)
            }
            Change::Discard { length } => content.discard(offset, *length),
            Change::Flush => {
                self.jobs.sync(change.disk);
                Ok(())
            }
        }
    }

    /// Compares blocks with those of the other side.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn compare(&self, probe: &Probe) -> Result<Differing, PassiveDiskError> {
        let failed = |source| PassiveDiskError::Io {
            what: "read",
            disk: probe.disk,
            offset: probe.offset,
            source,
        };
        let mut blocks = 0;
        for (place, digest) in probe.digests.iter().enumerate() {
            let ours = self.block(probe, place as u64).map_err(failed)?;
            if block_digest(&ours) != *digest {
                blocks |= 1 << place;
            }
        }
        Ok(Differing {
            disk: probe.disk,
            offset: probe.offset,
            blocks,
        })
    }

    fn block(&self, probe: &Probe, place: u64) -> io::Result<Vec<u8>> {
        let content = self.content(probe.disk)?;
        let offset = probe.offset + place * BLOCK_BYTES;
        let length = content
            .capacity_bytes()
            .saturating_sub(offset)
            .min(BLOCK_BYTES);
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        content.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn content(&self, disk: DiskNumber) -> io::Result<&DiskContent> {
        let content = self.contents.get(disk.index()).and_then(Option::as_ref);
        content.ok_or_else(|| io::Error::other("the disk is not replicated"))
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The staging area: the parts of one open transaction, apart from RAM, and their verification.
//!
//! Everything that arrives is checked against a limit before it is kept. Nothing leaves the area
//! unless totals and digest agree with the Commit.

use kemari_api::{Epoch, Generation};

use super::changes::STAGED_CHANGES_BYTES_MAX;
use super::checkpoint::Checkpoint;
use super::retained::{RETAINED_BYTES_MAX, Retained};
use crate::page::{PageIndex, RamLayout};
use crate::protocol::ProtocolError;
use crate::storage::DiskLayout;
use crate::wire::outputs::decode_outputs;
use crate::wire::pages::PageReader;
use crate::wire::{Begin, Commit, FrameKind, TransactionDigest};

/// Largest machine state of one checkpoint, in bytes (RAM is not part of it).
pub const STATE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The parts of one transaction.
#[derive(Debug, Default)]
pub(super) struct Staging {
    checkpoint: Checkpoint,
    announced_pages: u64,
    digest: TransactionDigest,
}

impl Staging {
    /// Forgets what was there and starts a transaction.
    pub(super) fn start(&mut self, epoch: Epoch, begin: &Begin, payload: &[u8]) {
        self.checkpoint.clear();
        self.checkpoint.epoch = epoch;
        self.checkpoint.delivered_up_to = begin.delivered_up_to;
        self.checkpoint.console_position = begin.console_position;
        self.announced_pages = begin.pages;
        self.digest.reset();
        self.digest.add(FrameKind::Begin, payload);
    }

    /// Stages pages. Each must be RAM, and no more may come than were announced.
    pub(super) fn pages(&mut self, ram: &RamLayout, payload: &[u8]) -> Result<(), ProtocolError> {
        self.digest.add(FrameKind::Pages, payload);
        let limit = self.announced_pages;
        for page in PageReader::new(FrameKind::Pages, payload) {
            let (index, content) = page?;
            in_ram(ram, FrameKind::Pages, index)?;
            if self.checkpoint.pages.len() as u64 >= limit {
                return Err(self.too_much("announced pages", limit));
            }
            self.checkpoint.pages.push(index, content);
        }
        Ok(())
    }

    /// Stages machine state.
    pub(super) fn state(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        self.digest.add(FrameKind::State, payload);
        if self.checkpoint.state.len() + payload.len() > STATE_BYTES_MAX {
            return Err(self.too_much("machine state", STATE_BYTES_MAX as u64));
        }
        self.checkpoint.state.extend_from_slice(payload);
        Ok(())
    }

    /// Stages changes of disks, each within a replicated disk.
    pub(super) fn disk_log(
        &mut self,
        disks: &[DiskLayout],
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        self.digest.add(FrameKind::DiskLog, payload);
        if self.checkpoint.changes.stage(disks, payload)? {
            Ok(())
        } else {
            Err(self.too_much("disk changes", STAGED_CHANGES_BYTES_MAX as u64))
        }
    }

    /// Stages outputs, which must still fit beside those already kept.
    pub(super) fn outputs(
        &mut self,
        retained: &Retained,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        self.digest.add(FrameKind::Outputs, payload);
        decode_outputs(payload, &mut self.checkpoint.outputs)?;
        if !retained.has_room_for(&self.checkpoint.outputs) {
            return Err(self.too_much("outputs", RETAINED_BYTES_MAX as u64));
        }
        Ok(())
    }

    /// Whether what arrived is what was sent.
    pub(super) fn verify(&self, commit: &Commit) -> Result<(), ProtocolError> {
        let Checkpoint {
            epoch,
            pages,
            state,
            outputs,
            ..
        } = &self.checkpoint;
        let (epoch, pages) = (*epoch, pages.len() as u64);
        for (what, announced, received) in [
            ("pages announced at its start", self.announced_pages, pages),
            ("pages", commit.pages, pages),
            ("bytes of state", commit.state_bytes, state.len() as u64),
            ("outputs", commit.outputs, outputs.len() as u64),
            (
                "payload bytes",
                commit.payload_bytes,
                self.digest.payload_bytes(),
            ),
        ] {
            if announced != received {
                return Err(ProtocolError::Total {
                    epoch,
                    what,
                    announced,
                    received,
                });
            }
        }
        let (announced, received) = (commit.digest, self.digest.value());
        if announced != received {
            return Err(ProtocolError::Digest {
                epoch,
                announced,
                received,
            });
        }
        Ok(())
    }

    /// The checkpoint, verified; `spare` gives its buffers to the next one.
    pub(super) fn complete(&mut self, generation: Generation, spare: Checkpoint) -> Checkpoint {
        let mut checkpoint = std::mem::replace(&mut self.checkpoint, spare);
        checkpoint.generation = generation;
        checkpoint
    }

    const fn too_much(&self, what: &'static str, limit: u64) -> ProtocolError {
        ProtocolError::TooMuch {
            epoch: self.checkpoint.epoch,
            what,
            limit,
        }
    }
}

/// Refuses a page that is not RAM.
pub(super) fn in_ram(
    ram: &RamLayout,
    kind: FrameKind,
    index: PageIndex,
) -> Result<(), ProtocolError> {
    if ram.contains(index) {
        return Ok(());
    }
    Err(ProtocolError::PageOutsideRam { kind, index })
}

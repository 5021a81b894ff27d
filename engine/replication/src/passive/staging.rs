// SPDX-License-Identifier: Apache-2.0
//! The staging area: the parts of one open transaction, apart from RAM, and their verification.
//!
//! Everything that arrives is checked against a limit before it is kept. Nothing leaves the area
//! unless totals and digest agree with the Commit.

use kemari_api::{Epoch, Generation};

use super::changes::STAGED_CHANGES_BYTES_MAX;
use super::checkpoint::Checkpoint;
use super::coverage::PageSet;
use super::retained::{RETAINED_BYTES_MAX, Retained};
use crate::page::{GuestPages, PAGE_BYTES, PageContent, PageIndex, RamLayout, page_checksum};
use crate::protocol::ProtocolError;
use crate::storage::DiskLayout;
use crate::wire::outputs::decode_outputs;
use crate::wire::pages::{EncodedDelta, EncodedPage, PageReader, unpack_page};
use crate::wire::{Begin, Commit, FrameKind, TransactionDigest};

/// Largest machine state of one checkpoint, in bytes (RAM is not part of it).
pub const STATE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The parts of one transaction.
#[derive(Debug, Clone, Default)]
pub(super) struct Staging {
    checkpoint: Checkpoint,
    announced_pages: u64,
    /// Entries received; those of unchanged pages are not in the checkpoint.
    received_pages: u64,
    /// Pages named in this transaction.
    named: PageSet,
    digest: TransactionDigest,
}

/// What page entries are judged by.
#[derive(Clone, Copy)]
pub(super) struct PageRules<'a> {
    /// Protocol version of the session.
    pub(super) version: u16,
    /// Which pages are RAM.
    pub(super) layout: &'a RamLayout,
    /// What RAM holds: the epoch before.
    pub(super) ram: &'a dyn GuestPages,
}

impl Staging {
    /// Forgets what was there and starts a transaction.
    pub(super) fn start(&mut self, epoch: Epoch, begin: &Begin, payload: &[u8]) {
        self.checkpoint.clear();
        self.checkpoint.epoch = epoch;
        self.checkpoint.delivered_up_to = begin.delivered_up_to;
        self.checkpoint.console_position = begin.console_position;
        self.announced_pages = begin.pages;
        self.received_pages = 0;
        self.named.clear();
        self.digest.reset();
        self.digest.add(FrameKind::Begin, payload);
    }

    /// Stages pages. Each must be RAM, and no more may come than were announced. Afterwards nothing
    /// of them can fail any more: blocks are unpacked, differences applied and their results checked.
    pub(super) fn pages(
        &mut self,
        rules: PageRules<'_>,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        self.digest.add(FrameKind::Pages, payload);
        let limit = self.announced_pages;
        for page in PageReader::new(FrameKind::Pages, rules.version, payload) {
            let (index, encoded) = page?;
            in_ram(rules.layout, FrameKind::Pages, index)?;
            if self.received_pages >= limit {
                return Err(self.too_much("announced pages", limit));
            }
            self.received_pages += 1;
            let again = !self.named.mark(rules.layout, index);
            match encoded {
                EncodedPage::Zero => self.checkpoint.pages.push(index, PageContent::Zero),
                EncodedPage::Raw(bytes) => {
                    self.checkpoint.pages.push(index, PageContent::Raw(bytes));
                }
                EncodedPage::Lz4(block) => {
                    let mut page = [0; PAGE_BYTES];
                    unpack_page(FrameKind::Pages, block, &mut page)?;
                    self.checkpoint.pages.push(index, PageContent::Raw(&page));
                }
                // Its base is the epoch before, which is not what this transaction made of the page.
                EncodedPage::Delta(_) if again => {
                    return Err(self.bad_delta(index, "it came before"));
                }
                EncodedPage::Delta(delta) => self.delta(rules.ram, index, &delta)?,
            }
        }
        Ok(())
    }

    fn delta(
        &mut self,
        ram: &dyn GuestPages,
        index: PageIndex,
        delta: &EncodedDelta<'_>,
    ) -> Result<(), ProtocolError> {
        let mut page = [0; PAGE_BYTES];
        if !ram.read(index, &mut page) {
            return Err(self.bad_delta(index, "its base cannot be read"));
        }
        delta.apply(FrameKind::Pages, &mut page)?;
        if page_checksum(&page) != delta.checksum {
            return Err(self.bad_delta(index, "the result has another checksum"));
        }
        if !delta.is_unchanged() {
            self.checkpoint.pages.push(index, PageContent::Raw(&page));
        }
        Ok(())
    }

    const fn bad_delta(&self, index: PageIndex, what: &'static str) -> ProtocolError {
        ProtocolError::BadDelta {
            epoch: self.checkpoint.epoch,
            index,
            what,
        }
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
            state,
            outputs,
            ..
        } = &self.checkpoint;
        let (epoch, pages) = (*epoch, self.received_pages);
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

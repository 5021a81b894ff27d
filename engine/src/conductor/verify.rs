// SPDX-License-Identifier: Apache-2.0
//! Comparing the disks of a pair while the guest runs.
//!
//! A part of a disk that is not being written at a cut, is read after it, and was not written until
//! its digests are sent is as it was at that cut, and at every cut since. The passive side reads its
//! own when it has applied the last epoch sent. (A change in flight at the cut is in a log that the
//! passive side applied, and here on the disk or not.) A part that was written is tried again at the
//! next cut, in halves and alone, and that cut waits for what is in flight, so that what the guest
//! writes all the time is caught in the end.

use std::collections::VecDeque;

use kemari_replication::storage::{
    BLOCK_BYTES, BlockRange, DiskLayout, DiskNumber, PROBE_BLOCKS_MAX,
};
use kemari_replication::wire::{Differing, Probe};
use tokio::sync::oneshot;

use super::capture::DiskRequests;
use super::pair::LinkState;
use super::{Answer, Conductor, Refusal};
use crate::clock;

/// Parts that are read after one cut: 16 MiB.
const PARTS_PER_CUT: usize = 8;
/// Differences that are told one by one.
const TOLD_MAX: usize = 8;

/// A comparison under way.
#[derive(Debug)]
pub struct Verify {
    reply: oneshot::Sender<Answer>,
    /// What is still to be read, the next part last.
    rest: Vec<(DiskNumber, BlockRange)>,
    /// What is being read since the last cut that found nothing being read, in this order.
    reading: VecDeque<(DiskNumber, BlockRange)>,
    /// The other side was asked about these, in this order.
    asked: VecDeque<(DiskNumber, BlockRange)>,
    blocks: u64,
    compared: u64,
    differing: u64,
    /// The first differences: disk and offset in bytes.
    told: Vec<(DiskNumber, u64)>,
}

impl Verify {
    fn of(layouts: &[DiskLayout], reply: oneshot::Sender<Answer>) -> Self {
        let mut rest = Vec::new();
        for (number, layout) in DiskNumber::all().zip(layouts) {
            let DiskLayout::Replicated { capacity_bytes } = *layout else {
                continue;
            };
            let blocks = capacity_bytes.div_ceil(BLOCK_BYTES);
            let mut first = 0;
            while first < blocks {
                let count = PROBE_BLOCKS_MAX.min(blocks - first);
                rest.push((number, BlockRange { first, count }));
                first += count;
            }
        }
        let blocks = rest.iter().map(|(_, range)| range.count).sum();
        rest.reverse();
        Self {
            reply,
            rest,
            reading: VecDeque::new(),
            asked: VecDeque::new(),
            blocks,
            compared: 0,
            differing: 0,
            told: Vec::new(),
        }
    }

    /// Tells whoever waits.
    fn answer(self, answer: Answer) {
        // Who has gone need not be told.
        let _ = self.reply.send(answer);
    }

    /// Whether the next part was written when it was tried before.
    fn tries_again(&self) -> bool {
        let next = self.rest.last().filter(|_| self.reading.is_empty());
        next.is_some_and(|(_, range)| range.count < PROBE_BLOCKS_MAX)
    }

    fn differences(&self) -> String {
        let places: Vec<_> = self
            .told
            .iter()
            .map(|(disk, offset)| format!("disk {disk} at {offset}"))
            .collect();
        format!(
            "Of {} blocks of 64 KiB {} differ: {}{}. The passive replica must not take over: restart \
             its engine, its disks are then made equal; and look for what else writes to them",
            self.blocks,
            self.differing,
            places.join(", "),
            if self.differing > TOLD_MAX as u64 {
                ", …"
            } else {
                ""
            }
        )
    }
}

/// A part in two, or one that is a single block.
fn halves((disk, range): (DiskNumber, BlockRange)) -> Vec<(DiskNumber, BlockRange)> {
    let count = range.count / 2;
    let first = BlockRange { count, ..range };
    let second = BlockRange {
        first: range.first + count,
        count: range.count - count,
    };
    [first, second]
        .into_iter()
        .filter(|half| half.count > 0)
        .map(|half| (disk, half))
        .collect()
}

impl Conductor {
    pub(super) fn verify(&mut self, reply: oneshot::Sender<Answer>) {
        let refused = if !self.is_paired() {
            Some("Disks can be compared while the pair is in sync, on the active replica only")
        } else if !self.attachments.storage().is_replicated() {
            Some("This VM has no replicated disk")
        } else if self.verify.is_some() {
            Some("The disks are being compared already")
        } else {
            None
        };
        if let Some(text) = refused {
            let _ = reply.send(Err(Refusal::Failed(text.into())));
            return;
        }
        tracing::info!(vm = %self.config.vm.name, generation = %self.generation, "comparing disks");
        let layouts = self.attachments.storage().layouts();
        self.verify = Some(Verify::of(layouts, reply));
    }

    /// Whether the next cut waits for disks.
    pub(super) fn disk_requests_at_cut(&self) -> DiskRequests {
        match &self.verify {
            Some(verify) if verify.tries_again() => DiskRequests::Drained,
            _ => DiskRequests::Left,
        }
    }

    /// The guest stands still: the next part may be read.
    pub(super) fn verify_at_cut(&mut self) {
        let (LinkState::Up(pair), Some(verify)) = (&self.link, &mut self.verify) else {
            return;
        };
        if !verify.reading.is_empty() {
            return;
        }
        let Some((disk, first)) = verify.rest.last().copied() else {
            return;
        };
        let mut bytes = first.first * BLOCK_BYTES..first.first * BLOCK_BYTES;
        while verify.reading.len() < PARTS_PER_CUT
            && let Some((_, range)) = verify.rest.pop_if(|(number, _)| *number == disk)
        {
            let alone = range.count < PROBE_BLOCKS_MAX;
            let end = (range.first + range.count) * BLOCK_BYTES;
            bytes = bytes.start.min(range.first * BLOCK_BYTES)..bytes.end.max(end);
            verify.reading.push_back((disk, range));
            self.disk_jobs.probe(pair.id, disk, range);
            if alone {
                break;
            }
        }
        self.attachments.storage().log().watch(disk, bytes);
    }

    /// A part was read.
    pub(super) fn verify_read(&mut self, probe: &Probe) {
        let (LinkState::Up(pair), Some(verify)) = (&mut self.link, &mut self.verify) else {
            return;
        };
        let Some(part) = verify.reading.pop_front() else {
            return;
        };
        if self.attachments.storage().log().was_touched() {
            return verify.rest.extend(halves(part).into_iter().rev());
        }
        verify.asked.push_back(part);
        let mut frames = pair.link.buffer();
        pair.link.session.disk_probe(&mut frames, probe);
        pair.link.send(frames);
        pair.last_sent = clock::now();
    }

    /// The other side has compared a part.
    pub(super) fn verify_compared(&mut self, differing: Differing) {
        let Some(verify) = &mut self.verify else {
            return;
        };
        let Some((disk, range)) = verify.asked.pop_front() else {
            return;
        };
        verify.compared += range.count;
        for place in differing.places().filter(|place| *place < range.count) {
            verify.differing += 1;
            let offset = (range.first + place) * BLOCK_BYTES;
            let changes = self.attachments.storage().changes();
            changes.spoilt(disk, offset, BLOCK_BYTES);
            if verify.told.len() < TOLD_MAX {
                verify.told.push((disk, offset));
            }
        }
        let percent = verify.compared * 100 / verify.blocks.max(1);
        self.detail = format!("paired; comparing disks: {percent} %");
        if verify.rest.is_empty() && verify.reading.is_empty() && verify.asked.is_empty() {
            self.verify_done();
        }
    }

    fn verify_done(&mut self) {
        let Some(verify) = self.verify.take() else {
            return;
        };
        self.detail = self.paired_detail();
        if verify.differing == 0 {
            tracing::info!(
                vm = %self.config.vm.name, generation = %self.generation,
                blocks = verify.blocks, "the disks of both replicas are equal"
            );
            return verify.answer(Ok(()));
        }
        let told = verify.differences();
        tracing::error!(vm = %self.config.vm.name, generation = %self.generation, "{told}");
        verify.answer(Err(Refusal::Differ(told)));
    }

    /// The pair has ended before all was compared.
    pub(super) fn verify_ended(&mut self) {
        if let Some(verify) = self.verify.take() {
            let told = "The pair ended before all disks were compared; try again";
            verify.answer(Err(Refusal::Failed(told.into())));
        }
    }
}

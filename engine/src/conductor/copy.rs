// SPDX-License-Identifier: Apache-2.0
//! The copy that begins a pair: disks and memory, while the guest runs.
//!
//! Disks first, since that takes longest; then memory, in rounds of what was written meanwhile; then,
//! while the guest stands still for the first checkpoint, the few blocks of disks that were written
//! since.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use kemari_replication::storage::{
    BLOCK_BYTES, DiskLayout, DiskNumber, Resync, Step, UnexpectedAnswer,
};
use kemari_replication::wire::{Differing, DiskChanges};
use kemari_vmm::PageIndex;

use super::pair::{LinkState, Phase};
use super::{Conductor, End};
use crate::clock;
use crate::link::LinkError;
use crate::link::active::{Link, LinkId};
use crate::storage::{DiskEvent, read_blocks, told_by_peer};

/// The copy pauses while this much waits to be written.
const AHEAD_BYTES: usize = 8 * 1024 * 1024;
/// Pages read from guest memory at a time: 2 MiB. With half of it the copy took a sixth longer, with twice as much a quarter.
const CHUNK_PAGES: usize = 512;
/// The copy of memory ends, and the first checkpoint is cut, when no more pages than this are
/// dirty …
const REST_PAGES: usize = 2048;
/// … or after this many rounds, for a guest that writes faster than the link carries.
const ROUNDS_MAX: u32 = 8;
/// The copy of disks ends when no more than this is left to be copied, in bytes.
const DISK_REST_BYTES: u64 = 4 * 1024 * 1024;
/// The status tells what was copied in steps of this, in bytes.
const SHOWN_STEP: u64 = 64 * 1024 * 1024;
/// Parts of disks that may be being read.
const DISK_JOBS_MAX: usize = 4;

/// How far the copy is.
#[derive(Debug)]
pub struct Copy {
    disks: Option<DiskCopy>,
    memory: Option<MemoryCopy>,
}

#[derive(Debug)]
struct DiskCopy {
    /// What is compared; `None` until the other side has said where its disks may differ.
    plan: Option<Resync>,
    /// Parts that are being read.
    jobs: usize,
    /// Little enough was left once; memory comes next.
    rests: bool,
    /// Not before this, for the sake of the rate that was allowed.
    earliest: Duration,
}

/// Pages still to be sent in this round.
#[derive(Debug)]
struct MemoryCopy {
    rest: VecDeque<PageIndex>,
    round: u32,
    /// Pages this round began with.
    of: usize,
}

impl Copy {
    /// When there is something to do again, if nothing happens before.
    pub fn due(&self, now: Duration, waiting_bytes: usize) -> Option<Duration> {
        if waiting_bytes >= AHEAD_BYTES {
            return None;
        }
        match &self.disks {
            Some(disks) if disks.plan.is_none() => None,
            Some(disks) if !disks.rests => {
                (disks.jobs < DISK_JOBS_MAX && disks.earliest > now).then_some(disks.earliest)
            }
            _ => Some(now),
        }
    }

    fn disks_at_work(&mut self) -> Option<&mut DiskCopy> {
        self.disks.as_mut().filter(|disks| !disks.rests)
    }
}

impl DiskCopy {
    fn new(plan: Option<Resync>) -> Self {
        Self {
            plan,
            jobs: 0,
            rests: false,
            earliest: Duration::ZERO,
        }
    }
}

/// What is left to be copied, known so far, in bytes.
fn rest_bytes(plan: &Resync, changed_bytes: u64) -> u64 {
    plan.progress().left * BLOCK_BYTES + changed_bytes
}

impl Conductor {
    /// Begins to copy memory, and of disks what may differ.
    pub(super) fn copy_everything(&mut self, link: &mut Link) -> Option<Phase> {
        self.progress.in_flight.clear();
        self.in_sync = false;
        self.statistics.copying(true);
        let storage = self.attachments.storage();
        if !storage.is_replicated() {
            let memory = Some(self.begin_memory()?);
            return Some(Phase::Copying(Copy {
                disks: None,
                memory,
            }));
        }
        storage.log().track();
        let base = if self.migration.is_some() {
            Err("for a migration all is compared".to_owned())
        } else if !link.session.knows_change_records() {
            Err("the other engine is too old to have a record of changes".to_owned())
        } else {
            storage.changes().base()
        };
        let plan = match base {
            Ok(base) => {
                let mut frames = link.buffer();
                link.session.disk_base(&mut frames, base);
                link.send(frames);
                None
            }
            Err(why) => Some(self.compare_all(&why)),
        };
        "comparing disks with the other replica's".clone_into(&mut self.detail);
        Some(Phase::Copying(Copy {
            disks: Some(DiskCopy::new(plan)),
            memory: None,
        }))
    }

    fn compare_all(&self, why: &dyn std::fmt::Display) -> Resync {
        let layouts = self.attachments.storage().layouts();
        tracing::info!(
            vm = %self.config.vm.name, generation = %self.generation, bytes = disk_bytes(layouts),
            "comparing all of the disks: {why}"
        );
        Resync::new(layouts)
    }

    /// The other side says where its disks may differ from the base.
    pub(super) fn changes_told(&mut self, theirs: DiskChanges) {
        let storage = self.attachments.storage();
        let layouts = storage.layouts();
        let plan = match theirs {
            DiskChanges::Since(theirs) if theirs.is_of(layouts) => {
                let mut regions = storage.changes().named();
                regions.unite(&theirs);
                let plan = Resync::of_regions(layouts, regions);
                tracing::info!(
                    vm = %self.config.vm.name, generation = %self.generation,
                    bytes = plan.progress().blocks * BLOCK_BYTES, of_bytes = disk_bytes(layouts),
                    "comparing the disks where the records of changes say that they may differ"
                );
                plan
            }
            DiskChanges::Since(_) => {
                self.compare_all(&"the other replica's record is of other disks")
            }
            DiskChanges::Unknown(why) => self.compare_all(&told_by_peer(why)),
        };
        let Some(disks) = self.copy().and_then(|copy| copy.disks.as_mut()) else {
            return;
        };
        if disks.plan.is_none() {
            disks.plan = Some(plan);
        }
    }

    fn begin_memory(&mut self) -> Option<MemoryCopy> {
        if let Err(error) = self.machine.start_dirty_tracking() {
            self.end = Some(End::Failed(crate::exit::chain(&error)));
            return None;
        }
        "copying memory to the other replica".clone_into(&mut self.detail);
        let rest: VecDeque<_> = (0..self.machine.memory().page_count())
            .map(PageIndex)
            .collect();
        Some(MemoryCopy {
            of: rest.len(),
            rest,
            round: 1,
        })
    }

    fn copy(&mut self) -> Option<&mut Copy> {
        match &mut self.link {
            LinkState::Up(pair) => match &mut pair.phase {
                Phase::Copying(copy) => Some(copy),
                Phase::Checkpoints { .. } => None,
            },
            _ => None,
        }
    }

    /// Sends the next part of the copy; ends it when little is left.
    pub(super) fn copy_some(&mut self) {
        let LinkState::Up(pair) = &self.link else {
            return;
        };
        if pair.link.waiting_bytes() >= AHEAD_BYTES {
            return;
        }
        let disks = self
            .copy()
            .is_some_and(|copy| copy.disks_at_work().is_some());
        if disks {
            self.copy_disks();
        } else {
            self.copy_memory();
        }
    }

    fn copy_disks(&mut self) {
        let changed = self.attachments.storage().log().changed_bytes();
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        let Phase::Copying(copy) = &mut pair.phase else {
            return;
        };
        let Some(disks) = copy.disks_at_work() else {
            return;
        };
        let Some(plan) = &mut disks.plan else {
            return;
        };
        if plan.has_compared_all()
            && disks.jobs == 0
            && rest_bytes(plan, changed) <= DISK_REST_BYTES
        {
            disks.rests = true;
            return self.memory_follows();
        }
        let rate = self.config.replication.resync_mib_per_s;
        while disks.jobs < DISK_JOBS_MAX && clock::now() >= disks.earliest {
            let log = self.attachments.storage().log();
            log.changed(|number, blocks| plan.changed(number, blocks));
            let blocks = match plan.step() {
                Step::Probe(disk, blocks) => {
                    self.disk_jobs.probe(pair.id, disk, blocks);
                    blocks
                }
                Step::Copy(disk, blocks) => {
                    self.disk_jobs.read(pair.id, disk, blocks);
                    blocks
                }
                Step::Wait | Step::Done => break,
            };
            disks.jobs += 1;
            if let Some(rate) = rate {
                let bytes = blocks.count * BLOCK_BYTES;
                let pause = Duration::from_micros(bytes / u64::from(rate.get()));
                disks.earliest = disks.earliest.max(clock::now()) + pause;
            }
        }
        let progress = plan.progress();
        // In steps: every change of the status is news to all agents.
        let copied = progress.copied * BLOCK_BYTES / SHOWN_STEP * SHOWN_STEP;
        let percent = progress.compared * 100 / progress.blocks.max(1);
        self.detail = format!(
            "making the disks of the other replica equal: {percent} % of {} MiB compared, {} MiB copied",
            mib(progress.blocks * BLOCK_BYTES),
            mib(copied)
        );
    }

    /// The disks are equal, but for a rest.
    fn memory_follows(&mut self) {
        let round = self
            .copy()
            .and_then(|copy| copy.memory.as_ref())
            .map(|memory| memory.round);
        if let Some(round) = round {
            return self.next_round(round);
        }
        let memory = self.begin_memory();
        if let Some(copy) = self.copy() {
            copy.memory = memory;
        }
    }

    /// The disk thread has done what it was asked.
    pub(super) fn disk_event(&mut self, link: LinkId, event: DiskEvent) {
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        let Phase::Copying(copy) = &mut pair.phase else {
            if pair.id == link {
                match event {
                    DiskEvent::Synced => self.synced_here(),
                    event => self.verify_event(event),
                }
            }
            return;
        };
        let Some(disks) = copy.disks.as_mut().filter(|_| pair.id == link) else {
            return;
        };
        disks.jobs = disks.jobs.saturating_sub(1);
        let mut frames = pair.link.buffer();
        let session = &mut pair.link.session;
        match event {
            DiskEvent::Probe(probe) => session.disk_probe(&mut frames, &probe),
            DiskEvent::Content(blocks) => session.disk_copy(&mut frames, blocks.into_iter()),
            // Of a round whose session is over.
            DiskEvent::Synced => return,
            DiskEvent::Failed(disk, error) => {
                return self.link_lost(&unreadable(disk, &error));
            }
        }
        self.statistics.sent(frames.len());
        pair.link.send(frames);
        pair.last_sent = clock::now();
    }

    fn verify_event(&mut self, event: DiskEvent) {
        match event {
            DiskEvent::Probe(probe) => self.verify_read(&probe),
            DiskEvent::Failed(disk, error) => {
                tracing::error!(vm = %self.config.vm.name, %disk, %error, "a disk cannot be read");
                self.verify_ended();
            }
            DiskEvent::Content(_) | DiskEvent::Synced => {}
        }
    }

    /// The other side has compared blocks.
    pub(super) fn compared(&mut self, differing: Differing) {
        let named = self.attachments.storage().changes().named();
        let Some(disks) = self.copy().and_then(|copy| copy.disks.as_mut()) else {
            return self.verify_compared(differing);
        };
        let (disk, offset) = (differing.disk, differing.offset);
        let Some(plan) = &mut disks.plan else {
            let error = UnexpectedAnswer { disk, offset };
            return self.link_lost(&LinkError::Disk(error.to_string()));
        };
        let surprised_before = plan.was_surprised();
        let answered = plan.answered(disk, offset, differing.places(), &named);
        if plan.was_surprised() && !surprised_before {
            let changes = self.attachments.storage().changes();
            if let Err(error) = changes.forget("it is wrong") {
                return self.link_lost(&LinkError::Disk(error.to_string()));
            }
            tracing::warn!(
                vm = %self.config.vm.name, %disk, offset, generation = %self.generation,
                "comparing all of the disks: they differ where the records of changes say that they do \
                 not. A disk was replaced, or something else wrote to it"
            );
        }
        if let Err(error) = answered {
            self.link_lost(&LinkError::Disk(error.to_string()));
        }
    }

    fn copy_memory(&mut self) {
        let LinkState::Up(pair) = &mut self.link else {
            return;
        };
        let Phase::Copying(Copy {
            memory: Some(memory),
            ..
        }) = &mut pair.phase
        else {
            return;
        };
        if memory.rest.is_empty() {
            let round = memory.round;
            return self.next_round(round);
        }
        let count = memory.rest.len().min(CHUNK_PAGES);
        // Changes to these pages count from before they are read.
        if let (Some(first), Some(last)) = (memory.rest.front(), memory.rest.get(count - 1))
            && let Err(error) = self.machine.arm_dirty_tracking(first.0..last.0 + 1)
        {
            self.end = Some(End::Failed(crate::exit::chain(&error)));
            return;
        }
        let chunk = memory.rest.drain(..count);
        if let Err(error) = self.capture.read(&self.machine.memory(), chunk) {
            self.end = Some(End::Failed(crate::exit::chain(&error)));
            return;
        }
        let mut frames = pair.link.buffer();
        let effort = pair.compression.effort_of_copy(pair.link.waiting_bytes());
        pair.link.session.set_effort(effort);
        let mut pages = self.capture.pages();
        while pair.link.session.copy_pages(&mut frames, &mut pages) > 0 {}
        drop(pages);
        self.statistics.sent(frames.len());
        pair.link.send(frames);
        pair.last_sent = clock::now();
        self.show_copy();
    }

    /// How far the copy is, in the status, a percent at a time.
    fn show_copy(&mut self) {
        let Some(MemoryCopy { rest, round, of }) =
            self.copy().and_then(|copy| copy.memory.as_ref())
        else {
            return;
        };
        let percent = (of - rest.len()) * 100 / (*of).max(1);
        self.detail = format!("copying memory to the other replica: {percent} % of round {round}");
    }

    fn next_round(&mut self, round: u32) {
        let dirty = match self.machine.harvest_dirty() {
            Ok(dirty) => dirty,
            Err(error) => {
                self.end = Some(End::Failed(crate::exit::chain(&error)));
                return;
            }
        };
        let changed = self.attachments.storage().log().changed_bytes();
        let Some(copy) = self.copy() else { return };
        if dirty.len() > REST_PAGES && round < ROUNDS_MAX {
            copy.memory = Some(MemoryCopy {
                rest: dirty.iter().collect(),
                round: round + 1,
                of: dirty.len(),
            });
            return;
        }
        let disks = copy.disks.as_mut();
        let long = disks.filter(|disks| {
            let plan = disks.plan.as_ref();
            plan.is_some_and(|plan| rest_bytes(plan, changed) > DISK_REST_BYTES)
        });
        if let Some(disks) = long {
            disks.rests = false;
            copy.memory = Some(MemoryCopy {
                rest: VecDeque::new(),
                round: round + 1,
                of: 0,
            });
            return self.machine.mark_dirty(&dirty);
        }
        self.machine.mark_dirty(&dirty);
        self.statistics.copying(false);
        self.first_checkpoint();
    }

    /// Copies what is left of disks while the guest stands still; from here on changes are logged.
    /// `false`: it failed, and the link is lost or the replica ends.
    pub(super) fn finish_disks(&mut self) -> bool {
        let _long = self.pulse.long_work();
        if !self.attachments.storage().is_replicated() {
            return true;
        }
        if let Err(error) = self.machine.pause() {
            self.end = Some(End::Failed(crate::exit::chain(&error)));
            return false;
        }
        if let Err(error) = self.send_disk_rest() {
            self.link_lost(&error);
            self.resume_guest();
            return false;
        }
        self.attachments.storage().log().log();
        self.attachments.storage().changes().pair_begins();
        self.round_begun = None;
        self.log_disks();
        true
    }

    fn log_disks(&mut self) {
        let disks = self.copy().and_then(|copy| copy.disks.as_ref());
        let Some(plan) = disks.and_then(|disks| disks.plan.as_ref()) else {
            return;
        };
        let progress = plan.progress();
        tracing::info!(
            vm = %self.config.vm.name, generation = %self.generation, peer = %self.peer_name(),
            compared_blocks = progress.compared, copied_blocks = progress.copied,
            "the other replica's disks are equal"
        );
    }

    fn send_disk_rest(&mut self) -> Result<(), LinkError> {
        let LinkState::Up(pair) = &mut self.link else {
            return Err(LinkError::Ended("there is none"));
        };
        let Phase::Copying(Copy {
            disks: Some(DiskCopy {
                plan: Some(plan), ..
            }),
            ..
        }) = &mut pair.phase
        else {
            return Err(LinkError::Ended("the disks were not compared"));
        };
        let storage = self.attachments.storage();
        storage
            .log()
            .changed(|number, blocks| plan.changed(number, blocks));
        let mut frames = pair.link.buffer();
        while let Step::Copy(disk, range) = plan.step() {
            let blocks = read_blocks(storage.contents(), disk, range)
                .map_err(|error| unreadable(disk, &error))?;
            pair.link.session.disk_copy(&mut frames, blocks.into_iter());
        }
        self.statistics.sent(frames.len());
        pair.link.send(frames);
        Ok(())
    }
}

fn disk_bytes(layouts: &[DiskLayout]) -> u64 {
    let bytes = layouts.iter().map(|layout| match layout {
        DiskLayout::Replicated { capacity_bytes } => *capacity_bytes,
        DiskLayout::Apart => 0,
    });
    bytes.sum()
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1024 * 1024)
}

fn unreadable(disk: DiskNumber, error: &io::Error) -> LinkError {
    LinkError::Disk(format!(
        "disk {disk} of this replica cannot be read: {error}"
    ))
}

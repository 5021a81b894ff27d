// SPDX-License-Identifier: Apache-2.0
//! The dirty rings of all vCPUs, emptied together by whoever comes first: the controller at a
//! harvest, or a vCPU thread whose ring is full.
//!
//! What is taken out of the rings is *pending* until the next harvest. `KVM_RESET_DIRTY_RINGS`
//! resets all rings and says how many entries that were, so taking and resetting is one step under
//! one lock; then the number must be that of the entries taken.
//!
//! A ring that contradicts itself has lost pages, and nobody knows which. A VM that was made with
//! rings cannot go back to bitmaps (`KVM_GET_DIRTY_LOG` is refused). So from the first anomaly on
//! every page counts as dirty, until the machine is made anew; the rings are emptied still, because
//! a vCPU with a full ring does not run.

use std::sync::{Arc, Mutex, MutexGuard};

use thiserror::Error;
use vmm_sys_util::errno;

use super::calls::{KvmCalls, Slot};
use super::ring::{DirtyRing, Entry, Overrun};
use crate::dirty::{DirtyPages, PageIndex};

/// Resets in a row that reset nothing, before the rest is called lost. Since Linux 6.17 a pending
/// signal ends a reset early.
const IDLE_RESETS_MAX: u32 = 16;
/// Exits in a row for a full ring, without one entry reset in between, before it is called stuck.
const IDLE_RELIEFS_MAX: u32 = 3;
/// A page may be written down once per vCPU, and by KVM's own writes more often. More than this
/// often per page and vCPU, on average, is no protection any more …
const REPEATS_MAX: usize = 16;
/// … if it is seen on no fewer entries than this.
const REPEATS_COUNT_FROM: usize = 4096;

/// Why rings are not trusted any more.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anomaly {
    #[error("an entry names page {offset:#x} of slot {slot:#x}, which does not exist")]
    NoSuchPage { slot: u32, offset: u64 },
    #[error("KVM wrote over entries that were not yet reset")]
    Overrun,
    #[error("{entries} entries name only {pages} pages")]
    Repeats { entries: usize, pages: usize },
    #[error("KVM reset {more} more entries than were taken")]
    ResetTooMany { more: usize },
    #[error("KVM did not reset {rest} of the entries taken")]
    ResetTooFew { rest: usize },
    #[error("a ring is full and has no entry")]
    Stuck,
}

/// A vCPU cannot go on.
#[derive(Debug, Error)]
pub(crate) enum ReliefError {
    #[error(
        "Its dirty ring is full and cannot be emptied, which is a defect of this host's KVM; \
         choose bitmaps for the tracking of dirty pages"
    )]
    Stuck,
    #[error("KVM refused KVM_RESET_DIRTY_RINGS: {0}")]
    Reset(errno::Error),
}

#[derive(Debug)]
pub(crate) struct DirtyRings {
    calls: Arc<dyn KvmCalls>,
    slots: Vec<Slot>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rings: Vec<DirtyRing>,
    pending: DirtyPages,
    /// Pages of the collection that is being made; empty between two.
    current: DirtyPages,
    order: Vec<PageIndex>,
    /// Entries taken and not yet reset.
    unreset: usize,
    /// Entries reset since a vCPU was last relieved.
    reset_since_relief: usize,
    idle_reliefs: u32,
    anomaly: Option<Anomaly>,
}

impl DirtyRings {
    pub(crate) fn new(calls: Arc<dyn KvmCalls>, slots: Vec<Slot>, page_count: u64) -> Self {
        Self {
            calls,
            slots,
            inner: Mutex::new(Inner {
                rings: Vec::new(),
                pending: DirtyPages::none(page_count),
                current: DirtyPages::none(page_count),
                order: Vec::new(),
                unreset: 0,
                reset_since_relief: 0,
                idle_reliefs: 0,
                anomaly: None,
            }),
        }
    }

    /// Another vCPU's ring.
    pub(crate) fn add(&self, ring: DirtyRing) {
        self.lock().rings.push(ring);
    }

    /// Moves what KVM wrote down into `into`: what was taken since the last call, and what is in the
    /// rings. All pages, once there was an anomaly.
    pub(crate) fn harvest(&self, into: &mut DirtyPages) -> Result<(), errno::Error> {
        let mut inner = self.lock();
        let collected = inner.collect(&self.slots, self.calls.as_ref());
        let page_count = inner.pending.page_count();
        let pending = std::mem::replace(&mut inner.pending, DirtyPages::none(page_count));
        into.union(&pending);
        if inner.anomaly.is_some() {
            into.union(&DirtyPages::all(page_count));
        }
        collected
    }

    /// Empties the rings and forgets what was in them.
    pub(crate) fn discard(&self) -> Result<(), errno::Error> {
        let mut inner = self.lock();
        let collected = inner.collect(&self.slots, self.calls.as_ref());
        inner.pending = DirtyPages::none(inner.pending.page_count());
        collected
    }

    /// A vCPU thread whose vCPU did not enter the guest because its ring is full. It may enter again
    /// after this.
    pub(crate) fn relieve(&self) -> Result<(), ReliefError> {
        let mut inner = self.lock();
        inner
            .collect(&self.slots, self.calls.as_ref())
            .map_err(ReliefError::Reset)?;
        // The ring may have been emptied by another thread meanwhile.
        if std::mem::take(&mut inner.reset_since_relief) > 0 {
            inner.idle_reliefs = 0;
            return Ok(());
        }
        inner.idle_reliefs += 1;
        if inner.idle_reliefs < IDLE_RELIEFS_MAX {
            return Ok(());
        }
        inner.distrust(Anomaly::Stuck);
        Err(ReliefError::Stuck)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // After a panic while pages were being taken out, nobody knows which.
        self.inner.lock().unwrap_or_else(|poisoned| {
            let mut inner = poisoned.into_inner();
            inner.distrust(Anomaly::Overrun);
            inner
        })
    }
}

impl Inner {
    /// Takes every entry out of the rings, then has them reset. The entries' pages are pending when
    /// this returns, even with an error.
    fn collect(&mut self, slots: &[Slot], calls: &dyn KvmCalls) -> Result<(), errno::Error> {
        let mut rings = std::mem::take(&mut self.rings);
        let mut entries = 0;
        for ring in &mut rings {
            let mut count = 0;
            let result = ring.harvest(|entry| {
                count += 1;
                self.note(slots, entry);
            });
            entries += count;
            if result == Err(Overrun) {
                self.distrust(Anomaly::Overrun);
            }
        }
        self.rings = rings;
        self.unreset += entries;
        self.finish_collection(entries);
        self.reset(calls)
    }

    fn note(&mut self, slots: &[Slot], entry: Entry) {
        let slot = slots.iter().find(|slot| slot.number == entry.slot);
        let Some(page) = slot.and_then(|slot| slot.page(entry.offset)) else {
            return self.distrust(Anomaly::NoSuchPage {
                slot: entry.slot,
                offset: entry.offset,
            });
        };
        if !self.current.contains(page) {
            self.current.insert(page);
            self.order.push(page);
        }
    }

    fn finish_collection(&mut self, entries: usize) {
        let pages = self.order.len();
        let most = pages
            .saturating_mul(REPEATS_MAX)
            .saturating_mul(self.rings.len());
        for page in self.order.drain(..) {
            self.current.remove(page);
            self.pending.insert(page);
        }
        if entries >= REPEATS_COUNT_FROM && entries > most {
            self.distrust(Anomaly::Repeats { entries, pages });
        }
    }

    fn reset(&mut self, calls: &dyn KvmCalls) -> Result<(), errno::Error> {
        let mut idle = 0;
        while self.unreset > 0 && idle < IDLE_RESETS_MAX {
            let count = match calls.reset_dirty_rings() {
                Ok(count) => count,
                Err(error) if error.errno() == libc::EINTR => 0,
                Err(error) => return Err(error),
            };
            idle = if count == 0 { idle + 1 } else { 0 };
            self.reset_since_relief = self.reset_since_relief.saturating_add(count);
            if let Some(more) = count.checked_sub(self.unreset).filter(|more| *more > 0) {
                self.distrust(Anomaly::ResetTooMany { more });
            }
            self.unreset = self.unreset.saturating_sub(count);
        }
        if self.unreset > 0 {
            self.distrust(Anomaly::ResetTooFew { rest: self.unreset });
            self.unreset = 0;
        }
        self.rings.iter_mut().for_each(DirtyRing::reset);
        Ok(())
    }

    fn distrust(&mut self, anomaly: Anomaly) {
        if self.anomaly.is_none() {
            tracing::warn!(
                %anomaly,
                "the dirty ring of this host's KVM cannot be trusted; every page counts as dirty \
                 until the VM is started anew, best with bitmaps for the tracking"
            );
            self.anomaly = Some(anomaly);
        }
    }
}

#[cfg(test)]
mod tests;

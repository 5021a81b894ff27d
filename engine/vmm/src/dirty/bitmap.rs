// SPDX-License-Identifier: Apache-2.0
//! Tracking by KVM's bitmaps, one per slot.
//!
//! *Plain*: reading the bitmap clears it and protects the pages again, all in one call.
//!
//! *Manual* (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`): reading only copies. What was copied is then
//! cleared and protected by a second call, and nothing else is: a bit that appears between the two
//! stays for the next harvest. With `KVM_DIRTY_LOG_INITIALLY_SET` the log starts with every bit set
//! and no page protected, so that starting costs nothing, however large the memory. A page in this
//! state is *unarmed*: its writes are not noticed, and its bit stays set until it is armed.
//!
//! The initial copy reads every page after tracking was started. So it may arm the pages it is about
//! to read, stretch by stretch, and forget their bits: what was written before is in the copy, and
//! what is written from then on is noticed. Pages that are still unarmed at a harvest are in it,
//! since nobody knows what became of them. That is never wrong, only more.

use std::ops::Range;

use vmm_sys_util::errno;

use super::calls::{KvmCalls, Slot};
use crate::dirty::DirtyPages;
use crate::error::DirtyLogError;

/// Words of bitmap per `KVM_CLEAR_DIRTY_LOG`: 1 GiB of memory. KVM holds the lock that the guest's
/// page faults need during the whole call.
const WORDS_PER_CLEAR: usize = 4096;

/// How bits are cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// By reading them.
    Plain,
    /// By a call of its own.
    Manual,
    /// The same, and all bits are set at first.
    ManualInitiallySet,
}

#[derive(Debug)]
pub(crate) struct BitmapLog {
    slots: Vec<Slot>,
    clearing: Clearing,
    unarmed: DirtyPages,
}

impl BitmapLog {
    pub(crate) fn new(slots: Vec<Slot>, page_count: u64, clearing: Clearing) -> Self {
        Self {
            slots,
            clearing,
            unarmed: DirtyPages::none(page_count),
        }
    }

    /// Logging was off and is on.
    pub(crate) fn started(&mut self) {
        let page_count = self.unarmed.page_count();
        self.unarmed = match self.clearing {
            Clearing::Plain | Clearing::Manual => DirtyPages::none(page_count),
            Clearing::ManualInitiallySet => DirtyPages::all(page_count),
        };
    }

    /// Protects those of `pages` that are unarmed, and perhaps a few beside them.
    pub(crate) fn arm(
        &mut self,
        calls: &dyn KvmCalls,
        pages: Range<u64>,
    ) -> Result<(), DirtyLogError> {
        for slot in &self.slots {
            let start = pages.start.saturating_sub(slot.first.0).min(slot.pages) / 64;
            let end = pages
                .end
                .saturating_sub(slot.first.0)
                .min(slot.pages)
                .div_ceil(64);
            if start >= end {
                continue;
            }
            let slot_words = self.unarmed.bitmap(slot.first, slot.pages);
            let (start, end) = (index(start), index(end));
            let unarmed = slot_words.get(start..end).unwrap_or_default();
            if unarmed.iter().all(|word| *word == 0) {
                continue;
            }
            clear(calls, slot, start, unarmed)
                .map_err(DirtyLogError::kvm("KVM_CLEAR_DIRTY_LOG"))?;
            let armed = unarmed.to_vec();
            self.unarmed.remove_bitmap(slot.first, start, &armed);
        }
        Ok(())
    }

    /// Moves the logged pages into `into`. What a failed harvest took is there, too.
    pub(crate) fn harvest(
        &mut self,
        calls: &dyn KvmCalls,
        into: &mut DirtyPages,
    ) -> Result<(), DirtyLogError> {
        for slot in &self.slots {
            let bitmap = calls
                .get_dirty_log(slot)
                .map_err(DirtyLogError::kvm("KVM_GET_DIRTY_LOG"))?;
            into.insert_bitmap(slot.first, slot.pages, &bitmap);
            if self.clearing != Clearing::Plain {
                clear(calls, slot, 0, &bitmap)
                    .map_err(DirtyLogError::kvm("KVM_CLEAR_DIRTY_LOG"))?;
                self.unarmed.remove_bitmap(slot.first, 0, &bitmap);
            }
        }
        Ok(())
    }
}

/// Clears the bits of `bitmap`, which begins at word `first` of the slot's. Stretches without a bit
/// are left out.
fn clear(
    calls: &dyn KvmCalls,
    slot: &Slot,
    first: usize,
    bitmap: &[u64],
) -> Result<(), errno::Error> {
    for (number, chunk) in bitmap.chunks(WORDS_PER_CLEAR).enumerate() {
        let Some(start) = chunk.iter().position(|word| *word != 0) else {
            continue;
        };
        let end = chunk.iter().rposition(|word| *word != 0).unwrap_or(start);
        let wanted = chunk.get(start..=end).unwrap_or_default();
        calls.clear_dirty_log(slot, first + number * WORDS_PER_CLEAR + start, wanted)?;
    }
    Ok(())
}

fn index(words: u64) -> usize {
    usize::try_from(words).unwrap_or(usize::MAX)
}

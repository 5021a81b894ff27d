// SPDX-License-Identifier: Apache-2.0
//! The cut: the whole state of the machine at one instant, in buffers that are used again.

use std::time::Duration;

use kemari_replication::event_tap::{Carry, ClosedEpoch};
use kemari_replication::page::{PAGE_BYTES, PageIndex};
use kemari_vmm::{DirtyPages, GuestRam, Machine, MachineState};

use crate::clock;
use crate::outputs::Outputs;
use crate::storage::{DiskLog, TakenLog};

/// Buffers of the last cut.
#[derive(Debug, Default)]
pub struct Capture {
    indexes: Vec<PageIndex>,
    pages: Vec<[u8; PAGE_BYTES]>,
}

/// What happens at a cut to requests that disks of this host have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskRequests {
    /// They stay there. Their completions come after the cut, and the other replica makes them again.
    Left,
    /// They are waited for, and complete before the cut.
    Drained,
}

/// One cut.
#[derive(Debug)]
pub struct Cut {
    /// The epoch it ends.
    pub closed: ClosedEpoch,
    /// Pages written since the last cut.
    pub dirty: DirtyPages,
    /// Everything of the machine but memory.
    pub state: MachineState,
    /// What the guest changed on replicated disks since the last cut.
    pub log: TakenLog,
    /// When the guest stopped.
    pub at: Duration,
}

impl Capture {
    /// Cuts. The guest stands still on return, and nothing writes its memory; the pages are in this capture.
    ///
    /// # Errors
    /// A sentence, when the machine cannot be paused, saved or read. Nothing was taken then: the
    /// pages found dirty stay dirty, the epoch stays open.
    pub fn cut(
        &mut self,
        machine: &mut Machine,
        outputs: &Outputs,
        disks: &DiskLog,
        requests: DiskRequests,
        carry: Carry,
    ) -> Result<Cut, String> {
        let at = clock::now();
        let stopped = match requests {
            DiskRequests::Left => machine.freeze(),
            DiskRequests::Drained => machine.pause(),
        };
        stopped.map_err(|error| crate::exit::chain(&error))?;
        // The state first: reading it may write guest memory (kvm-state facts, §9).
        let state = machine.save().map_err(|error| crate::exit::chain(&error))?;
        let dirty = machine
            .harvest_dirty()
            .map_err(|error| crate::exit::chain(&error))?;
        if let Err(error) = self.read(&machine.memory(), dirty.iter()) {
            machine.mark_dirty(&dirty);
            return Err(crate::exit::chain(&error));
        }
        let closed = outputs.with_gate(|gate| gate.close_epoch(carry));
        Ok(Cut {
            closed,
            dirty,
            state,
            log: disks.take(),
            at,
        })
    }

    /// Copies these pages out of guest memory. What lies side by side is copied in one go.
    pub fn read(
        &mut self,
        ram: &GuestRam,
        pages: impl Iterator<Item = kemari_vmm::PageIndex>,
    ) -> Result<(), kemari_vmm::PageAccessError> {
        self.indexes.clear();
        self.indexes.extend(pages.map(|page| PageIndex(page.0)));
        if self.pages.len() < self.indexes.len() {
            self.pages.resize(self.indexes.len(), [0; PAGE_BYTES]);
        }
        let mut buffers = self.pages.as_mut_slice();
        for run in self
            .indexes
            .chunk_by(|one, next| one.0.checked_add(1) == Some(next.0))
        {
            let Some(&PageIndex(first)) = run.first() else {
                continue;
            };
            let (run_buffers, others) = buffers.split_at_mut(run.len());
            ram.read_pages(kemari_vmm::PageIndex(first), run_buffers)?;
            buffers = others;
        }
        Ok(())
    }

    /// What was copied last.
    pub fn pages(&self) -> impl Iterator<Item = (PageIndex, &[u8; PAGE_BYTES])> {
        self.indexes.iter().copied().zip(&self.pages)
    }

    /// How many pages were copied last.
    pub fn len(&self) -> u64 {
        self.indexes.len() as u64
    }
}

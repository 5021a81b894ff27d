// SPDX-License-Identifier: Apache-2.0
//! Disks of which each host has its own: what the active side logs and copies, what the passive
//! side applies.
//!
//! ```text
//!  device ─▶ TappedDisk ─▶ this host's disk          active
//!                └─▶ DiskLog ─▶ transaction ─ ─ ─▶ PassiveDisks ─▶ that host's disk
//!                └─▶ Changes ─▶ this host's record of where the two disks may differ
//!  disk thread ─▶ blocks to compare and copy ─ ─ ─▶      passive
//! ```
//! A change is in the log before it goes to the disk. So what the guest was told to be done before a
//! cut is in that epoch's log or an earlier one; what is in flight at the cut is named in the machine's
//! state and made again there, whether it is in a log or not.
//!
//! A disk that both hosts see has no log: its changes wait for their commit ([`HeldDisk`]).

mod changes;
mod held;
mod log;
mod passive;
mod tapped;
mod thread;

use std::io;
use std::sync::{Arc, mpsc};

use kemari_replication::storage::{DiskLayout, DiskNumber};
use kemari_vmm::backend::{DiskContent, RawDisk};

use crate::conductor::Input;
use crate::record::{ChangeRecordFile, DiskRecordFile};

pub use changes::{Changes, Trust, Wholeness, told_by_peer};
pub use held::HeldDisk;
pub use log::{DiskLog, TakenLog};
pub use passive::{PassiveDiskError, PassiveDisks};
pub use tapped::TappedDisk;
pub use thread::{DiskEvent, DiskJobs, read_blocks};

/// The disks of a VM, as replication sees them.
#[derive(Debug)]
pub struct Storage {
    layouts: Vec<DiskLayout>,
    contents: Arc<[Option<DiskContent>]>,
    log: Arc<DiskLog>,
    changes: Arc<Changes>,
}

impl Storage {
    /// Storage of disks with these contents; `None` for one that is not replicated.
    ///
    /// # Errors
    /// The process has no more file descriptors, or a disk's file cannot be looked at.
    pub fn new(contents: Vec<Option<DiskContent>>) -> io::Result<Self> {
        let layouts: Vec<_> = contents
            .iter()
            .map(|content| match content {
                Some(content) => DiskLayout::Replicated {
                    capacity_bytes: content.capacity_bytes(),
                },
                None => DiskLayout::Apart,
            })
            .collect();
        let log = Arc::new(DiskLog::new(&layouts)?);
        Ok(Self {
            changes: Arc::new(Changes::new(&contents, &layouts, Arc::clone(&log))?),
            log,
            contents: contents.into(),
            layouts,
        })
    }

    /// What is known of each disk, by its place in the description.
    pub fn layouts(&self) -> &[DiskLayout] {
        &self.layouts
    }

    /// The content of each disk that is replicated.
    pub fn contents(&self) -> &[Option<DiskContent>] {
        &self.contents
    }

    /// Whether there is a replicated disk at all.
    pub fn is_replicated(&self) -> bool {
        self.contents.iter().any(Option::is_some)
    }

    /// What the guest changes.
    pub fn log(&self) -> &DiskLog {
        &self.log
    }

    /// Where the disks may differ from the other replica's.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The disk's back end for a device, its changes in the log.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn tap(&self, number: DiskNumber, disk: RawDisk) -> io::Result<TappedDisk> {
        TappedDisk::new(
            number,
            Box::new(disk),
            Arc::clone(&self.log),
            Arc::clone(&self.changes),
        )
    }

    /// Starts the thread that reads and syncs disks, whose work reaches the conductor, and the one
    /// that writes the record of changes.
    ///
    /// # Errors
    /// The process cannot have another thread.
    pub fn start_threads(
        &self,
        inputs: mpsc::Sender<Input>,
        record: ChangeRecordFile,
    ) -> io::Result<DiskJobs> {
        if self.is_replicated() {
            self.changes.start_thread(record)?;
        }
        let changes = Arc::clone(&self.changes);
        thread::start(Arc::clone(&self.contents), changes, inputs)
    }

    /// The disks as a passive replica writes them.
    pub fn passive(&self, jobs: DiskJobs, record: DiskRecordFile) -> PassiveDisks {
        let changes = Arc::clone(&self.changes);
        PassiveDisks::new(Arc::clone(&self.contents), jobs, changes, record)
    }
}

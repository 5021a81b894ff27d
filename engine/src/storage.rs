// SPDX-License-Identifier: Apache-2.0
//! Disks of which each host has its own: what the active side logs and copies, what the passive
//! side applies.
//!
//! ```text
//!  device ─▶ TappedDisk ─▶ this host's disk          active
//!                └─▶ DiskLog ─▶ transaction ─ ─ ─▶ PassiveDisks ─▶ that host's disk
//!  disk thread ─▶ blocks to compare and copy ─ ─ ─▶      passive
//! ```
//! A change is in the log before it goes to the disk. So what the guest was told to be done before a
//! cut is in that epoch's log or an earlier one; what is in flight at the cut is named in the machine's
//! state and made again there, whether it is in a log or not.
//!
//! A disk that both hosts see has no log: its changes wait for their commit ([`HeldDisk`]).

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
use crate::record::DiskRecordFile;

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
}

impl Storage {
    /// Storage of disks with these contents; `None` for one that is not replicated.
    ///
    /// # Errors
    /// The process has no more file descriptors.
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
        Ok(Self {
            log: Arc::new(DiskLog::new(&layouts)?),
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

    /// The disk's back end for a device, its changes in the log.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn tap(&self, number: DiskNumber, disk: RawDisk) -> io::Result<TappedDisk> {
        TappedDisk::new(number, Box::new(disk), Arc::clone(&self.log))
    }

    /// Starts the thread that reads and syncs disks; what it has done reaches the conductor.
    ///
    /// # Errors
    /// The process cannot have another thread.
    pub fn start_thread(&self, inputs: mpsc::Sender<Input>) -> io::Result<DiskJobs> {
        thread::start(Arc::clone(&self.contents), inputs)
    }

    /// The disks as a passive replica writes them.
    pub fn passive(&self, jobs: DiskJobs, record: DiskRecordFile) -> PassiveDisks {
        PassiveDisks::new(Arc::clone(&self.contents), jobs, record)
    }
}

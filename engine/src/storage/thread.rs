// SPDX-License-Identifier: Apache-2.0
//! The thread that reads disks for the copy to a passive replica, and makes writes of a passive
//! replica durable: what may take long, and nobody else should wait for.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;

use kemari_replication::storage::{
    BLOCK_BYTES, BlockRange, Change, DiskChange, DiskNumber, SpaceFate, block_digest,
};
use kemari_replication::wire::Probe;
use kemari_vmm::backend::DiskContent;

use super::changes::{Changes, Order};
use crate::conductor::Input;
use crate::link::active::LinkId;
use crate::sandbox;

/// What the thread has done.
#[derive(Debug)]
pub enum DiskEvent {
    /// Digests of blocks.
    Probe(Probe),
    /// Content of blocks.
    Content(Vec<DiskChange>),
    /// Everything written before is durable.
    Synced,
    /// A disk of this host cannot be read.
    Failed(DiskNumber, io::Error),
}

#[derive(Debug)]
enum Job {
    Probe(LinkId, DiskNumber, BlockRange),
    Read(LinkId, DiskNumber, BlockRange),
    Sync(DiskNumber),
    SyncAll(For),
}

/// Who wants to know that the disks are durable.
#[derive(Debug, Clone, Copy)]
enum For {
    /// This replica, active on this link.
    Active(LinkId),
    /// The other one.
    Peer(Order),
}

/// Gives the thread work.
#[derive(Debug, Clone)]
pub struct DiskJobs {
    jobs: mpsc::Sender<Job>,
}

impl DiskJobs {
    /// Reads these blocks and tells their digests.
    pub fn probe(&self, link: LinkId, disk: DiskNumber, blocks: BlockRange) {
        // The thread ends with the process.
        let _ = self.jobs.send(Job::Probe(link, disk, blocks));
    }

    /// Reads these blocks.
    pub fn read(&self, link: LinkId, disk: DiskNumber, blocks: BlockRange) {
        let _ = self.jobs.send(Job::Read(link, disk, blocks));
    }

    /// Makes everything written durable, and says when that is done. If it cannot be done, nothing is
    /// said.
    pub fn sync_all(&self, link: LinkId) {
        let _ = self.jobs.send(Job::SyncAll(For::Active(link)));
    }

    /// Makes everything written durable, and then records the base of this order.
    pub(super) fn sync_and_record(&self, order: Order) {
        let _ = self.jobs.send(Job::SyncAll(For::Peer(order)));
    }

    /// Makes what was written to a disk durable, some time soon.
    pub fn sync(&self, disk: DiskNumber) {
        let _ = self.jobs.send(Job::Sync(disk));
    }
}

/// Starts the thread.
pub(super) fn start(
    contents: Arc<[Option<DiskContent>]>,
    changes: Arc<Changes>,
    inputs: mpsc::Sender<Input>,
) -> io::Result<DiskJobs> {
    let (jobs, work) = mpsc::channel();
    let worker = Worker {
        contents,
        changes,
        inputs,
    };
    thread::Builder::new()
        .name("disks".into())
        .spawn(move || worker.run(&work))?;
    Ok(DiskJobs { jobs })
}

struct Worker {
    contents: Arc<[Option<DiskContent>]>,
    changes: Arc<Changes>,
    inputs: mpsc::Sender<Input>,
}

impl Worker {
    fn run(&self, work: &mpsc::Receiver<Job>) {
        sandbox::enter(sandbox::Kind::Disks);
        while let Ok(job) = work.recv() {
            match job {
                Job::Probe(link, disk, blocks) => {
                    let done = self.probe(disk, blocks).map(DiskEvent::Probe);
                    self.tell(link, disk, done);
                }
                Job::Read(link, disk, blocks) => {
                    let done = read_blocks(&self.contents, disk, blocks).map(DiskEvent::Content);
                    self.tell(link, disk, done);
                }
                Job::Sync(disk) => {
                    self.sync(disk);
                }
                Job::SyncAll(whom) => self.sync_all(whom),
            }
        }
    }

    fn tell(&self, link: LinkId, disk: DiskNumber, done: io::Result<DiskEvent>) {
        let event = done.unwrap_or_else(|error| DiskEvent::Failed(disk, error));
        // A conductor that has ended needs no news.
        let _ = self.inputs.send(Input::Disk(link, event));
    }

    fn probe(&self, disk: DiskNumber, blocks: BlockRange) -> io::Result<Probe> {
        let (offset, bytes) = read(&self.contents, disk, blocks)?;
        Ok(Probe {
            disk,
            offset,
            digests: bytes.chunks(BLOCK).map(block_digest).collect(),
        })
    }

    /// Whether it is durable.
    fn sync(&self, disk: DiskNumber) -> bool {
        let content = self.contents.get(disk.index()).and_then(Option::as_ref);
        match content.map(DiskContent::sync) {
            Some(Err(error)) => {
                tracing::error!(%disk, %error, "what was written to this disk may be lost with its host");
                // The kernel says so once.
                self.changes.sync_failed();
                false
            }
            Some(Ok(())) | None => true,
        }
    }

    fn sync_all(&self, whom: For) {
        let mut disks = DiskNumber::all().take(self.contents.len());
        if !disks.all(|disk| self.sync(disk)) {
            return;
        }
        match whom {
            For::Active(link) => {
                let _ = self.inputs.send(Input::Disk(link, DiskEvent::Synced));
            }
            For::Peer(order) => self.changes.durable(order),
        }
    }
}

const BLOCK: usize = 64 * 1024;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);

/// Reads blocks for a copy, those of zeroes as what they are.
pub fn read_blocks(
    contents: &[Option<DiskContent>],
    disk: DiskNumber,
    blocks: BlockRange,
) -> io::Result<Vec<DiskChange>> {
    let (offset, bytes) = read(contents, disk, blocks)?;
    let offsets = (offset..).step_by(BLOCK);
    let changes = offsets.zip(bytes.chunks(BLOCK)).map(|(offset, block)| {
        let change = if block.iter().all(|byte| *byte == 0) {
            Change::Zeroes {
                length: block.len() as u64,
                space: SpaceFate::Freed,
            }
        } else {
            Change::Write(block.to_vec())
        };
        DiskChange {
            disk,
            offset,
            change,
        }
    });
    Ok(changes.collect())
}

fn read(
    contents: &[Option<DiskContent>],
    disk: DiskNumber,
    blocks: BlockRange,
) -> io::Result<(u64, Vec<u8>)> {
    let content = contents.get(disk.index()).and_then(Option::as_ref);
    let content = content.ok_or_else(|| io::Error::other("the disk is not replicated"))?;
    let range = blocks.bytes(content.capacity_bytes());
    let length = usize::try_from(range.end.saturating_sub(range.start))
        .map_err(|_| io::Error::other("more than fits into memory"))?;
    let mut bytes = vec![0; length];
    content.read(range.start, &mut bytes)?;
    Ok((range.start, bytes))
}

// SPDX-License-Identifier: Apache-2.0
//! Two nodes with a disk each, the outside, and engines of a guest that checks its disk against its
//! memory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use kemari_api::replica::DiskState;
use kemari_cluster_tests::observer::Observer;
use kemari_cluster_tests::{guests, ledger};
use tempfile::TempDir;

use crate::replica_process::{Description, PATIENCE, ReplicaProcess, outside};
use crate::shared_device::SharedDevice;
use crate::standing_disk::{Frozen, StandingDisk};

/// Enough for several probes and an odd end.
pub const DISK_BYTES: u64 = 8 * 1024 * 1024 + 512;
/// Enough to be worth a record of changes.
pub const LARGE_DISK_BYTES: u64 = 256 * 1024 * 1024 + 512;

/// The outside, and a host's disk for each node.
pub struct Site {
    pub observer: Observer,
    console: String,
    pub directory: TempDir,
    disk_bytes: u64,
}

impl Site {
    /// Small disks.
    pub fn new() -> Self {
        let (observer, console) = outside();
        Self {
            observer,
            console,
            directory: tempfile::tempdir().unwrap(),
            disk_bytes: DISK_BYTES,
        }
    }

    /// Disks that are worth a record of changes.
    pub fn with_large_disks() -> Self {
        Self {
            disk_bytes: LARGE_DISK_BYTES,
            ..Self::new()
        }
    }

    /// The disk of a node, made with noise of its own where it is not there.
    pub fn disk(&self, node: &str) -> PathBuf {
        let path = self.directory.path().join(node);
        if !path.exists() {
            let noise = node.as_bytes().repeat(3 * 1024 * 1024);
            let mut file = File::create(&path).unwrap();
            file.write_all(&noise).unwrap();
            file.set_len(self.disk_bytes).unwrap();
        }
        path
    }

    /// An engine of a node, with more lines for its disk.
    pub fn replica(&self, node: &str, more: &str) -> ReplicaProcess {
        let sections = format!(
            "[[disk]]\nid = \"root\"\npath = {:?}\n{more}",
            self.disk(node)
        );
        let description = Description {
            memory_mib: 64,
            kernel: guests::ledger(),
            cmdline: "pages=16 disk=256",
            console: &self.console,
            replication: "",
            sections: &sections,
        };
        ReplicaProcess::start(node, &description)
    }

    /// The disk of a node will be on a file system that can stand still.
    pub fn put_disk_on(&self, node: &str, standing: &StandingDisk) {
        let path = self.directory.path().join(node);
        symlink(standing.path().join(node), path).unwrap();
    }

    /// Both nodes see one disk, as long as the device is kept. `None`, with a word about it, where the machine has no such device.
    pub fn with_shared_disk_or_skip() -> Option<(SharedDevice, Self)> {
        let shared = SharedDevice::make_or_skip(DISK_BYTES)?;
        let site = Self::new();
        for (host, node) in ["a", "b"].into_iter().enumerate() {
            symlink(shared.of_host(host), site.directory.path().join(node)).unwrap();
        }
        Some((shared, site))
    }

    /// The same, with a disk that both see.
    pub fn replica_with_shared_disk(&self, node: &str) -> ReplicaProcess {
        self.replica(node, "storage = \"shared\"\ndirect = true\n")
    }

    /// Makes the disk of the active replica stand still, and waits until the guest waits for it: it
    /// writes to its disk before each line, and there are epochs without one.
    pub fn stop_disk(&self, standing: &StandingDisk, active: &ReplicaProcess) -> Frozen {
        let frozen = standing.freeze();
        loop {
            let seen = self.observer.bytes().len();
            commit_more(active);
            if self.observer.bytes().len() == seen {
                return frozen;
            }
        }
    }

    /// The guest says more.
    pub fn see_more(&self, bytes: usize) {
        self.observer.wait_for_more(bytes, PATIENCE).unwrap();
    }

    /// Nothing is missing, nothing was executed twice, no disk was of another instant than memory.
    pub fn judge(&self) {
        assert_eq!(self.observer.violations(), []);
        println!("{:?}", ledger::check(&self.observer.bytes()).unwrap());
    }
}

/// The record follows the acknowledgement.
pub fn is_a_copy(passive: &ReplicaProcess) {
    passive.wait("a whole copy", |status| status.disks == DiskState::Copy);
}

/// Some epochs are committed.
pub fn commit_more(active: &ReplicaProcess) {
    let epoch = active.status().epoch.get();
    active.wait("a commit", |status| status.epoch.get() >= epoch + 3);
}

/// Where two disks differ.
pub fn first_difference(a: &Path, b: &Path) -> Option<usize> {
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).position(|(a, b)| a != b)
}

// SPDX-License-Identifier: Apache-2.0
//! A change of a disk's content, as it stands in the log of an epoch.

use std::fmt;

/// Disks a VM may have.
pub const DISKS_MAX: usize = 16;

/// Longest data of one change, in bytes; longer writes become several changes.
pub const CHANGE_BYTES_MAX: usize = 256 * 1024;

/// A disk, by its place in the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskNumber(u8);

impl DiskNumber {
    /// The disk with this number, if a VM can have so many.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < DISKS_MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The numbers of all disks that a VM can have, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).map_while(Self::new)
    }

    /// Its place, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The number that stands for it on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }
}

impl fmt::Display for DiskNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a disk before a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskLayout {
    /// It is replicated and has this many bytes.
    Replicated {
        /// Its size.
        capacity_bytes: u64,
    },
    /// Nothing of it comes over the wire: it is read-only, or both hosts see the same one.
    Apart,
}

/// Whether the space behind zeroes may be given back to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpaceFate {
    /// It stays allocated.
    Kept,
    /// It may become a hole.
    Freed,
}

/// What a change does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<D> {
    /// These bytes, at most [`CHANGE_BYTES_MAX`].
    Write(D),
    /// The range reads as zeroes.
    Zeroes {
        /// How much, in bytes.
        length: u64,
        /// What becomes of the space.
        space: SpaceFate,
    },
    /// The content of the range is of no use any more.
    Discard {
        /// How much, in bytes.
        length: u64,
    },
    /// The guest was told that everything before is durable.
    Flush,
}

/// A change of one disk. `D` is how the data is held: borrowed from a frame, or owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChange<D = Vec<u8>> {
    /// Which disk.
    pub disk: DiskNumber,
    /// Where it begins, in bytes; 0 for a flush.
    pub offset: u64,
    /// What it does.
    pub change: Change<D>,
}

impl<D: AsRef<[u8]>> DiskChange<D> {
    /// How many bytes of the disk it is about.
    pub fn length(&self) -> u64 {
        match &self.change {
            Change::Write(data) => data.as_ref().len() as u64,
            Change::Zeroes { length, .. } | Change::Discard { length } => *length,
            Change::Flush => 0,
        }
    }

    /// Bytes of data it carries.
    pub fn data_bytes(&self) -> usize {
        match &self.change {
            Change::Write(data) => data.as_ref().len(),
            Change::Zeroes { .. } | Change::Discard { .. } | Change::Flush => 0,
        }
    }
}

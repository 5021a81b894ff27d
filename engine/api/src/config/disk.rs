// SPDX-License-Identifier: Apache-2.0
//! `[[disk]]`: a virtio disk of the guest, a file or block device of the host.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AbsolutePath, DeviceId, DiskSerial};

/// Disks a machine may have: with the interfaces and the other devices they fill one PCI bus.
pub const DISKS_MAX: usize = 16;

/// A disk of the guest: a raw file or a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSection {
    /// What the disk is called: 1 to 20 letters, digits and dashes, unique in the machine. It is
    /// also its serial number, unless `serial` is given: the guest finds it as
    /// /dev/disk/by-id/virtio-ID. Required.
    pub id: DeviceId,
    /// A raw image or a block device of the host, as an absolute path. Its size must be a multiple
    /// of 512 bytes. Required.
    pub path: AbsolutePath,
    /// `replicated` (the default): each host has a disk of its own at this path, of the same size,
    /// and Kemari keeps them equal; what was on the other host's disk is overwritten when the VM is
    /// protected. `shared`: both hosts see the same disk there; it must be a block device with `direct`
    /// where the VM is protected.
    #[serde(default)]
    pub storage: DiskStorage,
    /// Let the guest only read it; default false. It is then never replicated.
    #[serde(default)]
    pub read_only: bool,
    /// Go around the host's page cache (`O_DIRECT`); default false. Steadier times and no memory
    /// spent twice; a guest that reads the same blocks again gets slower.
    #[serde(default)]
    pub direct: bool,
    /// Let the guest give blocks back (discard, write zeroes); default true. A raw file gets holes
    /// and may have to allocate again later.
    #[serde(default = "yes")]
    pub discard: bool,
    /// How the host's kernel is asked: `auto` (the default) takes io_uring where the kernel allows
    /// it; `uring` insists on it; `plain`, one call at a time, slower.
    #[serde(default)]
    pub io: DiskIo,
    /// The serial number the guest reads: 1 to 20 printable ASCII characters, unique in the
    /// machine; default: the `id`.
    serial: Option<DiskSerial>,
}

impl DiskSection {
    /// Whether what the guest writes must be carried to the other host.
    #[must_use]
    pub fn is_replicated(&self) -> bool {
        self.storage == DiskStorage::Replicated && !self.read_only
    }

    /// The serial number the guest reads.
    #[must_use]
    pub fn serial(&self) -> DiskSerial {
        self.serial
            .clone()
            .unwrap_or_else(|| DiskSerial::from(&self.id))
    }
}

fn yes() -> bool {
    true
}

/// Where the other host's copy of a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum DiskStorage {
    /// It has one of its own, which Kemari keeps equal.
    #[default]
    Replicated,
    /// Both hosts see the same disk.
    Shared,
}

impl fmt::Display for DiskStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replicated => "replicated",
            Self::Shared => "shared",
        })
    }
}

/// How the host's kernel is asked to read and write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum DiskIo {
    /// io_uring where the kernel allows it.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// One call at a time.
    Plain,
}

impl fmt::Display for DiskIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Plain => "plain",
        })
    }
}

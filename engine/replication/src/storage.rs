// SPDX-License-Identifier: Apache-2.0
//! Replicated disks: what of them goes to the passive side, and when.
//!
//! Each host has a disk of its own. What the guest changes goes to the active side's disk at once
//! and into the log of the open epoch; the passive side applies the log of an epoch when it has
//! committed it. Before the first checkpoint of a session the two disks are made equal, while the
//! guest runs: [`Resync`] plans which blocks are compared and which are copied.
//!
//! * [`DiskChange`]: an entry of the log.
//! * [`ChangedBlocks`]: which blocks were changed since somebody last looked.
//! * [`block_digest`]: what stands for a block when disks are compared.

mod blocks;
mod change;
mod digest;
mod resync;

pub use blocks::{BLOCK_BYTES, BlockRange, ChangedBlocks};
pub use change::{
    CHANGE_BYTES_MAX, Change, DISKS_MAX, DiskChange, DiskLayout, DiskNumber, SpaceFate,
};
pub use digest::{BlockDigest, block_digest};
pub use resync::{PROBE_BLOCKS_MAX, Progress, Resync, Step, UnexpectedAnswer};

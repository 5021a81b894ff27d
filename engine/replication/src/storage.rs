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
//! * [`WriteIntents`]: where two disks that were equal may differ, recorded on each node as a
//!   [`ChangeRecord`], so that only [`Regions`] that may differ are compared when they meet again.

mod blocks;
mod change;
mod change_record;
mod digest;
mod regions;
mod resync;
mod write_intents;

pub use blocks::{BLOCK_BYTES, BlockRange, ChangedBlocks};
pub use change::{
    CHANGE_BYTES_MAX, Change, DISKS_MAX, DiskChange, DiskLayout, DiskNumber, SpaceFate,
};
pub use change_record::{
    BaseId, CHANGE_RECORD_BYTES_MAX, ChangeRecord, ChangeRecordError, DisksIdentity,
};
pub use digest::{BlockDigest, block_digest};
pub use regions::{MalformedRegions, REGION_BYTES, Regions};
pub use resync::{PROBE_BLOCKS_MAX, Progress, Resync, Step, UnexpectedAnswer};
pub use write_intents::{ChangeEnd, WriteIntents};

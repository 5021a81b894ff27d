// SPDX-License-Identifier: Apache-2.0
//! What goes between a passive session and its process: what it starts from, what it asks for.

use kemari_api::{Generation, NodeName};

use super::changes::ChangeBatch;
use super::checkpoint::{Checkpoint, PageBatch};
use crate::page::RamLayout;
use crate::storage::{BaseId, DiskLayout};
use crate::wire::{Goodbye, Probe, Purpose, Refusal, VmIdentity};

/// What a session of the passive side starts from.
#[derive(Debug, Clone)]
pub struct PassiveConfig {
    /// The VM.
    pub identity: VmIdentity,
    /// This node.
    pub node: NodeName,
    /// Which pages are RAM.
    pub ram: RamLayout,
    /// The disks, by their place in the description.
    pub disks: Vec<DiskLayout>,
    /// Judges two fingerprints that are not equal byte for byte (ours, theirs): `None` if they may
    /// pair all the same, otherwise what differs, for people.
    pub difference: fn(&[u8], &[u8]) -> Option<String>,
}

/// An active replica that may be welcomed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its node.
    pub node: NodeName,
    /// What it wants.
    pub purpose: Purpose,
    /// The generation it holds the licence of.
    pub generation: Generation,
}

/// What the process does after a frame.
#[derive(Debug)]
pub enum PassiveAction<'a> {
    /// Nothing; the part was staged.
    Continue,
    /// Answer with [`super::PassiveSession::welcome`], or with [`super::PassiveSession::refuse`] if the process
    /// has a reason (busy, not waiting).
    Answer(Call),
    /// Answer with [`super::PassiveSession::refuse`], write it and close the connection.
    Refuse(Refusal),
    /// Apply these pages to RAM now; the replica holds no checkpoint any more.
    Copy(PageBatch<'a>),
    /// Apply these changes to disks now; the replica holds no checkpoint any more.
    CopyDisk(ChangeBatch<'a>),
    /// Compare these blocks with the disk and answer with
    /// [`super::PassiveSession::compared`].
    Compare(Probe),
    /// Answer with [`super::PassiveSession::disk_changes`] where the disks may differ from this
    /// base. Where that is not known, the record of changes goes before a disk is written.
    TellChanges(BaseId),
    /// Make the disks durable and record this base; then, not necessarily at once, answer with
    /// [`super::PassiveSession::disks_durable`].
    MakeDurable(BaseId),
    /// A transaction is complete: decode its state, then call [`super::PassiveSession::accept`]; drop the
    /// session if it does not decode.
    Complete(Checkpoint),
    /// The active side is alive.
    Alive,
    /// The active side ends the session.
    Goodbye(Goodbye),
}

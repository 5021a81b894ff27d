// SPDX-License-Identifier: Apache-2.0
//! The receiver's half of `ft-transaction`.
//!
//! A [`Replica`] is what a passive replica knows from one session to the next: the generation, the
//! checkpoint it could run from, the outputs it would replay. A [`PassiveSession`] owns it for the
//! length of a connection.
//!
//! Pages of a transaction are staged apart from RAM ([`StagedPages`]). Only when its Commit agrees
//! with what arrived does the session yield a [`Checkpoint`]; only when the process has decoded its
//! state does it call [`PassiveSession::accept`], which makes the acknowledgement. A connection cut
//! at any byte before that leaves the replica on the checkpoint before.
//!
//! Pages of the initial copy go to RAM at once, and so do blocks to disks. From the first of them to the next commit the
//! replica holds nothing it could run from.

mod action;
mod changes;
mod checkpoint;
mod coverage;
mod replica;
mod retained;
mod session;
mod staging;

pub use action::{Call, PassiveAction, PassiveConfig};
pub use changes::{ChangeBatch, STAGED_CHANGES_BYTES_MAX, StagedChanges};
pub use checkpoint::{Checkpoint, PageBatch, StagedPages};
pub use replica::Replica;
pub use retained::{RETAINED_BYTES_MAX, Retained};
pub use session::PassiveSession;
pub use staging::STATE_BYTES_MAX;

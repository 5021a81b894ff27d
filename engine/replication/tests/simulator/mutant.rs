// SPDX-License-Identifier: Apache-2.0
//! Known-bad engines. The simulator is worth something only if it finds each of them out.
//!
//! They are switches in the simulator's glue, never in what is shipped.

/// What an engine does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Acknowledges a transaction before its state was decoded (the first Kemari's trap 1).
    AckBeforeDecode,
    /// Takes an acknowledgement for good that the session refuses (trap 5).
    AnyAckCounts,
    /// Goes solo when the link is lost, without asking anybody (trap 2; Remus).
    SoloOnLinkLoss,
    /// Captures the first checkpoint of a pair, and holds outputs only then.
    HoldAfterCapture,
    /// Forgets the pages of lost transactions when the link comes back.
    ForgetInFlight,
    /// Takes over without the outputs of the last commit.
    DropOutputsOnTakeover,
    /// Takes over, or goes solo, although its claim found no majority.
    NoMajority,
    /// Counts an epoch from its cut: a guest that stands still until the acknowledgement gets no
    /// time to run when that takes longer than the longest epoch.
    EpochFromCut,
}

impl Mutant {
    pub const ALL: [Self; 8] = [
        Self::AckBeforeDecode,
        Self::AnyAckCounts,
        Self::SoloOnLinkLoss,
        Self::HoldAfterCapture,
        Self::ForgetInFlight,
        Self::DropOutputsOnTakeover,
        Self::NoMajority,
        Self::EpochFromCut,
    ];
}

// SPDX-License-Identifier: Apache-2.0
//! What both sides of a session check of every frame, and what can go wrong.
//!
//! Every error ends the session. None of them touches the last committed checkpoint or releases
//! an output.

use kemari_api::{Epoch, Generation};
use thiserror::Error;

use crate::page::PageIndex;
use crate::storage::DiskNumber;
use crate::wire::{FrameHeader, FrameKind, WireError};

/// Why a session ended in disorder.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The bytes are no valid frame or payload.
    #[error("Peer sent an invalid frame")]
    Wire(#[from] WireError),
    /// A frame is missing, doubled or from another connection.
    #[error("Frame {kind:?} has number {found}, expected {expected}: frames were lost or repeated")]
    Sequence {
        /// The frame.
        kind: FrameKind,
        /// The number that would follow.
        expected: u64,
        /// The number it has.
        found: u64,
    },
    /// A frame in another protocol version than agreed.
    #[error("Frame {kind:?} is of protocol version {found}, agreed was {agreed}")]
    Version {
        /// The frame.
        kind: FrameKind,
        /// Version agreed in the greeting.
        agreed: u16,
        /// Version of the frame.
        found: u16,
    },
    /// A frame of another generation than the session's.
    #[error("Frame {kind:?} is of generation {found}, this session is of generation {session}")]
    Generation {
        /// The frame.
        kind: FrameKind,
        /// Generation of the session.
        session: Generation,
        /// Generation of the frame.
        found: Generation,
    },
    /// A frame that may not come at this point.
    #[error("Frame {kind:?} may not come while the session is {state}")]
    UnexpectedFrame {
        /// The frame.
        kind: FrameKind,
        /// What the session was doing.
        state: &'static str,
    },
    /// A frame of a transaction names another epoch than the transaction.
    #[error("Frame {kind:?} is of epoch {found}, expected {expected}")]
    EpochOrder {
        /// The frame.
        kind: FrameKind,
        /// The epoch that would be right (the lowest one, for the first of a session).
        expected: Epoch,
        /// The epoch it names.
        found: Epoch,
    },
    /// An acknowledgement of something never sent.
    #[error("Peer acknowledged epoch {epoch}, but only {sent} was sent")]
    AckBeyondSent {
        /// The epoch acknowledged.
        epoch: Epoch,
        /// The highest epoch whose Commit was sent.
        sent: Epoch,
    },
    /// An acknowledgement that says nothing new: stale or doubled.
    #[error("Peer acknowledged epoch {epoch} after {acked}")]
    AckNotNewer {
        /// The epoch acknowledged.
        epoch: Epoch,
        /// The highest epoch acknowledged before.
        acked: Epoch,
    },
    /// A transaction that builds on something this replica does not hold.
    #[error("Epoch {epoch} is a difference to epoch {base}, which this replica does not hold")]
    BaseNotHeld {
        /// The epoch of the transaction.
        epoch: Epoch,
        /// What it builds on; 0 for a copy made in this session.
        base: Epoch,
    },
    /// Outputs are said to have left before this replica committed their epoch.
    #[error("Outputs up to epoch {delivered} are said to have left, committed is only {committed}")]
    DeliveredBeyondCommitted {
        /// The epoch named.
        delivered: Epoch,
        /// The newest epoch committed here.
        committed: Epoch,
    },
    /// The initial copy left pages out.
    #[error("The initial copy ended with {missing} pages of RAM never sent")]
    CopyIncomplete {
        /// How many pages were never named.
        missing: u64,
    },
    /// A page that is not RAM.
    #[error("Page {index} in frame {kind:?} is not RAM of this VM")]
    PageOutsideRam {
        /// The frame.
        kind: FrameKind,
        /// The page.
        index: PageIndex,
    },
    /// A change or a comparison of a disk that is not replicated, or beyond its end.
    #[error(
        "Frame {kind:?}: {length} bytes at {offset} of disk {disk} are no whole sectors of a \
         replicated disk of this VM"
    )]
    OutsideDisk {
        /// The frame.
        kind: FrameKind,
        /// The disk it names.
        disk: DiskNumber,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
    },
    /// A page's difference that cannot be, or does not become what it should.
    #[error(
        "Transaction of epoch {epoch}: the difference of page {index} cannot be applied, {what}"
    )]
    BadDelta {
        /// The epoch.
        epoch: Epoch,
        /// The page.
        index: PageIndex,
        /// Why.
        what: &'static str,
    },
    /// More of something than announced or allowed.
    #[error("Transaction of epoch {epoch} exceeds its {what}: limit {limit}")]
    TooMuch {
        /// The epoch.
        epoch: Epoch,
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The totals in the Commit are not what arrived.
    #[error("Transaction of epoch {epoch}: {what} announced {announced}, received {received}")]
    Total {
        /// The epoch.
        epoch: Epoch,
        /// Of what.
        what: &'static str,
        /// In the Commit.
        announced: u64,
        /// Counted here.
        received: u64,
    },
    /// Everything arrived, but not what was sent.
    #[error(
        "Transaction of epoch {epoch}: digest {announced:#018x} announced, {received:#018x} received"
    )]
    Digest {
        /// The epoch.
        epoch: Epoch,
        /// In the Commit.
        announced: u64,
        /// Computed here.
        received: u64,
    },
    /// The session failed or ended before; connect again.
    #[error("The session is over")]
    Over,
}

/// What is checked of every incoming frame before its kind is looked at.
#[derive(Debug, Clone)]
pub(crate) struct Inbound {
    next_sequence: u64,
    agreed: Option<u16>,
    generation: Option<Generation>,
}

impl Inbound {
    /// Nothing received yet. The generation is fixed at once if it is known.
    pub(crate) const fn new(generation: Option<Generation>) -> Self {
        Self {
            next_sequence: 0,
            agreed: None,
            generation,
        }
    }

    /// From now on every frame must be of this version and generation.
    pub(crate) const fn agree(&mut self, version: u16, generation: Generation) {
        self.agreed = Some(version);
        self.generation = Some(generation);
    }

    /// Checks a frame and counts it.
    pub(crate) fn check(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        header.verify_payload(payload)?;
        let kind = header.kind;
        if header.sequence != self.next_sequence {
            return Err(ProtocolError::Sequence {
                kind,
                expected: self.next_sequence,
                found: header.sequence,
            });
        }
        self.next_sequence += 1;
        if let Some(agreed) = self.agreed.filter(|agreed| *agreed != header.version) {
            return Err(ProtocolError::Version {
                kind,
                agreed,
                found: header.version,
            });
        }
        if kind.since() > header.version {
            return Err(ProtocolError::UnexpectedFrame {
                kind,
                state: "of a version that has no such frame",
            });
        }
        if let Some(session) = self
            .generation
            .filter(|session| *session != header.generation)
        {
            return Err(ProtocolError::Generation {
                kind,
                session,
                found: header.generation,
            });
        }
        Ok(())
    }
}

/// Refuses a payload where the kind has none.
pub(crate) fn expect_empty(kind: FrameKind, payload: &[u8]) -> Result<(), ProtocolError> {
    if payload.is_empty() {
        return Ok(());
    }
    Err(WireError::Malformed {
        kind,
        what: "this kind carries no payload",
    }
    .into())
}

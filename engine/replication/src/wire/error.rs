// SPDX-License-Identifier: Apache-2.0
//! What can be wrong with bytes from the peer.

use thiserror::Error;

use super::header::{COUNTER_MAX, FrameKind, MAGIC, PAYLOAD_BYTES_MAX};
use crate::page::PageIndex;

/// Why bytes are no frame, or a payload is not what its kind requires.
///
/// Each of them ends the connection: after one nothing that follows can be trusted. The previous
/// checkpoint is untouched; the remedy is to connect again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The other end does not speak the protocol at all.
    #[error(
        "Peer does not speak the Kemari protocol: a frame starts with {found:02x?} instead of {MAGIC:02x?}; check address and port"
    )]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The header was damaged on the way.
    #[error("Frame header damaged: checksum {found:#010x} on the wire, {computed:#010x} computed")]
    HeaderChecksum {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the bytes received.
        computed: u32,
    },
    /// A kind this version does not know.
    #[error("Frame of unknown kind {code}; both engines must run compatible versions")]
    UnknownKind {
        /// The number on the wire.
        code: u16,
    },
    /// A payload longer than any frame may be.
    #[error(
        "Frame {kind:?} announces a payload of {bytes} bytes; the limit is {PAYLOAD_BYTES_MAX}"
    )]
    PayloadTooLarge {
        /// The frame.
        kind: FrameKind,
        /// Announced length.
        bytes: u32,
    },
    /// A field kept for later versions is used.
    #[error("Frame {kind:?} uses a reserved field; both engines must run compatible versions")]
    ReservedNotZero {
        /// The frame.
        kind: FrameKind,
    },
    /// A counter no cluster can have reached.
    #[error("Counter {field} is {value}, which no VM reaches (limit {COUNTER_MAX})")]
    CounterTooLarge {
        /// Which counter.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The payload has another length than the header says.
    #[error("Payload of frame {kind:?} has {found} bytes, its header says {expected}")]
    PayloadLength {
        /// The frame.
        kind: FrameKind,
        /// Length in the header.
        expected: usize,
        /// Length received.
        found: usize,
    },
    /// The payload was damaged on the way.
    #[error(
        "Payload of frame {kind:?} number {sequence} damaged: checksum {found:#010x} on the wire, {computed:#010x} computed"
    )]
    PayloadChecksum {
        /// The frame.
        kind: FrameKind,
        /// Its number.
        sequence: u64,
        /// Checksum in the header.
        found: u32,
        /// Checksum of the bytes received.
        computed: u32,
    },
    /// The payload does not have the form its kind requires.
    #[error("Payload of frame {kind:?} is malformed: {what}")]
    Malformed {
        /// The frame.
        kind: FrameKind,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A page in an encoding this version does not know.
    #[error(
        "Page {index} comes in unknown encoding {code}; both engines must run compatible versions"
    )]
    UnknownPageEncoding {
        /// The page.
        index: PageIndex,
        /// The number on the wire.
        code: u8,
    },
    /// An output of a kind this version does not know.
    #[error("Output of unknown kind {code}; both engines must run compatible versions")]
    UnknownOutputKind {
        /// The number on the wire.
        code: u8,
    },
}

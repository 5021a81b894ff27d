// SPDX-License-Identifier: Apache-2.0
//! The fixed header before every payload.
//!
//! It is checked from the outside in: magic, own checksum, then the fields. Its layout never
//! changes, whatever the protocol version, so that two engines of different versions can always
//! tell each other so.

use kemari_api::{Epoch, Generation};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::WireError;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"KMRI";

/// The protocol version this engine speaks best.
pub const PROTOCOL_VERSION: u16 = 4;

/// The oldest protocol version this engine still speaks.
pub const PROTOCOL_OLDEST: u16 = 2;

/// The first protocol version with pages as LZ4 blocks and deltas.
pub const VERSION_OF_ENCODINGS: u16 = 3;

/// The first protocol version with records of what may differ between disks.
pub const VERSION_OF_CHANGE_RECORDS: u16 = 4;

/// Size of a header, in bytes.
pub const HEADER_BYTES: usize = 48;

/// Largest payload of one frame, in bytes (1 MiB).
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// Generations, epochs and sequence numbers on the wire stay below this, so that counting on from
/// one of them cannot overflow.
pub const COUNTER_MAX: u64 = 1 << 62;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FrameKind {
    /// Active to passive, first frame: who is calling.
    Hello = 1,
    /// Passive to active: come in.
    Welcome = 2,
    /// Either way: no, and why. The last frame of a connection.
    Refuse = 3,
    /// Pages of the initial copy, outside any transaction.
    CopyPages = 4,
    /// A transaction begins.
    Begin = 5,
    /// Pages of the open transaction.
    Pages = 6,
    /// Machine state of the open transaction.
    State = 7,
    /// Outputs of the open transaction.
    Outputs = 8,
    /// The transaction is complete; its totals and digest.
    Commit = 9,
    /// Passive to active: every epoch up to this one is committed.
    Ack = 10,
    /// I am alive.
    Heartbeat = 11,
    /// Active to passive: every output up to this epoch has been taken by the outside.
    Delivered = 12,
    /// Either way: the end of the session, and why. The last frame of a connection.
    Goodbye = 13,
    /// Content of disks before the first transaction. Since version 3, as all about disks.
    DiskCopy = 14,
    /// What the guest changed on disks in the open transaction.
    DiskLog = 15,
    /// Digests of blocks of a disk, to be compared.
    DiskProbe = 16,
    /// Passive to active: which blocks of a probe differ.
    DiskDiffers = 17,
    /// Active to passive: the base of its record of changes. Since version 4, as the next three.
    DiskBase = 18,
    /// Passive to active: where its disks may differ from that base, or that it has none.
    DiskChanges = 19,
    /// Active to passive: make your disks durable and record this base.
    DiskSync = 20,
    /// Passive to active: they are, and it is recorded.
    DiskSynced = 21,
}

impl FrameKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 21] = [
        Self::Hello,
        Self::Welcome,
        Self::Refuse,
        Self::CopyPages,
        Self::Begin,
        Self::Pages,
        Self::State,
        Self::Outputs,
        Self::Commit,
        Self::Ack,
        Self::Heartbeat,
        Self::Delivered,
        Self::Goodbye,
        Self::DiskCopy,
        Self::DiskLog,
        Self::DiskProbe,
        Self::DiskDiffers,
        Self::DiskBase,
        Self::DiskChanges,
        Self::DiskSync,
        Self::DiskSynced,
    ];

    /// The protocol version it came with.
    #[must_use]
    pub const fn since(self) -> u16 {
        match self {
            Self::DiskBase | Self::DiskChanges | Self::DiskSync | Self::DiskSynced => {
                VERSION_OF_CHANGE_RECORDS
            }
            Self::DiskCopy | Self::DiskLog | Self::DiskProbe | Self::DiskDiffers => {
                VERSION_OF_ENCODINGS
            }
            _ => PROTOCOL_OLDEST,
        }
    }

    /// The number that stands for the kind on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The kind that a number on the wire stands for.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// A header as it lies on the wire.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    payload_bytes: U32,
    payload_crc: U32,
    generation: U64,
    epoch: U64,
    sequence: U64,
    reserved: U32,
    header_crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// How much of the header its checksum covers: all of it but the checksum.
const CHECKED_BYTES: usize = HEADER_BYTES - size_of::<U32>();

/// A header whose checksum and limits have been verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Protocol version the frame is written in.
    pub version: u16,
    /// What the frame is.
    pub kind: FrameKind,
    /// Length of the payload in bytes, at most [`PAYLOAD_BYTES_MAX`].
    pub payload_bytes: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// Generation of the session.
    pub generation: Generation,
    /// The epoch the frame is about; 0 when it is about none.
    pub epoch: Epoch,
    /// Number of the frame on this connection in this direction, from 0.
    pub sequence: u64,
}

impl FrameHeader {
    /// Reads and checks a header.
    ///
    /// # Errors
    /// When the magic, the checksum or a field is not what the format allows.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let raw = RawHeader::read_from_bytes(bytes.as_slice())
            .expect("the array has the size of the header, checked at compile time");
        if raw.magic != MAGIC {
            return Err(WireError::BadMagic { found: raw.magic });
        }
        let computed = crc32c::crc32c(&bytes[..CHECKED_BYTES]);
        if raw.header_crc.get() != computed {
            return Err(WireError::HeaderChecksum {
                found: raw.header_crc.get(),
                computed,
            });
        }
        raw.try_into()
    }

    /// Length of the payload in bytes.
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        self.payload_bytes as usize
    }

    /// Checks the payload that followed this header.
    ///
    /// # Errors
    /// When its length or checksum differs from what the header says.
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), WireError> {
        if payload.len() != self.payload_len() {
            return Err(WireError::PayloadLength {
                kind: self.kind,
                expected: self.payload_len(),
                found: payload.len(),
            });
        }
        let computed = crc32c::crc32c(payload);
        if computed != self.payload_crc {
            return Err(WireError::PayloadChecksum {
                kind: self.kind,
                sequence: self.sequence,
                found: self.payload_crc,
                computed,
            });
        }
        Ok(())
    }

    /// The header as it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let raw = RawHeader {
            magic: MAGIC,
            version: U16::new(self.version),
            kind: U16::new(self.kind.code()),
            payload_bytes: U32::new(self.payload_bytes),
            payload_crc: U32::new(self.payload_crc),
            generation: U64::new(self.generation.get()),
            epoch: U64::new(self.epoch.get()),
            sequence: U64::new(self.sequence),
            reserved: U32::new(0),
            header_crc: U32::new(0),
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        let crc = crc32c::crc32c(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

impl TryFrom<RawHeader> for FrameHeader {
    type Error = WireError;

    fn try_from(raw: RawHeader) -> Result<Self, WireError> {
        let code = raw.kind.get();
        let kind = FrameKind::from_code(code).ok_or(WireError::UnknownKind { code })?;
        if raw.payload_bytes.get() as usize > PAYLOAD_BYTES_MAX {
            return Err(WireError::PayloadTooLarge {
                kind,
                bytes: raw.payload_bytes.get(),
            });
        }
        if raw.reserved.get() != 0 {
            return Err(WireError::ReservedNotZero { kind });
        }
        for (field, value) in [
            ("generation", raw.generation.get()),
            ("epoch", raw.epoch.get()),
            ("sequence", raw.sequence.get()),
        ] {
            check_counter(field, value)?;
        }
        Ok(Self {
            version: raw.version.get(),
            kind,
            payload_bytes: raw.payload_bytes.get(),
            payload_crc: raw.payload_crc.get(),
            generation: Generation::new(raw.generation.get()),
            epoch: Epoch::new(raw.epoch.get()),
            sequence: raw.sequence.get(),
        })
    }
}

/// Refuses a counter from the wire that is too large to count on from.
pub(crate) fn check_counter(field: &'static str, value: u64) -> Result<u64, WireError> {
    if value >= COUNTER_MAX {
        return Err(WireError::CounterTooLarge { field, value });
    }
    Ok(value)
}

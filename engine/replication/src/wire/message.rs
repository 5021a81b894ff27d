// SPDX-License-Identifier: Apache-2.0
//! Payloads that are neither pages nor outputs: greeting, refusal, begin, commit, goodbye.
//!
//! The greeting carries names and grows with versions, so it is postcard; what occurs in every
//! transaction has a fixed layout. A Hello starts with the two version numbers at fixed places,
//! which engines of any version can read.

use std::fmt;

use kemari_api::{Epoch, Generation, NodeName, VmName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::WireError;
use super::header::{FrameKind, PROTOCOL_OLDEST, PROTOCOL_VERSION, check_counter};

/// Largest payload that is read as postcard, in bytes.
pub const POSTCARD_BYTES_MAX: usize = 64 * 1024;

/// Longest text for people in a refusal, in bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 4096;

/// Which VM a replica is of. Two replicas pair only if the names are equal and the
/// fingerprints fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmIdentity {
    /// Name of the VM.
    pub vm: VmName,
    /// What must fit on both sides (memory size, devices, CPU model, …), encoded and judged
    /// by the process. Opaque here.
    pub fingerprint: Vec<u8>,
}

/// A checkpoint a passive replica could run from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Held {
    /// Generation it was committed in.
    pub generation: Generation,
    /// Its epoch.
    pub epoch: Epoch,
}

/// First frame of the active side. The generation is in the frame's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version the active side speaks.
    pub oldest: u16,
    /// Newest protocol version the active side speaks.
    pub newest: u16,
    /// Who it is. `None` if the versions do not overlap: the rest is then not for us to read.
    pub body: Option<HelloBody>,
}

/// The part of a Hello whose form depends on the protocol version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloBody {
    /// The VM.
    pub identity: VmIdentity,
    /// The active side's node.
    pub node: NodeName,
    /// What it wants.
    pub purpose: Purpose,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Continuous replication.
    Replication,
    /// Moving the guest once: the session ends with [`Goodbye::Migrated`].
    Migration,
    /// A snapshot in a file.
    Snapshot,
}

/// Answer of the passive side. The header's version is the one both will speak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The passive side's node.
    pub node: NodeName,
    /// What it could run from now, if anything: it tells the active side which epochs were
    /// committed although their acknowledgement was lost.
    pub held: Option<Held>,
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No protocol version is spoken by both. First, and of this form, in every version.
    ProtocolVersion {
        /// Oldest and newest version of the side that refuses.
        ours: (u16, u16),
        /// Oldest and newest version of the side that called.
        theirs: (u16, u16),
    },
    /// The replicas are of different VMs.
    OtherVm {
        /// The VM of the side that refuses.
        ours: VmName,
        /// The VM of the side that called.
        theirs: VmName,
    },
    /// Same VM, but its description differs.
    FingerprintDiffers {
        /// What differs, for people.
        text: String,
    },
    /// The side that refuses knows of a newer generation: the caller must never run again.
    Outdated {
        /// The newer generation.
        generation: Generation,
    },
    /// Another active replica is being served.
    Busy,
    /// This replica is not waiting for checkpoints.
    NotWaiting {
        /// What it is instead, for people.
        text: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProtocolVersion { ours, theirs } => write!(
                f,
                "protocol versions do not overlap: the refusing engine speaks {} to {}, the \
                 calling one {} to {}; upgrade the older engine",
                ours.0, ours.1, theirs.0, theirs.1
            ),
            Self::OtherVm { ours, theirs } => write!(
                f,
                "the refusing replica is of VM {ours}, the calling one of VM {theirs}; \
                 check address and port"
            ),
            Self::FingerprintDiffers { text } => write!(
                f,
                "the two replicas describe the VM differently: {text}; make the files equal"
            ),
            Self::Outdated { generation } => {
                write!(
                    f,
                    "there is a newer generation, {generation}; the calling replica is outdated"
                )
            }
            Self::Busy => f.write_str("another active replica is connected"),
            Self::NotWaiting { text } => {
                write!(f, "the replica is not waiting for checkpoints: {text}")
            }
        }
    }
}

/// Why a session ends in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goodbye {
    /// Active to passive: run on from this epoch, the sender has stopped for good.
    HandedOver {
        /// The last committed epoch.
        epoch: Epoch,
    },
    /// The sender's process ends. Nothing follows from it about who may run.
    Stopping,
    /// Active to passive: the pair is being dissolved. The passive side records durably that it is
    /// outdated and then answers [`Goodbye::Outdated`].
    Unprotected,
    /// Passive to active: I have recorded durably that I must never run from what I hold.
    Outdated,
    /// Active to passive, in a session for a migration: the right to run is yours. The sender has
    /// recorded durably that it has none any more.
    Migrated {
        /// The last committed epoch.
        epoch: Epoch,
        /// The generation of the right.
        generation: Generation,
    },
}

/// Start of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Every output up to and including this epoch has left and was taken by the outside.
    pub delivered_up_to: Epoch,
    /// The epoch this checkpoint is a difference to; 0 for the copy made in this session.
    pub base: Epoch,
    /// How many pages follow.
    pub pages: u64,
    /// Position of the console's stream at the end of the epoch.
    pub console_position: u64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBegin {
    delivered_up_to: U64,
    base: U64,
    pages: U64,
    console_position: U64,
}
const _: () = assert!(size_of::<RawBegin>() == 32);

/// End of a transaction: what must have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Pages sent.
    pub pages: u64,
    /// Bytes of machine state sent.
    pub state_bytes: u64,
    /// Outputs sent.
    pub outputs: u64,
    /// Payload bytes sent, from Begin on.
    pub payload_bytes: u64,
    /// XXH3 of everything from Begin on; see [`super::digest`].
    pub digest: u64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCommit {
    pages: U64,
    state_bytes: U64,
    outputs: U64,
    payload_bytes: U64,
    digest: U64,
}
const _: () = assert!(size_of::<RawCommit>() == 40);

impl Hello {
    /// Appends the greeting of this engine to a payload.
    pub fn encode(payload: &mut Vec<u8>, body: &HelloBody) {
        payload.extend_from_slice(&PROTOCOL_OLDEST.to_le_bytes());
        payload.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        encode_postcard(payload, body);
    }

    /// Reads a greeting.
    ///
    /// # Errors
    /// When it is cut or malformed.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let malformed = |what| WireError::Malformed {
            kind: FrameKind::Hello,
            what,
        };
        let (versions, rest) = <[U16; 2]>::ref_from_prefix(payload)
            .map_err(|_| malformed("it ends before the protocol versions"))?;
        let [oldest, newest] = versions.map(U16::get);
        let overlap = oldest <= PROTOCOL_VERSION && newest >= PROTOCOL_OLDEST;
        let body = if overlap {
            Some(decode_postcard(FrameKind::Hello, rest)?)
        } else {
            None
        };
        Ok(Self {
            oldest,
            newest,
            body,
        })
    }
}

impl Begin {
    /// Appends the payload of a Begin frame.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        let raw = RawBegin {
            delivered_up_to: U64::new(self.delivered_up_to.get()),
            base: U64::new(self.base.get()),
            pages: U64::new(self.pages),
            console_position: U64::new(self.console_position),
        };
        payload.extend_from_slice(raw.as_bytes());
    }

    /// Reads the payload of a Begin frame.
    ///
    /// # Errors
    /// When its length or a counter is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let raw = RawBegin::ref_from_bytes(payload).map_err(|_| WireError::Malformed {
            kind: FrameKind::Begin,
            what: "wrong length",
        })?;
        Ok(Self {
            delivered_up_to: Epoch::new(check_counter(
                "delivered_up_to",
                raw.delivered_up_to.get(),
            )?),
            base: Epoch::new(check_counter("base", raw.base.get())?),
            pages: raw.pages.get(),
            console_position: check_counter("console position", raw.console_position.get())?,
        })
    }
}

impl Commit {
    /// Appends the payload of a Commit frame.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        let raw = RawCommit {
            pages: U64::new(self.pages),
            state_bytes: U64::new(self.state_bytes),
            outputs: U64::new(self.outputs),
            payload_bytes: U64::new(self.payload_bytes),
            digest: U64::new(self.digest),
        };
        payload.extend_from_slice(raw.as_bytes());
    }

    /// Reads the payload of a Commit frame.
    ///
    /// # Errors
    /// When its length is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let raw = RawCommit::ref_from_bytes(payload).map_err(|_| WireError::Malformed {
            kind: FrameKind::Commit,
            what: "wrong length",
        })?;
        Ok(Self {
            pages: raw.pages.get(),
            state_bytes: raw.state_bytes.get(),
            outputs: raw.outputs.get(),
            payload_bytes: raw.payload_bytes.get(),
            digest: raw.digest.get(),
        })
    }
}

/// Appends a value as postcard.
pub(crate) fn encode_postcard<T: Serialize>(payload: &mut Vec<u8>, value: &T) {
    let bytes = postcard::to_stdvec(value).expect("our messages are plain data of known size");
    payload.extend_from_slice(&bytes);
}

/// Reads a value as postcard, which must fill the payload.
pub(crate) fn decode_postcard<T: DeserializeOwned>(
    kind: FrameKind,
    payload: &[u8],
) -> Result<T, WireError> {
    if payload.len() > POSTCARD_BYTES_MAX {
        return Err(WireError::Malformed {
            kind,
            what: "longer than 64 KiB",
        });
    }
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(WireError::Malformed {
            kind,
            what: "bytes left over at its end",
        }),
        Err(_) => Err(WireError::Malformed {
            kind,
            what: "its fields do not decode",
        }),
    }
}

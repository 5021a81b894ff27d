// SPDX-License-Identifier: Apache-2.0
//! The whole state of a machine but its memory, and its encoding.
//!
//! Encoding: 8 bytes magic, 4 bytes version (little-endian), then the postcard encoding of
//! [`MachineState`]. Postcard's format is documented and stable; KVM's structures are encoded as their
//! bytes, whose layout the kernel guarantees. Only the current version is decoded. Decoding never
//! panics and never allocates more than the input is long, whatever the bytes.

pub(crate) mod chips;
pub(crate) mod processor;
pub(crate) mod tsc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::MemorySize;
use crate::devices::DevicesState;
use crate::virtio::state::FunctionState;
pub use chips::VmState;
pub use processor::VcpuState;

/// Version of the encoding; changes with every change of the state's meaning or layout.
pub const STATE_VERSION: u32 = 4;
/// Longest encoded state that is accepted, in bytes. A vCPU needs 10 to 20 KB.
pub const MAX_STATE_BYTES: usize = 16 << 20;

const MAGIC: [u8; 8] = *b"KEMARIVM";

/// Everything of a paused machine but its memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineState {
    /// Memory size of the machine this is the state of.
    pub memory: MemorySize,
    /// Hash of the CPUID the guest sees; a machine with another one refuses the state.
    pub(crate) cpuid_hash: u64,
    /// One per vCPU.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer and clock.
    pub vm: VmState,
    /// Port I/O devices.
    pub devices: DevicesState,
    /// Virtio devices, by slot.
    pub(crate) virtio: Vec<FunctionState>,
}

/// Bytes that are not an encoded machine state of this version.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeStateError {
    /// Longer than any state.
    #[error("Machine state of {bytes} bytes is longer than the limit of {MAX_STATE_BYTES}")]
    TooLong {
        /// Length of the input.
        bytes: usize,
    },
    /// The magic is not there.
    #[error("Not a machine state: it does not begin with the magic bytes")]
    NotAState,
    /// Written by another version.
    #[error(
        "Machine state has version {found}, this program understands {STATE_VERSION}; \
         run the same version of Kemari on both hosts"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// Cut or damaged.
    #[error("Machine state is damaged: {reason}")]
    Damaged {
        /// What the decoder said.
        reason: String,
    },
}

impl MachineState {
    /// The state as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((self.vcpus.len() + 1) * (16 << 10));
        bytes.extend(MAGIC);
        bytes.extend(STATE_VERSION.to_le_bytes());
        postcard::to_extend(self, bytes)
            .expect("plain data of known length always encodes into a vector")
    }

    /// The state that `bytes` encode.
    ///
    /// # Errors
    /// The bytes are too long, of another version, or no whole state.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeStateError> {
        if bytes.len() > MAX_STATE_BYTES {
            return Err(DecodeStateError::TooLong { bytes: bytes.len() });
        }
        let rest = bytes
            .strip_prefix(&MAGIC)
            .ok_or(DecodeStateError::NotAState)?;
        let (version, body) = rest
            .split_first_chunk()
            .ok_or_else(|| damaged("it ends before its version"))?;
        let found = u32::from_le_bytes(*version);
        if found != STATE_VERSION {
            return Err(DecodeStateError::Version { found });
        }
        match postcard::take_from_bytes(body) {
            Ok((state, [])) => Ok(state),
            Ok((_, more)) => Err(damaged(&format!("{} bytes too many", more.len()))),
            Err(error) => Err(damaged(&error.to_string())),
        }
    }
}

fn damaged(reason: &str) -> DecodeStateError {
    DecodeStateError::Damaged {
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version: u32) -> Vec<u8> {
        [&MAGIC[..], &version.to_le_bytes()].concat()
    }

    #[test]
    fn another_version_is_refused_by_number() {
        assert_eq!(
            MachineState::decode(&header(7)).unwrap_err(),
            DecodeStateError::Version { found: 7 }
        );
    }

    #[test]
    fn foreign_and_oversized_input_is_refused() {
        assert_eq!(
            MachineState::decode(b"hello").unwrap_err(),
            DecodeStateError::NotAState
        );
        assert_eq!(
            MachineState::decode(&vec![0; MAX_STATE_BYTES + 1]).unwrap_err(),
            DecodeStateError::TooLong {
                bytes: MAX_STATE_BYTES + 1
            }
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = MachineState::decode(&body);
            let _ = MachineState::decode(&[header(STATE_VERSION), body].concat());
        }
    }
}

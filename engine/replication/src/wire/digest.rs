// SPDX-License-Identifier: Apache-2.0
//! The digest over a whole transaction.
//!
//! Each frame's checksum tells that the frame arrived; the digest tells that the receiver saw the
//! same frames in the same order as the sender made, from Begin to the frame before Commit.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use super::header::FrameKind;

/// XXH3-64 over, for each frame, its kind and length (two and four bytes, little endian) and its
/// payload.
#[derive(Clone)]
pub struct TransactionDigest {
    hash: Xxh3,
    payload_bytes: u64,
}

impl fmt::Debug for TransactionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionDigest")
            .field("payload_bytes", &self.payload_bytes)
            .finish_non_exhaustive()
    }
}

impl Default for TransactionDigest {
    fn default() -> Self {
        Self {
            hash: Xxh3::new(),
            payload_bytes: 0,
        }
    }
}

impl TransactionDigest {
    /// Forgets everything, for the next transaction.
    pub fn reset(&mut self) {
        self.hash.reset();
        self.payload_bytes = 0;
    }

    /// Adds a frame.
    ///
    /// # Panics
    /// When the payload is longer than a frame can carry.
    pub fn add(&mut self, kind: FrameKind, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("frames are limited to 1 MiB");
        self.hash.update(&kind.code().to_le_bytes());
        self.hash.update(&length.to_le_bytes());
        self.hash.update(payload);
        self.payload_bytes += u64::from(length);
    }

    /// Payload bytes added so far.
    #[must_use]
    pub const fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// The digest of everything added so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.hash.digest()
    }
}

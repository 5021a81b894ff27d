// SPDX-License-Identifier: Apache-2.0
//! What stands for a block when two disks are compared.

use xxhash_rust::xxh3::xxh3_128;

/// XXH3-128 of a block's bytes.
///
/// It is no cryptographic hash: a guest that goes to the trouble of making two blocks of equal
/// digest damages its own passive replica and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDigest(pub u128);

/// The digest of a block.
#[must_use]
pub fn block_digest(bytes: &[u8]) -> BlockDigest {
    BlockDigest(xxh3_128(bytes))
}

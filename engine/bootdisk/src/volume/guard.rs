// SPDX-License-Identifier: Apache-2.0
//! Keeps trees of extents that are made to be walked for ever away from `ext4-view`.
//!
//! A node of such a tree may point to the same child many times. The crate checks that each level is
//! one lower than the one above, and has the nodes in its cache: five levels of such nodes are
//! walked without reading anything anew, some 10^13 steps long. So the blocks that it reads are
//! looked at on their way: a node that is higher than any file of `/boot` needs is an error.

use std::io;

use crate::image::Window;

const NODE_MAGIC: [u8; 2] = [0x0a, 0xf3];
const ENTRY_BYTES: u64 = 12;
/// Entries of the tree's root, in the inode.
const ROOT_ENTRIES: u64 = 4;
/// Steps that walking one tree may take at most. A GiB in single blocks of 4 KiB needs 262144.
const STEPS_MAX: u64 = 4 << 20;
/// Highest level that the crate accepts.
const DEPTH_MAX: u16 = 5;

/// A window that refuses such nodes.
pub(super) struct Guarded {
    window: Window,
    block_bytes: u64,
    depth_max: u16,
}

impl Guarded {
    pub(super) fn new(window: Window, block_bytes: u64) -> Self {
        Self {
            window,
            block_bytes,
            depth_max: depth_max(block_bytes),
        }
    }

    /// Whether a block is a node that is too high. Data can look like one by chance, once in 10^13.
    fn is_too_high(&self, block: &[u8]) -> bool {
        let field = |at: usize| {
            let bytes = block.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
        };
        let (entries, room, depth) = (field(2), field(4), field(6));
        block.starts_with(&NODE_MAGIC)
            && entries <= room
            && u64::from(room) < self.block_bytes / ENTRY_BYTES
            && depth > self.depth_max
            && depth <= DEPTH_MAX
    }
}

/// The highest node, with full nodes of full nodes below it, that can be walked in time.
fn depth_max(block_bytes: u64) -> u16 {
    let entries = block_bytes / ENTRY_BYTES;
    let mut steps = ROOT_ENTRIES * entries;
    let mut depth = 0;
    while steps * entries <= STEPS_MAX {
        steps *= entries;
        depth += 1;
    }
    depth
}

impl ext4_view::Ext4Read for Guarded {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.window.read_exact_at(start, buffer)?;
        let block_bytes = usize::try_from(self.block_bytes)?;
        if start.is_multiple_of(self.block_bytes)
            && buffer
                .chunks_exact(block_bytes)
                .any(|block| self.is_too_high(block))
        {
            let text = "a file is cut into more pieces than any of /boot should be";
            return Err(io::Error::other(text).into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_by_block_size() {
        let depths = [1024, 2048, 4096, 65_536].map(depth_max);
        assert_eq!(depths, [2, 1, 1, 0]);
    }
}

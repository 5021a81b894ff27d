// SPDX-License-Identifier: Apache-2.0
//! Blocks of a disk, and the set of those that were changed.

use std::ops::Range;

/// The unit in which disks are compared and copied, in bytes. The last block of a disk may be
/// shorter.
pub const BLOCK_BYTES: u64 = 64 * 1024;

/// Blocks that follow each other, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first.
    pub first: u64,
    /// How many; not 0.
    pub count: u64,
}

impl BlockRange {
    /// Where it lies on a disk of this size, in bytes.
    #[must_use]
    pub fn bytes(self, capacity_bytes: u64) -> Range<u64> {
        let end = (self.first + self.count).saturating_mul(BLOCK_BYTES);
        self.first * BLOCK_BYTES..end.min(capacity_bytes)
    }
}

/// The set of a disk's blocks that were changed since somebody last looked: a bit a block.
#[derive(Debug, Clone, Default)]
pub struct ChangedBlocks {
    words: Vec<u64>,
    blocks: u64,
    count: u64,
    /// No word before this one has a bit.
    from: usize,
}

impl ChangedBlocks {
    /// None of a disk of this size.
    #[must_use]
    pub fn none(capacity_bytes: u64) -> Self {
        let blocks = capacity_bytes.div_ceil(BLOCK_BYTES);
        let words = usize::try_from(blocks.div_ceil(64)).expect("a bit a block fits into memory");
        Self {
            words: vec![0; words],
            blocks,
            count: 0,
            from: 0,
        }
    }

    /// How many blocks are in the set.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.count
    }

    /// Whether none is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds the blocks that these bytes touch; what is beyond the disk's end is none.
    pub fn add_bytes(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let last = offset.saturating_add(length - 1) / BLOCK_BYTES;
        for block in offset / BLOCK_BYTES..=last.min(self.blocks.saturating_sub(1)) {
            self.add(block);
        }
    }

    /// Adds a block.
    pub fn add(&mut self, block: u64) {
        if block >= self.blocks {
            return;
        }
        let (word, bit) = place(block);
        if let Some(bits) = self.words.get_mut(word)
            && *bits & bit == 0
        {
            *bits |= bit;
            self.count += 1;
            self.from = self.from.min(word);
        }
    }

    /// Adds the blocks of a range.
    pub fn add_range(&mut self, range: BlockRange) {
        for block in range.first..range.first.saturating_add(range.count).min(self.blocks) {
            self.add(block);
        }
    }

    /// Whether a block is in the set.
    #[must_use]
    pub fn contains(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// Moves everything of another set of the same disk here.
    pub fn take_from(&mut self, other: &mut Self) {
        if other.is_empty() {
            return;
        }
        self.count = 0;
        self.from = self.from.min(other.from);
        for (ours, theirs) in self.words.iter_mut().zip(&mut other.words) {
            *ours |= std::mem::take(theirs);
            self.count += u64::from(ours.count_ones());
        }
        other.count = 0;
    }

    /// Takes the first blocks out of the set, as many as follow each other and at most `count_max`.
    pub fn take_first(&mut self, count_max: u64) -> Option<BlockRange> {
        if self.is_empty() {
            return None;
        }
        let from = self.words.get(self.from..)?;
        let word = self.from + from.iter().position(|word| *word != 0)?;
        self.from = word;
        let within = self.words.get(word)?.trailing_zeros();
        let first = word as u64 * 64 + u64::from(within);
        let mut count = 0;
        while count < count_max && self.remove(first + count) {
            count += 1;
        }
        (count > 0).then_some(BlockRange { first, count })
    }

    fn remove(&mut self, block: u64) -> bool {
        let (word, bit) = place(block);
        match self.words.get_mut(word) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                self.count -= 1;
                true
            }
            _ => false,
        }
    }
}

fn place(block: u64) -> (usize, u64) {
    let word = usize::try_from(block / 64).unwrap_or(usize::MAX);
    (word, 1 << (block % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_touch_their_blocks_and_none_beyond_the_end() {
        let mut changed = ChangedBlocks::none(3 * BLOCK_BYTES + 512);
        changed.add_bytes(BLOCK_BYTES - 1, 2);
        changed.add_bytes(3 * BLOCK_BYTES, u64::MAX);
        changed.add_bytes(0, 0);
        assert_eq!(changed.len(), 3);
        let all = changed.take_first(9).unwrap();
        assert_eq!(all, BlockRange { first: 0, count: 2 });
        let rest = changed.take_first(9).unwrap();
        assert_eq!(
            rest.bytes(3 * BLOCK_BYTES + 512),
            3 * BLOCK_BYTES..3 * BLOCK_BYTES + 512
        );
        assert!(changed.is_empty() && changed.take_first(9).is_none());
    }

    proptest! {
        #[test]
        fn it_is_the_set_it_claims_to_be(
            added in proptest::collection::vec(0_u64..300, 0..200),
            others in proptest::collection::vec(0_u64..300, 0..200),
            most in 1_u64..40,
        ) {
            let capacity = 257 * BLOCK_BYTES;
            let (mut ours, mut theirs) = (ChangedBlocks::none(capacity), ChangedBlocks::none(capacity));
            added.iter().for_each(|block| ours.add(*block));
            others.iter().for_each(|block| theirs.add(*block));
            ours.take_from(&mut theirs);
            prop_assert!(theirs.is_empty());
            let expected: BTreeSet<u64> =
                added.into_iter().chain(others).filter(|block| *block < 257).collect();
            prop_assert_eq!(ours.len(), expected.len() as u64);
            let mut found = Vec::new();
            while let Some(range) = ours.take_first(most) {
                prop_assert!(range.count <= most);
                found.extend(range.first..range.first + range.count);
            }
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }
}

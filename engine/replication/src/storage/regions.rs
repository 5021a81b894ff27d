// SPDX-License-Identifier: Apache-2.0
//! Coarse parts of disks, in which is recorded what may differ from the other replica's.
//!
//! As bytes, in the record's file and on the wire, for each replicated disk in order (little endian):
//!
//! | bytes | field |
//! | ---: | --- |
//! | 1 | the disk's place in the description |
//! | 7 | reserved, 0 |
//! | 8 | how many regions it has |
//! | 8 for each 64 regions | a bit a region, the first one lowest; bits beyond the last are 0 |

use std::ops::Range;

use thiserror::Error;

use super::{BLOCK_BYTES, DISKS_MAX, DiskLayout, DiskNumber};

/// The unit in which changes are recorded, in bytes: 4 MiB. Each one that is written anew costs a
/// write of the record, and each one recorded is compared as a whole.
pub const REGION_BYTES: u64 = 4 * 1024 * 1024;

const _: () = assert!(REGION_BYTES.is_multiple_of(BLOCK_BYTES));

/// What stands before the bits of a disk.
const ENTRY_BYTES: usize = 16;

/// These bytes are no regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("The regions of its disks are cut off or malformed")]
pub struct MalformedRegions;

/// Regions of one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OfDisk {
    words: Vec<u64>,
    regions: u64,
}

impl OfDisk {
    fn none(regions: u64) -> Self {
        let words = usize::try_from(regions.div_ceil(64)).expect("a bit a region fits into memory");
        Self {
            words: vec![0; words],
            regions,
        }
    }

    fn contains(&self, region: u64) -> bool {
        let (word, bit) = place(region);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    fn add(&mut self, region: u64) {
        let (word, bit) = place(region);
        if region < self.regions
            && let Some(word) = self.words.get_mut(word)
        {
            *word |= bit;
        }
    }

    /// The regions that these bytes touch; what is beyond the disk's end is in none.
    fn touched(&self, offset: u64, length: u64) -> Range<u64> {
        if length == 0 {
            return 0..0;
        }
        let end = offset.saturating_add(length - 1) / REGION_BYTES + 1;
        offset / REGION_BYTES..end.min(self.regions)
    }

    /// Whether no bit stands for a region that is not there.
    fn is_sound(&self) -> bool {
        let used = self.regions % 64;
        used == 0 || self.words.last().is_none_or(|word| word >> used == 0)
    }
}

fn place(region: u64) -> (usize, u64) {
    let word = usize::try_from(region / 64).unwrap_or(usize::MAX);
    (word, 1 << (region % 64))
}

/// A set of regions of the replicated disks of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Regions {
    disks: Vec<OfDisk>,
}

impl Regions {
    /// None, of disks of these layouts.
    #[must_use]
    pub fn none(layouts: &[DiskLayout]) -> Self {
        let disks = layouts.iter().map(|layout| OfDisk::none(count(layout)));
        Self {
            disks: disks.collect(),
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(layouts: &[DiskLayout]) -> Self {
        let mut all = Self::none(layouts);
        all.fill();
        all
    }

    /// Whether it is a set of regions of disks of these layouts.
    #[must_use]
    pub fn is_of(&self, layouts: &[DiskLayout]) -> bool {
        let ours = self.disks.iter().map(|disk| disk.regions);
        let ours = ours.chain(std::iter::repeat(0)).take(DISKS_MAX);
        let theirs = layouts.iter().map(count).chain(std::iter::repeat(0));
        ours.eq(theirs.take(DISKS_MAX))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        let words = self.disks.iter().flat_map(|disk| &disk.words);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let mut words = self.disks.iter().flat_map(|disk| &disk.words);
        words.all(|word| *word == 0)
    }

    /// Whether all regions that these bytes of a disk touch are in the set.
    #[must_use]
    pub fn contains(&self, disk: DiskNumber, offset: u64, length: u64) -> bool {
        self.disks.get(disk.index()).is_none_or(|disk| {
            disk.touched(offset, length)
                .all(|region| disk.contains(region))
        })
    }

    /// Adds the regions that these bytes of a disk touch.
    pub fn add(&mut self, disk: DiskNumber, offset: u64, length: u64) {
        if let Some(disk) = self.disks.get_mut(disk.index()) {
            for region in disk.touched(offset, length) {
                disk.add(region);
            }
        }
    }

    /// How many regions of the set lie right before this byte of a disk, at most so many.
    #[must_use]
    pub fn run_before(&self, disk: DiskNumber, offset: u64, most: u64) -> u64 {
        let first = offset / REGION_BYTES;
        let Some(disk) = self.disks.get(disk.index()) else {
            return 0;
        };
        let before = (1..=most.min(first)).take_while(|back| disk.contains(first - back));
        before.count() as u64
    }

    /// Adds everything.
    pub fn fill(&mut self) {
        for disk in &mut self.disks {
            disk.words.fill(u64::MAX);
            let used = disk.regions % 64;
            if let Some(last) = disk.words.last_mut().filter(|_| used != 0) {
                *last = (1 << used) - 1;
            }
        }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        for disk in &mut self.disks {
            disk.words.fill(0);
        }
    }

    /// Adds those of another set of the same disks.
    pub fn unite(&mut self, other: &Self) {
        self.combine(other, |ours, theirs| ours | theirs);
    }

    /// Keeps only those that are in another set of the same disks, too.
    pub fn intersect(&mut self, other: &Self) {
        self.combine(other, |ours, theirs| ours & theirs);
    }

    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        for (ours, theirs) in self.disks.iter_mut().zip(&other.disks) {
            for (ours, theirs) in ours.words.iter_mut().zip(&theirs.words) {
                *ours = with(*ours, *theirs);
            }
        }
    }

    /// Whether all of them are in one of these other sets of the same disks.
    #[must_use]
    pub fn are_within(&self, others: &[&Self]) -> bool {
        let mut rest = self.clone();
        for other in others {
            rest.combine(other, |ours, theirs| ours & !theirs);
        }
        rest.is_empty()
    }

    /// Where the regions of a disk lie, in bytes; those that follow each other as one.
    pub fn of_disk(&self, disk: DiskNumber) -> impl Iterator<Item = Range<u64>> {
        let disk = self.disks.get(disk.index());
        let regions = disk.map_or(0, |disk| disk.regions);
        let is_in = move |region: &u64| disk.is_some_and(|disk| disk.contains(*region));
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..regions).find(is_in)?;
            next = (first..regions)
                .find(|region| !is_in(region))
                .unwrap_or(regions);
            Some(first * REGION_BYTES..next * REGION_BYTES)
        })
    }

    /// How many bytes [`Self::encode`] appends.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let disks = self.disks.iter().filter(|disk| disk.regions > 0);
        disks.map(|disk| ENTRY_BYTES + disk.words.len() * 8).sum()
    }

    /// Appends them as bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        for (number, disk) in DiskNumber::all().zip(&self.disks) {
            if disk.regions == 0 {
                continue;
            }
            into.extend_from_slice(&[number.code(), 0, 0, 0, 0, 0, 0, 0]);
            into.extend_from_slice(&disk.regions.to_le_bytes());
            for word in &disk.words {
                into.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Reads them from bytes, which must be used up.
    ///
    /// # Errors
    /// The bytes are cut off, too many or not in order.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, MalformedRegions> {
        let mut disks: Vec<OfDisk> = Vec::new();
        while !bytes.is_empty() {
            let (number, disk, rest) = decode_disk(bytes).ok_or(MalformedRegions)?;
            if number.index() < disks.len() {
                return Err(MalformedRegions);
            }
            disks.resize_with(number.index(), OfDisk::default);
            disks.push(disk);
            bytes = rest;
        }
        Ok(Self { disks })
    }
}

fn count(layout: &DiskLayout) -> u64 {
    match layout {
        DiskLayout::Replicated { capacity_bytes } => capacity_bytes.div_ceil(REGION_BYTES),
        DiskLayout::Apart => 0,
    }
}

fn decode_disk(bytes: &[u8]) -> Option<(DiskNumber, OfDisk, &[u8])> {
    let (&[number, reserved @ ..], rest) = bytes.split_first_chunk::<8>()?;
    let (regions, rest) = rest.split_first_chunk()?;
    let regions = u64::from_le_bytes(*regions);
    // Room is made only for what is there.
    let length = usize::try_from(regions.div_ceil(64)).ok()?.checked_mul(8)?;
    let (words, rest) = rest.split_at_checked(length)?;
    let words = words
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok());
    let disk = OfDisk {
        words: words.map(u64::from_le_bytes).collect(),
        regions,
    };
    let sound = reserved == [0; 7] && regions > 0 && disk.is_sound();
    Some((DiskNumber::new(number)?, disk, rest)).filter(|_| sound)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn disk(number: u8) -> DiskNumber {
        DiskNumber::new(number).unwrap()
    }

    fn layouts() -> [DiskLayout; 3] {
        [
            DiskLayout::Replicated {
                capacity_bytes: 70 * REGION_BYTES + 512,
            },
            DiskLayout::Apart,
            DiskLayout::Replicated {
                capacity_bytes: 64 * REGION_BYTES,
            },
        ]
    }

    #[test]
    fn bytes_touch_their_regions_and_none_beyond_the_end() {
        let mut regions = Regions::none(&layouts());
        regions.add(disk(0), REGION_BYTES - 512, 1024);
        regions.add(disk(0), 70 * REGION_BYTES, u64::MAX);
        regions.add(disk(1), 0, 512);
        regions.add(disk(2), 0, 0);
        regions.add(disk(9), 0, 512);
        assert_eq!(regions.len(), 3);
        assert!(regions.contains(disk(0), 0, 2 * REGION_BYTES));
        assert!(!regions.contains(disk(0), 0, 2 * REGION_BYTES + 1));
        let bytes: Vec<_> = regions.of_disk(disk(0)).collect();
        assert_eq!(
            bytes,
            [0..2 * REGION_BYTES, 70 * REGION_BYTES..71 * REGION_BYTES]
        );
        assert_eq!(regions.run_before(disk(0), 2 * REGION_BYTES, 9), 2);
        assert_eq!(regions.run_before(disk(0), REGION_BYTES, 9), 1);
        assert_eq!(regions.run_before(disk(0), 0, 9), 0);
        assert_eq!(Regions::all(&layouts()).len(), 71 + 64);
    }

    #[test]
    fn a_set_fits_its_disks_only() {
        let mut bytes = Vec::new();
        Regions::none(&layouts()).encode(&mut bytes);
        let read = Regions::decode(&bytes).unwrap();
        assert!(read.is_of(&layouts()));
        let [first, apart, _] = layouts();
        assert!(!read.is_of(&[first, apart]));
        assert!(!read.is_of(&[first, apart, first]));
        assert!(Regions::decode(&[]).unwrap().is_of(&[apart, apart]));
        // A bit beyond the last region.
        let end = ENTRY_BYTES + 8 + 7;
        bytes[end] |= 0x80;
        assert_eq!(Regions::decode(&bytes), Err(MalformedRegions));
    }

    proptest! {
        #[test]
        fn any_bytes_are_regions_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(regions) = Regions::decode(&bytes) {
                let mut again = Vec::new();
                regions.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn it_is_the_set_it_claims_to_be(
            ours in proptest::collection::btree_set(0_u64..71, 0..40),
            theirs in proptest::collection::btree_set(0_u64..71, 0..40),
        ) {
            let set = |of: &BTreeSet<u64>| {
                let mut set = Regions::none(&layouts());
                of.iter().for_each(|region| set.add(disk(0), region * REGION_BYTES + 512, 512));
                set
            };
            let (a, b) = (set(&ours), set(&theirs));
            let mut bytes = Vec::new();
            a.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), a.encoded_bytes());
            prop_assert_eq!(&Regions::decode(&bytes).unwrap(), &a);
            let mut both = a.clone();
            both.unite(&b);
            prop_assert_eq!(&both, &set(&(&ours | &theirs)));
            prop_assert!(both.are_within(&[&a, &b]));
            prop_assert_eq!(both.are_within(&[&a]), theirs.is_subset(&ours));
            let mut common = a;
            common.intersect(&b);
            prop_assert_eq!(&common, &set(&(&ours & &theirs)));
            let found: BTreeSet<u64> = common
                .of_disk(disk(0))
                .flat_map(|bytes| bytes.step_by(usize::try_from(REGION_BYTES).unwrap()))
                .map(|offset| offset / REGION_BYTES)
                .collect();
            prop_assert_eq!(found, &ours & &theirs);
        }
    }
}

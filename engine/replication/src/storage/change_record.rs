// SPDX-License-Identifier: Apache-2.0
//! The record of which parts of this node's disks may differ from a base, as it lies in a file.
//!
//! Little endian:
//!
//! | offset | bytes | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | `KMRICHGS` |
//! | 8 | 4 | version of the format, 1 |
//! | 12 | 4 | reserved, 0 |
//! | 16 | 8 | size of a region in bytes, 4,194,304 |
//! | 24 | 16 | the base: a random number |
//! | 40 | 8 | the newest generation of which this node knew when it was written |
//! | 48 | 8 | what the disks were known by |
//! | 56 | | regions of the disks ([`super::Regions`]) |
//! | end | 16 | XXH3-128 of everything before |

use std::fmt;

use kemari_api::Generation;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_128;

use super::{REGION_BYTES, Regions};

const MAGIC: [u8; 8] = *b"KMRICHGS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;

/// More than any record has: 16 disks of 32 TiB each.
pub const CHANGE_RECORD_BYTES_MAX: u64 = 16 * 1024 * 1024 + 4096;

/// An instant at which the disks of both replicas were equal, and durable on both: a number drawn
/// for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BaseId(pub [u8; 16]);

impl fmt::Display for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseId({self})")
    }
}

/// What the files or devices behind a node's disks are known by. Others in their place are known by
/// another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DisksIdentity(pub u64);

/// The record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRecord {
    /// Since when.
    pub base: BaseId,
    /// The newest generation known. Every engine writes generations to the licence's and the disks'
    /// records; one that did not keep this record is found out by them.
    pub generation: Generation,
    /// Which disks.
    pub disks: DisksIdentity,
    /// Where they may differ from the base.
    pub regions: Regions,
}

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChangeRecordError {
    /// Damaged, or cut off.
    #[error("it is damaged")]
    Damaged,
    /// Of another version of the format.
    #[error("it is of another release")]
    OtherRelease,
}

impl ChangeRecord {
    /// The record as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.regions.encoded_bytes() + 16);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&REGION_BYTES.to_le_bytes());
        bytes.extend_from_slice(&self.base.0);
        bytes.extend_from_slice(&self.generation.get().to_le_bytes());
        bytes.extend_from_slice(&self.disks.0.to_le_bytes());
        self.regions.encode(&mut bytes);
        bytes.extend_from_slice(&xxh3_128(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When it is damaged or not of this format.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChangeRecordError> {
        let damaged = ChangeRecordError::Damaged;
        let (bytes, checksum) = bytes.split_last_chunk::<16>().ok_or(damaged)?;
        if u128::from_le_bytes(*checksum) != xxh3_128(bytes) {
            return Err(damaged);
        }
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(damaged)?;
        let (version, rest) = rest.split_first_chunk().ok_or(damaged)?;
        if *magic != MAGIC || u32::from_le_bytes(*version) != VERSION {
            return Err(ChangeRecordError::OtherRelease);
        }
        let (reserved, rest) = rest.split_first_chunk::<4>().ok_or(damaged)?;
        let (region, rest) = rest.split_first_chunk().ok_or(damaged)?;
        if *reserved != [0; 4] || u64::from_le_bytes(*region) != REGION_BYTES {
            return Err(ChangeRecordError::OtherRelease);
        }
        let (base, rest) = rest.split_first_chunk().ok_or(damaged)?;
        let (generation, rest) = rest.split_first_chunk().ok_or(damaged)?;
        let (disks, regions) = rest.split_first_chunk().ok_or(damaged)?;
        Ok(Self {
            base: BaseId(*base),
            generation: Generation::new(u64::from_le_bytes(*generation)),
            disks: DisksIdentity(u64::from_le_bytes(*disks)),
            regions: Regions::decode(regions).map_err(|_| damaged)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::{DiskLayout, DiskNumber};

    fn record(written: &[u64]) -> ChangeRecord {
        let layouts = [DiskLayout::Replicated {
            capacity_bytes: 100 * REGION_BYTES,
        }];
        let mut regions = Regions::none(&layouts);
        for region in written {
            regions.add(DiskNumber::new(0).unwrap(), region * REGION_BYTES, 512);
        }
        ChangeRecord {
            base: BaseId([7; 16]),
            generation: Generation::new(3),
            disks: DisksIdentity(5),
            regions,
        }
    }

    /// As this release writes it: a change of the format must be a new version.
    #[test]
    fn the_format_is_what_the_page_says() {
        let bytes = record(&[0, 65]).encode();
        assert_eq!(bytes.len(), HEADER_BYTES + 16 + 2 * 8 + 16);
        assert_eq!(&bytes[..12], b"KMRICHGS\x01\0\0\0");
        assert_eq!(bytes[16..24], REGION_BYTES.to_le_bytes());
        assert_eq!(bytes[24..40], [7; 16]);
        assert_eq!((bytes[40], bytes[48], bytes[56]), (3, 5, 0));
        assert_eq!((bytes[64], bytes[72], bytes[80]), (100, 1, 2));
    }

    #[test]
    fn another_release_is_told_from_damage() {
        let mut bytes = record(&[]).encode();
        bytes.truncate(bytes.len() - 16);
        bytes[8] = 2;
        bytes.extend_from_slice(&xxh3_128(&bytes).to_le_bytes());
        let read = ChangeRecord::decode(&bytes);
        assert_eq!(read, Err(ChangeRecordError::OtherRelease));
        assert_eq!(ChangeRecord::decode(&[]), Err(ChangeRecordError::Damaged));
    }

    proptest! {
        #[test]
        fn a_record_reads_back(written in proptest::collection::vec(0_u64..100, 0..50)) {
            let record = record(&written);
            prop_assert_eq!(ChangeRecord::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn a_damaged_one_is_refused(
            written in proptest::collection::vec(0_u64..100, 0..50),
            at in any::<proptest::sample::Index>(),
            with in 1_u8..,
            cut in any::<proptest::sample::Index>(),
        ) {
            let bytes = record(&written).encode();
            let mut damaged = bytes.clone();
            damaged[at.index(bytes.len())] ^= with;
            prop_assert!(ChangeRecord::decode(&damaged).is_err());
            prop_assert!(ChangeRecord::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn what_is_right_from_the_outside_does_no_harm(
            content in proptest::collection::vec(any::<u8>(), 0..300),
            head in any::<bool>(),
        ) {
            let mut bytes = if head { record(&[]).encode()[..HEADER_BYTES].to_vec() } else { Vec::new() };
            bytes.extend(content);
            bytes.extend_from_slice(&xxh3_128(&bytes).to_le_bytes());
            if let Ok(record) = ChangeRecord::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}

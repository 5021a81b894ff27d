// SPDX-License-Identifier: Apache-2.0
//! Master boot record with up to four primary partitions and a chain of logical ones.

use std::io;

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{Partition, Purpose};
use crate::image::Window;

const SECTOR_BYTES: u64 = 512;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// CHS, LBA and Linux' own type of an extended partition.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Linux' limit of logical partitions is about this.
const LOGICAL_MAX: usize = 60;

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    code: [u8; 440],
    disk_signature: U32,
    reserved: [u8; 2],
    entries: [Entry; 4],
    signature: [u8; 2],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    boot: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    first_sector: U32,
    sectors: U32,
}

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors.get() != 0
    }

    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }
}

/// The partitions, none if they cannot be: without signature, or where the flags of an entry show
/// that the sector has boot code there.
pub(super) fn read(disk: &Window) -> io::Result<Option<Vec<Partition>>> {
    let sector = disk.head(0, 512)?;
    let Ok(record) = Record::read_from_bytes(&sector) else {
        return Ok(None);
    };
    let plausible = |entry: &Entry| matches!(entry.boot, 0 | 0x80);
    if record.signature != SIGNATURE || !record.entries.iter().all(plausible) {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(&record.entries) {
        if entry.is_used() && !entry.is_extended() {
            partitions.push(record.partition(number, entry, 0));
        }
    }
    let extended = record.entries.iter().find(|entry| entry.is_extended());
    if let Some(extended) = extended {
        let base = u64::from(extended.first_sector.get());
        partitions.extend(record.logical(disk, base)?);
    }
    Ok(Some(partitions))
}

impl Record {
    fn partition(&self, number: u32, entry: &Entry, base: u64) -> Partition {
        Partition {
            number,
            start: (base + u64::from(entry.first_sector.get())) * SECTOR_BYTES,
            bytes: u64::from(entry.sectors.get()) * SECTOR_BYTES,
            purpose: Purpose::Other,
            partuuid: format!("{:08x}-{number:02x}", self.disk_signature.get()),
        }
    }

    /// Follows the chain: each link is a sector like this one, with a partition and the next link.
    fn logical(&self, disk: &Window, base: u64) -> io::Result<Vec<Partition>> {
        let mut partitions = Vec::new();
        let mut link = base;
        for number in (5..).take(LOGICAL_MAX) {
            let sector = disk.head(link * SECTOR_BYTES, 512)?;
            let Ok(record) = Self::read_from_bytes(&sector) else {
                break;
            };
            if record.signature != SIGNATURE {
                break;
            }
            let [partition, next, ..] = &record.entries;
            if partition.is_used() {
                partitions.push(self.partition(number, partition, link));
            }
            if !next.is_extended() {
                break;
            }
            link = base + u64::from(next.first_sector.get());
        }
        Ok(partitions)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::image::Image;

    fn entry(kind: u8, first: u32, sectors: u32) -> Vec<u8> {
        let mut entry = vec![0, 0, 0, 0, kind, 0, 0, 0];
        entry.extend([first, sectors].map(u32::to_le_bytes).concat());
        entry
    }

    fn sector(disk: &mut [u8], at: usize, entries: &[Vec<u8>]) {
        let sector = &mut disk[at * 512..(at + 1) * 512];
        sector[440..444].copy_from_slice(&0x1234_abcdu32.to_le_bytes());
        let entries = entries.concat();
        sector[446..446 + entries.len()].copy_from_slice(&entries);
        sector[510..].copy_from_slice(&SIGNATURE);
    }

    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 512 * 512];
        sector(&mut disk, 0, &[entry(0x83, 8, 8), entry(5, 100, 200)]);
        sector(&mut disk, 100, &[entry(0x83, 2, 10), entry(5, 50, 50)]);
        sector(&mut disk, 150, &[entry(0x82, 2, 20)]);
        disk
    }

    fn read_bytes(bytes: Vec<u8>) -> Option<Vec<Partition>> {
        let image = Rc::new(Image::from_bytes("i", bytes));
        read(&image.window(0, u64::MAX)).unwrap()
    }

    #[test]
    fn primary_and_logical_partitions() {
        let found: Vec<_> = read_bytes(disk())
            .unwrap()
            .into_iter()
            .map(|p| (p.number, p.start / 512, p.bytes / 512, p.partuuid))
            .collect();
        assert_eq!(
            found,
            [
                (1, 8, 8, "1234abcd-01".to_owned()),
                (5, 102, 10, "1234abcd-05".to_owned()),
                (6, 152, 20, "1234abcd-06".to_owned()),
            ]
        );
    }

    #[test]
    fn a_chain_in_a_circle_ends() {
        let mut disk = disk();
        sector(&mut disk, 150, &[entry(0x83, 2, 20), entry(5, 0, 50)]);
        assert_eq!(read_bytes(disk).unwrap().len(), 1 + LOGICAL_MAX);
    }

    #[test]
    fn boot_code_is_no_table() {
        let mut disk = disk();
        disk[446] = 0x33;
        assert_eq!(read_bytes(disk), None);
        assert_eq!(read_bytes(vec![0; 512]), None);
        assert_eq!(read_bytes(vec![0; 100]), None);
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            changes in prop::collection::vec((446usize..510, any::<u8>()), 0..24),
            next in any::<u32>(),
            length in 0usize..270_000,
        ) {
            let mut disk = disk();
            for (at, byte) in changes {
                disk[at] = byte;
            }
            disk[446] &= 0x80;
            sector(&mut disk, 100, &[entry(0x83, next, next), entry(5, next, 50)]);
            disk.truncate(length);
            let _ = read_bytes(disk);
        }
    }
}

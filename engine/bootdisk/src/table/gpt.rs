// SPDX-License-Identifier: Apache-2.0
//! GUID partition table (UEFI specification 2.10, section 5.3).
//!
//! Header and entries are taken only with both checksums right. If the first copy is not, the one at
//! the end of the disk is used.

use std::io;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{Found, Partition, Purpose};
use crate::image::Window;
use crate::limits::PARTITIONS_MAX;

const SECTOR_BYTES: [u64; 2] = [512, 4096];
const SIGNATURE: [u8; 8] = *b"EFI PART";
const HEADER_BYTES: usize = size_of::<Header>();
const ENTRY_BYTES: usize = size_of::<Entry>();
/// The specification says at least 128 of 128 bytes; this is 16 KiB, and tables are rarely larger.
const TABLE_BYTES_MAX: u64 = 1 << 20;
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// 4f68bce3-e8cd-4db1-96e7-fbcaf984b709, "Root partition (amd64/x86-64)", as stored.
const ROOT: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    signature: [u8; 8],
    revision: U32,
    header_bytes: U32,
    header_crc: U32,
    reserved: U32,
    own_sector: U64,
    other_sector: U64,
    first_usable: U64,
    last_usable: U64,
    disk_guid: [u8; 16],
    entries_sector: U64,
    entry_count: U32,
    entry_bytes: U32,
    entries_crc: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    kind: [u8; 16],
    guid: [u8; 16],
    first_sector: U64,
    last_sector: U64,
    attributes: U64,
    name: [u8; 72],
}

/// Looks for a table with either sector size.
pub(super) fn read(disk: &Window) -> Found {
    for sector_bytes in SECTOR_BYTES {
        let first = read_copy(disk, sector_bytes, 1)?;
        let Some(problem) = (match first {
            Ok(partitions) => return Ok(Some(Ok(partitions))),
            Err(NoCopy::Absent) => None,
            Err(NoCopy::Damaged(problem)) => Some(problem),
        }) else {
            continue;
        };
        let last = (disk.length() / sector_bytes).saturating_sub(1);
        return Ok(Some(match read_copy(disk, sector_bytes, last)? {
            Ok(partitions) => Ok(partitions),
            Err(NoCopy::Absent) => Err(format!("{problem}, and there is no copy at the end")),
            Err(NoCopy::Damaged(other)) => Err(format!("{problem}; in the copy, {other}")),
        }));
    }
    only_copy(disk)
}

/// The first sectors may be overwritten while the copy at the end is whole. It counts only where a
/// protective MBR says that there was a table: an image may be made on an old disk's rest.
fn only_copy(disk: &Window) -> Found {
    let sector = disk.head(0, 512)?;
    let protective = sector
        .get(446..510)
        .into_iter()
        .flat_map(|entries| entries.chunks_exact(16))
        .any(|entry| entry.get(4) == Some(&0xee));
    if !protective || sector.get(510..) != Some(&[0x55, 0xaa]) {
        return Ok(None);
    }
    for sector_bytes in SECTOR_BYTES {
        let last = (disk.length() / sector_bytes).saturating_sub(1);
        if let Ok(partitions) = read_copy(disk, sector_bytes, last)? {
            return Ok(Some(Ok(partitions)));
        }
    }
    let problem = "its MBR announces a GPT, and there is none".to_owned();
    Ok(Some(Err(problem)))
}

enum NoCopy {
    Absent,
    Damaged(String),
}

/// Reads header and entries of the copy whose header is in `sector`.
fn read_copy(
    disk: &Window,
    sector_bytes: u64,
    sector: u64,
) -> io::Result<Result<Vec<Partition>, NoCopy>> {
    let damaged = |problem: &str| Ok(Err(NoCopy::Damaged(problem.to_owned())));
    let start = sector.saturating_mul(sector_bytes);
    let bytes = disk.head(start, usize::try_from(sector_bytes).unwrap_or(512))?;
    let Ok((header, _)) = Header::ref_from_prefix(&bytes) else {
        return Ok(Err(NoCopy::Absent));
    };
    if header.signature != SIGNATURE {
        return Ok(Err(NoCopy::Absent));
    }
    if header_crc(&bytes, header) != Some(header.header_crc.get()) {
        return damaged("the header's checksum is wrong");
    }
    if header.own_sector.get() != sector {
        return damaged("the header is not where it says");
    }
    let (count, size) = (header.entry_count.get(), header.entry_bytes.get());
    let table_bytes = u64::from(count).saturating_mul(u64::from(size));
    let size = usize::try_from(size).unwrap_or(0);
    if size < ENTRY_BYTES || table_bytes > TABLE_BYTES_MAX {
        return damaged("the header tells an absurd size of its entries");
    }
    let start = header.entries_sector.get().saturating_mul(sector_bytes);
    let table = disk.head(start, usize::try_from(table_bytes).unwrap_or(0))?;
    if table.len() as u64 != table_bytes || CRC.checksum(&table) != header.entries_crc.get() {
        return damaged("the checksum of the entries is wrong");
    }
    Ok(Ok((1..)
        .zip(table.chunks_exact(size))
        .filter_map(|(number, entry)| partition(number, entry, sector_bytes))
        .take(PARTITIONS_MAX)
        .collect()))
}

/// The checksum of the header with the checksum's field as zero.
fn header_crc(sector: &[u8], header: &Header) -> Option<u32> {
    let length = usize::try_from(header.header_bytes.get()).ok()?;
    let bytes = sector.get(..length)?;
    // Of a header, the specification says, no less than this.
    let (before, rest) = bytes.split_at_checked(16)?;
    let (_, after) = rest.split_at_checked(4)?;
    if length < HEADER_BYTES {
        return None;
    }
    let mut digest = CRC.digest();
    for part in [before, &[0; 4], after] {
        digest.update(part);
    }
    Some(digest.finalize())
}

fn partition(number: u32, bytes: &[u8], sector_bytes: u64) -> Option<Partition> {
    let (entry, _) = Entry::ref_from_prefix(bytes).ok()?;
    if entry.kind == [0; 16] {
        return None;
    }
    let (first, last) = (entry.first_sector.get(), entry.last_sector.get());
    let sectors = last.checked_sub(first)?.saturating_add(1);
    Some(Partition {
        number,
        start: first.saturating_mul(sector_bytes),
        bytes: sectors.saturating_mul(sector_bytes),
        purpose: match entry.kind {
            ROOT => Purpose::Root,
            _ => Purpose::Other,
        },
        partuuid: guid(&entry.guid),
    })
}

/// The text form: the first three groups are stored with the lowest byte first.
fn guid(bytes: &[u8; 16]) -> String {
    const ORDER: [&[usize]; 5] = [
        &[3, 2, 1, 0],
        &[5, 4],
        &[7, 6],
        &[8, 9],
        &[10, 11, 12, 13, 14, 15],
    ];
    let group = |group: &&[usize]| -> String {
        let bytes = group.iter().filter_map(|at| bytes.get(*at));
        bytes.map(|byte| format!("{byte:02x}")).collect()
    };
    ORDER.iter().map(group).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::image::Image;

    const SECTORS: u64 = 2048;

    /// A disk of 1 MiB with one partition at sector 64, 100 sectors long, and both copies.
    pub(crate) fn disk() -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(SECTORS * 512).unwrap()];
        let mut entries = vec![0; 128 * 128];
        entries[..16].copy_from_slice(&ROOT);
        entries[16..32].copy_from_slice(&(0..16).collect::<Vec<u8>>());
        entries[32..40].copy_from_slice(&64u64.to_le_bytes());
        entries[40..48].copy_from_slice(&163u64.to_le_bytes());
        for (own, entries_at) in [(1, 2), (SECTORS - 1, SECTORS - 33)] {
            let mut header = Vec::from(SIGNATURE);
            header.extend([0x1_0000u32, 92, 0, 0].map(u32::to_le_bytes).concat());
            header.extend(
                [own, SECTORS - own, 34, 2000]
                    .map(u64::to_le_bytes)
                    .concat(),
            );
            header.extend([9; 16]);
            header.extend(entries_at.to_le_bytes());
            header.extend(
                [128, 128, CRC.checksum(&entries)]
                    .map(u32::to_le_bytes)
                    .concat(),
            );
            let crc = CRC.checksum(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            put(&mut disk, own, &header);
            put(&mut disk, entries_at, &entries);
        }
        disk
    }

    fn put(disk: &mut [u8], sector: u64, bytes: &[u8]) {
        let at = usize::try_from(sector * 512).unwrap();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn read_bytes(bytes: Vec<u8>) -> Option<Result<Vec<Partition>, String>> {
        let image = Rc::new(Image::from_bytes("i", bytes));
        read(&image.window(0, u64::MAX)).unwrap()
    }

    fn expected() -> Vec<Partition> {
        vec![Partition {
            number: 1,
            start: 64 * 512,
            bytes: 100 * 512,
            purpose: Purpose::Root,
            partuuid: "03020100-0504-0706-0809-0a0b0c0d0e0f".into(),
        }]
    }

    #[test]
    fn either_copy_will_do() {
        assert_eq!(read_bytes(disk()), Some(Ok(expected())));
        let mut first_damaged = disk();
        first_damaged[512 + 70] ^= 1;
        assert_eq!(read_bytes(first_damaged), Some(Ok(expected())));
        let mut entries_damaged = disk();
        entries_damaged[1024] ^= 1;
        assert_eq!(read_bytes(entries_damaged), Some(Ok(expected())));
    }

    #[test]
    fn an_overwritten_start_is_found_out_by_its_mbr() {
        let mut disk = disk();
        disk[512..2048].fill(0);
        assert_eq!(read_bytes(disk.clone()), None);
        disk[446 + 4] = 0xee;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(read_bytes(disk.clone()), Some(Ok(expected())));
        disk.truncate(100_000);
        let problem = read_bytes(disk).unwrap().unwrap_err();
        assert!(problem.contains("announces a GPT"), "{problem}");
    }

    #[test]
    fn two_damaged_copies_are_told() {
        let mut disk = disk();
        disk[1024] ^= 1;
        let last = disk.len() - 512;
        disk[last + 70] ^= 1;
        let problem = read_bytes(disk).unwrap().unwrap_err();
        assert_eq!(
            problem,
            "the checksum of the entries is wrong; in the copy, the header's checksum is wrong"
        );
    }

    #[test]
    fn absurd_sizes_are_refused_even_with_a_right_checksum() {
        for (count, size) in [(u32::MAX, 128u32), (1, 127), (2, 0), (1, u32::MAX)] {
            let mut disk = disk();
            disk.truncate(1 << 19);
            let header = &mut disk[512..512 + 92];
            header[80..84].copy_from_slice(&count.to_le_bytes());
            header[84..88].copy_from_slice(&size.to_le_bytes());
            header[16..20].fill(0);
            let crc = CRC.checksum(header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            let problem = read_bytes(disk).unwrap().unwrap_err();
            assert!(problem.contains("absurd size"), "{problem}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            changes in prop::collection::vec((512usize..1200, any::<u8>()), 1..8),
            length in 0usize..1_100_000,
            fix in any::<bool>(),
        ) {
            let mut disk = disk();
            for (at, byte) in changes {
                disk[at] = byte;
            }
            if fix {
                disk[512 + 16..512 + 20].fill(0);
                let crc = CRC.checksum(&disk[512..512 + 92]);
                disk[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
            }
            disk.truncate(length);
            let _ = read_bytes(disk);
        }
    }
}

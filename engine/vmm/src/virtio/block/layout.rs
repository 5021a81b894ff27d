// SPDX-License-Identifier: Apache-2.0
//! What the driver is told about the disk: features and configuration (section 5.2.3 and 5.2.4),
//! and the bounds that follow from them.

use super::request::{RANGE_SECTORS_MAX, RANGES_MAX};
use crate::backend::{DiskGeometry, DiskSerial, SECTOR_BYTES};

/// Descriptors of the queue. An indirect table takes one of them, so as many requests can be in
/// flight.
pub(super) const QUEUE_SIZE: u16 = 256;

/// Most stretches of data in a request: what a queue's worth of descriptors leaves beside header
/// and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of a stretch. It bounds a request: without it Linux makes them as long as its
/// administrator likes.
const SEGMENT_BYTES_MAX: u32 = 16 << 10;
/// Most bytes of data in a request, just under 4 MiB.
pub(super) const DATA_BYTES_MAX: usize = SEGMENTS_MAX as usize * SEGMENT_BYTES_MAX as usize;

/// The largest block that every Linux accepts: its page. A disk with larger ones works, only slower.
const BLOCK_BYTES_MAX: u32 = 4096;
const CONFIG_BYTES: usize = 60;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`
pub(super) const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_DISCARD`
pub(super) const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;
/// `VIRTIO_F_INDIRECT_DESC`
const F_INDIRECT_DESC: u64 = 1 << 28;

/// The features of such a disk.
pub(super) fn features(disk: &DiskGeometry) -> u64 {
    let change = [
        (F_RO, disk.read_only),
        (F_DISCARD, disk.discard && !disk.read_only),
        (F_WRITE_ZEROES, disk.write_zeroes && !disk.read_only),
    ];
    change
        .into_iter()
        .filter(|(_, present)| *present)
        .fold(F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH, |all, one| {
            all | one.0
        })
        | F_INDIRECT_DESC
}

/// `struct virtio_blk_config`.
pub(super) fn config(disk: &DiskGeometry) -> [u8; CONFIG_BYTES] {
    let sectors = disk.capacity_bytes / SECTOR_BYTES;
    let block = disk.block_bytes.min(BLOCK_BYTES_MAX);
    let alignment = u64::from(disk.block_bytes) / SECTOR_BYTES;
    let ranges = u32::try_from(RANGES_MAX).unwrap_or(1);
    let words = [
        (0, low_word(sectors)),
        (4, low_word(sectors >> 32)),
        (8, SEGMENT_BYTES_MAX),
        (12, SEGMENTS_MAX),
        (20, block),
        (36, RANGE_SECTORS_MAX),
        (40, ranges),
        (44, low_word(alignment)),
        (48, RANGE_SECTORS_MAX),
        (52, ranges),
        // The byte write_zeroes_may_unmap.
        (56, 1),
    ];
    let mut image = [0; CONFIG_BYTES];
    for (at, word) in words {
        for (byte, value) in image.iter_mut().skip(at).zip(u32::to_le_bytes(word)) {
            *byte = value;
        }
    }
    image
}

/// What another disk must have in common with this one for the guest not to notice. All of it was
/// told to the driver.
pub(super) fn traits(disk: &DiskGeometry, serial: &DiskSerial) -> String {
    let flags = [
        (disk.read_only, " read-only"),
        (disk.discard, " discard"),
        (disk.write_zeroes, " write-zeroes"),
    ];
    let flags = flags.iter().filter(|(present, _)| *present);
    let flags: String = flags.map(|(_, name)| *name).collect();
    format!(
        "serial=\"{serial}\" capacity={} block={}{flags}",
        disk.capacity_bytes, disk.block_bytes
    )
}

fn low_word(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

// SPDX-License-Identifier: Apache-2.0
//! Recognising what a disk or partition holds by its magic numbers, to say what is not supported.

use std::io;

use crate::image::Window;

/// What a partition, or a disk without partitions, holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// Something that is known and cannot be read.
    Other(&'static str),
    Unknown,
}

/// Offset, bytes, name. The first that fits wins, containers before what they may contain.
const OTHERS: [(usize, &[u8], &str); 17] = [
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0x218, b"LVM2 001", "an LVM physical volume"),
    (0x018, b"LVM2 001", "an LVM physical volume"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a member of a software RAID"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a software RAID"),
    (0, b"hsqs", "squashfs"),
    (0x400, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (3, b"-FVE-FS-", "BitLocker encryption"),
    (0x8001, b"CD001", "ISO 9660"),
    (0x1_0034, b"ReIsEr", "ReiserFS"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcachefs"),
];

const EXT_MAGIC: (usize, &[u8]) = (0x438, b"\x53\xef");

/// Files that are handed in by mistake: offset, bytes, what it is, what to do.
const NO_DISKS: [(usize, &[u8], &str, &str); 10] = [
    (0, b"QFI\xfb", "a qcow2 image", CONVERT),
    (0, b"KDMV", "a VMDK image", CONVERT),
    (0, b"# Disk Descriptor", "a VMDK image", CONVERT),
    (0, b"vhdxfile", "a VHDX image", CONVERT),
    (0, b"conectix", "a VHD image", CONVERT),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image", CONVERT),
    (0, b"\x1f\x8b", "gzip-compressed", "unpack it first"),
    (0, b"\xfd7zXZ", "xz-compressed", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first"),
    (
        0x202,
        b"HdrS",
        "a Linux kernel",
        "name it as kernel in [boot]",
    ),
];
const CONVERT: &str = "convert it with qemu-img convert -O raw";

/// What the window holds.
pub(crate) fn contents(window: &Window) -> io::Result<Contents> {
    let head = window.head(0, 0x1_1000)?;
    let is = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((.., name)) = OTHERS.iter().find(|(at, magic, _)| is(*at, magic)) {
        return Ok(Contents::Other(name));
    }
    if is(EXT_MAGIC.0, EXT_MAGIC.1) {
        return Ok(Contents::Ext);
    }
    if is_fat(&head) {
        return Ok(Contents::Fat);
    }
    Ok(Contents::Unknown)
}

/// Whether a boot sector is that of a FAT file system: jump instruction and a BIOS parameter block
/// that makes sense. (A partition table's boot code may begin with a jump too.)
fn is_fat(head: &[u8]) -> bool {
    let jump = matches!(head, [0xeb, _, 0x90, ..] | [0xe9, ..]);
    jump && head
        .get(..512)
        .is_some_and(|sector| fat::Geometry::parse(sector).is_ok())
}

/// What a file that is no raw disk is, and what to do with it.
pub(crate) fn not_a_disk(window: &Window) -> io::Result<Option<(&'static str, &'static str)>> {
    let head = window.head(0, 0x1000)?;
    if head.is_empty() {
        return Ok(Some(("empty", "name the disk's image")));
    }
    Ok(NO_DISKS
        .iter()
        .find(|(at, magic, ..)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(_, _, found, remedy)| (*found, *remedy)))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::image::Image;

    fn with(at: usize, magic: &[u8]) -> Window {
        let mut bytes = vec![0; 0x2_0000];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        Rc::new(Image::from_bytes("i", bytes)).window(0, u64::MAX)
    }

    #[test]
    fn each_magic_is_told() {
        for (at, magic, name) in OTHERS {
            assert_eq!(contents(&with(at, magic)).unwrap(), Contents::Other(name));
        }
        assert_eq!(contents(&with(0x438, b"\x53\xef")).unwrap(), Contents::Ext);
        assert_eq!(contents(&with(0, b"")).unwrap(), Contents::Unknown);
        for (at, magic, name, _) in NO_DISKS {
            let found = not_a_disk(&with(at, magic)).unwrap();
            assert_eq!(found.unwrap().0, name);
        }
        assert_eq!(not_a_disk(&with(0, b"")).unwrap(), None);
    }

    #[test]
    fn short_images_are_no_problem() {
        for length in [0, 1, 511, 512, 1024, 4096] {
            let image = Rc::new(Image::from_bytes("i", vec![0xff; length]));
            let window = image.window(0, u64::MAX);
            contents(&window).unwrap();
            not_a_disk(&window).unwrap();
        }
    }
}

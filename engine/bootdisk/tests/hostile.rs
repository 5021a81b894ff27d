// SPDX-License-Identifier: Apache-2.0
//! Damaged and crafted images: each is read or refused, none panics, none is read for ever.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::fs;

use common::Workshop;
use kemari_bootdisk::find_in_bytes;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const CONFIG: &str =
    "set default=0\nmenuentry x { linux /boot/vmlinuz-1 a; initrd /boot/initrd-1 }\n";

const FILES: [(&str, &str); 8] = [
    ("/etc/os-release", "ID=x\n"),
    ("/etc/kernel/cmdline", "root=x\n"),
    ("/vmlinuz", "-> boot/vmlinuz-1"),
    (
        "/boot/link",
        "-> ./././././././././././././././././././././././././././././vmlinuz-1",
    ),
    ("/boot/vmlinuz-1", "kernel"),
    ("/boot/initrd-1", "initrd"),
    ("/boot/grub/grub.cfg", CONFIG),
    (
        "/loader/entries/a.conf",
        "linux /boot/link\ninitrd /boot/initrd-1\n",
    ),
];

/// A change of an image: where (scaled to the part that matters) and what to.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u64, usize)>> {
    let value = prop_oneof![
        any::<u64>(),
        (0u64..64),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), value, 1usize..=8), 1..6)
}

/// Changes the bytes of `image` that are not zero (the others hardly matter), and reads it.
/// `KEMARI_HOSTILE_CASES` makes it longer.
fn hammer(image: &[u8], cases: u32) {
    let longer = std::env::var("KEMARI_HOSTILE_CASES").ok();
    let cases = longer.map_or(cases, |text| text.parse().unwrap());
    let used: Vec<usize> = (0..image.len() - 8).filter(|at| image[*at] != 0).collect();
    // Failures cannot be kept as seeds: the image is made anew with other times in it.
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    let mut runner = TestRunner::new(config);
    let strategy = (changes(), any::<prop::sample::Index>(), any::<bool>());
    runner
        .run(&strategy, |(changes, length, cut)| {
            let mut damaged = image.to_vec();
            for (at, value, bytes) in changes {
                let at = used[at.index(used.len())];
                damaged[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
            if cut {
                damaged.truncate(length.index(image.len()));
            }
            let _ = find_in_bytes("damaged", damaged);
            Ok(())
        })
        .unwrap();
}

#[test]
fn damaged_ext4() {
    needs_tools!("mkfs.ext4");
    let workshop = Workshop::new();
    // Without checksums, so that changes reach what they protect.
    for options in [
        &["-b", "1024", "-O", "^metadata_csum,^has_journal"][..],
        &[
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^has_journal,^extent,^64bit",
        ],
        &["-b", "1024", "-O", "^has_journal"],
    ] {
        let image = fs::read(workshop.ext4_with(0, 1, &FILES, options)).unwrap();
        find_in_bytes("good", image.clone()).unwrap();
        hammer(&image, 500);
    }
}

#[test]
fn damaged_ext4_with_a_journal_to_replay() {
    needs_tools!("mkfs.ext4", "debugfs");
    let workshop = Workshop::new();
    let disk = workshop.ext4_with(0, 4, &FILES, &["-b", "1024", "-O", "^metadata_csum"]);
    let block = workshop.path("block");
    fs::write(&block, vec![b'.'; 1024]).unwrap();
    let script = format!(
        "journal_open -c -v 3\njournal_write -b 3000 {0}\njournal_write -r 3001\njournal_close\n",
        block.display()
    );
    common::run_with_input("debugfs", &[&"-w", &"-f", &"-", &disk], &script);
    let image = fs::read(disk).unwrap();
    hammer(&image, 200);
}

#[test]
fn damaged_fat() {
    needs_tools!("mkfs.vfat", "mcopy");
    let workshop = Workshop::new();
    let files: Vec<_> = FILES
        .into_iter()
        .filter(|(_, content)| !content.starts_with("->"))
        .map(|(path, content)| (path, content.trim_end_matches("link\n")))
        .collect();
    for (mib, bits) in [(1, "12"), (16, "16")] {
        let image = fs::read(workshop.fat(mib, bits, &files)).unwrap();
        hammer(&image, 300);
    }
}

#[test]
fn a_directory_of_fat_in_a_circle_ends() {
    needs_tools!("mkfs.vfat", "mcopy");
    let workshop = Workshop::new();
    let disk = workshop.fat(
        16,
        "16",
        &[("/loader/entries/a.conf", "linux /k\n"), ("/k", "k")],
    );
    let mut image = fs::read(disk).unwrap();
    // Each cluster of the file allocation tables leads to itself.
    let reserved = usize::from(u16::from_le_bytes([image[14], image[15]])) * 512;
    let sectors = usize::from(u16::from_le_bytes([image[22], image[23]]));
    for table in [reserved, reserved + sectors * 512] {
        for cluster in 2..sectors * 256 {
            let number = u16::try_from(cluster).unwrap().to_le_bytes();
            image[table + cluster * 2..table + cluster * 2 + 2].copy_from_slice(&number);
        }
    }
    let error = find_in_bytes("circle", image).unwrap_err().to_string();
    assert!(error.contains("a directory's size is absurd"), "{error}");
}

#[test]
fn files_that_claim_to_be_huge_are_refused_before_memory_is_taken() {
    needs_tools!("mkfs.ext4", "debugfs");
    let workshop = Workshop::new();
    for (file, size, expected) in [
        (
            "/boot/vmlinuz-1",
            "0x20000000000",
            "/boot/vmlinuz-1: it is larger than",
        ),
        (
            "/boot/vmlinuz-1",
            "0x10000001",
            "/boot/vmlinuz-1: it is larger than",
        ),
        (
            "/boot/initrd-1",
            "0x40000001",
            "/boot/initrd-1: it is larger than",
        ),
        (
            "/boot/grub/grub.cfg",
            "0x100001",
            "grub.cfg: it is larger than",
        ),
        ("/etc/kernel", "0x20000000000", ""),
        ("/boot/link", "0x20000000000", "a symbolic link is absurd"),
    ] {
        let files: Vec<_> = FILES
            .into_iter()
            .filter(|(path, _)| *path == "/boot/link" || !path.starts_with("/loader"))
            .chain((file == "/boot/link").then_some(FILES[7]))
            .collect();
        let disk = workshop.ext4_with(0, 2, &files, &["-O", "^metadata_csum,^has_journal"]);
        let command = format!("set_inode_field {file} size {size}");
        common::run("debugfs", &[&"-w", &"-R", &command, &disk]);
        match find_in_bytes("huge", fs::read(disk).unwrap()) {
            Ok(_) => assert_eq!(expected, "", "{file}"),
            Err(error) => assert!(error.to_string().contains(expected), "{file}: {error}"),
        }
    }
}

#[test]
fn a_tree_of_extents_that_is_walked_for_ever_is_not() {
    const BLOCK: usize = 1024;
    const ENTRIES: u16 = 84;
    needs_tools!("mkfs.ext4", "debugfs");
    let workshop = Workshop::new();
    let options = ["-b", "1024", "-O", "^metadata_csum,^has_journal"];
    let disk = workshop.ext4_with(0, 2, &FILES[..7], &options);
    let place = common::run("debugfs", &[&"-R", &"imap /boot/vmlinuz-1", &disk]);
    let place = place.split_once("located at block ").unwrap().1;
    let (block, offset) = place.trim().split_once(", offset 0x").unwrap();
    let block: usize = block.parse().unwrap();
    let inode = block * BLOCK + usize::from_str_radix(offset, 16).unwrap();
    let mut image = fs::read(disk).unwrap();
    let mut node = |at: usize, depth: u16, entries: u16, child: u32| {
        let mut bytes = [0xf30a, entries, entries, depth, 0, 0]
            .map(u16::to_le_bytes)
            .concat();
        for _ in 0..entries {
            bytes.extend([0, child, 0].map(u32::to_le_bytes).concat());
        }
        image[at..at + bytes.len()].copy_from_slice(&bytes);
    };
    // In blocks that are free: each level points to the one below only, the lowest to nothing.
    let first = 1900;
    node(inode + 0x28, 5, 4, first);
    for depth in (0..5u16).rev() {
        let at = first + 4 - u32::from(depth);
        let child = if depth == 0 { 0 } else { at + 1 };
        node(usize::try_from(at).unwrap() * BLOCK, depth, ENTRIES, child);
    }
    let error = find_in_bytes("deep", image).unwrap_err().to_string();
    assert!(error.contains("more pieces than any of /boot"), "{error}");
}

#[test]
fn an_absurd_superblock_is_refused() {
    needs_tools!("mkfs.ext4");
    let workshop = Workshop::new();
    let good = fs::read(workshop.ext4_with(0, 2, &FILES, &["-O", "^metadata_csum"])).unwrap();
    for (at, value, expected) in [
        (0x20, 1u32, None),
        (0x4, u32::MAX, None),
        (0x150, u32::MAX, Some("an absurd number of block groups")),
        (0x20, 0, Some("an absurd number of block groups")),
        (0x18, 40, Some("its superblock is absurd")),
    ] {
        let mut image = good.clone();
        image[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
        let result = find_in_bytes("absurd", image);
        if let Some(expected) = expected {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
    // A journal as large as an inode can say, to be replayed.
    let mut image = good;
    image[1024 + 0x60] |= 4;
    let table = u32::from_le_bytes(image[1024 * 2 + 8..1024 * 2 + 12].try_into().unwrap());
    let inode = usize::try_from(table).unwrap() * 1024 + 7 * 256;
    image[inode + 0x6c..inode + 0x70].copy_from_slice(&1u32.to_le_bytes());
    let error = find_in_bytes("absurd", image).unwrap_err().to_string();
    assert!(error.contains("its journal must be replayed"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        prop_assert!(find_in_bytes("noise", bytes).is_err());
    }
}

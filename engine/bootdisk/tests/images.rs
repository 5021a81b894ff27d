// SPDX-License-Identifier: Apache-2.0
//! Disk images as distributions and people make them, made here with the same tools.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::fs;

use common::{MIB, SERIAL, UUIDS, Workshop, find, found, refusal, texts};

/// What every root file system here has.
const OS: (&str, &str) = ("/usr/lib/os-release", "ID=debian\n");

/// What mmdebstrap leaves: no boot loader, links to the newest kernel.
const BARE: [(&str, &str); 7] = [
    OS,
    ("/vmlinuz", "-> boot/vmlinuz-6.1.0-41-amd64"),
    ("/initrd.img", "-> boot/initrd.img-6.1.0-41-amd64"),
    ("/boot/vmlinuz-6.1.0-40-amd64", "old kernel"),
    ("/boot/initrd.img-6.1.0-40-amd64", "old initrd"),
    ("/boot/vmlinuz-6.1.0-41-amd64", "new kernel"),
    ("/boot/initrd.img-6.1.0-41-amd64", "new initrd"),
];

#[test]
fn a_whole_disk_of_ext4_without_boot_loader() {
    needs_tools!("mkfs.ext4");
    let workshop = Workshop::new();
    for options in [
        &[][..],
        &["-O", "^has_journal"],
        &["-b", "1024"],
        &["-O", "^extent,^64bit,^metadata_csum"],
    ] {
        let disk = workshop.ext4_with(0, 32, &BARE, options);
        let files = found(&disk);
        assert_eq!(texts(&files), ("new kernel".into(), "new initrd".into()));
        assert_eq!(files.cmdline, format!("root=UUID={} ro", UUIDS[0]));
        let disk = disk.display();
        assert_eq!(files.kernel_name, format!("/vmlinuz on {disk}"));
        assert_eq!(
            files.described,
            format!(
                "/vmlinuz, by the links and names of kernels on {disk}: kernel /vmlinuz (0 KiB), \
                 initrd /initrd.img (0 KiB)"
            )
        );
    }
}

#[test]
fn without_links_the_newest_version() {
    needs_tools!("mkfs.ext4");
    let workshop = Workshop::new();
    let mut files = BARE[3..].to_vec();
    files.push(("/etc/fstab", ""));
    files.push(("/etc/kernel/cmdline", "root=LABEL=guest rw console=ttyS0\n"));
    let files = found(&workshop.ext4(0, 32, &files));
    assert_eq!(texts(&files).0, "new kernel");
    assert_eq!(files.cmdline, "root=LABEL=guest rw console=ttyS0");
}

#[test]
fn links_of_all_kinds_are_followed_and_circles_are_not() {
    needs_tools!("mkfs.ext4");
    let workshop = Workshop::new();
    let long = format!("{}boot/vmlinuz-1", "./".repeat(60));
    let long = format!("-> {long}");
    for target in [
        "-> /boot/vmlinuz-1",
        "-> ../../boot/vmlinuz-1",
        "-> usr/../boot/./vmlinuz-1",
        "-> other",
        &long,
    ] {
        let disk = workshop.ext4(
            0,
            16,
            &[
                OS,
                ("/vmlinuz", target),
                ("/initrd.img", "-> abs/initrd"),
                ("/abs", "-> /boot"),
                ("/other", "-> boot/link"),
                ("/boot/link", "-> vmlinuz-1"),
                ("/boot/vmlinuz-1", "kernel"),
                ("/boot/initrd", "initrd"),
            ],
        );
        assert_eq!(
            texts(&found(&disk)),
            ("kernel".into(), "initrd".into()),
            "{target}"
        );
    }
    let disk = workshop.ext4(0, 16, &[OS, ("/vmlinuz", "-> v"), ("/v", "-> vmlinuz")]);
    let text = refusal(&disk);
    assert!(text.contains("too many symbolic links"), "{text}");
    let disk = workshop.ext4(0, 16, &[OS, ("/vmlinuz", "-> boot/gone")]);
    assert!(refusal(&disk).contains("no vmlinuz in / or /boot"));
}

#[test]
fn mbr_with_ext4_and_extlinux() {
    needs_tools!("mkfs.ext4", "sfdisk");
    let workshop = Workshop::new();
    let root = workshop.ext4(
        0,
        32,
        &[
            OS,
            (
                "/boot/extlinux/extlinux.conf",
                "DEFAULT linux\nLABEL linux\n  LINUX /boot/vmlinuz-6\n  INITRD /boot/initrd.img-6\n  \
                 APPEND root=/dev/vda1 ro\n",
            ),
            ("/boot/vmlinuz-6", "k"),
            ("/boot/initrd.img-6", "i"),
        ],
    );
    let disk = workshop.mbr(&[&root]);
    let files = found(&disk);
    assert_eq!(files.cmdline, "root=/dev/vda1 ro");
    assert!(
        files.described.contains("label linux"),
        "{}",
        files.described
    );
    assert!(files.kernel_name.contains("partition 1 of"));
}

#[test]
fn without_initrd_the_partition_is_named() {
    needs_tools!("mkfs.ext4", "sfdisk", "sgdisk");
    let workshop = Workshop::new();
    let root = workshop.ext4(0, 16, &[OS, ("/boot/vmlinuz-6", "k")]);
    let files = found(&workshop.mbr(&[&root]));
    assert_eq!(files.cmdline, "root=PARTUUID=00c0ffee-01 ro");
    let files = found(&workshop.gpt(&[("8300", &root)]));
    assert_eq!(
        files.cmdline,
        "root=PARTUUID=0fc63daf-8483-4772-8e79-000000000001 ro"
    );
}

#[test]
fn gpt_with_esp_and_boot_loader_entries() {
    needs_tools!("mkfs.ext4", "mkfs.vfat", "mcopy", "sgdisk");
    let workshop = Workshop::new();
    let entry = |version: &str| {
        format!(
            "title Debian GNU/Linux\nversion {version}\nsort-key debian\n\
             linux /debian/{version}/linux\ninitrd /debian/{version}/initrd-1\n\
             initrd /debian/{version}/initrd-2\noptions root=UUID=x ro {version}\n"
        )
    };
    let (old, new) = (entry("6.1.0-9-amd64"), entry("6.1.0-10-amd64"));
    let content = [
        ("/loader/loader.conf", "timeout 3\n"),
        ("/loader/entries/debian-6.1.0-9-amd64.conf", &*old),
        ("/loader/entries/debian-6.1.0-10-amd64.conf", &*new),
        ("/debian/6.1.0-9-amd64/linux", "old"),
        ("/debian/6.1.0-10-amd64/linux", "a kernel"),
        ("/debian/6.1.0-10-amd64/initrd-1", "first"),
        ("/debian/6.1.0-10-amd64/initrd-2", "second"),
    ];
    let root = workshop.ext4(1, 16, &[OS]);
    for (mib, bits) in [(2, "12"), (16, "16"), (64, "32")] {
        let esp = workshop.fat(mib, bits, &content);
        let files = found(&workshop.gpt(&[("ef00", &esp), ("8304", &root)]));
        assert_eq!(files.kernel, b"a kernel", "FAT{bits}");
        // The second begins at a multiple of four.
        assert_eq!(files.initrd.as_deref(), Some(&b"first\0\0\0second"[..]));
        assert_eq!(files.cmdline, "root=UUID=x ro 6.1.0-10-amd64");
        assert!(
            files
                .described
                .starts_with("Debian GNU/Linux (6.1.0-10-amd64), by boot entry debian-6.1.0-10"),
            "{}",
            files.described
        );
    }
}

#[test]
fn grub_cfg_finds_its_file_system() {
    needs_tools!("mkfs.ext4", "mkfs.vfat", "mcopy", "sgdisk");
    let workshop = Workshop::new();
    let config = format!(
        "set default=\"0\"\nif [ x\"${{feature_menuentry_id}}\" = xy ]; then\n  \
         menuentry_id_option=\"--id\"\nfi\n\
         menuentry 'Debian GNU/Linux' --class os $menuentry_id_option 'gnulinux-simple' {{\n\
         \tinsmod ext2\n\tsearch --no-floppy --fs-uuid --set=root {}\n\
         \tlinux\t/vmlinuz-6 root=/dev/mapper/x ro  quiet\n\tinitrd\t/initrd.img-6\n}}\n",
        UUIDS[1]
    );
    let stub = format!(
        "search.fs_uuid {} root\nconfigfile ($root)/grub/grub.cfg\n",
        UUIDS[1]
    );
    let esp = workshop.fat(2, "12", &[("/EFI/debian/grub.cfg", &stub)]);
    let boot = workshop.ext4(
        1,
        16,
        &[
            ("/grub/grub.cfg", &config),
            ("/vmlinuz-6", "kernel"),
            ("/initrd.img-6", "initrd"),
        ],
    );
    let root = workshop.ext4(2, 16, &[OS]);
    let files = found(&workshop.gpt(&[("ef00", &esp), ("8300", &boot), ("8300", &root)]));
    assert_eq!(texts(&files), ("kernel".into(), "initrd".into()));
    assert_eq!(files.cmdline, "root=/dev/mapper/x ro quiet");
    assert!(files.kernel_name.contains("partition 2"));
}

#[test]
fn red_hats_entries_with_grubs_variables() {
    needs_tools!("mkfs.ext4", "mkfs.vfat", "mcopy", "sgdisk");
    let workshop = Workshop::new();
    let config = "set default=\"${saved_entry}\"\nif [ -s $prefix/grubenv ]; then\n  load_env\nfi\n\
                  set default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n";
    let block =
        "# GRUB Environment Block\nsaved_entry=id-5.14.0-70\nkernelopts=root=UUID=r ro\n#####";
    let entry = |version: &str| {
        format!(
            "title Red Hat Enterprise Linux ({version})\nversion {version}\n\
             linux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\n\
             options $kernelopts $tuned_params\n"
        )
    };
    let (old, new) = (entry("5.14.0-70"), entry("5.14.0-503"));
    let boot = workshop.ext4(
        1,
        16,
        &[
            ("/loader/entries/id-5.14.0-70.conf", &*old),
            ("/loader/entries/id-5.14.0-503.conf", &*new),
            ("/vmlinuz-5.14.0-70", "old"),
            ("/initramfs-5.14.0-70.img", "old initrd"),
        ],
    );
    // As RHEL 8 with UEFI has it: configuration and environment on the ESP.
    let esp = workshop.fat(
        16,
        "16",
        &[
            ("/EFI/redhat/grub.cfg", config),
            ("/EFI/redhat/grubenv", block),
        ],
    );
    let files = found(&workshop.gpt(&[("ef00", &esp), ("8300", &boot)]));
    assert_eq!(texts(&files), ("old".into(), "old initrd".into()));
    assert_eq!(files.cmdline, "root=UUID=r ro");
}

#[test]
fn what_cannot_be_read_is_named_with_the_remedy() {
    needs_tools!("mkfs.ext4", "sgdisk");
    let workshop = Workshop::new();
    let other = |at: usize, magic: &[u8]| {
        let path = workshop.path("other");
        let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(&path, bytes).unwrap();
        path
    };
    let xfs = other(0, b"XFSB");
    let btrfs = other(0x1_0040, b"_BHRfS_M");
    let nothing = workshop.ext4(0, 16, &[("/lost", "x")]);
    let disk = workshop.gpt(&[("8300", &xfs), ("8300", &btrfs), ("8300", &nothing)]);
    let text = refusal(&disk);
    for part in [
        "Nothing to boot was found on",
        "[boot] of the VM's description",
        "partition 1: XFS, which cannot be read here",
        "partition 2: btrfs, which cannot be read here",
        "partition 3: ext4",
        "no grub.cfg",
        "no vmlinuz in / or /boot",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = refusal(&xfs);
    assert!(text.contains("the whole disk: XFS"), "{text}");
    let text = refusal(&other(0, b"QFI\xfb"));
    assert!(text.contains("it is a qcow2 image: convert it"), "{text}");
    let text = refusal(&other(0, b""));
    assert!(text.contains("the whole disk: nothing known"), "{text}");
}

#[test]
fn real_xfs_and_btrfs_are_recognised() {
    needs_tools!("mkfs.xfs", "mkfs.btrfs");
    let workshop = Workshop::new();
    for (tool, options, name) in [
        ("mkfs.xfs", &["-q", "-f"][..], "XFS"),
        ("mkfs.btrfs", &["-q", "-f"], "btrfs"),
    ] {
        let image = workshop.path("other");
        fs::File::create(&image)
            .unwrap()
            .set_len(320 * MIB)
            .unwrap();
        let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = Vec::new();
        for option in options {
            arguments.push(option);
        }
        arguments.push(&image);
        common::run(tool, &arguments);
        let text = refusal(&image);
        assert!(
            text.contains(&format!("the whole disk: {name}, which")),
            "{text}"
        );
    }
}

#[test]
fn a_file_that_is_named_and_missing_is_an_error() {
    needs_tools!("mkfs.ext4");
    let workshop = Workshop::new();
    let disk = workshop.ext4(
        0,
        16,
        &[
            OS,
            ("/boot/loader/entries/a.conf", "linux /boot/gone\n"),
            ("/boot/vmlinuz-6", "another kernel"),
        ],
    );
    let text = refusal(&disk);
    assert!(
        text.contains("/boot/gone: it is not there, though boot entry a.conf names it"),
        "{text}"
    );
}

#[test]
fn a_damaged_gpt_is_told_and_its_copy_is_used() {
    needs_tools!("mkfs.ext4", "sgdisk");
    let workshop = Workshop::new();
    let root = workshop.ext4(0, 32, &BARE);
    let disk = workshop.gpt(&[("8300", &root)]);
    let mut bytes = fs::read(&disk).unwrap();
    bytes[512 + 40] ^= 0xff;
    fs::write(&disk, &bytes).unwrap();
    assert_eq!(texts(&found(&disk)).0, "new kernel");
    let last = bytes.len() - 512;
    bytes[last + 40] ^= 0xff;
    fs::write(&disk, &bytes).unwrap();
    let text = refusal(&disk);
    assert!(text.contains("The partition table of"), "{text}");
    assert!(text.contains("checksum is wrong"), "{text}");
}

#[test]
fn an_image_that_was_enlarged_or_cut() {
    needs_tools!("mkfs.ext4", "sgdisk", "sfdisk");
    let workshop = Workshop::new();
    let root = workshop.ext4(0, 32, &BARE);
    for disk in [workshop.gpt(&[("8300", &root)]), workshop.mbr(&[&root])] {
        let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
        file.set_len(100 * MIB).unwrap();
        assert_eq!(texts(&found(&disk)).0, "new kernel");
        file.set_len(20 * MIB).unwrap();
        let text = refusal(&disk);
        assert!(text.contains("is the image cut short?"), "{text}");
        file.set_len(0).unwrap();
        assert!(refusal(&disk).contains("it is empty"));
    }
    let file = fs::OpenOptions::new().write(true).open(&root).unwrap();
    for length in [1024, 1500, 5000, 100_000, 3 * MIB] {
        file.set_len(length).unwrap();
        assert!(find(&root).is_err(), "{length}");
    }
}

#[test]
fn names_on_fat_have_no_case_and_serial_numbers_are_found() {
    needs_tools!("mkfs.vfat", "mcopy");
    let workshop = Workshop::new();
    let config = format!(
        "search --fs-uuid --set=root {SERIAL}\nmenuentry x {{\n linux /VMLINUZ-Long-Name.x a\n}}\n"
    );
    let disk = workshop.fat(
        4,
        "12",
        &[
            ("/Boot/Grub/GRUB.CFG", &config),
            ("/vmlinuz-long-name.X", "kernel"),
        ],
    );
    let files = found(&disk);
    assert_eq!(files.kernel, b"kernel");
    assert_eq!(files.cmdline, "a");
}

#[test]
fn a_journal_that_was_not_replayed_counts() {
    needs_tools!("mkfs.ext4", "debugfs");
    let workshop = Workshop::new();
    let disk = workshop.ext4(0, 32, &BARE);
    let block = common::run(
        "debugfs",
        &[&"-R", &"blocks /boot/vmlinuz-6.1.0-41-amd64", &disk],
    );
    let newer = workshop.path("block");
    let mut content = vec![b'.'; 4096];
    content[..10].copy_from_slice(b"last write");
    fs::write(&newer, content).unwrap();
    // A transaction in the journal that never got to its place: what a crash leaves.
    let script = format!(
        "journal_open -c -v 3\njournal_write -b {} {}\njournal_close\n",
        block.trim(),
        newer.display()
    );
    common::run_with_input("debugfs", &[&"-w", &"-f", &"-", &disk], &script);
    assert_eq!(texts(&found(&disk)).0, "last write");
}

// SPDX-License-Identifier: Apache-2.0
//! `[[disk]]`: files and block devices that are there, whole, free, and can be used as asked.
//!
//! A disk is opened and looked at, never written or locked: an engine that starts at the same
//! moment must not find it taken.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use kemari_api::config::{DiskIo, DiskSection, VmConfig};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::host::{Host, Running};
use super::{FailureKind, Problem, Severity};

/// Sectors of virtio-blk (VIRTIO 1.2 §5.2).
const SECTOR_BYTES: u64 = 512;

/// What this node lacks for the disks.
pub(super) fn problems(config: &VmConfig, host: &Host, running: Running) -> Vec<Problem> {
    let mut found = Vec::new();
    for (index, disk) in config.disk.iter().enumerate() {
        let key = |key: &str| format!("disk[{index}].{key}");
        found.extend(io_uring(disk, host).map(|text| Problem::missing(key("io"), text)));
        match open(disk, 0) {
            Ok(file) => {
                let usable = usable(disk, file, running).err();
                found.extend(usable.map(|problem| problem.at(&key("path"))));
                found.extend(direct(disk).map(|text| Problem::missing(key("direct"), text)));
            }
            Err(error) => {
                let path = disk.path.as_path();
                found.push(Problem::inaccessible(
                    key("path"),
                    path,
                    &error,
                    remedy(&error),
                ));
            }
        }
    }
    found
}

fn open(disk: &DiskSection, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!disk.read_only)
        // A FIFO must not make the check wait.
        .custom_flags(libc::O_NONBLOCK | flags)
        .open(disk.path.as_path())
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "make it on this node (truncate -s, lvcreate) or correct the path"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "run as root, or give the disk read_only = true"
        }
        _ => "name a raw file or a block device",
    }
}

/// A problem whose key the caller knows.
struct Unplaced(FailureKind, String);

impl Unplaced {
    fn at(self, key: &str) -> Problem {
        Problem::new(key, Severity::Error(self.0), self.1)
    }
}

fn usable(disk: &DiskSection, mut file: File, running: Running) -> Result<(), Unplaced> {
    let missing = |text: String| Err(Unplaced(FailureKind::NotInstalled, text));
    let failed = |error: io::Error| Unplaced(FailureKind::Other, error.to_string());
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return missing(format!(
            "{} is neither a file nor a block device; name a raw image or a device",
            disk.path
        ));
    }
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if bytes == 0 || bytes % SECTOR_BYTES != 0 {
        return missing(format!(
            "{} has {bytes} bytes, which are no whole sectors of {SECTOR_BYTES}; set its size \
             (truncate -s)",
            disk.path
        ));
    }
    if running == Running::No && (locked(&file, disk) || claimed(disk.path.as_path())) {
        let text = format!(
            "{} is in use on this host (another engine, QEMU, a mount); stop that first",
            disk.path
        );
        return Err(Unplaced(FailureKind::Other, text));
    }
    Ok(())
}

/// Whether another open file has a lock that the engine's would conflict with: one writer, or any
/// number of readers. It is only asked for, not taken (fcntl(2), `F_OFD_GETLK`).
fn locked(file: &File, disk: &DiskSection) -> bool {
    let mut lock = whole_file(if disk.read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    });
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

/// A lock of this kind from the first byte to the last.
fn whole_file(kind: i32) -> libc::flock {
    let small = |number: i32| i16::try_from(number).expect("libc's constants are small");
    libc::flock {
        l_type: small(kind),
        l_whence: small(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Whether a block device has an owner in the kernel: a mount, a volume, another engine. open(2),
/// `O_EXCL`: without `O_CREAT` it fails on a block device that is in use, and is let go at once.
fn claimed(path: &Path) -> bool {
    let device = std::fs::metadata(path).is_ok_and(|it| it.file_type().is_block_device());
    device
        && OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

fn direct(disk: &DiskSection) -> Option<String> {
    let error = disk.direct.then(|| open(disk, libc::O_DIRECT).err())??;
    Some(format!(
        "{} cannot be used past the page cache: {error}; move it to another file system, or leave \
         direct out",
        disk.path
    ))
}

/// sysctl kernel.io_uring_disabled: 2 is "for everybody" (Linux 6.6; older kernels have no such
/// file and allow it).
fn io_uring(disk: &DiskSection, host: &Host) -> Option<String> {
    let off = host.number("proc/sys/kernel/io_uring_disabled") == Some(2);
    let text = "io_uring is switched off on this host; set kernel.io_uring_disabled = 0, or give \
                \"auto\"";
    (disk.io == DiskIo::Uring && off).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use nix::fcntl::FcntlArg::F_OFD_SETLK;

    use super::super::host::{FakeHost, described};
    use super::*;

    fn told(fake: &FakeHost, more: &str, running: Running) -> Vec<Problem> {
        let text = format!(
            "[[disk]]\nid = \"a\"\npath = {:?}\n{more}",
            fake.path("disk")
        );
        problems(&described(&text), &fake.host(), running)
    }

    fn disk(bytes: u64) -> FakeHost {
        let fake = FakeHost::with(&[("disk", "")]);
        let file = File::options().write(true).open(fake.path("disk")).unwrap();
        file.set_len(bytes).unwrap();
        fake
    }

    #[test]
    fn a_file_of_whole_sectors_is_a_disk() {
        assert_eq!(told(&disk(4096), "", Running::No), []);
        for bytes in [0, 511, 513] {
            let found = told(&disk(bytes), "", Running::No);
            assert!(found[0].text.contains("whole sectors"), "{found:?}");
        }
    }

    #[test]
    fn what_is_missing_or_no_disk_is_told_at_its_path() {
        let found = told(&FakeHost::with(&[]), "", Running::No);
        assert_eq!(found[0].key, "disk[0].path");
        assert!(found[0].text.contains("lvcreate"), "{found:?}");
        let directory = FakeHost::with(&[("disk/x", "")]);
        for more in ["", "read_only = true\n"] {
            assert_eq!(told(&directory, more, Running::No).len(), 1);
        }
    }

    #[test]
    fn a_disk_that_another_holds_is_in_use_unless_this_vm_runs() {
        let fake = disk(512);
        let file = File::options()
            .read(true)
            .write(true)
            .open(fake.path("disk"));
        let file = file.unwrap();
        let lock = whole_file(libc::F_WRLCK);
        fcntl(&file, F_OFD_SETLK(&lock)).unwrap();
        for more in ["", "read_only = true\n"] {
            let found = told(&fake, more, Running::No);
            assert!(found[0].text.contains("in use"), "{found:?}");
            assert_eq!(told(&fake, more, Running::Here), []);
        }
    }

    #[test]
    fn io_uring_that_is_off_is_told_to_who_insists_on_it() {
        let fake = FakeHost::with(&[("proc/sys/kernel/io_uring_disabled", "2\n"), ("disk", "")]);
        std::fs::write(fake.path("disk"), [0; 512]).unwrap();
        assert_eq!(told(&fake, "", Running::No), []);
        assert_eq!(
            told(&fake, "io = \"uring\"\n", Running::No)[0].key,
            "disk[0].io"
        );
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Both engines, with every option; and the rules of opening.

mod model;

use std::io::{ErrorKind, Write};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::NamedTempFile;

use self::model::{Step, run_against_model};
use super::*;

const SECTOR: usize = 512;
const SECTORS: usize = 256;

/// A file of random-looking content, on a file system with direct I/O if the machine has one.
fn image(sectors: usize) -> (NamedTempFile, Vec<u8>) {
    let content: Vec<u8> = (0..sectors * SECTOR)
        .map(|index| u8::try_from(index * 7 % 251).unwrap())
        .collect();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&content).unwrap();
    (file, content)
}

/// The disk with these options; none, and a word why, where the machine cannot.
fn open(path: &Path, options: DiskOptions) -> Option<RawDisk> {
    match RawDisk::open(path, options) {
        Ok(disk) => Some(disk),
        Err(error @ (OpenDiskError::NoUring(_) | OpenDiskError::Direct { .. })) => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn all_options() -> Vec<DiskOptions> {
    let mut all = Vec::new();
    for engine in [IoEngine::Uring, IoEngine::Plain] {
        for direct in [false, true] {
            for discard in [DiscardPolicy::Keep, DiscardPolicy::FreeSpace] {
                all.push(DiskOptions {
                    read_only: false,
                    direct,
                    discard,
                    engine,
                });
            }
        }
    }
    all
}

/// The same for a device that was open before: a process that another test is just starting may hold
/// it a moment longer, until it becomes another program.
fn open_free_device(path: &Path, options: DiskOptions) -> Option<RawDisk> {
    for _ in 0..300 {
        match RawDisk::open(path, options) {
            Err(OpenDiskError::Claimed { .. }) => {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            Ok(disk) => return Some(disk),
            Err(_) => break,
        }
    }
    open(path, options)
}

/// Waits until the disk says that something is there, and takes it.
fn wait(disk: &mut RawDisk) -> Vec<DiskCompletion> {
    let mut done = Vec::new();
    while done.is_empty() {
        let mut fds = [PollFd::new(disk.readable(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => panic!("{error}"),
        }
        disk.completed(&mut done);
    }
    done
}

fn wait_for_one(disk: &mut RawDisk) -> DiskCompletion {
    let mut done = wait(disk);
    assert_eq!(done.len(), 1);
    done.remove(0)
}

fn one(disk: &mut RawDisk, request: DiskRequest) -> (std::io::Result<()>, Vec<u8>) {
    disk.submit(42, request);
    let done = wait_for_one(disk);
    assert_eq!(done.tag, 42);
    (done.result, done.buffer)
}

#[test]
fn more_requests_than_the_ring_holds_are_all_done() {
    let (file, content) = image(4096);
    for options in all_options() {
        let Some(mut disk) = open(file.path(), options) else {
            continue;
        };
        for tag in 0..1000u32 {
            let offset = u64::from(tag) * 2048;
            let buffer = vec![0; 2048];
            disk.submit(tag, DiskRequest::Read { offset, buffer });
        }
        let mut done = Vec::new();
        while done.len() < 1000 {
            done.extend(wait(&mut disk));
        }
        for completion in done {
            completion.result.unwrap();
            let start = usize::try_from(completion.tag).unwrap() * 2048;
            assert!(completion.buffer == content[start..start + 2048]);
        }
    }
}

#[test]
fn a_disk_dropped_with_requests_in_flight_has_done_them() {
    for options in all_options() {
        let (file, mut content) = image(SECTORS);
        let Some(mut disk) = open(file.path(), options) else {
            continue;
        };
        for tag in 0..200u32 {
            let start = usize::try_from(tag).unwrap() * SECTOR;
            content[start..start + SECTOR].fill(0xab);
            let offset = u64::try_from(start).unwrap();
            let buffer = vec![0xab; SECTOR];
            disk.submit(tag, DiskRequest::Write { offset, buffer });
        }
        disk.drain().unwrap();
        disk.submit(
            7,
            DiskRequest::Write {
                offset: 0,
                buffer: vec![1; 4096],
            },
        );
        content[..4096].fill(1);
        drop(disk);
        assert!(
            std::fs::read(file.path()).unwrap() == content,
            "{options:?}"
        );
    }
}

#[test]
fn requests_survive_the_thread_that_made_them() {
    for options in all_options() {
        let (file, _) = image(SECTORS);
        let Some(mut disk) = open(file.path(), options) else {
            continue;
        };
        let mut disk = std::thread::spawn(move || {
            for tag in 0..64u32 {
                let offset = u64::from(tag) * 2048;
                let buffer = vec![0x5a; 2048];
                disk.submit(tag, DiskRequest::Write { offset, buffer });
            }
            disk
        })
        .join()
        .unwrap();
        disk.drain().unwrap();
        let mut done = Vec::new();
        disk.completed(&mut done);
        assert_eq!(done.len(), 64);
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        assert!(std::fs::read(file.path()).unwrap() == vec![0x5a; SECTORS * SECTOR]);
    }
}

#[test]
fn what_is_beyond_the_disk_is_refused_and_changes_nothing() {
    let hostile = [
        (u64::MAX, 512),
        (u64::MAX - 511, 512),
        (u64::MAX - 1023, 1024),
        (131_072, 512),
        (130_560, 1024),
        (1, 512),
        (0, 511),
        (1 << 63, 512),
    ];
    for options in all_options() {
        let (file, content) = image(SECTORS);
        let Some(mut disk) = open(file.path(), options) else {
            continue;
        };
        for (offset, length) in hostile {
            let buffer = vec![3; usize::try_from(length).unwrap()];
            let requests = [
                DiskRequest::Read {
                    offset,
                    buffer: buffer.clone(),
                },
                DiskRequest::Write { offset, buffer },
                DiskRequest::Discard { offset, length },
                DiskRequest::WriteZeroes {
                    offset,
                    length,
                    unmap: Unmap::Allowed,
                },
            ];
            for request in requests {
                let (result, _) = one(&mut disk, request);
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        }
        let (offset, length) = (512, u64::MAX - 511);
        let (result, _) = one(&mut disk, DiskRequest::Discard { offset, length });
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        drop(disk);
        assert!(std::fs::read(file.path()).unwrap() == content);
    }
}

#[test]
fn a_file_cut_short_behind_our_back_is_an_error_only() {
    for options in all_options() {
        let (file, _) = image(SECTORS);
        let Some(mut disk) = open(file.path(), options) else {
            continue;
        };
        file.as_file().set_len(4096).unwrap();
        let read = |offset| DiskRequest::Read {
            offset,
            buffer: vec![0; 8192],
        };
        for offset in [0, 65_536] {
            let (result, buffer) = one(&mut disk, read(offset));
            assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(buffer.len(), 8192);
        }
    }
}

#[test]
fn a_read_only_disk_cannot_be_changed() {
    for engine in [IoEngine::Uring, IoEngine::Plain] {
        let (file, content) = image(SECTORS);
        let options = DiskOptions {
            read_only: true,
            discard: DiscardPolicy::FreeSpace,
            engine,
            ..DiskOptions::default()
        };
        let Some(mut disk) = open(file.path(), options) else {
            continue;
        };
        let geometry = disk.geometry();
        assert!(geometry.read_only && !geometry.discard && !geometry.write_zeroes);
        let buffer = vec![0; 512];
        let (result, _) = one(&mut disk, DiskRequest::Write { offset: 0, buffer });
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        one(&mut disk, DiskRequest::Flush).0.unwrap();
        assert!(std::fs::read(file.path()).unwrap() == content);
    }
}

#[test]
fn one_writer_or_many_readers() {
    let (file, _) = image(SECTORS);
    let writer = DiskOptions::default();
    let reader = DiskOptions {
        read_only: true,
        ..writer
    };
    let is_in_use = |options| {
        matches!(
            RawDisk::open(file.path(), options),
            Err(OpenDiskError::InUse { .. })
        )
    };
    let disk = RawDisk::open(file.path(), writer).unwrap();
    assert!(is_in_use(writer));
    assert!(is_in_use(reader));
    drop(disk);
    let readers = [
        RawDisk::open(file.path(), reader).unwrap(),
        RawDisk::open(file.path(), reader).unwrap(),
    ];
    assert!(is_in_use(writer));
    drop(readers);
    drop(RawDisk::open(file.path(), writer).unwrap());
}

#[test]
fn what_is_no_disk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &Path| RawDisk::open(path, DiskOptions::default()).unwrap_err();
    assert!(matches!(
        open(directory.path()),
        OpenDiskError::NotADisk { .. }
    ));
    assert!(matches!(
        open(Path::new("/dev/null")),
        OpenDiskError::NotADisk { .. }
    ));
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(open(&fifo), OpenDiskError::NotADisk { .. }));
    let absent = open(&directory.path().join("absent"));
    assert!(matches!(absent, OpenDiskError::Inaccessible { .. }));
    let file = NamedTempFile::new().unwrap();
    for bytes in [0, 511, 513] {
        file.as_file().set_len(bytes).unwrap();
        let refusal = open(file.path());
        assert!(matches!(refusal, OpenDiskError::Size { .. }), "{refusal}");
    }
}

#[test]
fn space_is_freed_only_where_it_may_be() {
    use std::os::unix::fs::MetadataExt;
    let bytes = 1 << 20;
    for engine in [IoEngine::Uring, IoEngine::Plain] {
        for (discard, unmap, freed) in [
            (DiscardPolicy::FreeSpace, Unmap::Allowed, true),
            (DiscardPolicy::FreeSpace, Unmap::Forbidden, false),
            (DiscardPolicy::Keep, Unmap::Allowed, false),
        ] {
            let (file, _) = image(2048);
            file.as_file().sync_all().unwrap();
            let options = DiskOptions {
                discard,
                engine,
                ..DiskOptions::default()
            };
            let Some(mut disk) = open(file.path(), options) else {
                continue;
            };
            let request = DiskRequest::WriteZeroes {
                offset: 0,
                length: bytes,
                unmap,
            };
            one(&mut disk, request).0.unwrap();
            one(&mut disk, DiskRequest::Flush).0.unwrap();
            assert!(std::fs::read(file.path()).unwrap() == vec![0; 1 << 20]);
            let allocated = file.as_file().metadata().unwrap().blocks() * 512;
            assert_eq!(allocated < bytes, freed, "{discard:?} {unmap:?}");
        }
    }
}

/// A block device over a file, gone when dropped.
struct LoopDevice {
    device: String,
    _file: NamedTempFile,
}

impl LoopDevice {
    fn new(sectors: usize) -> Option<Self> {
        let (file, _) = image(sectors);
        let set_up = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file.path())
            .output();
        match set_up {
            Ok(output) if output.status.success() => Some(Self {
                device: String::from_utf8(output.stdout).unwrap().trim().to_owned(),
                _file: file,
            }),
            other => {
                println!("SKIPPED: no loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .args(["--detach", &self.device])
            .status();
    }
}

#[test]
fn a_block_device_is_a_disk_too() {
    let Some(device) = LoopDevice::new(SECTORS) else {
        return;
    };
    for options in all_options() {
        let path = Path::new(&device.device);
        let Some(mut disk) = open_free_device(path, options) else {
            continue;
        };
        let bytes = u64::try_from(SECTORS * SECTOR).unwrap();
        assert_eq!(disk.geometry().capacity_bytes, bytes);
        assert!(matches!(
            RawDisk::open(path, options),
            Err(OpenDiskError::Claimed { .. })
        ));
        let steps = [
            Step::Write(0..SECTORS, 17),
            Step::Discard(8..64),
            Step::WriteZeroes(64..73, true),
            Step::WriteZeroes(80..96, false),
            Step::Read(0..SECTORS),
            Step::Flush,
            Step::Write(3..5, 1),
            Step::Read(0..8),
        ];
        let content = vec![0; SECTORS * SECTOR];
        let expected = run_against_model(&mut disk, content, &steps);
        drop(disk);
        assert!(std::fs::read(path).unwrap() == expected, "{options:?}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Opening a disk: what it is, how large it is, and that nobody else has it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::SECTOR_BYTES;
use super::bounce::BouncePool;
use super::file::{Medium, RawFile};
use super::lock::{self, Share};
use super::raw::{DiscardPolicy, DiskOptions};
use crate::backend::ioctl;

/// What direct I/O may want offsets and lengths to be multiples of, the best first.
const DIRECT_ALIGNMENTS: [u64; 2] = [512, 4096];

/// A disk could not be opened.
#[derive(Debug, Error)]
pub enum OpenDiskError {
    /// It is not there, or may not be opened.
    #[error("Cannot open the disk {}", path.display())]
    Inaccessible {
        /// The disk.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else than a file or a block device.
    #[error("{} is neither a file nor a block device", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// Empty, or not whole sectors.
    #[error(
        "The disk {} has {bytes} bytes; a disk needs a multiple of 512, and at least that \
         (`truncate -s` sets the size of a file)", path.display()
    )]
    Size {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another process has locked it.
    #[error(
        "The disk {} is in use by another process (another engine, or QEMU) on this host; stop that \
         first, or open both read-only", path.display()
    )]
    InUse {
        /// The disk.
        path: PathBuf,
    },
    /// The block device has a holder.
    #[error(
        "The block device {} is in use on this host: mounted, part of a volume or RAID, or a disk of \
         another engine", path.display()
    )]
    Claimed {
        /// The disk.
        path: PathBuf,
    },
    /// The file system cannot lock.
    #[error("Cannot lock the disk {}, which is needed to keep a second engine away", path.display())]
    Lock {
        /// The disk.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file system has no direct I/O.
    #[error(
        "The disk {} cannot be used past the host's page cache (O_DIRECT): its file system does not \
         offer that; use the page cache", path.display()
    )]
    Direct {
        /// The disk.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// io_uring was asked for by name and is not there.
    #[error(
        "io_uring cannot be used (see the sysctl kernel.io_uring_disabled, or a seccomp filter); \
         choose the engine by `auto` or `plain`"
    )]
    NoUring(#[source] io::Error),
    /// A resource of the host is exhausted.
    #[error("Cannot set up input and output for the disk {}", path.display())]
    SetUp {
        /// The disk.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Opens, locks and measures. Returns the file and its size in bytes.
pub(super) fn open(path: &Path, options: &DiskOptions) -> Result<(RawFile, u64), OpenDiskError> {
    let inaccessible = |source| OpenDiskError::Inaccessible {
        path: path.to_owned(),
        source,
    };
    // Before opening: to open a FIFO would block.
    let expected = medium(&fs::metadata(path).map_err(inaccessible)?, path)?;
    let cached = open_cached(path, options, expected)?;
    let metadata = cached.metadata().map_err(inaccessible)?;
    let medium = medium(&metadata, path)?;
    lock_file(path, &cached, options)?;
    let (bytes, block_bytes) = match medium {
        Medium::File => (metadata.len(), 512),
        Medium::BlockDevice => (
            ioctl::block_device_bytes(&cached).map_err(inaccessible)?,
            ioctl::logical_block_bytes(&cached).map_err(inaccessible)?,
        ),
    };
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        let path = path.to_owned();
        return Err(OpenDiskError::Size { path, bytes });
    }
    let mut file = RawFile::new(cached, medium, block_bytes.max(512));
    file.read_only = options.read_only;
    file.frees_space = options.discard == DiscardPolicy::FreeSpace && !options.read_only;
    if options.direct {
        open_direct(path, &mut file)?;
    }
    Ok((file, bytes))
}

fn medium(metadata: &fs::Metadata, path: &Path) -> Result<Medium, OpenDiskError> {
    if metadata.is_file() {
        return Ok(Medium::File);
    }
    if metadata.file_type().is_block_device() {
        return Ok(Medium::BlockDevice);
    }
    Err(OpenDiskError::NotADisk {
        path: path.to_owned(),
    })
}

fn open_cached(path: &Path, options: &DiskOptions, medium: Medium) -> Result<File, OpenDiskError> {
    let mut how = OpenOptions::new();
    how.read(true).write(!options.read_only);
    if medium == Medium::BlockDevice && !options.read_only {
        // Refused while a file system, a volume manager or another engine has the device (open(2)).
        how.custom_flags(libc::O_EXCL);
    }
    how.open(path).map_err(|source| {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) => OpenDiskError::Claimed { path },
            _ => OpenDiskError::Inaccessible { path, source },
        }
    })
}

fn lock_file(path: &Path, file: &File, options: &DiskOptions) -> Result<(), OpenDiskError> {
    let share = if options.read_only {
        Share::Reading
    } else {
        Share::Nothing
    };
    let path = path.to_owned();
    match lock::lock(file, share) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenDiskError::InUse { path }),
        Err(source) => Err(OpenDiskError::Lock { path, source }),
    }
}

/// Opens the same file once more with O_DIRECT, and finds out what alignment it wants.
fn open_direct(path: &Path, file: &mut RawFile) -> Result<(), OpenDiskError> {
    let refused = |source| OpenDiskError::Direct {
        path: path.to_owned(),
        source,
    };
    // Not by its path, under which another file may be by now.
    let same = format!("/proc/self/fd/{}", file.cached.as_raw_fd());
    let direct = OpenOptions::new()
        .read(true)
        .write(!file.read_only)
        .custom_flags(libc::O_DIRECT)
        .open(same)
        .map_err(refused)?;
    let alignment = match file.medium {
        Medium::BlockDevice => u64::from(file.block_bytes),
        Medium::File => direct_alignment(&direct).map_err(refused)?,
    };
    file.block_bytes = u32::try_from(alignment).unwrap_or(file.block_bytes);
    file.direct = Some((direct, alignment));
    Ok(())
}

/// The smallest alignment that a read goes well with. (statx(2) tells it too, but only since
/// Linux 6.1 and not on every file system.)
fn direct_alignment(direct: &File) -> io::Result<u64> {
    let mut pool = BouncePool::default();
    let mut refusal = io::Error::from(io::ErrorKind::InvalidInput);
    for alignment in DIRECT_ALIGNMENTS {
        let length = usize::try_from(alignment).unwrap_or_default();
        match direct.read_at(pool.take(length).bytes_mut(), 0) {
            Ok(_) => return Ok(alignment),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

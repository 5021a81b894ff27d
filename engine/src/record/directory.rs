// SPDX-License-Identifier: Apache-2.0
//! The directory of a VM's records, open, and files in it that are replaced as a whole.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use serde::Serialize;

/// More than any record of one line has.
pub(super) const LINE_BYTES_MAX: u64 = 4096;

/// Makes the directory, gives it to `owner` and opens it.
pub(super) fn open(path: &Path, owner: Option<(Uid, Gid)>) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let made = DirBuilder::new().mode(0o700).create(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let directory = File::open(path)?;
    if let Some((user, group)) = owner {
        fchown(&directory, Some(user), Some(group))?;
    }
    Ok(directory)
}

/// Replaces the record `name` of an open directory; on return the new one has reached the disk.
pub(super) fn replace(directory: &File, name: &str, record: &[u8]) -> io::Result<()> {
    let new = format!("{name}.new");
    // One that an engine of another user left behind could not be written to.
    let _ = unlinkat(directory, new.as_str(), UnlinkatFlags::NoRemoveDir);
    let how = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let mut file = File::from(openat(directory, new.as_str(), how, mode)?);
    file.write_all(record)?;
    file.sync_all()?;
    renameat(directory, new.as_str(), directory, name)?;
    directory.sync_all()
}

/// Removes the record `name` of an open directory; on return it is gone from the disk. There may be
/// none.
pub(super) fn remove(directory: &File, name: &str) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => directory.sync_all(),
        Err(error) => Err(error.into()),
    }
}

/// A record of one line, as bytes.
pub(super) fn line(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a record, of which no more than `bytes_max` count. The directory belongs to an unprivileged user: whatever lies there that is no
/// plain file is not followed, waited for or read without a bound.
pub(super) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

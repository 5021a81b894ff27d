// SPDX-License-Identifier: Apache-2.0
//! The lock on a disk's file: one writer, or any number of readers.
//!
//! It belongs to the open file (an "OFD lock", fcntl(2)), so it goes when this process does, however
//! it ends. QEMU's locks are of this kind, too, and conflict with it.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// What others may do with the file meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    Nothing,
    Reading,
}

/// Locks the whole file. False: another has a lock that conflicts.
pub(super) fn lock(file: &File, share: Share) -> io::Result<bool> {
    let kind = match share {
        Share::Nothing => libc::F_WRLCK,
        Share::Reading => libc::F_RDLCK,
    };
    match set(file, kind) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Unlocks the file. Closing it would do too, but not while a process that is being started still
/// has a copy of the descriptor.
pub(super) fn unlock(file: &File) {
    // There is nothing to do about an error: the file is closed next.
    let _ = set(file, libc::F_UNLCK);
}

fn set(file: &File, kind: libc::c_int) -> Result<(), Errno> {
    let whole_file = libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::EINVAL)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)).map(|_| ())
}

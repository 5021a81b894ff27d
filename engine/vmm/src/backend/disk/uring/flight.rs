// SPDX-License-Identifier: Apache-2.0
//! One request on its way through the kernel: what to ask for, and what an answer means.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, squeue, types};

use crate::backend::disk::bounce::{AlignedBuffer, BouncePool};
use crate::backend::disk::file::{Medium, Path, RawFile};
use crate::backend::disk::{DiskCompletion, DiskRequest, Unmap};

/// A request, and what the kernel needs to do it.
#[derive(Debug)]
pub(super) struct InFlight {
    tag: u32,
    request: DiskRequest,
    /// For direct I/O, what the kernel reads or writes instead of the request's buffer.
    aligned: Option<AlignedBuffer>,
}

/// How a request gets done.
pub(super) enum Way {
    /// There is nothing to do.
    Nothing,
    /// By this entry of the ring, which points into the request or its aligned buffer and names a
    /// descriptor of the file.
    Ring(squeue::Entry),
    /// By blocking calls.
    Slowly,
}

/// What became of a request in the ring.
pub(super) enum Outcome {
    Over(io::Result<()>),
    /// It was not done, or only in part: do it from its beginning by blocking calls.
    Again,
}

impl InFlight {
    pub(super) fn new(tag: u32, request: DiskRequest) -> Self {
        Self {
            tag,
            request,
            aligned: None,
        }
    }

    /// How to do this request; allots the aligned buffer.
    pub(super) fn way(&mut self, file: &RawFile, pool: &mut BouncePool) -> Way {
        match &self.request {
            DiskRequest::Read { .. } | DiskRequest::Write { .. } => self.transfer(file, pool),
            DiskRequest::Flush if file.read_only => Way::Nothing,
            DiskRequest::Flush => {
                let sync = opcode::Fsync::new(types::Fd(file.cached.as_raw_fd()));
                Way::Ring(sync.flags(types::FsyncFlags::DATASYNC).build())
            }
            DiskRequest::Discard { length: 0, .. } | DiskRequest::WriteZeroes { length: 0, .. } => {
                Way::Nothing
            }
            DiskRequest::Discard { .. } if !file.frees_space => Way::Nothing,
            DiskRequest::Discard { .. } if file.medium == Medium::BlockDevice => Way::Slowly,
            DiskRequest::Discard { offset, length } => {
                allocate(file, *offset, *length, libc::FALLOC_FL_PUNCH_HOLE)
            }
            DiskRequest::WriteZeroes {
                offset,
                length,
                unmap,
            } => {
                if *unmap == Unmap::Allowed && file.frees_space {
                    allocate(file, *offset, *length, libc::FALLOC_FL_PUNCH_HOLE)
                } else if file.zeroes_by_writing() {
                    Way::Slowly
                } else {
                    allocate(file, *offset, *length, libc::FALLOC_FL_ZERO_RANGE)
                }
            }
        }
    }

    fn transfer(&mut self, file: &RawFile, pool: &mut BouncePool) -> Way {
        let reads = matches!(self.request, DiskRequest::Read { .. });
        let (DiskRequest::Read { offset, buffer } | DiskRequest::Write { offset, buffer }) =
            &mut self.request
        else {
            return Way::Nothing;
        };
        if buffer.is_empty() {
            return Way::Nothing;
        }
        let Ok(length) = u32::try_from(buffer.len()) else {
            return Way::Slowly;
        };
        let (file, path) = file.for_transfer(*offset, buffer.len());
        let fd = types::Fd(file.as_raw_fd());
        let memory = match path {
            Path::Cached => buffer.as_mut_ptr(),
            Path::Direct => {
                let aligned = self.aligned.insert(pool.take(buffer.len()));
                if !reads {
                    aligned.bytes_mut().copy_from_slice(buffer);
                }
                aligned.bytes_mut().as_mut_ptr()
            }
        };
        Way::Ring(if reads {
            opcode::Read::new(fd, memory, length)
                .offset(*offset)
                .build()
        } else {
            opcode::Write::new(fd, memory, length)
                .offset(*offset)
                .build()
        })
    }

    /// What this result of the ring means.
    pub(super) fn outcome(&self, result: i32) -> Outcome {
        let expected = match &self.request {
            DiskRequest::Read { buffer, .. } | DiskRequest::Write { buffer, .. } => buffer.len(),
            DiskRequest::Flush | DiskRequest::Discard { .. } | DiskRequest::WriteZeroes { .. } => 0,
        };
        match usize::try_from(result) {
            Ok(count) if count == expected => Outcome::Over(Ok(())),
            Ok(_) => Outcome::Again,
            Err(_) => match result.saturating_neg() {
                libc::EAGAIN | libc::EINTR | libc::ECANCELED => Outcome::Again,
                // Another alignment, or another way to zero, is tried there.
                libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS => Outcome::Again,
                errno => Outcome::Over(Err(io::Error::from_raw_os_error(errno))),
            },
        }
    }

    /// The request is over: brings what was read directly to its buffer, and hands that back.
    pub(super) fn end(mut self, result: io::Result<()>, pool: &mut BouncePool) -> DiskCompletion {
        if let Some(aligned) = self.aligned.take() {
            if let DiskRequest::Read { buffer, .. } = &mut self.request
                && result.is_ok()
            {
                buffer.copy_from_slice(aligned.bytes());
            }
            pool.put(aligned);
        }
        DiskCompletion {
            tag: self.tag,
            result,
            buffer: self.request.into_buffer(),
        }
    }

    /// The request as it came in.
    pub(super) fn abort(mut self, pool: &mut BouncePool) -> (u32, DiskRequest) {
        if let Some(aligned) = self.aligned.take() {
            pool.put(aligned);
        }
        (self.tag, self.request)
    }
}

fn allocate(file: &RawFile, offset: u64, length: u64, mode: libc::c_int) -> Way {
    let entry = opcode::Fallocate::new(types::Fd(file.cached.as_raw_fd()), length)
        .offset(offset)
        .mode(mode | libc::FALLOC_FL_KEEP_SIZE);
    Way::Ring(entry.build())
}

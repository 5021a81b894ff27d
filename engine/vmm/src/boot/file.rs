// SPDX-License-Identifier: Apache-2.0
//! A kernel or initrd opened for loading: a regular file, or content in memory.
//!
//! Both are read by one code path, so that what a disk image holds is loaded, checked and refused
//! just as a file of the host is.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::BootError;
use crate::config::BootFile;

/// An open kernel or initrd, with what messages call it.
pub(super) struct OpenFile {
    what: &'static str,
    name: String,
    content: Content,
}

impl OpenFile {
    /// Opens `source`; `what` is "kernel" or "initrd".
    pub(super) fn open(what: &'static str, source: &BootFile) -> Result<Self, BootError> {
        let content = match source {
            BootFile::Path(path) => open(path).map(Content::File),
            BootFile::Bytes { bytes, .. } => Ok(Content::Bytes(Cursor::new(Arc::clone(bytes)))),
        };
        content
            .map(|content| Self {
                what,
                name: source.to_string(),
                content,
            })
            .map_err(|error| read_error(what, source.to_string(), error))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn length(&self) -> Result<u64, BootError> {
        match &self.content {
            Content::File(file) => file.metadata().map(|metadata| metadata.len()),
            Content::Bytes(cursor) => Ok(cursor.get_ref().len() as u64),
        }
        .map_err(|error| self.failed(error))
    }

    pub(super) fn content(&mut self) -> &mut Content {
        &mut self.content
    }

    /// Up to `length` bytes from `start`; fewer at the end.
    pub(super) fn head(&mut self, start: u64, length: u64) -> Result<Vec<u8>, BootError> {
        let mut head = Vec::new();
        self.content
            .seek(SeekFrom::Start(start))
            .and_then(|_| {
                Read::by_ref(&mut self.content)
                    .take(length)
                    .read_to_end(&mut head)
            })
            .map_err(|error| self.failed(error))?;
        Ok(head)
    }

    pub(super) fn failed(&self, source: io::Error) -> BootError {
        read_error(self.what, self.name.clone(), source)
    }
}

fn read_error(what: &'static str, file: String, source: io::Error) -> BootError {
    BootError::Read { what, file, source }
}

/// Opens a regular file; anything else could block or have no end.
fn open(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    File::open(path)
}

/// What an [`OpenFile`] is read from.
pub(super) enum Content {
    File(File),
    Bytes(Cursor<Arc<[u8]>>),
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Bytes(cursor) => cursor.read(buffer),
        }
    }
}

impl Seek for Content {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Bytes(cursor) => cursor.seek(to),
        }
    }
}

impl ReadVolatile for Content {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        match self {
            Self::File(file) => file.read_volatile(buffer),
            Self::Bytes(cursor) => cursor.read_volatile(buffer),
        }
    }
}

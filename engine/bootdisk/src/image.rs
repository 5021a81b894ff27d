// SPDX-License-Identifier: Apache-2.0
//! The bytes of a disk image: a regular file, a block device or, for tests and fuzzers, memory.
//!
//! Every read counts against a budget. Chains on the disk (of clusters, extents, tables) may lead in
//! circles; whoever follows one runs into the budget's end at the latest.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::rc::Rc;

use crate::error::BootDiskError;
use crate::limits::READ_BYTES_MAX;

/// A read-only disk image.
pub(crate) struct Image {
    name: String,
    content: Content,
    length: u64,
    budget: Cell<u64>,
}

enum Content {
    File(File),
    Bytes(Vec<u8>),
}

impl Image {
    pub(crate) fn open(path: &Path) -> Result<Self, BootDiskError> {
        let image = path.display().to_string();
        let failed = |source| BootDiskError::Open {
            image: image.clone(),
            source,
        };
        // Asked before opening: to open a FIFO could take for ever.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let found = if kind.is_dir() {
                "a directory"
            } else {
                "neither a file nor a block device"
            };
            return Err(BootDiskError::NotADisk {
                image,
                found: found.into(),
                remedy: "name the raw image file or the block device".into(),
            });
        }
        Self::of_file(path, &File::open(path).map_err(failed)?)
    }

    /// Of a file that is open; its position may change.
    pub(crate) fn of_file(path: &Path, file: &File) -> Result<Self, BootDiskError> {
        let image = path.display().to_string();
        let failed = |source| BootDiskError::Open {
            image: image.clone(),
            source,
        };
        let mut file = file.try_clone().map_err(failed)?;
        // A block device has no length in its metadata.
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self::new(image, Content::File(file), length))
    }

    pub(crate) fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        let length = bytes.len() as u64;
        Self::new(name.to_owned(), Content::Bytes(bytes), length)
    }

    fn new(name: String, content: Content, length: u64) -> Self {
        Self {
            name,
            content,
            length,
            budget: Cell::new(READ_BYTES_MAX),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Fills `buffer` from `offset`, or fails.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let size = buffer.len() as u64;
        let left = self.budget.get().checked_sub(size).ok_or_else(|| {
            io::Error::other("the disk leads in circles: more was read than all its parts need")
        })?;
        self.budget.set(left);
        match &self.content {
            Content::File(file) => file.read_exact_at(buffer, offset),
            Content::Bytes(bytes) => {
                let from = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..)?.get(..buffer.len()))
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(from);
                Ok(())
            }
        }
    }

    /// The part from `start` on, at most `length` bytes long.
    pub(crate) fn window(self: &Rc<Self>, start: u64, length: u64) -> Window {
        let start = start.min(self.length);
        Window {
            image: Rc::clone(self),
            start,
            length: length.min(self.length - start),
            position: 0,
        }
    }
}

/// A part of an image, read as if it were all there is.
#[derive(Clone)]
pub(crate) struct Window {
    image: Rc<Image>,
    start: u64,
    length: u64,
    position: u64,
}

impl Window {
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from `offset`, or fails.
    pub(crate) fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.image.read_exact_at(self.start + offset, buffer)
    }

    /// Up to `length` bytes from `offset`; fewer at the end.
    pub(crate) fn head(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let there = self.length.saturating_sub(offset);
        let length = usize::try_from(there).map_or(length, |there| there.min(length));
        let mut bytes = vec![0; length];
        self.read_exact_at(offset.min(self.length), &mut bytes)?;
        Ok(bytes)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let size = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let (buffer, _) = buffer.split_at_mut(size);
        self.read_exact_at(self.position.min(self.length), buffer)?;
        self.position += size as u64;
        Ok(size)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_its_part_and_nothing_else() {
        let image = Rc::new(Image::from_bytes("i", (0..100).collect()));
        let mut window = image.window(10, 5);
        let mut all = Vec::new();
        window.read_to_end(&mut all).unwrap();
        assert_eq!(all, [10, 11, 12, 13, 14]);
        assert!(window.read_exact_at(3, &mut [0; 3]).is_err());
        assert!(window.read_exact_at(u64::MAX, &mut [0; 3]).is_err());
        assert_eq!(window.head(3, 9).unwrap(), [13, 14]);
        assert_eq!(window.head(7, 9).unwrap(), []);
        assert_eq!(image.window(98, 5).length(), 2);
        assert_eq!(image.window(u64::MAX, u64::MAX).length(), 0);
    }

    #[test]
    fn reading_without_end_ends() {
        let image = Image::from_bytes("i", vec![0; 1 << 20]);
        let mut buffer = vec![0; 1 << 20];
        let reads = (0..).take_while(|_| image.read_exact_at(0, &mut buffer).is_ok());
        assert_eq!(reads.count() as u64, READ_BYTES_MAX >> 20);
    }

    #[test]
    fn what_is_no_disk_is_said() {
        let error = Image::open(Path::new("/tmp")).err().unwrap();
        assert!(error.to_string().contains("it is a directory"));
        let error = Image::open(Path::new("/nonexistent")).err().unwrap();
        assert!(error.to_string().contains("/nonexistent"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! ext2, ext3 and ext4 by `ext4-view`, with a journal that was not replayed taken into account.
//!
//! The crate is safe code and checks what it reads. Where it allocates or loops by a number of the
//! disk alone, that number is checked here first: group descriptors, the lengths of the journal, of
//! directories and of symbolic links, which is why paths are followed here. `guard` watches the trees
//! of extents.

use std::collections::VecDeque;

use ext4_view::{Ext4, Ext4Error};

use super::components;
use super::guard::Guarded;
use crate::error::Problem;
use crate::image::Window;
use crate::limits::{DIRECTORY_BYTES_MAX, DIRECTORY_NAMES_MAX, PATH_BYTES_MAX, SYMLINKS_MAX};

/// 32 TiB with 4 KiB blocks.
const GROUPS_MAX: u64 = 1 << 18;
/// What `mke2fs` makes at most by itself.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// Components of a path with all its links.
const STEPS_MAX: usize = 1000;

pub(super) struct Ext {
    fs: Ext4,
    uuid: String,
    label: String,
}

/// What a path leads to.
struct Found {
    /// Without links.
    path: String,
    directory: bool,
    bytes: u64,
}

impl Ext {
    pub(super) fn open(window: Window) -> Result<Self, Problem> {
        let absurd = |problem: &str| Problem::FileSystem(problem.to_owned());
        let superblock =
            Superblock::read(&window).ok_or_else(|| absurd("its superblock is absurd"))?;
        superblock.check(&window).map_err(absurd)?;
        let guarded = Guarded::new(window, superblock.block_bytes);
        let fs = Ext4::load(Box::new(guarded)).map_err(|error| problem(&error))?;
        Ok(Self {
            uuid: fs.uuid().to_string(),
            label: fs.label().to_str().unwrap_or_default().to_owned(),
            fs,
        })
    }

    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Problem> {
        let Some(found) = self.resolve(path)? else {
            return Ok(None);
        };
        if found.directory {
            return Err(Problem::NotAFile);
        }
        if found.bytes > limit {
            return Err(Problem::TooLarge { limit });
        }
        let mut file = self
            .fs
            .open(found.path.as_str())
            .map_err(|error| problem(&error))?;
        let mut content = vec![0; usize::try_from(found.bytes).unwrap_or(0)];
        let mut rest = content.as_mut_slice();
        while !rest.is_empty() {
            let count = file.read_bytes(rest).map_err(|error| problem(&error))?;
            if count == 0 {
                return Err(Problem::FileSystem("a file is shorter than it says".into()));
            }
            (_, rest) = rest.split_at_mut(count);
        }
        Ok(Some(content))
    }

    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, Problem> {
        let found = self.resolve(path)?;
        let Some(found) = found.filter(|found| found.directory) else {
            return Ok(Vec::new());
        };
        let entries = self
            .fs
            .read_dir(found.path.as_str())
            .map_err(|error| problem(&error))?;
        let mut names = Vec::new();
        for entry in entries.take(DIRECTORY_NAMES_MAX) {
            let entry = entry.map_err(|error| problem(&error))?;
            if let Ok(name) = entry.file_name().as_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn is_file(&self, path: &str) -> Result<bool, Problem> {
        Ok(self.resolve(path)?.is_some_and(|found| !found.directory))
    }

    pub(super) fn is_directory(&self, path: &str) -> Result<bool, Problem> {
        Ok(self.resolve(path)?.is_some_and(|found| found.directory))
    }

    /// Follows a path with its symbolic links, each looked at before it is read.
    fn resolve(&self, path: &str) -> Result<Option<Found>, Problem> {
        let mut todo: VecDeque<String> = components(path).map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        let mut end = self.look("/")?;
        for _ in 0..STEPS_MAX {
            let Some(part) = todo.pop_front() else {
                return Ok(end);
            };
            if part == ".." {
                done.pop();
            } else {
                done.push(part);
            }
            let here = format!("/{}", done.join("/"));
            if here.len() > PATH_BYTES_MAX {
                return Ok(None);
            }
            if let Some(target) = self.link(&here)? {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(Problem::SymlinkLoop);
                }
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                for part in components(&target).rev() {
                    todo.push_front(part.to_owned());
                }
                end = self.look(&format!("/{}", done.join("/")))?;
                continue;
            }
            end = self.look(&here)?;
            if end.is_none() {
                return Ok(None);
            }
        }
        Err(Problem::SymlinkLoop)
    }

    /// What a path without links leads to.
    fn look(&self, path: &str) -> Result<Option<Found>, Problem> {
        let found = absent(self.fs.symlink_metadata(path))?;
        // The crate looks through all of a directory for what is next on the path.
        if found
            .as_ref()
            .is_some_and(|found| found.is_dir() && found.len() > DIRECTORY_BYTES_MAX)
        {
            return Err(Problem::FileSystem("a directory's size is absurd".into()));
        }
        Ok(found.map(|metadata| Found {
            path: path.to_owned(),
            directory: metadata.is_dir(),
            bytes: metadata.len(),
        }))
    }

    /// The target, if the last part of the path is a symbolic link.
    fn link(&self, path: &str) -> Result<Option<String>, Problem> {
        let metadata = absent(self.fs.symlink_metadata(path))?;
        let Some(metadata) = metadata.filter(ext4_view::Metadata::is_symlink) else {
            return Ok(None);
        };
        if metadata.len() > PATH_BYTES_MAX as u64 {
            return Err(Problem::FileSystem("a symbolic link is absurd".into()));
        }
        let target = self.fs.read_link(path).map_err(|error| problem(&error))?;
        let target = target
            .to_str()
            .map_err(|_| Problem::FileSystem("a symbolic link is no text".into()))?;
        Ok(Some(target.to_owned()))
    }
}

/// Tells "not there" from other errors.
fn absent<T>(result: Result<T, Ext4Error>) -> Result<Option<T>, Problem> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::MalformedPath) => Ok(None),
        Err(error) => Err(problem(&error)),
    }
}

fn problem(error: &Ext4Error) -> Problem {
    match error {
        Ext4Error::IsASpecialFile | Ext4Error::IsADirectory => Problem::NotAFile,
        error => Problem::FileSystem(error.to_string()),
    }
}

/// The numbers that are checked before the crate sees them (Linux' `fs/ext4/ext4.h`).
struct Superblock {
    bytes: Vec<u8>,
    block_bytes: u64,
}

impl Superblock {
    const START: u64 = 1024;

    fn read(window: &Window) -> Option<Self> {
        let bytes = window.head(Self::START, 1024).ok()?;
        let shift = u32_at(&bytes, 0x18).filter(|shift| *shift <= 6)?;
        Some(Self {
            bytes,
            block_bytes: 1024 << shift,
        })
    }

    fn u32(&self, at: usize) -> u64 {
        u32_at(&self.bytes, at).unwrap_or(0).into()
    }

    fn check(&self, window: &Window) -> Result<(), &'static str> {
        let blocks = self.u32(0x4) | self.u32(0x150) << 32;
        let groups = blocks.checked_div(self.u32(0x20));
        if groups.is_none_or(|groups| groups > GROUPS_MAX) {
            return Err("its superblock tells an absurd number of block groups");
        }
        let needs_recovery = self.u32(0x60) & 0x4 != 0;
        if needs_recovery
            && self
                .journal_bytes(window)
                .is_none_or(|size| size > JOURNAL_BYTES_MAX)
        {
            return Err("its journal must be replayed, and is absurd or larger than 1 GiB");
        }
        Ok(())
    }

    /// The length of the journal, which is inode 8, in the first group.
    fn journal_bytes(&self, window: &Window) -> Option<u64> {
        const JOURNAL_INODE: u64 = 8;
        if self.u32(0xe0) != JOURNAL_INODE {
            return None;
        }
        let is_64_bit = self.u32(0x60) & 0x80 != 0;
        // In the block after the superblock's.
        let first_descriptor = match self.block_bytes {
            1024 => 2048,
            bytes => bytes,
        };
        let descriptor = window.head(first_descriptor, 64).ok()?;
        let high = if is_64_bit {
            u32_at(&descriptor, 0x28)?
        } else {
            0
        };
        let table = u64::from(u32_at(&descriptor, 0x8)?) | u64::from(high) << 32;
        let inode_bytes = match self.u32(0x4c) {
            0 => 128,
            _ => self.u32(0x58) & 0xffff,
        };
        let start = table
            .checked_mul(self.block_bytes)?
            .checked_add((JOURNAL_INODE - 1) * inode_bytes)?;
        let inode = window.head(start, 128).ok()?;
        Some(u64::from(u32_at(&inode, 0x4)?) | u64::from(u32_at(&inode, 0x6c)?) << 32)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

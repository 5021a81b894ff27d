// SPDX-License-Identifier: Apache-2.0
//! FAT12, FAT16 and FAT32 by `fat-core`, names compared without case as firmware does.
//!
//! The crate never panics on what it reads, but follows chains of clusters as long as the boot
//! sector says a file system is: so that is checked here, and the length of a directory too.

use fat::{FatFs, FatVariant, FileId, Geometry, Node};

use super::components;
use crate::error::Problem;
use crate::image::Window;

/// 8 GiB with 4 KiB clusters; an EFI system partition has less than one.
const CLUSTERS_MAX: u32 = 2 << 20;
/// The crate keeps the table in memory; this is what so many clusters need.
const TABLE_BYTES_MAX: u64 = 8 << 20;
/// The specification's limit of a directory.
const DIRECTORY_BYTES_MAX: u64 = 2 << 20;

pub(super) struct Fat {
    fs: FatFs<Window>,
    uuid: String,
    label: String,
}

impl Fat {
    pub(super) fn open(window: Window) -> Result<Self, Problem> {
        let boot = window
            .head(0, 512)
            .map_err(|error| Problem::FileSystem(error.to_string()))?;
        let geometry = Geometry::parse(&boot).map_err(|error| problem(&error))?;
        let table = u64::from(geometry.fat_size_sectors) * u64::from(geometry.bytes_per_sector);
        if geometry.count_of_clusters > CLUSTERS_MAX || table > TABLE_BYTES_MAX {
            let text = "it has more clusters than any /boot needs".to_owned();
            return Err(Problem::FileSystem(text));
        }
        // Where the extended part of the boot sector has serial number and label.
        let serial = match geometry.variant {
            FatVariant::Fat32 => 0x43,
            _ => 0x27,
        };
        let fs = FatFs::open(window).map_err(|error| problem(&error))?;
        Ok(Self {
            fs,
            uuid: uuid(&boot, serial),
            label: label(&boot, serial + 4),
        })
    }

    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Problem> {
        let Some(node) = self.resolve(path)? else {
            return Ok(None);
        };
        if node.is_dir {
            return Err(Problem::NotAFile);
        }
        if node.size > limit {
            return Err(Problem::TooLarge { limit });
        }
        let mut content = vec![0; usize::try_from(node.size).unwrap_or(0)];
        let count = self
            .fs
            .read_at(node.id, 0, &mut content)
            .map_err(|error| problem(&error))?;
        if count < content.len() {
            return Err(Problem::FileSystem("a file is shorter than it says".into()));
        }
        Ok(Some(content))
    }

    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, Problem> {
        match self.resolve(path)? {
            Some(node) if node.is_dir => {
                let nodes = self.children(&node)?;
                Ok(nodes.into_iter().map(|node| node.name).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    pub(super) fn is_file(&self, path: &str) -> Result<bool, Problem> {
        Ok(self.resolve(path)?.is_some_and(|node| !node.is_dir))
    }

    pub(super) fn is_directory(&self, path: &str) -> Result<bool, Problem> {
        Ok(self.resolve(path)?.is_some_and(|node| node.is_dir))
    }

    fn resolve(&self, path: &str) -> Result<Option<Node>, Problem> {
        let root = self
            .fs
            .meta(FileId::Root)
            .map_err(|error| problem(&error))?;
        let mut trail = vec![root];
        for part in components(path) {
            if part == ".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let Some(here) = trail.last().filter(|node| node.is_dir) else {
                return Ok(None);
            };
            let same = |node: &Node| node.name.eq_ignore_ascii_case(part);
            let Some(child) = self.children(here)?.into_iter().find(same) else {
                return Ok(None);
            };
            trail.push(child);
        }
        Ok(trail.pop())
    }

    fn children(&self, directory: &Node) -> Result<Vec<Node>, Problem> {
        let runs = self
            .fs
            .runs(directory.id)
            .map_err(|error| problem(&error))?;
        let bytes: u64 = runs.iter().map(|(_, length)| length).sum();
        // The specification gives directories no size; one that has it could hide a longer chain.
        if bytes > DIRECTORY_BYTES_MAX || directory.size != 0 {
            return Err(Problem::FileSystem("a directory's size is absurd".into()));
        }
        let mut nodes = self
            .fs
            .read_dir(directory.id)
            .map_err(|error| problem(&error))?;
        nodes.retain(|node| !node.is_deleted && !node.is_volume_label);
        Ok(nodes)
    }
}

fn uuid(boot: &[u8], at: usize) -> String {
    match boot.get(at..at + 4) {
        Some([a, b, c, d]) => format!("{d:02X}{c:02X}-{b:02X}{a:02X}"),
        _ => String::new(),
    }
}

fn label(boot: &[u8], at: usize) -> String {
    let bytes = boot.get(at..at + 11).unwrap_or_default();
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

fn problem(error: &fat::FatError) -> Problem {
    Problem::FileSystem(error.to_string())
}

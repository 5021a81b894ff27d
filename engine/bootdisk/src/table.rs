// SPDX-License-Identifier: Apache-2.0
//! The disk's partitions: GPT, MBR, or none.
//!
//! The layouts are read here, with zerocopy and a CRC, rather than by a crate: `gpt`, `gptman`,
//! `mbrman` and `bootsector` were read, and each panics on, or allocates by, fields that the guest
//! writes (docs/boot.md). A partition that does not lie on the disk is left out and noted.

mod gpt;
mod mbr;

use std::io;
use std::rc::Rc;

use crate::error::{BootDiskError, Looked};
use crate::image::{Image, Window};
use crate::magic::{self, Contents};

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Counted from 1, as Linux does.
    pub(crate) number: u32,
    /// In bytes from the start of the disk.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// What it is for, by its type.
    pub(crate) purpose: Purpose,
    /// As Linux' `PARTUUID=`.
    pub(crate) partuuid: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// "Root partition" for x86-64 of the Discoverable Partitions Specification.
    Root,
    Other,
}

/// How the disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Gpt,
    Mbr,
}

impl Scheme {
    /// The scheme's name in GRUB's device names.
    pub(crate) fn grub_name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "msdos",
        }
    }
}

/// A partition table, or none.
pub(crate) type Table = Option<(Scheme, Vec<Partition>)>;

/// Reads the table of the image; `None` says that the whole disk is one file system, or nothing.
pub(crate) fn read(image: &Rc<Image>, looked: &mut Looked) -> Result<Table, BootDiskError> {
    let whole = image.window(0, u64::MAX);
    let failed = |source| BootDiskError::Read {
        image: image.name().to_owned(),
        source,
    };
    let damaged = |problem| BootDiskError::Table {
        image: image.name().to_owned(),
        problem,
    };
    if let Some(found) = gpt::read(&whole).map_err(failed)? {
        let partitions = found.map_err(damaged)?;
        return Ok(Some((Scheme::Gpt, on_disk(partitions, &whole, looked))));
    }
    let Some(record) = mbr::read(&whole).map_err(failed)? else {
        return Ok(None);
    };
    let partitions = on_disk(record, &whole, looked);
    // Many a file system begins with a boot sector, which has the signature of an MBR.
    if partitions.is_empty() && magic::contents(&whole).map_err(failed)? != Contents::Unknown {
        return Ok(None);
    }
    Ok(Some((Scheme::Mbr, partitions)))
}

fn on_disk(partitions: Vec<Partition>, whole: &Window, looked: &mut Looked) -> Vec<Partition> {
    partitions
        .into_iter()
        .filter(|partition| {
            let end = partition.start.checked_add(partition.bytes);
            let lies_on_it = end.is_some_and(|end| end <= whole.length());
            if !lies_on_it {
                looked.note(format!(
                    "partition {} reaches beyond the end of the disk (is the image cut short?)",
                    partition.number
                ));
            }
            lies_on_it
        })
        .collect()
}

/// A table as read: outer error for the disk, inner text for what is wrong with the table.
type Found = io::Result<Option<Result<Vec<Partition>, String>>>;

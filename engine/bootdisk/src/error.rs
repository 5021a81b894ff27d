// SPDX-License-Identifier: Apache-2.0
//! Why an image cannot be booted from, said with the place, the path and the remedy.

use std::fmt;
use std::io;

use thiserror::Error;

/// What helps whatever is wrong with a disk.
const REMEDY: &str = "give kernel, initrd and cmdline in [boot] of the VM's description instead, \
                      or put an ext4 or FAT /boot on the disk";

/// A text of the guest, such that a message with it cannot act on a terminal or fill a log.
pub(crate) fn printable(text: &str) -> String {
    const CHARACTERS_MAX: usize = 1024;
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(CHARACTERS_MAX).map(plain).collect()
}

/// A disk image, or a partition of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The image's path or name.
    pub image: String,
    /// The partition's number, counted from 1; none for the whole disk.
    pub partition: Option<u32>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(number) => write!(f, "partition {number} of {}", self.image),
            None => f.write_str(&self.image),
        }
    }
}

/// What was looked at in vain, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked(Vec<String>);

impl Looked {
    const LINES_MAX: usize = 64;

    pub(crate) fn note(&mut self, line: impl AsRef<str>) {
        if self.0.len() < Self::LINES_MAX {
            self.0.push(printable(line.as_ref()));
        }
    }

    /// The single findings.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// What is wrong with one file of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// Something names a file that is not there.
    #[error("it is not there, though {named_by} names it")]
    Missing {
        /// The boot entry or configuration that names it.
        named_by: String,
    },
    /// The file is larger than anything sensible.
    #[error("it is larger than the {limit} bytes that are read of such a file")]
    TooLarge {
        /// The bound in bytes.
        limit: u64,
    },
    /// The path leads to a directory or a device.
    #[error("it is no regular file")]
    NotAFile,
    /// The path has too many symbolic links.
    #[error("it lies behind too many symbolic links")]
    SymlinkLoop,
    /// The file system cannot be read here.
    #[error("the file system cannot be read there: {0}")]
    FileSystem(String),
    /// A configuration file has something that cannot be understood.
    #[error("line {line}: {what}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is there.
        what: String,
    },
    /// The configuration is understood and asks for what is not supported.
    #[error("{0}")]
    Unsupported(String),
}

impl Problem {
    /// The same with the guest's texts made harmless.
    pub(crate) fn printable(self) -> Self {
        match self {
            Self::Missing { named_by } => Self::Missing {
                named_by: printable(&named_by),
            },
            Self::FileSystem(text) => Self::FileSystem(printable(&text)),
            Self::Syntax { line, what } => Self::Syntax {
                line,
                what: printable(&what),
            },
            Self::Unsupported(text) => Self::Unsupported(printable(&text)),
            other => other,
        }
    }
}

/// No kernel could be taken from the disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootDiskError {
    /// The image cannot be opened.
    #[error("Cannot open the disk {image}: check the path and its permissions")]
    Open {
        /// The path.
        image: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image cannot be read.
    #[error("Cannot read the disk {image}")]
    Read {
        /// The path.
        image: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is something else than a raw disk.
    #[error("{image} is no raw disk image, it is {found}: {remedy}")]
    NotADisk {
        /// The path.
        image: String,
        /// What it seems to be.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// The partition table cannot be trusted.
    #[error(
        "The partition table of {image} is damaged: {problem}. Repair it (sgdisk --verify shows \
         more), or give kernel, initrd and cmdline in [boot] of the VM's description"
    )]
    Table {
        /// The path.
        image: String,
        /// What is wrong.
        problem: String,
    },
    /// There is a configuration, and it cannot be used.
    #[error("Cannot boot from {place}: {path}: {problem}. Correct it in the guest, or {REMEDY}")]
    Unusable {
        /// The partition.
        place: Place,
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// Nothing that could be booted is there.
    #[error("Nothing to boot was found on {image}: {REMEDY}. Looked at: {looked}")]
    Nothing {
        /// The path.
        image: String,
        /// Where and what.
        looked: Looked,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_place_path_and_remedy() {
        let error = BootDiskError::Unusable {
            place: Place {
                image: "disk.raw".into(),
                partition: Some(2),
            },
            path: "/boot/vmlinuz-6.1".into(),
            problem: Problem::Missing {
                named_by: "debian.conf".into(),
            },
        };
        let text = error.to_string();
        assert!(text.starts_with(
            "Cannot boot from partition 2 of disk.raw: /boot/vmlinuz-6.1: it is not there, though \
             debian.conf names it. Correct it"
        ));
        assert!(text.contains("in [boot]"));
    }
}

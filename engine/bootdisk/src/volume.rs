// SPDX-License-Identifier: Apache-2.0
//! One file system of the disk: ext4 or FAT, read by the same few calls.
//!
//! Paths are absolute from the file system's root, with `/`. What is not there is `None`, an empty
//! list or `false`; an error is a file system that cannot be read.

mod ext;
mod fat;
mod guard;

use crate::error::{BootDiskError, Place, Problem, printable};
use crate::image::Window;
use crate::limits::CONFIG_BYTES_MAX;
use crate::magic::Contents;
use crate::table::{Partition, Scheme};

/// A file system, and where it is.
pub(crate) struct Volume {
    place: Place,
    partition: Option<(Scheme, Partition)>,
    files: Files,
}

enum Files {
    Ext(ext::Ext),
    Fat(fat::Fat),
    #[cfg(test)]
    Memory(memory::Memory),
}

/// Runs the same call on whatever the file system is.
macro_rules! files {
    ($self:ident, $files:ident => $call:expr) => {
        match &$self.files {
            Files::Ext($files) => $call,
            Files::Fat($files) => $call,
            #[cfg(test)]
            Files::Memory($files) => $call,
        }
    };
}

impl Volume {
    /// Opens the file system in `window`; `None` if there is none that can be read.
    pub(crate) fn open(
        place: Place,
        partition: Option<(Scheme, Partition)>,
        contents: Contents,
        window: Window,
    ) -> Option<Result<Self, Problem>> {
        let files = match contents {
            Contents::Ext => ext::Ext::open(window).map(Files::Ext),
            Contents::Fat => fat::Fat::open(window).map(Files::Fat),
            Contents::Other(_) | Contents::Unknown => return None,
        };
        Some(files.map(|files| Self {
            place,
            partition,
            files,
        }))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// What kind of file system it is, for a person.
    pub(crate) fn kind(&self) -> &'static str {
        match self.files {
            Files::Ext(_) => "ext4",
            Files::Fat(_) => "FAT",
            #[cfg(test)]
            Files::Memory(_) => "memory",
        }
    }

    /// The file system's identification, as `UUID=` and GRUB's `search --fs-uuid` have it.
    pub(crate) fn uuid(&self) -> &str {
        files!(self, files => files.uuid())
    }

    pub(crate) fn label(&self) -> &str {
        files!(self, files => files.label())
    }

    pub(crate) fn partuuid(&self) -> Option<&str> {
        let (_, partition) = self.partition.as_ref()?;
        Some(&partition.partuuid)
    }

    /// Whether GRUB's device name (`hd0,gpt2`, `hd0,msdos1`, `hd0,2`, `hd0`) means this one.
    pub(crate) fn is_grub_device(&self, name: &str) -> bool {
        name == self.grub_device()
            || self.partition.as_ref().is_some_and(|(_, partition)| {
                name.strip_prefix("hd0,") == Some(&partition.number.to_string())
            })
    }

    pub(crate) fn grub_device(&self) -> String {
        match &self.partition {
            Some((scheme, partition)) => {
                format!("hd0,{}{}", scheme.grub_name(), partition.number)
            }
            None => "hd0".to_owned(),
        }
    }

    /// Whether this may hold a Linux root directory: only there are its symbolic links and owners.
    pub(crate) fn is_for_linux(&self) -> bool {
        !matches!(self.files, Files::Fat(_))
    }

    /// The content of a file of at most `limit` bytes.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, BootDiskError> {
        files!(self, files => files.read(path, limit)).map_err(|problem| self.error(path, problem))
    }

    /// A configuration file as text; what is no UTF-8 is replaced.
    pub(crate) fn text(&self, path: &str) -> Result<Option<String>, BootDiskError> {
        self.text_of(path, CONFIG_BYTES_MAX)
    }

    /// The same of at most `limit` bytes.
    pub(crate) fn text_of(&self, path: &str, limit: u64) -> Result<Option<String>, BootDiskError> {
        let bytes = self.read(path, limit)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The names in a directory, sorted, without those that are no UTF-8.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<String>, BootDiskError> {
        let mut names =
            files!(self, files => files.list(path)).map_err(|problem| self.error(path, problem))?;
        names.retain(|name| name != "." && name != "..");
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn is_file(&self, path: &str) -> Result<bool, BootDiskError> {
        files!(self, files => files.is_file(path)).map_err(|problem| self.error(path, problem))
    }

    pub(crate) fn is_directory(&self, path: &str) -> Result<bool, BootDiskError> {
        files!(self, files => files.is_directory(path)).map_err(|problem| self.error(path, problem))
    }

    /// The error of `path` here.
    pub(crate) fn error(&self, path: &str, problem: Problem) -> BootDiskError {
        BootDiskError::Unusable {
            place: self.place.clone(),
            path: printable(path),
            problem: problem.printable(),
        }
    }
}

/// The parts of a path, without empty ones and dots, `..` left to the reader.
fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
}

/// A directory and a name, or a path from the root, as one path.
pub(crate) fn join(directory: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", directory.trim_end_matches('/'))
}

/// The directory that a file is in.
pub(crate) fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

#[cfg(test)]
pub(crate) mod memory {
    //! Files in memory, for the tests of what reads configurations.

    use std::collections::BTreeMap;

    use super::*;

    pub(crate) struct Memory {
        pub(crate) uuid: String,
        pub(crate) label: String,
        pub(crate) files: BTreeMap<String, Vec<u8>>,
    }

    impl Memory {
        pub(crate) fn uuid(&self) -> &str {
            &self.uuid
        }

        pub(crate) fn label(&self) -> &str {
            &self.label
        }

        fn clean(path: &str) -> String {
            components(path).map(|part| format!("/{part}")).collect()
        }

        pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Problem> {
            match self.files.get(&Self::clean(path)) {
                Some(bytes) if bytes.len() as u64 > limit => Err(Problem::TooLarge { limit }),
                found => Ok(found.cloned()),
            }
        }

        pub(crate) fn list(&self, path: &str) -> Result<Vec<String>, Problem> {
            let prefix = format!("{}/", Self::clean(path));
            let mut names: Vec<String> = self
                .files
                .keys()
                .filter_map(|name| name.strip_prefix(&prefix))
                .filter_map(|rest| rest.split('/').next())
                .map(str::to_owned)
                .collect();
            names.dedup();
            Ok(names)
        }

        pub(crate) fn is_file(&self, path: &str) -> Result<bool, Problem> {
            Ok(self.files.contains_key(&Self::clean(path)))
        }

        pub(crate) fn is_directory(&self, path: &str) -> Result<bool, Problem> {
            Ok(!self.list(path)?.is_empty())
        }
    }

    impl Volume {
        /// Partition `number` (the whole disk for 0) of a GPT, with these files.
        pub(crate) fn in_memory(number: u32, uuid: &str, files: &[(&str, &str)]) -> Self {
            let partition = Partition {
                number,
                start: 0,
                bytes: 0,
                purpose: crate::table::Purpose::Other,
                partuuid: format!("partuuid-{number}"),
            };
            Self {
                place: Place {
                    image: "disk.raw".into(),
                    partition: (number > 0).then_some(number),
                },
                partition: (number > 0).then_some((Scheme::Gpt, partition)),
                files: Files::Memory(Memory {
                    uuid: uuid.into(),
                    label: format!("label-{number}"),
                    files: files
                        .iter()
                        .map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()))
                        .collect(),
                }),
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The records of a replica on disk: which right to run it last had, what its disks are, and where
//! they may differ from the other replica's.
//!
//! The licence is written durably before the right is used (design: "Licence kind on disk first"). After a
//! crash of everything it tells whether this replica may have been the last one that let outputs
//! out. The file is replaced atomically; one that cannot be read is an error, never "no record".
//!
//! Each VM's record has a directory of its own, which belongs to the user the engine becomes: it can
//! replace the record, and touch nothing else in `/var/lib/kemari`, not even see it. The directory is
//! opened before that and used by its descriptor. Engines before the sandbox kept the record as
//! `NAME.licence` in `/var/lib/kemari`; that one counts until it is moved, at the next start.

mod changes;
mod directory;
mod disks;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use kemari_api::{Generation, VmName, place};
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use changes::{ChangeRecordFile, FoundChanges};
pub use disks::{DiskRecord, DiskRecordFile, DiskRecordState};

/// The record's name in its directory.
const NAME: &str = "licence";

/// The kind of right a replica had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Outputs left at once.
    Solo,
    /// Only committed outputs left.
    Paired,
    /// The right went on to a newer generation.
    Outdated,
    /// The guest was saved to a snapshot and stopped; its disks go with that snapshot.
    Saved,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Solo => "solo",
            Self::Paired => "paired",
            Self::Outdated => "outdated",
            Self::Saved => "saved",
        })
    }
}

/// One line of JSON in `/var/lib/kemari/replicas/NAME/licence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The generation of the right.
    pub generation: Generation,
    /// Its kind.
    pub kind: Kind,
}

/// The record could not be read or written.
#[derive(Debug, Error)]
#[error("Cannot {what} the record {}: {cause}; check the file system of {}",
    path.display(), place::state_dir().display())]
pub struct RecordError {
    what: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// The file of one VM's record.
#[derive(Debug)]
pub struct LicenceFile {
    directory: PathBuf,
    /// Where it was before engines were sandboxed.
    old_path: PathBuf,
    opened: Option<File>,
}

impl LicenceFile {
    /// The file for this VM on this node.
    pub fn of(vm: &VmName) -> Self {
        Self::in_state_dir(&place::state_dir(), vm)
    }

    /// The file for this VM below this directory.
    pub fn in_state_dir(state_dir: &Path, vm: &VmName) -> Self {
        Self {
            directory: state_dir.join("replicas").join(vm.as_str()),
            old_path: state_dir.join(format!("{vm}.licence")),
            opened: None,
        }
    }

    /// Makes the directory, gives it to `owner` and keeps it open for [`Self::write`]; moves a record
    /// of an older engine there.
    pub fn open(mut self, owner: Option<(Uid, Gid)>) -> Result<Self, RecordError> {
        self.opened = Some(self.prepare(owner).map_err(|e| self.error("prepare", e))?);
        Ok(self)
    }

    fn prepare(&self, owner: Option<(Uid, Gid)>) -> io::Result<File> {
        let directory = directory::open(&self.directory, owner)?;
        if self.old_path.exists() && !self.path().exists() {
            fs::rename(&self.old_path, self.path())?;
            directory.sync_all()?;
        }
        Ok(directory)
    }

    /// The directory it is in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// What it says; `None` if this replica never had a right to run.
    pub fn read(&self) -> Result<Option<Record>, RecordError> {
        for path in [self.path(), self.old_path.clone()] {
            match directory::read(&path, directory::LINE_BYTES_MAX) {
                Ok(bytes) => {
                    let record = serde_json::from_slice(&bytes);
                    return record
                        .map(Some)
                        .map_err(|error| Self::error_at("read", path, error.into()));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Self::error_at("read", path, error)),
            }
        }
        Ok(None)
    }

    /// Replaces it; on return the new record has reached the disk.
    pub fn write(&self, record: Record) -> Result<(), RecordError> {
        self.replace(record)
            .map_err(|error| self.error("write", error))
    }

    fn replace(&self, record: Record) -> io::Result<()> {
        let not_open = || io::Error::other("its directory is not open");
        let directory = self.opened.as_ref().ok_or_else(not_open)?;
        directory::replace(directory, NAME, &directory::line(&record)?)
    }

    fn error(&self, what: &'static str, cause: io::Error) -> RecordError {
        Self::error_at(what, self.path(), cause)
    }

    fn error_at(what: &'static str, path: PathBuf, cause: io::Error) -> RecordError {
        RecordError { what, path, cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_a_damaged_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = LicenceFile::in_state_dir(directory.path(), &"vm".parse().unwrap());
        assert_eq!(file.read().unwrap(), None);
        let file = file.open(None).unwrap();
        for generation in [3, 4] {
            let record = Record {
                generation: Generation::new(generation),
                kind: Kind::Paired,
            };
            file.write(record).unwrap();
            assert_eq!(file.read().unwrap(), Some(record));
        }
        fs::write(file.path(), b"{\"generation\":3").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("vm/licence"));
    }

    #[test]
    fn a_record_of_an_older_engine_counts_and_is_moved() {
        let directory = tempfile::tempdir().unwrap();
        let file = LicenceFile::in_state_dir(directory.path(), &"vm".parse().unwrap());
        fs::write(&file.old_path, b"{\"generation\":3,\"kind\":\"paired\"}\n").unwrap();
        let record = Record {
            generation: Generation::new(3),
            kind: Kind::Paired,
        };
        assert_eq!(file.read().unwrap(), Some(record));
        let file = file.open(None).unwrap();
        assert_eq!(file.read().unwrap(), Some(record));
        assert!(!file.old_path.exists());
    }

    #[test]
    fn a_link_is_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let file = LicenceFile::in_state_dir(directory.path(), &"vm".parse().unwrap());
        let file = file.open(None).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", file.path()).unwrap();
        assert!(file.read().is_err());
    }
}

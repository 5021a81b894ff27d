// SPDX-License-Identifier: Apache-2.0
//! The licence on disk: which right to run this replica last had.
//!
//! It is written durably before the right is used (design: "Licence kind on disk first"). After a
//! crash of everything it tells whether this replica may have been the last one that let outputs
//! out. The file is replaced atomically; one that cannot be read is an error, never "no record".

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use kemari_api::{Generation, VmName, place};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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

/// One line of JSON in `/var/lib/kemari/NAME.licence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The generation of the right.
    pub generation: Generation,
    /// Its kind.
    pub kind: Kind,
}

/// The record could not be read or written.
#[derive(Debug, Error)]
#[error("Cannot {what} the licence record {}: {cause}; check the file system of {}",
    path.display(), place::state_dir().display())]
pub struct RecordError {
    what: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// The file of one VM's record.
#[derive(Debug)]
pub struct LicenceFile {
    path: PathBuf,
}

impl LicenceFile {
    /// The file for this VM on this node.
    pub fn of(vm: &VmName) -> Self {
        Self {
            path: place::state_dir().join(format!("{vm}.licence")),
        }
    }

    /// What it says; `None` if this replica never had a right to run.
    pub fn read(&self) -> Result<Option<Record>, RecordError> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| self.error("read", error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("read", error)),
        }
    }

    /// Replaces it; on return the new record has reached the disk.
    pub fn write(&self, record: Record) -> Result<(), RecordError> {
        self.replace(record)
            .map_err(|error| self.error("write", error))
    }

    fn replace(&self, record: Record) -> io::Result<()> {
        let directory = place::state_dir();
        fs::create_dir_all(&directory)?;
        let new = self.path.with_extension("licence.new");
        let mut file = File::create(&new)?;
        serde_json::to_writer(&mut file, &record)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(&directory)?.sync_all()
    }

    fn error(&self, what: &'static str, cause: io::Error) -> RecordError {
        RecordError {
            what,
            path: self.path.clone(),
            cause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_a_damaged_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = LicenceFile {
            path: directory.path().join("vm.licence"),
        };
        assert_eq!(file.read().unwrap(), None);
        fs::write(&file.path, b"{\"generation\":3,\"kind\":\"paired\"}\n").unwrap();
        let record = Record {
            generation: Generation::new(3),
            kind: Kind::Paired,
        };
        assert_eq!(file.read().unwrap(), Some(record));
        fs::write(&file.path, b"{\"generation\":3").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("vm.licence"));
    }
}

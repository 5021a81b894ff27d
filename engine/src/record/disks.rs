// SPDX-License-Identifier: Apache-2.0
//! What a passive replica has made of this node's disks: the file `disks` beside the licence record.
//!
//! It counts while it is of no older generation than the licence: then the disks are not what this
//! node wrote when it last ran the guest.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use kemari_api::Generation;
use kemari_api::replica::DiskState;
use serde::{Deserialize, Serialize};

use super::{LicenceFile, RecordError, directory};

const NAME: &str = "disks";

/// What the disks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskRecordState {
    /// Partly overwritten: the content makes no sense.
    Incomplete,
    /// A copy of the other replica's, as of some commit.
    Copy,
}

impl DiskRecordState {
    /// As the status shows it.
    pub fn shown(self) -> DiskState {
        match self {
            Self::Incomplete => DiskState::Incomplete,
            Self::Copy => DiskState::Copy,
        }
    }
}

/// One line of JSON in `/var/lib/kemari/replicas/NAME/disks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The generation of the active replica that sent it.
    pub generation: Generation,
    /// What the disks are.
    pub state: DiskRecordState,
}

/// The file of one VM's record.
#[derive(Debug)]
pub struct DiskRecordFile {
    path: PathBuf,
    opened: File,
}

impl DiskRecordFile {
    /// The record beside this licence, whose directory is open.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn beside(licence: &LicenceFile) -> io::Result<Self> {
        let not_open = || io::Error::other("its directory is not open");
        Ok(Self {
            path: licence.directory().join(NAME),
            opened: licence.opened.as_ref().ok_or_else(not_open)?.try_clone()?,
        })
    }

    /// What it says; `None` if this node never received a disk.
    pub fn read(&self) -> Result<Option<DiskRecord>, RecordError> {
        let failed = |error| LicenceFile::error_at("read", self.path.clone(), error);
        match directory::read(&self.path, directory::LINE_BYTES_MAX) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Replaces it; on return the new record has reached the disk.
    pub fn write(&self, record: DiskRecord) -> Result<(), RecordError> {
        directory::line(&record)
            .and_then(|line| directory::replace(&self.opened, NAME, &line))
            .map_err(|error| LicenceFile::error_at("write", self.path.clone(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_a_damaged_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let licence = LicenceFile::in_state_dir(directory.path(), &"vm".parse().unwrap());
        let licence = licence.open(None).unwrap();
        let file = DiskRecordFile::beside(&licence).unwrap();
        assert_eq!(file.read().unwrap(), None);
        for state in [DiskRecordState::Incomplete, DiskRecordState::Copy] {
            let generation = Generation::new(3);
            let record = DiskRecord { generation, state };
            file.write(record).unwrap();
            assert_eq!(file.read().unwrap(), Some(record));
        }
        std::fs::write(&file.path, b"{}").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("vm/disks"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Where this node's disks may differ from the other replica's: the file `changes` beside the licence
//! record. Its form is [`ChangeRecord`]'s.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use kemari_replication::storage::{CHANGE_RECORD_BYTES_MAX, ChangeRecord, ChangeRecordError};

use super::{LicenceFile, RecordError, directory};

const NAME: &str = "changes";

/// What a node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundChanges {
    /// Nothing.
    None,
    /// Something that is no record, and why.
    Unusable(ChangeRecordError),
    /// A record.
    Record(ChangeRecord),
}

/// The file of one VM's record.
#[derive(Debug)]
pub struct ChangeRecordFile {
    path: PathBuf,
    opened: File,
}

impl ChangeRecordFile {
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

    /// What is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> Result<FoundChanges, RecordError> {
        match directory::read(&self.path, CHANGE_RECORD_BYTES_MAX) {
            Ok(bytes) => Ok(match ChangeRecord::decode(&bytes) {
                Ok(record) => FoundChanges::Record(record),
                Err(why) => FoundChanges::Unusable(why),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FoundChanges::None),
            Err(error) => Err(self.error("read", error)),
        }
    }

    /// Replaces it; on return the new record has reached the disk.
    ///
    /// # Errors
    /// It cannot be written. The old one or the new one is there.
    pub fn write(&self, record: &ChangeRecord) -> Result<(), RecordError> {
        directory::replace(&self.opened, NAME, &record.encode())
            .map_err(|error| self.error("write", error))
    }

    /// Removes it; on return it is gone from the disk.
    ///
    /// # Errors
    /// It may still be there.
    pub fn remove(&self) -> Result<(), RecordError> {
        directory::remove(&self.opened, NAME).map_err(|error| self.error("remove", error))
    }

    fn error(&self, what: &'static str, cause: io::Error) -> RecordError {
        LicenceFile::error_at(what, self.path.clone(), cause)
    }
}

#[cfg(test)]
mod tests {
    use kemari_api::Generation;
    use kemari_replication::storage::{BaseId, DisksIdentity, Regions};

    use super::*;

    #[test]
    fn a_record_reads_back_and_a_damaged_one_is_told_from_none() {
        let directory = tempfile::tempdir().unwrap();
        let licence = LicenceFile::in_state_dir(directory.path(), &"vm".parse().unwrap());
        let licence = licence.open(None).unwrap();
        let file = ChangeRecordFile::beside(&licence).unwrap();
        assert_eq!(file.read().unwrap(), FoundChanges::None);
        let record = ChangeRecord {
            base: BaseId([1; 16]),
            generation: Generation::new(3),
            disks: DisksIdentity(4),
            regions: Regions::default(),
        };
        file.write(&record).unwrap();
        assert_eq!(file.read().unwrap(), FoundChanges::Record(record));
        std::fs::write(&file.path, b"{}").unwrap();
        let damaged = FoundChanges::Unusable(ChangeRecordError::Damaged);
        assert_eq!(file.read().unwrap(), damaged);
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.read().unwrap(), FoundChanges::None);
    }
}

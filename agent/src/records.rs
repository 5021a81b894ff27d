// SPDX-License-Identifier: Apache-2.0
//! The agent's votes on disk: one JSON file a VM in `claims/` of the state directory.
//!
//! A record is written beside the old one, synced, renamed over it, and the directory synced,
//! before it is reported as written. The file `admitted` says that this directory has all votes
//! of this agent; without it the agent first learns from the others.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arbitration::message::Record;

/// The form of the files this build writes and reads.
const FORMAT: u32 = 1;

/// Says that the records are complete.
const ADMITTED: &str = "admitted";

/// What is in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    record: Record,
}

/// Why records cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The system refused.
    #[error("Cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is not a record of this form.
    #[error(
        "{path} is damaged or of another release: {reason}. Move the directory away; the agent \
         then learns from the others before it votes again"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The directory of this agent's votes.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the directory, making it if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let directory = state_dir.join("claims");
        fs::create_dir_all(&directory).map_err(on("create", &directory))?;
        sync_directory(state_dir)?;
        Ok(Self { directory })
    }

    /// All records, and whether they are known to be complete.
    ///
    /// # Errors
    /// When one cannot be read: a vote that was forgotten could be given twice.
    pub fn load(&self) -> Result<(Vec<Record>, bool), RecordError> {
        let mut records = Vec::new();
        let entries = fs::read_dir(&self.directory).map_err(on("read", &self.directory))?;
        for entry in entries {
            let path = entry.map_err(on("read", &self.directory))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                records.push(read(&path)?);
            }
        }
        Ok((records, self.directory.join(ADMITTED).exists()))
    }

    /// Makes a record durable.
    ///
    /// # Errors
    /// When it is not certainly on disk.
    pub fn write(&self, record: &Record) -> Result<(), RecordError> {
        let stored = Stored {
            format: FORMAT,
            record: record.clone(),
        };
        let mut text =
            serde_json::to_vec_pretty(&stored).map_err(|error| RecordError::Damaged {
                path: self.directory.clone(),
                reason: error.to_string(),
            })?;
        text.push(b'\n');
        self.replace(&format!("{}.json", record.vm), &text)
    }

    /// Makes durable that the records are complete.
    ///
    /// # Errors
    /// When it is not certainly on disk.
    pub fn admit(&self) -> Result<(), RecordError> {
        self.replace(ADMITTED, b"This agent's votes are in this directory.\n")
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
        let path = self.directory.join(name);
        let new = self.directory.join(format!("{name}.new"));
        let mut file = File::create(&new).map_err(on("create", &new))?;
        file.write_all(bytes).map_err(on("write", &new))?;
        file.sync_all().map_err(on("sync", &new))?;
        fs::rename(&new, &path).map_err(on("replace", &path))?;
        sync_directory(&self.directory)
    }
}

fn sync_directory(path: &Path) -> Result<(), RecordError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(on("sync", path))
}

fn read(path: &Path) -> Result<Record, RecordError> {
    let damaged = |reason: String| RecordError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let bytes = fs::read(path).map_err(on("read", path))?;
    let stored: Stored =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if stored.format != FORMAT {
        return Err(damaged(format!("format {}, not {FORMAT}", stored.format)));
    }
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(stored.record.vm.as_str()) {
        return Err(damaged(format!("it is about VM {}", stored.record.vm)));
    }
    Ok(stored.record)
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RecordError + 'a {
    move |source| RecordError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitration::message::Purpose;
    use kemari_api::Generation;

    fn record(generation: u64) -> Record {
        Record {
            vm: "web.1".parse().unwrap(),
            generation: Generation::new(generation),
            holder: "n1".parse().unwrap(),
            purpose: Purpose::TakeOver,
            after: Generation::default(),
            consent: std::collections::BTreeSet::new(),
        }
    }

    #[test]
    fn the_newest_record_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load().unwrap(), (vec![], false));
        store.write(&record(1)).unwrap();
        store.write(&record(2)).unwrap();
        store.admit().unwrap();
        let again = Store::open(dir.path()).unwrap();
        assert_eq!(again.load().unwrap(), (vec![record(2)], true));
    }

    #[test]
    fn a_half_written_file_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write(&record(1)).unwrap();
        fs::write(dir.path().join("claims/web.1.json.new"), b"{").unwrap();
        assert_eq!(store.load().unwrap().0, vec![record(1)]);
    }

    #[test]
    fn a_damaged_record_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for text in ["", "{}", r#"{"format":1,"record":{}}"#] {
            fs::write(dir.path().join("claims/vm.json"), text).unwrap();
            let error = store.load().unwrap_err().to_string();
            assert!(error.contains("vm.json"), "{error}");
        }
    }
}

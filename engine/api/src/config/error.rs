// SPDX-License-Identifier: Apache-2.0
//! Why a description could not be used: always the file, mostly line and key, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A description that could not be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("Cannot read the VM description {}: {cause}; {}", path.display(), remedy(cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said; part of the message.
        cause: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}: {}{message}", path.display(), key_prefix(key))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, empty where the file as a whole is meant.
        key: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl ConfigError {
    pub(super) fn read(path: &Path, cause: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            cause,
        }
    }

    /// The line it is about; 0 for the file as a whole.
    #[must_use]
    pub fn line(&self) -> usize {
        match self {
            Self::Read { .. } => 0,
            Self::Invalid { line, .. } => *line,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "create it (see kemari-vm.toml(5)) or correct the resource parameter 'config'"
        }
        io::ErrorKind::PermissionDenied => "make it readable for root",
        io::ErrorKind::InvalidData => "write it as UTF-8 text",
        _ => "check the file and its file system",
    }
}

fn key_prefix(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("{key}: ")
    }
}

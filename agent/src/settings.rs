// SPDX-License-Identifier: Apache-2.0
//! The agent's own settings: `/etc/kemari/agent.toml`. All of them have defaults, and the file need
//! not be there.
//!
//! An agent with a wrong setting still votes: a typing mistake must not take a node's voice away. It runs with
//! the defaults then, says so in the journal, and `kemarictl doctor` shows it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::health::thresholds::Thresholds;

/// The settings' name among the descriptions in `/etc/kemari`.
pub const FILE: &str = "agent.toml";

/// What the file says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// When this node's hardware counts as failing.
    pub health: Thresholds,
}

/// Why a file of settings is not used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not understood; the cause names line and key.
    #[error("{} is wrong", path.display())]
    Wrong {
        /// Where it is.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
}

impl Settings {
    /// Reads the file; the defaults where there is none.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(SettingsError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        toml::from_str(&text).map_err(|source| SettingsError::Wrong {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::thresholds::Disks;

    fn loaded(text: &str) -> Result<Settings, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        fs::write(&path, text).unwrap();
        Settings::load(&path).map_err(|error| {
            let cause = std::error::Error::source(&error).unwrap().to_string();
            format!("{error}: {cause}")
        })
    }

    #[test]
    fn without_a_file_or_with_an_empty_one_there_are_defaults() {
        let nowhere = Path::new("/nonexistent/agent.toml");
        assert_eq!(Settings::load(nowhere).unwrap(), Settings::default());
        assert_eq!(loaded("").unwrap(), Settings::default());
        assert_eq!(loaded("[health]\n").unwrap(), Settings::default());
    }

    #[test]
    fn what_is_said_replaces_its_default_only() {
        let settings = loaded(
            "[health]\ndisks = \"off\"\nmemory = { yellow = 1, red = 5 }\n\
             temperature = { yellow = 20, red = 20 }\n",
        )
        .unwrap();
        assert_eq!(settings.health.memory.red.get(), 5);
        assert_eq!(settings.health.temperature.red, 20);
        assert_eq!(settings.health.disks, Disks::Off);
        assert_eq!(settings.health.pcie, Thresholds::default().pcie);
    }

    #[test]
    fn the_commented_example_holds_the_defaults() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../packaging/examples")
            .join(FILE);
        let text = fs::read_to_string(example).unwrap();
        assert_eq!(loaded(&text).unwrap(), Settings::default());
        // What is commented out is right, too.
        let all: String = text
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = "))
                    .unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        assert_ne!(all, text);
        assert_eq!(loaded(&all).unwrap(), Settings::default());
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_what_to_do() {
        for (text, words) in [
            (
                "[health]\nmemory = { yellow = 5, red = 2 }\n",
                ["line 2", "set red to 5 or more"],
            ),
            (
                "[health]\ntemperature = { yellow = 5, red = 9 }\n",
                ["line 2", "set red to 5 or less"],
            ),
            (
                "[health]\nmemory = { yellow = 0, red = 2 }\n",
                ["line 2", "nonzero"],
            ),
            (
                "[health]\nmemroy = { yellow = 1, red = 2 }\n",
                ["line 2", "unknown field `memroy`"],
            ),
            ("[health]\ndisks = \"smart\"\n", ["line 2", "`smartctl`"]),
            ("[helth]\n", ["line 1", "expected `health`"]),
        ] {
            let said = loaded(text).unwrap_err();
            for word in words {
                assert!(said.contains(word), "{word:?} is not in: {said}");
            }
        }
    }
}

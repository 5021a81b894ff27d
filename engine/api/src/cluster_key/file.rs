// SPDX-License-Identifier: Apache-2.0
//! The file of a cluster key.
//!
//! Lines of `kemari-cluster-key-1 HEX`; empty lines and those that begin with `#` are ignored. The
//! first key is shown to other nodes, every one is accepted from them. So a key can be replaced
//! while the cluster works.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{ClusterSecret, SECRET_BYTES};

/// Where the key lies if nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/kemari/cluster.key";
/// The most keys a file may have.
pub const KEYS_MAX: usize = 4;

/// What each key's line begins with; the number is that of the way keys are derived.
const WORD: &str = "kemari-cluster-key-1";
/// No file of keys is longer.
const FILE_BYTES_MAX: u64 = 4096;
/// Reading and writing for everybody but the owner.
const OTHERS: u32 = 0o077;

const HEADING: &str = "\
# The key of a Kemari cluster, the same on every node: whoever reads it can be a replica.
# Made by kemarictl keygen. The first key is shown to other nodes, all of them are accepted.
";

/// A cluster key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClusterKeyError {
    /// There is none.
    #[error(
        "There is no cluster key {}: copy it from another node, or make the first one with \
         kemarictl keygen", path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("Cannot read the key {}: {cause}; it must be a file that root can read",
        path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Others may read or write it.
    #[error(
        "The key {} has mode {mode:04o}: others can read or change it, so it is not used. \
         chmod 0600 {0}; if somebody may have read it, make a new one",
        path.display()
    )]
    Open {
        /// Where it is.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else owns it.
    #[error(
        "The key {} belongs to user {owner}, who could read and change it, so it is not \
         used: chown root {0}", path.display()
    )]
    Owner {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It is no key.
    #[error("{}:{line}: {what}; copy the file from another node again", path.display())]
    Text {
        /// Where it is.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// The keys in a file: at least one, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys(Vec<ClusterSecret>);

impl ClusterKeys {
    /// One key.
    #[must_use]
    pub fn of(secret: ClusterSecret) -> Self {
        Self(vec![secret])
    }

    /// The one that is shown to other nodes.
    #[must_use]
    pub fn shown(&self) -> &ClusterSecret {
        self.0.first().expect("there is always one")
    }

    /// All that are accepted from other nodes, the shown one first.
    #[must_use]
    pub fn accepted(&self) -> &[ClusterSecret] {
        &self.0
    }

    /// With one more key that is accepted. `None`: there are [`KEYS_MAX`] already.
    #[must_use]
    pub fn with(&self, secret: ClusterSecret) -> Option<Self> {
        let mut keys = self.0.clone();
        keys.push(secret);
        (keys.len() <= KEYS_MAX).then_some(Self(keys))
    }

    /// With the newest key shown; the others are still accepted.
    #[must_use]
    pub fn newest_shown(&self) -> Self {
        let mut keys = self.0.clone();
        keys.rotate_right(1);
        Self(keys)
    }

    /// Only the shown key.
    #[must_use]
    pub fn only_shown(&self) -> Self {
        Self::of(self.shown().clone())
    }

    /// Reads them and checks who else could.
    ///
    /// # Errors
    /// [`ClusterKeyError`].
    pub fn read(path: &Path) -> Result<Self, ClusterKeyError> {
        let unreadable = |error: io::Error| ClusterKeyError::Unreadable {
            path: path.to_owned(),
            cause: error.to_string(),
        };
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ClusterKeyError::Missing {
                path: path.to_owned(),
            },
            _ => unreadable(error),
        })?;
        check_private(path, &file)?;
        let mut text = String::new();
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        Self::parse(&text).map_err(|(line, what)| ClusterKeyError::Text {
            path: path.to_owned(),
            line,
            what,
        })
    }

    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what| (index + 1, what);
            let secret = line
                .strip_prefix(WORD)
                .and_then(|rest| secret_of(rest.trim()))
                .ok_or_else(|| {
                    wrong("no cluster key (kemari-cluster-key-1 and 64 hexadecimal digits)")
                })?;
            if keys.contains(&secret) {
                return Err(wrong("a key that was there before"));
            }
            if keys.len() == KEYS_MAX {
                return Err(wrong("more than four keys"));
            }
            keys.push(secret);
        }
        if keys.is_empty() {
            return Err((1, "the file holds no cluster key"));
        }
        Ok(Self(keys))
    }

    /// As the file holds them.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = HEADING.to_owned();
        for secret in &self.0 {
            text.push_str(WORD);
            text.push(' ');
            for byte in secret.0 {
                text.push_str(&format!("{byte:02x}"));
            }
            text.push('\n');
        }
        text
    }
}

fn secret_of(text: &str) -> Option<ClusterSecret> {
    if text.len() != 2 * SECRET_BYTES || !text.bytes().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; SECRET_BYTES];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    // What an editor or a failed copy leaves is no secret.
    (bytes != [0; SECRET_BYTES]).then_some(ClusterSecret(bytes))
}

/// Whether nobody but root and this process's user can read or change an open file of secrets.
///
/// # Errors
/// [`ClusterKeyError::Open`], [`ClusterKeyError::Owner`], [`ClusterKeyError::Unreadable`].
pub fn check_private(path: &Path, file: &File) -> Result<(), ClusterKeyError> {
    let path = || path.to_owned();
    let unreadable = |cause: String| ClusterKeyError::Unreadable {
        path: path(),
        cause,
    };
    let metadata = file
        .metadata()
        .map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is no file".into()));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(ClusterKeyError::Open { path: path(), mode });
    }
    // The owner could give it to others at any time.
    let owner = metadata.uid();
    if owner != 0 && Some(owner) != effective_user() {
        return Err(ClusterKeyError::Owner {
            path: path(),
            owner,
        });
    }
    Ok(())
}

/// This process's user, as proc(5) shows it.
fn effective_user() -> Option<u32> {
    std::fs::metadata("/proc/self").ok().map(|it| it.uid())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use proptest::prelude::*;

    use super::*;

    fn secret(byte: u8) -> ClusterSecret {
        ClusterSecret([byte; SECRET_BYTES])
    }

    fn keys(bytes: &[u8]) -> ClusterKeys {
        ClusterKeys(bytes.iter().copied().map(secret).collect())
    }

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    proptest! {
        #[test]
        fn keys_read_back_as_they_were_written(
            bytes in proptest::collection::hash_set(1_u8.., 1..=KEYS_MAX)
        ) {
            let bytes: Vec<_> = bytes.into_iter().collect();
            let (_directory, path) = written(&keys(&bytes).to_text(), 0o600);
            prop_assert_eq!(ClusterKeys::read(&path).unwrap(), keys(&bytes));
        }

        #[test]
        fn no_text_breaks_the_reader(text in "\\PC{0,200}") {
            let _ = ClusterKeys::parse(&text);
            let _ = ClusterKeys::parse(&format!("{WORD} {text}"));
        }
    }

    #[test]
    fn a_key_is_replaced_in_three_steps() {
        let two = keys(&[1]).with(secret(2)).unwrap();
        assert_eq!(two, keys(&[1, 2]));
        assert_eq!(two.newest_shown(), keys(&[2, 1]));
        assert_eq!(two.newest_shown().only_shown(), keys(&[2]));
        assert_eq!(keys(&[1, 2, 3, 4]).with(secret(5)), None);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command() {
        for mode in [0o640, 0o604, 0o620, 0o666] {
            let (_directory, path) = written(&keys(&[1]).to_text(), mode);
            let told = ClusterKeys::read(&path).unwrap_err().to_string();
            assert!(told.contains(&format!("mode {mode:04o}")), "{told}");
            assert!(
                told.contains(&format!("chmod 0600 {}", path.display())),
                "{told}"
            );
        }
        let (_directory, path) = written(&keys(&[1]).to_text(), 0o400);
        assert!(ClusterKeys::read(&path).is_ok());
    }

    #[test]
    fn what_is_no_key_is_told_with_its_line() {
        let line = "kemari-cluster-key-1 ";
        for (text, told) in [
            (String::new(), ":1: the file holds no cluster key"),
            ("\n# x\nsecret\n".into(), ":3: no cluster key"),
            (format!("{line}{}", "0".repeat(64)), ":1: no cluster key"),
            (format!("{line}{}", "a".repeat(63)), ":1: no cluster key"),
            (
                format!("{line}{0}\n{line}{0}", "ab".repeat(32)),
                ":2: a key that was there",
            ),
        ] {
            let (_directory, path) = written(&text, 0o600);
            let error = ClusterKeys::read(&path).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let missing = ClusterKeys::read(Path::new("/nonexistent/cluster.key")).unwrap_err();
        assert!(
            missing.to_string().contains("kemarictl keygen"),
            "{missing}"
        );
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Directory trees that take long to make and are made once: root file systems, disk images.
//!
//! A tree appears under its final name only when it is complete (it is built beside it and renamed), and
//! only one process builds a given tree at a time, the others wait for it. A tree's name holds a hash of
//! what it was made from, so a changed recipe makes a new tree. A tree's modification time says when it was last
//! asked for; [`forget`] goes by that.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};
use xxhash_rust::xxh3::Xxh3;

/// Where finished trees are kept: `$KEMARI_TEST_CACHE`, or `/var/cache/kemari-tests`.
pub fn directory() -> PathBuf {
    std::env::var_os("KEMARI_TEST_CACHE")
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from("/var/cache/kemari-tests"), PathBuf::from)
}

/// The hash that names a tree made from these parts. The parts' boundaries count.
#[derive(Default)]
pub struct Key(Xxh3);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Key").field(&self.finish()).finish()
    }
}

impl Key {
    /// A key of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one part.
    #[must_use]
    pub fn with(mut self, part: &[u8]) -> Self {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    /// Adds the contents of a file.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let contents = fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
        Ok(self.with(&contents))
    }

    /// 16 hexadecimal digits.
    pub fn finish(&self) -> String {
        format!("{:016x}", self.0.digest())
    }
}

/// The tree `kind-key` of the cache, made by `make` in an empty directory when it is not there yet.
///
/// # Errors
/// When the cache cannot be written or `make` fails; nothing appears under the final name then.
pub fn obtain(kind: &str, key: &Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = directory();
    let name = format!("{kind}-{}", key.finish());
    let finished = directory.join(&name);
    if let Ok(tree) = File::open(&finished) {
        tree.set_modified(SystemTime::now())
            .with_context(|| format!("Cannot touch {}; run as root", finished.display()))?;
        return Ok(finished);
    }
    fs::create_dir_all(&directory).with_context(|| {
        format!(
            "Cannot create {}; run as root, or point KEMARI_TEST_CACHE elsewhere",
            directory.display()
        )
    })?;
    let _lock = lock(&directory.join(format!("{name}.lock")))?;
    if finished.exists() {
        return Ok(finished);
    }
    let partial = directory.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("Cannot remove the unfinished {}", partial.display()))?;
    }
    fs::create_dir(&partial).with_context(|| format!("Cannot create {}", partial.display()))?;
    if let Err(error) = make(&partial) {
        let _ = fs::remove_dir_all(&partial);
        return Err(error.context(format!("Cannot build {}", finished.display())));
    }
    fs::rename(&partial, &finished)
        .with_context(|| format!("Cannot rename {} to its final name", partial.display()))?;
    Ok(finished)
}

/// Removes the trees of a kind that nobody has asked for since `age`.
///
/// # Errors
/// When the cache cannot be read or a tree cannot be removed.
pub fn forget(kind: &str, age: Duration) -> Result<()> {
    let kind = format!("{kind}-");
    for entry in fs::read_dir(directory()).context("Cannot read the cache")? {
        let entry = entry?;
        let is_kind = entry.file_name().to_string_lossy().starts_with(&kind);
        let unused = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if is_kind && unused > age && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("Cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Waits for the exclusive lock on a file, which is created when it is missing.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("Cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| anyhow!("Cannot lock {}: {errno}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn a_key_tells_parts_and_their_boundaries_apart() {
        let joined = Key::new().with(b"ab").with(b"c").finish();
        assert_eq!(joined, Key::new().with(b"ab").with(b"c").finish());
        assert_ne!(joined, Key::new().with(b"a").with(b"bc").finish());
        assert_eq!(joined.len(), 16);
    }
}

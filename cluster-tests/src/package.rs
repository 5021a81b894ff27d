// SPDX-License-Identifier: Apache-2.0
//! The Debian package under test, which `make package` has built.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The newest `kemari_*.deb` in `KEMARI_DEB_DIRECTORY`, or in `target/debian` of the workspace.
///
/// # Errors
/// When there is none: `make package` builds it.
pub fn find() -> Result<PathBuf> {
    let directory = env::var_os("KEMARI_DEB_DIRECTORY").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/debian"),
        PathBuf::from,
    );
    let missing = || {
        format!(
            "No kemari_*.deb in {}: run make package",
            directory.display()
        )
    };
    std::fs::read_dir(&directory)
        .with_context(missing)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("kemari_") && name.ends_with(".deb")
        })
        .max_by_key(|path| {
            path.metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
        })
        .with_context(missing)
}

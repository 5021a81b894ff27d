// SPDX-License-Identifier: Apache-2.0
//! The packages under test, which `make package` has built.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Makes `$2` of the Debian package `$1`, in the directory `$3`.
const PREVIOUS: &str = include_str!("package/previous.sh");

/// Who installs a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A node that can hold replicas.
    Host,
    /// A node that only votes.
    Witness,
}

impl Role {
    /// The package's name.
    pub fn package(self) -> &'static str {
        match self {
            Self::Host => "kemari",
            Self::Witness => "kemari-witness",
        }
    }
}

/// The newest `kemari_*.deb` in `KEMARI_DEB_DIRECTORY`, or in `target/debian` of the workspace.
///
/// # Errors
/// When there is none: `make package` builds it.
pub fn find() -> Result<PathBuf> {
    deb(Role::Host)
}

/// The newest Debian package of this role, from the same place.
///
/// # Errors
/// When there is none: `make package` builds it.
pub fn deb(role: Role) -> Result<PathBuf> {
    let prefix = format!("{}_", role.package());
    newest("KEMARI_DEB_DIRECTORY", "../target/debian", &prefix, ".deb")
}

/// The newest `.rpm` of this role in `KEMARI_RPM_DIRECTORY`, or in `target/rpm` of the workspace.
///
/// # Errors
/// When there is none: `make package` builds it.
pub fn rpm(role: Role) -> Result<PathBuf> {
    // "kemari-0.1.0-1.x86_64.rpm", and not "kemari-witness-0.1.0-1.x86_64.rpm".
    let prefix = format!("{}-{}", role.package(), env!("CARGO_PKG_VERSION"));
    newest("KEMARI_RPM_DIRECTORY", "../target/rpm", &prefix, ".rpm")
}

/// A Debian package as the release before this one would be, made in an empty directory of the same files: a lower
/// version, another unit of the agent, other defaults in a configuration file, and a file that is gone now.
///
/// # Errors
/// When there is no package, or `dpkg-deb` fails.
pub fn previous_deb(role: Role, into: &Path) -> Result<PathBuf> {
    let previous = into.join(format!("{}_{PREVIOUS_VERSION}.deb", role.package()));
    let made = Command::new("sh")
        .args(["-euc", PREVIOUS, "previous"])
        .args([&deb(role)?, &previous, &into.join("tree")])
        .arg(PREVIOUS_VERSION)
        .output()
        .context("Cannot run sh")?;
    ensure!(
        made.status.success(),
        "Cannot make {}: {made:?}",
        previous.display()
    );
    Ok(previous)
}

/// What [`previous_deb`] says of itself.
pub const PREVIOUS_VERSION: &str = "0.0.9-1";

fn newest(variable: &str, default: &str, prefix: &str, suffix: &str) -> Result<PathBuf> {
    let directory = env::var_os(variable).map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(default),
        PathBuf::from,
    );
    let missing = || {
        format!(
            "No {prefix}*{suffix} in {}: run make package",
            directory.display()
        )
    };
    std::fs::read_dir(&directory)
        .with_context(missing)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(prefix) && name.ends_with(suffix)
        })
        .max_by_key(|path| {
            path.metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
        })
        .with_context(missing)
}

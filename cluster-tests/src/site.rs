// SPDX-License-Identifier: Apache-2.0
//! The layer above the shared root: the packages under test, the fence agent, and what a test node must not run.
//!
//! It is an overlay's upper directory, made once for each set of packages and cached by their contents. The
//! packages are installed by `dpkg -i`, as a user would: a package whose dependencies the root lacks is refused.
//! Corosync and Pacemaker, if the root has them, are not started at boot; the scenario starts them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::{self, Key};

const BUILD: &str = include_str!("site/build.sh");
const FENCE_AGENT: &str = include_str!("site/fence_bed");

/// How long a layer is kept that no bed was made with.
const UNUSED: Duration = Duration::from_secs(3 * 24 * 3600);

/// The layer with these Debian packages on top of the shared root. No packages give a plain cluster.
///
/// # Errors
/// When a package cannot be read or `dpkg` refuses it; its message is on standard error then.
pub fn build(rootfs: &Path, debs: &[PathBuf]) -> Result<PathBuf> {
    let mut key = Key::new()
        .with(rootfs.as_os_str().as_encoded_bytes())
        .with(BUILD.as_bytes())
        .with(FENCE_AGENT.as_bytes());
    for deb in debs {
        key = key.with_file(deb)?;
    }
    let layer = cache::obtain("site", &key, |into| fill(rootfs, into, debs))?;
    Ok(layer.join("upper"))
}

fn fill(rootfs: &Path, into: &Path, debs: &[PathBuf]) -> Result<()> {
    // Every build of a package makes another layer; no bed lives as long as this.
    cache::forget("site", UNUSED)?;
    eprintln!(
        "site: installing {} package(s) above the shared root",
        debs.len()
    );
    let mut agent = tempfile::NamedTempFile::new().context("Cannot write a temporary file")?;
    std::io::Write::write_all(&mut agent, FENCE_AGENT.as_bytes())?;
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--propagation", "private"])
        .args(["--kill-child=SIGKILL", "--", "sh", "-c", BUILD, "site"])
        .args([rootfs, into, agent.path()])
        .args(debs)
        .output()
        .context("Cannot run unshare")?;
    ensure!(
        output.status.success(),
        "Installing the packages ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! What the resource agent and the node's agent note for each other and for the unit, under /run.
//!
//! Which description a VM's engine is started from; and which engines the agent keeps as the passive replica of a plain
//! primitive, so that it ends those and no others.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::{VmName, place};

/// The variable that the systemd unit reads from an environment file.
const DESCRIPTION_KEY: &str = "KEMARI_CONFIG=";

/// Notes that `path` describes `vm`, for the unit and for later actions.
///
/// # Errors
/// What the file system said.
pub fn describe(vm: &VmName, path: &Path) -> io::Result<()> {
    replace(&place::unit_environment(vm), &description(path))
}

/// Removes that note.
///
/// # Errors
/// What the file system said; a note that is not there is none.
pub fn undescribe(vm: &VmName) -> io::Result<()> {
    remove(&place::unit_environment(vm))
}

/// The text of that note.
#[must_use]
pub fn description(path: &Path) -> String {
    format!("{DESCRIPTION_KEY}{}\n", path.display())
}

/// Notes that the engine of `vm` is a kept one.
///
/// # Errors
/// What the file system said.
pub fn keep(vm: &VmName) -> io::Result<()> {
    replace(&place::kept(vm), "")
}

/// Removes that note.
///
/// # Errors
/// What the file system said; a note that is not there is none.
pub fn keep_no_more(vm: &VmName) -> io::Result<()> {
    remove(&place::kept(vm))
}

/// Whether the engine of `vm` is a kept one, if there is one.
#[must_use]
pub fn is_kept(vm: &VmName) -> bool {
    place::kept(vm).exists()
}

/// Every VM with such a note.
#[must_use]
pub fn kept() -> BTreeSet<VmName> {
    let Ok(entries) = fs::read_dir(place::run_dir()) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| place::vm_of_kept(entry.ok()?.file_name().to_str()?))
        .collect()
}

/// Writes a whole file in one step: a reader finds the old text or the new one.
///
/// # Errors
/// What the file system said.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        // As tmpfiles.d makes it: control sockets are root's.
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

/// Removes a file that may be missing.
///
/// # Errors
/// What the file system said.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

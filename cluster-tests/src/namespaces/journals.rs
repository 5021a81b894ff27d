// SPDX-License-Identifier: Apache-2.0
//! Collects what nodes wrote about themselves, from their disks: it does not matter whether they still live.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};

use super::Namespaces;
use super::machinery::Machinery;
use crate::bed::Bed as _;

/// Reads a journal directory with the shared root's own journalctl. `$1`: the root, `$2`: the journal's directory.
const JOURNAL: &str = "mount --bind \"$2\" \"$1/mnt\" && exec chroot \"$1\" \
    journalctl -D /mnt --no-pager -o short-monotonic";

/// Text files of a node's disk that are copied as they are.
const LOGS: &[(&str, &str)] = &[
    ("var/log/corosync/corosync.log", "corosync.log"),
    ("var/log/pacemaker/pacemaker.log", "pacemaker.log"),
];

/// Writes `NODE.journal`, `NODE.console` and one file for each log into a directory, which is created.
pub(super) fn collect(machinery: &Machinery, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("Cannot create {}", into.display()))?;
    for node in &machinery.cluster.nodes {
        let directory = machinery.directory(node);
        let outside = machinery.supervisor.from_outside(&directory);
        copy(
            &outside.join("console"),
            &into.join(format!("{node}.console")),
        )?;
        for (log, name) in LOGS {
            let from = outside.join("upper").join(log);
            copy(&from, &into.join(format!("{node}.{name}")))?;
        }
        let journal = File::create(into.join(format!("{node}.journal")))?;
        machinery
            .supervisor
            .command("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .args(["sh", "-c", JOURNAL, "journal"])
            .arg(&machinery.rootfs)
            .arg(directory.join("upper/var/log/journal"))
            .stdin(Stdio::null())
            .stderr(journal.try_clone()?)
            .stdout(journal)
            .status()
            .context("Cannot run unshare")?;
    }
    Ok(())
}

/// Copies a file that need not exist.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.exists() {
        fs::copy(from, to).with_context(|| format!("Cannot copy to {}", to.display()))?;
    }
    Ok(())
}

impl Namespaces {
    /// Keeps the journals of a bed that failed in `$KEMARI_TEST_LOGS` (or the temporary directory), prints where,
    /// and gives the place.
    pub fn keep_journals(&self) -> PathBuf {
        let place = std::env::var_os("KEMARI_TEST_LOGS")
            .map_or_else(std::env::temp_dir, PathBuf::from)
            .join(format!("journals-{}", self.supervisor().name()));
        match self.collect_journals(&place) {
            Ok(()) => eprintln!("The nodes' journals are in {}", place.display()),
            Err(error) => eprintln!("The nodes' journals could not be kept: {error:#}"),
        }
        place
    }
}

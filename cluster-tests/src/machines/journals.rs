// SPDX-License-Identifier: Apache-2.0
//! Collects what nodes wrote about themselves: from the node while it answers, otherwise from its disk and ports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Machines;
use super::machinery::{Machinery, Node};
use crate::bed::Bed as _;

/// Text files of a node's disk that are copied as they are.
const LOGS: &[(&str, &str)] = &[
    ("/var/log/corosync/corosync.log", "corosync.log"),
    ("/var/log/pacemaker/pacemaker.log", "pacemaker.log"),
];

/// A machine that does not answer in this time is read from outside.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes `NODE.serial`, `NODE.journal`, `NODE.qemu` and one file for each log into a directory, which is created.
///
/// `NODE.journal` is what the node's journald handed to its port, over all boots of the bed: the same whether the
/// node lives, is frozen or dead.
pub(super) fn collect(machinery: &Machinery, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("Cannot create {}", into.display()))?;
    for node in machinery.all() {
        let name = &node.hardware.node;
        for (from, kind) in [
            (node.hardware.serial_log(), "serial"),
            (node.hardware.journal_log(), "journal"),
            (node.hardware.emulator_log(), "qemu"),
        ] {
            if from.exists() {
                let to = into.join(format!("{name}.{kind}"));
                fs::copy(&from, &to).with_context(|| format!("Cannot copy to {}", to.display()))?;
            }
        }
        for (log, kind) in LOGS {
            if let Some(text) = from_node(node, log).or_else(|| from_disk(machinery, node, log)) {
                let to = into.join(format!("{name}.{kind}"));
                fs::write(&to, text).with_context(|| format!("Cannot write {}", to.display()))?;
            }
        }
    }
    Ok(())
}

fn from_node(node: &Node, path: &str) -> Option<Vec<u8>> {
    let machine = node.machine().filter(|machine| !machine.is_frozen())?;
    let text = machine.channel.execute(&["cat", path], PATIENCE).ok()?;
    (text.status == 0).then(|| text.stdout.into_bytes())
}

/// `debugfs` reads ext4 without mounting it, also one whose machine lost its power. What was not written back when
/// that happened is not there.
fn from_disk(machinery: &Machinery, node: &Node, path: &str) -> Option<Vec<u8>> {
    let output = Command::new("/usr/sbin/debugfs")
        .arg("-R")
        .arg(format!("cat /upper{path}"))
        .arg(machinery.disk(node))
        .output()
        .ok()?;
    (!output.stdout.is_empty()).then_some(output.stdout)
}

impl Machines {
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

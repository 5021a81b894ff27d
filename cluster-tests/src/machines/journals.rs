// SPDX-License-Identifier: Apache-2.0
//! Collects what nodes wrote about themselves: from the node while it answers, otherwise from its disk and ports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Machines;
use super::disks::copy_sparse;
use super::emulator::Acceleration;
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
        let from_machine = LOGS
            .iter()
            .map(|(log, _)| from_node(node, log))
            .collect::<Option<Vec<_>>>();
        let texts = from_machine.unwrap_or_else(|| {
            // The other nodes' logs are worth having, whatever is wrong with this one's disk.
            from_disk(&machinery.disk(node)).unwrap_or_else(|error| {
                eprintln!("machines: cannot read the logs on {name}'s disk: {error:#}");
                Vec::new()
            })
        });
        for ((_, kind), text) in LOGS.iter().zip(texts) {
            let to = into.join(format!("{name}.{kind}"));
            fs::write(&to, text).with_context(|| format!("Cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

fn from_node(node: &Node, path: &str) -> Option<Vec<u8>> {
    let machine = node.machine().filter(|machine| !machine.is_frozen())?;
    let text = machine.channel.execute(&["cat", path], PATIENCE).ok()?;
    (text.status == 0).then(|| text.stdout.into_bytes())
}

/// The logs on an ext4 that nobody has mounted, also one whose machine lost its power: empty where nothing was written
/// back before that happened. What was is in the file system's journal at first, which `debugfs` does not look at, so
/// the journal of a copy is replayed.
fn from_disk(disk: &Path) -> Result<Vec<Vec<u8>>> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("disk");
    copy_sparse(disk, &copy)?;
    let replayed = Command::new("/usr/sbin/e2fsck")
        .args(["-y", "-E", "journal_only"])
        .arg(&copy)
        .output()
        .context("Cannot run e2fsck")?;
    // e2fsck(8): 0 and 1 are an ext4 that is in order, and one that was put in order.
    ensure!(
        matches!(replayed.status.code(), Some(0 | 1)),
        "e2fsck ended with {}: {}",
        replayed.status,
        String::from_utf8_lossy(&replayed.stderr).trim()
    );
    LOGS.iter()
        .map(|(log, _)| {
            let output = Command::new("/usr/sbin/debugfs")
                .arg("-R")
                .arg(format!("cat /upper{log}"))
                .arg(&copy)
                .output()
                .context("Cannot run debugfs")?;
            Ok(output.stdout)
        })
        .collect()
}

/// What Linux says when its own processors stood still (6.1: `kernel/rcu/tree_stall.h`, `kernel/watchdog.c`).
const STALLS: &[&str] = &[
    "detected stalls",
    "self-detected stall",
    "rcu_preempt kthread starved",
    "soft lockup",
];

/// The lines of a node's serial log that tell that the node itself stood still.
fn stalls(serial: &str) -> Vec<&str> {
    serial
        .lines()
        .filter(|line| STALLS.iter().any(|stall| line.contains(stall)))
        .collect()
}

impl Machines {
    /// Whether nodes are emulated: their processors stand still now and then, and those of guests with them.
    pub fn is_emulated(&self) -> bool {
        self.machinery
            .all()
            .iter()
            .any(|node| node.hardware.acceleration == Acceleration::Tcg)
    }

    /// What the nodes' own kernels said of processors that stood still, with the node's name. Emulated machines with several processors
    /// do that now and then; whatever ran in one then says nothing about Kemari.
    pub fn stalls(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in self.machinery.all() {
            let serial = fs::read(node.hardware.serial_log()).unwrap_or_default();
            let serial = String::from_utf8_lossy(&serial);
            let lines = stalls(&serial).into_iter();
            found.extend(lines.map(|line| format!("{}: {line}", node.hardware.node)));
        }
        found
    }

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

#[cfg(test)]
mod tests {
    use super::stalls;

    #[test]
    fn a_node_that_stood_still_is_told_by_its_own_kernel() {
        let serial = "[    5.1] kvm: Nested Virtualization enabled\n\
                      [  120.2] rcu: INFO: rcu_preempt self-detected stall on CPU\n\
                      [  120.2] rcu: \t1-...!: (1 GPs behind) idle=4a3c/1/0x4000000000000000\n";
        assert_eq!(stalls(serial).len(), 1);
        assert!(stalls("[ 1.0] rcu: Hierarchical RCU implementation.\n").is_empty());
    }
}

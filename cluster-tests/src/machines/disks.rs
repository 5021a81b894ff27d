// SPDX-License-Identifier: Apache-2.0
//! Disks of a node that a guest uses: copies of an image, one for each node or one for all.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::supervisor::Supervisor;

/// The number of the first disk for guests; those before are the node's own.
pub(super) const FIRST: usize = 4;
/// How many a node can have.
pub(super) const MOST: usize = 4;

/// A disk for guests in every node. The image itself is never written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestDisk {
    /// Each node has a copy of its own; it survives power cuts of the node.
    Own(PathBuf),
    /// All nodes have the same copy, as with a disk on a storage network: what one wrote and flushed, the others read.
    /// A node's kernel caches what it read, so whoever shares it opens it with `O_DIRECT`.
    Shared(PathBuf),
}

/// The name in the node of the disk for guests with this index.
pub fn guest_disk_path(index: usize) -> String {
    let letter = "efgh".chars().nth(index).unwrap_or('h');
    format!("/dev/vd{letter}")
}

impl GuestDisk {
    /// Makes the copy that a node gets, as a path inside the supervisor. A shared one is made for the first node.
    pub(super) fn place(
        &self,
        supervisor: &Supervisor,
        node: &str,
        index: usize,
    ) -> Result<PathBuf> {
        let (image, owner) = match self {
            Self::Own(image) => (image, node),
            Self::Shared(image) => (image, "shared"),
        };
        let copy = supervisor
            .disks()
            .join(format!("{owner}-guest{index}.disk"));
        let outside = supervisor.from_outside(&copy);
        if !outside.exists() {
            copy_sparse(image, &outside)?;
        }
        Ok(copy)
    }
}

/// Copies a disk; what it does not use, the copy does not use either.
pub(super) fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp")
        .args(["--sparse=always", "--"])
        .args([from, to])
        .output()
        .context("Cannot run cp")?;
    ensure!(
        output.status.success(),
        "Copying {} ended with {}: {}",
        from.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{FIRST, MOST, guest_disk_path};

    #[test]
    fn names_follow_those_of_the_nodes_own_disks() {
        assert_eq!(guest_disk_path(0), "/dev/vde");
        assert_eq!(guest_disk_path(MOST - 1), "/dev/vdh");
        assert_eq!("abcdefgh".find('e'), Some(FIRST));
    }
}

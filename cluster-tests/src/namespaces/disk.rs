// SPDX-License-Identifier: Apache-2.0
//! A node's disk: the upper layer of its overlay root, on the run's tmpfs. It survives the node's power cuts.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result};

use crate::corosync::NodeFile;

/// Where the files of Pacemaker's own user begin.
const PACEMAKER: &str = "var/lib/pacemaker";

/// Makes the directories that a node needs, and its disk's first contents. `node` is the node's directory.
pub(super) fn create(node: &Path, rootfs: &Path, files: &[NodeFile]) -> Result<()> {
    let upper = node.join("upper");
    for directory in [&upper, &node.join("root"), &node.join("work")] {
        fs::create_dir_all(directory)
            .with_context(|| format!("Cannot create {}", directory.display()))?;
    }
    for file in files {
        let owner = match file.pacemaker {
            true => Some(hacluster(rootfs)?),
            false => None,
        };
        write(&upper, file, owner).with_context(|| format!("Cannot write {}", file.path))?;
    }
    Ok(())
}

/// Prepares the disk for another boot: the overlay's working directory must be empty.
pub(super) fn prepare(node: &Path) -> Result<()> {
    let work = node.join("work");
    fs::remove_dir_all(&work)
        .and_then(|()| fs::create_dir(&work))
        .with_context(|| format!("Cannot make {} anew", work.display()))
}

/// `owner` has the file and Pacemaker's directories above it; without one root has.
fn write(upper: &Path, file: &NodeFile, owner: Option<(u32, u32)>) -> Result<()> {
    let relative = Path::new(file.path.trim_start_matches('/'));
    let mut directory = upper.to_owned();
    for part in relative.parent().into_iter().flatten() {
        directory.push(part);
        if !directory.exists() {
            fs::create_dir(&directory)?;
            // A directory in the upper layer hides the lower one's owner and mode.
            fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
            if let Some((uid, gid)) = owner
                && directory.starts_with(upper.join(PACEMAKER))
            {
                fs::set_permissions(&directory, Permissions::from_mode(0o750))?;
                chown(&directory, Some(uid), Some(gid))?;
            }
        }
    }
    let path = upper.join(relative);
    fs::write(&path, &file.contents)?;
    fs::set_permissions(&path, Permissions::from_mode(file.mode))?;
    if let Some((uid, gid)) = owner {
        chown(&path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// The uid and gid of Pacemaker's user in the root.
fn hacluster(rootfs: &Path) -> Result<(u32, u32)> {
    let path = rootfs.join("etc/passwd");
    let text =
        fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| match fields.as_slice() {
            ["hacluster", _, uid, gid, ..] => Some((uid.parse().ok()?, gid.parse().ok()?)),
            _ => None,
        })
        .with_context(|| format!("{} has no user hacluster", path.display()))
}

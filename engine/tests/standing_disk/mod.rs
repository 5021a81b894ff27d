// SPDX-License-Identifier: Apache-2.0
//! A file system that can be made to stand still: while it is frozen, whoever writes to it waits in
//! the kernel. What an engine writes to a disk there is in flight for as long as a test likes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Enough for a disk of 8 MiB and a journal.
const BYTES: u64 = 64 * 1024 * 1024;

/// An ext4 file system on a loop device.
pub struct StandingDisk {
    mount: PathBuf,
    _directory: TempDir,
}

/// Nobody gets a write through while this is there.
pub struct Frozen<'a>(&'a StandingDisk);

impl StandingDisk {
    /// Mounts one; none, with a word, where this machine does not let us.
    pub fn mount_or_skip() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let (image, mount) = (directory.path().join("image"), directory.path().join("fs"));
        std::fs::create_dir(&mount).unwrap();
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(BYTES).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F"], &[&image])
            && run("mount", &["-o", "loop"], &[&image, &mount]);
        if !made {
            println!(
                "SKIPPED: no file system can be made and mounted here (root, mkfs.ext4, loop)"
            );
            return None;
        }
        Some(Self {
            mount,
            _directory: directory,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// From now on writes wait.
    pub fn freeze(&self) -> Frozen<'_> {
        assert!(run("fsfreeze", &["-f"], &[&self.mount]));
        Frozen(self)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["-u"], &[&self.0.mount]);
    }
}

impl Drop for StandingDisk {
    fn drop(&mut self) {
        run("umount", &["-l"], &[&self.mount]);
    }
}

fn run(program: &str, arguments: &[&str], paths: &[&Path]) -> bool {
    let status = Command::new(program)
        .args(arguments)
        .args(paths)
        .stdin(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

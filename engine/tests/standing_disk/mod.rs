// SPDX-License-Identifier: Apache-2.0
//! A file system that can be made to stand still: while it is frozen, whoever writes to it waits in
//! the kernel. What an engine writes to a disk there is in flight for as long as a test likes.
//!
//! Whoever waits so cannot even be killed. So a process of its own thaws the file system when the
//! test ends, however that happens.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Enough for a disk of 8 MiB and a journal.
const BYTES: u64 = 64 * 1024 * 1024;

/// An ext4 file system on a loop device.
pub struct StandingDisk {
    mount: PathBuf,
    _directory: TempDir,
}

/// Nobody gets a write through while this is there.
pub struct Frozen {
    /// Thaws when its input ends.
    thaw: Child,
}

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
    pub fn freeze(&self) -> Frozen {
        let thaw = Command::new("sh")
            .args(["-c", "read _; fsfreeze -u \"$0\""])
            .arg(&self.mount)
            .stdin(Stdio::piped())
            // A signal to the test's group is not for it.
            .process_group(0)
            .spawn()
            .unwrap();
        let frozen = Frozen { thaw };
        assert!(run("fsfreeze", &["-f"], &[&self.mount]));
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.thaw.stdin.take());
        let _ = self.thaw.wait();
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

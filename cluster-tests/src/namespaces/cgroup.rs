// SPDX-License-Identifier: Apache-2.0
//! A node's cgroup (version 2): what holds all its processes, whatever they fork, and stops or kills them as one.
//!
//! Everything is done by writing files through the supervisor's view, so no process is started in between.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long the kernel may take to stop every process of a node.
const FREEZE_LIMIT: Duration = Duration::from_secs(20);

/// One node's cgroup, as the owner of the run reaches it.
#[derive(Debug)]
pub(super) struct NodeCgroup {
    path: PathBuf,
}

impl NodeCgroup {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes it anew: empty, not frozen, with a place for the processes that the harness starts in the node.
    pub(super) fn create(&self) -> Result<()> {
        remove_tree(&self.path)
            .and_then(|()| fs::create_dir_all(self.path.join("harness.scope")))
            .with_context(|| format!("Cannot make the cgroup {} anew", self.path.display()))
    }

    /// Kills every process in it at once, frozen or not.
    pub(super) fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Lets its processes go on.
    pub(super) fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// Stops every process in it and waits until the kernel says that they all are stopped.
    pub(super) fn freeze(&self) -> Result<()> {
        let path = self.path.join("cgroup.events");
        let mut events =
            File::open(&path).with_context(|| format!("Cannot open {}", path.display()))?;
        self.write("cgroup.freeze", "1")?;
        let deadline = Instant::now() + FREEZE_LIMIT;
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.lines().any(|line| line == "frozen 1") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "Processes in {} were still running {} s after the freeze",
                self.path.display(),
                FREEZE_LIMIT.as_secs()
            );
            // The kernel raises POLLPRI on this file when its contents change.
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            poll(&mut fds, PollTimeout::from(100u8))?;
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("Cannot write to {}", path.display()))
    }
}

/// Removes a tree of empty cgroups, deepest first. Their files go with them.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
